"""Sound through the real ALSA library into a file, and what a device does that is missing, dies or runs dry."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
import wave
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import config
from edge_agent.annunciators import Annunciator, alsa, annunciator, open_annunciators, sound, tone
from edge_agent.annunciators.alsa import Playback
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.output import FaultError
from edge_agent.annunciators.patterns import BURSTS
from edge_agent.annunciators.sound import Sound
from edge_agent.records import Priority, Signal

DEADLINE_S = 10.0


@pytest.fixture(scope="session", autouse=True)
def real_library() -> None:
    try:
        ctypes.CDLL(alsa.LIBRARY)
    except OSError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI plays through the real library: {error}; apt install libasound2")
        pytest.skip(f"no ALSA here: {error}")


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets what the ALSA device "tape" plays."""
    raw = tmp_path / "tape.raw"
    settings = tmp_path / "asound.conf"
    settings.write_text(
        'pcm.!null { type null }\n'
        f'pcm.tape {{ type file; slave.pcm "null"; file "{raw}"; format "raw" }}\n'
    )  # fmt: skip
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(settings))
    _forget_settings()
    return raw


def _forget_settings() -> None:
    """ALSA keeps its settings for the process; the next open reads them anew."""
    ctypes.CDLL(alsa.LIBRARY).snd_config_update_free_global()


@pytest.fixture(autouse=True)
def _after() -> Iterator[None]:
    yield
    _forget_settings()


def settings(**more: Any) -> config.Annunciator:
    return config.Annunciator(kind="sound", device="tape", **more)


def opened(**more: Any) -> Sound:
    output = Sound(settings(**more), lambda path: path)
    output.open()
    return output


def edge(priority: Priority, on: bool, **more: Any) -> Edge:
    return Edge(more.pop("output", "buzzer"), on, "A", priority, more.pop("condition", "c"), "t", **more)


def alarm(priority: Priority = "high", onset: int = 1) -> Signal:
    return Signal("A", priority, True, True, "c", "t", priority, "c", onset, onset)


@pytest.mark.alm("ALM-04")
def test_each_edge_plays_the_pulse_of_its_priority_and_level(tape: Path) -> None:
    output = opened(volume=70)
    wanted = b""
    for priority, level in (("high", 0), ("high", 2), ("medium", 1), ("low", 0), ("none", 0)):
        output.switch([edge(priority, True, level=level)])  # type: ignore[arg-type]
        output.switch([edge(priority, False, level=level)])  # type: ignore[arg-type]
        wanted += tone.pulse(priority, level, 70)  # type: ignore[arg-type]
    output.close()
    assert tape.read_bytes() == wanted


def test_an_edge_that_ends_in_time_leaves_the_fall_and_a_cut_drops_it(
    tape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = opened()
    drops: list[str] = []
    real = Playback.stop
    monkeypatch.setattr(Playback, "stop", lambda self: (drops.append("drop"), real(self))[1])
    output.switch([edge("high", True)])
    output.switch([edge("high", False)])
    assert drops == []
    output.switch([edge("high", True)])
    output.switch([edge("high", False, cut=True)])
    assert drops == ["drop"]
    output.close()


def test_an_annunciator_plays_bursts_at_the_players_times(tape: Path, tmp_path: Path) -> None:
    faults: list[str] = []
    (one,) = open_annunciators(
        [settings()], resolve=lambda path: path, on_fault=lambda _, detail: faults.append(detail)
    )  # fmt: skip
    one.drive(alarm("low"))
    pulse = tone.pulse("low", 0, 70)
    end = time.monotonic() + DEADLINE_S
    while not (tape.exists() and tape.stat().st_size >= len(pulse)):  # a pulse is in the file when the next begins
        assert time.monotonic() < end, faults
        time.sleep(0.005)
    one.close()
    assert tape.read_bytes() == pulse * 2 and faults == [], "two pulses: the second was sounding when all was closed"


def test_a_device_that_is_not_there_is_a_fault_that_says_where_to_look_and_the_others_go_on(
    tape: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, str]] = []
    new = threading.Condition()

    def on_fault(name: str, detail: str) -> None:
        with new:
            told.append((name, detail))
            new.notify_all()

    missing = config.Annunciator(kind="sound", device="no such device")
    record = config.Annunciator(kind="record", path=tmp_path / "edges.jsonl")
    both = open_annunciators([missing, record], resolve=lambda path: path, on_fault=on_fault)
    with new:
        assert new.wait_for(lambda: bool(told), DEADLINE_S)
    assert told[0][0] == "sound:no such device"
    assert "cannot be opened: No such file or directory" in told[0][1] and "`aplay -L`" in told[0][1]
    for each in both:
        each.drive(alarm())
    end = time.monotonic() + DEADLINE_S
    edges = tmp_path / "edges.jsonl"
    while not (edges.exists() and "buzzer" in edges.read_text()):
        assert time.monotonic() < end
        time.sleep(0.005)
    for each in both:
        each.close()
    assert "ALSA lib" not in capfd.readouterr().err, "the library does not write to the log beside the fault"


