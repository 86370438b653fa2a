"""How messages lie on the wire: one to a datagram, or in frames on the MIB/RS-232 line.

Theory of operation. A datagram is one message and is never put together from pieces or cut. On a serial line a message
stands in a frame: C0, a header of 11 01 and the length, the message, a check sequence, C1; inside, C0, C1 and 7D are
escaped. C0 therefore always begins a frame, whatever came before it, and only a frame with its length and its check
sequence right is a message. A frame that ends with the escape is one its sender gave up.

A file of messages without frames can be decoded too. It has no check sequence, so it is taken for one only when its
first octets are the beginning of a message and nobody converses (no time has been told yet); a live serial line never
is. A message counts when another one, or silence, follows it; behind one that cannot be, the next is looked for by the
four octets of a data message.

What was given up is counted and reported with the next message, every 512 octets, or when the line falls quiet, so that
cutting the octets differently changes nothing.

Source: Philips IntelliVue Data Export Interface Programming Guide, transport protocols: UDP/IP and fixed baudrate
protocol of the MIB/RS-232 interface; RFC 1662 appendix C for the check sequence.
"""

from __future__ import annotations

_BEGIN, _END, _ESCAPE, _FLIP = 0xC0, 0xC1, 0x7D, 0x20
_HEADER = b"\x11\x01"  # protocol: data export; message type: data
_FRAME_MAX = 2 * 4096  # escaped; the longest message that is negotiated has 1364 octets
_REPORT = 512  # octets given up that are worth an item of their own

DATA = b"\xe1\x00\x00\x02"  # session and context of a data message
CONNECT, ACCEPT, REFUSE, FINISH, DISCONNECT, ABORT = 0x0D, 0x0E, 0x0C, 0x09, 0x0A, 0x19
_CONTROL = (CONNECT, ACCEPT, REFUSE, FINISH, DISCONNECT, ABORT)
# What may follow type and length of a control message, for telling one from noise.
_CONTROL_BODY = {
    CONNECT: (b"\x05\x08",),
    ACCEPT: (b"\x05\x08",),
    REFUSE: (b"\x32\x01", b"\x05\x08", b"\x11\x01"),
    FINISH: (b"\xc1",),
    DISCONNECT: (b"\xc1",),
    ABORT: (b"\x11\x01",),
}


def _crc_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        rest = octet
        for _ in range(8):
            rest = rest >> 1 ^ (0x8408 if rest & 1 else 0)
        table.append(rest)
    return tuple(table)


_CRC = _crc_table()


