"""One way to keep records durably, measured in a process of its own: `python -m bench.stores CASE FOLDER`.

Each way gets the same numerics and waveforms of ten beds, a commit at a time; all use WAL with synchronous=FULL. What
is printed, as JSON: records, seconds, processor seconds of the whole process, commits, syncs and bytes that the process
had written, from the first commit to the last. Opening, checkpoint and closing at the end are outside of these, and
inside what the parent reads from the disk. Rows hold msgpack of the record, as a block
does; persist-queue gets the same bytes and pickles them, as it always does.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import queue
import random
import sqlite3
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_agent import buffer, config
from edge_agent.records import Entry, Observation, Waveform

TERMS = (
    "heart_rate", "spo2", "pulse_rate", "resp_rate", "nibp_sys", "nibp_dia", "nibp_mean", "temp", "etco2",
    "perfusion_index", "pvc_rate",
)  # fmt: skip
BEDS = 10
NUMERICS, WAVES = 5, 6  # of a bed in a commit
GROUP = BEDS * (NUMERICS + WAVES)  # records a commit: 440 a second, every 250 ms
WAVE_TERMS = ("ecg_ii", "pleth")
_SAMPLES = 62  # 250 a second, for 250 ms
_CHUNK = GROUP * 100  # records made before the clock runs, and used again
_SOURCE = "hl7@mllp-listen://0.0.0.0:2575"
_TIME = "2025-01-01T12:00:00+01:00"


def entries(count: int, begin_ns: int = 10**14) -> list[Entry]:
    """Numerics alone, as a ward of ten beds sends them."""
    chance = random.Random(5)
    return [_numeric(chance, index // len(TERMS) % BEDS, index, begin_ns) for index in range(count)]


def mixed(count: int, begin_ns: int = 10**14) -> list[Entry]:
    """Numerics and waveforms of ten beds, about 200 bytes a record, which do not compress better than noisy ones do."""
    chance = random.Random(6)
    out: list[Entry] = []
    while len(out) < count:
        for bed in range(BEDS):
            out += [_numeric(chance, bed, len(out) + number, begin_ns) for number in range(NUMERICS)]
            out += [_wave(chance, bed, len(out), number, begin_ns) for number in range(WAVES)]
    return out[:count]


def _numeric(chance: random.Random, bed: int, index: int, begin_ns: int) -> Entry:
    at_ns = begin_ns + index // len(TERMS) * 25_000_000 + chance.randrange(10**6)
    record = Observation(
        TERMS[index % len(TERMS)], float(chance.randint(40, 180)), "valid", at_ns, _TIME, f"ICU^^{bed}", f"MRN{bed:06}"
    )
    return Entry(f"ICU-{bed}", _SOURCE, f"MRN{bed:06}", record)


def _wave(chance: random.Random, bed: int, index: int, number: int, begin_ns: int) -> Entry:
    """A pulse of 200 raw units with noise of a few, which is what converters deliver."""
    phase = chance.random() * 6.28
    samples = [round(200 * math.sin(phase + at / 10) + chance.gauss(0, 3)) for at in range(_SAMPLES)]
    at_ns = begin_ns + index * 2_500_000 + chance.randrange(10**6)
    record = Waveform(
        WAVE_TERMS[number % 2], 250.0, struct.pack(f"<{_SAMPLES}h", *samples), 0.005, 0.0, at_ns, _TIME, f"ICU^^{bed}",
        f"MRN{bed:06}", f"{number}",
    )  # fmt: skip
    return Entry(f"ICU-{bed}", _SOURCE, f"MRN{bed:06}", record)


class Store(Protocol):
    """Where records go."""

    def commit(self, part: list[Entry]) -> None:
        """Takes these; they are durable when it returns, or at the latest after `settle`."""

    def settle(self) -> None:
        """Returns when everything is durable."""

    def commits(self) -> int:
        """How many there have been."""

    def close(self) -> None:
        """Ends."""


class Rows:
    """A row for each record: SQLite or SQLCipher, plain or each row encrypted by itself."""

    def __init__(self, folder: Path, encrypt: bool = False, dialect: Any = sqlite3, key: str = "") -> None:
        encode = msgspec.msgpack.Encoder().encode
        if encrypt:
            cipher = AESGCM(os.urandom(32))

            def sealed(entry: Entry) -> bytes:
                nonce = os.urandom(12)
                return nonce + cipher.encrypt(nonce, encode(entry), None)

            self._encoded: Callable[[Entry], bytes] = sealed
        else:
            self._encoded = encode
        self._connection = dialect.connect(str(folder / "rows.db"), isolation_level=None)
        execute = self._connection.execute
        if key:
            execute(f"PRAGMA key = \"x'{key}'\"")
            if execute("PRAGMA cipher_version").fetchone() is None:
                raise RuntimeError("this is not SQLCipher")
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise RuntimeError("WAL is refused")
        execute("PRAGMA synchronous = FULL")
        execute("CREATE TABLE records (number INTEGER PRIMARY KEY, record BLOB)")
        self._count = 0

    def commit(self, part: list[Entry]) -> None:
        """One transaction."""
        encoded = self._encoded
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO records (record) VALUES (?)", [(encoded(entry),) for entry in part])
        self._connection.execute("COMMIT")
        self._count += 1

    def settle(self) -> None:
        """It is."""

    def commits(self) -> int:
        """Transactions."""
        return self._count

    def close(self) -> None:
        """SQLite's own last checkpoint."""
        self._connection.close()


