"""How the hl7 driver cuts messages out of a stream, and what it does with bytes that are none."""

from __future__ import annotations

import pytest
from hl7_messages import HEART_RATE, PER_MIN, SECOND, decode, framed, message, obx, readings, rejects, replies, vitals

from drivers.hl7.decoder import Hl7
from drivers.hl7.framing import LIMIT
from edge_agent.records import Chunk

ROW = obx(HEART_RATE, "72", PER_MIN)
OTHER = obx(HEART_RATE, "73", PER_MIN)
VALUE = ("heart_rate", 72.0, "valid")
NEXT = ("heart_rate", 73.0, "valid")


@pytest.mark.parametrize("at", [1, 5, 60, 150, -2, -1])
def test_a_frame_may_be_split_anywhere(at: int) -> None:
    data = vitals(ROW)
    assert readings(decode(data[:at], data[at:])) == [VALUE]


def test_several_messages_in_one_chunk_are_each_answered() -> None:
    items = decode(vitals(ROW) + vitals(OTHER) + vitals(ROW))
    assert readings(items) == [VALUE, NEXT, VALUE]
    assert len(replies(items)) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_other_line_ends_are_taken(end: str) -> None:
    assert readings(decode(vitals(ROW).replace(b"\r", end.encode()))) == [VALUE]


def test_bytes_between_frames_are_counted_and_skipped() -> None:
    items = decode(b"xyz\r\n" + vitals(ROW) + b"\r\n" + vitals(OTHER) + b"!")
    assert readings(items) == [VALUE, NEXT]
    assert rejects(items) == [("bytes outside a frame", 3), ("bytes outside a frame", 1)]


def test_a_start_byte_in_noise_opens_no_frame() -> None:
    items = decode(b"\x0b\x00\x0bMS\x0b1", message(ROW))
    assert readings(items) == [VALUE]


def test_a_missing_closing_cr_is_made_up_for_by_the_next_frame_or_by_silence() -> None:
    decoder = Hl7()
    items = decoder.feed(Chunk(0, vitals(ROW)[:-1]))
    assert items == []
    assert readings(decoder.feed(Chunk(5, vitals(OTHER)[:-1]))) == [VALUE]
    assert decoder.tick(5 + SECOND - 1) == []
    assert readings(decoder.tick(5 + SECOND)) == [NEXT]


def test_a_torn_frame_is_rejected_and_not_acknowledged() -> None:
    torn = vitals(ROW)[:-20]
    items = decode(torn + vitals(OTHER))
    assert readings(items) == [NEXT]
    assert rejects(items) == [("frame without end", len(torn) - 1)]
    assert len(replies(items)) == 1


def test_a_frame_that_never_ends_waits_for_retransmission_and_is_then_given_up() -> None:
    decoder = Hl7()
    decoder.feed(Chunk(0, vitals(ROW)[:-20]))
    assert decoder.tick(29 * SECOND) == []
    assert rejects(decoder.tick(30 * SECOND)) == [("frame without end", len(vitals(ROW)) - 21)]
    assert readings(decoder.feed(Chunk(31 * SECOND, vitals(OTHER)))) == [NEXT]


def test_a_stray_end_byte_does_not_cut_a_number() -> None:
    items = decode(vitals(obx(HEART_RATE, "1\x1c20", PER_MIN)))
    assert readings(items) == [("heart_rate", None, "invalid")]
    assert rejects(items) == []


def test_unframed_messages_end_at_the_next_one_or_by_a_second_of_silence() -> None:
    decoder = Hl7()
    first = decoder.feed(Chunk(0, message(ROW) + message(OTHER)[:40]))
    assert readings(first) == [VALUE]
    assert decoder.feed(Chunk(7, message(OTHER)[40:])) == []
    assert decoder.tick(7 + SECOND - 1) == []
    last = decoder.tick(7 + SECOND)
    assert readings(last) == [NEXT]
    assert replies(last)[0].startswith("MSH|"), "an unframed message gets an unframed answer"


