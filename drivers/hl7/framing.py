"""Cuts the byte stream into messages: MLLP frames, and messages that come without any framing.

Theory of operation. Five states. IDLE waits for 0B, which opens a frame (FRAMED), or for the letters MSH and a
punctuation character, which open an unframed message (BARE); anything else is counted as noise, and so is a 0B that
no message header follows. A frame ends at 1C followed by CR, LF or the next 0B, or at 1C followed by silence: the
closing CR may be missing, but a 1C inside the text does not cut a number in two. A 0B inside a frame means that the
sender started again: the torn frame is rejected, never read. An unframed message ends where a new line starts with
MSH, at 0B, at 1C CR, or by silence. A message longer than LIMIT is dropped in FRAMED_OVER or BARE_OVER until its end
or the next 0B.

Each state scans from where it stopped, so that one byte a call costs no more than one call. What comes out depends on
the bytes and their order alone, not on how they were cut into chunks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LIMIT = 1 << 20  # bytes of one message; a 1.5 kB vital-sign message is usual, a minute of waveforms is below 500 kB
MESSAGE_SILENCE_NS = 1_000_000_000  # ends an unframed message, or a frame that lacks only its closing CR
FRAME_SILENCE_NS = 30_000_000_000  # gives up a frame without end: longer than TCP retransmission holds bytes back

IDLE, FRAMED, BARE, FRAMED_OVER, BARE_OVER = range(5)

_VT, _FS = 0x0B, 0x1C
_AFTER_FS = (0x0D, 0x0A, 0x0B)
_SUBSTITUTE = b"\x1a"  # stands for a stray 1C, which must not come back inside an acknowledgement's frame
_PUNCTUATION = rb"[!-/:-@\[-`{-~]"
_START = re.compile(rb"\x0b+|MSH" + _PUNCTUATION)
_STRAYS = re.compile(rb"\x1c+")
_BARE_CONTROL = re.compile(rb"[\x0b\x1c]|[\r\n](?=MSH" + _PUNCTUATION + rb")")
_WINDOW = 4096  # bytes searched at once: a flood of one control character must not search for the other to the end
_LOOKAHEAD = 4  # bytes that the last alternative of _BARE_CONTROL wants to see behind the line end
_HEADERS = tuple(mark + name for mark in (b"", b"\xef\xbb\xbf") for name in (b"MSH", b"FHS", b"BHS"))
_HEADER_WITHIN = 64  # bytes of a frame that may be blank before its header
_BLANK = b"\r\n\t "  # between messages, nobody's fault


class Frame(NamedTuple):
    """One message; `cut` when silence ended it in the middle of a line."""

    payload: bytes
    framed: bool
    cut: bool


class Skipped(NamedTuple):
    """Bytes that were dropped, and why."""

    reason: str
    size: int


class Framer:
    """The five states; `feed` and `silence` give what became complete, in order."""

    __slots__ = ("_buffer", "_dropped", "_opened", "_out", "_reason", "_scan", "_state", "_stray")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scan = 0
        self._state = IDLE
        self._stray = False
        self._opened = False  # whether a message header was seen behind 0B
        self._dropped = 0
        self._reason = ""
        self._out: list[Frame | Skipped] = []

    @property
    def clear(self) -> bool:
        """Whether nothing is pending, so that a whole frame may be taken without this class."""
        return self._state == IDLE and not self._buffer and not self._dropped

    def feed(self, data: bytes) -> list[Frame | Skipped]:
        """Messages and skips that these bytes complete."""
        self._out = []
        self._buffer += data
        while self._step():
            pass
        return self._out

    def silence(self, silent_ns: int) -> list[Frame | Skipped]:
        """Messages and skips that so long a silence completes."""
        self._out = []
        if silent_ns < MESSAGE_SILENCE_NS:
            return self._out
        buffer = self._buffer
        if self._state == BARE:
            closed = buffer[-1] == _FS
            self._message(len(buffer) - closed, framed=closed, cut=not closed and buffer[-1] not in b"\r\n")
            buffer.clear()
            self._enter(IDLE)
        elif self._state == FRAMED and buffer and buffer[-1] == _FS:
            self._message(len(buffer) - 1, framed=True)
            buffer.clear()
            self._enter(IDLE)
        elif self._state == IDLE:
            self._noise(len(buffer))
            self._end_drop()
        elif silent_ns >= FRAME_SILENCE_NS:
            self._drop(self._unfinished(), len(buffer))
            del buffer[:]
            self._end_drop()
            self._enter(IDLE)
        return self._out

    def _unfinished(self) -> str:
        """What to call a message that never ended."""
        if self._state != FRAMED:
            return "frame too long"
        return "frame without end" if self._opened else "bytes outside a frame"

    def _step(self) -> bool:
        """One move of the state machine; False when it needs more bytes."""
        if self._state == IDLE:
            return self._idle()
        if self._state == FRAMED and not self._opened:
            return self._open()
        framed = self._state in (FRAMED, FRAMED_OVER)
        buffer = self._buffer
        at = self._frame_control() if framed else self._bare_control()
        if at < 0:
            self._scan = max(self._scan, len(buffer) - (0 if framed else _LOOKAHEAD))
            return self._pause()
        control = buffer[at]
        if control == _FS:
            run = _STRAYS.match(buffer, at)
            if run is not None and run.end() > at + 1:  # only the last of several can end the message
                at = run.end() - 1
                self._stray = True
            if at + 1 == len(buffer):
                self._scan = at
                return self._pause()
            if buffer[at + 1] not in _AFTER_FS:
                self._scan = at + 1
                self._stray = True
                return True
        if at > LIMIT and self._state in (FRAMED, BARE):
            self._over()
            return True
        self._finish(at, control)
        return True

    def _frame_control(self) -> int:
        """Position of the next 0B or 1C, -1 when there is none."""
        buffer, at = self._buffer, self._scan
        while at < len(buffer):
            stop = at + _WINDOW
            found = buffer.find(b"\x1c", at, stop)
            again = buffer.find(b"\x0b", at, stop if found < 0 else found)
            if again >= 0 or found >= 0:
                return again if again >= 0 else found
            at = stop
        return -1

    def _bare_control(self) -> int:
        """Position of the next 0B, 1C or line end before MSH, -1 when there is none."""
        found = _BARE_CONTROL.search(self._buffer, self._scan)
        return found.start() if found else -1

    def _finish(self, at: int, control: int) -> None:
        """The message ends before position `at`; what comes next depends on the control character there."""
        if self._state == FRAMED:
            if control == _VT:
                self._drop("frame without end", at)
                self._end_drop()
            else:
                self._message(at, framed=True)
        elif self._state == BARE:
            self._message(at, framed=control == _FS)
        else:
            self._drop("frame too long", at)
            self._end_drop()
        del self._buffer[: at + 1]
        if control == _VT:
            self._enter(FRAMED)
        elif control == _FS:
            if self._buffer[0] != _VT:  # the CR or LF behind 1C
                del self._buffer[:1]
            self._enter(IDLE)
        else:
            self._enter(BARE)

    def _idle(self) -> bool:
        buffer = self._buffer
        found = _START.search(buffer)
        if found is None:
            keep = next((size for size in (3, 2, 1) if buffer.endswith(b"MSH"[:size])), 0)
            self._noise(len(buffer) - keep)
            return False
        bare = buffer[found.start()] != _VT
        at = found.start() if bare else found.end() - 1  # only the last of several 0B can open a frame
        self._noise(at)
        if bare:
            self._end_drop()
        else:
            del buffer[:1]
        self._enter(BARE if bare else FRAMED)
        return True

    def _open(self) -> bool:
        """Look whether a header follows 0B; if not, the 0B was noise."""
        head = bytes(self._buffer[:_HEADER_WITHIN]).lstrip(_BLANK)
        if head.startswith(_HEADERS):
            self._opened = True
            self._end_drop()
            return True
        if len(self._buffer) < _HEADER_WITHIN and any(header.startswith(head) for header in _HEADERS):
            return False
        self._drop("bytes outside a frame", 1)
        self._enter(IDLE)
        return True

    def _pause(self) -> bool:
        """No end in sight: an over-long message starts to be dropped, one that is being dropped gives back memory."""
        if self._state in (FRAMED, BARE):
            if self._scan <= LIMIT:
                return False
            self._over()
            return True
        self._drop("frame too long", self._scan)
        del self._buffer[: self._scan]
        self._scan = 0
        return False

    def _over(self) -> None:
        self._enter(FRAMED_OVER if self._state == FRAMED else BARE_OVER)

    def _enter(self, state: int) -> None:
        self._state = state
        self._scan = 0
        self._stray = False
        self._opened = False

    def _message(self, size: int, *, framed: bool, cut: bool = False) -> None:
        payload = bytes(self._buffer[:size])
        if self._stray:
            payload = payload.replace(b"\x1c", _SUBSTITUTE)
        self._out.append(Frame(payload, framed, cut))

    def _noise(self, size: int) -> None:
        noise = self._buffer[:size].translate(None, _BLANK)
        if noise:
            self._drop("bytes outside a frame", len(noise))
        del self._buffer[:size]

    def _drop(self, reason: str, size: int) -> None:
        """Count dropped bytes; an endless stream of them is reported once every LIMIT bytes."""
        self._reason = reason
        self._dropped += size
        while self._dropped > LIMIT:
            self._out.append(Skipped(reason, LIMIT + 1))
            self._dropped -= LIMIT + 1

    def _end_drop(self) -> None:
        if self._dropped:
            self._out.append(Skipped(self._reason, self._dropped))
            self._dropped = 0
