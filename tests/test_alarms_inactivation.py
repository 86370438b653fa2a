"""AUDIO PAUSED, AUDIO OFF, ALARM PAUSED, ALARM OFF and the reminder: what they hold back, for how long, what passes."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
from alarm_room import BED, NS, PRESET, SHIPPED, Room

from edge_agent.alarms.inactivation import BEGINS, ENDS, LONGEST_PAUSE_S, RULES
from edge_agent.control import OPERATIONS, Refused
from edge_agent.operations import Operations
from edge_agent.records import AlarmEvent, Signal

STATES = ("audio_paused", "audio_off", "alarm_paused", "alarm_off")
PAUSES = ("audio_paused", "alarm_paused")
OFFS = ("audio_off", "alarm_off")
BREAKABLE = ("audio_paused", "audio_off", "alarm_paused")
RECORDS = {
    "audio_paused": ("audio_pause", "audio_resume"),
    "audio_off": ("audio_off", "audio_resume"),
    "alarm_paused": ("alarm_pause", "alarm_resume"),
    "alarm_off": ("alarm_off", "alarm_resume"),
}


def allowing(**settings: Any) -> Room:
    return Room(**{"audio_off": True, "alarm_off": True, **settings})


def output(signal: Signal) -> tuple[str, bool, bool, str]:
    return signal.priority, signal.visual, signal.audio, signal.inactivation


def test_the_rules_name_every_state_once() -> None:
    assert set(RULES) == {"", *STATES}
    assert {RULES[state].begins: state for state in STATES} == BEGINS  # type: ignore[index]
    assert {state: (RULES[state].begins, RULES[state].ends) for state in STATES} == RECORDS  # type: ignore[index]
    assert sorted(ENDS) == ["alarm_resume", "audio_resume"]
    assert RULES[""] == ("", "", False, False, False, False)


# -- what is held back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_a_state_holds_back_sound_and_only_alarm_states_the_light(state: str) -> None:
    room = allowing()
    room.put("medium")
    room.hold(state)
    assert output(room.signal) == ("medium", state.startswith("audio"), False, state)
    assert room.signal.stopped, "the burst that is sounding is cut"
    assert (room.signal.condition, room.signal.text, room.signal.onset) == ("medium", "medium", 1)
    assert (room.signal.audio_priority, room.signal.audio_condition, room.signal.audio_onset) == ("none", "", 0)
    assert room.resume() is True
    assert output(room.signal) == ("medium", True, True, "")
    assert (room.signal.audio_priority, room.signal.audio_condition, room.signal.audio_onset) == ("medium", "medium", 1)
    assert room.resume() is False


@pytest.mark.alm("ALM-15")
@pytest.mark.parametrize("state", ["", *STATES])
def test_every_state_is_always_in_view_and_in_the_signal(state: str) -> None:
    room = allowing()
    if state:
        room.hold(state, 60 if state in PAUSES else None)
        assert output(room.signal) == ("none", False, False, state), "shown while nothing is active"
        expected = {"state": state, "remaining_s": 60 if state in PAUSES else None}
        assert room.view()["inactivation"] == expected
    else:
        assert room.view()["inactivation"] is None
    for condition in ("low", "fault", "high"):
        room.put(condition)
        assert room.signal.inactivation == state
    room.acknowledge()
    view = room.view()
    assert [(alarm["condition"], alarm["state"]) for alarm in view["alarms"]] == [
        ("high", "Ack"), ("fault", "Ack"), ("low", "Ack"),
    ]  # fmt: skip
    assert (view["inactivation"] or {"state": ""})["state"] == state == room.signal.inactivation
    assert view["priority"] == "high"
    assert room.alarms.signal(BED).inactivation == state
    if state:
        room.resume()
        assert (room.signal.inactivation, room.view()["inactivation"]) == ("", None)


def test_the_view_says_what_is_heard_and_what_breaks_through() -> None:
    room = allowing()
    room.put("medium")
    assert (room.shown("medium")["audible"], room.shown("medium")["breaking"]) == (True, False)
    room.hold("audio_off")
    assert (room.shown("medium")["audible"], room.shown("medium")["breaking"]) == (False, False)
    room.put("high")
    assert (room.shown("high")["audible"], room.shown("high")["breaking"]) == (True, True)
    assert room.view()["visual"] is room.view()["audio"] is True
    room.acknowledge()
    assert (room.shown("high")["audible"], room.shown("high")["breaking"]) == (False, True)
    room.resume()
    assert (room.shown("high")["audible"], room.shown("high")["breaking"]) == (False, False)


@pytest.mark.parametrize("state", STATES)
def test_presence_goes_on_behind_a_state(state: str) -> None:
    room = allowing()
    room.put("latched")
    room.hold(state)
    room.put("low")
    room.put("latched", False)
    assert room.states() == {"latched": "Latch", "low": "On"}
    room.put("low", False)
    assert room.states() == {"latched": "Latch"}
    assert room.names() == ["start", RECORDS[state][0], "start", "latch", "end"]
    assert room.alarms.reset(BED, "nurse ann", room.now) == 1
    assert room.states() == {} and room.signal.inactivation == state


def test_one_bed_is_not_another() -> None:
    room = Room({"a": PRESET, "b": PRESET, "": SHIPPED["gateway"]})
    room.put("medium", bed="a")
    room.put("medium", bed="b")
    room.hold("audio_paused", bed="a")
    assert not room.alarms.signal("a").audio and room.alarms.signal("b").audio
    room.put("disk_fault", bed="")
    room.hold("alarm_paused", bed="")
    assert output(room.alarms.signal("")) == ("medium", False, False, "alarm_paused"), "the gateway is like a bed"
    assert room.alarms.signal("b").audio


# -- for how long -----------------------------------------------------------------------------------------------------


@pytest.mark.alm("ALM-12", "ALM-22")
@pytest.mark.parametrize(("state", "key"), [("audio_paused", "audio_pause_s"), ("alarm_paused", "alarm_pause_s")])
def test_a_pause_ends_at_its_time_and_not_before(state: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(**{key: 100})
    room.put("medium")
    room.now = 5 * NS - 1
    assert room.hold(state) == 100
    assert room.alarms.next_deadline() == 105 * NS
    monkeypatch.setattr(time, "time", lambda: 4e9)  # a wall clock that has been stepped by decades
    monkeypatch.setattr(time, "time_ns", lambda: 4 * 10**18)
    for at_s, left in ((5, 100), (5.5, 100), (6, 99), (104.5, 1)):
        assert room.at(at_s).view()["inactivation"] == {"state": state, "remaining_s": left}
    room.alarms.tick(105 * NS - 1)
    assert not room.signal.audio
    assert room.alarms.view(BED, 106 * NS)["inactivation"]["remaining_s"] == 0, "never under zero while a tick is late"
    room.at(105)
    assert output(room.signal) == ("medium", True, True, "")
    assert room.alarms.next_deadline() is None
    end = room.events[-1]
    assert (end.event, end.detail, end.operator, end.at_ns) == (RECORDS[state][1], "time is over", "", 105 * NS)
    assert room.at(1000).names() == ["start", RECORDS[state][0], RECORDS[state][1]], "it ends once"


@pytest.mark.alm("ALM-12")
@pytest.mark.parametrize("state", PAUSES)
def test_no_pause_is_longer_than_the_maximum(state: str) -> None:
    assert LONGEST_PAUSE_S == 180
    room = Room()
    for wrong in (181, 3600, 0, -5):
        with pytest.raises(ValueError, match=rf"^{state} lasts 1 to 180 s, not {wrong}$"):
            room.alarms.inactivate(BED, state, wrong, "nurse ann", 0)  # type: ignore[arg-type]
    assert room.signals == [] and room.told == [] and room.alarms.next_deadline() is None
    assert room.hold(state, 1) == 1
    assert room.hold(state, 180) == 180


def test_the_two_pauses_have_lengths_of_their_own() -> None:
    room = Room(audio_pause_s=30, alarm_pause_s=50)
    assert (room.hold("audio_paused"), room.hold("alarm_paused")) == (30, 50)


@pytest.mark.parametrize("state", OFFS)
def test_off_states_need_permission_and_end_by_hand_only(state: str) -> None:
    for settings in ({}, {"audio_off": state != "audio_off", "alarm_off": state != "alarm_off"}):
        room = Room(**settings)
        room.put("medium")
        with pytest.raises(ValueError, match=rf"^{state} is not allowed here; .* by \[alarms\] {state}$"):
            room.hold(state)
        assert room.signal.audio and room.names() == ["start"]
    room = Room(**{state: True})
    room.put("medium")
    with pytest.raises(ValueError, match=f"^{state} lasts until it is ended; for 60 s choose {state[:5]}_paused$"):
        room.hold(state, 60)
    assert room.hold(state) == 0
    room.at(100_000)
    assert not room.signal.audio and room.view()["inactivation"] == {"state": state, "remaining_s": None}
    assert room.resume() and room.signal.audio


@pytest.mark.parametrize("state", ["", "paused", "mute"])
def test_an_unknown_state_is_refused(state: str) -> None:
    room = Room()
    with pytest.raises(ValueError, match=r"^no inactivation state .* audio_paused, audio_off, .*_paused, alarm_off$"):
        room.hold(state)
    assert room.signals == []


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STATES, STATES)))
def test_another_state_takes_the_place_of_the_present_one(first: str, second: str) -> None:
    room = allowing(audio_pause_s=60, alarm_pause_s=60)
    room.put("high")
    room.hold(first)
    room.put("high2")
    room.hold(second)
    assert output(room.signal) == ("high", second.startswith("audio"), False, second), "what broke through is no news"
    assert room.names() == ["start", RECORDS[first][0], "start", RECORDS[first][1], RECORDS[second][0]]
    room.at(59)
    assert room.view()["inactivation"]["state"] == second
    room.at(100)
    assert room.view()["inactivation"] == (None if second in PAUSES else {"state": second, "remaining_s": None})


def test_a_pause_that_begins_anew_lasts_from_then() -> None:
    room = Room(audio_pause_s=60)
    room.hold("audio_paused")
    room.at(50).hold("audio_paused")
    assert room.at(109).view()["inactivation"]["remaining_s"] == 2
    assert room.at(110).view()["inactivation"] is not None
    assert room.at(110.1).view()["inactivation"] is None


@pytest.mark.alm("ALM-19")
@pytest.mark.parametrize("state", STATES)
def test_a_new_patient_ends_every_state_and_keeps_faults(state: str) -> None:
    room = allowing()
    room.put("fault")
    room.put("latched")
    room.put("latched", False)
    room.hold(state)
    del room.signals[:], room.told[:]
    room.alarms.new_patient(BED, 9)
    assert room.states() == {"fault": "On"}
    assert [output(signal) for signal in room.signals] == [("medium", True, True, "")]
    assert [(event.event, event.detail, event.inactivation) for event in room.events] == [
        (RECORDS[state][1], "new patient", ""), ("end", "", ""),
    ]  # fmt: skip
    assert room.alarms.next_deadline() is None


# -- what is recorded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_begin_and_end_are_recorded_with_operator_and_seconds(state: str) -> None:
    room = allowing()
    room.hold(state, 45 if state in PAUSES else None)
    room.resume()
    begins, ends = RECORDS[state]
    value, detail = (45.0, "45 s") if state in PAUSES else (None, "until it is ended")
    begin, end = room.events
    assert begin == AlarmEvent(
        "", "", "technical", "none", begins, "Off", 1,
        value=value, operator="nurse ann", detail=detail, inactivation=state,  # type: ignore[arg-type]
    )  # fmt: skip
    assert end == AlarmEvent(
        "", "", "technical", "none", ends, "Off", 2, operator="nurse ann", detail="by the operator"
    )
    assert [bed for bed, _ in room.told] == [BED, BED]


def test_a_state_that_is_replaced_says_by_which() -> None:
    room = allowing()
    room.hold("audio_off")
    room.hold("alarm_paused", 9)
    assert [(event.event, event.detail, event.inactivation, event.operator) for event in room.events[1:]] == [
        ("audio_resume", "replaced by alarm_paused", "alarm_paused", "nurse ann"),
        ("alarm_pause", "9 s", "alarm_paused", "nurse ann"),
    ]


@pytest.mark.parametrize("state", ["", *STATES])
def test_every_record_says_the_state_of_its_bed(state: str) -> None:
    room = allowing()
    if state:
        room.hold(state)
    room.put("device_alarm:1", priority="medium")
    room.put("device_alarm:1", priority="high")
    room.put("device_alarm:1", priority="low")
    room.acknowledge()
    room.put("device_alarm:1", False)
    room.put("latched")
    room.put("latched", False)
    room.put("latched")
    assert len(room.told) == 8 + bool(state)
    assert {event.inactivation for event in room.events} == {state}
    assert {event.inactivation for _, event in room.alarms.active()} == {state}


def test_the_signal_comes_before_the_record() -> None:
    order: list[str] = []
    room = Room()
    room.alarms._on_event = lambda _bed, event: order.append(event.event)
    room.alarms._on_signal = lambda signal: order.append(f"signal {signal.inactivation}")
    room.hold("audio_paused")
    assert order == ["signal audio_paused", "audio_pause"]


# -- what breaks through ----------------------------------------------------------------------------------------------


@pytest.mark.alm("ALM-13")
@pytest.mark.parametrize("state", BREAKABLE)
def test_a_new_high_breaks_through_alone(state: str) -> None:
    room = allowing()
    room.put("high")
    room.put("medium")
    room.hold(state)
    room.put("low")
    assert not room.signal.audio, "what is not HIGH does not pass"
    room.put("high2")
    assert output(room.signal) == ("high", True, True, state)
    assert (room.signal.condition, room.signal.audio_condition) == ("high2", "high2")
    assert (room.signal.onset, room.signal.audio_onset) == (4, 4)
    room.put("high2", False)
    assert output(room.signal) == ("high", state.startswith("audio"), False, state)
    room.put("high2")
    assert room.signal.audio, "one that ended and comes back is a new one"


@pytest.mark.alm("ALM-13")
@pytest.mark.parametrize("state", BREAKABLE)
def test_the_same_alarm_does_not_break_through(state: str) -> None:
    room = allowing()
    room.put("latched")
    room.put("high")
    room.hold(state)
    room.put("high")
    room.put("high", priority="high", text="again", value=3.0)
    room.put("latched", False)
    room.put("latched")
    assert room.states() == {"latched": "On", "high": "On"}
    assert not room.signal.audio and room.signal.visual is state.startswith("audio")
    room.put("high", False)
    assert not room.signal.audio
    room.resume()
    assert room.signal.audio


@pytest.mark.alm("ALM-13")
@pytest.mark.parametrize("state", BREAKABLE)
@pytest.mark.parametrize("before", ["On", "Latch", "Ack"])
def test_a_rise_to_high_breaks_through_and_no_other_rise(state: str, before: str) -> None:
    room = Room({BED: PRESET.with_latching(True)}, audio_off=True)
    room.put("device_alarm:1", priority="low")
    if before == "Latch":
        room.put("device_alarm:1", False)
    elif before == "Ack":
        room.acknowledge()
    room.hold(state)
    room.put("device_alarm:1", priority="medium")
    assert not room.signal.audio
    room.put("device_alarm:1", priority="high")
    assert output(room.signal) == ("high", True, True, state)
    room.put("device_alarm:1", priority="medium")
    assert not room.signal.audio, "no longer HIGH"
    assert room.signal.visual is state.startswith("audio")


@pytest.mark.parametrize("state", BREAKABLE)
def test_what_broke_through_is_acknowledged_like_any_other(state: str) -> None:
    room = allowing()
    room.put("medium")
    room.hold(state)
    room.put("high")
    assert room.acknowledge() == 2
    assert output(room.signal) == ("high", True, False, state), "its light stays until it ends"
    assert room.signal.condition == "high"
    room.put("high", False)
    assert output(room.signal) == ("medium", state.startswith("audio"), False, state)


@pytest.mark.parametrize("state", BREAKABLE)
def test_what_broke_through_and_latched_goes_on(state: str) -> None:
    room = allowing()
    room.hold(state)
    room.put("latched")
    room.put("latched", False)
    assert output(room.signal) == ("high", True, True, state)
    room.put("high2")
    assert room.signal.audio_condition == "high2"
    room.put("latched")
    assert room.signal.audio_condition == room.signal.condition == "latched", "the newest that broke through"
    assert room.acknowledge() == 2
    assert not room.signal.audio


def test_behind_alarm_paused_the_light_is_of_what_broke_through() -> None:
    room = allowing()
    room.put("latched")
    room.put("latched", False)
    room.hold("alarm_paused")
    room.put("high")
    room.put("latched")  # the newest onset of all, and not a new alarm
    assert room.signal.condition == room.signal.audio_condition == "high"
    room.hold("audio_off")
    room.put("high2")
    room.put("latched", False)
    room.put("latched")
    assert (room.signal.condition, room.signal.audio_condition) == ("latched", "high2"), "light is not held back here"


@pytest.mark.alm("ALM-13")
def test_alarm_off_holds_back_a_new_high_too() -> None:
    room = allowing()
    room.hold("alarm_off")
    room.put("high")
    room.put("device_alarm:1", priority="low")
    room.put("device_alarm:1", priority="high")
    assert output(room.signal) == ("high", False, False, "alarm_off")
    assert room.shown("high")["breaking"] is False
    room.hold("audio_paused")
    assert not room.signal.audio, "what came during the state before is not new in this one"


# -- reminder ---------------------------------------------------------------------------------------------------------


def reminders(room: Room) -> list[tuple[float, str]]:
    return [(event.at_ns / NS, event.detail) for event in room.events if event.event == "reminder"]


@pytest.mark.alm("ALM-14")
@pytest.mark.parametrize("state", [*STATES, "acknowledged"])
def test_a_reminder_comes_every_period_while_something_is_held_back(state: str) -> None:
    room = allowing(reminder_s=20, audio_pause_s=70, alarm_pause_s=70)
    room.now = -1
    if state == "acknowledged":
        room.put("low")
        room.now = -1
        room.acknowledge()
    else:
        room.hold(state)
    assert room.alarms.next_deadline() == 20 * NS
    first = room.signal.reminder
    for quarter in range(1, 4 * 69):
        room.at(quarter / 4)
    assert reminders(room) == [(20.0, state), (40.0, state), (60.0, state)]
    event = next(event for event in room.events if event.event == "reminder")
    assert (event.alert_id, event.condition, event.priority, event.state, event.value) == ("", "", "none", "Off", None)
    assert event.inactivation == room.signal.inactivation == ("" if state == "acknowledged" else state)
    numbers = list(dict.fromkeys(signal.reminder for signal in room.signals))
    assert numbers == sorted(numbers) and len(numbers) == 4 and first == 0
    assert not room.signals[-1].stopped
    if state in PAUSES:
        room.at(70)
        assert room.alarms.next_deadline() is None
        assert len(reminders(room.at(500))) == 3, "none when it is over"


@pytest.mark.alm("ALM-14")
def test_a_late_tick_gives_one_reminder_and_no_drift() -> None:
    room = allowing(reminder_s=20)
    room.now = -1
    room.hold("audio_off")
    room.at(20.3)
    assert room.alarms.next_deadline() == 40 * NS
    room.at(99.9)
    assert [at for at, _ in reminders(room)] == [20.3, 99.9]
    assert room.alarms.next_deadline() == 100 * NS
    room.at(100)
    assert room.alarms.next_deadline() == 120 * NS
    room.alarms.tick(120 * NS - 1)
    assert len(reminders(room)) == 3
    assert room.view()["reminder"] == {"of": "audio_off", "next_s": 20}


@pytest.mark.alm("ALM-14")
def test_one_timer_a_bed_counts_from_the_first_reason_to_the_end_of_the_last() -> None:
    room = allowing(reminder_s=20, audio_pause_s=30)
    room.put("medium")
    assert room.view()["reminder"] is None
    room.now = -1
    room.hold("audio_paused")
    room.at(10).acknowledge()
    room.at(20)
    assert room.view()["reminder"] == {"of": "audio_paused, acknowledged", "next_s": 20}
    room.at(25).hold("audio_paused", 10)  # pausing again does not put the reminder off
    room.at(36)
    assert room.view()["reminder"] == {"of": "acknowledged", "next_s": 4}
    room.at(40)
    assert reminders(room) == [(20.0, "audio_paused, acknowledged"), (40.0, "acknowledged")]
    room.put("medium", False)
    assert room.alarms.next_deadline() is None and room.view()["reminder"] is None
    room.at(50).hold("audio_off")
    assert len(reminders(room.at(69.9))) == 2, "a new reason begins a new period"
    room.at(70.1)
    assert [at for at, _ in reminders(room)] == [20.0, 40.0, 70.1]


def test_a_reminder_does_not_come_for_what_ends_in_the_same_tick() -> None:
    room = Room(reminder_s=20, audio_pause_s=20)
    room.now = -1
    room.hold("audio_paused")
    room.at(20)
    assert room.names() == ["audio_pause", "audio_resume"]
    assert room.signal.reminder == 0


def test_reminders_rise_over_all_beds() -> None:
    room = Room({"a": PRESET, "b": PRESET}, reminder_s=20, audio_off=True)
    room.hold("audio_off", bed="a")
    room.hold("audio_off", bed="b")
    room.at(21)
    assert [room.alarms.signal(bed).reminder for bed in ("a", "b")] == [1, 2]
    room.at(41)
    assert [room.alarms.signal(bed).reminder for bed in ("a", "b")] == [3, 4]


def test_the_next_deadline_is_the_earliest_of_all_beds() -> None:
    room = Room({"a": PRESET, "b": PRESET}, reminder_s=100, audio_off=True)
    room.now = -1
    room.hold("audio_off", bed="a")
    assert room.alarms.next_deadline() == 100 * NS
    room.now = -1
    room.hold("audio_paused", 60, bed="b")
    assert room.alarms.next_deadline() == 60 * NS
    room.now = -1
    room.hold("audio_paused", 120, bed="b")
    assert room.alarms.next_deadline() == 100 * NS
    room.at(100)
    assert room.alarms.next_deadline() == 120 * NS
    room.at(120)
    assert room.alarms.next_deadline() == 200 * NS


# -- through the control socket's operations --------------------------------------------------------------------------


def operations(room: Room) -> Any:
    pipeline = SimpleNamespace(
        alarms=room.alarms, beds=SimpleNamespace(ids=[BED]), flush=lambda _at: room.told.append(("flush", None)),  # type: ignore[arg-type]
    )  # fmt: skip
    return Operations(SimpleNamespace(pipeline=pipeline)).table()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "state"), [("pause_audio", "audio_paused"), ("pause_alarm", "alarm_paused"), *zip(OFFS, OFFS, strict=True)]
)
def test_operations_reach_every_state(op: str, state: str) -> None:
    room = allowing(audio_pause_s=70, alarm_pause_s=70)
    reply = operations(room)[op]({"bed": BED}, "nurse ann")
    assert reply == ({"seconds": 70} if state in PAUSES else {"beds": [BED]})
    assert room.alarms.signal(BED).inactivation == state
    assert room.alarms.signal("").inactivation == "", "of the bed that was named"
    assert room.told[-1][0] == "flush"
    assert operations(room)[op]({}, "nurse ann") == reply
    assert room.alarms.signal("").inactivation == state, "without a bed: all, and the gateway"
    assert OPERATIONS[op] == ("biomed" if state in OFFS else "nurse")
    if state in PAUSES:
        assert operations(room)[op]({"bed": BED, "seconds": 9}, "nurse ann") == {"seconds": 9}


def test_operations_refuse_in_words() -> None:
    table = operations(Room())
    with pytest.raises(Refused, match=r"^alarm_off is not allowed here"):
        table["alarm_off"]({"bed": BED}, "biomed")
    with pytest.raises(Refused, match=r"^alarm_paused lasts 1 to 180 s, not 999$"):
        table["pause_alarm"]({"bed": BED, "seconds": 999}, "nurse ann")
    for wrong in ("60", 1.5, True):
        with pytest.raises(Refused, match=r"^seconds is a whole number$"):
            table["pause_audio"]({"bed": BED, "seconds": wrong}, "nurse ann")


def test_only_what_an_operator_did_bears_a_name() -> None:
    room = Room(reminder_s=30, audio_pause_s=60)
    room.put("latched")
    room.hold("audio_paused")
    room.at(31)  # a reminder
    room.at(61)  # the pause is over
    room.hold("audio_paused")
    room.put("medium")
    room.acknowledge()
    room.put("medium", False)
    room.put("latched", False)
    room.put("latched")
    room.alarms.new_patient(BED, room.now)
    by = {event.event: event.operator for event in room.events}
    acts = {"audio_pause", "acknowledge"}
    assert {event for event, operator in by.items() if operator == "nurse ann"} == acts
    assert {operator for event, operator in by.items() if event not in acts} == {""}
    assert {"start", "reminder", "audio_resume", "end"} <= set(by)


def test_a_new_patient_cuts_the_sound_of_the_last_one_off() -> None:
    room = Room()
    room.put("latched")
    room.put("latched", False)
    room.alarms.new_patient(BED, room.now)
    assert room.signal.stopped and not room.signal.audio
