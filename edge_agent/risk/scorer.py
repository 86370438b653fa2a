"""The shipped or configured bundle behind the engine's interface; imported and used in the engine's thread only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from edge_agent.risk.engine import About, Batch, Result
from edge_agent.risk.hours import age_bins, pack, rows
from edge_agent.watch.windows import BINS, VITALS
from models_tflite import bundle
from models_tflite.runner import Runner, Window

STALE_BINS = BINS  # an hour without any valid value is no input any more
_UNKNOWN = float("nan")


class Scorer:
    """An open bundle."""

    def __init__(self, folder: Path | None, trusted: Sequence[Path], prefer: str | None) -> None:
        """Raises: bundle.BundleRefused, whose text says what is wrong and what to do."""
        found = bundle.read(folder or bundle.shipped(), trusted)
        self._runner = Runner(found, prefer)
        about = found.description
        means = dict(zip(about.features.names, zip(about.features.mean, about.features.std, strict=True), strict=True))
        known = [means.get(vital, (_UNKNOWN, _UNKNOWN)) for vital in VITALS]
        self.about = About(
            found.identity, about.name, about.version, about.model.sha256, getattr(self._runner, "runtime", ""),
            about.thresholds.on, about.thresholds.off, tuple(mean for mean, _ in known), tuple(sd for _, sd in known),
        )  # fmt: skip

    def score(self, batch: Batch) -> list[Result]:
        """One result for each bed; a window without a value of the last hour is not asked about."""
        hours = [rows(each.window) for each in batch.beds]
        stale = [age_bins(each.window) >= STALE_BINS for each in batch.beds]
        asked = [
            Window(each.window.bed, vitals, _number(each.age), _number(each.sex))
            for each, vitals, old in zip(batch.beds, hours, stale, strict=True)
            if not old
        ]
        told = iter(self._runner.score(asked, batch.explain_from) if asked else ())
        self._runner.rest()
        out = []
        for each, vitals, old in zip(batch.beds, hours, stale, strict=True):
            window = each.window
            kept = pack(window) if each.keep else b""
            newest = tuple(map(float, vitals[-1]))
            if old:
                text = "no valid value within the last hour"
                out.append(Result(window.bed, window.epoch, "abstained", None, "stale", text, newest=newest, kept=kept))
                continue
            found = next(told)
            out.append(
                Result(
                    window.bed,
                    window.epoch,
                    found.status,
                    found.risk,
                    found.reason,
                    found.text,
                    found.coverage,
                    found.contributions,
                    newest,
                    kept,
                )
            )
        return out


def _number(value: float | None) -> float:
    return _UNKNOWN if value is None or not math.isfinite(value) else value
