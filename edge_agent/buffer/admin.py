"""Looking into the buffer from outside: totals, a check of every block, and a readable copy of every record.

Read-only, in short transactions, also while the agent runs. `source` may name a database put aside in quarantine.
"""

from __future__ import annotations

import datetime
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_agent import records
from edge_agent.buffer import files, keys, marks
from edge_agent.buffer.reader import Reader
from edge_agent.buffer.store import APPLICATION_ID, HEAD_COLUMNS, KeyRing

_PRIORITY_NAMES = ("alert", "numeric", "waveform")
_EXPORT_BLOCKS = 64  # read in one short transaction


def stats(data_dir: Path, kek: bytes) -> dict[str, Any]:
    """Totals of both files, their keys, instances, marks, and what lies in quarantine; sizes in bytes."""
    out: dict[str, Any] = {"kek": keys.fingerprint(kek).hex(), "streams": {}}
    for stream in files.STREAMS:
        path = files.database(data_dir, stream)
        out["streams"][stream] = _stream_stats(data_dir, stream, path) if path.exists() else None
    out["quarantine"] = [
        {"folder": str(folder), "bytes": sum(item.stat().st_size for item in folder.iterdir())}
        for folder in files.quarantined(data_dir)
    ]
    return out


def _stream_stats(data_dir: Path, stream: str, path: Path) -> dict[str, Any]:
    import sqlite_utils  # 12 MB that only inspection needs

    out: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    try:
        with closing(_open(path)) as connection:
            database = sqlite_utils.Database(connection)
            (total,) = database.query(
                "SELECT count(*) AS blocks, coalesce(sum(count), 0) AS records, min(utc) AS oldest, max(utc) AS newest,"
                " coalesce(sum(plain), 0) AS plain, coalesce(sum(length(blob)), 0) AS sealed FROM blocks"
            )
            out |= total | {"oldest": _iso(total["oldest"]), "newest": _iso(total["newest"])}
            out["by_priority"] = {
                _PRIORITY_NAMES[row["priority"]]: row["records"]
                for row in database.query("SELECT priority, sum(count) AS records FROM blocks GROUP BY priority")
            }
            out["instances"] = [
                row | {"uuid": _uuid(row["uuid"]), "created_utc": _iso(row["created_utc"])}
                for row in database["instances"].rows
            ]
            out["keys"] = [
                {"id": row["id"], "kek": row["kek"].hex(), "since": row["since"], "made_utc": _iso(row["created_utc"])}
                for row in database["keys"].rows_where(order_by="since")
            ]
            out["gaps_to_tell"] = database["gaps"].count
    except sqlite3.DatabaseError as error:
        out["fault"] = str(error)
    try:
        mark = marks.read_mark(marks.mark_path(data_dir, stream))
        out["delivered"] = None if mark is None else mark._asdict()
    except marks.BadMark as error:
        out["delivered"], out["fault"] = None, str(error)
    return out


def verify(data_dir: Path, kek: bytes, source: Path | None = None) -> dict[str, Any]:
    """Every tag, the order of numbers and the continuity of sequences; `ok` says whether all blocks open.

    `holes` are sequences that no block here holds: shed, quarantined, or delivered around; a Gap record tells of each.
    """
    out: dict[str, Any] = {"ok": True, "streams": {}}
    for stream in files.STREAMS:
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
        "damaged": damaged, "holes": holes,
    }  # fmt: skip


def export(data_dir: Path, kek: bytes, stream: str) -> Iterator[dict[str, Any]]:
    """Every record of a stream as a JSON object with its identity, times and bed; holds patient data.

    Raises: keys.KeyProblem when the file was sealed under another key-encryption key.
    """
    reader = Reader(data_dir, kek)
    place: marks.Position | None = None
    try:
        while blocks := reader.read(stream, place, _EXPORT_BLOCKS):
            for block in blocks:
                for sequence, entry in enumerate(block.entries, block.first):
                    record = entry.record
                    yield {
                        "gateway": block.gateway, "instance": block.instance, "sequence": sequence, "stream": stream,
                        "block": block.number, "bed": entry.bed, "source": entry.source, "patient": entry.patient,
                        "at_ns": record.at_ns, "utc": _iso(block.utc_ns(record.at_ns)),
                        "clock_quality": block.clock_quality, "record": records.shape(record),
                    }  # fmt: skip
            place = blocks[-1].position
        if reader.fault:
            raise OSError(f"{reader.fault}\n  run `edge-agent buffer verify`; a running agent recovers the file")
    finally:
        reader.close()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        connection.close()
        raise sqlite3.DatabaseError("not a buffer of this program")
    return connection


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()


def _iso(utc_ns: int | None) -> str | None:
    if utc_ns is None:
        return None
    moment = datetime.datetime.fromtimestamp(utc_ns / 1e9, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
