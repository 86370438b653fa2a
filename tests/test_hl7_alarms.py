"""Alarms that devices send over HL7: PCD-04 facets, watchdogs, Philips alarm texts."""

from __future__ import annotations

import random

import pytest
from hl7_messages import HEART_RATE, decode, framed, message, msh, obx, readings, rejects, replies, vitals

from edge_agent.records import DeviceAlarm, DeviceStatus

FACETS = {
    "phase": "68481^MDC_ATTR_EVENT_PHASE^MDC",
    "state": "68482^MDC_ATTR_ALARM_STATE^MDC",
    "inactivation": "68483^MDC_ATTR_ALARM_INACTIVATION_STATE^MDC",
    "priority": "68484^MDC_ATTR_ALARM_PRIORITY^MDC",
    "type": "68485^MDC_ATTR_ALERT_TYPE^MDC",
    "source": "68480^MDC_ATTR_ALERT_SOURCE^MDC",
    "text": "68546^MDC_ATTR_ALERT_TEXT^MDC",
}
OLDER = {**FACETS, "phase": "68165^MDC_ATTR_EVENT_PHASE^MDC", "state": "68166^MDC_ATTR_ALERT_STATE^MDC"}
EVENT = obx("196674^MDC_EVT_LO_VAL_LT_LIM^MDC", "SpO2 low", kind="ST")
OBR = "OBR|1||EV1^SRC|196616^MDC_EVT_ALARM^MDC|||20250401101500"


def rows(names: dict[str, str] = FACETS, **sent: str) -> list[str]:
    return [obx(names[name], value, kind="ST") for name, value in sent.items()]


def r40(*segments: str, control: str = "C1") -> bytes:
    return framed(message("PID|||P1", "PV1||I|ICU^^3", *segments, header=msh("ORU^R40^ORU_R40", control, "AL", "NE")))


def alarms(items: list) -> list[DeviceAlarm]:
    return [item for item in items if isinstance(item, DeviceAlarm)]


def one(*segments: str) -> DeviceAlarm:
    (found,) = alarms(decode(r40(*segments)))
    return found


FULL = {
    "phase": "start",
    "state": "active",
    "inactivation": "enabled",
    "priority": "PH",
    "type": "SP",
    "source": "BED3",
}


def test_an_alarm_carries_all_its_facets() -> None:
    assert one(OBR, EVENT, *rows(**FULL)) == DeviceAlarm(
        "high",
        "start",
        "SpO2 low",
        0,
        "MDC_EVT_LO_VAL_LT_LIM",
        "active",
        "enabled",
        "SP",
        "",
        "EV1^SRC",
        "2025-04-01T10:15:00+02:00",
        "ICU^^3",
        "P1",
        "BED3",
    )


@pytest.mark.parametrize("names", [FACETS, OLDER])
@pytest.mark.parametrize("seed", range(5))
def test_facets_are_found_by_name_in_both_generations_and_any_order(names: dict[str, str], seed: int) -> None:
    shuffled = [EVENT, *rows(names, **FULL)]
    random.Random(seed).shuffle(shuffled)
    assert one(OBR, *shuffled) == one(OBR, EVENT, *rows(**FULL))


@pytest.mark.parametrize(
    ("sent", "priority", "level"),
    [
        ("PH", "high", ""),
        ("PM", "medium", ""),
        ("pl", "low", ""),
        ("PN", "none", ""),
        ("PI", "none", ""),
        ("P9", "medium", "P9"),
        ("", "medium", ""),
    ],
)
def test_priorities_and_one_that_cannot_be_read_is_not_silenced(sent: str, priority: str, level: str) -> None:
    found = one(OBR, EVENT, *rows(phase="start", priority=sent))
    assert (found.priority, found.level) == (priority, level)


def test_priority_and_type_fall_back_to_the_flags() -> None:
    found = one(OBR, obx("0^MDCX_EVT_CHECK^MDC", "Check cuff", kind="ST", flags="A~PL~SA"))
    assert (found.priority, found.type, found.text, found.phase) == ("low", "SA", "Check cuff", "start")


