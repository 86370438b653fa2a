"""Lights and an active buzzer on GPIO lines, through the kernel's character device (libgpiod 2).

The chip is found by its label, a line by its offset or name. The kernel gives the lines back when the process ends,
whatever way it ends.

Theory of operation of the checks: SETTLE_NS after the last switch every output is read back, and so is the loop-back
input, which is wired behind the buzzer's transistor. What the input reads while the buzzer is off is taken from the
moment before the first pulse, so that it does not matter whether the transistor inverts. What does not follow is told
and the lines are driven on: a broken loop-back wire must not silence a buzzer. It is taken back when the line follows.

The heartbeat is a line that changes as long as both the alarm loop and the annunciator's thread are alive. It drives an
external retriggerable monostable, which sounds when the changes stop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from edge_agent import config, gpio_chips
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.patterns import BUZZER, OUTPUTS

SETTLE_NS = 30_000_000  # from a switch to its check: well below the shortest pulse, and the 50 ms a buzzer may take
HALF_BEAT_NS = 125_000_000  # 4 Hz
SILENT_LOOP_NS = 1_500_000_000  # without a call of the alarm loop: with one half beat more it is quiet within 2 s


class Gpio(Output):
    """The lines of one chip."""

    prompt = True  # one system call that sets a register

    def __init__(self, settings: config.Annunciator) -> None:
        self.name = f"gpio:{settings.chip}"
        self._chip, self._active_low = settings.chip, settings.active_low
        self._lines: dict[str, int | str] = {
            output: line for output in OUTPUTS if (line := getattr(settings, output)) is not None
        }
        self.outputs = tuple(self._lines)
        self._loopback, self._heartbeat = settings.loopback, settings.heartbeat
        if self._loopback is not None:
            self.proof = "all was switched and the loop-back followed the buzzer; the lamps only somebody can tell"
        self._request: Any = None
        self._on: Any = None
        self._off: Any = None
        self._levels: dict[str, bool] = {}
        self._readable = True
        self._rest: Any = None  # what the loop-back reads while the buzzer is off; None: not known yet
        self._wrong: dict[tuple[str, bool], str] = {}  # what was found of a line while it was switched on or off
        self._check_ns: int | None = None
        self._beat_ns: int | None = None  # when the alarm loop was last known to be alive
        self._toggle_ns: int | None = None
        self._beats = False

    def open(self) -> None:
        """Request all lines: outputs that are off, and the loop-back as an input."""
        wanted = dict(self._lines)
        if self._heartbeat is not None:
            wanted["heartbeat"] = self._heartbeat
        if self._loopback is not None:
            wanted["loopback"] = self._loopback
        try:
            gpiod = gpio_chips.load()
            chip = gpio_chips.open_chip(self._chip, wanted.values())
        except gpio_chips.ChipError as error:
            raise FaultError(str(error)) from error
        from gpiod.line import Direction, Value

        self._on, self._off = Value.ACTIVE, Value.INACTIVE
        out = gpiod.LineSettings(direction=Direction.OUTPUT, active_low=self._active_low, output_value=Value.INACTIVE)
        back = gpiod.LineSettings(direction=Direction.INPUT)
        try:
            self._request = chip.request_lines(
                config={line: back if name == "loopback" else out for name, line in wanted.items()},
                consumer=gpio_chips.CONSUMER,
            )
        except (OSError, ValueError) as error:
            raise FaultError(f"{self.name}: the lines cannot be used: {error}; `gpioinfo` shows them") from error
        finally:
            chip.close()
        self._levels = dict.fromkeys(self._lines, False)
        self._rest = self._check_ns = None
        self._readable, self._beats, self.doubt = True, False, ""
        self._wrong.clear()
        self._toggle_ns = time.monotonic_ns() if self._heartbeat is not None else None
        self._plan()

    def switch(self, edges: Sequence[Edge]) -> None:
        """Set the lines, one system call for the last state of each."""
        values = {self._lines[edge.output]: self._on if edge.on else self._off for edge in edges}
        try:
            if self._loopback is not None and self._rest is None and self._lines[BUZZER] in values:
                self._rest = self._request.get_value(self._loopback)
            self._request.set_values(values)
        except Exception as error:  # gpiod has errors of its own for a request that was released
            raise FaultError(f"{self.name}: a line cannot be set: {error}") from error
        self._levels.update((edge.output, edge.on) for edge in edges)
        self._check_ns = time.monotonic_ns() + SETTLE_NS
        self._plan()

    def tend(self, now_ns: int) -> None:
        """Check what was switched; toggle the heartbeat."""
        try:
            if self._check_ns is not None and now_ns >= self._check_ns:
                self._check_ns = None
                self._look()
            if self._toggle_ns is not None and now_ns >= self._toggle_ns:
                self._toggle(now_ns)
        except Exception as error:  # gpiod has errors of its own for a request that was released
            raise FaultError(f"{self.name}: a line cannot be used: {error}") from error
        self._plan()

    def beat(self, at_ns: int) -> None:
        """Let the heartbeat go on from `at_ns` for SILENT_LOOP_NS."""
        self._beat_ns = at_ns

    def close(self) -> None:
        """Give the lines back."""
        request, self._request = self._request, None
        self.due_ns, self.doubt = None, ""
        if request is not None:
            try:
                request.release()
            except OSError:
                pass

    def _plan(self) -> None:
        times = [at for at in (self._check_ns, self._toggle_ns) if at is not None]
        self.due_ns = min(times) if times else None

    def _look(self) -> None:
        """Compare what was switched with what can be read; sets `doubt`.

        A verdict belongs to one line in one state, and stands until the line is seen in that state again: an open
        buzzer looks well whenever it is off.
        """
        wrong = self._wrong
        for output, level in self._read_back().items():
            on = self._levels[output]
            wrong[output, on] = "" if level == on else (
                f"line {self._lines[output]!r} ({output}) reads {_word(level)} while it is switched {_word(on)}: "
                "check for a short circuit"
            )  # fmt: skip
        if self._loopback is not None and self._rest is not None:
            on, follows = self._levels[BUZZER], self._request.get_value(self._loopback) != self._rest
            where = f"line {self._loopback!r} sees"
            wrong["loopback", on] = "" if follows == on else (
                f"the buzzer is stuck: {where} it on while it is switched off; check transistor and wires" if follows
                else f"the buzzer is open: {where} no change when it is switched on; check buzzer, transistor and wires"
            )  # fmt: skip
        found = [each for each in wrong.values() if each]
        self.doubt = f"{self.name}: {'; '.join(found)}" if found else ""

    def _read_back(self) -> dict[str, bool]:
        """Level of each output as its line reads, empty where the chip cannot tell."""
        if self._readable:
            try:
                values = self._request.get_values(list(self._lines.values()))
            except OSError:
                self._readable = False  # not every chip reads its outputs
            else:
                return {output: value == self._on for output, value in zip(self._lines, values, strict=True)}
        return {}

    def _toggle(self, now_ns: int) -> None:
        self._toggle_ns = now_ns + HALF_BEAT_NS
        if self._beat_ns is not None and now_ns - self._beat_ns <= SILENT_LOOP_NS:
            self._beats = not self._beats
            self._request.set_values({self._heartbeat: self._on if self._beats else self._off})


def _word(on: bool) -> str:
    return "on" if on else "off"
