"""Copying what can be read out of a damaged database, and telling what cannot.

Every block that is copied has been opened with its key first. Rows on damaged pages are stepped over number by number.
What is missing between two saved blocks is told exactly; what is missing at an end that the file no longer tells is
told as a loss of unknown extent (count 0). Where the structure is damaged, rows may vanish without an error, so every
jump in the numbers counts as a loss: that may repeat what an earlier Gap has told, and never conceals one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.buffer import files
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.store import HEAD_COLUMNS, GapRow, KeyRing, is_damage

_PATIENCE = 2000  # unreadable numbers in a row that are tried one by one before the search leaps
_LEAPS = 40  # doublings: past this no file holds a block
UNKNOWN = -1  # priority of a loss that may concern every class
_SPAN_LIMIT = 200  # losses told one by one; more are told as one span per instance
_UNREADABLE: Any = object()
_INSTANCE = (int, bytes, str, int, int, str)
_KEY = (int, bytes, bytes, bytes, int, int, int)
_GAP = (str, bytes, int, int, int, int, int)

_GAP_COLUMNS = "reason, instance, first, last, count, priority, at_ns"


class Salvage:
    """One pass over a damaged database; `copied`, `gaps` and `next_number` hold what came of it."""

    def __init__(
        self,
        old: sqlite3.Connection,
        stream: str,
        kek: bytes,
        clock: Clock,
        *,
        worst: int,
        below: int | None,
        structure: bool,
    ) -> None:
        """`worst`: highest priority to copy; `below`: numbers from there on are not wanted."""
        self._old, self._ring, self._stream = old, KeyRing(old, kek), files.STREAMS.index(stream)
        self._clock, self._worst, self._below, self._structure = clock, worst, below, structure
        self._expected: dict[int, int] = {}  # by instance: the sequence after the last block that was saved
        self._spoilt: dict[int, int] = {}  # by instance: the highest sequence that an unreadable block says it held
        self._keys: set[Any] = set()  # that have been looked for
        self._broken = False  # something unreadable lies between the last saved block and here
        self.copied, self.gaps, self.next_number = 0, list[GapRow](), 1

    def copy_into(self, new: sqlite3.Connection) -> None:
        """Copies instances, keys, blocks and untold losses into an empty database, in its open transaction."""
        instances = _rows(self._old, "SELECT * FROM instances ORDER BY ordinal", _INSTANCE)
        if not instances:
            self.gaps.append(nothing_known(self._clock))
            return
        new.executemany("INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", instances)
        new.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", _rows(self._old, "SELECT * FROM keys", _KEY))
        self._copy_blocks(new)
        journal(new, [GapRow(None, *row) for row in _rows(self._old, f"SELECT {_GAP_COLUMNS} FROM gaps", _GAP)])  # noqa: S608

    def _copy_blocks(self, new: sqlite3.Connection) -> None:
        insert = f"INSERT INTO blocks ({HEAD_COLUMNS}, blob) VALUES ({', '.join('?' * 15)})"  # noqa: S608
        number = 0
        for place, row in _walk(self._old, self._below):
            self._broken |= row is None or (self._structure and number > 0 and place != number + 1)
            number = place
            if row is not None and self._wanted(row):
                self._copy_key(new, row[4])
                new.execute(insert, row)
                self.copied += 1
        if self._broken:
            self._tell_end()
        if self._structure or not self.copied:  # rows may have vanished without a trace
            self.gaps.append(nothing_known(self._clock))
        self.next_number = max(number + 1, end_number(self._old) or 1, floor_number(self._old))
        self._merge()

    def _copy_key(self, new: sqlite3.Connection, key: int) -> None:
        """Copies the data key of a block, which a look at the whole damaged table may have missed."""
        if key not in self._keys:
            self._keys.add(key)
            found = _rows(self._old, "SELECT * FROM keys WHERE id = ?", _KEY, key)
            new.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", found)

    def _wanted(self, row: tuple[Any, ...]) -> bool:
        ordinal, first, count = row[13], row[6], row[7]
        if not all(isinstance(value, int) for value in row[:14]):
            self._broken = True
            return False
        if self._ring.verify(row, self._stream) or row[2] > self._worst:
            self._broken = True
            self._spoilt[ordinal] = max(self._spoilt.get(ordinal, 0), first + count - 1)
            self._expected.setdefault(ordinal, first)
            return False
        expected = self._expected.get(ordinal)
        if self._broken and expected is not None and first > expected:
            self.gaps.append(self._lost(ordinal, expected, first - 1))
        elif self._broken and expected is None and first > 1:  # some of these, perhaps all, were delivered and pruned
            self.gaps.append(self._lost(ordinal, 1, first - 1)._replace(records=0))
        self._expected[ordinal], self._broken = first + count, False
        return True

    def _tell_end(self) -> None:
        told = False
        for ordinal, start in self._expected.items():
            last = self._spoilt.get(ordinal, 0)
            if last >= start:
                self.gaps.append(self._lost(ordinal, start, last))
                told = True
        if not told:
            self.gaps.append(nothing_known(self._clock))

    def _lost(self, ordinal: int, first: int, last: int) -> GapRow:
        instance, now = self._ring.instance(ordinal), self._clock.monotonic_ns()
        return GapRow(None, "quarantine", instance, first, last, last - first + 1, UNKNOWN, now)

    def _merge(self) -> None:
        if len(self.gaps) <= _SPAN_LIMIT:
            return
        spans: dict[bytes, GapRow] = {}
        for gap in self.gaps:
            held = spans.get(gap.instance, gap._replace(records=0))
            spans[gap.instance] = held._replace(
                first=min(held.first, gap.first), last=max(held.last, gap.last), records=held.records + gap.records
            )
        self.gaps = list(spans.values())


def sealed_away(old: sqlite3.Connection, clock: Clock) -> tuple[list[GapRow], int]:
    """The losses that putting a whole database aside means, from its plain columns, and the number after its blocks."""
    now = clock.monotonic_ns()
    query = (
        "SELECT i.uuid, min(b.first), max(b.first + b.count - 1), sum(b.count) FROM blocks b"
        " JOIN instances i ON i.ordinal = b.instance GROUP BY i.ordinal"
    )
    try:
        gaps = [
            GapRow(None, "quarantine", uuid, first, last, count, UNKNOWN, now)
            for uuid, first, last, count in old.execute(query)
        ]
    except sqlite3.Error:
        gaps = [nothing_known(clock)]
    return gaps, max(end_number(old) or 1, floor_number(old))


def journal(new: sqlite3.Connection, gaps: list[GapRow]) -> None:
    """Writes losses down, to be told once the database is open."""
    new.executemany("INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", gaps)


def nothing_known(clock: Clock) -> GapRow:
    """A loss of which neither place nor extent is known."""
    return GapRow(None, "quarantine", b"", 0, 0, 0, UNKNOWN, clock.monotonic_ns())


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; to an empty database when there is no file."""
    if not path.exists():
        return sqlite3.connect(":memory:")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _rows(old: sqlite3.Connection, query: str, kinds: tuple[type, ...], *values: object) -> list[Any]:
    """Rows whose columns are of these kinds; pages that have changed places give others."""
    try:
        return [row for row in old.execute(query, values).fetchall() if tuple(map(type, row)) == kinds]
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return []


