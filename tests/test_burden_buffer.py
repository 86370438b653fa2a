"""What-if on what the gateway has recorded itself: the sealed buffer, its export, restarts, lost sources."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from buffer_rig import FakeClock, Rig

from edge_agent.__main__ import main
from edge_agent.buffer import create_key_file, load_kek
from edge_agent.records import DeviceAlarm, DeviceStatus, Entry, Observation

NS = 1_000_000_000
CONFIG = """\
[gateway]
id = "gw-1"
data_dir = "data"
presets = ["site.toml"]
[buffer]
key = "file:key"
[[bed]]
id = "ICU-1"
preset = "site"
[[bed]]
id = "ICU-2"
preset = "adult"
[[source]]
driver = "hl7"
link = "mllp-listen://127.0.0.1:2575"
"""


class Site:
    """A gateway's folder with a configuration and a buffer that holds what the test puts in."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.config = folder / "agent.toml"
        self.config.write_text(CONFIG)
        (folder / "site.toml").write_text('name = "site"\nextends = "adult"\n')
        create_key_file(folder / "key")
        (folder / "data").mkdir()
        self.clock = FakeClock()
        self.error = ""

    def record(self, entries: Iterator[Entry]) -> None:
        """One run of the agent."""
        rig = Rig(self.folder / "data", load_kek(f"file:{self.folder / 'key'}"), self.clock)
        try:
            held = list(entries)
            for first in range(0, len(held), 100):
                rig.append(*held[first : first + 100])
            rig.commit(held[-1])
        finally:
            rig.close()

    def run(self, *words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        captured = self._capsys.readouterr()
        self.error = captured.err
        return code, captured.out

    def whatif(self, *words: object) -> dict[str, Any]:
        code, out = self.run("alarms", "whatif", "--json", *words)
        assert code == 0, self.error
        report: dict[str, Any] = json.loads(out)
        return report

    def export(self) -> Path:
        code, out = self.run("buffer", "export", "--config", self.config)
        assert code == 0, self.error
        path = self.folder / "export.jsonl"
        path.write_text(out)
        return path


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


def values(bed: str, value: float, first_s: int, last_s: int, source: str = "hl7") -> Iterator[Entry]:
    for at in range(first_s, last_s):
        yield Entry(bed, source, "P1", Observation("spo2", value, "valid", at * NS))


def lines(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["condition"]: line for line in report["conditions"]}


@contextmanager
def edited(site: Site) -> Iterator[Path]:
    """A copy of the configured preset, under the same name, with a lower limit."""
    path = site.folder / "new" / "site.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text('name = "site"\nextends = "adult"\n[[condition]]\nid = "spo2_low"\npresent = "below 88"\n')
    yield path


def story() -> Iterator[Entry]:
    def monitor(phase: str, state: str, at: int) -> Entry:
        alarm = DeviceAlarm("high", phase, "VT", at * NS, event="MDC_EVT_ECG_V_TACHY", state=state, alert_id="7")
        return Entry("ICU-1", "hl7", "P1", alarm)

    yield from values("ICU-1", 97.0, 1000, 1030)
    yield from values("ICU-1", 89.0, 1030, 1070)
    yield monitor("start", "active", 1070)
    yield from values("ICU-1", 97.0, 1070, 1090)
    yield monitor("end", "off", 1090)
    yield from values("ICU-1", 97.0, 1090, 1120)


def test_buffer_and_export_give_the_same_report(site: Site) -> None:
    site.record(story())
    with edited(site) as preset:
        report = site.whatif("--preset", preset, "--config", site.config)
        assert site.whatif("--preset", preset, "--data", site.export(), "--baseline", "adult") == {
            **report, "baseline": "adult",
        }  # fmt: skip
    assert (report["baseline"], report["preset"], report["beds"]) == ("adult, site", "site", 1)
    found = lines(report)
    # out from 1030, present at 1045, back at 1070, over at 1075
    assert (found["spo2_low"]["before"]["total_s"], found["spo2_low"]["lost"]) == (30.0, 1)
    assert (found["device_alarm"]["before"]["total_s"], found["device_alarm"]["after"]["total_s"]) == (20.0, 20.0)


def test_times_are_utc_of_the_recording(site: Site) -> None:
    site.record(values("ICU-1", 70.0, 1000, 1030))
    path = site.folder / "less.toml"
    path.write_text('name = "less"\nextends = "adult"\n[[condition]]\nid = "spo2_desaturation"\nenabled = false\n')
    (lost,) = site.whatif("--preset", path, "--config", site.config)["high_lost"]
    assert lost["at"].startswith("2023-11-1")  # the clock of the rig
    assert lost["at"].endswith(" UTC")
    assert lost["becomes"] == "lost"


def test_a_restart_begins_anew_and_a_step_of_the_wall_clock_moves_nothing(site: Site) -> None:
    site.record(values("ICU-1", 89.0, 1000, 1040))
    site.clock.boot_id = b"C" * 16  # the machine was started again: its clock begins at nothing
    site.clock.utc_step_ns = 3600 * NS
    site.record(values("ICU-1", 89.0, 10, 50))
    with edited(site) as preset:
        line = lines(site.whatif("--preset", preset, "--config", site.config))["spo2_low"]
        exported = lines(site.whatif("--preset", preset, "--data", site.export()))["spo2_low"]
    # each run: 15 s of delay, then 24 s to its last value; the hour between is nobody's
    assert (line["before"]["alarms"], line["before"]["total_s"]) == (2, 48.0)
    assert exported["before"] == line["before"]


def test_a_source_that_was_lost_is_lost_in_the_replay_too(site: Site) -> None:
    def lost() -> Iterator[Entry]:
        yield from values("ICU-1", 97.0, 1000, 1030)
        yield Entry("", "hl7", "", DeviceStatus("link", "lost", 1030 * NS, "nobody is connected"))
        yield Entry("", "hl7", "", DeviceStatus("link", "connected", 1060 * NS))
        yield from values("ICU-1", 97.0, 1060, 1080)

    site.record(lost())
    with edited(site) as preset:
        found = lines(site.whatif("--preset", preset, "--config", site.config))
    assert set(found) == {"source_lost"}  # which speaks for its vitals
    assert (found["source_lost"]["before"]["alarms"], found["source_lost"]["before"]["total_s"]) == (1, 31.0)


def test_only_beds_with_a_preset_when_asked(site: Site) -> None:
    site.record(iter([*values("ICU-1", 89.0, 1000, 1040), *values("ICU-2", 89.0, 1000, 1040)]))
    with edited(site) as preset:
        assert site.whatif("--preset", preset, "--config", site.config)["beds"] == 2
        only = site.whatif("--preset", preset, "--config", site.config, "--bed-preset", "adult")
        assert (only["beds"], only["baseline"]) == (1, "adult")
        code, _ = site.run("alarms", "whatif", "--preset", preset, "--config", site.config, "--bed-preset", "none")
        assert code == 78


def test_a_key_that_is_not_there_is_told(site: Site) -> None:
    site.record(values("ICU-1", 97.0, 1000, 1010))
    (site.folder / "key").unlink()
    with edited(site) as preset:
        code, _ = site.run("alarms", "whatif", "--preset", preset, "--config", site.config)
    assert code == 1
    assert "key" in site.error


@pytest.mark.parametrize("text", ["time,spo2\n", '{"stream": "data"}\n', '{"stream": "data", "record": 3}\n'])
def test_lines_that_are_no_export_are_refused_with_their_number(site: Site, text: str) -> None:
    path = site.folder / "other.jsonl"
    path.write_text("\n" + text)
    with edited(site) as preset:
        code, _ = site.run("alarms", "whatif", "--preset", preset, "--data", path)
    assert code == 1
    assert "other.jsonl:2: not a line of `edge-agent buffer export`" in site.error
