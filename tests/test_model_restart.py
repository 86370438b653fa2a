"""Windows outlive a restart: from what was kept, from the sealed buffer, through kill -9."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import model_bundles
import numpy as np
import pytest
from running_agent import Bedside, dial, running, until

from bench.gateway import PRESET, Gateway, connect
from bench.messages import frame
from edge_agent import config
from edge_agent.buffer import Buffer, Position, Reader, create_key_file, load_kek
from edge_agent.buffer.clock import SYNCHRONIZED
from edge_agent.commands.doctor_agent import check_model
from edge_agent.commands.model import _SEXES as FILE_SEXES
from edge_agent.control import ControlClient, Refused
from edge_agent.records import DeviceStatus, Entry, Observation
from edge_agent.risk import SEXES, restart
from edge_agent.risk.hours import pack, rows
from edge_agent.risk.restart import Found, Restart, kept, setting
from edge_agent.risk.warm import libraries, warm
from edge_agent.watch.windows import BIN_NS, VITALS, Windows

NS = 1_000_000_000
HOUR_NS = 3600 * NS
BED = "ICU-1"
RISK = (
    '\n[[condition]]\nid = "sepsis_risk"\nkind = "advisory"\nvital = "sepsis_risk"\npresent = "score_above 0.99"\n'
    'priority = "low"\n'
    '[[condition]]\nid = "sepsis_risk_stale"\nkind = "technical"\nvital = "sepsis_risk"\npresent = "silent 600"\n'
    'priority = "low"\n'
)


class Clock:
    """A machine's clocks that the test turns; another `name` is another boot."""

    def __init__(self, name: bytes = b"boot-1-of-16-oct", mono_ns: int = 100 * HOUR_NS, utc_ns: int = 10**18) -> None:
        self.name, self.mono_ns, self.utc = name, mono_ns, utc_ns

    def monotonic_ns(self) -> int:
        return self.mono_ns

    def utc_ns(self) -> int:
        return self.utc

    def quality(self) -> int:
        return SYNCHRONIZED

    def boot(self) -> bytes:
        return self.name

    def go(self, seconds: float) -> None:
        self.mono_ns += round(seconds * NS)
        self.utc += round(seconds * NS)


