"""The progress markers of a stream: which block of which buffer file the topics hold last, told by the cluster itself.

Theory of operation. A compacted topic of one partition, `<prefix>-progress.<stream>`, holds for each gateway and
instance of its buffer the newest block whose records were committed; the marker is written in the same transaction as
the records, so it is true by itself. A search makes the topic when it is missing, asks for the end of the partition as
it is then, aborted and open transactions included, and reads committed markers up to there. Another gateway's open
transaction delays it, at most until that transaction has timed out.

Source: Kafka protocol, ListOffsets and Fetch with isolation levels; librdkafka's enable.partition.eof.
"""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from cloud_sync.sinks import Refused, Retry
from cloud_sync.sinks.kafka_contact import PASSING
from cloud_sync.sinks.kafka_properties import DEFAULTS, Properties

PARTITION = 0
_REQUEST_S = 10.0  # for a broker's answer to one question
_TOPIC = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),  # only closed segments are compacted: small ones keep the reading at start short
    "segment.ms": str(3_600_000),
    "min.cleanable.dirty.ratio": "0.1",
}
_NOT_ALLOWED = frozenset((KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                          KafkaError.GROUP_AUTHORIZATION_FAILED))  # fmt: skip
_ABSENT = frozenset((KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION))
_NO_TRANSACTIONS = frozenset((KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE))


class Marker(msgspec.Struct):
    """What a transaction notes beside its records."""

    instance: str
    block: int
    writer: str  # one run of a forwarder
    version: int = 1


class Progress(NamedTuple):
    """What the cluster knows of one gateway's stream."""

    blocks: dict[str, int]  # instance -> newest block
    writer: str  # of the newest marker; empty when there is none


def topic_of(prefix: str, stream: str) -> str:
    """The topic of a stream's markers; not below `<prefix>.`, which consumers of records subscribe to."""
    return f"{prefix}-progress.{stream}"


def key_of(gateway: str, instance: str) -> str:
    """The key that compaction goes by."""
    return f"{gateway}/{instance}"


class Search:
    """One reading of the markers, from the first question to the end of the partition."""

    def __init__(self, given: Properties, topic: str, gateway: str) -> None:
        self._topic, self._gateway = topic, gateway
        shared: dict[str, Any] = {
            **{name: value for name, value in DEFAULTS.items() if name.startswith(("socket", "reconnect", "log_"))},
            **{name: value for name, value in given.items() if name in _CONNECTION or name.startswith(_SECRETS)},
        }
        self._admin = AdminClient(shared)
        self._consumer = Consumer(
            {
                **shared,
                "group.id": f"bedside-edge-{gateway}",  # asked for by librdkafka; no group is joined
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        self._asked: Future[Any] | None = None
        self._made = self._forbidden = False
        self._end = -1
        self._blocks: dict[str, int] = {}
        self._writer = ""

    def read(self, timeout_s: float) -> Progress | None:
        """The markers; None when it takes longer than `timeout_s` seconds: call again.

        Raises: Refused when this user may not have such a topic; Retry when the brokers do not tell.
        """
        try:
            if not self._made:
                self._make(timeout_s)
                return None
            if self._end < 0:
                self._ask_end(timeout_s)
                return Progress({}, "") if self._end == 0 else None
        except NotYet:
            return None
        except KafkaException as error:
            self._asked = None
            self._judge(error.args[0])
            return None
        for message in self._consumer.consume(1_000, timeout_s):
            trouble = message.error()
            if trouble is None:
                self._take(message)
            elif trouble.code() != KafkaError._PARTITION_EOF:
                self._judge(trouble)
            elif (message.offset() or 0) >= self._end:
                return Progress(self._blocks, self._writer)
        return None

    def close(self) -> None:
        """Leaves the cluster."""
        with suppress(KafkaException, RuntimeError):
            self._consumer.close()

    def _make(self, timeout_s: float) -> None:
        if self._asked is None:
            wanted = NewTopic(self._topic, 1, -1, config=_TOPIC)  # -1: as many replicas as the cluster gives by default
            self._asked = self._admin.create_topics([wanted], request_timeout=_REQUEST_S)[self._topic]
        try:
            self._asked.result(timeout_s)
        except KafkaException as error:
            code = error.args[0].code()
            if code not in (KafkaError.TOPIC_ALREADY_EXISTS, *_NOT_ALLOWED):
                raise
            self._forbidden = code in _NOT_ALLOWED  # it may be there all the same
        self._made, self._asked = True, None

    def _ask_end(self, timeout_s: float) -> None:
        """The end that must be reached; before it the topic's state is not known."""
        place = TopicPartition(self._topic, PARTITION)
        if self._asked is None:
            self._asked = self._admin.list_offsets(
                {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=_REQUEST_S,
            )[place]
        self._end, self._asked = self._asked.result(timeout_s).offset, None
        self._consumer.assign([TopicPartition(self._topic, PARTITION, OFFSET_BEGINNING)])

    def _take(self, message: Any) -> None:
        gateway, _, instance = (message.key() or b"").decode(errors="replace").rpartition("/")
        if gateway != self._gateway:
            return
        try:
            marker = msgspec.json.decode(message.value() or b"", type=Marker)
        except msgspec.DecodeError as error:
            raise Retry(f"{self._topic}: the marker at offset {message.offset()} cannot be read: {error}") from error
        self._blocks[instance], self._writer = marker.block, marker.writer

    def _judge(self, error: Any) -> None:
        code = error.code()
        if code in _NO_TRANSACTIONS:
            raise Refused(error.str())
        if code in _NOT_ALLOWED or (self._forbidden and code in _ABSENT):
            raise Refused(
                f"{self._topic}: {error.str()}; create it with cleanup.policy=compact and allow this user Read,"
                " Write and Describe on it"
            )
        if not (error.retriable() or code in PASSING or code in _ABSENT):  # absent: made a moment ago
            raise Retry(f"{self._topic}: {error.str()}")


_CONNECTION = frozenset(
    ("bootstrap.servers", "security.protocol", "client.rack", "client.dns.lookup", "broker.address.family",
     "broker.address.ttl", "api.version.request", "log_level")
)  # fmt: skip
_SECRETS = ("ssl.", "sasl.", "socket.", "reconnect.", "enable.ssl")
