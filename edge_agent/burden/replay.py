"""Replays recorded moments through the watch and alarm rooms, under two presets at once.

Theory of operation: every bed has a clock of its own and two arms, before and after, each a real `Watch` and a real
`Alarms` with one bed. Time only moves to the next recorded moment; what falls due in between (condition delays, age of
data) is done at its own time. An *alarm* is counted from the moment its condition is present (the alarm room's start
or return) until it is absent (end or latch): nobody acknowledges in a replay, so the time that a latched alarm stays is
not counted. A bed ends with its last moment; what is present then ends there and is marked. Held in memory are the
alarms and, for each bed, what the rooms hold: never the observations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edge_agent import config, terms
from edge_agent.alarms import Alarms
from edge_agent.burden.recorded import NS, DataError, Heard, moment_text
from edge_agent.presets import LIMIT_VERBS, RANK, Condition, Preset
from edge_agent.records import AlarmEvent, Change, DeviceAlarm, DeviceStatus, Observation, Signal
from edge_agent.watch import Watch

OBSERVED_GAP_NS = 300 * NS  # between two moments of a bed counts as observed up to this: a cuff measures every 5 min
_BEGINS = frozenset({"start", "return", "restore"})
_ENDS = frozenset({"end", "latch", "reset"})


@dataclass(slots=True)
class Episode:
    """One alarm: from when its condition was present to when it was absent, in ns of the bed's time."""

    bed: str
    condition: str
    row: str
    kind: str
    priority: str
    vital: str
    text: str
    start_ns: int
    end_ns: int
    worst: float | None = None  # the value furthest beyond the limit, from the first beyond it, in the vital's unit
    cut: bool = False  # still present when the recording ended

    @property
    def seconds(self) -> float:
        """How long it lasted, in s."""
        return (self.end_ns - self.start_ns) / NS


class _Worst:
    """The furthest value beyond one limit since values went beyond it."""

    __slots__ = ("episode", "high", "low", "row", "value")

    def __init__(self, row: Condition) -> None:
        self.row = row.id
        self.low = -math.inf if row.low is None else row.low
        self.high = math.inf if row.high is None else row.high
        self.value: float | None = None
        self.episode: Episode | None = None

    def see(self, value: float) -> bool:
        """Take a value; whether this limit needs to see the next one too."""
        beyond = max(self.low - value, value - self.high)
        if beyond > 0:
            known = self.value
            if known is None or beyond > max(self.low - known, known - self.high):
                self.value = value
                if self.episode is not None:
                    self.episode.worst = value
        elif self.episode is None:
            self.value = None
        return self.value is not None


class _Band:
    """The limits of one vital; a value inside all of them is passed over while none is exceeded."""

    __slots__ = ("awake", "high", "limits", "low")

    def __init__(self, limits: list[_Worst]) -> None:
        self.limits = limits
        self.low = max((limit.low for limit in limits), default=-math.inf)
        self.high = min((limit.high for limit in limits), default=math.inf)
        self.awake = False

    def see(self, value: float) -> None:
        """Take a value."""
        awake = False
        for limit in self.limits:
            awake |= limit.see(value)
        self.awake = awake


def _silent(_signal: Signal) -> None:
    """There is nobody to alert."""


class Arm:
    """One bed under one preset; `episodes` grows with every alarm that ends."""

    def __init__(self, bed: str, preset: Preset, episodes: list[Episode]) -> None:
        self.bed, self.preset, self.episodes = bed, preset, episodes
        numbers = itertools.count(1)
        self.watch = Watch({bed: preset})
        self.alarms = Alarms(
            {bed: preset}, config.Alarms(), new_id=lambda: str(next(numbers)), on_event=self._event, on_signal=_silent
        )
        self._open: dict[str, Episode] = {}
        rows = [row for row in preset.conditions if row.verb in LIMIT_VERBS]
        self._worst = {row.id: _Worst(row) for row in rows}
        bands = {
            vital: _Band([self._worst[row.id] for row in rows if row.vital == vital])
            for vital in {row.vital for row in rows}
        }
        self._bands = {term.name: bands.get(term.vital) for term in terms.TERMS}

    def observe(self, source: str, obs: Observation) -> None:
        """Take one value."""
        band, value = self._bands.get(obs.term), obs.value
        if band is not None and value is not None and (band.awake or not band.low <= value <= band.high):
            band.see(value)
        for change in self.watch.observe(self.bed, source, obs):
            self.alarms.apply(change)

    def apply(self, changes: Iterable[Change]) -> None:
        """Hand changes of conditions to the alarm room."""
        for change in changes:
            self.alarms.apply(change)

    def until(self, at_ns: int) -> None:
        """Do what falls due by `at_ns`, each at its own time."""
        watch = self.watch
        due = watch.next_deadline()
        while due is not None and due <= at_ns:
            self.apply(watch.tick(due))
            later = watch.next_deadline()
            if later is not None and later <= due:  # nothing may hold the time
                self.apply(watch.tick(due + 1))
                later = watch.next_deadline()
            due = later
        if self.alarms.next_deadline() is not None:
            self.alarms.tick(at_ns)

    def new_patient(self, at_ns: int) -> None:
        """Begin with another patient."""
        self.apply(self.watch.new_patient(self.bed, at_ns))
        self.alarms.new_patient(self.bed, at_ns)

    def close(self, at_ns: int) -> None:
        """The recording ends: what is present is counted to here."""
        for condition in list(self._open):
            self._end(condition, at_ns, cut=True)

    def _event(self, _bed: str, event: AlarmEvent) -> None:
        if event.event in _BEGINS:
            row = event.condition.partition(":")[0]
            episode = self._open[event.condition] = Episode(
                self.bed, event.condition, row, event.kind, event.priority, event.vital, event.text,
                event.at_ns, event.at_ns, event.value,
            )  # fmt: skip
            worst = self._worst.get(row)
            if worst is not None:
                worst.episode = episode
                episode.worst = worst.value if worst.value is not None else event.value
        elif event.event in _ENDS:
            self._end(event.condition, event.at_ns)
        elif event.condition in self._open and RANK[event.priority] > RANK[self._open[event.condition].priority]:
            self._open[event.condition].priority = event.priority

    def _end(self, condition: str, at_ns: int, *, cut: bool = False) -> None:
        episode = self._open.pop(condition, None)
        if episode is None:
            return  # a latched alarm whose condition had ended before
        episode.end_ns, episode.cut = at_ns, cut
        self.episodes.append(episode)
        worst = self._worst.get(episode.row)
        if worst is not None:
            worst.episode = worst.value = None