@pytest.mark.parametrize(
    ("phase", "state", "expected"),
    [
        ("start", "active", "start"),
        ("de-escalate", "active", "deescalate"),
        ("END", "inactive", "end"),
        ("reset", "", "end"),
        ("tpoint", "", "tpoint"),
        ("", "inactive", "end"),
        ("", "active", "start"),
        ("", "", "start"),
    ],
)
def test_phases(phase: str, state: str, expected: str) -> None:
    assert one(OBR, EVENT, *rows(phase=phase, state=state)).phase == expected


def test_an_event_named_in_the_value_gives_event_and_text() -> None:
    found = one(OBR, obx("196616^MDC_EVT_ALARM^MDC", "196680^MDC_EVT_LEAD_OFF^MDC", kind="CWE", flags="A~PL~ST"))
    assert (found.event, found.text, found.type) == ("MDC_EVT_LEAD_OFF", "MDC_EVT_LEAD_OFF", "ST")


def test_an_alert_text_is_preferred_and_shown_on_one_line() -> None:
    found = one(OBR, EVENT, *rows(text="SpO2 \\T\\ pulse\\.br\\low\x1b[31m"))
    assert found.text == "SpO2 & pulse low [31m"


@pytest.mark.parametrize(
    ("obr", "alert_id"),
    [
        (OBR, "EV1^SRC"),
        ("OBR|1||^^|196616^MDC_EVT_ALARM^MDC|||20250401101500" + "|" * 22 + "PARENT", "PARENT"),
        ("OBR|1|PL7||196616", "PL7"),
    ],
)
def test_the_alert_id_is_that_of_the_order_or_of_its_parent(obr: str, alert_id: str) -> None:
    assert one(obr, EVENT).alert_id == alert_id


def test_several_alarms_in_one_message_are_kept_apart() -> None:
    items = decode(r40(OBR, EVENT, *rows(priority="PH"), OBR.replace("EV1", "EV2"), EVENT, *rows(priority="PL")))
    assert [(found.alert_id, found.priority) for found in alarms(items)] == [("EV1^SRC", "high"), ("EV2^SRC", "low")]


def test_the_value_beside_an_alarm_is_no_new_measurement() -> None:
    assert readings(decode(r40(OBR, EVENT, obx("150456^MDC_PULS_OXIM_SAT_O2^MDC", "84")))) == []


@pytest.mark.parametrize(
    ("timeout", "detail"),
    [
        ("5|264320^MDC_DIM_SEC^MDC", "timeout 5 s"),
        ("7.5|", "timeout 7.5 s"),
        ("x|", ""),
        ("0|", ""),
        ("5|264352^MDC_DIM_MIN^MDC", ""),
    ],
)
def test_a_watchdog_is_a_heartbeat_and_no_alarm(timeout: str, detail: str) -> None:
    value, unit = timeout.split("|")
    watchdog = [obx("196614^MDC_EVT_ACTIVE^MDC", "continue", kind="ST"), *rows(phase="start", priority="PN")]
    items = decode(r40(OBR, *watchdog, obx("67860^MDC_ATTR_CONFIRM_TIMEOUT^MDC", value, unit)))
    assert alarms(items) == []
    assert items[0] == DeviceStatus("heartbeat", "active", 0, detail, "ICU^^3")
    assert alarms(decode(r40(OBR, obx("196614^^MDC", "continue", kind="ST")))) == []


def test_an_alarm_group_in_an_observation_message_is_an_alarm_and_the_rest_are_observations() -> None:
    vital = ["OBR|2|||V|||20250401101600", obx(HEART_RATE, "60")]
    items = decode(framed(message("PID|||P1", "PV1||I|ICU^^3", OBR, EVENT, *rows(**FULL), *vital)))
    assert [found.text for found in alarms(items)] == ["SpO2 low"]
    assert readings(items) == [("heart_rate", 60.0, "valid")]
    assert [item.location for item in items[:2]] == ["ICU^^3", "ICU^^3"]


def test_rows_without_an_order_are_not_lost_because_an_alarm_is_mentioned() -> None:
    items = decode(
        framed(message("PV1||I|ICU^^3", obx(HEART_RATE, "60"), obx("196616^MDC_EVT_ALARM^MDC", "x", kind="ST")))
    )
    assert readings(items) == [("heart_rate", 60.0, "valid")]
    assert items[0].location == "ICU^^3"


