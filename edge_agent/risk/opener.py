"""What opens the model of a configuration, in the engine's thread; numpy and the runtime are imported there.

Theory of operation: a runtime is native code, and a process that it kills is the alarm path's too. So a small file
counts the times that the agent has died while the model was at work: it is there while the model is opened or
asked, and gone behind each answer. After `MOST_DEATHS` in a row the model is not opened any more and that is told; the
alarms go on without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edge_agent.config import Loaded
from edge_agent.risk.engine import Batch, Model, Result
from edge_agent.risk.warm import warm

MOST_DEATHS = 3  # a power cut in just that moment may be one of them, but not three
AT_WORK = "model-at-work"  # the file, in the data folder
LIBRARIES = ("numpy", "ai_edge_litert")  # packages that the shipped bundle loads natively


class NotOpened(Exception):
    """A model that has cost the agent its life too often; the text says what to do."""


class Watched:
    """A model with a file that tells, after a sudden death, that it was at work."""

    def __init__(self, open_model: Callable[[], Model], file: Path) -> None:
        """Raises: NotOpened, or what the model raises."""
        self._file = file
        self._deaths = _count(file)
        if self._deaths >= MOST_DEATHS:
            raise NotOpened(
                f"the agent died {self._deaths} times while its model was at work, so it is not opened again. Replace "
                f"the bundle or the runtime, then remove {file}"
            )
        self._begin()
        try:
            self._model = open_model()
        except BaseException:
            self._end()  # it was refused, and nobody has died
            raise
        self.about = self._model.about
        self._end()

    def score(self, batch: Batch) -> Sequence[Result]:
        """The model's results."""
        self._begin()
        try:
            return self._model.score(batch)
        finally:
            self._end()

    def _begin(self) -> None:
        with suppress(OSError):  # a disk that is full or gone is told by the buffer
            self._file.write_text(f"{self._deaths + 1} {os.getpid()}", encoding="ascii")

    def _end(self) -> None:
        self._deaths = 0
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _count(file: Path) -> int:
    """How often in a row a process has died; one that lives, with a thread that hangs, has not."""
    try:
        count, process = map(int, file.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0
    return count - (process == os.getpid())


def model_opener(loaded: Loaded) -> Callable[[], Model]:
    """A function that opens the model of `[model]`, or raises with what is wrong and what to do."""
    settings = loaded.config.model
    assert settings is not None  # who asks for a model has configured one
    folder = None if settings.bundle is None else loaded.resolve(settings.bundle)
    trusted = [loaded.resolve(path) for path in settings.trusted]

    def open_model() -> Model:
        import models_tflite  # noqa: F401 - before numpy, of which it imports as little as it can
        from edge_agent.risk.scorer import Scorer

        return Scorer(folder, trusted, settings.engine or None)

    return open_model


def watched_opener(loaded: Loaded) -> Callable[[], Model]:
    """The same for the agent, which may not die of its model again and again."""
    opener, file = model_opener(loaded), loaded.resolve(loaded.config.gateway.data_dir) / AT_WORK

    def open_model() -> Model:
        warm(LIBRARIES)
        return opener()

    return lambda: Watched(open_model, file)
