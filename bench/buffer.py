"""The sealed buffer against rows, SQLCipher and persist-queue: bytes on the device, syncs, throughput, processor time.

Numerics and waveforms of ten beds, 200 bytes a record; WAL and synchronous=FULL everywhere; the ways take turns on one
fresh disk, each in a fresh process, and ratios are taken within a round. `device_record` is what the loop device below
an ext4 image has written for a record, journal and last checkpoint included; `disk_record` what the closed files take;
`syncs_commit` counts fsync and fdatasync (LD_PRELOAD); `cpu_us_record` is processor time of the whole process.
`sealing` is encoding, compressing and encrypting alone; the hand-over is what the alarm loop pays for 13 records.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import peers, preload
from bench.aims import at_least, at_most
from bench.disk import Disk, mounted
from bench.stores import CASES, GROUP, Case, entries, open_buffer
from edge_agent.buffer.seal import Cipher, Head, Packer
from edge_agent.records import Entry

ROUNDS = 3
HAND_OVER = 13
_Figures = dict[str, float]


def run() -> list[dict[str, object]]:
    """Rows of the table."""
    folder, why = peers.fetch()
    cases = {name: case for name, case in CASES.items() if folder is not None or not case.peer}
    found: dict[str, list[_Figures]] = {name: [] for name in cases}
    with mounted() as disk, tempfile.TemporaryDirectory(prefix="bedside-bench-") as made:
        counter = preload.library("syncs", Path(made))
        for number in range(ROUNDS):
            for name in sorted(cases, reverse=bool(number % 2)):
                found[name].append(_one(name, cases[name], disk, counter, folder))
        exact = disk.exact
    rows = [_row(cases[name], found[name], exact) for name in cases]
    if why:
        rows.append({"case": f"SQLCipher and persist-queue: not measured, pip says: {why}"})
    if not exact:
        rows.append({"case": "device_record is the process's own count: a loop device needs root"})
    spent = _sealing(entries(GROUP))
    rows.append({"case": f"sealing alone, blocks of {GROUP}", "cpu_us_record": round(median(spent), 2)})
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as plain:
        rows.append(_hand_over(Path(plain), entries(2000 * HAND_OVER)))
    return rows + _aims(found, spent)


def _aims(found: dict[str, list[_Figures]], spent: Sequence[float]) -> list[dict[str, object]]:
    def ratio(over: str, under: str, figure: str) -> list[float]:
        pairs = zip(found.get(over, ()), found.get(under, ()), strict=False)
        return [above[figure] / below[figure] for above, below in pairs]

    return [
        at_least("device bytes, encrypted rows 1 a commit / sealed as at the bedside",
                 ratio("encrypted_single", "sealed_bedside", "device_record"), 25),
        at_least("the same, sealed without a pause", ratio("encrypted_single", "sealed", "device_record"), 25),
        at_most("disk bytes, sealed / SQLCipher", ratio("sealed", "sqlcipher", "disk_record"), 0.40),
        at_most("disk bytes, sealed / encrypted rows", ratio("sealed", "encrypted", "disk_record"), 0.40),
        at_least(f"records/s, sealed / plain rows {GROUP} a commit", ratio("sealed", "plain", "records_s"), 0.9),
        at_least(f"records/s, sealed / plain rows {2 * GROUP} a commit",
                 ratio("sealed_double", "plain_double", "records_s"), 0.9),
        at_least(f"records/s, sealed / plain rows {4 * GROUP} a commit",
                 ratio("sealed_fourfold", "plain_fourfold", "records_s"), 0.9),
        at_least("records/s, sealed / persist-queue", ratio("sealed", "persist_queue", "records_s"), 30),
        at_most(f"sealing, CPU us a record at {GROUP} a block", spent, 3),
        at_most("syncs a commit, sealed as at the bedside",
                [each["syncs_commit"] for each in found["sealed_bedside"]], 1.05),
    ]  # fmt: skip


def _one(name: str, case: Case, disk: Disk, counter: Path, folder: Path | None) -> _Figures:
    """Figures of one way in a process of its own, its files removed afterwards."""
    place = disk.folder / name
    place.mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(counter)}
    if folder is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = disk.written()
    command = [sys.executable, "-m", "bench.stores", name, str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{case.what}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    device = disk.written() - before if disk.exact else told["written"]
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    shutil.rmtree(place)
    return {
        "records_s": told["records"] / told["seconds"],
        "cpu_us_record": told["processor_s"] / told["records"] * 1e6,
        "device_record": device / told["records"],
        "disk_record": size / told["records"],
        "records_commit": told["records"] / told["commits"],
        "syncs_commit": told["syncs"] / told["commits"],
    }


def _row(case: Case, rounds: list[_Figures], exact: bool) -> dict[str, object]:
    middle = {figure: median(each[figure] for each in rounds) for figure in rounds[0]}
    return {
        "case": case.what,
        "records_s": round(middle["records_s"]),
        "cpu_us_record": round(middle["cpu_us_record"], 2),
        "device_record" if exact else "device_record (process)": round(middle["device_record"]),
        "disk_record": round(middle["disk_record"]),
        "records_commit": round(middle["records_commit"]),
        "syncs_commit": round(middle["syncs_commit"], 3),
    }


def _sealing(records: list[Entry]) -> list[float]:
    """CPU in us a record, five times."""
    packer, cipher, turns, out = Packer("bench"), Cipher(os.urandom(32)), 1000, []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for number in range(turns):
            packed, plain = packer.pack(records)
            head = Head(1, 1, 1, 1, 0, 7, number, number * GROUP, GROUP, plain, 0, 0, 0, 0, b"i" * 16, b"b" * 16)
            cipher.seal(head, packed)
        out.append((time.thread_time() - started) / turns / len(records) * 1e6)
    return out


def _hand_over(folder: Path, records: list[Entry]) -> dict[str, object]:
    """The caller's time for 13 records at 1,000 hand-overs a second, a wake-up of the writer included."""
    held = open_buffer(folder, os.urandom(32), lambda _: None)
    held.wait_ready(10)
    times = []
    for start in range(0, len(records), HAND_OVER):
        part = records[start : start + HAND_OVER]
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
