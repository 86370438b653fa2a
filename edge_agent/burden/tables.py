"""Tables of recorded vital signs, CSV or Parquet, as moments: columns become terms, each recording or patient a bed.

A column is taken by its name: a term of the vocabulary, one of the short names below, or what `--column` says. Values
are in the unit of the term. Rows of one bed are in the order of time; beds may follow each other or be interleaved.
Parquet is read in batches with pyarrow (extra `report`), CSV line by line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent import terms
from edge_agent.burden.recorded import NS, DataError, Heard
from edge_agent.records import Observation

SOURCE = "recording"
BATCH_ROWS = 16_384  # about a megabyte of values at a time
TIMES = ("time_s", "t_s", "time", "seconds", "utc")
BEDS = ("bed", "rec", "record", "recording", "case", "pid")
PATIENTS = ("patient", "patient_id", "subject")
# Names that mean one term only; a bare SBP or MAP may be cuff or artery and is asked for with --column.
SHORT: dict[str, str] = {
    "hr": "heart_rate",
    "pulse": "pulse_rate",
    "pr": "pulse_rate",
    "resp": "resp_rate",
    "rr": "resp_rate",
    "o2sat": "spo2",
    "spo2": "spo2",
    "temp": "temp",
    "etco2": "etco2",
}
_NUMERIC = {term.name for term in terms.TERMS if term.kind != "waveform"}

Cells = Sequence[Any]


class Columns(NamedTuple):
    """Which column is what, by its place in a row."""

    time: int
    bed: int | None
    patient: int | None
    terms: tuple[tuple[int, str], ...]
    unused: tuple[str, ...]


def columns(path: Path, names: Sequence[str], given: Mapping[str, str]) -> Columns:
    """What each column of a table is; `given` maps names of columns to terms and comes first.

    Raises: DataError when there is no time, no vital sign, or a vital sign stands twice.
    """
    plain = [name.strip().strip("\ufeff").lower() for name in names]
    missing = [name for name in given if name not in names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it has {', '.join(names)}")
    place = {kind: next((plain.index(name) for name in known if name in plain), None)
             for kind, known in (("time", TIMES), ("bed", BEDS), ("patient", PATIENTS))}  # fmt: skip
    if place["time"] is None:
        raise DataError(f"{path}: no column of times; name one of {', '.join(TIMES)}, in seconds or ISO 8601")
    found: dict[str, int] = {}
    unused = []
    for index, name in enumerate(names):
        term = given.get(name) or (plain[index] if plain[index] in _NUMERIC else SHORT.get(plain[index], ""))
        if not term:
            if index not in place.values() and not plain[index].startswith("__"):  # pandas' own index
                unused.append(name)
        elif term in found:
            raise DataError(f"{path}: columns {names[found[term]]!r} and {name!r} are both {term}")
        else:
            found[term] = index
    if not found:
        raise DataError(
            f"{path}: no column is a vital sign; say which with --column NAME=TERM, for example SBP=nibp_sys"
        )
    wanted = tuple((index, term) for term, index in found.items())
    return Columns(place["time"], place["bed"], place["patient"], wanted, tuple(unused))


def table_moments(path: Path, given: Mapping[str, str]) -> tuple[tuple[str, ...], Iterator[Heard]]:
    """Names of the columns that are not used, and the moments of a CSV or Parquet file.

    Raises: DataError for a file without usable columns, and while reading for a field that is no number.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path, given)
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    known = columns(path, names, given)
    return known.unused, _moments(path, known, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[Cells]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        width = len(next(rows))
        for row in rows:
            if len(row) != width:
                if not row:
                    continue
                raise DataError(f"{path}:{rows.line_num}: {len(row)} fields in a row of {width} columns")
            yield row


def _parquet(path: Path, given: Mapping[str, str]) -> tuple[tuple[str, ...], Iterator[Heard]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: pyarrow, which reads Parquet, is not installed; run pip install 'bedside-edge[report]', "
            "or write the table as CSV"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    known = columns(path, file.schema_arrow.names, given)
    names = file.schema_arrow.names
    wanted = [index for index in (known.time, known.bed, known.patient) if index is not None]
    wanted += [index for index, _ in known.terms]
    place = {index: number for number, index in enumerate(wanted)}
    narrow = Columns(
        place[known.time],
        None if known.bed is None else place[known.bed],
        None if known.patient is None else place[known.patient],
        tuple((place[index], term) for index, term in known.terms),
        known.unused,
    )
    return known.unused, _moments(path, narrow, _parquet_rows(file, [names[index] for index in wanted]))


def _parquet_rows(file: Any, names: list[str]) -> Iterator[Cells]:
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
        held = {name: batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names}
        yield from zip(*(held[name] for name in names), strict=True)


def _moments(path: Path, known: Columns, rows: Iterator[Cells]) -> Iterator[Heard]:
    stem = path.stem
    time_at, patient_at = known.time, known.patient
    bed_at = known.bed if known.bed is not None else patient_at
    for number, row in enumerate(rows, 2):
        try:
            at_ns = _at_ns(row[time_at])
            made = []
            for index, term in known.terms:
                cell = row[index]
                if cell is None or cell == "":
                    continue
                value = float(cell)
                if not math.isnan(value):
                    made.append(Observation(term, value, "valid", at_ns))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: row {number}: {error}; leave a missing value empty") from error
        bed = stem if bed_at is None else str(row[bed_at])
        patient = "" if patient_at is None else str(row[patient_at])
        if made:
            yield Heard(bed, at_ns, SOURCE, patient, tuple(made))


def _at_ns(cell: Any) -> int:
    if isinstance(cell, int):
        return cell * NS
    if isinstance(cell, datetime):
        return round((cell if cell.tzinfo else cell.replace(tzinfo=UTC)).timestamp() * 1000) * 1_000_000
    try:
        seconds = float(cell)
    except ValueError:
        return _at_ns(datetime.fromisoformat(cell))
    return round(seconds * 1000) * 1_000_000
