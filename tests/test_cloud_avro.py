"""Avro: every kind of record there and back, the registry in every mood, and schemas that follow from the last ones."""

from __future__ import annotations

import copy
import datetime
import hashlib
import io
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

import fastavro
import pytest
from msgspec import structs
from schema_registry import Registry as Served
from schema_registry import breaks
from test_cloud_encode import BARE, COMMITTED_NS, EVERY, INSTANCE, block, entry

from cloud_sync import avro, encode
from cloud_sync.pseudonym import Identities
from cloud_sync.registry import Registry
from cloud_sync.sinks import Fatal, Retry
from edge_agent import records

SCHEMAS = Path(avro.__file__).parent / "schemas"
NAMES = [*EVERY, "gateway_status"]
V1_SHA256 = "5d4443e12a3db31f23e6a509a1d6e8c89472a343d9914589145b11aa4d1fd5e3"
FACTS = {
    "state": "connected", "detail": "", "agent_listening": True, "backlog_records": 3, "backlog_oldest_s": None,
    "forwarded": {"alerts": 1, "data": 2}, "dropped": {"alerts": 0, "data": 0}, "version": "0.1.0", "uptime_s": 1.5,
    "clock_quality": "unknown",
}  # fmt: skip


def encoder(served: Served, **told: Any) -> avro.AvroEncoder:
    return avro.AvroEncoder("gw", Identities("clear"), Registry(served.url, **told), "ward")


def v1(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "v1" / f"{name}.avsc").read_text())
    return found


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("some", [EVERY, BARE], ids=["every field", "no optional field"])
def test_every_record_comes_back_through_the_registry(name: str, some: dict[str, records.Stored]) -> None:
    record = some[name]
    with Served() as served:
        (message,) = encoder(served).block(block(entry(record, patient="p1:abc")))
        found = served.decode(message.value)
        assert list(served.subjects) and len(served.schemas) == len(NAMES)
    assert found.pop("utc") == datetime.datetime(2025, 6, 15, 15, 6, 40, 123456, datetime.UTC)
    shape = {key: value for key, value in found.pop("record").items() if value is not None}
    assert found == {
        "gateway": "gw", "instance": INSTANCE, "sequence": 100, "bed": "ICU-1", "source": "hl7@test",
        "patient": "p1:abc", "clock_quality": "synchronized", "at_ns": record.at_ns, "schema_version": 1,
    }  # fmt: skip
    expected = {key: value for key, value in records.shape(record).items() if key != "item" and value is not None}
    if isinstance(record, records.Waveform):
        assert shape.pop("samples") == record.samples
        assert (shape.pop("encoding"), shape.pop("no_sample")) == ("int16le", records.NO_SAMPLE)
        assert (shape.pop("scale"), shape.pop("offset")) == (record.scale, record.offset)
        del expected["samples"]
    assert shape == expected
    assert dict(message.headers)["schema"] == name.encode()
    (json_message,) = encode.Encoder("gw").block(block(entry(record)))
    assert structs.replace(message, value=b"") == structs.replace(json_message, value=b"")


def test_the_gateway_s_report_comes_back_too() -> None:
    with Served() as served:
        message = encoder(served).gateway_status("run-1", 3, COMMITTED_NS, 9, dict(FACTS))
        assert message is not None
        found = served.decode(message.value)
    assert found["record"] == {key: value for key, value in FACTS.items() if key != "clock_quality"}
    assert (found["clock_quality"], found["patient"], found["sequence"]) == ("unknown", None, 3)
    assert list(served.subjects) == ["ward.status-bedside_edge.GatewayStatus"]


def test_subjects_are_topic_and_name_and_each_is_asked_once() -> None:
    with Served() as served:
        registry = Registry(served.url)
        first, second = (avro.AvroEncoder("gw", None, registry, "ward") for _ in range(2))
        for each in (first, second, first):
            each.block(block(*(entry(record) for record in EVERY.values())))
        assert set(served.subjects) == {
            "ward.alerts-bedside_edge.AlarmEvent", "ward.alerts-bedside_edge.DeviceAlarm",
            "ward.alerts-bedside_edge.Gap", "ward.alerts-bedside_edge.PatientEvent",
            "ward.observations-bedside_edge.Observation", "ward.observations-bedside_edge.Score",
            "ward.status-bedside_edge.DeviceStatus", "ward.status-bedside_edge.GatewayStatus",
            "ward.status-bedside_edge.Reject", "ward.waveforms-bedside_edge.Waveform",
        }  # fmt: skip
        assert len([call for call in served.calls if call.endswith("/versions")]) == len(NAMES)
        assert len(served.calls) == 3 * len(NAMES), "look up, check, register; then never again"
        (message,) = first.block(block(entry(EVERY["gap"])))
        schema_id = int.from_bytes(message.value[1:5], "big")
        assert json.loads(registry.schema(schema_id)) == avro.schema("gap")
        with pytest.raises(Fatal, match="not found"):
            registry.schema(1)
    first.block(block(entry(EVERY["gap"])))  # the registry is gone, the ids are not


def test_a_second_process_looks_up_and_registers_nothing() -> None:
    with Served() as served:
        encoder(served).block(block())
        served.calls.clear()
        encoder(served).block(block())
        assert len(served.calls) == len(NAMES) and not any("versions" in call for call in served.calls)


