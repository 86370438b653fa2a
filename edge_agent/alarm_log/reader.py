"""Looking into an alarm log from outside: read-only, in one snapshot, also while the agent runs; and exports of it.

An export is JSON lines: first `{"after": N, "hash": H}`, number and hash of the newest entry that retention had dropped
(0 and the fixed genesis when none was), then one `{"hash": H, "entry": {...}}` for each entry, last `{"through": N,
"hash": H}`, so that an export that was cut short is noticed. The bytes of `entry` are the canonical ones: SHA-256 of
the former line's hash (as 32 bytes) and these bytes gives the line's hash, without any key.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_agent.alarm_log import chain
from edge_agent.alarm_log.store import Head, entry_bound, open_box
from edge_agent.buffer.seal import Box, Damaged
from edge_agent.records import AlarmEvent

_LINE_LIMIT = 1 << 20  # a line of an export has some hundred bytes


class Unreadable(Exception):
    """A log or an export that cannot be read; `str` says why and what to do."""


class Snapshot:
    """One moment of a log."""

    def __init__(self, connection: sqlite3.Connection, box: Box, head: Head) -> None:
        self._connection, self._box = connection, box
        self.head = head

    def rows(self, *, newest_first: bool = False) -> Iterator[chain.Row]:
        """Every entry as it was found."""
        order = "DESC" if newest_first else "ASC"
        for number, digest, blob in self._connection.execute(
            f"SELECT number, hash, blob FROM entries ORDER BY number {order}"  # noqa: S608
        ):
            try:
                plain = self._box.unseal(blob, entry_bound(number))
            except Damaged:
                plain = None
            yield chain.Row(number, digest, plain)

    def newest(self) -> Iterator[chain.Entry]:
        """The entries that can be read, newest first; the chain is not checked."""
        for row in self.rows(newest_first=True):
            if row.plain is not None:
                try:
                    yield chain.parse(row.plain)
                except chain.BadEntry:
                    continue

    def entries(self) -> Iterator[tuple[chain.Entry, bytes]]:
        """The entries, oldest first, with their hashes, each checked against the chain and the last against the head.

        Raises: chain.Broken.
        """
        number, digest = self.head.after, self.head.start
        found = chain.walk(self.rows(), self.head.after, self.head.start)
        while True:
            try:
                entry, digest = next(found)
            except StopIteration:
                break
            except sqlite3.DatabaseError as error:
                raise chain.Broken(number + 1, f"entry {number + 1}: the file is damaged here: {error}") from error
            number = entry.number
            yield entry, digest
        if number != self.head.number:
            missing = f"entries {number + 1} to {self.head.number} are missing at the end"
            raise chain.Broken(number + 1, missing)
        if digest != self.head.hash:
            raise chain.Broken(number, f"entry {number}: its hash is not the one that the head of the log names")


@contextmanager
def snapshot(path: Path, kek: bytes) -> Iterator[Snapshot]:
    """The log as it is now; what is appended meanwhile is not seen.

    Raises: Unreadable.
    """
    if not path.exists():
        raise Unreadable(f"{path}: there is no alarm log\n  it begins with the first `edge-agent run` that has a key")
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)) as connection:
            connection.execute("BEGIN")
            box, _, head = open_box(connection, kek)
            yield Snapshot(connection, box, head)
    except sqlite3.Error as error:
        raise Unreadable(
            f"{path}: cannot be read: {error}\n"
            "  run it as the agent's user; if it is damaged, keep a copy; the agent puts it aside at its next start"
        ) from error


def export_lines(found: Snapshot) -> Iterator[str]:
    """The lines of an export, each checked before it is given.

    Raises: chain.Broken.
    """
    number, digest = found.head.after, found.head.start
    yield json.dumps({"after": number, "hash": digest.hex()})
    for entry, digest in found.entries():
        number = entry.number
        yield f'{{"hash":"{digest.hex()}","entry":{chain.canonical(entry).decode()}}}'
    yield json.dumps({"through": number, "hash": digest.hex()})


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    hash: str
    entry: msgspec.Raw = msgspec.Raw()  # empty: none
    after: int | None = None
    through: int | None = None


_LINE = msgspec.json.Decoder(_Line)


def exported(lines: Iterable[bytes]) -> Iterator[tuple[chain.Entry, bytes]]:
    """The entries of an export with their hashes, each checked; no key is needed.

    Raises: chain.Broken; Unreadable when these are not the lines of an export.
    """
    rows = _Rows(iter(lines))
    yield from chain.walk(rows, rows.after, rows.start)
    if rows.through is None:
        raise chain.Broken(rows.number + 1, f"the export ends after entry {rows.number} without its last line")


class _Rows:
    """The rows of an export; knows the first line at once and the last one at the end."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self.through: int | None = None
        first = self._next(1)
        if first is None or first.after is None or bytes(first.entry):
            raise Unreadable("not an export of an alarm log\n  give a file that `edge-agent alarms export` wrote")
        self.after, self.start = first.after, _digest(first.hash)
        self.number, self._hash = self.after, self.start

    def __iter__(self) -> Iterator[chain.Row]:
        place = 1
        while (line := self._next(place := place + 1)) is not None:
            if self.through is not None:
                raise chain.Broken(self.number + 1, f"line {place}: something follows the last line of the export")
            if line.through is not None:
                self.through = line.through
                if (line.through, _digest(line.hash)) != (self.number, self._hash):
                    missing = f"the last line names entry {line.through}, the entries end with {self.number}"
                    raise chain.Broken(self.number + 1, missing)
                continue
            if not (plain := bytes(line.entry)):
                raise chain.Broken(self.number + 1, f"line {place}: holds no entry")
            try:
                self.number = chain.parse(plain).number
            except chain.BadEntry as error:
                raise chain.Broken(self.number + 1, f"line {place}: {error}") from error
            self._hash = _digest(line.hash)
            yield chain.Row(self.number, self._hash, plain)

    def _next(self, place: int) -> _Line | None:
        line = next(self._lines, None)
        if line is None:
            return None
        try:
            if len(line) > _LINE_LIMIT:
                raise msgspec.DecodeError("the line is too long")
            return _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if place == 1:
                raise Unreadable(f"not an export of an alarm log: {error}") from error
            raise chain.Broken(self.number + 1, f"line {place}: {error}") from error


def _digest(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


_CSV_ALARM = AlarmEvent.__struct_fields__
_CSV_ENTRY = ("number", "utc_ns", "clock", "boot", "run", "bed", "patient")


def write_csv(entries: Iterable[tuple[chain.Entry, bytes]], out: IO[str]) -> None:
    """A table for a spreadsheet: one row for each entry, marks with kind and detail in the last two columns."""
    table = csv.writer(out)
    table.writerow([*_CSV_ENTRY, *_CSV_ALARM, "mark", "mark_detail", "hash"])
    for entry, digest in entries:
        start: list[Any] = [getattr(entry, name) for name in _CSV_ENTRY]
        alarm = [entry.at_ns if name == "at_ns" else "" for name in _CSV_ALARM]
        if entry.alarm is not None:
            alarm = [_cell(getattr(entry.alarm, name)) for name in _CSV_ALARM]
        mark = ["", ""] if entry.mark is None else [entry.mark.kind, json.dumps(entry.mark.detail)]
        table.writerow([*start, *alarm, *mark, digest.hex()])


def _cell(value: Any) -> Any:
    """A value that a spreadsheet does not take for a formula; texts come from devices."""
    if value is None:
        return ""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
