"""The synthesised pulses as a measuring instrument would see them: spectrum, envelope, level."""

from __future__ import annotations

import itertools
import math
from array import array

import numpy
import pytest

from edge_agent.annunciators import tone
from edge_agent.annunciators.patterns import BURSTS, LOUDER, REMINDER
from edge_agent.records import Priority

PRIORITIES: tuple[Priority, ...] = ("high", "medium", "low")
SPACE_MS = {
    priority: burst.starts[1] - burst.starts[0] - burst.pulse for priority, burst in BURSTS.items()
}  # fmt: skip


def samples(pcm: bytes) -> list[int]:
    out = array("h")
    out.frombytes(pcm)
    return list(out)


def spectrum_of(wave: list[int]) -> dict[int, float]:
    """Amplitude by frequency in Hz, in steps of 5."""
    transform = numpy.abs(numpy.fft.rfft(wave, 10 * tone.RATE_HZ))  # padded, so that there is a bin every 0.1 Hz
    return {hertz: 2 * float(transform[10 * hertz]) / len(wave) for hertz in range(50, 5001, 5)}


def envelope(wave: list[int], hertz: int) -> list[float]:
    """Peak of each block of one period of the fundamental, as a share of the highest."""
    period = tone.RATE_HZ // hertz + 1
    peaks = [max(abs(value) for value in wave[begin : begin + period]) for begin in range(0, len(wave), period)]
    return [peak / max(peaks) for peak in peaks]


def crossing(shape: list[float], share: float, block_ms: float, *, backwards: bool = False) -> float:
    """When the envelope first passes `share`, in ms from that end, between the blocks' middles."""
    line = shape[::-1] if backwards else shape
    for n, value in enumerate(line):
        if value >= share:
            before = line[n - 1] if n else 0.0
            return (n - 0.5 + (share - before) / (value - before)) * block_ms if value > before else n * block_ms
    raise AssertionError(f"never reaches {share}")


@pytest.mark.alm("ALM-04")
@pytest.mark.parametrize("priority", PRIORITIES)
def test_fundamental_and_harmonics_lie_in_their_ranges(priority: Priority) -> None:
    wave = samples(tone.pulse(priority))
    fundamental = tone.FUNDAMENTAL_HZ[priority]
    spectrum = spectrum_of(wave)
    assert max(spectrum, key=lambda hertz: spectrum[hertz]) == fundamental, "nothing is louder than the fundamental"
    assert 150 <= fundamental <= 1000
    base = spectrum[fundamental]
    harmonics = [n for n in range(2, 20) if 300 <= n * fundamental <= 4000]
    near = [n for n in harmonics if abs(20 * math.log10(spectrum[n * fundamental] / base)) <= 15]
    assert len(near) >= 4, (priority, near)
    assert 20 * math.log10(spectrum[fundamental * 3 // 2] / base) < -30, "what lies between the harmonics is not heard"


@pytest.mark.alm("ALM-04")
@pytest.mark.parametrize("priority", PRIORITIES)
def test_rise_fall_and_effective_duration(priority: Priority) -> None:
    wave = samples(tone.pulse(priority))
    block_ms = (tone.RATE_HZ // tone.FUNDAMENTAL_HZ[priority] + 1) * 1000 / tone.RATE_HZ
    shape = envelope(wave, tone.FUNDAMENTAL_HZ[priority])
    length_ms = len(wave) * 1000 / tone.RATE_HZ
    rise_ms = crossing(shape, 0.9, block_ms) - crossing(shape, 0.1, block_ms)
    fall_ms = crossing(shape, 0.9, block_ms, backwards=True) - crossing(shape, 0.1, block_ms, backwards=True)
    effective_ms = length_ms - crossing(shape, 0.9, block_ms) - crossing(shape, 0.9, block_ms, backwards=True)
    pulse_ms = BURSTS[priority].pulse
    assert 0.10 * pulse_ms <= rise_ms <= 0.20 * pulse_ms, rise_ms
    assert rise_ms + fall_ms <= SPACE_MS[priority]
    assert effective_ms == pytest.approx(pulse_ms, abs=2 * block_ms), "as patterns.py says, to a period's resolution"
    assert length_ms <= BURSTS[priority].starts[1], "the next pulse does not cut it"


def test_begins_and_ends_at_silence() -> None:
    for priority in (*PRIORITIES, "none"):
        wave = samples(tone.pulse(priority))  # type: ignore[arg-type]
        assert max(abs(value) for value in (*wave[:3], *wave[-3:])) < 0.01 * tone.FULL


def loudness(pcm: bytes) -> float:
    wave = samples(pcm)
    return 10 * math.log10(sum(value * value for value in wave) / len(wave))


@pytest.mark.alm("ALM-04")
def test_more_urgent_is_not_softer_and_never_ten_decibel_apart() -> None:
    for level in range(LOUDER + 1):
        high, medium, low = (loudness(tone.pulse(priority, level)) for priority in PRIORITIES)
        assert high >= medium >= low >= high - 10


def test_each_level_is_four_decibel_louder_and_nothing_clips() -> None:
    for volume in (1, 70, 100):
        levels = [loudness(tone.pulse("high", level, volume)) for level in range(LOUDER + 1)]
        tolerance = 0.05 if volume > 1 else 0.5  # at one per cent the steps of 16 bit are coarse
        assert [b - a for a, b in itertools.pairwise(levels)] == pytest.approx([4, 4], abs=tolerance)
    loudest = samples(tone.pulse("high", LOUDER, 100))
    assert max(abs(value) for value in loudest) == tone.FULL
    tops = [n for n, value in enumerate(loudest) if abs(value) == tone.FULL]
    assert all(b - a > 1 for a, b in itertools.pairwise(tops)), "the top is touched once a period, not cut flat"
    assert tone.pulse("high", LOUDER + 5) == tone.pulse("high", LOUDER)


def test_volume_is_a_share_and_the_same_call_gives_the_same_bytes() -> None:
    full, half = samples(tone.pulse("low", 0, 100)), samples(tone.pulse("low", 0, 50))
    assert max(full) == pytest.approx(2 * max(half), rel=0.001)
    tone._shape.cache_clear()
    assert samples(tone.pulse("low", 0, 50)) == half


@pytest.mark.alm("ALM-14")
def test_the_reminder_is_one_short_tone_unlike_every_burst() -> None:
    assert len(tone.pulse("none")) // 2 < min(len(tone.pulse(priority)) // 2 for priority in PRIORITIES)
    assert tone.FUNDAMENTAL_HZ["none"] not in {tone.FUNDAMENTAL_HZ[priority] for priority in PRIORITIES}
    assert REMINDER not in {burst.pulse for burst in BURSTS.values()}
    assert all(len(burst.starts) > 1 for burst in BURSTS.values())
