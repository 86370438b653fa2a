"""The alarms of all beds: what is shown, what sounds, what the operator did about it.

Theory of operation: a Change from the watch, or an operator's action, moves one alarm through the table of states
(`table`). An operator can also put a whole bed into an inactivation state (`inactivation`), which masks output and
never edits presence; a HIGH that comes after it began breaks through, alone. Whenever what follows for a bed (`bed`)
differs from the last time, a Signal goes to the annunciators; the record of what happened comes after it.

While a bed is in an inactivation state or has an acknowledged alarm, one timer runs for it. Each whole period since
that began gives one reminder, however many reasons come and go meanwhile; a tick that comes late gives one, not many.

After a restart `restore` puts back what the records say was active, under the same ids: On sounds again, Latch
latches, Ack only shows. Time is passed in throughout; nothing here reads a clock or waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from msgspec import structs

from edge_agent import config
from edge_agent.alarms.bed import Alarm, Bed
from edge_agent.alarms.inactivation import BEGINS, ENDS, NS, RULES, allowed, end_after_restart, grant
from edge_agent.alarms.table import LATCHING, NEW, RESTARTS, SHOWS, TABLE, Event, State
from edge_agent.presets import RANK, Condition, Preset
from edge_agent.records import AlarmEvent, Change, Inactivation, Signal

_UNKNOWN = Condition(
    id="technical_fault", kind="technical", priority="medium", present="reported", verb="reported",
    text="Technical fault", source="stands in for a condition that the preset of the bed has no row for",
)  # fmt: skip


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
        self._beds = {name: Bed(name, preset) for name, preset in presets.items()}
        self._settings, self._new_id, self._on_event, self._on_signal = settings, new_id, on_event, on_signal
        self._onsets = 0
        self._reminders = 0
        self._timed: dict[str, Bed] = {}  # beds whose pause ends or whose reminder comes, in a fixed order
        self._untold: list[tuple[str, AlarmEvent]] = []

    # -- conditions ---------------------------------------------------------------------------------------------

    def apply(self, change: Change) -> None:
        """Take over that a condition became present or absent, or that its priority or text changed."""
        bed = self._bed(change.bed)
        alarm = bed.alarms.get(change.condition)
        if not change.present:
            if alarm is not None:
                alarm.detail = change.detail
                self._step(bed, alarm, "absent", change.at_ns)
                self._settle(bed, change.at_ns)
            return
        if alarm is None:
            alarm = Alarm(
                self._new_id(), change.condition, bed.preset.row(change.condition) or _UNKNOWN, change.at_ns
            )  # fmt: skip
            if alarm.row is _UNKNOWN:
                alarm.text = f"{_UNKNOWN.text}: {change.condition}"
        was = alarm.priority
        alarm.priority = change.priority if change.priority not in (None, "none") else alarm.row.priority
        alarm.text = change.text or alarm.text
        alarm.value, alarm.source, alarm.detail = change.value, change.source, change.detail
        changed = alarm.state != "Off" and alarm.priority != was
        if changed:
            bed.move(alarm, was)
        risen = changed and RANK[alarm.priority] > RANK[was]
        if not self._step(bed, alarm, "escalate" if risen else "present", change.at_ns) and changed:
            bed.place(alarm)
            self._record(bed, alarm, "deescalate", change.at_ns)
        self._settle(bed, change.at_ns)

    # -- what operators do ----------------------------------------------------------------------------------------

    def acknowledge(self, bed: str, alert_id: str | None, operator: str, at_ns: int) -> int:
        """Acknowledge one alarm, or all of the bed that are active now; how many were."""
        state = self._bed(bed)
        if alert_id is None:
            chosen = list(state.alarms.values())
        else:
            chosen = [state.by_alert[alert_id]] if alert_id in state.by_alert else []
        done = sum(self._step(state, alarm, "acknowledge", at_ns, operator) for alarm in chosen)
        self._settle(state, at_ns, by_operator=True)
        return done

    def reset(self, bed: str, operator: str, at_ns: int) -> int:
        """End the latched alarms of a bed; how many there were."""
        state = self._bed(bed)
        done = sum(self._step(state, alarm, "reset", at_ns, operator) for alarm in list(state.alarms.values()))
        self._settle(state, at_ns, by_operator=True)
        return done

    def inactivate(self, bed: str, state: Inactivation, seconds: int | None, operator: str, at_ns: int) -> int:
        """Put a bed into an inactivation state in place of the one it is in; the seconds granted, 0 for the OFF states.

        Raises: ValueError when the state is not allowed, or `seconds` is not within 1 and the maximum.
        """
        granted = grant(state, seconds, self._settings)
        target = self._bed(bed)
        replaced = RULES[target.inactivation].ends
        target.inactivate(state, at_ns, at_ns + granted * NS if granted else None)
        if replaced:  # every state that begins also ends, so that a log can be read one state at a time
            self._record_bed(target, replaced, at_ns, operator, f"replaced by {state}")
        value, detail = (float(granted), f"{granted} s") if granted else (None, "until it is ended")
        self._record_bed(target, RULES[state].begins, at_ns, operator, detail, value)
        self._settle(target, at_ns, by_operator=True)
        return granted

    def resume(self, bed: str, operator: str, at_ns: int) -> bool:
        """End the inactivation state of a bed; whether it was in one."""
        state = self._bed(bed)
        ended = self._end(state, operator, at_ns, "by the operator")
        self._settle(state, at_ns)
        return ended

    def new_patient(self, bed: str, at_ns: int) -> None:
        """End latched alarms and inactivation state of a bed; what is still present (faults of devices) stays."""
        state = self._bed(bed)
        self._end(state, "", at_ns, "new patient")
        for alarm in list(state.alarms.values()):
            self._step(state, alarm, "new_patient", at_ns)
        self._settle(state, at_ns, by_operator=True)

    def set_preset(self, bed: str, preset: Preset, at_ns: int) -> None:
        """Put a bed under another preset: present alarms take its rows, those it has no row for keep theirs."""
        state = self._bed(bed)
        state.preset = preset
        for alarm in state.alarms.values():
            alarm.row = preset.row(alarm.condition) or alarm.row
        self._settle(state, at_ns)

    def note(self, bed: str, row: Condition | None, event: str, operator: str, detail: str, at_ns: int) -> None:
        """Record that an operator changed a limit (`row` is now in force, event `limit`) or the preset (`preset`)."""
        state = self._bed(bed)
        if row is None:
            self._record_bed(state, event, at_ns, operator, detail)
        else:
            alarm = state.alarms.get(row.id)
            record = AlarmEvent(
                "", row.id, row.kind, row.priority, event, "Off" if alarm is None else alarm.state, at_ns, row.text,
                row.vital, None, row.present, operator, "", detail, state.inactivation,
            )  # fmt: skip
            self._untold.append((bed, record))
        self._settle(state, at_ns)

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self, at_ns: int) -> None:
        """End the states whose time is over and give the reminders that are due."""
        for bed in list(self._timed.values()):
            deadline = bed.deadline()
            if deadline is None or deadline > at_ns:
                continue
            if bed.end_ns is not None and bed.end_ns <= at_ns:
                self._end(bed, "", at_ns, "time is over")
            if bed.remind_ns is not None and bed.remind_ns <= at_ns and bed.reasons():
                period = self._settings.reminder_s * NS
                bed.remind_ns += ((at_ns - bed.remind_ns) // period + 1) * period
                self._reminders += 1
                bed.reminder = self._reminders
                self._record_bed(bed, "reminder", at_ns, "", bed.reasons())
            self._settle(bed, at_ns)

    def next_deadline(self) -> int | None:
        """The time of the next `tick` that matters, in ns of CLOCK_MONOTONIC; None when none does."""
        deadlines = [deadline for bed in self._timed.values() if (deadline := bed.deadline()) is not None]
        return min(deadlines, default=None)

    # -- after a restart ------------------------------------------------------------------------------------------

    def restore(
        self,
        alarms: Iterable[tuple[str, AlarmEvent, int]],
        inactivations: Iterable[tuple[str, AlarmEvent]],
        at_ns: int,
    ) -> None:
        """Put back what was active before a restart, before anything else is applied.

        `alarms` holds bed, last record and `since_ns` of each alarm that was not Off, `inactivations` bed and last
        record of a begin or end of an inactivation state; their times are of the present clock. What broke through
        the state of its bed still does; coming back is by itself no new onset.
        """
        for name, event in sorted(inactivations, key=lambda each: each[1].at_ns):
            if name in self._beds and (event.event in BEGINS or event.event in ENDS):
                state = BEGINS.get(event.event, "")
                end_ns = end_after_restart(event, at_ns) if state else None
                self._beds[name].inactivate(state, event.at_ns, end_ns)
        for bed in self._beds.values():
            if bed.inactivation:
                self._restore_inactivation(bed, at_ns)
        for name, event, since_ns in sorted(alarms, key=lambda each: each[2]):
            if name in self._beds and event.state in SHOWS and event.condition not in self._beds[name].alarms:
                self._restore_alarm(self._beds[name], event, since_ns, at_ns)
        for bed in self._beds.values():
            self._settle(bed, at_ns)

    def _restore_inactivation(self, bed: Bed, at_ns: int) -> None:
        if not allowed(bed.inactivation, self._settings):
            self._end(bed, "", at_ns, "not allowed any more")
        elif bed.end_ns is None:
            self._record_bed(bed, "restore", at_ns, "", bed.inactivation)
        elif bed.end_ns > at_ns:
            self._record_bed(bed, "restore", at_ns, "", bed.inactivation, (bed.end_ns - at_ns) / NS)
        else:
            self._end(bed, "", at_ns, "time is over")

    def _restore_alarm(self, bed: Bed, event: AlarmEvent, since_ns: int, at_ns: int) -> None:
        row = bed.preset.row(event.condition) or replace(
            _UNKNOWN, id=event.condition, kind=event.kind, vital=event.vital, present=event.limit
        )
        alarm = Alarm(event.alert_id, event.condition, row, since_ns)
        alarm.state = cast(State, event.state)
        alarm.priority = event.priority
        alarm.text, alarm.value, alarm.source, alarm.detail = event.text, event.value, event.source, event.detail
        self._onsets += 1
        alarm.onset = self._onsets
        after = since_ns >= bed.began_ns or (event.event == "escalate" and event.at_ns >= bed.began_ns)
        if after and alarm.priority == "high" and RULES[bed.inactivation].breakable:
            bed.breaking.put(alarm)
        bed.place(alarm)
        self._record(bed, alarm, "restore", at_ns)

    # -- what screens and later annunciators ask --------------------------------------------------------------------

    def view(self, bed: str, at_ns: int) -> dict[str, Any]:
        """What an operator's view shows of a bed: output, inactivation state and active alarms, most urgent first."""
        return self._bed(bed).view(at_ns)

    def active(self) -> Sequence[tuple[str, AlarmEvent]]:
        """Bed and state of every alarm that is not Off, as records with the event `state`."""
        return [
            (bed.name, alarm.record("state", alarm.since_ns, bed.inactivation))
            for bed in self._beds.values()
            for alarm in bed.ordered()
        ]

    def signal(self, bed: str) -> Signal:
        """The signal of a bed as it was last sent, for an annunciator that begins later."""
        return self._bed(bed).signal

    # -- the one way in which anything changes ------------------------------------------------------------------------

    def _bed(self, name: str) -> Bed:
        bed = self._beds.get(name)
        if bed is None:  # a technical alarm must not be lost because the gateway has no preset of its own
            bed = self._beds[name] = Bed(name, Preset("", "", ()))
        return bed

    def _step(self, bed: Bed, alarm: Alarm, event: Event, at_ns: int, operator: str = "") -> bool:
        """Move one alarm through the table; whether anything happened."""
        state, record = (LATCHING if alarm.row.latching else TABLE)[alarm.state, event]
        if not record:
            return False
        alarm.state = state
        if record in RESTARTS:
            self._onsets += 1
            alarm.onset = self._onsets
            bed.renew(alarm, new=record in NEW)
        bed.place(alarm)
        self._record(bed, alarm, record, at_ns, operator)
        return True

    def _end(self, bed: Bed, operator: str, at_ns: int, detail: str) -> bool:
        """End the inactivation state of a bed; whether it was in one."""
        ends = RULES[bed.inactivation].ends
        if not ends:
            return False
        bed.inactivate("", at_ns, None)
        self._record_bed(bed, ends, at_ns, operator, detail)
        return True

    def _settle(self, bed: Bed, at_ns: int, *, by_operator: bool = False) -> None:
        """Start or stop the bed's timer, send its signal when it is another one than before, then the records."""
        if not (bed.acknowledged or bed.inactivation):
            bed.remind_ns = None
        elif bed.remind_ns is None:
            bed.remind_ns = at_ns + self._settings.reminder_s * NS
        if bed.remind_ns is not None:  # a timed state is always one of its reasons
            self._timed[bed.name] = bed
        else:
            self._timed.pop(bed.name, None)
        signal = bed.output()
        if signal != bed.signal:
            bed.signal = signal
            self._on_signal(structs.replace(signal, stopped=True) if by_operator else signal)
        if self._untold:  # the record of what happened comes after the light
            untold, self._untold = self._untold, []
            for name, event in untold:
                self._on_event(name, event)

    def _record(self, bed: Bed, alarm: Alarm, event: str, at_ns: int, operator: str = "") -> None:
        self._untold.append((bed.name, alarm.record(event, at_ns, bed.inactivation, operator)))

    def _record_bed(
        self, bed: Bed, event: str, at_ns: int, operator: str, detail: str, value: float | None = None
    ) -> None:
        record = AlarmEvent(
            "", "", "technical", "none", event, "Off", at_ns,
            value=value, operator=operator, detail=detail, inactivation=bed.inactivation,
        )  # fmt: skip
        self._untold.append((bed.name, record))
