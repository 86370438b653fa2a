"""The watch: what the records of a bed mean as alarm conditions.

Theory of operation: every method is given the monotonic time and returns the conditions that became present or absent
by it, in order; nothing here waits, logs or reads a clock. A technical condition that takes the place of another
condition is raised before the other ends, so that there is no moment without an alarm. A source that is silent or
lost speaks for all of its vitals; its condition ends shortly after its next observation, or, when it is connected
again and sends none, after a grace time. What of its vitals has no data by then has a condition of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge_agent import terms
from edge_agent.presets import RANK, Condition, Preset
from edge_agent.records import Change, DeviceAlarm, Observation, Score
from edge_agent.watch.plausible import PAIR_OF
from edge_agent.watch.tracker import NS, Changes, Queue, Tracker
from edge_agent.watch.vital import Covered, Pair, Slot, Vital

RETURN_GRACE_S = 10.0  # time a source that is connected again has for its first observation
SETTLE_S = 1.0  # time from its first observation in which its other vitals may follow
SLOTS_PER_BED = 256  # streams of a bed that are told apart; what comes beyond shares one per term
DEVICE_ALARMS_PER_BED = 1000  # alarms of a device that are told apart; what comes beyond shares one
_ENDS = frozenset({"end"})
_IDLE = frozenset({"off", "inactive"})
_SILENT, _LOST = 0, 1
_SETTLE_NS = round(SETTLE_S * NS)

_NOTHING: tuple[Change, ...] = ()


class _Bed:
    __slots__ = ("covered", "device", "name", "pairs", "preset", "reported", "slots", "vitals")

    def __init__(self, queue: Queue, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset
        self.covered = Covered()
        self.vitals: dict[str, Vital] = {
            vital: Vital(queue, name, vital, preset, self.covered)
            for vital in dict.fromkeys(row.vital for row in preset.conditions if row.vital)
        }
        self.slots: dict[tuple[str, str, str], Slot] = {}
        self.pairs: dict[tuple[str, str, str], Pair] = {}
        self.device: dict[str, Tracker] = {}  # by condition id
        self.reported: dict[str, Tracker] = {}


class Watch:
    """Conditions of all beds; `beds` maps each bed to its preset, "" being the gateway itself."""

    def __init__(self, beds: Mapping[str, Preset]) -> None:
        self._queue = Queue()
        self._beds = {name: _Bed(self._queue, name, preset) for name, preset in beds.items()}

    def observe(self, bed: str, source: str, obs: Observation) -> Sequence[Change]:
        """Conditions that a value makes present or absent; a value without one neither raises nor ends anything."""
        state = self._beds.get(bed)
        if state is None:
            return _NOTHING
        slot = state.slots.get((source, obs.term, obs.channel))
        if slot is not None and slot.quiet:
            value = obs.value
            if value is not None and slot.low <= value <= slot.high:
                slot.value = value
                slot.at_ns = obs.at_ns
                return _NOTHING
        return self._observe(state, source, obs, slot)

    def score(self, bed: str, source: str, score: Score) -> Sequence[Change]:
        """Conditions that a score makes present or absent; one that abstained raises and ends nothing."""
        state = self._beds.get(bed)
        if state is None or score.name not in state.vitals or score.value is None or not math.isfinite(score.value):
            return _NOTHING
        changes: Changes = []
        slot = state.slots.get((source, score.name, ""))
        if slot is None:
            slot = self._new_slot(state, (source, score.name, ""), None, score.name)
        slot.vital.value(slot, Observation(score.name, score.value, "valid", score.at_ns), changes)
        return changes

    def device_alarm(self, bed: str, source: str, alarm: DeviceAlarm) -> Sequence[Change]:
        """Conditions that a device's own alarm makes present or absent, under the device's priority and text."""
        state = self._beds.get(bed)
        if state is None:
            return _NOTHING
        changes: Changes = []
        if source in state.covered.trackers:
            self._speaks(state, source, alarm.at_ns, changes)
        present = alarm.phase not in _ENDS and alarm.state not in _IDLE and alarm.priority != "none"
        row = _device_row(state.preset, alarm) if present else None
        label = alarm.alert_id or "/".join(part for part in (alarm.event, alarm.source) if part) or alarm.text
        key = f"{source}\x00{label}"
        tracker = state.device.get(key)
        if alarm.phase == "tpoint" or (tracker is None and row is None):
            return changes
        if not present or row is None:
            if tracker is not None:
                self._end_device_alarm(state, key, tracker, alarm.at_ns, changes)
            return changes
        if tracker is None:
            if len(state.device) >= DEVICE_ALARMS_PER_BED:
                key, label = "", "more"
            tracker = state.device.get(key) or self._new_device_alarm(state, key, row, label)
        if key == "" and tracker.priority is not None and RANK[tracker.priority] > RANK[alarm.priority]:
            return changes
        was, same = tracker.present, (tracker.priority, tracker.text) == (alarm.priority, alarm.text)
        tracker.source, tracker.detail = source, alarm.event
        tracker.priority, tracker.text = alarm.priority, alarm.text
        tracker.drive(True, alarm.at_ns, changes)
        if was and tracker.present and not same:
            changes.append(tracker.announce(alarm.at_ns))
        return changes

    def source_state(
        self, source: str, beds: Sequence[str], state: str, at_ns: int, detail: str = ""
    ) -> Sequence[Change]:
        """Conditions that the state of a source brings to its beds: connected, silent or lost."""
        changes: Changes = []
        for name in beds:
            bed = self._beds.get(name)
            if bed is None:
                continue
            pair = bed.covered.trackers.get(source)
            if state == "connected":
                if pair is not None:
                    for tracker in pair:
                        tracker.drive(False, at_ns, changes)
                continue
            if pair is None:
                pair = bed.covered.trackers[source] = (
                    self._source_tracker(bed, "source_silent", source),
                    self._source_tracker(bed, "source_lost", source),
                )
            mine, other = (pair[_LOST], pair[_SILENT]) if state == "lost" else (pair[_SILENT], pair[_LOST])
            for slot in bed.slots.values():
                if slot.source == source:
                    slot.quiet = False  # its next value must come by here, to end this condition
            mine.detail = detail
            mine.drive(True, at_ns, changes)
            if mine.present:
                other.withdraw(at_ns, changes, f"now {state}")
            else:
                other.drive(False, at_ns, changes)
        return changes

    def technical(self, bed: str, condition: str, present: bool, at_ns: int, detail: str = "") -> Sequence[Change]:
        """Conditions that another part of the agent reports; what follows a colon in the id tells like ones apart."""
        state = self._beds.get(bed)
        if state is None:
            return (Change(bed, condition, present, at_ns, None, "", detail),)
        changes: Changes = []
        tracker = state.reported.get(condition)
        if tracker is None:
            if not present:
                return _NOTHING
            tracker = Tracker(self._queue, bed, condition, state.preset.row(condition))
            state.reported[condition] = tracker
        tracker.detail = detail
        tracker.drive(present, at_ns, changes)
        return changes

    def tick(self, at_ns: int) -> Sequence[Change]:
        """Conditions that the passing of time makes present or absent; call it several times a second."""
        heap = self._queue.heap
        if not heap or heap[0][0] > at_ns:
            return _NOTHING
        changes: Changes = []
        self._queue.run(at_ns, changes)
        return changes

    def next_deadline(self) -> int | None:
        """The time of the next `tick` that can matter, in ns of CLOCK_MONOTONIC; None when none can."""
        return self._queue.earliest()

    def new_patient(self, bed: str, at_ns: int) -> Sequence[Change]:
        """Ends of all conditions of the previous patient; limits arm anew. Faults of sources and gateway stay."""
        state = self._beds.get(bed)
        if state is None:
            return _NOTHING
        changes: Changes = []
        for vital in state.vitals.values():
            vital.reset(at_ns, changes, "new patient")
        for tracker in state.device.values():
            tracker.withdraw(at_ns, changes, "new patient")
        state.device.clear()
        state.slots.clear()
        state.pairs.clear()
        return changes

    def _observe(self, bed: _Bed, source: str, obs: Observation, slot: Slot | None) -> Sequence[Change]:
        changes: Changes = []
        if source in bed.covered.trackers:
            self._speaks(bed, source, obs.at_ns, changes)
        value = obs.value
        if value is None or not math.isfinite(value):
            if obs.term in PAIR_OF:
                pair = bed.pairs.get((source, PAIR_OF[obs.term][0], obs.channel))
                if pair is not None:
                    pair.settle(changes)
            return changes
        if slot is None:
            term = terms.BY_NAME.get(obs.term)
            if term is None:
                return changes
            slot = self._new_slot(bed, (source, obs.term, obs.channel), term, term.vital)
        if slot.pair is not None:
            slot.pair.take(slot, obs, changes)
        else:
            slot.vital.value(slot, obs, changes)
        return changes

    def _new_slot(self, bed: _Bed, key: tuple[str, str, str], term: terms.Term | None, name: str) -> Slot:
        if len(bed.slots) >= SLOTS_PER_BED:
            key = ("", key[1], "")
            shared = bed.slots.get(key)
            if shared is not None:
                return shared
        vital = bed.vitals.get(name)
        if vital is None:
            vital = bed.vitals[name] = Vital(self._queue, bed.name, name, bed.preset, bed.covered)
        slot = bed.slots[key] = Slot(vital, key[0], term)
        vital.slots.append(slot)
        if term is not None and term.name in PAIR_OF:
            group = (key[0], PAIR_OF[term.name][0], key[2])
            slot.pair = bed.pairs.get(group)
            if slot.pair is None:
                slot.pair = bed.pairs[group] = Pair(self._queue)
        return slot

    def _speaks(self, bed: _Bed, source: str, at_ns: int, changes: Changes) -> None:
        """End the technical conditions of a source that has just been heard, once its vitals had time to follow."""
        for tracker in bed.covered.trackers[source]:
            tracker.drive_within(False, at_ns, _SETTLE_NS, changes)

    def _source_tracker(self, bed: _Bed, row_id: str, source: str) -> Tracker:
        row = bed.preset.by_id.get(row_id)
        tracker = Tracker(self._queue, bed.name, f"{row_id}:{source}", row, off_s=RETURN_GRACE_S)
        tracker.source = source

        def flipped(tracker: Tracker, at_ns: int, changes: Changes) -> None:
            if tracker.present:
                for key, device in list(bed.device.items()):
                    if device.source == source:
                        self._end_device_alarm(bed, key, device, at_ns, changes)
            for vital in bed.vitals.values():
                vital.lost(at_ns, changes)

        tracker.on_flip = flipped
        return tracker

    def _new_device_alarm(self, bed: _Bed, key: str, row: Condition, label: str) -> Tracker:
        condition = f"{row.id}:{label}"
        taken = any(other.condition == condition for other in bed.device.values()) if label else True
        if taken:  # two devices of one bed may count their alarms alike
            condition = f"{condition}@{key.partition(chr(0))[0]}"
        tracker = bed.device[key] = Tracker(self._queue, bed.name, condition, row)
        return tracker

    def _end_device_alarm(self, bed: _Bed, key: str, tracker: Tracker, at_ns: int, changes: Changes) -> None:
        detail = "no data" if bed.covered.speaks_for(tracker.source) else "ended by the device"
        tracker.withdraw(at_ns, changes, detail)
        del bed.device[key]
        overflow = bed.device.get("")
        if overflow is not None and len(bed.device) == 1:
            overflow.withdraw(at_ns, changes, "ended by the device")
            del bed.device[""]


def _device_row(preset: Preset, alarm: DeviceAlarm) -> Condition | None:
    """The row that takes over a device's alarm: of its kind, and with the highest grade that it reaches."""
    kind = "technical" if alarm.type == "ST" else "physiological"
    best: Condition | None = None
    for row in preset.conditions:
        if (
            row.verb != "device_alarm"
            or row.kind != kind
            or row.grade is None
            or RANK[alarm.priority] < RANK[row.grade]
        ):
            continue
        if best is None or RANK[row.grade] > RANK[best.grade or "none"]:
            best = row
    return best
