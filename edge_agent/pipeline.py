"""The alarm path: items of a decoder become conditions, signals and, after that, records for the buffer.

Theory of operation: `handle` takes the items of one chunk in order. An observation goes through watch, alarms and
annunciators at once; only when every item has been through does the chunk's list of entries go to the buffer, whose
`append` never waits. Replies that an acknowledgement depends on wait in `Replies` until the buffer reports their
ticket as durable. Everything here runs in the agent's loop; time is passed in, so a capture replays in a test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from drivers.contract import Decoder, Driver
from edge_agent.alarms import Alarms
from edge_agent.association import Beds, Moved
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
from edge_agent.watch import Watch

GATEWAY = ""  # the "bed" of what concerns the gateway itself
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

    def decoder(self, channel: str) -> Decoder:
        """The decoder of a channel, made at its first chunk."""
        key = channel if self.driver.per_channel else ""
        decoder = self.decoders.get(key)
        if decoder is None:
            decoder = self.decoders[key] = self.make()
        return decoder


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


class Pipeline:
    """What turns items into alarms and entries, for all sources and beds of a gateway."""

    def __init__(
        self,
        beds: Beds,
        watch: Watch,
        alarms: Alarms,
        append: Append,
        on_latency: Callable[[int], None] = lambda _at_ns: None,
    ) -> None:
        self.beds = beds
        self.watch = watch
        self.alarms = alarms
        self.replies = Replies()
        self.latest: dict[str, dict[str, Observation]] = {bed: {} for bed in beds.ids}
        self._append = append
        self._on_latency = on_latency
        self._out: list[Entry] = []
        self._signalled = False
        self._mismatched: set[str] = set()

    def alarm_event(self, bed: str, event: AlarmEvent) -> None:
        """Take an event of the alarm room into the records; called by it, in the alarm loop."""
        self._out.append(Entry(bed, event.source, self.beds.patient(bed), event))

    def signalled(self) -> None:
        """Note that a signal has just been handed to the annunciators, for the latency figure."""
        self._signalled = True

    def record(self, bed: str, source: str, record: Stored) -> None:
        """Put a record of the agent's own into the next append."""
        self._out.append(Entry(bed, source, self.beds.patient(bed), record))

    # -- chunks -------------------------------------------------------------------------------------------------

    def chunk(self, feed: Feed, chunk: Chunk) -> None:
        """Everything that one chunk of bytes causes."""
        decoder = feed.decoder(chunk.channel)
        try:
            items = decoder.feed(chunk)
        except Exception as error:  # a decoder promises not to raise; one that does is a fault, never the path's end
            self._driver_failed(feed, chunk.channel, chunk.at_ns, error)
            return
        self.handle(feed, items, chunk.at_ns, chunk.channel)

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
        if feed.driver.per_channel and channel in feed.decoders:
            del feed.decoders[channel]
        self.flush(at_ns)

    def _driver_failed(self, feed: Feed, channel: str, at_ns: int, error: Exception) -> None:
        feed.failures += 1
        feed.decoders.pop(channel if feed.driver.per_channel else "", None)
        if not feed.failing:
            feed.failing = True
            detail = f"{feed.name}: {type(error).__name__} in driver {feed.driver.name}"
            for bed in feed.beds():
                self.apply(self.watch.technical(bed, "driver_fault", True, at_ns, detail))
        self.flush(at_ns)

    def handle(self, feed: Feed, items: Iterable[Item], at_ns: int, channel: str = "") -> None:
        """Carry decoded items down the path: alarms first, then one append, then the replies."""
        beds, watch, apply = self.beds, self.watch, self.alarms.apply
        name, fixed = feed.name, feed.bed
        out = self._out
        location = subject = patient = ""
        bed = fixed
        fresh_bed = False  # whether `bed` and `patient` have been worked out for this location and subject
        replies: list[Reply] = []
        good = 0
        for item in items:
            kind = type(item)
            if kind is Observation:
                if not fresh_bed or item.location != location or item.subject != subject:  # type: ignore[union-attr]
                    location, subject = item.location, item.subject  # type: ignore[union-attr]
                    bed = fixed or beds.at(location) or self._stranger(feed, location, at_ns)
                    patient = self._subject(feed, bed, subject, at_ns)
                    fresh_bed = True
                if bed:
                    self.latest[bed][item.term] = item  # type: ignore[union-attr,assignment]
                    for change in watch.observe(bed, name, item):  # type: ignore[arg-type]
                        apply(change)
                out.append(Entry(bed, name, patient, item))  # type: ignore[arg-type]
                good += 1
            elif kind is Reply:
                replies.append(item)  # type: ignore[arg-type]
            elif kind is Reject:
                feed.rejects += 1
                out.append(Entry(fixed, name, "", item))  # type: ignore[arg-type]
            else:
                good += 1
                self._rare(feed, item, at_ns)
        if good:
            feed.items += good
            feed.last_item_ns = at_ns
            if feed.failing or feed.state != "connected":
                self._recovered(feed, at_ns)
        if self._signalled:
            self._signalled = False
            self._on_latency(at_ns)
        ticket = self.flush(at_ns, wanted_soon=bool(replies))
        for reply in replies:
            if reply.after_commit:
                self.replies.add(ticket, feed, reply, reply.channel or channel)
            else:
                feed.send(reply.data, reply.channel or channel)

    def flush(self, at_ns: int, *, wanted_soon: bool = False) -> int:  # noqa: ARG002
        """Hand what has gathered to the buffer; the ticket tells when it, and all before it, is durable."""
        out = self._out
        if out or wanted_soon:
            self._out = []
            return self._append(out, wanted_soon=wanted_soon)
        return 0

    # -- what is rarer than observations ------------------------------------------------------------------------

    def _rare(self, feed: Feed, item: Item, at_ns: int) -> None:
        bed = feed.bed
        if isinstance(item, PatientEvent):
            self._patient_event(feed, item, at_ns)
            return
        if isinstance(item, Waveform | DeviceAlarm | DeviceStatus) and not bed:
            bed = (beds_at := self.beds.at(item.location)) or ""
            if beds_at is None and item.location:
                bed = self._stranger(feed, item.location, at_ns)
        if bed and not feed.bed:
            feed.beds_seen.add(bed)
        if isinstance(item, DeviceAlarm) and bed:
            self.apply(self.watch.device_alarm(bed, feed.name, item))
        self._out.append(Entry(bed, feed.name, self.beds.patient(bed), item))  # type: ignore[arg-type]

    def _stranger(self, feed: Feed, location: str, at_ns: int) -> str:
        """Empty: the location is no bed of this gateway. Said once as a technical alarm, counted always."""
        feed.strangers += 1
        if feed.strangers == 1:
            detail = f"{feed.name}: no bed has location {location!r}" if location else f"{feed.name}: no location sent"
            self.apply(self.watch.technical(GATEWAY, "bed_unknown", True, at_ns, detail))
        return GATEWAY

    def _subject(self, feed: Feed, bed: str, subject: str, at_ns: int) -> str:
        if not bed:
            return ""
        if not feed.bed:
            feed.beds_seen.add(bed)
        if subject:
            verdict = self.beds.observed(bed, feed.name, subject)
            if verdict == "new":
                self._restart(Moved(bed, subject, fresh=True), at_ns)
                self.record(bed, feed.name, PatientEvent("observed", subject, bed, at_ns))
            if (verdict == "mismatch") != (bed in self._mismatched):
                self._mismatch(feed, bed, verdict == "mismatch", at_ns)
        return self.beds.patient(bed)

    def _mismatch(self, feed: Feed, bed: str, present: bool, at_ns: int) -> None:
        (self._mismatched.add if present else self._mismatched.discard)(bed)
        detail = f"{feed.name} names another patient than the one admitted to this bed"
        self.apply(self.watch.technical(bed, "patient_mismatch", present, at_ns, detail))

    def _patient_event(self, feed: Feed, event: PatientEvent, at_ns: int) -> None:
        moves = self.beds.apply(event)
        bed = moves[-1].bed if moves else self.beds.at(event.location) or GATEWAY
        for move in moves:
            if move.fresh:
                self._restart(move, at_ns)
        self._out.append(Entry(bed, feed.name, event.patient_id, event))

    def admit(self, bed: str, patient: str, at_ns: int) -> None:
        """An operator puts a patient into a bed, or with an empty identifier takes the patient out."""
        move = self.beds.admit(bed, patient)
        if move.fresh or not patient:
            self._restart(move, at_ns)
        self.record(bed, "operator", PatientEvent("A01" if patient else "A03", patient, bed, at_ns))
        self.flush(at_ns)

    def _restart(self, move: Moved, at_ns: int) -> None:
        self.latest[move.bed].clear()
        self.alarms.new_patient(move.bed, at_ns)
        self.apply(self.watch.new_patient(move.bed, at_ns))

    def _recovered(self, feed: Feed, at_ns: int) -> None:
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
            if gone and feed.state in ("connected", "silent"):
                self.source_state(feed, "lost", at_ns, feed.link_detail)
            quiet = at_ns - feed.last_item_ns > feed.silence_s * 1e9
            if quiet and feed.state in ("starting", "connected"):
                self.source_state(feed, "silent", at_ns, f"no data for {feed.silence_s:g} s")
        self.apply(self.watch.tick(at_ns))
        self.alarms.tick(at_ns)
        self.flush(at_ns)
