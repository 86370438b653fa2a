"""The agent's side of the buffer: records go in, a ticket comes out, and its number is called when they are durable.

    alarm loop ──append──▶ Writer(alerts)   each hand-over a block, committed at once
                     └───▶ Writer(data)     group commit after commit_ms, or at once when an acknowledgement waits
    keeper      bounds what waits in memory, and notices a disk that does not answer

`append` does no input or output, takes no lock and waits for nobody. A ticket covers both streams: it is reported when
everything up to it is durable. What was shed from memory before it was durable is never reported as durable: its
tickets are told first (`on_shed`), so that their acknowledgements are withheld and the sender tries again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent import config
from edge_agent.buffer.clock import QUALITY_NAMES, SYNCHRONIZED, Clock
from edge_agent.buffer.marks import KAFKA_ONLY
from edge_agent.buffer.pending import BATCH_BYTES, GapKey
from edge_agent.buffer.rate import Rate, hours
from edge_agent.buffer.store import GapRow
from edge_agent.buffer.writer import Host, Writer
from edge_agent.records import ALERT, ALERT_RECORDS, NUMERIC, WAVEFORM, Entry, Gap

log = logging.getLogger(__name__)

FAULTS = ("buffer corrupt", "buffer key", "buffer disk", "buffer shed")  # kinds that `on_fault` is called with

_KEEPER_S = 0.2
_STALL_S = 2.0  # a commit takes milliseconds; a disk that is asked for longer deserves a word
_ALERT_ROOM_BYTES = 64 << 10  # left free for what the alerts, and the rows of shedding, take until the next tidying
_DATA_MIN_BYTES = 256 << 10  # what the data file may always hold, however much the alerts need
_PENDING_LOW = 0.9  # of pending_mb: to where shedding from memory frees


class Buffer:
    """Both streams of one gateway; `append` belongs to one thread, the rest to any."""

    def __init__(
        self,
        data_dir: Path,
        kek: bytes,
        gateway: str,
        settings: config.Buffer,
        *,
        on_committed: Callable[[int], None],
        on_fault: Callable[[str, str], None],
        on_shed: Callable[[list[int]], None] | None = None,
        clock: Clock | None = None,
        receivers: Mapping[str, tuple[str, ...]] = KAFKA_ONLY,
    ) -> None:
        """Starts the writers, which open or recover their files; records are taken at once, whatever the disk does.

        `receivers`: for each stream the marks without which no block of it goes (marks.receivers).
        `on_committed(ticket)` and `on_shed(tickets)` are called from writer threads, `on_fault(kind, detail)` from any;
        an empty detail says that the fault is over.
        """
        self._clock = clock or Clock()
        self._on_committed, self._on_fault, self._on_shed = on_committed, on_fault, on_shed
        self._quota_bytes = settings.quota_mb << 20
        self._pending_bytes = settings.pending_mb << 20
        self._ticket = 0
        self._handed = 0  # the newest ticket that is in the writers' hands completely
        self._reported = 0
        self._report_lock = threading.Lock()
        self._fault_lock = threading.Lock()
        self._faults: dict[str, dict[str, str]] = {kind: {} for kind in FAULTS}
        self._told: dict[str, str] = dict.fromkeys(FAULTS, "")
        self._memory_shed = 0
        self._rate = Rate()
        data = Host(
            data_dir=data_dir,
            kek=kek,
            gateway=gateway,
            clock=self._clock,
            max_age_s=settings.max_age_h * 3600,
            commit_s=settings.commit_ms / 1000,
            batch_bytes=min(BATCH_BYTES, self._pending_bytes // 4, self._quota_bytes // 16),
            limit_bytes=self._data_limit,
            report=self._report,
            fault=self._fault,
            gaps=self._store_gaps,
            stored_gaps=self._stored_gaps,
            receivers=receivers,
        )
        self._data = Writer("data", data)
        self._alerts = Writer("alerts", replace(data, limit_bytes=lambda: self._quota_bytes))
        self._writers = (self._alerts, self._data)
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="buffer-keeper", daemon=True)
        for writer in self._writers:
            writer.start()
        self._keeper.start()

    def append(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int:
        """The ticket of these records, which must not be changed afterwards.

        With `wanted_soon` the writer commits as soon as it is idle instead of collecting for commit_ms.
        """
        ticket = self._ticket = self._ticket + 1
        alerts = [entry for entry in entries if entry.record.__class__ in ALERT_RECORDS]
        if not alerts:
            self._data.put(ticket, entries, soon=wanted_soon)
        else:
            if len(alerts) < len(entries):
                rest = [entry for entry in entries if entry.record.__class__ not in ALERT_RECORDS]
                self._data.put(ticket, rest, soon=wanted_soon)
            self._alerts.put(ticket, alerts, soon=True)
        self._handed = ticket
        return ticket

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether both files are open within the time; nobody needs to wait for it, records are taken before."""
        until = time.monotonic() + timeout_s
        return all(writer.ready.wait(max(until - time.monotonic(), 0.0)) for writer in self._writers)

    def prune(self, timeout_s: float = 10.0) -> None:
        """Drops what the marks say is delivered and returns when that is done; the writers also do it by themselves."""
        until = time.monotonic() + timeout_s
        for done in [writer.tidy() for writer in self._writers]:
            done.wait(max(until - time.monotonic(), 0.0))

    def stats(self) -> dict[str, Any]:
        """Counters, without touching the disk: what is stored, waiting, shed; commit times in ms; age in s.

        `capacity_h` is what the whole quota holds at the rate of the last ten minutes, `room_h` what is still free of
        it, in hours; None in the first minute and while nothing comes.
        """
        alerts, data = self._writers
        times = sorted([*alerts.commit_ms.copy(), *data.commit_ms.copy()])
        used, per_s = alerts.used_bytes + data.used_bytes, self._rate.per_s()
        ages = [age for age in map(self._age_s, self._writers) if age is not None]
        return {
            "stored": alerts.records + data.records,
            "pending": sum(writer.pending.records + len(writer.pending.inbox) for writer in self._writers),
            "pending_bytes": alerts.pending.bytes + data.pending.bytes,
            "bytes": used,
            "quota_bytes": self._quota_bytes,
            "bytes_per_s": None if per_s is None else round(per_s, 1),
            "capacity_h": hours(self._quota_bytes, per_s),
            "room_h": hours(self._quota_bytes - used, per_s),
            "blocks": alerts.blocks + data.blocks,
            "shed": alerts.shed_records + data.shed_records + self._memory_shed,
            "gaps": alerts.gap_count + data.gap_count,
            "fault": "; ".join(detail for detail in self._told.values() if detail),
            "commits": alerts.commits + data.commits,
            "commit_ms_p50": times[len(times) // 2] if times else None,
            "commit_ms_p99": times[min(int(len(times) * 0.99), len(times) - 1)] if times else None,
            "oldest_s": max(ages) if ages else None,
            "issued": self._ticket,
            "committed": self._reported,
            "clock": QUALITY_NAMES[self._clock.quality()],
            "streams": {
                writer.stream: {"stored": writer.records, "blocks": writer.blocks, "bytes": writer.used_bytes}
                for writer in self._writers
            },
        }

    def close(self, timeout: float) -> None:
        """Writes what waits and closes the files within `timeout` seconds; what is not durable then is not reported."""
        deadline = time.monotonic() + timeout
        self._closing.set()
        for writer in self._writers[::-1]:  # data first: its last losses still become Gap records among the alerts
            writer.close(deadline)
            writer.join(max(deadline - time.monotonic(), 0.0) + 0.1)
        self._keeper.join(max(deadline - time.monotonic(), 0.0) + 0.1)

    def _data_limit(self) -> int:
        return max(self._quota_bytes - self._alerts.file_bytes - _ALERT_ROOM_BYTES, _DATA_MIN_BYTES)

    def _age_s(self, writer: Writer) -> float | None:
        oldest = writer.oldest
        if oldest is None:
            return None
        mono, boot, utc = oldest
        if boot == self._clock.boot():
            return (self._clock.monotonic_ns() - mono) / 1e9
        if self._clock.quality() == SYNCHRONIZED:
            return max(self._clock.utc_ns() - utc, 0) / 1e9
        return None

    # Called by the writers

    def _report(self) -> None:
        with self._report_lock:
            floor = self._handed  # read first: newer tickets may be half handed over
            for writer in self._writers:
                oldest = writer.pending.oldest()
                if oldest is not None and oldest <= floor:
                    floor = oldest - 1
            if floor <= self._reported:
                return
            self._reported = floor
            shed = [*self._alerts.pending.take_shed(floor), *self._data.pending.take_shed(floor)]
            try:
                if shed and self._on_shed is not None:
                    self._on_shed(shed)
                self._on_committed(floor)
            except Exception:  # a caller that is gone (its event loop is closed) must not stop the writer
                log.exception("buffer event=callback")

    def _store_gaps(self, stream: str, rows: list[GapRow]) -> None:
        for row in rows:
            instance = str(uuid.UUID(bytes=row.instance)) if len(row.instance) == 16 else ""
            gap = Gap(row.reason, row.first, row.last, row.records, row.at_ns, instance, row.priority)
            key: GapKey = (stream, row.id or 0)
            self._alerts.put(self._handed, (Entry("", "", "", gap),), soon=True, gaps=(key,))

    def _stored_gaps(self, stored: Sequence[GapKey]) -> None:
        for writer in self._writers:
            writer.forget_gaps([row for stream, row in stored if stream == writer.stream])

    def _fault(self, kind: str, slot: str, detail: str) -> None:
        with self._fault_lock:
            held = self._faults[kind]
            if detail:
                held[slot] = detail
            else:
                held.pop(slot, None)
            now = "; ".join(held[slot] for slot in sorted(held))
            if now == self._told[kind]:
                return
            self._told[kind] = now
            log.warning("buffer fault=%r detail=%r", kind, now)
            try:
                self._on_fault(kind, now)
            except Exception:  # as above
                log.exception("buffer event=callback")

    # The keeper

    def _keep(self) -> None:
        while not self._closing.wait(_KEEPER_S):
            self._rate.note(self._clock.monotonic_ns(), sum(writer.sealed_bytes for writer in self._writers))
            for writer in self._writers:
                self._watch_stall(writer)
            self._bound_memory()

    def _watch_stall(self, writer: Writer) -> None:
        since = writer.busy_since
        stalled = since is not None and self._clock.monotonic_ns() - since > _STALL_S * 1e9
        self._fault(
            "buffer disk",
            f"{writer.stream} stall",
            f"{writer.stream}.db: the disk has not answered for more than {_STALL_S:g} s; records are kept in memory"
            " and nothing is acknowledged meanwhile; check the disk"
            if stalled
            else "",
        )

    def _bound_memory(self) -> None:
        for writer in self._writers:
            if writer.busy_since is not None or not writer.ready.is_set():
                writer.pending.sort()
        total = sum(writer.pending.bytes for writer in self._writers)
        if total <= self._pending_bytes:
            if self._memory_shed and total < self._pending_bytes // 2:
                self._fault("buffer shed", "memory", "")
            return
        need = total - int(self._pending_bytes * _PENDING_LOW)
        for writer, priority in ((self._data, WAVEFORM), (self._data, NUMERIC), (self._alerts, ALERT)):
            before = writer.pending.bytes
            dropped = writer.pending.shed(priority, need)
            if dropped:
                self._memory_shed += dropped
                need -= before - writer.pending.bytes
                self._fault(
                    "buffer shed",
                    "memory",
                    "the oldest records that wait in memory for the disk are being shed: buffer.pending_mb is full;"
                    " make the disk answer",
                )
            if need <= 0:
                return
