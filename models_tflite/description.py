"""`model.json` as types: what a bundle says of its model, read strictly.

A key that is not known, stands twice or is missing, a number that is not finite, and lists that do not agree are each
a ValueError that names the place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import msgspec

SCHEMA = 1
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,4})(\.(0|[1-9][0-9]{0,4})){2}")
_MOST = 4096  # entries of a list; more is no description


class ModelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `model.tflite` must be; the writer fills it in."""

    sha256: str
    bytes: int


class Vital(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One vital sign of a window: name as in `features.VITALS`, UCUM unit, and the range that a person can have."""

    name: str
    unit: str
    low: float
    high: float


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network's inputs in order; per input its mean, deviation, and the least and most that training saw.

    Mean, least and most are in the units that `features.inputs` returns. The network gets (input - mean) / std.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class WindowShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a window is: `steps` rows, one every `step_s` seconds."""

    steps: int
    step_s: float


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must have been measured: `least_vitals` different vital signs within the last `recent_steps` rows."""

    recent_steps: int
    least_vitals: int


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the network's output to the risk: kind `none`, `platt` (a, b on the logit) or `points` (x to y, straight
    between)."""

    kind: str
    a: float = 1.0
    b: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Risk at which the condition begins, below which it ends, and the seconds before it may begin anew."""

    on: float
    off: float
    cool_down_s: float


class GoldenSteps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Normalised inputs of one window, oldest first, and the network's output after the last of them."""

    x: tuple[tuple[float, ...], ...]
    output: float


class GoldenWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Vital signs per hour, oldest first, null where none was measured; age, sex; and the calibrated risk."""

    vitals: tuple[tuple[float | None, ...], ...]
    age: float | None
    sex: float | None
    risk: float


class Goldens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Examples whose results are proven at every load: of the network alone, and from vital signs to risk."""

    tolerance: float
    steps: tuple[GoldenSteps, ...]
    windows: tuple[GoldenWindow, ...]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model.json`. `state` names the network's state tensors with their widths; `runtime` the oldest versions of the
    runtimes that may carry it; `training` is free text: data, licences, run, seed, figures."""

    schema: int
    name: str
    version: str
    intended_use: str
    model: ModelFile
    runtime: dict[str, str]
    vitals: tuple[Vital, ...]
    features: Features
    window: WindowShape
    quality: Quality
    state: dict[str, int]
    calibration: Calibration
    thresholds: Thresholds
    training: dict[str, str | int | float]
    goldens: Goldens


def encode(about: Description) -> bytes:
    """The text of `model.json`, one line."""
    return json.dumps(msgspec.to_builtins(about), separators=(",", ":")).encode() + b"\n"


def parse(text: bytes) -> Description:
    """The description in `text`. Raises: ValueError."""
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not strict JSON ({error})") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f"has schema {schema!r}, this version reads {SCHEMA}")
    about = msgspec.convert(found, Description)
    for fault in _faults(about):
        raise ValueError(fault)
    return about


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _faults(about: Description) -> Iterable[str]:
    """What the types do not say: finite numbers, lengths that agree, ranges that are ranges."""
    if not all(map(math.isfinite, _numbers(msgspec.to_builtins(about)))):
        yield "holds a number that is not finite"
        return
    if not _NAME.fullmatch(about.name) or not _VERSION.fullmatch(about.version):
        yield f"name {about.name!r} or version {about.version!r} is not like sepsis-lstm and 1.0.0"
    if not re.fullmatch(r"[0-9a-f]{64}", about.model.sha256):
        yield "model.sha256 is not 64 hexadecimal digits"
    yield from _shape_faults(about)
    yield from _range_faults(about)
    yield from _golden_faults(about)


def _shape_faults(about: Description) -> Iterable[str]:
    features, width = about.features, len(about.features.names)
    if not 0 < width <= _MOST or len(set(features.names)) != width:
        yield "features.names is empty, too long, or names one twice"
    for name in ("mean", "std", "low", "high"):
        if len(getattr(features, name)) != width:
            yield f"features.{name} has {len(getattr(features, name))} numbers for {width} names"
    names = [vital.name for vital in about.vitals]
    if not names or len(set(names)) != len(names):
        yield "vitals is empty or names one twice"
    if not 0 < about.window.steps <= _MOST or about.window.step_s <= 0:
        yield "window.steps or window.step_s is not above zero"
    if not 0 < about.quality.recent_steps <= about.window.steps or not 0 < about.quality.least_vitals <= len(names):
        yield "quality asks for more than a window has, or for nothing"
    if not about.state or any(not 0 < width <= _MOST for width in about.state.values()) or "x" in about.state:
        yield "state names no state tensor with its width"
    for package, version in about.runtime.items():
        if not re.fullmatch(r"[0-9]+(\.[0-9]+){1,2}", version):
            yield f"runtime.{package} {version!r} is no version"
    if not about.runtime:
        yield "runtime names no package that may carry the model"


def _range_faults(about: Description) -> Iterable[str]:
    features, limits, calibration = about.features, about.thresholds, about.calibration
    if any(deviation <= 0 for deviation in features.std):
        yield "features.std is not above zero"
    if any(low > high for low, high in zip(features.low, features.high, strict=False)):
        yield "features.low is above features.high"
    for vital in about.vitals:
        if vital.low >= vital.high:
            yield f"vitals: {vital.name} has no range"
    if not 0 < limits.off <= limits.on <= 1 or limits.cool_down_s < 0:
        yield "thresholds: off is above on, or not within 0 to 1"
    if calibration.kind not in ("none", "platt", "points"):
        yield f"calibration.kind {calibration.kind!r} is none of none, platt, points"
    if calibration.kind == "platt" and calibration.a <= 0:
        yield "calibration.a is not above zero"
    if calibration.kind == "points":
        x, y = calibration.x, calibration.y
        if len(x) < 2 or len(x) != len(y) or list(y) != sorted(y) or any(a >= b for a, b in pairwise(x)):
            yield "calibration: x must rise, y must not fall, both of one length above 1"
        elif y[0] < 0 or y[-1] > 1:
            yield "calibration.y is not within 0 to 1"


def _golden_faults(about: Description) -> Iterable[str]:
    goldens, width, vitals = about.goldens, len(about.features.names), len(about.vitals)
    if not goldens.steps or not goldens.windows:
        yield "goldens are missing: without examples the runtime cannot be proven"
    if not 0 < goldens.tolerance <= 0.01:
        yield "goldens.tolerance is not within 0 to 0.01"
    for case in goldens.steps:
        if not 0 < len(case.x) <= about.window.steps or any(len(row) != width for row in case.x):
            yield f"goldens.steps: rows are not {width} wide, or more than a window has"
    for window in goldens.windows:
        if not 0 < len(window.vitals) <= about.window.steps or any(len(row) != vitals for row in window.vitals):
            yield f"goldens.windows: rows are not {vitals} wide, or more than a window has"


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
