"""One bed: its alarms, found by priority without looking at the others, and the signal that follows from them.

Theory of operation: an index keeps alarms by priority in order of onset, once those that show and once those that
sound, so that the owner of light and sound is the last of the first that is not empty. A bed has two: all its alarms,
and those that broke through the present inactivation state. While a state holds sound or light back, the owner comes
from the second. 10,000 alarms of low priority therefore cost a HIGH nothing.
"""

from __future__ import annotations

from typing import Any

from edge_agent.alarms.inactivation import NS, RULES
from edge_agent.alarms.table import SHOWS, SOUNDS, State
from edge_agent.presets import PRIORITIES, Condition, Preset
from edge_agent.records import AlarmEvent, Inactivation, Priority, Signal


class Alarm:
    """One alarm from its start to its end, under one id."""

    __slots__ = (
        "alert_id", "condition", "detail", "onset", "priority", "row", "since_ns", "source", "state", "text", "value",
    )  # fmt: skip

    def __init__(self, alert_id: str, condition: str, row: Condition, since_ns: int) -> None:
        self.alert_id, self.condition, self.row, self.since_ns = alert_id, condition, row, since_ns
        self.state: State = "Off"
        self.priority: Priority = row.priority
        self.text = row.text
        self.value: float | None = None
        self.source = self.detail = ""
        self.onset = 0

    def record(self, event: str, at_ns: int, inactivation: Inactivation, operator: str = "") -> AlarmEvent:
        """The record of something that has happened to this alarm."""
        row = self.row
        return AlarmEvent(
            self.alert_id, self.condition, row.kind, self.priority, event, self.state, at_ns, self.text, row.vital,
            self.value, row.present if row.vital else "", operator, self.source, self.detail, inactivation,
        )  # fmt: skip


class Index:
    """Alarms by priority in order of onset: those that show, and those that sound."""

    __slots__ = ("shows", "sounds")

    def __init__(self) -> None:
        self.shows: dict[str, dict[str, Alarm]] = {priority: {} for priority in PRIORITIES}
        self.sounds: dict[str, dict[str, Alarm]] = {priority: {} for priority in PRIORITIES}

    def put(self, alarm: Alarm) -> None:
        """Keep an alarm where its state says; one that is known keeps its place in the order."""
        for index, states in ((self.shows, SHOWS), (self.sounds, SOUNDS)):
            if alarm.state in states:
                index[alarm.priority][alarm.condition] = alarm
            else:
                index[alarm.priority].pop(alarm.condition, None)

    def drop(self, alarm: Alarm, priority: Priority) -> None:
        """Forget an alarm that was kept under `priority`."""
        self.shows[priority].pop(alarm.condition, None)
        self.sounds[priority].pop(alarm.condition, None)

    def __contains__(self, alarm: Alarm) -> bool:
        return alarm.condition in self.shows[alarm.priority]


def newest_of_highest(index: dict[str, dict[str, Alarm]]) -> Alarm | None:
    """The alarm that owns an output: of the highest priority that has any, the one with the last onset."""
    for priority in PRIORITIES:
        if index[priority]:
            return next(reversed(index[priority].values()))
    return None