class Site:
    """A buffer that is written to on a turned clock, and what a restart finds in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        create_key_file(folder / "kek")
        self.key = load_kek(f"file:{folder / 'kek'}")
        self.clock = Clock()
        self.told = threading.Event()
        self.live = Windows([BED, "ICU-2"])
        self.buffer: Buffer | None = None
        self.open()

    def open(self) -> None:
        self.buffer = Buffer(
            self.folder, self.key, "gw", config.Buffer(commit_ms=1), on_committed=lambda _: self.told.set(),
            on_fault=lambda _kind, _detail: None, clock=self.clock, receivers={"alerts": (), "data": ()},  # type: ignore[arg-type]
        )  # fmt: skip

    def close(self) -> None:
        assert self.buffer is not None
        self.buffer.close(5.0)

    def write(self, values: Sequence[tuple[str, str, float]], patient: str = "P1", *, lived: bool = True) -> None:
        """A block with these values (bed, term, value), now, and the live windows that it makes."""
        assert self.buffer is not None
        self.told.clear()
        found = [(bed, Observation(term, value, "valid", self.clock.mono_ns)) for bed, term, value in values]
        self.buffer.append([Entry(bed, "mon", patient, obs) for bed, obs in found], wanted_soon=True)
        assert self.told.wait(10)
        for bed, obs in found if lived else ():
            self.live.observe(bed, obs)

    def read(self, patient: str = "P1", settings: dict[str, bytes] | None = None) -> Found:
        found: list[Found] = []
        done = threading.Event()

        def take(what: Found) -> None:
            found.append(what)
            done.set()

        reading = Restart(
            self.folder, self.key, {BED: patient, "ICU-2": patient}, settings or {}, lambda _s: True, take,
            self.clock,  # type: ignore[arg-type]
        )  # fmt: skip
        reading.start()
        assert done.wait(20)
        return found[0]

    def same(self, found: Found, bed: str = BED) -> None:
        """Assert that what was found is what the live windows hold."""
        np.testing.assert_array_equal(
            rows(found.windows[bed]), rows(self.live.copy(bed, found.windows[bed].number * BIN_NS))
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def day(site: Site, hours: int, patient: str = "P1") -> None:
    chance = np.random.default_rng(hours)
    for _ in range(hours * 4):
        site.clock.go(900)
        site.write(
            [(BED, "heart_rate", float(chance.integers(50, 120))), ("ICU-2", "spo2", float(chance.integers(85, 100)))],
            patient,
        )


def test_the_buffer_gives_the_windows_back(site: Site) -> None:
    day(site, 30)
    found = site.read()
    assert found.fault == ""
    for bed in (BED, "ICU-2"):
        site.same(found, bed)
    assert np.isfinite(rows(found.windows[BED])[:, 0]).all(), "a whole day"


def test_the_times_of_another_boot_are_moved(site: Site) -> None:
    day(site, 5)
    site.close()
    lived = rows(site.live.copy(BED, site.clock.mono_ns + 3 * HOUR_NS))
    site.clock = Clock(b"boot-2-of-16-oct", 60 * NS, site.clock.utc + 3 * HOUR_NS)
    site.open()
    found = site.read()
    # the bins of the new boot begin at other moments, so an hour's edge may move by a bin
    here = rows(found.windows[BED])[:, 0]
    assert np.isfinite(here).sum() in (np.isfinite(lived[:, 0]).sum() + each for each in (-1, 0, 1))
    assert np.isnan(here[-2:]).all() and np.isfinite(here[-6:-3]).all()


def test_another_patients_values_are_not_taken_over(site: Site) -> None:
    day(site, 3, "P1")
    site.live.clear(BED)
    site.live.clear("ICU-2")
    day(site, 2, "P2")
    site.same(site.read("P2"))
    assert np.isfinite(rows(site.read("P2").windows[BED])[:, 0]).sum() == 2
    assert site.read("P1").windows == {} and site.read("").windows == {}


def test_a_kept_window_and_what_came_after_it_make_the_window(site: Site) -> None:
    day(site, 6)
    settings = {
        setting(bed): kept(pack(site.live.copy(bed, site.clock.mono_ns)), "P1", site.clock.mono_ns, site.clock)  # type: ignore[arg-type]
        for bed in (BED, "ICU-2")
    }
    day(site, 2)
    for found in (site.read(settings=settings), site.read()):
        assert found.fault == ""
        site.same(found)
    gone = {**settings, setting(BED): kept(pack(Windows([BED]).copy(BED, 5)), "P9", site.clock.mono_ns, site.clock)}  # type: ignore[arg-type]
    site.same(site.read(settings=gone))
    site.same(site.read(settings={setting(BED): b"no window"}))


def test_a_kept_window_alone_is_enough_where_everything_was_delivered(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.close()
    for minute in range(0, 24 * 60, 5):
        site.live.observe(BED, Observation("spo2", 80.0 + minute % 20, "valid", site.clock.mono_ns + minute * 60 * NS))
    site.clock.go(24 * 3600 - 1)
    blob = kept(pack(site.live.copy(BED, site.clock.mono_ns)), "P1", site.clock.mono_ns, site.clock)  # type: ignore[arg-type]
    assert len(blob) < 2400, "it is written every five minutes"
    site.clock.go(600)
    site.same(site.read(settings={setting(BED): blob}))


def test_reading_begins_near_the_day_and_not_at_the_oldest_block(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(400):
        site.clock.go(3600)
        site.write([(BED, "heart_rate", 80.0)])
    reads: list[Any] = []
    real = Reader.read

    def counted(self: Reader, stream: str, after: Position | None, *more: Any) -> Any:
        blocks = real(self, stream, after, *more)
        reads.append(len(blocks))
        return blocks

    monkeypatch.setattr(Reader, "read", counted)
    site.same(site.read())
    assert sum(reads) < 80, "of 400"


def test_more_than_can_be_read_in_time_ends_with_what_there_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    day(site, 10)
    monkeypatch.setattr(restart, "BUDGET_S", 0.0)
    found = site.read()
    assert "more than could be read" in found.fault
    assert 0 < np.isfinite(rows(found.windows[BED])[:, 0]).sum() < 10


def test_a_wrong_key_or_a_lost_file_is_said_and_hinders_nothing(site: Site) -> None:
    day(site, 1)
    site.key = bytes(32)
    found = site.read()
    assert found.windows == {} and found.fault


class Modelled(Gateway):
    """A gateway with a small model that is asked every second."""

    def write(self) -> Path:
        path = super().write()
        (self.folder / "immediate.toml").write_text(PRESET + RISK)
        bundle, key = model_bundles.write(self.folder)
        path.write_text(f'{path.read_text()}\n[model]\nbundle = "{bundle}"\ntrusted = ["{key}"]\nevery_s = 1\n')
        return path

    def admit(self, **request: Any) -> None:
        with ControlClient(self.socket) as client:
            client.call("admit", bed="B0", patient_id="P0", **request)

    def risk(self, bed: int = 0) -> float | None:
        """The newest risk of a bed."""
        found = self.status()["beds"][bed]["risk"]
        return None if found is None else found["value"]


def test_the_score_is_there_again_after_kill_minus_nine_without_a_new_value() -> None:
    with Modelled() as gateway:
        with wait_for(lambda: dialled(gateway.port)) as monitor:
            monitor.settimeout(20)
            for number in range(3):
                monitor.sendall(frame(number))
                assert b"|AA|" in monitor.recv(4096)
            unknown = wait_for(gateway.risk)
            gateway.admit(age=91, sex="male")
            before = wait_for(lambda: found if (found := gateway.risk()) != unknown else None)
        status = gateway.status()["model"]
        assert status["state"] == "running" and status["model"].startswith("small-lstm-1.2.3 ")
        gateway.kill("edge-agent")
        gateway.start("edge-agent")
        assert wait_for(gateway.risk) == pytest.approx(before, abs=1e-9), "with age and sex as before"
        for wrong in ({"age": 121}, {"age": True}, {"age": "old"}, {"sex": "x"}):
            with pytest.raises(Refused, match=r"age is a number of years|sex is one of"):
                gateway.admit(**wrong)
        reader = Reader(gateway.data_dir, load_kek(f"file:{gateway.folder / 'kek'}"))
        found = [each.record for block in reader.read("data", None, 10_000) for each in block.entries]
        reader.close()
    asked = [each.detail for each in found if isinstance(each, DeviceStatus) and each.state == "admit"]
    assert asked and not any("91" in each or "male" in each for each in asked), "no record carries them"


def wait_for(found: Callable[[], Any]) -> Any:
    """What `found` gives when it is not None any more."""
    end = time.monotonic() + 30
    while (value := found()) is None:
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return value


def dialled(port: int) -> socket.socket | None:
    """A connected monitor, None while nobody listens."""
    try:
        return connect(port)
    except ConnectionRefusedError:
        return None


@pytest.mark.alm("ALM-29")
async def test_a_bundle_with_a_flipped_bit_is_an_alarm_of_its_own_and_limits_alarm_as_ever(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    bundle, key = model_bundles.write(tmp_path)
    data = bytearray((bundle / "model.tflite").read_bytes())
    data[1000] ^= 4
    (bundle / "model.tflite").write_bytes(data)
    (tmp_path / "immediate.toml").write_text(PRESET + RISK)
    path = bedside.write(f'[model]\nbundle = "{bundle}"\ntrusted = ["{key}"]')
    async with running(path) as agent:
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, 80.0))
        await monitor.reply()
        await until(lambda: bedside.lit("spo2_low"), "the light")
        await until(lambda: any("SHA-256" in fault for fault in agent.faults.values()), "the refusal")
        assert agent.operations.status()["model"]["state"] == "fault"
        assert any(line["condition"] == "model_fault" for line in agent.operations.status()["gateway_alarms"])
        assert 'edge_agent_model{figure="fault"} 1' in agent.operations.metrics()
        monitor.close()


def test_doctor_opens_the_model(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    bundle, key = model_bundles.write(tmp_path)
    path = bedside.write(f'[model]\nbundle = "{bundle}"\ntrusted = ["{key}"]')
    (found,) = check_model(config.load(path))
    assert (found.state, found.detail.split()[0]) == ("ok", "small-lstm-1.2.3")
    (bundle / "model.json.sig").write_bytes(bytes(64))
    (found,) = check_model(config.load(path))
    assert found.state == "FAIL" and "is no signature" in found.detail and "copy the bundle anew" in found.remedy
    (found,) = check_model(config.load(bedside.write()))
    assert found.state == "ok" and "no model" in found.detail


def test_vitals_of_the_small_model_are_those_of_the_windows() -> None:
    assert tuple(model_bundles.NAMES[: len(VITALS)]) == VITALS
    assert {name: FILE_SEXES[name] for name in SEXES} == SEXES, "as in the files that `edge-agent model score` reads"


_MAPS = """
import sys
from edge_agent.risk.warm import libraries, warm
from edge_agent.risk.opener import LIBRARIES, model_opener
from edge_agent.config import load
assert "numpy" not in sys.modules
assert warm(LIBRARIES) > 1 << 20
assert "numpy" not in sys.modules
from pathlib import Path
model_opener(load(Path(sys.argv[1])))()
names = [line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps")]
mapped = {name for name in names if ".so" in name and ("/numpy" in name or "/ai_edge_litert" in name)}
print(len(mapped), *sorted(mapped - {str(path.resolve()) for path in libraries(LIBRARIES)}))
"""


def test_every_library_of_the_model_is_read_before_it_is_loaded(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    bundle, key = model_bundles.write(tmp_path)
    path = bedside.write(f'[model]\nbundle = "{bundle}"\ntrusted = ["{key}"]')
    done = subprocess.run([sys.executable, "-c", _MAPS, str(path)], capture_output=True, text=True, check=True)
    count, *unread = done.stdout.split()
    assert int(count) >= 4 and unread == [], "warm.py would leave these to the import, which holds the alarm loop"
    assert libraries(["no_such_package"]) == [] and warm(["no_such_package"]) == 0
