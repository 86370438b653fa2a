"""The network: one or more LSTM cells side by side over the same inputs, and how they learn.

Theory of operation. Every member is an LSTM layer with a logistic output; the score is that of the members' mean logit.
All begin a window with a zero state. The steps are written out rather than left to a Keras layer, so that training and
the exported step (`quantize`) are the same few lines of arithmetic, and nothing but plain matrices is stored: `w`
(inputs to gates), `r` (state to gates), `b`, `o` (state to logit), `p` (its offset); gates in the order input, forget,
candidate, output.

Members differ in seed alone and are trained one after another. What is kept of each is the moving average of its
weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_tflite import features
from models_tflite.training.data import Stays
from models_tflite.training.samples import TAIL, Samples, Scale, seen

Array = NDArray[np.float32]
Member = dict[str, Array]

CLIP = 6.0  # deviations from the mean beyond which an input says nothing more
_AVERAGE = 0.998  # of the weights, per step
_WARM_UP = 100  # steps
_LONGEST_STEP = 1.0  # norm of the gradient
_BETA = (0.9, 0.999)
AT_ONCE = 1024  # windows scored together


@dataclass(frozen=True, slots=True)
class Settings:
    """How a network is trained; the seed decides everything that is drawn."""

    members: int = 4
    units: int = 64
    rounds: int = 6
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-3  # of the weights, times the rate
    dropout: float = 0.3  # of the state before the output
    share: float = 0.2  # of the stays without sepsis, per round
    mix: float = 0.7  # of the teacher in the target
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """Trained members and the scale of their inputs."""

    members: tuple[Member, ...]
    scale: Scale

    def parameters(self) -> int:
        """How many weights there are."""
        return sum(each.size for member in self.members for each in member.values())


def tensorflow() -> Any:
    """TensorFlow, on one thread, without a graphics card and with operations that repeat exactly."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # already running: whoever began has chosen
        pass
    return tf


def normalised(inputs: Array, scale: Scale) -> Array:
    """What the network gets, as the runner makes it; it clips by itself."""
    return (inputs - scale.mean) / scale.std


def fresh(units: int, generator: np.random.Generator) -> Member:
    """A member that has not learned yet."""
    width = len(features.NAMES)

    def even(rows: int, columns: int) -> Array:
        bound = np.sqrt(6.0 / (rows + columns))
        return generator.uniform(-bound, bound, (rows, columns)).astype(np.float32)

    recurrent = np.linalg.qr(generator.normal(size=(4 * units, units)))[0].T
    gates = np.zeros(4 * units, np.float32)
    gates[units : 2 * units] = 1.0  # at first nothing is forgotten
    rare = np.full(1, -3.0, np.float32)  # about the share of labelled rows
    return {
        "w": even(width, 4 * units),
        "r": np.ascontiguousarray(recurrent, np.float32),
        "b": gates,
        "o": even(units, 1),
        "p": rare,
    }


