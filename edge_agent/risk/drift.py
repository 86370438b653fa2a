"""Whether the patients of today look like those of the training: counters of what the model was given and said.

The counters forget: when `FORGET` evaluations are in, all are halved, so that they speak of about the last day. `psi`
is a population stability index against ten equal shares of a normal distribution with the mean and deviation of the
training: 0 for equal shares, above 0.25 a look is due; skewed vitals such as SpO2 do not reach 0 even in training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from edge_agent.watch.windows import VITALS

FORGET = 10_000  # evaluations; of eight beds each minute about a day
_SHARES = 10
_CUTS = tuple(NormalDist().inv_cdf(share / _SHARES) for share in range(1, _SHARES))
_FAR = 4.0  # deviations from the training's mean that one in 16,000 values of a normal distribution exceeds
_LEAST_SHARE = 1e-4  # so that a share without values has a logarithm


class _Vital:
    """Standardised values of one vital."""

    def __init__(self) -> None:
        self.shares = [0.0] * _SHARES
        self.sum = self.far = self.missing = 0.0

    def add(self, z: float) -> None:
        if math.isnan(z):
            self.missing += 1
            return
        self.shares[sum(z > cut for cut in _CUTS)] += 1
        self.sum += z
        self.far += abs(z) > _FAR

    def halve(self) -> None:
        self.shares = [share / 2 for share in self.shares]
        self.sum, self.far, self.missing = self.sum / 2, self.far / 2, self.missing / 2

    def view(self) -> dict[str, float | None]:
        count = sum(self.shares)
        every = count + self.missing
        if not count:
            return {"missing": 1.0 if every else None, "shift_sd": None, "far": None, "psi": None}
        found = [max(share / count, _LEAST_SHARE) for share in self.shares]
        psi = sum((share - 1 / _SHARES) * math.log(share * _SHARES) for share in found)
        return {
            "missing": round(self.missing / every, 4),
            "shift_sd": round(self.sum / count, 3),
            "far": round(self.far / count, 4),
            "psi": round(psi, 3),
        }


class Drift:
    """Counters over all beds."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._sum = 0.0
        self._vitals = [_Vital() for _ in VITALS]

    def add(
        self, status: str, reason: str, risk: float | None, newest: Sequence[float],
        means: Sequence[float], deviations: Sequence[float],
    ) -> None:  # fmt: skip
        """Count one result and the values of the last hour that it rests on."""
        self._counts[status] += 1
        if reason:
            self._reasons[reason] += 1
        if risk is not None:
            self._sum += risk
        for vital, value, mean, deviation in zip(self._vitals, newest, means, deviations, strict=False):
            if deviation > 0:
                vital.add((value - mean) / deviation)
        if self._counts.total() >= FORGET:
            self._halve()

    def _halve(self) -> None:
        self._sum /= 2
        for counts in (self._counts, self._reasons):
            for key in counts:
                counts[key] -= counts[key] // 2
        for vital in self._vitals:
            vital.halve()

    def view(self) -> Mapping[str, Any]:
        """Shares of 0 to 1, the mean risk, and how each vital lies in the distribution of the training."""
        total, scored = self._counts.total(), self._counts["scored"]
        return {
            "evaluations": total,
            "scored": scored,
            "abstained": self._counts["abstained"],
            "errors": self._counts["error"],
            "abstained_share": round(self._counts["abstained"] / total, 4) if total else None,
            "reasons": dict(self._reasons),
            "mean_risk": round(self._sum / scored, 5) if scored else None,
            "vitals": {name: vital.view() for name, vital in zip(VITALS, self._vitals, strict=True)},
        }
