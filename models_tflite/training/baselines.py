"""What the network is measured against: the clock, NEWS2, SIRS, qSOFA, logistic regression, gradient-boosted trees.

All score every hourly row of every stay with numpy alone. What was learned (prevalence per hour, coefficients, trees,
thresholds) lies in `models_tflite/baselines/`, written by `models_tflite.training.fit` from the training and validation
shares and never from what is evaluated.

A vital sign that was not measured in an hour has its last value of the same stay; before the first it has the typical
one (trees, regression) or no points (scores). None of them but the clock knows the hour or what was measured when.

NEWS2, SIRS and qSOFA lack here what the data lack (oxygen, consciousness, white cells): they are partial.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_tflite import features
from models_tflite.training import trees
from models_tflite.training.data import COLUMN, Stays, windows

Array = NDArray[np.float64]

FOLDER = Path(__file__).parent.parent / "baselines"
LEARNED, GROWN = "baselines.json", ("xgboost", "xgboost_inputs")
NAMES = ("clock", "news2", "sirs", "qsofa", "logistic", *GROWN)
TITLES = {
    "clock": "ICU clock alone: prevalence per hour",
    "news2": "NEWS2, 5 vitals",
    "sirs": "SIRS, 3 vitals",
    "qsofa": "qSOFA, 2 vitals",
    "logistic": "logistic, current vitals + age, sex",
    "xgboost": "XGBoost, current vitals + age, sex",
    "xgboost_inputs": "XGBoost, the network's inputs",
}
TYPICAL = np.array([84.0, 97.5, 36.9, 121.0, 80.0, 60.0, 18.0], dtype=np.float32)  # medians, in the order of COLUMN
_FIT_ANEW = "fit them anew with models_tflite.training.fit"
_TYPICAL_AGE, _TYPICAL_SEX = 64.0, 0.5
_CHUNK = 512  # windows at a time: more is no faster and takes more memory
_VITAL = {name: index for index, name in enumerate(COLUMN)}

# greatest value of each band, and points; held against edge_agent.watch.scores by a test
_NEWS2: tuple[tuple[str, tuple[float, ...], tuple[int, ...]], ...] = (
    ("resp_rate", (8, 11, 20, 24), (3, 1, 0, 2, 3)),
    ("spo2", (91, 93, 95), (3, 2, 1, 0)),
    ("systolic", (90, 100, 110, 219), (3, 2, 1, 0, 3)),
    ("heart_rate", (40, 50, 90, 110, 130), (3, 1, 0, 1, 2, 3)),
    ("temperature", (35.0, 36.0, 38.0, 39.0), (3, 1, 0, 1, 2)),
)


@dataclass(frozen=True, slots=True)
class Baseline:
    """One baseline: a number per row (a risk where `is_risk`), and its thresholds from training and validation."""

    name: str
    title: str
    score: Callable[[Stays], Array]
    threshold: float  # of greatest utility
    per_day: dict[int, float]  # alarms per patient-day -> threshold
    is_risk: bool


def load(folder: Path = FOLDER) -> list[Baseline]:
    """The baselines that give today what they gave when they were fitted; one that does not is left out with a warning.

    Raises: ValueError when the folder does not hold them.
    """
    path = folder / LEARNED
    try:
        learned = json.loads(path.read_text())
        scores = scorers(learned, {name: trees.load(folder / f"{name}.npz") for name in GROWN})
        found = [
            Baseline(
                name,
                TITLES[name],
                scores[name],
                _number(learned["thresholds"][name]["utility"]),
                {int(rate): _number(value) for rate, value in learned["thresholds"][name]["per_day"].items()},
                name in learned["platt"] or name == "clock",
            )
            for name in NAMES
        ]
        sound = [each for each in found if _proven(each, learned["golden"][each.name])]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the baselines cannot be read ({error!r}); {_FIT_ANEW}") from error
    for each in found:
        if each not in sound:
            warnings.warn(
                f"{each.title} no longer scores as when it was fitted and is left out; {_FIT_ANEW}", stacklevel=2
            )
    return sound


def _proven(baseline: Baseline, golden: list[float]) -> bool:
    """Whether the made-up stays have the scores of the fit, those of trees as xgboost itself gave them."""
    try:
        return bool(np.allclose(baseline.score(example()), golden, rtol=0, atol=1e-5))
    except (IndexError, ValueError):  # the inputs have another width now
        return False


def example(count: int = 6, hours: int = 30) -> Stays:
    """Made-up stays with gaps, from a fixed seed, by which stored baselines are proven; of no patient."""
    chance = np.random.default_rng(count * 1000 + hours)
    steps = chance.normal(0, 0.25, (count, hours, len(COLUMN))).cumsum(axis=1) + chance.normal(0, 1, (count, 1, 7))
    spread = np.array([16.0, 2.0, 0.6, 20.0, 14.0, 11.0, 5.0])
    vitals = (TYPICAL + steps * spread).clip(1, 250).astype(np.float32)
    vitals[..., _VITAL["spo2"]] = vitals[..., _VITAL["spo2"]].clip(60, 100)
    vitals[chance.random(vitals.shape) < 0.3] = np.nan
    return Stays(
        pid=np.arange(count),
        site=np.array(["A", "B"] * count)[:count],
        age=chance.integers(20, 90, count).astype(np.float32),
        sex=(np.arange(count) % 2).astype(np.float32),
        first=np.arange(count + 1) * hours,
        hour=np.tile(np.arange(1, hours + 1), count).astype(np.int16),
        label=np.zeros(count * hours, dtype=np.int8),
        vitals=vitals.reshape(-1, len(COLUMN)),
    )


def _number(value: float | None) -> float:
    """A threshold; null stands for one that nothing reaches."""
    return float("inf") if value is None else float(value)


def scorers(learned: dict[str, Any], grown: dict[str, trees.Trees]) -> dict[str, Callable[[Stays], Array]]:
    """The scoring function of each baseline from what was learned."""
    clock = np.asarray(learned["clock"], dtype=np.float64)
    weights, offset = np.asarray(learned["logistic"]["weights"]), float(learned["logistic"]["offset"])
    mean, std = np.asarray(learned["logistic"]["mean"]), np.asarray(learned["logistic"]["std"])
    platt = learned["platt"]
    return {
        "clock": lambda stays: clock[np.clip(stays.hour, 0, len(clock) - 1)],
        "news2": lambda stays: news2(carried(stays)),
        "sirs": lambda stays: sirs(carried(stays)),
        "qsofa": lambda stays: qsofa(carried(stays)),
        "logistic": lambda stays: risk_of((current(stays) - mean) / std @ weights + offset, platt["logistic"]),
        "xgboost": lambda stays: risk_of(grown["xgboost"].logit(current(stays)), platt["xgboost"]),
        "xgboost_inputs": lambda stays: risk_of(grown["xgboost_inputs"].logit(newest(stays)), platt["xgboost_inputs"]),
    }


def risk_of(logit: Array, platt: list[float]) -> Array:
    slope, offset = platt
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(slope * logit + offset, -30, 30))))


def carried(stays: Stays) -> NDArray[np.float32]:
    """The vital signs with the last value of the same stay where none was measured, NaN before the first; (N, 7)."""
    row = np.arange(stays.rows)[:, None]
    last = np.maximum.accumulate(np.where(np.isfinite(stays.vitals), row, -1), axis=0)
    begin = np.repeat(stays.first[:-1], np.diff(stays.first))[:, None]
    value = np.take_along_axis(stays.vitals, np.maximum(last, 0), axis=0)
    return np.where(last >= begin, value, np.float32(np.nan))


def current(stays: Stays) -> NDArray[np.float32]:
    """The carried vital signs, age and sex of every row, typical where unknown; (N, 9)."""
    vitals = carried(stays)
    out = np.empty((stays.rows, len(COLUMN) + 2), dtype=np.float32)
    out[:, :-2] = np.where(np.isfinite(vitals), vitals, TYPICAL)
    length = np.diff(stays.first)
    out[:, -2] = np.repeat(np.where(np.isfinite(stays.age), stays.age, _TYPICAL_AGE), length)
    out[:, -1] = np.repeat(np.where(np.isfinite(stays.sex), stays.sex, _TYPICAL_SEX), length)
    return out


def newest(stays: Stays) -> NDArray[np.float32]:
    """What the network sees of every row in the last step of its window; (N, len(features.NAMES))."""
    out = np.empty((stays.rows, len(features.NAMES)), dtype=np.float32)
    of_row = stays.of_row
    for begin in range(0, stays.rows, _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, stays.rows))
        last_day = windows(stays, rows, features.WINDOW)
        out[rows] = features.inputs(last_day, stays.age[of_row[rows]], stays.sex[of_row[rows]])[:, -1]
    return out


def news2(vitals: NDArray[Any]) -> Array:
    """The sum of NEWS2 points of five vital signs, 0 to 15; what is missing has no points."""
    total = np.zeros(len(vitals))
    for name, bounds, points in _NEWS2:
        value = np.asarray(vitals[:, _VITAL[name]], dtype=np.float64)
        total += np.where(
            np.isfinite(value), np.asarray(points)[np.searchsorted(bounds, value, "left").clip(max=len(bounds))], 0
        )
    return total


def sirs(vitals: NDArray[Any]) -> Array:
    """SIRS criteria met by temperature, heart rate and respiratory rate, 0 to 3."""
    temperature = vitals[:, _VITAL["temperature"]]
    with np.errstate(invalid="ignore"):
        fever = (temperature > 38) | (temperature < 36)
        return fever * 1.0 + (vitals[:, _VITAL["heart_rate"]] > 90) + (vitals[:, _VITAL["resp_rate"]] > 20)


def qsofa(vitals: NDArray[Any]) -> Array:
    """qSOFA criteria met by respiratory rate and systolic pressure, 0 to 2."""
    with np.errstate(invalid="ignore"):
        return (vitals[:, _VITAL["resp_rate"]] >= 22) * 1.0 + (vitals[:, _VITAL["systolic"]] <= 100)
