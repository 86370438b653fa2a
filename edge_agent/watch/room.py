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
from edge_agent.presets import Preset
from edge_agent.records import AlarmEvent, Change, DeviceAlarm, Observation, Score
from edge_agent.watch import restart
from edge_agent.watch.devices import DeviceAlarms
from edge_agent.watch.plausible import PAIR_OF
from edge_agent.watch.tracker import NS, Changes, Lapse, Queue, Tracker
from edge_agent.watch.vital import Covered, Pair, Slot, Vital

RETURN_GRACE_S = 10.0  # time a source that is connected again has for its first observation
SETTLE_S = 1.0  # time from its first observation in which its other vitals may follow
SLOTS_PER_BED = 256  # streams of a bed that are told apart; what comes beyond shares one per term
_SILENT, _LOST = 0, 1
_MODEL_FAULT = "model_fault"  # row of a score that is not a number; what follows the colon is the score
_SETTLE_NS = round(SETTLE_S * NS)

_NOTHING: tuple[Change, ...] = ()


class Bed:
    """Everything that is watched on one bed."""

    __slots__ = (
        "awaited", "covered", "device", "heard", "name", "pairs", "preset", "queue", "reported", "scores", "slots",
        "vitals",
    )  # fmt: skip

    def __init__(self, queue: Queue, name: str, preset: Preset) -> None:
        self.queue, self.name, self.preset = queue, name, preset
        self.covered = Covered()
        self.vitals: dict[str, Vital] = {}
        for row in preset.conditions:
            if row.vital:
                self.vital(row.vital)
        self.slots: dict[tuple[str, str, str], Slot] = {}
        self.scores: dict[tuple[str, str], Slot] = {}  # apart, so that no score takes the place of a stream
        self.pairs: dict[tuple[str, str, str], Pair] = {}
        self.device = DeviceAlarms(queue, name, preset, self.covered)
        self.reported: dict[str, Tracker] = {}  # by condition id
        self.awaited: dict[str, Lapse] = {}  # likewise, of those that stood before a restart
        self.heard: dict[str, int] = {}  # sources, and when their first sign of life came

    def vital(self, name: str) -> Vital:
        """The vital of that name, with the limits of the preset."""
        found = self.vitals.get(name)
        if found is None:
            found = self.vitals[name] = Vital(self.queue, self.name, name, self.preset, self.covered)
        return found

    def cover(self, source: str) -> tuple[Tracker, Tracker]:
        """The conditions `silent` and `lost` of a source."""
        pair = self.covered.trackers.get(source)
        if pair is None:
            pair = self.covered.trackers[source] = (
                self._source_tracker("source_silent", source),
                self._source_tracker("source_lost", source),
            )
        return pair

    def tracker(self, condition: str) -> Tracker:
        """The condition of that id that another part of the agent reports."""
        found = self.reported.get(condition)
        if found is None:
            found = Tracker(self.queue, self.name, condition, self.preset.row(condition))
            self.reported[condition] = found
        return found

    def told_again(self, condition: str) -> None:
        """Wait no more for a word on a condition that stood before a restart."""
        lapse = self.awaited.pop(condition, None)
        if lapse is not None:
            lapse.cancel()

    def _source_tracker(self, row_id: str, source: str) -> Tracker:
        row = self.preset.by_id.get(row_id)
        tracker = Tracker(self.queue, self.name, f"{row_id}:{source}", row, off_s=RETURN_GRACE_S)
        tracker.source = source

        def flipped(tracker: Tracker, at_ns: int, changes: Changes) -> None:
            if tracker.present:
                self.device.lost(source, at_ns, changes)
            for vital in self.vitals.values():
                vital.lost(at_ns, changes)

        tracker.on_flip = flipped
        return tracker


