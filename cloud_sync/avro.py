"""Messages in Avro, in the Confluent wire format: a zero byte, the schema's id in four bytes, the record.

Theory of operation. Every kind of record has a schema of its own (schemas/*.avsc), whose field `record` holds what
the JSON object holds under the same names, except that a waveform's samples are bytes. Fields are read off the record
by the names in the schema, so that file decides what is sent. The subject of a schema is the topic and the schema's
full name (the strategy TopicRecordName), because a topic carries several kinds. All ids are fetched before the first
block is encoded: a registry that goes away later holds nothing up.

Source: Confluent Schema Registry, wire format; Apache Avro 1.11 specification.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import fastavro

from cloud_sync.encode import SCHEMA_OF, TOPIC_OF, Encoder
from cloud_sync.observations import UNIT_OF
from cloud_sync.pseudonym import Identities
from cloud_sync.registry import Registry
from cloud_sync.sinks import Fatal, Message, Retry
from edge_agent import records
from edge_agent.buffer import Block

ENCODING = "int16le"  # of a waveform's samples
MAGIC = 0  # first byte of the wire format; a JSON message begins with {

_STATUS = b"gateway_status"
_CONSTANT = {"encoding": ENCODING, "no_sample": records.NO_SAMPLE}
_HEADER = struct.Struct(">bI")


class _Kind(NamedTuple):
    """A schema, ready to write."""

    topic: str
    name: str  # full name in Avro
    text: str
    parsed: Any
    fields: tuple[tuple[str, bool], ...]  # of the record: name, and whether it is null when it is empty


def schema(name: str) -> dict[str, Any]:
    """The Avro schema of the messages whose `schema` header is `name`. Raises: FileNotFoundError."""
    text = resources.files("cloud_sync").joinpath("schemas", f"{name}.avsc").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _kind(name: str, topic: str) -> _Kind:
    found = schema(name)
    record = next(field["type"] for field in found["fields"] if field["name"] == "record")
    fields = tuple((field["name"], field["type"] == ["null", "string"]) for field in record["fields"])
    full = f"{found['namespace']}.{found['name']}"
    return _Kind(topic, full, json.dumps(found, separators=(",", ":")), fastavro.parse_schema(found), fields)


class AvroEncoder(Encoder):
    """Messages of one gateway, for one thread; `block` raises Retry or Fatal while the registry gives no ids."""

    def __init__(self, gateway: str, identities: Identities | None, registry: Registry, prefix: str) -> None:
        """`prefix`: of the topics, which are part of the subjects."""
        super().__init__(gateway, identities)
        self._registry, self._prefix = registry, prefix
        topics = {**{name: TOPIC_OF[kind] for kind, name in SCHEMA_OF.items()}, _STATUS: "status"}
        self._kinds = {name: _kind(name.decode(), topic) for name, topic in topics.items()}
        self._heads: dict[bytes, bytes] = {}

    def subject(self, name: bytes) -> str:
        """Where the registry keeps the versions of the schema with this `schema` header."""
        kind = self._kinds[name]
        return f"{self._prefix}.{kind.topic}-{kind.name}"

    def block(self, block: Block) -> list[Message]:
        """One message for every record of the block, in order. Raises: Retry, Fatal."""
        if len(self._heads) < len(self._kinds):
            for name in self._kinds:
                self._head(name)
        return super().block(block)

    def gateway_status(
        self, instance: str, sequence: int, utc_ns: int, at_ns: int, facts: dict[str, Any]
    ) -> Message | None:
        """The gateway's own report; None while the registry gives no id for it."""
        try:
            self._head(_STATUS)
        except (Retry, Fatal):
            return None
        return super().gateway_status(instance, sequence, utc_ns, at_ns, facts)

    def _head(self, name: bytes) -> bytes:
        head = self._heads.get(name)
        if head is None:
            schema_id = self._registry.schema_id(self.subject(name), self._kinds[name].text)
            head = self._heads[name] = _HEADER.pack(MAGIC, schema_id)
        return head

    def _values(self, block: Block, gateway: str) -> Iterator[bytes]:
        leaving = self._identities.entry
        for sequence, entry in enumerate(block.entries, block.first):
            yield self._value(block, gateway, sequence, leaving(entry))

    def _value(self, block: Block, gateway: str, sequence: int, entry: records.Entry) -> bytes:
        record = entry.record
        schema = SCHEMA_OF[type(record)]
        shape: dict[str, Any] = {}
        for field, empty_is_null in self._kinds[schema].fields:
            if field == "unit":
                shape[field] = UNIT_OF[record.term]  # type: ignore[union-attr]
            elif field in _CONSTANT:
                shape[field] = _CONSTANT[field]
            else:
                value = getattr(record, field)
                shape[field] = None if empty_is_null and not value else value
        return self._write(
            schema,
            {
                "gateway": gateway,
                "instance": block.instance,
                "sequence": sequence,
                "bed": entry.bed,
                "source": entry.source,
                "patient": entry.patient or None,
                "utc": block.utc_ns(record.at_ns) // 1000,
                "clock_quality": block.clock_quality,
                "at_ns": record.at_ns,
                "schema_version": self.version,
                "record": shape,
            },
        )

    def _status_value(self, envelope: dict[str, Any], utc_ns: int) -> bytes:
        record = {key: value for key, value in envelope["record"].items() if key != "item"}
        return self._write(_STATUS, {**envelope, "patient": None, "utc": utc_ns // 1000, "record": record})

    def _write(self, name: bytes, value: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(self._heads[name])
        fastavro.schemaless_writer(out, self._kinds[name].parsed, value)
        return out.getvalue()
