"""Masimo oximeters on a serial line: the text formats ASCII 1 and ASCII 2 and the trend output of the same shape.

Theory of operation. A line is one second: date, time and KEY=VALUE tokens in any order and either letter case. The
format has no checksum, so what stands in for it is its fixed width: saturation and pulse have three digits, EXC has
three or six hexadecimal digits. A line in which one of them has another form, or a key stands twice (two lines run
together), is rejected whole: a lost digit would otherwise be a wrong number. A perfusion index that is not nn.nn is
invalid by itself.

Dashes are no value, and neither is 000, with or without an exception that explains it. Of the exception bits, no
sensor, defective sensor, sensor off patient and unrecognised sensor drop every value of the line; low perfusion,
pulse search, interference, ambient light and low signal IQ make them questionable, and so does a line without EXC. A
saturation above 100 or a pulse outside the plausible range is invalid.

A value of ALARM other than 0 becomes a DeviceStatus `alarm` with the field as detail, and not a DeviceAlarm: the
meaning of its bits is not published, so priority and text would be inventions. The gateway's own limits see the
numbers anyway.

Keys without a term (SPCO, SPMET, DESAT, PIDELTA, PVI, SPHB, ORI, RRa ...) are read over.

Source: Masimo Rad-8 and Rad-57 operator's manuals, sections "Serial interface" and "Trend data format".
"""

from __future__ import annotations

import re
from datetime import datetime

from drivers.contract import Driver, Line
from drivers.lines import Lines
from edge_agent import terms
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Validity

_LINE_MAX = 512  # the longest documented line is about 200 bytes
_QUIET_NS = 2_000_000_000  # two periods without a line end: the line is over

_TOKEN = re.compile(rb"(?<![A-Za-z0-9])([A-Za-z][A-Za-z0-9]*)=( {0,2}[^\s=]*)(?=\s|$)")
_STRICT_KEY = re.compile(rb"(?:SPO2|BPM|PR|EXC)=", re.IGNORECASE)
_TIME = re.compile(rb"(?<!\d)(\d\d)/(\d\d)/(\d\d) +(\d\d):(\d\d):(\d\d)(?!\d)")
_THREE = re.compile(rb"(\d{3}| \d{2}|  \d)%?|-+%?")  # SpO2 and pulse rate, filled up with zeros or spaces
_INDEX = re.compile(rb"(\d\d\.\d\d| \d\.\d\d)%?|-[-.]*%?")
_EXCEPTIONS = re.compile(rb"([0-9A-F]{6}|[0-9A-F]{3})(?::.*)?|-+", re.IGNORECASE)
_ALARM = re.compile(rb"(?=.*[1-9A-F])[0-9A-F]{1,8}", re.IGNORECASE)  # a hexadecimal number that is not 0

# key in upper case: (term, form); ASCII 1 calls the pulse rate BPM, ASCII 2 and trends PR
_VALUES: dict[bytes, tuple[terms.Term, re.Pattern[bytes]]] = {
    b"SPO2": (terms.BY_NAME["spo2"], _THREE),
    b"BPM": (terms.BY_NAME["pulse_rate"], _THREE),
    b"PR": (terms.BY_NAME["pulse_rate"], _THREE),
    b"PI": (terms.BY_NAME["perfusion_index"], _INDEX),
}
_STRICT: dict[bytes, re.Pattern[bytes]] = {b"SPO2": _THREE, b"BPM": _THREE, b"PR": _THREE, b"EXC": _EXCEPTIONS}

_NO_SENSOR, _DEFECTIVE, _LOW_PERFUSION, _SEARCH = 0x001, 0x002, 0x004, 0x008
_INTERFERENCE, _OFF_PATIENT, _AMBIENT_LIGHT, _UNRECOGNISED, _LOW_SIGNAL_IQ = 0x010, 0x020, 0x040, 0x080, 0x400
_DROP = _NO_SENSOR | _DEFECTIVE | _OFF_PATIENT | _UNRECOGNISED
_DOUBT = _LOW_PERFUSION | _SEARCH | _INTERFERENCE | _AMBIENT_LIGHT | _LOW_SIGNAL_IQ
_SENSOR_STATES = (
    (_NO_SENSOR, "disconnected"),
    (_DEFECTIVE, "fault"),
    (_UNRECOGNISED, "unrecognised"),
    (_OFF_PATIENT, "off_patient"),
)
_SIGNAL_STATES = (
    (_SEARCH, "pulse_search"),
    (_INTERFERENCE, "interference"),
    (_AMBIENT_LIGHT, "ambient_light"),
    (_LOW_PERFUSION, "low_perfusion"),
    (_LOW_SIGNAL_IQ, "low_signal_iq"),
)


