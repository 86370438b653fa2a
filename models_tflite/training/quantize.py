"""From float weights to `model.tflite`: one step with explicit state and int8 weights, proven against the float ones.

Theory of operation. The exported function is one hour, (x, h, c) -> (risk, h, c), from a tf.Module: the state is the
caller's, and nothing stays in the interpreter from one bed to the next. Members stand side by side in h and c. Weights
are int8 with one scale per matrix (dynamic range): with a scale per channel the converter writes FULLY_CONNECTED
version 12, which tflite-runtime 2.14 refuses; so both runtimes carry the one file. Activations and state stay float.
Wholly integer steps were not taken: the cell state would be squeezed into eight bits at each of 24 steps.

The converter may end the process that it runs in, and has been seen to give NaN without a word. So it runs in a process
of its own, and its result is opened here and compared with the float weights, computed by numpy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models_tflite import features, runtime
from models_tflite.training import network
from models_tflite.training.network import CLIP, Member, Network
from models_tflite.training.samples import Scale

Array = NDArray[np.float32]

MODES = ("float", "dynamic")
LARGEST_ERROR, MEAN_ERROR = 0.05, 0.004  # of the risk, against float: 1 in 20 at worst, and on average
_ALLOWED = frozenset(
    {"FULLY_CONNECTED", "ADD", "MUL", "DIV", "LOGISTIC", "TANH", "SPLIT", "SPLIT_V", "CONCATENATION"}
    | {"MINIMUM", "MAXIMUM", "DELEGATE"}  # what the runtime hands to its own kernels appears as one delegate
)
_PATIENCE_S = 600.0


class ConversionFailed(RuntimeError):
    """The converter ended, or what it wrote does not do what the float weights do."""


class Error(NamedTuple):
    """How far the converted network is from the float weights, in risk."""

    largest: float
    mean: float


def save(net: Network, path: Path) -> None:
    """Write members and scale to an .npz file."""
    held = {f"{number}_{name}": value for number, each in enumerate(net.members) for name, value in each.items()}
    scaled = {f"scale_{name}": value for name, value in net.scale._asdict().items()}
    np.savez(path, members=len(net.members), **held, **scaled)


def load(path: Path) -> Network:
    """The network of an .npz file."""
    with np.load(path, allow_pickle=False) as held:
        members = tuple({name: held[f"{number}_{name}"] for name in "wrbop"} for number in range(int(held["members"])))
        return Network(members, Scale(*(held[f"scale_{name}"] for name in Scale._fields)))


def convert(net: Network, mode: str = "dynamic") -> bytes:
    """The model file, converted in a process of its own. Raises: ConversionFailed."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "weights.npz", Path(folder) / "model.tflite"
        save(net, source)
        command = [sys.executable, "-m", __name__, str(source), str(target), mode]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        if ended.returncode or not target.exists():
            raise ConversionFailed(f"the converter ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}")
        return target.read_bytes()


def check(model: bytes, net: Network, x: Array) -> dict[str, Error]:
    """The error in each installed runtime over normalised windows x (T, B, F).

    Raises: ConversionFailed when operations, shapes or values are not as they should be.
    """
    strange = set(operations(model)) - _ALLOWED
    if strange:
        raise ConversionFailed(f"the model holds operations that were not meant: {', '.join(sorted(strange))}")
    wanted = reference(net, x)
    state = sum(len(each["r"]) for each in net.members)
    found = {}
    for package in runtime.PACKAGES:
        try:
            engine = runtime.open_engine(model, package)
        except runtime.NoRuntime as refused:
            raise ConversionFailed(str(refused)) from refused
        if engine.package != package:  # not installed here; the bedside's tests run both
            continue
        widths = {name: shape[-1] for name, (shape, _) in engine.inputs.items()}
        if widths != {"x": len(features.NAMES), "h": state, "c": state}:
            raise ConversionFailed(f"{package}: the model's inputs are {engine.inputs}")
        risk, finite = engine.roll(x)
        if not finite.all():
            raise ConversionFailed(f"{package}: {int((~finite).sum())} of {len(finite)} windows are not finite")
        error = np.abs(risk - wanted)
        found[package] = Error(float(error.max()), float(error.mean()))
        if error.max() > LARGEST_ERROR or error.mean() > MEAN_ERROR:
            raise ConversionFailed(
                f"{package}: {found[package]} is more than {LARGEST_ERROR} or {MEAN_ERROR} on average"
            )
    return found


