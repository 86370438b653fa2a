"""The file of the alarm log, open for writing: schema, sealed rows, one transaction for what belongs together.

    entries    number, hash, sealed canonical bytes            the chain (edge_agent/alarm_log/chain.py)
    active     the last event of each alarm that is not Off, and of each inactivation that has not ended
    settings   small values that the agent wants back after a restart
    head       number and hash of the newest entry and of the newest dropped one, and whether the run ended in order

A commit writes entries, `active`, `settings` and `head` together, so that after any interruption they agree. Every
value is sealed and bound to its table and key: a row that was altered or moved does not open, and a log whose newest
rows were cut off does not fit its head. WAL with synchronous=FULL: a commit that has returned survives a power cut.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_agent.alarm_log import chain
from edge_agent.buffer import files, keys, rewrap
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.seal import Box, Damaged
from edge_agent.buffer.store import is_damage
from edge_agent.records import AlarmEvent

MAGIC = b"BEL1"
APPLICATION_ID = int.from_bytes(MAGIC, "big")
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
_TAIL = 16  # entries checked at the start; all of them would make a restart wait, `alarms verify` checks them
_DROP_SHARE = 50  # at least a fiftieth of the entries goes at once: marks for single ones would fill the log
_WAL_LIMIT_BYTES = 4 << 20  # the write-ahead log is cut back to this after a checkpoint

_SCHEMA = (
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, blob BLOB NOT NULL) STRICT",
    "CREATE TABLE active (key TEXT PRIMARY KEY, blob BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE settings (key TEXT PRIMARY KEY, blob BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), wrapped BLOB NOT NULL, kek BLOB NOT NULL,"
    " blob BLOB NOT NULL) STRICT",
)


class Active(NamedTuple):
    """The last event of an alarm that is not Off, or of an inactivation that has not ended, and when that began."""

    bed: str
    event: AlarmEvent  # its `at_ns` counts in `event_boot_id`
    since_ns: int  # CLOCK_MONOTONIC of `boot_id`, at the onset
    boot_id: str
    utc_ns: int  # at the onset
    event_boot_id: str
    event_utc_ns: int
    number: int  # of the entry that holds `event`: sorts by order of happening


class Head(NamedTuple):
    """What the file says of itself, sealed."""

    number: int  # newest entry
    hash: bytes
    after: int = 0  # newest entry that retention has dropped
    start: bytes = chain.GENESIS  # its hash
    clean: bool = True  # nothing came after the power-down mark


@dataclass(slots=True)
class Batch:
    """What one transaction writes; it is prepared once and may be committed again after an uncertain commit."""

    head: Head
    rows: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    active: dict[str, Active | None] = field(default_factory=dict)
    settings: dict[str, bytes] = field(default_factory=dict)


class BadLog(Exception):
    """A file that must not be written to: damaged, foreign, or of a newer program."""


class WrongKey(BadLog):
    """A file whose data key another key-encryption key has wrapped."""


_HEAD = msgspec.msgpack.Decoder(Head)
_ACTIVE = msgspec.msgpack.Decoder(Active)
_ENCODE = msgspec.msgpack.Encoder().encode


def entry_bound(number: int) -> bytes:
    """What the seal of an entry is bound to."""
    return MAGIC + b"entry" + number.to_bytes(8, "big", signed=True)


def bound(table: str, key: str) -> bytes:
    """What the seal of another row is bound to."""
    return MAGIC + table.encode() + b":" + key.encode()


def create(path: Path, kek: bytes) -> None:
    """Puts a new, empty log in the place of what lies there; interrupted anywhere, the old or the new one is whole."""
    part = files.beside(path, ".tmp")
    files.make_folder(path.parent)
    files.create_private(part)
    connection = sqlite3.connect(part, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for statement in _SCHEMA:
            connection.execute(statement)
        key = keys.new_data_key()
        blob = Box(key).seal(_ENCODE(Head(0, chain.GENESIS)), bound("head", ""))
        row = (keys.wrap(kek, key), keys.fingerprint(kek), blob)
        connection.execute("INSERT INTO head VALUES (1, ?, ?, ?)", row)
        connection.execute("PRAGMA synchronous = FULL")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        connection.close()
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system allows no write-ahead log (journal mode is {mode})")
    files.publish(path)
    files.adopt(path)


def open_box(connection: sqlite3.Connection, kek: bytes) -> tuple[Box, bytes, Head]:
    """The cipher, the data key and the head of a log.

    Raises: BadLog or WrongKey; sqlite3.Error when the disk or the file does not serve.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise BadLog("not an alarm log of this program")
    if version != SCHEMA_VERSION:
        raise BadLog(f"format {version} was written by a newer version of this program")
    found = connection.execute("SELECT wrapped, kek, blob FROM head").fetchone()
    if found is None:
        raise BadLog("its head is missing")
    wrapped, fingerprint, blob = found
    if not all(isinstance(value, bytes) for value in found):  # a cut page reads as nothing
        raise BadLog("its head is damaged")
    if fingerprint != keys.fingerprint(kek):
        raise WrongKey(f"sealed under another key ({fingerprint.hex()}, not {keys.fingerprint(kek).hex()})")
    key = keys.unwrap(kek, wrapped)
    if key is None:
        raise BadLog("its data key is damaged")
    box = Box(key)
    try:
        return box, key, _HEAD.decode(box.unseal(blob, bound("head", "")))
    except (Damaged, msgspec.DecodeError) as error:
        raise BadLog("its head does not open") from error


