"""Looking into the buffer from outside: totals, a check of every block, and a readable copy of every record.

Read-only, in short transactions, also while the agent runs. `source` may name a database put aside in quarantine.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent import records
from edge_agent.buffer import files, keys, marks, rewrap
from edge_agent.buffer.rate import hours
from edge_agent.buffer.reader import Reader
from edge_agent.buffer.store import APPLICATION_ID, DAY_NS, HEAD_COLUMNS, PAGE_BYTES, KeyRing

_PRIORITY_NAMES = ("alert", "numeric", "waveform")
_EXPORT_BLOCKS = 64  # read in one short transaction
_IDENTIFIERS = ("patient_id", "prior_patient_id", "subject")  # fields of records that name a patient
_HOUR_NS, _MINUTE_NS = 3_600_000_000_000, 60_000_000_000
_RATE_BLOCKS = 50_000  # what is looked at for a rate: more than an hour of two commits a second in every class
_NEWEST_HOUR = (
    "WITH newest AS (SELECT utc, length(blob) + 90 AS size FROM blocks ORDER BY number DESC LIMIT ?)"
    " SELECT min(utc), max(utc), sum(size) FROM newest WHERE utc > (SELECT max(utc) FROM newest) - ?"
)


class Choice(NamedTuple):
    """Which records an export gives; empty means all. Without `identifiers`, patients are numbered as they appear."""

    since_ns: int = 0  # UTC
    bed: str | None = None
    kinds: frozenset[str] = frozenset()
    identifiers: bool = False


EVERYTHING = Choice(identifiers=True)


def stats(data_dir: Path, kek: bytes, quota_bytes: int = 0) -> dict[str, Any]:
    """Totals of both files, their keys, instances, marks, and what lies in quarantine; sizes in bytes."""
    out: dict[str, Any] = {"kek": keys.fingerprint(kek).hex(), "capacity": capacity(data_dir, quota_bytes)}
    out["streams"] = {}
    for stream in files.STREAMS:
        path = files.database(data_dir, stream)
        out["streams"][stream] = _stream_stats(path) if path.exists() else None
    out["marks"] = _marks(data_dir)
    report = key_report(data_dir)
    out |= {"rotation": report["rotation"], "quarantine": report["quarantine"]}
    return out


def capacity(data_dir: Path, quota_bytes: int) -> dict[str, Any]:
    """How full the files are, and how many hours the quota holds at the rate of the newest hour of blocks.

    Needs no key. The rate is None when less than a minute of blocks is there, as when all have been delivered.
    """
    used = held = span = 0
    for stream in files.STREAMS:
        path = files.database(data_dir, stream)
        with contextlib.suppress(sqlite3.DatabaseError, OSError):
            if path.exists():
                with closing(_open(path)) as connection:
                    (pages,) = connection.execute("PRAGMA page_count").fetchone()
                    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
                    used += (pages - free) * PAGE_BYTES
                    low, high, size = connection.execute(_NEWEST_HOUR, (_RATE_BLOCKS, _HOUR_NS)).fetchone()
                    held, span = held + (size or 0), max(span, (high or 0) - (low or 0))
    per_s = held * 1e9 / span if span >= _MINUTE_NS else None
    return {
        "bytes": used, "quota_bytes": quota_bytes, "bytes_per_s": None if per_s is None else round(per_s, 1),
        "capacity_h": hours(quota_bytes, per_s), "room_h": hours(quota_bytes - used, per_s),
    }  # fmt: skip


def key_report(data_dir: Path) -> dict[str, Any]:
    """Wrapped data keys of every file, by whose key-encryption key, their age in s; needs no key itself.

    `rotation` holds the fingerprints of one that was interrupted, else None.
    """
    note = rewrap.read_note(data_dir)
    found = [_keys_of(place) for place in rewrap.places(data_dir) if place.path.exists()]
    return {
        "files": found,
        "rotation": None if note is None else {"old": note.old.hex(), "new": note.new.hex()},
        "quarantine": [
            {
                "folder": str(folder),
                "bytes": sum(item.stat().st_size for item in folder.iterdir()),
                "keks": sorted({kek for place in _aside(folder) for kek in _keys_of(place)["keks"]}),
            }
            for folder in (*files.quarantined(data_dir), *_folders(data_dir / "quarantine"))
        ],
    }


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def _aside(folder: Path) -> list[rewrap.Place]:
    return [
        rewrap.Place(path, "head" if path.name == files.ALARM_LOG else "keys")
        for path in folder.iterdir()
        if path.suffix in (".db", ".sqlite")
    ]


def _keys_of(place: rewrap.Place) -> dict[str, Any]:
    out: dict[str, Any] = {"file": str(place.path), "keys": [], "keks": [], "erased": 0, "fault": ""}
    now = time.time_ns()
    try:
        uri = f"{place.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)) as connection:
            if place.table == "head":  # one key for the life of the file
                for number, kek in connection.execute("SELECT id, kek FROM head"):
                    out["keys"].append({"id": str(number), "kek": kek.hex(), "age_s": None})
            else:
                query = "SELECT id, kek, boot, day, created_utc FROM keys ORDER BY since, created_utc"
                for number, kek, boot, day, created in connection.execute(query):
                    out["keys"].append({
                        "id": f"{number:016x}", "kek": kek.hex(), "boot": boot.hex()[:8],
                        "day": _iso(day * DAY_NS)[:10], "made_utc": _iso(created),
                        "age_s": round((now - created) / 1e9, 1),
                    })  # fmt: skip
                with contextlib.suppress(sqlite3.OperationalError):  # written before keys were counted
                    row = connection.execute("SELECT keys FROM erased").fetchone()
                    out["erased"] = row[0] if row else 0
    except (sqlite3.DatabaseError, OSError, AttributeError, TypeError) as error:
        out["fault"] = f"its keys cannot be read: {error}"
    out["keks"] = sorted({key["kek"] for key in out["keys"]})
    return out


def _marks(data_dir: Path) -> dict[str, Any]:
    """Every receiver's mark by name."""
    out: dict[str, Any] = {}
    for path in sorted((data_dir / "marks").glob("*.json")):
        try:
            mark = marks.read_mark(path)
            out[path.stem] = None if mark is None else mark._asdict()
        except (marks.BadMark, OSError) as error:
            out[path.stem] = {"fault": str(error)}
    return out


