"""Edges as JSON lines in a file, so that another process can time the alarm path.

One line an edge: at_ns (CLOCK_MONOTONIC, when the edge is put out, at the moment a GPIO line would be set), bed,
output, on, priority, condition. A thread of its own takes the lines to the file at once, each as one write to a file
opened for appending, so a reader never sees a part of one, and a disk that does not answer holds nobody else.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.patterns import OUTPUTS

WAITING = 65_536  # lines that wait for the disk, about 10 MB: a storm of ten thousand alarms gives 40,000 at once
CLOSE_S = 1.0


class _Line(msgspec.Struct, gc=False):
    at_ns: int
    bed: str
    output: str
    on: bool
    priority: str
    condition: str


class Record(Output):
    """A file that gets one line for every edge."""

    outputs = OUTPUTS
    prompt = True

    def __init__(self, path: Path) -> None:
        self.name = f"record:{path}"
        self._path = path
        self._writer: _Writer | None = None

    def open(self) -> None:
        """Open the file for appending, creating it if it is not there."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise FaultError(
                f"cannot write {self._path}: {error.strerror}; give a `path` in a folder that the agent may write"
            ) from error
        self._writer = _Writer(self._path, file)

    def switch(self, edges: Sequence[Edge]) -> None:
        """Stamp a line for each edge and hand it to the writing thread."""
        writer = self._writer
        if writer is None:
            raise FaultError(f"{self.name} is not open")
        if writer.fault:
            raise FaultError(writer.fault)
        for edge in edges:
            writer.lines.put(_Line(time.monotonic_ns(), edge.bed, edge.output, edge.on, edge.priority, edge.condition))
        if writer.lines.qsize() > WAITING:
            raise FaultError(f"cannot write {self._path}: its disk does not answer")

    def close(self) -> None:
        """Write what waits, within CLOSE_S, and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.lines.put(None)
            writer.join(CLOSE_S)


class _Writer(threading.Thread):
    """Takes lines to the file; ends at None, or with `fault` set when a line could not be written."""

    def __init__(self, path: Path, file: int) -> None:
        super().__init__(name=f"record {path}", daemon=True)
        self.lines: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self.fault = ""
        self._path, self._file = path, file
        self.start()

    def run(self) -> None:
        """Write line by line."""
        encoder = msgspec.json.Encoder()
        try:
            while (line := self.lines.get()) is not None:
                data = encoder.encode(line) + b"\n"
                if os.write(self._file, data) != len(data):
                    self.fault = f"cannot write {self._path}: only a part of a line fitted; is the disk full?"
                    return
        except OSError as error:
            self.fault = f"cannot write {self._path}: {error.strerror}"
        finally:
            os.close(self._file)
