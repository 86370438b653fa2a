"""Alarms: what each state of the table does, seen from outside; test_alarms_walk.py tries every sequence."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from alarm_room import BED, NS, SHIPPED, Room, row

from edge_agent.alarms.table import LATCHING, NEW, RESTARTS, SHOWS, SOUNDS, TABLE
from edge_agent.presets import RANK, Preset

# State, event, next state, record: each row of the table once more, so that none changes by accident.
ROWS = """
Off    present      On     start
Off    absent       Off    -
Off    escalate     On     start
Off    acknowledge  Off    -
Off    reset        Off    -
Off    new_patient  Off    -
On     present      On     -
On     absent       Off    end
On     escalate     On     escalate
On     acknowledge  Ack    acknowledge
On     reset        On     -
On     new_patient  On     -
Latch  present      On     return
Latch  absent       Latch  -
Latch  escalate     On     escalate
Latch  acknowledge  Off    end
Latch  reset        Off    reset
Latch  new_patient  Off    end
Ack    present      Ack    -
Ack    absent       Off    end
Ack    escalate     On     escalate
Ack    acknowledge  Ack    -
Ack    reset        Ack    -
Ack    new_patient  Ack    -
"""


def test_the_table_is_complete() -> None:
    states = ("Off", "On", "Latch", "Ack")
    events = ("present", "absent", "escalate", "acknowledge", "reset", "new_patient")
    for table in (TABLE, LATCHING):
        assert set(table) == set(itertools.product(states, events))
    assert [key for key in TABLE if TABLE[key] != LATCHING[key]] == [("On", "absent")]


def test_every_row_is_what_it_was_agreed_to_be() -> None:
    rows = {}
    for line in ROWS.split("\n")[1:-1]:
        state, event, then, record = line.replace("-", "").split() if "-" not in line else (*line.split()[:3], "")
        rows[state, event] = (then, record)
    assert rows == TABLE
    assert LATCHING["On", "absent"] == ("Latch", "latch")
    assert (sorted(SOUNDS), sorted(SHOWS)) == (["Latch", "On"], ["Ack", "Latch", "On"])
    assert sorted(RESTARTS) == ["escalate", "return", "start"]
    assert sorted(NEW) == ["escalate", "start"], "a return is the same alarm again"


REACHED_BY = {
    "Off": (),
    "On": (("present", True),),
    "Latch": (("present", True), ("present", False)),
    "Ack": (("present", True), ("acknowledge", True)),
}
REACHABLE = [
    (latching, state, event)
    for latching in (False, True)
    for (state, event) in TABLE
    if (state != "Latch" or latching) and (state, event) != ("Off", "escalate")
]


@pytest.mark.parametrize(("latching", "state", "event"), REACHABLE)
def test_every_row_through_the_door(latching: bool, state: str, event: str) -> None:
    """What each row does, seen in view, signal and record."""
    room = Room({BED: Preset("test", "test", (row("it", "low", latching=latching),))})
    do = {
        "present": lambda present=True: room.put("it", present),
        "absent": lambda: room.put("it", False),
        "escalate": lambda: room.put("it", priority="medium"),
        "acknowledge": lambda _=True: room.acknowledge(),
        "reset": lambda: room.alarms.reset(BED, "nurse ann", room.now),
        "new_patient": lambda: room.alarms.new_patient(BED, room.now),
    }
    for name, argument in REACHED_BY[state]:
        do[name](argument)  # type: ignore[operator]
    assert room.states().get("it", "Off") == state
    onset = room.signal.onset
    room.names()
    before = len(room.signals)
    do[event]()  # type: ignore[operator]
    then, record = (LATCHING if latching else TABLE)[state, event]  # type: ignore[index]
    assert room.states().get("it", "Off") == then
    assert room.names() == ([record] if record else [])
    shown = room.signal
    assert (shown.visual, shown.audio) == (then in ("On", "Latch", "Ack"), then in ("On", "Latch"))
    if event == "escalate" or record == "return":
        assert shown.onset > onset and shown.audio_onset == shown.onset, "the newest of its priority"
    if not record:
        assert len(room.signals) == before, "nothing happened, nothing is sent"


def test_nothing_but_a_new_signal_reaches_the_annunciators() -> None:
    room = Room()
    room.put("low")
    room.put("low")
    room.put("low", False)
    room.put("low", False)
    assert [signal.priority for signal in room.signals] == ["low", "none"]


@pytest.mark.alm("ALM-06")
def test_highest_priority_owns_light_and_sound_and_the_newest_among_equals() -> None:
    room = Room()
    for condition in ("low", "medium", "high", "high2"):
        room.put(condition)
    assert [signal.condition for signal in room.signals] == ["low", "medium", "high", "high2"]
    assert [signal.onset for signal in room.signals] == [1, 2, 3, 4]
    for condition in ("high2", "high", "medium", "low"):
        room.put(condition, False)
    assert [signal.condition for signal in room.signals[4:]] == ["high", "medium", "low", ""]


@pytest.mark.alm("ALM-11")
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


@pytest.mark.alm("ALM-10")
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


@pytest.mark.alm("ALM-24")
def test_a_latched_alarm_that_returns_keeps_its_id_and_sounds_as_new() -> None:
    room = Room()
    for present in (True, False, True):
        room.put("latched", present)
    assert [(event.event, event.alert_id) for event in room.events] == [
        ("start", "A1"), ("latch", "A1"), ("return", "A1"),
    ]  # fmt: skip
    assert room.signal.onset == 2


@pytest.mark.alm("ALM-10")
def test_technical_alarms_of_the_shipped_presets_never_latch() -> None:
    room = Room({BED: SHIPPED["adult"].with_latching(True)})
    room.put("source_lost:mon")
    room.put("source_lost:mon", False)
    assert room.states() == {}


@pytest.mark.alm("ALM-24")
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


def test_new_patient_and_reset_leave_what_is_present() -> None:
    room = Room()
    room.put("high")
    room.put("fault")
    room.alarms.new_patient(BED, 9)
    assert room.alarms.reset(BED, "n", 9) == 0
    assert room.states() == {"high": "On", "fault": "On"} and len(room.signals) == 1


def test_an_operator_cuts_the_burst_and_the_end_of_a_condition_does_not() -> None:
    room = Room()
    room.put("latched")
    room.put("latched", False)
    room.put("high")
    room.put("high", False)
    assert not any(signal.stopped for signal in room.signals)
    room.alarms.reset(BED, "nurse ann", 9)
    assert room.signal.stopped and room.events[-1].operator == "nurse ann"
    room.put("medium")
    room.acknowledge()
    assert room.signal.stopped
    assert not room.alarms.signal(BED).stopped, "an annunciator that begins later has no burst to cut"


def test_a_lower_priority_takes_its_place_without_a_new_onset() -> None:
    room = Room()
    room.put("device_alarm:1", priority="high", value=1.0)
    room.put("medium")
    room.acknowledge()
    room.put("device_alarm:1", priority="low", text="less", value=2.0, source="mon", detail="why")
    assert (room.signal.condition, room.signal.priority, room.signal.audio) == ("medium", "medium", False)
    event = room.events[-1]
    assert (event.event, event.state, event.priority, event.text, event.value, event.source, event.detail) == (
        "deescalate", "Ack", "low", "less", 2.0, "mon", "why",
    )  # fmt: skip
    room.put("device_alarm:1", priority="none")
    assert room.events[-1].event == "escalate" and room.events[-1].priority == "medium", "none: the row's own priority"
    room.put("medium", False)
    room.put("device_alarm:1", False, detail="monitor ended it")
    assert (room.events[-1].event, room.events[-1].detail) == ("end", "monitor ended it")
    assert room.signal.priority == "none" and room.view()["alarms"] == []


def test_a_changed_text_reaches_the_screen_without_a_record() -> None:
    room = Room()
    room.put("high", text="first")
    room.put("high", text="second", value=5.0)
    assert [signal.text for signal in room.signals] == ["first", "second"]
    assert room.names() == ["start"] and room.shown("high")["value"] == 5.0
    room.put("high")
    assert room.shown("high")["text"] == "second", "without a text the last one stays"


def test_acknowledging_one_of_many_leaves_the_others_to_sound() -> None:
    room = Room()
    for condition in ("high", "high2", "low"):
        room.put(condition)
    assert room.acknowledge(room.shown("high2")["alert_id"]) == 1
    assert (room.signal.condition, room.signal.audio_condition) == ("high2", "high")
    assert (room.signal.onset, room.signal.audio_onset) == (2, 1)
    assert room.acknowledge(room.shown("high")["alert_id"]) == 1
    assert (room.signal.audio_priority, room.signal.audio_condition) == ("low", "low")


def test_the_view_of_an_alarm_is_whole() -> None:
    room = Room({BED: SHIPPED["adult"]})
    room.put("source_lost:mon", detail="no data for 5 s", source="mon")
    room.now += NS
    assert room.view() == {
        "priority": "medium", "visual": True, "audio": True, "inactivation": None, "reminder": None,
        "alarms": [{
            "alert_id": "A1", "condition": "source_lost:mon", "kind": "technical", "priority": "medium", "state": "On",
            "text": "Device not connected", "value": None, "limit": "", "source": "mon", "detail": "no data for 5 s",
            "since_s": 1.0, "audible": True, "breaking": False,
        }],
    }  # fmt: skip


def test_active_lists_every_alarm_of_every_bed_with_the_time_it_began() -> None:
    room = Room()
    room.put("low")
    room.put("high")
    room.put("disk_fault", bed="")
    assert [(bed, e.event, e.condition, e.state, e.at_ns, e.alert_id) for bed, e in room.alarms.active()] == [
        (BED, "state", "high", "On", 2, "A2"),
        (BED, "state", "low", "On", 1, "A1"),
        ("", "state", "disk_fault", "On", 3, "A3"),
    ]  # fmt: skip


# -- a storm of alarms ------------------------------------------------------------------------------------------------


def storm(state: str = "") -> Room:
    room = Room(audio_off=True)
    if state:
        room.hold(state)
    for number in range(10_000):
        room.put(f"low:{number}")
    return room


def work(action: Callable[[], object]) -> int:
    """How many instructions of Python an action takes; a scan of all alarms would be ten thousand times more."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.alm("ALM-28")
