"""What waits in memory for one database: handed over by the alarm loop, taken by the writer, bounded by the keeper.

    append ──▶ inbox (a deque: no lock, no wait) ──▶ lanes by priority ──▶ batch in flight ──▶ durable
                                                        └── shed from the left when memory is full

Only the writer and the keeper take the lock, and never over input or output. A ticket is durable when nothing older
waits in inbox, lanes or batch.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import astuple

from edge_agent.records import ALERT, NUMERIC, WAVEFORM, Entry, Observation, Waveform

ENTRY_BYTES = 420  # measured size of an entry with its numeric in memory; sealed it takes a fifth
BLOCK_BYTES = 256 << 10  # of entries in memory: a block is cut here
BATCH_BYTES = 4 << 20  # of entries in memory: one transaction holds no more
_GROUP_ENTRIES = 512  # a longer hand-over is cut, so that a block stays near its size

GapKey = tuple[str, int]  # stream whose journal holds the loss, row there


class Group(NamedTuple):
    """Records of one priority that were handed over together."""

    ticket: int
    entries: Sequence[Entry]
    size: int
    gaps: tuple[GapKey, ...] = ()  # journal rows that these entries report


class Part(NamedTuple):
    """The groups of one block to be."""

    priority: int
    groups: list[Group]


@dataclass(slots=True)
class Batch:
    """What one transaction will make durable; kept as it is until that has happened."""

    parts: list[Part] = field(default_factory=list)
    drops: list[tuple[int, int]] = field(default_factory=list)  # priority and count of records shed while they waited
    size: int = 0


def _content_bytes(entry: Entry) -> int:
    """Size of the fields that a device may fill at length: samples and texts."""
    record = entry.record
    if isinstance(record, Waveform):
        return len(record.samples)
    return sum(len(value) for value in astuple(record) if value.__class__ is str)


class Bell:
    """Wakes one waiting thread; ringing costs nothing when it has been rung already."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False

    def ring(self) -> None:
        """Wakes the waiting thread, or the next one that waits."""
        if not self._rung:
            self._rung = True
            self._queue.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Whether it was rung within the time."""
        try:
            self._queue.get(timeout=max(timeout_s, 0.0))
            rung = True
        except queue.Empty:
            rung = False
        self._rung = False  # before the caller looks for work: what comes now rings again
        return rung


class Pending:
    """The waiting records of one stream."""

    def __init__(self, *, one_block_per_group: bool, batch_bytes: int = BATCH_BYTES) -> None:
        self.inbox: deque[tuple[int, Sequence[Entry], tuple[GapKey, ...]]] = deque()
        self.bytes = 0
        self.records = 0
        self._single, self.batch_bytes = one_block_per_group, batch_bytes
        self._lanes: dict[int, deque[Group]] = {ALERT: deque(), NUMERIC: deque(), WAVEFORM: deque()}
        self._batch: Batch | None = None
        self._drops: dict[int, int] = {}
        self._shed_tickets: list[int] = []
        self._lock = threading.Lock()

    def sort(self) -> None:
        """Moves what was handed over into the lanes."""
        with self._lock:
            self._sort()

    def _sort(self) -> None:
        inbox = self.inbox
        while inbox:
            ticket, entries, gaps = inbox.popleft()
            if self._single:
                self._add(ALERT, ticket, entries, gaps)
                continue
            waves = [entry for entry in entries if entry.record.__class__ is Waveform]
            if waves:
                self._add(WAVEFORM, ticket, waves, gaps)
                entries = [entry for entry in entries if entry.record.__class__ is not Waveform]
            self._add(NUMERIC, ticket, entries, gaps)

    def _add(self, priority: int, ticket: int, entries: Sequence[Entry], gaps: tuple[GapKey, ...]) -> None:
        lane = self._lanes[priority]
        for start in range(0, len(entries), _GROUP_ENTRIES):
            part = entries if len(entries) <= _GROUP_ENTRIES else entries[start : start + _GROUP_ENTRIES]
            size = len(part) * ENTRY_BYTES
            if priority == WAVEFORM:
                size += sum([len(entry.record.samples) for entry in part if isinstance(entry.record, Waveform)])
            else:
                size += sum([_content_bytes(entry) for entry in part if entry.record.__class__ is not Observation])
            lane.append(Group(ticket, part, size, gaps))
            self.bytes += size
            self.records += len(part)

    def take(self) -> Batch | None:
        """The next batch, or the one that is still in flight; None when nothing waits."""
        with self._lock:
            self._sort()
            if self._batch is None:
                batch = Batch(drops=sorted(self._drops.items()))
                self._drops = {}
                for priority, lane in self._lanes.items():
                    self._fill(batch, priority, lane)
                if batch.parts or batch.drops:
                    self._batch = batch
            return self._batch

    def _fill(self, batch: Batch, priority: int, lane: deque[Group]) -> None:
        size = 0
        groups: list[Group] = []
        while lane and batch.size < self.batch_bytes:
            group = lane.popleft()
            if groups and (self._single or size + group.size > BLOCK_BYTES):
                batch.parts.append(Part(priority, groups))
                groups, size = [], 0
            groups.append(group)
            size += group.size
            batch.size += group.size
        if groups:
            batch.parts.append(Part(priority, groups))

    def done(self) -> None:
        """The batch in flight is durable."""
        with self._lock:
            if self._batch is not None:
                self.bytes -= self._batch.size
                self.records -= sum(len(group.entries) for part in self._batch.parts for group in part.groups)
                self._batch = None

    def oldest(self) -> int | None:
        """The lowest ticket of which something is not durable yet; None when nothing waits."""
        with self._lock:
            tickets = [lane[0].ticket for lane in self._lanes.values() if lane]
            if self._batch is not None:
                tickets += [part.groups[0].ticket for part in self._batch.parts]
            if self.inbox:  # only holders of the lock take from it
                tickets.append(self.inbox[0][0])
            return min(tickets) if tickets else None

    def waiting(self) -> bool:
        """Whether anything waits, in flight or not."""
        return bool(self.inbox or self._batch or self.bytes or self._drops)

    def shed(self, priority: int, need: int) -> int:
        """Drops the oldest waiting records of a priority until `need` bytes are free; returns the number of records.

        Their tickets are never to be acknowledged; the loss is told by the next batch.
        """
        dropped = 0
        with self._lock:
            self._sort()
            lane = self._lanes[priority]
            while lane and need > 0:
                group = lane.popleft()
                self.bytes -= group.size
                need -= group.size
                dropped += len(group.entries)
                if not group.gaps:  # a Gap of the buffer itself borrows its ticket
                    self._shed_tickets.append(group.ticket)
            if dropped:
                self._drops[priority] = self._drops.get(priority, 0) + dropped
                self.records -= dropped
        return dropped

    def take_shed(self, upto: int) -> list[int]:
        """Tickets up to `upto` of which something was shed, each once."""
        if not self._shed_tickets:
            return []
        with self._lock:
            told = sorted({ticket for ticket in self._shed_tickets if ticket <= upto})
            self._shed_tickets = [ticket for ticket in self._shed_tickets if ticket > upto]
            return told
