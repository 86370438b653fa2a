"""Trends: the last minutes of each vital of each bed, in memory of a fixed size.

Theory of operation: time is cut into intervals. While one runs, the last valid value of each vital that was received
within it waits; when it is over, what waits becomes one sample of the ring, or no sample when nothing valid came. A
value is never carried into the next interval, so a gap in the data is a gap in the trend.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from math import isnan
from typing import Final

import msgspec

from edge_agent import terms
from edge_agent.records import Observation

INTERVAL_S: Final = 5
SLOTS: Final = 120  # with INTERVAL_S: ten minutes
MOST: Final = 12  # vitals of one bed; a full monitor shows fewer, and memory stays as it was at the start
_NONE = float("nan")
# What changes slowly enough, or is measured seldom enough, that ten minutes of it say nothing.
_NOT_SHOWN = frozenset({"weight", "height", "glucose", "battery"})
SHOWN: frozenset[str] = frozenset(
    term.name for term in terms.TERMS if term.kind == "numeric" and term.name not in _NOT_SHOWN
)


class _Ring:
    """The samples of one bed: `rows` tells which part of the array a term has."""

    __slots__ = ("rows", "samples", "waiting")

    def __init__(self, most: int, slots: int) -> None:
        self.rows: dict[str, int] = {}
        self.samples = array("d", [_NONE]) * (most * slots)
        self.waiting = array("d", [_NONE]) * most


class Trends:
    """Trends of all beds; every method is called in the alarm loop and never waits."""

    def __init__(
        self, beds: Iterable[str], shown: frozenset[str] = SHOWN, *, slots: int = SLOTS, most: int = MOST,
        interval_s: float = INTERVAL_S,
    ) -> None:  # fmt: skip
        self._shown, self._slots, self._most = shown, slots, most
        self._interval_ns = round(interval_s * 1e9)
        self._rings = {bed: _Ring(most, slots) for bed in beds}
        self._number: int | None = None  # of the interval that runs
        self._views: dict[str, dict[str, list[float | None]]] = {}
        self._encoded: dict[str, msgspec.Raw] = {}

    def sample(self, latest: Mapping[str, Mapping[str, Observation]], at_ns: int) -> bool:
        """Take note of the latest observations; whether an interval has ended. To be called about once a second."""
        number = at_ns // self._interval_ns
        if self._number is None:
            self._number = number
        self._note(latest)
        if number <= self._number:
            return False
        self._end(self._number, number)
        self._number = number
        self._note(latest)
        return True

    def view(self, bed: str) -> dict[str, list[float | None]]:
        """Samples by term in its own unit, oldest first, the last one of the interval that ended last.

        None where nothing valid came. At most `slots` of them; a shorter list has nothing before its first sample.
        The lists are shared with later callers: they are only to be read.
        """
        found = self._views.get(bed)
        if found is None:
            found = self._views[bed] = self._build(self._rings[bed])
        return found

    def encoded(self, bed: str) -> msgspec.Raw:
        """`view` as JSON, made once an interval: in a status every second it costs no more than a copy."""
        found = self._encoded.get(bed)
        if found is None:
            found = self._encoded[bed] = msgspec.Raw(msgspec.json.encode(self.view(bed)))
        return found

    def clear(self, bed: str) -> None:
        """Forget a bed: another patient lies in it."""
        self._rings[bed] = _Ring(self._most, self._slots)
        self._views.pop(bed, None)
        self._encoded.pop(bed, None)

    def _note(self, latest: Mapping[str, Mapping[str, Observation]]) -> None:
        number, interval_ns, shown = self._number, self._interval_ns, self._shown
        for bed, ring in self._rings.items():
            rows, waiting = ring.rows, ring.waiting
            for term, item in latest.get(bed, {}).items():
                if item.validity != "valid" or item.at_ns // interval_ns != number or item.value is None:
                    continue
                row = rows.get(term, -1)
                if row < 0:
                    if term not in shown or (row := self._free(ring)) < 0:
                        continue
                    rows[term] = row
                waiting[row] = item.value

    def _free(self, ring: _Ring) -> int:
        """A part of the array for another term: an unused one, or that of a term without any sample; -1: none."""
        if len(ring.rows) < self._most:
            used = set(ring.rows.values())
            return next(row for row in range(self._most) if row not in used)
        for term, row in ring.rows.items():
            past = ring.samples[row * self._slots : (row + 1) * self._slots]
            if isnan(ring.waiting[row]) and all(map(isnan, past)):
                del ring.rows[term]
                return row
        return -1

    def _end(self, ended: int, now: int) -> None:
        """Put the samples of the interval `ended` into the rings, and gaps for those up to `now` that nobody saw."""
        slots = self._slots
        missed = [number % slots for number in range(max(ended + 1, now - slots), now)]
        for ring in self._rings.values():
            for row in ring.rows.values():
                start = row * slots
                ring.samples[start + ended % slots] = ring.waiting[row]
                ring.waiting[row] = _NONE
                for slot in missed:
                    ring.samples[start + slot] = _NONE
        self._views.clear()
        self._encoded.clear()

    def _build(self, ring: _Ring) -> dict[str, list[float | None]]:
        slots = self._slots
        head = 0 if self._number is None else self._number % slots  # the running interval's slot is the oldest one
        out: dict[str, list[float | None]] = {}
        for term, row in ring.rows.items():
            past = ring.samples[row * slots : (row + 1) * slots]
            values = [None if isnan(value) else value for value in (*past[head:], *past[:head])]
            first = next((index for index, value in enumerate(values) if value is not None), None)
            if first is not None:
                out[term] = values[first:]
        return out
