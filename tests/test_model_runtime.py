"""Both runtimes compute the same; which one is used is decided by a real inference."""

from __future__ import annotations

import subprocess
import sys

import model_bundles
import numpy as np
import pytest

from models_tflite import runtime
from models_tflite.runtime import NoRuntime, open_engine

BOTH = [
    "ai-edge-litert",
    pytest.param(
        "tflite-runtime", marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="ends with Python 3.11")
    ),
]


def inputs(batch: int, steps: int = 24) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(steps, batch, 11)).astype(np.float32)


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("package", BOTH)
def test_a_runtime_opens_the_network_and_knows_its_tensors(package: str, kind: str) -> None:
    engine = open_engine(model_bundles.model(kind), package)
    assert engine.package == package
    assert engine.inputs == {"x": ((-1, 11), "float32"), "h": ((-1, 16), "float32"), "c": ((-1, 16), "float32")}
    assert engine.outputs == {"risk": ((-1, 1), "float32"), "h": ((-1, 16), "float32"), "c": ((-1, 16), "float32")}
    risk, finite = engine.roll(inputs(5))
    assert finite.all() and len(set(risk.tolist())) == 5 and ((risk > 0) & (risk < 1)).all()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime ends with Python 3.11")
@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("batch", [1, 7, 32])
def test_both_runtimes_agree(kind: str, batch: int) -> None:
    new, old = (open_engine(model_bundles.model(kind), package) for package in runtime.PACKAGES)
    assert (new.package, old.package) == runtime.PACKAGES
    np.testing.assert_allclose(new.roll(inputs(batch))[0], old.roll(inputs(batch))[0], atol=2e-6)


def test_the_network_is_the_lstm_that_it_says() -> None:
    """Against the equations in plain numpy, with the weights as tests/model/make.py seeds them."""
    kernel, bias, out, offset = weights()

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    x = inputs(4).astype(np.float64)
    h, c = np.zeros((4, 16)), np.zeros((4, 16))
    for step in x:
        i, f, g, o = np.split(np.concatenate([step, h], 1) @ kernel + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    expected = sigmoid(h @ out + offset)[:, 0]
    exact, _ = open_engine(model_bundles.model("float")).roll(inputs(4))
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    rounded, _ = open_engine(model_bundles.model("int8")).roll(inputs(4))
    np.testing.assert_allclose(rounded, expected, atol=0.03)


def weights() -> tuple[np.ndarray, ...]:
    """Kernel, bias, output and its offset."""
    chance = np.random.default_rng(5)
    kernel = chance.normal(0, 0.4, (27, 64))
    bias = chance.normal(0, 0.3, (64,))
    return kernel, bias, chance.normal(0, 1.0, (16, 1)), np.array([-1.0])


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("package", BOTH)
def test_nothing_of_a_window_stays_in_the_engine(package: str, kind: str) -> None:
    engine = open_engine(model_bundles.model(kind), package)
    first = engine.roll(inputs(3))[0]
    poison = inputs(3)
    poison[:] = np.nan
    _, finite = engine.roll(poison)
    assert not finite.any()
    engine.roll(inputs(9))
    assert engine.roll(inputs(3))[0].tolist() == first.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float", "int8"])  # with 8 bits a NaN comes out as a number
@pytest.mark.parametrize("package", BOTH)
def test_a_poisoned_row_does_not_touch_its_neighbours(package: str, kind: str, value: float) -> None:
    engine = open_engine(model_bundles.model(kind), package)
    clean = engine.roll(inputs(4))[0]
    poison = inputs(4)
    poison[3, 1, 0] = value
    risk, finite = engine.roll(poison)
    assert finite.tolist() == [True, False, True, True]
    np.testing.assert_allclose(risk[[0, 2, 3]], clean[[0, 2, 3]], atol=1e-7)


class _Overflowing:
    """The real interpreter, except that the state of the second row has run over."""

    def __init__(self, real: object, index: int) -> None:
        self._real, self._index = real, index

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def get_tensor(self, index: int) -> np.ndarray:
        value = self._real.get_tensor(index)
        if index == self._index:
            value[1, 0] = np.inf
        return value


def test_a_state_that_has_run_over_is_told_though_the_risk_looks_sound() -> None:
    engine = open_engine(model_bundles.model("float"))
    engine._interpreter = _Overflowing(engine._interpreter, engine._state[0][1])
    risk, finite = engine.roll(inputs(3))
    assert np.isfinite(risk).all()
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), model_bundles.model()[:2000]])
def test_what_is_no_model_is_refused_and_not_given_to_the_older_runtime(content: bytes) -> None:
    """tflite-runtime does not survive the last one: it would take the whole process with it."""
    with pytest.raises(NoRuntime, match="ai-edge-litert: ") as refused:
        open_engine(content)
    assert "tflite-runtime" not in str(refused.value)


