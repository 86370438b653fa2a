"""A sealed block's records as messages: one JSON object each, in an envelope that says whose and when.

Every record goes through `pseudonym.Identities` first; an encoder that was not given one leaves identifiers out.

The envelope holds what the record itself does not: gateway, buffer instance and sequence (together the identity that
survives every resend), bed, source, patient, UTC with its quality. `record` holds what the record says, in the shape
of `records.shape`, except that a waveform keeps its samples as the device's own integers. schemas/*.json describe
every message; docs/forwarding.md tells what a receiver needs to know.

An observation is by far the most frequent record: `observations` puts its message together from pieces.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from importlib import resources
from itertools import count
from typing import Any

import msgspec

from cloud_sync.observations import UNIT_OF, Moments, Observations
from cloud_sync.pseudonym import Identities
from cloud_sync.sinks import Header, Message
from edge_agent import records
from edge_agent.buffer import Block

SCHEMA_VERSION = 1  # of every message; raised when a field changes its meaning or goes
WAVEFORM_ENCODING = "int16le-base64"

TOPICS = ("alerts", "observations", "waveforms", "status")

TOPIC_OF: dict[type, str] = {
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
SCHEMA_OF: dict[type, bytes] = {
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


_ADDRESS: dict[type, tuple[str, tuple[Header, ...]]] = {
    kind: (topic, (("schema", SCHEMA_OF[kind]), _VERSION_HEADER)) for kind, topic in TOPIC_OF.items()
}
_STATUS_ABOUT = (("schema", b"gateway_status"), _VERSION_HEADER)


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
    record: dict[str, Any]
    patient: str = ""


class Encoder:
    """Messages of one gateway in JSON, for one thread."""

    version = SCHEMA_VERSION

    def __init__(self, gateway: str, identities: Identities | None = None) -> None:
        """`identities`: what becomes of patients' identifiers; None leaves them out."""
        self._gateway = gateway
        self._identities = identities or Identities()
        self.identifiers = self._identities.told  # what becomes of them, in words
        self._encode = msgspec.json.Encoder().encode
        self._moments = Moments()

    def block(self, block: Block) -> list[Message]:
        """One message for every record of the block, in order."""
        out: list[Message] = []
        gateway = block.gateway or self._gateway  # a block that could not be opened does not tell
        identity = f"{gateway}/{block.instance}/".encode()
        self._identities.learn(block.entries)
        values, encode = self._values(block, gateway), self._encode
        for sequence, entry, value in zip(count(block.first), block.entries, values, strict=False):
            topic, about = _ADDRESS[type(entry.record)]
            out.append(Message(topic, entry.bed or gateway, value, identity + encode(sequence), about))
        return out

    def _values(self, block: Block, gateway: str) -> Iterator[bytes]:
        """The value of each record's message, in order, after `Identities.learn`."""
        leaving = self._identities.entry
        observed = Observations(block, gateway, SCHEMA_VERSION, leaving, self._moments).value
        for sequence, entry in enumerate(block.entries, block.first):
            record = entry.record
            if type(record) is records.Observation:
                yield observed(sequence, entry, record)
            else:
                yield self._other(block, gateway, sequence, leaving(entry))

    def _other(self, block: Block, gateway: str, sequence: int, entry: records.Entry) -> bytes:
        record = entry.record
        return self._encode(
            _Envelope(
                gateway,
                block.instance,
                sequence,
                entry.bed,
                entry.source,
                self.utc(block.utc_ns(record.at_ns)),
                block.clock_quality,
                record.at_ns,
                SCHEMA_VERSION,
                _shape(record),
                entry.patient,
            )
        )

    def gateway_status(
        self, instance: str, sequence: int, utc_ns: int, at_ns: int, facts: dict[str, Any]
    ) -> Message | None:
        """The gateway's own report; `instance` and `sequence` count the reports of one forwarder process.

        None: it cannot be written at the moment.
        """
        clock_quality = facts.pop("clock_quality", "unknown")
        envelope = {
            "gateway": self._gateway,
            "instance": instance,
            "sequence": sequence,
            "bed": "",
            "source": "cloud-sync",
            "utc": self.utc(utc_ns),
            "clock_quality": clock_quality,
            "at_ns": at_ns,
            "schema_version": SCHEMA_VERSION,
            "record": {"item": "gateway_status", **facts},
        }
        dedup = f"{self._gateway}/{instance}/{sequence}".encode()
        value = self._status_value(envelope, utc_ns)
        return Message("status", self._gateway, value, dedup, _STATUS_ABOUT)

    def _status_value(self, envelope: dict[str, Any], utc_ns: int) -> bytes:  # noqa: ARG002
        return self._encode(envelope)

    def utc(self, utc_ns: int) -> str:
        """ISO 8601 in UTC, to the millisecond."""
        return self._moments.utc(utc_ns).decode("ascii")


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
        "unit": UNIT_OF[record.term],
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
