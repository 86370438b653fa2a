"""Messages: every kind of record against its published schema, closed for the test so that no field slips in unseen."""

from __future__ import annotations

import base64
import datetime
import json
import struct
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from cloud_sync import encode
from cloud_sync.pseudonym import Identities, Mode, SiteKey
from edge_agent import records, terms
from edge_agent.buffer import Block

INSTANCE = str(uuid.UUID(int=7))
SCHEMAS = Path(encode.__file__).parent / "schemas"
COMMITTED_NS = 1_750_000_000_123_456_789

EVERY: dict[str, records.Stored] = {
    "observation": records.observation(
        terms.BY_NAME["spo2"], 97.5, 5, device_time="2026-01-01T00:00:00+01:00", location="L", subject="S", channel="C"
    ),
    "waveform": records.Waveform(
        "pleth", 62.5, struct.pack("<3h", 1, -2, records.NO_SAMPLE), 0.5, 1.0, 5, "2026-01-01T00:00:00", "L", "S", "C"
    ),
    "alarm_event": records.AlarmEvent(
        "a1",
        "spo2_low",
        "physiological",
        "high",
        "start",
        "On",
        5,
        "SpO2 low",
        "spo2",
        82.0,
        "below 90",
        "op",
        "s",
        "d",
    ),
    "device_alarm": records.DeviceAlarm(
        "medium",
        "start",
        "LOW",
        5,
        "MDC_EVT_LO_VAL_LT_LIM",
        "active",
        "enabled",
        "SP",
        "red",
        "x",
        "2026",
        "L",
        "S",
        "Q",
    ),
    "patient": records.PatientEvent("A40", "MRN-1", "ICU^^3", 5, "ICU^^2", "MRN-0", "2026"),
    "device_status": records.DeviceStatus("link", "lost", 5, "cable", "L"),
    "score": records.Score("news2", 3.0, 5, 0.8, "1", "d"),
    "gap": records.Gap("quota", 5, 9, 5, 5, INSTANCE, 2),
    "reject": records.Reject("checksum", 12, 5, "L"),
}
BARE: dict[str, records.Stored] = {
    "observation": records.observation(terms.BY_NAME["spo2"], None, 5),
    "waveform": records.Waveform("pleth", 62.5, b"", 1.0, 0.0, 5),
    "alarm_event": records.AlarmEvent("a1", "silent", "technical", "low", "end", "Off", 5),
    "device_alarm": records.DeviceAlarm("none", "end", "", 5),
    "patient": records.PatientEvent("observed", "", "", 5),
    "device_status": records.DeviceStatus("sensor", "off", 5),
    "score": records.Score("news2", None, 5),
    "gap": records.Gap("restored", 0, 0, 0, 5, INSTANCE, -1),
    "reject": records.Reject("noise", 0),
}


def block(*entries: records.Entry, gateway: str = "gw", committed_mono_ns: int = 5) -> Block:
    return Block(
        "data", INSTANCE, 1, 1, 100, len(entries), list(entries), gateway, "synchronized", "", COMMITTED_NS,
        committed_mono_ns,
    )  # fmt: skip


def entry(record: records.Stored, bed: str = "ICU-1", patient: str = "") -> records.Entry:
    return records.Entry(bed, "hl7@test", patient, record)


def closed(name: str) -> Draft202012Validator:
    """The published schema that takes nothing it does not name."""
    schema = encode.schema(name)
    Draft202012Validator.check_schema(schema)
    schema["additionalProperties"] = False
    schema["properties"]["record"]["additionalProperties"] = False
    return Draft202012Validator(schema)


def encoder(gateway: str = "gw") -> encode.Encoder:
    """One that sends identifiers as they are: what becomes of them is held by test_privacy*.py."""
    return encode.Encoder(gateway, Identities("clear"))


