"""A simulated week of a small unit as a table, to try a change of presets on before real recordings are at hand.

    python -m edge_agent.burden.week OUT.parquet|OUT.csv [--beds 8] [--days 7] [--seed 1]

Theory of operation: each bed has the simulated patient of drivers/sim (values a second), a new one every two to four
days. Events come over it at random, each bed at a rate of its own, so that few beds have most of them: saturation
falls, mostly little and short, seldom deep and long; movement dips of seconds; tachycardia, bradycardia, slow
breathing; the finger sensor comes off. The rates and sizes are engineering values, chosen to give every condition
something to do. They are no epidemiology: a result on this table shows how the report works, and says nothing about
patients.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from drivers.sim.patient import Patient

TERMS = ("spo2", "pulse_rate", "heart_rate", "resp_rate", "nibp_sys", "nibp_dia", "nibp_mean")
COLUMNS = ("time_s", "bed", "patient", *TERMS)
DAY_S = 86_400
STAY_DAYS = (2.0, 4.0)  # of a patient, least and greatest
_NIBP_S = 900.0  # a cuff every quarter of an hour
_BATCH = 50_000  # rows held at once


class _Kind(NamedTuple):
    """A sort of event: how many a day on an average bed, what it changes, and how much and how long it usually is."""

    per_day: float
    terms: tuple[str, ...]
    size: float  # median, in the unit of the terms; 0: no value at all
    spread: float  # of the logarithm of the size
    seconds: float  # median
    seconds_spread: float


_KINDS: tuple[_Kind, ...] = (
    _Kind(24.0, ("spo2",), -8.0, 0.45, 25.0, 0.9),  # saturation falls
    _Kind(40.0, ("spo2",), -10.0, 0.5, 6.0, 0.5),  # movement
    _Kind(5.0, ("heart_rate", "pulse_rate"), 45.0, 0.35, 40.0, 1.0),  # tachycardia
    _Kind(2.0, ("heart_rate", "pulse_rate"), -25.0, 0.3, 20.0, 0.8),  # bradycardia
    _Kind(4.0, ("resp_rate",), -8.0, 0.4, 25.0, 0.7),  # slow breathing
    _Kind(6.0, ("resp_rate",), 16.0, 0.35, 40.0, 0.8),  # fast breathing
    _Kind(6.0, ("spo2", "pulse_rate"), 0.0, 0.0, 45.0, 1.0),  # the sensor comes off
)
_BOUNDS = {"spo2": (40.0, 100.0), "heart_rate": (0.0, 250.0), "pulse_rate": (0.0, 250.0), "resp_rate": (0.0, 70.0)}


class _Event:
    """One event on its way: it grows in its first quarter and goes back in its last."""

    def __init__(self, chance: random.Random, kind: _Kind, at_s: int) -> None:
        self.kind, self.at_s = kind, at_s
        self.seconds = max(3.0, kind.seconds * chance.lognormvariate(0.0, kind.seconds_spread))
        self.size = kind.size * chance.lognormvariate(0.0, kind.spread) if kind.size else 0.0

    def change(self, values: dict[str, float | None], at_s: int) -> None:
        """Lay the event over the values of a second."""
        share = (at_s - self.at_s) / self.seconds
        grown = min(1.0, 4 * share, 4 * (1 - share))
        for term in self.kind.terms:
            value = values[term]
            if not self.kind.size or value is None:
                values[term] = None
            else:
                low, high = _BOUNDS[term]
                values[term] = float(round(min(max(value + self.size * max(0.0, grown), low), high)))


def bed_rows(bed: int, days: float, seed: int) -> Iterator[tuple[Any, ...]]:
    """Rows of one bed with the columns COLUMNS, one for each second."""
    chance = random.Random(seed * 1000 + bed)
    busy = chance.lognormvariate(0.0, 0.9)
    rates = [kind.per_day * busy * chance.lognormvariate(0.0, 0.4) / DAY_S for kind in _KINDS]
    any_rate = sum(rates)
    number, leaves_s = 0, 0
    patient = Patient(0)
    running: list[_Event] = []
    next_s = chance.expovariate(any_rate)
    for second in range(round(days * DAY_S)):
        if second >= leaves_s:
            number, leaves_s = number + 1, second + round(chance.uniform(*STAY_DAYS) * DAY_S)
            patient = Patient(chance.randrange(1 << 30), "stable", 0.0, _NIBP_S)
            running.clear()
        values = patient.step()
        while second >= next_s:
            running.append(_Event(chance, chance.choices(_KINDS, rates)[0], second))
            next_s += chance.expovariate(any_rate)
        if running:
            running = [event for event in running if second < event.at_s + event.seconds]
            for event in running:
                event.change(values, second)
        yield second, f"bed-{bed}", f"bed-{bed}/{number}", *(values.get(term) for term in TERMS)


def write(path: Path, beds: int = 8, days: float = 7.0, seed: int = 1) -> int:
    """Write the table, one bed after the other, as CSV or Parquet by its name; how many rows there are."""
    rows = (row for bed in range(1, beds + 1) for row in bed_rows(bed, days, seed))
    return _write_parquet(path, rows) if path.suffix.lower() in (".parquet", ".pq") else _write_csv(path, rows)


def _write_csv(path: Path, rows: Iterator[tuple[Any, ...]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterator[tuple[Any, ...]]) -> int:
    import pyarrow
    from pyarrow import parquet

    text = {"bed", "patient"}
    schema = pyarrow.schema(
        [
            (name, pyarrow.string() if name in text else pyarrow.int64() if name == "time_s" else pyarrow.float32())
            for name in COLUMNS
        ]
    )
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH)):
            held = {name: [row[index] for row in batch] for index, name in enumerate(COLUMNS)}
            writer.write_table(pyarrow.table(held, schema=schema))
            count += len(batch)
    return count


def main(argv: list[str] | None = None) -> int:
    """Write the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m edge_agent.burden.week", description="a simulated week, as a table"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="ends in .parquet or .csv")
    parser.add_argument("--beds", type=int, default=8)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    if arguments.out.suffix.lower() not in (".parquet", ".pq", ".csv"):
        parser.error("OUT ends in .parquet or .csv")
    try:
        count = write(arguments.out, arguments.beds, arguments.days, arguments.seed)
    except ImportError:
        parser.error("pyarrow is not installed; run pip install 'bedside-edge[report]', or write .csv")
    sys.stdout.write(f"{count} rows in {arguments.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
