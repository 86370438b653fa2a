"""Blocks of waveform samples in HL7 messages."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hl7_messages import HEART_RATE, decode, framed, message, obx, rejects
from hypothesis import given
from hypothesis import strategies as st

from drivers.hl7 import waves
from edge_agent.records import NO_SAMPLE, Observation, Waveform

ECG = "131330^MDC_ECG_ELEC_POTL_II^MDC"
RATE = "0^MDC_ATTR_SAMP_RATE^MDC"
RESOLUTION = "2327^MDC_ATTR_NU_MSMT_RES^MDC"
MARKER = "196660^MDC_EVT_INOP^MDC"
MV, UV, HZ = "266418^MDC_DIM_MILLI_VOLT^MDC", "266419^MDC_DIM_MICRO_VOLT^MDC", "264640^MDC_DIM_HZ^MDC"


def block(samples: str, *facets: str, code: str = ECG, unit: str = "", status: str = "R") -> list:
    rows = [obx(code, samples, unit, place="1.7.6", kind="NA", status=status), *facets]
    return decode(framed(message("PID|||P1", "PV1||I|ICU^^3", "OBR|1|||W|||20250401101500.5", *rows)))


def rate(value: str = "250", unit: str = HZ) -> str:
    return obx(RATE, value, unit, place="1.7.6.1")


def resolution(value: str = "0.002", unit: str = MV) -> str:
    return obx(RESOLUTION, value, unit, place="1.7.6.2")


def marker(value: str, code: str = MARKER) -> str:
    return obx(code, value, place="1.7.6.3")


def samples(items: list) -> list[float | None]:
    (wave,) = [item for item in items if isinstance(item, Waveform)]
    return [None if value is None else round(value, 9) for value in wave.physical()]


def test_a_block_has_rate_place_patient_and_the_time_of_its_first_sample() -> None:
    (wave,) = [item for item in block("1^2", rate(), resolution()) if isinstance(item, Waveform)]
    assert (wave.term, wave.rate_hz, wave.location, wave.subject) == ("ecg_ii", 250.0, "ICU^^3", "P1")
    assert (wave.device_time, wave.channel) == ("2025-04-01T10:15:00.5+02:00", "1.7.6")
    assert wave.physical() == [0.002, 0.004]


def test_facets_may_stand_in_any_order_and_before_the_block() -> None:
    rows = [resolution(), obx(ECG, "1^7^3", place="1.7.6", kind="NA"), marker("7"), rate()]
    assert samples(decode(framed(message(*rows)))) == [0.002, None, 0.006]


@pytest.mark.parametrize("code", [MARKER, "5^MARK^99MNDRY", ""])
def test_samples_equal_to_the_marker_are_none_whatever_the_marker_row_is_called(code: str) -> None:
    assert samples(block("5^-9999^6", rate(), resolution(), marker("-9999", code))) == [0.01, None, 0.012]


def test_without_a_readable_marker_32767_means_no_sample() -> None:
    assert samples(block("5^32767", rate(), resolution())) == [0.01, None]
    assert samples(block("5^32767", rate(), resolution(), marker("?"))) == [0.01, None]


def test_a_declared_marker_frees_32767() -> None:
    assert samples(block("5^32767^0", rate(), resolution("1"), marker("0"))) == [5.0, 32767.0, None]


def test_a_block_of_markers_is_a_block_without_samples() -> None:
    assert samples(block("32767^32767", rate(), resolution())) == [None, None]


@pytest.mark.parametrize("text", ["1~2~~3", "1^2^^3", "1~2^ ^3"])
def test_tildes_separate_too_and_an_empty_sample_is_none(text: str) -> None:
    assert samples(block(text, rate(), resolution("1"))) == [1.0, 2.0, None, 3.0]


def test_resolution_is_converted_to_the_unit_of_the_term() -> None:
    assert samples(block("100^-100", rate(), resolution("2.5", UV))) == [0.25, -0.25]


def test_physical_values_need_no_resolution_when_their_unit_is_sent() -> None:
    assert samples(block("0.5^-1.25^3", rate(), unit=MV)) == [0.5, -1.25, 3.0]
    assert samples(block("500^-1250", rate(), unit=UV)) == [0.5, -1.25]


@pytest.mark.parametrize(
    ("facets", "reason"),
    [
        ((resolution(),), "no sample rate"),
        ((rate("0"), resolution()), "no sample rate"),
        ((rate("-5"), resolution()), "no sample rate"),
        ((rate("fast"), resolution()), "no sample rate"),
        ((rate("4", "264338^MDC_DIM_MILLI_SEC^MDC"), resolution()), "sample rate not in Hz"),
        ((rate(),), "no resolution in a unit that converts"),
        ((rate(), resolution("0")), "no resolution in a unit that converts"),
        ((rate(), resolution("1e-3")), "no resolution in a unit that converts"),
        ((rate(), resolution("1", "266016^MDC_DIM_MMHG^MDC")), "no resolution in a unit that converts"),
    ],
)
def test_without_rate_or_scale_there_is_no_waveform(facets: tuple[str, ...], reason: str) -> None:
    items = block("1^2^3", *facets)
    assert not [item for item in items if isinstance(item, Waveform)]
    assert rejects(items) == [(f"waveform ecg_ii: {reason}", 5)]


@pytest.mark.parametrize("text", ["1^two^3", "1^2 3^4", "1^0x5", "nan^1", "1^2.0.1", "1^1e3", "1^1_0"])
def test_one_sample_that_is_no_number_rejects_the_block(text: str) -> None:
    assert rejects(block(text, rate(), resolution())) == [("waveform ecg_ii: a sample is not a number", len(text))]


@pytest.mark.parametrize("status", ["X", "D"])
def test_a_block_without_result_is_passed_over(status: str) -> None:
    items = block("1^2", rate(), resolution(), status=status)
    assert not [item for item in items if isinstance(item, Waveform)]
    assert rejects(items) == []


def test_two_blocks_of_one_metric_in_two_groups_are_two_waveforms_in_order() -> None:
    one = ["OBR|1|||W|||20250401101500", obx(ECG, "1", place="1.7.6", kind="NA"), rate(), resolution("1")]
    two = ["OBR|2|||W|||20250401101501", obx(ECG, "2", place="1.7.6", kind="NA"), rate(), resolution("1")]
    items = decode(framed(message(*one, *two, obx(HEART_RATE, "60"))))
    found = [(type(item), getattr(item, "device_time", None)) for item in items[:3]]
    assert found == [
        (Waveform, "2025-04-01T10:15:00+02:00"),
        (Observation, "2025-04-01T10:15:01+02:00"),
        (Waveform, "2025-04-01T10:15:01+02:00"),
    ]


def test_facets_of_one_group_do_not_describe_a_block_of_the_next() -> None:
    items = decode(framed(message("OBR|1", rate(), resolution(), "OBR|2", obx(ECG, "1", place="1.7.6", kind="NA"))))
    assert rejects(items) == [("waveform ecg_ii: no sample rate", 1)]


def test_two_blocks_at_one_place_are_not_mixed() -> None:
    items = block("1^2", obx(ECG, "3^4", place="1.7.6", kind="NA"), rate(), resolution("1"))
    assert rejects(items) == [("waveform ecg_ii: two blocks at one place", 3)]
    assert samples(items) == [1.0, 2.0]


@given(st.lists(st.integers(-(10**6), 10**6) | st.none(), min_size=1, max_size=40), st.sampled_from([1, 7, 1000]))
def test_whole_samples_are_packed_without_loss_or_not_at_all(raw: list[int | None], factor: int) -> None:
    sent = [None if sample is None else sample * factor for sample in raw]
    packed = waves.pack("^".join("" if sample is None else str(sample) for sample in sent), 999_999_999.0)
    known = [sample for sample in sent if sample is not None]
    if isinstance(packed, str):
        assert packed == "samples need more than 16 bits"
        assert max(known) - min(known) > 65534
        return
    assert unpacked(packed) == sent


@given(st.lists(st.decimals(-30, 30, places=3), min_size=1, max_size=40))
def test_samples_with_a_point_are_packed_without_loss(sent: list) -> None:
    packed = waves.pack("^".join(f"{sample:f}" for sample in sent), 32767.0)
    assert not isinstance(packed, str)
    assert unpacked(packed) == [Fraction(sample) for sample in sent]


def unpacked(packed: waves.Packed) -> list[Fraction | None]:
    step, offset = Fraction(packed.step).limit_denominator(10**6), Fraction(packed.offset).limit_denominator(10**6)
    values = memoryview(packed.samples).cast("h")
    return [None if value == NO_SAMPLE else value * step + offset for value in values]


def test_the_smallest_int16_is_a_sample_when_it_was_sent_as_one() -> None:
    packed = waves.pack("-32768^0", 32767.0)
    assert not isinstance(packed, str)
    assert unpacked(packed) == [-32768, 0]


def test_too_many_samples_are_refused() -> None:
    assert waves.pack("1^" * 70000 + "1", 0.0) == "too many samples"
