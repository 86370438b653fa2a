"""Resident memory of the forwarder with ten thousand, a hundred thousand and a million records waiting.

Apache Kafka from its jars; exactly once; a fresh process and topic for each backlog. `waiting_mb` is what it holds
while the broker is away and the whole backlog waits, `greatest_mb` the most that it held while it drained the backlog,
as the kernel tells it (VmRSS, VmHWM: shared pages included).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from bench.aims import at_most
from bench.backlog import PARTITIONS, TOPIC, Forwarder, drained_to, fill
from bench.gateway import free_port
from edge_agent.buffer.marks import mark_path

BACKLOGS = (10_000, 100_000, 1_000_000)
WAITING_S = 6.0  # it has tried the broker, counted the backlog and written its status several times
_PATIENCE_S = 150.0
_FLAT = 1.25  # what the allocator may do


def run() -> list[dict[str, object]]:
    """A row for each backlog, and how much the largest differs from the smallest."""
    from tests.kafka_broker import Broker, missing

    why = missing()
    if why:
        return [{"records": f"not measured: {why}"}]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="bedside-forwarder-") as made:
        folder = Path(made)
        broker = Broker(folder / "kafka").start()
        try:
            for records in BACKLOGS:
                broker.create(f"f{records}.{TOPIC}", PARTITIONS)
                rows.append({"records": records, **_memory(folder / str(records), records, broker.bootstrap)})
        finally:
            broker.kill()
    least, most = rows[0], rows[-1]

    def ratio(figure: str) -> float:
        return float(str(most[figure])) / float(str(least[figure]))

    return [
        *rows,
        at_most("waiting, the largest backlog / the smallest", [ratio("waiting_mb")], _FLAT),
        at_most("draining, the largest backlog / the smallest", [ratio("greatest_mb")], _FLAT),
    ]


def _memory(folder: Path, records: int, bootstrap: str) -> dict[str, object]:
    data, key = folder / "data", folder / "kek"
    folder.mkdir()
    last = fill(data, key, records)
    with Forwarder(folder / "away", data, key, f"127.0.0.1:{free_port()}") as forwarder:
        time.sleep(WAITING_S)
        forwarder.check()
        waiting = forwarder.memory_kb("VmRSS")
    if mark_path(data, "data").exists():
        raise RuntimeError("a broker that is away has taken records")
    with Forwarder(folder / "there", data, key, bootstrap, f"f{records}") as forwarder:
        end, started = time.monotonic() + _PATIENCE_S, time.monotonic()
        while drained_to(data) < last:
            forwarder.check()
            if time.monotonic() > end:
                raise RuntimeError(f"{records} records were not drained within {_PATIENCE_S:g} s")
            time.sleep(0.1)
        took = time.monotonic() - started
        greatest = forwarder.memory_kb("VmHWM")
    shutil.rmtree(folder)
    return {
        "waiting_mb": round(waiting / 1024, 1),
        "greatest_mb": round(greatest / 1024, 1),
        "drained_s": round(took, 1),
    }
