"""The simulated patient, its recordings, and its encoders, which the decoders must read back value by value."""

from __future__ import annotations

import itertools
import statistics
from datetime import UTC, datetime

import pytest

from drivers.gatt import Gatt
from drivers.nonin import Nonin
from drivers.sim import hl7_monitor, oximeter, wearable
from drivers.sim.patient import PROFILES, Patient
from drivers.sim.recorded import RecordedError, rows
from drivers.sim.simulator import Simulator
from edge_agent import terms
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Waveform

SECOND_NS = 1_000_000_000


def live(seconds: int, **options: object) -> list[Item]:
    decoder = Simulator(**options)  # type: ignore[arg-type]
    return [item for second in range(seconds) for item in decoder.tick(7 * SECOND_NS + second * SECOND_NS)]


def series(items: list[Item], term: str) -> list[float]:
    return [
        item.value for item in items if isinstance(item, Observation) and item.term == term and item.value is not None
    ]


# -- the patient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_seed_is_the_same_patient(profile: str) -> None:
    assert live(300, seed=4, profile=profile) == live(300, seed=4, profile=profile)
    assert live(300, seed=4, profile=profile) != live(300, seed=5, profile=profile)


def test_a_second_gives_every_vital_sign_once_and_pressure_at_its_interval() -> None:
    items = live(600, nibp_interval_s=120)
    for term in ("heart_rate", "pulse_rate", "spo2", "resp_rate", "temp", "perfusion_index"):
        assert len(series(items, term)) == 600
    assert len(series(items, "nibp_sys")) == len(series(items, "nibp_dia")) == len(series(items, "nibp_mean")) == 5


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(5))
def test_vital_signs_stay_within_the_bounds_of_their_terms(profile: str, seed: int) -> None:
    for item in live(3600, seed=seed, profile=profile, onset_s=10):
        if isinstance(item, Observation) and item.value is not None:
            term = terms.BY_NAME[item.term]
            assert term.plausible_min is not None and term.plausible_max is not None
            assert term.plausible_min <= item.value <= term.plausible_max
            assert item.validity == "valid"


def test_neighbouring_seconds_resemble_each_other() -> None:
    rate = series(live(1800, seed=2), "heart_rate")
    steps = [abs(later - earlier) for earlier, later in itertools.pairwise(rate)]
    apart = [abs(later - earlier) for earlier, later in zip(rate, rate[600:], strict=False)]
    assert statistics.mean(steps) < 0.5 * statistics.mean(apart)
    assert statistics.pstdev(rate) > 0.5, "a living patient is not constant"


@pytest.mark.parametrize("seed", range(5))
def test_deterioration_begins_at_its_onset_and_couples_the_vital_signs(seed: int) -> None:
    items = live(400, seed=seed, profile="deteriorating", onset_s=60)
    spo2, breath, heart = (series(items, term) for term in ("spo2", "resp_rate", "heart_rate"))
    assert min(spo2[:60]) >= 94
    assert max(spo2[300:]) < 88
    assert statistics.mean(breath[300:]) > statistics.mean(breath[:60]) + 8
    assert statistics.mean(heart[300:]) > statistics.mean(heart[:60]) + 8


def test_sepsis_is_fast_heart_low_pressure_and_fever() -> None:
    items = live(7200, seed=1, profile="sepsis", onset_s=600)
    assert statistics.mean(series(items, "heart_rate")[-600:]) > statistics.mean(series(items, "heart_rate")[:600]) + 20
    assert series(items, "nibp_sys")[-1] < series(items, "nibp_sys")[0] - 25
    assert series(items, "temp")[-1] > 38.0


def test_a_noisy_sensor_falls_off_and_says_so() -> None:
    items = live(1800, seed=1, profile="noisy")
    states = [item.state for item in items if isinstance(item, DeviceStatus)]
    assert states[:2] == ["disconnected", "ok"]
    missing = [item for item in items if isinstance(item, Observation) and item.value is None]
    assert {item.validity for item in missing} == {"not_available"}
    assert {item.term for item in missing} == {"spo2", "pulse_rate", "perfusion_index"}


