"""The writer of one stream: a thread that turns what waits in memory into durable sealed blocks.

    opening ──▶ writing ◀──▶ failing (back-off, everything kept)          damage, from anywhere ──▶ opening (recovery)

One turn takes a batch, seals it, and makes it durable in one transaction that also deletes delivered blocks and writes
losses down. A batch that fails is kept and written again under the same numbers, because a commit that reported an
error may still have reached the disk. Now and then the turn tidies: it reads the mark of what was delivered, sheds what
is too old or too much, checkpoints when nobody waits. Nothing here is ever waited for by the alarm loop.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.buffer import cut, files, marks, quota, recovery, store
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.pending import Batch, Bell, GapKey, Pending
from edge_agent.buffer.seal import Packer
from edge_agent.buffer.store import PAGE_BYTES, GapRow, Store
from edge_agent.records import Entry

log = logging.getLogger(__name__)

TIDY_S = 2.0
_BACK_OFF_S = (0.05, 5.0)  # first and longest pause after a failure
_CHECKPOINT_PAGES = 1000  # in the log: time for a checkpoint when nobody waits (SQLite's own default)
_CHECKPOINT_ANYWAY = 4000  # pages in the log (16 MB): even when somebody waits
_SHED_ROOM_BYTES = 64 << 10  # beyond the quota, for the journal row that shedding itself writes
_ROW_BYTES = 90  # of the plain columns of a block, as SQLite stores them
_SPARE_PAGES = 1024  # free pages kept for reuse; more are given back to the file system
_VACUUM_PAGES = 256  # given back in one step


@dataclass(frozen=True, slots=True)
class Host:
    """What a writer needs to know and to tell."""

    data_dir: Path
    kek: bytes
    gateway: str
    clock: Clock
    max_age_s: float
    commit_s: float
    batch_bytes: int  # of records in memory that one transaction takes
    limit_bytes: Callable[[], int]  # what this stream's file may hold now
    report: Callable[[], None]  # something became durable
    fault: Callable[[str, str, str], None]  # kind, stream, what and what to do; empty when it is over
    gaps: Callable[[str, list[GapRow]], None]  # losses that want to become Gap records
    stored_gaps: Callable[[Sequence[GapKey]], None]  # Gap records of these losses are durable
    receivers: Mapping[str, tuple[str, ...]]  # for each stream the marks without which no block of it goes


class Writer(threading.Thread):
    """Owner of one database file."""

    def __init__(self, stream: str, host: Host) -> None:
        super().__init__(name=f"buffer-{stream}", daemon=True)
        self.stream, self._host = stream, host
        self._path = files.database(host.data_dir, stream)
        self.pending = Pending(one_block_per_group=stream == "alerts", batch_bytes=host.batch_bytes)
        self.bell = Bell()
        self.ready = threading.Event()
        self.busy_since: int | None = None  # CLOCK_MONOTONIC at which the disk was asked
        self.used_bytes = 0  # pages that hold something
        self.sealed_bytes = 0  # written since the start, with what a row adds to its blob
        self.file_bytes = 0  # with the free pages that the file keeps
        self.blocks = self.records = self.shed_records = self.gap_count = 0
        self.oldest: tuple[int, bytes, int] | None = None  # mono, boot, utc of the oldest block in the file
        self.commit_ms: deque[float] = deque(maxlen=1024)
        self.commits = 0
        self._packer = Packer(host.gateway)
        self._store: Store | None = None
        self._quota: quota.Quota | None = None
        self._lock_file = -1
        self._suspect, self._below = "", 0
        self._checked = False
        self._planned: tuple[bytes, int, int] | None = None  # instance and counters at which the batch was first sealed
        self._told_gaps: deque[int] = deque()  # journal rows whose Gap records are durable
        self._prune_to = 0
        self._log_pages = 0
        self._tidy_at = 0.0
        self._tidy_wanted: deque[threading.Event] = deque()
        self._pause_s = 0.0
        self._deadline: float | None = None

    # What others ask of it

    def put(self, ticket: int, entries: Sequence[Entry], *, soon: bool, gaps: tuple[GapKey, ...] = ()) -> None:
        """Takes records over; never waits."""
        inbox = self.pending.inbox
        inbox.append((ticket, entries, gaps))
        if soon or len(inbox) > 256:  # hand-overs: some 256 KiB of records
            self.bell.ring()

    def forget_gaps(self, rows: Sequence[int]) -> None:
        """Notes that the Gap records of these journal rows are durable."""
        self._told_gaps.extend(rows)

    def tidy(self) -> threading.Event:
        """Asks for tidying now; the event is set when it is done."""
        done = threading.Event()
        self._tidy_wanted.append(done)
        self.bell.ring()
        return done

    def close(self, deadline: float) -> None:
        """Asks it to write what waits and to end, at the latest at `deadline` (time.monotonic)."""
        self._deadline = deadline
        self.bell.ring()

    # The thread

    def run(self) -> None:
        """Turns until it is closed."""
        while True:
            closing = self._deadline
            try:
                if self._store is None:
                    self._open()
                more = self._turn()
                self._recovered()
            except Exception as error:  # whatever went wrong, the next turn tries again
                self._failed(error)
                more = False
            if closing is not None and (not self.pending.waiting() or time.monotonic() >= closing):
                break
            if not more:
                self._wait()
        self._finish()

    def _wait(self) -> None:
        if self._pause_s:
            until = time.monotonic() + self._pause_s
            while self._deadline is None and (left := until - time.monotonic()) > 0:
                self.bell.wait(left)
            if self._deadline is not None:
                time.sleep(_BACK_OFF_S[0])
        elif self.stream == "data" or self._prune_to:
            self.bell.wait(self._host.commit_s)
        else:
            self.bell.wait(TIDY_S)

    def _open(self) -> None:
        self.busy_since = self._host.clock.monotonic_ns()
        host = self._host
        self._lock()
        opened, finding = recovery.open_store(
            self._path, self.stream, host.kek, host.gateway, host.clock,
            suspect=self._suspect, below=self._below or None, checked=self._checked,
        )  # fmt: skip
        if self._checked and not finding:
            opened.blocks, opened.records = self.blocks, self.records
        self._suspect, self._below, self._checked = "", 0, True
        self._store, self._quota = opened, quota.Quota(opened, host.clock, host.max_age_s)
        if finding:
            log.error("buffer=%s event=quarantine detail=%r", self.stream, finding.detail)
            host.fault(finding.fault, self.stream, finding.detail)
            self._planned, self._prune_to = None, 0
        if self._planned and self._planned[0] == opened.instance:
            opened.next_number, opened.next_first = self._planned[1:]
        opened.limit(host.limit_bytes())
        self._publish(opened)
        journal = opened.gaps()
        if journal:
            self._tell(journal)
        self.busy_since = None
        self.ready.set()

    def _lock(self) -> None:
        if self._lock_file >= 0:
            return
        files.make_folder(self._path.parent)
        path = files.lock(self._path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, f"{path}: another agent writes to this buffer; stop it") from error
        self._lock_file = descriptor

    def _turn(self) -> bool:
        """Whether there is more to do at once."""
        opened = self._store
        assert opened is not None
        if self._pause_s:  # what is delivered may make the room that was missing
            self._tidy(opened)
            while self._prune_to:
                self._write(opened, None)
        batch = self.pending.take()
        more = False
        if batch is not None or self._prune_to or self._told_gaps:
            more = self._write(opened, batch)
        if batch is None:
            self._host.report()  # tickets that carried nothing
        if self._tidy_wanted or time.monotonic() >= self._tidy_at:
            self._tidy(opened)
        return more

    def _write(self, opened: Store, batch: Batch | None) -> bool:
        assert self._quota is not None
        rows: list[tuple[Any, ...]] = []
        gaps: list[GapRow] = []
        number, first = opened.next_number, opened.next_first
        if batch is not None:
            if self._planned is None:
                self._planned = (opened.instance, number, first)
            rows, gaps, first = cut.blocks(opened, batch, self._packer, self._host.clock)
            number += len(rows)
        told = [(self._told_gaps[index],) for index in range(len(self._told_gaps))]
        started = time.perf_counter()
        self.busy_since = self._host.clock.monotonic_ns()
        opened.begin()
        if rows:
            opened.insert(rows)
        if gaps:
            gaps = opened.journal_gaps(gaps)
            opened.delete([], number, first)
        if told:
            opened.connection.executemany("DELETE FROM gaps WHERE id = ?", told)
        pruned = self._quota.prune(self._prune_to) if self._prune_to else None
        store.commit(opened.connection)
        self.busy_since = None
        self.commit_ms.append((time.perf_counter() - started) * 1e3)
        self.commits += 1
        opened.key_stored = opened.key_stored or bool(rows)
        opened.next_number, opened.next_first, self._planned = number, first, None
        opened.blocks += len(rows)
        opened.records += sum(row[7] for row in rows)
        self.sealed_bytes += sum(len(row[-1]) + _ROW_BYTES for row in rows)
        for _ in told:
            self._told_gaps.popleft()
        if pruned is not None:
            opened.blocks -= pruned.blocks
            opened.records -= pruned.records
            if not pruned.blocks:
                self._prune_to = 0
        self._log_pages += 4 + sum(len(row[-1]) // PAGE_BYTES + 2 for row in rows)  # pages of a commit, about
        self.blocks, self.records = opened.blocks, opened.records
        if batch is None:
            return False
        stored = [key for part in batch.parts for group in part.groups for key in group.gaps]
        self.pending.done()
        if self.oldest is None and rows:
            self.oldest = (rows[0][12], self._host.clock.boot(), rows[0][11])
        self._host.report()
        if stored:
            self._host.stored_gaps(stored)
        if gaps:
            self._tell(gaps)
        return batch.size >= self.pending.batch_bytes

    def _tidy(self, opened: Store) -> None:
        wanted = [self._tidy_wanted.popleft() for _ in range(len(self._tidy_wanted))]
        self.busy_since = self._host.clock.monotonic_ns()
        self._tidy_at = time.monotonic() + TIDY_S
        self._prune_to = max(self._prune_to, self._delivered(opened))
        while wanted and self._prune_to:  # somebody waits for it
            self._write(opened, None)
        if self.stream == "data":
            self._shed(opened)
        self._step_over(opened)
        opened.drop_drained_keys()
        waiting = bool(self.pending.inbox) and bool(self.pending.oldest())
        if self._log_pages >= (_CHECKPOINT_ANYWAY if waiting else _CHECKPOINT_PAGES):
            opened.checkpoint()
            self._log_pages = 0
        if opened.erase_due and not waiting and opened.erase():
            self._log_pages = 0
        self._give_back(opened, waiting)
        self._publish(opened)
        self.busy_since = None
        for event in wanted:
            event.set()

    def _step_over(self, opened: Store) -> None:
        """Begins a new instance where a mark has been found ahead of the file, as cloud-sync may learn from Kafka."""
        if self._planned:  # a commit of unknown outcome may be what the mark speaks of
            return
        finding = recovery.step_over(opened, self._host.gateway, self._host.clock)
        if finding:
            log.error("buffer=%s event=restored detail=%r", self.stream, finding.detail)
            self._host.fault(finding.fault, self.stream, finding.detail)
            self._prune_to = 0
            self._tell(opened.gaps()[-1:])

    def _delivered(self, opened: Store) -> int:
        """Number up to which blocks are delivered to every receiver, 0 when none that is still here."""
        return min((self._delivered_to(name, opened) for name in self._host.receivers[self.stream]), default=0)

    def _delivered_to(self, name: str, opened: Store) -> int:
        try:
            mark = marks.read_mark(marks.mark_path(self._host.data_dir, name))
        except marks.BadMark:  # cloud-sync, its writer, reports it and starts a new one
            return 0
        except OSError as error:  # without a mark nothing is pruned; that alone must not stop the writing
            self._host.fault("buffer disk", f"{name} mark", f"{error}; delivered blocks cannot be pruned")
            return 0
        self._host.fault("buffer disk", f"{name} mark", "")
        if mark is None:
            return 0
        last = opened.last_number_of(mark.instance_bytes())
        return 0 if last is None else min(mark.block, last)

    def _shed(self, opened: Store) -> None:
        """Lets undelivered blocks go that are too old, or too much for the quota."""
        assert self._quota is not None
        limit = self._host.limit_bytes()
        opened.limit(limit)
        while self._shed_step(opened, self._quota.shed_age):
            pass
        full = opened.used_bytes() > limit * quota.HIGH_WATER
        if full and not self._prune_to:  # what is delivered goes first
            while self._shed_step(opened, lambda: self._space(limit)):
                pass
        if not full and opened.used_bytes() < limit * quota.CALM_WATER:
            self._host.fault("buffer shed", self.stream, "")

    def _space(self, limit: int) -> quota.Shed:
        assert self._quota is not None
        return self._quota.shed_space(limit)

    def _shed_step(self, opened: Store, choose: Callable[[], quota.Shed]) -> bool:
        opened.begin()
        shed = choose()
        if not shed.blocks:
            opened.connection.execute("ROLLBACK")
            return False
        store.commit(opened.connection)
        opened.blocks -= shed.blocks
        opened.records -= shed.records
        self.shed_records += shed.records
        self._log_pages += 2 * shed.blocks
        self._host.fault(
            "buffer shed",
            self.stream,
            f"{self._path.name}: the oldest undelivered {'records' if shed.gaps[0].priority < 2 else 'waveforms'} are"
            f" being shed ({shed.gaps[0].reason}); see why cloud-sync does not deliver, or raise buffer.quota_mb or"
            " buffer.max_age_h",
        )
        self._tell(shed.gaps)
        return True

    def _give_back(self, opened: Store, waiting: bool) -> None:
        """Returns free pages to the file system: at once those beyond the limit, at leisure more than a reserve."""
        (free,) = opened.connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = opened.connection.execute("PRAGMA page_count").fetchone()
        give = max(pages - self._host.limit_bytes() // PAGE_BYTES, 0)  # the alerts have grown into this file's share
        if free > _SPARE_PAGES and not waiting:
            give = max(give, _VACUUM_PAGES)
        give = min(give, free)
        if give:
            opened.connection.executescript(f"PRAGMA incremental_vacuum({give})")  # `execute` would free one page
            self._log_pages += give

    def _publish(self, opened: Store) -> None:
        self.used_bytes, self.file_bytes = opened.used_bytes(), opened.file_bytes()
        self.blocks, self.records = opened.blocks, opened.records
        self.oldest = opened.oldest()

    def _tell(self, gaps: list[GapRow]) -> None:
        self.gap_count += len(gaps)
        self._host.gaps(self.stream, gaps)

    # When it does not work

    def _failed(self, error: Exception) -> None:
        self.busy_since = None
        opened = self._store
        kept = False
        if opened is not None:
            try:
                if opened.connection.in_transaction:
                    opened.connection.execute("ROLLBACK")
                kept = _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)
                if kept:
                    self._publish(opened)
            except sqlite3.Error:
                kept = False
        if self._quota is not None:
            self._quota.rewind()
        if kept and self._make_room(error):
            self._pause_s = 0.0
            return
        damage = isinstance(error, sqlite3.Error) and store.is_damage(error)
        if opened is not None and not kept:
            if damage:
                self._suspect, self._below = str(error), opened.next_number
            opened.abandon()
            self._store = None
        first, longest = _BACK_OFF_S
        self._pause_s = first if damage else min(max(self._pause_s * 2, first), longest)
        if not isinstance(error, (sqlite3.Error, OSError)):
            log.error("buffer=%s event=defect", self.stream, exc_info=error)
        self._host.fault("buffer disk", self.stream, self._explain(error))

    def _make_room(self, error: Exception) -> bool:
        """Whether a full quota, not a full disk, was the reason and blocks were shed."""
        opened = self._store
        if _code(error) != sqlite3.SQLITE_FULL or opened is None or self.stream != "data" or self._quota is None:
            return False
        limit = self._host.limit_bytes()
        try:
            if opened.used_bytes() < limit * quota.LOW_WATER:
                return False
            opened.limit(limit + _SHED_ROOM_BYTES)
            self._prune_to = max(self._prune_to, self._delivered(opened))
            before = opened.blocks
            while self._prune_to:  # what is delivered goes before anything that is not
                self._write(opened, None)
            made = opened.blocks < before or self._shed_step(opened, lambda: self._space(limit))
            opened.limit(limit)
            return made
        except sqlite3.Error:
            return False

    def _explain(self, error: Exception) -> str:
        name = self._path.name
        code = _code(error)
        kept = "records are kept in memory until it works again and nothing is acknowledged meanwhile"
        if code == sqlite3.SQLITE_FULL:
            if self.stream == "alerts" and self.used_bytes > self._host.limit_bytes() * quota.LOW_WATER:
                return f"{name}: the quota is full of undelivered alerts; see why cloud-sync does not deliver; {kept}"
            return f"{name}: the disk under {self._path.parent} is full; make room; {kept}"
        if code == sqlite3.SQLITE_READONLY or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES):
            return f"{name}: {self._path.parent} cannot be written to; check mount, owner and rights; {kept}"
        return f"{name}: {error}; check the disk under {self._path.parent}; {kept}"

    def _recovered(self) -> None:
        if self._pause_s:
            self._pause_s = 0.0
        self._host.fault("buffer disk", self.stream, "")

    def _finish(self) -> None:
        opened = self._store
        if opened is not None:
            try:
                opened.begin()
                opened.mark_open(False)
                store.commit(opened.connection)
                opened.checkpoint()
            except sqlite3.Error as error:  # the next start then checks the whole file
                log.warning("buffer=%s event=close error=%r", self.stream, str(error))
            opened.abandon()
            self._store = None
        if self._lock_file >= 0:
            os.close(self._lock_file)


def _code(error: Exception) -> int:
    """SQLite's primary result code of an error; -1 for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF
