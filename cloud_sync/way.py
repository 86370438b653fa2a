"""The way of one stream of the buffer to one receiver: sealed blocks in, settled batches and a durable mark out.

Theory of operation. Each way has a thread, a reader, a sink and a mark of its own, so a data backlog of a week cannot
hold an alert, and two receivers do not wait for each other. A thread reads blocks behind the last one it sent, hands
them to the sink as one batch each, and moves the durable mark over the batches that the receiver has settled, in order,
never past an open one. What is under way is bounded by messages and bytes; beyond that it stops reading, so memory does
not follow the backlog. After trouble it forgets what is open, waits, and reads again from the mark: a record may arrive
twice, never not at all. The `dedup` header, or the control identifier of an HL7 message, tells copies apart.

A receiver that itself remembers how far it has come (`sinks.Tracking`) is asked for its place first, at start and after
trouble, and its word counts more than the mark. A place before the mark means that the receiver has lost something:
that is told, and what the buffer still holds behind it is sent again. When such a receiver refuses to remember, a sink
with a lesser guarantee takes its place until the process ends; a note beside the marks says which one has moved them.

                 begin, settle                      keep: Retry or Fatal
    reading ───────────────────▶ under way ────────────────────────────────▶ resting ──after a while──▶ reading
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from cloud_sync.sinks import CONNECTING, Fatal, Message, Refused, Resend, Retry, Settled, Sink, State, Tracking
from edge_agent.buffer import (
    ALERT_MANAGER,
    MQTT,
    REST,
    Block,
    KeyProblem,
    Marks,
    Position,
    Reader,
    files,
    receiver_mark,
)

LOG = logging.getLogger("cloud_sync")

AT_LEAST_ONCE = "at least once"
EXACTLY_ONCE = "exactly once (read_committed)"
_GOODBYE_S = 3.0  # for the receipts of what is under way when the process is asked to end


class Pace(NamedTuple):
    """How a stream trades delay against work; the alerts' row wakes often and holds little."""

    poll_s: float  # between two looks into the buffer when nothing waits there
    blocks: int  # read at once
    sealed: int  # bytes of blocks read at once; opened and encoded they grow about fortyfold
    messages: int  # under way at most, unless a single block holds more
    size: int  # bytes under way, likewise
    mark_s: float  # between two durable marks: each costs the card a write
    rest_s: float = 30.0  # at most between two tries while the receiver is away


PACES = {
    "alerts": Pace(poll_s=0.1, blocks=64, sealed=64 << 10, messages=1_000, size=1 << 20, mark_s=0.2),
    "data": Pace(poll_s=0.25, blocks=64, sealed=128 << 10, messages=10_000, size=4 << 20, mark_s=1.0),
    # Few messages, each acknowledged by itself; a manager that is back should hear of alarms at once.
    ALERT_MANAGER: Pace(poll_s=0.1, blocks=16, sealed=64 << 10, messages=100, size=256 << 10, mark_s=0.2, rest_s=5.0),
}
for _receiver in (MQTT, REST):  # these have no call-back by themselves: a broker that is back should hear soon
    for _stream in ("alerts", "data"):
        PACES[receiver_mark(_receiver, _stream)] = PACES[_stream]._replace(rest_s=5.0)
_REST_RETRY_S = 0.5  # the first wait; it doubles until something is delivered
_REST_FATAL = (5.0, 60.0)


class BlockEncoder(Protocol):
    """What makes messages of a block for one kind of receiver."""

    def block(self, block: Block) -> list[Message]:
        """The messages of a block, in order; none when it holds nothing for this receiver."""


class Way(NamedTuple):
    """From a stream of the buffer to a receiver; its name is also that of its mark and its pace."""

    name: str  # alerts, data, alert_manager, mqtt_alerts, mqtt_data, rest_alerts, rest_data
    source: str  # the buffer's stream: alerts, data
    encoder: BlockEncoder
    open_sink: Callable[[], Sink]
    begin_at: Callable[[Reader], Position | None] | None = None  # where to begin when there never was a mark
    open_lesser: Callable[[], Sink] | None = None  # when the first sink's receiver refuses to keep progress


