"""Alarms: every event sequence to a fixed depth holds the invariants; then the operator's actions one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from edge_agent import config
from edge_agent.alarms import Alarms
from edge_agent.alarms.room import LONGEST_PAUSE_S
from edge_agent.alarms.table import LATCHING, TABLE
from edge_agent.presets import RANK, Condition, Preset, load_presets
from edge_agent.records import AlarmEvent, Change, Signal

NS = 1_000_000_000
BED = "ICU-3"


def row(condition: str, priority: str, *, latching: bool = False, kind: str = "physiological") -> Condition:
    return Condition(condition, kind, priority, "below 1", condition, "test", "below", "spo2", latching=latching)  # type: ignore[arg-type]


PRESET = Preset(
    "test", "test",
    (row("high", "high"), row("high2", "high"), row("latched", "high", latching=True), row("medium", "medium"),
     row("low", "low"), row("fault", "medium", kind="technical"), row("device_alarm", "medium")),
)  # fmt: skip


SHIPPED = load_presets()


class Room:
    def __init__(self, presets: dict[str, Preset] | None = None, pause_s: int = 120) -> None:
        ids = itertools.count(1)
        self.events: list[AlarmEvent] = []
        self.signals: list[Signal] = []
        self.now = 0
        self.alarms = Alarms(
            presets or {BED: PRESET, "": SHIPPED["gateway"]},
            config.Alarms(audio_pause_s=pause_s),
            new_id=lambda: f"A{next(ids)}",
            on_event=lambda bed, event: self.events.append(event),
            on_signal=self.signals.append,
        )

    def put(self, condition: str, present: bool = True, bed: str = BED, **more: object) -> None:
        self.now += 1
        self.alarms.apply(Change(bed, condition, present, self.now, **more))  # type: ignore[arg-type]

    @property
    def signal(self) -> Signal:
        return self.signals[-1] if self.signals else Signal(BED, "none", False, False)

    def states(self) -> dict[str, str]:
        return {alarm["condition"]: alarm["state"] for alarm in self.alarms.view(BED, self.now)["alarms"]}


def test_the_table_is_complete() -> None:
    states = ("Off", "On", "Latch", "Ack")
    events = ("present", "absent", "escalate", "acknowledge", "reset", "new_patient")
    for table in (TABLE, LATCHING):
        assert set(table) == set(itertools.product(states, events))
    assert [key for key in TABLE if TABLE[key] != LATCHING[key]] == [("On", "absent")]


def test_what_is_off_can_only_start_and_what_rises_always_sounds() -> None:
    for table in (TABLE, LATCHING):
        for (state, event), step in table.items():
            if state == "Off":
                assert step == (("On", "start") if event in ("present", "escalate") else ("Off", "")), event
            elif event == "escalate":
                assert step.state == "On" and step.record in ("escalate", "return"), state


class Oracle:
    """What the rules say in plain words about one bed, written without the tables: the walk compares the two."""

    def __init__(self) -> None:
        self.present: dict[str, bool] = {}
        self.active: dict[str, bool] = {}  # condition: still to be acknowledged
        self.onset: dict[str, int] = {}
        self.paused_at: int | None = None
        self.count = 0

    def act(self, name: str) -> None:
        kind, _, condition = name.partition(" ")
        if kind == "raise" and not self.present.get(condition):
            self.present[condition] = True
            self.active[condition] = True
            self.count += 1
            self.onset[condition] = self.count
        elif kind == "clear" and self.present.get(condition):
            self.present[condition] = False
            if not (condition == "latched" and self.active[condition]):
                del self.active[condition]
        elif kind == "acknowledge":
            self.active = {key: False for key in self.active if self.present[key]}
        elif kind == "reset":
            self.active = {key: value for key, value in self.active.items() if self.present[key]}
        elif kind == "pause":
            self.paused_at = self.count
        elif kind == "resume":
            self.paused_at = None

    def outcome(self) -> tuple[str, bool, str]:
        """Priority of the light, whether there is sound, priority of the sound."""
        rank = {"high": 3, "latched": 3, "medium": 2, "low": 1}
        names = {3: "high", 2: "medium", 1: "low", 0: "none"}
        light = max((rank[key] for key in self.active), default=0)
        sounding = [key for key, fresh in self.active.items() if fresh]
        if self.paused_at is not None:
            sounding = [key for key in sounding if rank[key] == 3 and self.onset[key] > self.paused_at]
        sound = max((rank[key] for key in sounding), default=0)
        return names[light], bool(sound), names[sound]


ACTIONS: dict[str, Callable[[Room], object]] = {
    "raise high": lambda room: room.put("high"),
    "clear high": lambda room: room.put("high", False),
    "raise latched": lambda room: room.put("latched"),
    "clear latched": lambda room: room.put("latched", False),
    "raise low": lambda room: room.put("low"),
    "clear low": lambda room: room.put("low", False),
    "acknowledge": lambda room: room.alarms.acknowledge(BED, None, "nurse", room.now),
    "reset": lambda room: room.alarms.reset(BED, "nurse", room.now),
    "pause": lambda room: room.alarms.pause_audio(BED, 60, "nurse", room.now),
    "resume": lambda room: room.alarms.resume(BED, "nurse", room.now),
}


def walk(sequence: tuple[str, ...]) -> None:
    """Play a sequence and hold the invariants over its last event; the shorter ones have held all before it."""
    room, oracle = Room(), Oracle()
    for name in sequence[:-1]:
        ACTIONS[name](room)
        oracle.act(name)
    ids = {alarm["condition"]: alarm["alert_id"] for alarm in room.alarms.view(BED, room.now)["alarms"]}
    count = len(room.signals)
    ACTIONS[sequence[-1]](room)
    oracle.act(sequence[-1])
    signal, expected = room.signal, oracle.outcome()
    assert (signal.priority, signal.audio, signal.audio_priority) == expected, sequence
    assert signal.visual is (expected[0] != "none"), sequence
    assert len(room.signals) - count <= 1, sequence
    if len(room.signals) >= 2:
        assert room.signals[-1] != room.signals[-2], sequence
    alarms = room.alarms.view(BED, room.now)["alarms"]
    assert {alarm["condition"] for alarm in alarms} == set(oracle.active), sequence
    for alarm in alarms:
        condition = alarm["condition"]
        fresh, present = oracle.active[condition], oracle.present[condition]
        assert alarm["state"] == ("Ack" if not fresh else "On" if present else "Latch"), sequence
        assert ids.get(condition, alarm["alert_id"]) == alarm["alert_id"], sequence


def test_every_sequence_of_up_to_five_events_holds_the_invariants() -> None:
    for depth in range(1, 6):
        for sequence in itertools.product(ACTIONS, repeat=depth):
            if sequence[0].startswith(("raise", "pause")):  # nothing else does anything to an empty bed
                walk(sequence)


@pytest.mark.parametrize("first", ["raise latched", "pause"])
def test_sequences_of_six_events(first: str) -> None:
    """Depth 6 over two HIGH, one of them latching, and the operator."""
    chosen = [name for name in ACTIONS if "low" not in name]
    for rest in itertools.product(chosen, repeat=5):
        walk((first, *rest))


def test_nothing_but_a_new_signal_reaches_the_annunciators() -> None:
    room = Room()
    room.put("low")
    room.put("low")
    room.put("low", False)
    room.put("low", False)
    assert [signal.priority for signal in room.signals] == ["low", "none"]


def test_highest_priority_owns_light_and_sound_and_the_newest_among_equals() -> None:
    room = Room()
    for condition in ("low", "medium", "high", "high2"):
        room.put(condition)
    assert [signal.condition for signal in room.signals] == ["low", "medium", "high", "high2"]
    assert [signal.onset for signal in room.signals] == [1, 2, 3, 4]
    for condition in ("high2", "high", "medium", "low"):
        room.put(condition, False)
    assert [signal.condition for signal in room.signals[4:]] == ["high", "medium", "low", ""]


def test_acknowledge_stops_what_is_active_and_a_new_condition_sounds() -> None:
    room = Room()
    room.put("high")
    assert room.alarms.acknowledge(BED, None, "nurse ann", 9) == 1
    signal, event = room.signal, room.events[-1]
    assert (signal.priority, signal.visual, signal.audio, signal.stopped) == ("high", True, False, True)
    assert (event.event, event.state, event.operator) == ("acknowledge", "Ack", "nurse ann")
    room.put("medium")
    assert (room.signal.priority, room.signal.audio, room.signal.audio_priority) == ("high", True, "medium")
    assert (room.signal.condition, room.signal.audio_condition) == ("high", "medium")
    assert room.alarms.acknowledge(BED, None, "nurse ann", 10) == 1
    assert room.alarms.acknowledge(BED, None, "nurse ann", 11) == 0


def test_acknowledge_one_alarm_by_its_id() -> None:
    room = Room()
    room.put("high")
    room.put("medium")
    alert = next(a["alert_id"] for a in room.alarms.view(BED, 5)["alarms"] if a["condition"] == "medium")
    assert room.alarms.acknowledge(BED, alert, "n", 5) == 1
    assert room.alarms.acknowledge(BED, "unknown", "n", 5) == 0
    assert room.states() == {"high": "On", "medium": "Ack"}


def test_an_acknowledged_condition_that_ends_and_returns_sounds_again_under_a_new_id() -> None:
    room = Room()
    room.put("high")
    room.alarms.acknowledge(BED, None, "n", 2)
    room.put("high", False)
    room.put("high")
    assert room.signal.audio
    assert [event.alert_id for event in room.events] == ["A1", "A1", "A1", "A2"]


def test_latched_high_persists_until_the_operator_acts() -> None:
    for act in ("acknowledge", "reset", "new_patient"):
        room = Room()
        room.put("latched")
        room.put("latched", False)
        assert room.states() == {"latched": "Latch"}
        assert room.signal.audio and room.signal.visual
        if act == "acknowledge":
            room.alarms.acknowledge(BED, None, "n", 9)
        elif act == "reset":
            assert room.alarms.reset(BED, "n", 9) == 1
        else:
            room.alarms.new_patient(BED, 9)
        assert room.states() == {} and room.signal.priority == "none"


def test_reset_does_not_end_what_is_present() -> None:
    room = Room()
    room.put("latched")
    assert room.alarms.reset(BED, "n", 9) == 0
    assert room.states() == {"latched": "On"}


def test_a_latched_alarm_that_returns_keeps_its_id_and_sounds_as_new() -> None:
    room = Room()
    for present in (True, False, True):
        room.put("latched", present)
    assert [(event.event, event.alert_id) for event in room.events] == [
        ("start", "A1"), ("latch", "A1"), ("return", "A1"),
    ]  # fmt: skip
    assert room.signal.onset == 2


def test_technical_alarms_of_the_shipped_presets_never_latch() -> None:
    room = Room({BED: SHIPPED["adult"].with_latching(True)})
    room.put("source_lost:mon")
    room.put("source_lost:mon", False)
    assert room.states() == {}


def test_audio_pause_ends_by_time_and_its_maximum_is_enforced() -> None:
    room = Room(pause_s=100)
    room.put("medium")
    assert room.alarms.pause_audio(BED, None, "n", 0) == 100
    assert not room.signal.audio and room.signal.visual
    assert room.alarms.view(BED, 40 * NS)["inactivation"] == {"state": "audio_paused", "remaining_s": 60}
    assert room.alarms.next_deadline() == 100 * NS
    room.alarms.tick(100 * NS - 1)
    assert not room.signal.audio
    room.alarms.tick(100 * NS)
    assert room.signal.audio
    assert room.alarms.view(BED, 100 * NS)["inactivation"] is None
    assert [event.event for event in room.events] == ["start", "audio_pause", "audio_resume"]
    for wrong in (LONGEST_PAUSE_S + 1, 0, -5):
        with pytest.raises(ValueError, match="audio pause lasts"):
            room.alarms.pause_audio(BED, wrong, "n", 0)


def test_a_new_high_breaks_through_a_pause_and_nothing_else_does() -> None:
    room = Room()
    room.put("high")
    room.alarms.pause_audio(BED, 60, "n", 1)
    room.put("medium")
    assert not room.signal.audio
    room.put("high2")
    assert room.signal.audio and room.signal.audio_condition == "high2"
    room.alarms.acknowledge(BED, None, "n", 5)
    assert not room.signal.audio
    room.put("high", False)
    room.put("high")
    assert room.signal.audio, "an alarm that ended and returns is a new one"
    room.alarms.pause_audio(BED, 60, "n", 6)
    assert not room.signal.audio, "a pause that begins anew covers what broke through the last"


def test_resume_lets_what_is_present_sound_again() -> None:
    room = Room()
    room.put("medium")
    room.alarms.pause_audio(BED, 60, "n", 1)
    assert room.alarms.resume(BED, "n", 2) is True
    assert room.signal.audio
    assert room.alarms.resume(BED, "n", 3) is False


def test_new_patient_clears_pauses_and_keeps_faults() -> None:
    room = Room()
    room.put("fault")
    room.alarms.pause_audio(BED, 60, "n", 1)
    room.alarms.new_patient(BED, 2)
    assert room.states() == {"fault": "On"} and room.signal.audio
    assert room.alarms.next_deadline() is None


def test_a_device_alarm_brings_its_own_priority_and_escalates_under_one_id() -> None:
    room = Room()
    room.put("device_alarm:7", priority="low", text="PVC")
    assert room.signal.priority == "low" and room.signal.text == "PVC"
    room.alarms.acknowledge(BED, None, "n", 3)
    room.put("device_alarm:7", priority="high", text="VTACH")
    assert (room.signal.priority, room.signal.audio, room.signal.text) == ("high", True, "VTACH")
    room.put("device_alarm:7", priority="medium", text="PVC")
    assert (room.signal.priority, room.signal.audio_priority) == ("medium", "medium")
    room.put("device_alarm:7", False)
    assert [event.event for event in room.events] == ["start", "acknowledge", "escalate", "deescalate", "end"]
    assert {event.alert_id for event in room.events} == {"A1"}
    assert room.signal.priority == "none"


@pytest.mark.parametrize("before", ["On", "Latch", "Ack"])
def test_a_rise_in_priority_sounds_whatever_the_state(before: str) -> None:
    latching = Preset("test", "test", (row("device_alarm", "medium", latching=True),))
    room = Room({BED: latching})
    room.put("device_alarm:7", priority="low")
    if before == "Latch":
        room.put("device_alarm:7", False)
    if before == "Ack":
        room.alarms.acknowledge(BED, None, "n", 2)
    assert room.states() == {"device_alarm:7": before}
    onset = room.signal.onset
    room.put("device_alarm:7", priority="high")
    assert room.states() == {"device_alarm:7": "On"}
    assert room.signal.audio_priority == "high" and room.signal.onset > onset


def test_new_patient_leaves_an_acknowledged_fault_acknowledged() -> None:
    room = Room()
    room.put("fault")
    room.alarms.acknowledge(BED, None, "n", 2)
    room.alarms.new_patient(BED, 3)
    assert room.states() == {"fault": "Ack"}
    assert not room.signal.audio


def test_a_condition_without_a_row_is_a_technical_alarm_not_an_error() -> None:
    room = Room()
    room.put("never heard of")
    assert room.signal.priority == "medium" and "never heard of" in room.signal.text
    room.put("disk_fault", bed="nowhere")
    assert room.signals[-1].bed == "nowhere"


def test_events_carry_what_the_log_needs() -> None:
    room = Room({BED: SHIPPED["adult"]})
    room.put("spo2_low", value=85.0, source="mon", detail="questionable value")
    event = room.events[0]
    assert (event.condition, event.kind, event.priority, event.event, event.state) == (
        "spo2_low", "physiological", "medium", "start", "On",
    )  # fmt: skip
    assert (event.text, event.vital, event.value, event.limit, event.source, event.detail) == (
        "SpO2 low", "spo2", 85.0, "below 90", "mon", "questionable value",
    )  # fmt: skip
    (shown,) = room.alarms.view(BED, 3 * NS)["alarms"]
    assert shown["limit"] == "below 90" and shown["since_s"] == 3.0 and shown["alert_id"] == event.alert_id
    assert [(bed, event.state) for bed, event in room.alarms.active()] == [(BED, "On")]


def test_a_storm_of_ten_thousand_does_not_hide_or_delay_a_high() -> None:
    room = Room()
    for number in range(10_000):
        room.put(f"low:{number}")

    def raise_and_clear(target: Room) -> float:
        begin = time.perf_counter()
        for _ in range(200):
            target.put("high")
            assert target.signal.priority == "high" and target.signal.condition == "high"
            target.put("high", False)
        return time.perf_counter() - begin

    in_storm = min(raise_and_clear(room) for _ in range(5))
    alone = min(raise_and_clear(Room()) for _ in range(5))
    assert in_storm < 20 * alone  # a scan of all alarms would be hundreds of times slower
    assert RANK[room.signal.priority] == RANK["low"]