class _Bed:
    __slots__ = ("arms", "heard", "last_ns", "observed_ns", "patient", "sources")

    def __init__(self, arms: tuple[Arm, ...], at_ns: int) -> None:
        self.arms, self.last_ns, self.observed_ns = arms, at_ns, 0
        self.patient, self.heard = "", False
        self.sources: set[str] = set()


@dataclass(slots=True)
class Replayed:
    """What a replay gives: alarms of both arms, and how long and how much was observed."""

    before: list[Episode] = field(default_factory=list)
    after: list[Episode] = field(default_factory=list)
    observed_s: dict[str, float] = field(default_factory=dict)  # by bed
    observations: int = 0

    @property
    def bed_days(self) -> float:
        """Observed time of all beds together, in days."""
        return sum(self.observed_s.values()) / 86400


def replay(moments: Iterable[Heard], choose: Callable[[str], tuple[Preset, Preset] | None]) -> Replayed:
    """Alarms under the presets that `choose` gives for a bed, before and after; None leaves the bed out.

    Raises: DataError when the time of a bed runs backwards.
    """
    out = Replayed()
    beds: dict[str, _Bed | None] = {}
    for heard in moments:
        name, at_ns, records = heard.bed, heard.at_ns, heard.records
        if not records:
            _restart(beds, out)
            continue
        if not name:
            _link_states(beds, heard)
            continue
        if name not in beds:
            beds[name] = _new_bed(name, at_ns, choose(name), out)
        bed = beds[name]
        if bed is not None:
            out.observations += _hear(bed, heard)
    _restart(beds, out)
    return out


def _new_bed(name: str, at_ns: int, pair: tuple[Preset, Preset] | None, out: Replayed) -> _Bed | None:
    if pair is None:
        return None
    return _Bed((Arm(name, pair[0], out.before), Arm(name, pair[1], out.after)), at_ns)


def _hear(bed: _Bed, heard: Heard) -> int:
    at_ns = heard.at_ns
    if at_ns < bed.last_ns:
        if bed.last_ns - at_ns > NS:
            raise DataError(
                f"bed {heard.bed}: time runs backwards, from {moment_text(bed.last_ns)} to {moment_text(at_ns)}; "
                "give every recording a bed of its own, in the order of time"
            )
        at_ns = bed.last_ns
    bed.observed_ns += min(at_ns - bed.last_ns, OBSERVED_GAP_NS)
    bed.last_ns = at_ns
    bed.sources.add(heard.source)
    arms = bed.arms
    for arm in arms:
        arm.until(at_ns)
    if heard.patient and heard.patient != bed.patient:
        if bed.patient:
            for arm in arms:
                arm.new_patient(at_ns)
        bed.patient = heard.patient
    count = 0
    for record in heard.records:
        if isinstance(record, Observation):
            count += 1
            for arm in arms:
                arm.observe(heard.source, record)
        elif isinstance(record, DeviceAlarm):
            for arm in arms:
                arm.apply(arm.watch.device_alarm(heard.bed, heard.source, record))
        else:
            _link_state(arms, heard.bed, heard.source, record)
    return count


def _link_states(beds: dict[str, _Bed | None], heard: Heard) -> None:
    """The state of a source that serves several beds reaches those that have heard from it."""
    for name, bed in beds.items():
        if bed is not None and heard.source in bed.sources:
            _hear(bed, heard._replace(bed=name, at_ns=max(heard.at_ns, bed.last_ns)))


def _link_state(arms: tuple[Arm, ...], bed: str, source: str, record: DeviceStatus) -> None:
    if record.state in ("connected", "silent", "lost"):
        for arm in arms:
            arm.apply(arm.watch.source_state(source, [bed], record.state, record.at_ns, record.detail))


def _restart(beds: dict[str, _Bed | None], out: Replayed) -> None:
    """The gateway, or the recording, ended: every bed begins anew with what comes next."""
    for name, bed in beds.items():
        if bed is not None:
            out.observed_s[name] = out.observed_s.get(name, 0.0) + bed.observed_ns / NS
            for arm in bed.arms:
                arm.close(bed.last_ns)
    for name in [name for name, bed in beds.items() if bed is not None]:
        del beds[name]
