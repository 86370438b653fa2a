"""The command: findings with remedies in every form, exit codes for monitoring, and that it only looks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, running

from edge_agent.__main__ import main
from edge_agent.commands import doctor
from edge_agent.commands.doctor_agent import check_agent, check_metrics
from edge_agent.commands.doctor_beds import check_acceptance
from edge_agent.commands.finding import Finding
from edge_agent.config import Loaded, load

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def bedside(tmp_path: Path) -> Bedside:
    return Bedside(tmp_path)


@pytest.fixture
def run(bedside: Bedside, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with options; its exit code and what it printed."""
    config = bedside.write()

    def ran(*options: str) -> tuple[int, str]:
        code = main(["doctor", "--config", str(config), *options])
        return code, capsys.readouterr().out

    return ran


def checks(monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    """Put checks in place of the real ones, one for each state."""

    def make(number: int, state: str) -> doctor.Check:
        def check(_loaded: Loaded) -> Iterator[Finding]:
            yield Finding(f"part{number}", state, f"detail | {number}", "" if state == "ok" else f"do {number}")

        return check

    monkeypatch.setattr(doctor, "CHECKS", tuple(make(number, state) for number, state in enumerate(states)))


@pytest.mark.parametrize(
    ("states", "plain", "strict", "nagios"),
    [
        (("ok", "ok"), 0, 0, 0), (("ok", "warn"), 0, 1, 1), (("FAIL", "ok", "warn"), 1, 1, 2), ((), 0, 0, 0),
        (("warn", "FAIL"), 1, 1, 2),
    ],
)  # fmt: skip
def test_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], plain: int, strict: int, nagios: int
) -> None:
    checks(monkeypatch, *states)
    assert (run()[0], run("--strict")[0], run("--nagios")[0]) == (plain, strict, nagios)
    assert (run("--json")[0], run("--json", "--strict")[0]) == (plain, strict)


def test_forms(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks(monkeypatch, "ok", "warn", "FAIL")
    text = run()[1]
    assert "[ok  ] part0: detail | 0\n[warn] part1" in text and "       do: do 2\n" in text and "medical device" in text
    quiet = run("--quiet")[1]
    assert "part0" not in quiet and "[FAIL] part2: detail | 2\n       do: do 2" in quiet
    told = json.loads(run("--json")[1])
    assert (told["gateway"], told["state"], len(told["findings"])) == ("gw", "FAIL", 3)
    assert told["findings"][2] == {"part": "part2", "state": "FAIL", "detail": "detail | 2", "remedy": "do 2"}
    assert len(json.loads(run("--json", "--quiet")[1])["findings"]) == 2
    (line,) = run("--nagios")[1].splitlines()
    # the worst first; `|` begins the figures of a plugin, so that no text may hold one
    assert line == "BEDSIDE CRITICAL - part2: detail / 2; part1: detail / 1 | ok=1 warnings=1 failures=1"
    checks(monkeypatch, *["warn"] * 5)
    assert "; 2 more |" in run("--nagios")[1] and run("--nagios")[1].startswith("BEDSIDE WARNING - part0")
    checks(monkeypatch, "ok")
    assert run("--nagios")[1] == "BEDSIDE OK - 1 checks | ok=1 warnings=0 failures=0\n"
    with pytest.raises(SystemExit):
        run("--json", "--nagios")


def test_a_wrong_configuration(bedside: Bedside, capsys: pytest.CaptureFixture[str]) -> None:
    config = bedside.write('[unknown]\nx = "1"')
    assert main(["doctor", "--config", str(config)]) == 78 and "unknown" in capsys.readouterr().err
    assert main(["doctor", "--config", str(config), "--nagios"]) == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("BEDSIDE UNKNOWN - ") and "unknown" in line


def test_a_check_that_breaks_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_strange(_loaded: Loaded) -> Iterator[Finding]:
        yield Finding("strange", "ok", "begins")
        raise ValueError("a board like no other")

    def check_next(_loaded: Loaded) -> Iterator[Finding]:
        yield Finding("next", "ok", "goes on")

    monkeypatch.setattr(doctor, "CHECKS", (check_strange, check_next))
    code, text = run()
    assert code == 1 and "could not be looked at: ValueError: a board like no other" in text and "goes on" in text


def test_every_finding_that_is_not_ok_has_a_remedy(bedside: Bedside) -> None:
    """Over all checks at once, on a configuration where nearly nothing is there."""
    loaded = load(
        bedside.write(
            '[[source]]\nname = "cable"\ndriver = "nonin"\nlink = "serial:///dev/ttyUSB9"\nbed = "ICU-3"',
            '[[source]]\nname = "radio"\ndriver = "gatt"\nlink = "ble://AA:BB:CC:DD:EE:FF"\nbed = "ICU-3"',
            '[[annunciator]]\nkind = "gpio"\nchip = "none"\nred = 1', '[[button]]\nchip = "none"\nline = 2',
            '[[annunciator]]\nkind = "sound"\ndevice = "hw:9"', '[metrics]\nlisten = "127.0.0.1:1"',
            '[cloud.kafka]\nbootstrap = "127.0.0.1:1"\nca = "ca"\ncertificate = "c"\nprivate_key = "k"',
        )
    )  # fmt: skip
    found = list(doctor.examine(loaded))
    bad = [each for each in found if each.state != "ok"]
    assert {"serial", "bluetooth", "gpio", "sound", "metrics", "certificate", "broker", "acceptance", "agent"} <= {
        each.part for each in bad
    }
    assert not [each for each in bad if not (each.remedy or "gpio" in each.detail)]
    assert not [each for each in found if "could not be looked at" in each.detail]


def test_the_page_tells_every_part() -> None:
    """docs/doctor.md has a row for each part that a finding can have."""
    folder = Path(__file__).parent.parent
    page = (folder / "docs/doctor.md").read_text()
    sources = "".join(path.read_text() for path in (folder / "edge_agent/commands").glob("doctor*.py"))
    parts = set(re.findall(r'Finding\(\s*"([a-z ]+)"', sources)) | set(
        re.findall(r'_(?:ask|reach|settings)\("([a-z ]+)"', sources)
    )
    assert {"units", "certificate", "mqtt", "card"} <= parts
    for part in parts:
        assert re.search(rf"^\| [^|]*`{part}`", page, re.MULTILINE), part
    conditions = re.findall(
        r'^id = "(.*)"', (folder / "edge_agent/alarms/presets/gateway.toml").read_text(), re.MULTILINE
    )
    for condition in conditions:
        assert re.search(rf"^\| [^|]*`{condition}`", page, re.MULTILINE), condition


def test_it_only_looks(bedside: Bedside, run: Run) -> None:
    def files() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in bedside.folder.rglob("*")}

    before = files()
    run()
    assert files() == before


