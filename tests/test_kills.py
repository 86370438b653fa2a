"""kill -9 of agent and forwarder, and of the broker, at random moments: nothing acknowledged is missing, nothing twice.

The topics are read as a read_committed consumer does. The sender counts a message as acknowledged when the agent's AA
has come. Kill moments are drawn in acknowledged messages, and half of the forwarder's in records that it has delivered
since it began, so that they fall into the middle of the work on any machine. KILLS in the environment makes the run
longer, NODES=3 takes three brokers of which one at a time is killed, TORTURE_RESULT names a file that gets its figures
(`make torture`).
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from kafka_broker import Broker, Cluster, Node

from bench.gateway import Gateway
from bench.messages import START, frame
from cloud_sync.embedded import Arrival, Arrivals
from cloud_sync.encode import TOPICS

KILLS = int(os.environ.get("KILLS", "40"))
NODES = int(os.environ.get("NODES", "1"))
BEDS = 2
TERMS = 10
DEADLINE_S = 60.0
OUTAGE_EVERY = 20 if NODES == 1 else 5  # kills, from one outage of a broker to the next
OUTAGE = 3  # kills, from the broker's end to its start
BACKLOG = 1_500  # messages of each bed that wait when the forwarder starts for the last time
PAUSE_S = 0.01  # between two messages of a monitor, or the backlog would outgrow what kills let through
EPISODE = 40  # messages of a bed from one alarm to the next


class Sender(threading.Thread):
    """One monitor: sends, waits for the acknowledgement, sends the same message again when the connection breaks."""

    def __init__(self, port: int, bed: int) -> None:
        super().__init__(name=f"monitor {bed}")
        self.port, self.bed = port, bed
        self.acknowledged = 0  # messages 0 .. acknowledged-1 have been acknowledged
        self.stop = threading.Event()
        self.hurry = threading.Event()
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
            if not self.hurry.is_set():
                self.stop.wait(PAUSE_S)
            number = self.acknowledged
            connection.sendall(frame(number, self.bed, 80.0 if number % EPISODE > EPISODE - 3 else 97.0))
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


def wait_until_delivered(gateway: Gateway, records: int) -> None:
    """Returns when the forwarder that runs now says that it has delivered so many."""
    path, pid = gateway.data_dir / "cloud-sync" / "status.json", gateway.pid_of("cloud-sync")
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            status = json.loads(path.read_bytes())
        except OSError:
            status = {"pid": 0}
        if status["pid"] == pid and status["forwarded"]["data"] >= records:
            return
        assert time.monotonic() < end, f"the forwarder has not delivered {records} records: {status.get('detail')}"
        time.sleep(0.02)


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> Broker | Cluster:
    """One node, or three that take over from each other."""
    found: Broker | Cluster = request.getfixturevalue("own_kafka" if NODES == 1 else "kafka_nodes")
    return found.start()


@pytest.mark.timeout(300 + 10 * KILLS)
def test_nothing_acknowledged_is_missing_or_twice_after_kills(kafka: Broker | Cluster) -> None:
    chance = random.Random(20260101)
    prefix = f"kills-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    nodes: list[Node] = kafka.nodes if isinstance(kafka, Cluster) else [kafka]
    for name in TOPICS:
        kafka.create(f"{prefix}.{name}", message_timestamp_type="LogAppendTime")
    with Gateway(beds=BEDS, broker=kafka.bootstrap, topic_prefix=prefix) as gateway:
        senders = [Sender(gateway.port, bed) for bed in range(BEDS)]
        for sender in senders:
            sender.start()
        killed = dict.fromkeys(("edge-agent", "cloud-sync", "broker"), 0)
        away, lost = 0, nodes[0]  # kills until the broker is back
        for number in range(KILLS):
            sender = chance.choice(senders)
            sender.wait_for(sender.acknowledged + chance.randrange(1, 120))
            if number % OUTAGE_EVERY == OUTAGE_EVERY // 2:
                lost = chance.choice(nodes)
                lost.kill()
                killed["broker"] += 1
                away = OUTAGE
            victim = chance.choice(("edge-agent", "cloud-sync"))
            if victim == "cloud-sync" and (NODES > 1 or not away) and chance.random() < 0.5:
                wait_until_delivered(gateway, chance.randrange(1, 2_000))
            gateway.kill(victim)
            killed[victim] += 1
            gateway.start(victim)
            if away:
                away -= 1
                if not away:
                    lost.start()
        if away:
            lost.start()
        gateway.kill("cloud-sync")
        waiting_from = [sender.acknowledged for sender in senders]
        for sender in senders:
            sender.hurry.set()
        for sender in senders:
            sender.wait_for(sender.acknowledged + BACKLOG)
            sender.stop.set()
        for sender in senders:
            sender.join(DEADLINE_S)
        gateway.start("cloud-sync")
        assert min(killed["edge-agent"], killed["cloud-sync"]) >= KILLS // 4, f"kills for both processes: {killed}"
        found = Found({(f"B{sender.bed}", number) for sender in senders for number in range(sender.acknowledged)})
        assert len(found.left) > KILLS
        found.read(kafka.bootstrap, prefix)
        found.check({f"B{bed}": number for bed, number in enumerate(waiting_from)})
    found.tell(killed, sum(sender.acknowledged for sender in senders), time.monotonic() - began)


class Found:
    """What a read_committed consumer sees of the topics."""

    def __init__(self, wanted: set[tuple[str, int]]) -> None:
        self.left = dict.fromkeys(wanted, TERMS)  # observations of a message that are not yet seen
        self.times: Counter[str] = Counter()
        self.data: list[tuple[str, int, int]] = []  # bed, message, time of arrival
        self.alerts: list[int] = []  # times of arrival of the starts of alarms

    def read(self, bootstrap: str, prefix: str) -> None:
        arrivals = Arrivals(bootstrap, prefix)
        end = time.monotonic() + DEADLINE_S + KILLS
        try:
            while self.left and time.monotonic() < end:
                self._take(arrivals.poll(0.5))
            while more := arrivals.poll(1.0):  # what comes twice comes late
                self._take(more)
        finally:
            arrivals.close()

    def _take(self, arrived: list[Arrival]) -> None:
        for arrival in arrived:
            self.times[arrival.headers["dedup"]] += 1
            if arrival.headers["schema"] == "alarm_event":
                event = json.loads(arrival.value)["record"]
                if (
                    event["kind"] == "physiological" and event["event"] == "start"
                ):  # not that the monitors are silent now
                    self.alerts.append(arrival.timestamp_ms)
            if arrival.headers["schema"] != "observation":
                continue
            message = json.loads(arrival.value)
            record, bed = message["record"], message["bed"]
            number = round(_seconds(record["device_time"]))
            if record["term"] == "heart_rate":
                assert record["value"] == 70 + number % 30
                self.data.append((bed, number, arrival.timestamp_ms))
            key = (bed, number)
            if key in self.left:
                self.left[key] -= 1
                if self.left[key] <= 0:
                    del self.left[key]

    def check(self, waiting_from: dict[str, int]) -> None:
        some = sorted(self.left)[:3]
        assert not self.left, f"{len(self.left)} acknowledged messages are missing or incomplete, for example {some}"
        twice = [identity for identity, often in self.times.items() if often > 1]
        assert not twice, f"{len(twice)} records came twice, for example {twice[:3]}"
        order: dict[str, int] = {}
        for bed, number, _ in self.data:
            assert number >= order.get(bed, 0), "an older message after a newer one"
            order[bed] = number
        assert self.alerts, "there was no alarm: the test does not test"
        backlog = [at for bed, number, at in self.data if number >= waiting_from[bed]]
        ahead = sum(at <= max(self.alerts) for at in backlog)
        assert ahead < len(backlog) * 3 // 4, f"{ahead} of {len(backlog)} messages came before the newest alarm"

    def tell(self, killed: dict[str, int], acknowledged: int, seconds: float) -> None:
        """The figures for the table of `make torture`."""
        path = os.environ.get("TORTURE_RESULT")
        if path:
            figures = {
                "nodes": NODES,
                "kills": killed,
                "acknowledged": acknowledged,
                "records": len(self.times),
                "alerts": len(self.alerts),
                "missing": len(self.left),
                "twice": sum(often > 1 for often in self.times.values()),
                "seconds": round(seconds),
            }
            Path(path).write_text(json.dumps(figures, indent=2) + "\n")


def _seconds(device_time: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(device_time) - START).total_seconds()


@pytest.fixture(autouse=True)
def _few_enough(tmp_path: Path) -> None:
    assert KILLS >= 4, "KILLS below 4 proves nothing"
