"""Opening a database whatever state it is in: finish, check, and where it fails, put aside, salvage and go on.

    .new exists ──▶ adopt it                      (a replacement was interrupted)
    no database ──▶ build, publish, adopt
    check fails ──▶ put aside ──▶ build: readable blocks copied, losses journalled, new instance ──▶ publish, adopt
    wrong key   ──▶ the same without copying: the blocks wait in quarantine for their key

The agent always starts and nothing is ever deleted: the failed file lies untouched in `quarantine/`. Salvaged blocks
keep instance, number and sequence; new ones belong to a new instance, so that no identity is ever given twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.buffer import files
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.store import (
    HEAD_COLUMNS,
    BadDatabase,
    GapRow,
    KeyRing,
    Store,
    WrongKey,
    begin_instance,
    build,
    is_damage,
)

TAIL_BLOCKS = 32  # newest blocks whose tags are checked at start: what a torn write can have touched
_PATIENCE = 2000  # unreadable numbers in a row that are tried one by one before the search leaps
_LEAPS = 40  # doublings: past this no file holds a block
_UNKNOWN = -1  # priority of a loss that may concern every class
_SPAN_LIMIT = 200  # losses told one by one; more are told as one span per instance


@dataclass(slots=True)
class Finding:
    """What was found wrong at opening, for the technical alarm."""

    fault: str  # kind of fault: "buffer corrupt" or "buffer key"
    detail: str


@dataclass(slots=True)
class _Salvage:
    copied: int = 0
    failed: int = 0
    next_number: int = 1
    gaps: list[GapRow] = field(default_factory=list)


def open_store(
    path: Path,
    stream: str,
    kek: bytes,
    gateway: str,
    clock: Clock,
    *,
    suspect: str = "",
    below: int | None = None,
    checked: bool = False,
) -> tuple[Store, Finding | None]:
    """The writable database of a stream, and what was wrong with it, if anything.

    With `suspect`, the existing file is not trusted any more; of it, only blocks with numbers under `below` are saved.
    `checked`: this process has checked the file before and only reopens it.

    Raises: sqlite3.Error or OSError when the disk does not serve; the caller tries again later.
    """
    files.make_folder(path.parent)
    files.adopt(path)
    finding = None
    if not path.exists():
        if files.beside(path, "-wal").exists():  # a log without its database must not meet a new one
            finding = _replace(path, stream, kek, gateway, clock, "the database file is gone", None)
        else:
            with closing(build(path)) as new:
                begin_instance(new, gateway, 1, "new", clock.utc_ns())
            files.publish(path)
            files.adopt(path)
    elif suspect:
        finding = _replace(path, stream, kek, gateway, clock, suspect, below)
    try:
        store = Store(path, stream, kek, clock)
    except WrongKey as error:
        finding = _replace_sealed(path, gateway, clock, str(error))
        return _ready(Store(path, stream, kek, clock)), finding
    except BadDatabase as error:
        finding = _replace(path, stream, kek, gateway, clock, str(error), below)
        return _ready(Store(path, stream, kek, clock)), finding
    try:
        store.clean = store.clean or checked
        wrong = store.check(TAIL_BLOCKS)[0]
        if not wrong:
            return _ready(store), finding
    except BaseException:
        store.abandon()
        raise
    store.abandon()
    finding = _replace(path, stream, kek, gateway, clock, wrong, below)
    store = Store(path, stream, kek, clock)
    store.check(0)
    return _ready(store), finding


def _ready(store: Store) -> Store:
    try:
        store.begin()
        store.mark_open(True)
        store.connection.execute("COMMIT")
        store.checkpoint()
    except BaseException:
        store.abandon()
        raise
    return store


def _replace(path: Path, stream: str, kek: bytes, gateway: str, clock: Clock, why: str, below: int | None) -> Finding:
    folder = files.put_aside(path, clock.utc_ns())
    old = folder / path.name
    result = None
    for worst in (2, 1, 0, -1):  # where the disk has no room for all, alerts and numerics come first
        try:
            result = _copy(old, path, stream, kek, gateway, clock, worst, below)
            break
        except (sqlite3.Error, OSError):
            if worst < 0:
                raise
    assert result is not None
    files.publish(path)
    files.adopt(path)
    return Finding(
        "buffer corrupt",
        f"{path.name} failed its check ({why}); it was put aside as {folder}, {result.copied} blocks were saved and"
        f" {result.failed} could not be read. Nothing was deleted; check the disk, then archive that folder",
    )


def _replace_sealed(path: Path, gateway: str, clock: Clock, kek_id: str) -> Finding:
    folder = files.put_aside(path, clock.utc_ns())
    old = _read_only(folder / path.name)
    try:
        gaps = [
            GapRow(None, "quarantine", row[0], row[1], row[2], row[3], _UNKNOWN, clock.monotonic_ns())
            for row in old.execute(
                "SELECT i.uuid, min(b.first), max(b.first + b.count - 1), sum(b.count) FROM blocks b"
                " JOIN instances i ON i.ordinal = b.instance GROUP BY i.ordinal"
            )
        ]
        start = _end(old) or 1
    except sqlite3.Error:
        gaps, start = [_nothing_known(clock)], 1
    finally:
        old.close()
    with closing(build(path)) as new:
        begin_instance(new, gateway, start, "key", clock.utc_ns())
        _journal(new, gaps)
    files.publish(path)
    files.adopt(path)
    return Finding(
        "buffer key",
        f"{path.name} was sealed under another key-encryption key ({kek_id}); it was put aside as {folder} and a new"
        f" one begun. Nothing was deleted: stop the agent, give back the old key and put the file back to forward it",
    )


def _copy(
    old_path: Path, path: Path, stream: str, kek: bytes, gateway: str, clock: Clock, worst: int, below: int | None
) -> _Salvage:
    """Builds the `.tmp` of `path` from what can be read of `old_path`, priorities up to `worst`."""
    result = _Salvage()
    old = _read_only(old_path)
    try:
        try:
            instances = old.execute("SELECT * FROM instances ORDER BY ordinal").fetchall()
            data_keys = old.execute("SELECT * FROM keys").fetchall()
        except sqlite3.Error as error:
            if not is_damage(error) and old_path.exists():
                raise
            instances, data_keys = [], []
        with closing(build(path)) as new:
            new.execute("BEGIN")
            new.executemany("INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", instances)
            new.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", data_keys)
            if instances:
                _copy_blocks(old, new, stream, kek, clock, worst, below, result)
                _copy_gaps(old, new)
            else:
                result.gaps.append(_nothing_known(clock))
            begin_instance(new, gateway, result.next_number, "salvage", clock.utc_ns())
            _journal(new, result.gaps)
            new.execute("COMMIT")
    finally:
        old.close()
    return result


def _copy_blocks(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    stream: str,
    kek: bytes,
    clock: Clock,
    worst: int,
    below: int | None,
    result: _Salvage,
) -> None:
    ring = KeyRing(old, kek)
    place = files.STREAMS.index(stream)
    marks = ", ".join("?" * 15)
    expected: dict[int, int] = {}  # by instance: the sequence after the last block that was saved
    broken = False  # something unreadable lies between the last saved block and here
    spoilt: dict[int, int] = {}  # by instance: the highest sequence that an unreadable block says it held
    number = 0
    for number, row in _walk(old, below):  # noqa: B007
        if row is None:
            broken = True
            result.failed += 1
            continue
        ordinal, first, count = row[13], row[6], row[7]
        if ring.verify(row, place) or row[2] > worst:
            broken = True
            result.failed += 1
            spoilt[ordinal] = max(spoilt.get(ordinal, 0), first + count - 1)
            expected.setdefault(ordinal, first)
            continue
        if broken and first > expected.get(ordinal, first):
            result.gaps.append(_lost(ring, ordinal, expected[ordinal], first - 1, clock))
        new.execute(f"INSERT INTO blocks ({HEAD_COLUMNS}, blob) VALUES ({marks})", row)  # noqa: S608
        expected[ordinal], broken = first + count, False
        result.copied += 1
    if broken:
        for ordinal, start in expected.items() or {1: 1}.items():
            end = spoilt.get(ordinal, 0)
            if end >= start:
                result.gaps.append(_lost(ring, ordinal, start, end, clock))
        if not any(end >= expected.get(ordinal, 1) for ordinal, end in spoilt.items()):
            result.gaps.append(_nothing_known(clock))
    result.next_number = max(number + 1, _end(old) or 1)
    _merge(result)


def _walk(old: sqlite3.Connection, below: int | None) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Numbers in order with their rows, None for a number that cannot be read; damaged pages are stepped over."""
    end = _end(old)
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


