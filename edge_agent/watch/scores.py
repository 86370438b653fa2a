"""Bedside scores from single values: NEWS2, MEWS, qSOFA, SIRS, shock index and ROX. Pure functions.

What they are not: a missing input is never a normal one. A partial score sums what is there, says how many inputs that
was, and has a band only where no further input could take it away. Bands are contiguous: a value belongs to the first
band whose upper bound it does not exceed, so that 35.05 degrees belongs to 35.1 to 36.0 and not to none.

Source: NEWS2, (c) Royal College of Physicians. National Early Warning Score (NEWS) 2: Standardising the assessment of
acute-illness severity in the NHS. Updated report of a working party. London: RCP, 2017. For adults from 16 years, not
in pregnancy and not with spinal injury. MEWS after Subbe and others, QJM 2001; many local variants differ. qSOFA after
Sepsis-3, 2016 (not to be used as the only screen); SIRS after ACCP/SCCM 1992; ROX after Roca and others, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Consciousness = Literal["A", "C", "V", "P", "U"]  # alert, new confusion, responds to voice, to pain, unresponsive
_Bands = tuple[tuple[float, int], ...]  # (greatest value, points), rising

_TOP = math.inf


def _under(bound: float) -> float:
    """The greatest value below a bound that itself belongs to the next band."""
    return math.nextafter(bound, -math.inf)


_NEWS2: dict[str, _Bands] = {
    "resp_rate": ((8, 3), (11, 1), (20, 0), (24, 2), (_TOP, 3)),
    "systolic": ((90, 3), (100, 2), (110, 1), (219, 0), (_TOP, 3)),
    "pulse": ((40, 3), (50, 1), (90, 0), (110, 1), (130, 2), (_TOP, 3)),
    "temperature": ((35.0, 3), (36.0, 1), (38.0, 0), (39.0, 1), (_TOP, 2)),
}
_SPO2_SCALE_1: _Bands = ((91, 3), (93, 2), (95, 1), (_TOP, 0))
_SPO2_SCALE_2: _Bands = ((83, 3), (85, 2), (87, 1), (92, 0))  # beyond it the oxygen decides
_SPO2_SCALE_2_OXYGEN: _Bands = ((94, 1), (96, 2), (_TOP, 3))
_NEWS2_URGENT, _NEWS2_EMERGENCY, _NEWS2_SINGLE = 5, 7, 3
# What the chart of 2017 asks for, by band: how often to look, and who comes. In short, to fit a screen.
NEWS2_RESPONSE: Mapping[str, str] = {
    "zero": "at least every 12 h",
    "low": "at least every 4 to 6 h; a nurse decides on more",
    "low-medium": "at least hourly; urgent review on the ward",
    "medium": "at least hourly; urgent review by an acute-care clinician",
    "high": "continuous monitoring; emergency, critical-care team",
}

_MEWS: dict[str, _Bands] = {
    "systolic": ((70, 3), (80, 2), (100, 1), (199, 0), (_TOP, 2)),
    "heart_rate": ((40, 2), (50, 1), (100, 0), (110, 1), (129, 2), (_TOP, 3)),
    "resp_rate": ((_under(9), 2), (14, 0), (20, 1), (29, 2), (_TOP, 3)),
    "temperature": ((_under(35.0), 2), (38.4, 0), (_TOP, 2)),
}
_AVPU = {"A": 0, "V": 1, "P": 2, "U": 3}
_MEWS_CRITICAL = 5
_SEPSIS_POSITIVE = 2  # criteria, of qSOFA and of SIRS
_ROX_LOW_RISK = 4.88  # at 2, 6 and 12 h
_ROX_HIGH_RISK = {2: 2.85, 6: 3.47, 12: 3.85}  # by hours of high-flow nasal cannula
_LEAST_FIO2 = 0.21  # room air


@dataclass(frozen=True, slots=True)
class Result:
    """A score: its value, what it rests on, and its band; `value` is None when no input was present."""

    name: str
    value: float | None
    present: int  # inputs that were there
    needed: int
    points: Mapping[str, int | None]  # by parameter; None: missing
    band: str | None = None  # None: too little is known to say

    @property
    def partial(self) -> bool:
        """Whether an input is missing."""
        return self.present < self.needed

    def __str__(self) -> str:
        shown = "none" if self.value is None else f"{self.value:g}"
        return f"{self.name} {shown}" + (f" (partial, {self.present} of {self.needed})" if self.partial else "")


def news2(
    *,
    resp_rate: float | None = None,
    spo2: float | None = None,
    oxygen: bool | None = None,
    systolic: float | None = None,
    pulse: float | None = None,
    consciousness: Consciousness | None = None,
    temperature: float | None = None,
    scale: Literal[1, 2] = 1,
) -> Result:
    """NEWS2, 0 to 20, with the bands zero, low, low-medium (a single 3), medium (5) and high (7).

    Rates in 1/min, SpO2 in %, pressure in mmHg, temperature in degrees Celsius. Scale 2 is for a prescribed target of
    88 to 92 % only; nothing here chooses it.

    Raises: ValueError for a scale or a level of consciousness that does not exist.
    """
    if scale not in (1, 2):
        raise ValueError(f"NEWS2 has the SpO2 scales 1 and 2, not {scale!r}")
    given = {"resp_rate": resp_rate, "systolic": systolic, "pulse": pulse, "temperature": temperature}
    points = {name: _points(value, _NEWS2[name]) for name, value in given.items()}
    points["spo2"] = _points(spo2, _SPO2_SCALE_1) if scale == 1 else _scale_2(spo2, oxygen)
    points["oxygen"] = None if oxygen is None else 2 * oxygen
    points["consciousness"] = _of(consciousness, {"A": 0, "C": 3, "V": 3, "P": 3, "U": 3})
    total, present = _sum(points)
    band: str | None = None
    if total >= _NEWS2_EMERGENCY:
        band = "high"
    elif total >= _NEWS2_URGENT:
        band = "medium"
    elif _NEWS2_SINGLE in points.values():
        band = "low-medium"
    elif present == len(points):
        band = "low" if total else "zero"
    return Result("NEWS2", total if present else None, present, len(points), points, band)


def mews(
    *,
    systolic: float | None = None,
    heart_rate: float | None = None,
    resp_rate: float | None = None,
    temperature: float | None = None,
    avpu: Literal["A", "V", "P", "U"] | None = None,
) -> Result:
    """MEWS of Subbe 2001, 0 to 14, critical from 5; units as for `news2`.

    Raises: ValueError for a level of consciousness that does not exist.
    """
    given = {"systolic": systolic, "heart_rate": heart_rate, "resp_rate": resp_rate, "temperature": temperature}
    points = {name: _points(value, _MEWS[name]) for name, value in given.items()}
    points["avpu"] = _of(avpu, _AVPU)
    return _counted("MEWS (Subbe 2001)", points, _MEWS_CRITICAL, "critical", "not critical")


def qsofa(*, resp_rate: float | None = None, systolic: float | None = None, gcs: int | None = None) -> Result:
    """qSOFA, 0 to 3, positive from 2; rate in 1/min, pressure in mmHg, Glasgow coma scale 3 to 15."""
    points = {
        "resp_rate": _criterion(resp_rate, lambda rate: rate >= 22),
        "systolic": _criterion(systolic, lambda pressure: pressure <= 100),
        "gcs": _criterion(gcs, lambda sum_: sum_ < 15),
    }
    return _counted("qSOFA", points, _SEPSIS_POSITIVE, "positive", "negative")


def sirs(
    *,
    temperature: float | None = None,
    heart_rate: float | None = None,
    resp_rate: float | None = None,
    paco2: float | None = None,
    white_cells: float | None = None,
    bands: float | None = None,
) -> Result:
    """SIRS, 0 to 4, positive from 2; PaCO2 in mmHg, white cells in 10^9/L, immature bands in %."""
    points = {
        "temperature": _criterion(temperature, lambda degrees: degrees > 38 or degrees < 36),
        "heart_rate": _criterion(heart_rate, lambda rate: rate > 90),
        "respiration": _either(
            _criterion(resp_rate, lambda rate: rate > 20), _criterion(paco2, lambda pressure: pressure < 32)
        ),
        "white_cells": _either(
            _criterion(white_cells, lambda count: count > 12 or count < 4), _criterion(bands, lambda share: share > 10)
        ),
    }
    return _counted("SIRS", points, _SEPSIS_POSITIVE, "positive", "negative")


def shock_index(*, heart_rate: float | None = None, systolic: float | None = None) -> Result:
    """Heart rate over systolic pressure: below 0.5, normal to 0.7, raised, and concern from 0.9."""
    present = (_known(heart_rate) is not None) + (_known(systolic) is not None)
    rate, pressure = _known(heart_rate), _known(systolic)
    if rate is None or pressure is None or pressure <= 0:
        return Result("shock index", None, present, 2, {})
    index = rate / pressure
    band = "below normal" if index < 0.5 else "normal" if index <= 0.7 else "raised" if index < 0.9 else "concern"
    return Result("shock index", index, present, 2, {}, band)


def rox(
    *,
    spo2: float | None = None,
    fio2: float | None = None,
    resp_rate: float | None = None,
    hours: float | None = None,
) -> Result:
    """ROX index of high-flow nasal cannula: SpO2 in % over FiO2 as a fraction, over the rate in 1/min.

    The band, low, unclear or high risk of intubation, exists 2, 6 and 12 hours after the begin only.

    Raises: ValueError for an FiO2 that is not a fraction of 0.21 to 1.
    """
    values = [_known(spo2), _known(fio2), _known(resp_rate)]
    saturation, fraction, rate = values
    if fraction is not None and not _LEAST_FIO2 <= fraction <= 1.0:
        raise ValueError(f"FiO2 is a fraction of {_LEAST_FIO2} to 1, not {fraction:g}")
    present = sum(value is not None for value in values)
    if saturation is None or fraction is None or rate is None or rate <= 0:
        return Result("ROX", None, present, 3, {})
    index = saturation / fraction / rate
    band: str | None = None
    if hours in _ROX_HIGH_RISK:
        high = _ROX_HIGH_RISK[int(hours)]
        band = "low risk" if index >= _ROX_LOW_RISK else "high risk" if index < high else "unclear"
    return Result("ROX", index, present, 3, {}, band)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _points(value: float | None, bands: _Bands) -> int | None:
    if _known(value) is None or value is None:
        return None
    return next(points for greatest, points in bands if value <= greatest)


def _scale_2(spo2: float | None, oxygen: bool | None) -> int | None:
    if _known(spo2) is None or spo2 is None:
        return None
    if spo2 <= _SPO2_SCALE_2[-1][0]:
        return _points(spo2, _SPO2_SCALE_2)
    if oxygen is None:
        return None
    return _points(spo2, _SPO2_SCALE_2_OXYGEN) if oxygen else 0


def _of(level: str | None, points: Mapping[str, int]) -> int | None:
    if level is None:
        return None
    if level not in points:
        raise ValueError(f"consciousness is one of {', '.join(points)}, not {level!r}")
    return points[level]


def _criterion(value: float | None, met: Callable[[float], bool]) -> int | None:
    known = _known(value)
    return None if known is None else int(met(known))


def _either(first: int | None, second: int | None) -> int | None:
    """One criterion that either of two measurements meets; the one that is there decides."""
    return max((points for points in (first, second) if points is not None), default=None)


def _sum(points: Mapping[str, int | None]) -> tuple[int, int]:
    known = [point for point in points.values() if point is not None]
    return sum(known), len(known)


def _counted(name: str, points: Mapping[str, int | None], threshold: int, over: str, under: str) -> Result:
    total, present = _sum(points)
    band = over if total >= threshold else under if present == len(points) else None
    return Result(name, total if present else None, present, len(points), points, band)
