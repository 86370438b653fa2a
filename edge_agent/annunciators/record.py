"""Edges as JSON lines in a file, so that another process can time the alarm path.

One line an edge: at_ns (CLOCK_MONOTONIC, taken immediately before the write), bed, output, on, priority, condition.
Each line is one write to a file opened for appending, so a reader never sees a part of one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.annunciators.output import FaultError
from edge_agent.annunciators.patterns import OUTPUTS
from edge_agent.annunciators.player import Edge


class _Line(msgspec.Struct, gc=False):
    at_ns: int
    bed: str
    output: str
    on: bool
    priority: str
    condition: str


class Record:
    """A file that gets one line for every edge."""

    outputs = OUTPUTS

    def __init__(self, path: Path) -> None:
        self.name = f"record:{path}"
        self._path = path
        self._file = -1
        self._encoder = msgspec.json.Encoder()

    def open(self) -> None:
        """Open the file for appending, creating it if it is not there."""
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise FaultError(
                f"cannot write {self._path}: {error.strerror}; give a `path` in a folder that the agent may write"
            ) from error

    def switch(self, edges: Sequence[Edge]) -> None:
        """Write one line for each edge, stamped immediately before its write."""
        for edge in edges:
            fields = _Line(time.monotonic_ns(), edge.bed, edge.output, edge.on, edge.priority, edge.condition)
            line = self._encoder.encode(fields) + b"\n"
            try:
                written = os.write(self._file, line)
            except OSError as error:
                raise FaultError(f"cannot write {self._path}: {error.strerror}") from error
            if written != len(line):
                raise FaultError(f"cannot write {self._path}: only a part of a line fitted; is the disk full?")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
