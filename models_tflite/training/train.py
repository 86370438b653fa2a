"""From the public recordings to a signed bundle with its model card: `python -m models_tflite.training.train --help`.

Training stays teach; validation stays decide calibration and thresholds; test stays are scored once at the end, by
`evaluate` and the bedside's own runner. The same data, seed and versions of the packages give the same weights.
Ablations, other seeds and both directions across hospitals come from the command `studies`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models_tflite import bundle, description, features, runner
from models_tflite.training import (
    alerts,
    baselines,
    card,
    data,
    evaluate,
    metrics,
    network,
    quantize,
    recipe,
    samples,
    tracking,
)
from models_tflite.training.data import DataError, Stays
from models_tflite.training.network import Settings

NAME, VERSION = "sepsis-lstm", "1.0.0"
INTENDED_USE = (
    "Research and demonstration: an hourly risk of sepsis within about six hours for adults in intensive care, shown "
    "beside NEWS2 and the bedside alarms. Not a medical device; it decides nothing and silences nothing."
)
SOURCE = "PhysioNet/CinC Challenge 2019, doi 10.13026/v64v-d857, CC BY 4.0"
_RUNTIME = {"ai-edge-litert": "2.1.6", "tflite-runtime": "2.14.0"}
_QUALITY = description.Quality(recent_steps=12, least_vitals=3)
_HYSTERESIS = 0.8  # of the threshold: the condition ends below it
_COOL_DOWN_S = 2 * 3600.0  # before the condition may begin anew: two of the model's hours
_TOLERANCE = 0.004  # of goldens: kernels for other processors round differently
_MARGIN = 0.1  # of the range that training saw: within it an input is not strange enough to abstain
_GOLDENS = 5
_CHECKED = 2000  # windows on which the conversion is proven


class Made(NamedTuple):
    """A bundle in its folder, and what is told of it in the card."""

    folder: Path
    about: description.Description
    facts: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Train, convert, sign, evaluate and describe; returns the exit code."""
    asked = _parser().parse_args(arguments)
    wanted = {name: getattr(asked, name) for name in ("members", "units", "rounds", "batch") if getattr(asked, name)}
    settings = Settings(seed=asked.seed, **wanted)
    try:
        key = bundle.private_key(asked.sign_key)
        stays = data.read(asked.data, labs=True)
        with tracking.track(asked.track, f"{NAME} {asked.version} seed {asked.seed}") as track:
            made = make(stays, settings, asked, key, track)
            found = judge(made.folder, asked, stays, track)
            studied = json.loads(asked.studies.read_text()) if asked.studies else {}
            card.write(made.folder, made.about, found, made.facts, studied, data.describe(stays))
            track.file(made.folder / card.NAME)
    except (DataError, bundle.BundleRefused, quantize.ConversionFailed) as error:
        print(error, file=sys.stderr)
        return 2
    _tell(
        f"{made.folder}: {sum(each.stat().st_size for each in made.folder.iterdir() if each.is_file()) / 1000:.0f} kB"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models_tflite.training.train", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file, or folder of .psv files")
    parser.add_argument("--out", type=Path, required=True, help=f"the folder in which {NAME}-<version> is written")
    parser.add_argument("--sign-key", type=Path, required=True, help="Ed25519 private key (PEM) that signs the bundle")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (1)")
    parser.add_argument("--version", default=VERSION, help=f"of the bundle ({VERSION})")
    parser.add_argument("--threads", type=int, default=1, help="processor cores for the teacher's trees (1)")
    parser.add_argument("--studies", type=Path, help="what the command `studies` wrote, for the model card")
    parser.add_argument("--track", type=Path, help="keep the run in this MLflow store (a folder)")
    parser.add_argument("--weights", type=Path, help="keep float weights in this .npz, or take them if it is there")
    parser.add_argument("--bootstrap", type=int, default=500, help="resamples of the patients for intervals (500)")
    for name in ("members", "units", "rounds", "batch"):
        parser.add_argument(f"--{name}", type=int, help=f"of the network ({getattr(Settings(), name)})")
    return parser