_UNREADABLE: Any = object()


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


def _end(old: sqlite3.Connection) -> int | None:
    """The number after the last block, as the damaged file tells; None when it does not."""
    ends = []
    for query in (
        "SELECT number + 1 FROM blocks ORDER BY number DESC LIMIT 1",
        "SELECT next_number FROM state",
        "SELECT max(start) FROM instances",
    ):
        try:
            row = old.execute(query).fetchone()
        except sqlite3.Error:
            continue
        if row and isinstance(row[0], int):
            ends.append(row[0])
    return max(ends) if ends else None


def _copy_gaps(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    try:
        rows = old.execute("SELECT reason, instance, first, last, count, priority, at_ns FROM gaps").fetchall()
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return
    _journal(new, [GapRow(None, *row) for row in rows])


def _journal(new: sqlite3.Connection, gaps: list[GapRow]) -> None:
    new.executemany("INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", gaps)


def _lost(ring: KeyRing, ordinal: int, first: int, last: int, clock: Clock) -> GapRow:
    return GapRow(
        None, "quarantine", ring.instance(ordinal), first, last, last - first + 1, _UNKNOWN, clock.monotonic_ns()
    )


def _nothing_known(clock: Clock) -> GapRow:
    return GapRow(None, "quarantine", b"", 0, 0, 0, _UNKNOWN, clock.monotonic_ns())


def _merge(result: _Salvage) -> None:
    if len(result.gaps) <= _SPAN_LIMIT:
        return
    spans: dict[bytes, GapRow] = {}
    for gap in result.gaps:
        held = spans.get(gap.instance, gap._replace(records=0))
        spans[gap.instance] = held._replace(
            first=min(held.first, gap.first), last=max(held.last, gap.last), records=held.records + gap.records
        )
    result.gaps = list(spans.values())


def _read_only(path: Path) -> sqlite3.Connection:
    if not path.exists():
        return sqlite3.connect(":memory:")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
