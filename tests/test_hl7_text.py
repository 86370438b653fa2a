"""Character sets, encoding characters and escapes; python-hl7 is the oracle for what the fields of a message are."""

from __future__ import annotations

from typing import Any

import capture_player
import hl7
import pytest
from hl7_messages import decode, framed, readings
from hypothesis import assume, given
from hypothesis import strategies as st

from drivers.hl7 import tokens
from edge_agent.links.capture import read_capture
from edge_agent.records import DeviceAlarm


def our_fields(text: str) -> list[list[list[list[list[str]]]]]:
    """Segments, fields, repetitions, components, sub-components as the decoder splits them."""
    message = tokens.standard(text)
    assert message is not None
    out = []
    for number, line in enumerate(message.text.strip().split("\r")):
        parts = line.split("|")
        if number == 0:
            del parts[1]  # the encoding characters themselves
        out.append(
            [
                [
                    [[tokens.unescape(sub) for sub in part.split("&")] for part in repetition.split("^")]
                    for repetition in field.split("~")
                ]
                for field in parts
            ]
        )
    return out


def their_fields(text: str) -> list[list[list[list[list[str]]]]]:
    """The same from python-hl7, whose tree is only as deep as a field needs."""
    message = hl7.parse(text)
    out = []
    for number, segment in enumerate(message):
        fields = [segment[0], *segment[3:]] if number == 0 else list(segment)
        repetitions = [[field] if isinstance(field, str) else field or [""] for field in fields]
        out.append([[_components(message, repetition) for repetition in field] for field in repetitions])
    return out


def without_tail(message: list) -> list:
    """The segments without empty fields at their ends, which python-hl7 leaves out when there is nothing else."""
    for segment in message:
        while segment and segment[-1] == [[[""]]]:
            segment.pop()
    return message


def _components(message: Any, repetition: Any) -> list[list[str]]:
    if isinstance(repetition, str):
        return [[message.unescape(repetition)]]
    return [
        [message.unescape(component)]
        if isinstance(component, str)
        else [message.unescape(part) for part in component or [""]]
        for component in repetition or [""]
    ]


DELIMITERS = ["|^~\\&", "|^~\\&", "#:@%$", "|~^\\&", "^|&~\\", "!*+?/", "\\^~|&", "[.(*]"]


@st.composite
def hl7_texts(draw: st.DrawFn) -> str:
    """Messages with any encoding characters, every level of separator, and well-formed escapes."""
    delimiters = draw(st.sampled_from(DELIMITERS))
    separator, component, repetition, escape, sub = delimiters
    pieces = [separator, separator, component, repetition, sub, *(f"{escape}{code}{escape}" for code in "FSTRE")]
    pieces += ["A", "7", "xyz", " ", *(set("|^~\\&#:.") - set(delimiters))]
    body = st.lists(st.sampled_from(pieces), max_size=25).map("".join)
    segments = draw(st.lists(st.tuples(st.sampled_from(["PID", "OBX", "ZZ1"]), body), max_size=4))
    header = f"MSH{separator}{component}{repetition}{escape}{sub}{separator}{draw(body)}"
    return "\r".join([header, *(f"{name}{separator}{text}" for name, text in segments)])


@given(hl7_texts())
def test_python_hl7_sees_the_same_fields(text: str) -> None:
    assume(text == text.strip())  # python-hl7 takes blanks off both ends of a message
    assert without_tail(our_fields(text)) == without_tail(their_fields(text))


@pytest.mark.parametrize(
    "path", [path for path in capture_player.paths() if path.name.startswith("hl7.")], ids=lambda p: p.stem
)
def test_python_hl7_sees_the_same_fields_in_the_captures(path: Any) -> None:
    data = b"".join(chunk.data for chunk in read_capture(path).received())
    compared = 0
    for part in data.replace(b"\r\n", b"\r").replace(b"\n", b"\r").split(b"\x0b"):
        part = part.partition(b"\rMSH")[0]
        text, _ = tokens.decode_text(part.split(b"\x1c")[0].strip(), "latin-1")
        if tokens.standard(text) is None or "\\." in text or "\\X" in text or "\\H" in text or "\\Z" in text:
            continue  # formatting is not the same: they keep it as blanks and underscores
        assert without_tail(our_fields(text)) == without_tail(their_fields(text))
        compared += 1
    assert compared


@pytest.mark.parametrize(
    "header", ["MSH", "MSH|", "MSH||", "MSH|^", "MSH|^~", "MSH|^~\\", "MSH|^~\\&", "MSH|^~\\&#", "MSH|^~\\&#|"]
)
def test_missing_encoding_characters_are_the_usual_ones(header: str) -> None:
    found = tokens.standard(header + "|A&B|C" if len(header) > 4 else header)
    if len(header) < 5:
        assert found is None
    else:
        assert found is not None
        assert found.delimiters == "|^~\\&"


@pytest.mark.parametrize(
    "text", ["PID|1", "", "MSH|^^~\\&|", "MSH|^~\\&abc|", "MSH|^~\\A|", "MSHa^~\\&a", "MSH|^~ &|", "MSH|^~\\\u00fc|"]
)
def test_encoding_characters_that_separate_nothing(text: str) -> None:
    assert tokens.standard(text) is None


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f", "a|b^c&d~e\\f"),
        ("\\X41\\\\X4243\\", "ABC"),
        ("\\XZZ\\x", "x"),
        ("a\\.br\\b", "a\nb"),
        ("\\H\\loud\\N\\", "loud"),
        ("\\Zfoo\\", ""),
        ("open\\F", "open\\F"),
        ("\\", "\\"),
        ("\\\\", ""),
        ("\\.sp9999999999\\", ""),
        ("plain", "plain"),
    ],
)
def test_escapes(sent: str, meant: str) -> None:
    assert tokens.unescape(sent) == meant