class Masimo:
    """Decoder of one oximeter."""

    def __init__(self) -> None:
        self._lines = Lines(_LINE_MAX)
        self._last_ns = 0
        self._states: dict[str, str] = {"sensor": "ok", "signal": "ok", "device": "ok"}
        self._alarm = ""

    def feed(self, chunk: Chunk) -> list[Item]:
        out: list[Item] = []
        at_ns = chunk.at_ns
        if len(self._lines) and at_ns - self._last_ns > _QUIET_NS:
            self._unended(out)
        self._last_ns = at_ns
        for line in self._lines.feed(chunk.data):
            self._line(line, out, at_ns)
        return out

    def tick(self, at_ns: int) -> list[Item]:
        out: list[Item] = []
        if len(self._lines) and at_ns - self._last_ns > _QUIET_NS:
            self._unended(out)
        return out

    def _unended(self, out: list[Item]) -> None:
        """A line that silence has ended is taken only when its last token is known to be whole."""
        line = self._lines.take()
        if isinstance(line, bytes):
            tokens = {key.upper(): value for key, value in _TOKEN.findall(line)}
            digits = 6 if b"BPM" in tokens else 3  # ASCII 1 has six, the others three
            whole = re.match(rb"[0-9A-F]{%d}(:.*)?$" % digits, tokens.get(b"EXC", b""), re.IGNORECASE)
            line = line if whole else len(line)
        self._line(line, out, self._last_ns)

    def _line(self, line: bytes | int, out: list[Item], at_ns: int) -> None:
        if isinstance(line, int):
            out.append(Reject("line too long or cut off", line, at_ns))
            return
        keys = [key.upper() for key in _STRICT_KEY.findall(line)]
        if len(set(keys)) < len(keys):
            out.append(Reject("a key stands twice", len(line), at_ns))
            return
        fields: dict[bytes, bytes] = {}
        for name, value in _TOKEN.findall(line):
            fields.setdefault(name.upper(), value)
        for key in fields.keys() & _STRICT.keys():
            if not _STRICT[key].fullmatch(fields[key]):
                out.append(Reject("a field has not the form of its key", len(line), at_ns))
                return
        if not fields.keys() & _VALUES.keys():
            out.append(Reject("no oximeter line", len(line), at_ns))
        elif b"BPM" in fields and b"PR" in fields:
            out.append(Reject("two pulse rates", len(line), at_ns))
        else:
            self._decode(fields, _device_time(line), out, at_ns)

    def _decode(self, fields: dict[bytes, bytes], device_time: str | None, out: list[Item], at_ns: int) -> None:
        told = _EXCEPTIONS.fullmatch(fields.get(b"EXC", b""))
        exceptions = int(told[1], 16) if told and told[1] else None
        bits = exceptions or 0
        raised = _ALARM.fullmatch(fields.get(b"ALARM", b""))
        alarm = f"ALARM={raised[0].decode('ascii')}" if raised else ""
        self._state("sensor", next((state for bit, state in _SENSOR_STATES if bits & bit), "ok"), out, at_ns)
        self._state("signal", next((state for bit, state in _SIGNAL_STATES if bits & bit), "ok"), out, at_ns)
        if alarm != self._alarm:
            self._alarm = alarm
            out.append(DeviceStatus("device", "alarm" if alarm else "ok", at_ns, alarm))
        usable: Validity = "valid" if exceptions is not None and not bits & _DOUBT else "questionable"
        for key, (term, form) in _VALUES.items():
            if key not in fields:
                continue
            found = form.fullmatch(fields[key])
            number = float(found[1]) if found and found[1] else 0.0
            if bits & _DROP or (found and number == 0.0):
                out.append(Observation(term.name, None, "not_available", at_ns, device_time))
            elif not found or number > (term.plausible_max or 0.0):
                out.append(Observation(term.name, None, "invalid", at_ns, device_time))
            else:
                out.append(Observation(term.name, number, usable, at_ns, device_time))

    def _state(self, kind: str, state: str, out: list[Item], at_ns: int) -> None:
        if self._states[kind] != state:
            self._states[kind] = state
            out.append(DeviceStatus(kind, state, at_ns))


def _device_time(line: bytes) -> str | None:
    """Local time of the device in ISO 8601, None when the line has none or a day that does not exist."""
    found = _TIME.search(line)
    if not found:
        return None
    month, day, year, hour, minute, second = (int(part) for part in found.groups())
    try:
        return datetime(2000 + year, month, day, hour, minute, second).isoformat()
    except ValueError:
        return None


DRIVER = Driver(
    name="masimo",
    decoder=Masimo,
    links=frozenset({"serial", "tcp", "file"}),
    emits=("spo2", "pulse_rate", "perfusion_index"),
    silence_s=5.0,
    evidence="Trend lines printed in the manufacturer's manual; ASCII 1 from its published layout. No hardware yet.",
    lines=(Line(9600), Line(19200), Line(57600), Line(115200)),  # Root and Radical-7 have a menu for it
)
