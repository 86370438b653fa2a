"""The vitals of one bed: which values feed them, which limits they hold up, and when they are too old.

Theory of operation: a *slot* is one stream of values (source, term, channel) with its newest valid value. All slots
of a vital feed the same limits: a limit is out while any fresh slot violates it. A slot is out below the limit and,
once the condition is present, in again only beyond the deadband. A slot without a valid value for the vital's age is
not fresh; when none is fresh, the vital is lost: a technical condition is raised, then its limits end. Where no
technical condition may speak for it (never armed), the limits stay as they are: no data never ends an alarm silently.

A value that no limit can react to lies inside the slot's band; `Watch.observe` returns on it without coming here.

What stood before a restart is held up by a *held* slot, fresh for the vital's age and without a stream of its own: the
first valid value of its source takes its place, and so its deadband. A changed preset is followed in place: trackers
of rows that stay keep their state, and the newest fresh values are judged against the new figures at once.
"""

from __future__ import annotations

import math

from edge_agent.presets import Condition, Preset
from edge_agent.records import Observation
from edge_agent.terms import Term
from edge_agent.watch import plausible
from edge_agent.watch.tracker import NS, Changes, Lapse, Queue, Tracker

TAKEN_OUT = "limit taken out"  # why a condition ended whose row is gone
UNWATCHED_AGE_S = 300.0  # age at which an implausible value of a vital without limits is forgotten


