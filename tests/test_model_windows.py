"""Live windows: hours of medians in bounded memory, where a fault never becomes a value."""

from __future__ import annotations

import math
import statistics
import tracemalloc
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import terms
from edge_agent.records import Observation
from edge_agent.risk.hours import age_bins, pack, rows, unpack
from edge_agent.watch.windows import BIN_NS, BINS, HOURS, MOST, RANGES, SLOTS, SOURCES, VITALS, Windows, median
from models_tflite import features

NS = 1_000_000_000
HOUR_NS = 3600 * NS
BEGIN = 500 * HOUR_NS + 7 * NS
BED = "ICU-1"


def see(windows: Windows, at_ns: int, term: str, value: float | None, validity: str = "valid", bed: str = BED) -> None:
    windows.observe(bed, Observation(term, value, validity, at_ns))  # type: ignore[arg-type]


def hours(windows: Windows, at_ns: int, vital: str = "heart_rate", bed: str = BED) -> list[float]:
    """What the model gets of a vital, oldest first, empty hours left out."""
    found = rows(windows.copy(bed, at_ns))
    assert found.shape == (HOURS, len(VITALS))
    return [value for value in found[:, VITALS.index(vital)].tolist() if not math.isnan(value)]


def test_vitals_hours_and_ranges_are_those_of_the_models_inputs() -> None:
    assert (features.VITALS, features.WINDOW, tuple(features.RANGES)) == (VITALS, HOURS, RANGES)
    assert BINS * BIN_NS == HOUR_NS
    for (_, groups), unit in zip(SOURCES, features.UNITS, strict=True):
        for term in (term for group in groups for term in group):
            assert terms.BY_NAME[term].ucum == unit, term


def test_an_hour_is_the_median_of_its_five_minutes() -> None:
    windows = Windows([BED])
    values = [60.0 + minute for minute in range(60)]
    values[17] = 250.0  # an artefact
    for minute, value in enumerate(values):
        see(windows, BEGIN + minute * 60 * NS, "heart_rate", value)
    medians = [statistics.median(values[first : first + 5]) for first in range(0, 60, 5)]
    assert hours(windows, BEGIN + HOUR_NS - 10 * NS) == [pytest.approx(statistics.median(medians))]


def test_the_newest_hour_ends_now_and_is_never_just_begun() -> None:
    windows = Windows([BED])
    for minute in range(120):
        see(windows, BEGIN + minute * 60 * NS, "spo2", 90.0 if minute < 60 else 98.0)
    assert hours(windows, BEGIN + 119 * 60 * NS, "spo2") == [90.0, 98.0]
    see(windows, BEGIN + 121 * 60 * NS, "spo2", 40.0)
    assert hours(windows, BEGIN + 121 * 60 * NS, "spo2")[-1] == 98.0, "one value of a new hour is not that hour"


@pytest.mark.parametrize(
    ("better", "worse", "vital"),
    [
        ("heart_rate", "pulse_rate", "heart_rate"), ("pulse_rate", "nibp_pulse_rate", "heart_rate"),
        ("abp_sys", "nibp_sys", "systolic"), ("art_mean", "nibp_mean", "mean_pressure"),
        ("abp_dia", "nibp_dia", "diastolic"), ("resp_rate_co2", "resp_rate", "resp_rate"),
        ("resp_rate", "resp_rate_impedance", "resp_rate"), ("resp_rate_impedance", "resp_rate_pleth", "resp_rate"),
        ("temp_core", "temp", "temperature"), ("temp", "temp_axillary", "temperature"),
    ],
)  # fmt: skip
def test_the_better_source_gives_an_hour_and_the_other_one_fills_in(better: str, worse: str, vital: str) -> None:
    windows = Windows([BED])
    for hour, present in enumerate(((better, worse), (worse,), (better,))):
        for term in present:
            see(windows, BEGIN + hour * HOUR_NS, term, 36.0 if term == better else 38.0)
    assert hours(windows, BEGIN + 2 * HOUR_NS + 60 * NS, vital) == [36.0, 38.0, 36.0]


def test_a_fault_never_becomes_a_value() -> None:
    windows = Windows([BED])
    for term, value, validity in (
        ("spo2", None, "not_available"), ("spo2", 97.0, "questionable"), ("spo2", 97.0, "invalid"),
        ("spo2", 0.97, "valid"), ("spo2", math.nan, "valid"), ("spo2", math.inf, "valid"), ("spo2", 101.0, "valid"),
        ("heart_rate", 0.0, "valid"), ("heart_rate", 301.0, "valid"), ("temp", 98.6, "valid"),
        ("temp_skin", 33.0, "valid"), ("etco2", 38.0, "valid"), ("resp_rate", -1.0, "valid"),
    ):  # fmt: skip
        see(windows, BEGIN, term, value, validity)
    see(windows, BEGIN, "spo2", 97.0, bed="not mine")
    assert windows.copy(BED, BEGIN).rings == ()
    see(windows, BEGIN, "spo2", 97.0)
    see(windows, BEGIN + NS, "spo2", 0.97)
    assert hours(windows, BEGIN + NS, "spo2") == [97.0]


