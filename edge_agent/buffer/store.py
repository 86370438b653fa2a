"""One database of sealed blocks, open for writing: schema, transaction, counters.

Block numbers rise within a file over all its instances; sequences of records start at 1 with every instance. Each
instance owns the numbers from its `start` to the next one's, so a place (instance, number) maps to a range of the
primary key and no other index is written. The counters of the next block and record follow from the newest block; only
a transaction that deletes writes them down, in `state`, so that a commit of records touches no other page.

WAL with synchronous=FULL: a commit that has returned survives a power cut. NORMAL loses acknowledged commits.
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.buffer import files, keys, rewrap
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.seal import Cipher, Damaged, Head

APPLICATION_ID = int.from_bytes(b"BEB1", "big")
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
DAY_NS = 86_400_000_000_000
WAL_LIMIT_BYTES = 8 << 20  # the log is cut back to this after a checkpoint

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_ERROR}

_KEY_LOST = "its data key is missing or damaged"
ODD = (TypeError, ValueError, AttributeError, OverflowError)  # what values of the wrong kind lead to

HEAD_COLUMNS = "version, codec, priority, quality, key, number, first, count, plain, t0, t1, utc, mono, instance"

_SCHEMA = (
    "CREATE TABLE instances (ordinal INTEGER PRIMARY KEY, uuid BLOB NOT NULL, gateway TEXT NOT NULL,"
    " start INTEGER NOT NULL, created_utc INTEGER NOT NULL, reason TEXT NOT NULL) STRICT",
    "CREATE TABLE keys (id INTEGER PRIMARY KEY, wrapped BLOB NOT NULL, kek BLOB NOT NULL, boot BLOB NOT NULL,"
    " day INTEGER NOT NULL, since INTEGER NOT NULL, created_utc INTEGER NOT NULL) STRICT",
    "CREATE TABLE blocks (number INTEGER PRIMARY KEY, instance INTEGER NOT NULL, version INTEGER NOT NULL,"
    " codec INTEGER NOT NULL, priority INTEGER NOT NULL, quality INTEGER NOT NULL, key INTEGER NOT NULL,"
    " first INTEGER NOT NULL, count INTEGER NOT NULL, plain INTEGER NOT NULL, t0 INTEGER NOT NULL,"
    " t1 INTEGER NOT NULL, utc INTEGER NOT NULL, mono INTEGER NOT NULL, blob BLOB NOT NULL) STRICT",
    # Losses that were decided here and are not yet stored as Gap records in the alerts stream.
    "CREATE TABLE gaps (id INTEGER PRIMARY KEY, reason TEXT NOT NULL, instance BLOB NOT NULL, first INTEGER NOT NULL,"
    " last INTEGER NOT NULL, count INTEGER NOT NULL, priority INTEGER NOT NULL, at_ns INTEGER NOT NULL) STRICT",
    "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), next_number INTEGER NOT NULL,"
    " next_first INTEGER NOT NULL, clean INTEGER NOT NULL, blocks INTEGER NOT NULL, records INTEGER NOT NULL) STRICT",
    _ERASED := "CREATE TABLE IF NOT EXISTS erased (id INTEGER PRIMARY KEY CHECK (id = 1), keys INTEGER NOT NULL,"
    " last_utc INTEGER NOT NULL) STRICT",  # how many drained data keys were deleted here
)


class GapRow(NamedTuple):
    """A row of the journal of losses."""

    id: int | None
    reason: str
    instance: bytes
    first: int
    last: int
    records: int
    priority: int
    at_ns: int


class DataKey(NamedTuple):
    """The data key at work; `stored` once a committed transaction holds its row."""

    id: int
    cipher: Cipher
    row: tuple[Any, ...]
    day: int


class BadDatabase(Exception):
    """A database that must not be written to: damaged or not ours."""


class NewerVersion(BadDatabase):
    """A database that is whole but whose schema this program does not know."""


class WrongKey(Exception):
    """A database whose data keys another key-encryption key has wrapped."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the error speaks of the file's content and not of the disk under it or of another process."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return False
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
    return code & 0xFF in _DAMAGE