class Slot:
    """One stream of values of one vital."""

    __slots__ = (
        "at_ns", "dead", "due_ns", "fresh", "held", "high", "low", "odd_ns", "pair", "quiet", "source", "term", "value",
        "vital",
    )  # fmt: skip

    def __init__(self, vital: Vital, source: str, term: Term | None, *, held: bool = False) -> None:
        self.vital, self.source, self.term = vital, source, term
        self.held = held  # stands for the values before a restart
        self.due_ns: int | None = None  # the entry in the queue that counts
        self.follow()
        self.value: float | None = None
        self.at_ns = 0  # of the newest valid value
        self.odd_ns: int | None = None  # of the newest implausible one, while nothing plausible followed
        self.fresh = False
        self.quiet = False  # a value inside low..high changes nothing
        self.dead = False
        self.pair: Pair | None = None

    def follow(self) -> None:
        """Take the band of values that change nothing from the limits of the vital and the bounds of the term."""
        self.low, self.high = self.vital.low, self.vital.high
        self.quiet = False
        if self.term is not None:
            least, greatest = plausible.bounds(self.term)
            if self.term.vital == "spo2":
                least = math.nextafter(plausible.FRACTION, math.inf)
            self.low, self.high = max(self.low, least), min(self.high, greatest)

    def wake(self, at_ns: int) -> None:
        """Be looked at when the newest value becomes too old."""
        self.due_ns = at_ns
        self.vital.queue.push(at_ns, self)

    def waits(self, deadline: int) -> bool:
        """Whether a queue entry for that deadline still means something."""
        return not self.dead and deadline == self.due_ns

    def due(self, deadline: int, at_ns: int, changes: Changes) -> None:
        """Look whether the newest value has become too old."""
        if self.dead or deadline != self.due_ns:
            return
        self.due_ns = None
        ends = self.at_ns + self.vital.age_ns
        if self.fresh and ends > at_ns:
            self.wake(ends)
        elif self.fresh:
            self.fresh = self.quiet = False  # its next value must come by here, to be fresh again
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
        "age_ns", "armed", "bed", "covered", "held", "high", "implausible", "limits", "low", "name", "queue",
        "since_ns", "slots", "stale",
    )  # fmt: skip

    def __init__(self, queue: Queue, bed: str, name: str, preset: Preset, covered: Covered) -> None:
        self.queue, self.bed, self.name, self.covered = queue, bed, name, covered
        limits, silent, odd = self._rows(preset)
        self.limits = tuple(Tracker(queue, bed, row.id, row) for row in limits)
        self.stale = Tracker(queue, bed, silent.id, silent) if silent else None
        self.implausible = Tracker(queue, bed, f"{odd.id if odd else 'implausible'}:{name}", odd)
        self.slots: list[Slot] = []
        self.held: list[Slot] = []  # those of `slots` that stand for the values before a restart
        self.since_ns: int | None = None  # first valid value of this patient
        self.armed = False
        self._measure(limits, silent)

    def _rows(self, preset: Preset) -> tuple[list[Condition], Condition | None, Condition | None]:
        rows = [row for row in preset.conditions if row.vital == self.name]
        silent = next((row for row in rows if row.verb == "silent"), None)
        odd = next((row for row in preset.conditions if row.verb == "implausible"), None)
        return [row for row in rows if row.verb != "silent"], silent, odd

    def _measure(self, limits: list[Condition], silent: Condition | None) -> None:
        self.age_ns = round((silent.silence_s if silent and silent.silence_s else UNWATCHED_AGE_S) * NS)
        self.low = max((row.low for row in limits if row.low is not None), default=-math.inf)
        self.high = min((row.high for row in limits if row.high is not None), default=math.inf)

    def trackers(self) -> tuple[Tracker, ...]:
        """Every condition of this vital."""
        return (*self.limits, *((self.stale,) if self.stale else ()), self.implausible)

    def drop(self, preset: Preset, at_ns: int, changes: Changes) -> None:
        """End the limits whose rows a changed preset does not have."""
        stays = {row.id for row in self._rows(preset)[0]}
        for limit in self.limits:
            if limit.condition not in stays:
                limit.withdraw(at_ns, changes, TAKEN_OUT)

    def follow(self, preset: Preset, at_ns: int, changes: Changes) -> None:
        """Take over the rows of a changed preset and judge the newest values by them at once."""
        limits, silent, odd = self._rows(preset)
        old = {limit.condition: limit for limit in self.limits}
        now = [(row, old.get(row.id) or Tracker(self.queue, self.bed, row.id, row)) for row in limits]
        moved = {row.id for row, limit in now if _figures(limit.row) != _figures(row)}
        for row, limit in now:
            limit.armed = limit.armed or self._would_be_armed(row, at_ns)
            limit.follow(row)
        self.limits = tuple(limit for _, limit in now)
        self.implausible.follow(odd)
        self._follow_silence(silent, at_ns, changes)
        self._measure(limits, silent)
        self.armed = False  # looked at again with the next value
        for slot in self.slots:
            slot.follow()
            if slot.fresh and slot.due_ns is not None and slot.at_ns + self.age_ns < slot.due_ns:
                slot.wake(max(at_ns, slot.at_ns + self.age_ns))
            if slot.fresh and slot.value is not None:
                for limit in self.limits:
                    if limit.condition in moved:
                        # a value that the new limit does not exclude is not held by its deadband
                        limit.outs.discard(slot)
                        limit.leaving.discard(slot)
                self._judge(slot, slot.value, at_ns, "", changes)
        for tracker in self.trackers():
            tracker.settle(at_ns, changes)

    def _follow_silence(self, silent: Condition | None, at_ns: int, changes: Changes) -> None:
        old = self.stale
        if old is not None and silent is not None and old.condition == silent.id:
            old.follow(silent)
            return
        self.stale = Tracker(self.queue, self.bed, silent.id, silent) if silent else None
        if self.stale is not None and silent is not None:
            self.stale.armed = self._would_be_armed(silent, at_ns) if old is None else old.armed
            if old is not None and old.present:
                self.stale.source = old.source
                self.stale.drive(True, at_ns, changes)
        if old is not None:
            old.withdraw(at_ns, changes, TAKEN_OUT)

    def _would_be_armed(self, row: Condition, at_ns: int) -> bool:
        """Whether the values of this patient so far, as far as they are known, would have armed a new row."""
        if self.since_ns is None:
            return False
        if row.arming != "at_least":
            return _arms(row, 0.0, at_ns - self.since_ns)
        seen = (slot.value for slot in self.slots if slot.value is not None)
        passed = (
            tracker.row.arming_amount
            for tracker in self.trackers()
            if tracker.armed and tracker.row is not None and tracker.row.arming == "at_least"
        )
        return max((*seen, *passed), default=-math.inf) >= row.arming_amount

    def hold(self, tracker: Tracker, source: str, value: float | None, at_ns: int) -> None:
        """Let a limit that was present before a restart be present, by the value that it had then."""
        tracker.hold(at_ns)
        tracker.value, tracker.source = value, source
        slot = self._held_slot(source, at_ns)
        slot.value = value
        tracker.outs.add(slot)
        self.since_ns = at_ns if self.since_ns is None else self.since_ns
        for each in self.trackers()[:-1]:
            each.armed = True
        self.armed = True

    def hold_odd(self, source: str, at_ns: int, until_ns: int, detail: str) -> None:
        """Let the implausible value before a restart stand until `until_ns`, or until the source sends another."""
        tracker = self.implausible
        tracker.hold(at_ns)
        tracker.source = source
        slot = self._held_slot(source, at_ns)
        slot.odd_ns = at_ns
        tracker.outs.add(slot)
        if self.stale is not None:
            self.stale.armed = True

        def judge(now_ns: int, changes: Changes) -> None:
            if slot in tracker.outs:
                tracker.outs.discard(slot)
                slot.odd_ns = None
                if not tracker.outs:
                    tracker.withdraw(now_ns, changes, detail)

        Lapse(self.queue, until_ns, judge)

    def _held_slot(self, source: str, at_ns: int) -> Slot:
        for each in self.slots:
            each.quiet = False  # its next value must come by here, to take the place of what is held
        slot = next((slot for slot in self.held if slot.source == source), None)
        if slot is None:
            slot = Slot(self, source, None, held=True)
            slot.at_ns, slot.fresh = at_ns, True
            slot.wake(at_ns + self.age_ns)
            self.slots.append(slot)
            self.held.append(slot)
        return slot

    def _release(self, real: Slot) -> None:
        """Let a stream take the place of what was held for its source."""
        for slot in [slot for slot in self.held if slot.source in ("", real.source)]:
            slot.dead = True
            self.held.remove(slot)
            self.slots.remove(slot)
            for limit in self.limits:
                if slot in limit.outs:
                    limit.outs.discard(slot)
                    limit.outs.add(real)
            self.implausible.outs.discard(slot)

    def value(self, slot: Slot, obs: Observation, changes: Changes, detail: str = "") -> None:
        """Feed a value that is not None into the limits, unless it is implausible; `detail` is what an alarm says."""
        value, at_ns = obs.value, obs.at_ns
        assert value is not None
        why = plausible.reason(slot.term, value) if slot.term is not None else ""
        if why:
            self.odd(slot, at_ns, why, changes)
            return
        if self.held:
            self._release(slot)
        if slot.odd_ns is not None:
            slot.odd_ns = None
            self.implausible.outs.discard(slot)
        if self.implausible.out:
            self.implausible.drive(bool(self.implausible.outs), at_ns, changes)
        first, slot.value, slot.at_ns = slot.value is None, value, at_ns
        if not slot.fresh:
            slot.fresh = True
            slot.wake(at_ns + self.age_ns)
            self._drop_old()
        elif first:
            self._drop_old()
        if self.since_ns is None:
            self.since_ns = at_ns
        if not self.armed:
            self._arm(value, at_ns)
        if obs.validity == "questionable":
            detail = "questionable value"
        calm = self._judge(slot, value, at_ns, detail, changes)
        if self.stale is not None and self.stale.out:
            self.stale.drive(False, at_ns, changes)
        slot.quiet = calm and self.armed and slot.pair is None

    def odd(self, slot: Slot, at_ns: int, detail: str, changes: Changes) -> None:
        """Note an implausible value: it raises a technical condition and feeds no limit."""
        if slot.value is None and not slot.fresh:
            slot.fresh = True  # from here its silence is noticed, though no value of it was usable
            slot.at_ns = at_ns
            slot.wake(at_ns + self.age_ns)
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
        if not any(slot.fresh and (slot.value is not None or slot.held) for slot in self.slots):
            self.lost(at_ns, changes)  # at once, or when the last stream has aged that gave only implausible values
            return
        self._drop_old()
        for limit in self.limits:
            limit.drive(bool(limit.outs), at_ns, changes)
            if limit.severity_ns and limit.out:
                limit.weigh(_deficit(limit), at_ns, changes)
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
        self.held.clear()
        self.since_ns = None
        self.armed = False

    def _drop_old(self) -> None:
        """Let no slot without fresh data hold a limit up, where another has some."""
        for limit in self.limits:
            limit.outs = {slot for slot in limit.outs if isinstance(slot, Slot) and slot.fresh}
        for slot in [slot for slot in self.held if not slot.fresh]:
            self.held.remove(slot)
            self.slots.remove(slot)

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
            limit.drive(limit.out, at_ns, changes)  # a delay that has run out by now takes effect first
            holds = limit.present and (slot in limit.outs or slot in limit.leaving)
            margin = row.deadband if holds else 0.0
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
                if holds:  # back within the deadband before the off delay is over, and the condition goes on
                    limit.leaving.add(slot)
            limit.drive(bool(limit.outs), at_ns, changes)
            calm = calm and not (limit.present and slot in limit.leaving)
            if limit.severity_ns and limit.out:
                limit.weigh(_deficit(limit), at_ns, changes)
        return calm


def _deficit(limit: Tracker) -> float:
    """How far the worst of the values that hold a limit up lies beyond it."""
    row = limit.row
    worst = 0.0
    for slot in limit.outs:
        value = slot.value if isinstance(slot, Slot) else None
        if row is None or value is None:
            continue
        if row.low is not None:
            worst = max(worst, row.low - value)
        if row.high is not None:
            worst = max(worst, value - row.high)
    return worst


def _figures(row: Condition | None) -> tuple[object, ...]:
    return () if row is None else (row.low, row.high, row.deadband)


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
