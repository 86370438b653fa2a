"""Alarms on a terminal: one line whenever another alarm owns the light, with the pattern and colour of its priority.

No values are printed. On a terminal the buzzer is its bell; elsewhere (journal, file) there is neither bell nor colour.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.patterns import BURSTS, BUZZER, HINT_PERIOD, LIGHTS, OUTPUTS
from edge_agent.records import Priority

_COLOURS: dict[Priority, str] = {"high": "\x1b[1;37;41m", "medium": "\x1b[30;43m", "low": "\x1b[30;46m"}
_PLAIN = "\x1b[0m"
_ENDED_S = 2 * HINT_PERIOD / 1000  # a pause that has not flashed for so long is over; the next one is told again


class Console(Output):
    """A terminal, or any text stream."""

    outputs = OUTPUTS
    name = "console"
    prompt = False  # a terminal that is not read holds its writer

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._shown: tuple[str, str, str] | None = None
        self._paused, self._paused_s = ("", ""), 0.0
        self._terminal = False

    def open(self) -> None:
        """Look whether the stream is a terminal."""
        try:
            self._terminal = self._stream.isatty()
        except ValueError as error:
            raise FaultError("the terminal is closed; run the agent with an open standard output") from error

    def switch(self, edges: Sequence[Edge]) -> None:
        """Print a line for a new owner of the light; ring for a pulse."""
        out = "".join(self._line(edge) for edge in edges)
        if not out:
            return
        try:
            self._stream.write(out)
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise FaultError(f"the terminal does not take output: {error}") from error

    def close(self) -> None:
        """Leave the stream as it is: it is not ours."""

    def _line(self, edge: Edge) -> str:
        if edge.output == BUZZER:
            return "\a" if edge.on and self._terminal else ""
        if edge.output not in LIGHTS or not edge.on:
            return ""
        if edge.priority == "none":
            return self._pause(edge)
        owner = (edge.bed, edge.priority, edge.condition)
        if owner == self._shown:
            return ""
        self._shown = owner
        text = edge.text.translate(_UNPRINTABLE)
        line = f"{edge.priority.upper():6} {pattern(edge.priority):14} {edge.bed or 'gateway'}  {text}"
        return f"{_COLOURS[edge.priority]}{line}{_PLAIN}\n" if self._terminal else f"{line}\n"

    def _pause(self, edge: Edge) -> str:
        state, now_s = (edge.bed, edge.condition), time.monotonic()
        known = state == self._paused and now_s - self._paused_s < _ENDED_S
        self._paused, self._paused_s = state, now_s
        return "" if known else f"{'':21} {edge.bed or 'gateway'}  {edge.text}\n"


_UNPRINTABLE = dict.fromkeys((*range(32), *range(127, 160)), "?")  # a device's text may hold terminal commands


def pattern(priority: Priority) -> str:
    """The burst of a priority as it would look on paper: one dot a pulse, a space where it pauses."""
    burst = BURSTS[priority]
    least = min((after - before for before, after in pairwise(burst.starts)), default=0)
    out = "●"
    for before, after in pairwise(burst.starts):
        out += " " * (after - before > least) + " " * (after - before > 3 * least) + "●"
    return out