def _stream_stats(path: Path) -> dict[str, Any]:
    import sqlite_utils  # 12 MB that only inspection needs

    out: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    try:
        with closing(_open(path)) as connection:
            database = sqlite_utils.Database(connection)
            (total,) = database.query(
                "SELECT count(*) AS blocks, coalesce(sum(count), 0) AS records, min(utc) AS oldest, max(utc) AS newest,"
                " coalesce(sum(plain), 0) AS plain, coalesce(sum(length(blob)), 0) AS sealed FROM blocks"
            )
            out |= total | {"oldest": _iso(total["oldest"]) or None, "newest": _iso(total["newest"]) or None}
            out["by_priority"] = {
                _PRIORITY_NAMES[row["priority"]]: row["records"]
                for row in database.query("SELECT priority, sum(count) AS records FROM blocks GROUP BY priority")
            }
            out["instances"] = [
                row | {"uuid": _uuid(row["uuid"]), "created_utc": _iso(row["created_utc"])}
                for row in database["instances"].rows
            ]
            out["gaps_to_tell"] = database["gaps"].count
    except sqlite3.DatabaseError as error:
        out["fault"] = str(error)
    found = _keys_of(rewrap.Place(path, "keys"))
    return out | {"keys": found["keys"], "keys_erased": found["erased"]}


