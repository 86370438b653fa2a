"""Which windows the network learns from, and what it shall say of them.

Theory. A window is what the bedside will see: the last day up to one hour, of one length whatever the hour. Its last
`TAIL` steps are each an example, so windows that end every `TAIL` hours, from a random hour on, cover each row once.
Septic stays are always drawn, others with the chance `share` in each round and with the inverse weight.

The target of a row is part truth and part what a teacher says that has read the laboratory values as well: a patient
whose blood looks septic while the vital signs do not yet is then not taught as wholly healthy, nor the reverse. The
hour is in neither input nor loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models_tflite import features
from models_tflite.training.data import Stays, windows

Array = NDArray[np.float32]

TAIL = 8  # last steps of a window that count
_CHUNK = 4096  # windows at a time: about 30 MB of inputs


class Batch(NamedTuple):
    """Inputs (B, WINDOW, F), not normalised; target and weight of the last steps (B, TAIL)."""

    inputs: Array
    target: Array
    weight: Array


@dataclass(frozen=True, slots=True)
class Samples:
    """Stays with a target per row; `rounds` draws windows from them."""

    stays: Stays
    target: Array  # (N,) 0 to 1
    share: float  # of the stays without sepsis, per round

    def windows_per_round(self) -> int:
        """About how many windows a round has."""
        count = np.diff(self.stays.first) / TAIL + 0.5
        return int(count @ np.where(self.stays.septic, 1.0, self.share))

    def round(self, generator: np.random.Generator, batch: int) -> Iterator[Batch]:
        """All batches of one round, in random order; what does not fill a batch is left out."""
        ends = self._ends(generator)
        rows = ends[:, None] - np.arange(TAIL - 1, -1, -1)
        begin = self.stays.first[self.stays.of_row[ends]]
        within = rows >= begin[:, None]
        of_stay = np.where(self.stays.septic, 1.0, 1.0 / self.share)[self.stays.of_row[ends]]
        target = np.where(within, self.target[np.maximum(rows, 0)], 0.0).astype(np.float32)
        weight = np.where(within, of_stay[:, None], 0.0).astype(np.float32)
        whole = len(ends) // batch * batch
        step = max(batch, _CHUNK // batch * batch)
        for at in range(0, whole, step):
            inputs = seen(self.stays, ends[at : min(at + step, whole)])
            for index in range(0, len(inputs), batch):
                rows_of = slice(at + index, at + index + batch)
                yield Batch(inputs[index : index + batch], target[rows_of], weight[rows_of])

    def _ends(self, generator: np.random.Generator) -> NDArray[np.int64]:
        first, last = self.stays.first[:-1], self.stays.first[1:] - 1
        drawn = self.stays.septic | (generator.random(len(first)) < self.share)
        offset = generator.integers(0, TAIL, len(first))
        ends = [
            np.unique(np.minimum(np.arange(first[stay] + offset[stay], last[stay] + TAIL, TAIL), last[stay]))
            for stay in np.flatnonzero(drawn)
        ]
        found = np.concatenate(ends) if ends else np.zeros(0, np.int64)
        generator.shuffle(found)
        return found


def seen(stays: Stays, rows: NDArray[np.int64]) -> Array:
    """What the network sees at each of the rows: (len(rows), WINDOW, len(features.NAMES))."""
    of_row = np.searchsorted(stays.first, rows, "right") - 1
    out = np.empty((len(rows), features.WINDOW, len(features.NAMES)), np.float32)
    for at in range(0, len(rows), _CHUNK // 2):
        part, stay = rows[at : at + _CHUNK // 2], of_row[at : at + _CHUNK // 2]
        last_day = windows(stays, part, features.WINDOW)
        out[at : at + len(part)] = features.inputs(last_day, stays.age[stay], stays.sex[stay])
    return out


class Scale(NamedTuple):
    """Mean, deviation, least and greatest value of each input over the rows of training."""

    mean: Array
    std: Array
    low: Array
    high: Array


def scale(newest: Array) -> Scale:
    """The scale of the newest inputs of all rows, (N, F)."""
    least_spread = 1e-3  # an input that never changes is not divided by nothing
    mean, std = newest.mean(axis=0, dtype=np.float64), newest.std(axis=0, dtype=np.float64) + least_spread
    return Scale(mean.astype(np.float32), std.astype(np.float32), newest.min(axis=0), newest.max(axis=0))
