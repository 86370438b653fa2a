"""Vital signs as a Nonin oximeter sends them over its serial line; written apart from the decoder of that device.

Formats 2 and 7: 75 frames of 5 bytes a second, 25 to a packet, so a second of one value is three packets. Format 8: one
packet of 4 bytes a second. Text: one line a second. A missing value is what the device shows it with: 127 for SpO2, 511
for the pulse rate, dashes in the text.

Source: Nonin OEM III serial data formats; operator's manuals of the handheld models.
"""

from __future__ import annotations

from collections.abc import Sequence

FRAMES = 25
NO_SPO2 = 127
NO_PULSE = 511

BIT_ALWAYS = 0x80
BIT_DISCONNECTED = 0x40
BIT_ARTEFACT = 0x20
BIT_OUT_OF_TRACK = 0x10
BIT_SENSOR_ALARM = 0x08
BIT_SYNC = 0x01


def packet_2(
    spo2: float | None,
    pulse_rate: float | None,
    *,
    pleth: Sequence[int] = (),
    status: int = 0,
    low_battery: bool = False,
) -> bytes:
    """One packet of format 2: 125 bytes, a third of a second; `pleth` is up to 25 samples of 0-255, the rest is 0."""
    out = bytearray()
    for number, slot in enumerate(_slots(spo2, pulse_rate, low_battery)):
        sample = pleth[number] if number < len(pleth) else 0
        frame = bytes((1, _status(number, status), max(0, min(sample, 255)), slot))
        out += frame + bytes((sum(frame) % 256,))
    return bytes(out)


def packet_7(
    spo2: float | None,
    pulse_rate: float | None,
    *,
    pleth: Sequence[int] = (),
    status: int = 0,
    low_battery: bool = False,
) -> bytes:
    """One packet of format 7: 125 bytes, a third of a second; `pleth` is up to 25 samples of 0-65535, the rest is 0."""
    out = bytearray()
    for number, slot in enumerate(_slots(spo2, pulse_rate, low_battery)):
        sample = max(0, min(pleth[number] if number < len(pleth) else 0, 65535))
        frame = bytes((_status(number, status), sample // 256, sample % 256, slot))
        out += frame + bytes((sum(frame) % 256,))
    return bytes(out)


def packet_8(
    spo2: float | None, pulse_rate: float | None, *, disconnected: bool = False, low_battery: bool = False
) -> bytes:
    """One packet of format 8: 4 bytes, a second."""
    saturation, pulse = _raw(spo2, pulse_rate)
    first = 0x80 + (0x40 if disconnected else 0) + pulse // 128
    return bytes((first, pulse % 128, saturation, 1 if low_battery else 0))


def line(spo2: float | None, pulse_rate: float | None, flags: str = "") -> bytes:
    """One line of a handheld model with its line end."""
    saturation = "---" if spo2 is None else f"{round(spo2):03d}"
    pulse = "---" if pulse_rate is None else f"{round(pulse_rate):03d}"
    return f"SPO2={saturation} HR={pulse}{flags}\r\n".encode("ascii")


def _raw(spo2: float | None, pulse_rate: float | None) -> tuple[int, int]:
    saturation = NO_SPO2 if spo2 is None else max(0, min(round(spo2), 100))
    return saturation, NO_PULSE if pulse_rate is None else max(0, min(round(pulse_rate), 510))


def _status(number: int, extra: int) -> int:
    return BIT_ALWAYS | extra & ~BIT_SYNC | (BIT_SYNC if number == 0 else 0)


def _slots(spo2: float | None, pulse_rate: float | None, low_battery: bool) -> list[int]:
    """What the third byte of each of the 25 frames says; the simulated device has one average for all of them."""
    saturation, pulse = _raw(spo2, pulse_rate)
    high, low = divmod(pulse, 128)
    slots = [0] * FRAMES
    for first in (1, 14, 20, 22):  # HR, extended HR, display HR, extended display HR; numbered from 1
        slots[first - 1], slots[first] = high, low
    for frame in (3, 9, 10, 11, 16, 17):  # SpO2, display, fast, beat to beat, extended, extended display
        slots[frame - 1] = saturation
    slots[3] = 48  # firmware revision
    slots[7] = 1 if low_battery else 0
    return slots
