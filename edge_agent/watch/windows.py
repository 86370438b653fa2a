"""The last day of each bed for the risk model: seven vital signs in bins of five minutes, in memory of a fixed size.

Theory of operation: every valid value of a term that the model uses goes into the bin that runs, of which at most
`MOST` values are kept, evenly spaced. When the bin is over, its median takes its place in a ring of one day. An hour of
the model is twelve bins, and the newest ends now, so that no hour is ever just begun; its value is the median of its
bins. What was not measured, or not validly, or cannot be, leaves its bin empty: a fault never becomes a value, and no
value is carried on here. A vital that several terms give has a stream for each of them; which one an hour takes is
`SOURCES`. Bins count on CLOCK_MONOTONIC.

`observe` is called for each observation, behind the alarms; the rest about once a minute. `Copy` is what leaves this
room: nothing in it changes any more, so that another thread may take all its time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final, NamedTuple

from edge_agent.records import Observation

HOURS: Final = 24  # that the model looks back
BINS: Final = 12  # of an hour
BIN_NS: Final = 3600 * 1_000_000_000 // BINS
SLOTS: Final = HOURS * BINS
MOST: Final = 60  # values kept of a bin, evenly spaced: one every five seconds tells the median of five minutes

# The vitals of the model in its order, and for each the terms that give it, the preferred first. Terms in one group are
# one stream. An ECG counts beats where a pulse may be weak; capnography sees breaths where a thorax only moves; an
# arterial line measures all the time, a cuff now and then; skin is colder than blood, so it gives no temperature.
SOURCES: Final[tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]] = (
    ("heart_rate", (("heart_rate",), ("pulse_rate", "pulse_rate_other", "abp_pulse_rate"), ("nibp_pulse_rate",))),
    ("spo2", (("spo2",),)),
    ("temperature", (("temp_core",), ("temp",), ("temp_axillary",))),
    ("systolic", (("abp_sys", "art_sys"), ("nibp_sys",))),
    ("mean_pressure", (("abp_mean", "art_mean"), ("nibp_mean",))),
    ("diastolic", (("abp_dia", "art_dia"), ("nibp_dia",))),
    ("resp_rate", (("resp_rate_co2",), ("resp_rate",), ("resp_rate_impedance",), ("resp_rate_pleth",))),
)
# What a person can have, in the order of SOURCES: a rate of zero is a monitor without a patient.
RANGES: Final = ((10, 300), (30, 100), (25, 44), (20, 300), (10, 250), (5, 200), (1, 90))
VITALS: Final = tuple(vital for vital, _ in SOURCES)
_NONE = float("nan")
_NEVER = -(1 << 63)  # before every time, also those that another boot's become
_EMPTY = array("d", [_NONE]) * SLOTS


class Ring(NamedTuple):
    """A day of one stream: `bins` as doubles, bin n at n % SLOTS, and the values of the bin that runs."""

    vital: int
    rank: int  # in SOURCES; a lower one is preferred
    bins: bytes
    values: tuple[float, ...]


class Copy(NamedTuple):
    """A bed as it was at one moment: `number` is the bin that ran, `epoch` rises with every patient."""

    bed: str
    epoch: int
    number: int
    rings: tuple[Ring, ...]


class _Stream:
    """One group of terms on one bed."""

    __slots__ = ("bins", "ends_ns", "greatest", "least", "number", "rank", "stride", "values", "vital", "wait")

    def __init__(self, vital: int, rank: int) -> None:
        self.vital, self.rank = vital, rank
        self.least, self.greatest = RANGES[vital]
        self.bins: array[float] | None = None  # made with the first value
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.bins = None
        self.number, self.ends_ns = 0, _NEVER
        self.values: list[float] = []
        self.stride = self.wait = 1

    def turn(self, number: int) -> None:
        """Let bin `number` run: the one that ran becomes its median, those between them stay empty."""
        bins = self.bins
        if bins is None:
            bins = self.bins = _EMPTY[:]
        elif number > self.number:
            bins[self.number % SLOTS] = median(self.values)
            for empty in range(self.number + 1, min(number, self.number + SLOTS) + 1):
                bins[empty % SLOTS] = _NONE
        else:  # a time before the last one: threads' order, not another bin
            return
        self.number, self.ends_ns = number, (number + 1) * BIN_NS
        self.values.clear()
        self.stride = self.wait = 1

    def thin(self) -> None:
        """Keep every second value, and from now on take half as many."""
        del self.values[1::2]
        self.wait = self.stride  # the newest value went, and the next one lies as far from the last that stayed
        self.stride *= 2


class Windows:
    """The windows of all beds that a model scores; every method belongs to the alarm loop and none waits."""

    def __init__(self, beds: Iterable[str]) -> None:
        self._streams: dict[str, tuple[_Stream, ...]] = {}
        self._by_term: dict[str, dict[str, _Stream]] = {}
        self._epochs: dict[str, int] = {}
        for bed in beds:
            streams, by_term = [], {}
            for vital, (_, groups) in enumerate(SOURCES):
                for rank, group in enumerate(groups):
                    stream = _Stream(vital, rank)
                    streams.append(stream)
                    by_term.update(dict.fromkeys(group, stream))
            self._streams[bed], self._by_term[bed] = tuple(streams), by_term
            self._epochs[bed] = 0

    def observe(self, bed: str, obs: Observation, shift_ns: int = 0) -> None:
        """Take note of an observation; what is not valid, not plausible or of no use to the model changes nothing.

        `shift_ns` moves the times of another boot into this one.
        """
        terms = self._by_term.get(bed)
        stream = terms.get(obs.term) if terms is not None else None
        if stream is None or obs.validity != "valid":
            return
        value = obs.value
        if value is None or not stream.least <= value <= stream.greatest:
            return
        at_ns = obs.at_ns + shift_ns
        if at_ns >= stream.ends_ns:
            stream.turn(at_ns // BIN_NS)
        stream.wait -= 1
        if stream.wait:
            return
        stream.wait = stream.stride
        stream.values.append(value)
        if len(stream.values) == MOST:
            stream.thin()

    def clear(self, bed: str) -> None:
        """Forget a bed, for another patient lies there."""
        for stream in self._streams.get(bed, ()):
            stream.clear()
        if bed in self._epochs:
            self._epochs[bed] += 1

    def epoch(self, bed: str) -> int:
        """How often the patient has changed; a copy with another one speaks of somebody else."""
        return self._epochs[bed]

    def copy(self, bed: str, at_ns: int) -> Copy:
        """A bed as it is now."""
        number = at_ns // BIN_NS
        rings = []
        for stream in self._streams[bed]:
            if stream.bins is None:
                continue
            if number > stream.number:
                stream.turn(number)
            rings.append(Ring(stream.vital, stream.rank, stream.bins.tobytes(), tuple(stream.values)))
        return Copy(bed, self._epochs[bed], number, tuple(rings))

    def fill(self, bed: str, number: int, rings: Sequence[Ring]) -> None:
        """Put bins of before a restart where nothing was measured since; the newest, `number`, is not in the future."""
        for ring in rings:
            stream = next(each for each in self._streams[bed] if (each.vital, each.rank) == (ring.vital, ring.rank))
            past = array("d")
            past.frombytes(ring.bins)
            if ring.values:
                past[number % SLOTS] = median(ring.values)
            if stream.bins is None or number > stream.number:
                stream.turn(number)
            bins, runs = stream.bins, stream.number
            assert bins is not None  # turn made it
            for each in range(runs - SLOTS + 1, number + 1):
                value = past[each % SLOTS]
                if isnan(value):
                    continue
                if each == runs:
                    stream.values = stream.values or [value]
                elif isnan(bins[each % SLOTS]):
                    bins[each % SLOTS] = value


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    if not values:
        return _NONE
    ranked = sorted(values)
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
