"""One inference runtime behind a small interface: LiteRT, or the older tflite-runtime.

Theory of operation. The network is one step `(x, state...) -> (risk, state...)`; the state is the caller's, begins at
zero for every window and is handed from step to step, so that nothing of a window is left in the interpreter. All rows
of a batch take the step together. Which runtime works is not known from an import (tflite-runtime with numpy 2 imports
and then fails): it is chosen by a real inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("ai-edge-litert", "tflite-runtime")  # the first is the default
SIGNATURE = "serving_default"
INPUT, OUTPUT = "x", "risk"
_SHORT = {"litert": "ai-edge-litert"}

Floats = NDArray[np.float32]


class NoRuntime(Exception):
    """No installed runtime carries the model; the text gives the reason of each."""


class Engine:
    """A network in a runtime; not for two threads at once."""

    def __init__(self, package: str, version: str, interpreter: Any) -> None:
        self.package, self.version = package, version
        self._interpreter = interpreter
        signatures = interpreter.get_signature_list()
        if SIGNATURE not in signatures:
            raise ValueError(f"the model has no signature {SIGNATURE}, only {sorted(signatures)}")
        runner = interpreter.get_signature_runner(SIGNATURE)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self.inputs = {name: _shape(detail) for name, detail in inputs.items()}
        self.outputs = {name: _shape(detail) for name, detail in outputs.items()}
        if INPUT not in inputs or OUTPUT not in outputs or set(inputs) - {INPUT} != set(outputs) - {OUTPUT}:
            raise ValueError(
                f"the model takes {sorted(inputs)}, gives {sorted(outputs)}; not x and state, risk and state"
            )
        self._x, self._risk = inputs[INPUT]["index"], outputs[OUTPUT]["index"]
        names = sorted(set(inputs) - {INPUT})
        self._state = tuple((inputs[name]["index"], outputs[name]["index"], self.inputs[name][0][-1]) for name in names)
        self._batch = 0

    @property
    def width(self) -> int:
        """How many inputs a step takes."""
        return self.inputs[INPUT][0][-1]

    def roll(self, x: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """The output after the last step, and whether it can be trusted, both (B,), of x (T, B, width).

        It can when inputs, output and state are finite. The inputs are looked at here, because weights of 8 bits turn
        a NaN into a number: what comes out of the network looks sound then.

        Raises: RuntimeError or ValueError when the interpreter refuses.
        """
        steps, batch, _ = x.shape
        finite: NDArray[np.bool_] = np.isfinite(x).all(axis=(0, 2))
        if not finite.all():
            x = np.where(finite[:, None], x, np.float32(0.0))
        self._resize(batch)
        put, get, invoke = self._interpreter.set_tensor, self._interpreter.get_tensor, self._interpreter.invoke
        state = [np.zeros((batch, width), np.float32) for _, _, width in self._state]
        for step in range(steps):
            put(self._x, x[step])
            for (index, _, _), value in zip(self._state, state, strict=True):
                put(index, value)
            invoke()
            state = [get(index) for _, index, _ in self._state]
        risk = get(self._risk).reshape(batch)
        finite &= np.isfinite(risk)
        for value in state:
            finite &= np.isfinite(value).all(axis=1)
        return risk, finite

    def _resize(self, batch: int) -> None:
        if batch == self._batch:
            return
        self._batch = 0  # a failure on the way leaves no size that would be trusted
        self._interpreter.resize_tensor_input(self._x, [batch, self.width])
        for index, _, width in self._state:
            self._interpreter.resize_tensor_input(index, [batch, width])
        self._interpreter.allocate_tensors()
        self._batch = batch


def open_engine(model: bytes, prefer: str | None = None, oldest: Mapping[str, str] | None = None) -> Engine:
    """The model in the first runtime that really computes it: `prefer` (a package), else LiteRT, else tflite-runtime.

    `oldest` holds the packages that may carry the model with their oldest versions. Raises: NoRuntime.
    """
    wanted = _SHORT.get(prefer or "", prefer)
    if wanted is not None and wanted not in PACKAGES:
        raise NoRuntime(f"{prefer} is no runtime; known are {', '.join(PACKAGES)}")
    reasons = []
    for package in sorted(PACKAGES, key=lambda name: name != wanted):
        try:
            return _open(package, model, oldest)
        except Exception as error:  # numpy 2 makes tflite-runtime raise SystemError; a broken wheel may raise anything
            reasons.append(f"{package}: {str(error) or type(error).__name__}".splitlines()[0])
            # LiteRT checks a model's structure; the older runtime does not and ends the process over a damaged one
            if package == PACKAGES[0] and isinstance(error, (ValueError, RuntimeError)):
                break
    raise NoRuntime("; ".join(reasons))


def _open(package: str, model: bytes, oldest: Mapping[str, str] | None) -> Engine:
    if oldest is not None and package not in oldest:
        raise NoRuntime("the bundle does not allow it")
    version, make = _load(package)
    if oldest is not None and _numbers(version) < _numbers(oldest[package]):
        raise NoRuntime(f"{version} is older than {oldest[package]}, which the bundle asks for")
    engine = Engine(package, version, make(model_content=model, num_threads=1))
    _, finite = engine.roll(np.zeros((2, 1, engine.width), np.float32))
    if not finite.all():
        raise ValueError("zeros do not give a finite result")
    return engine


def _load(package: str) -> tuple[str, Any]:
    """Version and interpreter class of a package."""
    if package == "ai-edge-litert":
        from ai_edge_litert import __version__
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime import __version__
        from tflite_runtime.interpreter import Interpreter
    return str(__version__), Interpreter


def _shape(detail: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """A tensor's shape, -1 for the batch, and type."""
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or not len(signature) else signature
    return tuple(int(size) for size in shape), np.dtype(detail["dtype"]).name


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
