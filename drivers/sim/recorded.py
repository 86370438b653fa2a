"""Recorded vital signs as text: comma-separated, a header of term names, one row for each moment.

    time,heart_rate,spo2
    0,94,97
    1,94,

`time` is optional, in seconds, and never runs backwards; without it rows are one second apart. An empty field is a
missing value. Nothing is guessed: a field that is no number is an error, and so is a column that is no numeric term.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edge_agent import terms

TIME = "time"
_COLUMNS = {term.name for term in terms.TERMS if term.kind != "waveform"}


class Row(NamedTuple):
    """One moment: seconds since the start, and the value of every column, None where it is missing."""

    at_s: float
    values: dict[str, float | None]


class RecordedError(ValueError):
    """A recording that cannot be used; `str` says what is wrong, with the line when it is known."""


def parse_header(line: str) -> tuple[str, ...]:
    """Names of the columns. Raises: RecordedError for a name that is no numeric term, or that stands twice."""
    columns = tuple(field.strip() for field in line.removeprefix("\ufeff").strip().split(","))
    unknown = [name for name in columns if name != TIME and name not in _COLUMNS]
    if unknown:
        raise RecordedError(f"no numeric term is called {unknown[0][:40]!r}; columns are `time` and names of terms")
    if len(set(columns)) != len(columns) or columns == (TIME,):
        raise RecordedError("a column stands twice, or there is none but `time`")
    return columns


def parse_row(columns: tuple[str, ...], line: str, previous_s: float = -1.0) -> Row:
    """The row in `line`, one second after `previous_s` when there is no time column.

    Raises: RecordedError for a wrong number of fields, a field that is no finite number, or time that runs backwards.
    """
    fields = [field.strip() for field in line.strip().split(",")]
    if len(fields) != len(columns):
        raise RecordedError(f"{len(fields)} fields in a row of {len(columns)} columns")
    at_s = previous_s + 1.0
    values: dict[str, float | None] = {}
    for name, field in zip(columns, fields, strict=True):
        try:
            value = float(field) if field else None
        except ValueError:
            raise RecordedError(f"{name} is no number; leave a missing value empty") from None
        if value is not None and not math.isfinite(value):
            raise RecordedError(f"{name} is not finite; leave a missing value empty")
        if name == TIME:
            if value is None or value < previous_s:
                raise RecordedError("time is missing or runs backwards")
            at_s = value
        else:
            values[name] = value
    return Row(at_s, values)


def rows(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of a recording whose first non-empty line is the header. Raises: RecordedError with the line number."""
    columns: tuple[str, ...] = ()
    at_s = -1.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if not columns:
                columns = parse_header(line)
                continue
            row = parse_row(columns, line, at_s)
        except RecordedError as error:
            raise RecordedError(f"line {number}: {error}") from None
        at_s = row.at_s
        yield row
