"""Provisioning from a bare bed to a signed record: whole runs with a simulated monitor, and every step that fails."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import stat
import threading
import time
import tty
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from running_agent import running
from test_button import StandIn

from bench.gateway import free_port
from bench.messages import frame
from drivers.contract import Driver
from drivers.sim import oximeter
from edge_agent import NOTICE, button, gpio_chips
from edge_agent.__main__ import main
from edge_agent.annunciators import self_test
from edge_agent.annunciators.patterns import Burst
from edge_agent.buffer import create_key_file
from edge_agent.commands import doctor, provision
from edge_agent.commands.finding import Finding
from edge_agent.config import load
from edge_agent.demo.radio import wearable_on_air
from edge_agent.parts import Parts
from edge_agent.provisioning import comparison, session, signals, signing
from edge_agent.provisioning import record as records
from edge_agent.provisioning.proposal import publish
from edge_agent.provisioning.readings import SourceReading, sources_of
from edge_agent.provisioning.steps import NAMES, STEPS, Result, failed, passed, skipped, verdict
from edge_agent.records import Chunk, Item, Reply


class Oximeter(threading.Thread):
    """A monitor on a pseudo-terminal that sends three packets a second, faster; its numbers can be changed."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(self.master, False)
        path.symlink_to(os.ttyname(slave))
        self.slave = slave  # kept open, so that the line has no end while nobody listens
        self.spo2: float | None = 97
        self.heard = bytearray()
        self.end = threading.Event()
        self.silent = False

    def run(self) -> None:
        while not self.end.wait(0.02):
            with contextlib.suppress(BlockingIOError):
                if not self.silent:
                    os.write(self.master, oximeter.packet_2(self.spo2, 72))
            with contextlib.suppress(BlockingIOError):
                self.heard += os.read(self.master, 4096)

    def stop(self) -> None:
        self.end.set()
        self.join()
        os.close(self.slave)
        os.close(self.master)


class Bed:
    """A gateway's folder: configuration by IT without a source for the bed, and a file of answers."""

    def __init__(self, folder: Path, monitor: Oximeter) -> None:
        self.folder, self.monitor = folder, monitor
        self.edges = folder / "edges.jsonl"
        self.config = folder / "edge-agent.toml"
        self.record = folder / "record.json"
        (folder / "data").mkdir()
        create_key_file(folder / "kek")
        self.config.write_text(self.text())
        self.answers: dict[str, Any] = {
            "bed": "ICU-3",
            "simulator": True,
            "port": str(monitor.path),
            "engineer": {"name": "A. Engineer", "id": "bme-17"},
            "values": {"spo2": 97, "pulse_rate": 72},
            "signals": {"high": True, "medium": True, "low": True},
            "button": True,
        }

    def text(self, *more: str) -> str:
        return "\n".join(
            (
                f'[gateway]\nid = "gw-3"\ndata_dir = "{self.folder}/data"',
                f'[control]\nsocket = "{self.folder}/control.sock"',
                '[buffer]\nkey = "file:kek"\nquota_mb = 8',
                "[alarms]\nself_test = false",
                '[[bed]]\nid = "ICU-3"',
                f'[[annunciator]]\nkind = "record"\npath = "{self.edges}"',
                '[[button]]\nchip = "pinctrl-bcm2711"\nline = 27',
                *more,
            )
        )

    def source(self) -> str:
        return f'[[source]]\ndriver = "nonin"\nlink = "serial://{self.monitor.path}?baud=9600"\nbed = "ICU-3"'

    def run(self, *words: str) -> int:
        path = self.folder / "answers.json"
        path.write_text(json.dumps(self.answers, indent=1))
        config = ("--config", str(self.config), "--answers", str(path), "--press-seconds", "3")
        return main(["provision", *config, *words])

    def whole(self, *words: str) -> int:
        record = () if "--record" in words else ("--record", str(self.record))
        return self.run("--write", str(self.folder / "accepted.toml"), *record, *words)

    def said(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.record.read_text())["record"]
        return told

    def step(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(step for step in self.said()["steps"] if step["step"] == name)
        return found

    def lit(self) -> list[tuple[str, bool]]:
        return [(line["output"], line["on"]) for line in map(json.loads, self.edges.read_text().splitlines())]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Oximeter]:
    made = Oximeter(tmp_path / "ttyUSB0")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The button's line: somebody presses it as soon as it is listened to."""
    import gpiod

    stand_in = StandIn()
    devices = tmp_path / "chips"
    devices.mkdir()
    (devices / "gpiochip0").touch()
    monkeypatch.setattr(gpio_chips, "DEVICES", devices)
    monkeypatch.setattr(gpiod, "Chip", stand_in)
    monkeypatch.setattr(gpiod, "is_gpiochip_device", lambda path: True)
    monkeypatch.setattr(button, "RETRY_S", 0.01)
    return stand_in


