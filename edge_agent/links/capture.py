"""Captures: what came over a link and what was sent, as text that a person can read, cut and write by hand.

One line is one chunk, in order of time; everything behind a `#` is a comment.

    # driver: nonin
    # started: 2025-03-01T08:00:00+00:00
    < 0.000000000 - 01 81 01 00 83          received, seconds since the first chunk, channel or -, bytes as hex
    > 0.250000000 10.0.0.7:4242 0b4d53      sent

A comment of the form `# word: text` before the first chunk is a header. Time never runs backwards in a file.

Writing happens in a thread of its own behind a bounded queue, because a full or slow disk must never hold the alarm
path. What does not fit is dropped, counted, and marked in the file by a comment line. One write call holds whole
lines only, and a write that failed half-way is cut off again, so that the file stays readable.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from edge_agent.records import Chunk

Direction = Literal["<", ">"]
RECEIVED: Direction = "<"
SENT: Direction = ">"

_LINE = re.compile(r"([<>])\s+(\S+)\s+(\S+)(?:\s+(.*))?")
_SECONDS = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?")  # 9 digits of seconds are 31 years, 9 decimals are nanoseconds
_HEADER = re.compile(r"#\s*([a-z][a-z0-9_-]*):\s*(.*)")

PENDING_BYTES = 4 << 20  # half a minute of 100 HL7 messages a second, while the disk stands still
MAX_FILE_BYTES = 256 << 20  # hex text; a capture that nobody ended must not fill the gateway's disk
_CHUNK_COST = 160  # bytes of memory that a queued chunk takes beside its data


class CaptureError(Exception):
    """A capture that cannot be read; `str` names file, line and reason."""

    def __init__(self, name: str, line: int, reason: str) -> None:
        self.name, self.line, self.reason = name, line, reason
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")


@dataclass(slots=True)
class Capture:
    """A capture in memory: header comments, and (direction, chunk) in order with `at_ns` counted from the first."""

    header: dict[str, str] = field(default_factory=dict)
    entries: list[tuple[Direction, Chunk]] = field(default_factory=list)

    def received(self) -> list[Chunk]:
        """The chunks that came in, without those that were sent."""
        return [chunk for direction, chunk in self.entries if direction == RECEIVED]


def read_capture(path: Path | str) -> Capture:
    """The capture in the file `path`.

    Raises: CaptureError naming the line that is not understood, or the file when it cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8") as lines:
            return parse_capture(lines, str(path))
    except OSError as error:
        raise CaptureError(str(path), 0, f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CaptureError(str(path), 0, "is not text; a capture is lines such as `< 0.0 - 01 81`") from error


def parse_capture(lines: Iterable[str], name: str = "capture") -> Capture:
    """The capture that `lines` hold; `name` is what errors call it.

    Raises: CaptureError naming the line that is not understood.
    """
    capture = Capture()
    last_ns = 0
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if text.startswith("#"):
            found = _HEADER.fullmatch(text)
            if found and not capture.entries:
                capture.header.setdefault(found[1], found[2].strip())
            continue
        text = text.partition("#")[0].rstrip()
        if not text:
            continue
        direction, chunk = _parse_line(text, name, number)
        if chunk.at_ns < last_ns:
            raise CaptureError(name, number, "time runs backwards; put the lines in order of their seconds")
        last_ns = chunk.at_ns
        capture.entries.append((direction, chunk))
    return capture


def _parse_line(text: str, name: str, number: int) -> tuple[Direction, Chunk]:
    found = _LINE.fullmatch(text)
    if found is None:
        raise CaptureError(name, number, f"expected `< SECONDS CHANNEL HEX`, or > for sent bytes, got {text[:40]!r}")
    seconds = _SECONDS.fullmatch(found[2])
    if seconds is None:
        raise CaptureError(name, number, f"seconds {found[2][:40]!r} are not a decimal number with up to 9 decimals")
    at_ns = int(seconds[1]) * 1_000_000_000 + int((seconds[2] or "").ljust(9, "0"))
    try:
        data = bytes.fromhex(found[4] or "")
    except ValueError:
        raise CaptureError(name, number, f"bytes are not pairs of hex digits: {(found[4] or '')[:40]!r}") from None
    return (RECEIVED if found[1] == "<" else SENT), Chunk(at_ns, data, "" if found[3] == "-" else found[3])


def format_line(direction: Direction, chunk: Chunk, origin_ns: int = 0) -> str:
    """The line of one chunk, without line end; `origin_ns` is the `at_ns` of the first chunk in the file."""
    seconds, nanoseconds = divmod(max(chunk.at_ns - origin_ns, 0), 1_000_000_000)
    channel = "".join(chunk.channel.split()) or "-"
    return f"{direction} {seconds}.{nanoseconds:09d} {channel} {chunk.data.hex(' ')}".rstrip()


class CaptureWriter:
    """A capture being written. `append` never waits; an earlier file of that name is kept as NAME.old."""

    def __init__(
        self,
        path: Path,
        *,
        header: dict[str, str] | None = None,
        pending_bytes: int = PENDING_BYTES,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self.path = path
        self.error = ""  # why the last write failed; empty when it did not
        self._header = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **(header or {})}
        self._pending_limit = pending_bytes
        self._max_file_bytes = max_file_bytes
        # Each counter is changed by one thread only, so none needs a lock: put_in, refused and unmarked by the
        # caller's, taken and lost by the writing one.
        self._put_in = 0
        self._refused = 0
        self._taken = 0
        self._lost = 0
        self._unmarked = 0  # dropped by `append` and not yet told to the file
        self._queue: SimpleQueue[tuple[Direction, Chunk] | int | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"capture {path.name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of chunks that are missing in the file."""
        return self._refused + self._lost

    def append(self, direction: Direction, chunk: Chunk) -> bool:
        """True when the chunk is on its way to the file; False when it was dropped because the disk is behind."""
        cost = len(chunk.data) + _CHUNK_COST
        if self._closed or self._put_in - self._taken + cost > self._pending_limit:
            self._refused += 1
            self._unmarked += 1
            return False
        if self._unmarked:
            self._queue.put(self._unmarked)
            self._unmarked = 0
        self._put_in += cost
        self._queue.put((direction, chunk))
        return True

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes what is queued and ends; waits at most `timeout_s`, so call it from a thread that may wait."""
        if not self._closed:
            self._closed = True
            if self._unmarked:
                self._queue.put(self._unmarked)
            self._queue.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        file = _CaptureFile(self.path, self._header, self._max_file_bytes)
        try:
            while True:
                batch, ended = self._next_batch()
                try:
                    lost = file.write(batch)
                    self.error = file.full
                except OSError as error:
                    lost = sum(1 for item in batch if not isinstance(item, int))
                    file.unmarked += sum(item for item in batch if isinstance(item, int)) + lost
                    self.error = f"{self.path}: {error.strerror or error}"
                self._lost += lost
                self._taken += sum(len(item[1].data) + _CHUNK_COST for item in batch if not isinstance(item, int))
                if ended:
                    return
        finally:
            file.close()

    def _next_batch(self) -> tuple[list[tuple[Direction, Chunk] | int], bool]:
        batch: list[tuple[Direction, Chunk] | int] = []
        with contextlib.suppress(Empty):
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                if len(batch) == 512:  # keeps one write small, so that a full disk costs little
                    return batch, False
                item = self._queue.get_nowait()
            return batch, True
        return batch, False


class _CaptureFile:
    """The file behind a writer: opened when first needed, whole lines only, cut back after a failed write."""

    def __init__(self, path: Path, header: dict[str, str], max_bytes: int) -> None:
        self.full = ""
        self.unmarked = 0  # chunks lost to failed writes, told to the file by the next write that succeeds
        self._path, self._header, self._max_bytes = path, header, max_bytes
        self._descriptor = -1
        self._size = 0
        self._origin_ns = -1
        self._last_ns = 0

    def write(self, batch: list[tuple[Direction, Chunk] | int]) -> int:
        """Number of chunks left out because the file has reached its limit. Raises: OSError; then nothing is in."""
        if self._descriptor < 0:
            self._open()
        chunks = sum(1 for item in batch if not isinstance(item, int))
        if self.full:
            return chunks
        if self._size > self._max_bytes:
            self.full = f"{self._path}: ended at its limit of {self._max_bytes} bytes; move it away and restart"
            self._put(f"# ended: limit of {self._max_bytes} bytes\n".encode())
            return chunks
        lines = [_dropped(self.unmarked)] if self.unmarked else []
        lines += [_dropped(item) if isinstance(item, int) else self._line(*item) for item in batch]
        self._put("".join(lines).encode())
        self.unmarked = 0
        return 0

    def _line(self, direction: Direction, chunk: Chunk) -> str:
        if self._origin_ns < 0:
            self._origin_ns = chunk.at_ns
        if chunk.at_ns < self._last_ns:  # a reader thread stamps a chunk before the loop sends what it then appends
            chunk = Chunk(self._last_ns, chunk.data, chunk.channel)
        self._last_ns = chunk.at_ns
        return format_line(direction, chunk, self._origin_ns) + "\n"

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size:
            self._path.replace(self._path.with_name(self._path.name + ".old"))
        # 0600: a capture holds a patient's data in the clear
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._put("".join(f"# {key}: {value}\n" for key, value in self._header.items() if value).encode())

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
                os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            if self.unmarked:
                with contextlib.suppress(OSError):
                    self._put(_dropped(self.unmarked).encode())
            os.close(self._descriptor)
            self._descriptor = -1


def _dropped(count: int) -> str:
    return f"# dropped {count} chunks: the disk could not keep up\n"


def write_capture(path: Path, capture: Capture) -> None:
    """Writes a whole capture at once; for tools and tests, not for a link."""
    origin = capture.entries[0][1].at_ns if capture.entries else 0
    lines = (format_line(direction, chunk, origin) for direction, chunk in capture.entries)
    header = (f"# {key}: {value}" for key, value in capture.header.items())
    path.write_text("".join(f"{line}\n" for line in (*header, *lines)), encoding="utf-8")
