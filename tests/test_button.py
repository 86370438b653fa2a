"""The button: presses out of edges and time, and a thread that lives on whatever its line does."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import button, config, gpio_chips
from edge_agent.button import Button, Presses

MS = 1_000_000
DEADLINE_S = 10.0


def play(presses: Presses, edges: list[tuple[bool, float]], until_ms: float) -> list[tuple[str, float]]:
    """What comes out when `tick` is called exactly when it is due, with the time in ms."""
    out: list[tuple[str, float]] = []

    def ticks(before_ns: float) -> None:
        while (due := presses.due_ns()) is not None and due < before_ns:
            out.extend((press, due / MS) for press in presses.tick(due))
            assert presses.due_ns() is None or presses.due_ns() > due, "a tick that was due must bring something on"

    for pressed, at_ms in edges:
        ticks(at_ms * MS)
        out.extend((press, at_ms) for press in presses.edge(pressed, round(at_ms * MS)))
    ticks(until_ms * MS + 1)
    return out


def presses(**settings: Any) -> Presses:
    return Presses(20 * MS, 2000 * MS, **settings)


def test_short_on_release() -> None:
    assert play(presses(), [(True, 100), (False, 300)], 60_000) == [("short", 320)]


def test_long_as_soon_as_the_hold_reaches_it_and_once() -> None:
    assert play(presses(), [(True, 100), (False, 9000)], 60_000) == [("long", 2100)]


@pytest.mark.parametrize(("held_ms", "expected"), [(1999, "short"), (2000, "long"), (2001, "long")])
def test_the_border_between_short_and_long(held_ms: float, expected: str) -> None:
    happened = play(presses(), [(True, 100), (False, 100 + held_ms)], 60_000)
    assert [press for press, _ in happened] == [expected]


def test_a_tick_that_comes_late_still_tells_a_long_press() -> None:
    late = presses()
    assert late.edge(True, 0) == []
    assert late.edge(False, 2500 * MS) == ["long"]
    assert late.tick(2600 * MS) == []
    other = presses()
    other.edge(True, 0)
    assert other.tick(2500 * MS) == ["long"]


def test_bounce_of_press_and_release_makes_one_press() -> None:
    press = [(True, 100), (False, 104), (True, 108), (False, 110), (True, 115)]
    release = [(False, 400), (True, 410), (False, 412), (True, 418), (False, 425)]
    assert play(presses(), press + release, 60_000) == [("short", 445)]


def test_what_is_shorter_than_the_debounce_time_is_no_press() -> None:
    assert play(presses(), [(True, 100), (False, 119)], 60_000) == []
    assert play(presses(), [(True, 100), (False, 120)], 60_000) == [("short", 140)]


def test_a_contact_that_opens_for_a_moment_does_not_end_the_hold() -> None:
    edges = [(True, 0), (False, 1000), (True, 1015), (False, 2500)]
    assert play(presses(), edges, 60_000) == [("long", 2000)]


def test_no_long_press_while_a_release_may_have_begun() -> None:
    assert play(presses(), [(True, 0), (False, 1990)], 60_000) == [("short", 2010)]


def test_stuck_after_thirty_seconds_and_free_again() -> None:
    edges = [(True, 0), (False, 45_000), (True, 50_000), (False, 50_200)]
    assert play(presses(), edges, 90_000) == [("long", 2000), ("stuck", 30_000), ("free", 45_020), ("short", 50_220)]


def test_held_at_the_start_silences_nothing() -> None:
    assert play(presses(held=True), [(False, 900), (True, 2000), (False, 2100)], 60_000) == [("short", 2120)]
    assert play(presses(held=True), [(False, 40_000)], 60_000) == [("stuck", 30_000), ("free", 40_020)]


def test_two_presses_are_two() -> None:
    edges = [(True, 0), (False, 100), (True, 200), (False, 300), (True, 400), (False, 3000)]
    assert play(presses(), edges, 60_000) == [("short", 120), ("short", 320), ("long", 2400)]


def test_the_same_level_twice_is_no_edge() -> None:
    assert play(presses(), [(True, 0), (True, 150), (False, 300), (False, 310)], 60_000) == [("short", 320)]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40))
def test_any_bouncing_gives_one_press_for_each_steady_hold(gaps_ms: list[int]) -> None:
    """Levels alternate after each gap; the model looks at steady levels only."""
    edges, at_ms, level = [], 0, False
    for gap in gaps_ms:
        at_ms += gap
        level = not level
        edges.append((level, float(at_ms)))
    end_ms = at_ms + 100_000.0
    happened = [press for press, _ in play(presses(), edges, end_ms)]
    ends = [at for _, at in edges[1:]] + [end_ms]
    steady = [(level, start, end) for (level, start), end in zip(edges, ends, strict=True) if end - start >= 20]
    holds: list[list[float]] = []  # start and end of what reads as one hold
    down = False
    for level, start, end in steady:
        if level and not down:
            holds.append([start, end])
        elif level:
            holds[-1][1] = end
        elif down:
            holds[-1][1] = start
        down = level
    expected = []
    for start, end in holds:
        expected.append("long" if end - start >= 2000 else "short")
        if end - start >= 30_000:
            expected.append("stuck")
            if end != end_ms:
                expected.append("free")
    assert happened == expected


# -- the thread ---------------------------------------------------------------------------------------------------

SETTINGS = config.Button(chip="pinctrl-bcm2711", line=27, bed="ICU-3", long_press_s=0.5)


class Told:
    def __init__(self) -> None:
        self.presses: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str]] = []
        self._new = threading.Condition()

    def press(self, bed: str, kind: str) -> None:
        with self._new:
            self.presses.append((bed, kind))
            self._new.notify_all()

    def fault(self, name: str, detail: str) -> None:
        with self._new:
            self.faults.append((name, detail))
            self._new.notify_all()

    def wait(self, done: Callable[[], bool]) -> None:
        with self._new:
            assert self._new.wait_for(done, DEADLINE_S), (self.presses, self.faults)


class StandIn:
    """The few calls of gpiod that Button makes, with a pipe for the kernel's queue; names as in gpiod 2.5."""

    def __init__(self) -> None:
        self.taken = self.down = False
        self.requests: list[tuple[dict[int | str, Any], int]] = []
        self.released = threading.Event()
        self.listening = threading.Event()
        self.fails: Exception | None = None
        self.number = 0
        self.fd, self._write = os.pipe()

    def __call__(self, path: str) -> StandIn:
        return self

    def get_info(self) -> SimpleNamespace:
        return SimpleNamespace(label="pinctrl-bcm2711")

    def get_line_info(self, line: int | str) -> SimpleNamespace:
        return SimpleNamespace(used=self.taken, consumer="spi0 CS0")

    def request_lines(self, config: dict[int | str, Any], consumer: str, event_buffer_size: int) -> StandIn:
        if self.fails is not None:
            raise self.fails
        self.requests.append((config, event_buffer_size))
        self.number = 0
        return self

    def get_value(self, line: int | str) -> Any:
        from gpiod.line import Value

        self.listening.set()
        return Value.ACTIVE if self.down else Value.INACTIVE

    def read_edge_events(self) -> list[SimpleNamespace]:
        from gpiod import EdgeEvent

        found = []
        for pressed, number, at_ns in struct.iter_unpack("=?Iq", os.read(self.fd, 13 * 64)):
            kind = EdgeEvent.Type.RISING_EDGE if pressed else EdgeEvent.Type.FALLING_EDGE
            found.append(SimpleNamespace(event_type=kind, line_seqno=number, timestamp_ns=at_ns))
        return found

    def edge(self, pressed: bool, ago_ms: float = 0.0, lost: int = 0) -> None:
        self.down = pressed
        self.number += 1 + lost
        os.write(self._write, struct.pack("=?Iq", pressed, self.number, time.monotonic_ns() - round(ago_ms * MS)))

    def unplug(self) -> None:
        os.close(self._write)

    def release(self) -> None:
        self.released.set()

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    gpiod = pytest.importorskip("gpiod")
    stand_in = StandIn()
    (tmp_path / "gpiochip0").touch()
    monkeypatch.setattr(gpio_chips, "DEVICES", tmp_path)
    monkeypatch.setattr(gpiod, "Chip", stand_in)
    monkeypatch.setattr(gpiod, "is_gpiochip_device", lambda path: True)
    monkeypatch.setattr(button, "RETRY_S", 0.01)
    return stand_in


