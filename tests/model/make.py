"""Makes the small networks beside it: `.venv-training/bin/python tests/model/make.py` (seeded, about 20 s).

How to convert so that both runtimes accept it: an explicit-state step in a tf.Module, batch None in the input
signature, saved as a SavedModel with one signature whose outputs are named `risk` and as the state, converted with
`from_saved_model`. For int8 weights add Optimize.DEFAULT and
`_experimental_disable_per_channel_quantization_for_dense_layers = True`: scales per channel make FULLY_CONNECTED
version 12, which tflite-runtime 2.14 does not know; one scale per matrix stays at a version that it knows. Only
matrices of more than 1,024 numbers are quantized. The batch is resized at run time (shape signature [-1, width]).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

INPUTS, UNITS = 11, 16


class Step(tf.Module):
    """One step of an LSTM with its state given and returned."""

    def __init__(self) -> None:
        super().__init__()
        chance = np.random.default_rng(5)
        self.kernel = tf.Variable(chance.normal(0, 0.4, (INPUTS + UNITS, 4 * UNITS)).astype(np.float32))
        self.bias = tf.Variable(chance.normal(0, 0.3, (4 * UNITS,)).astype(np.float32))
        self.out = tf.Variable(chance.normal(0, 1.0, (UNITS, 1)).astype(np.float32))
        self.offset = tf.Variable(np.array([-1.0], np.float32))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, INPUTS], tf.float32, "x"),
            tf.TensorSpec([None, UNITS], tf.float32, "h"),
            tf.TensorSpec([None, UNITS], tf.float32, "c"),
        ]
    )
    def step(self, x: tf.Tensor, h: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor]:
        """(x, h, c) to risk and the next h, c."""
        i, f, g, o = tf.split(tf.matmul(tf.concat([x, h], 1), self.kernel) + self.bias, 4, axis=1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        return {"risk": tf.sigmoid(tf.matmul(h, self.out) + self.offset), "h": h, "c": c}


def main() -> None:
    """Write small-float.tflite and small-int8.tflite beside this file."""
    network = Step()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(network, folder, signatures={"serving_default": network.step})
        for name in ("float", "int8"):
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if name == "int8":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter._experimental_disable_per_channel_quantization_for_dense_layers = True
            (Path(__file__).parent / f"small-{name}.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    main()
