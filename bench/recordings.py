"""Recordings of real patients from end to end: what is consumed from a real Kafka equals the recording, value by value.

    python -m bench.recordings --data FILE.parquet      columns rec, t_s, HR, PULSE, RESP, SpO2
    python -m bench.recordings --data FOLDER            the public originals, bidmc_NN_Numerics.csv

Each recording goes two ways at once: as an HL7 monitor over TCP/MLLP to bed H<rec>, and as an oximeter over a serial
line (a pty, Nonin data format 8) to bed O<rec>. Senders, agent and cloud-sync are the real processes, the broker is an
Apache Kafka from its jars unless --bootstrap names another. Exit code 0 only when nothing differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet

from bench.gateway import BIN, Gateway
from cloud_sync.embedded import Arrivals

Row = dict[str, float | None]  # term -> value, None where the recording has none
TERMS = {"HR": "heart_rate", "PULSE": "pulse_rate", "RESP": "resp_rate", "SpO2": "spo2"}
SERIAL_TERMS = ("spo2", "pulse_rate")
START = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE_S = 600.0
QUIET_S = 30.0  # nothing new for so long after all senders are done: what is missing will not come


def read_recordings(path: Path, count: int) -> dict[int, list[Row]]:
    """The first `count` recordings, a row a second. Raises: ValueError when there are fewer or columns are missing."""
    table = _from_folder(path) if path.is_dir() else _from_parquet(path)
    if len(table) < count:
        raise ValueError(f"{path} holds {len(table)} recordings, {count} were asked for")
    return {number: table[number] for number in sorted(table)[:count]}


def _from_parquet(path: Path) -> dict[int, list[Row]]:
    out: dict[int, list[Row]] = {}
    for row in pyarrow.parquet.read_table(path, columns=["rec", "t_s", *TERMS]).to_pylist():
        rows = out.setdefault(row["rec"], [])
        if row["t_s"] != len(rows):
            raise ValueError(f"{path}: recording {row['rec']} jumps to second {row['t_s']}")
        rows.append({term: _value(row[column]) for column, term in TERMS.items()})
    return out


def _from_folder(folder: Path) -> dict[int, list[Row]]:
    out = {}
    for path in sorted(folder.glob("bidmc_*_Numerics.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        number = int(path.name.split("_")[1])
        out[number] = [{term: _value(row[column]) for column, term in TERMS.items()} for row in rows]
    return out


def _value(cell: object) -> float | None:
    if cell is None or cell == "":
        return None
    value = float(str(cell))
    return None if math.isnan(value) else value


def write_csv(path: Path, rows: list[Row], terms: tuple[str, ...]) -> None:
    """A recording as `edge-agent simulate` reads it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", *terms])
        for second, row in enumerate(rows):
            writer.writerow([second, *("" if row[term] is None else f"{row[term]:g}" for term in terms)])


class RecordedGateway(Gateway):
    """A gateway with an HL7 bed and an oximeter bed for each recording."""

    def __init__(self, numbers: list[int], broker: str, topic_prefix: str) -> None:
        super().__init__(0, broker=broker, topic_prefix=topic_prefix)
        self._numbers = numbers

    def line(self, number: int) -> Path:
        """Path of the serial line of a recording."""
        return self.folder / f"oximeter-{number}"

    def tables(self) -> list[str]:
        """Beds and sources of the configuration."""
        tables = []
        for number in self._numbers:
            tables.append(f'[[bed]]\nid = "H{number}"\nlocation = "BIDMC^^{number}"')
            tables.append(f'[[bed]]\nid = "O{number}"')
            tables.append(
                f'[[source]]\ndriver = "nonin"\nlink = "serial://{self.line(number)}?baud=9600"\nbed = "O{number}"\n'
                'options = { format = "8" }'
            )
        return tables


