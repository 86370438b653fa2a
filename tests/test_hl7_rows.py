"""What the rows of an HL7 message mean: codes, units, missing values, places and times."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hl7_messages import (
    HEART_RATE,
    MMHG,
    PERCENT,
    SPO2,
    decode,
    framed,
    message,
    msh,
    obx,
    readings,
    rejects,
    vitals,
)
from hypothesis import given
from hypothesis import strategies as st

from drivers.hl7 import dialects, values
from drivers.hl7.decoder import Hl7
from edge_agent.records import DeviceStatus, Observation
from edge_agent.terms import TERMS, UNIT_CODES


def statuses(items: list) -> list[tuple[str, str]]:
    return [(item.state, item.detail) for item in items if isinstance(item, DeviceStatus)]


def only(row: str) -> tuple[str, float | None, str]:
    (found,) = readings(decode(vitals(row)))
    return found


@pytest.mark.parametrize("term", [term for term in TERMS if term.kind == "numeric"], ids=lambda term: term.name)
def test_every_numeric_of_the_vocabulary_is_known_by_number_identifier_and_unit(term) -> None:
    unit = f"{term.unit_code}^{term.unit_refid}^MDC" if term.unit_code else f"0^{term.unit_refid}^MDC"
    for code in (f"{term.mdc_code}^{term.refid}^MDC", f"^{term.refid}^MDC", f"{term.mdc_code}^^MDC"):
        assert only(obx(code, "12.5", unit)) == (term.name, 12.5, "valid")
        assert only(obx(code, "12.5", term.ucum)) == (term.name, 12.5, "valid")


@pytest.mark.parametrize(
    "text", ["", '""', "-100", "-100.0", "-1000", "-10000", "32767", "8388607", "8388607.00", "---", "--", "-?-"]
)
def test_what_means_no_value_is_never_a_number(text: str) -> None:
    name, value, validity = only(obx(SPO2, text, PERCENT))
    assert (name, value) == ("spo2", None)
    assert validity == ("invalid" if text == "-?-" else "not_available")


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "inf",
        "1_0",
        "0x10",
        "1e2",
        "97,5",
        "<90",
        ">95",
        "97%",
        "97 98",
        "97~98",
        "97^98",
        "\u0669\u0667",
        "9" * 30,
        "+-1",
        ".",
    ],
)
def test_what_is_not_plainly_a_number_is_invalid(text: str) -> None:
    assert only(obx(SPO2, text, PERCENT)) == ("spo2", None, "not_available" if text == "." else "invalid")


@pytest.mark.parametrize("kind", ["SN", "CWE", "NA", "FN"])
def test_a_structured_value_is_no_plain_number(kind: str) -> None:
    assert only(obx(SPO2, "97", PERCENT, kind=kind)) == ("spo2", None, "invalid")


@pytest.mark.parametrize(
    ("status", "validity"), [("X", "not_available"), ("D", "not_available"), ("N", "not_available"), ("W", "invalid")]
)
def test_a_row_without_result_gives_none_whatever_number_stands_there(status: str, validity: str) -> None:
    assert only(obx(SPO2, "97", PERCENT, status=status)) == ("spo2", None, validity)


@pytest.mark.parametrize("status", ["R", "F", "P", "C", ""])
def test_results_count(status: str) -> None:
    assert only(obx(SPO2, "97", PERCENT, status=status)) == ("spo2", 97.0, "valid")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("QUES", (97.0, "questionable")),
        ("INV", (None, "invalid")),
        ("NAV", (None, "not_available")),
        ("TEST", (None, "invalid")),
        ("DEMO~L", (None, "invalid")),
        ("L", (97.0, "valid")),
        ("H~QUES", (97.0, "questionable")),
    ],
)
def test_measurement_status_in_the_flags(flags: str, expected: tuple) -> None:
    assert only(obx(SPO2, "97", PERCENT, flags=flags))[1:] == expected


@given(st.text(alphabet="0123456789+-.eE_xX, nif\u0663<>%", max_size=30))
def test_a_number_is_what_it_spells_or_nothing(text: str) -> None:
    value, validity = values.number(text)
    assert (value is None) == (validity != "valid")
    if value is not None:
        assert Decimal(value) == Decimal(float(Decimal(text.strip(" "))))
        assert set(text) <= set("0123456789+-. ")
        assert value not in values.NO_VALUE


@pytest.mark.parametrize(("code", "name", "mismatch"), [
    ("150457^MDC_PULS_OXIM_PULS_RATE^MDC", "pulse_rate", True),
    ("150458^MDC_PULS_OXIM_PERF_INDEX^MDC", "perfusion_index", True),
    ("150301^MDC_PRESS_CUFF_SYS^MDC", "nibp_sys", False),
    ("150301^MDC_PRESS_BLD_NONINV_SYS^MDC", "nibp_sys", True),
    ("150017^MDC_PRESS_BLD_NONINV_SYS^MDC", "nibp_sys", True),
    ("150021^MDC_PRESS_BLD_NONINV_SYS^MDC", "nibp_sys", False),
    ("150031^MDC_PRESS_BLD_NONINV_SYS^MDC", "nibp_sys", True),
    ("150456^MDC_ECG_HEART_RATE^MDC", "heart_rate", True),
    ("147842^MDC_SOMETHING_NEW^MDC", "heart_rate", True),
    ("147842^Herzfrequenz^MDC", "heart_rate", False),
    ("0^MDC_ECG_HEART_RATE^MDC", "heart_rate", False),
    ("77^MDC_ECG_HEART_RATE^99VENDOR", "heart_rate", False),
    ("8867-4^Heart rate^LN", "heart_rate", False),
    ("8867-4", "heart_rate", False),
    ("59408-5^^LOINC", "spo2", False),
    ("HR1^mine^99OWN^8867-4^Heart rate^LN", "heart_rate", False),
    ("147842^^99OWN^150456^MDC_PULS_OXIM_SAT_O2^MDC", "spo2", False),
    ("0002-4182^HR^MDIL", "heart_rate", False),
    ("0002-4A05^NBPs^MDIL", "nibp_sys", False),
    ("0002-5000^Resp^MDIL", "resp_rate", False),
    ("0002-4822^Pulse^MDIL", "pulse_rate", False),
    ("001000^VITAL HR^L", "heart_rate", False),
    ("009002^NIBP M", "nibp_mean", False),
    ("131072^ECG_HR^EHC", "heart_rate", False),
    ("327681^EHC", "pulse_rate", False),
])  # fmt: skip
def test_the_identifier_decides_and_a_number_that_contradicts_it_is_told(code: str, name: str, mismatch: bool) -> None:
    items = decode(vitals(obx(code, "61")))
    assert readings(items) == [(name, 61.0, "valid")]
    assert [state for state, _ in statuses(items)] == ["code mismatch"] * mismatch


@pytest.mark.parametrize("code", [
    "147842^^99VENDOR", "0002-f0c7^T1^MDIL", "0002-F008^x^MDIL", "150457^MDC_SOMETHING_NEW^MDC", "131072^ECG_HR^MDC",
    "1554-5^GLUCOSE^LN", "001001^other^L", "8867-4^Heart rate^99OWN", "", "^^", "MDC", "99999999999999^^MDC",
])  # fmt: skip
def test_private_and_unknown_codes_give_no_value(code: str) -> None:
    assert readings(decode(vitals(obx(code, "61")))) == []


def test_a_disagreement_is_told_once_for_each_pair_and_decoder() -> None:
    row = vitals(obx("150457^MDC_PULS_OXIM_PULS_RATE^MDC", "61"), obx("150456^MDC_PULS_OXIM_PULS_RATE^MDC", "61"))
    decoder = Hl7()
    first, second = decode(row, decoder=decoder), decode(row, decoder=decoder)
    assert statuses(first) == [
        ("code mismatch", "150457 sent as MDC_PULS_OXIM_PULS_RATE"),
        ("code mismatch", "150456 sent as MDC_PULS_OXIM_PULS_RATE"),
    ]
    assert statuses(second) == []
    assert len(statuses(decode(row))) == 2, "another connection tells it again"


@pytest.mark.parametrize(("code", "value", "unit", "expected"), [
    ("^MDC_PRESS_BLD_NONINV_SYS^MDC", "16", "265987^MDC_DIM_KILO_PASCAL^MDC", 120.009872),
    ("^MDC_TEMP^MDC", "98.6", "266560^MDC_DIM_FAHR^MDC", 37.0),
    ("^MDC_TEMP^MDC", "98.6", "[degF]^^UCUM", 37.0),
    ("^MDC_TEMP^MDC", "310.15", "^MDC_DIM_KELVIN^MDC", 37.0),
    ("0002-4b48^Temp^MDIL", "37.4", "0004-1710^C^MDIL", 37.4),
    ("0002-4182^HR^MDIL", "60", "0004-0aa0^bpm^MDIL", 60.0),
    ("^MDC_MASS_BODY_ACTUAL^MDC", "1500", "g", 1.5),
    (HEART_RATE, "60", "", 60.0),
    (HEART_RATE, "60", '""', 60.0),
    (HEART_RATE, "60", "264928^MDC_DIM_RESP_PER_MIN^MDC", 60.0),
    (SPO2, "97", "1^MDC_DIM_PERCENT^MDC", 97.0),
])  # fmt: skip
def test_values_come_in_the_unit_of_their_term(code: str, value: str, unit: str, expected: float) -> None:
    assert only(obx(code, value, unit))[1:] == (expected, "valid")


@pytest.mark.parametrize(("code", "unit"), [
    (SPO2, "{fraction}"), (SPO2, "{fraction}^^UCUM"), (SPO2, "furlong"), (SPO2, MMHG), ("^MDC_TEMP^MDC", "mmHg"),
    (HEART_RATE, "99999^^MDC"), ("^MDC_PRESS_BLD_ART_ABP_SYS^MDC", "266016^kPa^MDC"),
    ("^MDC_PRESS_BLD_ART_ABP_SYS^MDC", "265987^MDC_DIM_KILO_PASCAL^MDC^mm[Hg]^mmHg^UCUM"),
])  # fmt: skip
def test_a_unit_that_does_not_convert_gives_no_number_and_is_told_once(code: str, unit: str) -> None:
    items = decode(vitals(obx(code, "0.97", unit), obx(code, "0.98", unit)))
    assert [reading[1:] for reading in readings(items)] == [(None, "invalid")] * 2
    assert [state for state, _ in statuses(items)] == ["unit not usable"]


def test_a_fraction_without_unit_is_not_made_a_percentage() -> None:
    assert only(obx(SPO2, "0.97"))[1] == 0.97


def test_mdil_codes_are_the_mdc_codes_in_hex() -> None:
    assert dialects.mdil("0002-4182") == 147842
    assert UNIT_CODES[dialects.mdil("0004-0f20") or 0] == "mm[Hg]"
    assert dialects.mdil("0002-f0c7") is None


def test_equal_identifiers_are_told_apart_by_what_they_hang_under() -> None:
    rr, unit = "151562^MDC_RESP_RATE^MDC", "264928^MDC_DIM_RESP_PER_MIN^MDC"
    places = {"30": "1.6.1.1", "18": "1.9.1.1", "17": "1.3.1.4", "16": "1.4.2.1", "15": "1.8.1.1", "14": "7"}
    items = decode(
        vitals(
            "OBX|1||70666^MDC_DEV_ECG_RESP_VMD^MDC|1.6.0.0|||||||X",
            "OBX|2||69682^MDC_DEV_ANALY_AWAY_MULTI_PARAM_VMD^MDC|1.9.0.0|||||||X",
            "OBX|3||69798^MDC_DEV_PULS_OXIM_VMD^MDC|1.3.0.0|||||||X",
            "OBX|4||1^MDC_DEV_CO2_CHAN^MDC|1.4.2.0|||||||X",
            *(obx(rr, value, unit, place=place) for value, place in places.items()),
            obx("150344^MDC_TEMP^MDC", "37.1", place="1.26.1.1"),
            obx("150344^MDC_TEMP^MDC", "36.5", place="1.26.1.2"),
        )
    )
    found = [(item.term, item.value, item.channel) for item in items if isinstance(item, Observation)]
    assert found == [
        ("resp_rate_impedance", 30.0, "1.6.1.1"),
        ("resp_rate_co2", 18.0, "1.9.1.1"),
        ("resp_rate_pleth", 17.0, "1.3.1.4"),
        ("resp_rate_co2", 16.0, "1.4.2.1"),
        ("resp_rate", 15.0, "1.8.1.1"),
        ("resp_rate", 14.0, "7"),
        ("temp", 37.1, "1.26.1.1"),
        ("temp", 36.5, "1.26.1.2"),
    ]


def test_a_valid_row_and_a_later_row_without_result_both_come_in_order() -> None:
    items = decode(
        vitals(obx(SPO2, "97", PERCENT, place="1.3.2"), obx(SPO2, "8388607", PERCENT, place="1.6.1", status="X"))
    )
    assert readings(items) == [("spo2", 97.0, "valid"), ("spo2", None, "not_available")]


def test_a_laboratory_report_gives_no_vital_signs() -> None:
    report = message("OBR|1|||2345-7^Glucose", "OBX|1|SN|2345-7^Glucose^LN||^182|mg/dl|70_105|H|||F")
    items = decode(framed(report))
    assert readings(items) == []
    assert rejects(items) == []


@pytest.mark.parametrize(("pid", "subject"), [
    ("PID|||P1^^^H^MR", "P1"), ("PID|||^^^Hospital^PI~P2^^^H", "P2"), ("PID||P3|^^^Hospital^PI", "P3"),
    ("PID|||||DOE^JOHN|||||||||||||P4", "P4"), ("PID||||NAME^IN PID 4|DOE^JANE", ""), ("PID", ""), ('PID|||""', ""),
    ("PID|||P5&x^^^H", "P5"),
])  # fmt: skip
def test_the_patient_is_an_identifier_and_never_a_name(pid: str, subject: str) -> None:
    (item,) = [item for item in decode(framed(message(pid, obx(HEART_RATE, "60")))) if isinstance(item, Observation)]
    assert item.subject == subject


@pytest.mark.parametrize(
    ("sent", "location"), [("ICU^^3", "ICU^^3"), ("^^&24", "^^&24"), ("^^", ""), ("", ""), ("A^1~B^2", "A^1")]
)
def test_the_location_comes_as_it_was_sent(sent: str, location: str) -> None:
    (item,) = [i for i in decode(vitals(obx(HEART_RATE, "60"), location=sent)) if isinstance(i, Observation)]
    assert item.location == location


def test_the_next_patient_of_a_message_inherits_no_bed() -> None:
    items = decode(framed(message("PID|||A", "PV1||I|ICU^^1", obx(HEART_RATE, "60"), "PID|||B", obx(HEART_RATE, "61"))))
    assert [(i.subject, i.location) for i in items if isinstance(i, Observation)] == [("A", "ICU^^1"), ("B", "")]


@pytest.mark.parametrize(("sent", "iso"), [
    ("20250401101500", "2025-04-01T10:15:00"), ("20250401101500.123+0200", "2025-04-01T10:15:00.123+02:00"),
    ("20250401101500123+0200", "2025-04-01T10:15:00.123+02:00"), ("202504011015-0530", "2025-04-01T10:15-05:30"),
    ("2025040110", "2025-04-01T10:00"), ("20250401", "2025-04-01"),
    ("20250401101500.1234567", "2025-04-01T10:15:00.123456"),
    ("20251301", None), ("2025", None), ("20250401256000", None), ("yesterday", None), ("", None),
    ("20250401101500+9900", None), ("2025040110150012", None),
])  # fmt: skip
def test_device_times(sent: str, iso: str | None) -> None:
    assert values.device_time(sent) == iso


def test_a_row_has_its_own_time_or_that_of_its_group_in_the_zone_of_the_header() -> None:
    rows = [obx(HEART_RATE, "60") + "|||20250401100000", obx(HEART_RATE, "61"), obx(HEART_RATE, "62") + "|||never"]
    items = decode(framed(message("OBR|1|||V|||20250401101500", *rows)))
    assert [item.device_time for item in items if isinstance(item, Observation)] == [
        "2025-04-01T10:00:00+02:00", "2025-04-01T10:15:00+02:00", "2025-04-01T10:15:00+02:00",
    ]  # fmt: skip


def test_control_characters_do_not_come_out_in_names_of_places_and_channels() -> None:
    row = obx(HEART_RATE, "60", "f\x1b[2J", place="1.\x1b[2J.1")
    items = decode(framed(message("PID|||P\x071", "PV1||I|ICU\x1b[2J^^3", row)))
    found = [value for item in items[:-1] for value in msgspec.structs.asdict(item).values() if isinstance(value, str)]
    assert "ICU [2J^^3" in found
    assert "1. [2J.1" in found
    assert all(text.isprintable() for text in found)


def test_short_rows_are_rows() -> None:
    items = decode(framed(message("OBX", "OBX|", "OBX|1|NM", f"OBX|1|NM|{HEART_RATE}||60")))
    assert readings(items) == [("heart_rate", 60.0, "valid")]


def test_caches_stay_bounded_under_invented_codes_and_values() -> None:
    from drivers.hl7 import rows

    for start in range(0, 3 * rows._PLANS_MAX, 1000):
        codes = (
            obx(f"{number}^MDC_{number}^MDC", f"{number}.5", f"u{number}") for number in range(start, start + 1000)
        )
        decode(vitals(*codes, *(obx(HEART_RATE, f"{number}.25") for number in range(start, start + 1000))))
    assert len(rows._PLANS) <= rows._PLANS_MAX
    assert len(values.NUMBERS) <= values.CACHE_SIZE
    assert readings(decode(vitals(obx(SPO2, "97", PERCENT)))) == [("spo2", 97.0, "valid")]


def test_disagreements_without_end_are_told_a_bounded_number_of_times() -> None:
    items = decode(vitals(*(obx(HEART_RATE.replace("147842", str(number)), "60") for number in range(1, 1000))))
    assert len(statuses(items)) <= 256
    assert len(readings(items)) == 999


def test_the_header_alone_and_other_segments_give_nothing_but_the_answer() -> None:
    items = decode(framed(message("ZZZ|1", "NTE|1||text", header=msh())))
    assert len(items) == 1
