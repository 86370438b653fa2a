"""A teacher that reads the laboratory values: what it thinks of each training row, grown on other patients only.

Theory. Gradient-boosted trees see what the network sees in the newest step, and 26 laboratory values besides, each the
last of the stay. They are grown on three quarters of the patients and asked about the other quarter, in turn, so that
no row is judged by trees that knew its label. The network learns to say from vital signs what the teacher says from
all.

That a value was never ordered is visible to the teacher, and with it something of the hour. The network has no
input from which to repeat that part. How much of it comes through is printed as the hour probe of the score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models_tflite.training.data import Stays

Array = NDArray[np.float32]

FOLDS = 4
ROUNDS = 250
_SHARE = 0.25  # of the rows of stays without sepsis, for speed; neighbouring hours say nearly the same
_TREES = {
    "max_depth": 5,
    "eta": 0.06,
    "subsample": 0.5,
    "colsample_bytree": 0.4,
    "min_child_weight": 20,
    "reg_lambda": 5,
    "max_bin": 64,
    "objective": "binary:logistic",
    "tree_method": "hist",
}


def everything(stays: Stays, newest: Array) -> Array:
    """The network's newest inputs (N, F) and the last laboratory values (NaN before the first) of every row."""
    if stays.labs is None:
        raise ValueError("the teacher needs the laboratory values: read(path, labs=True)")
    row = np.arange(stays.rows)[:, None]
    last = np.maximum.accumulate(np.where(np.isfinite(stays.labs), row, -1), axis=0)
    begin = np.repeat(stays.first[:-1], np.diff(stays.first))[:, None]
    value = np.take_along_axis(stays.labs, np.maximum(last, 0), axis=0)
    labs = np.where(last >= begin, value, np.float32(np.nan))
    return np.concatenate([newest, labs], axis=1)


def risks(stays: Stays, newest: Array, seed: int, threads: int, rounds: int = ROUNDS) -> Array:
    """The teacher's risk of every row, each by trees that saw none of its patient, shape (N,)."""
    import xgboost

    generator = np.random.default_rng(seed)
    inputs, label = everything(stays, newest), stays.label.astype(np.float32)
    fold = generator.integers(0, FOLDS, len(stays))[stays.of_row]
    septic = stays.septic[stays.of_row]
    drawn = septic | (generator.random(stays.rows) < _SHARE)
    weight = np.where(septic, 1.0, 1.0 / _SHARE).astype(np.float32)
    options: dict[str, Any] = {**_TREES, "nthread": threads, "seed": seed}
    out = np.empty(stays.rows, np.float32)
    for part in range(FOLDS):
        known, asked = np.flatnonzero(drawn & (fold != part)), np.flatnonzero(fold == part)
        rows = xgboost.DMatrix(inputs[known], label=label[known], weight=weight[known])
        out[asked] = xgboost.train(options, rows, rounds).predict(xgboost.DMatrix(inputs[asked]))
    return out