class PersistQueue:
    """persist-queue over SQLite; each put is a transaction of its own, its only way to be durable when put returns."""

    def __init__(self, folder: Path) -> None:
        import persistqueue  # type: ignore[import-not-found]

        self._queue = persistqueue.SQLiteQueue(str(folder), auto_commit=True)
        self._encode = msgspec.msgpack.Encoder().encode
        self._count = 0

    def commit(self, part: list[Entry]) -> None:
        """One put for each."""
        for entry in part:
            self._queue.put(self._encode(entry))
        self._count += len(part)

    def settle(self) -> None:
        """It is."""

    def commits(self) -> int:
        """Puts."""
        return self._count

    def close(self) -> None:
        """Closes its connections."""
        self._queue.close()


class Sealed:
    """The production buffer, all of it, its writer in a thread of its own.

    With `under_way` 1 each hand-over waits for its ticket, like one sender that waits for each acknowledgement. With
    more, as from several senders, the writer joins what waits into one commit. `tidy` asks it after so many commits for
    what it does by itself every 2 s, checkpoints included: 8 is its rhythm at the bedside, without the waiting.
    """

    def __init__(self, folder: Path, kek: bytes = b"", under_way: int = 1, tidy: int = 0) -> None:
        self._told: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._buffer = open_buffer(folder, kek or os.urandom(32), self._told.put)
        if not self._buffer.wait_ready(30):
            raise RuntimeError("the buffer did not open")
        self._before = self._buffer.stats()["commits"]
        self._last = self._durable = 0
        self._more, self._tidy = under_way - 1, tidy

    def commit(self, part: list[Entry]) -> None:
        """Handed over, and durable but for what may be under way."""
        self._last = self._buffer.append(part, wanted_soon=True)
        self._wait(self._last - self._more)
        if self._tidy and self._last % self._tidy == 0:
            self._buffer.prune()

    def settle(self) -> None:
        """Everything is durable."""
        self._wait(self._last)

    def _wait(self, ticket: int) -> None:
        while self._durable < ticket:
            self._durable = self._told.get(timeout=30)

    def commits(self) -> int:
        """Transactions of both files."""
        return int(self._buffer.stats()["commits"]) - int(self._before)

    def blocks(self) -> int:
        """In the file of the data."""
        return int(self._buffer.stats()["streams"]["data"]["blocks"])

    def close(self) -> None:
        """The buffer's own last checkpoint."""
        self._buffer.close(30)


def open_buffer(folder: Path, kek: bytes, on_committed: Callable[[int], None]) -> buffer.Buffer:
    """The production buffer with its defaults; faults are printed."""
    return buffer.Buffer(
        folder, kek, "bench", config.Buffer(), on_committed=on_committed,
        on_fault=lambda *fault: print(*fault, file=sys.stderr),
    )  # fmt: skip


def _sqlcipher(folder: Path) -> Store:
    from sqlcipher3 import dbapi2  # type: ignore[import-not-found]

    return Rows(folder, dialect=dbapi2, key=os.urandom(32).hex())


class Case(NamedTuple):
    """A way, and how many records a commit holds."""

    what: str
    make: Callable[[Path], Store]
    group: int
    records: int
    peer: bool = False  # needs bench/peers.lock


SINGLE = 3000  # records where each is a commit of its own: enough for several checkpoints
MANY = GROUP * 600
CASES = {
    "plain_single": Case("plain rows, 1 a commit", Rows, 1, SINGLE),
    "encrypted_single": Case("encrypted rows (AES-256-GCM), 1 a commit", lambda path: Rows(path, True), 1, SINGLE),
    "persist_queue": Case("persist-queue, plain, 1 a commit", PersistQueue, 1, SINGLE, True),
    "plain": Case(f"plain rows, {GROUP} a commit", Rows, GROUP, MANY),
    "encrypted": Case(f"encrypted rows (AES-256-GCM), {GROUP} a commit", lambda path: Rows(path, True), GROUP, MANY),
    "sqlcipher": Case(f"SQLCipher pages, {GROUP} a commit", _sqlcipher, GROUP, MANY, True),
    "sealed": Case(f"sealed, {GROUP} a commit", Sealed, GROUP, MANY),
    "sealed_bedside": Case(
        f"sealed, {GROUP} a commit, tidied as at 4 commits a second", lambda path: Sealed(path, tidy=8), GROUP, MANY
    ),
    "plain_double": Case(f"plain rows, {2 * GROUP} a commit", Rows, 2 * GROUP, MANY),
    "sealed_double": Case(
        f"sealed, two hand-overs of {GROUP} under way", lambda path: Sealed(path, under_way=2), GROUP, MANY
    ),
    "plain_fourfold": Case(f"plain rows, {4 * GROUP} a commit", Rows, 4 * GROUP, MANY),
    "sealed_fourfold": Case(
        f"sealed, four hand-overs of {GROUP} under way", lambda path: Sealed(path, under_way=4), GROUP, MANY
    ),
}


def _syncs() -> int:
    counter: Any = getattr(ctypes.CDLL(None), "bench_syncs", None)
    if counter is None:
        return 0
    counter.restype = ctypes.c_long
    return int(counter())


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1])
    return 0


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Counts from the first commit to the last; the store is closed afterwards."""
    made = mixed(min(case.records, _CHUNK))
    parts = [made[start : start + case.group] for start in range(0, len(made), case.group)]
    store = case.make(folder)
    commit, turns = store.commit, case.records // case.group
    syncs, written, processor, started = _syncs(), _written(), time.process_time(), time.perf_counter()
    for turn in range(turns):
        commit(parts[turn % len(parts)])
    store.settle()
    seconds = time.perf_counter() - started
    out = {
        "records": turns * case.group,
        "seconds": seconds,
        "processor_s": time.process_time() - processor,
        "commits": store.commits(),
        "syncs": _syncs() - syncs,
        "written": _written() - written,
    }
    store.close()
    return out


if __name__ == "__main__":
    print(json.dumps(measure(CASES[sys.argv[1]], Path(sys.argv[2]))))
