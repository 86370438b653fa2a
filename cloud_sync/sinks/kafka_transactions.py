"""Kafka, exactly once: records and progress marker in one transaction.

Theory of operation. A transaction takes whole batches, then a marker that names the last of them, and is committed;
only then are its batches settled. A consumer with `isolation.level=read_committed` sees all of it or nothing. Which
batches the topics hold is therefore known from the marker alone, not from what this process remembers: after every
start and every trouble the sink makes a new producer, asks for its transactional id (which ends what an older producer
left open), reads the marker to the end of its topic, and tells the caller where to go on. An outcome that stays unknown
needs no other treatment.

                  init, marker read            begin              commit
       new ──────────────────────────▶ ready ─────────▶ open ─────────────────▶ ready
        ▲                                                 │
        └───────── reset by the caller ◀──── broken ◀─────┤ anything that is not plainly a success
                                             fenced ◀─────┘ another producer has taken the id: for good

A coordinator ends a transaction that is open for too long, and tells its producer the same as if another one had taken
the id. The age of the transaction tells the two apart: a fence before the time is over is another producer's, most
likely a copy of this gateway. After the time, the marker's writer decides. A fenced sink never asks for the id again,
because two gateways of one identity would throw each other out for ever.

A refused batch takes its whole transaction along. The sink then asks for the same batches again, sends one message a
request, and leaves out what was refused by itself; when no message is to blame, batches get smaller. A transaction
that did not fit its time is tried with a quarter of the records, so a slow way costs time and not progress.

Source: Kafka improvement proposals 98 and 360; librdkafka's transactional producer in its INTRODUCTION.md.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from cloud_sync.sinks import Fatal, Message, Placed, Refused, Rejected, Resend, Retry, Settled, State
from cloud_sync.sinks.kafka import BATCH_BYTES, BATCH_BYTES_LEAST, Topics
from cloud_sync.sinks.kafka_contact import (
    A_PERSON_S,
    PASSING,
    REFUSED_BATCH,
    SLOW_S,
    Contact,
    identity,
    in_words,
    unconfirmed,
)
from cloud_sync.sinks.kafka_progress import PARTITION, Marker, Progress, Search, key_of, topic_of
from cloud_sync.sinks.kafka_properties import DEFAULTS, Properties

LOG = logging.getLogger("cloud_sync.kafka")

_FENCED = frozenset((KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH))
_REFUSED = frozenset((KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
                      KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE,
                      KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT, KafkaError.INVALID_TRANSACTION_TIMEOUT))  # fmt: skip
_MOST = 10_000  # messages in a transaction, unless a single batch holds more
_LEAST = 16
_SMALL = 1_000  # messages; a transaction with fewer waits for `hold_s`, because each costs the brokers some writes
_COMMIT_S = 1.0  # at most in one call that waits for the coordinator; it goes on by itself between the calls
_ASKING_S = 0.02  # before the next question while the place is not known: those wait by themselves
_PURGED = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))

_Phase = Literal["new", "ready", "open", "committing", "broken", "fenced"]


class Pace(NamedTuple):
    """How a stream trades delay against the number of transactions."""

    linger_ms: int
    hold_s: float  # a small transaction stays open for more at most so long
    timeout_s: float  # the coordinator ends a transaction after it, and readers wait no longer


PACES = {"alerts": Pace(5, 0.0, 15.0), "data": Pace(50, 0.2, 30.0)}


@dataclass(slots=True, eq=False)
class _Batch:
    token: object
    all: Sequence[Message]
    taken: int = 0  # messages that were handed to librdkafka, or rejected
    rejected: list[Rejected] = field(default_factory=list)


class TransactionalSink:
    """A sinks.Sink that is sinks.Tracking, over one transactional producer of its own."""

    def __init__(self, given: Properties, prefix: str, gateway: str, stream: str, pace: Pace | None = None) -> None:
        """Raises: Fatal when librdkafka does not take the properties."""
        self._given, self._gateway, self._topics = given, gateway, Topics(prefix)
        self._name = f"{prefix}-{gateway}-{stream}"
        self._pace = pace or PACES[stream]
        self._topic = topic_of(prefix, stream)
        self._writer = uuid.uuid4().hex
        self._writers = {self._writer, ""}  # those whose markers are no sign of a copy at work
        self._resumed_before = False
        self._batch_bytes = BATCH_BYTES
        self._limit = _MOST
        self._singly_left = 0  # batches that go one message a request
        self._unwanted: dict[str, str] = {}  # identity -> why it was refused by itself
        self._blameless = True  # nothing was refused by itself since sending singly began
        self._waiting: deque[_Batch] = deque()
        self._open: list[_Batch] = []  # of the transaction
        self._messages = 0  # of the transaction
        self._place: tuple[str, int] | None = None  # of its last batch
        self._marked = False  # the marker has been handed over: nothing may follow
        self._began = self._full_at = 0.0
        self._done: list[Settled] = []
        self._hindered = ""  # why the last transaction was not committed
        self._fault = ""  # what a person must put right; cleared by a commit
        self._contact = Contact()
        self._search: Search | None = None
        self._phase: _Phase = "new"
        self._trouble: Retry | Fatal = Retry("")
        self._initialised = False
        self._producer = self._create()

    def resume(self, timeout_s: float) -> dict[str, int] | None:
        """For each instance of the buffer file the newest block that the topics hold; None: not yet known.

        Raises: Refused when the cluster does not allow transactions; Retry; Fatal when fenced.
        """
        if self._phase == "fenced":
            raise self._trouble
        self._serve(0)
        if not self._initialised:
            try:
                self._producer.init_transactions(max(timeout_s, 0.1))
            except KafkaException as error:
                self._not_yet(error.args[0])
                return None
            self._initialised = True
        if self._search is None:
            self._search = Search(self._given, self._topic, self._gateway)
        found = self._search.read(timeout_s)
        if found is None:
            return None
        self._end_search()
        self._know(found)
        self._phase = "ready"
        return found.blocks

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its verdict comes out of `settle`."""
        self._waiting.append(_Batch(token, messages))
        self._pump()

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready, waiting up to `timeout_s` seconds for the first."""
        end = time.monotonic() + timeout_s
        self._serve(0)
        self._pump()
        if timeout_s > 0 and self._phase in ("open", "committing"):
            self._wait_for_more(end)
            self._commit(min(_COMMIT_S, max(0.05, end - time.monotonic())))
            self._pump()
        elif timeout_s > 0 and not self._done and self._phase == "ready":
            self._serve(timeout_s)
        elif self._phase == "new":
            self._serve(min(timeout_s, _ASKING_S))
        out = self._done
        self._done = []
        if self._phase in ("broken", "fenced"):
            token = next((batch.token for batch in (*self._open, *self._waiting)), None)
            out.append(Settled(token, 0, keep=self._trouble))
        return out

    def state(self) -> tuple[State, str]:
        """Whether a broker answers, and the last trouble in words."""
        if self._phase == "fenced" or (self._fault and not self._contact.login):
            return "fatal", self._fault
        state, detail = self._contact.state()
        if state == "connected" and self._phase == "new":
            return "waiting", self._hindered or "asks the brokers how far they have come"
        age_s = _now() - self._began
        if state == "connected" and self._open and (self._hindered or age_s > SLOW_S):
            return "waiting", self._hindered or unconfirmed(age_s)
        return state, detail

    def reset(self) -> None:
        """Forgets every batch without a verdict, with a new producer. Raises: Fatal when it cannot be made."""
        self._forget()
        if self._phase == "fenced":
            return
        self._phase, self._initialised = "new", False
        self._producer = self._create()

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts that still come within `timeout_s` seconds; what is open then is aborted."""
        end = time.monotonic() + timeout_s
        while self._phase in ("open", "committing") and time.monotonic() < end and not self._unfinished():
            self._commit(max(0.05, min(_COMMIT_S, end - time.monotonic())))
        if self._phase in ("open", "committing"):
            with suppress(KafkaException):  # readers would wait until it has timed out
                self._producer.abort_transaction(_COMMIT_S)
        out = self._done
        self._forget()
        return out

    # Starting

    def _create(self) -> Producer:
        singly = self._singly_left > 0
        timeout_ms = int(self._pace.timeout_s * 1000)
        try:
            return Producer(
                {
                    **DEFAULTS,
                    "client.id": self._name,
                    "linger.ms": self._pace.linger_ms,
                    **self._given,
                    "batch.size": min(self._batch_bytes, int(self._given.get("batch.size", self._batch_bytes))),
                    "batch.num.messages": 1 if singly else self._given.get("batch.num.messages", 10_000),
                    "enable.idempotence": True,
                    "transactional.id": self._name,
                    "transaction.timeout.ms": timeout_ms,
                    "socket.timeout.ms": min(timeout_ms, int(self._given.get("socket.timeout.ms", timeout_ms))),
                    "message.timeout.ms": timeout_ms,  # a transaction that is over needs no message any more
                    "max.in.flight.requests.per.connection": 1,
                    "acks": "all",
                    "delivery.report.only.error": True,  # the commit is the receipt
                    "statistics.interval.ms": 1_000,
                    "error_cb": self._contact.error,
                    "stats_cb": self._contact.statistics,
                },
                logger=LOG,
            )
        except KafkaException as error:
            raise Fatal(error.args[0].str()) from error

    def _not_yet(self, error: Any) -> None:
        if error.code() in _REFUSED:
            raise Refused(f"{self._name}: {error.str()}; allow this user Write and Describe on the transactional id")
        if not error.retriable() and error.code() not in PASSING:
            raise Retry(error.str())

    def _know(self, found: Progress) -> None:
        """Whether another forwarder has written under this identity while this one had the id."""
        if self._resumed_before and found.writer not in self._writers:
            self._fence()
            raise self._trouble
        self._writers.add(found.writer)
        self._resumed_before = True

    # A transaction

    def _pump(self) -> None:
        """Hands waiting messages to librdkafka as far as the transaction takes them."""
        while self._waiting and self._phase in ("ready", "open"):
            if self._open and not self._unfinished() and not self._takes_more(len(self._waiting[0].all)):
                return
            try:
                if self._phase == "ready":
                    self._began, self._full_at = _now(), time.monotonic() + self._pace.hold_s
                    self._producer.begin_transaction()
                    self._phase = "open"
                if not self._hand_over(self._waiting[0]):
                    return
            except KafkaException as error:
                self._break(error.args[0])
                return

    def _takes_more(self, count: int) -> bool:
        return self._singly_left <= 0 and self._messages + count <= self._limit

    def _hand_over(self, batch: _Batch) -> bool:
        """Whether librdkafka's queue had room for all of the batch."""
        if not self._open or self._open[-1] is not batch:
            self._open.append(batch)
        produce: Any = self._producer.produce
        topics, failed, unwanted = self._topics, self._failed, self._unwanted
        for message in batch.all[batch.taken :]:
            try:
                if unwanted and message.dedup in unwanted:
                    batch.rejected.append(Rejected(message.dedup, unwanted[message.dedup]))
                else:
                    topic = topics[message.topic]
                    produce(topic, message.value, message.key, on_delivery=failed, headers=message.headers)
            except BufferError:
                return False
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                batch.rejected.append(Rejected(message.dedup, error.args[0].str()))
            batch.taken += 1
        self._messages += len(batch.all) - len(batch.rejected)
        self._waiting.popleft()
        if isinstance(batch.token, Placed):
            self._place = batch.token.position
        return True

    def _unfinished(self) -> bool:
        """Whether a batch is only partly in the transaction."""
        return bool(self._open and self._waiting and self._open[-1] is self._waiting[0])

    def _wait_for_more(self, end: float) -> None:
        """A transaction of few messages waits a little, so that the next batch may share it."""
        if self._phase == "open" and self._messages < _SMALL:
            self._serve(max(0.0, min(end, self._full_at) - time.monotonic()))

    def _commit(self, timeout_s: float) -> None:
        if self._unfinished():  # librdkafka's queue was full
            self._serve(timeout_s)
            return
        if self._phase == "open" and time.monotonic() < self._full_at and self._messages < _SMALL:
            return
        if self._phase not in ("open", "committing"):
            return
        try:
            if not self._marked:
                self._mark()
            self._phase = "committing"
            self._producer.commit_transaction(timeout_s)
        except (KafkaException, BufferError) as error:
            if isinstance(error, BufferError):
                return
            self._outcome_unknown(error.args[0])
            return
        self._succeed()

    def _mark(self) -> None:
        if self._place is not None:
            instance, block = self._place
            self._producer.produce(
                self._topic,
                msgspec.json.encode(Marker(instance, block, self._writer)),
                key_of(self._gateway, instance),
                partition=PARTITION,
                on_delivery=self._failed,
            )
        self._marked = True

    def _outcome_unknown(self, error: Any) -> None:
        """A commit that is still under way is asked for again; anything else is left to the marker."""
        if self._phase in ("broken", "fenced"):  # a delivery report has told the cause
            return
        if error.retriable() and not error.txn_requires_abort() and _now() - self._began < self._pace.timeout_s:
            return
        self._break(error)

    def _succeed(self) -> None:
        for batch in self._open:
            self._done.append(Settled(batch.token, len(batch.all) - len(batch.rejected), tuple(batch.rejected)))
            for rejected in batch.rejected:
                self._unwanted.pop(rejected.dedup, None)
        count = len(self._open)
        self._limit = min(_MOST, 2 * self._limit)
        self._clear_transaction()
        self._phase, self._fault, self._hindered = "ready", "", ""
        if self._singly_left > 0:
            self._singly_left -= count
            if self._singly_left <= 0:
                if self._blameless:
                    self._batch_bytes = max(BATCH_BYTES_LEAST, self._batch_bytes // 2)
                self._end(Resend("batches go together again"))

    # Trouble

    def _failed(self, error: Any, report: Any) -> None:
        """Sorts a delivery error; called by librdkafka inside `poll` and `commit_transaction`."""
        if error is None or error.code() in _PURGED or self._phase in ("broken", "fenced", "new"):
            return
        code = error.code()
        if code not in REFUSED_BATCH:
            self._break(error, report)
        elif self._singly_left > 0:
            self._blameless = False
            self._unwanted[identity(report, (one for batch in self._open for one in batch.all))] = error.str()
            self._end(Resend(f"{error.str()}: one message is left out"))
        else:
            self._singly_left, self._blameless = max(1, len(self._open) + len(self._waiting)), True
            known = self._batch_bytes > BATCH_BYTES_LEAST
            kind = Resend if known else Retry
            self._end(kind(f"{error.str()}: a batch was refused, its messages are sent one by one"))

    def _break(self, error: Any, report: Any = None) -> None:
        """Ends this producer for any reason but a refused batch."""
        code, age = error.code(), _now() - self._began
        if code in _FENCED:
            if age < self._pace.timeout_s:
                self._fence()
            else:
                self._end(Retry("the transaction has outlived its time"))
        elif code in A_PERSON_S or not (report is None or error.retriable() or code in PASSING):
            self._fault = in_words(error, report)
            self._end(Fatal(self._fault))
        else:
            self._end(Retry(error.str()))
        if age >= self._pace.timeout_s:
            self._limit = max(_LEAST, self._limit // 4)

    def _fence(self) -> None:
        self._fault = (
            f"fenced: another forwarder works as {self._name}, perhaps a copy of this gateway's storage; this one has"
            " stopped sending. End the other or give it a gateway id of its own, then restart cloud-sync here"
        )
        self._phase, self._trouble = "fenced", Fatal(self._fault)

    def _end(self, trouble: Retry | Fatal) -> None:
        self._phase, self._trouble = "broken", trouble
        if not isinstance(trouble, Resend):
            self._hindered = str(trouble)

    def _serve(self, timeout_s: float) -> None:
        """Lets librdkafka report, waiting up to `timeout_s` seconds."""
        try:
            self._producer.poll(timeout_s)
        except KafkaException as error:
            if self._phase in ("open", "committing"):
                self._break(error.args[0])

    def _clear_transaction(self) -> None:
        self._open.clear()
        self._messages, self._place, self._marked = 0, None, False

    def _end_search(self) -> None:
        if self._search is not None:
            self._search.close()
            self._search = None

    def _forget(self) -> None:
        self._end_search()
        self._waiting.clear()
        self._done = []
        self._clear_transaction()
        phase, self._phase = self._phase, "new"  # what is purged is nobody's
        with suppress(KafkaException):
            self._producer.purge(in_queue=True, in_flight=True, blocking=True)
            self._producer.poll(0)
        self._phase = phase


def _now() -> float:
    """Seconds that go on while the machine sleeps, as the coordinator's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