def slot(bed: str, event: AlarmEvent) -> str:
    """Under which key an event is remembered: its alert, or the bed's sound or alarms as a whole; empty for neither."""
    if event.alert_id:
        return f"alert:{event.alert_id}"
    family = event.event.partition("_")[0]
    return f"{family}:{bed}" if event.event in _BEGINS or event.event in _ENDS else ""


_BEGINS = frozenset({"audio_pause", "audio_off", "alarm_pause", "alarm_off"})
_ENDS = frozenset({"audio_resume", "alarm_resume"})


class Store:
    """The writer's connection; lives in one thread."""

    def __init__(self, path: Path, kek: bytes, limit_bytes: int) -> None:
        """Opens an existing log.

        Raises: BadLog or WrongKey, FileNotFoundError, or sqlite3.Error when the disk does not serve.
        """
        self._path, self._limit_bytes, self._inode = path, limit_bytes, path.stat().st_ino
        self._connection = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        try:
            for pragma in (f"journal_size_limit = {_WAL_LIMIT_BYTES}", "cache_size = -512", "temp_store = MEMORY"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            rewrap.resume(self._connection, rewrap.Place(path, "head"), path.parent, kek)
            self._box, key, self.head = open_box(self._connection, kek)
            self._pseudonyms = hmac.new(key, b"patient ", hashlib.sha256)
            self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._connection.execute("PRAGMA synchronous = FULL")
            self.last = self._check_tail()
            self.active = {name: _ACTIVE.decode(blob) for name, blob in self._opened("active")}
            self.settings = dict(self._opened("settings"))
        except (Damaged, chain.Broken, ValueError, TypeError) as error:  # DecodeError is a ValueError
            self.abandon()
            raise BadLog(str(error)) from error
        except sqlite3.Error as error:
            self.abandon()
            if is_damage(error) or not hasattr(error, "sqlite_errorcode"):  # the latter: a text that is not UTF-8
                raise BadLog(str(error)) from error
            raise
        except BaseException:
            self.abandon()
            raise

    def _opened(self, table: str) -> Iterable[tuple[str, bytes]]:
        for name, blob in self._connection.execute(f"SELECT key, blob FROM {table}").fetchall():  # noqa: S608
            yield name, self._box.unseal(blob, bound(table, name))

    def _check_tail(self) -> chain.Entry | None:
        """The newest entry; the last few must follow from each other and end in the head."""
        head = self.head
        query = "SELECT number, hash, blob FROM entries ORDER BY number DESC LIMIT ?"
        found = [
            chain.Row(number, digest, self._box.unseal(blob, entry_bound(number)))
            for number, digest, blob in reversed(self._connection.execute(query, (_TAIL + 1,)).fetchall())
        ]
        if not found:
            if head.number:
                raise chain.Broken(head.number, f"entry {head.number} is missing")
            return None
        if (found[-1].number, found[-1].hash) != (head.number, head.hash):
            raise chain.Broken(head.number, f"ends with entry {found[-1].number}, its head names {head.number}")
        number, digest = head.after, head.start
        if len(found) > _TAIL:  # what precedes the tail is not looked at
            number, digest, _ = found.pop(0)
        for row in found:
            digest = chain.next_hash(digest, row.plain or b"")
            if row.number != number + 1 or row.hash != digest:
                raise chain.Broken(row.number, f"entry {row.number} does not follow entry {number}")
            number = row.number
        return chain.parse(found[-1].plain or b"")

    def pseudonym(self, patient: str) -> str:
        """Sixteen hex digits that stand for a patient within this log; empty for none."""
        if not patient:
            return ""
        mac = self._pseudonyms.copy()
        mac.update(patient.encode("utf-8", "surrogatepass"))
        return mac.hexdigest()[:16]

    def begin(self) -> Batch:
        """An empty batch on top of what is stored."""
        return Batch(self.head._replace(clean=False))

    def add(self, batch: Batch, entry: chain.Entry) -> None:
        """Numbers, chains and seals an entry, and remembers what it means for a restart."""
        number = batch.head.number + 1
        entry = msgspec.structs.replace(entry, number=number)
        plain = chain.canonical(entry)
        digest = chain.next_hash(batch.head.hash, plain)
        batch.rows.append((number, digest, self._box.seal(plain, entry_bound(number))))
        clean = entry.mark is not None and entry.mark.kind == "power_down"
        batch.head = batch.head._replace(number=number, hash=digest, clean=clean)
        if entry.alarm is not None:
            self._remember(batch, entry, entry.alarm)

    def _remember(self, batch: Batch, entry: chain.Entry, event: AlarmEvent) -> None:
        name = slot(entry.bed, event)
        if not name:
            return
        if event.event in _ENDS if not event.alert_id else event.state == "Off":
            batch.active[name] = None
            return
        known = batch.active[name] if name in batch.active else self.active.get(name)
        since = (event.at_ns, entry.boot, entry.utc_ns)
        if known is not None and event.alert_id:
            since = known[2:5]
        batch.active[name] = Active(entry.bed, event, *since, entry.boot, entry.utc_ns, entry.number)

    def drop_oldest(self, batch: Batch) -> dict[str, int | str] | None:
        """What a mark says of the oldest entries that the batch now drops; None while the file is within its size."""
        used = self.used_bytes()
        if used <= self._limit_bytes:
            return None
        stored = self.head.number - self.head.after
        excess = (used - self._limit_bytes) * stored // used + 1  # in entries
        through = self.head.after + min(max(excess, stored // _DROP_SHARE), stored - 1)
        found = self._connection.execute("SELECT hash FROM entries WHERE number = ?", (through,)).fetchone()
        if found is None or through <= self.head.after:
            return None
        first, batch.head = batch.head.after + 1, batch.head._replace(after=through, start=found[0])
        return {"first": first, "through": through, "hash": found[0].hex()}

    def commit(self, batch: Batch) -> None:
        """Makes a batch durable; this is where the disk is waited for."""
        run, many = self._connection.execute, self._connection.executemany
        run("BEGIN IMMEDIATE")
        try:
            if batch.head.after != self.head.after:
                run("DELETE FROM entries WHERE number <= ?", (batch.head.after,))
            many("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", batch.rows)
            self._write("active", {name: item and _ENCODE(item) for name, item in batch.active.items()})
            self._write("settings", batch.settings)
            run("UPDATE head SET blob = ?", (self._box.seal(_ENCODE(batch.head), bound("head", "")),))
            run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                run("ROLLBACK")
            raise
        self.head = batch.head
        for name, item in batch.active.items():
            if item is None:
                self.active.pop(name, None)
            else:
                self.active[name] = item

    def _write(self, table: str, values: dict[str, bytes | None] | dict[str, bytes]) -> None:
        for name, value in values.items():
            if value:
                blob = self._box.seal(value, bound(table, name))
                self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (name, blob))  # noqa: S608
            else:
                self._connection.execute(f"DELETE FROM {table} WHERE key = ?", (name,))  # noqa: S608

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * PAGE_BYTES

    def in_place(self) -> bool:
        """Whether the file still lies where it was opened."""
        with suppress(OSError):
            return self._path.stat().st_ino == self._inode
        return False

    def close(self) -> None:
        """Writes the log of SQLite back and closes."""
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.abandon()

    def abandon(self) -> None:
        """Closes without a further word."""
        with suppress(sqlite3.Error):
            self._connection.close()


def now_in(boot: str, item: tuple[int, str, int], clock: Clock) -> int:
    """A moment (at_ns, boot id, UTC) of any boot in CLOCK_MONOTONIC of this one: never in the future, maybe negative.

    Within the boot `at_ns` stands; else it is as long ago as the wall clock says.
    """
    at_ns, of, utc_ns = item
    now = clock.monotonic_ns()
    return min(now, at_ns if of == boot else now - (clock.utc_ns() - utc_ns))