def build(path: Path) -> sqlite3.Connection:
    """A connection to the new `.tmp` of a database, with schema and no instance yet, ready for rows to be copied in.

    It has no journal: the file counts only once it is closed and published.
    """
    part = files.beside(path, ".tmp")
    files.create_private(part)
    connection = sqlite3.connect(part, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.execute("INSERT INTO state VALUES (1, 1, 1, 1, 0, 0)")
    return connection


def begin_instance(connection: sqlite3.Connection, gateway: str, start: int, reason: str, utc_ns: int) -> None:
    """Adds a new instance that owns the block numbers from `start` and counts its records from 1."""
    connection.execute(
        "INSERT INTO instances (uuid, gateway, start, created_utc, reason) VALUES (?, ?, ?, ?, ?)",
        (uuid.uuid4().bytes, gateway, start, utc_ns, reason),
    )
    connection.execute("UPDATE state SET next_number = ?, next_first = 1, clean = 0", (start,))


def finish(connection: sqlite3.Connection) -> None:
    """Turns the new database to WAL and closes it, so that nobody changes its mode once it has its name.

    That change goes through a rollback journal; a process killed in it leaves a file that readers cannot open.
    """
    connection.execute("PRAGMA synchronous = FULL")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.close()
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system allows no write-ahead log (journal mode is {mode})")


def commit(connection: sqlite3.Connection) -> None:
    """Makes the transaction durable: this is where the disk is waited for."""
    connection.execute("COMMIT")


def head_of(row: Sequence[Any], stream: int, instance: bytes, boot: bytes) -> Head:
    """The head of a row of HEAD_COLUMNS; a further column may follow."""
    version, codec, priority, quality, key, number, first, count, plain, t0, t1, utc, mono = row[:13]
    return Head(
        version, codec, stream, priority, quality, key, number, first, count, plain, t0, t1, utc, mono, instance, boot
    )


class Store:
    """The writer's connection to one database; lives in one thread."""

    def __init__(self, path: Path, stream: str, kek: bytes, clock: Clock) -> None:
        """Opens an existing database.

        Raises: BadDatabase, WrongKey, or sqlite3.Error when the disk does not serve.
        """
        self.path, self.stream = path, files.STREAMS.index(stream)
        self._kek, self._kek_id, self._clock = kek, keys.fingerprint(kek), clock
        self.connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, cached_statements=64)
        try:
            self._check_identity()
            self._configure()
            rewrap.resume(self.connection, rewrap.Place(path, "keys"), path.parent.parent, kek)
            self._load()
        except sqlite3.Error as error:
            self.abandon()
            if is_damage(error):
                raise BadDatabase(str(error)) from error
            raise
        except ODD as error:  # pages that have changed places give values of other kinds
            self.abandon()
            raise BadDatabase(f"columns hold what they cannot ({error})") from error
        except BaseException:
            self.abandon()
            raise

    def _check_identity(self) -> None:
        (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise BadDatabase("not a buffer of this program")
        if version > SCHEMA_VERSION:
            raise NewerVersion(f"schema {version} was written by a newer version of this program")

    def _configure(self) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 0",  # the writer checkpoints when nobody waits
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
            "secure_delete = FAST",  # overwrites a deleted wrapped key without writing a page more
            "cache_size = -1024",  # KiB; blocks are written once and read by others
            "temp_store = MEMORY",
        ):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()

    def _load(self) -> None:
        one = self.connection.execute
        self.ordinal, self.instance = one(
            "SELECT ordinal, uuid FROM instances ORDER BY ordinal DESC LIMIT 1"
        ).fetchone() or _missing("instances")
        number, first, clean, blocks, records = one(
            "SELECT next_number, next_first, clean, blocks, records FROM state"
        ).fetchone() or _missing("state")
        self.clean = bool(clean)
        newest = one("SELECT number, instance, first, count FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
        if newest:
            number = max(number, newest[0] + 1)
            if newest[1] == self.ordinal:
                first = max(first, newest[2] + newest[3])
        self.next_number, self.next_first = number, first
        self.blocks, self.records = blocks, records
        rows = one("SELECT id, wrapped, kek, boot, day FROM keys ORDER BY since DESC, created_utc DESC").fetchall()
        if rows and all(row[2] != self._kek_id for row in rows):
            raise WrongKey(rows[0][2].hex())
        self.key: DataKey | None = None
        self.key_stored = self.erase_due = True  # the log of an earlier run may hold what that run has erased
        boot, day = self._clock.boot(), self._clock.utc_ns() // DAY_NS
        self.other_boot = bool(rows) and rows[0][3] != boot
        if rows and rows[0][2] == self._kek_id and rows[0][3] == boot and rows[0][4] == day:
            plain = keys.unwrap(self._kek, rows[0][1])
            if plain is not None:
                self.key = DataKey(rows[0][0], Cipher(plain), (), day)

    def check(self, tail: int) -> tuple[str, bool]:
        """What is wrong with the file, empty when nothing is, and whether its structure is concerned.

        The newest `tail` blocks are opened. A file that was closed in order is not checked further. SQLite's own check
        does not see a flipped bit inside a blob; the tag does.
        """
        try:
            if not self.clean:
                (word,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
                if word != "ok":
                    return f"quick_check: {word}", True
                self.blocks, self.records = self.connection.execute(
                    "SELECT count(*), coalesce(sum(count), 0) FROM blocks"
                ).fetchone()
            wrong = self._check_tail(tail)
            return wrong, wrong.endswith(_KEY_LOST)  # keys are stored before blocks: pages are not of one time
        except ODD as error:
            return f"columns hold what they cannot ({error})", True
        except sqlite3.Error as error:
            if is_damage(error):
                return str(error), True
            raise

    def _check_tail(self, tail: int) -> str:
        opener = KeyRing(self.connection, self._kek)
        query = f"SELECT {HEAD_COLUMNS}, blob FROM blocks ORDER BY number DESC LIMIT ?"  # noqa: S608
        rows = self.connection.execute(query, (tail,)).fetchall()
        for row in rows:
            wrong = opener.verify(row, self.stream)
            if wrong:
                return f"block {row[5]}: {wrong}"
        return ""

    def current_key(self) -> DataKey:
        """The data key of this boot and day; a new one is stored with the first block it seals."""
        day = self._clock.utc_ns() // DAY_NS
        if self.key is None or self.key.day != day:
            plain = keys.new_data_key()
            key_id = int.from_bytes(keys.new_data_key()[:8], "big") >> 1  # random: files may be joined in a salvage
            row = (
                key_id, keys.wrap(self._kek, plain), self._kek_id, self._clock.boot(), day, self.next_number,
                self._clock.utc_ns(),
            )  # fmt: skip
            self.key, self.key_stored = DataKey(key_id, Cipher(plain), row, day), False
        return self.key

    def begin(self) -> None:
        """Opens the transaction."""
        self.connection.execute("BEGIN IMMEDIATE")

    def insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds sealed blocks; on a retry after an uncertain commit the same numbers are written again."""
        if not self.key_stored and self.key is not None:
            self.connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", self.key.row)
        self.connection.executemany(
            f"INSERT OR REPLACE INTO blocks ({HEAD_COLUMNS}, blob)"  # noqa: S608
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def journal_gaps(self, gaps: Iterable[GapRow]) -> list[GapRow]:
        """Writes losses down in the same transaction that causes them; returned with their row numbers."""
        stored = []
        for gap in gaps:
            cursor = self.connection.execute("INSERT INTO gaps VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", gap[1:])
            stored.append(gap._replace(id=cursor.lastrowid))
        return stored

    def gaps(self) -> list[GapRow]:
        """Losses that are not yet stored as Gap records."""
        return [GapRow(*row) for row in self.connection.execute("SELECT * FROM gaps ORDER BY id")]

    def delete(self, numbers: Sequence[tuple[int]], next_number: int, next_first: int) -> None:
        """Removes blocks and writes the counters down, which no block may hold any more."""
        self.connection.executemany("DELETE FROM blocks WHERE number = ?", numbers)
        self.connection.execute("UPDATE state SET next_number = ?, next_first = ?", (next_number, next_first))

    def last_number_of(self, instance: bytes) -> int | None:
        """Highest block number that the instance can own here; None when this file does not know it."""
        found = self.connection.execute("SELECT ordinal FROM instances WHERE uuid = ?", (instance,)).fetchone()
        if not found:
            return None
        (start,) = self.connection.execute("SELECT min(start) FROM instances WHERE ordinal > ?", (found[0],)).fetchone()
        return self.next_number - 1 if start is None else int(start) - 1

    def file_bytes(self) -> int:
        """Size of the file once its log is written back, free pages included."""
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        return int(pages) * PAGE_BYTES

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
        (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * PAGE_BYTES

    def oldest(self) -> tuple[int, bytes, int] | None:
        """CLOCK_MONOTONIC, boot and UTC at the commit of the oldest block; None when the file is empty."""
        row: tuple[int, bytes | None, int] | None = self.connection.execute(
            "SELECT b.mono, k.boot, b.utc FROM blocks b LEFT JOIN keys k ON k.id = b.key ORDER BY b.number LIMIT 1"
        ).fetchone()
        return None if row is None else (row[0], row[1] or b"", row[2])

    def limit(self, quota_bytes: int) -> None:
        """Sets the size beyond which SQLite refuses to grow the file."""
        self.connection.execute(f"PRAGMA max_page_count = {max(quota_bytes // PAGE_BYTES, 16)}").fetchone()

    def drop_drained_keys(self) -> None:
        """Deletes data keys that no block needs any more; what they sealed cannot be read again by anyone.

        The newest one stays: it tells the boot of the last run. Call `erase` for what the write-ahead log still holds.
        """
        rows = self.connection.execute("SELECT id, since FROM keys ORDER BY since, created_utc").fetchall()
        starts = sorted({since for _, since in rows})
        after = dict(pairwise([*starts, self.next_number + 1]))
        drained = [
            (key,)
            for key, since in rows[:-1]
            if (self.key is None or key != self.key.id) and not self._needed(key, since, after[since])
        ]
        if not drained:
            return
        self.connection.execute("PRAGMA secure_delete = ON").fetchall()  # every page's worth: these are keys
        self.begin()
        self.connection.executemany("DELETE FROM keys WHERE id = ?", drained)
        self.connection.execute(_ERASED)
        self.connection.execute(
            "INSERT INTO erased VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET keys = keys + excluded.keys,"
            " last_utc = excluded.last_utc",
            (len(drained), self._clock.utc_ns()),
        )
        commit(self.connection)
        self.connection.execute("PRAGMA secure_delete = FAST").fetchall()
        self.erase_due = True

    def _needed(self, key: int, since: int, end: int) -> bool:
        query = "SELECT 1 FROM blocks WHERE number >= ? AND number < ? AND key = ? LIMIT 1"
        return self.connection.execute(query, (since, end, key)).fetchone() is not None

    def erase(self) -> bool:
        """Whether the log holds no erased key any more; a reader in the middle of a transaction prevents it for now."""
        if self.erase_due and rewrap.erase_log(self.connection):
            self.erase_due = False
        return not self.erase_due

    def begin_instance(self, gateway: str, start: int, reason: str) -> None:
        """Lets a new instance own the numbers from `start`, in the open transaction; one without blocks is replaced."""
        used = self.connection.execute(
            "SELECT 1 FROM blocks WHERE instance = ? AND number >= (SELECT start FROM instances WHERE ordinal = ?)",
            (self.ordinal, self.ordinal),
        ).fetchone()
        if used is None and self.next_first == 1:
            self.connection.execute("DELETE FROM instances WHERE ordinal = ?", (self.ordinal,))
        begin_instance(self.connection, gateway, start, reason, self._clock.utc_ns())
        self.ordinal, self.instance = self.connection.execute(
            "SELECT ordinal, uuid FROM instances ORDER BY ordinal DESC LIMIT 1"
        ).fetchone()
        self.next_number, self.next_first = start, 1

    def mark_open(self, open_: bool) -> None:
        """Notes that the file is in use, or that it was closed in order with these totals."""
        self.connection.execute(
            "UPDATE state SET clean = ?, blocks = ?, records = ?", (int(not open_), self.blocks, self.records)
        )

    def checkpoint(self) -> None:
        """Moves what readers no longer need from the log into the database, waiting for nobody."""
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def abandon(self) -> None:
        """Closes the connection, whatever state it is in."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()


class KeyRing:
    """Instances and data keys of one open database, for those who read its blocks."""

    def __init__(self, connection: sqlite3.Connection, kek: bytes) -> None:
        self._connection, self._kek, self._kek_id = connection, kek, keys.fingerprint(kek)
        self._instances: dict[int, bytes] = {}
        self._keys: dict[int, tuple[Cipher | None, bytes, bytes]] = {}

    def instance(self, ordinal: int) -> bytes:
        """UUID of an instance; empty when its row is missing."""
        if ordinal not in self._instances:
            self._instances.update(self._connection.execute("SELECT ordinal, uuid FROM instances").fetchall())
        return self._instances.get(ordinal, b"")

    def head(self, row: Sequence[Any], stream: int) -> tuple[Head, Cipher | None]:
        """Head of a row of HEAD_COLUMNS and the cipher of its key, None when the key is lost.

        Raises: keys.KeyProblem when another key-encryption key has wrapped it.
        """
        cipher, boot, kek_id = self._key(row[4])
        if cipher is None and kek_id and kek_id != self._kek_id:
            raise keys.KeyProblem(
                f"block {row[5]} was sealed under the key-encryption key {kek_id.hex()}, the given one is"
                f" {self._kek_id.hex()}\n  give this program the same key as the agent (buffer.key)"
            )
        return head_of(row, stream, self.instance(row[13]), boot), cipher

    def _key(self, key_id: int) -> tuple[Cipher | None, bytes, bytes]:
        found = self._keys.get(key_id)
        if found is None:
            row = self._connection.execute("SELECT wrapped, boot, kek FROM keys WHERE id = ?", (key_id,)).fetchone()
            if row is None:
                return None, b"", b""
            plain = keys.unwrap(self._kek, row[0])
            found = (None if plain is None else Cipher(plain), row[1], row[2])
            self._keys[key_id] = found
        return found

    def verify(self, row: Sequence[Any], stream: int) -> str:
        """What is wrong with a row of HEAD_COLUMNS and blob; empty when its tag fits."""
        try:
            head, cipher = self.head(row, stream)
            if cipher is None:
                return _KEY_LOST
            cipher.unseal(head, row[14])
        except Damaged as error:
            return str(error)
        except keys.KeyProblem as error:
            return str(error).partition("\n")[0]
        return ""


def _missing(table: str) -> Any:
    raise BadDatabase(f"table {table} is empty")