@pytest.fixture
def finger(chip: StandIn) -> Iterator[StandIn]:
    end = threading.Event()

    def press() -> None:
        while not end.is_set():
            if chip.listening.wait(0.05):
                chip.listening.clear()
                chip.edge(True, ago_ms=200)
                chip.edge(False, ago_ms=100)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    yield chip
    end.set()
    thread.join()


@pytest.fixture
def bed(tmp_path: Path, monitor: Oximeter, finger: StandIn, monkeypatch: pytest.MonkeyPatch) -> Bed:
    monkeypatch.setattr(signals, "hold_s", lambda _priority: 0.03)
    monkeypatch.setattr(comparison, "LOOK_S", 0.01)
    monkeypatch.chdir(tmp_path)
    return Bed(tmp_path, monitor)


# -- whole runs ---------------------------------------------------------------------------------------------------


def test_from_a_bare_bed_to_an_accepted_one(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    assert bed.whole() == 0, capsys.readouterr()
    told = capsys.readouterr().out
    assert NOTICE in told and "Bed ICU-3: ACCEPTED" in told and "nonin at 9600 8N1" in told
    assert "97" not in bed.record.read_text().replace("SHA256", "").split('"vitals"')[1].split("]")[0]

    accepted = bed.folder / "accepted.toml"
    assert main(["check", str(accepted)]) == 0
    assert bed.config.read_text() in accepted.read_text(), "nothing of what IT wrote is lost"
    assert f'link = "serial://{bed.monitor.path}?baud=9600"' in accepted.read_text()

    said = bed.said()
    assert [step["step"] for step in said["steps"]] == list(NAMES)
    outcomes = {step["step"]: step["outcome"] for step in said["steps"]}
    assert outcomes == dict.fromkeys(NAMES, "passed") | {"bluetooth": "skipped"}, said["verdict"]
    assert said["engineer"] == {"name": "A. Engineer", "id": "bme-17"} and said["notice"] == NOTICE
    assert (
        said["gateway"] == "gw-3"
        and said["bed"] == "ICU-3"
        and said["clock"] in ("synchronized", "unsynchronized", "unknown")
    )
    assert {each["term"]: each["outcome"] for each in bed.step("values")["details"]["vitals"]} == {
        "spo2": "match",
        "pulse_rate": "match",
    }
    assert said["devices"][0]["driver"] == "nonin" and said["values"] == "deviations only"
    edges = bed.lit()
    for output in ("red", "yellow", "cyan", "buzzer"):
        assert (output, True) in edges
    last = dict(edges)
    assert not any(last.values()), "everything is off at the end"
    assert not bed.monitor.heard, "the monitor was sent nothing"

    public = bed.folder / "data" / "acceptance.pub"
    assert stat.S_IMODE((bed.folder / "data" / "acceptance.key").stat().st_mode) == 0o400
    assert main(["provision", "verify", str(bed.record), "--key", str(public), "--against", str(accepted)]) == 0
    told = capsys.readouterr().out
    assert "the configuration accepted" in told and "ACCEPTED" in told
    accepted.write_text(accepted.read_text() + "\n# changed\n")
    assert main(["provision", "verify", str(bed.record), "--against", str(accepted)]) == 1
    assert "accept the bed anew" in capsys.readouterr().out


def test_the_record_of_a_bed_has_its_place_and_the_one_before_is_kept(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    bed.config.write_text(bed.text(bed.source()))
    del bed.answers["port"]
    assert main(["doctor", "--config", str(bed.config)]) == 0
    assert "nobody has accepted this bed" in capsys.readouterr().out
    assert bed.run() == 0
    folder = bed.folder / "data" / "acceptance"
    first = (folder / "ICU-3.json").read_bytes()
    assert stat.S_IMODE((folder / "ICU-3.json").stat().st_mode) == 0o644
    assert main(["doctor", "--config", str(bed.config)]) == 0
    assert "accepted on" in capsys.readouterr().out
    assert bed.run() == 0
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 4 and names[2:] == ["ICU-3.html", "ICU-3.json"] and names[0].startswith("ICU-3-2")
    assert (folder / names[1]).read_bytes() == first
    bed.config.write_text(bed.config.read_text() + "\n# changed\n")
    main(["doctor", "--config", str(bed.config)])
    assert "the configuration has changed since" in capsys.readouterr().out


def test_a_second_record_is_signed_by_the_same_key_and_the_configuration_stays(bed: Bed) -> None:
    assert bed.whole() == 0
    first = json.loads(bed.record.read_text())["signature"]["key"]
    bed.config.write_text((bed.folder / "accepted.toml").read_text())
    before = bed.config.read_bytes()
    again = bed.folder / "again.json"
    assert bed.run("--record", str(again)) == 0
    assert json.loads(again.read_text())["signature"]["key"] == first
    assert bed.config.read_bytes() == before
    assert json.loads(again.read_text())["record"]["steps"][3]["details"]["added"] == 0


def test_a_gateway_without_any_configuration_gets_one_that_is_valid(bed: Bed) -> None:
    bed.config.unlink()
    target = bed.folder / "new.toml"
    bed.answers |= {"gateway": "gw-9", "location": "ICU^^3", "preset": "adult"}
    assert bed.run("--only", "protocol,configuration", "--write", str(target)) == 0
    assert main(["check", str(target)]) == 0
    assert 'id = "gw-9"' in target.read_text() and 'location = "ICU^^3"' in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_values_are_in_the_record_only_when_that_was_chosen(bed: Bed) -> None:
    assert bed.whole("--record-values") == 0
    assert {each["term"]: each["gateway"] for each in bed.step("values")["details"]["vitals"]} == {
        "spo2": 97.0,
        "pulse_rate": 72.0,
    }
    assert bed.said()["values"] == "recorded"


async def test_with_a_running_agent(
    bed: Bed, chip: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(self_test, "LAMP", 30)
    monkeypatch.setattr(self_test, "PAUSE", 10)
    blip = Burst((0, 40), pulse=20, half=2, gap=100)
    monkeypatch.setattr(self_test, "BURSTS", dict.fromkeys(("high", "medium", "low"), blip))
    bed.config.write_text(bed.text(bed.source()))
    os.utime(bed.config, (time.time() - 60, time.time() - 60))
    del bed.answers["port"]
    async with running(bed.config) as agent:
        while not agent.pipeline.latest["ICU-3"]:
            await asyncio.sleep(0.01)
        pressing = asyncio.create_task(press_again(chip))
        code = await asyncio.to_thread(bed.run, "--record", str(bed.record))
        pressing.cancel()
    assert code == 0, capsys.readouterr().out
    for name in ("values", "signals", "button"):
        assert bed.step(name)["details"]["by"] == "the running agent"
    assert bed.step("protocol")["outcome"] == "skipped" and not bed.step("protocol")["mandatory"]


async def press_again(chip: StandIn) -> None:
    """A finger that presses again and again, as the one who tests does until it is seen."""
    while True:
        await asyncio.sleep(0.3)
        chip.edge(True, ago_ms=200)
        chip.edge(False, ago_ms=100)


async def test_with_a_running_agent_that_has_lost_a_source_of_the_bed(bed: Bed) -> None:
    bed.config.write_text(bed.text(bed.source(), bed.source().replace("ttyUSB0", "ttyUSB9")))
    os.utime(bed.config, (time.time() - 60, time.time() - 60))
    del bed.answers["port"]
    async with running(bed.config):
        words = ("--only", "configuration,values", "--record", str(bed.record))
        assert await asyncio.to_thread(bed.run, *words) == 1
    assert "ttyUSB9?baud=9600: lost" in bed.step("values")["seen"]


async def test_a_proposal_is_written_beside_a_running_agent_and_not_accepted_before_it_runs(bed: Bed) -> None:
    target = bed.folder / "proposed.toml"
    async with running(bed.config):
        words = ("--only", "protocol,configuration", "--write", str(target))
        assert await asyncio.to_thread(bed.run, *words) == 0
        assert "[[source]]" in target.read_text()
        words = ("--only", "protocol,configuration,values", "--write", str(bed.folder / "again.toml"))
        assert await asyncio.to_thread(bed.run, *words, "--record", str(bed.record)) == 1
    assert "does not have the proposed configuration" in bed.step("configuration")["seen"]
    assert "does not have the proposed source" in bed.step("values")["seen"]


async def test_an_agent_with_an_older_configuration_is_not_accepted(bed: Bed) -> None:
    bed.config.write_text(bed.text(bed.source()))
    del bed.answers["port"]
    async with running(bed.config):
        stamp = time.time() + 60
        os.utime(bed.config, (stamp, stamp))
        assert await asyncio.to_thread(bed.run, "--only", "configuration,values", "--record", str(bed.record)) == 1
    assert "changed after the running agent was started" in bed.step("configuration")["seen"]


# -- steps that fail ----------------------------------------------------------------------------------------------


def accepted_but(bed: Bed, step: str, saying: str, also: str = "") -> None:
    """The run is not accepted, because of this step alone, and the record says so and verifies."""
    assert bed.whole() == 1
    told = bed.step(step)
    assert told["outcome"] == "failed" and saying in told["seen"], told
    assert told["remedy"]
    verdict = bed.said()["verdict"]
    assert verdict["accepted"] is False and told["title"] in verdict["reason"]
    assert records.verify(bed.record).record["verdict"] == verdict
    assert main(["provision", "verify", str(bed.record)]) == 1, "what was not accepted is not accepted when it verifies"
    assert "NOT ACCEPTED" in bed.record.with_suffix(".html").read_text()
    bad = [each["step"] for each in bed.said()["steps"] if each["outcome"] == "failed"]
    assert set(bad) == {step, also} - {""}, bad


def test_a_value_that_deviates(bed: Bed) -> None:
    bed.answers["values"]["spo2"] = 95
    accepted_but(bed, "values", "spo2 deviates")
    (spo2,) = [each for each in bed.step("values")["details"]["vitals"] if each["term"] == "spo2"]
    assert spo2["deviation"] == 2.0 and spo2["tolerance"] == 1.0


def test_a_value_at_the_tolerance_matches(bed: Bed) -> None:
    bed.answers["values"] = {"spo2": 96, "pulse_rate": 74}
    assert bed.run("--only", "protocol,configuration,values", "--write", str(bed.folder / "w.toml")) == 0
    bed.answers["values"] = {"spo2": 95.9, "pulse_rate": 74}
    assert bed.run("--only", "protocol,configuration,values", "--write", str(bed.folder / "x.toml")) == 1


def test_a_value_that_nobody_declared(bed: Bed) -> None:
    del bed.answers["values"]["pulse_rate"]
    accepted_but(bed, "values", "pulse_rate undeclared")


def test_a_value_that_the_screen_does_not_show(bed: Bed) -> None:
    bed.answers["values"]["pulse_rate"] = "not shown"
    assert bed.whole() == 0
    assert "pulse_rate" not in bed.step("values")["seen"]


def test_a_value_that_never_comes(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "wait_for_values", lambda *_: bool(time.sleep(0.3)) or True)
    bed.answers["values"]["resp_rate"] = 16
    accepted_but(bed, "values", "resp_rate no value")


def test_a_light_that_nobody_saw(bed: Bed) -> None:
    bed.answers["signals"]["medium"] = False
    accepted_but(bed, "signals", "not seen and heard: medium")


def test_an_output_that_is_broken(bed: Bed) -> None:
    text = bed.config.read_text().replace(str(bed.edges), "/no/such/folder/edges.jsonl")
    bed.config.write_text(text)
    accepted_but(bed, "signals", "cannot write /no/such/folder/edges.jsonl")


def test_no_annunciator(bed: Bed) -> None:
    bed.config.write_text(re.sub(r"\[\[annunciator\]\]\n.*\n.*\n", "", bed.config.read_text()))
    accepted_but(bed, "signals", "no annunciator is configured")


def test_a_button_that_is_not_pressed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "edge", lambda *_, **__: None)
    monkeypatch.setattr(signals._Presses, "wait", lambda *_: None)
    accepted_but(bed, "button", "no short press within 3 s")


def test_a_long_press_is_not_the_one_that_acknowledges(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = StandIn.edge
    monkeypatch.setattr(StandIn, "edge", lambda self, down, ago_ms: edge(self, down, ago_ms * 30 if down else ago_ms))
    monkeypatch.setattr(signals._Presses, "wait", lambda *_: time.sleep(0.5))
    accepted_but(bed, "button", "no short press")


def test_a_button_whose_line_is_taken(bed: Bed, chip: StandIn) -> None:
    chip.taken = True
    accepted_but(bed, "button", "taken by 'spi0 CS0'", also="checks")  # doctor looks at the line too


def test_a_button_that_nobody_can_press_is_skipped_and_not_accepted(bed: Bed) -> None:
    bed.answers["button"] = False
    assert bed.whole() == 1
    assert bed.step("button")["outcome"] == "skipped" and bed.step("button")["mandatory"]
    assert "Acknowledge button: skipped" in bed.said()["verdict"]["reason"]


def test_a_bed_without_a_button_needs_none(bed: Bed) -> None:
    bed.config.write_text(re.sub(r"\[\[button\]\]\n.*\n.*\n?", "", bed.config.read_text()))
    assert bed.whole() == 0
    assert bed.step("button")["outcome"] == "skipped" and not bed.step("button")["mandatory"]


def test_a_check_of_doctor_that_fails(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Finding("clock", "FAIL", "the wall clock is not set", "timedatectl set-ntp true")
    monkeypatch.setattr(doctor, "CHECKS", (*doctor.CHECKS, lambda loaded: iter([bad])))
    accepted_but(bed, "checks", "clock: the wall clock is not set")
    assert bed.step("checks")["remedy"] == "timedatectl set-ntp true"


def test_a_key_that_is_gone(bed: Bed) -> None:
    (bed.folder / "kek").unlink()
    accepted_but(bed, "checks", "the key is missing")


def test_a_silent_line(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    bed.monitor.silent = True
    assert bed.whole("--listen-seconds", "1") == 1
    assert bed.step("protocol")["outcome"] == "failed" and "silent until asked" in bed.step("protocol")["seen"]
    assert bed.step("values")["outcome"] == "failed"


def test_another_driver_than_expected(bed: Bed) -> None:
    bed.answers["driver"] = "masimo"
    assert bed.run("--only", "protocol", "--record", str(bed.record)) == 1
    assert "expected was masimo" in bed.step("protocol")["seen"]


def test_a_port_that_is_not_there(bed: Bed) -> None:
    bed.answers["port"] = "/dev/no-such-port"
    assert bed.run("--only", "protocol", "--record", str(bed.record)) == 1
    assert (
        "cannot be listened to" in bed.step("protocol")["seen"]
        and "plug the adapter in" in bed.step("protocol")["remedy"]
    )


def test_a_configuration_that_says_something_else_of_the_port(bed: Bed) -> None:
    bed.config.write_text(bed.text(bed.source().replace("nonin", "masimo")))
    assert bed.run("--only", "protocol,configuration", "--record", str(bed.record)) == 1
    assert 'found were driver = "nonin"' in bed.step("configuration")["seen"]
    other = bed.source().replace('bed = "ICU-3"', 'bed = "ICU-4"')
    bed.config.write_text(bed.text('[[bed]]\nid = "ICU-4"', other))
    bed.record.unlink()
    bed.record.with_suffix(".html").unlink()
    assert bed.run("--only", "protocol,configuration", "--record", str(bed.record)) == 1
    assert "already belongs to bed ICU-4" in bed.step("configuration")["seen"]


def test_what_lacks_in_the_configuration_is_shown_and_not_written_unasked(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bed.config.read_bytes()
    assert bed.run("--record", str(bed.record)) == 1
    assert "lacks 1 table(s)" in bed.step("configuration")["seen"] and "+ [[source]]" in capsys.readouterr().out
    assert bed.config.read_bytes() == before


def test_steps_that_were_not_asked_for_are_not_accepted() -> None:
    good = [passed(name, "well") for name in NAMES]
    assert verdict(good) == (True, "every mandatory step passed")
    for number, step in enumerate(STEPS):
        for bad in (failed(step.name, "x", "y"), skipped(step.name, "x")):
            accepted, reason = verdict([*good[:number], bad, *good[number + 1 :]])
            assert not accepted and step.title in reason
        assert not verdict(good[:number] + good[number + 1 :])[0], "a step that is missing altogether"
        optional = skipped(step.name, "x", mandatory=False)
        assert verdict([*good[:number], optional, *good[number + 1 :]])[0]
        assert not verdict([*good[:number], Result(step.name, "failed", "x", mandatory=False), *good[number + 1 :]])[0]


# -- before anything begins ---------------------------------------------------------------------------------------


def nothing_was_done(bed: Bed) -> None:
    assert not bed.edges.exists() and not bed.record.exists() and not (bed.folder / "accepted.toml").exists()
    assert not [path.name for path in bed.folder.iterdir() if path.name.startswith(".")], "no draft is left"
    assert not (bed.folder / "data" / "acceptance.key").exists() and not bed.record.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("change", "line", "key", "what"),
    [
        ({"enginer": {"name": "x"}}, 19, "enginer", "unknown key"),
        ({"engineer": {"name": "x"}}, 5, "engineer.id", "missing"),
        ({"engineer": {"name": "x", "id": "y", "age": 3}}, 8, "engineer.age", "unknown key"),
        ({"simulator": "yes"}, 3, "simulator", "true or false"),
        ({"values": {"spo2": "97"}}, 10, "values.spo2", "a number in the unit"),
        ({"values": {"spo3": 97}}, 10, "values.spo3", "unknown key"),
        ({"values": {}}, 9, "values", "missing"),
        ({"signals": {"high": True, "low": True}}, 13, "signals.medium", "missing"),
        ({"signals": True}, 13, "signals", "is no table"),
        ({"engineer": {"name": "a\nb", "id": "y"}}, 6, "engineer.name", "text of 1 to 128"),
        ({"button": None}, 18, "button", "true or false"),
    ],
)
def test_answers_are_checked_before_anything_starts(
    bed: Bed, capsys: pytest.CaptureFixture[str], change: dict[str, Any], line: int, key: str, what: str
) -> None:
    bed.answers |= change
    assert bed.whole() == 78
    told = capsys.readouterr().err
    assert f"answers.json:{line}: {key}: " in told and what in told, told
    nothing_was_done(bed)


def test_answers_in_toml_are_the_same(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    path = bed.folder / "answers.toml"
    path.write_text(
        'bed = "ICU-3"\nsimulator = true\n\n[engineer]\nname = "A"\nid = "b"\n[values]\nspo2 = 97\nspo3 = 1\n'
    )
    words = ["provision", "--config", str(bed.config), "--answers", str(path)]
    assert main([*words, "--only", "values"]) == 78
    assert f"{path}:9: values.spo3: unknown key" in capsys.readouterr().err
    path.write_text(path.read_text().replace("spo3 = 1\n", ""))
    assert main([*words, "--only", "signals"]) == 78
    assert "signals.high: missing" in capsys.readouterr().err
    path.write_text("bed = [")
    assert main(words) == 78
    assert "not valid TOML" in capsys.readouterr().err


def test_without_terminal_and_answers_it_says_what_to_do(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--config", str(bed.config)]) == 2
    assert "--answers FILE" in capsys.readouterr().err
    nothing_was_done(bed)


def test_a_bed_with_a_patient_is_not_provisioned(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    bed.answers["simulator"] = False
    assert bed.whole() == 1
    assert "connect a simulator" in capsys.readouterr().err
    nothing_was_done(bed)


def test_nothing_is_overwritten(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    (bed.folder / "accepted.toml").write_text("mine")
    assert bed.whole() == 1
    assert "add --replace" in capsys.readouterr().err
    bed.record.write_text("mine")
    assert bed.whole("--replace") == 1
    assert "never overwritten" in capsys.readouterr().err
    bed.record.unlink()
    assert bed.whole("--replace") == 0
    assert "[[source]]" in (bed.folder / "accepted.toml").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_lost_terminal_is_an_interruption_too(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), session.undisturbed():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) is before


def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        publish("other", target, replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"] and target.read_text() == "mine"
    target.chmod(0o600)
    publish("other", target, replace=True)
    assert target.read_text() == "other" and stat.S_IMODE(target.stat().st_mode) == 0o600


def test_wrong_use(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    assert bed.run("--only", "protocol,lamps") == 2
    assert "known steps: ports, protocol" in capsys.readouterr().err
    assert bed.run("--bed", "ICU-4") == 1
    assert "is for bed ICU-3" in capsys.readouterr().err
    assert bed.run("--record", "record.txt") == 1
    assert bed.run("--acceptance-key", "credential:acceptance") == 1
    assert "no credentials" in capsys.readouterr().err
    assert main(["provision", "--steps"]) == 0
    assert capsys.readouterr().out.split()[0] == "ports"


# -- at a terminal ------------------------------------------------------------------------------------------------


class Keys(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_asked(bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["ICU-3", "y", "A. Engineer", "bme-17", "n", "", "98", "perhaps", "y", "y", "y", "y"]
    monkeypatch.setattr("sys.stdin", Keys("\n".join(typed) + "\n"))
    monkeypatch.setattr(comparison, "SHOW_S", 0.1)
    words = ["--config", str(bed.config), "--port", str(bed.monitor.path), "--write", str(bed.folder / "accepted.toml")]
    assert main(["provision", *words, "--record", str(bed.record)]) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert "pulse_rate: 72 /min" in told and "HIGH: red light flashing, 10 pulses" in told
    vitals = {each["term"]: each["deviation"] for each in bed.step("values")["details"]["vitals"]}
    assert vitals == {"pulse_rate": 0.0, "spo2": -1.0}


@pytest.mark.parametrize("keys", [4, 7, 8, 9])
def test_whoever_stops_leaves_nothing_and_everything_off(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, keys: int, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["ICU-3", "y", "A. Engineer", "bme-17", "n", "", "", "y", "y", "y", "y"][:keys]  # then Ctrl-C
    monkeypatch.setattr("sys.stdin", Keys("\n".join(typed) + "\n"))
    monkeypatch.setattr(comparison, "SHOW_S", 0.1)
    words = ["--config", str(bed.config), "--port", str(bed.monitor.path), "--write", str(bed.folder / "accepted.toml")]
    assert main(["provision", *words, "--record", str(bed.record)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    if bed.edges.exists():
        last = dict(bed.lit())
        assert not any(last.values())
        bed.edges.unlink()
    nothing_was_done(bed)


# -- values without an agent --------------------------------------------------------------------------------------


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_monitor_on_the_network_is_read_and_not_acknowledged(bed: Bed) -> None:
    port = free_port()
    beds = '[[bed]]\nid = "ICU-4"\nlocation = "ICU^^4"'
    source = f'[[source]]\ndriver = "hl7"\nlink = "mllp-listen://127.0.0.1:{port}"'
    bed.config.write_text(bed.text(beds, source).replace('id = "ICU-3"', 'id = "ICU-3"\nlocation = "ICU^^3"'))
    parts = Parts(load(bed.config))
    reading = SourceReading(parts, "ICU-3", sources_of(parts.loaded, "ICU-3"), time.monotonic)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                monitor = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.01)
        with monitor:
            monitor.sendall(frame(1, 4, 71.0) + frame(1, 3, 96.0) + frame(2, 3, 97.0))
            until(lambda: "spo2" in reading.seen() and len(reading.seen()["spo2"].values) == 2)
            assert [value for _, value in reading.seen()["spo2"].values] == [96.0, 97.0], "the other bed's are not here"
            monitor.settimeout(0.3)
            with pytest.raises(TimeoutError):
                monitor.recv(1)  # nothing is stored here: an acknowledgement would lose it for the agent
            assert reading.trouble() == ""
        until(lambda: "no peer connected" in reading.trouble())
        assert reading.lost() == "", "a listener for many beds may lose the monitor of another"
    finally:
        reading.stop()


def test_what_a_device_must_be_asked_is_asked(bed: Bed) -> None:
    asked = Driver("asking", Asking, frozenset({"serial"}), ("spo2",), 5.0, "a test", poll_s=0.01)
    bed.config.write_text(bed.text(bed.source()))
    parts = Parts(load(bed.config))
    parts.drivers[0] = asked
    bed.monitor.silent = True
    reading = SourceReading(parts, "ICU-3", [0], time.monotonic)
    try:
        until(lambda: b"?" in bed.monitor.heard)
    finally:
        reading.stop()
    assert b"!" not in bed.monitor.heard


class Asking:
    """A decoder that asks, and owes an acknowledgement for something it has stored."""

    def feed(self, chunk: Chunk) -> list[Item]:
        return []

    def tick(self, at_ns: int) -> list[Item]:
        return [Reply(b"!", after_commit=True), Reply(b"?")]


def test_a_second_source_of_the_bed_that_is_lost(bed: Bed) -> None:
    bed.config.write_text(bed.text(bed.source(), bed.source().replace("ttyUSB0", "ttyUSB9")))
    del bed.answers["port"]
    assert bed.run("--only", "configuration,values", "--record", str(bed.record)) == 1
    assert "ttyUSB9: lost" in bed.step("values")["seen"] and bed.step("values")["remedy"]


# -- Bluetooth ----------------------------------------------------------------------------------------------------


async def test_a_wearable_is_found_and_fits_its_driver(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    async with wearable_on_air() as (radio, wearable):
        bed.answers["bluetooth"] = wearable.name
        del bed.answers["port"]
        target = bed.folder / "ble.toml"
        words = ("--only", "bluetooth,configuration", "--hci", radio.hci, "--scan-seconds", "1", "--write", str(target))
        assert await asyncio.to_thread(bed.run, *words) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert f"{wearable.address}  HRM-SIM" in told and "services 180d, 180f  driver gatt" in told
    assert 'driver = "gatt"' in target.read_text() and f"ble://{wearable.address}?hci=" in target.read_text()
    assert main(["check", str(target)]) == 0


async def test_a_wearable_that_is_not_there(bed: Bed) -> None:
    async with wearable_on_air() as (radio, _):
        bed.answers["bluetooth"] = "OTHER"
        words = ("--only", "bluetooth", "--hci", radio.hci, "--scan-seconds", "1", "--record", str(bed.record))
        assert await asyncio.to_thread(bed.run, *words) == 1
    assert "OTHER was not heard" in bed.step("bluetooth")["seen"]


# -- the record ---------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A signed record, with a text in it that wants to be markup."""
    signer = signing.make_signer(tmp_path / "acceptance.key")
    said = records.build(
        gateway="gw", bed="<b>ICU</b>", engineer={"name": '<script>alert("x")</script>', "id": "é&1"},
        results=[passed(name, "well", at="2026-01-01T00:00:00Z") for name in NAMES],
        configuration={"file": "/etc/edge-agent/edge-agent.toml", "sha256": "0" * 64}, devices=[],
        clock="synchronized", started="2026-01-01T00:00:00Z", ended="2026-01-01T00:10:00Z", with_values=False,
    )  # fmt: skip
    path = tmp_path / "record.json"
    path.write_text(records.signed(said, signer))
    return path


def test_any_changed_byte_is_found(written: Path) -> None:
    good = written.read_bytes()
    records.verify(written)
    for place in range(0, len(good), 23):
        for changed in (good[place] ^ 1, good[place] ^ 0x20):
            written.write_bytes(good[:place] + bytes((changed,)) + good[place + 1 :])
            with pytest.raises(records.RecordError):
                records.verify(written)
    for damaged in (good[:-1], good + b"\n", good.replace(b"\n", b"\r\n"), b"", b"{}", b"[" * 100_000, b"\xff" * 50):
        written.write_bytes(damaged)
        with pytest.raises(records.RecordError):
            records.verify(written)


def test_a_record_signed_by_somebody_else_is_found_with_the_key(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = tmp_path / "acceptance.pub"
    said = json.loads(written.read_text())["record"]
    (tmp_path / "other").mkdir()
    forger = signing.make_signer(tmp_path / "other" / "acceptance.key")
    assert main(["provision", "verify", str(written), "--key", str(public)]) == 0
    said["engineer"]["id"] = "somebody"
    written.write_text(records.signed(said, forger))
    assert main(["provision", "verify", str(written)]) == 0, "its own key is all that is known without --key"
    assert "anybody can sign" in capsys.readouterr().out
    assert main(["provision", "verify", str(written), "--key", str(public)]) == 1
    assert "signed by another key" in capsys.readouterr().err
    assert main(["provision", "verify", str(written), "--key", str(written)]) == 1
    assert main(["provision", "verify", str(tmp_path / "missing.json")]) == 1


class Sheet(HTMLParser):
    """The text and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_escaped_and_needs_nothing_from_elsewhere(written: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert main(["provision", "verify", str(written), "--page", str(target)]) == 0
    text = target.read_text()
    sheet = Sheet()
    sheet.feed(text)
    assert not {"script", "img", "link", "b", "iframe", "object"} & set(sheet.tags)
    assert not {"src", "href", "style", "onload"} & {name for name, _ in sheet.attributes}
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert '<script>alert("x")</script>' in sheet.text and "<b>ICU</b>" in sheet.text
    told = records.verify(written)
    for needed in (NOTICE, "ACCEPTED: every mandatory step passed", told.fingerprint, told.sha256, "date, signature"):
        assert needed in " ".join(sheet.text.split()), needed
    for step in STEPS:
        assert step.title in sheet.text
    colours = set(re.findall(r"#[0-9a-f]{3,6}\b", text))
    assert colours == {"#000", "#fff"}, "it is printed in black and white"
    assert main(["provision", "verify", str(written), "--page", str(target)]) == 1, "a page is not overwritten either"


@pytest.mark.parametrize("mode", [0o440, 0o644])
def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "acceptance.key"
    signing.make_signer(path)
    path.chmod(mode)
    with pytest.raises(signing.SigningError, match="chmod 0400"):
        signing.open_signer(f"file:{path}")
    path.chmod(0o600)
    path.write_text("damaged")
    with pytest.raises(signing.SigningError, match="no private key"):
        signing.open_signer(f"file:{path}")
    with pytest.raises(signing.SigningError, match="names no key"):
        signing.open_signer("acceptance")


def test_a_key_as_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = signing.make_signer(tmp_path / "acceptance.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    opened = signing.open_signer("credential:acceptance.key")
    assert opened is not None and opened.public == made.public
    assert signing.public_key(tmp_path / "acceptance.pub") == made.public


def test_the_command_module_asks_doctor_itself() -> None:
    assert provision.doctor.CHECKS is doctor.CHECKS and len(doctor.CHECKS) >= 8
