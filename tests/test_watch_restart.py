"""What was present before a restart stays present until data or its reporter says otherwise, and never for good."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, device, low, preset

from edge_agent.presets import EXPIRES_S
from edge_agent.records import AlarmEvent, Observation
from edge_agent.watch import Watch
from edge_agent.watch.restart import ABSENT, FORGOTTEN_S, REPORTED_AGAIN_S
from edge_agent.watch.room import RETURN_GRACE_S, SETTLE_S


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


@pytest.fixture
def ward() -> Bedside:
    return Bedside(built_in()["adult"])


def test_a_restored_limit_is_not_told_again_and_stays_while_its_vital_violates(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0)
    assert prompt.tick(29.9) == []
    assert prompt.see(29.95, "spo2", 84) == []
    prompt.tick(35)
    assert prompt.present == {"spo2_low"} and prompt.log == []


def test_what_is_held_waits_for_nothing_once_a_value_has_taken_over(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0)
    assert prompt.watch.next_deadline() == 30 * NS
    prompt.see(10, "spo2", 84)
    assert prompt.watch.next_deadline() == 40 * NS


def test_the_deadband_holds_for_the_first_value_after_a_restart(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0)
    assert prompt.see(1, "spo2", 91.9) == []
    assert prompt.see(2, "spo2", 91.9) == []
    (change,) = prompt.see(3, "spo2", 92)
    assert (change.condition, change.present, change.value) == ("spo2_low", False, None)


def test_the_first_value_beyond_the_deadband_ends_it_after_the_off_delay(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low()))
    bed.restore(0, "spo2_low", 85.0)
    bed.see(1, "spo2", 97)
    bed.tick_ns(6 * NS - 1)
    assert bed.present == {"spo2_low"}
    bed.tick_ns(6 * NS)
    assert bed.log == [(6, "spo2_low", False)]


def test_without_a_value_within_its_age_the_vital_is_lost_as_usual(prompt: Bedside) -> None:
    prompt.restore(5, "spo2_low", 85.0)
    prompt.tick_ns(35 * NS - 1)
    assert prompt.log == []
    prompt.tick_ns(35 * NS)
    assert prompt.log == [(35, "spo2_stale", True), (35, "spo2_low", False)]
    assert [change.detail for change in prompt.changes] == ["", "no data"]
    prompt.see(40, "spo2", 97)
    assert prompt.present == set()


def test_implausible_values_after_a_restart_do_not_end_a_limit(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0)
    for second in range(10, 40):
        prompt.see(second, "spo2", 0.97)
        prompt.tick(second)
        assert "spo2_low" in prompt.present or "spo2_stale" in prompt.present
    prompt.tick(41)
    assert prompt.present == {"implausible:spo2", "spo2_stale"}


def test_another_source_does_not_replace_what_is_held_but_outlives_it(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0, source="a")
    for second in range(1, 31):
        prompt.see(second, "spo2", 97, source="b")
        assert prompt.present == {"spo2_low"}
        prompt.tick(second)
    assert prompt.log == [(30, "spo2_low", False)]
    prompt.state(31, "lost", "b")
    assert prompt.present == {"source_lost:b"}, "nothing is left of the source that does not exist any more"


def test_an_alarm_that_names_no_source_is_taken_over_by_the_first(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0, source="")
    prompt.see(1, "spo2", 97)
    assert prompt.present == set()


def test_two_limits_of_a_vital_share_what_is_held(ward: Bedside) -> None:
    ward.restore(0, "spo2_low", 78.0)
    ward.restore(0, "spo2_desaturation", 78.0, state="Ack")
    assert len(ward.watch._beds[BED].vitals["spo2"].held) == 1
    ward.see(1, "spo2", 83)
    ward.tick(6)
    assert ward.log == [(6, "spo2_desaturation", False)]
    assert ward.watch._beds[BED].vitals["spo2"].held == []
    ward.see(7, "spo2", 75)
    ward.tick(12)
    assert ward.log[1:] == [(12, "spo2_desaturation", True)]


def test_arming_counts_as_done(ward: Bedside) -> None:
    ward.restore(0, "apnoea", 0.0)
    ward.see(1, "resp_rate", 0)
    ward.tick(16)
    assert ward.present == {"apnoea", "resp_rate_low"}


def test_a_vital_whose_last_value_is_unknown_is_held_too(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low")
    prompt.tick(29)
    assert prompt.present == {"spo2_low"}
    prompt.tick(30)
    assert prompt.present == {"spo2_stale"}


def test_values_that_came_before_are_looked_at_again(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    prompt.restore(1, "spo2_low", 85.0)
    prompt.see(2, "spo2", 97)
    assert prompt.present == set()


def test_a_latched_or_ended_alarm_is_not_present(prompt: Bedside) -> None:
    for state in ("Latch", "Off"):
        prompt.restore(0, "spo2_low", 85.0, state=state)
    assert prompt.watch.next_deadline() is None
    assert prompt.see(1, "spo2", 97) == []


def test_a_stale_vital_stays_stale_until_it_has_data(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_stale")
    prompt.tick(10_000)
    assert prompt.present == {"spo2_stale"}, "a minute without a word is no data"
    (change,) = prompt.see(10_001, "spo2", 97)
    assert (change.condition, change.present, change.source) == ("spo2_stale", False, "mon")


def test_a_stale_vital_that_comes_back_low_is_raised_before_it_ends(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_stale")
    prompt.see(1, "spo2", 85)
    assert [entry[1:] for entry in prompt.log] == [("spo2_low", True), ("spo2_stale", False)]


def test_an_implausible_value_ends_with_a_plausible_one_of_its_source(prompt: Bedside) -> None:
    prompt.restore(0, "implausible:spo2")
    assert prompt.see(1, "spo2", 97, source="other") == []
    (change,) = prompt.see(2, "spo2", 97)
    assert (change.condition, change.present) == ("implausible:spo2", False)
    prompt.tick(REPORTED_AGAIN_S + 1)
    assert prompt.present == {"spo2_stale"}


def test_an_implausible_value_that_is_not_sent_again_ends_saying_so(ward: Bedside) -> None:
    ward.restore(0, "implausible:icp")
    ward.tick_ns(round(REPORTED_AGAIN_S * NS) - 1)
    assert ward.present == {"implausible:icp"}
    (change,) = ward.tick_ns(round(REPORTED_AGAIN_S * NS))
    assert (change.present, change.detail) == (False, ABSENT)


def test_an_implausible_value_that_is_sent_again_stays(ward: Bedside) -> None:
    ward.restore(0, "implausible:icp")
    for second in range(1, 100, 3):
        assert ward.see(second, "icp", 900) == []
        ward.tick(second)
    assert ward.present == {"implausible:icp"} and ward.log == []
    ward.see(100, "icp", 10)
    assert ward.present == set()


def test_an_implausible_vital_without_any_more_data_is_stale(prompt: Bedside) -> None:
    prompt.restore(0, "implausible:spo2")
    prompt.tick(30)
    assert prompt.present == {"spo2_stale"}


def test_an_implausible_value_says_nothing_of_the_patient(ward: Bedside) -> None:
    ward.restore(0, "implausible:resp_rate")
    ward.see(1, "resp_rate", 0)
    ward.tick(20)
    assert "apnoea" not in ward.present, "no breath has been seen yet"


@pytest.mark.parametrize("condition", ["device_alarm:7", "device_alarm:7@mon"])
def test_a_device_alarm_is_ended_by_the_device(prompt: Bedside, condition: str) -> None:
    prompt.restore(0, condition, text="VTACH", priority="high")
    assert prompt.tell(device(5, "continue", state="active")) == []
    prompt.tick(1000)
    (change,) = prompt.tell(device(1001, "end"))
    assert (change.condition, change.present, change.detail) == (condition, False, "ended by the device")


def test_a_device_alarm_with_other_words_is_told(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:7", text="VTACH", priority="medium")
    (change,) = prompt.tell(device(5, "continue", "high"))
    assert (change.condition, change.present, change.priority) == ("device_alarm:7", True, "high")


def test_a_device_alarm_that_its_connected_source_does_not_repeat_ends_saying_so(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:7", text="VTACH", priority="high")
    prompt.see(3, "spo2", 97)
    prompt.see(60, "spo2", 97)
    prompt.tick_ns(round((3 + REPORTED_AGAIN_S) * NS) - 1)
    assert prompt.present == {"device_alarm:7"}
    (change,) = prompt.tick_ns(round((3 + REPORTED_AGAIN_S) * NS))
    assert (change.condition, change.detail) == ("device_alarm:7", "not repeated after the restart")


@pytest.mark.parametrize("sign", ["value", "alarm", "link"])
def test_the_minute_begins_when_the_source_is_heard(prompt: Bedside, sign: str) -> None:
    prompt.restore(0, "device_alarm:7")
    prompt.tick(100)
    assert prompt.present == {"device_alarm:7"}, "nobody knows yet"
    if sign == "value":
        prompt.see(100, "spo2", 97)
    elif sign == "alarm":
        prompt.tell(device(100, "end", alert_id="other"))
    else:
        prompt.state(100, "connected")
    prompt.tick(100 + REPORTED_AGAIN_S - 0.1)
    assert "device_alarm:7" in prompt.present
    prompt.tick(100 + REPORTED_AGAIN_S)
    assert "device_alarm:7" not in prompt.present


def test_a_device_alarm_ends_behind_its_lost_source(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:7")
    prompt.state(50, "lost")
    assert prompt.log == [(50, "source_lost:mon", True), (50, "device_alarm:7", False)]


def test_a_device_alarm_of_a_source_that_left_the_configuration_ends(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:7", source="gone")
    for second in range(0, round(FORGOTTEN_S), 7):
        prompt.tick(second)
    assert prompt.present == {"device_alarm:7"}
    prompt.tick(FORGOTTEN_S)
    assert prompt.present == set() and prompt.watch.next_deadline() is None


def test_a_text_that_is_repeated_lapses_as_usual(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:Desat", text="Desat", priority="high")
    prompt.tell(device(10, "start", "high", "Desat", ""))
    prompt.tick(10 + EXPIRES_S - 0.1)
    assert prompt.present == {"device_alarm:Desat"}
    prompt.tick(10 + EXPIRES_S)
    assert prompt.changes[-1].detail == "not repeated"


def test_the_shared_alarm_of_a_storm_is_restored(prompt: Bedside) -> None:
    prompt.restore(0, "device_alarm:more", priority="high")
    prompt.restore(0, "device_alarm:7")
    prompt.tell(device(1, "end"))
    assert prompt.present == set()


def test_a_lost_source_ends_when_it_speaks(prompt: Bedside) -> None:
    prompt.restore(0, "source_lost:mon")
    prompt.tick(FORGOTTEN_S - 1)
    assert prompt.present == {"source_lost:mon"}
    prompt.see(FORGOTTEN_S - 1, "spo2", 97)
    prompt.tick(FORGOTTEN_S - 1 + SETTLE_S)
    assert prompt.log == [(FORGOTTEN_S - 1 + SETTLE_S, "source_lost:mon", False)]


def test_a_source_that_is_still_lost_stays_so_without_being_told_again(prompt: Bedside) -> None:
    prompt.restore(0, "source_lost:mon")
    assert prompt.state(10, "lost") == []
    prompt.tick(10 * FORGOTTEN_S)
    assert prompt.present == {"source_lost:mon"}
    prompt.state(10 * FORGOTTEN_S, "connected")
    prompt.tick(10 * FORGOTTEN_S + RETURN_GRACE_S)
    assert prompt.present == set()


def test_a_source_that_is_just_back_has_its_grace_when_others_are_forgotten(prompt: Bedside) -> None:
    prompt.restore(0, "source_lost:mon")
    prompt.state(FORGOTTEN_S - 1, "connected")
    prompt.tick_ns(round((FORGOTTEN_S - 1 + RETURN_GRACE_S) * NS) - 1)
    assert prompt.present == {"source_lost:mon"}
    (change,) = prompt.tick_ns(round((FORGOTTEN_S - 1 + RETURN_GRACE_S) * NS))
    assert not change.present and change.detail != ABSENT


def test_a_lost_source_that_is_silent_now_has_one_alarm_all_the_time(prompt: Bedside) -> None:
    prompt.restore(0, "source_lost:mon")
    prompt.state(10, "silent")
    assert [entry[1:] for entry in prompt.log] == [("source_silent:mon", True), ("source_lost:mon", False)]
    prompt.tick(10 * FORGOTTEN_S)
    assert prompt.present == {"source_silent:mon"}


def test_a_source_that_left_the_configuration_is_not_missed_for_ever(prompt: Bedside) -> None:
    prompt.restore(0, "source_silent:gone", source="gone")
    prompt.tick_ns(round(FORGOTTEN_S * NS) - 1)
    assert prompt.present == {"source_silent:gone"}
    (change,) = prompt.tick_ns(round(FORGOTTEN_S * NS))
    assert (change.present, change.detail) == (False, ABSENT)


def test_the_vitals_of_a_lost_source_are_not_stale_as_well(prompt: Bedside) -> None:
    prompt.restore(0, "source_lost:mon")
    prompt.restore(0, "spo2_low", 85.0)
    prompt.tick(31)
    assert prompt.present == {"source_lost:mon"}


@pytest.mark.parametrize("bed", [BED, ""])
@pytest.mark.parametrize("condition", ["driver_fault", "annunciator_fault:gpio", "never heard of"])
def test_what_is_not_reported_again_within_a_minute_ends_saying_so(bed: str, condition: str) -> None:
    presets = built_in()
    watch = Watch({BED: presets["adult"], "": presets["gateway"]})
    watch.restore(bed, AlarmEvent("i", condition, "technical", "medium", "start", "On", 0), 0)
    assert watch.next_deadline() == round(REPORTED_AGAIN_S * NS)
    assert watch.tick(round(REPORTED_AGAIN_S * NS) - 1) == ()
    (change,) = watch.tick(round(REPORTED_AGAIN_S * NS))
    assert (change.bed, change.condition, change.present, change.detail) == (bed, condition, False, ABSENT)


def test_what_is_reported_again_stays_and_what_is_denied_ends(prompt: Bedside) -> None:
    prompt.restore(0, "driver_fault")
    prompt.restore(0, "patient_mismatch")
    assert prompt.technical(30, "driver_fault", True) == []
    (change,) = prompt.technical(30, "patient_mismatch", False)
    assert (change.condition, change.present) == ("patient_mismatch", False)
    prompt.tick(10_000)
    assert prompt.present == {"driver_fault"}
    prompt.technical(10_001, "driver_fault", False)
    assert prompt.present == set()


def test_a_limit_that_the_preset_does_not_have_any_more_ends_at_once(prompt: Bedside) -> None:
    prompt.restore(5, "cvp_high", 20.0, limit="above 15")
    (change,) = prompt.tick(5)
    assert (change.condition, change.present, change.detail) == ("cvp_high", False, "limit taken out")


def test_a_bed_that_left_the_configuration_ends_its_alarms(prompt: Bedside) -> None:
    prompt.watch.restore("closed", AlarmEvent("i", "driver_fault", "technical", "low", "start", "Ack", 0), 0)
    (change,) = prompt.watch.tick(round(REPORTED_AGAIN_S * NS))
    assert (change.bed, change.present) == ("closed", False)


def test_a_new_patient_ends_what_was_held(ward: Bedside) -> None:
    ward.restore(0, "spo2_low", 85.0)
    ward.restore(0, "heart_rate_stale")
    ward.restore(0, "implausible:icp")
    ward.restore(0, "device_alarm:7")
    ward.restore(0, "source_lost:mon")
    ward.restore(0, "driver_fault")
    ward.take(ward.watch.new_patient(BED, NS))
    assert ward.present == {"source_lost:mon", "driver_fault"}
    ward.tick(FORGOTTEN_S)
    assert ward.present == set()
    ward.see(FORGOTTEN_S + 1, "resp_rate", 0)
    ward.tick(FORGOTTEN_S + 30)
    assert ward.present == set(), "the new patient's limits are not armed by the old one"


def test_nothing_that_is_restored_is_held_for_ever_and_changes_alternate() -> None:
    """Whatever is restored and whatever then happens: conditions alternate, and silence leaves only what says so."""
    kinds = (
        "spo2_low", "spo2_desaturation", "heart_rate_high", "spo2_stale", "implausible:spo2", "implausible:icp",
        "device_alarm:7", "device_technical:x", "source_lost:mon", "source_silent:mon", "driver_fault", "nameless",
    )  # fmt: skip
    for seed in range(60):
        rng = random.Random(seed)
        bed = Bedside(built_in()["adult"])
        chosen = rng.sample(kinds, rng.randint(1, 6))
        for condition in chosen:
            bed.restore(0, condition, rng.choice((None, 70.0, 150.0)), source=rng.choice(("mon", "old")))
        at = 0.0
        for _ in range(rng.choice((0, 5, 60))):
            at += rng.choice((0.3, 1, 7, 20))
            what = rng.random()
            if what < 0.6:
                term, values = rng.choice((("spo2", (97, 85, 70, 0.9, None)), ("heart_rate", (70, 160, 400))))
                bed.see(at, term, rng.choice(values))  # type: ignore[arg-type]
            elif what < 0.75:
                bed.state(at, rng.choice(("lost", "silent", "connected")))
            elif what < 0.9:
                bed.tell(device(at, rng.choice(("start", "end"))))
            else:
                bed.technical(at, "driver_fault", rng.random() < 0.5)
            bed.tick(at)
        bed.state(at + 1, "lost")
        bed.tell(device(at + 1, "end"))
        bed.technical(at + 2, "driver_fault", False)
        bed.tick(at + 2 + FORGOTTEN_S)
        left = {name.partition(":")[0] for name in bed.present}
        assert left <= {"source_lost", "spo2_stale", "heart_rate_stale"}, (seed, chosen, bed.present)
        seen = dict.fromkeys(chosen, True)
        for moment, condition, present in bed.log:
            told_anew = present and condition.startswith("device_")  # with another priority or text
            assert told_anew or seen.get(condition, False) is not present, (seed, moment, condition)
            seen[condition] = present


def test_restoring_keeps_the_short_way_closed_until_a_value_has_taken_over(prompt: Bedside) -> None:
    prompt.restore(0, "spo2_low", 85.0)
    prompt.watch.observe(BED, "mon", Observation("spo2", 97.0, "valid", NS))
    assert prompt.watch._beds[BED].vitals["spo2"].held == []
    assert all(slot.quiet for slot in prompt.watch._beds[BED].slots.values())
