"""A loudspeaker: the pulses of patterns.py as sound, or a recording of the hospital's own for each burst.

Theory of operation: a pulse begins when the player's edge comes and is then played by the device alone; the edge that
ends it does nothing, because the sound falls by itself, unless it comes before its time: then what is left is dropped.
Recordings start and are cut with the burst. What does not fit the device's buffer is written as room appears, in the
annunciator's thread, which never waits for the device.

A device that has not played by a second after its time what it took has failed; so has one that is gone, also while
nothing sounds.
"""

from __future__ import annotations

import time
import wave
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent import config
from edge_agent.annunciators import tone
from edge_agent.annunciators.alsa import Playback
from edge_agent.annunciators.edges import REMINDER_TONE, Edge
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.patterns import BURST, BURSTS, BUZZER, LOUDER, SHORTEST_GAP
from edge_agent.records import Priority

REFILL_NS = 50_000_000  # a tenth of the device's buffer
LOOK_NS = 1_000_000_000  # between looks whether the device is still there
OVERDUE_NS = 1_000_000_000  # after which a sound that has not been played to its end never will be
PRIORITIES: tuple[Priority, ...] = ("high", "medium", "low")
ALL: tuple[Priority, ...] = (*PRIORITIES, "none")  # none: the reminder
Own = dict[tuple[Priority, int], bytes]  # PCM by priority and loudness level


class Sound(Output):
    """One ALSA device."""

    prompt = False  # opening and writing are the device's business, and a USB device may take its time

    def __init__(self, settings: config.Annunciator, resolve: Callable[[Path], Path]) -> None:
        self.name = f"sound:{settings.device}"
        self._device, self._volume = settings.device, settings.volume
        self._folder = resolve(settings.sounds) if settings.sounds is not None else None
        self.outputs = (BUZZER,) if self._folder is None else (BUZZER, BURST)
        self._own: Own = {}
        self._pulses: Own = {}  # made when the device is opened: a pulse must not wait for arithmetic
        self._playback: Playback | None = None
        self._left = b""
        self._end_ns: int | None = None  # when the sound that was begun has been heard

    def open(self) -> None:
        """Read the recordings, if there are any, make the pulses ready and open the device."""
        if self._folder is not None:
            self._own = read_set(self._folder, self._volume)
        self._pulses = {
            (priority, level): tone.pulse(priority, level, self._volume)
            for priority in ALL
            for level in range(LOUDER + 1)
        }
        self._playback = Playback(self._device, tone.RATE_HZ)
        self._left, self._end_ns = b"", None
        self.due_ns = time.monotonic_ns() + LOOK_NS

    def switch(self, edges: Sequence[Edge]) -> None:
        """Begin and cut sounds."""
        for edge in edges:
            if self._own and edge.output == BUZZER and edge.condition != REMINDER_TONE:
                continue  # the recording stands for the pulses
            if edge.on:
                self._begin(edge)
            elif edge.cut:
                self._cut()

    def tend(self, now_ns: int) -> None:
        """Write what is left of a sound; look whether the device plays and is still there."""
        playback = self._opened()
        if self._left:
            self._write(playback)
        elif self._end_ns is None:
            playback.check()
        elif now_ns >= self._end_ns:
            if playback.finished():
                self._end_ns = None
            elif now_ns >= self._end_ns + OVERDUE_NS:
                raise FaultError(f"sound device {self._device!r} takes sound and does not play it; look to its plug")
        self.due_ns = now_ns + (REFILL_NS if self._left else LOOK_NS)

    def close(self) -> None:
        """Silence; give the device back."""
        playback, self._playback = self._playback, None
        self.due_ns = None
        if playback is not None:
            playback.close()

    def _begin(self, edge: Edge) -> None:
        playback = self._opened()
        if edge.output == BURST:
            self._left = self._own[edge.priority, edge.level]
        else:
            self._left = self._pulses[edge.priority, edge.level]
        length_ns = len(self._left) // 2 * 1_000_000_000 // tone.RATE_HZ
        playback.restart()
        self._write(playback)
        now_ns = time.monotonic_ns()
        self._end_ns = now_ns + length_ns
        self.due_ns = now_ns + (REFILL_NS if self._left else LOOK_NS)

    def _write(self, playback: Playback) -> None:
        self._left = self._left[playback.write(self._left) :]

    def _cut(self) -> None:
        self._left, self._end_ns = b"", None
        self._opened().stop()

    def _opened(self) -> Playback:
        if self._playback is None:
            raise FaultError(f"{self.name} is not open")
        return self._playback


def read_set(folder: Path, volume: int) -> Own:
    """The recordings high.wav, medium.wav and low.wav of a folder, by priority and loudness level.

    Raises: FaultError that names the file and what is wrong with it.
    """
    found: Own = {}
    for priority in PRIORITIES:
        samples = _read(folder / f"{priority}.wav", priority)
        for level in range(LOUDER + 1):
            found[priority, level] = tone.scaled(samples, tone.gain("high", level, volume))
    return found


def _read(path: Path, priority: Priority) -> list[float]:
    """Samples of a recording between -1 and 1; the hospital's own set carries its own loudness."""
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getsampwidth() * 8, file.getnchannels(), file.getframerate())
            data = file.readframes(file.getnframes())
    except OSError as error:
        needed = ", ".join(f"{each}.wav" for each in PRIORITIES)
        raise FaultError(f"cannot read {path}: {error.strerror}; a sound set is {needed}") from error
    except (wave.Error, EOFError) as error:
        raise FaultError(f"{path} is no PCM WAV file: {error or 'it ends too early'}") from error
    if form != (16, 1, tone.RATE_HZ):
        raise FaultError(
            f"{path} has {form[0]} bit, {form[1]} channels, {form[2]} Hz; needed are 16 bit, 1 channel, "
            f"{tone.RATE_HZ} Hz: "
            f"`sox IN.wav -b 16 -c 1 -r {tone.RATE_HZ} {path.name}`"
        )
    longest_ms = BURSTS[priority].length + SHORTEST_GAP
    length_ms = len(data) // 2 * 1000 / tone.RATE_HZ
    if not data or length_ms > longest_ms:
        raise FaultError(f"{path} lasts {length_ms:.0f} ms; it must last more than nothing and at most {longest_ms} ms")
    samples = array("h")
    samples.frombytes(data[: len(data) // 2 * 2])
    return [max(-1.0, sample / tone.FULL) for sample in samples]
