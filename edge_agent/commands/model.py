"""`edge-agent model verify|info|score`: proves a bundle of the risk model, tells what it is, scores a file with it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models_tflite.bundle import Bundle
    from models_tflite.runner import Runner, Scored

_ROWS = 100_000  # hours of a file; eleven years of one patient are no patient
_BATCH = 256  # windows scored together

# heading in lower case: name of the vital sign, or age, sex; those of the PhysioNet/CinC Challenge 2019 first
_HEADINGS = {
    "hr": "heart_rate", "o2sat": "spo2", "temp": "temperature", "sbp": "systolic", "map": "mean_pressure",
    "dbp": "diastolic", "resp": "resp_rate", "age": "age", "gender": "sex", "sex": "sex",
}  # fmt: skip
_SEXES = {"m": 1.0, "male": 1.0, "f": 0.0, "female": 0.0}


class _Wrong(Exception):
    """A file that cannot be scored; the text names the place."""


@dataclass(frozen=True, slots=True)
class _Stay:
    """One patient's hours: vital signs in the model's order, with age and sex of each row."""

    rows: list[list[float]]
    ages: list[float]
    sexes: list[float]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `model` with its three commands."""
    model = subparsers.add_parser("model", help="verify, describe and try the risk model")
    commands = model.add_subparsers(metavar="COMMAND", required=True)
    for name, text in (
        ("verify", "check signature, hash, tensors and goldens in every installed runtime; exit 1 when refused"),
        ("info", "what the bundle is: intended use, inputs, limits, training; as JSON"),
        ("score", "the risk at each hour of a .psv (columns of the Challenge 2019) or .csv file of vital signs"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument(
            "--bundle", type=Path, metavar="DIR", help="default: of --config, else the one that came along"
        )
        each.add_argument(
            "--key", type=Path, action="append", default=[], metavar="PUB", help="a public key to trust too"
        )
        each.add_argument("--config", type=Path, metavar="FILE", help="take bundle and keys from [model] of this file")
        each.set_defaults(func=run_model, command=name)
        if name == "score":
            each.add_argument("file", type=Path, metavar="FILE")
            each.add_argument("--json", action="store_true", help="one JSON line for each hour")
            each.add_argument("--explain", action="store_true", help="with what each vital sign adds to the risk")
            each.add_argument("--runtime", choices=("litert", "tflite-runtime"), help="prefer this runtime")


def run_model(arguments: argparse.Namespace) -> int:
    """Run one of the three; what refuses the bundle or the file is told with what to do."""
    try:
        from models_tflite import bundle
    except ImportError as error:
        print(f"edge-agent model: {error}. Install the package with its dependencies", file=sys.stderr)
        return 1
    try:
        folder, keys = _place(arguments)
        found = bundle.read(folder or bundle.shipped(), keys)
        if arguments.command == "verify":
            return _verify(found)
        if arguments.command == "info":
            print(json.dumps(_info(found), indent=2, ensure_ascii=False))
            return 0
        return _score(arguments, found)
    except (bundle.BundleRefused, _Wrong, OSError) as error:
        print(f"edge-agent model: {error}", file=sys.stderr)
        return 1


def _place(arguments: argparse.Namespace) -> tuple[Path | None, list[Path]]:
    """The bundle's folder, None for the one that came along, and the keys to trust."""
    folder, keys = arguments.bundle, list(arguments.key)
    if arguments.config is not None:
        from edge_agent.config import load

        loaded = load(arguments.config)
        settings = loaded.config.model
        if settings is not None:
            keys += [loaded.resolve(path) for path in settings.trusted]
            if folder is None and settings.bundle is not None:
                folder = loaded.resolve(settings.bundle)
    return folder, keys


def _verify(found: Bundle) -> int:
    from models_tflite.bundle import BundleRefused
    from models_tflite.runner import Runner
    from models_tflite.runtime import PACKAGES

    about = found.description
    print(f"{found.folder}: signed by {found.signer}")
    print(f"model.tflite: {about.model.bytes} bytes, SHA-256 {about.model.sha256}, as the description says")
    proven, refused = set(), []
    for package in PACKAGES:
        try:
            runner = Runner(found, package)
        except BundleRefused as error:
            refused.append(error)
            continue
        if runner.runtime not in proven:  # a runtime that is missing is replaced by another
            proven.add(runner.runtime)
            count = len(about.goldens.steps) + len(about.goldens.windows)
            print(f"{runner.runtime}: tensors as described, all {count} goldens within {about.goldens.tolerance:g}")
    if refused:
        raise refused[0]
    print(f"{found.identity}: accepted")
    return 0


def _info(found: Bundle) -> dict[str, Any]:
    """What a biomedical engineer asks of a model, in the order in which it is asked."""
    about = found.description
    names = about.features.names
    return {
        "name": about.name,
        "version": about.version,
        "intended_use": about.intended_use,
        "sha256": about.model.sha256,
        "bytes": about.model.bytes,
        "signed_by": found.signer,
        "vitals": [f"{vital.name} {vital.low:g} to {vital.high:g} {vital.unit}" for vital in about.vitals],
        "inputs": len(names),
        "state": dict(about.state),
        "window": f"{about.window.steps} rows, one every {about.window.step_s:g} s",
        "least_input": f"{about.quality.least_vitals} vital signs within {about.quality.recent_steps} rows",
        "risk_begins": about.thresholds.on,
        "risk_ends_below": about.thresholds.off,
        "cool_down_s": about.thresholds.cool_down_s,
        "calibration": about.calibration.kind,
        "runtimes": dict(about.runtime),
        "goldens": len(about.goldens.steps) + len(about.goldens.windows),
        "training": dict(about.training),
        "card": str(_card(found.folder)) if _card(found.folder) else None,
    }


def _card(folder: Path) -> Path | None:
    places = (folder / "MODEL_CARD.md", folder.parent / "MODEL_CARD.md")
    return next((place for place in places if place.is_file()), None)


def _score(arguments: argparse.Namespace, found: Bundle) -> int:
    from models_tflite.runner import NEVER, Runner

    stay = _read(arguments.file, [vital.name for vital in found.description.vitals])
    runner = Runner(found, arguments.runtime)
    results = _results(runner, stay, 0.0 if arguments.explain else NEVER)
    if arguments.json:
        for hour, result in enumerate(results, start=1):
            print(json.dumps(_line(hour, result), ensure_ascii=False))
        return 0
    print(f"{found.identity} in {runner.runtime}; condition from {found.description.thresholds.on:.3f}")
    print(f"{'hour':>5}  {'risk':>6}  {'coverage':>8}  ")
    for hour, result in enumerate(results, start=1):
        risk = "" if result.risk is None else f"{result.risk:.4f}"
        parts = " ".join(f"{name} {share:+.3f}" for name, share in result.contributions)
        told = parts if result.status == "scored" else f"{result.status}: {result.text}"
        print(f"{hour:>5}  {risk:>6}  {result.coverage:>8.2f}  {told}".rstrip())
    return 0


def _results(runner: Runner, stay: _Stay, explain_from: float) -> Iterator[Scored]:
    """The score at each hour, from the window that ends with it."""
    from models_tflite.runner import Window

    steps = runner.bundle.description.window.steps
    for first in range(0, len(stay.rows), _BATCH):
        windows = [
            Window("", stay.rows[max(0, end - steps) : end], stay.ages[end - 1], stay.sexes[end - 1])
            for end in range(first + 1, min(first + _BATCH, len(stay.rows)) + 1)
        ]
        yield from runner.score(windows, explain_from)


def _line(hour: int, result: Scored) -> dict[str, Any]:
    risk = None if result.risk is None else round(result.risk, 6)
    line: dict[str, Any] = {"hour": hour, "status": result.status, "risk": risk}
    if result.reason:
        line |= {"reason": result.reason, "text": result.text}
    line["coverage"] = round(result.coverage, 3)
    if result.contributions:
        line["contributions"] = {name: round(share, 4) for name, share in result.contributions}
    return line


def _read(path: Path, vitals: Sequence[str]) -> _Stay:
    """The hours of a file. Raises: _Wrong, OSError."""
    separators = {".psv": "|", ".csv": ","}
    separator = separators.get(path.suffix.lower())
    if separator is None:
        raise _Wrong(f"{path}: ends neither in .psv nor in .csv. Name it after how its columns are separated")
    stay = _Stay([], [], [])
    with path.open(encoding="utf-8-sig", errors="replace", newline=None) as file:
        headings = file.readline().strip().split(separator)
        columns = _columns(path, headings, vitals)
        for number, line in enumerate(file, start=2):
            if not line.strip():
                continue
            if len(stay.rows) >= _ROWS:
                raise _Wrong(f"{path}:{number}: more than {_ROWS} rows. A file holds one patient, one row per hour")
            cells = line.rstrip("\r\n").split(separator)
            if len(cells) != len(headings):
                raise _Wrong(f"{path}:{number}: {len(cells)} columns, the heading has {len(headings)}. Mend the line")
            values = {name: _value(path, number, name, cells[at]) for name, at in columns.items()}
            stay.rows.append([values.get(name, math.nan) for name in vitals])
            stay.ages.append(values.get("age", math.nan))
            stay.sexes.append(values.get("sex", math.nan))
    if not stay.rows:
        raise _Wrong(f"{path}: no row below the heading. Give one row per hour, the oldest first")
    return stay


def _columns(path: Path, headings: Sequence[str], vitals: Sequence[str]) -> dict[str, int]:
    """Which column holds which vital sign; other columns are left alone."""
    columns: dict[str, int] = {}
    for at, heading in enumerate(headings):
        word = heading.strip().strip('"').lower()
        name = word if word in vitals else _HEADINGS.get(word, "")
        if name in columns:
            raise _Wrong(f"{path}:1: two columns hold {name}. Leave one")
        if name:
            columns[name] = at
    if not set(columns) & set(vitals):
        raise _Wrong(
            f"{path}:1: no column is a vital sign. Name them {', '.join(vitals)} "
            f"or {', '.join(heading for heading, name in _HEADINGS.items() if name in vitals)}"
        )
    return columns


def _value(path: Path, number: int, name: str, cell: str) -> float:
    word = cell.strip().strip('"')
    if not word:
        return math.nan
    if name == "sex" and word.lower() in _SEXES:
        return _SEXES[word.lower()]
    with suppress(ValueError):
        return float(word)
    raise _Wrong(f"{path}:{number}: {name} {word!r} is no number. Leave the cell empty where nothing was measured")
