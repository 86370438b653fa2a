"""One conversation with one HL7 sender: frames in, items and answers out.

Theory of operation. The framer cuts messages out of the stream; a chunk that is exactly one frame, the usual case,
is taken without it. A message goes by its type (MSH-9) to observations, alarms, patient events, or the answer to a
query. Types that are not used give a Reject and are acknowledged all the same: they arrived, and a sender that is
refused would only send them again. Acknowledgements, and responses to alarms, give nothing.

A message that carries several MSH segments is several messages: rows behind the second belong to another patient.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from drivers.contract import Outlet
from drivers.hl7 import acknowledge
from drivers.hl7.adt import TRIGGERS, patient_events
from drivers.hl7.alarms import alarm_groups
from drivers.hl7.framing import LIMIT, Frame, Framer, Skipped
from drivers.hl7.rows import Memory, observations, without_cut_row
from drivers.hl7.tokens import Text, component, decode_text, fields, header_fields, shown, standard
from drivers.hl7.values import zone
from edge_agent.records import Chunk, Item, Reject

_ROWS, _ALARMS, _PATIENT, _QUERY, _SILENT, _UNUSED = range(6)
_ANSWERED = frozenset({"ACK", "MCF", "ORA"})  # acknowledgements: answering them would never end
_ROUTES_MAX = 256
_USUAL_START, _USUAL_END = b"\x0bMSH|^~\\&|", b"\r\x1c\r"
_SIGNS = ("+", "-")  # of a time's offset
# What text is read as when nothing else fits: single bytes that all mean something, or that Python can replace.
_FALLBACKS = frozenset({f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)}) | {
    f"cp{page}" for page in (437, 850, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257)
} | {"utf-8", "ascii", "shift_jis", "gb18030", "big5", "euc_kr"}  # fmt: skip
_HEADER_MAX = 4096  # characters; ten times the longest that is sent, and what an answer repeats stays small
_NEXT_MESSAGE = re.compile(r"\r(?=MSH[!-/:-@\[-`{-~])")


class _Route(NamedTuple):
    action: int
    name: str
    trigger: str


_ROUTES: dict[str, _Route] = {}


def _route(kind: str) -> _Route:
    """Where a message with this MSH-9 goes."""
    name, trigger = component(kind, 1), component(kind, 2)
    if name in _ANSWERED:
        action = _SILENT
    elif name == "ORU":
        action = _ALARMS if trigger == "R40" else _ROWS
    elif name == "ORF":
        action = _ROWS
    elif name == "ADT" and (trigger in TRIGGERS or not trigger):
        action = _PATIENT
    elif (name, trigger) in acknowledge.ANSWERS:
        action = _QUERY
    else:
        action = _UNUSED
    route = _Route(action, name[:20], trigger[:20])
    if len(kind) <= 60:
        if len(_ROUTES) >= _ROUTES_MAX:
            _ROUTES.clear()
        _ROUTES[kind] = route
    return route


class Hl7:
    """Decoder of one connection.

    `charset`: Python codec for text that names no character set and is not UTF-8. `acknowledge`: false for a
    connection that only listens.
    """

    def __init__(self, charset: str = "latin-1", acknowledge: bool = True) -> None:
        """Raises: LookupError when Python knows no such character set; TypeError for `acknowledge` in quotes."""
        self._charset = codecs.lookup(charset).name
        if self._charset not in _FALLBACKS:
            raise LookupError(f"charset {charset!r} does not know every byte; one of {', '.join(sorted(_FALLBACKS))}")
        if not isinstance(acknowledge, bool):
            raise TypeError(f"acknowledge is true or false, not {acknowledge!r}")
        self._acknowledge = acknowledge
        self._framer = Framer()
        self._clear = True  # nothing is pending in the framer
        self._memory = Memory()
        self._count = 0
        self._last_ns = 0
        self._channel = ""

    def feed(self, chunk: Chunk) -> list[Item]:
        """Items of the messages that these bytes complete; the answer to each message stands behind its items."""
        out: list[Item] = []
        self.feed_into(chunk, out)
        return out

    def feed_into(self, chunk: Chunk, out: Outlet) -> None:
        """The same, item by item."""
        data = chunk.data
        self._last_ns = chunk.at_ns
        self._channel = chunk.channel
        if self._clear and self._usual(data, chunk.at_ns, out):
            return
        if data:
            self._take(self._framer.feed(data), chunk.at_ns, out)
            self._clear = self._framer.clear

    def _usual(self, data: bytes, at_ns: int, out: Outlet) -> bool:
        """Take a chunk that is one framed message of plain vital signs in ASCII; False: the general way takes it.

        It does what the general way does, in fewer calls. After 10 ms of rest each function that is called costs 5 us
        before it does anything, because its code has left the processor's caches, and this stands between a value
        and its alarm.
        """
        size = len(data)
        if data[:10] != _USUAL_START or data[-3:] != _USUAL_END or size > LIMIT:
            return False
        try:
            text = data.decode("ascii")
        except UnicodeDecodeError:
            return False
        find = text.find
        if (
            find("\x1c") != size - 2
            or find("\x0b", 1) >= 0
            or find("\x1b") >= 0
            or find("\n") >= 0
            or find("\rMSH", 3) >= 0
            or find("MDC_EVT_ALARM") >= 0
        ):
            return False
        lines = text.split("\r")  # the last two are the end of the frame, which is no segment
        head = lines[0].split("|", 18)
        if len(head) < 18 or len(lines[0]) > _HEADER_MAX:
            return False
        head.insert(1, "|")
        route = _ROUTES.get(head[9])
        if route is None or route.action != _ROWS:
            return False
        time = head[7]
        observations(lines, at_ns, zone(time) if time[-5:-4] in _SIGNS else "", "ascii", self._memory, out)
        if self._acknowledge:
            code = acknowledge.accept_code(head)
            if code and (code == "CA" or not _is_response(lines)):
                self._count += 1
                answer = acknowledge.usual(head, route.trigger, code, self._count)
                out.append(acknowledge.reply(answer, "ascii", True, self._channel))
        return True

    def tick(self, at_ns: int) -> list[Item]:
        """Items of messages that silence ends: unframed ones, and frames whose last byte never came."""
        if self._clear:
            return []
        out: list[Item] = []
        self._take(self._framer.silence(at_ns - self._last_ns), self._last_ns, out)
        self._clear = self._framer.clear
        return out

    def _take(self, found: list[Frame | Skipped], at_ns: int, out: Outlet) -> None:
        for part in found:
            if isinstance(part, Frame):
                self._payload(part.payload, part.framed, part.cut, at_ns, out)
            else:
                out.append(Reject(part.reason, part.size, at_ns))

    def _payload(self, payload: bytes, framed: bool, cut: bool, at_ns: int, out: Outlet) -> None:
        """What one frame holds: a message, rarely several."""
        text, codec = decode_text(payload, self._charset)
        if "\n" in text:
            text = text.replace("\r\n", "\r").replace("\n", "\r")
        if text[:3] != "MSH":
            text = text.lstrip("\ufeff\r \t")
        if text.find("\rMSH", 3) < 0:
            self._message(text, codec, len(payload), framed, cut, at_ns, out)
            return
        parts = _NEXT_MESSAGE.split(text)
        for number, part in enumerate(parts, 1):
            if part[:3] not in ("FHS", "BHS"):
                self._message(part, codec, len(part), framed, cut and number == len(parts), at_ns, out)

    def _message(self, text: str, codec: str, size: int, framed: bool, cut: bool, at_ns: int, out: Outlet) -> None:
        message = standard(text)
        if message is None:
            self._unusable(text, codec, size, framed, at_ns, out)
            return
        lines = message.text.split("\r")
        if len(lines[0]) > _HEADER_MAX:
            out.append(Reject("header too long", size, at_ns))
            return
        head = header_fields(lines[0])
        kind = head[9]
        if not kind:
            out.append(Reject("header without message type", size, at_ns))
            self._refuse(message, head, codec, framed, out)
            return
        action, name, trigger = _ROUTES.get(kind) or _route(kind)
        if action == _SILENT:
            return
        if cut:
            without_cut_row(lines, at_ns, out)
        offset = zone(head[7])
        if action == _ROWS and "MDC_EVT_ALARM" not in message.text:
            observations(lines, at_ns, offset, codec, self._memory, out)
        elif action in (_ROWS, _ALARMS):
            for group, location, subject in alarm_groups(lines, at_ns, offset, codec, out, action == _ALARMS):
                observations(group, at_ns, offset, codec, self._memory, out, location, subject)
        elif action == _PATIENT:
            trigger = trigger or _event_type(lines)
            if trigger in TRIGGERS:
                patient_events(lines, trigger, head[7], offset, at_ns, out)
            else:
                action = _UNUSED
        if action == _UNUSED:
            out.append(Reject(f"message type {shown(f'{name}^{trigger}', codec, 40)} is not used", size, at_ns))
        if not self._acknowledge:
            return
        if action == _QUERY:
            answer = acknowledge.ANSWERS[name, trigger]
            self._count += 1
            text = acknowledge.answer(message, answer, self._count)
            out.append(acknowledge.reply(text, codec, framed, self._channel))
            return
        code = acknowledge.accept_code(head)
        if code and (code == "CA" or not _is_response(lines)):
            self._count += 1
            text = acknowledge.acknowledgement(message, head, trigger, code, self._count)
            out.append(acknowledge.reply(text, codec, framed, self._channel))

    def _unusable(self, text: str, codec: str, size: int, framed: bool, at_ns: int, out: Outlet) -> None:
        """Not a message, or one whose encoding characters separate nothing."""
        if text[:3] != "MSH":
            out.append(Reject("not an HL7 message", size, at_ns))
            return
        out.append(Reject("header without usable encoding characters", size, at_ns))
        header = text.split("\r", 1)[0]
        if header[3:4] == "|":  # only the others are wrong: MSH-10 can still be found
            head = header_fields(header)
            head[2] = "^~\\&"
            self._refuse(Text(text, "|^~\\&", text), head, codec, framed, out)

    def _refuse(self, message: Text, head: list[str], codec: str, framed: bool, out: Outlet) -> None:
        code = acknowledge.reject_code(head)
        if self._acknowledge and code and head[10]:
            self._count += 1
            raw = head
            if message.original is not message.text:
                raw = header_fields(message.original.split("\r", 1)[0], message.delimiters[0])
            text = acknowledge.unusual(raw, message.delimiters, "ACK", code, self._count)
            out.append(acknowledge.reply(text, codec, framed, self._channel))


def _is_response(lines: list[str]) -> bool:
    """Whether the message answers another: MSA stands second, or behind a software segment."""
    return any(line.startswith("MSA|") for line in lines[1:4])


def _event_type(lines: list[str]) -> str:
    """EVN-1, for senders that leave the trigger out of MSH-9."""
    return next((component(fields(line, 1)[1], 1) for line in lines[1:4] if line.startswith("EVN|")), "")
