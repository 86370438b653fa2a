"""Answers to the sender: acknowledgements, and "no data" to queries.

Theory of operation. In original mode (MSH-15 and MSH-16 empty) a message is answered AA. In enhanced mode MSH-15
(AL, SU) asks for the commit accept CA; MSH-16 alone (AL, SU) asks for AA; neither, and nothing is sent. Whoever asks
for both gets CA: beyond the commit there is no result of the application to report. A header that cannot be used is
answered AR (CR in enhanced mode). Each is given out behind the items of its message and leaves when these are
durable: that is the whole meaning of "accept" here. A response is not acknowledged, unless its MSH-15 asks for it.

The usual acknowledgement is put together as text, after the pattern of python-hl7's; that library builds the rare
ones: rejections, answers to queries, messages with other encoding characters. A decoder has no clock, so MSH-7
repeats the sender's time. The control identifier counts up and carries a checksum of the identifier it answers.

Source: HL7 v2.6 chapter 2.9 (acknowledgement modes, tables 0008 and 0155), chapter 5 (queries).
"""

from __future__ import annotations

from zlib import crc32

from drivers.hl7.tokens import STANDARD, Text, header_fields
from edge_agent.records import Reply

_ALWAYS = frozenset({"AL", "SU"})
_ON_ERROR = frozenset({"AL", "ER"})
_CONDITIONS = frozenset({"AL", "SU", "ER", "NE"})
_START, _END = b"\x0b", b"\x1c\r"

# Query -> message type of its answer.
ANSWERS = {("QRY", "R02"): "ORF^R04", ("QRY", "A19"): "ADR^A19", ("QBP", "Q22"): "RSP^K22^RSP_K21"}
_ECHOED = ("QRD", "QRF", "QPD")
_ECHO_MAX = 4096  # characters of one repeated segment


def accept_code(head: list[str]) -> str:
    """What the header asks for after success: AA, CA, or nothing."""
    commit, application = head[15], head[16]
    if commit in _ALWAYS:
        return "CA"
    if application in _ALWAYS:
        return "AA"
    return "" if commit in _CONDITIONS or application in _CONDITIONS else "AA"


def reject_code(head: list[str]) -> str:
    """What the header asks for after failure: AR, CR, or nothing."""
    commit, application = head[15], head[16]
    if commit in _ON_ERROR:
        return "CR"
    if application in _ON_ERROR:
        return "AR"
    return "" if commit in _CONDITIONS or application in _CONDITIONS else "AR"


def control_id(count: int, answered: str) -> str:
    """A control identifier of our own, of at most 20 characters: running number and checksum of the other one."""
    return f"{count}-{crc32(answered.encode('utf-8', 'surrogatepass')):08x}"


def usual(head: list[str], trigger: str, code: str, count: int) -> str:
    """The acknowledgement of a message in the standard notation."""
    kind = f"ACK^{trigger}^ACK" if trigger else "ACK"
    charset = f"||||||{head[18]}" if head[18] else ""
    answered = head[10]
    return (
        f"MSH|{head[2]}|{head[5]}|{head[6]}|{head[3]}|{head[4]}|{head[7]}||{kind}|{control_id(count, answered)}"
        f"|{head[11]}|{head[12]}{charset}\rMSA|{code}|{answered}\r"
    )


def unusual(head: list[str], delimiters: str, kind: str, code: str, count: int) -> str:
    """Any answer, built by python-hl7 with the sender's own encoding characters; `kind` is its MSH-9."""
    import hl7  # rare: kept out of the agent's memory until it is needed

    separator = delimiters[0]
    kept = [head[number].strip() for number in (3, 4, 5, 6, 7, 8)]
    line = separator.join([f"MSH{separator}{head[2]}", *kept, f"ACK{delimiters[1]}ACK", *head[10:13], "end"])
    answer = hl7.parse(line).create_ack(code, message_id=control_id(count, head[10]))
    msh = answer.segment("MSH")
    msh.assign_field(head[7], 7)
    msh.assign_field(kind.replace("^", delimiters[1]), 9)
    if head[18]:
        msh.assign_field(head[18], 18)
    return str(answer)


def answer(message: Text, kind: str, count: int) -> str:
    """The answer to a query: accepted, nothing found, with the query repeated as HL7 wants it."""
    separator = message.delimiters[0]
    segments = message.original.split("\r")
    raw = header_fields(segments[0], separator)
    text = unusual(raw, message.delimiters, kind, "AA", count)
    asked = [line[:_ECHO_MAX] for line in segments[1:] if line[:3] in _ECHOED]
    tag = name = ""
    for line in asked:
        parts = [*line.split(separator, 5), "", "", "", "", ""]
        if parts[0] == "QRD":
            tag = parts[4]
        elif parts[0] == "QPD":
            name, tag = parts[1], parts[2]
    found = separator.join(["QAK", tag, "NF", *([name] if name else [])])
    return text + "\r".join([found, *asked]) + "\r"


def reply(text: str, codec: str, framed: bool, channel: str) -> Reply:
    """The answer as bytes in the sender's character set, framed as the message was."""
    data = text.encode(codec, "replace")
    return Reply(_START + data + _END if framed else data, True, channel)


def acknowledgement(message: Text, head: list[str], trigger: str, code: str, count: int) -> str:
    """The acknowledgement of a message, in its own notation."""
    if message.delimiters == STANDARD:
        return usual(head, trigger, code, count)
    separator = message.delimiters[0]
    raw = header_fields(message.original.split("\r", 1)[0], separator)
    return unusual(raw, message.delimiters, f"ACK^{trigger}^ACK" if trigger else "ACK", code, count)
