"""The alarms of all beds: what is shown, what sounds, what the operator did about it.

Theory of operation: a Change from the watch, or an operator's action, moves one alarm through the table of states.
Each bed keeps its alarms by priority in order of onset, once those that show and once those that sound, so that the
owner of light and sound is found without looking at the others. Audio pause masks sound for a time; it never edits
presence. A HIGH with an onset after the pause began breaks through it, alone. Whenever the outcome for a bed differs
from the last one, a Signal goes to the annunciators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import structs

from edge_agent import config
from edge_agent.alarms.table import LATCHING, RESTARTS, SHOWS, SOUNDS, TABLE, Event, State
from edge_agent.presets import PRIORITIES, RANK, Condition, Preset
from edge_agent.records import AlarmEvent, Change, Priority, Signal

NS = 1_000_000_000
LONGEST_PAUSE_S = 180  # of AUDIO PAUSED, whatever is asked; product standards cap it at 120 to 180 s

_UNKNOWN = Condition(
    id="technical_fault", kind="technical", priority="medium", present="reported", verb="reported",
    text="Technical fault", source="stands in for a condition that the preset of the bed has no row for",
)  # fmt: skip


class _Alarm:
    __slots__ = (
        "alert_id", "condition", "detail", "onset", "priority", "row", "since_ns", "source", "state", "table", "text",
        "value",
    )  # fmt: skip

    def __init__(self, condition: str, row: Condition) -> None:
        self.condition, self.row = condition, row
        self.table = LATCHING if row.latching else TABLE
        self.alert_id = ""
        self.state: State = "Off"
        self.priority: Priority = row.priority
        self.text = row.text
        self.value: float | None = None
        self.source = self.detail = ""
        self.since_ns = 0
        self.onset = 0


class _Bed:
    __slots__ = (
        "alarms",
        "breaking",
        "by_alert",
        "name",
        "pause_end_ns",
        "pause_onset",
        "preset",
        "shows",
        "signal",
        "sounds",
    )

    def __init__(self, name: str, preset: Preset) -> None:
        self.name, self.preset = name, preset
        self.alarms: dict[str, _Alarm] = {}  # by condition; those that are not Off
        self.by_alert: dict[str, _Alarm] = {}
        self.shows: dict[str, dict[str, _Alarm]] = {priority: {} for priority in PRIORITIES}
        self.sounds: dict[str, dict[str, _Alarm]] = {priority: {} for priority in PRIORITIES}
        self.breaking: dict[str, _Alarm] = {}  # HIGH with an onset after the pause began
        self.pause_end_ns: int | None = None
        self.signal = Signal(name, "none", False, False)


class Alarms:
    """Alarms of all beds; `presets` maps each bed to its preset, "" being the gateway itself."""

    def __init__(
        self,
        presets: Mapping[str, Preset],
        settings: config.Alarms,
        *,
        new_id: Callable[[], str],
        on_event: Callable[[str, AlarmEvent], None],
        on_signal: Callable[[Signal], None],
    ) -> None:
        self._beds = {name: _Bed(name, preset) for name, preset in presets.items()}
        self._settings, self._new_id, self._on_event, self._on_signal = settings, new_id, on_event, on_signal
        self._onsets = 0
        self._paused: set[str] = set()
        self._untold: list[tuple[str, AlarmEvent]] = []

    def apply(self, change: Change) -> None:
        """Take over that a condition became present or absent, or that its priority or text changed."""
        bed = self._bed(change.bed)
        alarm = bed.alarms.get(change.condition)
        if not change.present:
            if alarm is not None:
                alarm.detail = change.detail
                self._step(bed, alarm, "absent", change.at_ns)
                self._show(bed)
            return
        if alarm is None:
            alarm = _Alarm(change.condition, bed.preset.row(change.condition) or _UNKNOWN)
            alarm.alert_id, alarm.since_ns = self._new_id(), change.at_ns
            if alarm.row is _UNKNOWN:
                alarm.text = f"{_UNKNOWN.text}: {change.condition}"
        was = alarm.priority
        alarm.priority = change.priority if change.priority not in (None, "none") else alarm.row.priority
        alarm.text = change.text or alarm.text
        alarm.value, alarm.source, alarm.detail = change.value, change.source, change.detail
        risen = alarm.state != "Off" and RANK[alarm.priority] > RANK[was]
        if alarm.state != "Off" and alarm.priority != was:
            bed.shows[was].pop(alarm.condition, None)
            bed.sounds[was].pop(alarm.condition, None)
        moved = self._step(bed, alarm, "escalate" if risen else "present", change.at_ns)
        if not moved and alarm.priority != was:
            self._place(bed, alarm)
            self._record(bed, alarm, "deescalate", change.at_ns)
        self._show(bed)

    def acknowledge(self, bed: str, alert_id: str | None, operator: str, at_ns: int) -> int:
        """Acknowledge one alarm, or all of the bed that are active now; how many were."""
        state = self._bed(bed)
        if alert_id is None:
            chosen = list(state.alarms.values())
        else:
            chosen = [state.by_alert[alert_id]] if alert_id in state.by_alert else []
        done = sum(self._step(state, alarm, "acknowledge", at_ns, operator) for alarm in chosen)
        self._show(state, by_operator=True)
        return done

    def pause_audio(self, bed: str, seconds: int | None, operator: str, at_ns: int) -> int:
        """Begin AUDIO PAUSED on a bed, or begin it anew; the seconds granted.

        Raises: ValueError when `seconds` is not within 1 and the maximum.
        """
        state = self._bed(bed)
        granted = self._settings.audio_pause_s if seconds is None else seconds
        if not 1 <= granted <= LONGEST_PAUSE_S:
            raise ValueError(f"an audio pause lasts 1 to {LONGEST_PAUSE_S} s, not {granted}")
        state.pause_end_ns = at_ns + granted * NS
        state.breaking.clear()
        self._paused.add(bed)
        self._record(state, None, "audio_pause", at_ns, operator, f"{granted} s")
        self._show(state, by_operator=True)
        return granted

    def resume(self, bed: str, operator: str, at_ns: int) -> bool:
        """End AUDIO PAUSED on a bed; whether it was paused."""
        return self._resume(self._bed(bed), operator, at_ns, "by the operator")

    def reset(self, bed: str, operator: str, at_ns: int) -> int:
        """End the latched alarms of a bed; how many there were."""
        state = self._bed(bed)
        done = sum(self._step(state, alarm, "reset", at_ns, operator) for alarm in list(state.alarms.values()))
        self._show(state, by_operator=True)
        return done

    def new_patient(self, bed: str, at_ns: int) -> None:
        """End latched alarms and the pause of a bed; what is still present (faults of devices) stays."""
        state = self._bed(bed)
        for alarm in list(state.alarms.values()):
            self._step(state, alarm, "new_patient", at_ns)
        self._resume(state, "", at_ns, "new patient")
        self._show(state, by_operator=True)

    def tick(self, at_ns: int) -> None:
        """End the pauses whose time is over."""
        for name in [name for name in self._paused if (self._beds[name].pause_end_ns or 0) <= at_ns]:
            self._resume(self._beds[name], "", at_ns, "time is over")

    def next_deadline(self) -> int | None:
        """The time of the next `tick` that matters, in ns of CLOCK_MONOTONIC; None when none does."""
        return min((self._beds[name].pause_end_ns or 0 for name in self._paused), default=None)

    def view(self, bed: str, at_ns: int) -> dict[str, Any]:
        """What an operator's view shows of a bed: output, inactivation state and active alarms, most urgent first."""
        state = self._bed(bed)
        signal, pause_end = state.signal, state.pause_end_ns
        remaining = None if pause_end is None else max(0, -((at_ns - pause_end) // NS))
        return {
            "priority": signal.priority,
            "visual": signal.visual,
            "audio": signal.audio,
            "inactivation": None if remaining is None else {"state": "audio_paused", "remaining_s": remaining},
            "alarms": [_shape(alarm, at_ns) for alarm in self._sorted(state)],
        }

    def active(self) -> Sequence[tuple[str, AlarmEvent]]:
        """Bed and state of every alarm that is not Off, as records with the event `state`."""
        return [
            (bed.name, _event(alarm, "state", alarm.since_ns))
            for bed in self._beds.values()
            for alarm in self._sorted(bed)
        ]

    def signal(self, bed: str) -> Signal:
        """The signal of a bed as it was last sent, for an annunciator that begins later."""
        return self._bed(bed).signal

    def _bed(self, name: str) -> _Bed:
        bed = self._beds.get(name)
        if bed is None:  # a technical alarm must not be lost because the gateway has no preset of its own
            bed = self._beds[name] = _Bed(name, Preset("", "", ()))
        return bed

    def _sorted(self, bed: _Bed) -> list[_Alarm]:
        return [alarm for priority in PRIORITIES for alarm in reversed(bed.shows[priority].values())]

    def _step(self, bed: _Bed, alarm: _Alarm, event: Event, at_ns: int, operator: str = "") -> bool:
        """Move one alarm through the table; whether anything happened."""
        state, record = alarm.table[alarm.state, event]
        if not record:
            return False
        alarm.state = state
        if record in RESTARTS:
            self._onsets += 1
            alarm.onset = self._onsets
            for index in (bed.shows[alarm.priority], bed.sounds[alarm.priority]):
                index.pop(alarm.condition, None)  # the newest stands last
            if alarm.priority == "high" and bed.pause_end_ns is not None:
                bed.breaking.pop(alarm.condition, None)
                bed.breaking[alarm.condition] = alarm
        self._place(bed, alarm)
        self._record(bed, alarm, record, at_ns, operator)
        return True

    def _place(self, bed: _Bed, alarm: _Alarm) -> None:
        """Keep the indexes of a bed in step with an alarm's state and priority."""
        key, state = alarm.condition, alarm.state
        if state in SHOWS:
            bed.alarms[key] = bed.by_alert[alarm.alert_id] = bed.shows[alarm.priority][key] = alarm
        else:
            bed.alarms.pop(key, None)
            bed.by_alert.pop(alarm.alert_id, None)
            bed.shows[alarm.priority].pop(key, None)
        if state in SOUNDS:
            bed.sounds[alarm.priority][key] = alarm
        else:
            bed.sounds[alarm.priority].pop(key, None)
        if key in bed.breaking and (state not in SOUNDS or alarm.priority != "high"):
            del bed.breaking[key]

    def _resume(self, bed: _Bed, operator: str, at_ns: int, detail: str) -> bool:
        if bed.pause_end_ns is None:
            return False
        bed.pause_end_ns = None
        bed.breaking.clear()
        self._paused.discard(bed.name)
        self._record(bed, None, "audio_resume", at_ns, operator, detail)
        self._show(bed)
        return True

    def _show(self, bed: _Bed, *, by_operator: bool = False) -> None:
        """Send the signal of a bed when it is another one than before."""
        owner = _newest_of_highest(bed.shows)
        if owner is None:
            signal = Signal(bed.name, "none", False, False)
        else:
            if bed.pause_end_ns is None:
                sound = _newest_of_highest(bed.sounds)
            else:
                sound = next(reversed(bed.breaking.values()), None)
            signal = Signal(
                bed.name, owner.priority, True, sound is not None, owner.condition, owner.text,
                "none" if sound is None else sound.priority, "" if sound is None else sound.condition,
                owner.onset, 0 if sound is None else sound.onset,
            )  # fmt: skip
        if signal != bed.signal:
            bed.signal = signal
            self._on_signal(structs.replace(signal, stopped=True) if by_operator else signal)
        if self._untold:  # the record of what happened comes after the light
            untold, self._untold = self._untold, []
            for name, event in untold:
                self._on_event(name, event)

    def _record(
        self, bed: _Bed, alarm: _Alarm | None, event: str, at_ns: int, operator: str = "", detail: str = ""
    ) -> None:
        if alarm is None:  # an event of the whole bed
            record = AlarmEvent("", "", "technical", "none", event, "Off", at_ns, operator=operator, detail=detail)
        else:
            record = _event(alarm, event, at_ns, operator)
        self._untold.append((bed.name, record))


def _newest_of_highest(index: dict[str, dict[str, _Alarm]]) -> _Alarm | None:
    for priority in PRIORITIES:
        alarms = index[priority]
        if alarms:
            return next(reversed(alarms.values()))
    return None


def _event(alarm: _Alarm, event: str, at_ns: int, operator: str = "") -> AlarmEvent:
    row = alarm.row
    return AlarmEvent(
        alarm.alert_id, alarm.condition, row.kind, alarm.priority, event, alarm.state, at_ns, alarm.text, row.vital,
        alarm.value, row.present if row.vital else "", operator, alarm.source, alarm.detail,
    )  # fmt: skip


def _shape(alarm: _Alarm, at_ns: int) -> dict[str, Any]:
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
    }
