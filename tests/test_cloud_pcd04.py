"""The PCD-04 message: built, read back by the HL7 driver and by another reader, compared."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import hl7
import pytest
from buffer_rig import KEK, FakeClock, Rig
from hypothesis import assume, given
from hypothesis import strategies as st

from cloud_sync import pcd04
from drivers.hl7 import tokens
from drivers.hl7.decoder import Hl7
from edge_agent import config_cloud, records
from edge_agent.buffer import Reader

IDENTITY = "gw-1/0b9c3f9e-8a55-4c8e-b3a3-1b1b3d2c0001/4711"
AT_NS = 1_700_000_000_250_000_000
FACETS = {
    "phase": "MDC_ATTR_EVENT_PHASE",
    "state": "MDC_ATTR_ALARM_STATE",
    "inactivation": "MDC_ATTR_ALARM_INACTIVATION_STATE",
    "type": "MDC_ATTR_ALERT_TYPE",
    "source": "MDC_ATTR_ALERT_SOURCE",
    "text": "MDC_ATTR_ALERT_TEXT",
}


class Watched(NamedTuple):
    """What a condition watches, and what its message must call the event."""

    condition: str
    vital: str
    limit: str
    value: float | None
    event: str
    abnormal: str


WATCHED = (
    Watched("spo2_low", "spo2", "below 90", 82.0, "MDC_EVT_LO_VAL_LT_LIM", "L"),
    Watched("spo2_desaturation", "spo2", "below 80", 71.5, "MDC_EVT_DESAT", "L"),
    Watched("heart_rate_high", "heart_rate", "above 120", 151.0, "MDC_EVT_HI_VAL_GT_LIM", "H"),
    Watched("apnoea", "resp_rate", "below 1", 0.0, "MDC_EVT_APNEA", "L"),
    Watched("no_breath", "resp_rate", "below 1", 0.0, "MDC_EVT_APNEA", "L"),
    Watched("temp_limits", "temp", "outside 36 39", 39.5, "MDC_EVT_HI_VAL_GT_LIM", "H"),
    Watched("temp_limits", "temp", "outside 36 39", 35.9, "MDC_EVT_LO_VAL_LT_LIM", "L"),
    Watched("temp_limits", "temp", "outside 36 39", 36.1, "MDC_EVT_LO_VAL_LT_LIM", "L"),  # come back, at the end
    Watched("temp_limits", "temp", "outside 36 39", None, "MDC_EVT_ALARM", "A"),
    Watched("battery_low", "battery", "below 20", 10.0, "MDC_EVT_BATT_LO", "L"),
    Watched("news2_high", "news2", "score_above 6", 9.0, "MDC_EVT_ALARM", "A"),
    Watched("spo2_stale", "spo2", "silent 30", None, "MDC_EVT_ALARM", "A"),
    Watched("device_alarm:x", "", "", None, "MDC_EVT_ALARM", "A"),
)
PHASES = {
    "start": "start", "restore": "continue", "reminder": "continue", "escalate": "escalate",
    "deescalate": "deescalate", "acknowledge": "update", "latch": "update", "return": "update", "end": "end",
    "reset": "end",
}  # fmt: skip
STATES = {"Off": "inactive", "On": "active", "Latch": "latched", "Ack": "active"}
TYPES = {"physiological": "SP", "technical": "ST", "advisory": "SA"}

hostile = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [
                "|", "^", "~", "\\", "&", "\r", "\n", "\r\n", "\x0b", "\x1c\r", "\x1b", "\\X0D\\", "\\E\\", "\\.br\\",
                "\rMSH|^~\\&|", "\rOBX|1|ST|x^MDC_ATTR_ALARM_PRIORITY^MDC||PN", "MDC_EVT_APNEA", "SpO₂ 🫀", '""', "  ",
            ]
        ),
    ),
    max_size=60,
).map("".join)  # fmt: skip


def alarm_event(watched: Watched = WATCHED[0], **other: object) -> records.AlarmEvent:
    fields = {
        "alert_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "condition": watched.condition, "kind": "physiological",
        "priority": "medium", "event": "start", "state": "On", "at_ns": 5, "text": "SpO2 low", "vital": watched.vital,
        "value": watched.value, "limit": watched.limit, "source": "hl7@mllp-listen://0.0.0.0:2575",
    }  # fmt: skip
    return records.AlarmEvent(**{**fields, **other})  # type: ignore[arg-type]


def built(event: records.AlarmEvent, late_s: float = 0.0, **other: object) -> bytes:
    fields = {"identity": IDENTITY, "gateway": "gw-1", "utc_ns": AT_NS, "bed": "ICU-3", "patient": "MRN-1"}
    alert = pcd04.Alert(event, **{**fields, **other})  # type: ignore[arg-type]
    return pcd04.message(alert, pcd04.Sender(), AT_NS + 10**9, late_s)


def decoded(message: bytes) -> records.DeviceAlarm:
    """What our own driver makes of the message; it must be one alarm, and acknowledged as MSH-15 asks."""
    alarm, answer = Hl7().feed(records.Chunk(7, b"\x0b" + message + b"\x1c\r"))
    assert isinstance(alarm, records.DeviceAlarm)
    assert isinstance(answer, records.Reply)
    assert f"MSA|CA|{pcd04.control_id(IDENTITY)}\r".encode() in answer.data
    return alarm


def one_line(text: str) -> str:
    shown = "".join(" " if ord(letter) < 32 or 127 <= ord(letter) < 160 else letter for letter in text)
    return shown.strip()[:500].strip()


@pytest.mark.alm("ALM-33")
@given(
    watched=st.sampled_from(WATCHED),
    event=st.sampled_from(sorted(PHASES)),
    state=st.sampled_from(sorted(STATES)),
    kind=st.sampled_from(sorted(TYPES)),
    priority=st.sampled_from(["high", "medium", "low", "none"]),
    paused=st.sampled_from(["", "audio_paused", "audio_off", "alarm_paused", "alarm_off"]),
    alert_id=st.uuids().map(str),
    text=hostile,
    source=hostile,
    patient=hostile.map(lambda text: text[:40]),
    bed=st.sampled_from(["ICU-3", "Bett 7/Süd", "A|B^C&D~E\\F", ""]),
    at_ns=st.integers(0, 4_000_000_000_000_000_000),
)
def test_a_message_read_back_says_what_went_in(
    watched: Watched, event: str, state: str, kind: str, priority: str, paused: str, alert_id: str, text: str,
    source: str, patient: str, bed: str, at_ns: int,
) -> None:  # fmt: skip
    named = one_line(patient)
    said = f"{text}\n{one_line(text)}\n{source}\n{one_line(source)}\n{alert_id}^gw-1"
    assume(len(named) < 4 or not re.search(re.escape(named), said, re.IGNORECASE))  # the driver takes that out
    sent = alarm_event(
        watched, event=event, state=state, kind=kind, priority=priority, inactivation=paused, alert_id=alert_id,
        text=text, source=source, detail=text, operator=source,
    )  # fmt: skip
    message = built(sent, utc_ns=at_ns, bed=bed, patient=patient)
    alarm = decoded(message)
    acknowledged = state == "Ack" and not paused
    assert alarm.priority == priority
    assert alarm.phase == PHASES[event]
    assert alarm.state == STATES[state]
    assert alarm.inactivation == ("alert-acknowledged" if acknowledged else paused.replace("_", "-") or "enabled")
    assert alarm.type == TYPES[kind]
    assert alarm.event == watched.event
    assert alarm.text == (one_line(text) or watched.condition)
    assert alarm.source == (one_line(source) or "gw-1")
    assert alarm.alert_id == f"{alert_id}^gw-1"
    assert tokens.unescape(tokens.component(alarm.location, 3)) == bed
    assert tokens.unescape(alarm.subject) == ("" if one_line(patient) == '""' else one_line(patient))
    assert alarm.level == ""
    assert alarm.device_time is not None
    assert datetime.fromisoformat(alarm.device_time) == datetime.fromtimestamp(at_ns // 10**6 / 1e3, UTC)
    _read_by_another(message, alarm)


def _read_by_another(message: bytes, alarm: records.DeviceAlarm) -> None:
    """The hl7 package finds the same facets, and no segment that text has smuggled in."""
    parsed = hl7.parse(message.decode())
    names = [str(segment[0]) for segment in parsed]
    assert names[:4] == ["MSH", "PID", "PV1", "OBR"]
    assert set(names[4:]) == {"OBX"}
    rows = {str(row[3][0][1]): row for row in parsed.segments("OBX")}
    for field, refid in FACETS.items():
        value = parsed.unescape(str(rows[refid][5]))
        shown = getattr(alarm, field)
        assert value == {"deescalate": "de-escalate"}.get(shown, shown), field
    assert [str(row[1]) for row in parsed.segments("OBX")] == [str(n + 1) for n in range(len(rows))]
    assert str(parsed["OBR"][0][4]) == "196616^MDC_EVT_ALARM^MDC"


@pytest.mark.parametrize("watched", WATCHED, ids=lambda watched: f"{watched.condition}-{watched.value}")
def test_the_value_comes_with_code_unit_limit_and_flags(watched: Watched) -> None:
    parsed = hl7.parse(built(alarm_event(watched, priority="high")).decode())
    rows = {str(row[3][0][1]): row for row in parsed.segments("OBX")}
    assert str(rows[watched.event][8]) == f"{watched.abnormal}~PH~SP"
    assert str(rows[watched.event][14]) == "20231114221320.250+0000"
    numbers = [row for row in parsed.segments("OBX") if str(row[2]) == "NM"]
    shown = [tuple(str(row[field]) for field in (3, 5, 6, 7)) for row in numbers]
    spo2, percent = "150456^MDC_PULS_OXIM_SAT_O2^MDC", "262688^MDC_DIM_PERCENT^MDC"
    expected = {
        "spo2_low": (spo2, "82", percent, ">90"),
        "spo2_desaturation": (spo2, "71.5", percent, ">80"),
        "heart_rate_high": ("147842^MDC_ECG_HEART_RATE^MDC", "151", "264864^MDC_DIM_BEAT_PER_MIN^MDC", "<120"),
        "apnoea": ("151562^MDC_RESP_RATE^MDC", "0", "264928^MDC_DIM_RESP_PER_MIN^MDC", ">1"),
        "temp_limits": ("150344^MDC_TEMP^MDC", f"{watched.value}", "268192^MDC_DIM_DEGC^MDC", "36-39"),
        "battery_low": ("67996^MDC_ATTR_VAL_BATT_CHARGE^MDC", "10", percent, ">20"),
        "news2_high": ("news2^news2 score^L", "9", "", "<6"),
    }.get(watched.condition.replace("no_breath", "apnoea"))
    assert shown == ([] if watched.value is None else [expected])


def test_an_end_is_normal_and_names_its_parent() -> None:
    started, ended = (
        hl7.parse(built(alarm_event(event=event, state=state)).decode())
        for event, state in (("start", "On"), ("end", "Off"))
    )
    name = str(started["OBR"][0][3])
    assert name == "6f9619ff-8b86-4d01-b42d-00cf4fc964ff^gw-1"
    assert str(ended["OBR"][0][3]) == name
    assert str(started["OBR"][0][29] if len(started["OBR"][0]) > 29 else "") == ""
    assert str(ended["OBR"][0][29]) == "^6f9619ff-8b86-4d01-b42d-00cf4fc964ff&gw-1"
    assert str(ended.segments("OBX")[1][8]) == "N~PM~SP"


@pytest.mark.parametrize(("state", "phase"), [("On", "update"), ("Off", "end")])
def test_an_event_that_no_table_lists_follows_its_state(state: str, phase: str) -> None:
    assert decoded(built(alarm_event(event="something new", state=state))).phase == phase


def test_the_header_is_what_the_profile_asks() -> None:
    sender = pcd04.Sender("EDGE|1", "St. Anna", "AM", "IT")
    alert = pcd04.Alert(alarm_event(), IDENTITY, "gw-1", AT_NS)
    head = pcd04.message(alert, sender, AT_NS).decode().split("\r")[0].split("|")
    assert head[2:6] == ["EDGE\\F\\1", "St. Anna", "AM", "IT"]
    assert head[6] == "20231114221320.250+0000"
    assert head[8] == "ORU^R40^ORU_R40"
    assert head[10:12] == ["P", "2.6"]
    assert head[14:16] == ["AL", "NE"]
    assert head[17] == "UNICODE UTF-8"
    assert head[20] == "IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.4.4^ISO"


def test_a_copy_has_the_control_identifier_of_the_record_and_no_other_has_it() -> None:
    names = {pcd04.control_id(f"gw-1/{instance}/{n}") for instance in ("a", "b") for n in range(1000)}
    assert len(names) == 2000
    assert all(len(name) == 20 and name.isalnum() and name.isascii() for name in names)
    first, again = built(alarm_event()), built(alarm_event(), late_s=pcd04.LATE_S + 1)
    assert first.split(b"|")[9] == again.split(b"|")[9] == pcd04.control_id(IDENTITY).encode()


def test_what_is_late_says_so_and_is_still_the_same_alarm() -> None:
    late = built(alarm_event(), late_s=1800.4)
    assert b"\rNTE|1|L|sent 1800 s after the event\r" in late
    assert b"NTE" not in built(alarm_event(), late_s=pcd04.LATE_S)
    assert decoded(late) == decoded(built(alarm_event()))


@pytest.mark.parametrize(
    ("location", "field"), [("ICU^^3&x", "ICU^^3&x"), ("ICU|1~2^^3\r\nOBX|9", "ICU\\F\\1\\R\\2^^3  OBX\\F\\9")]
)
def test_a_configured_location_stands_as_it_is_but_breaks_nothing(location: str, field: str) -> None:
    assert decoded(built(alarm_event(), location=location)).location == field


def test_a_number_has_no_exponent_and_what_is_none_is_left_out() -> None:
    assert b"|0.0000001|" in built(alarm_event(value=1e-7))
    assert b"|NM|" not in built(alarm_event(value=float("nan")))
    assert b"|NM|" not in built(alarm_event(vital="a|b"))


def test_only_alarms_of_patients_leave_unless_technical_ones_are_asked_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    try:
        technical = alarm_event(kind="technical", alert_id="t-1", condition="source_lost", vital="", limit="")
        pause = alarm_event(alert_id="", event="audio_pause", state="Off")
        patient = records.PatientEvent("A01", "MRN-1", "ICU^^3", 6)
        rig.commit(*(records.Entry("ICU-3", "s", "MRN-1", one) for one in (alarm_event(), technical, pause, patient)))
        (block,) = Reader(tmp_path, KEK).read("alerts", None)
    finally:
        rig.close()
    for wanted, kinds in ((False, ["SP"]), (True, ["SP", "ST"])):
        settings = config_cloud.AlertManager(link="mllp://h:1", technical=wanted)
        found = pcd04.AlertEncoder("gw-1", settings, {"ICU-3": "ICU^^3"}).block(block)
        alarms = [decoded_only(message.value) for message in found]
        assert [alarm.type for alarm in alarms] == kinds
        assert {alarm.location for alarm in alarms} == {"ICU^^3"}
        assert found[0].dedup == f"gw-1/{block.instance}/1"
        assert dict(found[0].headers)[pcd04.CONTROL_HEADER] == found[0].value.split(b"|")[9]


def decoded_only(message: bytes) -> records.DeviceAlarm:
    alarm = Hl7(acknowledge=False).feed(records.Chunk(7, b"\x0b" + message + b"\x1c\r"))[0]
    assert isinstance(alarm, records.DeviceAlarm)
    return alarm


@pytest.mark.parametrize("other_boot", [False, True])
def test_a_manager_that_is_new_does_not_hear_of_yesterday(tmp_path: Path, other_boot: bool) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock)
    reader = Reader(tmp_path, KEK)
    try:
        encoder = pcd04.AlertEncoder("gw-1", config_cloud.AlertManager(link="mllp://h:1"), {}, clock)
        assert encoder.begin_at(reader) is None
        rig.commit(records.Entry("ICU-3", "s", "", alarm_event(at_ns=clock.monotonic_ns())))
        assert encoder.begin_at(reader) is None, "what is fresh is sent"
        rig.commit(records.Entry("ICU-3", "s", "", alarm_event(at_ns=clock.monotonic_ns())))
        if other_boot:
            rig.close()
            clock.boot_id = b"C" * 16  # the monotonic clock of another boot says nothing about the age
            clock.utc_step_ns += 1000 * 10**9
            rig = Rig(tmp_path, clock=clock)
        else:
            clock.mono_step_ns += 1000 * 10**9
        old = encoder.begin_at(reader)
        assert old is not None and old.block == 2
        rig.commit(records.Entry("ICU-3", "s", "", alarm_event(at_ns=clock.monotonic_ns())))
        assert encoder.begin_at(reader) == old
        (fresh,) = reader.read("alerts", old)
        (late, *_) = reader.read("alerts", None)
        assert b"NTE|" in encoder.block(late)[0].value
        assert b"NTE|" not in encoder.block(fresh)[0].value
    finally:
        reader.close()
        rig.close()
