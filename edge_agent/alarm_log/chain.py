"""The chain: what an entry is, its canonical bytes, and how each entry's hash vouches for all before it.

    hash(n) = SHA-256( hash(n-1) || canonical bytes of entry n ),   hash(0) = GENESIS

The canonical bytes are UTF-8 JSON with the fields in fixed order, empty ones left out, so that an export can be checked
by anyone with any SHA-256. The chain finds what was altered, removed or moved within the log. It cannot find that the
newest entries were cut off, or that one who holds the key wrote the whole log anew: for that, note number and hash of
the newest entry elsewhere now and then, and compare. No input or output happens here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from edge_agent.buffer.clock import QUALITY_NAMES
from edge_agent.records import AlarmEvent

GENESIS = hashlib.sha256(b"bedside-edge alarm log, version 1").digest()
VERSION = 1

MarkKind = Literal["boot", "power_down", "clock_step", "truncated", "lost", "settings"]
Quality = Literal["unknown", "unsynchronized", "synchronized"]


class Mark(msgspec.Struct, frozen=True, gc=False):
    """What happened to the log or the gateway itself, in between the alarms."""

    kind: str  # one of MarkKind; a newer program may know more
    detail: dict[str, Any]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of the log: when and where, and either an alarm event or a mark."""

    number: int  # from 1, without gaps
    utc_ns: int
    clock: Quality  # whether `utc_ns` can be believed
    at_ns: int  # CLOCK_MONOTONIC of `boot`
    boot: str  # of the machine, 32 hex digits
    run: str  # of the agent
    bed: str = ""  # empty for the gateway itself
    patient: str = ""  # pseudonym: the same patient has the same one within this log
    alarm: AlarmEvent | None = None
    mark: Mark | None = None


class BadEntry(ValueError):
    """Bytes that are not an entry of this log."""


class _Plain(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The canonical form; the order of its fields is part of the format, new ones go to the end."""

    version: int
    number: int
    utc_ns: int
    clock: Quality
    at_ns: int
    boot: str
    run: str
    bed: str = ""
    patient: str = ""
    alarm: dict[str, Any] | None = None
    mark: Mark | None = None


_FIELDS = AlarmEvent.__struct_fields__
_DEFAULTS = dict(zip(reversed(_FIELDS), reversed(AlarmEvent.__struct_defaults__), strict=False))
# Made here, not at the first use: msgspec prepares a type at its first decoder, and not safely from two threads.
_DECODE = msgspec.json.Decoder(_Plain).decode
_ENCODE = msgspec.json.Encoder().encode
msgspec.convert(["a", "", "", "technical", "none", "", "Off", 0], AlarmEvent)


def canonical(entry: Entry) -> bytes:
    """The bytes of an entry that are hashed, sealed and exported."""
    alarm = None
    if entry.alarm is not None:
        alarm = {
            name: value
            for name in _FIELDS
            if (value := getattr(entry.alarm, name)) is not None and (value != "" or name not in _DEFAULTS)
        }
    return _ENCODE(
        _Plain(
            VERSION, entry.number, entry.utc_ns, entry.clock, entry.at_ns, entry.boot, entry.run, entry.bed,
            entry.patient, alarm, entry.mark,
        )
    )  # fmt: skip


def parse(plain: bytes) -> Entry:
    """The entry that `canonical` wrote; fields that a newer program added are passed over.

    Raises: BadEntry when it is none.
    """
    try:
        found = _DECODE(plain)
        alarm = None
        if found.alarm is not None:
            values = [found.alarm.get(name, _DEFAULTS.get(name)) for name in _FIELDS]
            alarm = msgspec.convert(["a", *values], AlarmEvent)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadEntry(str(error)) from error
    if (alarm is None) is (found.mark is None):
        raise BadEntry("holds not exactly one of an alarm and a mark")
    return Entry(
        found.number, found.utc_ns, found.clock, found.at_ns, found.boot, found.run, found.bed, found.patient, alarm,
        found.mark,
    )  # fmt: skip


def next_hash(previous: bytes, plain: bytes) -> bytes:
    """The hash of the entry with these canonical bytes; 32 bytes."""
    return hashlib.sha256(previous + plain).digest()


def quality_name(quality: int) -> Quality:
    """The word for a clock quality of edge_agent.buffer.clock."""
    return QUALITY_NAMES[quality]  # type: ignore[return-value]


class Row(NamedTuple):
    """An entry as it was found: `plain` is None when its seal does not open."""

    number: int
    hash: bytes
    plain: bytes | None


class Broken(Exception):
    """The first place at which a log is not what was written; `number` names the entry, 0 the log as a whole."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number, self.reason = number, reason


def walk(rows: Iterable[Row], after: int = 0, start: bytes = GENESIS) -> Iterator[tuple[Entry, bytes]]:
    """The entries with their hashes, each checked; `after` and `start` are number and hash of the last dropped one.

    Raises: Broken at the first entry that is missing, altered or in another's place; and at the end, when the log says
    that older entries were dropped and no mark in it bears that out.
    """
    number, previous, vouched = after, start, after == 0 and start == GENESIS
    for row in rows:
        expected = number + 1
        if row.number != expected:
            if row.number > expected:
                raise Broken(expected, f"{_span(expected, row.number - 1)} missing; {row.number} follows")
            raise Broken(row.number, f"entry {row.number} stands where {expected} belongs")
        if row.plain is None:
            raise Broken(expected, f"entry {expected}: its seal does not open; it was altered or moved")
        try:
            entry = parse(row.plain)
        except BadEntry as error:
            raise Broken(expected, f"entry {expected}: {error}") from error
        if entry.number != expected:
            raise Broken(expected, f"entry {expected}: its content is that of entry {entry.number}")
        number, previous = expected, next_hash(previous, row.plain)
        if row.hash != previous:
            where = f"entry {expected}: its hash does not follow from entry {expected - 1}; one of the two was altered"
            raise Broken(expected, where)
        mark = entry.mark
        if not vouched and mark is not None and mark.kind == "truncated":
            vouched = mark.detail.get("through") == after and mark.detail.get("hash") == start.hex()
        yield entry, previous
    if not vouched:
        raise Broken(after, f"entries up to {after} are missing, and no mark in the log says that they were dropped")


def _span(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
