"""The raw producer: the same encoded records, as fast as confluent-kafka takes them.

`python -m bench.raw_producer BOOTSTRAP PREFIX DATA_DIR KEY` reads and encodes the whole backlog first, says so, waits
for a line, then sends everything with the settings of the forwarder's idempotent producer, without call-backs, and
prints records, seconds and processor seconds from the first `produce` to the end of `flush`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from cloud_sync.encode import Encoder
from cloud_sync.pseudonym import Identities, site_keys
from cloud_sync.sinks import Message
from cloud_sync.sinks.kafka import BATCH_BYTES
from cloud_sync.sinks.kafka_properties import DEFAULTS
from edge_agent.buffer import Position, Reader, load_kek


def encoded(data_dir: Path, key: Path) -> list[Message]:
    """Every record of the backlog, as the forwarder sends it."""
    encoder = Encoder("bench", Identities("pseudonym", site_keys(f"p1 {os.urandom(32).hex()}\n")))
    reader, after, out = Reader(data_dir, load_kek(f"file:{key}")), None, []
    while blocks := reader.read("data", after):
        for block in blocks:
            out += encoder.block(block)
        after = Position(blocks[-1].instance, blocks[-1].number)
    reader.close()
    return out


def main(bootstrap: str, prefix: str, data_dir: str, key: str) -> None:
    """Encodes, waits, sends."""
    records = [
        (f"{prefix}.{message.topic}", message.value, message.key, message.headers)
        for message in encoded(Path(data_dir), Path(key))
    ]
    producer = Producer(
        {
            **DEFAULTS,
            "bootstrap.servers": bootstrap,
            "linger.ms": 50,  # as for the data
            "batch.size": BATCH_BYTES,
            "batch.num.messages": 10_000,
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "max.in.flight.requests.per.connection": 1,
            "acks": "all",
            "message.timeout.ms": 0,
        }
    )
    producer.list_topics(timeout=10)
    print("ready", flush=True)
    sys.stdin.readline()
    produce: Any = producer.produce
    processor, started = time.process_time(), time.perf_counter()
    for topic, value, its_key, headers in records:
        while True:
            try:
                produce(topic, value, its_key, headers=headers)
                break
            except BufferError:
                producer.poll(0.01)
    left = producer.flush(120)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    if left:
        raise SystemExit(f"{left} records were not delivered")
    print(json.dumps({"records": len(records), "seconds": seconds, "processor_s": processor}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
