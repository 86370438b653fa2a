"""Acknowledgements of HL7 messages: when, which, and that python-hl7 would write them the same."""

from __future__ import annotations

import hl7
import pytest
from hl7_messages import HEART_RATE, decode, framed, message, msh, obx, readings, rejects, replies, vitals
from hypothesis import given
from hypothesis import strategies as st

from drivers.hl7 import acknowledge
from drivers.hl7.decoder import Hl7
from drivers.hl7.tokens import header_fields
from edge_agent.records import Chunk, Reply

ROW = obx(HEART_RATE, "60")


def sent(header: str, *segments: str) -> list[str]:
    return replies(decode(framed(message(*segments, header=header))))


@pytest.mark.parametrize(
    ("commit", "application", "code"),
    [
        ("", "", "AA"),
        ("AL", "NE", "CA"),
        ("SU", "NE", "CA"),
        ("AL", "", "CA"),
        ("AL", "AL", "CA"),
        ("NE", "AL", "AA"),
        ("", "AL", "AA"),
        ("NE", "SU", "AA"),
        ("NE", "NE", ""),
        ("NE", "", ""),
        ("", "NE", ""),
        ("ER", "NE", ""),
        ("NE", "ER", ""),
        ("??", "??", "AA"),
    ],
)
def test_which_acknowledgement_a_header_asks_for(commit: str, application: str, code: str) -> None:
    found = sent(msh(commit=commit, application=application), ROW)
    assert [f"MSA|{code}|C1" in text for text in found] == [True] * bool(code)


def test_the_acknowledgement_comes_last_and_waits_for_the_commit() -> None:
    items = decode(vitals(ROW, obx(HEART_RATE, "61")))
    assert isinstance(items[-1], Reply)
    assert items[-1].after_commit
    assert len(readings(items[:-1])) == 2


def test_the_acknowledgement_turns_sender_and_receiver_round_and_echoes_version_and_character_set() -> None:
    (text,) = sent(msh("ORU^R01^ORU_R01", "C7", charset="8859/1"), ROW)
    head, msa = text.strip("\x0b\x1c\r").split("\r")
    assert head == (
        "MSH|^~\\&|GATEWAY|HOSPITAL|MON^1^X|WARD|20250401101500+0200||ACK^R01^ACK|1-2230ab36|P|2.6||||||8859/1"
    )
    assert msa == "MSA|AA|C7"


def test_control_identifiers_are_our_own_short_and_never_the_same() -> None:
    decoder = Hl7()
    texts = [replies(decode(vitals(ROW), decoder=decoder))[0] for _ in range(3)]
    identifiers = [text.split("|")[9] for text in texts]
    assert len(set(identifiers)) == 3
    assert max(map(len, (*identifiers, acknowledge.control_id(10**10, "x" * 200)))) <= 20


@pytest.mark.parametrize("kind", ["ORF^R04", "RSP^K22", "ADR^A19", "ORU^R01"])
def test_a_response_is_acknowledged_only_on_explicit_demand(kind: str) -> None:
    assert sent(msh(kind), "MSA|AA|C0", ROW) == []
    assert sent(msh(kind, application="AL"), "MSA|AA|C0", ROW) == []
    assert "MSA|CA|C1" in sent(msh(kind, commit="AL"), "MSA|AA|C0", ROW)[0]


def test_a_listening_connection_answers_nothing() -> None:
    items = decode(vitals(ROW), framed(b"MSH|^~\\&|A||||1|||C1|P|2.4\r"), acknowledge=False)
    assert readings(items)
    assert replies(items) == []


def test_the_answer_goes_back_on_the_channel_it_came_by() -> None:
    (reply,) = [item for item in Hl7().feed(Chunk(0, vitals(ROW), "10.0.0.7:4000")) if isinstance(item, Reply)]
    assert reply.channel == "10.0.0.7:4000"


@pytest.mark.parametrize(
    ("header", "reason", "code"),
    [
        ("MSH|^~\\&|A|B|C|D|1||||P|2.4", "header without message type", ""),
        ("MSH|^~\\&|A|B|C|D|1|||C5|P|2.4", "header without message type", "AR"),
        ("MSH|^~\\&|A|B|C|D|1|||C5|P|2.4|||AL|NE", "header without message type", "CR"),
        ("MSH|^~\\&|A|B|C|D|1|||C5|P|2.4|||NE|ER", "header without message type", "AR"),
        ("MSH|^~\\&|A|B|C|D|1|||C5|P|2.4|||NE|NE", "header without message type", ""),
        ("MSH|^^\\&|A|B|C|D|1||ORU^R01|C5|P|2.4", "header without usable encoding characters", "AR"),
        ("MSH|abcd|A|B|C|D|1||ORU^R01|C5|P|2.4", "header without usable encoding characters", "AR"),
        ("MSHabc|d|e", "header without usable encoding characters", ""),
        ("MSH#:@%$#A#B#C#D#1###C5#P#2.4", "header without message type", "AR"),
        ("MSH|^~\\&|" + "x" * 5000, "header too long", ""),
        ("FHS|^~\\&|A", "not an HL7 message", ""),
    ],
)
def test_an_unusable_header_is_rejected_and_refused_when_its_identifier_can_be_read(
    header: str, reason: str, code: str
) -> None:
    items = decode(framed(message(ROW, header=header)))
    assert readings(items) == []
    assert [found for found, _ in rejects(items)] == [reason]
    texts = replies(items)
    assert len(texts) == bool(code)
    if code:
        assert hl7.parse(texts[0].strip("\x0b\x1c"))["MSA"][0] == [["MSA"], [code], ["C5"]]


def test_a_message_without_control_identifier_still_counts() -> None:
    items = decode(framed(message(ROW, header=msh(control=""))))
    assert readings(items) == [("heart_rate", 60.0, "valid")]
    assert "MSA|AA|\r" in replies(items)[0]


letters = st.text(alphabet="abcXYZ019 ^~&-_.:/\\\u00fc", max_size=12).map(str.strip)


@given(
    st.lists(letters, min_size=10, max_size=10), st.sampled_from(["R01", "R40", "A08"]), st.sampled_from(["AA", "CA"])
)
def test_python_hl7_writes_the_same_acknowledgement(parts: list[str], trigger: str, code: str) -> None:
    app, facility, to_app, to_facility, sent_at, security, control, processing, version, charset = parts
    line = (
        f"MSH|^~\\&|{app}|{facility}|{to_app}|{to_facility}|{sent_at}|{security}|ORU^{trigger}^ORU_{trigger}|{control}"
        f"|{processing}|{version}|||||1|{charset}"
    )
    head = header_fields(line)
    ours = acknowledge.usual(head, trigger, code, 5)
    assert ours == acknowledge.unusual(head, "|^~\\&", f"ACK^{trigger}^ACK", code, 5)

    theirs = hl7.parse(line).create_ack(code, message_id=acknowledge.control_id(5, control))
    parsed = hl7.parse(ours)
    assert str(parsed.segment("MSA")) == str(theirs.segment("MSA"))
    for number in (1, 2, 3, 4, 5, 6, 9, 10, 11, 12):  # 7 is a clock, which a decoder does not have
        assert str(parsed.segment("MSH")(number)) == str(theirs.segment("MSH")(number)).strip()
