"""What has been delivered, per receiver: one small file each, written by cloud-sync only, read by the agent to prune.

The marks `alerts` and `data` are those of Kafka for the stream of the same name, `mqtt_alerts`, `mqtt_data`,
`rest_alerts` and `rest_data` those of the other brokers; `alert_manager` is that of the hospital's alert manager for
the alerts. A block may go when every receiver that is configured has it (`receivers`).
A mark names the newest block that the receiver has confirmed. It is written beside and renamed, with file and folder
synced, so a power cut leaves the old or the new one; a mark that is behind only means that blocks are sent again under
the same identities.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edge_agent import config_cloud
from edge_agent.buffer import files

_VERSION = 1
ALERT_MANAGER = "alert_manager"
MQTT, REST = "mqtt", "rest"  # each has one mark for each stream: receiver_mark()
KAFKA_ONLY: dict[str, tuple[str, ...]] = {stream: (stream,) for stream in files.STREAMS}


class Position(NamedTuple):
    """A place in a stream: the block `block` of `instance` and everything before it."""

    instance: str  # UUID in its 36-character form
    block: int

    def instance_bytes(self) -> bytes:
        """The instance as the database holds it; empty when it is no UUID."""
        try:
            return uuid.UUID(self.instance).bytes
        except ValueError:
            return b""


class BadMark(Exception):
    """A mark file whose content is not what was written."""


def receiver_mark(receiver: str, stream: str) -> str:
    """Name of the mark of `mqtt` or `rest` for a stream."""
    return f"{receiver}_{stream}"


def receivers(cloud: config_cloud.Cloud) -> dict[str, tuple[str, ...]]:
    """For each stream the marks that must have passed a block before it may go.

    A receiver that is not configured holds nothing back. A stream that has none at all keeps its blocks until size or
    age makes them go.
    """
    out: dict[str, tuple[str, ...]] = dict.fromkeys(files.STREAMS, ())
    if cloud.kafka is not None:
        out.update(KAFKA_ONLY)
    if cloud.alert_manager is not None:
        out["alerts"] += (ALERT_MANAGER,)
    for receiver, table in ((MQTT, cloud.mqtt), (REST, cloud.rest)):
        if table is not None:
            for stream in files.STREAMS:
                out[stream] += (receiver_mark(receiver, stream),)
    return out


def mark_path(data_dir: Path, stream: str) -> Path:
    """Where the mark of a stream lies."""
    return data_dir / "marks" / f"{stream}.json"


def read_mark(path: Path) -> Position | None:
    """The mark in the file, None when there is none yet.

    Raises: BadMark when the content is damaged; OSError when the disk does not serve.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        position = Position(content["instance"], content["block"])
        whole = content["version"] == _VERSION and isinstance(position.block, int) and content["crc"] == _crc(position)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadMark(f"{path}: not a mark: {error}") from error
    if not whole:
        raise BadMark(f"{path}: checksum or version does not fit")
    return position


def every(data_dir: Path) -> list[Position]:
    """The marks of all receivers that can be read, in no order."""
    found = []
    for path in (data_dir / "marks").glob("*.json"):
        try:
            mark = read_mark(path)
        except (BadMark, OSError):  # cloud-sync, its writer, tells of it
            continue
        if mark is not None:
            found.append(mark)
    return found


class Marks:
    """The writer's side, for cloud-sync."""

    def __init__(self, data_dir: Path, *, on_fault: Callable[[str, str], None] | None = None) -> None:
        self._data_dir = data_dir
        self._on_fault = on_fault

    def known(self, stream: str) -> bool:
        """Whether the stream ever had a mark, one that was damaged and put aside included."""
        path = mark_path(self._data_dir, stream)
        return path.exists() or any(path.parent.glob(f"{path.name}.bad-*"))

    def get(self, stream: str) -> Position | None:
        """What has been delivered of the stream; None when nothing is known.

        A damaged mark is put aside as `<stream>.json.bad-<time>` and reported; delivery then starts at the oldest block
        that is still there, under the same identities.
        """
        path = mark_path(self._data_dir, stream)
        try:
            return read_mark(path)
        except BadMark as error:
            aside = path.with_name(f"{path.name}.bad-{time.time_ns()}")
            os.replace(path, aside)
            if self._on_fault is not None:
                self._on_fault("mark corrupt", f"{error}; put aside as {aside.name}, blocks may be sent again")
            return None

    def set(self, stream: str, position: Position) -> None:
        """Notes the position durably; on return it survives a power cut.

        Raises: OSError when the disk does not take it; the old mark then still stands.
        """
        path = mark_path(self._data_dir, stream)
        files.make_folder(path.parent)
        content = {"version": _VERSION, "instance": position.instance, "block": position.block, "crc": _crc(position)}
        files.write_durable(path, json.dumps(content).encode())


def _crc(position: Position) -> int:
    return zlib.crc32(f"{position.instance}:{position.block}".encode())