def _walk(old: sqlite3.Connection, below: int | None) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Numbers in order with their rows, None for a number that cannot be read; damaged pages are stepped over."""
    end = end_number(old)
    if below is not None:
        end = below if end is None else min(end, below)
    query = f"SELECT {HEAD_COLUMNS}, blob FROM blocks WHERE number >= ? ORDER BY number LIMIT 1"  # noqa: S608
    number, failures = _begin(old), 0
    while end is None or number < end:
        row = _try(old, query, number)
        if row is _UNREADABLE:
            failures += 1
            yield number, None
            number = number + 1 if failures < _PATIENCE else _leap(old, query, number)
            if number < 0:
                return
            continue
        if row is None or (below is not None and row[5] >= below):
            return
        failures = 0
        yield row[5], row
        number = row[5] + 1


def _try(old: sqlite3.Connection, query: str, number: int) -> Any:
    try:
        return old.execute(query, (number,)).fetchone()
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return _UNREADABLE


def _leap(old: sqlite3.Connection, query: str, number: int) -> int:
    """The first number after a long damage at which reading works again; -1 when none is found."""
    low, step = number, _PATIENCE
    for _ in range(_LEAPS):
        high = low + step
        if _try(old, query, high) is not _UNREADABLE:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _try(old, query, middle) is _UNREADABLE else (low, middle)
            return high
        low, step = high, step * 2
    return -1


def _begin(old: sqlite3.Connection) -> int:
    """A number at or before the first block: that of the oldest data key's first one."""
    try:
        row = old.execute("SELECT min(since) FROM keys").fetchone()
    except sqlite3.Error:
        return 1
    return row[0] if row and isinstance(row[0], int) else 1


def end_number(old: sqlite3.Connection) -> int | None:
    """The number after the last block; None when the damaged file does not tell."""
    try:
        row = old.execute("SELECT number + 1 FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else 1


def floor_number(old: sqlite3.Connection) -> int:
    """A number that no block of the damaged file has passed when it last deleted something or began an instance."""
    floor = 1
    for query in ("SELECT next_number FROM state", "SELECT max(start) FROM instances", "SELECT max(since) FROM keys"):
        try:
            row = old.execute(query).fetchone()
        except sqlite3.Error:
            continue
        if row and isinstance(row[0], int):
            floor = max(floor, row[0])
    return floor
