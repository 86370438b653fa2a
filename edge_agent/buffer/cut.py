"""From a batch to rows: records are numbered, joined into blocks, stamped with both clocks, and sealed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from edge_agent.buffer.clock import Clock
from edge_agent.buffer.pending import Batch
from edge_agent.buffer.seal import CODEC_ZSTD, VERSION, Head, Packer
from edge_agent.buffer.store import GapRow, Store
from edge_agent.records import Entry, Gap

_FAILURES = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)  # of encoding what no block can hold


Row = tuple[Any, ...]  # the columns of store.HEAD_COLUMNS and the blob


def blocks(opened: Store, batch: Batch, packer: Packer, clock: Clock) -> tuple[list[Row], list[GapRow], int]:
    """Rows to insert, losses to journal, and the sequence after them.

    Records that were shed while they waited get their numbers first: a number is never left out in silence.
    """
    key = opened.current_key()
    quality, boot = clock.quality(), clock.boot()
    mono, utc = clock.monotonic_ns(), clock.utc_ns()
    number, first = opened.next_number, opened.next_first
    gaps: list[GapRow] = []
    for priority, count in batch.drops:
        gaps.append(GapRow(None, "memory", opened.instance, first, first + count - 1, count, priority, mono))
        first += count
    rows: list[Row] = []
    for priority, groups in batch.parts:
        entries = groups[0].entries
        if len(groups) > 1:
            entries = list(chain.from_iterable(group.entries for group in groups))
        try:
            packed, plain = packer.pack(entries)
        except _FAILURES:
            entries = _readable(entries, packer, first, mono)
            packed, plain = packer.pack(entries)
        count = len(entries)
        t0, t1 = entries[0].record.at_ns, entries[-1].record.at_ns
        head = Head(
            VERSION, CODEC_ZSTD, opened.stream, priority, quality, key.id, number, first, count, plain,
            t0, t1, utc, mono, opened.instance, boot,
        )  # fmt: skip
        blob = key.cipher.seal(head, packed)
        row = (
            VERSION, CODEC_ZSTD, priority, quality, key.id, number, first, count, plain,
            t0, t1, utc, mono, opened.ordinal, blob,
        )  # fmt: skip
        rows.append(row)
        number += 1
        first += count
    return rows, gaps, first


def _readable(entries: Sequence[Entry], packer: Packer, first: int, mono: int) -> list[Entry]:
    """The entries with a Gap in the place of each that cannot be encoded, so that one cannot hold up all others."""
    out: list[Entry] = []
    for sequence, entry in enumerate(entries, first):
        try:
            packer.pack((entry,))
            out.append(entry)
        except _FAILURES:
            out.append(Entry("", "", "", Gap("unencodable", sequence, sequence, 1, mono)))
    return out