def step(tf: Any, member: dict[str, Any], from_x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """One hour of one member: new h and c. `from_x` is the clipped x times `w`."""
    gates = from_x + tf.matmul(h, member["r"]) + member["b"]
    i, f, g, o = tf.split(gates, 4, axis=1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c


def roll(tf: Any, member: dict[str, Any], x: Any, tail: int) -> Any:
    """The state h after each of the last `tail` steps, (B, tail, units), of normalised x (B, T, F)."""
    batch, units = tf.shape(x)[0], member["r"].shape[0]
    h = c = tf.zeros((batch, units))
    kept = []
    hours = tf.unstack(tf.matmul(tf.clip_by_value(x, -CLIP, CLIP), member["w"]), axis=1)
    for number, hour in enumerate(hours):
        h, c = step(tf, member, hour, h, c)
        if number >= len(hours) - tail:
            kept.append(h)
    return tf.stack(kept, axis=1)


def train(samples: Samples, scale: Scale, settings: Settings, tell: Callable[[str], None]) -> Network:
    """A network that has learned from the samples."""
    learning, members = _learning(settings.units, settings.decay), []
    for number in range(settings.members):
        tell(f"member {number + 1} of {settings.members}")
        members.append(_member(learning, samples, scale, settings, settings.seed * 1000 + number, tell))
    return Network(tuple(members), scale)


def _member(
    learning: _Learning, samples: Samples, scale: Scale, settings: Settings, seed: int, tell: Callable[[str], None]
) -> Member:
    generator = np.random.default_rng(seed)
    learning.begin(fresh(settings.units, generator), seed, settings.dropout)
    if samples.windows_per_round() < settings.batch:
        raise ValueError(f"{samples.windows_per_round()} windows are too few for batches of {settings.batch}")
    whole = max(1, settings.rounds * samples.windows_per_round() // settings.batch)
    at = 0
    for number in range(settings.rounds):
        losses = []
        for batch in samples.round(generator, settings.batch):
            x = normalised(batch.inputs, scale)
            rate = settings.rate * min(1.0, (at + 1) / _WARM_UP) * 0.5 * (1 + np.cos(np.pi * min(1.0, at / whole)))
            losses.append(float(learning.learn(x, batch.target, batch.weight, np.float32(rate))))
            at += 1
        tell(f"round {number + 1} of {settings.rounds}, loss {np.mean(losses):.4f}")
    return learning.average()


@cache
def _learning(units: int, decay: float) -> _Learning:
    return _Learning(tensorflow(), units, decay)


class _Learning:
    """AdamW on one member after the other, and the moving average of its weights; compiled once for each width."""

    def __init__(self, tf: Any, units: int, decay: float) -> None:
        self._tf, self._units, self._decay = tf, units, decay
        some = fresh(units, np.random.default_rng(0))
        self._weights, self._slow, self._first, self._second = (
            {name: tf.Variable(value) for name, value in some.items()} for _ in range(4)
        )
        self._count = tf.Variable(0.0)
        self._random, self._keep = np.random.default_rng(0), 1.0
        self._learn = tf.function(self._step, jit_compile=True)

    def begin(self, member: Member, seed: int, dropout: float) -> None:
        """Forget everything and start from these weights."""
        self._random, self._keep = np.random.default_rng(seed + 1), 1.0 - dropout
        self._count.assign(0.0)
        for name, value in member.items():
            self._weights[name].assign(value)
            self._slow[name].assign(value)
            self._first[name].assign(np.zeros_like(value))
            self._second[name].assign(np.zeros_like(value))

    def learn(self, x: Array, target: Array, weight: Array, rate: np.float32) -> Any:
        """One step; returns the loss."""
        drawn = self._random.random((len(x), 1, self._units)) < self._keep
        mask = drawn.astype(np.float32) / np.float32(self._keep)
        return self._learn(x, target, weight, mask, rate)

    def average(self) -> Member:
        """The moving average of the weights."""
        return {name: each.numpy() for name, each in self._slow.items()}

    def _step(self, x: Any, target: Any, weight: Any, mask: Any, rate: Any) -> Any:
        tf = self._tf
        with tf.GradientTape() as tape:
            state = roll(tf, self._weights, x, TAIL) * mask
            logit = (tf.matmul(state, self._weights["o"]) + self._weights["p"])[..., 0]
            each = weight * tf.nn.sigmoid_cross_entropy_with_logits(target, logit)
            loss = tf.reduce_sum(each) / (tf.reduce_sum(weight) + 1e-6)
        names = list(self._weights)
        gradients = tape.gradient(loss, [self._weights[name] for name in names])
        shrink = tf.minimum(1.0, _LONGEST_STEP / (tf.linalg.global_norm(gradients) + 1e-12))
        self._count.assign_add(1.0)
        for name, gradient in zip(names, gradients, strict=True):
            self._apply(name, gradient * shrink, rate)
        return loss

    def _apply(self, name: str, gradient: Any, rate: Any) -> None:
        tf, weight, slow = self._tf, self._weights[name], self._slow[name]
        first, second = self._first[name], self._second[name]
        first.assign(_BETA[0] * first + (1 - _BETA[0]) * gradient)
        second.assign(_BETA[1] * second + (1 - _BETA[1]) * gradient * gradient)
        mean = first / (1 - _BETA[0] ** self._count)
        spread = tf.sqrt(second / (1 - _BETA[1] ** self._count)) + 1e-8
        decay = self._decay if weight.shape.rank == 2 else 0.0
        weight.assign(weight - rate * (mean / spread + decay * weight))
        keep = tf.minimum(_AVERAGE, (1 + self._count) / (10 + self._count))
        slow.assign(keep * slow + (1 - keep) * weight)


def scorer(network: Network) -> Callable[[Array], NDArray[np.float64]]:
    """A function from normalised windows (B, T, F) to the float network's risks, before any calibration."""
    tf, score = tensorflow(), _compiled()
    members = [{name: tf.constant(value) for name, value in each.items()} for each in network.members]

    def risks_of(x: Array) -> NDArray[np.float64]:
        filled = np.concatenate([x, np.repeat(x[-1:], AT_ONCE - len(x), axis=0)])  # one shape: compiled once
        return np.asarray(score(members, tf.constant(filled)).numpy()[: len(x)], np.float64)

    return risks_of


def risks(network: Network, stays: Stays, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """The float network's risk of each row (of all rows by default), before any calibration."""
    rows, score = np.arange(stays.rows) if rows is None else rows, scorer(network)
    parts = (rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE))
    return np.concatenate([score(normalised(seen(stays, part), network.scale)) for part in parts])


@cache
def _compiled() -> Any:
    """Members and windows to risks; compiled once for each number and width of members."""
    tf = tensorflow()

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def score(members: list[dict[str, Any]], x: Any) -> Any:
        logits = [tf.matmul(roll(tf, each, x, 1)[:, 0], each["o"]) + each["p"] for each in members]
        return tf.sigmoid(tf.add_n(logits) / len(logits))[:, 0]

    return score
