"""The Nonin decoder against bytes of the independent encoder and against bytes written by hand."""

from __future__ import annotations

import random

import pytest

from drivers.nonin import Nonin
from drivers.sim import oximeter
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Waveform

SECOND_NS = 1_000_000_000


def decode(data: bytes, decoder: Nonin | None = None, at_ns: int = 0) -> list[Item]:
    return (decoder or Nonin()).feed(Chunk(at_ns, data))


def numbers(items: list[Item]) -> list[tuple[str, float | None, str]]:
    return [(item.term, item.value, item.validity) for item in items if isinstance(item, Observation)]


def pairs(items: list[Item]) -> list[tuple[float | None, float | None]]:
    values = [item.value for item in items if isinstance(item, Observation)]
    return list(zip(values[::2], values[1::2], strict=True))


PACKETS = {"2": oximeter.packet_2, "7": oximeter.packet_7}


@pytest.mark.parametrize("kind", PACKETS)
@pytest.mark.parametrize("pulse", [18, 127, 128, 200, 255, 256, 321])
def test_pulse_has_nine_bits(kind: str, pulse: int) -> None:
    assert numbers(decode(PACKETS[kind](97, pulse))) == [("spo2", 97.0, "valid"), ("pulse_rate", float(pulse), "valid")]


def test_a_frame_written_by_hand() -> None:
    # frames 1-3 carry HR 1*128 + 22 = 150 and SpO2 95; 81 = always + SYNC; checksums computed by hand
    head = bytes.fromhex("01 81 10 01 93  01 80 11 16 a8  01 80 12 5f f2")
    rest = bytes.fromhex("01 80 13 00 94") * 22
    assert pairs(decode(head + rest)) == [(95.0, 150.0)]


@pytest.mark.parametrize("kind", PACKETS)
def test_missing_values_are_none(kind: str) -> None:
    items = decode(PACKETS[kind](None, None))
    assert numbers(items) == [("spo2", None, "not_available"), ("pulse_rate", None, "not_available")]


@pytest.mark.parametrize("kind", PACKETS)
@pytest.mark.parametrize(
    ("status", "validity", "state"),
    [
        (oximeter.BIT_DISCONNECTED, "not_available", DeviceStatus("sensor", "disconnected", 0)),
        (oximeter.BIT_SENSOR_ALARM, "not_available", DeviceStatus("sensor", "fault", 0)),
        (oximeter.BIT_ARTEFACT, "questionable", DeviceStatus("signal", "artefact", 0)),
        (oximeter.BIT_OUT_OF_TRACK, "questionable", DeviceStatus("signal", "out_of_track", 0)),
        (0x04, "questionable", DeviceStatus("signal", "low_perfusion", 0)),
        (0x06, "valid", DeviceStatus("signal", "marginal_perfusion", 0)),
        (0x02, "valid", None),
    ],
)
def test_status_bits(kind: str, status: int, validity: str, state: DeviceStatus | None) -> None:
    decoder = Nonin()
    items = decode(PACKETS[kind](97, 72, status=status), decoder)
    assert {verdict for _, _, verdict in numbers(items)} == {validity}
    assert all((value is None) == (validity == "not_available") for _, value, _ in numbers(items))
    assert [item for item in items if isinstance(item, DeviceStatus)] == ([state] if state else [])
    again = decode(PACKETS[kind](97, 72, status=status), decoder)
    assert not [item for item in again if isinstance(item, DeviceStatus)], "a state is told when it changes"


def test_pleth_of_format_2_and_7() -> None:
    (eight,) = [
        item for item in decode(oximeter.packet_2(97, 72, pleth=range(0, 250, 10))) if isinstance(item, Waveform)
    ]
    assert eight.physical() == [float(value) for value in range(0, 250, 10)]
    (sixteen,) = [
        item for item in decode(oximeter.packet_7(97, 72, pleth=range(5, 65000, 2600))) if isinstance(item, Waveform)
    ]
    assert sixteen.physical() == [float(value) for value in range(5, 65000, 2600)]
    assert sixteen.rate_hz == 75.0