def scorer(model: bytes) -> Callable[[Array], NDArray[np.float64]]:
    """A function from normalised windows (B, T, F) to the converted network's risks, before any calibration."""
    engine = runtime.open_engine(model)
    return lambda x: engine.roll(np.ascontiguousarray(x.transpose(1, 0, 2)))[0].astype(np.float64)


def operations(model: bytes) -> Counter[str]:
    """How often each operation stands in a model file."""
    from ai_edge_litert.interpreter import Interpreter

    # The accessor of operations is private, and has been there since TensorFlow 2.4.
    return Counter(each["op_name"] for each in Interpreter(model_content=model, num_threads=1)._get_ops_details())


def reference(net: Network, x: Array) -> NDArray[np.float64]:
    """The risk after the last of the steps x (T, B, F), normalised, by numpy in double precision."""
    logits = [_rolled(each, np.clip(x.astype(np.float64), -CLIP, CLIP)) for each in net.members]
    return _logistic(np.mean(logits, axis=0))


def _rolled(member: Member, x: NDArray[np.float64]) -> NDArray[np.float64]:
    h = c = np.zeros((x.shape[1], len(member["r"])))
    for hour in x:
        i, f, g, o = np.split(hour @ member["w"] + h @ member["r"] + member["b"], 4, axis=1)
        c = _logistic(f) * c + _logistic(i) * np.tanh(g)
        h = _logistic(o) * np.tanh(c)
    return np.asarray((h @ member["o"] + member["p"])[:, 0])


def _logistic(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-value)))


def _write(source: Path, target: Path, mode: str) -> None:
    """What the process of its own does."""
    tf = network.tensorflow()
    net = load(source)
    with tempfile.TemporaryDirectory() as folder:
        module = _module(tf, net)
        tf.saved_model.save(module, folder, signatures=module.step)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if mode == "dynamic":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter._experimental_disable_per_channel = True  # see the module's text
        target.write_bytes(converter.convert())


def _module(tf: Any, net: Network) -> Any:
    width, units = len(features.NAMES), [len(each["r"]) for each in net.members]
    members = [{name: tf.constant(value) for name, value in each.items()} for each in net.members]
    # one matrix takes x to the gates of all members: one operation instead of one per member
    joined = tf.constant(np.concatenate([each["w"] for each in net.members], axis=1))
    # and one takes the states of all to the mean of their logits
    out = tf.constant(np.concatenate([each["o"] for each in net.members]) / np.float32(len(net.members)))
    offset = tf.constant(np.mean([each["p"] for each in net.members], axis=0, dtype=np.float32))
    signature = [
        tf.TensorSpec([None, width], tf.float32, name="x"),
        tf.TensorSpec([None, sum(units)], tf.float32, name="h"),
        tf.TensorSpec([None, sum(units)], tf.float32, name="c"),
    ]

    class Hour(tf.Module):  # type: ignore[misc]
        """One hour of all members."""

        @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
        def step(self, x: Any, h: Any, c: Any) -> dict[str, Any]:
            """Risk and state after the hour."""
            given = tf.split(tf.matmul(tf.clip_by_value(x, -CLIP, CLIP), joined), [4 * each for each in units], axis=1)
            states, cells = [], []
            parts = zip(members, given, tf.split(h, units, axis=1), tf.split(c, units, axis=1), strict=True)
            for member, from_x, state, cell in parts:
                new_state, new_cell = network.step(tf, member, from_x, state, cell)
                states.append(new_state)
                cells.append(new_cell)
            joint = tf.concat(states, axis=1)
            return {"risk": tf.sigmoid(tf.matmul(joint, out) + offset), "h": joint, "c": tf.concat(cells, axis=1)}

    return Hour()


if __name__ == "__main__":
    _write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
