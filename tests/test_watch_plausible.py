"""Plausibility: what cannot be what it says raises a technical condition and feeds no limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, low, preset

from edge_agent.presets import load_presets
from edge_agent.records import Observation


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


@pytest.mark.parametrize(
    ("term", "value"),
    [("spo2", 0.97), ("spo2", 1.0), ("spo2", 101), ("heart_rate", 301), ("pulse_rate", 301), ("temp", 98.6),
     ("resp_rate", -1), ("icp", 900)],
)  # fmt: skip
def test_implausible_is_technical_and_feeds_no_limit(term: str, value: float) -> None:
    bed = Bedside(load_presets()["adult"])
    vital = {"temp": "temp"}.get(term, term)
    bed.see(0, term, value)
    bed.tick(29)
    assert bed.present == {f"implausible:{vital}"}
    assert str(value) not in bed.changes[0].detail
    good = {"spo2": 97, "temp": 37, "resp_rate": 15, "icp": 10}.get(term, 70)
    bed.see(29.5, term, good)
    assert bed.present == set()


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


@pytest.mark.parametrize("order", [("nibp_sys", "nibp_dia"), ("nibp_dia", "nibp_sys")])
def test_swapped_pressures_are_implausible_whatever_comes_first(order: tuple[str, str]) -> None:
    bed = Bedside(load_presets()["adult"])
    swapped = {"nibp_sys": 70, "nibp_dia": 120}  # each by itself would raise a limit alarm
    for term in order:
        bed.see(10, term, swapped[term])
    bed.tick(10.2)
    assert {condition.partition(":")[0] for condition in bed.present} == {"implausible"}


def test_pressures_of_different_measurements_are_not_compared() -> None:
    bed = Bedside(load_presets()["adult"])
    for at, systolic, diastolic in ((0, 158, 89), (60, 85, 55)):  # the new systolic is below the old diastolic
        bed.see(at, "nibp_sys", systolic)
        bed.see(at, "nibp_dia", diastolic)
    assert bed.present == {"nibp_sys_low"}


def test_a_pressure_without_its_partner_waits_for_one_tick_only() -> None:
    bed = Bedside(load_presets()["adult"])
    assert bed.see(10, "nibp_sys", 85) == []
    assert bed.watch.next_deadline() == 10 * NS
    bed.tick(10.1)
    assert bed.present == {"nibp_sys_low"}
    other = Bedside(load_presets()["adult"])
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
        bed = Bedside(load_presets()["adult"])
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_sys", systolic, 10, device_time)))
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_dia", diastolic, second, device_time)))
        bed.tick(13)
        assert bed.present == expected


def test_a_fraction_is_noticed_where_no_limit_is_set_and_after_good_values() -> None:
    bed = Bedside(load_presets()["bedside"])
    bed.see(0, "spo2", 97)
    bed.see(1, "spo2", 97)
    bed.see(2, "spo2", 0.97)
    assert bed.present == {"implausible:spo2"}