@pytest.fixture
def pushed(chip: StandIn, told: Told) -> Iterator[Button]:
    made = Button(SETTINGS, told.press, told.fault)
    assert chip.listening.wait(DEADLINE_S)
    yield made
    made.close()


def test_the_line_is_an_input_with_a_pull_up_that_the_kernel_debounces(pushed: Button, chip: StandIn) -> None:
    from gpiod.line import Bias, Clock, Direction, Edge

    ((lines, kept),) = chip.requests
    line = lines[27]
    assert (line.direction, line.edge_detection, line.bias) == (Direction.INPUT, Edge.BOTH, Bias.PULL_UP)
    assert line.active_low and line.event_clock == Clock.MONOTONIC
    assert line.debounce_period == timedelta(milliseconds=20) and kept >= 16
    pushed.close()
    assert chip.released.is_set()


def test_a_button_that_connects_to_the_supply_is_pulled_down(chip: StandIn, told: Told) -> None:
    from gpiod.line import Bias

    made = Button(SETTINGS.model_copy(update={"active_low": False}), told.press, told.fault)
    assert chip.listening.wait(DEADLINE_S)
    made.close()
    assert chip.requests[0][0][27].bias == Bias.PULL_DOWN and not chip.requests[0][0][27].active_low


def test_presses_reach_the_bed(pushed: Button, chip: StandIn, told: Told) -> None:
    chip.edge(True, ago_ms=200)
    chip.edge(False, ago_ms=50)
    told.wait(lambda: told.presses == [("ICU-3", "short")])
    before = time.monotonic()
    chip.edge(True)
    told.wait(lambda: told.presses[1:] == [("ICU-3", "long")])
    assert time.monotonic() - before >= 0.5, "told while the button is still down, and not before its time"
    chip.edge(False)
    chip.edge(True, ago_ms=-100)
    chip.edge(False, ago_ms=-200)
    told.wait(lambda: told.presses[2:] == [("ICU-3", "short")])
    assert told.faults == [] and pushed.fault == ""


