"""The agent's side of the alarm log: events go in without a wait, a thread of its own seals and stores them.

    alarm loop ──append──▶ a deque (no lock, no encoding) ──▶ writer thread ──▶ one transaction every 50 ms

The writer stamps UTC from the clock's present offset, numbers, chains, seals and commits. It looks at the two clocks
with every batch and once a second, and marks a step of the wall clock before whatever it writes next. A disk that is
full, stalled or gone leaves entries waiting in memory. A file that cannot be used is put aside as it is, and a new one
begins, whose boot mark says so. Nothing here ever stops an alarm.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from edge_agent.alarm_log import chain
from edge_agent.alarm_log.store import Active, BadLog, Batch, Store, WrongKey, create
from edge_agent.buffer import files
from edge_agent.buffer.clock import Clock
from edge_agent.buffer.pending import Bell
from edge_agent.buffer.store import is_damage
from edge_agent.records import AlarmEvent

log = logging.getLogger(__name__)

FILE = "alarm-log.sqlite"  # in the gateway's data_dir
FAULTS = ("log disk", "log corrupt", "log key", "log lost")  # kinds that `on_fault` is called with

NS = 1_000_000_000
WAITING_LIMIT = 100_000  # entries, about 40 MB; beyond it only HIGH and operators' acts are taken, to twice as many
_COMMIT_S = 0.05  # what comes within it shares one sync
_BATCH = 5_000  # entries in a transaction
_LOOK_S = 1.0  # at the clocks while nothing comes
_ALIVE_S = 10.0  # how often the lock file's time says that the agent lives
_RETRY_S = 1.0
_STALL_S = 2.0  # a commit takes milliseconds; a disk that is asked for longer deserves a word
_STEP_NS = NS // 2  # NTP slews 0.5 ms in a second; half a second is a step
_CLOSE_S = 5.0


class Previous(NamedTuple):
    """How the run before this one ended."""

    ended: str  # power_down, interrupted, none (a new log) or put_aside (the log could not be used)
    last_entry_s: float | None  # how long ago its last entry was written; None when that cannot be known
    outage_s: float | None  # how long ago it was last known to live, to about ten seconds


class AlarmLog:
    """The log of one gateway; `append`, `mark` and `put` belong to one thread, the rest to any."""

    def __init__(
        self,
        path: Path,
        kek: bytes | None,
        *,
        run_id: str,
        on_fault: Callable[[str, str], None],
        log_mb: int,
        beds: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        """Starts the writer, which opens or replaces the file; entries are taken at once, whatever the disk does.

        Without a key (`kek` None) nothing is written, and `on_fault` says so. `beds` are those that this run watches.
        `on_fault(kind, detail)` is called from other threads; an empty detail ends the fault.
        """
        self.path = path
        self.previous = Previous("none", None, None)
        self._kek, self._run, self._on_fault, self._beds = kek, run_id, on_fault, list(beds)
        self._limit_bytes, self._clock = log_mb << 20, clock or Clock()
        self._boot = self._clock.boot().hex()
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._last_words: dict[tuple[str, str], tuple[int, tuple[Any, ...]]] = {}
        self._ticket = self._taken = self._durable = self._refused = self._lost_told = 0
        self._changed = threading.Condition()
        self._bell, self._closing, self._ready = Bell(), threading.Event(), threading.Event()
        self._told: dict[str, str] = dict.fromkeys(FAULTS, "")
        self._fault_lock = threading.Lock()
        self._restored: list[Active] = []
        self._found: dict[str, bytes] = {}  # settings of the file
        self._put: dict[str, bytes] = {}  # and those of this run
        self._carried: dict[str, Active | None] = {}  # alarms at the moment when a running log had to be replaced
        self._opened = False
        self._store: Store | None = None
        self._batch: Batch | None = None
        self._items: list[tuple[Any, ...]] = []  # of the batch, as long as it is not durable
        self._lock_file = -1
        self._lived: float | None = None
        self._aside = ""
        self._kept: Path | None = None  # where the file lies that has no successor yet
        self._quality: chain.Quality = "unknown"
        self._offset_ns = 0
        self._steps()
        self._alive_due = 0.0
        self._busy_since: float | None = None
        self._threads: list[threading.Thread] = []
        if kek is None:
            self._fault("log key", "there is no key: nothing is written to the alarm log; provide buffer.key")
            self._ready.set()
            return
        for name, run in (("alarm-log", self._run_writer), ("alarm-log-keeper", self._keep)):
            self._threads.append(threading.Thread(target=run, name=name, daemon=True))
            self._threads[-1].start()

    # -- the alarm loop's side ------------------------------------------------------------------------------------

    def append(self, bed: str, patient: str, record: AlarmEvent) -> int:
        """The ticket of an alarm event; `patient` is stored only as a pseudonym."""
        if len(self._waiting) >= WAITING_LIMIT and self._refuse(bed, patient, record):
            return self._ticket
        self._waiting.append((bed, patient, record))
        self._ticket += 1
        self._bell.ring()
        return self._ticket

    def mark(self, kind: str, detail: Mapping[str, Any] | str, at_ns: int) -> int:
        """The ticket of a mark; boot, power_down, clock_step, truncated and lost are made by the log itself."""
        self._waiting.append((kind, {"text": detail} if isinstance(detail, str) else dict(detail), at_ns, None))
        self._ticket += 1
        self._bell.ring()
        return self._ticket

    def put(self, key: str, value: bytes) -> int:
        """The ticket of a setting that a restart finds again; an empty value removes it."""
        self._waiting.append((key, value))
        self._put[key] = value
        self._ticket += 1
        self._bell.ring()
        return self._ticket

    def _refuse(self, bed: str, patient: str, record: AlarmEvent) -> bool:
        """With memory full: keep the newest word of each alarm, so that a restart is not told of alarms long over."""
        if (record.priority == "high" or not record.alert_id) and len(self._waiting) < 2 * WAITING_LIMIT:
            return False
        self._refused += 1
        key = (bed, record.alert_id or record.event)
        if key in self._last_words or len(self._last_words) < WAITING_LIMIT:
            self._last_words[key] = (self._refused, (bed, patient, record))
        return True

    # -- what a restart wants to know -----------------------------------------------------------------------------

    def wait_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the file is open, so that `active`, `inactivations`, `settings` and `previous` speak of it.

        Once it is False, alarms of an older run are not given any more: a restart has gone on without them.
        """
        if not self._ready.wait(timeout_s):
            self._ready.set()
        return self._opened

    def active(self, timeout_s: float = 2.0) -> list[Active]:
        """The last event of each alarm that was not Off when the file was opened, in order of these events."""
        self.wait_ready(timeout_s)
        return [item for item in self._restored if item.event.alert_id]

    def inactivations(self, timeout_s: float = 2.0) -> list[Active]:
        """The last pause or off of sound and of alarms per bed that had not ended when the file was opened."""
        self.wait_ready(timeout_s)
        return [item for item in self._restored if not item.event.alert_id]

    def settings(self, timeout_s: float = 2.0) -> dict[str, bytes]:
        """What was put, in this run or an earlier one."""
        self.wait_ready(timeout_s)
        return {key: value for key, value in {**self._found, **self._put}.items() if value}

    # -- durability -----------------------------------------------------------------------------------------------

    @property
    def durable(self) -> int:
        """The newest ticket that is on the disk together with all before it."""
        return self._durable

    def wait_durable(self, ticket: int, timeout_s: float) -> bool:
        """Whether everything up to the ticket is on the disk within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._durable >= ticket, timeout_s if self._threads else 0.0)

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Whether everything so far is on the disk within the time."""
        return self.wait_durable(self._ticket, timeout_s)

    def waiting(self) -> int:
        """How many entries are not on the disk yet."""
        return self._ticket - self._durable

    def close(self, timeout_s: float = _CLOSE_S) -> bool:
        """Writes what waits and the power-down mark; whether all of it is on the disk."""
        self._closing.set()
        self._bell.ring()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        ended = bool(self._threads) and not any(thread.is_alive() for thread in self._threads)
        return ended and not self.waiting()

    # -- the writer's side ----------------------------------------------------------------------------------------

    def _run_writer(self) -> None:
        give_up: float | None = None
        try:
            while True:
                try:
                    self._busy_since = time.monotonic()
                    if self._turn():
                        return
                except Exception as error:  # whatever it is, the log tells it and tries again
                    self._failed(error)
                    self._ready.set()  # a restart does not wait for a disk that has said no
                    if self._closing.is_set():
                        give_up = give_up or time.monotonic() + _CLOSE_S
                        if time.monotonic() > give_up:
                            return
                    self._closing.wait(_RETRY_S)
                    if self._closing.is_set():
                        time.sleep(_COMMIT_S)
        finally:
            self._busy_since = None
            if self._store is not None:
                self._store.close()
            if self._lock_file >= 0:
                os.close(self._lock_file)

    def _turn(self) -> bool:
        """One round of the writer; whether it has closed the log."""
        if self._store is None:
            self._open()
        store = self._store
        assert store is not None
        if self._batch is None:
            self._collect(store)
        if self._batch is not None:
            store.commit(self._batch)
            self._done()
        self._fault("log disk", "")
        self._live(store)
        if self._store is None:
            return False
        if self._closing.is_set():
            if not self._waiting and not self._last_words:
                self._power_down(store)
                return True
        elif len(self._waiting) < _BATCH:
            self._busy_since = None
            if self._bell.wait(_LOOK_S):
                self._closing.wait(_COMMIT_S)
        return False

    def _collect(self, store: Store) -> None:
        """Makes a batch of what waits."""
        waiting, items = self._waiting, self._items
        items += self._steps()
        while waiting and len(items) < _BATCH:
            items.append(waiting.popleft())
            self._taken += 1
        if not waiting:
            items += self._losses()
        if items:
            self._batch = self._make(store, store.begin())

    def _make(self, store: Store, batch: Batch) -> Batch:
        dropped = store.drop_oldest(batch)
        if dropped is not None:
            self._add_mark(store, batch, "truncated", dict(dropped), self._clock.monotonic_ns())
        for item in self._items:
            self._add(store, batch, item)
        return batch

    def _add(self, store: Store, batch: Batch, item: tuple[Any, ...]) -> None:
        if len(item) == 2:
            batch.settings[item[0]] = item[1]
        elif len(item) == 4:
            self._add_mark(store, batch, item[0], item[1], item[2])
        else:
            bed, patient, record = item
            blank = self._blank(record.at_ns)
            entry = structs.replace(blank, bed=bed, patient=store.pseudonym(patient), alarm=record)
            try:
                store.add(batch, entry)
            except (ValueError, TypeError) as error:  # a text that is no text must not hold up the log
                log.warning("alarm log entry mended condition=%s reason=%s", record.condition, type(error).__name__)
                store.add(batch, structs.replace(entry, bed=_plain(bed), alarm=_mended(record)))

    def _add_mark(self, store: Store, batch: Batch, kind: str, detail: dict[str, Any], at_ns: int) -> None:
        blank = self._blank(at_ns)
        try:
            store.add(batch, structs.replace(blank, mark=chain.Mark(kind, detail)))
        except (ValueError, TypeError):
            text = _plain(repr(detail))
            store.add(batch, structs.replace(blank, mark=chain.Mark(_plain(kind), {"text": text})))

    def _blank(self, at_ns: int) -> chain.Entry:
        return chain.Entry(0, at_ns + self._offset_ns, self._quality, at_ns, self._boot, self._run)

    def _steps(self) -> list[tuple[Any, ...]]:
        """A mark when the wall clock has left the monotonic one since the last look; a suspension looks the same."""
        now = self._clock.monotonic_ns()
        offset = self._clock.utc_ns() - now
        moved, self._offset_ns = offset - self._offset_ns, offset
        self._quality = chain.quality_name(self._clock.quality())
        if abs(moved) < _STEP_NS:
            return []
        return [("clock_step", {"by_s": round(moved / NS, 3)}, now, None)]

    def _losses(self) -> list[tuple[Any, ...]]:
        """A mark when memory was full, and of the refused events the last word of each alarm."""
        if self._refused == self._lost_told:
            self._fault("log lost", "")
            return []
        refused, words = self._refused, []
        while self._last_words:
            words.append(self._last_words.popitem()[1])
        lost, self._lost_told = max(0, refused - self._lost_told - len(words)), refused
        mark = ("lost", {"entries": lost}, self._clock.monotonic_ns(), None)
        return [mark, *(item for _, item in sorted(words, key=lambda word: word[0]))]

    def _done(self) -> None:
        self._batch = None
        self._items.clear()
        with self._changed:
            self._durable = self._taken
            self._changed.notify_all()

    def _power_down(self, store: Store) -> None:
        batch = store.begin()
        self._add_mark(store, batch, "power_down", {}, self._clock.monotonic_ns())
        store.commit(batch)

    # -- opening --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        assert self._kek is not None
        if self._lock_file < 0:
            self._lock()
        files.adopt(self.path)
        try:
            if not self.path.exists():
                create(self.path, self._kek)
            store = Store(self.path, self._kek, self._limit_bytes)
        except BadLog as error:
            self._put_aside("log key" if isinstance(error, WrongKey) else "log corrupt", str(error))
            store = Store(self.path, self._kek, self._limit_bytes)
        batch = store.begin()
        if not self._opened:
            self._found = store.settings
            self.previous = self._judge(store)
            if self._ready.is_set():  # a restart has gone on without them: nobody would ever end them
                batch.active.update(dict.fromkeys(store.active))
            else:
                self._restored = sorted(store.active.values(), key=lambda item: item.number)
        if store.head.number == 0:
            batch.active.update(self._carried)
            batch.settings.update({**self._found, **self._put})
        self._add_mark(store, batch, "boot", self._boot_detail(), self._clock.monotonic_ns())
        self._opened = True
        self._store, self._batch = store, self._make(store, batch)  # with items that an older file could not keep
        self._ready.set()

    def _lock(self) -> None:
        files.make_folder(self.path.parent)
        path = files.lock(self.path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, f"{path}: another agent writes to this alarm log; stop it") from error
        found = os.fstat(descriptor)
        self._lived = found.st_mtime if found.st_size else None
        if not found.st_size:
            os.write(descriptor, b"\n")  # from now on the file's time means something
        self._lock_file = descriptor

    def _judge(self, store: Store) -> Previous:
        """How the run before ended; times are monotonic within a boot, else the wall clock's."""
        if self._aside:
            return Previous("put_aside", None, None)
        last = store.last
        if last is None:
            return Previous("none", None, None)
        utc_ns, now_ns = self._clock.utc_ns(), self._clock.monotonic_ns()
        ago_ns = now_ns - last.at_ns if last.boot == self._boot else utc_ns - last.utc_ns
        last_s = None if ago_ns < 0 else round(ago_ns / NS, 3)
        outage_s = last_s
        alive_s = -1.0 if self._lived is None else round(utc_ns / NS - self._lived, 3)
        if alive_s >= 0:
            outage_s = alive_s if last_s is None else min(alive_s, last_s)
        return Previous("power_down" if store.head.clean else "interrupted", last_s, outage_s)

    def _boot_detail(self) -> dict[str, Any]:
        previous = self.previous
        detail: dict[str, Any] = {"previous": "put_aside" if self._aside else previous.ended}
        if self._aside:
            detail["aside"] = self._aside
        else:
            detail |= {"last_entry_s": previous.last_entry_s, "outage_s": previous.outage_s}
        return {**{key: value for key, value in detail.items() if value is not None}, "beds": self._beds}

    def _put_aside(self, kind: str, reason: str) -> None:
        assert self._kek is not None
        if self._kept is None:  # once, however often the new file then cannot be made
            self._kept = files.put_aside(self.path, self._clock.utc_ns())
        folder = self._kept
        create(self.path, self._kek)
        self._kept = None
        self._aside = f"{folder.parent.name}/{folder.name}: {reason}"
        self._fault(kind, f"{self.path}: {reason}; it was put aside in {folder}, a new log has begun")

    # -- faults and signs of life ---------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        store = self._store
        if store is not None and isinstance(error, sqlite3.Error) and is_damage(error):
            self._let_go(store)
            with suppress(OSError, sqlite3.Error):  # what fails here is the disk, which the next round will tell
                self._put_aside("log corrupt", str(error))
            return
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if not isinstance(error, (OSError, sqlite3.Error)):
            log.error("alarm log writer failed", exc_info=error)
        self._fault("log disk", f"{self.path}: {text}; entries wait in memory: make room or replace the disk")

    def _let_go(self, store: Store) -> None:
        self._carried = dict(store.active)
        store.abandon()
        self._store = self._batch = None

    def _live(self, store: Store) -> None:
        """Every ten seconds: says through the lock file's time that the agent lives, and sees that the log is there."""
        now = time.monotonic()
        if now < self._alive_due:
            return
        self._alive_due = now + _ALIVE_S
        utc_ns = self._clock.utc_ns()
        with suppress(OSError):
            os.utime(self._lock_file, ns=(utc_ns, utc_ns))
        if not store.in_place():  # SQLite would write on into a file that has no name
            self._let_go(store)
            self._aside = "the file was removed or replaced while the agent ran"
            self._fault("log corrupt", f"{self.path}: {self._aside}; a new log begins")

    def _keep(self) -> None:
        """Notices a disk that does not answer, and entries that were refused."""
        while not self._closing.wait(_STALL_S / 4):
            since = self._busy_since
            if since is not None and time.monotonic() - since > _STALL_S:
                waits = f"{self.path}: the disk has not answered for {_STALL_S:.0f} s; entries wait in memory"
                if not self._told["log disk"]:
                    self._fault("log disk", waits)
            if self._refused != self._lost_told:
                self._fault("log lost", f"more than {WAITING_LIMIT} entries wait: further ones are lost")

    def _fault(self, kind: str, detail: str) -> None:
        with self._fault_lock:
            if self._told[kind] == detail:
                return
            self._told[kind] = detail
        self._on_fault(kind, detail)


def _plain(text: str) -> str:
    return str(text).encode("utf-8", "replace").decode()


def _mended(record: AlarmEvent) -> AlarmEvent:
    texts = {
        name: _plain(value) for name in record.__struct_fields__ if isinstance(value := getattr(record, name), str)
    }
    return structs.replace(record, **texts)
