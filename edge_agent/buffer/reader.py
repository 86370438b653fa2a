"""The reading side: sealed blocks in order, for cloud-sync and for inspection; read-only, in short transactions.

A block that cannot be opened does not stop the stream: in its place comes a block that holds one Gap, so that delivery
goes on and the receiver learns what is missing. Only a wrong key-encryption key stops reading, because then every
block would look damaged.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.buffer import files
from edge_agent.buffer.clock import QUALITY_NAMES
from edge_agent.buffer.marks import Position
from edge_agent.buffer.seal import Damaged, Head, Unpacker
from edge_agent.buffer.store import APPLICATION_ID, HEAD_COLUMNS, KeyRing, is_damage
from edge_agent.records import Entry, Gap

_STEP_OVER = 64  # unreadable numbers passed in one call; the next call goes on behind them
_EXACT = 2000  # up to so many numbers a backlog is counted, beyond it is bounded from first and last block


@dataclass(slots=True)
class Block:
    """Records in the order in which they were handed over; record i has the sequence `first + i`."""

    stream: str
    instance: str
    number: int
    priority: int
    first: int
    count: int
    entries: list[Entry]
    gateway: str = ""  # as configured when the block was sealed
    clock_quality: str = "unknown"  # synchronized, unsynchronized or unknown, when the block was committed
    damaged: str = ""  # why it could not be opened; `entries` then holds one Gap
    committed_ns: int = 0  # UTC and CLOCK_MONOTONIC at the same moment, at commit
    committed_mono_ns: int = 0
    boot: bytes = field(default=b"", repr=False)

    @property
    def position(self) -> Position:
        """The mark to set when this block and all before it are delivered."""
        return Position(self.instance, self.number)

    def utc_ns(self, at_ns: int) -> int:
        """UTC in nanoseconds since 1970 of a moment on the CLOCK_MONOTONIC of the boot that wrote the block."""
        return self.committed_ns + at_ns - self.committed_mono_ns


class Reader:
    """Reads both streams; safe to use from several threads, one after the other."""

    def __init__(self, data_dir: Path, kek: bytes) -> None:
        self._data_dir, self._kek = data_dir, kek
        self._sources: dict[str, _Source] = {}
        self._lock = threading.Lock()
        self.damaged = 0  # blocks that could not be opened so far
        self.fault = ""  # why the last read gave nothing although the file is there

    def read(self, stream: str, after: Position | None, max_blocks: int = 64, max_bytes: int = 4 << 20) -> list[Block]:
        """The next blocks after a place, oldest first; empty when there is none or the file is not there yet.

        An `after` whose instance the file does not know gives its oldest block. `max_bytes` bounds the sealed bytes;
        one block is always given.

        Raises: keys.KeyProblem when another key-encryption key has sealed what comes next.
        """
        with self._lock:
            self.fault = ""
            try:
                source = self._source(stream)
                return [] if source is None else self._read(source, stream, after, max_blocks, max_bytes)
            except (sqlite3.Error, OSError) as error:
                self.fault = self._why(stream, error)  # the agent, its writer, sees the same and recovers the file
                self._drop(stream)
                return []

    def numbers_after(self, stream: str, places: Sequence[Position]) -> list[int] | None:
        """For each place the number of the first block behind it, 0 when the file does not know its instance.

        None when the file cannot be asked at the moment, because it is not there yet or is being recovered.
        """
        with self._lock:
            try:
                source = self._source(stream)
                return None if source is None else [source.number_after(place) for place in places]
            except (sqlite3.Error, OSError) as error:
                self.fault = self._why(stream, error)
                self._drop(stream)
                return None

    def stats(self, after: Mapping[str, Position | None] | None = None) -> dict[str, dict[str, Any]]:
        """Backlog of each stream behind its mark: `blocks`, `records`, and `exact`.

        Where `exact` is false the numbers are upper bounds, taken from the first and the last block.
        """
        out: dict[str, dict[str, Any]] = {}
        with self._lock:
            for stream in files.STREAMS:
                mark = None if after is None else after.get(stream)
                try:
                    source = self._source(stream)
                    out[stream] = source.backlog(mark) if source else {"blocks": 0, "records": 0, "exact": True}
                except (sqlite3.Error, OSError) as error:
                    self._drop(stream)
                    out[stream] = {"blocks": 0, "records": 0, "exact": False, "fault": self._why(stream, error)}
        return out

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for stream in list(self._sources):
                self._drop(stream)

    def _source(self, stream: str) -> _Source | None:
        path = files.database(self._data_dir, stream)
        try:
            status = path.stat()
        except FileNotFoundError:
            self._drop(stream)
            return None
        held = self._sources.get(stream)
        if held is not None and held.inode == (status.st_dev, status.st_ino):
            return held
        self._drop(stream)  # recovery has put another file in its place
        source = _Source(path, (status.st_dev, status.st_ino), self._kek)
        self._sources[stream] = source
        return source

    def _why(self, stream: str, error: Exception) -> str:
        """What is told of a read that failed."""
        code = getattr(error, "sqlite_errorcode", None)
        index = files.beside(files.database(self._data_dir, stream), "-shm")
        if (
            code is not None
            and code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
            and not index.exists()
        ):
            # a reader that may not write beside the file can make no index, and the agent has taken its own away
            return f"{stream}.db: the agent does not run and has closed it; it is read again when the agent is back"
        return f"{stream}.db: {error}"

    def _drop(self, stream: str) -> None:
        source = self._sources.pop(stream, None)
        if source is not None:
            with contextlib.suppress(sqlite3.Error):
                source.connection.close()

    def _read(
        self, source: _Source, stream: str, after: Position | None, max_blocks: int, max_bytes: int
    ) -> list[Block]:
        rows = source.rows(source.number_after(after), max_blocks, max_bytes)
        blocks = []
        for row in rows:
            block = source.block(row, stream)
            if block.damaged:
                self.damaged += 1
            blocks.append(block)
        return blocks


class _Source:
    """One open file."""

    def __init__(self, path: Path, inode: tuple[int, int], kek: bytes) -> None:
        self.inode = inode
        self.connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=2.0, check_same_thread=False
        )
        try:
            if self.connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise sqlite3.DatabaseError("not a buffer of this program")
        except sqlite3.Error:
            self.connection.close()
            raise
        self._ring = KeyRing(self.connection, kek)
        self._unpack = Unpacker().unpack

    def number_after(self, after: Position | None) -> int:
        """The lowest number that is not delivered."""
        if after is None:
            return 0
        found = self.connection.execute(
            "SELECT (SELECT min(n.start) FROM instances n WHERE n.ordinal > i.ordinal)"
            " FROM instances i WHERE i.uuid = ?",
            (after.instance_bytes(),),
        ).fetchone()
        if found is None:
            return 0
        return after.block + 1 if found[0] is None else min(after.block + 1, int(found[0]))

    def rows(self, number: int, max_blocks: int, max_bytes: int) -> list[tuple[Any, ...]]:
        """Rows of HEAD_COLUMNS and blob; a row that cannot be read has None for its blob."""
        query = f"SELECT {HEAD_COLUMNS}, blob FROM blocks WHERE number >= ? ORDER BY number LIMIT ?"  # noqa: S608
        out: list[tuple[Any, ...]] = []
        size = 0
        try:
            for row in self.connection.execute(query, (number, max_blocks)):
                if out and size + len(row[14]) > max_bytes:
                    break
                size += len(row[14])
                out.append(row)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            return out or self._step_over(number)
        return out

    def _step_over(self, number: int) -> list[tuple[Any, ...]]:
        """Stands in for rows on a damaged page, one by one, as long as the file itself still tells its last number."""
        (end,) = self.connection.execute("SELECT max(number) FROM blocks").fetchone()
        ordinal = self.connection.execute(
            "SELECT ordinal FROM instances WHERE start <= ? ORDER BY ordinal DESC LIMIT 1", (number,)
        ).fetchone()
        out: list[tuple[Any, ...]] = []
        for candidate in range(max(number, 1), min(number + _STEP_OVER, (end or 0) + 1)):
            try:
                self.connection.execute("SELECT blob FROM blocks WHERE number = ?", (candidate,)).fetchone()
                if out:
                    break
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                out.append((0, 0, -1, 0, 0, candidate, 0, 0, 0, 0, 0, 0, 0, ordinal[0] if ordinal else 0, None))
        if not out:
            raise sqlite3.DatabaseError("damaged, and where cannot be told")
        return out

    def block(self, row: tuple[Any, ...], stream: str) -> Block:
        """The opened block, or one that holds a Gap in its place."""
        if row[14] is None:
            return self._gap(row, stream, "its page is damaged")
        try:
            head, cipher = self._ring.head(row, files.STREAMS.index(stream))
            if cipher is None:
                return self._gap(row, stream, "its data key is missing or damaged")
            gateway, entries = self._unpack(cipher.unseal(head, row[14]), head)
        except Damaged as error:
            return self._gap(row, stream, str(error))
        return self._made(head, stream, gateway, entries)

    def _made(self, head: Head, stream: str, gateway: str, entries: list[Entry]) -> Block:
        quality = QUALITY_NAMES[head.quality]
        return Block(
            stream, _uuid(head.instance), head.number, head.priority, head.first, head.records, entries, gateway,
            quality, "", head.utc_ns, head.mono_ns, head.boot,
        )  # fmt: skip

    def _gap(self, row: tuple[Any, ...], stream: str, why: str) -> Block:
        priority, number, first, count, utc, mono = row[2], row[5], row[6], row[7], row[11], row[12]
        instance = _uuid(self._ring.instance(row[13]))
        gap = Gap("damaged", first, first + count - 1 if count else first, count, mono, instance, priority)
        return Block(
            stream, instance, number, priority, first, 1, [Entry("", "", "", gap)], "", "unknown", why, utc, mono
        )

    def backlog(self, after: Position | None) -> dict[str, Any]:
        """Blocks and records behind the mark."""
        number = self.number_after(after)
        one = self.connection.execute
        low = one(
            "SELECT number, first, instance FROM blocks WHERE number >= ? ORDER BY number LIMIT 1", (number,)
        ).fetchone()
        if low is None:
            return {"blocks": 0, "records": 0, "exact": True}
        high = one("SELECT number, first + count, instance FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
        blocks = high[0] - low[0] + 1
        if blocks > _EXACT and high[2] == low[2]:
            return {"blocks": blocks, "records": high[1] - low[1], "exact": False}
        count, records = one(
            "SELECT count(*), coalesce(sum(count), 0) FROM blocks WHERE number >= ?", (low[0],)
        ).fetchone()
        return {"blocks": count, "records": records, "exact": True}


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else ""
