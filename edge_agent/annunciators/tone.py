"""The sound of a pulse as PCM: a fundamental with harmonics, raised and lowered gently. Pure arithmetic.

Figures within the ranges after which this product is patterned (IEC 60601-1-8, table of auditory signals): fundamental
150 to 1000 Hz, at least four harmonics between 300 and 4000 Hz within 15 dB of it, rise time 10 to 20 % of the pulse,
rise and fall together no longer than the silence between pulses. A pulse lasts as long as patterns.py says from 90 % of
its rise to 90 % of its fall, so the PCM is longer by what lies before and after.

Full scale is what the loudest sound at the highest `volume` reaches after it has become louder twice; nothing clips.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable
from functools import lru_cache

from edge_agent.annunciators.patterns import BURSTS, LOUDER, REMINDER
from edge_agent.records import Priority

RATE_HZ = 48_000
FULL = 32_767
LEVEL_DB = 4.0  # each time nobody has answered; 10 dB is what may lie between the pulses of one burst
HEADROOM_DB = LEVEL_DB * LOUDER
FUNDAMENTAL_HZ: dict[Priority, int] = {"high": 660, "medium": 550, "low": 440, "none": 330}
PRIORITY_DB: dict[Priority, float] = {"high": 0.0, "medium": -3.0, "low": -6.0, "none": -6.0}
HARMONICS_DB = (0.0, -3.0, -5.0, -7.0, -9.0)  # of the fundamental's multiples 1, 2 ...; at 660 Hz the fifth is 3300 Hz
RISE = 0.15  # of the pulse, from 10 to 90 %


def pulse(priority: Priority, level: int = 0, volume: int = 100) -> bytes:
    """One pulse of a priority, or at none the reminder, as 16-bit little-endian mono PCM at RATE_HZ.

    `level`: how often it has become louder; `volume`: per cent.
    """
    return scaled(_shape(priority), gain(priority, level, volume))


def gain(priority: Priority, level: int, volume: int) -> float:
    """Share of full scale, 0 to 1, that a priority's sound reaches."""
    return volume / 100 * _ratio(PRIORITY_DB[priority] + LEVEL_DB * min(level, LOUDER) - HEADROOM_DB)


def scaled(samples: Iterable[float], factor: float) -> bytes:
    """Samples between -1 and 1 as 16-bit little-endian PCM, `factor` of full scale."""
    out = array("h", (round(sample * factor * FULL) for sample in samples))
    if sys.byteorder == "big":
        out.byteswap()
    return out.tobytes()


def _ratio(decibel: float) -> float:
    return math.pow(10, decibel / 20)


@lru_cache(maxsize=4)
def _shape(priority: Priority) -> tuple[float, ...]:
    """The samples of a pulse with a peak of 1."""
    length_ms = BURSTS[priority].pulse if priority != "none" else REMINDER
    ramp = round(RISE * length_ms / 0.8 * RATE_HZ / 1000)  # a straight ramp passes 10 to 90 % in 0.8 of its length
    # 90 % of the rise lies 0.9 of a ramp after its start, 90 % of the fall 0.1 of a ramp after the fall's start
    plateau = round(length_ms * RATE_HZ / 1000 - 0.2 * ramp)
    wave = _period(FUNDAMENTAL_HZ[priority])
    turn, whole = len(wave), 2 * ramp + plateau
    peak = max(map(abs, wave))
    return tuple(wave[n % turn] / peak * min(1.0, n / ramp, (whole - n) / ramp) for n in range(whole))


def _period(hertz: int) -> list[float]:
    """The fundamental with its harmonics over the shortest whole number of both its periods and samples."""
    step = 2 * math.pi * hertz / RATE_HZ
    partials = [(number * step, _ratio(level)) for number, level in enumerate(HARMONICS_DB, start=1)]
    turn = RATE_HZ // math.gcd(RATE_HZ, hertz)
    return [sum(level * math.sin(angle * n) for angle, level in partials) for n in range(turn)]
