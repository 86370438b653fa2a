"""Alarms that devices raise themselves, from HL7 bytes to conditions with the device's priority and text."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from capture_player import CAPTURES, driver_of
from hl7_messages import framed, message, msh, obx, vitals
from watch_rig import BED, NS, Bedside, built_in, device, low, preset

from drivers.hl7.decoder import Hl7
from edge_agent.presets import EXPIRES_S
from edge_agent.records import Chunk, DeviceAlarm
from edge_agent.watch.devices import DEVICE_ALARMS_PER_BED
from edge_agent.watch.room import SETTLE_S


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


def test_device_alarm_keeps_the_devices_grade_and_text(prompt: Bedside) -> None:
    (change,) = prompt.tell(device(0, "start", "medium", event="MDC_EVT_X"))
    assert (change.condition, change.priority, change.text) == ("device_alarm:7", "medium", "VTACH")
    assert prompt.tell(device(1, "continue", "medium", event="MDC_EVT_X")) == []
    (change,) = prompt.tell(device(2, "escalate", "high"))
    assert change.present and change.priority == "high" and change.condition == "device_alarm:7"
    prompt.tell(device(3, "end"))
    assert prompt.present == set()
    assert prompt.tell(device(4, "end")) == []


def test_technical_device_alarm_has_a_row_of_its_own_and_an_inactive_one_is_none(prompt: Bedside) -> None:
    prompt.tell(device(0, "start", "low", "LEAD OFF", "8", type="ST"))
    prompt.tell(device(0, "update", "high", state="inactive", alert_id="9"))
    prompt.tell(device(0, "start", "none", alert_id="10"))
    assert prompt.present == {"device_technical:8"}


def test_device_alarms_end_behind_the_technical_condition_of_a_lost_device(prompt: Bedside) -> None:
    prompt.tell(device(0, "start"))
    prompt.state(1, "lost")
    assert prompt.log[1:] == [(1, "source_lost:mon", True), (1, "device_alarm:7", False)]


def test_a_storm_of_device_alarms_is_bounded_and_keeps_the_highest(prompt: Bedside) -> None:
    for number in range(DEVICE_ALARMS_PER_BED):
        prompt.tell(device(0, "start", "low", "x", str(number)))
    prompt.tell(device(1, "start", "high", "VF", "new"))
    prompt.tell(device(2, "start", "low", "x", "newer"))
    last = [change for change in prompt.changes if change.condition.startswith("device_alarm:more")]
    assert [(change.priority, change.text) for change in last] == [("high", "VF")]
    assert len(prompt.watch._beds[BED].device.trackers) <= DEVICE_ALARMS_PER_BED + 1


def test_a_lower_grade_of_the_device_is_told_too_and_the_same_words_are_not(prompt: Bedside) -> None:
    prompt.tell(device(0, "start", "high"))
    (change,) = prompt.tell(device(1, "deescalate", "low"))
    assert (change.present, change.priority, change.at_ns) == (True, "low", NS)
    (change,) = prompt.tell(device(2, "update", "low", "VTACH 140"))
    assert (change.text, change.source, change.detail) == ("VTACH 140", "mon", "")
    assert prompt.tell(device(3, "update", "low", "VTACH 140", event="MDC_EVT_X")) == []


def test_a_tpoint_neither_begins_nor_ends_an_alarm(prompt: Bedside) -> None:
    assert prompt.tell(device(0, "tpoint")) == []
    prompt.tell(device(1, "start"))
    assert prompt.tell(device(2, "tpoint", state="inactive")) == []
    assert prompt.tell(device(3, "tpoint", "low", "other")) == []
    assert prompt.present == {"device_alarm:7"}


@pytest.mark.parametrize("state", ["off", "inactive"])
def test_a_state_that_is_not_active_ends_the_alarm(prompt: Bedside, state: str) -> None:
    prompt.tell(device(0, "start", state="active"))
    (change,) = prompt.tell(device(1, "continue", state=state))
    assert (change.present, change.detail, change.value) == (False, "ended by the device", None)


def test_an_alarm_without_an_identifier_is_told_apart_by_event_and_source_or_by_its_text(prompt: Bedside) -> None:
    prompt.tell(device(0, "start", text="a", alert_id="", event="MDC_EVT_X", source="CH1"))
    prompt.tell(device(0, "start", text="b", alert_id="", event="MDC_EVT_X", source="CH2"))
    prompt.tell(device(0, "start", text="b", alert_id="", event="MDC_EVT_Y"))
    prompt.tell(device(0, "start", text="Leads off", alert_id=""))
    assert prompt.present == {
        "device_alarm:MDC_EVT_X/CH1", "device_alarm:MDC_EVT_X/CH2", "device_alarm:MDC_EVT_Y", "device_alarm:Leads off",
    }  # fmt: skip


def test_two_devices_of_a_bed_may_count_their_alarms_alike(prompt: Bedside) -> None:
    prompt.tell(device(0, "start"), "a")
    prompt.tell(device(0, "start", "low"), "b")
    assert prompt.present == {"device_alarm:7", "device_alarm:7@b"}
    prompt.tell(device(1, "end"), "a")
    assert prompt.present == {"device_alarm:7@b"}
    prompt.state(2, "lost", "b")
    assert prompt.present == {"source_lost:b"}


def test_a_lost_device_ends_only_its_own_alarms_and_speaks_again(prompt: Bedside) -> None:
    prompt.tell(device(0, "start"), "a")
    prompt.tell(device(0, "start", alert_id="8"), "b")
    prompt.state(1, "silent", "a")
    assert prompt.present == {"source_silent:a", "device_alarm:8"}
    assert prompt.changes[-1].detail == "no data"
    prompt.tell(device(2, "start"), "a")
    prompt.tick(2 + SETTLE_S)
    assert prompt.present == {"device_alarm:7", "device_alarm:8"}


def test_the_row_is_the_highest_grade_that_the_alarm_reaches(tmp_path: Path) -> None:
    rows = "".join(
        f'[[condition]]\nid = "mon_{grade}"\nkind = "physiological"\npresent = "device_alarm {grade}"\n'
        f'priority = "medium"\n' for grade in ("high", "medium")
    ) + '[[condition]]\nid = "device_alarm"\nenabled = false\n'  # fmt: skip
    bed = Bedside(preset(tmp_path, rows))
    for number, priority in enumerate(("low", "medium", "high")):
        bed.tell(device(number, "start", priority, alert_id=priority))
    assert bed.present == {"mon_medium:medium", "mon_high:high"}
    bed.tell(device(5, "deescalate", "low", alert_id="high"))
    assert bed.present == {"mon_medium:medium"}, "below every grade that is taken over"


def test_exactly_so_many_alarms_are_told_apart_and_the_shared_one_ends_with_the_last(prompt: Bedside) -> None:
    for number in range(DEVICE_ALARMS_PER_BED):
        prompt.tell(device(0, "start", "low", "x", str(number)))
    assert len(prompt.present) == DEVICE_ALARMS_PER_BED and "device_alarm:more" not in prompt.present
    prompt.tell(device(1, "start", "medium", "first", "one more"))
    prompt.tell(device(1, "start", "medium", "second", "two more"))
    assert len(prompt.present) == DEVICE_ALARMS_PER_BED + 1 and "device_alarm:more" in prompt.present
    assert prompt.changes[-1].text == "second", "of equals the newest is shown"
    for number in range(DEVICE_ALARMS_PER_BED):
        prompt.tell(device(2, "end", "low", "x", str(number)))
        assert bool(prompt.present) == (number < DEVICE_ALARMS_PER_BED - 1)


def text_alarm(at: float, text: str = "Desat, SpO2=79 %", phase: str = "start") -> DeviceAlarm:
    """As the hl7 driver gives it for a Philips alarm text."""
    label = f"MDIL-ALERT:{text.split(',')[0]}"
    return DeviceAlarm("high", phase, text, round(at * NS), type="SP", level="red", alert_id=label)


def test_a_text_without_an_end_lapses_when_it_is_not_repeated(prompt: Bedside) -> None:
    prompt.tell(text_alarm(0))
    prompt.tick_ns(round(EXPIRES_S * NS) - 1)
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}
    prompt.tick_ns(round(EXPIRES_S * NS))
    assert prompt.present == set() and prompt.changes[-1].detail == "not repeated"
    prompt.tell(text_alarm(200))
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}


def test_every_repetition_holds_a_text_up_anew(prompt: Bedside) -> None:
    for second in range(0, 600, 60):
        prompt.tell(text_alarm(second, f"Desat, SpO2={79 - second / 60:g} %"))
        prompt.tick(second + 59)
    assert [entry for entry in prompt.log if not entry[2]] == []
    prompt.tick_ns(540 * NS + round(EXPIRES_S * NS) - 1)
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}
    prompt.tick_ns(540 * NS + round(EXPIRES_S * NS))
    assert prompt.present == set()


def test_the_row_says_how_long_a_text_stands(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low() + '[[condition]]\nid = "device_alarm"\nexpires_s = 20\n'))
    bed.tell(text_alarm(0))
    bed.tick(19.9)
    assert bed.present
    bed.tick(20)
    assert not bed.present


def test_alarms_with_a_life_of_their_own_do_not_lapse(prompt: Bedside) -> None:
    prompt.tell(device(0, "start", alert_id="1", event="MDC_EVT_X"))
    prompt.tell(device(0, "start", alert_id="2", state="active"))
    prompt.tell(device(0, "start", alert_id="", state="active", event="MDC_EVT_Y"))
    prompt.tick(100_000)
    assert len(prompt.present) == 3
    assert prompt.watch.next_deadline() is None


def test_a_sender_that_ends_its_texts_is_believed(prompt: Bedside) -> None:
    prompt.tell(text_alarm(0, "Leads off"))
    prompt.tell(text_alarm(0, "Desat"))
    prompt.tell(text_alarm(1, "Leads off", "end"))
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}
    prompt.tell(text_alarm(2, "Desat"))
    prompt.tick(10_000)
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}, "its sender ends what it raises"
    prompt.tell(text_alarm(0, "Desat"), "other")
    prompt.tick(20_000)
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}, "another sender has not shown that it ends texts"


def test_nothing_lapses_after_a_new_patient_or_an_end(prompt: Bedside) -> None:
    prompt.tell(text_alarm(0))
    prompt.take(prompt.watch.new_patient(BED, NS))
    assert prompt.present == set() and prompt.changes[-1].detail == "new patient"
    assert prompt.watch.next_deadline() is None
    prompt.tell(text_alarm(50))
    prompt.tick(EXPIRES_S + 1)
    assert prompt.present == {"device_alarm:MDIL-ALERT:Desat"}
    prompt.tell(text_alarm(100, phase="end"))
    prompt.tick(1000)
    assert prompt.present == set() and prompt.watch.next_deadline() is None


# -- from bytes ------------------------------------------------------------------------------------------------------

FACETS = {
    "phase": ("68481^MDC_ATTR_EVENT_PHASE^MDC", "68165^MDC_ATTR_EVENT_PHASE^MDC"),
    "state": ("68482^MDC_ATTR_ALARM_STATE^MDC", "68166^MDC_ATTR_ALERT_STATE^MDC"),
    "priority": ("68484^MDC_ATTR_ALARM_PRIORITY^MDC", "68168^MDC_ATTR_ALERT_PRIORITY^MDC"),
    "type": ("68485^MDC_ATTR_ALERT_TYPE^MDC", "68169^MDC_ATTR_ALARM_TYPE^MDC"),
    "text": ("68546^MDC_ATTR_ALERT_TEXT^MDC", "68546^MDC_ATTR_ALARM_TEXT^MDC"),
}


def r40(generation: int, order: random.Random, control: str, **facets: str) -> bytes:
    rows = [obx("196674^MDC_EVT_LO_VAL_LT_LIM^MDC", "SpO2 low", kind="ST")]
    rows += [obx(FACETS[name][generation], value, kind="ST") for name, value in facets.items()]
    order.shuffle(rows)
    obr = "OBR|1||EV1^SRC|196616^MDC_EVT_ALARM^MDC|||20250401101500"
    header = msh("ORU^R40^ORU_R40", control, "AL", "NE")
    return framed(message("PID|||P1", "PV1||I|ICU^^3", obr, *rows, header=header))


def carry(bed: Bedside, decoder: Hl7, at: float, data: bytes) -> None:
    for item in decoder.feed(Chunk(round(at * NS), data)):
        if isinstance(item, DeviceAlarm):
            bed.tell(item)


@pytest.mark.parametrize(("generation", "seed"), list(itertools.product((0, 1), range(5))))
def test_an_r40_of_either_generation_comes_through_with_its_priority_and_text(generation: int, seed: int) -> None:
    bed, decoder, order = Bedside(built_in()["adult"]), Hl7(), random.Random(seed)
    steps = (
        (0, "1", {"phase": "start", "state": "active", "priority": "PM", "type": "SP", "text": "SpO2 87 < 90"}),
        (5, "2", {"phase": "escalate", "state": "active", "priority": "PH", "type": "SP", "text": "SpO2 79 < 90"}),
        (500, "3", {"phase": "end", "state": "inactive", "priority": "PH", "type": "SP"}),
    )
    for at, control, facets in steps:
        carry(bed, decoder, at, r40(generation, order, control, **facets))
        bed.tick(at + 400)
    assert [(c.at_ns / NS, c.condition, c.present, c.priority, c.text) for c in bed.changes[:2]] == [
        (0, "device_alarm:EV1^SRC", True, "medium", "SpO2 87 < 90"),
        (5, "device_alarm:EV1^SRC", True, "high", "SpO2 79 < 90"),
    ]
    assert [(c.at_ns / NS, c.present, c.detail) for c in bed.changes[2:]] == [(500, False, "ended by the device")]


def test_philips_alarm_and_inop_texts_come_and_go_with_the_export() -> None:
    bed, decoder = Bedside(built_in()["adult"]), Hl7()
    for second in range(0, 120, 60):
        carry(bed, decoder, second, vitals(
            obx("1^Red Alarm^MDIL-ALERT", f"Desat, SpO2={79 - second // 60} %", kind="TX", status="F"),
            obx("5^HardInop^MDIL-ALERT", "ECG Leads Off", kind="TX", status="F"),
        ))  # fmt: skip
        bed.tick(second + 59)
    assert bed.present == {"device_alarm:MDIL-ALERT:Desat", "device_technical:MDIL-ALERT:ECG Leads Off"}
    assert {(c.priority, c.text) for c in bed.changes} == {
        ("high", "Desat, SpO2=79 %"), ("high", "Desat, SpO2=78 %"), ("medium", "ECG Leads Off"),
    }  # fmt: skip
    bed.tick(60 + EXPIRES_S)
    assert bed.present == set()


@pytest.mark.parametrize(
    ("capture", "expected"),
    [("hl7.alarms.cap", {("high", "SpO2 low & falling"), ("medium", "MDC_EVT_LEAD_OFF"), ("low", "Check cuff")}),
     ("hl7.philips.cap", {("high", "Desat, SpO2=79 %"), ("medium", "HR High^, HR=131"), ("medium", "ECG Leads Off"),
                          ("low", "Battery Low")})],
)  # fmt: skip
def test_captures_come_through(capture: str, expected: set[tuple[str, str]]) -> None:
    bed = Bedside(built_in()["adult"])
    driver, recorded = driver_of(CAPTURES / capture)
    decoder = driver.decoder()
    for chunk in recorded.received():
        for item in decoder.feed(chunk):
            if isinstance(item, DeviceAlarm):
                bed.tell(item)
    assert {(str(c.priority), c.text) for c in bed.changes if c.present} == expected
