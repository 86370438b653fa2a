"""Fit the baselines: `python -m models_tflite.training.fit --data FILE [--out FOLDER]`, in the training environment.

The training share gives prevalence per hour, coefficients and trees; the validation share gives the number of trees,
the calibration and the thresholds. The test share is not read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_tflite.training import alerts, baselines, evaluate, metrics, report, trees
from models_tflite.training.data import DataError, Stays, read, split

SEED = 2019
_LEAST_ROWS = 500  # an hour with fewer rows has no prevalence of its own and takes that of all later hours
_TREES = {
    "max_depth": 4,
    "eta": 0.1,
    "subsample": 0.6,
    "colsample_bytree": 0.8,
    "min_child_weight": 50,
    "reg_lambda": 10,
    "base_score": 0.5,
    "objective": "binary:logistic",
    "tree_method": "hist",
}
_MOST_TREES, _EVERY = 400, 20
_LOGISTIC_PENALTY = 1.0
_LEAST_SPREAD = 1e-3  # an input that never changes is not divided by nothing


def main(arguments: list[str] | None = None) -> int:
    """Fit, store and describe; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models_tflite.training.fit", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file, or folder of .psv files")
    parser.add_argument("--out", type=Path, default=baselines.FOLDER, help="where the baselines are written")
    parser.add_argument("--threads", type=int, default=1, help="processor cores for growing trees")
    parser.add_argument("--across", action="store_true", help="fit on each hospital, print figures on the other")
    parser.add_argument("--bootstrap", type=int, default=500, help="resamples of the patients, with --across")
    asked = parser.parse_args(arguments)
    try:
        stays = read(asked.data)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.across:
        print(across(stays, asked.bootstrap, asked.threads))
        return 0
    shares = split(stays)
    fit(shares["train"], shares["validation"], asked.out, threads=asked.threads)
    print(f"written to {asked.out}")
    return 0


def fit(train: Stays, validation: Stays, out: Path, *, threads: int = 1) -> None:
    """Fit all baselines and write them to the folder `out`."""
    grown, said = {}, {}
    for name, inputs in (("xgboost", baselines.current), ("xgboost_inputs", baselines.newest)):
        grown[name], said[name] = grow(train, validation, inputs, threads)
    learned: dict[str, Any] = {
        "data": "PhysioNet/CinC Challenge 2019, doi 10.13026/v64v-d857, CC BY 4.0; shares train and validation",
        "clock": prevalence(train).tolist(),
        "logistic": logistic(train),
        "platt": {name: [1.0, 0.0] for name in ("logistic", *baselines.GROWN)},
    }
    for name in learned["platt"]:
        raw = baselines.scorers(learned, grown)[name](validation)
        learned["platt"][name] = platt(validation.label, raw)
    scores = baselines.scorers(learned, grown)
    learned["thresholds"] = {name: thresholds(scores[name], validation) for name in baselines.NAMES}
    made_up = baselines.example()
    learned["golden"] = {
        name: baselines.risk_of(said[name], learned["platt"][name]) if name in said else scores[name](made_up)
        for name in baselines.NAMES
    }
    learned["golden"] = {name: np.round(values, 7).tolist() for name, values in learned["golden"].items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, each in grown.items():
        each.save(out / f"{name}.npz")
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in learned.items())
    (out / baselines.LEARNED).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def across(stays: Stays, resamples: int, threads: int = 1) -> str:
    """A table of all baselines fitted on one hospital's stays and scored once on the other's test stays, both ways."""
    lines = ["| from, to | model | AUROC | AUPRC | utility | WH |", "|---|---|---|---|---|---|"]
    sites = sorted(set(stays.site.tolist()))
    for here, there in ((one, other) for one in sites for other in sites if one != other):
        own, other = split(stays.select(stays.site == here)), split(stays.select(stays.site == there))["test"]
        with tempfile.TemporaryDirectory() as folder:
            fit(own["train"], own["validation"], Path(folder), threads=threads)
            candidates = [evaluate.from_baseline(each, other) for each in baselines.load(Path(folder))]
        for model in evaluate.evaluate(other, candidates, resamples)["models"].values():
            cells = (report.cell(figure) for figure in model["figures"]["all"].values())
            lines.append(f"| {here} to {there} | {model['title']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def prevalence(train: Stays) -> NDArray[np.float64]:
    """The share of labelled rows by hour since admission; hours that are rare share one figure."""
    hour = np.clip(train.hour, 0, None).astype(np.int64)
    rows = np.bincount(hour)
    rare = np.flatnonzero((rows < _LEAST_ROWS) & (np.arange(len(rows)) > 0))
    last = int(rare[0]) if len(rare) else len(rows) - 1
    hour = np.minimum(hour, last)
    labelled = np.bincount(hour, weights=train.label, minlength=last + 1)
    found = labelled / np.maximum(np.bincount(hour, minlength=last + 1), 1)
    return np.asarray(np.round(found, 6))


def logistic(train: Stays) -> dict[str, Any]:
    """Mean, deviation, weights and offset of a logistic regression, labelled and other rows of equal weight."""
    from sklearn.linear_model import LogisticRegression

    inputs = baselines.current(train).astype(np.float64)
    mean, std = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), _LEAST_SPREAD)
    model = LogisticRegression(C=1 / _LOGISTIC_PENALTY, class_weight="balanced", max_iter=200)
    model.fit((inputs - mean) / std, train.label)
    return {
        "mean": mean.round(6).tolist(),
        "std": std.round(6).tolist(),
        "weights": model.coef_[0].round(6).tolist(),
        "offset": round(float(model.intercept_[0]), 6),
    }


def grow(
    train: Stays, validation: Stays, inputs: Callable[[Stays], NDArray[Any]], threads: int
) -> tuple[trees.Trees, NDArray[np.float64]]:
    """Trees for the label, as many as rank the validation rows best by WH; and xgboost's own logits of the example."""
    import xgboost

    rows = xgboost.DMatrix(inputs(train), label=train.label.astype(np.float32))
    options = {**_TREES, "nthread": threads, "seed": SEED}
    booster = xgboost.train(options, rows, _MOST_TREES)
    check = xgboost.DMatrix(inputs(validation))
    best, count = -1.0, 0
    for number in range(_EVERY, _MOST_TREES + 1, _EVERY):
        risk = booster.predict(check, iteration_range=(0, number))
        found = metrics.within_hour(validation.label, risk, validation.hour)
        if found > best:
            best, count = found, number
    made_up = xgboost.DMatrix(inputs(baselines.example()))
    said = booster.predict(made_up, iteration_range=(0, count), output_margin=True).astype(np.float64)
    return trees.from_xgboost(booster.get_dump(dump_format="json")[:count], base=0.0), said  # base_score .5: logit 0


def platt(label: NDArray[Any], risk: NDArray[np.float64]) -> list[float]:
    """Slope and offset on the logit that make the risk of the validation rows a probability."""
    clipped = np.clip(risk, 1e-6, 1 - 1e-6)
    slope, offset = metrics.recalibration(label, np.log(clipped / (1 - clipped)))
    return [round(slope, 6), round(offset, 6)]


def thresholds(score: Any, validation: Stays) -> dict[str, Any]:
    """Thresholds of greatest utility and for 1, 2 and 5 alarms per patient-day, as the network's are chosen."""
    seen, label, first = score(validation), validation.label, validation.first
    return {
        "utility": _finite(metrics.steady_threshold(label, first, seen)),
        "per_day": {str(rate): _finite(alerts.threshold_for(seen, rate, first)) for rate in alerts.PER_DAY},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
