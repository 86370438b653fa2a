"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import kafka_broker
import mosquitto
import pytest
from hypothesis import HealthCheck, settings

# PROPERTY_EXAMPLES=100000 is the long run; a shared machine is no reason for a deadline to fail
settings.register_profile(
    "bedside",
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bedside")


def _kafka_or_skip() -> None:
    why = kafka_broker.missing()
    if why and os.environ.get("CI"):
        pytest.fail(f"CI runs the real Kafka: {why}")
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_broker.Broker]:
    """A running broker that tests share: use a topic prefix of your own, and leave it running."""
    _kafka_or_skip()
    broker = kafka_broker.Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[kafka_broker.Broker]:
    """A broker of the test's own, not yet started, for tests that stop or kill it."""
    _kafka_or_skip()
    broker = kafka_broker.Broker(tmp_path / "kafka")
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def kafka_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_broker.Cluster]:
    """Three nodes, not yet started, that the tests of a file kill and start again: `start` brings back what is gone."""
    _kafka_or_skip()
    cluster = kafka_broker.Cluster(tmp_path_factory.mktemp("kafka-nodes"))
    yield cluster
    cluster.kill()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[mosquitto.Mosquitto]:
    """A running mosquitto of the test's own."""
    why = mosquitto.missing()
    if why and mosquitto.required():
        pytest.fail(why)
    if why:
        pytest.skip(why)
    made = mosquitto.Mosquitto(tmp_path / "mosquitto").start()
    yield made
    made.kill()
