"""The risk model: a window of 48 steps in each runtime beside numpy, the whole way of a bed, memory, size on disk.

`network` is the shipped network alone over 48 steps, one row of the batch per bed; numpy multiplies the same matrices
and computes the same gates. `runner` is what a minute costs: gate, inputs, the bundle's window, calibration; the same
after a rest, when pages were given back; and with the contributions of every bed. The least of several rounds, one
thread, in microseconds. `x 1 bed` is 32 beds against one. `memory` is what a runner adds to a process that holds the
agent's modules: resident memory right after scoring and at rest, which is all but a few milliseconds of each minute;
and of that what is the process's own (the rest are pages of libraries' files, which the kernel may drop).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from models_tflite import bundle, features
from models_tflite.runner import Runner, Window
from models_tflite.runtime import PACKAGES, NoRuntime, open_engine

STEPS = 48
BEDS = (1, 32)
ROUNDS = 60
PROCESSES = 3


def run() -> list[dict[str, object]]:
    """Rows of three tables."""
    folder = bundle.shipped()
    found = bundle.read(folder)
    return [*_networks(found), *_runners(found), *_memory(), _size(found)]


def _least(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Microseconds of the quickest of several rounds; what goes before each is not counted."""
    work()
    taken = []
    for _ in range(ROUNDS):
        before()
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken) * 1e6


def _row(what: str, name: str, times: list[float]) -> dict[str, object]:
    one, many = times
    return {
        what: name,
        "1 bed us": round(one),
        "32 beds us": round(many),
        "us a bed of 32": round(many / BEDS[1], 1),
        "x 1 bed": round(many / one, 2),
    }


def _networks(found: bundle.Bundle) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    windows = [_inputs(beds, len(found.description.features.names)) for beds in BEDS]
    engine = open_engine(found.model)
    by_hand = [_least(partial(_numpy, engine, x)) for x in windows]
    for package in PACKAGES:
        try:
            engine = open_engine(found.model, package)
        except NoRuntime:
            continue
        if engine.package == package:
            times = [_least(partial(engine.roll, x)) for x in windows]
            row = _row("network", f"{package} {engine.version}", times)
            rows.append(row | {"numpy / this, 1 and 32": _ratios(by_hand, times)})
    return [*rows, _row("network", f"numpy {np.__version__}", by_hand)]


def _ratios(by_hand: list[float], times: list[float]) -> str:
    return " and ".join(f"{slow / quick:.1f}" for slow, quick in zip(by_hand, times, strict=True))


def _inputs(beds: int, width: int) -> np.ndarray:
    return np.random.default_rng(beds).normal(size=(STEPS, beds, width)).astype(np.float32)


_MATRICES: list[np.ndarray] = []


def _numpy(engine: Any, x: np.ndarray) -> np.ndarray:
    """The network's multiplications and gates over the window; inputs of all steps are multiplied at once."""
    if not _MATRICES:
        for tensor in engine._interpreter.get_tensor_details():
            if tensor["name"] and len(tensor["shape"]) == 2 and tensor["index"] in _constants(engine):
                value = engine._interpreter.get_tensor(tensor["index"])
                _MATRICES.append(np.ascontiguousarray(value.astype(np.float32).T) * np.float32(0.01))
    steps, beds, width = x.shape
    units = sum(shape[-1] for name, (shape, _) in engine.inputs.items() if name != "x") // 2
    gates = 4 * units
    h, c = np.zeros((beds, units), np.float32), np.zeros((beds, units), np.float32)
    of_inputs = [each for each in _MATRICES if each.shape[0] == width]
    of_state = [each for each in _MATRICES if each.shape[0] != width]
    flat = x.reshape(steps * beds, width)
    given = np.zeros((steps, beds, gates), np.float32)
    for each in of_inputs:
        given[..., : each.shape[1]] += (flat @ each).reshape(steps, beds, -1)[..., :gates]
    for step in range(steps):
        z = given[step]
        at = 0
        for each in of_state:
            rows, columns = each.shape
            part = h[:, :rows] @ each if rows <= units else np.concatenate([x[step], h], axis=1)[:, :rows] @ each
            stop = min(at + columns, gates)
            z[:, at:stop] += part[:, : stop - at]
            at = stop % gates
        sure = 1.0 / (1.0 + np.exp(-z[:, : 3 * units]))
        c = sure[:, :units] * c + sure[:, units : 2 * units] * np.tanh(z[:, 3 * units :])
        h = sure[:, 2 * units :] * np.tanh(c)
    return h


