"""Alarms: what each state of the table does, seen from outside; test_alarms_walk.py tries every sequence."""

from __future__ import annotations

import itertools
import time

import pytest
from alarm_room import BED, NS, SHIPPED, Room, row

from edge_agent.alarms.table import LATCHING, TABLE
from edge_agent.presets import RANK, Preset


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
