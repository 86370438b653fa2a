"""What opens the model of a configuration, in the engine's thread; numpy and the runtime are imported there."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.config import Loaded
from edge_agent.risk.engine import Model


def model_opener(loaded: Loaded) -> Callable[[], Model]:
    """A function that opens the model of `[model]`, or raises with what is wrong and what to do."""
    settings = loaded.config.model
    assert settings is not None  # who asks for a model has configured one
    folder = None if settings.bundle is None else loaded.resolve(settings.bundle)
    trusted = [loaded.resolve(path) for path in settings.trusted]

    def open_model() -> Model:
        from edge_agent.risk.scorer import Scorer

        return Scorer(folder, trusted, settings.engine or None)

    return open_model
