"""Nonin oximeters on a serial line: data formats 2, 7 and 8 and the text lines of the handheld models.

Theory of operation. The decoder keeps the bytes it has not yet understood and looks at the first of them: can a packet
of any format begin here? Three answers are possible. *Yes, complete*: the packet leaves as items. *Not yet*: it waits
for more. *No*: it gives up one byte and looks again. So a packet is found wherever it begins, whatever stands in front,
and how the bytes were cut into chunks makes no difference. What was given up is reported as one Reject.

How sure it must be before it shows a number:
  2, 7   25 consecutive frames with good checksums, frame 1 and only frame 1 marked SYNC. Less gives nothing.
  8      has no checksum. Three packets in a row must have the form (bit 7 set in the first of four bytes only, reserved
         bits clear, values in range), then all three leave with their own times; a later packet needs its predecessor.
         The first of the three may be the end of noise: behind noise it counts only when it agrees with the second.
         Frames of 2 and 7 cannot pass for it, because their bit 7 returns every fifth byte.
  text   a whole line with three-digit fields and its line end.
`format` fixes one of them.

Rates and averages: formats 2 and 7 send 3 packets a second and pleth at 75 Hz, 8 and text one a second. The numbers are
frames 1-3 of a packet, the standard four-beat averages, not the extended, displayed, fast or beat-to-beat ones.

Missing values are 511 (pulse) and 127 (SpO2). With the sensor disconnected or in alarm nothing is a value; out of
track, artefact and low perfusion make the values questionable.

Source: Nonin OEM III serial formats 2, 7 and 8; operator's manuals of Avant 4000 and 9600, 2500 and 9847, chapter
"Communications", real-time output.
"""

from __future__ import annotations

import re
import struct

from drivers.contract import Driver, Line
from edge_agent import terms
from edge_agent.records import NO_SAMPLE, Chunk, DeviceStatus, Item, Observation, Reject, Validity, Waveform

_FORMATS: tuple[str, ...] = ("auto", "2", "7", "8", "ascii")

_FRAME = 5  # bytes, formats 2 and 7
_FRAMES = 25  # to a packet
_PACKET = _FRAME * _FRAMES
_LINE_MAX = 48  # the longest known line is "HH:MM:SS SPO2=nnn HR=nnn F*", 27
_REJECT_MAX = 512  # report noise at least so often
_PAUSE_NS = 3_000_000_000  # the slowest format sends once a second: what is older belongs to another packet
_QUIET_NS = 1_000_000_000  # a line without its end is over

_SNSD, _ARTF, _OOT, _SNSA, _RPRF, _GPRF, _SYNC = 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01  # status, formats 2 and 7
_8_SNSD, _8_OOT, _8_LPRF, _8_MPRF, _8_ARTF = 0x40, 0x20, 0x10, 0x08, 0x04  # first byte, format 8
_8_RESERVED = 0xD0  # fourth byte, format 8: bits 7, 6 and 4
_8_FAULT, _8_CRITICAL, _8_LOW = 0x08, 0x02, 0x01  # fourth byte, format 8
_BATTERY_LOW = 0x01  # STAT2, formats 2 and 7

_NO_PULSE, _NO_SPO2 = 511, 127
_PULSE_MAX = int(terms.BY_NAME["pulse_rate"].plausible_max or 0)
_LINE = re.compile(
    rb"(?:\d\d:\d\d:\d\d )?SPO2= ?(\d{3}|---)%? +HR= ?(\d{3}|---) *((?:[FB*] *)*)", re.IGNORECASE
)  # F: fast-responding values, B: breath seen, *: event marked by the user
_LINE_START = re.compile(rb"(?:\d\d:\d\d:\d\d )?SPO2=", re.IGNORECASE)
_LINE_STARTS = (b"SPO2=", b"00:00:00 SPO2=")  # what completes a start of which only some bytes are there

_WAIT, _NO = -1, 0


def _plausible(pulse: int, spo2: int) -> bool:
    return (spo2 <= 100 or spo2 == _NO_SPO2) and (pulse <= _PULSE_MAX or pulse == _NO_PULSE)