def _constants(engine: Any) -> set[int]:
    """Tensors that hold a matrix of weights: readable before anything was computed from them, 2-D, above 32 numbers."""
    found = set()
    for tensor in engine._interpreter.get_tensor_details():
        shape = tensor["shape"]
        weights = tensor["dtype"] == np.int8 or "MatMul" in tensor["name"] or "pseudo_qconst" in tensor["name"]
        if len(shape) == 2 and weights and tensor["shape_signature"].min() > 0 and int(np.prod(shape)) > 32:
            found.add(int(tensor["index"]))
    return found


def _windows(beds: int) -> list[Window]:
    chance = np.random.default_rng(beds)
    centre, spread = (85, 97, 37, 122, 82, 62, 18), (8, 0.8, 0.3, 8, 6, 5, 3)
    rows = np.minimum(chance.normal(centre, spread, (beds, features.WINDOW, 7)), (300, 100, 43, 300, 250, 200, 90))
    return [Window(f"ICU-{bed}", rows[bed], 60.0, float(bed % 2)) for bed in range(beds)]


def _runners(found: bundle.Bundle) -> list[dict[str, object]]:
    runner = Runner(found)
    steps = found.description.window.steps
    asked = [_windows(beds) for beds in BEDS]
    scored = [_least(partial(runner.score, windows)) for windows in asked]
    rested = [_least(partial(runner.score, windows), before=runner.rest) for windows in asked]
    explained = [_least(partial(runner.score, windows, 0.0)) for windows in asked]
    return [
        _row("runner", f"{steps} h windows, {runner.runtime}", scored),
        _row("runner", "the same, after a rest", rested),
        _row("runner", "the same, with contributions of every bed", explained),
    ]


_CHILD = """
import json, sys, threading
import edge_agent.agent, edge_agent.buffer, edge_agent.operations, drivers.hl7
import cryptography.hazmat.primitives.asymmetric.ed25519

def memory():
    with open("/proc/self/smaps_rollup") as file:
        found = dict(line.split(":") for line in file if line.startswith(("Rss", "Anonymous")))
    return [int(found[name].split()[0]) for name in ("Rss", "Anonymous")]

def work():
    if sys.argv[1] == "plain":
        import numpy
        from models_tflite import lean
        lean.Pages.give_back = lambda pages: 0
    from models_tflite import bundle
    from models_tflite.runner import Runner, Window
    runner = Runner(bundle.read(bundle.shipped()))
    rows = [[85.0, 97.0, 37.0, 122.0, 82.0, 62.0, 18.0]] * 24
    for _ in range(60):
        results = runner.score([Window(f"ICU-{bed}", rows, 60.0, 1.0) for bed in range(8)])
    assert all(result.risk is not None for result in results), results
    found.append(memory())
    runner.rest()
    found.append(memory())

found = [memory()]
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps([after - first for later in found[1:] for after, first in zip(later, found[0])]))
"""


def _memory() -> list[dict[str, object]]:
    """Medians of fresh processes; 8 beds, an hour of evaluations."""
    rows: list[dict[str, object]] = []
    for case in ("lean", "plain"):
        grown = []
        for _ in range(PROCESSES):
            command = [sys.executable, "-c", _CHILD, case]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            grown.append(json.loads(done.stdout))
        middle = [round(sorted(values)[PROCESSES // 2] / 1024, 1) for values in zip(*grown, strict=True)]
        told = "as the agent opens it" if case == "lean" else "numpy whole, no pages given back"
        names = ("after scoring MB", "of it own MB", "at rest MB", "own at rest MB")
        rows.append({"memory": told} | dict(zip(names, middle, strict=True)))
    return rows


def _size(found: bundle.Bundle) -> dict[str, object]:
    sizes = {
        name: (found.folder / name).stat().st_size for name in (bundle.MODEL, bundle.DESCRIPTION, bundle.SIGNATURE)
    }
    return {"size": found.identity, "bundle kB": round(sum(sizes.values()) / 1000, 1)} | {
        f"{name} kB": round(size / 1000, 1) for name, size in sizes.items()
    }