def encoded(record: records.Stored, **kind: Any) -> dict[str, Any]:
    (message,) = encoder().block(block(entry(record, **kind)))
    found: dict[str, Any] = json.loads(message.value)
    return found


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("some", [EVERY, BARE], ids=["every field", "no optional field"])
def test_every_record_fits_its_schema(name: str, some: dict[str, records.Stored]) -> None:
    record = some[name]
    (message,) = encoder().block(block(entry(record, patient="MRN-1")))
    found = json.loads(message.value)
    closed(name).validate(found)
    assert message.headers == [
        ("dedup", f"gw/{INSTANCE}/100".encode()), ("schema", name.encode()), ("schema-version", b"1"),
    ]  # fmt: skip
    assert message.dedup == f"gw/{INSTANCE}/100"
    assert found["record"]["item"] == name
    if name != "waveform":
        assert found["record"] == records.shape(record)


def previous(name: str) -> dict[str, Any]:
    """The schema of version 1 as it was published."""
    found: dict[str, Any] = json.loads((SCHEMAS / "v1" / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("some", [EVERY, BARE], ids=["every field", "no optional field"])
def test_a_receiver_of_version_1_takes_what_is_sent_now(name: str, some: dict[str, records.Stored]) -> None:
    Draft202012Validator(previous(name)).validate(encoded(some[name], patient="p1:x"))


def test_what_version_1_demands_is_still_sent() -> None:
    for name in encode.schema_names():
        for now, before in ((encode.schema(name), previous(name)),):
            assert set(before["required"]) <= set(now["required"]), name
            was, is_ = before["properties"]["record"], now["properties"]["record"]
            assert set(was["required"]) <= set(is_["required"]), name
            assert set(was["properties"]) <= set(is_["properties"]), f"{name}: a field has gone"


def test_every_schema_has_a_record_and_one_envelope() -> None:
    assert set(encode.schema_names()) == {*EVERY, "gateway_status"}
    envelopes = []
    for name in EVERY:
        properties = encode.schema(name)["properties"]
        del properties["record"]
        envelopes.append(properties)
        assert encode.schema(name)["$id"] == f"urn:bedside-edge:schema:{name}:{encode.SCHEMA_VERSION}"
    assert all(envelope == envelopes[0] for envelope in envelopes)


def test_a_schema_refuses_a_value_beside_invalid() -> None:
    found = encoded(BARE["observation"])
    found["record"]["value"] = 0.0
    with pytest.raises(ValidationError):
        closed("observation").validate(found)


def test_a_waveform_keeps_the_device_s_integers() -> None:
    record = EVERY["waveform"]
    assert isinstance(record, records.Waveform)
    shape = encoded(record)["record"]
    assert (shape["encoding"], shape["rate_hz"], shape["unit"]) == ("int16le-base64", 62.5, "1")
    raw = struct.unpack("<3h", base64.b64decode(shape["samples"]))
    physical = [None if one == shape["no_sample"] else one * shape["scale"] + shape["offset"] for one in raw]
    assert physical == record.physical() == [1.5, 0.0, None]


def test_topic_key_and_envelope_tell_where_a_record_belongs() -> None:
    some = [entry(EVERY[name], bed) for name, bed in (("observation", "ICU-1"), ("gap", ""), ("reject", "ICU-2"))]
    messages = encoder("other").block(block(*some, gateway="sealed-as"))
    assert [(message.topic, message.key) for message in messages] == [
        ("observations", "ICU-1"), ("alerts", "sealed-as"), ("status", "ICU-2"),
    ]  # fmt: skip
    assert [json.loads(message.value)["sequence"] for message in messages] == [100, 101, 102]
    damaged = encoder("other").block(block(entry(EVERY["gap"], ""), gateway=""))
    assert damaged[0].key == "other", "a block that does not open does not tell its gateway"


def test_utc_is_that_of_the_receipt() -> None:
    def utc(at_ns: int) -> str:
        record = records.observation(terms.BY_NAME["spo2"], 90.0, at_ns)
        (message,) = encoder().block(block(entry(record), committed_mono_ns=10_000_000_000))
        found: str = json.loads(message.value)["utc"]
        return found

    assert utc(10_000_000_000) == "2025-06-15T15:06:40.123Z"
    assert utc(9_000_000_000) == "2025-06-15T15:06:39.123Z"
    assert utc(9_876_543_210) == "2025-06-15T15:06:39.999Z"
    assert utc(9_876_543_211) == "2025-06-15T15:06:40.000Z"


def test_patient_only_where_there_is_one() -> None:
    assert "patient" not in encoded(EVERY["observation"])
    assert encoded(EVERY["observation"], patient="MRN-1")["patient"] == "MRN-1"


def test_gateway_status_fits_its_schema() -> None:
    facts = {
        "state": "waiting",
        "detail": "",
        "agent_listening": True,
        "backlog_records": None,
        "backlog_oldest_s": None,
        "forwarded": {"alerts": 1, "data": 2},
        "dropped": {"alerts": 0, "data": 0},
        "version": "0.1.0",
        "uptime_s": 1.5,
        "clock_quality": "unknown",
    }
    message = encoder().gateway_status("run-1", 3, COMMITTED_NS, 9, facts)
    assert message is not None
    found = json.loads(message.value)
    closed("gateway_status").validate(found)
    assert (message.topic, message.key, message.dedup) == ("status", "gw", "gw/run-1/3")
    assert found["utc"] == "2025-06-15T15:06:40.123Z"


texts = st.text(max_size=8)
observations = st.builds(
    lambda term, value, at_ns, device_time, location, channel: records.observation(
        term, value, at_ns, device_time=device_time, location=location, channel=channel
    ),
    st.sampled_from(terms.TERMS),
    st.none() | st.floats(),
    st.integers(0, 2**62),
    st.none() | st.text(min_size=1, max_size=8),
    texts,
    texts,
)


@given(observations, texts, texts, texts)
def test_any_observation_says_what_its_shape_says(
    record: records.Observation, bed: str, source: str, patient: str
) -> None:
    (message,) = encoder().block(block(records.Entry(bed, source, patient, record)))
    found = json.loads(message.value)
    assert found["record"] == records.shape(record)
    assert (found["bed"], found["source"], found.get("patient", "")) == (bed, source, patient)
    closed("observation").validate(found)


MRN = st.sampled_from(["", "MRN-1", "MRN-2"])
PLACE = st.sampled_from(["", "ICU^^1", 'of "MRN-1"', "of mrn-2, Ü\n"])
repeated = st.builds(
    records.Observation,
    st.sampled_from([term.name for term in terms.TERMS]),
    st.none() | st.floats() | st.integers(-300, 300).map(float),
    st.sampled_from(["valid", "questionable"]),
    st.integers(0, 3_000_000_000) | st.integers(0, 2**62),
    st.sampled_from([None, "", "2026-01-01T00:00:00"]),
    PLACE,
    MRN,
    PLACE,
)
others = st.sampled_from([EVERY["device_alarm"], EVERY["score"]])


@given(
    st.lists(
        st.builds(records.Entry, st.sampled_from(["", "B-1"]), st.sampled_from(["", "hl7@x"]), MRN, repeated | others)
    ),
    st.sampled_from(["pseudonym", "none", "clear"]),
)
def test_pieces_make_the_bytes_that_the_whole_would(entries: list[records.Entry], mode: Mode) -> None:
    keys = (SiteKey("p1", bytes(range(32))),)
    found = [message.value for message in encode.Encoder("gw", Identities(mode, keys)).block(block(*entries))]
    expected = []
    for sequence, each in enumerate(Identities(mode, keys).leaving(entries), 100):
        at_ns = each.record.at_ns
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(
            milliseconds=(COMMITTED_NS + at_ns - 5) // 1_000_000
        )
        envelope = {
            "gateway": "gw", "instance": INSTANCE, "sequence": sequence, "bed": each.bed, "source": each.source,
            "utc": moment.isoformat(timespec="milliseconds") + "Z", "clock_quality": "synchronized", "at_ns": at_ns,
            "schema_version": 1, "record": records.shape(each.record),
        }  # fmt: skip
        if each.patient:
            envelope["patient"] = each.patient
        expected.append(msgspec.json.encode(envelope))
    assert found == expected


def test_what_a_text_becomes_is_not_remembered_from_block_to_block() -> None:
    sender = encode.Encoder("gw", Identities("none"))
    named = records.Observation("spo2", 97.0, "valid", 5, location="of MRN-7731")
    (before,) = sender.block(block(entry(named)))
    (after, _) = sender.block(block(entry(named), entry(EVERY["score"], patient="MRN-7731")))
    assert b"MRN-7731" in before.value, "nobody could know that it is a patient's"
    assert b"7731" not in after.value