def test_lost_edges_silence_nothing(pushed: Button, chip: StandIn, told: Told) -> None:
    chip.edge(True, ago_ms=5000, lost=3)  # would be a long press if nothing had been lost
    chip.edge(False, ago_ms=4000)
    chip.edge(True, ago_ms=300)
    chip.edge(False, ago_ms=100)
    told.wait(lambda: bool(told.presses))
    assert told.presses == [("ICU-3", "short")]


def test_a_stuck_button_is_a_fault_until_it_is_free(pushed: Button, chip: StandIn, told: Told) -> None:
    chip.edge(True, ago_ms=31_000)
    told.wait(lambda: bool(told.faults))
    ((name, detail),) = told.faults
    assert name == "button:pinctrl-bcm2711:27" and "held for 30 s" in detail and "jammed" in detail
    assert pushed.fault == detail
    chip.edge(False, ago_ms=100)
    told.wait(lambda: told.faults[1:] == [(name, "")])
    assert pushed.fault == "" and told.presses == [("ICU-3", "long")]


def test_a_taken_line_is_a_fault_and_is_tried_again(chip: StandIn, told: Told) -> None:
    chip.taken = True
    made = Button(SETTINGS, told.press, told.fault)
    told.wait(lambda: bool(told.faults))
    assert "line 27 is taken by 'spi0 CS0'" in told.faults[0][1]
    chip.taken = False
    told.wait(lambda: told.faults[1:] == [(made.name, "")])
    chip.edge(True, ago_ms=200)
    chip.edge(False, ago_ms=100)
    told.wait(lambda: told.presses == [("ICU-3", "short")])
    made.close()
    assert len(told.faults) == 2, "a fault that lasts is told once"


