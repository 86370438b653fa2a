"""Plausibility: what cannot be what it says raises a technical condition and feeds no limit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, low, preset

from edge_agent.presets import Preset, load_presets
from edge_agent.records import Observation
from edge_agent.terms import TERMS, Term
from edge_agent.watch import Watch
from edge_agent.watch.vital import UNWATCHED_AGE_S

ADULT = built_in()["adult"]


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


@pytest.mark.alm("ALM-18")
@pytest.mark.parametrize(
    ("term", "value"),
    [("spo2", 0.97), ("spo2", 1.0), ("spo2", 101), ("heart_rate", 301), ("pulse_rate", 301), ("temp", 98.6),
     ("resp_rate", -1), ("icp", 900)],
)  # fmt: skip
def test_implausible_is_technical_and_feeds_no_limit(term: str, value: float) -> None:
    bed = Bedside(built_in()["adult"])
    vital = {"temp": "temp"}.get(term, term)
    bed.see(0, term, value)
    bed.tick(29)
    assert bed.present == {f"implausible:{vital}"}
    assert str(value) not in bed.changes[0].detail
    good = {"spo2": 97, "temp": 37, "resp_rate": 15, "icp": 10}.get(term, 70)
    bed.see(29.5, term, good)
    assert bed.present == set()


@pytest.mark.alm("ALM-18")
def test_implausible_does_not_end_or_refresh_a_limit(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85)
    for second in range(1, 31):
        prompt.see(second, "spo2", 0.97)
        prompt.tick(second)
    assert prompt.present == {"implausible:spo2", "spo2_stale"}


def test_implausible_from_the_start_and_then_silence_becomes_stale(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 0.97)
    prompt.tick(30)
    assert prompt.present == {"spo2_stale"}


@pytest.mark.alm("ALM-18")
@pytest.mark.parametrize("order", [("nibp_sys", "nibp_dia"), ("nibp_dia", "nibp_sys")])
def test_swapped_pressures_are_implausible_whatever_comes_first(order: tuple[str, str]) -> None:
    bed = Bedside(built_in()["adult"])
    swapped = {"nibp_sys": 70, "nibp_dia": 120}  # each by itself would raise a limit alarm
    for term in order:
        bed.see(10, term, swapped[term])
    bed.tick(10.2)
    assert {condition.partition(":")[0] for condition in bed.present} == {"implausible"}


def test_pressures_of_different_measurements_are_not_compared() -> None:
    bed = Bedside(built_in()["adult"])
    for at, systolic, diastolic in ((0, 158, 89), (60, 85, 55)):  # the new systolic is below the old diastolic
        bed.see(at, "nibp_sys", systolic)
        bed.see(at, "nibp_dia", diastolic)
    assert bed.present == {"nibp_sys_low"}


def test_a_pressure_without_its_partner_waits_for_one_tick_only() -> None:
    bed = Bedside(built_in()["adult"])
    assert bed.see(10, "nibp_sys", 85) == []
    assert bed.watch.next_deadline() == 10 * NS
    bed.tick(10.1)
    assert bed.present == {"nibp_sys_low"}
    other = Bedside(built_in()["adult"])
    other.see(10, "nibp_sys", 85)
    other.see(10, "nibp_dia", None)
    assert other.present == {"nibp_sys_low"}


def test_equal_pressures_are_implausible_and_one_measurement_may_come_in_two_chunks() -> None:
    def pressure(term: str, value: float, at: int, device_time: str | None) -> Observation:
        return Observation(term, value, "valid", at * NS, device_time)

    for systolic, diastolic, second, device_time, expected in (
        (100.0, 100.0, 10, None, {"implausible:nibp_sys", "implausible:nibp_dia"}),
        (70.0, 120.0, 12, "2026-03-03T10:00:00", {"implausible:nibp_sys", "implausible:nibp_dia"}),
        (70.0, 120.0, 12, None, {"nibp_sys_low", "nibp_dia_high"}),
    ):
        bed = Bedside(built_in()["adult"])
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_sys", systolic, 10, device_time)))
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_dia", diastolic, second, device_time)))
        bed.tick(13)
        assert bed.present == expected


def test_a_fraction_is_noticed_where_no_limit_is_set_and_after_good_values() -> None:
    bed = Bedside(built_in()["bedside"])
    bed.see(0, "spo2", 97)
    bed.see(1, "spo2", 97)
    bed.see(2, "spo2", 0.97)
    assert bed.present == {"implausible:spo2"}


@pytest.mark.alm("ALM-18")
@pytest.mark.parametrize("term", [term for term in TERMS if term.kind == "numeric"], ids=lambda term: term.name)
def test_the_bounds_of_every_term_are_inside_and_beyond_them_nothing_feeds_a_limit(term: Term) -> None:
    least, greatest = term.plausible_min, term.plausible_max
    if term.vital in ("heart_rate", "pulse_rate"):
        greatest = 300.0
    for number, (value, odd) in enumerate(
        [(least, False), (greatest, False)]
        + ([(math.nextafter(least, -math.inf), True)] if least is not None else [])
        + ([(math.nextafter(greatest, math.inf), True)] if greatest is not None else [])
    ):
        if value is None:
            continue
        at, watch = number * NS, Watch({BED: ADULT})
        changes = [*watch.observe(BED, f"s{number}", Observation(term.name, value, "valid", at)), *watch.tick(at + 1)]
        raised = {change.condition for change in changes if change.present}
        assert (f"implausible:{term.vital}" in raised) == odd, (value, raised)
        if odd:
            assert raised == {f"implausible:{term.vital}"}


@pytest.mark.alm("ALM-18")
def test_a_fraction_is_one_per_cent_at_most_and_zero_is_no_fraction(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    prompt.see(1, "spo2", math.nextafter(1.0, 2.0))
    assert prompt.present == {"spo2_low"}
    prompt.see(2, "spo2", 1.0)
    assert prompt.present == {"spo2_low", "implausible:spo2"}
    assert prompt.changes[-1].detail == "spo2 looks like a fraction, not per cent"
    prompt.see(3, "spo2", 0.0)
    assert prompt.present == {"spo2_low"}


def test_the_words_say_bounds_and_unit_and_not_the_value(prompt: Bedside) -> None:
    (change,) = prompt.see(0, "heart_rate", 301)
    assert change.detail == "heart_rate outside 0 to 300 /min" and change.source == "mon" and change.value is None
    bed = Bedside(ADULT)
    bed.see(0, "abp_sys", 80)
    changes = bed.see(0, "abp_dia", 80)
    assert {c.condition: c.detail for c in changes} == {
        "implausible:abp_sys": "abp_dia not below abp_sys", "implausible:abp_dia": "abp_dia not below abp_sys",
    }  # fmt: skip


@pytest.mark.parametrize("pair", ["nibp", "abp", "art", "pap"])
def test_every_pressure_has_its_pair(pair: str) -> None:
    bed = Bedside(ADULT)
    bed.see(0, f"{pair}_sys", 60)
    bed.see(0, f"{pair}_dia", 60)
    assert {condition.partition(":")[0] for condition in bed.present} == {"implausible"}
    bed.see(5, f"{pair}_sys", 120)
    bed.see(5, f"{pair}_dia", 80)
    assert bed.present == set()


def test_pressures_of_two_streams_are_not_one_measurement() -> None:
    bed = Bedside(ADULT)
    bed.see(0, "abp_sys", 100, source="a")
    bed.see(0, "abp_dia", 100, source="b")
    bed.see(0, "art_sys", 100, channel="a")
    bed.see(0, "art_dia", 100, channel="b")
    bed.see(0, "abp_sys", 70, source="a")
    bed.tick(0)
    assert bed.present == set()


def test_one_implausible_stream_of_two_is_enough_and_both_must_be_well_again(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 0.97, channel="a")
    prompt.see(0, "spo2", 0.97, channel="b")
    prompt.see(1, "spo2", 97, channel="a")
    assert prompt.present == {"implausible:spo2"}
    prompt.see(2, "spo2", 97, channel="b")
    assert prompt.present == set()


def test_an_implausible_stream_that_ends_is_forgotten_at_its_age_while_another_lives(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97, channel="a")
    prompt.see(5, "spo2", 0.97, channel="a")
    for second in range(0, 40):
        prompt.see(second, "spo2", 97, channel="b")
        prompt.tick(second)
    assert "implausible:spo2" in prompt.present, "its last word is younger than the last valid value was"
    prompt.see(60, "spo2", 97, channel="a")
    assert prompt.present == set()


def test_a_vital_without_limits_forgets_an_implausible_value_after_its_age(prompt: Bedside) -> None:
    prompt.see(0, "icp", 900)
    prompt.see(0, "icp", 10, channel="b")
    prompt.tick_ns(round(UNWATCHED_AGE_S * NS) - 1)
    assert prompt.present == {"implausible:icp"}
    for second in range(1, round(UNWATCHED_AGE_S)):
        prompt.see(second, "icp", 10, channel="b")
    prompt.tick(UNWATCHED_AGE_S)
    assert prompt.present == set()


def test_a_limit_is_not_held_by_a_stream_that_aged_before_the_first_valid_value_of_another(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85, channel="a")
    prompt.see(15, "spo2", 0.97, channel="b")
    prompt.tick(31)
    assert prompt.present == {"spo2_low", "implausible:spo2"}, "nothing valid has taken its place"
    prompt.see(32, "spo2", 97, channel="b")
    assert prompt.present == set()


def test_the_row_names_the_condition_and_without_one_it_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "own"\n[[condition]]\nid = "odd"\nkind = "technical"\npresent = "implausible"\npriority = "low"\n'
    )
    for rows, condition in ((load_presets([path])["own"], "odd:spo2"), (Preset("", "", ()), "implausible:spo2")):
        bed = Bedside(rows)
        bed.see(0, "spo2", 0.97)
        assert bed.present == {condition}
        bed.see(1, "spo2", 97)
        assert bed.present == set()