def test_disconnected_sensor_has_no_pleth() -> None:
    packet = oximeter.packet_7(97, 72, pleth=[500] * 25, status=oximeter.BIT_DISCONNECTED)
    (wave,) = [item for item in decode(packet) if isinstance(item, Waveform)]
    assert wave.physical() == [None] * 25


@pytest.mark.parametrize("kind", PACKETS)
@pytest.mark.parametrize("at", [0, 1, 7, 64, 124])
def test_one_wrong_bit_costs_the_packet_and_no_more(kind: str, at: int) -> None:
    broken = bytearray(PACKETS[kind](61, 199, pleth=[70] * 25))
    broken[at] ^= 0x10
    good = PACKETS[kind](97, 72, pleth=[70] * 25)
    items = decode(good + bytes(broken) + good)
    assert pairs(items) == [(97.0, 72.0), (97.0, 72.0)]
    assert [item.size for item in items if isinstance(item, Reject)] == [125]


@pytest.mark.parametrize("kind", PACKETS)
def test_parts_of_packets_give_nothing(kind: str) -> None:
    packet = PACKETS[kind](97, 72, pleth=range(25))
    for cut in (1, 5, 60, 124):
        assert not numbers(decode(packet[:cut]))
        assert not numbers(decode(packet[cut:])), "frames without the first one"
    assert not numbers(decode(packet[:60] + packet[65:])), "a frame is missing"
    assert not numbers(decode(packet[:60] + packet[:60] + packet[120:])), "SYNC in mid-packet"


def test_a_pause_ends_a_half_packet() -> None:
    decoder, packet = Nonin(), oximeter.packet_2(97, 72)
    assert decode(packet[:60], decoder, 0) == []
    assert not numbers(decode(packet[60:], decoder, 5 * SECOND_NS))
    assert numbers(decode(packet, decoder, 6 * SECOND_NS))