@pytest.mark.parametrize("segments", [(), ("OBR|1",), (OBR, obx("1^NOTHING^X", "5"))])
def test_an_alarm_message_without_alarm_is_rejected_and_still_answered(segments: tuple[str, ...]) -> None:
    items = decode(r40(*segments))
    assert alarms(items) == []
    assert len(rejects(items)) == 1
    assert "MSA|CA|C1" in replies(items)[0]


@pytest.mark.parametrize("kind", ["ACK^R40^ACK", "ORA^R41^ORA_R41", "ACK", "MCF^R40"])
def test_acknowledgements_cause_nothing(kind: str) -> None:
    assert (
        decode(framed(message("MSA|CA|C9", OBR, EVENT, obx(HEART_RATE, "60"), header=msh(kind, "C2", "AL", "AL"))))
        == []
    )


@pytest.mark.parametrize(
    ("grade", "priority", "level", "kind"),
    [
        ("1^Red Alarm", "high", "red", "SP"),
        ("2^Yellow Alarm", "medium", "yellow", "SP"),
        ("5^HardInop", "medium", "HardInop", "ST"),
        ("4^SevereInop", "high", "SevereInop", "ST"),
        ("6^SoftInop", "low", "SoftInop", "ST"),
        ("7^YellowInop", "medium", "yellow", "ST"),
        ("9^", "medium", "", "SP"),
    ],
)
def test_philips_alarm_texts(grade: str, priority: str, level: str, kind: str) -> None:
    items = decode(vitals(obx(f"{grade}^MDIL-ALERT", "SpO2 Low, SpO2=79 %", kind="TX", status="F")))
    (found,) = alarms(items)
    assert (found.priority, found.level, found.type, found.text) == (priority, level, kind, "SpO2 Low, SpO2=79 %")
    assert (found.phase, found.alert_id, found.location) == ("start", "MDIL-ALERT:SpO2 Low", "ICU^^3")


def test_a_philips_alarm_text_that_is_taken_back_ends_the_alarm() -> None:
    items = decode(vitals(obx("2^Yellow Alarm^MDIL-ALERT", "HR High, HR=131", kind="TX", status="X")))
    assert [(found.phase, found.alert_id) for found in alarms(items)] == [("end", "MDIL-ALERT:HR High")]


@pytest.mark.parametrize(("sent", "read"), [("MRN-4711", "MRN-4711"), ("M\\T\\4711", "M&4711"), ("Ä-4711", "Ä-4711")])
def test_an_alarm_s_text_and_name_do_not_repeat_the_patient(sent: str, read: str) -> None:
    header = msh("ORU^R40^ORU_R40", "C1", "AL", "NE", "UNICODE UTF-8")
    texts = rows(**{**FULL, "source": f"pump {read.lower()}"}, text=f"{sent}: line of {read.lower()} is blocked")
    order = f"OBR|1||{sent}.9^SRC|196616^MDC_EVT_ALARM^MDC|||20250401101500"
    (found,) = alarms(decode(framed(message(f"PID|||{sent}", "PV1||I|ICU^^3", order, EVENT, *texts, header=header))))
    assert (found.text, found.source) == ("[patient]: line of [patient] is blocked", "pump [patient]")
    assert (found.alert_id, found.subject) == ("[patient].9^SRC", sent)
    grade = obx("2^Yellow Alarm^MDIL-ALERT", f"P1: SpO2 of {read} 81", kind="TX", status="F")
    plain = message(f"PID|||{sent}", "OBR|1", grade, header=msh(charset="UNICODE UTF-8"))
    (found,) = alarms(decode(framed(plain)))
    assert (found.text, found.alert_id) == ("P1: SpO2 of [patient] 81", "MDIL-ALERT:P1: SpO2 of [patient] 81")
    (found,) = alarms(decode(vitals(grade)))
    assert found.text == f"P1: SpO2 of {read} 81", "P1: an identifier so short would be found in every number"
