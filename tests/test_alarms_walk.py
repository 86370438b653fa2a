"""Every sequence of events to depth 6, against the rules of docs/alarms.md written again without the tables.

Sequences that lead to the same state, visible and hidden, go on as one: what is hidden (order of onset, what broke
through, remaining times, and what a restart would find in the log) is part of what is compared. `Model` is the second
opinion; it knows conditions, not transitions.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from edge_agent import config
from edge_agent.alarms import Alarms
from edge_agent.presets import Condition, Preset
from edge_agent.records import AlarmEvent, Change, Signal

NS = 1_000_000_000
BED = "ICU-3"
DEPTH = 6
PAUSE_S, REMINDER_S = 60, 25  # no multiple of the one ends a sum of the other within six events
SETTINGS = config.Alarms(
    audio_pause_s=PAUSE_S, alarm_pause_s=PAUSE_S, reminder_s=REMINDER_S, audio_off=True, alarm_off=True
)
RANK = {"none": 0, "low": 1, "medium": 2, "high": 3}


def _row(condition: str, kind: str, priority: str, *, latching: bool = False) -> Condition:
    return Condition(condition, kind, priority, "reported", condition, "test", "reported", latching=latching)  # type: ignore[arg-type]


PRESET = Preset(
    "test", "test",
    (_row("latched", "physiological", "high", latching=True), _row("plain", "physiological", "medium"),
     _row("fault", "technical", "low")),
)  # fmt: skip
OWN = {row.id: row.priority for row in PRESET.conditions}


class Rig:
    """The alarm room with a log beside it, which a restart reads, and what it last said."""

    def __init__(self) -> None:
        self.now = 0
        self.ids = 0
        self.kept: dict[str, tuple[AlarmEvent, int]] = {}  # by alert id: last event and since when
        self.states: dict[str, AlarmEvent] = {}  # begin of what is held back: by its first word, as the alarm log does
        self.signals: list[Signal] = []
        self.events: list[AlarmEvent] = []
        self.alarms = self.start()

    def start(self) -> Alarms:
        return Alarms(
            {BED: PRESET}, SETTINGS, new_id=self.new_id, on_event=self.on_event, on_signal=self.signals.append
        )

    def new_id(self) -> str:
        self.ids += 1
        return f"A{self.ids}"

    def on_event(self, _bed: str, event: AlarmEvent) -> None:
        self.events.append(event)
        if event.alert_id:
            since = self.kept.pop(event.alert_id, (event, event.at_ns))[1]
            if event.state != "Off":
                self.kept[event.alert_id] = (event, since)
        elif event.event.endswith("_resume"):
            del self.states[event.event.partition("_")[0]]
        elif event.event not in ("reminder", "restore"):
            assert event.event.partition("_")[0] not in self.states
            self.states[event.event.partition("_")[0]] = event

    def restart(self) -> None:
        self.alarms = self.start()
        kept = [(BED, event, since) for event, since in self.kept.values()]
        self.alarms.restore(reversed(kept), [(BED, event) for event in self.states.values()], self.now)

    def hidden(self) -> tuple[object, ...]:
        """Everything that could make a difference later, with times relative to now."""
        bed = self.alarms._beds[BED]
        by_start = sorted(self.kept.values(), key=lambda each: each[1])
        late = ""
        if bed.inactivation:  # what a restart finds to have come, or risen, after the state began
            late = "".join(
                str((since >= bed.began_ns) + 2 * (event.event == "escalate" and event.at_ns >= bed.began_ns))
                for event, since in by_start
            )
        return (
            bed.inactivation,
            bed.end_ns and round((bed.end_ns - self.now) / NS),
            bed.remind_ns and round((bed.remind_ns - self.now) / NS),
            tuple((event.condition, event.state, event.priority) for event, _ in by_start),
            late,
            *("|".join(map(" ".join, index.values()))
              for index in (bed.all.shows, bed.all.sounds, bed.breaking.shows, bed.breaking.sounds)),
        )  # fmt: skip


@dataclass(slots=True)
class Known:
    """A condition that is not over, as a person would describe it."""

    present: bool
    answered: bool
    priority: str
    since: int
    entered: int  # when it came to this priority
    through: bool  # passes what is held back
    rose: int = -1  # time of the last record, when that was a rise


@dataclass(slots=True)
class Model:
    """The rules in plain words."""

    alarms: dict[str, Known] = field(default_factory=dict)
    state: str = ""
    began: int = 0
    until: int | None = None
    remind: int | None = None
    reminders: int = 0

    def comes(self, name: str, priority: str, now: int) -> None:
        passes = priority == "high" and self.state in ("audio_paused", "audio_off", "alarm_paused")
        known = self.alarms.get(name)
        if known is None:
            self.alarms[name] = Known(True, False, priority, now, now, passes)
        elif RANK[priority] > RANK[known.priority]:
            known.answered, known.through, known.rose = False, passes, now
        elif known.present and priority == known.priority:
            return
        else:  # eased, or back while it was latched: no news
            known.rose, known.through = -1, known.through and priority == "high"
        known = self.alarms[name]
        known.present, known.priority, known.entered = True, priority, now

    def goes(self, name: str) -> None:
        known = self.alarms.get(name)
        if known is not None and known.present:
            if name == "latched" and not known.answered:
                known.present, known.rose = False, -1
            else:
                del self.alarms[name]

    def acknowledge(self) -> int:
        count = sum(not known.answered for known in self.alarms.values())
        self.reset()
        for known in self.alarms.values():
            if not known.answered:
                known.answered, known.rose = True, -1
        return count

    def reset(self) -> int:
        over = [name for name, known in self.alarms.items() if not known.present]
        for name in over:
            del self.alarms[name]
        return len(over)

    def hold(self, state: str, now: int) -> None:
        self.state, self.began = state, now
        self.until = now + PAUSE_S * NS if state.endswith("paused") else None
        for known in self.alarms.values():
            known.through = False

    def passes(self, now: int) -> None:
        if self.until is not None and self.until <= now:
            self.hold("", now)
        if self.remind is not None and self.remind <= now and self.recalls():
            self.reminders += 1
            while self.remind <= now:
                self.remind += REMINDER_S * NS

    def restart(self, now: int) -> None:
        self.remind = None
        for order, known in enumerate(sorted(self.alarms.values(), key=lambda each: each.since)):
            known.entered = order - 1000  # before anything that comes now
            late = known.since >= self.began or known.rose >= self.began
            breakable = self.state in ("audio_paused", "audio_off", "alarm_paused")
            known.through, known.rose = late and breakable and known.priority == "high", -1

    def recalls(self) -> bool:
        return bool(self.state) or any(known.answered for known in self.alarms.values())

    def settle(self, now: int) -> None:
        if not self.recalls():
            self.remind = None
        elif self.remind is None:
            self.remind = now + REMINDER_S * NS

    def outcome(self) -> tuple[Any, ...]:
        """Priority, visual, audio, owner of the light, priority and owner of the sound, state."""

        def owner(names: list[str]) -> str:
            return max(
                names, key=lambda name: (RANK[self.alarms[name].priority], self.alarms[name].entered), default=""
            )

        through = [name for name, known in self.alarms.items() if known.through]
        light, visual = owner(list(self.alarms)), bool(self.alarms)
        if self.state.startswith("alarm"):
            light, visual = owner(through) or light, bool(through)
        may = through if self.state else list(self.alarms)
        sound = owner([name for name in may if not self.alarms[name].answered])
        return (
            self.alarms[light].priority if light else "none", visual, bool(sound), light,
            self.alarms[sound].priority if sound else "none", sound, self.state,
        )  # fmt: skip


Play = Callable[[Rig, Model], None]


def _condition(name: str, priority: str) -> Play:
    def play(rig: Rig, model: Model) -> None:
        override = None if priority == OWN[name] else priority
        rig.alarms.apply(Change(BED, name, True, rig.now, priority=override))  # type: ignore[arg-type]
        model.comes(name, priority, rig.now)

    return play


def _clear(name: str) -> Play:
    def play(rig: Rig, model: Model) -> None:
        rig.alarms.apply(Change(BED, name, False, rig.now))
        model.goes(name)

    return play


def _hold(state: str) -> Play:
    def play(rig: Rig, model: Model) -> None:
        before = _listed(rig)
        granted = rig.alarms.inactivate(BED, state, None, "nurse", rig.now)  # type: ignore[arg-type]
        assert granted == (PAUSE_S if state.endswith("paused") else 0)
        assert _listed(rig) == before, "holding back never edits presence"
        model.hold(state, rig.now)

    return play


def _resume(rig: Rig, model: Model) -> None:
    before = _listed(rig)
    assert rig.alarms.resume(BED, "nurse", rig.now) is bool(model.state)
    assert _listed(rig) == before
    model.hold("", rig.now)


def _acknowledge(rig: Rig, model: Model) -> None:
    assert rig.alarms.acknowledge(BED, None, "nurse", rig.now) == model.acknowledge()


def _reset(rig: Rig, model: Model) -> None:
    assert rig.alarms.reset(BED, "nurse", rig.now) == model.reset()


def _new_patient(rig: Rig, model: Model) -> None:
    rig.alarms.new_patient(BED, rig.now)
    model.reset()
    model.hold("", rig.now)


def _pass_pause(rig: Rig, model: Model) -> None:
    if model.until is not None:
        rig.now = model.until
        rig.alarms.tick(rig.now)
        model.passes(rig.now)


def _pass_reminder(rig: Rig, model: Model) -> None:
    if model.remind is not None:
        rig.now = model.remind
        rig.alarms.tick(rig.now)
        model.passes(rig.now)


def _restart(rig: Rig, model: Model) -> None:
    rig.restart()
    model.restart(rig.now)


ACTIONS: dict[str, Play] = {
    "raise latched": _condition("latched", "high"),
    "ease latched": _condition("latched", "medium"),
    "clear latched": _clear("latched"),
    "raise plain": _condition("plain", "medium"),
    "escalate plain": _condition("plain", "high"),
    "clear plain": _clear("plain"),
    "raise fault": _condition("fault", "low"),
    "escalate fault": _condition("fault", "high"),
    "clear fault": _clear("fault"),
    "acknowledge": _acknowledge,
    "reset": _reset,
    "new patient": _new_patient,
    "audio paused": _hold("audio_paused"),
    "audio off": _hold("audio_off"),
    "alarm paused": _hold("alarm_paused"),
    "alarm off": _hold("alarm_off"),
    "resume": _resume,
    "pass pause": _pass_pause,
    "pass reminder": _pass_reminder,
    "restart": _restart,
}


def _listed(rig: Rig) -> list[tuple[str, str, str]]:
    return [(a["alert_id"], a["condition"], a["state"]) for a in rig.alarms.view(BED, rig.now)["alarms"]]


def _constant(name: str) -> object:
    return SETTINGS if name == "settings" else PRESET.by_id.get(name, PRESET)


class _Pickler(pickle.Pickler):
    """Copies rig and model; what never changes is named, not copied."""

    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {
        Condition: lambda row: (_constant, (row.id,)),
        Preset: lambda preset: (_constant, (preset.name,)),
        config.Alarms: lambda _: (_constant, ("settings",)),
    }


def _freeze(rig: Rig, model: Model) -> bytes:
    rig.signals.clear()
    rig.events.clear()
    out = io.BytesIO()
    _Pickler(out, protocol=5).dump((rig, model))
    return out.getvalue()


def _thaw(frozen: bytes) -> tuple[Rig, Model]:
    thawed: tuple[Rig, Model] = pickle.loads(frozen)
    return thawed


def _act(rig: Rig, model: Model, name: str) -> None:
    """Play one event on both and hold what must be true after any event."""
    rig.now += 1
    rig.signals.clear()
    rig.events.clear()
    ids = {event.condition: alert for alert, (event, _) in rig.kept.items()}
    known = set(model.alarms)
    before, reminders = rig.alarms.signal(BED), model.reminders
    ACTIONS[name](rig, model)
    model.settle(rig.now)
    signal = rig.alarms.signal(BED)
    assert (
        signal.priority, signal.visual, signal.audio, signal.condition, signal.audio_priority, signal.audio_condition,
        signal.inactivation,
    ) == model.outcome()  # fmt: skip
    assert sum(event.event == "reminder" for event in rig.events) == model.reminders - reminders <= 1
    assert all(event.inactivation == model.state for event in rig.events)
    if name != "restart":
        assert len(rig.signals) == (signal != before), "one signal for a change, none for none"
        assert (signal.reminder > before.reminder) == (model.reminders > reminders)
    assert all(each.onset or not each.visual for each in rig.signals)
    listed = rig.alarms.view(BED, rig.now)["alarms"]
    assert len(listed) == len(model.alarms)
    for alarm in listed:
        condition = model.alarms[alarm["condition"]]
        state = "Ack" if condition.answered else "On" if condition.present else "Latch"
        assert (alarm["state"], alarm["priority"]) == (state, condition.priority)
        assert alarm["breaking"] == condition.through
        if alarm["condition"] in known:
            assert alarm["alert_id"] == ids[alarm["condition"]], "one id from start to end"
        else:
            assert alarm["alert_id"] not in ids.values(), "a new alarm has an id of its own"
        if state == "On" and alarm["priority"] == "high" and not model.state:
            assert signal.audio and signal.visual and signal.audio_priority == "high"
    due = [time for time in (model.until, model.remind) if time is not None]
    assert rig.alarms.next_deadline() == min(due, default=None)


def _leave(rig: Rig, model: Model) -> None:
    """From anywhere the operator and the end of all conditions lead to a bed without anything."""
    for name in ("clear latched", "clear plain", "clear fault", "acknowledge", "resume"):
        _act(rig, model, name)
    assert not model.alarms and rig.alarms.next_deadline() is None
    assert rig.alarms.signal(BED).priority == "none" and not rig.kept and not rig.states


def walk(depth: int) -> int:
    """Play every sequence of up to `depth` events; how many states have been left by every event.

    Raises: AssertionError that names the shortest sequence after which something is not as it must be.
    """
    reached: set[tuple[object, ...]] = set()
    rig = Rig()
    frontier: dict[tuple[object, ...], tuple[tuple[str, ...], bytes]] = {rig.hidden(): ((), _freeze(rig, Model()))}
    for step in range(1, depth + 1):
        reached.update(frontier)
        found: dict[tuple[object, ...], tuple[tuple[str, ...], bytes]] = {}
        for path, frozen in frontier.values():
            for name in ACTIONS:
                rig, model = _thaw(frozen)
                try:
                    _act(rig, model, name)
                    key = rig.hidden()
                    if step < depth and key not in reached and key not in found:
                        found[key] = ((*path, name), _freeze(rig, model))
                        if step < depth - 1:
                            _leave(rig, model)
                except (AssertionError, LookupError) as error:
                    raise AssertionError(f"after {', '.join((*path, name))}: {error}") from error
        frontier = found
    return len(reached)


@pytest.mark.alm("ALM-06", "ALM-10", "ALM-11", "ALM-13", "ALM-14", "ALM-24")
def test_every_sequence_of_four_events_follows_the_rules() -> None:
    """The quick part of the walk; a broken row of a table is found here."""
    assert walk(4) > 500


def test_every_sequence_of_six_events_follows_the_rules() -> None:
    assert walk(DEPTH) > 10_000