def test_format_8_is_recognised_after_three_packets_that_keep_their_times() -> None:
    decoder = Nonin()
    assert decode(oximeter.packet_8(94, 130), decoder, 1 * SECOND_NS) == []
    assert decode(oximeter.packet_8(93, 131), decoder, 2 * SECOND_NS) == []
    items = decode(oximeter.packet_8(92, 200), decoder, 3 * SECOND_NS)
    assert pairs(items) == [(94.0, 130.0), (93.0, 131.0), (92.0, 200.0)]
    assert [item.at_ns // SECOND_NS for item in items] == [1, 1, 2, 2, 3, 3]
    assert pairs(decode(oximeter.packet_8(None, None), decoder, 4 * SECOND_NS)) == [(None, None)]


def test_format_8_written_by_hand() -> None:
    # 1 SNSD OOT LPRF MPRF ARTF HR8 HR7 | HR | SpO2 | status 2 with battery in bits 0 and 1, sensor fault in bit 3
    hand = bytes.fromhex("81 16 5f 00  90 48 60 00  a4 48 60 00  c0 48 60 00  80 48 60 08  83 7f 7f 02")
    items = decode(hand)
    assert numbers(items) == [
        ("spo2", 95.0, "valid"), ("pulse_rate", 150.0, "valid"),
        ("spo2", 96.0, "questionable"), ("pulse_rate", 72.0, "questionable"),
        ("spo2", 96.0, "questionable"), ("pulse_rate", 72.0, "questionable"),
        ("spo2", None, "not_available"), ("pulse_rate", None, "not_available"),
        ("spo2", None, "not_available"), ("pulse_rate", None, "not_available"),
        ("spo2", None, "not_available"), ("pulse_rate", None, "not_available"),
    ]  # fmt: skip
    assert DeviceStatus("battery", "critical", 0) in items


def test_format_8_needs_three_packets_again_after_a_pause_or_a_wrong_byte() -> None:
    decoder = Nonin()
    assert len(pairs(decode(oximeter.packet_8(95, 70) * 3, decoder))) == 3
    assert not pairs(decode(oximeter.packet_8(95, 70) * 2, decoder, 60 * SECOND_NS))
    assert len(pairs(decode(oximeter.packet_8(95, 70), decoder, 60 * SECOND_NS))) == 3
    assert not pairs(decode(b"\x7f" + oximeter.packet_8(95, 70) * 2, decoder, 60 * SECOND_NS))


def test_two_packets_of_format_8_between_silences_are_enough() -> None:
    for data, count in (
        (oximeter.packet_8(95, 140) * 2, 2),
        (oximeter.packet_8(95, 140), 0),
        (b"\x11" + oximeter.packet_8(95, 140) * 2, 0),
    ):
        decoder = Nonin()
        assert not pairs(decode(data, decoder))
        assert pairs(decoder.tick(2 * SECOND_NS)) == []
        assert pairs(decoder.tick(9 * SECOND_NS)) == [(95.0, 140.0)] * count
        assert not decoder._buffer


def test_the_end_of_noise_is_no_packet() -> None:
    fake = oximeter.packet_8(13, 40)
    items = decode(b"\x55" + fake + oximeter.packet_8(96, 72) + oximeter.packet_8(96, 73) + oximeter.packet_8(97, 73))
    assert pairs(items) == [(96.0, 72.0), (96.0, 73.0), (97.0, 73.0)]
    assert [item.size for item in items if isinstance(item, Reject)] == [5]


def test_a_fixed_format_takes_nothing_else() -> None:
    streams = {
        "2": oximeter.packet_2(97, 72),
        "7": oximeter.packet_7(97, 72),
        "8": oximeter.packet_8(97, 72) * 3,
        "ascii": oximeter.line(97, 72),
    }
    for fixed in streams:
        for kind, data in streams.items():
            assert pairs(decode(data, Nonin(fixed))) == (
                [(97.0, 72.0)] * (3 if kind == "8" else 1) if kind == fixed else []
            ), (fixed, kind)
    with pytest.raises(ValueError, match="format"):
        Nonin("13")


def test_text_lines_end_in_any_way() -> None:
    for end in (b"\r\n", b"\n", b"\r"):
        data = b"SPO2=097 HR=142" + end + b"SPO2=--- HR=---" + end + b"SPO2=088 HR=060 F*" + end
        assert pairs(decode(data)) == [(97.0, 142.0), (None, None), (88.0, 60.0)]


@pytest.mark.parametrize(
    "line",
    [b"SPO2=97 HR=072", b"SPO2=097 HR=72", b"SPO2=0970 HR=072", b"SPO2=097 HR=0721", b"O2=097 HR=072", b"SPO2=097"],
)
def test_a_line_with_another_width_gives_nothing(line: bytes) -> None:
    assert not numbers(decode(line + b"\r\n"))


def test_impossible_values_are_invalid() -> None:
    assert numbers(decode(b"SPO2=101 HR=351\r\n")) == [("spo2", None, "invalid"), ("pulse_rate", None, "invalid")]
    assert numbers(decode(b"SPO2=000 HR=000\r\n")) == [("spo2", None, "invalid"), ("pulse_rate", None, "invalid")]
    packet = bytearray(oximeter.packet_2(100, 72))
    packet[13], packet[14] = 120, packet[14] + 20  # SpO2 120 with its checksum
    assert numbers(decode(bytes(packet)))[0] == ("spo2", None, "invalid")


def test_a_megabyte_of_noise_gives_rejects_and_no_number() -> None:
    noise = random.Random(20).randbytes(1_000_000)
    items = decode(noise)
    assert not [item for item in items if not isinstance(item, Reject)]
    assert sum(item.size for item in items if isinstance(item, Reject)) > 999_000


def test_line_ends_and_empty_chunks_without_end_use_no_memory() -> None:
    decoder = Nonin()
    decode(oximeter.line(97, 72), decoder)
    assert decode(b"\r\n" * 50_000, decoder) == []
    for _ in range(1000):
        assert decode(b"", decoder) == []
    assert not decoder._buffer and not decoder._times
