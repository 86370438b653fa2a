"""The timetable of a self-test: the lamps one after the other, then one short burst of each priority.

Of a HIGH burst the first half is played, the least that an alarm ever sounds. The test knows nothing of alarms; the
player ends it for the first that comes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from edge_agent.annunciators.edges import MS, SELF_TEST, Edge
from edge_agent.annunciators.patterns import BURST, BURSTS, BUZZER, LIGHTS
from edge_agent.records import Priority

LAMP = 1000  # ms that each lamp is lit
PAUSE = 700  # ms between lamps and bursts: longer than any silence within a group of pulses
LAST_LOOK = 100  # ms after the last edge, in which an output may still find that it was not followed
TEXT = "Self-test of light and sound"
_COLOUR_OF: tuple[tuple[str, Priority], ...] = (("red", "high"), ("yellow", "medium"), ("cyan", "low"))
assert tuple(colour for colour, _ in _COLOUR_OF) == LIGHTS


class _Span(NamedTuple):
    output: str
    start: int  # ms from the start of the test
    end: int
    priority: Priority
    pulse: int = 0
    cut: bool = False


def _timetable(outputs: Collection[str]) -> tuple[_Span, ...]:
    spans: list[_Span] = []
    at = 0
    for colour, priority in _COLOUR_OF:
        if colour in outputs:
            spans.append(_Span(colour, at, at + LAMP, priority))
            at += LAMP
    if BUZZER not in outputs:
        return tuple(spans)
    for priority in ("low", "medium", "high"):
        at += PAUSE if at else 0
        burst = BURSTS[priority]
        if BURST in outputs:
            spans.append(_Span(BURST, at, at + burst.half_length, priority, cut=burst.half < len(burst.starts)))
        for number, start in enumerate(burst.starts[: burst.half]):
            spans.append(_Span(BUZZER, at + start, at + start + burst.pulse, priority, number))
        at += burst.half_length
    return tuple(spans)


class SelfTest:
    """One run of the test on one annunciator's outputs."""

    def __init__(self, outputs: Collection[str], start_ns: int) -> None:
        self._start_ns = start_ns
        self._spans = _timetable(outputs)
        self._on: list[_Span] = []
        self._end_ns = start_ns + (max((span.end for span in self._spans), default=0) + LAST_LOOK) * MS

    def step(self, now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges for `now_ns`; the time of the next, None when the test is over."""
        since = now_ns - self._start_ns
        wanted = [span for span in self._spans if span.start * MS <= since < span.end * MS]
        for span in self._on:
            if span not in wanted:
                edges.append(_edge(span, False, span.cut))
        edges.extend(_edge(span, True, False) for span in wanted if span not in self._on)
        self._on = wanted
        if now_ns >= self._end_ns:
            return None
        times = (at * MS for span in self._spans for at in (span.start, span.end))
        return self._start_ns + min((at for at in times if at > since), default=self._end_ns - self._start_ns)

    def off(self, edges: list[Edge]) -> None:
        """Add the edges that end the test at once."""
        edges.extend(_edge(span, False, True) for span in self._on)
        self._on = []


def _edge(span: _Span, on: bool, cut: bool) -> Edge:
    return Edge(span.output, on, "", span.priority, SELF_TEST, TEXT, span.pulse, cut=cut)
