"""What a restart puts back, and what changes when limits or the preset of a bed change."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from alarm_room import BED, NS, PRESET, SHIPPED, Room, row

from edge_agent.presets import Preset
from edge_agent.records import AlarmEvent, Change

STATES = ("audio_paused", "audio_off", "alarm_paused", "alarm_off")


def last(
    condition: str, state: str = "On", priority: str = "high", *, event: str = "start", at_ns: int = 0, **more: Any
) -> AlarmEvent:
    """The last record of an alarm, as a log keeps it."""
    return AlarmEvent(f"old-{condition}", condition, "physiological", priority, event, state, at_ns, condition, **more)  # type: ignore[arg-type]


def began(event: str, at_ns: int, value: float | None = None) -> AlarmEvent:
    return AlarmEvent("", "", "technical", "none", event, "Off", at_ns, value=value)


def restored(
    alarms: list[tuple[AlarmEvent, int]], states: list[AlarmEvent] | None = None, *, at_s: int = 1000, **settings: Any
) -> Room:
    room = Room(**{"prefix": "new-", "reminder_s": 30, **settings})
    room.now = at_s * NS
    room.alarms.restore(
        [(BED, event, since_ns) for event, since_ns in alarms], [(BED, event) for event in states or []], room.now
    )
    return room


@pytest.mark.alm("ALM-24")
def test_every_alarm_comes_back_under_its_id_in_its_state() -> None:
    room = restored([
        (last("medium", "On", "medium"), 1 * NS), (last("latched", "Latch"), 2 * NS), (last("high", "Ack"), 3 * NS),
    ])  # fmt: skip
    assert room.states() == {"high": "Ack", "latched": "Latch", "medium": "On"}
    assert [(event.event, event.alert_id, event.state, event.at_ns) for event in room.events] == [
        ("restore", "old-medium", "On", 1000 * NS),
        ("restore", "old-latched", "Latch", 1000 * NS),
        ("restore", "old-high", "Ack", 1000 * NS),
    ]
    (signal,) = room.signals
    assert (signal.priority, signal.condition, signal.audio_condition, signal.stopped) == (
        "high",
        "high",
        "latched",
        False,
    )
    room.put("high")
    assert room.states()["high"] == "Ack", "still acknowledged when the watch finds it present"
    room.put("high", False)
    room.put("medium", False)
    assert room.acknowledge() == 1, "what had latched waits for the operator"
    ends = [(event.event, event.alert_id) for event in room.events[3:]]
    assert ends == [("end", "old-high"), ("end", "old-medium"), ("end", "old-latched")]
    assert room.signal.priority == "none"


@pytest.mark.alm("ALM-24")
def test_the_id_is_one_from_start_to_end_over_a_restart() -> None:
    before = Room()
    before.put("latched")
    before.put("latched", False)
    before.put("latched")
    alert = before.events[0].alert_id
    since = before.events[0].at_ns
    after = Room(prefix="new-")
    after.now = before.now
    after.alarms.restore([(BED, before.events[-1], since)], [], after.now)
    for present in (True, False, True):
        after.put("latched", present)
    after.acknowledge()
    after.put("latched", False)
    told = before.events + after.events
    assert [event.event for event in told] == [
        "start", "latch", "return", "restore", "latch", "return", "acknowledge", "end",
    ]  # fmt: skip
    assert {event.alert_id for event in told} == {alert}
    after.put("latched")
    assert after.events[-1].alert_id == "new-1", "an alarm after that is a new one"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_onset_is_kept(order: tuple[int, ...]) -> None:
    alarms = [(last(condition), since) for condition, since in (("high", 10), ("high2", 20), ("latched", 30))]
    room = restored([alarms[index] for index in order])
    assert (room.signal.condition, room.signal.onset, room.signal.audio_onset) == ("latched", 3, 3)
    assert [alarm["condition"] for alarm in room.view()["alarms"]] == ["latched", "high2", "high"]
    room.put("device_alarm:1", priority="high")
    assert (room.signal.condition, room.signal.onset) == ("device_alarm:1", 4)


def test_what_the_last_record_said_is_kept() -> None:
    event = last(
        "device_alarm:7", priority="low", value=7.5, source="mon", detail="red", vital="spo2", limit="below 80"
    )
    room = restored([(replace_text(event, "PVC"), 990 * NS)])
    (shown,) = room.view()["alarms"]
    assert (shown["priority"], shown["text"], shown["value"], shown["source"], shown["detail"], shown["since_s"]) == (
        "low", "PVC", 7.5, "mon", "red", 10.0,
    )  # fmt: skip
    assert shown["limit"] == "below 1", "the limit is that of the row in force"
    assert room.signal.priority == "low" and room.signal.text == "PVC"
    (told,) = room.events
    assert (told.priority, told.text, told.value, told.source, told.detail) == ("low", "PVC", 7.5, "mon", "red")


def replace_text(event: AlarmEvent, text: str) -> AlarmEvent:
    return AlarmEvent(*(text if name == "text" else getattr(event, name) for name in event.__struct_fields__))


def test_a_condition_that_the_preset_has_lost_is_restored_all_the_same() -> None:
    event = AlarmEvent(
        "old", "cvp_high", "physiological", "medium", "start", "On", 1, "CVP high", "cvp", 20.0, "above 15"
    )
    room = restored([(event, 1)])
    (shown,) = room.view()["alarms"]
    assert (shown["kind"], shown["text"], shown["limit"], shown["priority"]) == (
        "physiological", "CVP high", "above 15", "medium",
    )  # fmt: skip
    assert (room.events[0].vital, room.events[0].kind) == ("cvp", "physiological")
    room.put("cvp_high", False)
    assert room.states() == {}, "without a row nothing latches"


def test_what_cannot_be_restored_is_left_out() -> None:
    room = Room(prefix="new-", reminder_s=30, audio_off=True)
    room.put("high")
    told = len(room.told)
    room.alarms.restore(
        [("elsewhere", last("high2"), 1), (BED, last("high2", "Off"), 1), (BED, last("high"), 1)],
        [("elsewhere", began("audio_off", 1)), (BED, began("reminder", 1)), (BED, began("start", 1))],
        5,
    )
    assert room.states() == {"high": "On"} and len(room.told) == told
    assert [alert for alarm in room.view()["alarms"] if (alert := alarm["alert_id"])] == ["new-1"]
    assert {signal.bed for signal in room.signals} == {BED}
    assert room.alarms.next_deadline() is None


def test_restored_alarms_move_like_any_other() -> None:
    room = restored([(last("device_alarm:1", "Ack", "medium"), 1), (last("latched", "Latch"), 2)])
    assert room.alarms.acknowledge(BED, "old-latched", "nurse ann", room.now) == 1
    room.put("device_alarm:1", priority="high")
    assert room.names()[-2:] == ["end", "escalate"] and room.signal.audio
    room = restored([(last("latched", "Latch"), 2)])
    assert room.alarms.reset(BED, "nurse ann", room.now) == 1


# -- inactivation states ----------------------------------------------------------------------------------------------


@pytest.mark.alm("ALM-19")
@pytest.mark.parametrize(("event", "state"), [("audio_pause", "audio_paused"), ("alarm_pause", "alarm_paused")])
def test_a_pause_goes_on_for_what_is_left_of_it(event: str, state: str) -> None:
    room = restored([(last("medium", "On", "medium"), 1)], [began(event, 960 * NS, 100.0)])
    assert room.view()["inactivation"] == {"state": state, "remaining_s": 60}
    assert not room.signal.audio and room.signal.inactivation == state
    assert [(told.event, told.alert_id, told.detail, told.value, told.inactivation) for told in room.events] == [
        ("restore", "", state, 60.0, state),
        ("restore", "old-medium", "", None, state),
    ]
    room.at(1059)
    assert not room.signal.audio
    room.at(1060)
    assert room.signal.audio and room.signal.inactivation == ""
    assert room.events[-1].detail == "time is over"


@pytest.mark.parametrize(
    ("begin_s", "value"),
    [(900, 100.0), (800, 60.0), (999, 0.0), (999.9, None), (999.9, 0.0), (999, -5.0), (820, 100_000.0)],
)
@pytest.mark.parametrize("event", ["audio_pause", "alarm_pause"])
def test_a_pause_that_is_over_is_ended_in_the_record(event: str, begin_s: float, value: float | None) -> None:
    room = restored([(last("medium", "On", "medium"), 1)], [began(event, round(begin_s * NS), value)])
    assert room.signal.audio and room.signal.inactivation == "" and room.view()["inactivation"] is None
    end = room.events[0]
    assert (end.event, end.detail, end.inactivation) == (f"{event.split('_')[0]}_resume", "time is over", "")


@pytest.mark.alm("ALM-12")
@pytest.mark.parametrize("value", [100_000.0, float("inf"), float("nan")])
def test_no_record_makes_a_pause_longer_than_the_maximum(value: float) -> None:
    room = restored([], [began("audio_pause", 990 * NS, value)])
    assert room.view()["inactivation"] == {"state": "audio_paused", "remaining_s": 170}
    room = restored([], [began("audio_pause", 5000 * NS, 60.0)])  # clocks that disagree
    assert room.view()["inactivation"] == {"state": "audio_paused", "remaining_s": 60}


@pytest.mark.parametrize("state", ["audio_off", "alarm_off"])
def test_an_off_state_goes_on_while_it_is_allowed(state: str) -> None:
    alarms = [(last("medium", "On", "medium"), 1)]
    room = restored(alarms, [began(state, 1)], **{state: True})
    assert room.view()["inactivation"] == {"state": state, "remaining_s": None}
    assert (room.events[0].event, room.events[0].detail, room.events[0].value) == ("restore", state, None)
    assert not room.signal.audio
    room = restored(alarms, [began(state, 1)])
    assert room.view()["inactivation"] is None and room.signal.audio
    assert (room.events[0].event, room.events[0].detail) == (f"{state[:5]}_resume", "not allowed any more")


def test_the_newest_of_several_begins_and_ends_counts() -> None:
    begin, end = began("audio_off", 10), began("audio_resume", 20)
    pause = began("alarm_pause", 990 * NS, 60.0)
    for order in itertools.permutations((begin, end, pause)):
        room = restored([], list(order), audio_off=True)
        assert room.view()["inactivation"] == {"state": "alarm_paused", "remaining_s": 50}
    assert restored([], [end, begin], audio_off=True).signals == []


@pytest.mark.alm("ALM-13")
@pytest.mark.parametrize(
    ("begin", "breaks"), [("audio_pause", True), ("alarm_pause", True), ("audio_off", True), ("alarm_off", False)]
)
def test_coming_back_is_no_new_onset_and_what_broke_through_still_does(begin: str, breaks: bool) -> None:
    state = [began(begin, 950 * NS, 100.0 if begin.endswith("pause") else None)]

    def sounds(event: AlarmEvent, since_s: int) -> bool:
        room = restored([(event, since_s * NS)], state, audio_off=True, alarm_off=True)
        assert room.shown(event.condition)["breaking"] is room.signal.audio
        return room.signal.audio

    assert not sounds(last("high"), 949), "it was present before"
    assert sounds(last("high"), 960) is breaks, "it came during the pause and sounded"
    assert not sounds(last("medium", priority="medium"), 960)
    assert not sounds(last("high", event="restore", at_ns=960 * NS), 940)
    assert not sounds(last("high", event="escalate", at_ns=940 * NS), 930)
    assert sounds(last("high", event="escalate", at_ns=960 * NS), 930) is breaks, "it rose during the pause"
    assert not sounds(last("medium", priority="medium", event="escalate", at_ns=960 * NS), 930)


def test_after_a_restored_pause_everything_sounds_again_and_new_ones_break_through() -> None:
    room = restored([(last("high"), 1)], [began("audio_pause", 990 * NS, 60.0)])
    room.put("high2")
    assert room.signal.audio_condition == "high2"
    room.put("high2", False)
    assert not room.signal.audio
    room.resume()
    assert room.signal.audio_condition == "high"


@pytest.mark.alm("ALM-14")
def test_reminders_go_on_after_a_restart() -> None:
    room = restored([(last("high", "Ack"), 1)])
    assert room.alarms.next_deadline() == 1030 * NS
    room.at(1031)
    assert (room.events[-1].event, room.events[-1].detail) == ("reminder", "acknowledged")
    room = restored([], [began("audio_pause", 999 * NS, 100.0)])
    assert room.alarms.next_deadline() == 1030 * NS


def test_nothing_to_restore_is_nothing_to_tell() -> None:
    room = restored([])
    assert room.signals == [] and room.told == [] and room.alarms.next_deadline() is None


# -- limits and presets -----------------------------------------------------------------------------------------------


def test_a_new_preset_changes_the_rows_of_what_is_present() -> None:
    room = Room()
    room.put("high")
    room.put("low", text="kept")
    room.put("low:2")
    other = Preset("other", "test", (
        replace(row("high", "medium", latching=True), present="below 5", vital="pulse_rate"),
        replace(row("low", "low"), present="below 7", text="another"),
    ))  # fmt: skip
    signals = len(room.signals)
    room.alarms.set_preset(BED, other, room.now)
    assert len(room.signals) == signals, "a changed limit does not touch what is signalled"
    assert room.shown("high")["limit"] == "below 5" and room.shown("low")["limit"] == "below 7"
    assert room.shown("low:2")["limit"] == "below 7"
    assert room.shown("high")["priority"] == "high" and room.shown("low")["text"] == "kept"
    room.put("high", False)
    assert room.states()["high"] == "Latch", "the new row latches"
    assert (room.events[-1].vital, room.events[-1].limit) == ("pulse_rate", "below 5")
    room.acknowledge()
    room.put("high")
    assert room.signal.priority == "medium", "a new alarm is all of the new row's"


def test_an_alarm_whose_row_is_gone_keeps_it_until_it_ends() -> None:
    room = Room()
    room.put("latched")
    room.alarms.set_preset(BED, Preset("empty", "test", ()), room.now)
    assert room.shown("latched")["limit"] == "below 1"
    room.put("latched", False)
    assert room.states() == {"latched": "Latch"}
    room.acknowledge()
    room.put("latched")
    assert room.shown("latched")["kind"] == "technical" and "latched" in room.signal.text, "no row any more"


def test_set_preset_reaches_one_bed() -> None:
    room = Room({"a": PRESET, "b": PRESET})
    room.put("high", bed="a")
    room.put("high", bed="b")
    room.alarms.set_preset("a", Preset("x", "", (replace(row("high", "high"), present="below 5"),)), room.now)
    assert [room.alarms.view(bed, 0)["alarms"][0]["limit"] for bed in ("a", "b")] == ["below 5", "below 1"]


@pytest.mark.alm("ALM-20")
@pytest.mark.parametrize("state", ["", "audio_off"])
def test_a_changed_limit_is_recorded_with_who_and_what(state: str) -> None:
    room = Room({BED: SHIPPED["adult"]}, audio_off=True)
    if state:
        room.hold(state)
    row = replace(SHIPPED["adult"].by_id["spo2_low"], present="below 88")
    room.alarms.note(BED, row, "limit", "biomed bob", "below 90 before", 77)
    assert room.told[-1] == (BED, AlarmEvent(
        "", "spo2_low", "physiological", "medium", "limit", "Off", 77, "SpO2 low", "spo2", None, "below 88",
        "biomed bob", "", "below 90 before", state,  # type: ignore[arg-type]
    ))  # fmt: skip
    room.put("spo2_low", value=85.0)
    room.alarms.note(BED, row, "limit", "biomed bob", "", 78)
    assert room.events[-1].state == "On"
    room.acknowledge()
    signals = len(room.signals)
    room.alarms.note(BED, row, "limit", "biomed bob", "", 79)
    assert room.events[-1].state == "Ack" and len(room.signals) == signals


@pytest.mark.alm("ALM-20")
def test_a_changed_preset_is_recorded() -> None:
    room = Room()
    room.alarms.note(BED, None, "preset", "biomed bob", "neonate, was adult", 77)
    assert room.told == [(BED, AlarmEvent(
        "", "", "technical", "none", "preset", "Off", 77, operator="biomed bob", detail="neonate, was adult"
    ))]  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_whole_life_folded_and_restored_is_what_it_was(state: str) -> None:
    """Everything that a log keeps is enough to come back to the same view and signal."""
    before = Room(audio_off=True, alarm_off=True)
    for condition in ("low", "medium", "latched", "fault"):
        before.put(condition)
    before.put("latched", False)
    before.acknowledge(before.shown("fault")["alert_id"])
    before.hold(state)
    before.put("high")
    last: dict[str, tuple[AlarmEvent, int]] = {}
    states = []
    for event in before.events:
        if event.alert_id:
            last[event.alert_id] = event, last.get(event.alert_id, (event, event.at_ns))[1]
        else:
            states.append(event)
    after = Room(prefix="new-", audio_off=True, alarm_off=True)
    after.now = before.now
    after.alarms.restore([(BED, *kept) for kept in last.values()], [(BED, event) for event in states], after.now)
    assert after.view() == before.view()
    ours, theirs = after.signal, before.signal
    assert (ours.priority, ours.visual, ours.audio, ours.condition, ours.audio_condition, ours.inactivation) == (
        theirs.priority, theirs.visual, theirs.audio, theirs.condition, theirs.audio_condition, theirs.inactivation,
    )  # fmt: skip
    after.alarms.apply(Change(BED, "high", False, after.now))
    assert after.view()["audio"] is False
