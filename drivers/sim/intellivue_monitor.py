"""A Philips IntelliVue monitor as its Data Export interface shows it: association, polls, alerts, a patient, waves.

Written from the published structures and not from the decoder, so that the two do not share a misunderstanding. It
does no input or output and reads no clock: what a client sent goes into `receive`, the passing of time into `advance`,
and both give the messages that the monitor sends.

Theory of operation. The monitor has one client. It announces itself until one associates, then sends an MDS Create,
repeats it every three seconds and answers polls only once that was answered. Extended polls run for the time that the
request names; a client that is silent for ten seconds is aborted. Results longer than a message come as linked ones
with an empty result behind them. Of waves and numerics one object in 1024 ms comes with its context. A cuff pressure is
repeated every second with the time of its measurement; a value that is missing is an unavailable one.

Source: Philips IntelliVue Data Export Interface Programming Guide, protocol commands, association control protocol,
attribute data types and the wave tables.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from edge_agent import terms

PORT, INDICATION_PORT = 24105, 24005
STATE_OK, STATE_INVALID, STATE_QUESTIONABLE, STATE_UNAVAILABLE = 0x0000, 0x8000, 0x4000, 0x2000
STATE_CALIBRATING, STATE_TEST, STATE_DEMO = 0x1000, 0x0800, 0x0400
MODE_MONITORING, MODE_DEMO, MODE_SERVICE = 0x4000, 0x2000, 0x1000
RED, YELLOW, INOP = 0x0400, 0x0200, 0x0002
BLOCK_S = 0.256

ABORT = bytes.fromhex(
    "192E110103C129A080A0803080020101060251010000000061803080020101A080648080010100000000000000000000"
)
_CLIENT_SILENCE_S = 10.0
_CREATE_EVERY_S, _CREATE_TIMES = 3.0, 3
_LONGEST = 1200  # octets of objects in one message
_NUMERICS, _WAVES, _PATIENT, _ALERTS, _SYSTEM = 6, 9, 42, 54, 33
_NIBP = ("nibp_sys", "nibp_dia", "nibp_mean")
_UNITS = {"/min": 2720, "%": 544, "mm[Hg]": 3872, "Cel": 6048, "mm": 1298, "L/min": 3072}
_MANY: dict[str, tuple[str, ...]] = {"nibp": _NIBP, "abp": ("abp_sys", "abp_dia", "abp_mean")}
CARRIED = tuple(
    term.name
    for term in terms.TERMS
    if term.kind == "numeric" and term.mdil and term.ucum in _UNITS and term.name != "perfusion_index"
)  # what it has numerics for; its own perfusion indicator is no percentage
_LABELS = {"heart_rate": "HR", "spo2": "SpO\u2082", "pulse_rate": "Pulse", "resp_rate": "RR", "temp": "Temp"}


def _u16(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in numbers)


def _u32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def _sized(content: bytes) -> bytes:
    return _u16(len(content)) + content


def _counted(parts: list[bytes]) -> bytes:
    return _u16(len(parts)) + _sized(b"".join(parts))


def _attributes(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    return _counted([_u16(name) + _sized(value) for name, value in pairs])


def _string(text: str) -> bytes:
    return _sized((text + "\0").encode("utf-16-be"))


def number(value: float | None) -> bytes:
    """A FLOAT of four octets: power of ten, then the digits; None is "not a number"."""
    if value is None:
        return b"\x00\x7f\xff\xff"
    for places in range(5):
        scaled = value * 10.0**places
        if abs(scaled - round(scaled)) < 1e-6 or places == 4:
            return (-places % 256).to_bytes(1, "big") + (round(scaled) % (1 << 24)).to_bytes(3, "big")
    raise AssertionError("unreachable")


def date(at: datetime) -> bytes:
    """Eight octets of two decimal digits each: century, year, month, day, hour, minute, second, hundredth."""
    return bytes.fromhex(at.strftime("%Y%m%d%H%M%S") + f"{at.microsecond // 10000:02d}")


def rs232(message: bytes) -> bytes:
    """The message as it goes over the MIB/RS-232 line."""
    body = b"\x11\x01" + _sized(message)
    register = 0xFFFF
    for octet in body:
        for bit in range(8):  # the check sequence bit by bit, as the standard defines it
            low = (register ^ octet >> bit) & 1
            register = register >> 1 ^ (0x8408 if low else 0)
    body += (register ^ 0xFFFF).to_bytes(2, "little")
    for special in (0x7D, 0xC0, 0xC1):
        body = body.replace(bytes((special,)), bytes((0x7D, special ^ 0x20)))
    return b"\xc0" + body + b"\xc1"


@dataclass(frozen=True, slots=True)
class Alert:
    """An active alert: kind is RED, YELLOW or INOP, code and source are those of the nomenclature."""

    text: str
    kind: int = YELLOW
    code: int = 2
    source: int = 0x4BB8
    state: int = 0

    def entry(self) -> bytes:
        """The alert as it stands in a list."""
        info = _u16(1) + _u32(0) + _u16(0, 0) + _string(self.text)
        return _u16(self.source, self.code, self.kind, self.state, _NUMERICS, 0, 7, 0x0204) + _sized(info)


@dataclass(frozen=True, slots=True)
class Wave:
    """How a wave is sent: samples of `bits` bits, of which 0 is `low` and the greatest `high` in the unit."""

    name: str
    code: int
    label: str
    period_ms: int
    unit: int
    low: float | None
    high: float | None
    bits: int

    def samples(self, values: list[float]) -> bytes:
        """Values between 0 and 1 of the wave's range as the monitor's converter gives them."""
        full = (1 << self.bits) - 1
        return _u16(*(max(0, min(full, round(value * full))) for value in values))

    def context(self) -> list[tuple[int, bytes]]:
        """Everything that turns samples into values."""
        size = round(BLOCK_S * 1000) // self.period_ms
        full = (1 << self.bits) - 1
        masks = [_u16(1, 0x8000), _u16(2, 0x4000)]  # invalid sample, pacer pulse
        return [
            (0x0924, _u32(0x20000 + self.code)),
            (0x0927, _string(self.label)),
            (0x096D, _u16(size) + bytes((16, self.bits)) + _u16(0x3000)),
            (0x096F, number(self.low) + number(self.high) + _u16(0, full)),
            (0x098D, _u32(self.period_ms * 8)),
            (0x0996, _u16(self.unit)),
            (0x0A16, _counted(masks)),
        ]


WAVES = (
    Wave("ecg_ii", 0x0102, "II", 2, 4274, -8.192, 8.191, 14),
    Wave("pleth", 0x4BB4, "Pleth", 8, 512, None, None, 12),
    Wave("abp_wave", 0x4A14, "ABP", 8, 3872, -40.0, 520.0, 14),
    Wave("resp_wave", 0x5000, "Resp", 16, 4288, -2.0, 2.0, 12),
)


def shape(name: str, phase: float, breath: float) -> float:
    """A wave between 0 and 1 at a phase of the beat and of the breath, both from 0 to 1; no physiology is claimed."""
    if name == "ecg_ii":
        peaks = ((0.18, 0.025, 0.12), (0.28, 0.008, -0.1), (0.3, 0.01, 1.0), (0.32, 0.008, -0.2), (0.5, 0.04, 0.25))
        return 0.5 + 0.06 * sum(high * math.exp(-(((phase - at) / wide) ** 2)) for at, wide, high in peaks)
    if name == "resp_wave":
        return 0.5 + 0.25 * math.sin(2 * math.pi * breath)
    rise = math.exp(-(((phase - 0.45) / 0.12) ** 2)) + 0.35 * math.exp(-(((phase - 0.75) / 0.1) ** 2))
    return 0.2 + 0.2 * rise if name == "abp_wave" else 0.3 + 0.4 * rise


@dataclass(slots=True)
class _Active:
    """An extended poll that runs."""

    invoke: int
    poll: int
    group: int
    until_s: float
    next_s: float
    sequence: int = 0


@dataclass(slots=True)
class Monitor:
    """One monitor; times are seconds since it was switched on."""

    bed_label: str = "BED 1"
    patient_id: str = ""
    started: datetime = field(default_factory=lambda: datetime(2026, 1, 1))
    mode: int = MODE_MONITORING
    waves: tuple[Wave, ...] = WAVES
    extended: bool = True  # whether it knows extended polls
    values: dict[str, float | None] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)  # measurement state by term, where it is not 0
    wave_state: int = STATE_OK
    alerts: list[Alert] = field(default_factory=list)
    state: str = "free"  # free, creating, serving
    _heard_s: float = 0.0
    _created: int = 0
    _created_s: float = 0.0
    _active: dict[int, _Active] = field(default_factory=dict)
    _turn: int = 0
    _measured_s: float = 0.0
    _phase: float = 0.0
    _chosen: list[int] | None = None
    offset: int = 0x00010000  # of the relative time

    # -- what others do with it ---------------------------------------------------------------------------------

    def measure(self, values: Mapping[str, float | None], at_s: float) -> None:
        """New vital signs by term name; a cuff pressure keeps the time at which it came."""
        if any(name in values for name in _NIBP):
            self._measured_s = at_s
        self.values.update(values)

    def indication(self, at_s: float, address: str = "192.0.2.10", port: int = PORT) -> bytes:
        """The connect indication that a free monitor broadcasts."""
        network = bytes(6) + bytes(map(int, address.split("."))) + bytes((255, 255, 255, 0))
        found = [
            (0x0986, _u16(1, 0x104D)),
            (0xF101, _counted([_u16(1, 1, port, 0), _u16(5, 1, port, 0)])),
            (0xF100, network),
            (0x091E, _string(self.bed_label)),
        ]
        event = _u16(_SYSTEM, 0, 0) + _u32(self._ticks(at_s)) + _u16(0x0D17) + _sized(_attributes(found))
        return b"\x00\x00\x01\x00" + _u16(1) + _sized(_u16(0, 0) + _sized(event))

    def abort(self) -> bytes:
        """End the association without a word more."""
        self._free()
        return ABORT

    def restart(self) -> None:
        """Be switched off and on: nothing is remembered, nothing is said."""
        self._free()
        self.offset = 0x00010000
        self._chosen = None

    def receive(self, message: bytes, at_s: float) -> list[bytes]:
        """What the monitor answers to a message of its client at once."""
        if not message:
            return []
        kind = message[0]
        if kind == 0x0D:
            return self._associate(message, at_s)
        if kind == 0x19:
            self._free()
        elif kind == 0x09:
            self._free()
            return [bytes.fromhex("0A18C11661803080020101A08063808001000000000000000000")]
        elif message[:4] == b"\xe1\x00\x00\x02" and self.state != "free" and len(message) >= 14:
            self._heard_s = at_s
            return self._operation(message, at_s)
        return []

    def advance(self, at_s: float) -> list[bytes]:
        """What the monitor sends because time has come to `at_s`; to be called every 256 ms or oftener."""
        if self.state == "free":
            return []
        if at_s - self._heard_s > _CLIENT_SILENCE_S:
            return [self.abort()]
        if self.state == "creating":
            if at_s - self._created_s < _CREATE_EVERY_S:
                return []
            return [self.abort()] if self._created >= _CREATE_TIMES else [self._create(at_s)]
        out: list[bytes] = []
        for polled, active in list(self._active.items()):
            while active.next_s <= at_s and active.next_s < active.until_s:
                moment = active.next_s
                active.sequence = (active.sequence + 1) % 65536
                out += self._result(active.invoke, active.poll, polled, active.group, moment, active.sequence)
                active.next_s = moment + (BLOCK_S if polled == _WAVES else 1.0)
            if at_s >= active.until_s:
                del self._active[polled]
        return out

    # -- association --------------------------------------------------------------------------------------------

    def _free(self) -> None:
        self.state = "free"
        self._active.clear()

    def _associate(self, request: bytes, at_s: float) -> list[bytes]:
        # a client: 80000000 behind protocol, nomenclature and functional units, in the user data it sent
        if bytes.fromhex("8000000040000000") + bytes(4) + bytes.fromhex("80000000") not in request:
            return [b"\x0c\x03\x32\x01\x00"]
        self._free()
        self.state, self._created, self._heard_s = "creating", 0, at_s
        profile = _u32(0x80000000, 8000, 1364, 1364, 0xFFFFFFFF, 0x60000000)
        profile += _attributes([(0xF001, _u32(0x88000000) + _attributes([]))])
        user = _u32(0x80000000, 0x40000000, 0, 0x00800000, 0x20000000) + _attributes([])
        user += _attributes([(1, profile)])
        shown = bytes.fromhex(
            "3180A0808001010000A280A003000001A58030808001008102510100003080800100810C2A8648CE140201000000020100000000"
            "61803080020101A0806180A180060C2A8648CE14020100000003010000A203020100A305A103020100BE80288002010281"
        )
        shown += bytes((len(user),)) + user + bytes(16)
        session = bytes.fromhex("0508130100160102800014020002") + b"\xc1" + bytes((len(shown),)) + shown
        return [b"\x0e" + bytes((len(session),)) + session, self._create(at_s)]

    def _create(self, at_s: float) -> bytes:
        self._created += 1
        self._created_s = at_s
        event = _u16(_SYSTEM, 0, 0) + _attributes(self._system(at_s))
        event = _u16(_SYSTEM, 0, 0) + _u32(self._ticks(at_s)) + _u16(0x0D06) + _sized(event)
        return _message(1, _u16(1, 1) + _sized(event))

    # -- operations ---------------------------------------------------------------------------------------------

    def _operation(self, message: bytes, at_s: float) -> list[bytes]:
        operation, _, invoke, command, _ = struct.unpack(">5H", message[4:14])
        if operation == 2 and command == 1 and self.state == "creating":
            self.state = "serving"
            return []
        if operation != 1 or self.state != "serving":
            return []
        if command == 5:
            labels = message[38 : 38 + int.from_bytes(message[36:38], "big")]
            self._chosen = [int.from_bytes(labels[at : at + 4], "big") & 0xFFFF for at in range(0, len(labels), 4)]
            return [_message(2, _u16(invoke, command) + _sized(message[14:20] + _u16(0, 0)))]
        if command != 7:
            return [_message(3, _u16(invoke, 9) + _sized(b""))]
        action, _, poll, _, polled, group = struct.unpack(">6H", message[24:36])
        if action == 0x0C16:
            return self._result(invoke, poll, polled, group, at_s, None)
        if action != 0xF13B or not self.extended:
            return [_message(3, _u16(invoke, 9) + _sized(b""))]
        period = int.from_bytes(message[44:48], "big") / 8000 if message[36:38] == _u16(1) else 0.0
        before = self._active.get(polled)
        next_s = before.next_s if before else at_s + (BLOCK_S if polled == _WAVES else 1.0)
        self._active[polled] = _Active(invoke, poll, group, at_s + period, next_s)
        return self._result(invoke, poll, polled, group, at_s, 0)

    def _result(
        self, invoke: int, poll: int, polled: int, group: int, at_s: float, sequence: int | None
    ) -> list[bytes]:
        objects = [] if sequence == 0 else self._objects(polled, at_s)
        parts: list[list[bytes]] = [[]]
        for each in objects:
            if parts[-1] and sum(map(len, parts[-1])) + len(each) > _LONGEST:
                parts.append([])
            parts[-1].append(each)
        head = _u16(poll) if sequence is None else _u16(poll, sequence)
        head += _u32(self._ticks(at_s))
        head += date(self.started + timedelta(seconds=at_s)) if sequence is None else b"\xff" * 8
        head += _u16(1, polled, group)
        action = 0x0C16 if sequence is None else 0xF13B
        out = []
        for place, part in enumerate(parts if len(parts) == 1 else [*parts, []]):
            body = head + _counted([_u16(0) + _counted(part)] if part else [])
            body = _u16(7) + _sized(_u16(_SYSTEM, 0, 0, action) + _sized(body))
            if place < len(parts) - (len(parts) == 1):
                link = 1 if place == 0 else 3 if place == len(parts) - 1 else 2
                out.append(_message(5, bytes((link, place + 1)) + _u16(invoke) + body))
            else:
                out.append(_message(2, _u16(invoke) + body))
        return out

    # -- objects ------------------------------------------------------------------------------------------------

    def _ticks(self, at_s: float) -> int:
        return (self.offset + round(at_s * 8000)) % (1 << 32)

    def _system(self, at_s: float) -> list[tuple[int, bytes]]:
        return [
            (0x0986, _u16(1, 0x104D)),
            (0x0928, _string("Simulated") + _string("MX800")),
            (0x091E, _string(self.bed_label)),
            (0x0946, _u16(self.mode)),
            (0x0987, date(self.started + timedelta(seconds=at_s))),
            (0x098F, _u32(self._ticks(at_s))),
        ]

    def _objects(self, polled: int, at_s: float) -> list[bytes]:
        if polled == _NUMERICS:
            return self._numerics()
        if polled == _WAVES:
            return self._blocks()
        if polled == _PATIENT:
            who = [(0x0957, _u16(2 if self.patient_id else 0)), (0x0962, _u16(1))]
            who += [(0x095A, _string(self.patient_id))] if self.patient_id else []
            return [_u16(1) + _attributes(who)]
        if polled == _ALERTS:
            lists = {0x0902: [a for a in self.alerts if a.kind > 4], 0x0904: [a for a in self.alerts if a.kind <= 4]}
            return [_u16(2) + _attributes((name, _counted([a.entry() for a in each])) for name, each in lists.items())]
        return [_u16(0) + _attributes(self._system(at_s))] if polled == _SYSTEM else []

    def _value(self, name: str) -> bytes:
        value = self.values[name]
        state = self.states.get(name, STATE_OK if value is not None else STATE_UNAVAILABLE)
        code = int(terms.BY_NAME[name].mdil[5:], 16)
        unit = 2784 if name == "resp_rate" else _UNITS[terms.BY_NAME[name].ucum]
        return _u16(code, state, unit) + number(value)

    def _numerics(self) -> list[bytes]:
        single = [name for name in self.values if name in CARRIED and not any(name in many for many in _MANY.values())]
        out = []
        for handle, name in enumerate(single, 0x20):
            found = [(0x0950, self._value(name))]
            if name in _LABELS:
                found.append((0x0927, _string(_LABELS[name])))
            out.append(_u16(handle) + _attributes(found))
        for handle, (kind, names) in enumerate(_MANY.items(), 0x10):
            there = [self._value(name) for name in names if name in self.values]
            if there:
                found = [(0x094B, _counted(there))]
                if kind == "nibp":
                    found.append((0x0990, date(self.started + timedelta(seconds=self._measured_s))))
                out.append(_u16(handle) + _attributes(found))
        return out

    def _blocks(self) -> list[bytes]:
        sent = [wave for wave in self.waves if self._chosen is None or wave.code in self._chosen]
        rate = self.values.get("heart_rate") or self.values.get("pulse_rate") or 60.0
        breath_rate = self.values.get("resp_rate") or 15.0
        out = []
        for place, wave in enumerate(sent):
            count = round(BLOCK_S * 1000) // wave.period_ms
            seconds = [self._phase + number * wave.period_ms / 1000 for number in range(count)]
            points = [shape(wave.name, at * rate / 60 % 1, at * breath_rate / 60 % 1) for at in seconds]
            data = wave.samples(points)
            found = [(0x096E, _u16(wave.code, self.wave_state) + _sized(data))]
            if self._turn // 4 % max(len(sent), 1) == place and self._turn % 4 == 0:
                found += wave.context()
            handle = 0x80 if wave.name.startswith("ecg") else 0x81 + place
            out.append(_u16(handle) + _attributes(found))
        self._turn += 1
        self._phase += BLOCK_S
        return out


def _message(operation: int, body: bytes) -> bytes:
    return b"\xe1\x00\x00\x02" + _u16(operation) + _sized(body)