def test_an_unframed_message_ends_as_soon_as_the_next_begins_also_byte_by_byte() -> None:
    decoder = Hl7()
    data = message(ROW) + message(OTHER)[:4]
    items = [item for byte in data[:-1] for item in decoder.feed(Chunk(0, bytes([byte])))]
    assert items == []
    assert readings(decoder.feed(Chunk(0, data[-1:]))) == [VALUE]


def test_a_stray_end_byte_does_not_come_back_inside_an_answer() -> None:
    (reply,) = replies(decode(vitals(ROW).replace(b"|C1|", b"|C\x1c1|")))
    assert reply.count("\x1c") == 1
    assert "|C\x1a1" in reply


def test_an_unframed_message_may_be_followed_by_a_frame() -> None:
    assert readings(decode(message(ROW) + vitals(OTHER))) == [VALUE, NEXT]


def test_a_message_without_start_byte_ends_at_its_end_byte_at_once() -> None:
    items = Hl7().feed(Chunk(0, message(ROW) + b"\x1c\r"))
    assert readings(items) == [VALUE]
    assert replies(items)[0].startswith("\x0b")


@pytest.mark.parametrize("kept", [" |1", "|12", "|12|", "|12"])
def test_silence_in_the_middle_of_a_value_gives_no_value(kept: str) -> None:
    cut = message(ROW) + f"OBX|2|NM|{HEART_RATE}|{kept}".encode()
    items = decode(cut)
    assert readings(items) == [VALUE]
    assert [reason for reason, _ in rejects(items)] == ["row cut short"]


def test_a_last_row_without_line_end_counts_when_its_status_is_there() -> None:
    assert readings(decode(message(ROW)[:-1])) == [VALUE]
    assert readings(decode(message(ROW)[:-2])) == [], "the status may have been X"
    assert readings(decode(framed(message(ROW)[:-2]))) == [VALUE], "a frame says that the message is whole"


def test_two_messages_in_one_frame_keep_their_patients_apart() -> None:
    one = message("PID|||P1", "PV1||I|ICU^^1", ROW)
    two = message("PV1||I|ICU^^2", OTHER)
    items = decode(framed(one + two))
    found = [(item.subject, item.location) for item in items if hasattr(item, "subject")]
    assert found == [("P1", "ICU^^1"), ("", "ICU^^2")]
    assert len(replies(items)) == 2


def test_batch_segments_around_messages_are_passed_over() -> None:
    items = decode(framed(b"FHS|^~\\&\rBHS|^~\\&\r" + message(ROW) + b"BTS|1\rFTS|1\r"))
    assert readings(items) == [VALUE]
    assert rejects(items) == []


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [4096, 10**9])
def test_a_frame_over_the_limit_is_dropped_whole_and_the_next_one_is_read(size: int) -> None:
    long = vitals(ROW, "NTE|1||" + "x" * (LIMIT + 1000))
    items = decode(*cut(long + vitals(OTHER), size))
    assert readings(items) == [NEXT]
    assert {reason for reason, _ in rejects(items)} == {"frame too long"}
    assert sum(count for _, count in rejects(items)) == len(long) - 3


@pytest.mark.parametrize("start", [b"\x0b" + message(ROW), message(ROW), b"", b"\x0b"])
@pytest.mark.parametrize("filler", [b"x", b"\r", b"\x1c", b"\x0b", b"\rMSH"])
def test_an_endless_stream_takes_bounded_memory(start: bytes, filler: bytes) -> None:
    decoder = Hl7()
    block = filler * (65536 // len(filler))
    decoder.feed(Chunk(0, start))
    for _ in range(24):
        decoder.feed(Chunk(0, block))
        assert len(decoder._framer._buffer) <= LIMIT + len(block) + 8
    assert readings(decode(b"\x1c\r" + vitals(OTHER), decoder=decoder))[-1:] == [NEXT]


def test_a_message_of_exactly_the_limit_is_read() -> None:
    start = message(ROW) + b"NTE|1||"
    payload = start + b"x" * (LIMIT - len(start) - 1) + b"\r"
    assert len(payload) == LIMIT
    for chunks in ([framed(payload)], cut(framed(payload), 1000)):
        assert readings(decode(*chunks)) == [VALUE]
