"""Limits: delays, deadband, off delay, arming and several streams, to the nanosecond."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, low, preset

from edge_agent.presets import load_presets
from edge_agent.records import Observation
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
    bed = Bedside(load_presets()["adult"])
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
    bed = Bedside(load_presets()["adult"])
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
    bed = Bedside(load_presets()["adult"])
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
    assert prompt.see(0, "no such term", 5) == []
    assert prompt.see(0, "spo2", float("nan")) == []


def test_presence_always_alternates_and_no_alarm_ends_silently() -> None:
    """Random values, gaps and link states: every change alternates, and a limit ends only for a reason that shows."""
    for seed in range(40):
        rng = random.Random(seed)
        bed = Bedside(load_presets()["adult"])
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