def verify(data_dir: Path, kek: bytes, source: Path | None = None, only: str | None = None) -> dict[str, Any]:
    """Every tag, the order of numbers and the continuity of sequences; `ok` says whether all blocks open.

    `first_bad` is the first damaged block of a file.
    `holes` are sequences that no block here holds: shed, quarantined, or delivered around; a Gap record tells of each.
    """
    out: dict[str, Any] = {"ok": True, "streams": {}}
    if source is not None and source.stem not in files.STREAMS:
        raise OSError(f"{source}: is neither an alerts.db nor a data.db; its name tells the stream")
    for stream in files.STREAMS if only is None else (only,):
        path = files.database(data_dir, stream)
        if source is not None:
            path = source
            if source.stem != stream:
                continue
        if path.exists():
            found = _verify(path, stream, kek)
            out["streams"][stream] = found
            out["ok"] = out["ok"] and found["ok"]
    return out


def _verify(path: Path, stream: str, kek: bytes) -> dict[str, Any]:
    damaged: list[dict[str, Any]] = []
    holes: list[dict[str, Any]] = []
    blocks = count = 0
    fault = ""
    try:
        with closing(_open(path)) as connection:
            (word,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            fault = "" if word == "ok" else word
            ring = KeyRing(connection, kek)
            expected: dict[int, int] = {}
            number = -1
            query = f"SELECT {HEAD_COLUMNS}, blob FROM blocks WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
            while rows := connection.execute(query, (number, _EXPORT_BLOCKS)).fetchall():
                for row in rows:
                    number, first, held, ordinal = row[5], row[6], row[7], row[13]
                    wrong = ring.verify(row, files.STREAMS.index(stream))
                    if wrong:
                        damaged.append({"block": number, "first": first, "count": held, "reason": wrong})
                    if first != expected.get(ordinal, first):
                        instance = _uuid(ring.instance(ordinal))
                        holes.append({"instance": instance, "first": expected[ordinal], "last": first - 1})
                    expected[ordinal] = first + held
                    blocks, count = blocks + 1, count + held
    except sqlite3.DatabaseError as error:
        fault = str(error)
    return {
        "ok": not damaged and not fault, "file": str(path), "blocks": blocks, "records": count, "fault": fault,
        "first_bad": damaged[0] if damaged else None, "damaged": damaged, "holes": holes,
    }  # fmt: skip


def export(data_dir: Path, kek: bytes, stream: str, choice: Choice = EVERYTHING) -> Iterator[dict[str, Any]]:
    """Records of a stream as JSON objects with identity, times and bed.

    Raises: keys.KeyProblem when the file was sealed under another key-encryption key.
    """
    reader = Reader(data_dir, kek)
    place: marks.Position | None = None
    names: dict[str, str] = {}
    try:
        while blocks := reader.read(stream, place, _EXPORT_BLOCKS):
            for block in blocks:
                for sequence, entry in enumerate(block.entries, block.first):
                    record = entry.record
                    utc_ns = block.utc_ns(record.at_ns)
                    if utc_ns < choice.since_ns or choice.bed not in (None, entry.bed):
                        continue
                    shape = records.shape(record)
                    if choice.kinds and shape["item"] not in choice.kinds:
                        continue
                    patient = entry.patient
                    if not choice.identifiers:
                        patient = _number(patient, names)
                        shape |= {key: _number(shape[key], names) for key in _IDENTIFIERS if key in shape}
                    yield {
                        "gateway": block.gateway, "instance": block.instance, "sequence": sequence, "stream": stream,
                        "block": block.number, "bed": entry.bed, "source": entry.source, "patient": patient,
                        "at_ns": record.at_ns, "utc": _iso(utc_ns),
                        "clock_quality": block.clock_quality, "record": shape,
                    }  # fmt: skip
            place = blocks[-1].position
        if reader.fault:
            raise OSError(f"{reader.fault}\n  run `edge-agent buffer verify`; a running agent recovers the file")
    finally:
        reader.close()


def _number(identifier: str, names: dict[str, str]) -> str:
    """What stands for an identifier within one stream of one export; empty for none."""
    return names.setdefault(identifier, f"patient-{len(names) + 1}") if identifier else ""


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        connection.close()
        raise sqlite3.DatabaseError("not a buffer of this program")
    return connection


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()


def _iso(utc_ns: int | None) -> str:
    if utc_ns is None:
        return ""
    moment = datetime.datetime.fromtimestamp(utc_ns / 1e9, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
