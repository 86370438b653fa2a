"""What a score does at the bedside: alarms after a lockout, what they catch, how early, and how many there are.

Theory. A score at or above the threshold gives an alarm unless one was given in the same stay less than LOCKOUT_H hours
before. An alarm is true when it lies from twelve hours before onset to three hours after: the hours for which the
Challenge's utility rewards one. A septic stay is caught when it has a true alarm; the lead time is from its first true
alarm to onset. Thresholds for a number of alarms per patient-day come from other patients (training or validation) than
those whom a table reports, so that the number of alarms found there differs a little and is printed beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models_tflite.training.metrics import EARLIEST, LATEST, from_onset

Array = NDArray[np.float64]
Rows = NDArray[Any]

LOCKOUT_H = 2  # the longest for which 5 alarms a day are still below half of what the lockout itself allows
PER_DAY = (1, 2, 5)  # alarms per patient-day at which sensitivity is told
_HOURS_PER_DAY = 24
KEY = "threshold_for_{}_alarms_per_day"


class Burden(NamedTuple):
    """What one threshold does to a set of stays; shares are 0 to 1 and NaN where there is nothing to share."""

    threshold: float
    per_day: float  # alarms per patient-day
    sensitivity: float  # septic stays with a true alarm, of septic stays
    ppv: float  # true alarms, of alarms
    ppv_patients: float  # septic stays, of stays with an alarm
    alarmed: float  # stays with an alarm, of stays
    lead_h: float  # median hours from the first true alarm to onset; negative after it
    lead_low_h: float  # lower quartile
    lead_high_h: float  # upper quartile
    in_time: float  # septic stays with a true alarm before onset, of septic stays


def alarms(score: Rows, threshold: float, first: Rows, lockout_h: int = LOCKOUT_H) -> NDArray[np.bool_]:
    """The rows in which an alarm is given; stay i has the hourly rows first[i] to first[i + 1]."""
    over = np.asarray(score) >= threshold
    given = np.zeros(len(over), dtype=np.bool_)
    rows = np.flatnonzero(over)
    if lockout_h <= 1:
        return over
    stay = np.searchsorted(first, rows, "right") - 1
    end = np.asarray(first)[stay + 1]
    following = np.searchsorted(
        rows, np.minimum(rows + lockout_h, end), "left"
    )  # the next that may alarm, by its index
    at = np.flatnonzero(np.diff(stay, prepend=-1))  # the first of each stay
    limit = np.append(end, 0)
    while len(at):
        given[rows[at]] = True
        after = following[at]
        known = after < len(rows)
        at, after = at[known], after[known]
        at = after[rows[after] < limit[at]]  # still in the same stay
    return given


def per_day(score: Rows, threshold: float, first: Rows, lockout_h: int = LOCKOUT_H) -> float:
    """Alarms per patient-day."""
    return float(alarms(score, threshold, first, lockout_h).sum() / len(score) * _HOURS_PER_DAY)


def threshold_for(score: Rows, target: float, first: Rows, lockout_h: int = LOCKOUT_H) -> float:
    """The threshold, half way between two scores, whose alarms per patient-day come nearest to `target` from below.

    Infinite where even the highest score alone alarms more often. For rows of training or validation.
    """
    levels = np.unique(np.asarray(score, np.float64))
    if not len(levels):
        return float("inf")
    low, high = 0, len(levels)  # levels[high:] alarm at most as often as wanted; the number of alarms falls with it
    while low < high:
        middle = (low + high) // 2
        if per_day(score, levels[middle], first, lockout_h) <= target:
            high = middle
        else:
            low = middle + 1
    if high == len(levels):
        return float("inf")
    return float(levels[0] if not high else (levels[high - 1] + levels[high]) / 2)


def to_store(score: Rows, first: Rows, lockout_h: int = LOCKOUT_H) -> dict[str, float]:
    """The thresholds for 1, 2 and 5 alarms per patient-day as a bundle's `training` keeps them; of validation rows."""
    found = {KEY.format(rate): threshold_for(score, rate, first, lockout_h) for rate in PER_DAY}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def stored(training: Mapping[str, Any]) -> dict[int, float]:
    """The thresholds that `to_store` put into a bundle's `training`, by alarms per patient-day."""
    return {rate: float(training[KEY.format(rate)]) for rate in PER_DAY if KEY.format(rate) in training}


def burden(label: Rows, first: Rows, score: Rows, threshold: float, lockout_h: int = LOCKOUT_H) -> Burden:
    """What the alarms of one threshold catch and cost."""
    stay = np.repeat(np.arange(len(first) - 1), np.diff(first))
    given = alarms(score, threshold, first, lockout_h)
    hours = from_onset(label, first)
    true = given & (hours >= EARLIEST) & (hours <= LATEST)
    septic = np.bincount(stay, weights=label, minlength=len(first) - 1) > 0
    alarmed = np.bincount(stay[given], minlength=len(first) - 1) > 0
    caught, begins = np.unique(stay[true], return_index=True)
    lead = -hours[np.flatnonzero(true)[begins]]
    low, median, high = np.quantile(lead, (0.25, 0.5, 0.75)) if len(lead) else (np.nan,) * 3
    return Burden(
        threshold=threshold,
        per_day=float(given.sum() / len(given) * _HOURS_PER_DAY),
        sensitivity=_share(len(caught), septic.sum()),
        ppv=_share(true.sum(), given.sum()),
        ppv_patients=_share((alarmed & septic).sum(), alarmed.sum()),
        alarmed=_share(alarmed.sum(), len(alarmed)),
        lead_h=float(median),
        lead_low_h=float(low),
        lead_high_h=float(high),
        in_time=_share((lead > 0).sum(), septic.sum()),
    )


def lead_times(label: Rows, first: Rows, score: Rows, threshold: float, lockout_h: int = LOCKOUT_H) -> Array:
    """Hours from the first true alarm to onset, one number per septic stay that was caught."""
    stay = np.repeat(np.arange(len(first) - 1), np.diff(first))
    hours = from_onset(label, first)
    true = np.flatnonzero(alarms(score, threshold, first, lockout_h) & (hours >= EARLIEST) & (hours <= LATEST))
    begins = np.unique(stay[true], return_index=True)[1]
    return np.asarray(-hours[true[begins]])


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
