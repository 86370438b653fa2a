"""Three real brokers that are lost while records are on their way: everything is there once, in order, afterwards.

Each record is on three nodes and confirmed by two (`min.insync.replicas=2`, also for the coordinators' own topic), as
docs/forwarding.md asks for. Nodes end by SIGKILL and come back with their disks.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_site import Site, alarm, batches, drained, each_once, plain, seen, until
from kafka_broker import Cluster

from cloud_sync.embedded import Arrivals
from cloud_sync.encode import TOPICS
from cloud_sync.sinks import Message, Retry, Settled
from cloud_sync.sinks.kafka import KafkaSink
from cloud_sync.sinks.kafka_properties import Properties
from cloud_sync.sinks.kafka_transactions import TransactionalSink
from edge_agent import records

pytestmark = pytest.mark.kafka


@pytest.fixture
def cluster(kafka_nodes: Cluster) -> Cluster:
    return kafka_nodes.start()


@pytest.fixture
def prefix(cluster: Cluster) -> str:
    made = f"x{uuid.uuid4().hex[:8]}"
    for name in TOPICS:
        cluster.create(f"{made}.{name}", 2)
    return made


@pytest.fixture
def site(tmp_path: Path, cluster: Cluster, prefix: str) -> Iterator[Site]:
    made = Site(tmp_path, plain(cluster), prefix)
    yield made
    made.close()


def given(cluster: Cluster) -> Properties:
    return {"bootstrap.servers": cluster.bootstrap, "security.protocol": "PLAINTEXT"}


def test_leaders_lost_in_mid_stream_cost_nothing(cluster: Cluster, prefix: str, site: Site) -> None:
    """One leader after the other goes while records are written to it; with the second the forwarder goes, too."""
    chance = random.Random(11)
    child = site.run()
    until(lambda: site.status().get("state") == "connected")
    on_the_way = Arrivals(cluster.bootstrap, prefix, {"isolation.level": "read_uncommitted", "group.id": "uncommitted"})
    total = alerts = held_up = 0
    for topic in (f"{prefix}.observations", f"{prefix}-progress.data", f"{prefix}.alerts"):
        first, total = total, total + 36_000  # several transactions, so that the kill falls into one
        blocks: list[list[records.Entry]] = []
        for block in batches(first, total, 1_200):
            blocks += [block, [alarm(alerts)]]
            alerts += 1
        storing = threading.Thread(target=site.store, args=(blocks,))
        storing.start()
        wanted = first + chance.randrange(1, 8_000)
        until(
            lambda wanted=wanted: on_the_way.counts.get(f"{prefix}.observations", 0) >= wanted,
            lambda: on_the_way.poll(0.02),
        )
        node = cluster.leader(topic)
        node.kill()
        if topic.endswith("-progress.data"):
            child.send_signal(signal.SIGKILL)
            child.wait(30)
            child = site.run()
        storing.join()
        until(lambda child=child: site.status().get("pid") == child.pid)
        held_up += site.status()["backlog_records"] != 0
        node.start()
    on_the_way.close()
    drained(site)
    found = seen(cluster.bootstrap, prefix, total, alerts)
    each_once(found, "observations", total)
    each_once(found, "alerts", alerts)
    assert held_up >= 2, "the kills fell where nothing was under way: the test does not test"
    assert site.status()["error"] == ""
    assert site.end(child) == 0


def test_two_of_three_away_nothing_is_confirmed_and_nothing_lost(cluster: Cluster, prefix: str, site: Site) -> None:
    site.store(batches(0, 2_000))
    child = site.run()
    drained(site)
    lesser = KafkaSink(given(cluster), prefix, "lesser", 5)  # what serves where transactions are refused
    lesser.begin(1, [Message("waveforms", "ICU-1", b"{}", b"gw/i/1")])
    until(lambda: lesser.settle(0.2))
    for node in (first := cluster.leader(f"{prefix}.observations", 0), *cluster.nodes):
        if node is first or sum(node.runs for node in cluster.nodes) > 1:
            node.kill()
    lesser.begin(2, [Message("waveforms", "ICU-1", b"{}", b"gw/i/2")])
    site.store([*batches(2_000, 6_000), [alarm(1)]])
    # the node that is left answers, so that neither its silence nor an error tells
    until(lambda: "not confirmed" in site.status()["streams"]["data"]["detail"])
    until(lambda: "not confirmed" in lesser.state()[1], lambda: lesser.settle(0.1))
    assert lesser.state()[0] == "waiting"

    def keeps() -> bool:
        told = site.status()
        return told["state"] == "waiting" and bool(told["detail"]) and told["backlog_records"] == 4_001

    until(keeps)
    assert site.status()["forwarded"] == {"alerts": 0, "data": 2_000}
    assert site.command("status").returncode == 1
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid and keeps())
    cluster.start()
    drained(site)
    confirmed: list[Settled] = []
    until(lambda: confirmed, lambda: confirmed.extend(lesser.settle(0.2)))
    assert confirmed == [Settled(2, 1)]
    assert lesser.state() == ("connected", "")
    lesser.close(1.0)
    found = seen(cluster.bootstrap, prefix, 6_000, 1)
    each_once(found, "observations", 6_000)
    each_once(found, "alerts", 1)
    assert site.end(child) == 0


class Token:
    """A block under way."""

    def __init__(self, block: int) -> None:
        self.position = ("instance", block)


def messages(block: int) -> list[Message]:
    """A hundred of a block, over several partitions."""
    return [
        Message(
            "observations",
            f"ICU-{number % 4}",
            json.dumps({"gateway": "gw", "instance": "i", "sequence": number, "bed": f"ICU-{number % 4}"}).encode(),
            f"gw/i/{number}".encode(),
        )
        for number in range(100 * block, 100 * block + 100)
    ]


class Deliveries:
    """Blocks through a sink as the forwarder's stream sends them: what the marker does not name is sent again."""

    def __init__(self, sink: TransactionalSink) -> None:
        self.sink = sink
        self.unknown = 0  # outcomes that only the marker could tell
        self.resume()

    def resume(self) -> int:
        told: list[dict[str, int] | None] = [None]
        until(lambda: told[-1] is not None, lambda: told.append(self._ask()))
        return (told[-1] or {}).get("instance", -1)

    def _ask(self) -> dict[str, int] | None:
        try:
            return self.sink.resume(0.2)
        except Retry:
            self.sink.reset()
            return None

    def block(self, number: int) -> None:
        while True:
            self.sink.begin(Token(number), messages(number))
            verdicts: list[Settled] = []
            until(lambda: verdicts, lambda: verdicts.extend(self.sink.settle(0.2)))  # noqa: B023 - called at once
            if verdicts[0].keep is None:
                return
            assert isinstance(verdicts[0].keep, Retry), verdicts[0].keep
            self.unknown += 1
            self.sink.reset()
            if self.resume() >= number:
                return


