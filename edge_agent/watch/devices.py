"""Alarms that the devices of one bed raise themselves, under the device's own priority and text.

Theory of operation: an alarm is told apart by its source and what the device calls it. It is present from the first
message that says so until the device ends it, the device is lost, or the patient changes. A sender that writes a
grade and a text only (Philips alarm and INOP texts) says nothing when an alarm ends: such an alarm is kept up by
repetition and lapses when it has not been repeated for `expires_s` of its row. Once a source has ended one itself, it
is known to send ends, and its alarms do not lapse any more.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.presets import RANK, Condition, Preset
from edge_agent.records import DeviceAlarm
from edge_agent.watch.tracker import NS, Changes, Lapse, Queue, Tracker
from edge_agent.watch.vital import TAKEN_OUT, Covered

DEVICE_ALARMS_PER_BED = 1000  # alarms of a device that are told apart; what comes beyond shares one
_ENDS = frozenset({"end"})
_IDLE = frozenset({"off", "inactive"})
_MORE = "more"  # what the shared one is called


class DeviceAlarms:
    """The device alarms of one bed."""

    __slots__ = ("_awaited", "_enders", "_lapses", "bed", "covered", "preset", "queue", "trackers")

    def __init__(self, queue: Queue, bed: str, preset: Preset, covered: Covered) -> None:
        self.queue, self.bed, self.preset, self.covered = queue, bed, preset, covered
        self.trackers: dict[str, Tracker] = {}  # by source and label; "" shared by those beyond the number
        self._lapses: dict[str, Lapse] = {}  # of those that only repetition keeps up
        self._awaited: dict[str, Lapse] = {}  # of those that were present before a restart
        self._enders: set[str] = set()  # sources that end alarms without a state of their own

    def take(self, source: str, alarm: DeviceAlarm, changes: Changes) -> None:
        """Follow one message of a device."""
        present = alarm.phase not in _ENDS and alarm.state not in _IDLE and alarm.priority != "none"
        row = _row(self.preset, alarm) if present else None
        label = alarm.alert_id or "/".join(part for part in (alarm.event, alarm.source) if part) or alarm.text
        key = f"{source}\x00{label}"
        tracker = self.trackers.get(key)
        lapses = not alarm.state and not (alarm.alert_id and alarm.event)
        if lapses and alarm.phase in _ENDS:
            self._enders.add(source)
        if alarm.phase == "tpoint" or (tracker is None and row is None):
            return
        if not present or row is None:
            if tracker is not None:
                self._end(key, tracker, alarm.at_ns, changes, "ended by the device")
            return
        if tracker is None:
            if len(self.trackers) >= DEVICE_ALARMS_PER_BED:
                key, label = "", _MORE
            tracker = self.trackers.get(key) or self._new(key, row, label)
        self._keep(key, row, alarm.at_ns, lapses and key != "" and source not in self._enders)
        if key == "" and tracker.priority is not None and RANK[tracker.priority] > RANK[alarm.priority]:
            return
        was, same = tracker.present, (tracker.priority, tracker.text) == (alarm.priority, alarm.text)
        tracker.source, tracker.detail = source, alarm.event
        tracker.priority, tracker.text = alarm.priority, alarm.text
        tracker.drive(True, alarm.at_ns, changes)
        if was and tracker.present and not same:
            changes.append(tracker.announce(alarm.at_ns))

    def lost(self, source: str, at_ns: int, changes: Changes) -> None:
        """End the alarms of a source that is itself under a technical condition."""
        for key, tracker in list(self.trackers.items()):
            if tracker.source == source and key in self.trackers:
                self._end(key, tracker, at_ns, changes, "no data")

    def clear(self, at_ns: int, changes: Changes, detail: str) -> None:
        """End all."""
        for tracker in self.trackers.values():
            tracker.withdraw(at_ns, changes, detail)
        self.trackers.clear()
        for lapses in (self._lapses, self._awaited):
            for lapse in lapses.values():
                lapse.cancel()
            lapses.clear()

    def follow(self, preset: Preset, at_ns: int, changes: Changes) -> None:
        """Take over the rows of a changed preset; alarms whose row is gone end."""
        self.preset = preset
        for key, tracker in list(self.trackers.items()):
            row = preset.row(tracker.condition)
            if row is None and key in self.trackers:
                self._end(key, tracker, at_ns, changes, TAKEN_OUT)
            elif row is not None:
                tracker.follow(row)
                tracker.settle(at_ns, changes)

    def hold(self, condition: str, source: str, lapse_ns: int, judge: Callable[[int], int | None]) -> Tracker:
        """The tracker of an alarm that was present before a restart; `judge` says at `lapse_ns` how long to wait on."""
        row_id, _, label = condition.partition(":")
        label = label.removesuffix(f"@{source}")
        key = "" if label == _MORE else f"{source}\x00{label}"
        tracker = self.trackers[key] = Tracker(self.queue, self.bed, condition, self.preset.by_id.get(row_id))

        def lapse(at_ns: int, changes: Changes) -> int | None:
            until_ns = judge(at_ns)
            if until_ns is None:
                self._end(key, tracker, at_ns, changes, "not repeated after the restart")
            return until_ns

        self._awaited[key] = Lapse(self.queue, lapse_ns, lapse)
        return tracker

    def _keep(self, key: str, row: Condition, at_ns: int, lapses: bool) -> None:
        """Begin anew the time in which an alarm must be repeated; none for one that its device ends."""
        if key in self._awaited:
            self._awaited.pop(key).cancel()
        lapse = self._lapses.get(key)
        until_ns = at_ns + round(row.expires_s * NS)
        if not lapses:
            if lapse is not None:
                self._lapses.pop(key).cancel()
        elif lapse is not None:
            lapse.later(until_ns)
        else:

            def judge(now_ns: int, changes: Changes) -> None:
                self._end(key, self.trackers[key], now_ns, changes, "not repeated")

            self._lapses[key] = Lapse(self.queue, until_ns, judge)

    def _new(self, key: str, row: Condition, label: str) -> Tracker:
        condition = f"{row.id}:{label}"
        taken = any(other.condition == condition for other in self.trackers.values()) if label else True
        if taken:  # two devices of one bed may count their alarms alike
            condition = f"{condition}@{key.partition(chr(0))[0]}"
        tracker = self.trackers[key] = Tracker(self.queue, self.bed, condition, row)
        return tracker

    def _end(self, key: str, tracker: Tracker, at_ns: int, changes: Changes, detail: str) -> None:
        tracker.withdraw(at_ns, changes, detail)
        for lapses in (self._lapses, self._awaited):
            if key in lapses:
                lapses.pop(key).cancel()
        del self.trackers[key]
        if len(self.trackers) == 1 and "" in self.trackers:
            self._end("", self.trackers[""], at_ns, changes, detail)


def _row(preset: Preset, alarm: DeviceAlarm) -> Condition | None:
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