def test_a_line_without_edges_says_so(chip: StandIn, told: Told) -> None:
    chip.fails = OSError(6, "No such device or address")
    made = Button(SETTINGS, told.press, told.fault)
    told.wait(lambda: bool(told.faults))
    made.close()
    assert "cannot be used as an input with edges" in told.faults[0][1]


def test_a_chip_that_goes_away_is_a_fault(pushed: Button, chip: StandIn, told: Told) -> None:
    chip.taken = True  # what comes back is not usable, so that the fault stays
    chip.unplug()
    told.wait(lambda: bool(told.faults))
    assert "the chip has gone" in told.faults[0][1]
    assert chip.released.is_set()


def test_a_handler_that_fails_does_not_end_the_thread(chip: StandIn, told: Told) -> None:
    calls: list[str] = []

    def once(bed: str, kind: str) -> None:
        calls.append(kind)
        if len(calls) == 1:
            raise RuntimeError("the loop is closed")
        told.press(bed, kind)

    made = Button(SETTINGS, once, told.fault)
    assert chip.listening.wait(DEADLINE_S)
    chip.edge(True, ago_ms=200)
    chip.edge(False, ago_ms=100)
    told.wait(lambda: len(told.faults) == 2)
    chip.edge(True, ago_ms=200)
    chip.edge(False, ago_ms=100)
    told.wait(lambda: told.presses == [("ICU-3", "short")])
    made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="gpiod exists for Linux only")
def test_without_its_chip_the_real_gpiod_makes_a_fault_that_says_what_to_do(told: Told) -> None:
    made = Button(SETTINGS.model_copy(update={"chip": "no such chip"}), told.press, told.fault)
    told.wait(lambda: bool(told.faults))
    ((name, detail),) = told.faults
    assert name == "button:no such chip:27"
    assert "no GPIO chip is labelled 'no such chip'" in detail and "gpiodetect" in detail
    before = time.monotonic()
    made.close()
    assert time.monotonic() - before < 1.0, "closing does not wait for the next attempt"
    made.close()


def finding(tmp_path: Path, label: str = "no such") -> tuple[str, str]:
    from edge_agent.commands.doctor_devices import check_gpio

    path = tmp_path / "edge.toml"
    path.write_text('[gateway]\nid = "g"\ndata_dir = "d"\n[[bed]]\nid = "B"\n[[button]]\nchip = "no such"\nline = 3\n')
    path.write_text(path.read_text().replace("no such", label))
    (found,) = check_gpio(config.load(path))
    return found.state, found.detail


def test_doctor_looks_for_the_chip_of_a_button(tmp_path: Path, chip: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpiod

    assert finding(tmp_path) == ("FAIL", "no chip with label 'no such'; present: pinctrl-bcm2711")
    assert finding(tmp_path, "pinctrl-bcm2711")[0] == "ok"
    chip.taken = True
    verdict, detail = finding(tmp_path, "pinctrl-bcm2711")
    assert verdict == "FAIL" and "line 3 is taken by 'spi0 CS0'" in detail
    monkeypatch.setattr(chip, "get_line_info", lambda line: SimpleNamespace(used=True, consumer="edge-agent"))
    assert finding(tmp_path, "pinctrl-bcm2711")[0] == "ok", "the agent holds it, as it should"

    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gpiod, "Chip", denied)
    verdict, detail = finding(tmp_path)
    assert verdict == "FAIL" and "add the agent's user to the group" in detail