@pytest.mark.parametrize("held", [True, False], ids=["before it answers", "at any moment"])
def test_a_coordinator_lost_during_the_commit_leaves_no_doubt(held: bool, cluster: Cluster, prefix: str) -> None:
    """Held still, it takes the request and never answers; else it is gone some milliseconds after the request."""
    sink = TransactionalSink(given(cluster), prefix, "gw", "data")
    deliveries = Deliveries(sink)
    deliveries.block(0)
    coordinator = cluster.coordinator(f"{prefix}-gw-data")
    chance, gone = random.Random(3), threading.Event()

    def lose() -> None:
        while sink._phase != "committing":
            time.sleep(0)
        if held:
            coordinator.pause()
            time.sleep(0.5)  # the request reaches nobody for so long
        else:
            time.sleep(chance.uniform(0.0, 0.01))
        coordinator.kill()
        gone.set()

    killer = threading.Thread(target=lose)
    killer.start()
    last = 0
    while not gone.is_set() or last < 3:
        last += 1
        deliveries.block(last)
    for number in (last + 1, last + 2):
        deliveries.block(number)
    killer.join()
    coordinator.start()
    sink.close(5.0)
    each_once(seen(cluster.bootstrap, prefix, 100 * (last + 3)), "observations", 100 * (last + 3))
