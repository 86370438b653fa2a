"""Demo-only Kafka: librdkafka's mock cluster inside this process, reachable from others on this machine.

It keeps little (about 5 MB a partition), forgets everything at exit and guarantees nothing. It lets the demo run
without a broker, and nothing else: tests of delivery use the real one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

LABEL = "demo-only embedded Kafka: keeps about 5 MB a topic partition in memory and guarantees nothing"

_LOOK_AGAIN_S = 2.0  # for topics that appeared since


class EmbeddedKafka:
    """A context manager that holds the mock cluster; `bootstrap` is host:port on the loopback interface."""

    def __init__(self, brokers: int = 1) -> None:
        self._owner = Producer({"test.mock.num.brokers": brokers, "log_level": 0})
        known = self._owner.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in known)

    def __enter__(self) -> EmbeddedKafka:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The cluster and everything in it is gone."""
        del self._owner


class Arrival(NamedTuple):
    """One message as a consumer sees it."""

    topic: str
    key: str
    value: bytes
    headers: dict[str, str]
    partition: int
    offset: int
    timestamp_ms: int  # of the broker or the producer, as the topic is configured


class Arrivals:
    """A consumer of all topics of a prefix, from their beginning, that commits nothing; `counts` is by topic."""

    def __init__(self, bootstrap: str, prefix: str = "bedside", options: dict[str, Any] | None = None) -> None:
        self._prefix = f"{prefix}."
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "bedside-arrivals",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
                **(options or {}),
            }
        )
        self._known: dict[tuple[str, int], TopicPartition] = {}
        self._look_at = 0.0
        self.counts: dict[str, int] = {}

    def poll(self, timeout_s: float) -> list[Arrival]:
        """What has arrived, waiting up to `timeout_s` seconds for the first."""
        self._find_topics(timeout_s)
        out = []
        found: list[Any] = self._consumer.consume(1_000, timeout_s) if self._known else []
        for message in found:
            if message.error() is not None:
                continue
            headers = {name: value.decode() for name, value in message.headers() or ()}
            topic = message.topic()
            self.counts[topic] = self.counts.get(topic, 0) + 1
            key = (message.key() or b"").decode()
            out.append(
                Arrival(
                    topic, key, message.value(), headers, message.partition(), message.offset(), message.timestamp()[1]
                )
            )
        return out

    def follow(self, seconds: float) -> Iterator[Arrival]:
        """Everything that arrives within `seconds`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            yield from self.poll(min(0.2, left))

    def close(self) -> None:
        """Leaves the cluster."""
        self._consumer.close()

    def _find_topics(self, timeout_s: float) -> None:
        if time.monotonic() < self._look_at:
            return
        found = self._consumer.list_topics(timeout=max(timeout_s, 5.0)).topics
        fresh = {
            (name, number): TopicPartition(name, number, OFFSET_BEGINNING)
            for name, topic in found.items()
            if name.startswith(self._prefix)
            for number in topic.partitions
            if (name, number) not in self._known
        }
        if fresh:
            self._known.update(fresh)
            self._consumer.incremental_assign(list(fresh.values()))
        self._look_at = time.monotonic() + (_LOOK_AGAIN_S if self._known else 0.1)
