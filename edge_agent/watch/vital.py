"""The vitals of one bed: which values feed them, which limits they hold up, and when they are too old.

Theory of operation: a *slot* is one stream of values (source, term, channel) with its newest valid value. All slots
of a vital feed the same limits: a limit is out while any fresh slot violates it. A slot is out below the limit and,
once the condition is present, in again only beyond the deadband. A slot without a valid value for the vital's age is
not fresh; when none is fresh, the vital is lost: a technical condition is raised, then its limits end. Where no
technical condition may speak for it (never armed), the limits stay as they are: no data never ends an alarm silently.

A value that no limit can react to lies inside the slot's band; `Watch.observe` returns on it without coming here.
"""

from __future__ import annotations

import math

from edge_agent.presets import Condition, Preset
from edge_agent.records import Observation
from edge_agent.terms import Term
from edge_agent.watch import plausible
from edge_agent.watch.tracker import NS, Changes, Queue, Tracker

UNWATCHED_AGE_S = 300.0  # age at which an implausible value of a vital without limits is forgotten


class Slot:
    """One stream of values of one vital."""

    __slots__ = (
        "at_ns", "dead", "fresh", "high", "low", "odd_ns", "pair", "quiet", "source", "term", "value", "vital",
    )  # fmt: skip

    def __init__(self, vital: Vital, source: str, term: Term | None) -> None:
        self.vital, self.source, self.term = vital, source, term
        self.low, self.high = vital.low, vital.high
        if term is not None:
            least, greatest = plausible.bounds(term)
            if term.vital == "spo2":
                least = math.nextafter(plausible.FRACTION, math.inf)
            self.low, self.high = max(self.low, least), min(self.high, greatest)
        self.value: float | None = None
        self.at_ns = 0  # of the newest valid value
        self.odd_ns: int | None = None  # of the newest implausible one, while nothing plausible followed
        self.fresh = False
        self.quiet = False  # a value inside low..high changes nothing
        self.dead = False
        self.pair: Pair | None = None

    def waits(self, _deadline: int) -> bool:
        """Whether a queue entry for that deadline still means something."""
        return not self.dead

    def due(self, _deadline: int, at_ns: int, changes: Changes) -> None:
        """Look whether the newest value has become too old."""
        if self.dead:
            return
        ends = self.at_ns + self.vital.age_ns
        if self.fresh and ends > at_ns:
            self.vital.queue.push(ends, self)
        elif self.fresh:
            self.fresh = False
            self.vital.aged(at_ns, changes)


class Pair:
    """Systolic and diastolic of one measurement: the first waits for the other, at most until the next tick."""

    __slots__ = ("held", "queue", "slot")

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.held: Observation | None = None
        self.slot: Slot | None = None  # that `held` belongs to

    def waits(self, _deadline: int) -> bool:
        """Whether a queue entry for that deadline still means something."""
        return self.held is not None

    def due(self, _deadline: int, _at_ns: int, changes: Changes) -> None:
        """Use a value whose partner did not come."""
        self.settle(changes)

    def settle(self, changes: Changes) -> None:
        """Use the value that waits, alone."""
        held, slot = self.held, self.slot
        self.held = self.slot = None
        if held is not None and slot is not None:
            slot.vital.value(slot, held, changes)

    def take(self, slot: Slot, obs: Observation, changes: Changes) -> None:
        """Hold a value, or use it with the one that waits when both are of one measurement."""
        held, other = self.held, self.slot
        if held is None or other is None or other is slot or not _one_measurement(held, obs):
            self.settle(changes)
            self.held, self.slot = obs, slot
            self.queue.push(obs.at_ns, self)
            return
        self.held = self.slot = None
        systolic, diastolic = (held, obs) if held.term == plausible.PAIR_OF[held.term][0] else (obs, held)
        if systolic.value is not None and diastolic.value is not None and diastolic.value >= systolic.value:
            detail = f"{diastolic.term} not below {systolic.term}"
            other.vital.odd(other, held.at_ns, detail, changes)
            slot.vital.odd(slot, obs.at_ns, detail, changes)
            return
        other.vital.value(other, held, changes)
        slot.vital.value(slot, obs, changes)


