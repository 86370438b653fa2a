"""How good a score of hourly rows is: AUROC, AUPRC, the Challenge's utility, WH, calibration, and their intervals.

Theory. `label` is 1 in the rows of a septic stay from six hours before onset. A score is any number per row, larger
meaning more at risk.

- AUROC: the share of pairs (labelled row, unlabelled row) in which the labelled one scores higher; a tie counts half.
- AUPRC: average precision, the sum over thresholds of (rise of recall) x precision, equal scores taken together.
- WH, within hour: the AUROC's share, over pairs of rows of the same hour since admission only, all hours pooled. Every
  pair weighs the same, so an hour weighs by its labelled rows times its unlabelled rows. A score that is a function of
  the hour ties in every pair and gets exactly .5: what is above .5 comes from the patient and not from the clock.
- Utility: every row in which an alarm is given or withheld earns or costs something; the sum is scaled so that never
  alarming is 0 and alarming in the rewarded rows only is 1. With the onset t0 six hours after the first labelled row,
  an alarm in a septic stay rises from 0 twelve hours before t0 to 1 six hours before, and falls to 0 three hours after;
  earlier than that it costs .05 and later it is nothing. Silence costs nothing until six hours before t0, then up to 2
  three hours after. An alarm in another stay costs .05. Only differences matter, so a row is described by its `gain`:
  what an alarm earns there above silence.

Intervals come from resampling patients, not rows, with the same resamples for every score, so that differences are
paired.

Source: Reyna and others, Crit Care Med 2020;48(2):210-217 (utility).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[Any]

EARLIEST, OPTIMAL, LATEST = -12, -6, 3  # hours from onset: first reward, greatest reward, last reward
_REWARD, _MISS, _FALSE_ALARM = 1.0, -2.0, -0.05  # greatest reward, greatest cost of silence, cost of a false alarm
LATER_THAN_H = 54  # the probe for the clock asks whether the hour is later than this


class Figures(NamedTuple):
    """The four figures of one score; NaN where a figure has no meaning (no labelled row, no threshold)."""

    auroc: float
    auprc: float
    utility: float
    wh: float


class Ranking:
    """The rows of one score, sorted once, so that patients can be weighed anew in a few milliseconds."""

    def __init__(self, label: Rows, score: Rows, hour: Rows, stay: Rows) -> None:
        """Sort the rows; `stay` is the index of the patient of each row.

        Raises: ValueError for a score that is not a number, or arrays of different length.
        """
        if not len(label) == len(score) == len(hour) == len(stay):
            raise ValueError("label, score, hour and stay are of different length")
        if not np.isfinite(score).all():
            raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
        rank = np.unique(score, return_inverse=True)[1].astype(np.int64)
        is_positive = np.asarray(label) == 1
        self._order(rank, is_positive, stay)
        self._order_by_hour(rank, is_positive, stay, np.asarray(hour).astype(np.int64))

    def _order(self, rank: Rows, is_positive: Rows, stay: Rows) -> None:
        negatives, positives = np.flatnonzero(~is_positive), np.flatnonzero(is_positive)
        negatives = negatives[np.argsort(rank[negatives], kind="stable")]
        positives = positives[np.argsort(rank[positives], kind="stable")]
        self._negative_stay, self._positive_stay = stay[negatives], stay[positives]
        self._below = np.searchsorted(rank[negatives], rank[positives], "left")
        self._not_above = np.searchsorted(rank[negatives], rank[positives], "right")
        self._tied_from = np.searchsorted(rank[positives], rank[positives], "left")

    def _order_by_hour(self, rank: Rows, is_positive: Rows, stay: Rows, hour: Rows) -> None:
        spread = int(rank.max()) + 1 if len(rank) else 1
        key = hour * spread + rank
        negatives, positives = np.flatnonzero(~is_positive), np.flatnonzero(is_positive)
        negatives = negatives[np.argsort(key[negatives], kind="stable")]
        sorted_key = key[negatives]
        self._hour_negative_stay, self._hour_positive_stay = stay[negatives], stay[positives]
        self._hour_below = np.searchsorted(sorted_key, key[positives], "left")
        self._hour_not_above = np.searchsorted(sorted_key, key[positives], "right")
        self._hour_first = np.searchsorted(sorted_key, hour[positives] * spread, "left")
        self._hour_last = np.searchsorted(sorted_key, (hour[positives] + 1) * spread, "left")

    def areas(self, weight: Array | None = None) -> tuple[float, float]:
        """AUROC and AUPRC, every patient counted `weight` times (once by default)."""
        negatives = _running(weight, self._negative_stay)
        positive = _weights(weight, self._positive_stay)
        total = positive.sum()
        if not total or not negatives[-1]:
            return float("nan"), float("nan")
        below = 0.5 * (negatives[self._below] + negatives[self._not_above])
        auroc = positive @ below / (total * negatives[-1])
        caught = total - np.concatenate(([0.0], np.cumsum(positive)))[self._tied_from]
        false = negatives[-1] - negatives[self._below]
        auprc = positive @ (caught / np.maximum(caught + false, 1e-300)) / total
        return float(auroc), float(auprc)

    def within_hour(self, weight: Array | None = None) -> float:
        """WH, every patient counted `weight` times (once by default)."""
        negatives = _running(weight, self._hour_negative_stay)
        positive = _weights(weight, self._hour_positive_stay)
        start = negatives[self._hour_first]
        pairs = positive @ (negatives[self._hour_last] - start)
        if not pairs:
            return float("nan")
        won = positive @ (0.5 * (negatives[self._hour_below] + negatives[self._hour_not_above]) - start)
        return float(won / pairs)


def _weights(weight: Array | None, stay: Rows) -> Array:
    return np.ones(len(stay)) if weight is None else weight[stay]


def _running(weight: Array | None, stay: Rows) -> Array:
    """The weight of the first 0, 1, ... rows."""
    out = np.zeros(len(stay) + 1)
    if weight is None:
        out[1:] = np.arange(1, len(stay) + 1)
    else:
        np.cumsum(weight[stay], out=out[1:])
    return out


def auroc(label: Rows, score: Rows) -> float:
    """The area under the receiver operating characteristic, 0 to 1."""
    return Ranking(label, score, *_one_patient(label)).areas()[0]


def auprc(label: Rows, score: Rows) -> float:
    """Average precision, 0 to 1."""
    return Ranking(label, score, *_one_patient(label)).areas()[1]


def within_hour(label: Rows, score: Rows, hour: Rows) -> float:
    """WH: AUROC among rows of the same hour, pairs of all hours pooled, 0 to 1."""
    return Ranking(label, score, hour, _one_patient(label)[1]).within_hour()


def _one_patient(label: Rows) -> tuple[Rows, Rows]:
    return np.zeros(len(label), np.int64), np.zeros(len(label), np.int64)


def onset(label: Rows, first: Rows) -> Array:
    """The row of onset within each stay: six hours after its first labelled row; infinite in a stay without one."""
    row = np.flatnonzero(label)
    stay = np.searchsorted(first, row, "right") - 1
    out = np.full(len(first) - 1, np.inf)
    np.minimum.at(out, stay, row - first[stay] - OPTIMAL)
    return out


def from_onset(label: Rows, first: Rows) -> Array:
    """Hours from onset of every row, negative before it; minus infinity in a stay without one."""
    length = np.diff(first)
    within = np.arange(len(label)) - np.repeat(first[:-1], length)
    return np.asarray(within - np.repeat(onset(label, first), length))


def gains(label: Rows, first: Rows) -> Array:
    """What an alarm in each row earns above silence, in the Challenge's units.

    Stay i has the rows first[i] to first[i + 1]. The sum over the rows of all alarms is the Challenge's utility less
    that of never alarming.
    """
    hours = np.maximum(from_onset(label, first), EARLIEST - 1)  # any earlier hour costs the same
    rising = _REWARD * (hours - EARLIEST) / (OPTIMAL - EARLIEST)
    falling = _REWARD * (LATEST - hours) / (LATEST - OPTIMAL)
    silence = _MISS * (hours - OPTIMAL) / (LATEST - OPTIMAL)
    gain = np.where(hours <= OPTIMAL, np.maximum(rising, _FALSE_ALARM), falling - silence)
    gain[hours > LATEST] = 0.0
    return gain


def best_gains(label: Rows, first: Rows) -> Array:
    """The gain of every stay when alarms are given in the rewarded rows only, shape (S,)."""
    hours = from_onset(label, first)
    return _per_stay(np.where((hours >= EARLIEST) & (hours <= LATEST), gains(label, first), 0.0), first)


def _per_stay(values: Rows, first: Rows) -> Array:
    total = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    return np.asarray(np.diff(total[first]))


def utility(label: Rows, first: Rows, alarm: Rows) -> float:
    """The Challenge's normalised utility of alarms given row by row: 0 for none ever, 1 for the best possible."""
    best = best_gains(label, first).sum()
    return float(gains(label, first)[np.asarray(alarm, bool)].sum() / best) if best else float("nan")


