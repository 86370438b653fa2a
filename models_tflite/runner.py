"""Windows of many beds to risks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models_tflite.bundle import Bundle

Status = Literal["scored", "abstained", "error"]


@dataclass(frozen=True, slots=True)
class Window:
    """One bed's vital signs: hourly rows (T, 7), oldest first, the newest hour last, NaN where none was measured."""

    bed: str
    vitals: NDArray[np.float64]
    age: float = float("nan")  # years
    sex: float = float("nan")  # 1 male, 0 female


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one window: a risk of 0 to 1, or none and why."""

    bed: str
    status: Status
    risk: float | None
    reason: str = ""  # coverage, not_finite, implausible, unfamiliar, output, shape
    text: str = ""  # the reason as a sentence
    coverage: float = 0.0  # share of vital signs x hours measured within the recent hours
    contributions: tuple[tuple[str, float], ...] = ()  # vital sign and what it adds to the risk, the largest first


class Runner:
    """Scores windows with one bundle; raises BundleRefused when the model fails its goldens."""

    def __init__(self, bundle: Bundle, prefer: str | None = None) -> None:
        raise NotImplementedError

    def score(self, windows: Sequence[Window], explain_from: float = float("inf")) -> list[Scored]:
        """One result per window, in order; contributions for risks of at least `explain_from`. Input never raises."""
        raise NotImplementedError
