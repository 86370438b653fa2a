"""What each part of the recipe is worth: trained anew with one thing changed, and across hospitals.

Ablations and seeds are scored on validation stays, with one member each so that they compare with one another. Across
hospitals, everything (teacher, training, calibration, threshold) comes from one hospital's training and validation
stays, and the other's test stays are scored once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from models_tflite import features
from models_tflite.training import data, metrics, network, recipe
from models_tflite.training.data import Stays
from models_tflite.training.network import Settings
from models_tflite.training.recipe import Lesson, Tell
from models_tflite.training.tracking import Track

_BLANK = np.float32(1e9)  # a deviation beside which the input is nothing
_SEEDS = 3


def run(stays: Stays, settings: Settings, threads: int, track: Track, tell: Tell) -> dict[str, Any]:
    """All studies: name to figures, as plain data."""
    shares = data.split(stays)
    single = replace(settings, members=1)
    lesson = recipe.prepare(shares["train"], settings, threads, tell)
    derived = [name for name in features.NAMES if name not in (*features.VITALS, "age", "sex")]
    statistics = [name for name in derived if name.endswith(("_6h", "_24h"))]
    ways: dict[str, tuple[Lesson, Settings]] = {
        "one member": (lesson, single),
        "without the teacher": (lesson, replace(single, mix=0.0)),
        "the teacher alone, no labels": (lesson, replace(single, mix=1.0)),
        "current vitals, age and sex only": (_without(lesson, derived), single),
        "without the 6 h and 24 h statistics": (_without(lesson, statistics), single),
        "without age and sex": (_without(lesson, ["age", "sex"]), single),
    }
    ways |= {f"another seed, {n}": (lesson, replace(single, seed=settings.seed + n)) for n in range(1, _SEEDS)}
    found: dict[str, Any] = {"validation": {}, "across": {}}
    for name, (taught, changed) in ways.items():
        net = recipe.fit(taught, changed, lambda _: None)
        found["validation"][name] = _scored(net, shares["validation"], shares["validation"])
        tell(f"{name}: {found['validation'][name]}")
        track.figures(found["validation"][name], f"study_{_key(name)}_")
    for here, there in (("A", "B"), ("B", "A")):
        if not {here, there} <= set(stays.site.tolist()):
            continue
        found["across"][f"{here} to {there}"] = across(stays, here, there, settings, threads, tell)
        tell(f"{here} to {there}: {found['across'][f'{here} to {there}']}")
        track.figures(found["across"][f"{here} to {there}"], f"across_{here}_{there}_")
    return found


def across(stays: Stays, here: str, there: str, settings: Settings, threads: int, tell: Tell) -> dict[str, float]:
    """A network of one hospital, on the test stays of the other."""
    own, other = data.split(stays.select(stays.site == here)), data.split(stays.select(stays.site == there))
    net = recipe.fit(recipe.prepare(own["train"], settings, threads, tell), settings, lambda _: None)
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


def _key(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