# -- the agent ----------------------------------------------------------------------------------------------------


async def asked(check: doctor.Check, config: Path) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(check(load(config))))


async def test_what_the_agent_complains_of(bedside: Bedside) -> None:
    config = bedside.write()
    async with running(config) as agent:
        agent.fault("disk_fault", "buffer disk", "no space left on device")
        agent.annunciators[0]._fault = "the file is gone"
        agent.fault("source_lost", "monitor", "no peer")
        told = [each for each in await asked(check_agent, config) if each.state != "ok"]
        found = {each.part: each for each in told}
        agent.annunciators[0]._fault = ""
    assert "disk_fault" in found["agent"].detail and "no space left" in found["agent"].detail
    assert len([each for each in told if each.part == "agent"]) == 1, "a lost source is told of once, as a source"
    assert "CONDITION=disk_fault" in found["agent"].remedy
    assert found["source"].state == "warn" and "monitor is starting" in found["source"].detail
    assert found["annunciator"].state == "FAIL" and "the file is gone" in found["annunciator"].detail
    assert (await asked(check_agent, config))[0].state == "warn", "it has stopped"


async def test_the_metrics_port(bedside: Bedside) -> None:
    from bench.gateway import free_port

    port = free_port()
    config = bedside.write(f'[metrics]\nlisten = "127.0.0.1:{port}"')
    (found,) = await asked(check_metrics, config)
    assert found.state == "warn" and f"127.0.0.1:{port}" in found.detail, "no agent, no port"
    async with running(config) as agent:
        made: Any = agent._metrics_port
        assert await asyncio.to_thread(made.open.wait, 10)
        (found,) = await asked(check_metrics, config)
        assert found.state == "ok"
        made.close()
        (found,) = await asked(check_metrics, config)
        assert found.state == "FAIL" and "ss -ltnp" in found.remedy
    remote = bedside.write(f'[metrics]\nlisten = "0.0.0.0:{port}"\nallow_remote = true')
    assert "may be reached from the network" in (await asked(check_metrics, remote))[0].detail
    (found,) = await asked(check_metrics, bedside.write())
    assert found.state == "ok"


# -- acceptance ---------------------------------------------------------------------------------------------------


def accept(config: Path, folder: Path, bed: str, **changes: Any) -> Path:
    """A record signed as provisioning signs it."""
    from edge_agent.provisioning import record, signing
    from edge_agent.provisioning.steps import NAMES, passed

    signer = signing.make_signer(folder / "acceptance.key") if not (folder / "acceptance.key").exists() else None
    signer = signer or signing.open_signer(f"file:{folder / 'acceptance.key'}")
    assert signer is not None
    told = record.build(
        gateway="gw", bed=bed, engineer={"name": "E"}, results=[passed(name, "seen") for name in NAMES],
        configuration={"file": str(config), "sha256": hashlib.sha256(config.read_bytes()).hexdigest()}, devices=[],
        clock="synchronized", started="2026-01-01T00:00:00Z", ended=time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        with_values=False,
    ) | changes  # fmt: skip
    path = folder / f"acceptance/{bed}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(record.signed(told, signer))
    return path


def test_acceptance(bedside: Bedside) -> None:
    config = bedside.write()
    bedside.data_dir.mkdir()

    def found() -> list[Finding]:
        return list(check_acceptance(load(config)))

    assert [each.state for each in found()] == ["warn", "warn"] and "nobody has accepted" in found()[0].detail
    assert f"edge-agent provision --config {config} --bed ICU-3" in found()[0].remedy
    first = accept(config, bedside.data_dir, "ICU-3")
    accept(config, bedside.data_dir, "ICU-4", verdict={"accepted": False, "reason": "Button: failed"})
    one, two = found()
    assert one.state == "ok" and "accepted on 20" in one.detail
    assert two.state == "warn" and "Button: failed" in two.detail
    config.write_text(config.read_text() + "# changed\n")
    assert "the configuration has changed since" in found()[0].detail
    accept(config, bedside.data_dir, "ICU-3", gateway="another")
    assert found()[0].state == "FAIL" and "on another" in found()[0].detail
    first.write_text(accept(config, bedside.data_dir, "ICU-3").read_text().replace("seen", "said", 1))
    assert found()[0].state == "FAIL" and "was changed" in found()[0].detail
