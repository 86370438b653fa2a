"""From stays to a network and what is chosen of it on validation patients: teacher, training, calibration, thresholds.

Nothing here reads the test share. What the validation share decides: slope and offset of the calibration, the threshold
of greatest utility, and those for 1, 2 and 5 alarms per patient-day.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models_tflite.training import baselines, metrics, network, samples, teacher
from models_tflite.training.data import Stays
from models_tflite.training.network import Network, Settings
from models_tflite.training.samples import Scale

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Tell = Callable[[str], None]

_RESAMPLES = 200  # of the patients, for the threshold
_SURE = 1e-7  # a risk of exactly 0 or 1 has no logit


class Lesson(NamedTuple):
    """Everything that training needs of its stays."""

    stays: Stays
    said: Floats  # what the teacher thinks of every row, (N,)
    scale: Scale


class Chosen(NamedTuple):
    """What validation patients decide."""

    slope: float
    offset: float
    threshold: float  # of the calibrated risk


def prepare(train: Stays, settings: Settings, threads: int, tell: Tell) -> Lesson:
    """The teacher's opinion of every row, and the scale of the inputs; the stays need laboratory values."""
    newest = baselines.newest(train)
    said = teacher.risks(train, newest, settings.seed, threads)
    tell(f"teacher: AUROC {metrics.auroc(train.label, said.astype(np.float64)):.4f} on patients it had not seen")
    return Lesson(train, said, samples.scale(newest))


def fit(lesson: Lesson, settings: Settings, tell: Tell) -> Network:
    """A network that has learned the lesson."""
    target = settings.mix * lesson.said + (1.0 - settings.mix) * lesson.stays.label
    drawn = samples.Samples(lesson.stays, target.astype(np.float32), settings.share)
    return network.train(drawn, lesson.scale, settings, tell)


def choose(stays: Stays, risk: Array) -> Chosen:
    """Calibration and threshold from the raw risks of other patients than those of training.

    The threshold is the median over resamples of the patients: the single best one hangs on a few of them.
    """
    slope, offset = metrics.recalibration(stays.label, logit(risk))
    calibrated = calibrate(risk, slope, offset)
    gain, of_row = metrics.gains(stays.label, stays.first), stays.of_row
    found = [
        metrics.best_threshold(gain * weight[of_row], calibrated)
        for weight in metrics.resamples(len(stays), _RESAMPLES, seed=1)
    ]
    finite = [each for each in found if np.isfinite(each)]
    return Chosen(slope, offset, float(np.median(finite)) if finite else 1.0)


def logit(risk: Array) -> Array:
    """The logarithm of the odds."""
    clipped = np.clip(risk, _SURE, 1 - _SURE)
    return np.asarray(np.log(clipped / (1 - clipped)))


def calibrate(risk: Array, slope: float, offset: float) -> Array:
    """The risk as a probability."""
    return np.asarray(1 / (1 + np.exp(-(slope * logit(risk) + offset))))


def figures(stays: Stays, risk: Array, threshold: float) -> metrics.Figures:
    """AUROC, AUPRC, utility and WH of calibrated risks."""
    return metrics.Measure(stays.label, stays.first, stays.hour, risk, threshold).figures()
