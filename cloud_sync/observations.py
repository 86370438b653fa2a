"""Observations in JSON: each message is put together from pieces that were written before.

Theory of operation. By far the most records are observations, and those of one block say the same again and again: a
bed has one source and one patient, a device's message one time and one place. What differs is sequence, moment, term
and value. So each distinct rest of a block goes through the gate and through msgspec once, and a message is its pieces
in a row, byte for byte what msgspec would write of the whole:

    {"gateway":..,"instance":..,"sequence": 7 ,"bed":..,"source":..,"utc":" 12:00:00 .123Z ","clock_quality":..
    └────────────── block ───────────────┘   └─────── rest ───────┘       └ moment ─┘     └──── block ────

    ,"at_ns": 5 ,"schema_version":1,"record":{"item":..,"term":..,"value": 97.0 ,"unit":.. ,"validity":..},"patient":..}
    ─ block ─┘   └───────────────────── term ─────────────────────┘            └─ term ──┘  └───────── rest ─────────┘

The rests are forgotten with their block: what a text becomes depends on whom the gateway has met by then.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge_agent import records, terms
from edge_agent.buffer import Block

UNIT_OF: dict[str, str] = {term.name: term.ucum for term in terms.TERMS}

_ENCODE = msgspec.json.Encoder().encode
_SECOND_NS = 1_000_000_000
_MILLISECONDS = tuple(b".%03dZ" % number for number in range(1000))


class _Rest(msgspec.Struct, omit_defaults=True, gc=False):
    """What follows the unit, as `records.shape` writes it."""

    validity: str
    device_time: str | None = None
    location: str = ""
    subject: str = ""
    channel: str = ""


def _members(what: Any) -> bytes:
    """The JSON of an object without its braces."""
    return _ENCODE(what)[1:-1]


class Moments:
    """Writes UTC; remembers the second, which most records share with the one before."""

    def __init__(self) -> None:
        self._begin_ns, self._text = -_SECOND_NS, b""

    def utc(self, utc_ns: int) -> bytes:
        """ISO 8601 to the millisecond."""
        since_ns = utc_ns - self._begin_ns
        if not 0 <= since_ns < _SECOND_NS:
            second, since_ns = divmod(utc_ns, _SECOND_NS)
            self._begin_ns = second * _SECOND_NS
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        return self._text + _MILLISECONDS[since_ns // 1_000_000]


class Observations:
    """The values of the messages of one block's observations."""

    def __init__(
        self,
        block: Block,
        gateway: str,
        schema_version: int,
        leaving: Callable[[records.Entry], records.Entry],
        moments: Moments,
    ) -> None:
        """`leaving`: the gate, which has met the identifiers of the block."""
        self._leaving, self._utc = leaving, moments.utc
        self._since_ns = block.utc_ns(0)
        self._head = b'{%b,"sequence":' % _members({"gateway": gateway, "instance": block.instance})
        self._clock = b'",%b,"at_ns":' % _members({"clock_quality": block.clock_quality})
        self._begin = b',"schema_version":%d,"record":{' % schema_version
        self._terms: dict[str, tuple[bytes, bytes]] = {}
        self._rests: dict[tuple[str | None, ...], tuple[bytes, bytes]] = {}

    def value(self, sequence: int, entry: records.Entry, record: records.Observation) -> bytes:
        """The message of an entry that has not yet passed the gate; `record` is its record."""
        rest = (
            entry.bed,
            entry.source,
            entry.patient,
            record.validity,
            record.device_time,
            record.location,
            record.subject,
            record.channel,
        )
        before, after = self._rests.get(rest) or self._pass(rest, entry)
        term, unit = self._terms.get(record.term) or self._name(record.term)
        at_ns = record.at_ns
        return b"".join(
            (
                self._head,
                _ENCODE(sequence),
                before,
                self._utc(self._since_ns + at_ns),
                self._clock,
                _ENCODE(at_ns),
                term,
                _ENCODE(record.value),
                unit,
                after,
            )
        )

    def _pass(self, rest: tuple[str | None, ...], entry: records.Entry) -> tuple[bytes, bytes]:
        """Lets the first entry of its kind through the gate and writes what all of them share."""
        entry = self._leaving(entry)
        record = entry.record
        assert isinstance(record, records.Observation)
        before = b',%b,"utc":"' % _members({"bed": entry.bed, "source": entry.source})
        after = _members(
            _Rest(record.validity, record.device_time or None, record.location, record.subject, record.channel)
        )
        patient = b",%b" % _members({"patient": entry.patient}) if entry.patient else b""
        found = self._rests[rest] = before, b",%b}%b}" % (after, patient)
        return found

    def _name(self, term: str) -> tuple[bytes, bytes]:
        found = self._terms[term] = (
            self._begin + _members({"item": "observation", "term": term}) + b',"value":',
            b"," + _members({"unit": UNIT_OF[term]}),
        )
        return found
