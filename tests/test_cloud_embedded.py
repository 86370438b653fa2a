"""The demo's embedded Kafka, as an object and as the command that the demo starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from cloud_site import until
from confluent_kafka import Producer

from cloud_sync.embedded import Arrivals, EmbeddedKafka


def send(bootstrap: str, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for number in range(count):
        producer.produce(topic, str(number).encode(), "ICU-1", headers=[("dedup", b"gw/i/1")])
    assert producer.flush(30) == 0


def test_arrivals_see_topics_that_come_later() -> None:
    with EmbeddedKafka() as kafka:
        arrivals = Arrivals(kafka.bootstrap)
        assert arrivals.poll(0.1) == []
        send(kafka.bootstrap, "bedside.alerts", 3)
        send(kafka.bootstrap, "other.alerts", 3)
        until(lambda: arrivals.counts == {"bedside.alerts": 3}, lambda: arrivals.poll(0.1), 30)
        send(kafka.bootstrap, "bedside.observations", 2)
        found = []
        until(lambda: len(found) == 2, lambda: found.extend(arrivals.follow(0.2)), 30)
        assert {(arrival.topic, arrival.key) for arrival in found} == {("bedside.observations", "ICU-1")}
        assert found[0].headers == {"dedup": "gw/i/1"}
        arrivals.close()


def test_the_command_serves_other_processes_until_it_is_told_to_stop(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "cloud_sync", "embedded", "--port-file", str(port_file), "--count", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        try:
            until(port_file.exists, lambda: time.sleep(0.02), 30)
            assert child.stdout is not None
            first = child.stdout.readline()
            assert port_file.read_text().strip() in first
            assert "demo-only" in first
            send(port_file.read_text().strip(), "bedside.alerts", 5)
            counted: list[dict[str, int]] = [{}]
            until(
                lambda: counted[-1] == {"bedside.alerts": 5},
                lambda: counted.append(json.loads(child.stdout.readline())),
                30,
            )
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0
