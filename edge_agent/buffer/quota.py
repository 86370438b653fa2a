"""What gives way when space or time runs out: delivered blocks, then waveforms, then numerics, never unsent alerts.

Every block that goes undelivered leaves a row in the journal of losses, in the transaction that deletes it; the row
becomes a Gap record in the alerts stream. Age is only judged by clocks that can be compared: CLOCK_MONOTONIC within
one boot, UTC where it was synchronised both then and now. A stepped clock therefore sheds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_agent.buffer.clock import SYNCHRONIZED, Clock
from edge_agent.buffer.store import PAGE_BYTES, GapRow, Store
from edge_agent.records import NUMERIC, WAVEFORM

SHED_ORDER = (WAVEFORM, NUMERIC)
HIGH_WATER, LOW_WATER = 0.95, 0.90  # of the limit: where shedding starts and to where it frees
CALM_WATER = 0.80  # below it the shortage is over
_CHUNK = 256  # blocks deleted in one transaction


@dataclass(slots=True)
class Shed:
    """What one step of shedding removed."""

    gaps: list[GapRow] = field(default_factory=list)
    blocks: int = 0
    records: int = 0


class Quota:
    """Keeps one stream's file within its size and age."""

    def __init__(self, store: Store, clock: Clock, max_age_s: float) -> None:
        self._store, self._clock, self._max_age_ns = store, clock, int(max_age_s * 1e9)
        self._from = dict.fromkeys(SHED_ORDER, 0)  # numbers before which no block of the priority is left

    def rewind(self) -> None:
        """Forgets how far shedding had come, after a transaction that was rolled back."""
        self._from = dict.fromkeys(SHED_ORDER, 0)

    def prune(self, upto: int) -> Shed:
        """Deletes some delivered blocks up to a number, in the open transaction; nothing is lost by it."""
        store = self._store
        rows = store.connection.execute(
            "SELECT number, count FROM blocks WHERE number <= ? ORDER BY number LIMIT ?", (upto, _CHUNK)
        ).fetchall()
        if rows:
            store.delete([(row[0],) for row in rows], store.next_number, store.next_first)
        return Shed([], len(rows), sum(row[1] for row in rows))

    def shed_space(self, limit_bytes: int) -> Shed:
        """Deletes the least important, oldest undelivered blocks, in the open transaction, towards the low water."""
        shed = Shed()
        need = self._store.used_bytes() - int(limit_bytes * LOW_WATER)
        for priority in SHED_ORDER:
            if need <= 0:
                break
            rows = self._store.connection.execute(
                "SELECT number, instance, first, count, length(blob) FROM blocks"
                " WHERE number >= ? AND priority = ? ORDER BY number LIMIT ?",
                (self._from[priority], priority, _CHUNK),
            ).fetchall()
            chosen = []
            for row in rows:
                if need <= 0:
                    break
                chosen.append(row)
                need -= max(row[4], PAGE_BYTES // 4)
            if chosen:
                self._from[priority] = chosen[-1][0] + 1
                self._remove(chosen, priority, "quota", shed)
            else:
                self._from[priority] = self._store.next_number
        return shed

    def shed_age(self) -> Shed:
        """Deletes undelivered waveforms and numerics that are too old, in the open transaction."""
        shed = Shed()
        now_utc, now_mono, boot = self._clock.utc_ns(), self._clock.monotonic_ns(), self._clock.boot()
        synchronized = self._clock.quality() == SYNCHRONIZED
        rows = self._store.connection.execute(
            "SELECT b.number, b.instance, b.first, b.count, b.priority, b.utc, b.mono, b.quality, k.boot"
            " FROM blocks b LEFT JOIN keys k ON k.id = b.key ORDER BY b.number LIMIT ?",
            (_CHUNK,),
        ).fetchall()
        old: dict[int, list[tuple[int, ...]]] = {priority: [] for priority in SHED_ORDER}
        for row in rows:
            if row[8] == boot:
                age = now_mono - row[6]
            elif synchronized and row[7] == SYNCHRONIZED:
                age = now_utc - row[5]
            else:
                age = 0
            if age > self._max_age_ns and row[4] in old:
                old[row[4]].append(row)
        for priority, chosen in old.items():
            if chosen:
                self._remove(chosen, priority, "age", shed)
        return shed

    def _remove(self, rows: list[tuple[int, ...]], priority: int, reason: str, shed: Shed) -> None:
        store, now = self._store, self._clock.monotonic_ns()
        store.delete([(row[0],) for row in rows], store.next_number, store.next_first)
        spans: dict[int, tuple[int, int, int]] = {}
        for row in rows:
            first, last, count = spans.get(row[1], (row[2], 0, 0))
            spans[row[1]] = (min(first, row[2]), max(last, row[2] + row[3] - 1), count + row[3])
        uuids = dict(store.connection.execute("SELECT ordinal, uuid FROM instances").fetchall())
        gaps = [
            GapRow(None, reason, uuids.get(ordinal, b""), first, last, count, priority, now)
            for ordinal, (first, last, count) in spans.items()
        ]
        shed.gaps += store.journal_gaps(gaps)
        shed.blocks += len(rows)
        shed.records += sum(row[3] for row in rows)