def make(
    stays: Stays, settings: Settings, asked: argparse.Namespace, key: Ed25519PrivateKey, track: tracking.Track
) -> Made:
    """Train on the training stays, choose on the validation stays, and write the signed bundle."""
    began = time.monotonic()
    shares, given = data.split(stays), bool(asked.weights and asked.weights.exists())
    validation = shares["validation"]
    track.settings({**asdict(settings), "data": asked.data.name, "window": features.WINDOW})
    net = _network(shares["train"], settings, asked)
    model = quantize.convert(net)
    errors = quantize.check(model, net, _checked(validation, net, settings.seed))
    raw = {share: _both(model, net, shares[share]) for share in ("validation", "test")}
    chosen = recipe.choose(validation, raw["validation"]["quantized"])
    figures: dict[str, dict[str, metrics.Figures]] = {}
    for share, risks in raw.items():
        calibrated = {name: recipe.calibrate(each, chosen.slope, chosen.offset) for name, each in risks.items()}
        figures[share] = {
            name: recipe.figures(shares[share], each, chosen.threshold) for name, each in calibrated.items()
        }
        for name, found in figures[share].items():
            _tell(f"{share}, {name}: {_shown(found._asdict())}")
            track.figures(found._asdict(), f"{share}_{name}_")
    facts = {
        "settings": asdict(settings),
        "parameters": net.parameters(),
        "bytes": len(model),
        "operations": dict(quantize.operations(model)),
        "errors": {name: each._asdict() for name, each in errors.items()},
        **{share: {name: found._asdict() for name, found in each.items()} for share, each in figures.items()},
        "threshold": chosen.threshold,
        "seconds": round(time.monotonic() - began),
        "weights": "given, from an earlier run" if given else "trained by this run",
        "versions": {name: version_of(name) for name in ("tensorflow", "xgboost-cpu", "numpy", "ai-edge-litert")},
    }
    training: dict[str, str | int | float] = {
        "data": SOURCE,
        "share": "train; calibration and thresholds: validation; measured: test",
        "run": track.run or "not tracked",
        "seed": settings.seed,
        "parameters": net.parameters(),
        "patients": len(shares["train"]),
        "base_rate": round(float(shares["train"].label.mean()), 6),
        **{
            f"validation_{name}": round(value, 4)
            for name, value in figures["validation"]["quantized"]._asdict().items()
        },
        **alerts.to_store(
            recipe.calibrate(raw["validation"]["quantized"], chosen.slope, chosen.offset), validation.first
        ),
    }
    about = _description(net, chosen, training, asked.version)
    about = msgspec.structs.replace(about, goldens=_goldens(model, about))
    folder = bundle.write(asked.out, model, about, key)
    return Made(folder, about, facts)


def _network(train: Stays, settings: Settings, asked: argparse.Namespace) -> network.Network:
    if asked.weights and asked.weights.exists():
        return quantize.load(asked.weights)
    net = recipe.fit(recipe.prepare(train, settings, asked.threads, _tell), settings, _tell)
    if asked.weights:
        quantize.save(net, asked.weights)
    return net


def _both(model: bytes, net: network.Network, stays: Stays) -> dict[str, Any]:
    """The raw risk of every row by the float weights and by the converted model."""
    ways = {"float": network.scorer(net), "quantized": quantize.scorer(model)}
    out = {name: np.empty(stays.rows) for name in ways}
    for at in range(0, stays.rows, network.AT_ONCE):
        rows = np.arange(at, min(at + network.AT_ONCE, stays.rows))
        x = network.normalised(samples.seen(stays, rows), net.scale)
        for name, score in ways.items():
            out[name][rows] = score(x)
    return out


