"""Whether the brokers answer: what librdkafka reports about connections, and which errors mean what.

Source: librdkafka STATISTICS.md and the error codes of rdkafka.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from confluent_kafka import KafkaError

from cloud_sync.sinks import CONNECTING, Message, State

REFUSED_BATCH = frozenset((KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD))
PASSING = frozenset((KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._PURGE_QUEUE,
                     KafkaError._PURGE_INFLIGHT))  # fmt: skip
LOGIN = frozenset((KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL,
                   KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM))  # fmt: skip
_REMEDY = {
    KafkaError.INVALID_TIMESTAMP: "; the gateway's clock is ahead of the broker's: set it right, or give the topic"
    " message.timestamp.type=LogAppendTime",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "; create the topic, or let the broker create topics",
    KafkaError._UNKNOWN_TOPIC: "; create the topic, or let the broker create topics",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "; allow this user Write and Describe on the topic",
}
SLOW_S = 10.0  # from sending to saying that nothing is confirmed; a slow link takes some seconds
A_PERSON_S = frozenset(_REMEDY)  # errors that stay until a person has changed something
_REFUSAL = "SSL alert number"  # how OpenSSL words that the broker did not accept our certificate, or its absence


class _Broker(msgspec.Struct):
    state: str = ""
    source: str = ""


class _Statistics(msgspec.Struct):
    brokers: dict[str, _Broker] = {}


_STATISTICS = msgspec.json.Decoder(_Statistics)


class Contact:
    """What one producer says of its brokers; its methods are librdkafka's callbacks."""

    def __init__(self) -> None:
        self.up = False
        self.trouble = CONNECTING
        self.login = ""  # why the brokers do not let us in; cleared when one does

    def error(self, error: Any) -> None:
        """Takes what librdkafka reports about a connection."""
        code = error.code()
        if code in LOGIN or _REFUSAL in error.str():
            self.login = error.str()
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self.up = False
        elif not error.fatal():
            self.trouble = error.str()

    def statistics(self, text: str) -> None:
        """Takes librdkafka's statistics, once a second."""
        self.up = any(
            broker.state == "UP" and broker.source in ("configured", "learned")
            for broker in _STATISTICS.decode(text).brokers.values()
        )
        if self.up:
            self.login = ""

    def state(self) -> tuple[State, str]:
        """Whether a broker answers, and the last trouble in words."""
        if self.login:
            return "fatal", self.login
        return ("connected", "") if self.up else ("waiting", self.trouble)


def unconfirmed(age_s: float) -> str:
    """What the state says when brokers answer and confirm nothing."""
    return (
        f"a broker answers, and what was sent {age_s:.0f} s ago is not confirmed: perhaps too few brokers are up for"
        " min.insync.replicas, or the way to them is slow; the buffer keeps every record"
    )


def in_words(error: Any, report: Any = None) -> str:
    """An error with the topic that its delivery report names, and what to do."""
    topic = f"{report.topic()}: " if report is not None and report.topic() else ""
    return f"{topic}{error.str()}{_REMEDY.get(error.code(), '')}"


def identity(report: Any, messages: Iterable[Message]) -> str:
    """The `dedup` identity of a message whose delivery report has come; the report tells its value, no headers."""
    value = report.value()
    return next((message.dedup for message in messages if message.value == value), "")
