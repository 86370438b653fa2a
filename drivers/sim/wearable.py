"""Vital signs as Bluetooth Low Energy wearables notify them; written apart from the decoder of those characteristics.

Source: Bluetooth SIG Heart Rate Service 1.0 and Pulse Oximeter Service 1.0; IEEE 11073-20601 SFLOAT.
"""

from __future__ import annotations

from collections.abc import Sequence

HEART_RATE_SERVICE, HEART_RATE_MEASUREMENT = "180d", "2a37"
PULSE_OXIMETER_SERVICE, PLX_CONTINUOUS = "1822", "2a5f"

_NAN = b"\xff\x07"  # SFLOAT 07FF, little-endian: not a number
_CONTACT_KNOWN, _CONTACT, _RR = 0x04, 0x02, 0x10


def heart_rate(bpm: float | None, *, rr_s: Sequence[float] = ()) -> bytes:
    """A heart rate measurement; None is a strap without skin contact, which sends rate 0. `rr_s` oldest first."""
    if bpm is None:
        return bytes((_CONTACT_KNOWN, 0))
    rate = max(0, round(bpm))
    flags = _CONTACT_KNOWN | _CONTACT | (_RR if rr_s else 0) | (1 if rate > 255 else 0)
    out = bytes((flags,)) + rate.to_bytes(2 if rate > 255 else 1, "little")
    for interval in rr_s:
        out += min(round(interval * 1024), 65535).to_bytes(2, "little")
    return out


def plx_continuous(spo2: float | None, pulse_rate: float | None) -> bytes:
    """A continuous pulse oximeter measurement with the normal pair of values; None is the special value NaN."""
    return b"\x00" + sfloat(spo2) + sfloat(pulse_rate)


def sfloat(value: float | None) -> bytes:
    """A number in 16 bits, two bytes little-endian, with as many decimals as its 12-bit mantissa holds.

    Raises: OverflowError above 2045e7.
    """
    if value is None:
        return _NAN
    best = next((e for e in range(-3, 8) if abs(round(value * 10.0**-e)) <= 2045), None)
    if best is None:
        raise OverflowError(f"{value} does not fit an SFLOAT")
    mantissa = round(value * 10.0**-best)
    while best < 0 and mantissa % 10 == 0:  # 98 is sent as 98, not as 980e-1
        mantissa //= 10
        best += 1
    return ((best & 0xF) << 12 | mantissa & 0xFFF).to_bytes(2, "little")
