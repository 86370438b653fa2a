"""Bluetooth Low Energy medical characteristics of the Bluetooth SIG: heart rate, oximeter, pressure, temperature ...

Theory of operation. One chunk is one notification, indication or read: a whole payload whose channel names its
characteristic. A payload is never put together from pieces and never cut into two, because nothing in it tells where it
ends: the second half of a heart rate could be read as another one. Its flags tell which fields it holds, and its length
must be exactly theirs; anything else is rejected whole.

No value: the special numbers of SFLOAT and FLOAT, a heart rate of 0 or without skin contact, a weight of FFFF, and
whatever lies outside of what the quantity can be. Data for demonstration or testing are never values. Status bits that
cast doubt make values questionable, and so does data read from the device's memory.

Units are converted to those of the terms: kPa to mm[Hg], degrees Fahrenheit to Cel, pounds to kg. Cuff pressures while
a measurement runs (2a36) are checked and not published; RR intervals, fast and slow oximeter pairs, energy, user
identifiers, body mass index and height have no term that a device measures, and are read over.

Source: Bluetooth SIG HRS 1.0, PLXS 1.0, BLS 1.1, HTS 1.0, BAS 1.0, WSS 1.0; IEEE 11073-20601 number formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

from drivers.contract import Driver, hex_uuid
from edge_agent import terms
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Validity

_PAYLOAD_MAX = 512  # the longest attribute value that Bluetooth allows
_SITES = ("", "armpit", "body", "ear", "finger", "gastrointestinal", "mouth", "rectum", "toe", "tympanum")

# What a value must lie in to be one, where the term's own bounds are wider: a cuff measures nothing below 10 mm[Hg],
# a saturation of 1 or less is a fraction in the wrong unit, and a rate or weight of 0 is the absence of a measurement.
_LEAST = {
    "spo2": 1.5,
    "heart_rate": 1.0,
    "pulse_rate": 1.0,
    "nibp_pulse_rate": 1.0,
    "nibp_sys": 10.0,
    "nibp_dia": 10.0,
    "nibp_mean": 10.0,
    "weight": 0.1,
}

# Measurement status of the oximeter service, bits 5 to 15
_EARLY, _STORED, _DEMONSTRATION, _TESTING, _CALIBRATION = 1 << 6, 1 << 9, 1 << 10, 1 << 11, 1 << 12
_UNAVAILABLE, _QUESTIONABLE, _INVALID = 1 << 13, 1 << 14, 1 << 15
_NEVER_REAL = _DEMONSTRATION | _TESTING | _INVALID
_DOUBTFUL = _EARLY | _STORED | _CALIBRATION | _QUESTIONABLE

# Device and sensor status of the oximeter service, bits 0 to 15: (bit, kind, state, what it does to the values)
_SENSOR_BITS: tuple[tuple[int, str, str, Validity], ...] = (
    (1 << 1, "device", "malfunction", "invalid"),
    (1 << 15, "sensor", "disconnected", "not_available"),
    (1 << 14, "sensor", "fault", "invalid"),
    (1 << 12, "sensor", "unrecognised", "invalid"),
    (1 << 11, "sensor", "off_patient", "not_available"),
    (1 << 13, "sensor", "displaced", "not_available"),
    (1 << 7, "signal", "non_pulsatile", "not_available"),
    (1 << 3, "signal", "inadequate", "questionable"),
    (1 << 4, "signal", "poor", "questionable"),
    (1 << 6, "signal", "erratic", "questionable"),
    (1 << 2, "signal", "irregular_processing", "questionable"),
    (1 << 8, "signal", "questionable_pulse", "questionable"),
    (1 << 10, "signal", "interference", "questionable"),
    (1 << 5, "signal", "low_perfusion", "questionable"),
    (1 << 9, "signal", "analysis_ongoing", "questionable"),
    (1 << 0, "signal", "display_extended", "questionable"),
)
_RANK: dict[Validity, int] = {"valid": 0, "questionable": 1, "not_available": 2, "invalid": 3}


class _Malformed(Exception):
    """A payload whose length does not fit its flags."""


class _Fields:
    """Reads a payload from front to back, little-endian."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) < size:
            raise _Malformed("payload too short")
        self._at += size
        return part

    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left():
            raise _Malformed("payload too long")

    def sfloat(self) -> float | None:
        """IEEE 11073 SFLOAT; None for the special value NaN, infinite for the other special values."""
        raw = self.unsigned(2)
        return _number(raw & 0xFFF, 12, raw >> 12, 4)

    def float32(self) -> float | None:
        """IEEE 11073 FLOAT; None for the special value NaN, infinite for the other special values."""
        raw = self.unsigned(4)
        return _number(raw & 0xFFFFFF, 24, raw >> 24, 8)

    def time(self) -> str | None:
        """Local date and time in ISO 8601; None when a part of it is unknown (0) or impossible."""
        year = self.unsigned(2)
        month, day, hour, minute, second = self.take(5)
        try:
            return datetime(year, month, day, hour, minute, second).isoformat()
        except ValueError:
            return None


