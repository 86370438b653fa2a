"""Annunciators with real threads, files and terminals: edges come out, faults are told, nobody waits for anybody."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent import config, gpio_chips
from edge_agent.annunciators import Annunciator, open_annunciators
from edge_agent.annunciators import annunciator as threads
from edge_agent.annunciators.console import Console, pattern
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.gpio import Gpio
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.patterns import OUTPUTS
from edge_agent.annunciators.record import Record
from edge_agent.records import Signal

DEADLINE_S = 10.0


def alarm(onset: int = 1, bed: str = "ICU-3", condition: str = "spo2_low", priority: Any = "high") -> Signal:
    return Signal(bed, priority, True, True, condition, "SpO2 low", priority, condition, onset, onset)


def clear(bed: str = "ICU-3") -> Signal:
    return Signal(bed, "none", False, False)


class Faults:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._new = threading.Condition()

    def __call__(self, name: str, detail: str) -> None:
        with self._new:
            self.told.append((name, detail))
            self._new.notify_all()

    def wait(self, count: int) -> list[tuple[str, str]]:
        with self._new:
            assert self._new.wait_for(lambda: len(self.told) >= count, DEADLINE_S), self.told
            return list(self.told)


class Probe(Output):
    """An output in memory that can fail, block and be waited for."""

    name = "probe"
    outputs = OUTPUTS

    def __init__(self, *, prompt: bool = False) -> None:
        self.prompt = prompt
        self.switched_by: list[str] = []
        self.edges: list[Edge] = []
        self.fails: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._new = threading.Condition()

    def open(self) -> None:
        if self.fails:
            raise self.fails

    def switch(self, edges: Sequence[Edge]) -> None:
        self.gate.wait(DEADLINE_S)
        if self.fails:
            raise self.fails
        with self._new:
            self.switched_by.append(threading.current_thread().name)
            self.edges.extend(edges)
            self._new.notify_all()

    def close(self) -> None:
        pass

    def wait(self, condition: Callable[[list[Edge]], bool]) -> list[Edge]:
        with self._new:
            assert self._new.wait_for(lambda: condition(self.edges), DEADLINE_S), self.edges
            return list(self.edges)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def probe(faults: Faults) -> Iterator[tuple[Probe, Annunciator]]:
    output = Probe()
    annunciator = Annunciator(output, on_fault=faults)
    yield output, annunciator
    output.gate.set()
    annunciator.close()


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return [json.loads(line) for line in found]
        time.sleep(0.002)
    raise AssertionError(f"fewer than {count} lines in {path}")


def test_record_writes_one_line_an_edge_with_its_time(tmp_path: Path, faults: Faults) -> None:
    settings = [config.Annunciator(kind="record", path=Path("edges.jsonl"))]
    (annunciator,) = open_annunciators(settings, resolve=lambda path: tmp_path / path, on_fault=faults)
    before = time.monotonic_ns()
    annunciator.drive(alarm())
    first = lines(tmp_path / "edges.jsonl", 2)[:2]
    after = time.monotonic_ns()
    assert [set(line) for line in first] == [{"at_ns", "bed", "output", "on", "priority", "condition"}] * 2
    assert [(line["output"], line["on"]) for line in first] == [("red", True), ("buzzer", True)]
    assert {(line["bed"], line["priority"], line["condition"]) for line in first} == {("ICU-3", "high", "spo2_low")}
    assert before <= first[0]["at_ns"] <= first[1]["at_ns"] <= after
    annunciator.close()
    last = lines(tmp_path / "edges.jsonl", 4)
    assert {(line["output"], line["on"]) for line in last[2:]} >= {("red", False)} and faults.told == []
    state: dict[str, bool] = {}
    for line in last:
        assert state.get(line["output"], False) is not line["on"]
        state[line["output"]] = line["on"]
    assert not any(state.values()), "closing leaves nothing on"


def test_every_raise_is_in_the_record_however_short(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "edges.jsonl"
    annunciator = Annunciator(Record(path), on_fault=faults)
    for number in range(1, 301):
        annunciator.drive(alarm(number, condition=f"c{number}"))
        annunciator.drive(clear())
    annunciator.close()
    seen = [line["condition"] for line in lines(path, 600) if line["output"] == "red" and line["on"]]
    assert seen == [f"c{number}" for number in range(1, 301)]


def test_record_that_cannot_be_written_is_a_fault_that_says_what_to_do(tmp_path: Path, faults: Faults) -> None:
    annunciator = Annunciator(Record(tmp_path / "absent" / "edges.jsonl"), on_fault=faults)
    ((name, detail),) = faults.wait(1)
    assert name.startswith("record:") and "No such file" in detail and "give a `path`" in detail
    annunciator.drive(alarm())
    assert annunciator.fault == detail
    annunciator.close()


def test_a_full_disk_is_a_fault(faults: Faults) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this machine has no /dev/full")
    annunciator = Annunciator(Record(Path("/dev/full")), on_fault=faults)
    annunciator.drive(alarm())
    assert "No space left" in faults.wait(1)[0][1]
    annunciator.close()


def test_signals_of_other_beds_are_not_shown_but_those_of_the_gateway_are(faults: Faults) -> None:
    output = Probe()
    annunciator = Annunciator(output, bed="ICU-3", on_fault=faults)
    annunciator.drive(alarm(1, bed="ICU-4", condition="other"))
    annunciator.drive(alarm(2, bed="", condition="disk_fault", priority="medium"))
    annunciator.drive(alarm(3, bed="ICU-3"))
    edges = output.wait(lambda edges: any(edge.condition == "spo2_low" for edge in edges))
    annunciator.close()
    assert {edge.condition for edge in edges} == {"disk_fault", "spo2_low"}


def test_pulses_come_by_themselves(probe: tuple[Probe, Annunciator]) -> None:
    output, annunciator = probe
    annunciator.drive(alarm())
    output.wait(lambda edges: sum(edge.output == "buzzer" and edge.on for edge in edges) >= 3)


def test_a_prompt_output_is_switched_by_the_alarm_loop_and_its_pattern_by_the_thread(faults: Faults) -> None:
    output = Probe(prompt=True)
    annunciator = Annunciator(output, on_fault=faults)
    annunciator.drive(clear())
    while not annunciator._open:
        time.sleep(0.001)
    here = threading.current_thread().name
    annunciator.drive(alarm())
    assert [(edge.output, edge.on) for edge in output.edges] == [("red", True), ("buzzer", True)]
    assert output.switched_by == [here, here]
    output.wait(lambda edges: sum(edge.output == "buzzer" and edge.on for edge in edges) >= 3)
    assert output.switched_by[-1] == "annunciator probe"
    annunciator.drive(clear())
    assert not output.edges[-1].on
    annunciator.close()
    assert faults.told == []


def test_drive_does_not_wait_for_a_thread_that_is_at_work(faults: Faults) -> None:
    output = Probe(prompt=True)
    annunciator = Annunciator(output, on_fault=faults)
    with annunciator._lock:  # as while the thread opens an output or plays an edge
        begin = time.perf_counter()
        annunciator.drive(alarm())
        assert time.perf_counter() - begin < 0.5
        assert output.edges == []
    output.wait(lambda edges: any(edge.output == "red" and edge.on for edge in edges))
    annunciator.close()


def test_a_prompt_output_that_fails_is_a_fault_and_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    monkeypatch.setattr(threads, "RETRY_S", 0.02)
    output = Probe(prompt=True)
    annunciator = Annunciator(output, on_fault=faults)
    while not annunciator._open:
        time.sleep(0.001)
    output.fails = FaultError("the line is gone")
    annunciator.drive(alarm())
    assert faults.wait(1) == [("probe", "the line is gone")]
    output.fails = None
    output.wait(lambda edges: any(edge.output == "red" and edge.on for edge in edges))
    assert faults.wait(2)[1] == ("probe", "")
    annunciator.close()


def test_a_blocked_output_does_not_block_drive(probe: tuple[Probe, Annunciator]) -> None:
    output, annunciator = probe
    output.gate.clear()
    annunciator.drive(alarm(1))
    begin = time.perf_counter()
    for number in range(2, 2002):
        annunciator.drive(alarm(number, bed=f"bed {number % 8}"))
    assert time.perf_counter() - begin < 1.0
    end = time.monotonic() + DEADLINE_S
    while annunciator.stuck_ns(time.monotonic_ns()) < 50_000_000:
        assert time.monotonic() < end
        time.sleep(0.01)
    output.gate.set()
    output.wait(lambda edges: any(edge.bed == f"bed {2001 % 8}" for edge in edges))


def test_more_signals_than_fit_lose_no_beds_last_state(probe: tuple[Probe, Annunciator]) -> None:
    output, annunciator = probe
    output.gate.clear()
    annunciator.drive(alarm(1, bed="first", condition="keep", priority="high"))
    for number in range(threads.QUEUE * 2):
        annunciator.drive(alarm(2 + number, bed="noisy", priority="low"))
    annunciator.drive(clear("noisy"))
    output.gate.set()
    output.wait(lambda edges: bool(edges) and edges[-1].bed == "first")


def test_an_output_that_fails_and_recovers_shows_what_is_active(
    monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    monkeypatch.setattr(threads, "RETRY_S", 0.02)
    output = Probe()
    annunciator = Annunciator(output, on_fault=faults)
    output.fails = FaultError("the cable is out; plug it in")
    annunciator.drive(alarm())
    assert faults.wait(1) == [("probe", "the cable is out; plug it in")]
    assert annunciator.fault == "the cable is out; plug it in"
    output.fails = None
    assert faults.wait(2)[1] == ("probe", "")
    output.wait(lambda edges: [(edge.output, edge.on) for edge in edges[:2]] == [("red", True), ("buzzer", True)])
    assert annunciator.fault == ""
    annunciator.close()


def test_an_unexpected_error_of_an_output_is_a_fault_not_the_end(
    probe: tuple[Probe, Annunciator], faults: Faults
) -> None:
    output, annunciator = probe
    output.fails = ZeroDivisionError("oops")
    annunciator.drive(alarm())
    assert faults.wait(1) == [("probe", "probe: ZeroDivisionError: oops")]
    assert annunciator.stuck_ns(time.monotonic_ns()) < DEADLINE_S * 1e9


def test_the_threads_end_and_give_back_their_descriptors(tmp_path: Path, faults: Faults) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for number in range(10):
        annunciator = Annunciator(Record(tmp_path / f"{number}"), on_fault=faults)
        annunciator.drive(alarm())
        annunciator.close()
        annunciator.close()
        annunciator.drive(alarm())
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("annunciator record")]


def test_console_shows_pattern_bed_and_text_once_an_owner_and_no_terminal_commands() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.open()
    edge = Edge("red", True, "ICU-3", "high", "spo2_low", "SpO2 low\x1b[2J")
    console.switch([edge, Edge("buzzer", True, "ICU-3", "high", "spo2_low", "SpO2 low")])
    console.switch([edge._replace(on=False)])
    console.switch([edge])
    console.switch([Edge("cyan", True, "", "low", "clock_step", "The clock was stepped")])
    out = stream.getvalue().splitlines()
    assert len(out) == 2
    assert out[0].startswith("HIGH") and "ICU-3" in out[0] and "SpO2 low" in out[0] and "\x1b" not in out[0]
    assert out[1].startswith("LOW") and "gateway" in out[1]


def test_console_on_a_terminal_has_colour_and_bell() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    console = Console(stream)
    console.open()
    console.switch([Edge("red", True, "b", "high", "c", "t"), Edge("buzzer", True, "b", "high", "c", "t")])
    assert "\x1b[1;37;41m" in stream.getvalue() and stream.getvalue().endswith("\a")
    stream.close()
    with pytest.raises(FaultError, match="terminal"):
        console.switch([Edge("yellow", True, "b", "medium", "c", "t")])


def test_console_tells_a_pause_once_and_again_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("edge_agent.annunciators.console.time.monotonic", lambda: now[0])
    console = Console(stream)
    console.open()
    flash = Edge("cyan", True, "ICU-3", "none", "audio_paused", "AUDIO PAUSED")
    for _ in range(5):
        console.switch([flash, flash._replace(on=False)])
        console.switch([Edge("red", True, "ICU-4", "high", "spo2_low", "SpO2 low")])
        now[0] += 3.0
    lines_ = stream.getvalue().splitlines()
    assert len(lines_) == 2 and lines_[0].split() == ["ICU-3", "AUDIO", "PAUSED"] and lines_[1].startswith("HIGH")
    now[0] += 60.0
    console.switch([flash])
    assert stream.getvalue().splitlines()[2:] == [lines_[0]]


def test_patterns_on_paper() -> None:
    assert pattern("high") == "●●● ●●  ●●● ●●"
    assert pattern("medium") == "●●●" and pattern("low") == "●●"


GPIO = config.Annunciator(kind="gpio", chip="pinctrl-bcm2711", buzzer=17, red="GPIO22", active_low=True)


@pytest.mark.skipif(sys.platform != "linux", reason="gpiod exists for Linux only")
def test_gpio_without_its_chip_is_a_fault_and_the_others_go_on(tmp_path: Path, faults: Faults) -> None:
    settings = [
        GPIO.model_copy(update={"chip": "no such chip"}),
        config.Annunciator(kind="record", path=tmp_path / "edges.jsonl"),
    ]
    annunciators = open_annunciators(settings, resolve=lambda path: path, on_fault=faults)
    ((name, detail),) = faults.wait(1)
    assert name == "gpio:no such chip"
    assert "no GPIO chip is labelled 'no such chip'" in detail and "gpiodetect" in detail
    for annunciator in annunciators:
        annunciator.drive(alarm())
    assert lines(tmp_path / "edges.jsonl", 1)[0]["output"] == "red"
    for annunciator in annunciators:
        annunciator.close()


class StandIn:
    """The few calls of gpiod that Gpio makes, for machines without lines; names and arguments as in gpiod 2.5."""

    def __init__(self, label: str = "pinctrl-bcm2711", taken: int | str | None = None) -> None:
        self.label, self.taken = label, taken
        self.requests: list[tuple[dict[int | str, Any], str]] = []
        self.values: list[dict[int | str, Any]] = []
        self.open = 0
        self.released = False

    def __call__(self, path: str) -> StandIn:
        self.open += 1
        return self

    def get_info(self) -> SimpleNamespace:
        return SimpleNamespace(label=self.label)

    def get_line_info(self, line: int | str) -> SimpleNamespace:
        if line == 99:
            raise ValueError("line offset of out range")
        return SimpleNamespace(used=line == self.taken, consumer="spi0 CS0")

    def request_lines(self, config: dict[int | str, Any], consumer: str) -> StandIn:
        self.requests.append((config, consumer))
        return self

    def set_values(self, values: dict[int | str, Any]) -> None:
        self.values.append(values)

    def release(self) -> None:
        self.released = True

    def close(self) -> None:
        self.open -= 1


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    gpiod = pytest.importorskip("gpiod")
    stand_in = StandIn()
    (tmp_path / "gpiochip0").touch()
    monkeypatch.setattr(gpio_chips, "DEVICES", tmp_path)
    monkeypatch.setattr(gpiod, "Chip", stand_in)
    monkeypatch.setattr(gpiod, "is_gpiochip_device", lambda path: True)
    return stand_in


def test_gpio_requests_its_lines_off_and_sets_the_last_state_of_each(chip: StandIn) -> None:
    from gpiod.line import Direction, Value

    output = Gpio(GPIO)
    assert output.outputs == ("buzzer", "red")
    output.open()
    ((lines_, consumer),) = chip.requests
    assert set(lines_) == {17, "GPIO22"} and consumer == "edge-agent"
    for settings in lines_.values():
        assert settings.direction == Direction.OUTPUT and settings.output_value == Value.INACTIVE
        assert settings.active_low
    assert chip.open == 0, "the chip is closed, the request holds the lines"
    output.switch([Edge("red", False, "", "high", "", ""), Edge("red", True, "", "high", "", "")])
    output.switch([Edge("buzzer", True, "", "high", "", "")])
    assert chip.values == [{"GPIO22": Value.ACTIVE}, {17: Value.ACTIVE}]
    output.close()
    assert chip.released


def test_gpio_tells_a_wrong_label_a_taken_line_and_a_line_that_is_not_there(chip: StandIn) -> None:
    with pytest.raises(FaultError, match="found pinctrl-bcm2711"):
        Gpio(GPIO.model_copy(update={"chip": "pinctrl-rp1"})).open()
    with pytest.raises(FaultError, match="there is no line 99"):
        Gpio(GPIO.model_copy(update={"buzzer": 99})).open()
    chip.taken = 17
    with pytest.raises(FaultError, match="line 17 is taken by 'spi0 CS0'"):
        Gpio(GPIO).open()
    assert chip.open == 0
    assert gpio_chips.chip_labels() == ["pinctrl-bcm2711"] and chip.open == 0


def test_gpio_without_permission_says_which_group(chip: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpiod

    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gpiod, "Chip", denied)
    with pytest.raises(FaultError, match="group that owns it"):
        Gpio(GPIO).open()


def test_gpio_line_that_fails_later_is_a_fault(chip: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Gpio(GPIO)
    output.open()
    monkeypatch.setattr(chip, "set_values", lambda values: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(FaultError, match="a line cannot be set"):
        output.switch([Edge("red", True, "", "high", "", "")])