def test_a_library_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alsa, "LIBRARY", "libasound-that-is-not-there.so.2")
    with pytest.raises(FaultError, match=r"apt install libasound2.*aplay -L"):
        alsa.library()


class Failing:
    """The real library, of which one function answers as a broken device would."""

    def __init__(self, function: str, *answers: int) -> None:
        self._real, self._function, self._answers = alsa.library(), function, list(answers)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name != self._function:
            return real
        return lambda *arguments: self._answers.pop(0) if self._answers else real(*arguments)


def failing(monkeypatch: pytest.MonkeyPatch, function: str, *answers: int) -> None:
    library = Failing(function, *answers)
    monkeypatch.setattr(alsa, "library", lambda: library)


@pytest.mark.parametrize(("code", "reason"), [(errno.EIO, "Input/output error"), (errno.ENODEV, "No such device")])
def test_a_device_that_dies_is_a_fault(tape: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    failing(monkeypatch, "snd_pcm_writei", -code)
    output = opened()
    with pytest.raises(FaultError, match=f"sound device 'tape' has failed: {reason}; look to its plug.*aplay -L"):
        output.switch([edge("high", True)])


def test_a_device_that_is_pulled_out_while_nothing_sounds_is_found(tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened()
    output.tend(output.due_ns or 0)
    failing(monkeypatch, "snd_pcm_state", 8)  # SND_PCM_STATE_DISCONNECTED
    output._playback._library = alsa.library()  # type: ignore[union-attr]
    with pytest.raises(FaultError, match="No such device"):
        output.tend(output.due_ns or 0)


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ESTRPIPE])
def test_a_device_that_ran_dry_is_prepared_and_plays(tape: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    failing(monkeypatch, "snd_pcm_writei", -code)
    output = opened()
    output.switch([edge("medium", True)])
    output.close()
    assert tape.read_bytes() == tone.pulse("medium", 0, 70)


def test_a_device_that_never_runs_is_a_fault_not_an_endless_loop(tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "snd_pcm_writei", -errno.EPIPE, -errno.EPIPE)
    with pytest.raises(FaultError, match="stops as soon as it starts"):
        opened().switch([edge("medium", True)])


def test_what_the_device_does_not_take_now_is_written_when_there_is_room(
    tape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "snd_pcm_writei", -errno.EAGAIN, -errno.EAGAIN)
    output = opened()
    output.switch([edge("low", True)])
    now_ns = time.monotonic_ns()
    for _ in range(2):
        assert output.due_ns is not None and output.due_ns - now_ns <= sound.REFILL_NS
        now_ns = output.due_ns
        output.tend(now_ns)
    assert output.due_ns == now_ns + sound.LOOK_NS, "all is written"
    output.close()
    assert tape.read_bytes() == tone.pulse("low", 0, 70)


def test_a_device_that_takes_sound_and_does_not_play_is_a_fault(tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened()
    output.switch([edge("high", True)])
    monkeypatch.setattr(Playback, "finished", lambda self: False)
    output.tend(time.monotonic_ns())
    with pytest.raises(FaultError, match="takes sound and does not play it"):
        output.tend(time.monotonic_ns() + 3 * sound.OVERDUE_NS)


def test_an_annunciator_comes_back_when_its_device_does(tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annunciator, "RETRY_S", 0.02)
    failing(monkeypatch, "snd_pcm_writei", -errno.EIO)
    told: list[str] = []
    new = threading.Condition()

    def on_fault(_: str, detail: str) -> None:
        with new:
            told.append(detail)
            new.notify_all()

    one = Annunciator(Sound(settings(), lambda path: path), on_fault=on_fault)
    one.drive(alarm("medium"))
    with new:
        assert new.wait_for(lambda: len(told) >= 2, DEADLINE_S)
    assert "has failed" in told[0] and told[1] == ""
    end = time.monotonic() + DEADLINE_S
    while not (tape.exists() and tape.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.005)
    one.close()
    assert tape.read_bytes().startswith(tone.pulse("medium", 0, 70))


# -- a sound set of the hospital's own -------------------------------------------------------------------------------


def recording(path: Path, frames: int, *, width: int = 2, channels: int = 1, rate: int = 48_000) -> array[int]:
    samples = array("h", ((n * 37) % 20_000 - 10_000 for n in range(frames)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes() if width == 2 else bytes(frames * width * channels))
    return samples


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number, name in enumerate(("high", "medium", "low")):
        recording(folder / f"{name}.wav", 4800 + number)
    return folder


def test_a_recording_plays_once_a_burst_in_place_of_the_pulses(tape: Path, own: Path) -> None:
    output = opened(sounds=own, volume=100)
    assert output.outputs == ("buzzer", "burst")
    output.switch([edge("medium", True, output="burst")])
    for pulse in range(3):
        output.switch([edge("medium", True, pulse=pulse)])
        output.switch([edge("medium", False, pulse=pulse)])
    output.switch([edge("medium", False, output="burst")])
    output.switch([edge("none", True, condition="reminder")])
    output.close()
    played = tape.read_bytes()
    assert len(played) == 4801 * 2 + len(tone.pulse("none"))
    assert played.endswith(tone.pulse("none", 0, 100)), "a reminder has no recording"
    first = array("h")
    first.frombytes(played[: 4801 * 2])
    gain = tone.gain("high", 0, 100)
    assert max(first) == pytest.approx(10_000 * gain, rel=0.01), "headroom for two levels is kept"


def test_a_recording_is_cut_with_its_burst(tape: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording(own / "high.wav", 48_000 * 3)
    accepted: list[int] = []
    real = Playback.write

    def small(self: Playback, data: bytes) -> int:
        accepted.append(real(self, data[:9600]))
        return accepted[-1]

    monkeypatch.setattr(Playback, "write", small)
    output = opened(sounds=own)
    output.switch([edge("high", True, output="burst")])
    output.tend(output.due_ns or 0)
    output.switch([edge("high", False, output="burst", cut=True)])
    output.tend(output.due_ns or 0)
    assert len(accepted) == 2, "nothing is written after the cut"
    output.close()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"width": 1}, "8 bit"),
        ({"channels": 2}, "2 channels"),
        ({"rate": 44_100}, "44100 Hz"),
        ({"frames": 0}, "lasts 0 ms"),
        ({"frames": 48_000 * 5}, "lasts 5000 ms; it must last more than nothing and at most 3500 ms"),
    ],
)
def test_a_recording_of_another_kind_is_named(tape: Path, own: Path, form: dict[str, int], reason: str) -> None:
    recording(own / "medium.wav", **{"frames": 4800, **form})
    with pytest.raises(FaultError, match=rf"medium\.wav .*{reason}"):
        opened(sounds=own)


def test_a_recording_that_is_missing_or_no_wave_file_is_named(tape: Path, own: Path) -> None:
    (own / "low.wav").write_bytes(b"ID3\x04 this is no wave file")
    with pytest.raises(FaultError, match=r"low\.wav is no PCM WAV file"):
        opened(sounds=own)
    (own / "low.wav").unlink()
    with pytest.raises(FaultError, match=r"cannot read .*low\.wav: No such file.*high\.wav, medium\.wav, low\.wav"):
        opened(sounds=own)


def test_pulses_fit_the_devices_buffer() -> None:
    longest = max(len(tone.pulse(priority)) for priority in BURSTS)
    assert longest / 2 / tone.RATE_HZ * 1000 < alsa.BUFFER_MS
