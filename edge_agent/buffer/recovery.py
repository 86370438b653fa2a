"""Opening a database whatever state it is in: finish, check, and where it fails, put aside, salvage and go on.

    .new exists ──▶ adopt it                      (a replacement was interrupted)
    no database ──▶ build, publish, adopt
    check fails ──▶ put aside ──▶ build: readable blocks copied, losses journalled, new instance ──▶ publish, adopt
    wrong key   ──▶ the same without copying: the blocks wait in quarantine for their key
    older copy  ──▶ kept; a new instance behind everything that the marks say was delivered
    new boot    ──▶ a new instance, so that copies of a card never share one

The agent always starts and nothing is ever deleted: the failed file lies untouched in `quarantine/`. Salvaged blocks
keep instance, number and sequence; new ones belong to a new instance, so that no identity is ever given twice.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge_agent.buffer import files, marks, salvage
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.store import (
    ODD,
    BadDatabase,
    GapRow,
    NewerVersion,
    Store,
    WrongKey,
    begin_instance,
    build,
    finish,
    is_damage,
)
from edge_agent.records import ALERT, NUMERIC, WAVEFORM

TAIL_BLOCKS = 32  # newest blocks whose tags are checked at start: what a torn write can have touched


@dataclass(slots=True)
class Finding:
    """What was found wrong at opening, for the technical alarm."""

    fault: str  # kind of fault: "buffer corrupt" or "buffer key"
    detail: str


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
                finish(new)
            files.publish(path)
            files.adopt(path)
    elif suspect:
        finding = _replace(path, stream, kek, gateway, clock, suspect, below)
    files.adapt(path)
    try:
        store = Store(path, stream, kek, clock)
    except WrongKey as error:
        finding = _replace_sealed(path, gateway, clock, str(error))
        return _ready(Store(path, stream, kek, clock), gateway, clock, finding)
    except BadDatabase as error:
        finding = _replace(path, stream, kek, gateway, clock, str(error), below, not isinstance(error, NewerVersion))
        return _ready(Store(path, stream, kek, clock), gateway, clock, finding)
    try:
        store.clean = store.clean or checked
        wrong, structure = store.check(TAIL_BLOCKS)
        if not wrong:
            return _ready(store, gateway, clock, finding)
    except (sqlite3.Error, *ODD) as error:
        store.abandon()
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise
        wrong, structure = str(error), True  # a file that was closed in order is not checked whole: it showed in use
    except BaseException:
        store.abandon()
        raise
    store.abandon()
    finding = _replace(path, stream, kek, gateway, clock, wrong, below, structure)
    store = Store(path, stream, kek, clock)
    store.check(0)
    return _ready(store, gateway, clock, finding)


def _ready(store: Store, gateway: str, clock: Clock, finding: Finding | None) -> tuple[Store, Finding | None]:
    """The store in use, under an instance of this boot: a copied card or a restored image then never shares one."""
    try:
        finding = finding or step_over(store, gateway, clock)
        store.begin()
        if store.other_boot:
            store.begin_instance(gateway, store.next_number, "boot")
            store.other_boot = False
        store.mark_open(True)
        store.connection.execute("COMMIT")
        store.checkpoint()
    except BaseException:
        store.abandon()
        raise
    return store, finding


def step_over(store: Store, gateway: str, clock: Clock) -> Finding | None:
    """What is told when a receiver has blocks of the newest instance that the file does not have: it is an older copy.

    A new instance then begins behind them, so that no identity that was delivered is given to another record.
    """
    ahead = max(
        (mark.block for mark in marks.every(store.path.parent.parent) if mark.instance_bytes() == store.instance),
        default=0,
    )
    held = store.next_number - 1
    if ahead <= held:
        return None
    gap = GapRow(
        None, "restored", store.instance, store.next_first, store.next_first, 0, salvage.UNKNOWN, clock.monotonic_ns()
    )
    store.begin()
    store.begin_instance(gateway, ahead + 1, "restored")
    store.journal_gaps([gap])
    store.connection.execute("COMMIT")
    return Finding(
        "buffer corrupt",
        f"{store.path.name} is older than what was delivered of it: it ends with block {held}, block {ahead} has been"
        " confirmed; a backup was put back or the card lost what it had confirmed. Its blocks are kept and a new"
        " instance has begun; if a copy of this card runs elsewhere, stop one of them",
    )


def _replace(
    path: Path, stream: str, kek: bytes, gateway: str, clock: Clock, why: str, below: int | None, structure: bool = True
) -> Finding:
    folder = files.put_aside(path, clock.utc_ns())
    copied = 0
    for worst in (WAVEFORM, NUMERIC, ALERT, -1, None):  # without room for all, alerts and numerics come first
        try:
            copied = _build_from(folder / path.name, path, stream, kek, gateway, clock, below, structure, worst)
            break
        except (sqlite3.Error, OSError, *ODD):
            if worst is None:
                raise
    files.adopt(path)
    return Finding(
        "buffer corrupt",
        f"{path.name} failed its check ({why}); it was put aside as {folder} and {copied} blocks were saved; what could"
        " not be read is told in Gap records. Nothing was deleted; check the disk, then archive that folder",
    )


def _build_from(
    aside: Path,
    path: Path,
    stream: str,
    kek: bytes,
    gateway: str,
    clock: Clock,
    below: int | None,
    structure: bool,
    worst: int | None,
) -> int:
    """Publishes a new database with what can be saved, up to a priority; with None nothing is; blocks copied."""
    with closing(salvage.read_only(aside)) as old, closing(build(path)) as new:
        found = salvage.Salvage(
            old, stream, kek, clock, worst=-1 if worst is None else worst, below=below, structure=structure
        )
        new.execute("BEGIN")
        if worst is None:
            found.gaps.append(salvage.nothing_known(clock))
        else:
            found.copy_into(new)
        begin_instance(new, gateway, found.next_number, "salvage", clock.utc_ns())
        salvage.journal(new, found.gaps)
        new.execute("COMMIT")
        finish(new)
    files.publish(path)
    return found.copied


def _replace_sealed(path: Path, gateway: str, clock: Clock, kek_id: str) -> Finding:
    folder = files.put_aside(path, clock.utc_ns())
    with closing(salvage.read_only(folder / path.name)) as old:
        gaps, start = salvage.sealed_away(old, clock)
    with closing(build(path)) as new:
        begin_instance(new, gateway, start, "key", clock.utc_ns())
        salvage.journal(new, gaps)
        finish(new)
    files.publish(path)
    files.adopt(path)
    return Finding(
        "buffer key",
        f"{path.name} was sealed under another key-encryption key ({kek_id}); it was put aside as {folder} and a new"
        " one begun. Nothing was deleted: stop the agent, give back the old key and put the file back to forward it",
    )
