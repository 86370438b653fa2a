"""Recorded observations, one moment of one bed after the other, from whatever file holds them.

Theory of operation: a file is read once, row by row or batch by batch, and never held. What comes out is a `Heard` for
each moment of a bed: who sent it, which patient lay there, and the records. Moments of one bed are in order; those of
different beds need not be, because every bed is replayed on a clock of its own. Times of an export or of the buffer are
UTC in nanoseconds, worked out once for each run of the gateway from the offset of its monotonic clock, so that a step
of the wall clock moves nothing; times of a table are its own seconds. A restart of the gateway is a `Heard` without
records.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent import terms
from edge_agent.buffer import STREAMS, Block, Position, Reader
from edge_agent.records import DeviceAlarm, DeviceStatus, Observation

NS = 1_000_000_000
BACKWARDS_NS = 60 * NS  # a monotonic clock that falls back further was started anew; less is two threads' order
READ_BLOCKS = 64  # of the buffer, in one short transaction

Record = Observation | DeviceAlarm | DeviceStatus
_TYPES: dict[str, type[Record]] = {
    "observation": Observation,
    "device_alarm": DeviceAlarm,
    "device_status": DeviceStatus,
}


class DataError(ValueError):
    """Recorded data that cannot be used; `str` names the file, the line when it is known, and what is wrong."""


class Heard(NamedTuple):
    """What a bed heard at one moment; no records: the gateway was started anew."""

    bed: str
    at_ns: int
    source: str
    patient: str
    records: tuple[Record, ...]


class _Clock:
    """Turns monotonic times of one run of the gateway after the other into UTC."""

    def __init__(self) -> None:
        self._run: object = None
        self._offset = self._last = 0

    def utc(self, run: object, at_ns: int, utc_ns: int) -> tuple[int, bool]:
        """UTC in ns of a record, and whether a new run of the gateway began with it."""
        fresh = run != self._run or at_ns < self._last - BACKWARDS_NS
        if fresh:
            first = self._run is None
            self._run, self._offset, self._last = run, utc_ns - at_ns, at_ns
            return utc_ns, not first
        self._last = max(self._last, at_ns)
        return at_ns + self._offset, False


def export_moments(path: Path) -> Iterator[Heard]:
    """Moments of a file with the lines that `edge-agent buffer export` prints, both streams in the order of time.

    Raises: DataError for a line that is none of these.
    """
    return heapq.merge(*(_export_stream(path, stream) for stream in STREAMS), key=lambda heard: heard.at_ns)


def _export_stream(path: Path, stream: str) -> Iterator[Heard]:
    clock = _Clock()
    mark = f'"stream": "{stream}"'
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if mark not in line and _is_other(path, number, line):
                continue
            try:
                row = json.loads(line)
                if row["stream"] != stream:
                    continue
                kind = _TYPES.get(row["record"]["item"])
                at_ns, utc_ns = int(row["at_ns"]), _parse_time(row["utc"])
                record = None if kind is None else _record(kind, row["record"], 0)
                bed, source, patient, run = row["bed"], row["source"], row["patient"], row["instance"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a line of `edge-agent buffer export`: {type(error).__name__} {error}"
                ) from error
            at, restarted = clock.utc(run, at_ns, utc_ns)
            yield from _heard(bed, at, source, patient, record, restarted and stream == "data")


def _is_other(path: Path, number: int, line: str) -> bool:
    """Whether a line belongs to the other stream, or is empty. Raises: DataError when it is neither."""
    if any(f'"stream": "{name}"' in line for name in STREAMS) or not line.strip():
        return True
    if line.lstrip().startswith("{"):
        return False  # written with other spaces: the parser decides
    raise DataError(f"{path}:{number}: not a line of `edge-agent buffer export`")


def buffer_moments(data_dir: Path, kek: bytes) -> Iterator[Heard]:
    """Moments that the gateway's own sealed buffer still holds, read-only, also while the agent runs.

    Raises: OSError when a file is damaged beyond reading, buffer.KeyProblem when the key is another one.
    """
    return heapq.merge(*(_buffer_stream(data_dir, kek, stream) for stream in STREAMS), key=lambda heard: heard.at_ns)


def _buffer_stream(data_dir: Path, kek: bytes, stream: str) -> Iterator[Heard]:
    reader, clock = Reader(data_dir, kek), _Clock()
    place: Position | None = None
    try:
        while blocks := reader.read(stream, place, READ_BLOCKS):
            for block in blocks:
                yield from _block_moments(block, clock)
            place = blocks[-1].position
        if reader.fault:
            raise OSError(f"{reader.fault}; run `edge-agent buffer verify`")
    finally:
        reader.close()


def _block_moments(block: Block, clock: _Clock) -> Iterator[Heard]:
    for entry in block.entries:
        record = entry.record
        at, restarted = clock.utc((block.instance, block.boot), record.at_ns, block.utc_ns(record.at_ns))
        kept = record if isinstance(record, Observation | DeviceAlarm | DeviceStatus) else None
        yield from _heard(entry.bed, at, entry.source, entry.patient, kept, restarted and block.stream == "data")


def _heard(bed: str, at: int, source: str, patient: str, record: Record | None, restarted: bool) -> Iterator[Heard]:
    if restarted:
        yield Heard("", at, "", "", ())
    if record is None or (isinstance(record, DeviceStatus) and record.kind != "link"):
        return
    if not bed and not isinstance(record, DeviceStatus):
        return  # of a bed that is not configured
    yield Heard(bed, at, source, patient, (_at(record, at),))


def _record(kind: type[Record], shape: Mapping[str, Any], at_ns: int) -> Record:
    fields = {key: value for key, value in shape.items() if key in kind.__struct_fields__}
    if kind is Observation:
        fields.setdefault("value", None)
        if fields["term"] not in terms.BY_NAME or not isinstance(fields["value"], int | float | None):
            raise ValueError(f"no usable observation of {fields['term']!r}")
    return kind(**fields, at_ns=at_ns)


def _at(record: Record, at_ns: int) -> Record:
    if record.at_ns == at_ns:
        return record
    fields = {key: getattr(record, key) for key in record.__struct_fields__}
    return type(record)(**{**fields, "at_ns": at_ns})


def _parse_time(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return round(moment.timestamp() * 1000) * 1_000_000


def moment_text(at_ns: int) -> str:
    """A moment as a person reads it: UTC where it is a date, else hours, minutes and seconds since the beginning."""
    if at_ns >= 315_360_000 * NS:  # ten years of seconds: a date since 1970, no recording is that long
        return datetime.fromtimestamp(at_ns // NS, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    seconds = at_ns // NS
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