def test_another_patient_begins_with_nothing() -> None:
    windows = Windows([BED, "ICU-2"])
    for bed in (BED, "ICU-2"):
        see(windows, BEGIN, "spo2", 97.0, bed=bed)
    windows.clear(BED)
    assert (windows.epoch(BED), windows.epoch("ICU-2")) == (1, 0)
    assert windows.copy(BED, BEGIN).rings == () and hours(windows, BEGIN, "spo2", "ICU-2") == [97.0]
    see(windows, BEGIN + HOUR_NS, "spo2", 95.0)
    assert hours(windows, BEGIN + HOUR_NS, "spo2") == [95.0]


def test_what_is_older_than_a_day_is_gone_however_long_nothing_came() -> None:
    windows = Windows([BED])
    see(windows, BEGIN, "spo2", 97.0)
    assert hours(windows, BEGIN + 24 * HOUR_NS - BIN_NS, "spo2") == [97.0]
    assert hours(windows, BEGIN + 24 * HOUR_NS, "spo2") == []
    for days in (2, 200):
        later = BEGIN + days * 24 * HOUR_NS
        see(windows, later, "spo2", 91.0)
        assert hours(windows, later, "spo2") == [91.0]


def test_a_bin_begins_with_its_first_nanosecond() -> None:
    windows = Windows([BED])
    number = BEGIN // BIN_NS
    for at_ns, value in (((number + 1) * BIN_NS - 1, 90.0), ((number + 1) * BIN_NS, 80.0)):
        see(windows, at_ns, "spo2", value)
    (ring,) = windows.copy(BED, (number + 1) * BIN_NS).rings
    bins = array("d")
    bins.frombytes(ring.bins)
    assert bins[number % SLOTS] == 90.0 and ring.values == (80.0,)


