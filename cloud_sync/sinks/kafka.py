"""Kafka: the idempotent producer of librdkafka, acks=all, no message timeout.

Theory of operation. Messages wait in librdkafka's queue for as long as the brokers are away; the forwarder bounds how
many those are, so an outage costs no memory. A delivery report settles each message, and the last one of a batch
settles the batch. What the report says decides: confirmed; refused for good; or kept, when something other than the
message is wrong (authorisation, an unknown topic, a clock the broker does not accept).

A broker judges size and validity by the batch that librdkafka formed on the way, so one oversized record takes
innocent neighbours with it. Such a refusal therefore keeps everything and, after `reset`, the unsettled batches go
one message a request; only a refusal met there is the message's own. Then batches return, half as large when no
single message was to blame.

Order within a bed holds through all of this: one request a partition is under way at a time, and the producer stops
at the first batch that fails (librdkafka's gapless guarantee), because a broker that meets a new producer would accept
the batch behind the missing one.

One producer serves one stream, so that alerts have a connection and a queue of their own.

Source: librdkafka CONFIGURATION.md and the idempotent-producer chapter of its INTRODUCTION.md.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from cloud_sync.sinks import Fatal, Message, Rejected, Retry, Settled, State
from cloud_sync.sinks.kafka_contact import PASSING, REFUSED_BATCH, SLOW_S, Contact, identity, in_words, unconfirmed
from cloud_sync.sinks.kafka_properties import DEFAULTS, Properties

LOG = logging.getLogger("cloud_sync.kafka")

BATCH_BYTES = 256 * 1024  # a quarter of the default limit of a topic (1 MiB), so that batches fit stricter ones too
BATCH_BYTES_LEAST = 16 * 1024


class Topics(dict[str, str]):
    """The configured name of each topic, under the one that a message has."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __missing__(self, topic: str) -> str:
        name = self[topic] = f"{self._prefix}.{topic}"
        return name


class _Batch:
    """What is still open of one batch; its method is the delivery callback."""

    __slots__ = ("accepted", "keep", "messages", "open", "rejected", "sink", "taken", "token")

    def __init__(self, sink: KafkaSink, token: object, messages: Sequence[Message]) -> None:
        self.sink: KafkaSink | None = sink  # None once the sink was reset: late reports are nobody's
        self.token = token
        self.messages = messages
        self.taken = 0  # messages that were handed to librdkafka, or rejected
        self.open = len(messages)
        self.accepted = 0
        self.rejected: list[Rejected] = []
        self.keep: Retry | Fatal | None = None

    def delivered(self, error: Any, message: Any) -> None:
        """One message's fate, called by librdkafka inside `poll`."""
        if self.sink is None:
            return
        if error is None:
            self.accepted += 1
        else:
            self.sink.failed(self, error, message)
        self.close(1)

    def close(self, count: int) -> None:
        self.open -= count
        if self.open <= 0 and self.sink is not None:
            self.sink.finished(self)