def _one_measurement(first: Observation, second: Observation) -> bool:
    return first.at_ns == second.at_ns or (first.device_time is not None and first.device_time == second.device_time)


class Vital:
    """One vital of one bed with its limits."""

    __slots__ = (
        "age_ns", "armed", "bed", "covered", "high", "implausible", "limits", "low", "name", "queue", "since_ns",
        "slots", "stale",
    )  # fmt: skip

    def __init__(self, queue: Queue, bed: str, name: str, preset: Preset, covered: Covered) -> None:
        self.queue, self.bed, self.name, self.covered = queue, bed, name, covered
        rows = [row for row in preset.conditions if row.vital == name]
        self.limits = tuple(Tracker(queue, bed, row.id, row) for row in rows if row.verb != "silent")
        silent = next((row for row in rows if row.verb == "silent"), None)
        self.stale = Tracker(queue, bed, silent.id, silent) if silent else None
        age_s = silent.silence_s if silent and silent.silence_s else UNWATCHED_AGE_S
        self.age_ns = round(age_s * NS)
        odd = next((row for row in preset.conditions if row.verb == "implausible"), None)
        self.implausible = Tracker(queue, bed, f"{odd.id if odd else 'implausible'}:{name}", odd)
        self.slots: list[Slot] = []
        self.since_ns: int | None = None  # first valid value of this patient
        self.armed = False
        self.low = max((row.low for row in rows if row.low is not None), default=-math.inf)
        self.high = min((row.high for row in rows if row.high is not None), default=math.inf)

    def trackers(self) -> tuple[Tracker, ...]:
        """Every condition of this vital."""
        return (*self.limits, *((self.stale,) if self.stale else ()), self.implausible)

    def value(self, slot: Slot, obs: Observation, changes: Changes) -> None:
        """Feed a value that is not None into the limits, unless it is implausible."""
        value, at_ns = obs.value, obs.at_ns
        assert value is not None
        why = plausible.reason(slot.term, value) if slot.term is not None else ""
        if why:
            self.odd(slot, at_ns, why, changes)
            return
        if slot.odd_ns is not None:
            slot.odd_ns = None
            self.implausible.outs.discard(slot)
            self.implausible.drive(bool(self.implausible.outs), at_ns, changes)
        slot.value, slot.at_ns = value, at_ns
        if not slot.fresh:
            slot.fresh = True
            self.queue.push(at_ns + self.age_ns, slot)
            self._drop_old()
        if self.since_ns is None:
            self.since_ns = at_ns
        if not self.armed:
            self._arm(value, at_ns)
        detail = "questionable value" if obs.validity == "questionable" else ""
        calm = self._judge(slot, value, at_ns, detail, changes)
        if self.stale is not None and self.stale.out:
            self.stale.drive(False, at_ns, changes)
        slot.quiet = calm and self.armed and slot.pair is None

    def odd(self, slot: Slot, at_ns: int, detail: str, changes: Changes) -> None:
        """Note an implausible value: it raises a technical condition and feeds no limit."""
        if slot.value is None and not slot.fresh:
            slot.fresh = True  # from here its silence is noticed, though no value of it was usable
            slot.at_ns = at_ns
            self.queue.push(at_ns + self.age_ns, slot)
            if self.stale is not None:
                self.stale.armed = True
        slot.odd_ns = at_ns
        slot.quiet = False
        tracker = self.implausible
        tracker.outs.add(slot)
        tracker.source, tracker.detail = slot.source, detail
        tracker.drive(True, at_ns, changes)

    def aged(self, at_ns: int, changes: Changes) -> None:
        """Draw the consequences of a slot that is no longer fresh."""
        if not any(slot.fresh for slot in self.slots):
            self.lost(at_ns, changes)
            return
        self._drop_old()
        for limit in self.limits:
            limit.drive(bool(limit.outs), at_ns, changes)
        self._forget_odd(at_ns, changes)

    def lost(self, at_ns: int, changes: Changes) -> None:
        """Raise the technical condition of a vital without fresh data, then end its limits; nothing when it has data.

        A source that is itself silent or lost already speaks for all its vitals.
        """
        if not self.slots or any(slot.fresh for slot in self.slots):
            return
        for slot in self.slots:
            slot.quiet = False
        silent = all(self.covered.speaks_for(slot.source) for slot in self.slots)
        stale = self.stale
        if not silent and stale is not None and stale.armed:
            stale.source = self.slots[-1].source
            stale.drive(True, at_ns, changes)
        if silent or (stale is not None and stale.present):
            for limit in self.limits:
                limit.withdraw(at_ns, changes, "no data")
            self._forget_odd(at_ns, changes)

    def reset(self, at_ns: int, changes: Changes, detail: str) -> None:
        """Begin anew for another patient."""
        for tracker in self.trackers():
            tracker.withdraw(at_ns, changes, detail)
            tracker.armed = False
        for slot in self.slots:
            slot.dead = True
            if slot.pair is not None:
                slot.pair.held = slot.pair.slot = None
        self.slots.clear()
        self.since_ns = None
        self.armed = False

    def _drop_old(self) -> None:
        """Let no slot without fresh data hold a limit up, where another has some."""
        for limit in self.limits:
            limit.outs = {slot for slot in limit.outs if isinstance(slot, Slot) and slot.fresh}

    def _forget_odd(self, at_ns: int, changes: Changes) -> None:
        for slot in self.slots:
            if slot.odd_ns is not None and at_ns - slot.odd_ns >= self.age_ns:
                slot.odd_ns = None
                self.implausible.outs.discard(slot)
        self.implausible.drive(bool(self.implausible.outs), at_ns, changes)

    def _arm(self, value: float, at_ns: int) -> None:
        trackers = (*self.limits, self.stale) if self.stale is not None else self.limits
        for tracker in trackers:
            if not tracker.armed and tracker.row is not None:
                tracker.armed = _arms(tracker.row, value, 0 if self.since_ns is None else at_ns - self.since_ns)
        self.armed = all(tracker.armed for tracker in trackers)

    def _judge(self, slot: Slot, value: float, at_ns: int, detail: str, changes: Changes) -> bool:
        """Drive every armed limit with a value; whether the slot violates none of them."""
        calm = True
        for limit in self.limits:
            row = limit.row
            if not limit.armed or row is None:
                continue
            margin = row.deadband if limit.present and slot in limit.outs else 0.0
            if (row.low is not None and value < row.low + margin) or (
                row.high is not None and value > row.high - margin
            ):
                calm = False
                limit.outs.add(slot)
                limit.value, limit.source, limit.detail = value, slot.source, detail
            else:
                limit.outs.discard(slot)
                if not limit.outs:
                    limit.detail = ""
            limit.drive(bool(limit.outs), at_ns, changes)
        return calm


def _arms(row: Condition, value: float, measured_ns: int) -> bool:
    if row.arming == "at_least":
        return value >= row.arming_amount
    if row.arming == "measured":
        return measured_ns >= row.arming_amount * NS
    return True


class Covered:
    """Which sources of a bed are themselves under a technical condition; filled by the room."""

    __slots__ = ("trackers",)

    def __init__(self) -> None:
        self.trackers: dict[str, tuple[Tracker, Tracker]] = {}  # by source: silent, lost

    def speaks_for(self, source: str) -> bool:
        """Whether a technical condition of that source is present."""
        pair = self.trackers.get(source)
        return pair is not None and (pair[0].present or pair[1].present)
