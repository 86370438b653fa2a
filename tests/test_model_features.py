"""The network's inputs: finite for anything, of the window alone, blind to the hour and to charting, and right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edge_agent.watch.scores import news2
from models_tflite import features
from models_tflite.features import NAMES, VITALS, WINDOW, inputs

Rows = NDArray[np.float64]
RANDOM = np.random.default_rng(5)
NORMAL = np.array([80.0, 97.0, 37.0, 120.0, 85.0, 65.0, 16.0])


def course(hours: int, gaps: float = 0.3) -> Rows:
    """A made-up patient, with gaps."""
    rows = NORMAL + np.cumsum(RANDOM.normal(0, 1, (hours, 7)), axis=0) * [3, 0.5, 0.1, 4, 3, 3, 1]
    rows[:, 1] = np.minimum(rows[:, 1], 100)
    rows[RANDOM.random(rows.shape) < gaps] = np.nan
    return rows


def column(found: NDArray[Any], name: str) -> NDArray[Any]:
    return found[..., NAMES.index(name)]


@settings(max_examples=300, deadline=None)
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(0, WINDOW), st.just(7)),
        elements=st.one_of(st.floats(), st.sampled_from([0.0, 80.0, 37.0, 1e308, -1e308])),
    ),
    st.floats(),
    st.floats(),
)
def test_inputs_are_finite_whatever_comes_in(rows: Rows, age: float, sex: float) -> None:
    found = inputs(rows, age, sex)
    assert found.shape == (WINDOW, len(NAMES))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_window_longer_than_a_day_or_of_other_vitals_is_refused() -> None:
    for shape in ((WINDOW + 1, 7), (WINDOW, 6), (7,)):
        with pytest.raises(ValueError, match="at most 24 hours of 7 vitals"):
            inputs(np.full(shape, 80.0), 60, 1)


@pytest.mark.parametrize("hours", [1, 2, 7, 23])
def test_hours_before_the_first_row_are_the_same_as_hours_in_which_nothing_was_measured(hours: int) -> None:
    rows = course(hours)
    before = np.concatenate([np.full((WINDOW - hours, 7), np.nan), rows])
    np.testing.assert_array_equal(inputs(rows, 60, 1), inputs(before, 60, 1))


def test_a_steady_patient_gives_the_same_inputs_at_every_hour_of_the_stay() -> None:
    """Neither the number of hours nor anything counted from admission is to be seen."""
    of_each = [inputs(np.tile(NORMAL, (hours, 1)), 60, 1) for hours in (1, 5, 12, WINDOW)]
    for found in of_each:
        np.testing.assert_array_equal(found, np.broadcast_to(of_each[0][-1], found.shape))


def test_how_often_a_steady_value_was_charted_is_not_to_be_seen() -> None:
    often = np.tile(NORMAL, (WINDOW, 1))
    seldom = np.full_like(often, np.nan)
    seldom[[3, 20]] = NORMAL
    np.testing.assert_array_equal(inputs(often, 60, 1), inputs(seldom, 60, 1))


def test_no_input_is_named_after_clock_or_charting() -> None:
    words = {word for name in NAMES for word in name.split("_")}
    assert not words & {"hour", "hours", "iculos", "time", "count", "missing", "measured", "since", "unit", "admission"}
    assert len(set(NAMES)) == len(NAMES)


def test_a_step_depends_on_no_later_hour_once_every_vital_was_measured() -> None:
    rows = course(WINDOW)
    rows[0] = NORMAL
    changed = rows.copy()
    changed[15:] = course(WINDOW - 15, gaps=0)
    np.testing.assert_array_equal(inputs(rows, 60, 1)[:15], inputs(changed, 60, 1)[:15])


def test_batches_give_what_single_windows_give() -> None:
    many = np.stack([course(WINDOW) for _ in range(6)]).reshape(2, 3, WINDOW, 7)
    age, sex = RANDOM.uniform(20, 90, (2, 3)), RANDOM.integers(0, 2, (2, 3))
    found = inputs(many, age, sex)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[place], inputs(many[place], age[place], sex[place]))


def test_the_last_value_is_carried_on_and_the_first_carried_back() -> None:
    rows = np.full((6, 7), np.nan)
    rows[2, 0], rows[4, 0] = 90.0, 110.0
    rate = column(inputs(rows, 60, 1), "heart_rate")
    np.testing.assert_array_equal(rate, [90.0] * (WINDOW - 2) + [110.0] * 2)


def test_a_missing_pressure_comes_from_the_other_two() -> None:
    rows = np.tile(NORMAL, (3, 1))
    rows[:, 4] = np.nan
    assert column(inputs(rows, 60, 1), "mean_pressure")[-1] == pytest.approx(65 + 55 / 3, abs=1e-4)
    rows[:, 4], rows[:, 5] = 85.0, np.nan
    assert column(inputs(rows, 60, 1), "diastolic")[-1] == pytest.approx((3 * 85 - 120) / 2, abs=1e-4)


def test_an_impossible_value_counts_as_not_measured() -> None:
    rows = np.tile(NORMAL, (3, 1))
    whole = inputs(rows, 60, 1)
    for vital, value in ((1, 0.97), (2, 98.6), (0, np.inf), (3, -5.0)):
        wrong = rows.copy()
        wrong[-1, vital] = value
        np.testing.assert_array_equal(inputs(wrong, 60, 1), whole)


def test_statistics_are_those_of_the_last_hours() -> None:
    rows = course(WINDOW, gaps=0)
    found = inputs(rows, 60, 1)
    for vital, name in enumerate(VITALS):
        for hours, short in ((6, "6h"), (WINDOW, "24h")):
            last = rows[-hours:, vital]
            for part, value in (("mean", last.mean()), ("min", last.min()), ("max", last.max()), ("sd", last.std())):
                assert column(found, f"{name}_{part}_{short}")[-1] == pytest.approx(value, rel=1e-4, abs=1e-3)
        change = rows[-1, vital] - rows[-6, vital]
        assert column(found, f"{name}_change_6h")[-1] == pytest.approx(change, abs=1e-3)
    assert column(found, "shock_index")[-1] == pytest.approx(rows[-1, 0] / rows[-1, 3], rel=1e-5)


def test_news2_points_are_those_of_the_bedside_score() -> None:
    edges = [bound + off for _, bounds, _ in features._NEWS2 for bound in bounds for off in (-1, 0, 1)]
    for _ in range(200):
        row = np.array([RANDOM.choice([*edges, value]) for value in NORMAL])
        row = np.clip(row, *np.array(features.RANGES).T)
        bedside = news2(
            resp_rate=row[6], spo2=row[1], oxygen=False, systolic=row[3], pulse=row[0], consciousness="A",
            temperature=row[2],
        )  # fmt: skip
        assert column(inputs(row[None], 60, 1), "news2")[-1] == bedside.value


def test_unknown_age_and_sex_stand_in_the_middle() -> None:
    found = inputs(np.tile(NORMAL, (2, 1)), np.nan, np.nan)
    assert (column(found, "sex") == 0.5).all()
    assert (column(found, "age") == 64).all()
    assert (column(inputs(np.tile(NORMAL, (2, 1)), 300, 7), "age") == 64).all()
