"""How fast a backlog drains into a real Kafka: the production forwarder against the raw confluent-kafka producer.

Apache Kafka from its jars, one node on the same machine; the same sealed backlog for everyone, in turns, each in a
fresh process with a topic of its own. `records_s` is taken at the broker, from the first committed record to the last,
with the same clock for all. The forwarder reads, opens, makes pseudonyms, encodes, sends and marks; the raw producer
sends the same records, encoded beforehand, with the same settings (acks=all, idempotent, zstd), without call-backs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.aims import at_least
from bench.backlog import PARTITIONS, TOPIC, Forwarder, Offsets, drained_to, fill
from bench.stores import GROUP
from edge_agent.buffer.marks import mark_path

RECORDS = GROUP * 4000
ROUNDS = 3
_POLL_S = 0.05
_PATIENCE_S = 150.0
_Figures = dict[str, float]


def run() -> list[dict[str, object]]:
    """Rows of the table."""
    from tests.kafka_broker import Broker, missing

    why = missing()
    if why:
        return [{"case": f"not measured: {why}"}]
    with tempfile.TemporaryDirectory(prefix="bedside-drain-") as made:
        folder = Path(made)
        last = fill(folder / "data", folder / "kek", RECORDS)
        broker = Broker(folder / "kafka").start()
        try:
            found = _rounds(broker, folder, last)
        finally:
            broker.kill()
    rows: list[dict[str, object]] = []
    for case, rounds in found.items():
        middle = {figure: median(each[figure] for each in rounds) for figure in rounds[0]}
        rows.append({"case": case, "records": RECORDS, "records_s": round(middle["records_s"]),
                     "cpu_us_record": round(middle["cpu_us_record"], 2)})  # fmt: skip
    for case in ("exactly once", "at least once"):
        ratios = [ours["records_s"] / raw["records_s"] for ours, raw in zip(found[case], found["raw"], strict=True)]
        rows.append(at_least(f"records/s, forwarder {case} / raw producer", ratios, 0.5))
    return rows


def _rounds(broker: object, folder: Path, last: int) -> dict[str, list[_Figures]]:
    cases: dict[str, Callable[[str, str], _Figures]] = {
        "exactly once": lambda bootstrap, prefix: _forwarder(folder, bootstrap, prefix, last, True),
        "at least once": lambda bootstrap, prefix: _forwarder(folder, bootstrap, prefix, last, False),
        "raw": lambda bootstrap, prefix: _raw(folder, bootstrap, prefix),
    }
    found: dict[str, list[_Figures]] = {case: [] for case in cases}
    for number in range(ROUNDS):
        for case, measure in cases.items():
            prefix = f"drain{number}-{case.replace(' ', '-')}"
            broker.create(f"{prefix}.{TOPIC}", PARTITIONS)  # type: ignore[attr-defined]
            found[case].append(measure(broker.bootstrap, prefix))  # type: ignore[attr-defined]
    return found


def _watch(offsets: Offsets, done: Callable[[], bool]) -> float:
    """Records a second at the broker, behind the first look that found any; `done` says that all have been sent."""
    at_first = seen = 0
    first = moved = time.perf_counter()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        finished = done()
        end, now = offsets.end(), time.perf_counter()
        if end != seen:
            if not seen:
                at_first, first = end, now
            moved, seen = now, end
        elif finished and seen >= RECORDS:
            return (RECORDS - at_first) / (moved - first)
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {seen} of {RECORDS} records had come after {_PATIENCE_S:g} s")
        time.sleep(_POLL_S)


def _forwarder(folder: Path, bootstrap: str, prefix: str, last: int, exactly_once: bool) -> _Figures:
    data = folder / "data"
    mark_path(data, "data").unlink(missing_ok=True)
    (data / "cloud-sync" / "data.guarantee").unlink(missing_ok=True)
    offsets = Offsets(bootstrap, f"{prefix}.{TOPIC}")
    with Forwarder(folder / prefix, data, folder / "kek", bootstrap, prefix, exactly_once) as forwarder:

        def done() -> bool:
            forwarder.check()
            return drained_to(data) >= last

        rate = _watch(offsets, done)
        spent = forwarder.processor_s()
    offsets.close()
    return {"records_s": rate, "cpu_us_record": spent / RECORDS * 1e6}


def _raw(folder: Path, bootstrap: str, prefix: str) -> _Figures:
    command = [sys.executable, "-m", "bench.raw_producer", bootstrap, prefix, str(folder / "data"), str(folder / "kek")]
    offsets = Offsets(bootstrap, f"{prefix}.{TOPIC}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdin is not None and child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise RuntimeError("the raw producer did not start")
            child.stdin.write("\n")
            child.stdin.flush()
            rate = _watch(offsets, lambda: child.poll() is not None)
            told = json.loads(child.stdout.read())
        finally:
            child.kill()
    offsets.close()
    return {"records_s": rate, "cpu_us_record": told["processor_s"] / told["records"] * 1e6}
