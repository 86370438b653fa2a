"""What each part of the recipe is worth: `python -m models_tflite.training.studies --data FILE --out FILE`.

Trained anew with one thing changed, and across hospitals; one member each, so that they compare with one another.
Ablations and seeds are scored on validation stays. Across hospitals, everything (teacher, training, calibration,
threshold) comes from one hospital's training and validation stays, and the other's test stays are scored once.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models_tflite import features
from models_tflite.training import data, metrics, network, recipe, tracking
from models_tflite.training.data import Stays
from models_tflite.training.network import Settings
from models_tflite.training.recipe import Lesson

_BLANK = np.float32(1e9)  # a deviation beside which the input is nothing


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for and write it; what the file holds already is kept. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models_tflite.training.studies", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file, or folder of .psv files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file for `train --studies`")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (1)")
    parser.add_argument("--rounds", type=int, default=Settings().rounds, help=f"of training ({Settings().rounds})")
    parser.add_argument("--threads", type=int, default=1, help="processor cores for the teacher's trees (1)")
    parser.add_argument("--track", type=Path, help="keep the run in this MLflow store (a folder)")
    asked = parser.parse_args(arguments)
    try:
        stays = data.read(asked.data, labs=True)
    except data.DataError as error:
        print(error, file=sys.stderr)
        return 2
    settings = Settings(members=1, seed=asked.seed, rounds=asked.rounds)
    with tracking.track(asked.track, f"studies seed {asked.seed}") as track:
        run(stays, settings, asked.threads, asked.out, track)
    return 0


def run(stays: Stays, settings: Settings, threads: int, out: Path, track: tracking.Track) -> None:
    """All studies that `out` does not hold yet; written after each, so that one may stop in between."""
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"validation": {}, "across": {}}

    def keep(kind: str, name: str, figures: dict[str, float]) -> None:
        found[kind][name] = figures
        out.write_text(json.dumps(found, indent=1) + "\n")
        track.figures(figures, f"{kind}_{_key(name)}_")
        print(f"{name}: {figures}", flush=True)

    for here, there in (("A", "B"), ("B", "A")):
        if {here, there} <= set(stays.site.tolist()) and f"{here} to {there}" not in found["across"]:
            keep("across", f"{here} to {there}", across(stays, here, there, settings, threads))
    shares = data.split(stays)
    lesson = recipe.prepare(shares["train"], settings, threads, print)
    for name, (taught, changed) in _ways(lesson, settings).items():
        if name not in found["validation"]:
            net = recipe.fit(taught, changed, _silent)
            keep("validation", name, _scored(net, shares["validation"], shares["validation"]))


def _ways(lesson: Lesson, settings: Settings) -> dict[str, tuple[Lesson, Settings]]:
    derived = [name for name in features.NAMES if name not in (*features.VITALS, "age", "sex")]
    statistics = [name for name in derived if name.endswith(("_6h", "_24h"))]
    return {
        "as shipped, one member": (lesson, settings),
        "without the teacher": (lesson, replace(settings, mix=0.0)),
        "current vitals, age and sex only": (_without(lesson, derived), settings),
        "another seed": (lesson, replace(settings, seed=settings.seed + 1)),
        "a third seed": (lesson, replace(settings, seed=settings.seed + 2)),
        "without the 6 h and 24 h statistics": (_without(lesson, statistics), settings),
        "without age and sex": (_without(lesson, ["age", "sex"]), settings),
    }


def across(stays: Stays, here: str, there: str, settings: Settings, threads: int) -> dict[str, float]:
    """A network of one hospital, on the test stays of the other."""
    own, other = data.split(stays.select(stays.site == here)), data.split(stays.select(stays.site == there))
    net = recipe.fit(recipe.prepare(own["train"], settings, threads, print), settings, _silent)
    return _scored(net, own["validation"], other["test"])


def _scored(net: network.Network, deciding: Stays, asked: Stays) -> dict[str, float]:
    raw = network.risks(net, deciding)
    chosen = recipe.choose(deciding, raw)
    risk = recipe.calibrate(raw if asked is deciding else network.risks(net, asked), chosen.slope, chosen.offset)
    found = recipe.figures(asked, risk, chosen.threshold)._asdict()
    return {**found, "later": metrics.hour_probe(risk, asked.hour).later}


def _without(lesson: Lesson, names: list[str]) -> Lesson:
    std = lesson.scale.std.copy()
    std[[features.NAMES.index(name) for name in names]] = _BLANK
    return lesson._replace(scale=lesson.scale._replace(std=std))


def _silent(_text: str) -> None:
    """Rounds are many, studies too."""


def _key(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


if __name__ == "__main__":
    sys.exit(main())
