"""Small signed bundles for the tests: the networks of tests/model, described, with goldens, signed with a new key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models_tflite import bundle, features
from models_tflite.description import (
    Calibration,
    Description,
    Features,
    Goldens,
    ModelFile,
    Quality,
    Thresholds,
    Vital,
    WindowShape,
)
from models_tflite.runner import Window, goldens

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAMES = (*features.VITALS, "shock_index", "news2", "age", "sex")
MEAN = (85.0, 97.0, 37.0, 122.0, 82.0, 62.0, 18.5, 0.7, 3.0, 62.0, 0.5)
STD = (17.0, 3.0, 0.8, 23.0, 16.0, 14.0, 5.0, 0.2, 2.5, 16.0, 0.5)
LOW = (20.0, 50.0, 30.0, 40.0, 20.0, 15.0, 2.0, 0.0, 0.0, 16.0, 0.0)
HIGH = (220.0, 100.0, 42.5, 280.0, 220.0, 180.0, 70.0, 4.0, 20.0, 100.0, 1.0)


def model(kind: str = "int8") -> bytes:
    """The small network, `float` or `int8`."""
    return (Path(__file__).parent / "model" / f"small-{kind}.tflite").read_bytes()


def rows(seed: int, hours: int = 24, missing: float = 0.2) -> np.ndarray:
    """Hourly vital signs of an invented patient, some of them not measured."""
    chance = np.random.default_rng(seed)
    ill = chance.uniform(-1.0, 2.0)
    centre = np.array(
        [85 + 15 * ill, 97 - 2 * ill, 37 + 0.6 * ill, 122 - 14 * ill, 82 - 9 * ill, 62 - 6 * ill, 18 + 4 * ill]
    )
    found = centre + chance.normal(0, 1, (hours, 7)) * (5, 0.7, 0.2, 6, 4, 4, 2)
    found[:, 1] = np.minimum(found[:, 1], 100)
    found[chance.random((hours, 7)) < missing] = np.nan
    found[-1, :4] = centre[:4]  # the newest hour has something in it
    found[-1, 1] = min(centre[1], 100)
    return found


def windows(count: int, first: int = 0) -> list[Window]:
    """Windows of as many invented patients."""
    return [
        Window(f"ICU-{seed}", rows(seed), 50.0 + seed % 40, float(seed % 2)) for seed in range(first, first + count)
    ]


def describe(network: bytes, **changes: Any) -> Description:
    """A description of the small network with goldens of this machine; `changes` replaces parts before these."""
    about = Description(
        schema=1,
        name="small-lstm",
        version="1.2.3",
        intended_use="Tests only.",
        model=ModelFile(sha256="", bytes=0),
        runtime={"ai-edge-litert": "2.1.6", "tflite-runtime": "2.14.0"},
        vitals=tuple(
            Vital(name=name, unit=unit, low=low, high=high)
            for name, unit, (low, high) in zip(features.VITALS, features.UNITS, features.RANGES, strict=True)
        ),
        features=Features(names=NAMES, mean=MEAN, std=STD, low=LOW, high=HIGH),
        window=WindowShape(steps=features.WINDOW, step_s=3600.0),
        quality=Quality(recent_steps=6, least_vitals=4),
        state={"h": 16, "c": 16},
        calibration=Calibration(kind="platt", a=0.9, b=-0.2),
        thresholds=Thresholds(on=0.6, off=0.5, cool_down_s=3600.0),
        training={"data": "none", "seed": 5},
        goldens=Goldens(tolerance=1e-4, steps=(), windows=()),
    )
    about = msgspec.structs.replace(about, **changes)
    if about.goldens.steps:
        return about
    return msgspec.structs.replace(about, goldens=goldens(network, about, windows(3), 1e-4))


def write(folder: Path, kind: str = "int8", **changes: Any) -> tuple[Path, Path]:
    """A bundle in `folder` and the public key that it is signed for."""
    key = folder / "tests.pub"
    key.write_bytes(bundle.public_pem(KEY))
    return bundle.write(folder, model(kind), describe(model(kind), **changes), KEY), key
