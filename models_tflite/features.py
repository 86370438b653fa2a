"""What the network sees: the last day of seven vital signs, hour by hour, as numbers that say nothing of the clock.

Theory of operation. A window has one row per hour, oldest first. It is always `WINDOW` steps long: where fewer rows
exist, and before a vital was first measured, its first value is repeated backwards; after that the last value is
carried on. So a bed of two hours and one of two days give windows of one length, and neither the number of steps nor
the habits of charting are an input. Where one of the three pressures is missing in an hour, the other two give it. A
vital that was never measured in the window takes a typical value. The result depends on the rows of the window, age and
sex only, and is finite for any input: what is not finite or beyond `RANGES` counts as not measured.

Source: bands of NEWS2, Royal College of Physicians, 2017 (consciousness and oxygen are not among the inputs).
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

VITALS = ("heart_rate", "spo2", "temperature", "systolic", "mean_pressure", "diastolic", "resp_rate")
UNITS = ("/min", "%", "Cel", "mm[Hg]", "mm[Hg]", "mm[Hg]", "/min")
RANGES = ((10.0, 300.0), (30.0, 100.0), (25.0, 44.0), (20.0, 300.0), (10.0, 250.0), (5.0, 200.0), (1.0, 90.0))
WINDOW = 24  # hours

_TYPICAL = np.array([84.0, 97.5, 36.9, 121.0, 80.0, 60.0, 18.0])  # medians of the training patients, by vital
_TYPICAL_AGE, _AGES = 64.0, (0.0, 120.0)
_LOW, _HIGH = np.array(RANGES).T
_HR, _SPO2, _TEMP, _SYS, _MEAN, _DIA, _RESP = range(7)
_SHORT = 6  # hours of the short statistics and of the slope
_NEWS2: tuple[tuple[int, tuple[float, ...], tuple[int, ...]], ...] = (  # greatest value of each band, points
    (_HR, (40, 50, 90, 110, 130), (3, 1, 0, 1, 2, 3)),
    (_SPO2, (91, 93, 95), (3, 2, 1, 0)),
    (_TEMP, (35.0, 36.0, 38.0, 39.0), (3, 1, 0, 1, 2)),
    (_SYS, (90, 100, 110, 219), (3, 2, 1, 0, 3)),
    (_RESP, (8, 11, 20, 24), (3, 1, 0, 2, 3)),
)

NAMES: tuple[str, ...] = (
    *VITALS,
    *(f"{vital}_{part}" for part in ("change_6h", "mean_6h", "min_6h", "max_6h", "sd_6h") for vital in VITALS),
    *(f"{vital}_{part}" for part in ("mean_24h", "min_24h", "max_24h", "sd_24h") for vital in VITALS),
    "shock_index",
    "pulse_pressure",
    "heart_rate_by_temperature",
    "resp_rate_by_spo2",
    *(f"news2_{VITALS[vital]}" for vital, _, _ in _NEWS2),
    "news2",
    "age",
    "sex",
)
"""The inputs in order; `len(NAMES)` is the width of what `inputs` returns."""

Floats = NDArray[np.float64]


def inputs(vitals: ArrayLike, age: ArrayLike, sex: ArrayLike) -> NDArray[np.float32]:
    """The network's inputs of a window, float32 of shape (..., WINDOW, len(NAMES)), finite, not normalised.

    `vitals` has shape (..., T, 7) with T from 0 to WINDOW, one row per hour, oldest first, NaN where nothing was
    measured. `age` in years and `sex` (1 male, 0 female) have the shape (...), NaN where unknown.

    Raises: ValueError for another shape.
    """
    rows = np.asarray(vitals, dtype=np.float64)
    if rows.ndim < 2 or rows.shape[-1] != len(VITALS) or rows.shape[-2] > WINDOW:
        raise ValueError(f"a window has at most {WINDOW} hours of {len(VITALS)} vitals, not the shape {rows.shape}")
    lead = rows.shape[:-2]
    dense = _filled(_measured(rows))
    years, male = _known(age, lead, *_AGES, _TYPICAL_AGE), _known(sex, lead, 0.0, 1.0, 0.5)
    out = np.empty((*lead, WINDOW, len(NAMES)), dtype=np.float32)
    at = 0
    for block in (dense, *_short(dense), *_long(dense), _relations(dense), _points(dense)):
        out[..., at : at + block.shape[-1]] = block
        at += block.shape[-1]
    out[..., at] = years[..., None]
    out[..., at + 1] = male[..., None]
    return out


def _known(value: ArrayLike, shape: tuple[int, ...], low: float, high: float, otherwise: float) -> Floats:
    number = np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
    with np.errstate(invalid="ignore"):
        return np.where((number >= low) & (number <= high), number, otherwise)


def _measured(rows: Floats) -> Floats:
    """The rows with NaN for whatever is not a plausible number, and the third pressure from the other two."""
    with np.errstate(invalid="ignore"):
        rows = np.where((rows >= _LOW) & (rows <= _HIGH), rows, np.nan)
    high, mean, low = rows[..., _SYS], rows[..., _MEAN], rows[..., _DIA]
    third = low + (high - low) / 3.0  # the common rule of thumb for a mean pressure
    rows[..., _MEAN] = np.where(np.isnan(mean), third, mean)
    rows[..., _DIA] = np.where(np.isnan(low), np.clip((3.0 * mean - high) / 2.0, _LOW[_DIA], _HIGH[_DIA]), low)
    return rows


def _filled(rows: Floats) -> Floats:
    """All hours of the window without a gap: last value carried on, first value carried back."""
    missing = WINDOW - rows.shape[-2]
    if missing:
        rows = np.concatenate([np.full((*rows.shape[:-2], missing, len(VITALS)), np.nan), rows], axis=-2)
    there = ~np.isnan(rows)
    hour = np.where(there, np.arange(WINDOW)[:, None], -1)
    last = np.maximum.accumulate(hour, axis=-2)
    first = np.argmax(there, axis=-2, keepdims=True)
    dense = np.take_along_axis(rows, np.where(last < 0, first, last), axis=-2)
    return np.where(np.isnan(dense), _TYPICAL, dense)


def _short(dense: Floats) -> list[Floats]:
    """Change, mean, least, greatest and spread over the last six hours of each step."""
    before = np.repeat(dense[..., :1, :], _SHORT - 1, axis=-2)
    padded = np.concatenate([before, dense], axis=-2)
    hours = [padded[..., hour : hour + WINDOW, :] for hour in range(_SHORT)]
    mean = sum(hours[1:], hours[0]) / _SHORT  # six whole arrays: five times faster than one array with an axis of six
    square = sum((np.square(hour - mean) for hour in hours[1:]), np.square(hours[0] - mean))
    return [dense - hours[0], mean, reduce(np.minimum, hours), reduce(np.maximum, hours), np.sqrt(square / _SHORT)]


def _long(dense: Floats) -> list[Floats]:
    """Mean, least, greatest and spread from the window's begin to each step."""
    count = np.arange(1, WINDOW + 1)[:, None]
    from_typical = dense - _TYPICAL
    mean = np.cumsum(from_typical, axis=-2) / count
    square = np.cumsum(np.square(from_typical), axis=-2) / count
    spread = np.sqrt(np.maximum(square - np.square(mean), 0.0))
    least, greatest = np.minimum.accumulate(dense, axis=-2), np.maximum.accumulate(dense, axis=-2)
    return [mean + _TYPICAL, least, greatest, spread]


def _relations(dense: Floats) -> Floats:
    rate, warmth = dense[..., _HR], dense[..., _TEMP]
    return np.stack(
        [
            rate / dense[..., _SYS],
            dense[..., _SYS] - dense[..., _DIA],
            rate - 10.0 * (warmth - 37.0),  # about ten beats a minute belong to each degree of fever
            dense[..., _RESP] / dense[..., _SPO2],
        ],
        axis=-1,
    )


def _points(dense: Floats) -> Floats:
    parts = [np.array(points)[np.searchsorted(bounds, dense[..., vital])] for vital, bounds, points in _NEWS2]
    points: Floats = np.stack([*parts, np.sum(parts, axis=0)], axis=-1).astype(np.float64)
    return points
