"""Changing the key-encryption key: wrapped data keys are wrapped anew; no block is touched.

    note durable ──▶ alerts.db ──▶ data.db ──▶ alarm log ──▶ note removed        each file in one transaction

Every wrapped key carries the fingerprint of its key-encryption key (KEK), so each file is under the old or under the
new one. The note `key-rotation.json` holds the old KEK wrapped by the new one, never the reverse: the old one may be
known to somebody. From the moment it is durable the new KEK opens everything; an agent that starts with it finishes
what was interrupted, and so does a second `rotate`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.buffer import files, keys

NOTE = "key-rotation.json"  # in data_dir
_VERSION = 1
_BUSY_MS = 5000  # cloud-sync reads in transactions of milliseconds


class Place(NamedTuple):
    """A file with wrapped keys: `table` has the columns id, wrapped and kek."""

    path: Path
    table: str


class Note(NamedTuple):
    """A rotation that has begun: fingerprints, and the old key wrapped by the new one."""

    old: bytes
    new: bytes
    wrapped: bytes


def places(data_dir: Path) -> list[Place]:
    """The files of a gateway that hold wrapped keys, whether they exist or not."""
    streams = [Place(files.database(data_dir, stream), "keys") for stream in files.STREAMS]
    return [*streams, Place(data_dir / files.ALARM_LOG, "head")]


def rotate(data_dir: Path, given: bytes, new: bytes) -> dict[str, int]:
    """Wraps every data key with `new`; the number of keys changed, by file.

    `given` is the configured key: the old one, or already the new one when an interrupted rotation is taken up.

    Raises: KeyProblem when the agent runs or a file is damaged or under a third key; OSError when the disk does not
    serve. Whatever it raises, and wherever it is killed, it can be called again.
    """
    with stopped(data_dir):
        for place in places(data_dir):
            files.adopt(place.path)
        old = _begin(data_dir, given, new)
        done = {place.path.name: _rewrap(place, old, new) for place in places(data_dir) if place.path.exists()}
        end(data_dir)
        return done


def _rewrap(place: Place, old: bytes, new: bytes) -> int:
    try:
        with closing(_open(place.path)) as connection:
            return rewrap(connection, place.table, old, new)
    except sqlite3.Error as error:
        raise OSError(
            f"{place.path}: {error}; the rotation is not finished\n  make the disk serve and run this again; a damaged"
            " file is put aside when the agent starts with the new key"
        ) from error


def _begin(data_dir: Path, given: bytes, new: bytes) -> bytes:
    """The old key, with the note of it durable; nothing has been changed if this raises."""
    given_id, new_id = keys.fingerprint(given), keys.fingerprint(new)
    note = read_note(data_dir)
    if note is not None and note.new != new_id and under(data_dir, note.new):
        raise keys.KeyProblem(
            f"{data_dir / NOTE}: a rotation from {note.old.hex()} to {note.new.hex()} was interrupted\n"
            f"  finish it first: give the key {note.new.hex()} with --new"
        )
    old = given
    if note is not None and note.new == new_id:
        known = keys.unwrap(new, note.wrapped)
        if known is None:
            raise keys.KeyProblem(f"{data_dir / NOTE}: does not open with the new key\n  restore both from your copies")
        old = known
    elif given_id == new_id:
        raise keys.KeyProblem("the new key is the present one\n  make another: edge-agent keys init --key file:PATH")
    for place in places(data_dir):
        try:
            strange = _fingerprints(place) - {keys.fingerprint(old), new_id} if place.path.exists() else set()
        except sqlite3.Error as error:
            raise keys.KeyProblem(
                f"{place.path}: {error}; nothing was changed\n  start the agent once, it puts a damaged file aside"
            ) from error
        if strange:
            raise keys.KeyProblem(
                f"{place.path}: holds keys under {', '.join(sorted(item.hex() for item in strange))}, which is neither"
                f" the present key ({keys.fingerprint(old).hex()}) nor the new one; nothing was changed\n"
                "  start the agent once, it puts such a file aside, or give the key that fits in buffer.key"
            )
    if note is None or note.new != new_id:
        _write_note(data_dir, Note(given_id, new_id, keys.wrap(new, given)))
    return old


def rewrap(connection: sqlite3.Connection, table: str, old: bytes, new: bytes) -> int:
    """Wraps anew, in one durable transaction, what `old` has wrapped; the number of keys. What it replaces is erased.

    A key that does not open with `old` is damaged and opens with nothing: it is only named after the new one.
    """
    old_id, new_id = keys.fingerprint(old), keys.fingerprint(new)
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = connection.execute(f"SELECT id, wrapped FROM {table} WHERE kek = ?", (old_id,)).fetchall()  # noqa: S608
        for row, wrapped in rows:
            plain = keys.unwrap(old, wrapped)
            fresh = wrapped if plain is None else keys.wrap(new, plain)
            query = f"UPDATE {table} SET wrapped = ?, kek = ? WHERE id = ?"  # noqa: S608
            connection.execute(query, (fresh, new_id, row))
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    if rows:
        erase_log(connection, _BUSY_MS)
    connection.execute("PRAGMA secure_delete = FAST").fetchall()
    return len(rows)


def resume(connection: sqlite3.Connection, place: Place, data_dir: Path, kek: bytes) -> None:
    """Finishes for an open file what an interrupted rotation to `kek` has left."""
    if not (data_dir / NOTE).exists():
        return
    note = read_note(data_dir)
    if note is None or note.new != keys.fingerprint(kek):
        return
    old = keys.unwrap(kek, note.wrapped)
    if old is None:
        return
    rewrap(connection, place.table, old, kek)
    with contextlib.suppress(sqlite3.Error, OSError):  # somebody else's file may not be there yet: the note stays
        if not under(data_dir, note.old):
            end(data_dir)


def erase_log(connection: sqlite3.Connection, patience_ms: int = 0) -> bool:
    """Whether the write-ahead log, and with it every older picture of a page, could be written back and cut to nothing.

    A reader in the middle of its transaction prevents it for now.
    """
    (before,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {patience_ms}").fetchall()
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_BUSY):
            raise
        busy = 1
    finally:
        connection.execute(f"PRAGMA busy_timeout = {before}").fetchall()
    return not busy


def under(data_dir: Path, fingerprint: bytes) -> list[Path]:
    """The files that still hold a key wrapped by the key-encryption key of this fingerprint."""
    return [
        place.path
        for place in places(data_dir)
        if place.path.exists() and fingerprint in _fingerprints(place)
    ]  # fmt: skip


def read_note(data_dir: Path) -> Note | None:
    """The rotation that has begun and not ended; None when there is none, or its note is damaged and says nothing."""
    try:
        content = json.loads((data_dir / NOTE).read_bytes())
        parts = [bytes.fromhex(content[name]) for name in ("old", "new", "wrapped")]
        whole = content["version"] == _VERSION and content["crc"] == zlib.crc32(b"".join(parts))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Note(*parts) if whole else None


def end(data_dir: Path) -> None:
    """Removes the note, durably."""
    (data_dir / NOTE).unlink(missing_ok=True)
    files.sync_folder(data_dir)


@contextlib.contextmanager
def stopped(data_dir: Path) -> Iterator[None]:
    """Holds the locks of all files, so that no agent can start meanwhile.

    Raises: KeyProblem when an agent runs, or when the folder is another user's.
    """
    if not data_dir.is_dir():
        raise keys.KeyProblem(f"{data_dir}: is not there; there is nothing to wrap anew\n  check gateway.data_dir")
    owner = data_dir.stat().st_uid
    if owner != os.geteuid():
        raise keys.KeyProblem(
            f"{data_dir}: belongs to user {owner}; files that user {os.geteuid()} makes here would lock the agent out\n"
            f"  run this as that user: sudo -u '#{owner}' edge-agent keys rotate ..."
        )
    held: list[int] = []
    try:
        for place in places(data_dir):
            if not place.path.parent.is_dir():
                continue
            path = files.lock(place.path)
            held.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise keys.KeyProblem(
                    f"{path}: an agent runs and holds it; nothing was changed\n"
                    "  stop it (systemctl stop edge-agent), rotate, set buffer.key to the new key, start it again"
                ) from error
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _write_note(data_dir: Path, note: Note) -> None:
    content: dict[str, Any] = {name: value.hex() for name, value in note._asdict().items()}
    content |= {"version": _VERSION, "crc": zlib.crc32(b"".join(note))}
    files.write_durable(data_dir / NOTE, json.dumps(content).encode())


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_MS / 1000)
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    return connection


def _fingerprints(place: Place) -> set[bytes]:
    uri = f"{place.path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_MS / 1000)) as connection:
        query = f"SELECT DISTINCT kek FROM {place.table}"  # noqa: S608
        return {bytes(kek) for (kek,) in connection.execute(query) if isinstance(kek, bytes)}