def test_missed_seconds_are_lived_through_but_not_told_late() -> None:
    steady, late = Simulator(seed=3), Simulator(seed=3)
    for second in range(100):
        last = steady.tick(second * SECOND_NS)
    assert late.tick(0)
    assert late.tick(99 * SECOND_NS)[:6] == last[:6]
    assert late.tick(99 * SECOND_NS + 1) == []
    asleep = late.tick(10**9 * SECOND_NS)
    assert len(series(list(asleep), "spo2")) == 1


def test_pleth_has_as_many_beats_as_the_pulse() -> None:
    waves = [item for item in live(60, seed=1, pleth=True) if isinstance(item, Waveform)]
    samples = [sample for wave in waves for sample in wave.physical() if sample is not None]
    assert len(samples) == 60 * 75
    beats = sum(1 for a, b in itertools.pairwise(samples) if a < 128 <= b)
    pulse = statistics.mean(series(live(60, seed=1), "pulse_rate"))
    assert abs(beats - pulse) <= 2


def test_wrong_options_are_errors() -> None:
    with pytest.raises(ValueError, match="profile"):
        Simulator(profile="well")
    with pytest.raises(ValueError, match="nibp_interval_s"):
        Patient(nibp_interval_s=0)


# -- recordings ---------------------------------------------------------------------------------------------------


def test_rows_of_a_recording() -> None:
    found = list(rows(["\ufefftime, heart_rate ,spo2\r\n", "\n", "0,81,97\n", "2.5,,96.5\n"]))
    assert [(row.at_s, row.values) for row in found] == [
        (0.0, {"heart_rate": 81.0, "spo2": 97.0}),
        (2.5, {"heart_rate": None, "spo2": 96.5}),
    ]
    assert [row.at_s for row in rows(["spo2", "97", "96"])] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,pleth\n0,1", "line 1: no numeric term"),
        ("time,pulse\n0,1", "line 1: no numeric term"),
        ("spo2,spo2\n97,97", "line 1: a column stands twice"),
        ("time\n0", "line 1: a column stands twice, or there is none"),
        ("spo2,temp\n97", "line 2: 1 fields in a row of 2"),
        ("spo2\nnan", "line 2: spo2 is not finite"),
        ("spo2\n97 %", "line 2: spo2 is no number"),
        ("time,spo2\n5,97\n4,97", "line 3: time is missing or runs backwards"),
        ("time,spo2\n,97", "line 2: time is missing or runs backwards"),
    ],
)
def test_a_recording_that_cannot_be_used_names_its_line(text: str, told: str) -> None:
    with pytest.raises(RecordedError, match=told):
        list(rows(text.splitlines()))


def test_a_recording_as_bytes_replaces_the_simulated_patient() -> None:
    decoder = Simulator()
    assert series(decoder.tick(0), "spo2")
    items = decoder.feed(Chunk(SECOND_NS, b"spo2,temp\n91,\n"))
    assert items == [
        Observation("spo2", 91.0, "valid", SECOND_NS),
        Observation("temp", None, "not_available", SECOND_NS),
    ]
    assert decoder.tick(2 * SECOND_NS) == []
    (reject,) = decoder.feed(Chunk(SECOND_NS, b"\xff\xfe,1\n"))
    assert isinstance(reject, Reject)


# -- encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [oximeter.packet_2, oximeter.packet_7])
def test_the_decoder_reads_back_every_value_of_the_oximeter(encode: object) -> None:
    decoder = Nonin()
    for spo2 in (*range(1, 101), None):
        for pulse in (18, 60, 127, 128, 129, 254, 255, 256, 321, None):
            items = decoder.feed(Chunk(0, encode(spo2, pulse)))  # type: ignore[operator]
            values = [item.value for item in items if isinstance(item, Observation)]
            assert values == [spo2, pulse]


def test_the_decoder_reads_back_format_8_and_text() -> None:
    recording = [(97 - second % 9, 60 + second * 3) for second in range(80)]
    recording[30:35] = [(None, None)] * 5  # type: ignore[list-item]
    for encode in (oximeter.packet_8, oximeter.line):
        decoder = Nonin()
        items: list[Item] = []
        for second, (spo2, pulse) in enumerate(recording):
            items += decoder.feed(Chunk(second * SECOND_NS, encode(spo2, pulse)))
        values = [item.value for item in items if isinstance(item, Observation)]
        assert list(zip(values[::2], values[1::2], strict=True)) == recording
        assert not [item for item in items if isinstance(item, Reject)]


