"""Signals and time to edges: a state machine without clock, thread or output.

Theory of operation: light and sound are levels that follow from the time and the newest signal of every bed. `step`
puts the levels right for `now` and says when the next one changes. Whoever is late gets the levels of now; what was
missed is not made up for, so that no backlog ever plays. Schedules count from the start of their pattern, so lateness
does not add up. Who owns the light is told in lamps.py, who owns the sound in bursts.py.

A self-test owns all outputs while nothing is active. The first alarm ends it before its own edges come.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edge_agent.annunciators.bursts import Bursts
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.lamps import Lamps
from edge_agent.annunciators.patterns import OUTPUTS
from edge_agent.annunciators.self_test import SelfTest
from edge_agent.records import Signal

Test = Literal["none", "running", "done", "cut"]


class Player:
    """Levels of one annunciator's outputs over time; sound that nobody answers for `escalate_s` gets louder."""

    def __init__(self, outputs: Iterable[str] = OUTPUTS, *, escalate_s: float = 0) -> None:
        self._outputs = frozenset(outputs)
        self._signals: dict[str, Signal] = {}
        self._lamps = Lamps(self._outputs)
        self._bursts = Bursts(self._outputs, escalate_s)
        self._test: SelfTest | None = None
        self.test: Test = "none"  # how far the newest self-test has come

    def show(self, signal: Signal) -> None:
        """Take over the newest signal of a bed; `step` draws the consequences."""
        if signal.priority == "none" and not signal.inactivation:
            self._signals.pop(signal.bed, None)
        else:
            self._signals[signal.bed] = signal
        self._bursts.heed(signal)

    def step(self, now_ns: int) -> tuple[list[Edge], int | None]:
        """Edges that put the outputs right for `now_ns`, and when to come again; None: with the next signal."""
        edges: list[Edge] = []
        light_ns = self.light(now_ns, edges)
        sound_ns = self.sound(now_ns, edges)
        if light_ns is None or (sound_ns is not None and sound_ns < light_ns):
            return edges, sound_ns
        return edges, light_ns

    def light(self, now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges of the lights for `now_ns`, and all those of a self-test; the time of the next."""
        if self._test is not None:
            test_ns = self._play_test(self._test, now_ns, edges)
            if test_ns is not None:
                return test_ns
        return self._lamps.step(self._signals.values(), now_ns, edges)

    def sound(self, now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges of the buzzer for `now_ns`; the time of its next. Call `light` first."""
        if self._test is not None:
            return None
        return self._bursts.step(self._signals.values(), now_ns, edges)

    def off(self) -> list[Edge]:
        """Edges that put every output off. What is active is kept: the next step begins with it anew."""
        edges: list[Edge] = []
        self._end_test(edges)
        self._lamps.off(edges)
        self._lamps = Lamps(self._outputs)
        self._bursts.off(edges)
        return edges

    def begin_test(self, now_ns: int) -> list[Edge]:
        """Edges that make way for a self-test, which owns the outputs from the next step; an active alarm cuts it."""
        if self._test is not None:
            return []
        if self._alarm():
            self.test = "cut"
            return []
        edges = self.off()  # a hint, a reminder, or the rest of a burst whose alarm has ended
        self._test, self.test = SelfTest(self._outputs, now_ns), "running"
        return edges

    def _alarm(self) -> bool:
        return any(signal.visual or signal.audio for signal in self._signals.values())

    def _play_test(self, test: SelfTest, now_ns: int, edges: list[Edge]) -> int | None:
        if self._alarm():
            self._end_test(edges)
            return None
        next_ns = test.step(now_ns, edges)
        if next_ns is None:
            self._test, self.test = None, "done"
        return next_ns

    def _end_test(self, edges: list[Edge]) -> None:
        if self._test is not None:
            self._test.off(edges)
            self._test, self.test = None, "cut"