def test_of_many_values_those_are_kept_that_lie_evenly_in_the_bin() -> None:
    windows = Windows([BED])
    begin = (BEGIN // BIN_NS + 1) * BIN_NS
    for second in range(300):
        see(windows, begin + second * NS, "heart_rate", 10.0 + second / 2)
    for _ in range(2):  # and in the next bin likewise
        (ring,) = windows.copy(BED, begin + 299 * NS).rings
        seconds = [round((value - 10.0) * 2) for value in ring.values]
        assert seconds == list(range(0, 300, 8))
        begin += BIN_NS
        for second in range(300):
            see(windows, begin + second * NS, "heart_rate", 10.0 + second / 2)


def test_the_ring_holds_a_day_to_the_bin_and_gaps_in_it_are_empty() -> None:
    windows = Windows([BED])
    first = BEGIN // BIN_NS
    for number in range(first, first + 2 * SLOTS):
        if number % 7 not in (3, 4):  # gaps of two bins
            see(windows, number * BIN_NS, "heart_rate", 50.0 + (number - first) / 10)
    newest = first + 2 * SLOTS - 1
    (ring,) = windows.copy(BED, newest * BIN_NS).rings
    bins = array("d")
    bins.frombytes(ring.bins)
    for number in range(newest - SLOTS + 1, newest):
        value = bins[number % SLOTS]
        if number % 7 in (3, 4):
            assert math.isnan(value)
        else:
            assert value == 50.0 + (number - first) / 10


def test_the_age_of_the_newest_value_is_known() -> None:
    windows = Windows([BED])
    assert age_bins(windows.copy(BED, BEGIN)) == SLOTS
    see(windows, BEGIN, "spo2", 97.0)
    see(windows, BEGIN - HOUR_NS, "temp", 37.0)
    for later in (0, 1, 11, 12, SLOTS - 1):
        assert age_bins(windows.copy(BED, BEGIN + later * BIN_NS)) == later
    assert age_bins(windows.copy(BED, BEGIN + SLOTS * BIN_NS)) == SLOTS


def test_a_copy_does_not_change() -> None:
    windows = Windows([BED])
    see(windows, BEGIN, "spo2", 97.0)
    copy = windows.copy(BED, BEGIN)
    before = rows(copy)
    for second in range(1, 4000):
        see(windows, BEGIN + second * NS, "spo2", 60.0)
    np.testing.assert_array_equal(rows(copy), before)


def test_memory_is_bounded_whatever_the_rate() -> None:
    windows = Windows([f"ICU-{bed}" for bed in range(4)])

    def feed(begin: int) -> None:
        for tenth in range(15_000):
            for bed in range(4):
                see(windows, begin + tenth * NS // 10, "spo2", 90.0 + tenth % 7, bed=f"ICU-{bed}")

    tracemalloc.start()
    feed(BEGIN)
    first = tracemalloc.get_traced_memory()[0]
    feed(BEGIN + 24 * HOUR_NS)
    second = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert second - first < 4096
    (ring,) = windows.copy("ICU-0", BEGIN + 24 * HOUR_NS + 1500 * NS - 1).rings
    assert len(ring.values) < MOST and len(ring.bins) == 8 * SLOTS
    assert hours(windows, BEGIN + 24 * HOUR_NS + 1500 * NS - 1, "spo2", "ICU-0")[-1] == 93.0


VALUES = st.lists(
    st.tuples(st.integers(0, 3 * 3600 * 24), st.floats(10, 300, allow_nan=False)), min_size=1, max_size=120
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_hours_are_those_of_the_slow_definition(found: list[tuple[int, float]]) -> None:
    found.sort(key=lambda each: each[0])
    windows = Windows([BED])
    bins: dict[int, list[float]] = {}
    for second, value in found:
        at_ns = BEGIN + second * NS
        see(windows, at_ns, "heart_rate", value)
        bins.setdefault(at_ns // BIN_NS, []).append(value)
    now_ns = BEGIN + found[-1][0] * NS
    number = now_ns // BIN_NS
    assert all(len(each) < MOST for each in bins.values())
    expected = []
    for hour in range(HOURS):
        first = number - SLOTS + 1 + hour * BINS
        medians = [statistics.median(bins[each]) for each in range(first, first + BINS) if each in bins]
        expected.append(statistics.median(medians) if medians else math.nan)
    got = rows(windows.copy(BED, now_ns))[:, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.integers(0, 30 * 12))
def test_a_window_that_was_packed_fills_another_one(found: list[tuple[int, float]], later: int) -> None:
    found.sort(key=lambda each: each[0])
    windows, other = Windows([BED]), Windows([BED])
    for second, value in found:
        see(windows, BEGIN + second * NS, "heart_rate", value)
        see(windows, BEGIN + second * NS, "nibp_sys", min(value, 250.0) + 20)
    kept_ns = BEGIN + found[-1][0] * NS
    packed = pack(windows.copy(BED, kept_ns))
    number = kept_ns // BIN_NS - 17  # the same moment in another boot
    other.fill(BED, number, unpack(packed, number))
    now_ns, shift = kept_ns + later * BIN_NS, 17 * BIN_NS
    np.testing.assert_array_equal(rows(other.copy(BED, now_ns - shift)), rows(windows.copy(BED, now_ns)))


def test_what_is_filled_in_takes_the_place_of_nothing_that_was_measured() -> None:
    past, windows = Windows([BED]), Windows([BED])
    for minute in range(0, 180, 5):
        see(past, BEGIN + minute * 60 * NS, "spo2", 90.0)
    copy = past.copy(BED, BEGIN + 179 * 60 * NS)
    see(windows, BEGIN + 179 * 60 * NS, "spo2", 99.0)
    see(windows, BEGIN + 179 * 60 * NS, "resp_rate", 15.0)
    windows.fill(BED, copy.number, copy.rings)
    number = copy.number
    (spo2, breaths) = windows.copy(BED, BEGIN + 179 * 60 * NS).rings
    assert spo2.values == (99.0,) and breaths.values == (15.0,)
    bins = array("d")
    bins.frombytes(spo2.bins)
    assert [bins[each % SLOTS] for each in range(number - 35, number)] == [90.0] * 35
    see(windows, BEGIN + 190 * 60 * NS, "spo2", 98.0)
    windows.fill(BED, copy.number, copy.rings)
    later = windows.copy(BED, BEGIN + 190 * 60 * NS)
    bins = array("d")
    bins.frombytes(later.rings[0].bins)
    assert bins[number % SLOTS] == 99.0 and later.rings[0].values == (98.0,)


@pytest.mark.parametrize("packed", [b"", b"x", pack(Windows([BED]).copy(BED, BEGIN))[:-3]])
def test_bytes_that_are_no_window_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no window"):
        unpack(packed, 5)


def test_median_of_nothing_is_no_number() -> None:
    assert math.isnan(median(())) and median((3.0,)) == 3.0 and median((4.0, 1.0)) == 2.5
