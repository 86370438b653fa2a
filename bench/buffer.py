"""The sealed buffer against plain SQLite rows: throughput, processor time, bytes written, and what a hand-over costs.

Ten beds' numerics, 11 terms each, in WAL mode with synchronous=FULL. `cpu_us_record` is processor time of the whole
process, `written_record` what the kernel counts as written to storage (without the file system's own journal),
`file_record` the size of the file. `x` compares with plain rows, 110 a commit. The hand-over is what the alarm loop
pays for 13 records, in microseconds; `sealing` is encoding, compressing and encrypting alone.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import buffer, config
from edge_agent.buffer.seal import Cipher, Head, Packer
from edge_agent.records import Entry, Observation

TERMS = (
    "heart_rate", "spo2", "pulse_rate", "resp_rate", "nibp_sys", "nibp_dia", "nibp_mean", "temp", "etco2",
    "perfusion_index", "pvc_rate",
)  # fmt: skip
GROUP = 110  # records a commit: ten beds, 440 a second, every 250 ms
RECORDS = 110 * 600
SINGLE_COMMITS = 1500
HAND_OVER = 13


def entries(count: int) -> list[Entry]:
    """Numerics as a ward sends them."""
    chance = random.Random(5)
    out = []
    for index in range(count):
        bed = index // len(TERMS) % 10
        at_ns = 10**14 + index // len(TERMS) * 25_000_000 + chance.randrange(10**6)
        record = Observation(
            TERMS[index % len(TERMS)], float(chance.randint(40, 180)), "valid", at_ns, "2025-01-01T12:00:00+01:00",
            f"ICU^^{bed}", f"MRN{bed:06}",
        )  # fmt: skip
        out.append(Entry(f"ICU-{bed}", "hl7@mllp-listen://0.0.0.0:2575", f"MRN{bed:06}", record))
    return out


def run() -> list[dict[str, object]]:
    """Rows of the table."""
    records = entries(RECORDS)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        plain = _measure(Path(folder) / "rows.db", records, lambda path: _rows(path, records, GROUP))
        rows = [
            {"case": f"plain rows, {GROUP} a commit", **plain, "x": 1.0},
            _against(plain, "plain rows, 1 a commit", Path(folder) / "single.db", records[:SINGLE_COMMITS], 1),
        ]
        sealed = _measure(
            Path(folder) / "sealed" / "buffer" / "data.db", records, lambda _: _sealed(Path(folder) / "sealed", records)
        )
        rows.append({"case": f"sealed blocks of {GROUP}", **sealed, "x": _ratio(plain, sealed)})
        rows += [_sealing(records[:GROUP]), _hand_over(Path(folder) / "caller", records)]
    return rows


def _against(plain: dict[str, Any], case: str, path: Path, records: list[Entry], group: int) -> dict[str, object]:
    found = _measure(path, records, lambda place: _rows(place, records, group))
    return {"case": case, **found, "x": _ratio(plain, found)}


def _ratio(plain: dict[str, Any], found: dict[str, Any]) -> float:
    return round(found["records_s"] / plain["records_s"], 2)


def _written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1])
    return 0


def _measure(path: Path, records: list[Entry], work: Callable[[Path], None]) -> dict[str, Any]:
    written, processor, started = _written(), time.process_time(), time.perf_counter()
    work(path)
    elapsed = time.perf_counter() - started
    return {
        "records_s": round(len(records) / elapsed),
        "cpu_us_record": round((time.process_time() - processor) / len(records) * 1e6, 2),
        "written_record": round((_written() - written) / len(records)),
        "file_record": round(path.stat().st_size / len(records)),
    }


def _rows(path: Path, records: list[Entry], group: int) -> None:
    encode = msgspec.msgpack.Encoder().encode
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, record BLOB)")
    for start in range(0, len(records), group):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO records (record) VALUES (?)", [(encode(entry),) for entry in records[start : start + group]]
        )
        connection.execute("COMMIT")
    connection.close()


def _sealed(folder: Path, records: list[Entry]) -> None:
    """Commits group by group, through the whole buffer, one waiting for the other like an acknowledged sender."""
    durable = threading.Semaphore(0)
    held = _open(folder, lambda _: durable.release())
    for start in range(0, len(records), GROUP):
        held.append(records[start : start + GROUP], wanted_soon=True)
        durable.acquire()
    held.close(30)


def _open(folder: Path, on_committed: Callable[[int], None]) -> buffer.Buffer:
    return buffer.Buffer(
        folder,
        os.urandom(32),
        "bench",
        config.Buffer(),
        on_committed=on_committed,
        on_fault=lambda *fault: print(*fault),
    )


def _sealing(records: list[Entry]) -> dict[str, object]:
    packer, cipher, rounds = Packer("bench"), Cipher(os.urandom(32)), 2000
    started = time.thread_time()
    for number in range(rounds):
        packed, plain = packer.pack(records)
        head = Head(1, 1, 1, 1, 0, 7, number, number * GROUP, GROUP, plain, 0, 0, 0, 0, b"i" * 16, b"b" * 16)
        cipher.seal(head, packed)
    spent = (time.thread_time() - started) / rounds / len(records) * 1e6
    return {"case": f"sealing alone, blocks of {GROUP}", "cpu_us_record": round(spent, 2)}


def _hand_over(folder: Path, records: list[Entry]) -> dict[str, object]:
    """The caller's time for 13 records at 1,000 hand-overs a second, a wake-up of the writer included."""
    held = _open(folder, lambda _: None)
    held.wait_ready(10)
    times = []
    for index in range(2000):
        part = records[index * HAND_OVER : (index + 1) * HAND_OVER]
        started = time.perf_counter()
        held.append(part, wanted_soon=True)
        times.append(time.perf_counter() - started)
        until = started + 0.001
        while time.perf_counter() < until:  # the loop is busy with other work, as under load
            pass
    held.close(30)
    times.sort()
    return {
        "case": f"hand-over of {HAND_OVER} records",
        "p50_us": round(times[len(times) // 2] * 1e6, 1),
        "p99_us": round(times[int(len(times) * 0.99)] * 1e6, 1),
    }