class Watch:
    """Conditions of all beds; `beds` maps each bed to its preset, "" being the gateway itself."""

    def __init__(self, beds: Mapping[str, Preset]) -> None:
        self._queue = Queue()
        self._beds = {name: Bed(self._queue, name, preset) for name, preset in beds.items()}

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
        """Conditions that a score makes present or absent; one that abstained raises and ends nothing.

        A score that is not a number is a fault of what computes it. A score feeds the advisory limits on its own name
        only: one that is called like a vital sign feeds nothing. An alarm says which version it comes from, and on what
        it rests.
        """
        state = self._beds.get(bed)
        if state is None or score.value is None:
            return _NOTHING
        if not math.isfinite(score.value):
            return self.technical(bed, f"{_MODEL_FAULT}:{score.name}", True, score.at_ns, "not a finite number")
        changes: Changes = list(self.technical(bed, f"{_MODEL_FAULT}:{score.name}", False, score.at_ns))
        if score.name not in state.vitals or score.name in terms.VITALS or score.name in terms.BY_NAME:
            return changes
        key = (source, score.name)
        slot = state.scores.get(key)
        if slot is None:
            slot = state.scores[key] = Slot(state.vitals[score.name], source, None)
            slot.vital.slots.append(slot)
        slot.vital.value(slot, Observation(score.name, score.value, "valid", score.at_ns), changes, _basis(score))
        return changes

    def device_alarm(self, bed: str, source: str, alarm: DeviceAlarm) -> Sequence[Change]:
        """Conditions that a device's own alarm makes present or absent, under the device's priority and text."""
        state = self._beds.get(bed)
        if state is None:
            return _NOTHING
        changes: Changes = []
        state.heard.setdefault(source, alarm.at_ns)
        if source in state.covered.trackers:
            self._speaks(state, source, alarm.at_ns, changes)
        state.device.take(source, alarm, changes)
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
                bed.heard.setdefault(source, at_ns)
                if pair is not None:
                    for tracker in pair:
                        tracker.drive(False, at_ns, changes)
                continue
            pair = pair or bed.cover(source)
            for tracker in pair if bed.awaited else ():
                bed.told_again(tracker.condition)
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
        state.told_again(condition)
        if not present and condition not in state.reported:
            return _NOTHING
        tracker = state.tracker(condition)
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
        state.device.clear(at_ns, changes, "new patient")
        state.slots.clear()
        state.scores.clear()
        state.pairs.clear()
        return changes

    def set_preset(self, bed: str, preset: Preset, at_ns: int) -> Sequence[Change]:
        """Conditions that a changed preset makes present or absent; what is present under both goes on unchanged.

        The newest values are judged by the new limits at once, with the new delays; a delay that runs counts from its
        begin. Conditions whose rows are gone end.
        """
        state = self._beds.get(bed)
        if state is None:
            return _NOTHING
        changes: Changes = []
        self._queue.run(at_ns, changes)  # until now the old limits were in force
        state.preset = preset
        for row in preset.conditions:
            if row.vital:
                state.vital(row.vital)
        for vital in state.vitals.values():
            vital.drop(preset, at_ns, changes)
        for vital in state.vitals.values():
            vital.follow(preset, at_ns, changes)
        state.device.follow(preset, at_ns, changes)
        for pair in state.covered.trackers.values():
            for tracker in pair:
                tracker.follow(preset.row(tracker.condition))
        for tracker in state.reported.values():
            tracker.follow(preset.row(tracker.condition))
            tracker.settle(at_ns, changes)
        return changes

    def restore(self, bed: str, event: AlarmEvent, at_ns: int) -> None:
        """Take a condition for present that was so before a restart, until data or its reporter says otherwise.

        `event` is the last of an alarm that is On or Ack; call it before anything else is watched. What nobody reports
        again ends after a minute, saying so.
        """
        state = self._beds.get(bed)
        if state is None:  # it has left the configuration, and its alarms must be able to end
            state = self._beds[bed] = Bed(self._queue, bed, Preset("", "", ()))
        if event.state in ("On", "Ack"):
            restart.restore(state, event, at_ns)

    def _observe(self, bed: Bed, source: str, obs: Observation, slot: Slot | None) -> Sequence[Change]:
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
            slot = self._new_slot(bed, (source, obs.term, obs.channel), term, obs.at_ns)
        if slot.pair is not None:
            slot.pair.take(slot, obs, changes)
        else:
            slot.vital.value(slot, obs, changes)
        return changes

    def _new_slot(self, bed: Bed, key: tuple[str, str, str], term: terms.Term, at_ns: int) -> Slot:
        bed.heard.setdefault(key[0], at_ns)
        if len(bed.slots) >= SLOTS_PER_BED:
            key = ("", key[1], "")
            shared = bed.slots.get(key)
            if shared is not None:
                return shared
        vital = bed.vital(term.vital)
        slot = bed.slots[key] = Slot(vital, key[0], term)
        vital.slots.append(slot)
        if term.name in PAIR_OF:
            group = (key[0], PAIR_OF[term.name][0], key[2])
            slot.pair = bed.pairs.get(group)
            if slot.pair is None:
                slot.pair = bed.pairs[group] = Pair(self._queue)
        return slot

    def _speaks(self, bed: Bed, source: str, at_ns: int, changes: Changes) -> None:
        """End the technical conditions of a source that has just been heard, once its vitals had time to follow."""
        for tracker in bed.covered.trackers[source]:
            tracker.drive_within(False, at_ns, _SETTLE_NS, changes)


def _basis(score: Score) -> str:
    """What a score rests on, in words, for the alarm that it raises."""
    parts = (score.version, f"coverage {score.coverage:.0%}" if score.version else "", score.detail)
    return "; ".join(part for part in parts if part)
