"""Any bytes give items and no exception, the same ones however they are cut, and never a number that was not sent.

PROPERTY_EXAMPLES=100000 is the long run.
"""

from __future__ import annotations

import re

import capture_player
import pytest
from hl7_messages import SECOND, decode, framed, message, obx, readings, vitals
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.hl7.decoder import Hl7
from edge_agent.links.capture import read_capture
from edge_agent.records import Chunk, Item, Observation, Waveform, shape
from edge_agent.terms import BY_NAME, UNIT_CODES, UNIT_NAMES, conversion

UNITS = {*UNIT_NAMES.values(), *UNIT_CODES.values(), "K"}
CONVERSIONS = {found for unit in UNITS for other in UNITS if (found := conversion(unit, other)) is not None}
CONVERSATIONS = [
    b"".join(chunk.data for chunk in read_capture(path).received())
    for path in capture_player.paths()
    if path.name.startswith("hl7.")
]
TOKENS = [
    b"\x0b",
    b"\x1c",
    b"\x1c\r",
    b"\x0b\x1c\r",
    b"\r",
    b"\n",
    b"\r\n",
    b"|",
    b"||||",
    b"^",
    b"~",
    b"\\",
    b"&",
    b"MSH|",
    b"MSH",
    b"\rMSH|^~\\&|",
    b"\rMSH#:@%$#",
    b"\rOBX|",
    b"\rOBX|1|NA|",
    b"\rPID|||",
    b"\rOBR|",
    b"|X|",
    b"|NM|",
    b"\x1b$B",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x00",
    b"-100",
    b"8388607",
    b"nan",
    b"1e9",
    b"UNICODE UTF-8",
    b"8859/1",
    b"ORU^R40",
    b"MDC_EVT_ALARM",
    b"|AL|NE|",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One or two real conversations with bytes put in, taken out and changed."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(CONVERSATIONS), min_size=1, max_size=2))))
    start = draw(st.integers(0, len(data)))
    data = data[start : start + draw(st.integers(1, 2500))] or bytearray(b"M")
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at:at] = draw(st.sampled_from(TOKENS))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
            case _:
                data[at:at] = data[: draw(st.integers(0, 60))]
    return bytes(data)


VITALS = [
    part
    for data in CONVERSATIONS
    for part in re.findall(rb"\x0b(MSH[^\x0b\x1c]*\r)\x1c\r", data)
    if b"|ORU^R01" in part and part.isascii() and b"\n" not in part
]
HARMLESS = [
    token for token in TOKENS if token.isascii() and not set(token) & set(b"\x0b\x1c\x1b\n") and b"MSH" not in token
]


@st.composite
def one_frame(draw: st.DrawFn) -> bytes:
    """One message of vital signs, little damaged, in a good frame: when whole, the decoder takes it a shorter way."""
    data = bytearray(draw(st.sampled_from(VITALS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(9, len(data) - 1))  # behind the encoding characters
        if draw(st.booleans()):
            data[at:at] = draw(st.sampled_from(HARMLESS))
        else:
            del data[at : min(at + draw(st.integers(1, 8)), len(data) - 1)]
    return framed(bytes(data))


anything = st.one_of(
    one_frame(),
    st.binary(max_size=300),
    st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=60).map(b"".join),
    damaged(),
)


def play(chunks: list[bytes]) -> list[Item]:
    decoder = Hl7()
    out: list[Item] = []
    for data in chunks:
        out += decoder.feed(Chunk(0, data))
    out += decoder.tick(SECOND)
    out += decoder.tick(60 * SECOND)
    return out


@given(anything, st.integers(1, 50))
@example(b"\x0bMSH|^~\\&|\x1c\x1c\r\x0b\x1c\x0b", 1)
@example(b"MSH|^~\\&|a\r\nMSH|^~\\&|b\nMS", 3)
def test_any_bytes_give_the_same_items_however_they_are_cut(data: bytes, size: int) -> None:
    whole = play([data])
    single = play([data[at : at + 1] for at in range(len(data))])
    pieces = play([data[at : at + size] for at in range(0, len(data), size)])
    assert whole == single == pieces


@given(anything)
def test_what_comes_out_keeps_the_rules_of_the_records(data: bytes) -> None:
    for item in play([data]):
        assert shape(item)["item"]
        if isinstance(item, Observation):
            assert (item.value is None) == (item.validity in ("invalid", "not_available"))
            assert item.term in BY_NAME
        elif isinstance(item, Waveform):
            assert item.rate_hz > 0
            assert len(item.samples) % 2 == 0


@given(st.one_of(damaged(), one_frame()))
def test_a_value_that_is_given_was_sent(data: bytes) -> None:
    """Every value stands between two separators of the message as it is, or is one of those in another unit."""
    numbers = {float(text) for text in re.findall(rb"[0-9]+\.?[0-9]*|\.[0-9]+", data)}
    sent = numbers | {-number for number in numbers}
    for item in play([data]):
        if isinstance(item, Observation) and item.value is not None and item.value not in sent:
            converted = (number * factor + offset for number in sent for factor, offset in CONVERSIONS)
            assert any(abs(item.value - value) < 1e-6 * max(1.0, abs(value)) for value in converted), item


plain = st.decimals(-50, 400, places=2).map(lambda number: f"{number:f}")


@given(plain, st.text(alphabet="<>=~^&\\ eE+-_xX%,", min_size=1, max_size=3), st.integers(0, 8))
def test_a_number_with_anything_inside_or_around_it_is_itself_or_nothing(number: str, noise: str, at: int) -> None:
    text = number[:at] + noise + number[at:]
    (found,) = readings(decode(framed(message(obx("147842^^MDC", text)))))
    if found[1] is not None:
        assert text.strip(" ") == number or text.strip(" ") in (f"+{number}", f"-{number}")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_good_message_behind_any_damage_is_read(conversation: bytes) -> None:
    good = vitals(obx("147842^^MDC", "61"), location="LAST")
    for end in range(0, len(conversation), 61):
        items = decode(conversation[:end] + good)
        last = [item for item in items if isinstance(item, Observation)][-1]
        assert (last.value, last.location) == (61.0, "LAST")
