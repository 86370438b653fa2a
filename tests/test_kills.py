"""kill -9 of agent and forwarder at random moments, against the real Kafka: nothing acknowledged is missing.

The sender counts a message as acknowledged when the agent's AA has come. Kill moments are drawn in acknowledged
messages and delivered records, not in seconds, so that they fall into the middle of the work on any machine.
KILLS in the environment makes the run longer.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from pathlib import Path

import pytest
from kafka_broker import Broker

from bench.gateway import Gateway
from bench.messages import START, frame
from cloud_sync.embedded import Arrivals

KILLS = int(os.environ.get("KILLS", "50"))
BEDS = 2
TERMS = 10
DEADLINE_S = 60.0


class Sender(threading.Thread):
    """One monitor: sends, waits for the acknowledgement, sends the same message again when the connection breaks."""

    def __init__(self, port: int, bed: int) -> None:
        super().__init__(name=f"monitor {bed}")
        self.port, self.bed = port, bed
        self.acknowledged = 0  # messages 0 .. acknowledged-1 have been acknowledged
        self.stop = threading.Event()
        self.moved = threading.Condition()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                    connection.settimeout(5)
                    self._converse(connection)
            except OSError:
                self.stop.wait(0.02)  # the agent is being started again

    def _converse(self, connection: socket.socket) -> None:
        while not self.stop.is_set():
            number = self.acknowledged
            connection.sendall(frame(number, self.bed))
            reply = b""
            while not reply.endswith(b"\x1c\r"):
                data = connection.recv(4096)
                if not data:
                    return
                reply += data
            assert f"MSA|AA|M{self.bed}-{number}".encode() in reply
            with self.moved:
                self.acknowledged += 1
                self.moved.notify_all()

    def wait_for(self, count: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.acknowledged >= count, DEADLINE_S), (
                "the agent stopped acknowledging"
            )


def delivered(gateway: Gateway) -> int:
    try:
        status = json.loads((gateway.data_dir / "cloud-sync" / "status.json").read_bytes())
    except (OSError, ValueError):
        return 0
    return int(status["forwarded"]["data"])


def test_nothing_acknowledged_is_missing_after_kills(kafka: Broker) -> None:
    chance = random.Random(20260101)
    prefix = f"kills-{uuid.uuid4().hex[:8]}"
    with Gateway(beds=BEDS, broker=kafka.bootstrap, topic_prefix=prefix) as gateway:
        senders = [Sender(gateway.port, bed) for bed in range(BEDS)]
        for sender in senders:
            sender.start()
        killed = dict.fromkeys(("edge-agent", "cloud-sync"), 0)
        for _ in range(KILLS):
            sender = chance.choice(senders)
            sender.wait_for(sender.acknowledged + chance.randrange(1, 120))
            victim = chance.choice(list(killed))
            gateway.kill(victim)
            killed[victim] += 1
            gateway.start(victim)
        for sender in senders:
            sender.wait_for(sender.acknowledged + 1)
            sender.stop.set()
        for sender in senders:
            sender.join(DEADLINE_S)
        assert min(killed.values()) >= KILLS // 4, f"kills were meant for both processes: {killed}"
        wanted = {(f"B{sender.bed}", number) for sender in senders for number in range(sender.acknowledged)}
        assert len(wanted) > KILLS
        check(kafka.bootstrap, prefix, wanted)


def check(bootstrap: str, prefix: str, wanted: set[tuple[str, int]]) -> None:
    """Every wanted message's numerics are in the topic, each with the value that was sent."""
    left = dict.fromkeys(wanted, TERMS)
    seen: set[str] = set()
    order: dict[str, int] = {}
    arrivals = Arrivals(bootstrap, prefix)
    end = time.monotonic() + DEADLINE_S
    try:
        while left and time.monotonic() < end:
            for arrival in arrivals.poll(0.5):
                message = json.loads(arrival.value)
                record, bed, dedup = message["record"], message["bed"], arrival.headers["dedup"]
                if record["item"] != "observation" or dedup in seen:
                    continue
                seen.add(dedup)
                number = round(_seconds(record["device_time"]))
                if record["term"] == "heart_rate":
                    assert record["value"] == 70 + number % 30
                    assert number >= order.get(bed, 0), "an older message after a newer one"
                    order[bed] = number
                key = (bed, number)
                if key in left:
                    left[key] -= 1
                    if left[key] <= 0:
                        del left[key]
    finally:
        arrivals.close()
    assert not left, f"{len(left)} acknowledged messages are missing or incomplete, for example {sorted(left)[:3]}"


def _seconds(device_time: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(device_time) - START).total_seconds()


@pytest.fixture(autouse=True)
def _few_enough(tmp_path: Path) -> None:
    assert KILLS >= 4, "KILLS below 4 proves nothing"