def _description(
    net: network.Network, chosen: recipe.Chosen, training: dict[str, str | int | float], version: str
) -> description.Description:
    state = sum(len(each["r"]) for each in net.members)
    beyond = _MARGIN * (net.scale.high - net.scale.low)
    vitals = zip(features.VITALS, features.UNITS, features.RANGES, strict=True)
    return description.Description(
        schema=description.SCHEMA,
        name=NAME,
        version=version,
        intended_use=INTENDED_USE,
        model=description.ModelFile("", 0),
        runtime=_RUNTIME,
        vitals=tuple(description.Vital(name, unit, low, high) for name, unit, (low, high) in vitals),
        features=description.Features(
            names=features.NAMES,
            mean=_numbers(net.scale.mean),
            std=_numbers(net.scale.std),
            low=_numbers(net.scale.low - beyond),
            high=_numbers(net.scale.high + beyond),
        ),
        window=description.WindowShape(features.WINDOW, 3600.0),
        quality=_QUALITY,
        state={"h": state, "c": state},
        calibration=description.Calibration("platt", chosen.slope, chosen.offset),
        thresholds=description.Thresholds(chosen.threshold, round(chosen.threshold * _HYSTERESIS, 6), _COOL_DOWN_S),
        training=training,
        goldens=description.Goldens(_TOLERANCE, (), ()),
    )


def _numbers(values: Any) -> tuple[float, ...]:
    """As short as single precision allows: the text is signed and stays small."""
    return tuple(float(str(np.float32(value))) for value in values)


def _goldens(model: bytes, about: description.Description) -> description.Goldens:
    """Of those made-up patients who are not beyond what training saw."""
    trial = runner.Runner(bundle.Bundle(Path(about.name), about, model, ""), prove=False)
    made_up = _made_up()
    familiar = [window for window, found in zip(made_up, trial.score(made_up), strict=True) if found.risk is not None]
    return runner.goldens(model, about, familiar, _TOLERANCE)


def _made_up() -> list[runner.Window]:
    """Made-up patients (no recording leaves the data), from well to very ill, with and without gaps, age and sex."""
    generator = np.random.default_rng(7)
    well, ill = np.array([72, 98, 36.8, 128, 90, 70, 14.0]), np.array([128, 90, 39.4, 84, 54, 40, 33.0])
    out = []
    for number, share in enumerate(np.linspace(0.0, 1.0, _GOLDENS)):
        hours = features.WINDOW if number % 2 == 0 else 5
        course = np.linspace(0.5 * share, share, hours)[:, None]
        rows = well + course * (ill - well) + generator.normal(0, 1, (hours, 7)) * np.array([3, 0.6, 0.1, 5, 3, 3, 1])
        rows[:, 1] = np.minimum(rows[:, 1], 100.0)
        rows[generator.random(rows.shape) < 0.15 * (number > 0)] = np.nan
        known = number != 1
        age, sex = (40.0 + 10 * number, float(number % 2)) if known else (np.nan, np.nan)
        out.append(runner.Window(f"golden {number}", np.round(rows, 2), age, sex))
    return out


def _checked(stays: Stays, net: network.Network, seed: int) -> Any:
    rows = np.sort(np.random.default_rng(seed).choice(stays.rows, min(_CHECKED, stays.rows), replace=False))
    return np.ascontiguousarray(network.normalised(samples.seen(stays, rows), net.scale).transpose(1, 0, 2))


def judge(folder: Path, asked: argparse.Namespace, stays: Stays, track: tracking.Track) -> dict[str, Any]:
    """The whole evaluation on the test stays, beside all baselines; its plots are written beside the model."""
    from models_tflite.training import report

    test = stays.select(data.shares(stays) == "test")
    trusted = folder.parent / f"{NAME}-{asked.version}.pub"
    trusted.write_bytes(bundle.public_pem(bundle.private_key(asked.sign_key)))
    try:
        read = bundle.read(folder, [trusted])
    finally:
        trusted.unlink()
    candidates = [evaluate.from_bundle(read, test)]
    candidates += [evaluate.from_baseline(each, test) for each in baselines.load()]
    found = evaluate.evaluate(test, candidates, asked.bootstrap)
    found["data"] |= {"file": asked.data.name, "share": "test"}
    values = {name: each["value"] for name, each in found["models"]["bundle"]["figures"]["all"].items()}
    _tell(f"test: {_shown(values)}")
    track.figures(values, "test_")
    for plot in report.figures(test, candidates, folder / card.FIGURES):
        plot.write_text(re.sub(r"(\d\.\d)\d+", r"\1", plot.read_text()))  # a tenth of a point is enough, half the size
    return found


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
