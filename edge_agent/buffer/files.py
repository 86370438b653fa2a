"""Where the buffer's files lie, and how they change place so that a power cut at any moment leaves one whole set.

    buffer/alerts.db, data.db        the sealed blocks (with SQLite's -wal and -shm beside them)
    buffer/<stream>.lock             held by the one agent that may write
    buffer/quarantine/<stream>-<utc>/  what failed its check, untouched; never deleted by the agent
    marks/<receiver>.json            what has been delivered; written by cloud-sync only

A replacement database is built as `.tmp`, made durable, renamed to `.new` (from here on it is the truth) and adopted:
the old write-ahead log goes first, then `.new` takes the name. Interrupted anywhere, the next start goes on. The old
log must never meet the new database, because SQLite would replay it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

STREAMS = ("alerts", "data")
ALARM_LOG = "alarm-log.sqlite"  # in data_dir; the alarm log's data key is wrapped like those of the buffer
_COMPANIONS = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database and applies to whatever has its name


def database(data_dir: Path, stream: str) -> Path:
    """Path of the database of one stream."""
    return data_dir / "buffer" / f"{stream}.db"


def lock(path: Path) -> Path:
    """Path of the lock file of a database."""
    return path.with_suffix(".lock")


def beside(path: Path, suffix: str) -> Path:
    """Path of a database's companion, for example its `-wal`."""
    return path.with_name(path.name + suffix)


def quarantined(data_dir: Path) -> list[Path]:
    """Folders of databases that were put aside, oldest first."""
    folder = data_dir / "buffer" / "quarantine"
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def make_folder(folder: Path) -> None:
    """Makes the folder with mode 0700, durable, and its parents where they are missing."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mode(folder: Path) -> int:
    """The mode of files in the folder: 0640 where its set-group-ID bit shares them with its group, else 0600."""
    return 0o640 if folder.stat().st_mode & stat.S_ISGID else 0o600


def create_private(path: Path) -> None:
    """Makes an empty file, as private as its folder says, in place of any older one; SQLite's log gets the same."""
    for suffix in ("", *_COMPANIONS):  # an older attempt's log would be replayed into the new file
        beside(path, suffix).unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(descriptor, mode(path.parent))  # whatever the umask is
    finally:
        os.close(descriptor)


def adapt(path: Path) -> None:
    """Gives a database from before its folder was shared, or after, and what lies beside it the mode it has now."""
    wanted = mode(path.parent)
    for suffix in ("", *_COMPANIONS):
        with contextlib.suppress(FileNotFoundError):
            one = beside(path, suffix)
            if stat.S_IMODE(one.stat().st_mode) != wanted:
                one.chmod(wanted)


def write_durable(path: Path, data: bytes) -> None:
    """Replaces a file so that old or new content survives a power cut, never a mixture."""
    part = beside(path, ".tmp")
    create_private(part)
    descriptor = os.open(part, os.O_WRONLY)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(part, path)
    sync_folder(path.parent)


def publish(path: Path) -> None:
    """Makes the finished `.tmp` of a database the `.new` one: the moment from which it is the truth."""
    part = beside(path, ".tmp")
    sync_file(part)
    os.rename(part, beside(path, ".new"))
    sync_folder(path.parent)


def adopt(path: Path) -> None:
    """Puts a published `.new` database in the place of the old one; does nothing when there is none."""
    new = beside(path, ".new")
    if not new.exists():
        return
    _drop_companions(path)
    os.rename(new, path)
    sync_folder(path.parent)
    _drop_companions(path)  # a reader may have opened the old name between the two steps


def put_aside(path: Path, utc_ns: int) -> Path:
    """A new quarantine folder that holds the database and its log; the originals stay until `adopt` replaces them."""
    root = path.parent / "quarantine"
    make_folder(root)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(utc_ns // 1_000_000_000))
    folder, number = root / f"{path.stem}-{stamp}", 1
    while folder.exists():
        number += 1
        folder = root / f"{path.stem}-{stamp}-{number}"
    folder.mkdir(mode=0o700)
    for suffix in ("", "-wal", "-journal"):
        source = beside(path, suffix)
        if not source.exists():
            continue
        target = folder / source.name
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)
            target.chmod(0o600)
        with contextlib.suppress(OSError):  # a sector that cannot be read back must not keep the agent from going on
            sync_file(target)
    sync_folder(folder)
    sync_folder(root)
    return folder


def _drop_companions(path: Path) -> None:
    dropped = False
    for suffix in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            beside(path, suffix).unlink()
            dropped = True
    if dropped:
        sync_folder(path.parent)
