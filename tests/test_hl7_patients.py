"""Patient movements and queries over HL7."""

from __future__ import annotations

import json

import hl7
import pytest
from hl7_messages import decode, framed, message, msh, obx, readings, rejects, replies

from edge_agent.records import PatientEvent, shape

PID = "PID|1||P1^^^HIS^MR~77^^^HIS^SS||Miller^Mary^^^^^L||19700101|F|||Street 1"
PV1 = "PV1|1|I|ICU^^3^H|||ICU^^9"


def adt(trigger: str, *segments: str, kind: str = "") -> bytes:
    return framed(message(*segments, header=msh(kind or f"ADT^{trigger}^ADT_{trigger}", f"ID{trigger}")))


def events(items: list) -> list[PatientEvent]:
    return [item for item in items if isinstance(item, PatientEvent)]


@pytest.mark.parametrize("trigger", ["A01", "A02", "A03", "A04", "A08", "A11", "A12", "A13"])
def test_movements_name_patient_and_place_and_are_acknowledged_behind_it(trigger: str) -> None:
    items = decode(adt(trigger, "EVN||20250401100000", PID, PV1))
    assert items[0] == PatientEvent(trigger, "P1", "ICU^^3^H", 0, "ICU^^9", "", "2025-04-01T10:00:00+02:00")
    assert f"MSA|AA|ID{trigger}" in replies(items[1:])[0]
    assert len(items) == 2


def test_a_merge_names_the_identifier_that_goes_and_may_name_several() -> None:
    items = decode(adt("A40", PID, "MRG|OLD1^^^HIS^MR", PID.replace("P1", "P2"), "MRG|OLD2"))
    found = [(event.patient_id, event.prior_patient_id, event.location) for event in events(items)]
    assert found == [("P1", "OLD1", ""), ("P2", "OLD2", "")]


def test_the_time_is_that_of_the_event_then_of_its_recording_then_of_the_message() -> None:
    sent = ["EVN|A01|20250401100000||||20250401095500", "EVN|A01|20250401100000", "EVN|A01"]
    times = [events(decode(adt("A01", evn, PID, PV1)))[0].device_time for evn in sent]
    assert times == [f"2025-04-01T{clock}:00+02:00" for clock in ("09:55", "10:00", "10:15")]


def test_the_trigger_may_stand_in_the_event_segment_alone() -> None:
    assert [event.event for event in events(decode(adt("", "EVN|A03", PID, PV1, kind="ADT")))] == ["A03"]


def test_what_was_typed_in_at_admission_is_no_measurement() -> None:
    items = decode(adt("A08", PID, PV1, obx("188740^MDC_LEN_BODY_ACTUAL^MDC", "0", "263441^MDC_DIM_CENTI_M^MDC")))
    assert readings(items) == []


@pytest.mark.parametrize("kind", ["ADT^A31", "ADT^A60^X", "MDM^T02", "SIU^S12", "ZZZ", "ADT"])
def test_types_that_are_not_used_are_told_and_accepted(kind: str) -> None:
    items = decode(adt("", PID, PV1, kind=kind))
    assert [reason for reason, _ in rejects(items)] == [f"message type {kind[:7]}{'^' * ('^' not in kind)} is not used"]
    assert "MSA|AA|ID" in replies(items)[0]


def test_a_movement_without_patient_and_place_is_rejected() -> None:
    items = decode(adt("A01", "EVN|A01"))
    assert [reason for reason, _ in rejects(items)] == ["patient message without PID and PV1"]


def test_names_never_come_out() -> None:
    name = "SECRETNAME"
    pid = f"PID|1|{name and ''}|P1^^^HIS^MR|{name}^X|{name}^{name}^{name}|{name}|19700101|F|{name}||{name}"
    shown = ""
    for kind in ("ADT^A01", "ADT^A40", "ADT^A99", "ORU^R01", "ORU^R40", "QRY^R02"):
        items = decode(framed(message(pid, PV1, f"NK1|1|{name}", obx("147842^^MDC", "60"), header=msh(kind))))
        shown += json.dumps([shape(item) for item in items]) + "".join(replies(items))
    assert name not in shown
    assert '"P1"' in shown


@pytest.mark.parametrize(
    ("query", "answer", "segments", "tag"),
    [
        ("QRY^R02", "ORF^R04", ["QRD|20250401100000|R|I|Q7||||P1|RES", "QRF|MON"], "QAK|Q7|NF"),
        ("QRY^A19^QRY_A19", "ADR^A19", ["QRD|20250401100000|R|I|Q8||||P1|DEM"], "QAK|Q8|NF"),
        ("QBP^Q22^QBP_Q21", "RSP^K22^RSP_K21", ["QPD|Q22^Find^HL7|T9|@PID.3.1^P1"], "QAK|T9|NF|Q22^Find^HL7"),
    ],
)
def test_queries_are_answered_with_no_data_under_their_own_identifier(
    query: str, answer: str, segments: list[str], tag: str
) -> None:
    (reply,) = decode(framed(message(*segments, header=msh(query, "ASK1"))))
    assert reply.data[:1] == b"\x0b"
    assert reply.data[-2:] == b"\x1c\r"
    parsed = hl7.parse(reply.data[1:-2])
    assert str(parsed.segment("MSH")(9)) == answer
    assert str(parsed.segment("MSA")) == "MSA|AA|ASK1"
    assert [str(segment) for segment in parsed[2:]] == [tag, *segments]