def _number(mantissa: int, mantissa_bits: int, exponent: int, exponent_bits: int) -> float | None:
    special = mantissa - (1 << mantissa_bits - 1)
    # NRes, reserved and -INF stand at the bottom of the range, +INF and NaN at its top; they mean so at exponent 0,
    # and at another exponent they are taken for no number all the same
    if special == -1:
        return None
    if special in (-2, 0, 1, 2):
        return math.inf
    signed = mantissa - (1 << mantissa_bits) if special > 0 else mantissa
    power = exponent - (1 << exponent_bits) if exponent >> exponent_bits - 1 else exponent
    return signed * 10.0**power if power >= 0 else signed / 10.0**-power


def _worse(first: Validity, second: Validity) -> Validity:
    return first if _RANK[first] >= _RANK[second] else second


class Gatt:
    """Decoder of one peripheral with any of the characteristics in `DRIVER.channels`."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], str] = {}  # each characteristic speaks for its own sensor
        self._out: list[Item] = []
        self._at_ns = 0
        self._characteristic = ""

    def feed(self, chunk: Chunk) -> list[Item]:
        self._out = []
        self._at_ns = chunk.at_ns
        size = len(chunk.data)
        self._characteristic = hex_uuid(chunk.channel)
        decode = _CHARACTERISTICS.get(self._characteristic)
        if not size:
            return []
        if decode is None:
            return [Reject("no characteristic of this driver", size, chunk.at_ns)]
        if size > _PAYLOAD_MAX:
            return [Reject("payload too long", size, chunk.at_ns)]
        try:
            decode(self, _Fields(chunk.data))
        except _Malformed as error:
            return [Reject(str(error), size, chunk.at_ns)]
        return self._out

    def tick(self, at_ns: int) -> list[Item]:  # noqa: ARG002 - a payload is whole, time adds nothing
        return []

    # -- what comes out ---------------------------------------------------------------------------------------------

    def _state(self, kind: str, state: str) -> None:
        key = (self._characteristic, kind)
        if self._states.get(key, "ok") != state:
            self._states[key] = state
            self._out.append(DeviceStatus(kind, state, self._at_ns, self._characteristic))

    def _value(
        self,
        name: str,
        value: float | None,
        validity: Validity = "valid",
        device_time: str | None = None,
        *,
        unit: str = "",
        channel: str = "",
    ) -> None:
        term = terms.BY_NAME[name]
        number: float | None = None
        if value is None:
            validity = _worse(validity, "not_available")
        elif validity not in ("invalid", "not_available"):
            factor, offset = (terms.conversion(unit, term.ucum) if unit else None) or (1.0, 0.0)
            number = value if factor == 1.0 else round(value * factor + offset, 6)  # 98.6 [degF] is 37 Cel, not 36.99..
            low, high = term.plausible_min or 0.0, term.plausible_max or math.inf
            if not max(low, _LEAST.get(name, low)) <= number <= high:
                number, validity = None, "invalid"
        self._out.append(Observation(name, number, validity, self._at_ns, device_time, channel=channel))

    # -- characteristics ----------------------------------------------------------------------------------------------

    def heart_rate(self, fields: _Fields) -> None:
        """2a37."""
        flags = fields.unsigned(1)
        rate = fields.unsigned(2 if flags & 0x01 else 1)
        if flags & 0x08:
            fields.take(2)  # energy expended
        if flags & 0x10:
            intervals = fields.left()
            if not intervals or intervals % 2:
                raise _Malformed("payload too short")
            fields.take(intervals)
        fields.end()
        contact_lost = flags & 0x06 == 0x04  # supported, and not detected
        self._state("sensor", "off_patient" if contact_lost else "ok")
        self._value("heart_rate", None if contact_lost or rate == 0 else float(rate))

    def oximeter_spot(self, fields: _Fields) -> None:
        """2a5e."""
        flags = fields.unsigned(1)
        pair = fields.sfloat(), fields.sfloat()
        device_time = fields.time() if flags & 0x01 else None
        self._oximeter(fields, pair, flags >> 1, None if flags & 0x10 else device_time)

    def oximeter_continuous(self, fields: _Fields) -> None:
        """2a5f."""
        flags = fields.unsigned(1)
        pair = fields.sfloat(), fields.sfloat()
        for bit in (0x01, 0x02):
            if flags & bit:
                fields.take(4)  # the fast or the slow pair
        self._oximeter(fields, pair, flags >> 2, None)

    def _oximeter(
        self, fields: _Fields, pair: tuple[float | None, float | None], flags: int, device_time: str | None
    ) -> None:
        """The end that both share; bits of `flags`: 0 measurement status, 1 sensor status, 2 pulse amplitude index."""
        measurement = fields.unsigned(2) if flags & 1 else 0
        sensor = fields.unsigned(3) if flags & 2 else None
        amplitude = (fields.sfloat(),) if flags & 4 else ()
        fields.end()
        validity: Validity = "questionable" if measurement & _DOUBTFUL else "valid"
        if measurement & _UNAVAILABLE:
            validity = "not_available"
        if measurement & _NEVER_REAL:
            validity = "invalid"
        if sensor is not None:
            states = {"device": "ok", "sensor": "ok", "signal": "ok"}
            for bit, kind, state, consequence in _SENSOR_BITS:
                if sensor & bit:
                    validity = _worse(validity, consequence)
                    if states[kind] == "ok":
                        states[kind] = state
            for kind, state in states.items():
                self._state(kind, state)
        self._value("spo2", pair[0], validity, device_time)
        self._value("pulse_rate", pair[1], validity, device_time)
        for index in amplitude:
            self._value("perfusion_index", index, validity, device_time)

    def blood_pressure(self, fields: _Fields) -> None:
        """2a35."""
        self._pressure(fields, publish=True)

    def cuff_pressure(self, fields: _Fields) -> None:
        """2a36: what the cuff holds while it measures is no blood pressure."""
        self._pressure(fields, publish=False)

    def _pressure(self, fields: _Fields, *, publish: bool) -> None:
        flags = fields.unsigned(1)
        unit = "kPa" if flags & 0x01 else "mm[Hg]"
        pressures = fields.sfloat(), fields.sfloat(), fields.sfloat()
        device_time = fields.time() if flags & 0x02 else None
        pulse = (fields.sfloat(),) if flags & 0x04 else ()
        if flags & 0x08:
            fields.take(1)  # user
        status = fields.unsigned(2) if flags & 0x10 else 0
        fields.end()
        if not publish:
            return
        moved, loose, irregular, position = status & 0x01, status & 0x02, status & 0x04, status & 0x20
        self._state("sensor", "cuff_loose" if loose else "cuff_position" if position else "ok")
        self._state("signal", "movement" if moved else "irregular_pulse" if irregular else "ok")
        validity: Validity = "questionable" if moved or loose or position else "valid"
        for name, pressure in zip(("nibp_sys", "nibp_dia", "nibp_mean"), pressures, strict=True):
            self._value(name, pressure, validity, device_time, unit=unit)
        out_of_range = status & 0x18  # the rate is beyond what the device can tell
        for rate in pulse:
            self._value("nibp_pulse_rate", rate, "questionable" if out_of_range else validity, device_time)

    def temperature(self, fields: _Fields) -> None:
        """2a1c."""
        self._temperature(fields, "valid")

    def temperature_rising(self, fields: _Fields) -> None:
        """2a1e: a value before the measurement has ended."""
        self._temperature(fields, "questionable")

    def _temperature(self, fields: _Fields, validity: Validity) -> None:
        flags = fields.unsigned(1)
        value = fields.float32()
        device_time = fields.time() if flags & 0x02 else None
        site = fields.unsigned(1) if flags & 0x04 else 0
        fields.end()
        unit = "[degF]" if flags & 0x01 else "Cel"
        where = _SITES[site] if site < len(_SITES) else ""
        self._value("temp", value, validity, device_time, unit=unit, channel=where)

    def battery(self, fields: _Fields) -> None:
        """2a19."""
        level = fields.unsigned(1)
        fields.end()
        self._value("battery", float(level))

    def weight(self, fields: _Fields) -> None:
        """2a9d."""
        flags = fields.unsigned(1)
        raw = fields.unsigned(2)
        device_time = fields.time() if flags & 0x02 else None
        if flags & 0x04:
            fields.take(1)  # user
        if flags & 0x08:
            fields.take(4)  # body mass index, and the height that was entered for it
        fields.end()
        failed = raw == 0xFFFF
        pounds = flags & 0x01
        value = None if failed else raw / 100 if pounds else raw / 200  # steps of 0.01 lb or 0.005 kg
        self._value("weight", value, "invalid" if failed else "valid", device_time, unit="[lb_av]" if pounds else "kg")


_CHARACTERISTICS: dict[str, Callable[[Gatt, _Fields], None]] = {
    "2a37": Gatt.heart_rate,
    "2a5e": Gatt.oximeter_spot,
    "2a5f": Gatt.oximeter_continuous,
    "2a35": Gatt.blood_pressure,
    "2a36": Gatt.cuff_pressure,
    "2a1c": Gatt.temperature,
    "2a1e": Gatt.temperature_rising,
    "2a19": Gatt.battery,
    "2a9d": Gatt.weight,
}

DRIVER = Driver(
    name="gatt",
    decoder=Gatt,
    links=frozenset({"ble", "file"}),
    emits=(
        "heart_rate",
        "spo2",
        "pulse_rate",
        "perfusion_index",
        "nibp_sys",
        "nibp_dia",
        "nibp_mean",
        "nibp_pulse_rate",
        "temp",
        "weight",
        "battery",
    ),
    silence_s=10.0,
    evidence="Heart rate, battery and weight: payloads asserted by public test suites. Oximeter, pressure and "
    "temperature: computed from the service specifications. No hardware yet.",
    channels=tuple(_CHARACTERISTICS),
    services=("180d", "1822", "1810", "1809", "181d"),  # heart rate, oximeter, pressure, thermometer, scale
    message_oriented=True,
)