def _form_8(packet: bytes) -> bool:
    """Whether these up to four bytes can be a packet of format 8, or the beginning of one."""
    if any(bool(byte & 0x80) != (offset == 0) for offset, byte in enumerate(packet)):
        return False
    return len(packet) < 4 or (not packet[3] & _8_RESERVED and _plausible((packet[0] & 3) << 7 | packet[1], packet[2]))


def _agree(first: bytes, second: bytes) -> bool:
    """Whether two packets of format 8 can be neighbours by what they say: a wrong one would then hardly be wrong."""
    pulses = [(packet[0] & 3) << 7 | packet[1] for packet in (first, second)]
    return (
        first[0] & 0x7C == second[0] & 0x7C
        and first[3] == second[3]
        and abs(first[2] - second[2]) <= 3
        and abs(pulses[0] - pulses[1]) <= 10
    )


class Nonin:
    """Decoder of one oximeter; `format` is auto, 2, 7, 8 or ascii.

    Raises: ValueError for another format.
    """

    def __init__(self, format: str | int = "auto") -> None:
        name = str(format).lower()
        if name not in _FORMATS:
            raise ValueError(f"format {format!r} is none of {', '.join(_FORMATS)}")
        self._format = name
        self._buffer = bytearray()
        self._times: list[tuple[int, int]] = []  # (end offset in buffer, at_ns) of each chunk that is still in it
        self._frames_good = 0  # of the candidate packet at the start of the buffer
        self._locked_8 = False
        self._clean = True  # nothing was given up since the last packet or the last silence
        self._text_seen = False
        self._skipped = 0
        self._last_ns = 0
        self._states: dict[str, str] = {"sensor": "ok", "signal": "ok", "battery": "ok"}
        self._perfusion = "ok"  # formats 2 and 7 tell it only while a pulse passes

    def feed(self, chunk: Chunk) -> list[Item]:
        out: list[Item] = []
        at_ns = chunk.at_ns
        if not chunk.data:
            return out
        if at_ns - self._last_ns > _PAUSE_NS:
            self._locked_8 = False
            self._drop(len(self._buffer), out, at_ns)
            self._clean = True
        self._last_ns = at_ns
        self._buffer += chunk.data
        self._times.append((len(self._buffer), at_ns))
        while self._buffer:
            size = self._match(out)
            if size == _WAIT:
                break
            self._take(size or 1)
            if not size:
                self._skip(out, at_ns)
        return out

    def tick(self, at_ns: int) -> list[Item]:
        out: list[Item] = []
        if at_ns - self._last_ns > _QUIET_NS:
            line = _LINE.fullmatch(self._buffer.strip()) if self._format in ("auto", "ascii") else None
            if line:
                size = len(self._buffer)
                self._line(line, out, self._last_ns)
                self._take(size)
            if self._skipped:
                self._report(out, self._last_ns)
        if self._buffer and at_ns - self._last_ns > _PAUSE_NS:
            self._pair_8(out)
            self._locked_8 = False
            self._drop(len(self._buffer), out, self._last_ns)
            self._report(out, self._last_ns)
            self._clean = True
        return out

    # -- the buffer -------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> None:
        del self._buffer[:size]
        self._times = [(end - size, at_ns) for end, at_ns in self._times if end > size]
        self._frames_good = 0

    def _received_ns(self, end: int) -> int:
        return next((at_ns for chunk_end, at_ns in self._times if chunk_end >= end), self._last_ns)

    def _skip(self, out: list[Item], at_ns: int) -> None:
        self._skipped += 1
        self._locked_8 = self._clean = False
        if self._skipped >= _REJECT_MAX:
            self._report(out, at_ns)

    def _drop(self, size: int, out: list[Item], at_ns: int) -> None:
        self._take(size)
        for _ in range(size):
            self._skip(out, at_ns)

    def _report(self, out: list[Item], at_ns: int) -> None:
        if self._skipped:
            out.append(Reject("no complete packet", self._skipped, at_ns))
            self._skipped = 0

    # -- what begins here -------------------------------------------------------------------------------------------

    def _match(self, out: list[Item]) -> int:
        """Bytes of the packet that was taken from the start of the buffer, or _NO, or _WAIT."""
        first, wanted = self._buffer[0], self._format
        if first == 0x01:  # format 2 marks a frame with this byte and then a status with bit 7 set
            return self._packet("2", out) if wanted in ("auto", "2") else _NO
        if first & 0x80:
            size = self._packet_8(out) if wanted in ("auto", "8") else _NO
            if size > 0:
                return size
            other = self._packet("7", out) if wanted in ("auto", "7") else _NO
            return other or size
        if wanted in ("auto", "ascii"):
            return self._text(out)
        return _NO

    def _packet(self, kind: str, out: list[Item]) -> int:
        """Formats 2 and 7 at the start of the buffer."""
        buffer, skip = self._buffer, (1 if kind == "2" else 0)
        while self._frames_good < _FRAMES:
            start = self._frames_good * _FRAME
            if len(buffer) < start + 2:
                break
            status = buffer[start + skip]
            if (skip and buffer[start] != 0x01) or not status & 0x80 or bool(status & _SYNC) != (start == 0):
                return _NO
            if len(buffer) < start + _FRAME:
                break
            if sum(buffer[start : start + 4]) & 0xFF != buffer[start + 4]:
                return _NO
            self._frames_good += 1
        else:
            self._decode_packet(bytes(buffer[:_PACKET]), kind, out)
            return _PACKET
        return _WAIT

    def _packet_8(self, out: list[Item]) -> int:
        """Format 8 at the start of the buffer."""
        buffer = self._buffer
        wanted = 4 if self._locked_8 else 12  # four bytes of noise have this form once in a thousand times
        for start in range(0, wanted, 4):
            packet = bytes(buffer[start : start + 4])
            if not _form_8(packet):
                return _NO
            if len(packet) < 4:
                return _WAIT
        first = 0
        if wanted == 12 and not self._clean and not _agree(bytes(buffer[:4]), bytes(buffer[4:8])):
            first = 4
            for _ in range(first):
                self._skip(out, self._last_ns)
        self._report(out, self._last_ns)
        for start in range(first, wanted, 4):
            self._decode_8(bytes(buffer[start : start + 4]), out, self._received_ns(start + 4))
        self._locked_8 = self._clean = True
        return wanted

    def _pair_8(self, out: list[Item]) -> None:
        """Two packets of format 8 between two silences and nothing else: no third will come, and none is wanted."""
        data = bytes(self._buffer)
        if self._format in ("auto", "8") and self._clean and len(data) == 8 and _form_8(data[:4]) and _form_8(data[4:]):
            for start in (0, 4):
                self._decode_8(data[start : start + 4], out, self._received_ns(start + 4))
            self._take(8)

    def _text(self, out: list[Item]) -> int:
        """A text line at the start of the buffer."""
        buffer = self._buffer
        if buffer[0] in b"\r\n":
            return 1 if self._text_seen else _NO
        if buffer[0] not in b"sS0123456789":
            return _NO
        head = bytes(buffer[:_LINE_MAX])
        if not _LINE_START.match(head):
            possible = any(_LINE_START.fullmatch(head + start[len(head) :]) for start in _LINE_STARTS)
            return _WAIT if possible else _NO
        end = re.search(rb"[^ -~]", head)
        if end is None:
            return _WAIT if len(head) < _LINE_MAX else _NO
        line = _LINE.fullmatch(head[: end.start()]) if end[0] in b"\r\n" else None
        if line is None:
            return _NO
        self._line(line, out, self._received_ns(end.end()))
        return end.end()

    # -- what it says -----------------------------------------------------------------------------------------------

    def _decode_packet(self, packet: bytes, kind: str, out: list[Item]) -> None:
        at_ns = self._received_ns(_PACKET)
        self._report(out, at_ns)
        skip = 1 if kind == "2" else 0
        statuses = packet[skip::_FRAME]
        floats = packet[3::_FRAME]
        seen = 0
        for status in statuses:
            seen |= status
            if status & (_RPRF | _GPRF):
                red, green = status & _RPRF, status & _GPRF
                self._perfusion = "ok" if not red else "marginal_perfusion" if green else "low_perfusion"
        sensor = "disconnected" if seen & _SNSD else "fault" if seen & _SNSA else "ok"
        signal = "out_of_track" if seen & _OOT else "artefact" if seen & _ARTF else self._perfusion
        battery = "low" if floats[7] & _BATTERY_LOW else "ok"
        pulse = (floats[0] & 0x03) << 7 | floats[1] & 0x7F
        self._values(out, at_ns, pulse, floats[2], (sensor, signal, battery))
        out.append(_pleth(packet, statuses, kind, at_ns))

    def _decode_8(self, packet: bytes, out: list[Item], at_ns: int) -> None:
        status, low, spo2, status_2 = packet
        sensor = "disconnected" if status & _8_SNSD else "fault" if status_2 & _8_FAULT else "ok"
        perfusion = "low_perfusion" if status & _8_LPRF else "marginal_perfusion" if status & _8_MPRF else "ok"
        signal = "out_of_track" if status & _8_OOT else "artefact" if status & _8_ARTF else perfusion
        battery = "critical" if status_2 & _8_CRITICAL else "low" if status_2 & _8_LOW else "ok"
        self._values(out, at_ns, (status & 3) << 7 | low, spo2, (sensor, signal, battery))

    def _line(self, line: re.Match[bytes], out: list[Item], at_ns: int) -> None:
        self._report(out, at_ns)
        spo2, pulse = (missing if b"-" in text else int(text) for text, missing in
                       ((line[1], _NO_SPO2), (line[2], _NO_PULSE)))  # fmt: skip
        self._text_seen = True
        self._values(out, at_ns, pulse, spo2, ("ok", "ok", "ok"))
        if b"*" in line[3]:
            out.append(DeviceStatus("device", "event_marked", at_ns))

    def _values(self, out: list[Item], at_ns: int, pulse: int, spo2: int, states: tuple[str, str, str]) -> None:
        sensor, signal, _ = states
        for kind, state in zip(self._states, states, strict=True):
            if self._states[kind] != state:
                self._states[kind] = state
                out.append(DeviceStatus(kind, state, at_ns))
        usable: Validity = "valid" if signal in ("ok", "marginal_perfusion") else "questionable"
        for term, raw, missing, highest in (
            ("spo2", spo2, _NO_SPO2, 100),
            ("pulse_rate", pulse, _NO_PULSE, _PULSE_MAX),
        ):
            if sensor != "ok" or raw == missing:
                out.append(Observation(term, None, "not_available", at_ns))
            elif 0 < raw <= highest:
                out.append(Observation(term, float(raw), usable, at_ns))
            else:  # an oximeter sees a pulse or it sees nothing: 0 is no measurement either
                out.append(Observation(term, None, "invalid", at_ns))


def _pleth(packet: bytes, statuses: bytes, kind: str, at_ns: int) -> Waveform:
    """The 25 pleth samples of a packet, in counts of the device."""
    if kind == "2":
        raw, offset = list(packet[2::_FRAME]), 0
    else:  # 16 bits unsigned; the lowest count gives way to the mark for "no sample"
        raw = [max(high << 8 | low, 1) - 32768 for high, low in zip(packet[1::_FRAME], packet[2::_FRAME], strict=True)]
        offset = 32768
    samples = [NO_SAMPLE if status & (_SNSD | _SNSA) else value for status, value in zip(statuses, raw, strict=True)]
    return Waveform("pleth", 75.0, struct.pack(f"<{_FRAMES}h", *samples), 1.0, float(offset), at_ns)


DRIVER = Driver(
    name="nonin",
    decoder=Nonin,
    links=frozenset({"serial", "tcp", "file"}),
    emits=("spo2", "pulse_rate", "pleth"),
    silence_s=3.0,
    evidence="Format 2: frames asserted by a public test suite. Formats 7 and 8 and status bits: published layouts. "
    "Text lines: operator's manuals. No hardware yet.",
    options=("format",),
    lines=(Line(9600),),
)
