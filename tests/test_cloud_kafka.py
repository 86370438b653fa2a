"""The Kafka sink, on the mock cluster where any broker will do and on a real one where it matters."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from kafka_broker import SASL_PASSWORD, SASL_USER, STRANGER, Authority, Broker

from cloud_sync.embedded import Arrival, Arrivals, EmbeddedKafka
from cloud_sync.sinks import Fatal, Message, Retry, Settled
from cloud_sync.sinks.kafka import KafkaSink
from cloud_sync.sinks.kafka_properties import Properties, properties
from edge_agent import config

DEADLINE_S = 60.0


def message(number: int, key: str = "ICU-1", topic: str = "observations", filling: str = "") -> Message:
    value = {"gateway": "gw", "instance": "i", "sequence": number, "filling": filling}
    return Message(topic, key, json.dumps(value).encode(), f"gw/i/{number}".encode())


def until(done: Callable[[], bool], step: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end, "not within the deadline"
        step()


def verdicts(sink: KafkaSink, count: int, deadline_s: float = DEADLINE_S) -> list[Settled]:
    out: list[Settled] = []
    until(lambda: len(out) >= count, lambda: out.extend(sink.settle(0.2)), deadline_s)
    return out


def arrived(bootstrap: str, prefix: str, count: int) -> list[Arrival]:
    out: list[Arrival] = []
    arrivals = Arrivals(bootstrap, prefix)
    until(lambda: len(out) >= count, lambda: out.extend(arrivals.poll(0.2)))
    out.extend(arrivals.poll(0.3))
    arrivals.close()
    return out


def sequences(found: list[Arrival]) -> list[int]:
    return [json.loads(arrival.value)["sequence"] for arrival in found]


def loaded(folder: Path, kafka: str, after: str = "") -> config.Loaded:
    path = folder / "site.toml"
    path.write_text(
        f'[gateway]\nid = "gw"\ndata_dir = "{folder}"\n[[bed]]\nid = "ICU-1"\n[cloud.kafka]\n{kafka}\n{after}\n'
    )
    return config.load(path)


def plain(broker: Broker) -> Properties:
    return {"bootstrap.servers": broker.bootstrap, "security.protocol": "PLAINTEXT"}


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def mock() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        yield kafka


@pytest.fixture
def opened() -> Iterator[Callable[..., KafkaSink]]:
    sinks: list[KafkaSink] = []

    def open_(given: Properties, prefix: str) -> KafkaSink:
        sinks.append(KafkaSink(given, prefix, "test", 5))
        return sinks[-1]

    yield open_
    for sink in sinks:
        sink.close(0.1)


def test_batches_are_settled_when_every_message_is(mock: EmbeddedKafka, opened: Callable[..., KafkaSink]) -> None:
    sink = opened({"bootstrap.servers": mock.bootstrap}, "p")
    sink.begin("a", [message(n) for n in range(50)])
    sink.begin("b", [])
    sink.begin("c", [message(50, "ICU-2", "alerts")])
    found = {verdict.token: verdict for verdict in verdicts(sink, 3)}
    assert found == {token: Settled(token, count) for token, count in (("a", 50), ("b", 0), ("c", 1))}
    seen = arrived(mock.bootstrap, "p", 51)
    assert sorted(sequences(seen)) == list(range(51))
    assert {arrival.topic for arrival in seen} == {"p.observations", "p.alerts"}
    alert = next(arrival for arrival in seen if arrival.topic == "p.alerts")
    assert (alert.key, alert.headers) == ("ICU-2", {"dedup": "gw/i/50"})
    until(lambda: sink.state() == ("connected", ""), lambda: sink.settle(0.1))


def test_a_full_queue_only_delays_and_keeps_order(mock: EmbeddedKafka, opened: Callable[..., KafkaSink]) -> None:
    sink = opened({"bootstrap.servers": mock.bootstrap, "queue.buffering.max.messages": 7}, "p")
    for start in range(0, 300, 100):
        sink.begin(start, [message(n) for n in range(start, start + 100)])
    assert [(verdict.token, verdict.accepted) for verdict in verdicts(sink, 3)] == [(0, 100), (100, 100), (200, 100)]
    assert sequences(arrived(mock.bootstrap, "p", 300)) == list(range(300))


def test_reset_forgets_what_is_open(opened: Callable[..., KafkaSink]) -> None:
    sink = opened({"bootstrap.servers": "127.0.0.1:9"}, "p")  # the discard port: nobody listens
    sink.begin("lost", [message(1)])
    until(lambda: sink.state()[1] not in ("", "connecting"), lambda: sink.settle(0.1))
    assert sink.state()[0] == "waiting"
    sink.reset()
    sink.begin("again", [message(1)])
    assert sink.settle(0.2) == []


def test_settings_name_the_key_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("this is no certificate")
    for text, key, reason in (
        ('options = {"lingering.ms" = 5}', "options.lingering.ms", "No such configuration property"),
        ('options = {"linger.ms" = "soon"}', "options.linger.ms", "Invalid value"),
        ('options = {"acks" = "1"}', "options.acks", "not an option"),
        ('options = {"sasl.password" = "x"}', "options.sasl.password", "not an option"),
        ('options = {"max.in.flight" = 5}', "options.max.in.flight", "not an option"),
    ):
        given = loaded(tmp_path, f'bootstrap = "b:1"\nsecurity = "plaintext"\n{text}')
        with pytest.raises(config.ConfigError, match=re.escape(f"site.toml:9: cloud.kafka.{key}: ")) as caught:
            properties(given)
        assert reason in str(caught.value)
    for text, key, reason in (
        ('security = "tls"\nca = "no.pem"', "ca", "ssl.ca.location failed"),
        ('security = "tls"\nca = "absent.pem"', "ca", "No such file"),
        ('security = "sasl_plaintext"\nsasl_username = "u"\nsasl_password = "file:absent"', "sasl_password", "absent"),
        (
            'security = "sasl_plaintext"\nsasl_username = "u"\nsasl_password = "credential:k"',
            "sasl_password",
            "systemd",
        ),
    ):
        with pytest.raises(config.ConfigError, match=f"cloud.kafka.{key}: ") as caught:
            properties(loaded(tmp_path, f'bootstrap = "b:1"\n{text}'))
        assert reason in str(caught.value)


def test_options_reach_librdkafka(tmp_path: Path) -> None:
    given = loaded(
        tmp_path, 'bootstrap = "b:1"\nsecurity = "plaintext"\noptions = {"linger.ms" = 7, "batch.size" = 999}'
    )
    assert properties(given) == {
        "bootstrap.servers": "b:1",
        "security.protocol": "PLAINTEXT",
        "linger.ms": 7,
        "batch.size": 999,
    }


@pytest.mark.kafka
@pytest.mark.parametrize("way", ["tls", "mtls", "sasl_tls"])
def test_secured_listeners(
    way: str, kafka: Broker, prefix: str, tmp_path: Path, opened: Callable[..., KafkaSink]
) -> None:
    (tmp_path / "password").write_text(SASL_PASSWORD + "\n")
    text = {
        "tls": f'bootstrap = "{kafka.tls}"\nsecurity = "tls"\nca = "{kafka.authority.path}"',
        "mtls": f'bootstrap = "{kafka.mtls}"\nca = "{kafka.authority.path}"\n'
        f'certificate = "{kafka.client.certificate}"\nprivate_key = "{kafka.client.private_key}"',
        "sasl_tls": f'bootstrap = "{kafka.sasl}"\nsecurity = "sasl_tls"\nca = "{kafka.authority.path}"\n'
        f'sasl_username = "{SASL_USER}"\nsasl_password = "file:password"',
    }[way]
    sink = opened(properties(loaded(tmp_path, text)), prefix)
    sink.begin("a", [message(n) for n in range(20)])
    assert verdicts(sink, 1) == [Settled("a", 20)]
    assert sequences(arrived(kafka.bootstrap, prefix, 20)) == list(range(20))


@pytest.mark.kafka
def test_a_broker_of_another_authority_is_not_trusted(
    kafka: Broker, prefix: str, tmp_path: Path, opened: Callable[..., KafkaSink]
) -> None:
    other = Authority(tmp_path / "other", "somebody else")
    text = f'bootstrap = "{kafka.tls}"\nsecurity = "tls"\nca = "{other.path}"'
    sink = opened(properties(loaded(tmp_path, text)), prefix)
    sink.begin("a", [message(1)])
    until(lambda: sink.state()[0] == "fatal", lambda: sink.settle(0.1))
    assert "certificate verify failed" in sink.state()[1]
    assert sink.settle(0.5) == [], "the message is kept, not settled"


@pytest.mark.kafka
@pytest.mark.parametrize("way", ["mtls without a certificate", "wrong password"])
def test_a_refused_login_is_told(
    way: str, kafka: Broker, prefix: str, tmp_path: Path, opened: Callable[..., KafkaSink]
) -> None:
    (tmp_path / "password").write_text("guess")
    text = {
        "mtls without a certificate": f'bootstrap = "{kafka.mtls}"\nsecurity = "tls"\nca = "{kafka.authority.path}"',
        "wrong password": f'bootstrap = "{kafka.sasl}"\nsecurity = "sasl_tls"\nca = "{kafka.authority.path}"\n'
        f'sasl_username = "{SASL_USER}"\nsasl_password = "file:password"',
    }[way]
    sink = opened(properties(loaded(tmp_path, text)), prefix)
    sink.begin("a", [message(1)])
    until(lambda: sink.state()[0] == "fatal", lambda: sink.settle(0.1))
    assert ("alert" if "mtls" in way else "Authentication failed") in sink.state()[1]
    assert sink.settle(0.5) == []


@pytest.mark.kafka
def test_a_missing_permission_keeps_everything_until_it_is_granted(
    kafka: Broker, prefix: str, tmp_path: Path, opened: Callable[..., KafkaSink]
) -> None:
    (tmp_path / "password").write_text(SASL_PASSWORD)
    text = (
        f'bootstrap = "{kafka.sasl}"\nsecurity = "sasl_tls"\nca = "{kafka.authority.path}"\n'
        f'sasl_username = "{STRANGER}"\nsasl_password = "file:password"'
    )
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    kafka.create(f"{prefix}.observations")
    sink = opened(properties(loaded(tmp_path, text)), prefix)
    sink.begin("a", [message(1)])
    (verdict,) = verdicts(sink, 1)
    assert verdict.accepted == 0
    assert isinstance(verdict.keep, Fatal)
    assert "authorization failed" in str(verdict.keep).lower()
    assert sink.state()[0] == "fatal"
    rights = [
        AclBinding(
            ResourceType.TOPIC, f"{prefix}.observations", ResourcePatternType.LITERAL, f"User:{STRANGER}", "*",
            operation, AclPermissionType.ALLOW,
        )
        for operation in (AclOperation.WRITE, AclOperation.DESCRIBE)
    ]  # fmt: skip
    for granted in admin.create_acls(rights).values():
        granted.result(30)

    def settled() -> bool:
        sink.reset()
        sink.begin("a", [message(1)])
        return verdicts(sink, 1) == [Settled("a", 1)]

    until(settled, lambda: time.sleep(0.05))
    assert sequences(arrived(kafka.bootstrap, prefix, 1)) == [1]


@pytest.mark.kafka
def test_an_oversized_record_is_dropped_alone(kafka: Broker, prefix: str, opened: Callable[..., KafkaSink]) -> None:
    """The topic takes 20 kB a batch, librdkafka makes larger ones: only the one record that is too large may go."""
    kafka.create(f"{prefix}.observations", 1, max_message_bytes="20000")
    noise = random.Random(7)
    messages = [message(n, filling=noise.randbytes(500).hex()) for n in range(200)]  # 1 kB that does not compress well
    messages[120] = message(120, filling=noise.randbytes(30_000).hex())
    messages[121] = message(121, filling=noise.randbytes(600_000).hex())  # more than librdkafka itself accepts
    batches = {0: messages[:100], 1: messages[100:]}
    sink = opened(plain(kafka), prefix)
    done: dict[object, Settled] = {}
    resets = 0
    for token, batch in batches.items():
        sink.begin(token, batch)
    end = time.monotonic() + DEADLINE_S
    while len(done) < 2:
        assert time.monotonic() < end
        for verdict in sink.settle(0.2):
            if verdict.keep is None:
                done[verdict.token] = verdict
                continue
            assert isinstance(verdict.keep, Retry)
            resets += 1
            sink.reset()
            for token in batches:
                if token not in done:
                    sink.begin(token, batches[token])
            break
    assert resets, "the broker never refused a batch: the test does not test"
    assert (done[0].accepted, done[0].rejected) == (100, ())
    assert done[1].accepted == 98
    assert {rejected.dedup for rejected in done[1].rejected} == {"gw/i/120", "gw/i/121"}
    found = sequences(arrived(kafka.bootstrap, prefix, 198))
    assert set(found) == set(range(200)) - {120, 121}
    first_seen = list(dict.fromkeys(found))
    assert first_seen == sorted(first_seen), "order within a bed"
    sink.begin("after", [message(n, filling=noise.randbytes(200).hex()) for n in range(200, 210)])
    assert verdicts(sink, 1) == [Settled("after", 10)]


@pytest.mark.kafka
def test_an_unknown_topic_keeps_everything_until_it_exists(
    own_kafka: Broker, prefix: str, opened: Callable[..., KafkaSink]
) -> None:
    own_kafka.configure(auto_create_topics_enable="false").start()
    sink = opened({**plain(own_kafka), "topic.metadata.propagation.max.ms": 200}, prefix)
    sink.begin("a", [message(1)])
    (verdict,) = verdicts(sink, 1)
    assert isinstance(verdict.keep, Fatal)
    assert f"{prefix}.observations" in str(verdict.keep)
    own_kafka.create(f"{prefix}.observations")

    def settled() -> bool:
        sink.reset()
        sink.begin("a", [message(1)])
        return verdicts(sink, 1) == [Settled("a", 1)]

    until(settled, lambda: time.sleep(0.05))
