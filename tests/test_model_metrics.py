"""The figures of a score, against slow definitions, hand-computed cases and what they must be by construction."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models_tflite.training import alerts, metrics

STAY = st.tuples(st.integers(1, 40), st.one_of(st.none(), st.integers(0, 39)))  # hours, first labelled hour
COHORT = st.lists(STAY, min_size=1, max_size=8)


def cohort(shape: list[tuple[int, int | None]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, first rows and hours of stays of the given lengths, labelled from the given hour to the end."""
    labels = [(np.arange(hours) >= (hours if begin is None else begin)).astype(int) for hours, begin in shape]
    first = np.concatenate(([0], np.cumsum([hours for hours, _ in shape])))
    return np.concatenate(labels), first, np.concatenate([np.arange(1, hours + 1) for hours, _ in shape])


def slow_utility(label: np.ndarray, alarm: np.ndarray) -> float:
    """The published definition, row by row."""
    total, t0 = 0.0, int(np.argmax(label)) + 6 if label.any() else math.inf
    for t in range(len(label)):
        if t > t0 + 3:
            continue
        if not label.any():
            total += -0.05 if alarm[t] else 0.0
        elif alarm[t]:
            total += max((t - t0 + 12) / 6, -0.05) if t <= t0 - 6 else (t0 + 3 - t) / 9
        else:
            total += 0.0 if t <= t0 - 6 else -2 * (t - t0 + 6) / 9
    return total


def slow_normalised(label: np.ndarray, first: np.ndarray, alarm: np.ndarray) -> float:
    seen = best = inaction = 0.0
    for begin, end in pairwise(first):
        here, best_alarm = label[begin:end], np.zeros(end - begin, bool)
        if here.any():
            t0 = int(np.argmax(here)) + 6
            best_alarm[max(0, t0 - 12) : t0 + 4] = True
        seen += slow_utility(here, alarm[begin:end])
        best += slow_utility(here, best_alarm)
        inaction += slow_utility(here, np.zeros(end - begin, bool))
    return (seen - inaction) / (best - inaction)


def slow_pairs(label: np.ndarray, score: np.ndarray, hour: np.ndarray, weight: np.ndarray) -> float:
    won = pairs = 0.0
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            if hour[i] == hour[j]:
                pairs += weight[i] * weight[j]
                won += weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    return won / pairs if pairs else math.nan