def check_sequence(octets: bytes) -> int:
    """The frame check sequence of header and message."""
    crc = 0xFFFF
    for octet in octets:
        crc = crc >> 8 ^ _CRC[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFF


def frame(message: bytes) -> bytes:
    """The message in its frame for the serial line."""
    inner = _HEADER + len(message).to_bytes(2, "big") + message
    inner += check_sequence(inner).to_bytes(2, "little")
    out = bytearray((_BEGIN,))
    for octet in inner:
        if octet in (_BEGIN, _END, _ESCAPE):
            out += bytes((_ESCAPE, octet ^ _FLIP))
        else:
            out.append(octet)
    out.append(_END)
    return bytes(out)


def unframe(inner: bytes) -> bytes | None:
    """The message between C0 and C1; None when escape, length or check sequence are wrong."""
    if _ESCAPE in inner:
        out = bytearray()
        escaped = False
        for octet in inner:
            if escaped:
                out.append(octet ^ _FLIP)
                escaped = False
            elif octet == _ESCAPE:
                escaped = True
            else:
                out.append(octet)
        if escaped:  # given up by its sender
            return None
        inner = bytes(out)
    if len(inner) < 6 or inner[:2] != _HEADER or int.from_bytes(inner[2:4], "big") != len(inner) - 6:
        return None
    if check_sequence(inner[:-2]) != int.from_bytes(inner[-2:], "little"):
        return None
    return inner[4:-2]


def size(message: bytes | bytearray) -> int | None:
    """How long the message that begins here is by what it says; 0 when it cannot be told yet, None when it is none."""
    first = message[0]
    if first in _CONTROL:
        if len(message) < 2:
            return 0
        if message[1] != 0xFF:
            return 2 + message[1]
        return 4 + int.from_bytes(message[2:4], "big") if len(message) >= 4 else 0
    if not DATA.startswith(bytes(message[:4])) and first != 0:
        return None
    if len(message) < 8:
        return 0
    if first == 0 and (message[1] or message[4:6] != b"\x00\x01"):  # connect indication: an invocation without session
        return None
    return 8 + int.from_bytes(message[6:8], "big")


def whole(datagram: bytes) -> bool:
    """Whether a datagram is one message from its first octet to its last."""
    return bool(datagram) and size(datagram) == len(datagram)


def _recognised(start: bytes) -> bool | None:
    """Whether a stream without frames begins with these octets; None when more are needed to tell."""
    first = start[0]
    if first in _CONTROL_BODY:
        behind = 4 if start[1:2] == b"\xff" else 2
        body = start[behind : behind + 2]
        if len(start) < 2 or not body:
            return None
        if any(body.startswith(each) for each in _CONTROL_BODY[first]):
            return True
        return None if len(body) < 2 and any(each.startswith(body) for each in _CONTROL_BODY[first]) else False
    wanted = DATA if first == DATA[0] else b"\x00\x00"
    if first not in (DATA[0], 0) or not wanted.startswith(start[: len(wanted)]):
        return False
    if first == 0 and len(start) >= 6:
        return start[4:6] == b"\x00\x01"
    return True if first != 0 and len(start) >= 4 else None


class Stream:
    """Messages out of the octets of a serial line, or of a file of messages; an int is a number of octets given up."""

    def __init__(self) -> None:
        self.framed: bool | None = None  # None: not yet known
        self._buffer = bytearray()
        self._inside = False  # behind a C0
        self._lost = False  # without frames: the next message is looked for
        self._skipped = 0

    def feed(self, data: bytes, conversing: bool) -> list[bytes | int]:
        """What these octets complete; `conversing`: octets without frames are no messages."""
        out: list[bytes | int] = []
        self._buffer += data
        if conversing and self.framed is False:
            self.framed = True
        if self.framed is None and self._buffer:
            known = False if conversing else _recognised(bytes(self._buffer[:8]))
            if known is None:
                return out
            self.framed = not known
        if self.framed:
            self._frames(out)
        elif self.framed is False:
            self._messages(out)
        return out

    def quiet(self) -> list[bytes | int]:
        """The line is quiet: what is unfinished is over."""
        out: list[bytes | int] = []
        if self.framed is False:
            self._messages(out, final=True)
        self._skipped += len(self._buffer) + self._inside
        self._report(out)
        self._buffer.clear()
        self._inside = self._lost = False
        return out

    @property
    def pending(self) -> bool:
        """Whether there is something to report or to give up."""
        return bool(self._buffer or self._inside or self._skipped)

    def _report(self, out: list[bytes | int]) -> None:
        if self._skipped:
            out.append(self._skipped)
            self._skipped = 0

    def _skip(self, count: int, out: list[bytes | int]) -> None:
        while self._skipped + count >= _REPORT:
            count -= _REPORT - self._skipped
            self._skipped = _REPORT
            self._report(out)
        self._skipped += count

    def _frames(self, out: list[bytes | int]) -> None:
        buffer = self._buffer
        while buffer:
            if not self._inside:
                start = buffer.find(_BEGIN)
                self._skip(len(buffer) if start < 0 else start, out)
                del buffer[: len(buffer) if start < 0 else start + 1]
                self._inside = start >= 0
                continue
            begin, end = buffer.find(_BEGIN), buffer.find(_END)
            stop = min(each for each in (begin, end, _FRAME_MAX) if each >= 0)
            if stop >= len(buffer):
                return
            if stop != end:  # another frame begins, or this one has no end: its C0 was none
                self._skip(stop + 1, out)
                del buffer[:stop]
                self._inside = False
                continue
            message = unframe(bytes(buffer[:end]))
            del buffer[: end + 1]
            self._inside = False
            if message is None:
                self._skip(end + 2, out)
            else:
                self._report(out)
                out.append(message)

    def _messages(self, out: list[bytes | int], *, final: bool = False) -> None:
        """Messages without frames; `final`: nothing more comes behind these octets."""
        buffer = self._buffer
        while buffer:
            if self._lost and not buffer.startswith(DATA):
                start = buffer.find(DATA)
                if start < 0:  # what may be the beginning of one stays
                    kept = next((each for each in (3, 2, 1) if buffer.endswith(DATA[:each])), 0)
                    self._skip(len(buffer) - kept, out)
                    del buffer[: len(buffer) - kept]
                    return
                self._skip(start, out)
                del buffer[:start]
            length = size(buffer)
            fits = self._fits(length, final)
            if fits is None:
                return
            if not length or not fits:
                self._lost = True
                self._skip(1, out)
                del buffer[:1]
                continue
            self._lost = False
            self._report(out)
            out.append(bytes(buffer[:length]))
            del buffer[:length]

    def _fits(self, length: int | None, final: bool) -> bool | None:
        """Whether the buffer begins with a whole message of that length; None when more octets are needed to tell."""
        buffer = self._buffer
        if length is None:
            return False
        if length == 0 or length > len(buffer):
            return False if final else None
        behind = _recognised(bytes(buffer[length : length + 8])) if len(buffer) > length else None
        if behind is None and not final:
            return None
        return behind is not False and DATA not in buffer[4:length]  # one that holds the beginning of another was cut
