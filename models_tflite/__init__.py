"""The risk model: its inputs, its signed bundles and the runner. Knows nothing of the agent; may only add an alarm."""

from models_tflite.lean import import_numpy as _import_numpy

_import_numpy()  # before any module of this package imports it whole