class KafkaSink:
    """A sinks.Sink over one producer of its own."""

    def __init__(self, given: Properties, prefix: str, client_id: str, linger_ms: int) -> None:
        """Raises: Fatal when librdkafka does not take the properties."""
        self._given, self._client_id, self._linger_ms, self._topics = given, client_id, linger_ms, Topics(prefix)
        self._batch_bytes = BATCH_BYTES
        self._singly = False  # one message a request
        self._singly_left = 0  # batches that still go so
        self._blame_batch = True  # no single message was refused since `_singly` began
        self._narrow = False  # the next producer sends singly
        self._open: dict[int, _Batch] = {}
        self._waiting: deque[_Batch] = deque()
        self._finished: list[_Batch] = []
        self._moved_at = 0.0  # a batch was confirmed, or the first one begun
        self._contact = Contact()
        self._refused = ""  # why messages were kept; cleared when one is confirmed
        self._stopped = ""  # what has ended this producer for good
        self._halted = False  # a batch was kept: nothing may overtake it, so nothing is sent before `reset`
        self._producer = self._create()

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its verdict comes out of `settle`."""
        batch = _Batch(self, token, messages)
        if not self._open:
            self._moved_at = time.monotonic()
        self._open[id(batch)] = batch
        if not messages:
            batch.close(0)
            return
        self._waiting.append(batch)
        self._pump()

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready, waiting up to `timeout_s` seconds for the first."""
        self._serve(0 if self._finished else timeout_s)
        if self._waiting:
            self._pump()
        out = [
            Settled(batch.token, 0 if batch.keep else batch.accepted, tuple(batch.rejected), batch.keep)
            for batch in self._finished
        ]
        self._finished.clear()
        return out

    def state(self) -> tuple[State, str]:
        """Whether a broker answers, and the last trouble in words."""
        if self._refused and not self._contact.login:
            return "fatal", self._refused
        state, detail = self._contact.state()
        age_s = time.monotonic() - self._moved_at
        if state == "connected" and self._open and age_s > SLOW_S:
            return "waiting", unconfirmed(age_s)
        return state, detail

    def reset(self) -> None:
        """Forgets every batch without a verdict, with a new producer. Raises: Fatal when it cannot be made."""
        unsettled = len(self._open) + len(self._finished)
        self._discard()
        if self._narrow:
            self._singly, self._narrow, self._blame_batch = True, False, True
            self._singly_left = max(1, unsettled)
        self._producer = self._create()

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts that still come within `timeout_s` seconds."""
        self._waiting.clear()
        with suppress(KafkaException):
            self._producer.flush(timeout_s)
        out = self.settle(0)
        self._discard()
        return out

    def failed(self, batch: _Batch, error: Any, message: Any) -> None:
        """Sorts a delivery error into rejected, Retry or Fatal."""
        code = error.code()
        if code in REFUSED_BATCH and self._singly:
            self._blame_batch = False
            batch.rejected.append(Rejected(identity(message, batch.messages), error.str()))
            return
        self._halted = True
        if code in REFUSED_BATCH:
            self._narrow = True
            batch.keep = Retry(f"{error.str()}: a batch was refused, its messages are sent one by one")
        elif code in PASSING or error.retriable():
            batch.keep = batch.keep or (Fatal(self._stopped) if self._stopped else Retry(error.str()))
        else:
            self._refused = in_words(error, message)
            batch.keep = Fatal(self._refused)

    def finished(self, batch: _Batch) -> None:
        """Moves a batch whose last message is settled to the verdicts."""
        self._open.pop(id(batch), None)
        self._finished.append(batch)
        if batch.accepted:
            self._refused, self._moved_at = "", time.monotonic()
        if self._singly:
            self._singly_left -= 1

    def _create(self) -> Producer:
        self._stopped, self._halted = "", False
        try:
            return Producer(
                {
                    **DEFAULTS,
                    "client.id": self._client_id,
                    "linger.ms": self._linger_ms,
                    **self._given,
                    "batch.size": min(self._batch_bytes, int(self._given.get("batch.size", self._batch_bytes))),
                    "batch.num.messages": 1 if self._singly else self._given.get("batch.num.messages", 10_000),
                    "enable.idempotence": True,
                    "enable.gapless.guarantee": not self._singly,  # singly, a refused message is a gap that is meant
                    "max.in.flight.requests.per.connection": 1,
                    "acks": "all",
                    "message.timeout.ms": 0,  # never: the buffer's quota decides how long a record is kept
                    "statistics.interval.ms": 1_000,
                    "error_cb": self._error,
                    "stats_cb": self._contact.statistics,
                },
                logger=LOG,
            )
        except KafkaException as error:
            raise Fatal(error.args[0].str()) from error

    def _discard(self) -> None:
        for batch in (*self._open.values(), *self._finished):
            batch.sink = None
        self._open.clear()
        self._waiting.clear()
        self._finished.clear()
        self._producer.purge(in_queue=True, in_flight=True, blocking=True)
        self._serve(0)

    def _serve(self, timeout_s: float) -> None:
        """Lets librdkafka report, waiting up to `timeout_s` seconds."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:  # raised once, by what has stopped the producer; the reports still follow
            if error.args[0].code() != KafkaError._GAPLESS_GUARANTEE:
                self._stopped = self._refused = error.args[0].str()

    def _pump(self) -> None:
        """Hands waiting messages to librdkafka, in order, until its queue is full."""
        if self._halted or (self._singly and self._singly_left <= 0 and not self._batches_again()):
            return
        produce: Any = self._producer.produce
        topics = self._topics
        while self._waiting:
            batch = self._waiting[0]
            delivered = batch.delivered
            for message in batch.messages[batch.taken :]:
                try:
                    topic = topics[message.topic]
                    produce(topic, message.value, message.key, on_delivery=delivered, headers=message.headers)
                except BufferError:
                    return
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                        self._refused = error.args[0].str()
                        self._halted = True
                        batch.keep = Fatal(self._refused)
                        self._waiting.popleft()
                        batch.close(len(batch.messages) - batch.taken)
                        return
                    batch.rejected.append(Rejected(message.dedup, error.args[0].str()))
                    batch.close(1)
                batch.taken += 1
            self._waiting.popleft()

    def _batches_again(self) -> bool:
        """Ends sending singly once nothing is under way; False while something is."""
        if len(self._producer):
            return False
        self._singly = False
        if self._blame_batch:
            self._batch_bytes = max(BATCH_BYTES_LEAST, self._batch_bytes // 2)
        self._producer = self._create()
        return True

    def _error(self, error: Any) -> None:
        self._contact.error(error)
        if error.fatal():
            self._contact.login = error.str()
