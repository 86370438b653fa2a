"""Limits: delays, deadband, off delay, arming and several streams, to the nanosecond."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, low, preset

from edge_agent.records import DeviceAlarm, Observation
from edge_agent.watch.room import SLOTS_PER_BED


@pytest.fixture
def bed(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low()))


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


def test_condition_delay_is_exact(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    assert bed.watch.next_deadline() == 25 * NS
    bed.tick(24.999999)
    assert bed.present == set()
    bed.tick(25)
    assert bed.log == [(25, "spo2_low", True)]
    assert bed.changes[0].value == 85 and bed.changes[0].source == "mon"


def test_delay_counts_time_not_samples(bed: Bedside) -> None:
    for step in range(149):
        bed.see(10 + step / 10, "spo2", 85)
    assert bed.log == []
    bed.see(25, "spo2", 84)
    assert bed.log == [(25, "spo2_low", True)]


def test_a_value_back_inside_the_limit_cancels_the_delay(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    bed.see(24, "spo2", 90)  # inside the limit, though not beyond the deadband
    bed.see(24.5, "spo2", 89)
    bed.tick(39.4)
    assert bed.log == []
    bed.tick(39.5)
    assert bed.log == [(39.5, "spo2_low", True)]


@pytest.mark.alm("ALM-08")
def test_a_value_back_within_the_deadband_stops_the_off_delay(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    bed.see(16, "spo2", 92)  # beyond the deadband: the off delay begins
    bed.see(18, "spo2", 91)  # within it again
    bed.tick(21)
    assert bed.present == {"spo2_low"}
    bed.see(30, "spo2", 92)
    bed.tick(34.9)
    assert bed.present == {"spo2_low"}
    bed.tick(35)
    assert bed.present == set()
    bed.see(36, "spo2", 91)  # it has ended: the deadband says nothing any more
    bed.tick(60)
    assert bed.present == set()


def test_an_off_delay_that_ran_out_before_a_late_tick_has_ended_the_condition(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    bed.see(16, "spo2", 92)
    bed.see(21.5, "spo2", 91)  # no tick came at 21; this value is inside the limit and holds nothing up
    assert bed.present == set()
    bed.tick(40)
    assert bed.log == [(15, "spo2_low", True), (21.5, "spo2_low", False)]


def test_the_deadband_is_for_streams_that_held_the_condition_up(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    bed.see(15.5, "spo2", 91, source="other")  # never was outside the limit
    bed.see(16, "spo2", 92)
    bed.see(18, "spo2", 91, source="other")
    bed.tick(21)
    assert bed.present == set()


def test_a_new_patient_leaves_no_words_to_the_next_alarm(bed: Bedside) -> None:
    bed.see(0, "spo2", 97)
    bed.watch.new_patient(BED, 1 * NS)
    bed.see(2, "spo2", 97)
    bed.changes.clear()
    bed.tick(2 + 30)
    assert [(change.condition, change.detail) for change in bed.changes] == [("spo2_stale", "")]


def test_a_late_tick_does_not_lose_a_delay_that_ran_out(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    bed.see(26, "spo2", 97)
    bed.tick(31)
    assert bed.log == [(26, "spo2_low", True), (31, "spo2_low", False)]


def test_delay_zero_is_present_in_observe(prompt: Bedside) -> None:
    changes = prompt.see(10, "spo2", 89.9)
    assert [(change.condition, change.present) for change in changes] == [("spo2_low", True)]
    assert prompt.see(10.1, "spo2", 85) == []


def test_the_limit_itself_is_inside(prompt: Bedside) -> None:
    assert prompt.see(1, "spo2", 90) == []


def test_deadband_prevents_chatter(prompt: Bedside) -> None:
    for step in range(100):
        prompt.see(step, "spo2", 89 if step % 2 == 0 else 91)
    assert prompt.log == [(0, "spo2_low", True)]
    prompt.see(100, "spo2", 92)
    assert prompt.log[1:] == [(100, "spo2_low", False)]


def test_off_delay_starts_anew_when_the_value_goes_out_again(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(delay=0)))
    bed.see(0, "spo2", 85)
    bed.see(1, "spo2", 95)
    bed.see(5.9, "spo2", 85)
    bed.tick(6)
    bed.see(7, "spo2", 95)
    bed.tick(11.9)
    assert bed.present == {"spo2_low"}
    bed.tick(12)
    assert bed.log[-1] == (12, "spo2_low", False)
    assert bed.changes[-1].value is None


def test_outside_watches_both_sides(tmp_path: Path) -> None:
    bed = Bedside(
        preset(
            tmp_path,
            '[[condition]]\nid = "t"\nkind = "physiological"\nvital = "temp"\npresent = "outside 36 39"\n'
            'deadband = 0.2\noff_delay_s = 0\npriority = "low"\n',
        )
    )
    bed.see(0, "temp", 36)
    bed.see(1, "temp", 35.9)
    bed.see(2, "temp", 36.1)
    bed.see(3, "temp", 36.2)
    bed.see(4, "temp", 39.1)
    bed.see(5, "temp", 38.9)
    bed.see(6, "temp", 38.8)
    assert [entry[:1] + entry[2:] for entry in bed.log] == [(1, True), (3, False), (4, True), (6, False)]


def test_no_value_neither_raises_nor_ends(prompt: Bedside) -> None:
    prompt.see(0, "spo2", None)
    prompt.tick(1000)
    assert prompt.log == []
    prompt.see(1000, "spo2", 85)
    for second in range(1001, 1029):
        prompt.see(second, "spo2", None, validity="invalid")
        prompt.tick(second)
    assert prompt.present == {"spo2_low"}


def test_a_pending_delay_runs_on_while_data_is_fresh_and_ends_with_it(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    assert bed.present == {"spo2_low"}
    slow = Bedside(bed.watch._beds[BED].preset)
    slow.see(0, "spo2", 95)
    slow.see(20, "spo2", 85)
    slow.see(30, "spo2", None)
    slow.tick(35)
    assert slow.present == {"spo2_low"}, "no value is not a value inside the limit"


def test_arming_by_value(tmp_path: Path) -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "resp_rate", 0)
    bed.see(1, "heart_rate", 0)
    bed.tick(29)
    assert bed.log == [], "apnoea and asystole need a patient who was breathing and had a heart beat"
    bed.see(29, "resp_rate", 12)
    bed.see(30, "resp_rate", 0)
    assert bed.present == {"apnoea"}


def test_arming_by_measured_time(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(delay=0, more='arming = "measured 30"')))
    for second in range(0, 30, 5):
        bed.see(second, "spo2", 85)
    assert bed.log == []
    bed.see(30, "spo2", 85)
    assert bed.present == {"spo2_low"}


def test_questionable_values_alarm_and_say_so(prompt: Bedside) -> None:
    (change,) = prompt.see(0, "spo2", 85, validity="questionable")
    assert change.present and change.detail == "questionable value"


def test_terms_of_one_vital_share_its_condition(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85, channel="right")
    prompt.see(1, "spo2", 97, channel="left")
    prompt.see(2, "spo2", 85, source="oximeter")
    assert prompt.log == [(0, "spo2_low", True)]
    prompt.see(3, "spo2", 97, channel="right")
    assert prompt.present == {"spo2_low"}
    prompt.see(4, "spo2", 97, source="oximeter")
    assert prompt.log[1:] == [(4, "spo2_low", False)]


def test_different_terms_of_the_vital_resp_rate() -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "resp_rate_co2", 12)
    bed.see(0, "resp_rate", 35)
    bed.tick(15)
    assert bed.present == {"resp_rate_high"}
    bed.see(16, "resp_rate_co2", 13)
    bed.tick(29)
    assert bed.present == {"resp_rate_high"}
    bed.tick(30)  # the violating stream is no longer fresh, the other one is
    bed.tick(35)
    assert bed.present == set()


def test_arming_begins_anew_with_the_patient_and_its_value_is_enough() -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "resp_rate", 3)
    bed.see(1, "resp_rate", 0)
    assert bed.present == {"apnoea"}
    bed.take(bed.watch.new_patient(BED, 2 * NS))
    bed.see(3, "resp_rate", 0)
    bed.tick(300)
    assert bed.present == set()


def test_a_value_that_changes_nothing_takes_the_short_way(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    (slot,) = prompt.watch._beds[BED].slots.values()
    assert slot.quiet
    prompt.see(1, "spo2", 85)
    assert not slot.quiet


def test_streams_of_a_bed_are_bounded(prompt: Bedside) -> None:
    for number in range(SLOTS_PER_BED * 3):
        prompt.see(1, "spo2", 97, channel=str(number))
    assert len(prompt.watch._beds[BED].slots) <= SLOTS_PER_BED + 1
    prompt.see(2, "spo2", 85, channel="one more")
    assert prompt.present == {"spo2_low"}


def test_unknown_beds_and_terms_are_ignored(prompt: Bedside) -> None:
    assert list(prompt.watch.observe("nobody", "s", Observation("spo2", 1.0, "valid", 0))) == []
    assert list(prompt.watch.new_patient("nobody", 0)) == []
    assert list(prompt.watch.device_alarm("nobody", "s", DeviceAlarm("high", "start", "x", 0))) == []
    assert list(prompt.watch.source_state("s", ["nobody"], "lost", 0)) == []
    assert prompt.see(0, "no such term", 5) == []
    assert prompt.see(0, "spo2", float("nan")) == []


def test_presence_always_alternates_and_no_alarm_ends_silently() -> None:
    """Random values, gaps and link states: every change alternates, and a limit ends only for a reason that shows."""
    for seed in range(40):
        rng = random.Random(seed)
        bed = Bedside(built_in()["adult"])
        at, values = 0.0, {"spo2": (97, 85, 70, 0.9, None), "heart_rate": (70, 30, 160, 400, None, 0)}
        while at < 600:
            at += rng.choice((0.2, 1, 1, 1, 5, 31))
            if rng.random() < 0.05:
                bed.state(at, rng.choice(("lost", "silent", "connected")))
            elif rng.random() < 0.8:
                term = rng.choice(list(values))
                bed.see(at, term, rng.choice(values[term]))
            changes = bed.tick(at)
            for change in changes:
                if change.detail == "no data":
                    assert bed.present & {"spo2_stale", "heart_rate_stale", "source_lost:mon", "source_silent:mon"}
        seen: dict[str, bool] = {}
        for moment, condition, present in bed.log:
            assert seen.get(condition, False) is not present, (seed, moment, condition)
            seen[condition] = present
        assert [moment for moment, _, _ in bed.log] == sorted(moment for moment, _, _ in bed.log)


@pytest.mark.alm("ALM-07")
@pytest.mark.parametrize("delay", [0.5, 10, 15])
def test_the_condition_delay_is_exact_to_the_nanosecond(tmp_path: Path, delay: float) -> None:
    bed = Bedside(preset(tmp_path, low(delay)))
    bed.see_ns(7, "spo2", 89.9)
    due = 7 + round(delay * NS)
    assert bed.watch.next_deadline() == due
    assert bed.tick_ns(due - 1) == []
    (change,) = bed.tick_ns(due)
    assert (change.condition, change.present, change.at_ns) == ("spo2_low", True, due)
    early = Bedside(preset(tmp_path, low(delay)))
    early.see_ns(7, "spo2", 89.9)
    early.see_ns(due - 1, "spo2", 90)
    assert early.tick_ns(due + 10 * NS) == [], "back inside one nanosecond before"
    late = Bedside(preset(tmp_path, low(delay)))
    late.see_ns(7, "spo2", 89.9)
    (change,) = late.see_ns(due, "spo2", 90)
    assert change.present, "at its time it is due, whatever comes with it"


@pytest.mark.alm("ALM-07")
def test_the_off_delay_is_exact_to_the_nanosecond(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(0, 5)))
    bed.see_ns(0, "spo2", 85)
    bed.see_ns(3, "spo2", 92)
    assert bed.tick_ns(5 * NS + 2) == []
    (change,) = bed.tick_ns(5 * NS + 3)
    assert (change.present, change.at_ns, change.value) == (False, 5 * NS + 3, None)


@pytest.mark.alm("ALM-08")
@pytest.mark.parametrize("amplitude", [1.0, 1.999])
def test_a_value_that_swings_about_its_limit_is_one_alarm(tmp_path: Path, amplitude: float) -> None:
    bed = Bedside(preset(tmp_path, low(5, 5)))
    bed.see(0, "spo2", 89)
    for half in range(1, 1200):
        bed.see(half / 2, "spo2", 90 - amplitude if half < 20 or half % 2 else 90 + amplitude)
        bed.tick(half / 2)
    assert bed.log == [(5, "spo2_low", True)]


@pytest.mark.alm("ALM-08")
@pytest.mark.parametrize(
    ("present", "term", "out", "held", "free"),
    [("below 90", "spo2", 89.99, 91.99, 92), ("above 120", "heart_rate", 120.01, 118.01, 118),
     ("outside 36 39", "temp", 35.99, 37.99, 38), ("outside 36 39", "temp", 39.01, 37.01, 37)],
)  # fmt: skip
def test_the_deadband_ends_at_its_bound(
    tmp_path: Path, present: str, term: str, out: float, held: float, free: float
) -> None:
    deadband = 1 if term == "temp" else 2
    free, held = {("temp", 38): (37, 36.99), ("temp", 37): (38, 38.01)}.get((term, free), (free, held))
    row = low(0, 0).replace("below 90", present).replace('"spo2"', f'"{term}"')
    bed = Bedside(preset(tmp_path, row.replace("deadband = 2", f"deadband = {deadband}")))
    assert bed.see(0, term, held) == [], "the deadband is no second limit"
    assert [change.present for change in bed.see(1, term, out)] == [True]
    assert bed.see(2, term, held) == []
    assert [change.present for change in bed.see(3, term, free)] == [False]


@pytest.mark.parametrize(("present", "inside", "outside"), [
    ("below 90", 90, 89.999), ("above 90", 90, 90.001), ("outside 80 90", 80, 79.999), ("outside 80 90", 90, 90.001),
])  # fmt: skip
def test_limits_are_inclusive(tmp_path: Path, present: str, inside: float, outside: float) -> None:
    bed = Bedside(preset(tmp_path, low(0, 0).replace("below 90", present)))
    assert bed.see(0, "spo2", inside) == []
    assert bed.see(1, "spo2", inside) == []
    (change,) = bed.see(2, "spo2", outside)
    assert (change.value, change.source, change.bed) == (outside, "mon", BED)


@pytest.mark.alm("ALM-17")
def test_no_asystole_apnoea_or_missing_lead_before_the_first_valid_data() -> None:
    for name in ("adult", "paediatric", "neonate"):
        bed = Bedside(built_in()[name])
        for second in range(0, 200):
            bed.see(second, "heart_rate", 0)
            bed.see(second, "pulse_rate", 0)
            bed.see(second, "resp_rate", 0 if second % 2 else 2.99)
            bed.see(second, "spo2", None)
            bed.tick(second)
        bed.tick(400)
        assert bed.log == [], "a monitor without a patient, and then none at all"
        bed.see(401, "heart_rate", 1)
        bed.see(401, "resp_rate", 3)
        bed.see(402, "heart_rate", 0)
        bed.see(402, "resp_rate", 0)
        bed.tick(407)
        assert {"apnoea", "heart_rate_extreme_low"} <= bed.present


@pytest.mark.alm("ALM-17")
def test_arming_by_measured_time_is_exact(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(0, 0, 'arming = "measured 30"')))
    bed.see_ns(5, "spo2", 85)
    assert bed.see_ns(30 * NS + 4, "spo2", 85) == []
    assert len(bed.see_ns(30 * NS + 5, "spo2", 85)) == 1


def test_measured_time_begins_anew_with_the_patient(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(0, 0, 'arming = "measured 30"')))
    bed.see(0, "spo2", 85)
    bed.take(bed.watch.new_patient(BED, 40 * NS))
    bed.see(41, "spo2", 85)
    bed.see(70.9, "spo2", 85)
    assert bed.present == set()
    bed.see(71, "spo2", 85)
    assert bed.present == {"spo2_low"}


def test_a_new_patient_forgets_what_waits_for_its_partner() -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "nibp_sys", 85)
    bed.take(bed.watch.new_patient(BED, 1))
    assert bed.watch.next_deadline() is None
    bed.tick(10)
    assert bed.present == set(), "the systolic of the last patient is not the new one's"


def test_a_limit_that_is_not_armed_does_not_stop_the_others(tmp_path: Path) -> None:
    late = low(0, 0, 'arming = "measured 30"').replace("spo2_low", "late").replace("below 90", "below 95")
    bed = Bedside(preset(tmp_path, late + low(0, 0)))
    bed.see(0, "spo2", 85)
    assert bed.present == {"spo2_low"}
    bed.see(1, "spo2", 97)
    assert not next(iter(bed.watch._beds[BED].slots.values())).quiet, "not until all are armed"
    bed.see(30, "spo2", 94)
    assert bed.present == {"late"}


# -- severity: deficit x time ------------------------------------------------------------------------------------------


def severe(tmp_path: Path, amount: float = 50, delay: float = 15, limit: str = "below 90") -> Bedside:
    return Bedside(preset(tmp_path, low(delay, 0, f"severity = {amount}").replace("below 90", limit)))


@pytest.mark.alm("ALM-07")
@pytest.mark.parametrize(("value", "at"), [(80, 5), (85, 10), (87.5, 15), (86, 12.5), (89, 15), (40, 1)])
def test_severity_is_reached_between_values_at_its_time(tmp_path: Path, value: float, at: float) -> None:
    bed = severe(tmp_path)
    bed.see(0, "spo2", value)
    assert bed.watch.next_deadline() == at * NS
    assert bed.tick_ns(round(at * NS) - 1) == []
    bed.tick_ns(round(at * NS))
    assert bed.log == [(at, "spo2_low", True)]


def test_a_small_deficit_weighs_what_it_is(tmp_path: Path) -> None:
    bed = severe(tmp_path, 5)
    bed.see(0, "spo2", 89.5)
    assert bed.watch.next_deadline() == 10 * NS


def test_severity_adds_up_over_values_and_never_lengthens_the_delay(tmp_path: Path) -> None:
    bed = severe(tmp_path)
    bed.see(0, "spo2", 88)  # 2 x 5
    bed.see(5, "spo2", 80)  # 10 x 3
    bed.see(8, "spo2", 89)  # 1 x 4
    bed.see(12, "spo2", 87)  # 3 x 2 are left
    assert bed.watch.next_deadline() == 14 * NS
    bed.tick_ns(14 * NS - 1)
    assert bed.log == []
    bed.tick_ns(14 * NS)
    assert bed.log == [(14, "spo2_low", True)]
    mild = severe(tmp_path)
    mild.see(0, "spo2", 80)
    mild.see(1, "spo2", 89)
    mild.tick_ns(15 * NS - 1)
    assert mild.log == []
    mild.tick_ns(15 * NS)
    assert mild.log == [(15, "spo2_low", True)]


def test_severity_begins_anew_after_a_value_inside(tmp_path: Path) -> None:
    bed = severe(tmp_path)
    bed.see(0, "spo2", 80)
    bed.see(4.9, "spo2", 90)
    bed.see(5, "spo2", 80)
    bed.tick(9.9)
    assert bed.log == []
    bed.tick(10)
    assert bed.log == [(10, "spo2_low", True)]


def test_severity_takes_the_worst_of_several_streams(tmp_path: Path) -> None:
    bed = severe(tmp_path)
    bed.see(0, "spo2", 88, channel="a")
    bed.see(1, "spo2", 80, channel="b")  # 2 by now
    bed.see(2, "spo2", 86, channel="a")  # 12 by now, b still weighs
    bed.see(3, "spo2", 97, channel="b")  # 22, now a alone with 4
    bed.tick_ns(10 * NS - 1)
    assert bed.log == []
    bed.tick_ns(10 * NS)
    assert bed.log == [(10, "spo2_low", True)]


@pytest.mark.parametrize(("limit", "value"), [("above 70", 80), ("outside 50 70", 80), ("outside 90 95", 80)])
def test_severity_on_either_side(tmp_path: Path, limit: str, value: float) -> None:
    bed = severe(tmp_path, limit=limit)
    bed.see(0, "spo2", value)
    assert bed.watch.next_deadline() == 5 * NS


def test_severity_of_a_late_tick_and_of_none(tmp_path: Path) -> None:
    bed = severe(tmp_path)
    bed.see(0, "spo2", 80)
    assert [(change.condition, change.present) for change in bed.see(7, "spo2", 97)] == [
        ("spo2_low", True), ("spo2_low", False),
    ]  # fmt: skip
    plain = severe(tmp_path, 0)
    plain.see(0, "spo2", 2)
    assert plain.watch.next_deadline() == 15 * NS
    none_left = severe(tmp_path, 50, 0)
    assert len(none_left.see(0, "spo2", 89)) == 1


def test_severity_weighs_what_is_left_when_a_stream_ages(tmp_path: Path) -> None:
    bed = Bedside(
        preset(
            tmp_path,
            low(15, 0, "severity = 50") + '[[condition]]\nid = "spo2_stale"\npresent = "silent 3"\n',
        )
    )
    bed.see(0, "spo2", 85, channel="a")
    bed.see(2, "spo2", 89, channel="b")
    bed.tick(3)  # a has aged: 15 by now, b weighs 1
    for second in range(4, 15):
        bed.see(second, "spo2", 89, channel="b")
        bed.tick(second)
    assert bed.log == []
    bed.tick(15)
    assert bed.log == [(15, "spo2_low", True)]


def test_a_changed_preset_weighs_at_once(tmp_path: Path) -> None:
    bed = severe(tmp_path, 0)
    bed.see(0, "spo2", 80)
    bed.change(2, preset(tmp_path, low(15, 0, "severity = 50")))
    assert bed.watch.next_deadline() == 7 * NS, "weighed from the change on"
    bed.change(4, preset(tmp_path, low(15, 0, "severity = 100")))
    assert bed.watch.next_deadline() == 12 * NS
    bed.change(5, preset(tmp_path, low(15, 0, "severity = 30")))
    bed.tick(5)
    assert bed.log == [(5, "spo2_low", True)]


def test_streams_are_told_apart_up_to_the_number_and_no_further(prompt: Bedside) -> None:
    for number in range(SLOTS_PER_BED):
        prompt.see(1, "spo2", 97, channel=str(number))
    slots = prompt.watch._beds[BED].slots
    assert len(slots) == SLOTS_PER_BED and ("", "spo2", "") not in slots
    prompt.see(1, "spo2", 97, channel="x", source="a")
    prompt.see(1, "spo2", 97, channel="y", source="b")
    prompt.see(1, "heart_rate", 70)
    assert len(slots) == SLOTS_PER_BED + 2 and ("", "spo2", "") in slots and ("", "heart_rate", "") in slots
    prompt.see(2, "spo2", 85, channel="x", source="a")
    prompt.see(3, "spo2", 97, channel="y", source="b")
    assert [entry[1:] for entry in prompt.log] == [("spo2_low", True), ("spo2_low", False)]


def test_an_aged_stream_is_fresh_again_with_its_next_value(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97, channel="a")
    for second in range(0, 60, 2):
        prompt.see(second, "spo2", 97, channel="b")
        prompt.tick(second)
    prompt.see(59, "spo2", 97, channel="a")
    prompt.tick(88.9)
    assert prompt.log == []
    prompt.tick(89)
    assert prompt.log == [(89, "spo2_stale", True)], "a has been fresh to the end"


def test_the_next_deadline_is_of_something_that_waits(bed: Bedside) -> None:
    assert bed.watch.next_deadline() is None
    bed.see(0, "spo2", 85)
    assert bed.watch.next_deadline() == 15 * NS
    bed.see(1, "spo2", 97)
    assert bed.watch.next_deadline() == 30 * NS
    assert bed.tick(29) == [] and list(bed.watch.tick(29 * NS)) == []


def test_the_short_way_is_taken_up_to_the_limits_themselves_and_no_further() -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "heart_rate", 70)
    taken: list[float] = []

    def long_way(*arguments: object) -> tuple[()]:
        taken.append(arguments[2].value)  # type: ignore[attr-defined]
        return ()

    bed.watch._observe = long_way  # type: ignore[method-assign, assignment]
    for value in (50.0, 120.0, 70.0, 49.9, 120.1, None):
        bed.see(1, "heart_rate", value)
    assert taken == [49.9, 120.1, None]
    (slot,) = bed.watch._beds[BED].slots.values()
    assert (slot.value, slot.at_ns) == (70, NS)


def test_only_a_questionable_value_says_so(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    bed.see(16, "spo2", 97)
    bed.tick(21)
    assert [change.detail for change in bed.changes] == ["", ""]
    bed.see(22, "spo2", 85, validity="questionable")
    bed.tick(37)
    assert bed.changes[-1].detail == "questionable value"


def test_a_changed_limit_is_not_held_by_the_old_deadband_of_a_value_on_its_way_out(
    bed: Bedside, tmp_path: Path
) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    bed.see(16, "spo2", 92)  # beyond the deadband: on its way out
    bed.watch.set_preset(BED, preset(tmp_path, low()).with_row("spo2_low", "below 89"), 17 * NS)
    bed.see(18, "spo2", 90.5)  # within the new deadband, but never outside the new limit
    bed.tick(21)
    assert bed.present == set()
