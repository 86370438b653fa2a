"""Score a table of stays with a bundle and all baselines: `python -m models_tflite.training.evaluate --help`.

Any table in the format that `data.read` takes will do, also one that nobody has seen. Nothing is chosen on it: every
threshold comes from the bundle, or from the training and validation patients on whom the baselines were fitted. The
Challenge's utility is that of alarms in all rows at or above the threshold. A row for which the bundle abstains gives
no alarm, and ranks where somebody ranks of whom nothing is known: at the share of labelled rows in training, or just
below the threshold if that is lower. How many there are is told.

Needs the bedside's packages and pyarrow, no TensorFlow and no xgboost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_tflite import features
from models_tflite.bundle import Bundle, BundleRefused
from models_tflite.bundle import read as read_bundle
from models_tflite.training import alerts, baselines, metrics
from models_tflite.training.data import DataError, Stays, read, shares, windows

_CHUNK = 1024  # windows at a time: more is no faster
_WHOLE = "all"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One score of every row with thresholds from elsewhere; `abstained` rows have the base rate."""

    name: str
    title: str
    score: NDArray[np.float64]
    threshold: float  # NaN: unknown, so that there is no utility
    per_day: dict[int, float] = field(default_factory=dict)  # alarms per patient-day -> threshold
    is_risk: bool = False
    abstained: NDArray[np.bool_] | None = None