def test_the_decoder_reads_back_the_wearables() -> None:
    decoder = Gatt()
    for rate in (1, 40, 255, 256, 300, None):
        items = decoder.feed(Chunk(0, wearable.heart_rate(rate, rr_s=(0.8, 0.81)), wearable.HEART_RATE_MEASUREMENT))
        assert [item.value for item in items if isinstance(item, Observation)] == [rate]
    for spo2, pulse in ((97, 60), (97.5, 61.5), (100, 300), (None, 80), (93, None)):
        items = decoder.feed(Chunk(0, wearable.plx_continuous(spo2, pulse), wearable.PLX_CONTINUOUS))
        assert [item.value for item in items if isinstance(item, Observation)] == [spo2, pulse]


SFLOATS = [(98, "6200"), (36.4, "6cf1"), (0, "0000"), (-5, "fb0f"), (2045, "fd07"), (20450, "fd17"), (None, "ff07")]


@pytest.mark.parametrize(("value", "payload"), [*SFLOATS, (204.6, "cd00")])  # 2046 is +INF: the decimal has to go
def test_sfloat(value: float | None, payload: str) -> None:
    assert wearable.sfloat(value).hex() == payload


def test_sfloat_has_an_end() -> None:
    with pytest.raises(OverflowError):
        wearable.sfloat(3e10)


AT = datetime(2025, 3, 1, 8, 0, 5, 250_000, tzinfo=UTC)


def segments(message: bytes) -> list[list[str]]:
    return [segment.split("|") for segment in message.decode().split("\r") if segment]


def test_an_hl7_message_has_the_fields_where_the_profile_wants_them() -> None:
    values = {"heart_rate": 94.0, "spo2": None, "temp": 36.55, "nibp_sys": 121.0, "nibp_dia": 71.0}
    message = hl7_monitor.oru_r01(values, location="ICU^^3", control_id="42", at=AT, patient_id="P|1")
    msh, pid, pv1, obr, *obx = segments(message)
    assert (msh[6], msh[8], msh[9], msh[11]) == ("20250301080005.250+0000", "ORU^R01^ORU_R01", "42", "2.6")
    assert msh[20].startswith("IHE_PCD_001")
    assert pid[3].split("^")[0] == "P\\F\\1"
    assert pv1[3] == "ICU^^3"
    assert obr[4].startswith("182777000^")
    rows = {row[3]: row for row in obx[1:]}
    assert [row[1] for row in obx] == [str(number) for number in range(1, 7)]
    assert rows["147842^MDC_ECG_HEART_RATE^MDC"][5:7] == ["94", "264864^MDC_DIM_BEAT_PER_MIN^MDC"]
    assert rows["150344^MDC_TEMP^MDC"][5] == "36.55"
    missing = rows["150456^MDC_PULS_OXIM_SAT_O2^MDC"]
    assert (missing[5], missing[11]) == ("", "X")
    assert {row[11] for row in obx[1:] if row[5]} == {"R"}
    assert {row[14] for row in obx} == {"20250301080005.250+0000"}
    assert len({row[4] for row in obx}) == len(obx), "containment names each metric once"
    with pytest.raises(KeyError):
        hl7_monitor.oru_r01({"pulse": 1.0}, location="", control_id="1", at=AT)


def test_an_hl7_message_is_framed_for_tcp() -> None:
    framed = hl7_monitor.mllp(b"MSH|")
    assert framed == b"\x0bMSH|\x1c\r"


def test_every_numeric_term_can_be_sent() -> None:
    values = {term.name: 1.5 for term in terms.TERMS if term.kind == "numeric"}
    rows = segments(hl7_monitor.oru_r01(values, location="A", control_id="1", at=AT))[5:]
    assert len(rows) == len(values)
    assert all(row[6].split("^")[0] for row in rows)