class Bed:
    """Alarms, inactivation state and timers of one bed."""

    __slots__ = (
        "acknowledged", "alarms", "all", "began_ns", "breaking", "by_alert", "end_ns", "inactivation", "name", "preset",
        "remind_ns", "reminder", "signal",
    )  # fmt: skip

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset
        self.alarms: dict[str, Alarm] = {}  # by condition; those that are not Off
        self.by_alert: dict[str, Alarm] = {}
        self.acknowledged: set[str] = set()  # conditions
        self.all = Index()
        self.breaking = Index()  # HIGH that came after the inactivation state began
        self.inactivation: Inactivation = ""
        self.began_ns = 0
        self.end_ns: int | None = None  # of a timed state
        self.remind_ns: int | None = None  # when the next reminder is due
        self.reminder = 0  # number of the newest
        self.signal = Signal(name, "none", False, False)

    def place(self, alarm: Alarm) -> None:
        """Keep everything that lists alarms in step with the state and priority of one."""
        key = alarm.condition
        if alarm.state in SHOWS:
            self.alarms[key] = self.by_alert[alarm.alert_id] = alarm
        else:
            self.alarms.pop(key, None)
            self.by_alert.pop(alarm.alert_id, None)
        (self.acknowledged.add if alarm.state == "Ack" else self.acknowledged.discard)(key)
        if alarm in self.breaking:
            self.breaking.put(alarm)
        self.all.put(alarm)

    def renew(self, alarm: Alarm, *, new: bool) -> None:
        """Make an alarm the newest of its priority; one that is `new` breaks through where the state lets it."""
        through = alarm in self.breaking or (
            new and alarm.priority == "high" and RULES[self.inactivation].breakable
        )  # fmt: skip
        for index in (self.all, self.breaking):
            index.drop(alarm, alarm.priority)
        if through:
            self.breaking.put(alarm)

    def move(self, alarm: Alarm, priority: Priority) -> None:
        """Take an alarm out of the order of the priority that it had."""
        self.all.drop(alarm, priority)
        self.breaking.drop(alarm, priority)

    def inactivate(self, state: Inactivation, began_ns: int, end_ns: int | None) -> None:
        """Enter a state, or none; what is present is no longer new."""
        self.inactivation, self.began_ns, self.end_ns = state, began_ns, end_ns
        self.breaking = Index()

    def reasons(self) -> str:
        """What a reminder recalls; empty when there is nothing to recall."""
        if not self.acknowledged:
            return self.inactivation
        return f"{self.inactivation}, acknowledged" if self.inactivation else "acknowledged"

    def deadline(self) -> int | None:
        """When a timed state ends or a reminder is due, in ns of CLOCK_MONOTONIC; None when neither will."""
        if self.end_ns is None:
            return self.remind_ns
        return self.end_ns if self.remind_ns is None else min(self.end_ns, self.remind_ns)

    def output(self) -> Signal:
        """The signal that follows from alarms and inactivation state."""
        rule = RULES[self.inactivation]
        owner = newest_of_highest(self.all.shows)
        if owner is None:
            return Signal(self.name, "none", False, False, inactivation=self.inactivation, reminder=self.reminder)
        visual = True
        if rule.holds_light:  # the owner is named all the same, for screens
            through = newest_of_highest(self.breaking.shows)
            owner, visual = through or owner, through is not None
        sound = newest_of_highest((self.breaking if rule.holds_sound else self.all).sounds)
        return Signal(
            self.name, owner.priority, visual, sound is not None, owner.condition, owner.text,
            "none" if sound is None else sound.priority, "" if sound is None else sound.condition,
            owner.onset, 0 if sound is None else sound.onset,
            inactivation=self.inactivation, reminder=self.reminder,
        )  # fmt: skip

    def ordered(self) -> list[Alarm]:
        """The alarms that are not Off, most urgent first, newest first among equals."""
        return [alarm for priority in PRIORITIES for alarm in reversed(self.all.shows[priority].values())]

    def view(self, at_ns: int) -> dict[str, Any]:
        """What an operator's view shows: output, inactivation state, next reminder and active alarms."""
        signal = self.signal
        inactivation = reminder = None
        if self.inactivation:
            remaining = None if self.end_ns is None else _seconds(self.end_ns - at_ns)
            inactivation = {"state": self.inactivation, "remaining_s": remaining}
        if self.remind_ns is not None:
            reminder = {"of": self.reasons(), "next_s": _seconds(self.remind_ns - at_ns)}
        return {
            "priority": signal.priority,
            "visual": signal.visual,
            "audio": signal.audio,
            "inactivation": inactivation,
            "reminder": reminder,
            "alarms": [self._shape(alarm, at_ns) for alarm in self.ordered()],
        }

    def _shape(self, alarm: Alarm, at_ns: int) -> dict[str, Any]:
        breaking = alarm in self.breaking
        return {
            "alert_id": alarm.alert_id,
            "condition": alarm.condition,
            "kind": alarm.row.kind,
            "priority": alarm.priority,
            "state": alarm.state,
            "text": alarm.text,
            "value": alarm.value,
            "limit": alarm.row.present if alarm.row.vital else "",
            "source": alarm.source,
            "detail": alarm.detail,
            "since_s": round((at_ns - alarm.since_ns) / NS, 1),
            "audible": alarm.state in SOUNDS and (breaking or not RULES[self.inactivation].holds_sound),
            "breaking": breaking,
        }


def _seconds(ns: int) -> int:
    """Whole seconds that are still to come, the last one counted until it is over."""
    return max(0, -(-ns // NS))
