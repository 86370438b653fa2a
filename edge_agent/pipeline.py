"""The alarm path: items of a decoder become conditions, signals and, after that, records for the buffer.

Theory of operation: the items of one chunk go through a `_Run` in order. An observation goes through watch, alarms
and annunciators at once; only when every item has been through do the chunk's entries go to the buffer, whose
`append` never waits. Replies that an acknowledgement depends on wait in `Replies` until the buffer reports their
ticket as durable. Everything here runs in the agent's loop; time is passed in, so a capture replays in a test.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drivers.contract import Decoder, Driver, Outlet
from edge_agent.alarms import Alarms
from edge_agent.association import Beds, Moved
from edge_agent.limits import Limits
from edge_agent.records import (
    AlarmEvent,
    Change,
    Chunk,
    DeviceAlarm,
    DeviceStatus,
    Entry,
    Item,
    Observation,
    PatientEvent,
    Reject,
    Reply,
    Stored,
    Waveform,
)
from edge_agent.scoring import Scoring
from edge_agent.watch import Watch

GATEWAY = ""  # the "bed" of what concerns the gateway itself
SCORES = "scores"  # the source of conditions on the agent's own scores
MAX_PLACES = 256  # pairs of location and subject that a source remembers
MAX_WAITING_REPLIES = 10_000  # senders that pipeline more than this while the disk stalls send again


class Append(Protocol):
    """The buffer's side of the path: takes entries without waiting, gives a ticket."""

    def __call__(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int: ...


@dataclass(slots=True)
class Feed:
    """One source at run time: its decoders, what it serves and what has been counted."""

    name: str
    driver: Driver
    make: Callable[[], Decoder]
    send: Callable[[bytes, str], bool]
    bed: str = ""  # fixed bed; empty: told apart by location
    silence_s: float = 0.0
    link: str = ""
    state: str = "starting"  # starting, connected, silent, lost
    detail: str = ""
    decoders: dict[str, Decoder] = field(default_factory=dict)
    takers: dict[str, Callable[[Chunk, Outlet], None]] = field(default_factory=dict)  # how each decoder is fed
    placed: dict[tuple[str, str], tuple[int, str, str]] = field(default_factory=dict)  # see _Run._place
    beds_seen: set[str] = field(default_factory=set)
    items: int = 0
    rejects: int = 0
    failures: int = 0
    failing: bool = False
    last_item_ns: int = 0
    link_state: str = "starting"
    link_since_ns: int = 0
    link_detail: str = ""
    grace_s: float = 0.0  # how long a listening link may be without a peer before that is a lost source
    alarmed: set[str] = field(default_factory=set)  # beds that were told that this source is silent or lost
    strangers: int = 0  # items whose location is no bed of this gateway

    def beds(self) -> list[str]:
        """The beds a technical alarm of this source concerns; the gateway itself when none is known yet."""
        return [self.bed] if self.bed else sorted(self.beds_seen) or [GATEWAY]

    def taker(self, channel: str) -> Callable[[Chunk, Outlet], None]:
        """What feeds the decoder of a channel, which is made at its first chunk."""
        key = channel if self.driver.per_channel else ""
        taker = self.takers.get(key)
        if taker is None:
            decoder = self.decoders[key] = self.make()
            taker = self.takers[key] = getattr(decoder, "feed_into", None) or _one_by_one(decoder)
        return taker

    def forget(self, channel: str) -> None:
        """Drop the decoder of a channel with whatever it had received."""
        key = channel if self.driver.per_channel else ""
        self.decoders.pop(key, None)
        self.takers.pop(key, None)


def _one_by_one(decoder: Decoder) -> Callable[[Chunk, Outlet], None]:
    def take(chunk: Chunk, out: Outlet) -> None:
        for item in decoder.feed(chunk):
            out.append(item)

    return take


class Replies:
    """Bytes owed to devices, held until what they acknowledge is durable."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Feed, Reply, str]] = deque()
        self.dropped = 0

    def add(self, ticket: int, feed: Feed, reply: Reply, channel: str) -> None:
        """Hold a reply for `ticket`; past the cap the oldest is dropped and its sender has to send again."""
        if len(self._waiting) >= MAX_WAITING_REPLIES:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((ticket, feed, reply, channel))

    def release(self, ticket: int, shed: Container[int] = ()) -> None:
        """Send every reply up to and including `ticket`, those of one channel in one piece; none for a shed ticket."""
        waiting = self._waiting
        joined: dict[tuple[int, str], tuple[Feed, list[bytes]]] = {}
        while waiting and waiting[0][0] <= ticket:
            number, feed, reply, channel = waiting.popleft()
            if number in shed:
                self.dropped += 1
                continue
            joined.setdefault((id(feed), channel), (feed, []))[1].append(reply.data)
        for (_, channel), (feed, parts) in joined.items():
            feed.send(b"".join(parts), channel)


class _Run:
    """The items of one chunk on their way; `append` takes one, `end` hands what has gathered to the buffer."""

    __slots__ = (
        "_at_ns",
        "_bed",
        "_feed",
        "_good",
        "_known",
        "_location",
        "_patient",
        "_pipeline",
        "_subject",
        "replies",
    )

    def __init__(self, pipeline: Pipeline, feed: Feed, at_ns: int) -> None:
        self._pipeline, self._feed, self._at_ns = pipeline, feed, at_ns
        self._bed = feed.bed
        self._known = False  # whether bed and patient have been worked out for this location and subject
        self._location = self._subject = self._patient = ""
        self._good = 0
        self.replies: list[Reply] = []

    def append(self, item: Item) -> None:
        """Take one item: an observation goes through watch, alarms and annunciators before this returns."""
        pipeline, feed = self._pipeline, self._feed
        if isinstance(item, Observation):
            if not self._known or item.location != self._location or item.subject != self._subject:
                self._place(item)
            bed = self._bed
            if bed:
                pipeline.latest[bed][item.term] = item
                for change in pipeline.watch.observe(bed, feed.name, item):
                    pipeline.alarms.apply(change)
                if pipeline.note is not None:
                    pipeline.note(bed, item)
            pipeline.out.append(Entry(bed, feed.name, self._patient, item))
            self._good += 1
        elif isinstance(item, Reply):
            self.replies.append(item)
        elif isinstance(item, Reject):
            feed.rejects += 1
            pipeline.out.append(Entry(feed.bed, feed.name, "", item))
        else:
            self._good += 1
            self._known = False  # a patient event may change who lies in the bed
            pipeline.rare(feed, item, self._at_ns)

    def _place(self, item: Observation) -> None:
        """Work out bed and patient, once for each location and subject while no association changes."""
        pipeline, feed = self._pipeline, self._feed
        key = (item.location, item.subject)
        self._location, self._subject = key
        self._known = True
        placed = feed.placed.get(key)
        if placed is not None and placed[0] == pipeline.beds.version:
            _, self._bed, self._patient = placed
            return
        self._bed = feed.bed or pipeline.beds.at(item.location) or pipeline.stranger(feed, item.location, self._at_ns)
        self._patient, settled = pipeline.subject(feed, self._bed, item.subject, self._at_ns)
        if settled:
            if len(feed.placed) >= MAX_PLACES:
                feed.placed.clear()
            feed.placed[key] = (pipeline.beds.version, self._bed, self._patient)

    def end(self, channel: str) -> None:
        """Note that the source was heard, append the records, send or hold the replies."""
        pipeline, feed, at_ns = self._pipeline, self._feed, self._at_ns
        if self._good:
            feed.items += self._good
            feed.last_item_ns = at_ns
            if feed.failing or feed.state != "connected":
                pipeline.recovered(feed, at_ns)
        pipeline.measure(at_ns)
        ticket = pipeline.flush(at_ns, wanted_soon=bool(self.replies))
        for reply in self.replies:
            if reply.after_commit:
                pipeline.replies.add(ticket, feed, reply, reply.channel or channel)
            else:
                feed.send(reply.data, reply.channel or channel)


class Pipeline:
    """What turns items into alarms and entries, for all sources and beds of a gateway."""

    def __init__(
        self,
        beds: Beds,
        watch: Watch,
        alarms: Alarms,
        append: Append,
        on_latency: Callable[[int], None] = lambda _delay_ns: None,
        *,
        limits: Limits | None = None,
        scores: Scoring | None = None,
        on_alarm: Callable[[str, str, AlarmEvent], None] = lambda _bed, _patient, _event: None,
        on_restart: Callable[[str], None] = lambda _bed: None,
    ) -> None:
        """Neither `on_alarm(bed, patient, event)` nor `on_restart(bed)`, called for a new patient, may wait."""
        self.beds = beds
        self.watch = watch
        self.alarms = alarms
        self.limits = limits
        self.scores = scores
        self.replies = Replies()
        self.latest: dict[str, dict[str, Observation]] = {bed: {} for bed in beds.ids}
        self._append = append
        self._on_latency, self._on_alarm, self._on_restart = on_latency, on_alarm, on_restart
        self.out: list[Entry] = []
        self.note: Callable[[str, Observation], None] | None = None  # told of each observation behind its alarms
        self._signalled_ns = 0
        self._mismatched: set[tuple[str, str]] = set()  # bed and source that names another patient there

    def alarm_event(self, bed: str, event: AlarmEvent) -> None:
        """Take an event of the alarm room into the records; called by it, in the alarm loop."""
        patient = self.beds.patient(bed)
        self.out.append(Entry(bed, event.source, patient, event))
        self._on_alarm(bed, patient, event)

    def signalled(self) -> None:
        """Note that a signal has just been handed to the annunciators, for the latency figure."""
        self._signalled_ns = time.monotonic_ns()

    def measure(self, at_ns: int) -> None:
        """Report the delay from `at_ns`, the receipt of a chunk, to the signal it caused, when it caused one."""
        if self._signalled_ns:
            self._on_latency(self._signalled_ns - at_ns)
            self._signalled_ns = 0

    def record(self, bed: str, source: str, record: Stored) -> None:
        """Put a record of the agent's own into the next append."""
        self.out.append(Entry(bed, source, self.beds.patient(bed), record))

    # -- chunks -------------------------------------------------------------------------------------------------

    def chunk(self, feed: Feed, chunk: Chunk) -> None:
        """Everything that one chunk of bytes causes."""
        self._signalled_ns = 0  # what a link's state or an operator signalled before is not this chunk's
        run = _Run(self, feed, chunk.at_ns)
        try:
            (feed.takers.get(chunk.channel) or feed.taker(chunk.channel))(chunk, run)
        except Exception as error:  # a decoder promises not to raise; one that does is a fault, never the path's end
            run.replies.clear()
            run.end(chunk.channel)
            self._driver_failed(feed, chunk.channel, chunk.at_ns, error)
            return
        run.end(chunk.channel)

    def tick_feed(self, feed: Feed, at_ns: int) -> None:
        """Let the decoders of a source see the time: handshakes, polls, frames ended by silence."""
        for channel, decoder in list(feed.decoders.items()):
            try:
                items = decoder.tick(at_ns)
            except Exception as error:  # as in chunk()
                self._driver_failed(feed, channel, at_ns, error)
                continue
            if items:
                self.handle(feed, items, at_ns, channel)

    def closed(self, feed: Feed, channel: str, at_ns: int) -> None:
        """A peer has gone: its half-received frame is over and its decoder is dropped."""
        if feed.driver.per_channel:
            feed.forget(channel)
        self.flush(at_ns)

    def _driver_failed(self, feed: Feed, channel: str, at_ns: int, error: Exception) -> None:
        feed.failures += 1
        feed.forget(channel)
        if not feed.failing:
            feed.failing = True
            detail = f"{feed.name}: {type(error).__name__} in driver {feed.driver.name}"
            for bed in feed.beds():
                self.apply(self.watch.technical(bed, "driver_fault", True, at_ns, detail))
        self.flush(at_ns)

    def handle(self, feed: Feed, items: Iterable[Item], at_ns: int, channel: str = "") -> None:
        """Carry decoded items down the path: alarms first, then one append, then the replies."""
        self._signalled_ns = 0
        run = _Run(self, feed, at_ns)
        for item in items:
            run.append(item)
        run.end(channel)

    def flush(self, at_ns: int, *, wanted_soon: bool = False) -> int:  # noqa: ARG002
        """Hand what has gathered to the buffer; the ticket tells when it, and all before it, is durable."""
        out = self.out
        if out or wanted_soon:
            self.out = []
            return self._append(out, wanted_soon=wanted_soon)
        return 0

    # -- what is rarer than observations ------------------------------------------------------------------------

    def rare(self, feed: Feed, item: Item, at_ns: int) -> None:
        bed = feed.bed
        if isinstance(item, PatientEvent):
            self._patient_event(feed, item, at_ns)
            return
        if isinstance(item, Waveform | DeviceAlarm | DeviceStatus) and not bed:
            bed = (beds_at := self.beds.at(item.location)) or ""
            if beds_at is None and item.location:
                bed = self.stranger(feed, item.location, at_ns)
        if bed and not feed.bed:
            feed.beds_seen.add(bed)
        if isinstance(item, DeviceAlarm) and bed:
            self.apply(self.watch.device_alarm(bed, feed.name, item))
        self.out.append(Entry(bed, feed.name, self.beds.patient(bed), item))  # type: ignore[arg-type]

    def stranger(self, feed: Feed, location: str, at_ns: int) -> str:
        """Empty: the location is no bed of this gateway. Said once as a technical alarm, counted always."""
        feed.strangers += 1
        if feed.strangers == 1:
            detail = f"{feed.name}: no bed has location {location!r}" if location else f"{feed.name}: no location sent"
            self.apply(self.watch.technical(GATEWAY, "bed_unknown", True, at_ns, detail))
        return GATEWAY

    def subject(self, feed: Feed, bed: str, subject: str, at_ns: int) -> tuple[str, bool]:
        """The patient in `bed`, and whether what the source says of it is settled, so that asking again is needless."""
        if not bed:
            return "", False
        if not feed.bed:
            feed.beds_seen.add(bed)
        verdict = "same"
        if subject:
            verdict = self.beds.observed(bed, feed.name, subject)
            if verdict == "new":
                self._restart(Moved(bed, subject, fresh=True), at_ns)
                self.record(bed, feed.name, PatientEvent("observed", subject, bed, at_ns))
            if (verdict == "mismatch") != ((bed, feed.name) in self._mismatched):
                self._mismatch(bed, feed.name, verdict == "mismatch", at_ns)
        return self.beds.patient(bed), verdict == "same"

    def _mismatch(self, bed: str, source: str, present: bool, at_ns: int) -> None:
        (self._mismatched.add if present else self._mismatched.discard)((bed, source))
        detail = f"{source} names another patient than the one admitted to this bed"
        self.apply(self.watch.technical(bed, f"patient_mismatch:{source}", present, at_ns, detail))

    def _patient_event(self, feed: Feed, event: PatientEvent, at_ns: int) -> None:
        moves = self.beds.apply(event)
        own = feed.bed if not event.location else ""  # a device of one bed does not say which one
        bed = moves[-1].bed if moves else self.beds.at(event.location) or own or GATEWAY
        for move in moves:
            if move.fresh:
                self._restart(move, at_ns)
        self.out.append(Entry(bed, feed.name, event.patient_id, event))

    def admit(self, bed: str, patient: str, at_ns: int) -> None:
        """An operator puts a patient into a bed, or with an empty identifier takes the patient out."""
        move = self.beds.admit(bed, patient)
        if move.fresh or not patient:
            self._restart(move, at_ns)
        self.record(bed, "operator", PatientEvent("A01" if patient else "A03", patient, bed, at_ns))
        self.flush(at_ns)

    def _restart(self, move: Moved, at_ns: int) -> None:
        self.latest[move.bed].clear()
        if self.scores is not None:
            self.scores.new_patient(move.bed)
        self._on_restart(move.bed)
        if not move.patient:  # nobody lies there any more whom a source could contradict
            for bed, source in [each for each in self._mismatched if each[0] == move.bed]:
                self._mismatch(bed, source, False, at_ns)
        self.apply(self.watch.new_patient(move.bed, at_ns))  # first: what it ends must not be latched below
        self.alarms.new_patient(move.bed, at_ns)
        if self.limits is not None:
            self.apply(self.limits.new_patient(move.bed, at_ns))

    def enter(self, bed: str, given: Mapping[str, Any], at_ns: int) -> None:
        """Take over what an operator observed of the patient: it is recorded, and the scores follow at once.

        Raises: ValueError with what is wrong.
        """
        if self.scores is None:
            raise ValueError("this agent computes no scores")
        for name, value in self.scores.enter(bed, given, at_ns).items():
            self.record(bed, "operator", DeviceStatus("entered", name, at_ns, value))
        self._score(self.scores, at_ns)
        self.flush(at_ns)

    def _score(self, scores: Scoring, at_ns: int) -> None:
        for bed, score, record, tell in scores.evaluate(self.latest, at_ns):
            if record:
                self.record(bed, "", score)
            if tell:
                self.apply(self.watch.score(bed, SCORES, score))

    def recovered(self, feed: Feed, at_ns: int) -> None:
        if feed.failing:
            feed.failing = False
            for bed in feed.beds():
                self.apply(self.watch.technical(bed, "driver_fault", False, at_ns, ""))
        if feed.link_state != "lost":
            self.source_state(feed, "connected", at_ns, feed.detail)

    # -- time and state of sources ------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Hand condition changes to the alarm room."""
        for change in changes:
            self.alarms.apply(change)

    def source_state(self, feed: Feed, state: str, at_ns: int, detail: str) -> None:
        """Connected, silent or lost: a change becomes a record and, unless connected, a technical alarm."""
        if state == feed.state:
            return
        feed.state, feed.detail = state, detail
        if state == "connected":
            told, feed.alarmed = feed.alarmed, set()
        else:
            told = feed.alarmed = feed.alarmed.union(feed.beds())
        self.apply(self.watch.source_state(feed.name, sorted(told), state, at_ns, detail))
        self.record(feed.bed, feed.name, DeviceStatus("link", state, at_ns, detail))
        self.flush(at_ns)

    def tick(self, feeds: Mapping[str, Feed], at_ns: int) -> None:
        """What the passing of time causes: condition delays, freshness, silent sources, ends of pauses."""
        for feed in feeds.values():
            gone = feed.link_state == "lost" and at_ns - feed.link_since_ns >= feed.grace_s * 1e9
            if gone and feed.state in ("starting", "connected", "silent"):
                self.source_state(feed, "lost", at_ns, feed.link_detail)
            # reached, not passed: a source whose deadline is that of its vitals speaks for them, and goes first
            quiet = at_ns - feed.last_item_ns >= feed.silence_s * 1e9
            if quiet and feed.state in ("starting", "connected"):
                self.source_state(feed, "silent", at_ns, f"no data for {feed.silence_s:g} s")
        self.apply(self.watch.tick(at_ns))
        if self.scores is not None and at_ns >= self.scores.due_ns:
            self._score(self.scores, at_ns)
        self.alarms.tick(at_ns)
        self._signalled_ns = 0  # a delay that ran out, not a chunk, caused it
        self.flush(at_ns)