@contextmanager
def senders(gateway: RecordedGateway, recordings: dict[int, list[Row]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`edge-agent simulate`, twice for each recording."""
    children = []
    try:
        for number, rows in recordings.items():
            everything, serial = gateway.folder / f"{number}.csv", gateway.folder / f"{number}-serial.csv"
            write_csv(everything, rows, tuple(TERMS.values()))
            write_csv(serial, rows, SERIAL_TERMS)
            common = [str(BIN / "edge-agent"), "simulate", "--speed", "max"]
            ways = (
                ["--as", "hl7", "--file", str(everything), "--to", f"mllp://127.0.0.1:{gateway.port}",
                 "--bed-location", f"BIDMC^^{number}", "--start", START.isoformat()],
                ["--as", "oximeter", "--format", "8", "--file", str(serial), "--to", f"pty://{gateway.line(number)}"],
            )  # fmt: skip
            for way in ways:
                children.append(subprocess.Popen([*common, *way], stdout=subprocess.DEVNULL))
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
            child.wait()


class Comparison:
    """What has been consumed, held against the recordings."""

    def __init__(self, recordings: dict[int, list[Row]]) -> None:
        self.recordings = recordings
        self.seen: set[str] = set()
        self.by_time: dict[tuple[str, str], dict[int, list[float | None]]] = {}
        self.by_order: dict[tuple[str, str], list[float | None]] = {}
        self.copies = 0
        self.last_new = time.monotonic()

    @property
    def wanted(self) -> int:
        """Observations that must arrive."""
        return sum(len(rows) * (len(TERMS) + len(SERIAL_TERMS)) for rows in self.recordings.values())

    def take(self, bed: str, record: dict[str, object], dedup: str) -> None:
        """One consumed observation of `bed`."""
        if dedup in self.seen:
            self.copies += 1
            return
        self.seen.add(dedup)
        self.last_new = time.monotonic()
        term, value = str(record["term"]), record.get("value")
        number = None if value is None else float(str(value))
        if bed.startswith("H"):
            second = round((datetime.fromisoformat(str(record["device_time"])) - START) / timedelta(seconds=1))
            self.by_time.setdefault((bed, term), {}).setdefault(second, []).append(number)
        else:
            self.by_order.setdefault((bed, term), []).append(number)

    def rows(self) -> list[dict[str, object]]:
        """A row for each recording and way: values compared, missing among them, differences."""
        out = []
        for number, rows in self.recordings.items():
            for way, terms in (("HL7", tuple(TERMS.values())), ("serial", SERIAL_TERMS)):
                different = compared = missing = 0
                for term in terms:
                    recorded = [row[term] for row in rows]
                    compared += len(recorded)
                    missing += recorded.count(None)
                    different += self._different(way, number, term, recorded)
                out.append(
                    {"recording": number, "way": way, "values": compared, "missing": missing, "different": different}
                )
        return out

    def _different(self, way: str, number: int, term: str, recorded: list[float | None]) -> int:
        if way == "HL7":
            found = self.by_time.get((f"H{number}", term), {})
            extra = len(found.keys() - set(range(len(recorded))))
            return extra + sum(found.get(second) != [value] for second, value in enumerate(recorded))
        got = self.by_order.get((f"O{number}", term), [])
        return abs(len(got) - len(recorded)) + sum(a != b for a, b in zip(got, recorded, strict=False))


def run_all(recordings: dict[int, list[Row]], bootstrap: str) -> Comparison:
    """Send everything, consume until all has come or nothing more comes."""
    prefix = f"recordings-{uuid.uuid4().hex[:8]}"
    comparison = Comparison(recordings)
    with RecordedGateway(list(recordings), bootstrap, prefix) as gateway, senders(gateway, recordings) as children:
        arrivals = Arrivals(bootstrap, prefix)
        end = time.monotonic() + DEADLINE_S
        try:
            while len(comparison.seen) < comparison.wanted and time.monotonic() < end:
                for arrival in arrivals.poll(0.5):
                    message = json.loads(arrival.value)
                    if message["record"]["item"] == "observation":
                        comparison.take(message["bed"], message["record"], arrival.headers["dedup"])
                sending = any(child.poll() is None for child in children)
                if not sending and time.monotonic() - comparison.last_new > QUIET_S:
                    break
        finally:
            arrivals.close()
        failed = [child.args for child in children if child.poll() not in (None, 0)]
        if failed:
            raise RuntimeError(f"a sender failed: {failed[0]}")
    return comparison


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; 0 when every value is equal and every missing value is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.recordings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE|FOLDER")
    parser.add_argument("--recordings", type=int, default=8, metavar="N")
    parser.add_argument(
        "--bootstrap", default="", metavar="HOST:PORT", help="a running Kafka instead of one of our own"
    )
    arguments = parser.parse_args(argv)
    try:
        recordings = read_recordings(arguments.data, arguments.recordings)
    except (OSError, ValueError, KeyError) as error:
        print(f"recordings: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bedside-kafka-") as folder:
        if arguments.bootstrap:
            comparison = run_all(recordings, arguments.bootstrap)
        else:
            from tests.kafka_broker import Broker

            broker = Broker(Path(folder)).start()
            try:
                comparison = run_all(recordings, broker.bootstrap)
            finally:
                broker.kill()
    rows = comparison.rows()
    from bench.__main__ import table

    print(table(rows))
    different = sum(int(str(row["different"])) for row in rows)
    print(
        f"\n{len(recordings)} recordings, {comparison.wanted} values sent, {len(comparison.seen)} consumed "
        f"({comparison.copies} copies dropped by their header), {different} different"
    )
    return 0 if not different and len(comparison.seen) == comparison.wanted else 1


if __name__ == "__main__":
    sys.exit(main())
