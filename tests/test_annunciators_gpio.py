"""GPIO lines that are wired wrong, a heartbeat that must stop, and self-tests, against lines with simulated wiring."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_annunciators_outputs import DEADLINE_S, Faults, Probe, StandIn, alarm, clear

from edge_agent import config, gpio_chips
from edge_agent.annunciators import Annunciator, annunciator, gpio, self_test
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.gpio import Gpio
from edge_agent.annunciators.output import FaultError
from edge_agent.annunciators.patterns import Burst
from edge_agent.records import Signal

pytest.importorskip("gpiod")
from gpiod.line import Direction, Value

MS = 1_000_000
BUZZER, RED, BACK, HEART = 17, 22, 23, 24
LINES = config.Annunciator(kind="gpio", chip="pinctrl-bcm2711", buzzer=BUZZER, red=RED, loopback=BACK, heartbeat=HEART)


class Wired(StandIn):
    """Lines that keep their level, and an input that is wired to the buzzer as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[int | str, Value] = {}
        self.heart: list[int] = []  # when the heartbeat changed, in ns
        self.changed = threading.Condition()
        # a transistor that pulls its collector down while the line is active: the usual circuit
        self.wire: Callable[[bool], bool] = lambda on: not on
        self.short: dict[int | str, Value] = {}

    def request_lines(self, config: dict[int | str, Any], consumer: str) -> Wired:
        self.levels = dict.fromkeys(config, Value.INACTIVE)
        super().request_lines(config, consumer)
        return self

    def set_values(self, values: dict[int | str, Any]) -> None:
        with self.changed:
            super().set_values(values)
            assert BACK not in values, "an input is not driven"
            self.levels.update(values)
            if HEART in values:
                self.heart.append(time.monotonic_ns())
            self.changed.notify_all()

    def get_value(self, line: int | str) -> Value:
        if line == BACK:
            return Value(self.wire(self.levels[BUZZER] == Value.ACTIVE))
        return self.short.get(line, self.levels[line])

    def get_values(self, lines: list[int | str]) -> list[Value]:
        return [self.get_value(line) for line in lines]


@pytest.fixture
def wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wired:
    import gpiod

    stand_in = Wired()
    (tmp_path / "gpiochip0").touch()
    monkeypatch.setattr(gpio_chips, "DEVICES", tmp_path)
    monkeypatch.setattr(gpiod, "Chip", stand_in)
    monkeypatch.setattr(gpiod, "is_gpiochip_device", lambda path: True)
    return stand_in


def buzzer(on: bool) -> Edge:
    return Edge("buzzer", on, "", "high", "c", "t")


def switched(output: Gpio, on: bool) -> str:
    """What the output doubts after the buzzer went on or off and has settled."""
    output.switch([buzzer(on)])
    assert output.due_ns is not None and output.due_ns - time.monotonic_ns() <= 50 * MS
    output.tend(time.monotonic_ns() + gpio.SETTLE_NS)
    return output.doubt


def test_all_lines_are_asked_for_in_one_request_outputs_off_and_the_loop_back_as_input(wired: Wired) -> None:
    Gpio(LINES.model_copy(update={"active_low": True})).open()
    ((lines, consumer),) = wired.requests
    assert consumer == "edge-agent" and set(lines) == {BUZZER, RED, BACK, HEART}
    assert lines[BACK].direction == Direction.INPUT
    for line in (BUZZER, RED, HEART):
        assert lines[line].direction == Direction.OUTPUT and lines[line].output_value == Value.INACTIVE
        assert lines[line].active_low


def test_a_taken_loop_back_line_is_a_fault(wired: Wired) -> None:
    wired.taken = BACK
    with pytest.raises(FaultError, match="line 23 is taken by 'spi0 CS0'"):
        Gpio(LINES).open()


@pytest.mark.alm("ALM-30")
@pytest.mark.parametrize("wire", [lambda on: on, lambda on: not on], ids=["as it is", "inverted"])
def test_a_loop_back_that_follows_is_well_whichever_way_it_is_wired(wired: Wired, wire: Callable[[bool], bool]) -> None:
    wired.wire = wire
    output = Gpio(LINES)
    output.open()
    assert [switched(output, on) for on in (True, False, True, False)] == [""] * 4


@pytest.mark.alm("ALM-30")
def test_an_open_buzzer_is_found_stays_told_between_pulses_and_is_taken_back_when_it_follows(wired: Wired) -> None:
    output = Gpio(LINES)
    output.open()
    wired.wire = lambda on: True
    found = switched(output, True)
    assert "the buzzer is open: line 23 sees no change when it is switched on" in found
    assert switched(output, False) == found, "off it looks well, which says nothing"
    assert switched(output, True) == found
    wired.wire = lambda on: not on
    assert switched(output, False) == found
    assert switched(output, True) == ""