def test_a_registry_that_is_away_keeps_records_and_comes_back() -> None:
    with Served() as served:
        port = served.port
    away = avro.AvroEncoder("gw", None, Registry(f"http://localhost:{port}"), "ward")
    with pytest.raises(Retry, match="cannot be reached"):
        away.block(block(entry(EVERY["gap"])))
    assert away.gateway_status("run", 1, COMMITTED_NS, 1, dict(FACTS)) is None, "a report must end nothing"
    with Served(port=port) as again:
        again.trouble = 503
        with pytest.raises(Retry, match="503"):
            away.block(block(entry(EVERY["gap"])))
        again.trouble = 0
        assert len(away.block(block(entry(EVERY["gap"])))) == 1


@pytest.mark.parametrize("status", [400, 403, 409, 422, 302])
def test_a_refusal_waits_for_a_person(status: int) -> None:
    with Served() as served:
        served.trouble = status
        with pytest.raises(Fatal, match=str(status)):
            encoder(served).block(block())


def test_schemas_may_be_registered_by_somebody_else() -> None:
    with Served() as served:
        with pytest.raises(Fatal, match="register_schemas"):
            encoder(served, register=False).block(block())
        assert not served.subjects
        encoder(served).block(block())
        encoder(served, register=False).block(block())


def test_a_name_and_password_are_sent() -> None:
    with Served(login="gw:secret") as served:
        with pytest.raises(Fatal, match="401"):
            encoder(served).block(block())
        with pytest.raises(Fatal, match="401") as refused:
            encoder(served, username="gw", password="wrong").block(block())
        assert "wrong" not in str(refused.value)
        encoder(served, username="gw", password="secret").block(block())


def test_only_the_authority_that_was_named_is_believed(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days",
         "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Served(tls) as served:
        with pytest.raises(Fatal, match="registry_ca"):
            encoder(served).block(block())
        encoder(served, ca=tmp_path / "cert.pem").block(block())


def test_an_incompatible_schema_is_not_registered() -> None:
    broken = avro.schema("gap")
    broken["fields"][-1]["type"]["fields"].append({"name": "severity", "type": "string"})
    subject = "ward.alerts-bedside_edge.Gap"
    with Served() as served:
        served.answer("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(broken)}, "")
        with pytest.raises(Fatal, match="does not follow"):
            encoder(served).block(block())
        assert len(served.subjects[subject]) == 1


def test_version_1_is_as_it_was_published() -> None:
    files = sorted((SCHEMAS / "v1").glob("*.avsc"))
    assert [file.stem for file in files] == sorted(NAMES)
    assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == V1_SHA256, (
        "schemas/v1 is what receivers have; a change belongs into schemas/"
    )


@pytest.mark.parametrize("name", NAMES)
def test_schemas_follow_from_version_1_both_ways(name: str) -> None:
    assert breaks(v1(name), avro.schema(name)) == ""


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("some", [EVERY, BARE], ids=["every field", "no optional field"])
def test_a_reader_of_version_1_reads_what_is_sent_now(name: str, some: dict[str, records.Stored]) -> None:
    with Served() as served:
        (message,) = encoder(served).block(block(entry(some[name])))
        now = served.decode(message.value)
    writer, reader = fastavro.parse_schema(avro.schema(name)), fastavro.parse_schema(v1(name))
    found = fastavro.schemaless_reader(io.BytesIO(message.value[5:]), writer, reader)
    assert isinstance(found, dict)
    assert {key: now[key] for key in found if key != "record"} == {k: v for k, v in found.items() if k != "record"}
    assert found["record"] == {key: now["record"][key] for key in found["record"]}


def _changes() -> dict[str, Any]:
    def renamed(fields: list[Any]) -> None:
        fields[0]["name"] = "metric"

    def retyped(fields: list[Any]) -> None:
        fields[1]["type"] = "string"

    def gone(fields: list[Any]) -> None:
        del fields[0]

    def demanded(fields: list[Any]) -> None:
        fields.append({"name": "site", "type": "string"})

    return {"renamed": renamed, "retyped": retyped, "gone": gone, "demanded": demanded}


@pytest.mark.parametrize("change", _changes())
def test_the_check_notices_a_change_that_breaks(change: str) -> None:
    new = copy.deepcopy(v1("observation"))
    _changes()[change](new["fields"][-1]["type"]["fields"])
    assert breaks(v1("observation"), new)


def test_a_new_field_with_a_default_breaks_nothing() -> None:
    new = copy.deepcopy(v1("observation"))
    new["fields"][-1]["type"]["fields"].append({"name": "site", "type": ["null", "string"], "default": None})
    assert breaks(v1("observation"), new) == ""


@pytest.mark.parametrize("name", NAMES)
def test_what_may_be_missing_has_a_default(name: str) -> None:
    schema = avro.schema(name)
    assert (schema["namespace"], [field["name"] for field in schema["fields"]]) == (
        "bedside_edge",
        ["gateway", "instance", "sequence", "bed", "source", "patient", "utc", "clock_quality", "at_ns",
         "schema_version", "record"],
    )  # fmt: skip
    published = encode.schema(name)["properties"]["record"]["properties"]
    fields = schema["fields"][-1]["type"]["fields"]
    assert {field["name"] for field in fields} == set(published) - {"item"}
    for field in fields:
        if isinstance(field["type"], list):
            assert field["type"][0] == "null" and field["default"] is None, field["name"]