def test_hex_escapes_are_bytes_of_the_message_s_character_set() -> None:
    assert tokens.unescape("30 \\XC2B0\\", "utf-8") == "30 \u00b0"
    assert tokens.unescape("30 \\XB0\\", "iso8859_1") == "30 \u00b0"
    assert tokens.unescape("\\XFF\\", "utf-8") == "\ufffd"


def alarm_text(declared: str, text: bytes, **options: Any) -> str:
    header = f"MSH|^~\\&|A|B|C|D|20250401||ORU^R01|1|P|2.4||||||{declared}\r".encode()
    items = decode(framed(header + b"OBX||TX|2^Yellow^MDIL-ALERT||" + text + b"||||||F\r"), **options)
    (found,) = [item.text for item in items if isinstance(item, DeviceAlarm)]
    return found


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("UNICODE UTF-8", "utf-8", "Stra\u00dfe \u5fc3"),
        ("8859/1", "latin-1", "Stra\u00dfe"),
        ("8859/2", "iso8859_2", "\u017b\u00f3\u0142\u0107"),
        ("8859/15", "iso8859_15", "5 \u20ac"),
        ("8859/5", "iso8859_5", "\u041f\u0443\u043b\u044c\u0441"),
        ("GB 18030-2000", "gb18030", "\u5fc3\u7387\u8fc7\u9ad8"),
        ("~ISO IR87", "iso2022_jp", "\u5fc3\u62cd\u6570"),
        ("ASCII", "ascii", "plain"),
        ("", "utf-8", "Stra\u00dfe"),
        ("", "latin-1", "Stra\u00dfe"),
        ("klingon", "latin-1", "Stra\u00dfe"),
        ("klingon", "utf-8", "Stra\u00dfe"),
        ("UNICODE UTF-8", "latin-1", "Stra\u00dfe"),
        ("ASCII", "latin-1", "Stra\u00dfe"),
        ("BIG-5", "big5", "\u5fc3\u7387"),
        ("KS X 1001", "euc_kr", "\uc2ec\ubc15"),
    ],
)
def test_character_sets(charset: str, codec: str, text: str) -> None:
    assert alarm_text(charset, text.encode(codec)) == text


def test_the_fallback_character_set_is_an_option() -> None:
    assert alarm_text("", b"T 37\xb5", charset="cp1251") == "T 37\u00b5"
    assert alarm_text("", b"\xcf\xf3\xeb\xfc\xf1", charset="cp1251") == "\u041f\u0443\u043b\u044c\u0441"
    with pytest.raises(LookupError):
        decode(b"", charset="klingon")


@given(st.binary(max_size=60), st.sampled_from(["", "UNICODE UTF-8", "8859/7", "ISO IR87", "BIG-5", "GB18030", "x"]))
def test_any_bytes_in_a_text_do_no_harm_to_the_values_beside_it(noise: bytes, charset: str) -> None:
    assume(not set(noise) & set(b"\r\n\x0b\x1c\x1b"))
    header = f"MSH|^~\\&|A|B|C|D|20250401||ORU^R01|1|P|2.4||||||{charset}\rPV1||I|ICU^^3\r".encode()
    rows = b"OBX||NM|147842^^MDC||61||||||F\rNTE|1||" + noise + b"\rOBX||NM|150456^^MDC||97||||||F\r"
    assert readings(decode(framed(header + rows)))[0] == ("heart_rate", 61.0, "valid")


@pytest.mark.parametrize("delimiters", ["#:@%$", "|~^\\&", "^|~\\&", "!*+?/"])
def test_messages_with_other_encoding_characters_mean_the_same(delimiters: str) -> None:
    usual = (
        "MSH|^~\\&|A^1|B|C|D|20250401101500||ORU^R01^ORU_R01|C1|P|2.4\rPID|||P1^^^H&1&ISO^MR\rPV1||I|ICU^^3&4\r"
        "OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|61|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||F\r"
        "OBX|2|TX|2^Yellow Alarm^MDIL-ALERT||a \\F\\ b \\X41\\||||||F\r"
    )
    other = usual.translate(str.maketrans(dict(zip("|^~\\&", delimiters, strict=True))))
    ours, theirs = decode(framed(usual.encode())), decode(framed(other.encode()))
    assert ours[0] == theirs[0]
    assert theirs[1].text == f"a {delimiters[0]} b A"
    back = theirs[-1].data.decode().strip("\x0b\x1c\r").split("\r")
    assert back[0].startswith(
        f"MSH{delimiters[0]}{delimiters[1:]}{delimiters[0]}C{delimiters[0]}D{delimiters[0]}A{delimiters[1]}1"
    )
    assert back[1] == f"MSA{delimiters[0]}AA{delimiters[0]}C1"


def test_a_literal_that_is_another_sender_s_separator_stays_a_letter() -> None:
    text = "MSH#:@%$#A|B^C~D\\E&F#%S%%X41%\r"
    found = tokens.standard(text)
    assert found is not None
    assert [tokens.unescape(part) for part in found.text.strip().split("|")[2:]] == ["A|B^C~D\\E&F", ":A"]