def test_a_model_that_the_older_runtime_cannot_read_runs_in_the_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown_operation(**_: object) -> None:
        raise ValueError("Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'")

    real = runtime._load

    def load(package: str) -> tuple[str, object]:
        return ("2.14.0", unknown_operation) if package == "tflite-runtime" else real(package)

    monkeypatch.setattr(runtime, "_load", load)
    assert open_engine(model_bundles.model(), "tflite-runtime").package == "ai-edge-litert"


def test_the_bundle_says_which_runtimes_may_carry_it() -> None:
    with pytest.raises(NoRuntime, match=r"older than 99\.0"):
        open_engine(model_bundles.model(), None, {"ai-edge-litert": "99.0"})
    with pytest.raises(NoRuntime, match="ai-edge-litert: the bundle does not allow it"):
        open_engine(model_bundles.model(), None, {})
    with pytest.raises(NoRuntime, match="no runtime; known are"):
        open_engine(model_bundles.model(), "magic")
    assert open_engine(model_bundles.model(), "litert", {"ai-edge-litert": "2.1.6"}).package == "ai-edge-litert"


def test_a_runtime_that_fails_at_construction_gives_way_to_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As tflite-runtime does with numpy 2: the import succeeds, the interpreter raises SystemError."""

    def broken(**_: object) -> None:
        raise SystemError("initialization of _pywrap raised unreported exception")

    real = runtime._load

    def load(package: str) -> tuple[str, object]:
        return ("2.14.0", broken) if package == "tflite-runtime" else real(package)

    monkeypatch.setattr(runtime, "_load", load)
    assert open_engine(model_bundles.model(), "tflite-runtime").package == "ai-edge-litert"


_MEASURE = """
import sys
import models_tflite
import numpy as np
deep = ("numpy.random.mtrand", "numpy.fft._pocketfft", "numpy.ma.core", "numpy.polynomial.polynomial")
heavy = [name for name in deep if name in sys.modules]
assert not heavy, heavy
assert "tensorflow" not in sys.modules
assert 0 <= np.random.default_rng(1).random() < 1  # still there for who asks
assert np.ma.array([1, 2], mask=[True, False]).sum() == 2 and abs(np.fft.fft([1.0, 1.0])[0]) == 2
from models_tflite.lean import Pages
pages = Pages()
assert pages.give_back() > 1 << 20
assert np.arange(5).sum() == 10 and abs(np.linalg.det(np.eye(3)) - 1) < 1e-9
print("ok")
"""


def test_numpy_comes_without_what_is_not_needed_and_is_whole_for_who_asks() -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.parametrize(("own", "spans"), [("8", [(0x1000, 0x2000)]), ("0", [])], ids=["counted", "made up"])
def test_pages_stay_where_the_kernel_s_counts_are_not_true(own: str, spans: list[tuple[int, int]]) -> None:
    """An emulator says 0 of every page: to believe it dropped what was linked, and the agent crashed."""
    from models_tflite.lean import _unchanged

    place = "00000000 fe:00 1 /site-packages/numpy/core.so"
    mappings = [
        f"1000-2000 r-xp {place}", "Anonymous:             0 kB",
        f"2000-3000 r--p {place}", "Anonymous:             4 kB",
        f"3000-4000 rw-p {place}", f"Anonymous:             {own} kB",
        "5000-6000 rw-p 00000000 00:00 0 [heap]", "Anonymous:           900 kB",
    ]  # fmt: skip
    assert _unchanged(mappings) == spans