@pytest.mark.parametrize("state", ["", "audio_off", "alarm_paused"])
def test_a_high_costs_the_same_in_a_storm_of_ten_thousand(state: str) -> None:
    alone = Room(audio_off=True)
    if state:
        alone.hold(state)
    for number in range(2):
        alone.put(f"low:{number}")
    many = storm(state)
    for act in (
        lambda room: room.put("high"),
        lambda room: room.acknowledge(room.told[-1][1].alert_id),
        lambda room: room.put("low:1", False),
        lambda room: room.put("latched"),
        lambda room: room.put("latched", False),
        lambda room: room.at(1e-3),
        lambda room: room.put("high", False),
        lambda room: room.put("low:1"),
    ):
        few, lot = (work(partial(act, room)) for room in (alone, many))
        assert few > 20 and lot < few + 100, (few, lot)
        assert many.signal.condition == alone.signal.condition
        assert (many.signal.priority, many.signal.audio) == (alone.signal.priority, alone.signal.audio)


@pytest.mark.alm("ALM-28")
def test_a_storm_of_ten_thousand_does_not_hide_or_delay_a_high() -> None:
    room = storm()

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


@pytest.mark.alm("ALM-28")
def test_a_high_is_not_touched_by_a_storm_around_it() -> None:
    room = Room()
    room.put("high")
    (before,) = room.signals
    for number in range(10_000):
        room.put(f"low:{number}")
    for number in range(0, 10_000, 3):
        room.put(f"low:{number}", False)
    assert room.signals == [before], "the HIGH owned light and sound throughout"
    assert room.view()["alarms"][0]["condition"] == "high" and len(room.view()["alarms"]) == 1 + 6666
    assert room.acknowledge() == 6667
    assert (room.signal.priority, room.signal.audio) == ("high", False)