def slow_precision(label: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    total, caught_before = 0.0, 0.0
    positives = (weight * label).sum()
    if not positives or not (weight * (1 - label)).sum():
        return math.nan
    for threshold in sorted(set(score.tolist()), reverse=True):
        over = score >= threshold
        caught = (weight * label)[over].sum()
        if caught > caught_before:
            total += (caught - caught_before) / positives * caught / weight[over].sum()
        caught_before = caught
    return total


@settings(max_examples=150, deadline=None)
@given(COHORT, st.integers(0, 2**32 - 1))
def test_figures_equal_their_slow_definitions_for_any_weighing_of_patients(shape, seed) -> None:
    label, first, hour = cohort(shape)
    chance = np.random.default_rng(seed)
    score = chance.integers(0, 6, len(label)) / 4  # many ties
    weight = chance.integers(0, 3, len(shape)).astype(float)
    of_row = weight[np.repeat(np.arange(len(shape)), np.diff(first))]
    for given_weight, row_weight in ((None, np.ones(len(label))), (weight, of_row)):
        found = metrics.Measure(label, first, hour, score, 1.0).figures(given_weight)
        everywhere = np.zeros(len(label))
        assert found.auroc == pytest.approx(slow_pairs(label, score, everywhere, row_weight), nan_ok=True)
        assert found.wh == pytest.approx(slow_pairs(label, score, hour, row_weight), nan_ok=True)
        assert found.auprc == pytest.approx(slow_precision(label, score, row_weight), nan_ok=True)
    if label.any() and metrics.best_gains(label, first).sum() > 0:
        want = slow_normalised(label, first, score >= 1.0)
        assert metrics.utility(label, first, score >= 1.0) == pytest.approx(want)
        assert metrics.Measure(label, first, hour, score, 1.0).figures().utility == pytest.approx(want)


def test_weighing_a_patient_twice_is_having_it_twice() -> None:
    label, first, hour = cohort([(20, 9), (15, None), (30, 22), (12, None)])
    score = np.random.default_rng(1).random(len(label))
    doubled = [0, 0, 2, 3, 3]
    rows = np.concatenate([np.arange(first[index], first[index + 1]) for index in doubled])
    again = np.concatenate(([0], np.cumsum(np.diff(first)[doubled])))
    want = metrics.Measure(label[rows], again, hour[rows], score[rows], 0.5).figures()
    found = metrics.Measure(label, first, hour, score, 0.5).figures(np.array([2.0, 0.0, 1.0, 2.0]))
    assert found == pytest.approx(want)


def test_gains_of_one_stay_by_hand() -> None:
    label, first, _ = cohort([(30, 12)])  # onset t0 = 18
    gain = metrics.gains(label, first)
    assert gain[5] == pytest.approx(-0.05)  # 13 h before t0: a false alarm
    assert gain[6] == pytest.approx(0.0)  # 12 h before: neither
    assert gain[9] == pytest.approx(0.5)  # half way to the best
    assert gain[12] == pytest.approx(1.0)  # 6 h before: best, and silence still costs nothing
    assert gain[18] == pytest.approx(3 / 9 + 2 * 6 / 9)  # at t0: a third of the reward, and two thirds of -2 avoided
    assert gain[21] == pytest.approx(2.0)  # 3 h after: no reward, but the whole cost of silence avoided
    assert gain[22:] == pytest.approx(np.zeros(8))
    other, begin, _ = cohort([(4, None)])
    assert metrics.gains(other, begin) == pytest.approx(np.full(4, -0.05))


def test_utility_is_zero_for_silence_one_for_the_best_and_negative_for_noise() -> None:
    label, first, _ = cohort([(60, 20), (60, None), (60, None)])
    hours = metrics.from_onset(label, first)
    assert metrics.utility(label, first, np.zeros(180, bool)) == 0.0
    assert metrics.utility(label, first, (hours >= -12) & (hours <= 3)) == pytest.approx(1.0)
    assert metrics.utility(label, first, hours < -12) < 0
    quiet = np.zeros(60, int)
    assert math.isnan(metrics.utility(quiet, np.array([0, 60]), quiet))


def test_whatever_is_a_function_of_the_hour_has_exactly_one_half_within_the_hour() -> None:
    label, first, hour = cohort([(50, 40), (60, None), (40, 30), (45, None)])
    for clock in (hour.astype(float), -np.sqrt(hour), np.sin(hour)):
        found = metrics.Measure(label, first, hour, clock).figures()
        assert found.wh == 0.5
        assert math.isnan(found.utility)  # without a threshold there are no alarms to value
    assert metrics.auroc(label, hour) > 0.6  # while the whole AUROC takes the clock for a model


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        metrics.auroc(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ValueError, match="different length"):
        metrics.auroc(np.array([0, 1]), np.array([0.1]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=1, max_size=30))
def test_the_best_threshold_has_no_better(rows) -> None:
    gain, score = (np.array(column, float) for column in zip(*rows, strict=True))
    found = gain[score >= metrics.best_threshold(gain, score)].sum()
    assert found == max(0.0, *(gain[score >= level].sum() for level in score))


def test_the_steady_threshold_does_not_hang_on_one_patient() -> None:
    label, first, _ = cohort([(40, 20)] * 9 + [(40, None)] * 9)
    score = np.clip(metrics.gains(label, first), 0, 1)
    steady = metrics.steady_threshold(label, first, score)
    assert 0 < steady < 0.2 and steady == metrics.steady_threshold(label, first, score)
    lucky = np.where(np.arange(len(label)) < 40, score, 0.0)  # one patient alone is seen: a third of resamples lack it
    assert metrics.steady_threshold(label, first, lucky) < math.inf
    assert metrics.steady_threshold(np.zeros(len(label), int), first, score) == math.inf


def test_resamples_are_of_patients_shared_by_scores_and_repeatable() -> None:
    chance = np.random.default_rng(3)
    label, first, hour = cohort([(30, int(chance.integers(5, 25)) if index % 4 == 0 else None) for index in range(200)])
    good = label + chance.normal(0, 1.0, len(label))
    measures = {
        "good": metrics.Measure(label, first, hour, good, 1.0),
        "same": metrics.Measure(label, first, hour, good * 2, 2.0),
        "worse": metrics.Measure(label, first, hour, good + chance.normal(0, 2, len(label)), 1.0),
    }
    drawn = metrics.bootstrap(measures, 200, 60, seed=5)
    assert np.array_equal(drawn["good"], drawn["same"])  # a paired difference of equals is exactly none
    assert np.array_equal(drawn["good"], metrics.bootstrap(measures, 200, 60, seed=5)["good"])
    low, high = metrics.interval(drawn["good"][:, 0])
    assert low < measures["good"].figures().auroc < high and 0.005 < high - low < 0.1
    assert metrics.interval(drawn["good"][:, 0] - drawn["worse"][:, 0])[0] > 0
    assert all(weight.sum() == 200 for weight in metrics.resamples(200, 5, 1))
    assert all(math.isnan(bound) for bound in metrics.interval(np.array([np.nan])))


def test_calibration_finds_the_slope_and_offset_that_were_put_in() -> None:
    chance = np.random.default_rng(7)
    logit = chance.normal(-3, 1.2, 200_000)
    label = (chance.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(int)
    honest = metrics.calibration(label, 1 / (1 + np.exp(-logit)))
    assert honest.slope == pytest.approx(1, abs=0.03) and honest.intercept == pytest.approx(0, abs=0.03)
    assert honest.ece < 0.003 and honest.observed == pytest.approx(honest.mean_risk, abs=0.002)
    bold = metrics.calibration(label, 1 / (1 + np.exp(-(2 * logit + 1))))
    slope, offset = metrics.recalibration(label, 2 * logit + 1)
    assert bold.slope == pytest.approx(0.5, abs=0.02) and slope == pytest.approx(0.5, abs=0.02)
    assert offset == pytest.approx(-0.5, abs=0.05)
    assert bold.ece > 5 * honest.ece and bold.brier > honest.brier
    one_sided = metrics.calibration(np.zeros(10, int), np.full(10, 0.2))
    assert (
        math.isnan(one_sided.slope) and one_sided.ece == pytest.approx(0.2) and one_sided.brier == pytest.approx(0.04)
    )


def test_the_probe_tells_how_much_of_the_hour_a_score_gives_away() -> None:
    chance = np.random.default_rng(8)
    hour = chance.integers(1, 100, 20_000)
    assert metrics.hour_probe(hour * 0.5 + 3, hour) == pytest.approx((1.0, 1.0))
    blind = metrics.hour_probe(chance.random(20_000), hour)
    assert blind.r_squared < 0.001 and abs(blind.later - 0.5) < 0.02
    assert metrics.hour_probe(np.full(20_000, 0.3), hour) == (0.0, 0.5)


def slow_alarms(over: np.ndarray, first: np.ndarray, lockout: int) -> np.ndarray:
    given = np.zeros(len(over), bool)
    for begin, end in pairwise(first):
        last = -math.inf
        for row in range(begin, end):
            if over[row] and row - last >= lockout:
                given[row], last = True, row
    return given


@settings(max_examples=150, deadline=None)
@given(COHORT, st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 8))
def test_alarms_keep_the_lockout_within_each_stay(shape, seed, lockout, threshold) -> None:
    _, first, hour = cohort(shape)
    score = np.random.default_rng(seed).integers(0, 8, len(hour))
    want = slow_alarms(score >= threshold, first, lockout)
    assert np.array_equal(alerts.alarms(score, threshold, first, lockout), want)


def test_what_an_alarm_catches_by_hand() -> None:
    label, first, _ = cohort([(30, 12), (24, None), (30, 20)])  # onsets at 18 and 26
    score = np.zeros(84)
    score[[5, 10, 11, 12]] = 1.0  # stay 0: false, 13 h before onset; true; locked out; true
    score[30 + np.array([0, 1, 2])] = 1.0  # stay 1: false, locked out, false
    score[54 + 29] = 1.0  # stay 2: three hours after onset, the last that counts
    found = alerts.burden(label, first, score, 0.5)
    assert found.per_day == pytest.approx(6 / 84 * 24)
    assert found.sensitivity == 1.0 and found.in_time == 0.5
    assert found.ppv == pytest.approx(3 / 6) and found.ppv_patients == pytest.approx(2 / 3) and found.alarmed == 1.0
    assert sorted(alerts.lead_times(label, first, score, 0.5)) == [-3.0, 8.0]
    assert found.lead_h == pytest.approx(2.5)
    silent = alerts.burden(label, first, score, 2.0)
    assert (silent.per_day, silent.sensitivity, silent.alarmed) == (0, 0, 0) and math.isnan(silent.ppv)


def test_a_threshold_for_a_number_of_alarms_keeps_it_and_the_next_lower_one_does_not() -> None:
    chance = np.random.default_rng(9)
    _, first, hour = cohort([(int(hours), None) for hours in chance.integers(5, 60, 120)])
    score = np.round(chance.random(len(hour)), 3)
    for wanted in alerts.PER_DAY:
        threshold = alerts.threshold_for(score, wanted, first)
        below = score[score < threshold].max()
        assert alerts.per_day(score, threshold, first) <= wanted < alerts.per_day(score, below, first)
    assert alerts.threshold_for(np.ones(len(hour)), 1, first) == math.inf  # all or nothing: nothing
    one_day = np.append(np.zeros(23), 1.0)
    assert alerts.threshold_for(one_day, 1, np.array([0, 24])) == 0.5  # just as many as asked for
    assert alerts.stored(alerts.to_store(score, first)) == {
        wanted: alerts.threshold_for(score, wanted, first) for wanted in alerts.PER_DAY
    }
