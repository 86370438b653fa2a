"""A sealed block's records as messages: one JSON object each, in an envelope that says whose and when.

The envelope holds what the record itself does not: gateway, buffer instance and sequence (together the identity that
survives every resend), bed, source, patient, UTC with its quality. `record` holds what the record says, in the shape
of `records.shape`, except that a waveform keeps its samples as the device's own integers. schemas/*.json describe
every message; docs/forwarding.md tells what a receiver needs to know.

An observation is by far the most frequent record, so it has a structure of its own instead of a dictionary.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import msgspec

from cloud_sync.sinks import Message
from edge_agent import records, terms
from edge_agent.buffer import Block

SCHEMA_VERSION = 1  # of every message; raised when a field changes its meaning or goes
WAVEFORM_ENCODING = "int16le-base64"

TOPICS = ("alerts", "observations", "waveforms", "status")

_TOPIC_OF: dict[type, str] = {
    records.Observation: "observations",
    records.Score: "observations",
    records.Waveform: "waveforms",
    records.AlarmEvent: "alerts",
    records.DeviceAlarm: "alerts",
    records.PatientEvent: "alerts",
    records.Gap: "alerts",
    records.DeviceStatus: "status",
    records.Reject: "status",
}
_SCHEMA_OF: dict[type, bytes] = {
    records.Observation: b"observation",
    records.Score: b"score",
    records.Waveform: b"waveform",
    records.AlarmEvent: b"alarm_event",
    records.DeviceAlarm: b"device_alarm",
    records.PatientEvent: b"patient",
    records.Gap: b"gap",
    records.DeviceStatus: b"device_status",
    records.Reject: b"reject",
}
_VERSION_HEADER = ("schema-version", str(SCHEMA_VERSION).encode())
_UNIT_OF: dict[str, str] = {term.name: term.ucum for term in terms.TERMS}


class _Observed(msgspec.Struct, omit_defaults=True, gc=False):
    """An observation as `records.shape` writes it."""

    item: str
    term: str
    value: float | None
    unit: str
    validity: str
    device_time: str | None = None
    location: str = ""
    subject: str = ""
    channel: str = ""


class _Envelope(msgspec.Struct, omit_defaults=True, gc=False):
    gateway: str
    instance: str
    sequence: int
    bed: str
    source: str
    utc: str
    clock_quality: str
    at_ns: int
    schema_version: int
    record: _Observed | dict[str, Any]
    patient: str = ""


class Encoder:
    """Messages of one gateway."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._encode = msgspec.json.Encoder().encode
        self._second, self._second_text = -1, ""

    def block(self, block: Block) -> list[Message]:
        """One message for every record of the block, in order."""
        out: list[Message] = []
        gateway = block.gateway or self._gateway  # a block that could not be opened does not tell
        instance, clock_quality, first = block.instance, block.clock_quality, block.first
        identity = f"{gateway}/{instance}/"
        utc_ns, encode = block.utc_ns, self._encode
        for sequence, entry in enumerate(block.entries, first):
            record = entry.record
            kind = type(record)
            shape = _observed(record) if isinstance(record, records.Observation) else _shape(record)
            value = encode(
                _Envelope(
                    gateway,
                    instance,
                    sequence,
                    entry.bed,
                    entry.source,
                    self.utc(utc_ns(record.at_ns)),
                    clock_quality,
                    record.at_ns,
                    SCHEMA_VERSION,
                    shape,
                    entry.patient,
                )
            )
            headers = [("dedup", f"{identity}{sequence}".encode()), ("schema", _SCHEMA_OF[kind]), _VERSION_HEADER]
            out.append(Message(_TOPIC_OF[kind], entry.bed or gateway, value, headers))
        return out

    def gateway_status(self, instance: str, sequence: int, utc_ns: int, at_ns: int, facts: dict[str, Any]) -> Message:
        """The gateway's own report; `instance` and `sequence` count the reports of one forwarder process."""
        value = self._encode(
            {
                "gateway": self._gateway,
                "instance": instance,
                "sequence": sequence,
                "bed": "",
                "source": "cloud-sync",
                "utc": self.utc(utc_ns),
                "clock_quality": facts.pop("clock_quality", "unknown"),
                "at_ns": at_ns,
                "schema_version": SCHEMA_VERSION,
                "record": {"item": "gateway_status", **facts},
            }
        )
        dedup = f"{self._gateway}/{instance}/{sequence}".encode()
        return Message(
            "status", self._gateway, value, [("dedup", dedup), ("schema", b"gateway_status"), _VERSION_HEADER]
        )

    def utc(self, utc_ns: int) -> str:
        """ISO 8601 in UTC, to the millisecond."""
        second, rest = divmod(utc_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_text}.{rest // 1_000_000:03d}Z"


def _observed(record: records.Observation) -> _Observed:
    return _Observed(
        "observation",
        record.term,
        record.value,
        _UNIT_OF[record.term],
        record.validity,
        record.device_time or None,
        record.location,
        record.subject,
        record.channel,
    )


def _shape(record: records.Stored) -> dict[str, Any]:
    if not isinstance(record, records.Waveform):
        return records.shape(record)
    optional = {
        "device_time": record.device_time,
        "location": record.location,
        "subject": record.subject,
        "channel": record.channel,
    }
    return {
        "item": "waveform",
        "term": record.term,
        "unit": _UNIT_OF[record.term],
        "rate_hz": record.rate_hz,
        "encoding": WAVEFORM_ENCODING,
        "samples": base64.b64encode(record.samples).decode("ascii"),
        "scale": record.scale,
        "offset": record.offset,
        "no_sample": records.NO_SAMPLE,
        **{key: value for key, value in optional.items() if value},
    }


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the messages whose `schema` header is `name`.

    Raises: FileNotFoundError when there is no such message.
    """
    text = resources.files("cloud_sync").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def schema_names() -> list[str]:
    """Names of all published schemas, sorted."""
    folder = resources.files("cloud_sync").joinpath("schemas")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))
