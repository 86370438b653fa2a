"""What was run, with which settings and what result: MLflow with files in a folder, no server, nothing sent.

A run's folder can be looked at with `mlflow ui --backend-store-uri FOLDER`. Without a folder nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXPERIMENT = "sepsis-lstm"


class Track:
    """One run; `run` is its id, empty when nothing is kept."""

    def __init__(self, mlflow: Any = None, run: str = "") -> None:
        self._mlflow, self.run = mlflow, run

    def settings(self, values: Mapping[str, Any]) -> None:
        """Keep what the run was asked to do."""
        if self._mlflow:
            self._mlflow.log_params(dict(values))

    def figures(self, values: Mapping[str, float], prefix: str = "") -> None:
        """Keep what came out."""
        if self._mlflow:
            self._mlflow.log_metrics({f"{prefix}{name}": float(value) for name, value in values.items()})

    def file(self, path: Path) -> None:
        """Keep a copy of a file."""
        if self._mlflow:
            self._mlflow.log_artifact(str(path))


@contextmanager
def track(folder: Path | None, name: str) -> Iterator[Track]:
    """A run called `name` in the store `folder`, ended with the block; one that keeps nothing without a folder."""
    if folder is None:
        yield Track()
        return
    # no files for the tracker means a database server; files are enough for one machine and can be read by anything
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(folder.resolve().as_uri())
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name=name) as run:
        yield Track(mlflow, run.info.run_id)