@dataclass(slots=True)
class Progress:
    """What a stream has done since the process began; written by its thread, read by the reporter."""

    state: State = "waiting"
    detail: str = CONNECTING
    forwarded: int = 0
    dropped: int = 0
    last_delivery_ns: int = 0  # UTC
    last_drop: str = ""
    clock_quality: str = "unknown"
    settled: Position | None = None  # everything up to it, though perhaps not yet marked
    buffer_fault: str = ""
    guarantee: str = AT_LEAST_ONCE
    refused: str = ""  # why the guarantee is less than configured
    error: str = ""  # what the receiver has lost; it stays until the process ends


@dataclass(slots=True, eq=False)
class _Flight:
    """A block under way."""

    position: Position
    messages: int
    size: int
    settled: bool = False


@dataclass(slots=True)
class Stream:
    """One way's thread; `run` returns after `stop` is set."""

    way: Way
    open_reader: Callable[[], Reader]
    marks: Marks
    stop: threading.Event
    pace: Pace
    report: Callable[[], Message | None] = lambda: None  # a message of the forwarder's own that is due
    note: Path | None = None  # where it is noted which guarantee has moved the mark
    progress: Progress = field(default_factory=Progress)
    _lesser: bool = False
    _placed: bool = False  # it is known where to go on
    _told_places: dict[str, int] | None = None  # what the receiver has said
    _doubtful: list[_Flight] = field(default_factory=list)  # under way when trouble came
    _noted: str | None = None
    _reader: Reader | None = None
    _sink: Sink | None = None
    _flights: deque[_Flight] = field(default_factory=deque)
    _messages: int = 0
    _size: int = 0
    _sent: Position | None = None
    _marked: Position | None = None
    _marked_at: float = 0.0
    _reporting: bool = False
    _told: State | None = None
    _rest_s: float = 0.0
    _rested_at: int = -1  # messages forwarded when it last rested

    @property
    def name(self) -> str:
        """The way's."""
        return self.way.name

    def run(self) -> None:
        """Forward until told to stop."""
        while not self.stop.is_set():
            try:
                self._forward()
            except (Retry, Fatal) as trouble:
                self._rest(trouble)
        self._leave()

    def _forward(self) -> None:
        if self._sink is None:
            self._open_sink()
        if self._reader is None:
            self._open_buffer()
        sink, next_read = self._sink, 0.0
        assert sink is not None
        while not self.stop.is_set():
            more = False
            if self._ready(sink) and self._room() and time.monotonic() >= next_read:
                more = self._read(sink)
                if not more:
                    next_read = time.monotonic() + self.pace.poll_s
            if self._placed or self._told_places is not None:
                self._offer_report(sink)
            for verdict in sink.settle(0.0 if more and self._room() else self.pace.poll_s):
                self._settle(verdict)
            self._mark()
            self._show(*sink.state())

    def _open_sink(self) -> None:
        opener = self.way.open_lesser if self._lesser and self.way.open_lesser is not None else self.way.open_sink
        self._sink = opener()
        self._placed, self._told_places = False, None
        self.progress.guarantee = EXACTLY_ONCE if isinstance(self._sink, Tracking) else AT_LEAST_ONCE

    def _open_buffer(self) -> None:
        self._reader = self.open_reader()
        self._placed = False
        try:
            known = self.marks.known(self.name)
            self._sent = self._marked = self.progress.settled = self.marks.get(self.name)
            if self.note is not None:
                self._noted = self.note.read_text(encoding="utf-8") if self.note.exists() else AT_LEAST_ONCE
        except (OSError, ValueError) as error:
            self._reader.close()
            self._reader = None  # the mark is read again before anything else
            raise Retry(f"mark cannot be read: {error}") from error
        if not known and self.way.begin_at is not None:
            self._sent = self.progress.settled = self.way.begin_at(self._reader)
            self._mark(now=True)

    def _ready(self, sink: Sink) -> bool:
        """Whether it is known where to go on."""
        if self._placed:
            return True
        if not isinstance(sink, Tracking):
            self._note(AT_LEAST_ONCE)
            self._placed = True
            return True
        if self._told_places is None:
            try:
                self._told_places = sink.resume(self.pace.poll_s)
            except Refused as error:
                self._take_lesser(str(error))
            if self._told_places is None:
                return False
        return self._find_place(self._told_places)

    def _take_lesser(self, why: str) -> None:
        if self.way.open_lesser is None:
            raise Fatal(why)
        LOG.warning("stream=%s event=lesser-guarantee guarantee=%r reason=%r", self.name, AT_LEAST_ONCE, why)
        self._lesser, self.progress.refused = True, why
        if self._sink is not None:
            self._sink.close(0.0)
            self._sink = None
        raise Resend(why)

    def _find_place(self, told: dict[str, int]) -> bool:
        """Goes on behind what the receiver has; False while the buffer's file cannot be asked."""
        assert self._reader is not None
        places = [Position(instance, block) for instance, block in told.items()]
        numbers = self._reader.numbers_after(self.way.source, [*places, *([self._sent] if self._sent else ())])
        if numbers is None:
            return False
        marked = numbers.pop() if self._sent else 0
        there, place = max(zip(numbers, places, strict=True), default=(0, None))
        if there < marked and self._noted == EXACTLY_ONCE:
            self._tell_loss(marked, there)
            self._sent = self.progress.settled = place if there else None
        elif there > marked or (there and there == marked):
            self._count_doubtful(place)
            self._sent = self.progress.settled = place
        self._doubtful.clear()
        self._placed = True
        self._mark(now=True)
        return True

    def _tell_loss(self, marked: int, there: int) -> None:
        self.progress.error = (
            f"{self.name}: the receiver has confirmed everything before block {marked} and now knows of nothing behind"
            f" block {max(0, there - 1)}: its topics were made anew or restored. What the buffer still holds is sent"
            " again; look for missing records and for copies (dedup)"
        )
        LOG.error("stream=%s event=receiver-lost detail=%r", self.name, self.progress.error)

    def _count_doubtful(self, place: Position | None) -> None:
        """Counts what was under way when trouble came and had arrived all the same."""
        until = next((number for number, flight in enumerate(self._doubtful) if flight.position == place), -1)
        arrived = sum(flight.messages for flight in self._doubtful[: until + 1])
        if arrived:
            self.progress.forwarded += arrived
            self.progress.last_delivery_ns = time.time_ns()

    def _note(self, guarantee: str) -> None:
        """Notes durably which guarantee moves the mark: a lesser one before, a full one after it has succeeded."""
        if self.note is None or self._noted == guarantee:
            return
        try:
            files.make_folder(self.note.parent)
            files.write_durable(self.note, guarantee.encode())
        except OSError as error:
            raise Retry(f"{self.note} cannot be written: {error}") from error
        self._noted = guarantee

    def _room(self) -> bool:
        return self._messages < self.pace.messages and self._size < self.pace.size

    def _read(self, sink: Sink) -> bool:
        """Hands the next blocks to the sink; whether there may be more."""
        assert self._reader is not None
        try:
            blocks = self._reader.read(self.way.source, self._sent, self.pace.blocks, self.pace.sealed)
        except KeyProblem as error:
            raise Fatal(f"buffer: {one_line(error)}") from error
        self._note_fault(self._reader.fault)
        for block in blocks:
            if block.damaged:
                LOG.error("stream=%s event=damaged block=%d reason=%r", self.name, block.number, block.damaged)
            messages = self.way.encoder.block(block)
            position = block.position
            if not block.instance and self._sent is not None:  # damaged beyond that: its number still tells the place
                position = Position(self._sent.instance, block.number)
            flight = _Flight(position, len(messages), sum([len(message.value) for message in messages]))
            self._flights.append(flight)
            self._messages += flight.messages
            self._size += flight.size
            self._sent = flight.position
            self.progress.clock_quality = block.clock_quality
            sink.begin(flight, messages)
        return bool(blocks)

    def _settle(self, verdict: Settled) -> None:
        if verdict.keep is not None:
            raise verdict.keep
        flight = verdict.token
        if not isinstance(flight, _Flight):  # the report
            self._reporting = False
            return
        for rejected in verdict.rejected:
            self.progress.dropped += 1
            self.progress.last_drop = f"{rejected.dedup}: {rejected.reason}"
            LOG.error("stream=%s event=dropped record=%s reason=%r", self.name, rejected.dedup, rejected.reason)
        flight.settled = True
        self._messages -= flight.messages
        self._size -= flight.size
        self._note(self.progress.guarantee)
        if verdict.accepted:
            self.progress.forwarded += verdict.accepted
            self.progress.last_delivery_ns = time.time_ns()
        while self._flights and self._flights[0].settled:
            self.progress.settled = self._flights.popleft().position

    def _mark(self, now: bool = False) -> None:
        """Makes the progress durable, not more often than the pace allows."""
        settled = self.progress.settled
        if settled is None or settled == self._marked:
            return
        at = time.monotonic()
        if not now and at - self._marked_at < self.pace.mark_s:
            return
        try:
            self.marks.set(self.name, settled)
        except OSError as error:
            raise Retry(f"mark cannot be written: {error}") from error
        self._marked, self._marked_at = settled, at

    def _offer_report(self, sink: Sink) -> None:
        if self._reporting:
            return
        message = self.report()
        if message is not None:
            self._reporting = True
            sink.begin(None, [message])

    def _rest(self, trouble: Retry | Fatal) -> None:
        """Forgets what is open and waits, longer each time until something was delivered."""
        first, longest = _REST_FATAL if isinstance(trouble, Fatal) else (_REST_RETRY_S, self.pace.rest_s)
        went_on = self.progress.forwarded != self._rested_at
        self._rest_s = first if went_on else min(longest, max(first, 2 * self._rest_s))
        self._rested_at = self.progress.forwarded
        if not isinstance(trouble, Resend):
            self._show("fatal" if isinstance(trouble, Fatal) else "waiting", str(trouble))
        with suppress(Retry):
            self._mark(now=True)
        if isinstance(self._sink, Tracking):
            self._doubtful += self._flights
            self._placed, self._told_places = False, None
        self._flights.clear()
        self._messages = self._size = 0
        self._reporting = False
        self._sent = self.progress.settled
        if isinstance(trouble, Fatal) and self._reader is not None:
            self._reader.close()
            self._reader = None  # perhaps the key was at fault, and is put right meanwhile
        if self._sink is not None:
            try:
                self._sink.reset()
            except Fatal as error:
                self._show("fatal", str(error))
                self._sink = None
        if not isinstance(trouble, Resend):
            self.stop.wait(self._rest_s)

    def _note_fault(self, fault: str) -> None:
        """A buffer that cannot be read at the moment: the agent recovers it, reading goes on by itself."""
        if fault != self.progress.buffer_fault:
            LOG.warning("stream=%s event=%s detail=%r", self.name, "fault" if fault else "recovered", fault)
        self.progress.buffer_fault = fault

    def _show(self, state: State, detail: str) -> None:
        self.progress.state, self.progress.detail = state, detail
        if state == self._told or detail == CONNECTING:
            return
        self._told = state
        level = logging.INFO if state == "connected" else logging.WARNING
        LOG.log(level, "stream=%s state=%s detail=%r", self.name, state, detail)

    def _leave(self) -> None:
        if self._sink is not None:
            with suppress(Retry, Fatal):
                for verdict in self._sink.close(_GOODBYE_S):
                    self._settle(verdict)
        with suppress(Retry):
            self._mark(now=True)
        if self._reader is not None:
            self._reader.close()


def one_line(error: Exception) -> str:
    """The text of an error without its line ends."""
    return "; ".join(line.strip() for line in str(error).splitlines())