def main(arguments: list[str] | None = None) -> int:
    """Evaluate and print; returns the exit code: 0, or 2 when the table or the bundle cannot be used."""
    asked = _parser().parse_args(arguments)
    began = time.monotonic()
    try:
        stays = read(asked.data)
        if asked.share:
            stays = stays.select(shares(stays) == asked.share)
        if not len(stays):
            raise DataError(f"{asked.data}: holds no stay of the share {asked.share}")
        bundle = read_bundle(asked.bundle, asked.trusted) if asked.bundle else None
        print(f"{asked.data}: {len(stays)} stays, {stays.rows} rows; this takes a minute or two", file=sys.stderr)
        candidates = [from_bundle(bundle, stays)] if bundle else []
        candidates += [from_baseline(baseline, stays) for baseline in baselines.load()]
    except (DataError, BundleRefused, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found = evaluate(stays, candidates, asked.bootstrap, asked.seed)
    found["data"] |= {"file": asked.data.name, "share": asked.share or "whole file", "sha256": _digest(asked.data)}
    found["seconds"] = round(time.monotonic() - began, 1)
    from models_tflite.training import report

    text = report.markdown(found)
    print(text)
    if asked.json:
        asked.json.write_text(json.dumps(_without_nan(found), indent=1) + "\n")
    if asked.markdown:
        asked.markdown.write_text(text + "\n")
    if asked.figures:
        report.figures(stays, candidates, asked.figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models_tflite.training.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file, or folder of .psv files")
    parser.add_argument("--bundle", type=Path, help="the bundle's folder; without it, the baselines alone")
    parser.add_argument(
        "--trusted", type=Path, action="append", default=[], help="a .pub file to trust beside the package's"
    )
    parser.add_argument(
        "--share", choices=("train", "validation", "test"), help="only the stays of this share of the split"
    )
    parser.add_argument("--bootstrap", type=int, default=500, help="resamples of the patients (500)")
    parser.add_argument("--seed", type=int, default=2019, help="of the resamples")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--figures", type=Path, help="write plots (SVG) into this folder")
    return parser


def from_baseline(baseline: baselines.Baseline, stays: Stays) -> Candidate:
    """A baseline's score of every row."""
    return Candidate(
        baseline.name, baseline.title, baseline.score(stays), baseline.threshold, baseline.per_day, baseline.is_risk
    )


def from_bundle(bundle: Bundle, stays: Stays) -> Candidate:
    """The bundle's risk of every row, by the bedside's own runner. Raises: BundleRefused."""
    from models_tflite.runner import Runner, Window

    runner = Runner(bundle)
    risk, abstained = np.zeros(stays.rows), np.zeros(stays.rows, dtype=np.bool_)
    of_row, about = stays.of_row, bundle.description
    unknown = min(float(about.training.get("base_rate", 0.0)), math.nextafter(about.thresholds.on, 0.0))
    for begin in range(0, stays.rows, _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, stays.rows))
        last_day = windows(stays, rows, features.WINDOW).astype(np.float64)
        age, sex = stays.age[of_row[rows]].tolist(), stays.sex[of_row[rows]].tolist()
        asked = [Window(str(row), vitals, *about) for row, vitals, *about in zip(rows, last_day, age, sex, strict=True)]
        for row, scored in zip(rows.tolist(), runner.score(asked), strict=True):
            risk[row] = unknown if scored.risk is None else scored.risk
            abstained[row] = scored.risk is None
    return Candidate(
        "bundle", bundle.identity, risk, about.thresholds.on, alerts.stored(about.training), True, abstained
    )


def from_function(name: str, score: Callable[[Stays], NDArray[Any]], stays: Stays, tuned_on: Stays) -> Candidate:
    """Any score of rows, with the thresholds that other patients, `tuned_on`, give."""
    there = score(tuned_on)
    threshold = metrics.best_threshold(metrics.gains(tuned_on.label, tuned_on.first), there)
    per_day = {rate: alerts.threshold_for(there, rate, tuned_on.first) for rate in alerts.PER_DAY}
    return Candidate(name, name, np.asarray(score(stays), np.float64), threshold, per_day)


def evaluate(stays: Stays, candidates: list[Candidate], resamples: int, seed: int = 2019) -> dict[str, Any]:
    """All figures of all candidates, whole and per hospital, as plain data; `resamples` 0 leaves intervals out."""
    septic = stays.septic
    parts = {_WHOLE: np.ones(len(stays), np.bool_)}
    hospitals = sorted(set(stays.site.tolist()))
    if len(hospitals) > 1:
        parts |= {site: stays.site == site for site in hospitals}
    found: dict[str, Any] = {
        "data": {"stays": len(stays), "septic": int(septic.sum()), "rows": stays.rows, "hospitals": hospitals},
        "resamples": resamples,
        "models": {each.name: _of_all_rows(stays, each) for each in candidates},
        "differences": {},
    }
    for part, chosen in parts.items():
        rows = np.repeat(chosen, np.diff(stays.first))
        here = stays.select(chosen)
        measures = {
            each.name: metrics.Measure(here.label, here.first, here.hour, each.score[rows], each.threshold)
            for each in candidates
        }
        drawn = metrics.bootstrap(measures, len(here), resamples, seed)
        for name, measure in measures.items():
            found["models"][name]["figures"][part] = _figures(measure.figures(), drawn[name])
        if part == _WHOLE:
            for each in candidates[1:]:
                ours, theirs = measures[candidates[0].name], measures[each.name]
                found["differences"][each.name] = _figures(
                    metrics.Figures(*np.subtract(ours.figures(), theirs.figures()).tolist()),
                    drawn[candidates[0].name] - drawn[each.name],
                )
    return found


def _figures(value: metrics.Figures, drawn: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    out = {}
    for index, (name, figure) in enumerate(zip(value._fields, value, strict=True)):
        low, high = metrics.interval(drawn[:, index])
        out[name] = {"value": figure, "low": low, "high": high}
    return out


def _of_all_rows(stays: Stays, each: Candidate) -> dict[str, Any]:
    """What is told of a candidate without intervals: alarms, calibration, clock, abstention."""
    burden = {"threshold": each.threshold} | {f"{rate} per day": at for rate, at in sorted(each.per_day.items())}
    return {
        "title": each.title,
        "threshold": each.threshold,
        "abstained": float(np.mean(each.abstained)) if each.abstained is not None else 0.0,
        "figures": {},
        "alarms": {
            name: alerts.burden(stays.label, stays.first, each.score, at)._asdict()
            for name, at in burden.items()
            if not math.isnan(at)
        },
        "calibration": metrics.calibration(stays.label, each.score)._asdict() if each.is_risk else None,
        "hour": metrics.hour_probe(each.score, stays.hour)._asdict(),
    }


def _digest(path: Path) -> str | None:
    """The SHA-256 of the file, so that a figure can be traced to what it was measured on."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_nan(value: Any) -> Any:
    """The same with None for what is no number: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