@pytest.mark.alm("ALM-30")
def test_a_stuck_buzzer_is_found_and_taken_back(wired: Wired) -> None:
    output = Gpio(LINES)
    output.open()
    assert switched(output, True) == ""
    wired.wire = lambda on: False  # conducts for ever
    found = switched(output, False)
    assert "the buzzer is stuck: line 23 sees it on while it is switched off" in found
    assert switched(output, True) == found
    wired.wire = lambda on: not on
    assert switched(output, False) == ""


@pytest.mark.alm("ALM-30")
def test_an_output_that_reads_back_otherwise_is_named(wired: Wired) -> None:
    output = Gpio(LINES)
    output.open()
    wired.short[RED] = Value.INACTIVE
    output.switch([Edge("red", True, "", "high", "", "")])
    output.tend(time.monotonic_ns() + gpio.SETTLE_NS)
    assert "line 22 (red) reads off while it is switched on: check for a short circuit" in output.doubt


def test_a_chip_that_cannot_read_its_outputs_is_no_fault(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(lines: list[int | str]) -> list[Value]:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(wired, "get_values", refused)
    output = Gpio(LINES)
    output.open()
    assert switched(output, True) == ""


def test_a_check_waits_for_the_last_switch_to_settle(wired: Wired) -> None:
    output = Gpio(LINES.model_copy(update={"heartbeat": None}))
    output.open()
    assert output.due_ns is None
    output.switch([buzzer(True)])
    first = output.due_ns or 0
    output.switch([buzzer(False)])
    assert output.due_ns is not None and output.due_ns >= first
    wired.wire = lambda on: pytest.fail("read before it has settled")
    output.tend(output.due_ns - 1)


@pytest.mark.alm("ALM-30")
def test_a_broken_loop_back_is_a_technical_alarm_and_the_buzzer_goes_on(wired: Wired) -> None:
    wired.wire = lambda on: True
    faults = Faults()
    one = Annunciator(Gpio(LINES), on_fault=faults)
    one.drive(alarm())
    ((name, detail),) = faults.wait(1)
    assert name == "gpio:pinctrl-bcm2711" and "the buzzer is open" in detail and one.fault == detail
    seen = len(wired.values)
    with wired.changed:
        assert wired.changed.wait_for(
            lambda: sum(values.get(BUZZER) == Value.ACTIVE for values in wired.values[seen:]) >= 2, DEADLINE_S
        ), "pulses go on"
        wired.wire = lambda on: not on
    assert faults.wait(2)[1] == (name, "")
    assert one.fault == ""
    one.close()


# -- heartbeat -------------------------------------------------------------------------------------------------------


def tended(output: Gpio, wired: Wired, end: int) -> list[int]:
    """Tend the output whenever it asks until `end` on a virtual clock in ns; when its heartbeat changed."""
    beats = []
    while output.due_ns is not None and output.due_ns <= end:
        now, before = output.due_ns, len(wired.heart)
        output.tend(now)
        beats += [now] * (len(wired.heart) - before)
    return beats


@pytest.mark.alm("ALM-31")
def test_the_heartbeat_changes_eight_times_a_second_and_stops_with_the_loop(wired: Wired) -> None:
    output = Gpio(LINES)
    output.open()
    start = output.due_ns or 0
    assert tended(output, wired, start + 1000 * MS) == [], "no beat before the loop has called"
    beats: list[int] = []
    for second in range(1, 4):
        output.beat(start + second * 1000 * MS)
        beats += tended(output, wired, start + (second + 1) * 1000 * MS)
    assert {b - a for a, b in itertools.pairwise(beats)} == {125 * MS}
    last_call = start + 3000 * MS
    beats += tended(output, wired, start + 20_000 * MS)
    assert last_call + 1000 * MS <= beats[-1] <= last_call + 2000 * MS
    output.beat(start + 20_000 * MS)
    assert tended(output, wired, start + 20_500 * MS), "and comes back with the loop"
    levels = [values[HEART] for values in wired.values if HEART in values]
    assert all(a != b for a, b in itertools.pairwise(levels)), "each is a change"


@pytest.mark.alm("ALM-31")
def test_a_hung_loop_stops_the_heartbeat_within_two_seconds(wired: Wired) -> None:
    faults = Faults()
    one = Annunciator(Gpio(LINES), on_fault=faults)
    last = 0
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        last = time.monotonic_ns()
        one.beat(last)
        time.sleep(0.05)
    assert len(wired.heart) >= 4
    time.sleep(2.6)  # the loop hangs: nobody calls
    assert wired.heart[-1] - last <= 2_000 * MS
    assert one.stuck_ns(time.monotonic_ns()) < 1_000 * MS, "the annunciator itself is well"
    one.close()


@pytest.mark.alm("ALM-31")
def test_a_hung_annunciator_stops_the_heartbeat_too(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Annunciator(Gpio(LINES), on_fault=Faults())
    one.beat(time.monotonic_ns())
    with wired.changed:
        assert wired.changed.wait_for(lambda: len(wired.heart) >= 2, DEADLINE_S)
    free = threading.Event()
    hangs = threading.Event()
    monkeypatch.setattr(wired, "get_values", lambda lines: (hangs.set(), free.wait(DEADLINE_S), [])[2])
    one.drive(alarm())
    assert hangs.wait(DEADLINE_S)
    count = len(wired.heart)
    one.beat(time.monotonic_ns())
    time.sleep(0.4)
    assert len(wired.heart) == count
    free.set()
    one.close()


# -- self-test in the thread -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short lamps and bursts, so that the test of the test does not take eight seconds."""
    monkeypatch.setattr(self_test, "LAMP", 60)
    monkeypatch.setattr(self_test, "PAUSE", 60)
    short = Burst((0, 120), pulse=60, half=2, gap=1000)  # longer than what a loop-back needs to settle
    monkeypatch.setattr(self_test, "BURSTS", dict.fromkeys(("high", "medium", "low"), short))


def outcome(one: Annunciator) -> dict[str, Any]:
    end = time.monotonic() + 3 * DEADLINE_S
    while one.test_result["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.005)
    return one.test_result


@pytest.mark.alm("ALM-30")
@pytest.mark.parametrize(
    ("wire", "state", "detail"),
    [
        (lambda on: not on, "passed", "the loop-back followed the buzzer"),
        (lambda on: True, "failed", "the buzzer is open"),
        (lambda on: False, "failed", "the buzzer is open"),
    ],
    ids=["well", "open", "stuck from the start"],
)
def test_a_self_test_passes_or_says_what_is_wrong(
    wired: Wired, quick: None, wire: Callable[[bool], bool], state: str, detail: str
) -> None:
    wired.wire = wire
    one = Annunciator(Gpio(LINES), on_fault=Faults())
    assert one.test_result["state"] == "never"
    one.self_test(4711)
    assert one.test_result["state"] == "running"
    result = outcome(one)
    assert result["state"] == state and detail in result["detail"] and result["at_ns"] == 4711
    assert {line for values in wired.values for line in values} >= {BUZZER, RED}
    assert all(wired.levels[line] == Value.INACTIVE for line in (BUZZER, RED))
    one.close()


@pytest.mark.alm("ALM-30")
def test_a_buzzer_that_gets_stuck_during_the_test_fails_it(wired: Wired, quick: None) -> None:
    one = Annunciator(Gpio(LINES), on_fault=Faults())
    one.self_test(1)
    with wired.changed:
        assert wired.changed.wait_for(lambda: wired.levels.get(BUZZER) == Value.ACTIVE, DEADLINE_S)
        wired.wire = lambda on: False
    assert outcome(one)["state"] == "failed" and "stuck" in one.test_result["detail"]
    one.close()


@pytest.mark.alm("ALM-30")
def test_a_loose_contact_that_closes_before_the_end_fails_the_test(wired: Wired, quick: None) -> None:
    one = Annunciator(Gpio(LINES), on_fault=(faults := Faults()))
    wired.wire = lambda on: True
    one.self_test(1)
    faults.wait(1)
    wired.wire = lambda on: not on
    assert outcome(one)["state"] == "failed" and "open" in one.test_result["detail"]
    faults.wait(2)
    assert one.fault == "", "by the end all followed"
    one.close()


def test_an_alarm_cuts_the_test_of_a_prompt_output_in_the_alarm_loop() -> None:
    output = Probe(prompt=True)
    one = Annunciator(output, on_fault=Faults())
    one.self_test(1)
    output.wait(lambda edges: any(edge.condition == "self_test" for edge in edges))
    one.drive(alarm())
    assert [(e.output, e.on, e.condition) for e in output.edges[-2:]] == [
        ("red", True, "spo2_low"), ("buzzer", True, "spo2_low"),
    ]  # fmt: skip
    assert outcome(one) == {"state": "cut", "detail": "an alarm is active", "at_ns": 1}
    one.drive(clear())
    one.close()


def test_a_test_of_an_output_that_does_not_work_fails_and_can_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(annunciator, "RETRY_S", 0.02)
    output = Probe()
    output.fails = FaultError("the cable is out; plug it in")
    faults = Faults()
    one = Annunciator(output, on_fault=faults)
    faults.wait(1)
    one.self_test(1)
    assert outcome(one) == {"state": "failed", "detail": "the cable is out; plug it in", "at_ns": 1}
    output.fails = None
    faults.wait(2)
    one.self_test(2)
    assert outcome(one)["state"] == "passed"
    one.close()


def test_a_pause_that_passes_through_the_thread_is_kept_and_shown() -> None:
    output = Probe()
    one = Annunciator(output, on_fault=Faults())
    one.drive(Signal("ICU-3", "none", False, False, inactivation="audio_off"))
    output.wait(lambda edges: any(e.output == "cyan" and e.condition == "audio_off" for e in edges))
    one.close()
