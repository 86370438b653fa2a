"""Exactly once to a real Kafka: what a read_committed consumer finds is everything, and each record one time."""

from __future__ import annotations

import json
import random
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buffer_rig import Rig, alert, numeric
from cloud_site import Site, alarm, batches, drained, each_once, on_topic, plain, seen, until
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from jsonschema import Draft202012Validator
from kafka_broker import SASL_PASSWORD, STRANGER, Broker
from test_buffer_quota import noise

from cloud_sync import encode
from cloud_sync.embedded import Arrival, Arrivals
from cloud_sync.sinks import Fatal, Message, Resend, Retry, Settled
from cloud_sync.sinks.kafka_properties import Properties
from cloud_sync.sinks.kafka_transactions import Pace, TransactionalSink
from edge_agent.buffer import load_kek

pytestmark = pytest.mark.kafka
EXACTLY, AT_LEAST = "exactly once (read_committed)", "at least once"
SCHEMAS = Path(encode.__file__).parent / "schemas"


@pytest.fixture
def prefix() -> str:
    return f"x{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(kafka: str, prefix: str) -> Site:
        folder = tmp_path / f"site-{len(sites)}"
        folder.mkdir()
        sites.append(Site(folder, kafka, prefix))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def test_a_forwarder_killed_in_its_transactions_sends_nothing_twice(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    site = make_site(plain(kafka), prefix)
    site.store([alarm(number)] for number in range(50))
    chance = random.Random(5)
    on_the_way = Arrivals(kafka.bootstrap, prefix, {"isolation.level": "read_uncommitted", "group.id": "uncommitted"})
    known: set[str] = set()
    arrived = [0, 0]  # observations in transactions of any fate, and how many of them had come before

    def look() -> None:
        for arrival in on_the_way.poll(0.02):
            if arrival.topic.endswith("observations"):
                arrived[0] += 1
                arrived[1] += arrival.headers["dedup"] in known
                known.add(arrival.headers["dedup"])

    total = kills = 0
    while kills < 8 or (not arrived[1] and kills < 40):  # until one has come in the midst of a transaction
        site.store(batches(total, total + 20_000))
        total += 20_000
        child = site.run()
        wanted = arrived[0] + (1 if kills % 2 else chance.randrange(1, 10_000))
        until(lambda wanted=wanted: arrived[0] >= wanted, look)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        kills += 1
    child = site.run()
    drained(site)
    assert site.status()["guarantee"] == EXACTLY
    found = seen(kafka.bootstrap, prefix, total, 50)
    each_once(found, "observations", total)
    each_once(found, "alerts", 50)
    on_the_way.close()
    assert arrived[1], "no transaction was aborted: the test does not test"
    assert site.end(child) == 0


def test_a_broker_that_comes_and_goes_gets_nothing_twice(own_kafka: Broker, make_site: Callable[..., Site]) -> None:
    """Killed while transactions are written and committed: outcomes that nobody hears are asked for again."""
    total = 0
    own_kafka.start()
    site = make_site(plain(own_kafka), "site")
    child = site.run()
    until(site.status)
    chance = random.Random(9)
    for stop in (own_kafka.kill, own_kafka.stop, own_kafka.kill):
        site.store(batches(total, total + 20_000))
        before = site.status()["forwarded"]["data"]
        wanted = before + chance.randrange(1, 12_000)
        total += 20_000
        until(lambda wanted=wanted: site.status()["forwarded"]["data"] >= wanted)
        stop()
        own_kafka.start()
    drained(site)
    found = seen(own_kafka.bootstrap, "site", total)
    each_once(found, "observations", total)
    assert site.status()["error"] == ""
    assert site.status()["forwarded"]["data"] == total, "what an unheard commit has brought is counted too"
    assert site.end(child) == 0


def test_the_older_of_two_with_one_identity_stops_and_says_so(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    site = make_site(plain(kafka), prefix)
    site.store(batches(0, 1_000))
    older = site.run()
    drained(site)
    copy = make_site(plain(kafka), prefix)  # a cloned card
    shutil.rmtree(copy.data_dir, ignore_errors=True)
    shutil.copytree(site.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("lock"))
    shutil.copy(site.key, copy.key)
    newer = copy.run()
    copy.store([*batches(2_000, 3_000), [alarm(2)]])
    until(lambda: copy.status().get("pid") == newer.pid and copy.status()["forwarded"] == {"alerts": 1, "data": 1_000})
    site.store([*batches(1_000, 1_500), [alarm(1)]])  # both identities are the newer's by now
    until(lambda: site.status()["streams"]["alerts"]["state"] == "fatal" and site.status()["state"] == "fatal")
    assert "fenced" in site.status()["streams"]["alerts"]["detail"]
    assert "gateway id of its own" in site.command("status").stdout
    until(lambda: site.status()["streams"]["data"]["state"] == "fatal")
    until(lambda: site.log().count("state=fatal") >= 2)
    assert site.status()["forwarded"]["data"] == 1_000, "the older has sent nothing more"
    assert copy.status()["state"] == "connected", "the newer was not thrown out in return"
    values = [message["at_ns"] // 1_000 for message in on_topic(seen(kafka.bootstrap, prefix, 2_000), "observations")]
    assert sorted(values) == [*range(1_000), *range(2_000, 3_000)]
    assert site.end(older) == 0
    assert copy.end(newer) == 0


def test_a_marker_that_is_ahead_of_the_mark_suppresses_the_resend(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    site = make_site(plain(kafka), prefix)
    site.store([*batches(0, 2_000), [alarm(1)]])
    child = site.run()
    drained(site)
    child.kill()
    child.wait(30)
    for stream in ("alerts", "data"):  # as after a power cut before the mark was durable
        (site.data_dir / "marks" / f"{stream}.json").unlink()
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid and site.status()["backlog_records"] == 0)
    site.store([*batches(2_000, 2_500)])
    found = seen(kafka.bootstrap, prefix, 2_500, 1)
    drained(site)
    each_once(found, "observations", 2_500)
    each_once(found, "alerts", 1)
    assert site.status()["forwarded"] == {"alerts": 0, "data": 500}
    assert (site.data_dir / "marks" / "data.json").exists(), "the mark follows the marker"
    assert site.end(child) == 0


def test_a_marker_that_is_gone_is_told_and_what_is_left_is_sent_again(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    site = make_site(plain(kafka), prefix)
    site.store(batches(0, 1_000))
    child = site.run()
    drained(site)
    assert site.end(child) == 0
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for name, gone in admin.delete_topics([f"{prefix}-progress.data", f"{prefix}.observations"]).items():
        gone.result(30)
        until(lambda name=name: name not in admin.list_topics(timeout=10).topics)
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid and site.status()["error"] != "")
    assert "made anew" in site.status()["error"]
    assert "ERROR" in site.command("status").stdout
    found = seen(kafka.bootstrap, prefix, 1_000)
    each_once(found, "observations", 1_000)
    assert site.end(child) == 0


def test_a_cluster_that_refuses_transactions_gets_at_least_once_and_status_says_so(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    rights = [
        AclBinding(
            ResourceType.TOPIC, f"{prefix}.", ResourcePatternType.PREFIXED, f"User:{STRANGER}", "*", operation,
            AclPermissionType.ALLOW,
        )
        for operation in (AclOperation.WRITE, AclOperation.DESCRIBE, AclOperation.CREATE)
    ]  # fmt: skip
    for granted in admin.create_acls(rights).values():
        granted.result(30)
    site = make_site(
        f'bootstrap = "{kafka.sasl}"\nsecurity = "sasl_tls"\nca = "{kafka.authority.path}"\n'
        f'sasl_username = "{STRANGER}"\nsasl_password = "file:password"',
        prefix,
    )
    (site.folder / "password").write_text(SASL_PASSWORD)
    site.store([*batches(0, 1_000), [alarm(1)]])
    child = site.run()
    drained(site)
    status = site.status()
    assert status["guarantee"] == AT_LEAST
    assert "authorization failed" in status["guarantee_detail"].lower()
    assert {item["guarantee"] for item in status["streams"].values()} == {AT_LEAST}
    assert "because" in site.command("status").stdout
    each_once(seen(kafka.bootstrap, prefix, 1_000, 1), "observations", 1_000)
    assert site.end(child) == 0
    site.write(plain(kafka))  # now a user who may: what was delivered before any marker is not sent again
    site.store(batches(1_000, 1_500))
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid and site.status()["forwarded"]["data"] == 500)
    until(lambda: site.status()["guarantee"] == EXACTLY and site.status()["backlog_records"] == 0)
    assert site.status()["error"] == ""
    assert (site.data_dir / "cloud-sync" / "data.guarantee").read_text() == EXACTLY
    each_once(seen(kafka.bootstrap, prefix, 1_500, 1), "observations", 1_500)
    assert site.end(child) == 0


class Token:
    """A block under way."""

    def __init__(self, block: int) -> None:
        self.position = ("instance", block)


def message(number: int, filling: str = "") -> Message:
    value = json.dumps({"gateway": "gw", "instance": "i", "sequence": number, "bed": "b", "filling": filling}).encode()
    return Message("observations", "ICU-1", value, f"gw/i/{number}".encode())


def given(broker: Broker) -> Properties:
    return {"bootstrap.servers": broker.bootstrap, "security.protocol": "PLAINTEXT"}


def resumed(sink: TransactionalSink) -> dict[str, int]:
    told: list[dict[str, int] | None] = [None]

    def ask() -> None:
        try:
            told.append(sink.resume(0.2))
        except Retry:  # a topic that was just made has no leader for a moment; the stream does the same
            sink.reset()

    until(lambda: told[-1] is not None, ask)
    assert told[-1] is not None
    return told[-1]


def verdict(sink: TransactionalSink) -> Settled:
    out: list[Settled] = []
    until(lambda: out, lambda: out.extend(sink.settle(0.2)))
    return out[0]


class Unheard:
    """A producer whose commits succeed, and the answer is lost."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def commit_transaction(self, _timeout: float) -> None:
        self._real.commit_transaction(30)
        raise KafkaException(KafkaError(KafkaError._STATE, "injected: the answer is lost"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_topic_that_may_not_be_written_is_told_and_keeps_everything(kafka: Broker, prefix: str) -> None:
    """Transactions are allowed and the topic is not: that is for a person, and no reason for a lesser promise."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    every = (AclOperation.WRITE, AclOperation.DESCRIBE, AclOperation.CREATE, AclOperation.READ)
    wanted = [(ResourceType.TOPIC, f"{prefix}-progress.", operation) for operation in every]
    wanted += [(ResourceType.TRANSACTIONAL_ID, f"{prefix}-gw-", operation) for operation in every[:2]]

    def allow(*rights: tuple[ResourceType, str, AclOperation]) -> None:
        for granted in admin.create_acls(
            [
                AclBinding(
                    kind, name, ResourcePatternType.PREFIXED, f"User:{STRANGER}", "*", right, AclPermissionType.ALLOW
                )
                for kind, name, right in rights
            ]
        ).values():
            granted.result(30)

    allow(*wanted)
    kafka.create(f"{prefix}.observations", 1)
    stranger: Properties = {
        "bootstrap.servers": kafka.sasl,
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(kafka.authority.path),
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": STRANGER,
        "sasl.password": SASL_PASSWORD,
    }
    sink = TransactionalSink(stranger, prefix, "gw", "data")
    assert resumed(sink) == {}
    token = Token(1)
    sink.begin(token, [message(1)])
    kept = verdict(sink)
    assert isinstance(kept.keep, Fatal)
    assert "authorization failed" in str(kept.keep).lower()
    assert sink.state()[0] == "fatal"
    allow(*((ResourceType.TOPIC, f"{prefix}.", operation) for operation in every[:2]))

    def settled() -> bool:
        sink.reset()
        resumed(sink)
        sink.begin(token, [message(1)])
        return verdict(sink) == Settled(token, 1)

    until(settled)
    sink.close(1.0)
    each_once(seen(kafka.bootstrap, prefix, 1), "observations", 1)


def test_an_outcome_that_is_not_known_is_told_by_the_marker(kafka: Broker, prefix: str) -> None:
    sink = TransactionalSink(given(kafka), prefix, "gw", "data")
    assert resumed(sink) == {}
    first, second = Token(1), Token(2)
    sink.begin(first, [message(1)])
    assert verdict(sink) == Settled(first, 1)
    sink._producer = Unheard(sink._producer)  # type: ignore[assignment]
    sink.begin(second, [message(2)])
    kept = verdict(sink)
    assert isinstance(kept.keep, Retry) and kept.token is second
    sink.reset()
    assert resumed(sink) == {"instance": 2}, "the marker knows what the commit's answer did not say"
    sink.begin(Token(3), [message(3)])
    assert verdict(sink).accepted == 1
    sink.close(1.0)
    each_once(seen(kafka.bootstrap, prefix, 3), "observations", 3)


def test_a_transaction_that_the_coordinator_has_ended_is_no_fence(kafka: Broker, prefix: str) -> None:
    """Held open longer than its time: the broker aborts it and the sink goes on, with nothing missing or twice."""
    kafka.create(f"{prefix}.observations", 1)
    sink = TransactionalSink(given(kafka), prefix, "gw", "data", Pace(5, 0.0, 1.0))
    resumed(sink)
    sink.begin(Token(1), [message(1)])
    until(lambda: len(sink._producer) == 0, lambda: sink._producer.poll(0.1))
    found: list[Arrival] = []
    reader = Arrivals(kafka.bootstrap, prefix, {"enable.partition.eof": False})
    other = TransactionalSink(given(kafka), prefix, "other", "data", Pace(5, 0.0, 30.0))
    resumed(other)
    other.begin(Token(1), [message(9)])
    assert verdict(other).accepted == 1
    # a reader sees what was committed behind an open transaction only when the coordinator has ended that one
    until(lambda: len(found) == 1, lambda: found.extend(reader.poll(0.2)))
    reader.close()
    other.close(1.0)
    kept = verdict(sink)
    assert isinstance(kept.keep, Retry) and not isinstance(kept.keep, Fatal)
    sink.reset()
    assert resumed(sink) == {}
    sink.begin(Token(1), [message(1)])
    assert verdict(sink).accepted == 1
    sink.close(1.0)
    arrived = seen(kafka.bootstrap, prefix, 2)
    assert sorted(found["sequence"] for found in on_topic(arrived, "observations")) == [1, 9]


def test_a_fenced_sink_never_takes_the_identity_back(kafka: Broker, prefix: str) -> None:
    older = TransactionalSink(given(kafka), prefix, "gw", "alerts")
    resumed(older)
    older.begin(Token(1), [message(1)])
    assert verdict(older).accepted == 1
    newer = TransactionalSink(given(kafka), prefix, "gw", "alerts")
    assert resumed(newer) == {"instance": 1}
    older.begin(Token(2), [message(2)])
    assert isinstance(verdict(older).keep, Fatal)
    for _ in range(3):
        older.reset()
        with pytest.raises(Fatal, match="fenced"):
            older.resume(0.1)
    assert older.state()[0] == "fatal"
    newer.begin(Token(2), [message(3)])
    assert verdict(newer).accepted == 1
    older.close(0.1)
    newer.close(1.0)


def test_a_refused_record_goes_alone_and_the_rest_of_its_transaction_arrives(kafka: Broker, prefix: str) -> None:
    kafka.create(f"{prefix}.observations", 1, max_message_bytes="20000")
    noise = random.Random(7)
    messages = [message(number, noise.randbytes(500).hex()) for number in range(100)]
    messages[60] = message(60, noise.randbytes(30_000).hex())
    messages[61] = message(61, noise.randbytes(30_000).hex())
    messages[62] = message(62, noise.randbytes(600_000).hex())  # more than librdkafka itself accepts
    sink = TransactionalSink(given(kafka), prefix, "gw", "data")
    token, resends = Token(1), 0
    while True:
        resumed(sink)
        sink.begin(token, messages)
        done = verdict(sink)
        if done.keep is None:
            break
        assert isinstance(done.keep, Resend)
        resends += 1
        sink.reset()
        assert resends < 10
    assert resends >= 3, "once to send singly, once for each that the broker refuses"
    assert done.accepted == 97
    assert {one.dedup for one in done.rejected} == {"gw/i/60", "gw/i/61", "gw/i/62"}
    sink.close(1.0)
    each_once(seen(kafka.bootstrap, prefix, 97), "observations", 97)


def test_what_the_quota_has_shed_is_told_to_kafka_once(
    kafka: Broker, prefix: str, make_site: Callable[..., Site]
) -> None:
    """The forwarder stands still while the buffer overflows, goes on, and is killed on the way."""
    site = make_site(plain(kafka), prefix)
    child = site.run()
    until(lambda: site.status().get("state") == "connected")
    child.send_signal(signal.SIGSTOP)
    rig = Rig(site.data_dir, load_kek(f"file:{site.key}"), quota_mb=1)
    for number in range(250):  # 2 MB of waveforms that do not compress
        rig.append(noise(number), numeric(number))
        if number % 10 == 0:
            rig.commit(alert(number))
    rig.commit(numeric(250), alert(250))
    issued = 2 * 250 + 1
    rig.buffer.prune()
    rig.wait(lambda: rig.buffer.stats()["pending"] == 0)
    rig.close()
    child.send_signal(signal.SIGCONT)
    until(lambda: site.status()["forwarded"]["alerts"] > 0)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid and site.status().get("backlog_records") == 0)
    found = seen(kafka.bootstrap, prefix, 251, 26)
    told = [arrival for arrival in found if arrival.headers["schema"] == "gap"]
    assert told and {arrival.topic for arrival in told} == {f"{prefix}.alerts"}
    each_once(found, "alerts", 26 + len(told))
    each_once(found, "observations", 251)
    schema = Draft202012Validator(json.loads((SCHEMAS / "gap.json").read_text()))
    gaps: list[dict[str, Any]] = []
    for arrival in told:
        message = json.loads(arrival.value)
        schema.validate(message)
        gaps.append(message["record"])
    assert {(gap["reason"], gap["priority"]) for gap in gaps} == {("quota", 2)}
    data = [*on_topic(found, "observations"), *on_topic(found, "waveforms")]
    assert {gap["instance"] for gap in gaps} == {message["instance"] for message in data}
    assert sum(gap["count"] for gap in gaps) == issued - len(data)
    spans = {sequence for gap in gaps for sequence in range(gap["first"], gap["last"] + 1)}
    assert {*range(1, issued + 1)} - {message["sequence"] for message in data} <= spans
    assert site.end(child) == 0