def best_threshold(gain: Rows, score: Rows) -> float:
    """The threshold (alarm from it upward) with the greatest sum of gains; infinite when no alarm is best.

    Lies half way between two scores, so that rounding does not cross it. For training and validation rows only.
    """
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    ranked = np.asarray(score, np.float64)[order]
    total = np.cumsum(np.asarray(gain)[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    if not len(ends) or total[ends].max() <= 0:
        return float("inf")
    end = int(ends[np.argmax(total[ends])])
    return float(ranked[end] if end + 1 == len(ranked) else (ranked[end] + ranked[end + 1]) / 2)


def steady_threshold(label: Rows, first: Rows, score: Rows, count: int = 50) -> float:
    """The median of the best thresholds over resamples of the patients: the single best one hangs on a few of them.

    Infinite where no alarm is best in every resample. For validation rows.
    """
    gain, stay = gains(label, first), np.repeat(np.arange(len(first) - 1), np.diff(first))
    found = [best_threshold(gain * weight[stay], score) for weight in resamples(len(first) - 1, count, seed=1)]
    finite = [each for each in found if np.isfinite(each)]
    return float(np.median(finite)) if finite else float("inf")


class Measure:
    """One score with its threshold over one set of stays: its figures, for any weighing of the patients."""

    def __init__(self, label: Rows, first: Rows, hour: Rows, score: Rows, threshold: float = float("nan")) -> None:
        """Prepare the rows; stay i has the rows first[i] to first[i+1]. Alarm from `threshold` upward."""
        stay = np.repeat(np.arange(len(first) - 1), np.diff(first))
        self.ranking = Ranking(label, score, hour, stay)
        self.reached = _per_stay(np.where(np.asarray(score) >= threshold, gains(label, first), 0.0), first)
        self.best = best_gains(label, first)
        if np.isnan(threshold):
            self.reached[:] = np.nan

    def figures(self, weight: Array | None = None) -> Figures:
        """AUROC, AUPRC, utility and WH, every patient counted `weight` times (once by default)."""
        area, precision = self.ranking.areas(weight)
        reached, best = (self.reached, self.best) if weight is None else (self.reached * weight, self.best * weight)
        gained = reached.sum() / best.sum() if best.any() else float("nan")
        return Figures(area, precision, float(gained), self.ranking.within_hour(weight))


def resamples(stays: int, count: int, seed: int) -> Iterator[Array]:
    """How often each of the patients is drawn, for `count` resamples with replacement; same seed, same draws."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(0, stays, stays), minlength=stays).astype(np.float64)


def bootstrap(measures: dict[str, Measure], stays: int, count: int, seed: int = 2019) -> dict[str, Array]:
    """The figures of every score in each resample of the patients, shape (count, 4), resamples shared by all scores."""
    out = {name: np.full((count, len(Figures._fields)), np.nan) for name in measures}
    for index, weight in enumerate(resamples(stays, count, seed)):
        for name, measure in measures.items():
            out[name][index] = measure.figures(weight)
    return out


def interval(values: Rows, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values; NaN when there are none."""
    known = np.asarray(values)[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


class Calibration(NamedTuple):
    """How far a risk can be read as a probability. Ideal: slope 1, intercept 0, mean risk as observed, rest small."""

    slope: float  # of the logistic regression of the label on the logit of the risk
    intercept: float  # of the same, with the slope held at 1
    brier: float
    ece: float  # mean |risk - observed| over ten groups of equal size
    observed: float
    mean_risk: float


_LEAST_RISK = 1e-6  # a risk of exactly 0 or 1 has no logit


def calibration(label: Rows, risk: Rows, groups: int = 10) -> Calibration:
    """Slope, intercept, Brier score and expected calibration error of a risk between 0 and 1."""
    y, p = np.asarray(label, np.float64), np.clip(np.asarray(risk, np.float64), _LEAST_RISK, 1 - _LEAST_RISK)
    logit = np.log(p / (1 - p))
    slope = recalibration(y, logit)[0]
    intercept = _logistic(np.ones((len(y), 1)), y, logit)[0]
    table = reliability(label, risk, groups)
    ece = np.abs(table[:, 0] - table[:, 1]) @ table[:, 2] / len(y)
    return Calibration(
        float(slope), float(intercept), float(np.mean((p - y) ** 2)), float(ece), float(y.mean()), float(p.mean())
    )


def recalibration(label: Rows, logit: Rows) -> tuple[float, float]:
    """Slope and offset that turn a logit into the logit of a probability, by logistic regression; NaN without both."""
    inputs = np.stack([np.ones(len(logit)), np.asarray(logit, np.float64)], axis=1)
    offset, slope = _logistic(inputs, np.asarray(label, np.float64), np.zeros(len(logit)))
    return float(slope), float(offset)


def reliability(label: Rows, risk: Rows, groups: int = 10) -> Array:
    """Mean risk, observed share and rows of groups of equal size, ordered by risk, shape (groups, 3)."""
    order = np.argsort(risk, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return np.array([(np.mean(np.asarray(risk)[p]), np.mean(np.asarray(label)[p]), len(p)) for p in parts])


def _logistic(inputs: Array, target: Array, offset: Array, steps: int = 50) -> Array:
    """Coefficients of a logistic regression by Newton's method; NaN when the labels are all the same."""
    if not 0 < target.sum() < len(target):
        return np.full(inputs.shape[1], np.nan)
    beta = np.zeros(inputs.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(inputs @ beta + offset, -30, 30)))
        slope = inputs.T @ (target - p)
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs
        step = np.linalg.lstsq(curve, slope, rcond=None)[0]
        beta += np.clip(step, -2, 2)  # so that a far start does not overshoot
        if np.abs(step).max() < 1e-9:
            break
    return beta


class HourProbe(NamedTuple):
    """What a score gives away of the hour since admission; a score that knows nothing of it has 0 and .5."""

    r_squared: float  # of the linear regression of the hour on the score
    later: float  # AUROC of the score for `later than LATER_THAN_H`


def hour_probe(score: Rows, hour: Rows) -> HourProbe:
    """A linear probe of the score for the hour since admission."""
    s, h = np.asarray(score, np.float64), np.asarray(hour, np.float64)
    spread = s.std() * h.std()
    r = ((s - s.mean()) * (h - h.mean())).mean() / spread if spread > 1e-12 else 0.0
    return HourProbe(float(r * r), auroc((h > LATER_THAN_H).astype(np.int8), s))
