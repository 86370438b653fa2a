"""The windows of before a restart: from what was kept of them, and from the observations in the sealed buffer.

Theory of operation: every five minutes a bed's window is kept among the alarm log's settings, sealed like all of them.
After a start a thread of its own puts the kept windows together with the observations that the buffer holds since, or
for the whole day where nothing was kept; blocks that were delivered are no longer there. The alarms never wait for it:
it reads for as long as it rests, for `BUDGET_S` at most, and what it found is handed over to be filled in where
nothing was measured since. Observations of another patient than the one who lies there now count for nothing. Times of
another boot are moved by how long ago, in UTC, they were.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_agent.buffer import Block, KeyProblem, Position, Reader
from edge_agent.buffer.clock import Clock
from edge_agent.records import Observation
from edge_agent.watch.windows import BIN_NS, SLOTS, Copy, Windows

log = logging.getLogger("edge_agent.risk")

BUDGET_S = 120.0  # of reading and resting; the model is not asked before
READY_S = 30.0  # in which the buffer has opened or recovered its files
READ_BLOCKS = 16
_WINDOW_NS = SLOTS * BIN_NS
_KEY, _PERSON = "window ", "person "  # before the bed, among the settings of the alarm log


class _Kept(msgspec.Struct):
    """A window as it was kept: when, in which boot, whose, and its bins."""

    at_ns: int
    boot: bytes
    utc_ns: int
    patient: str
    bins: bytes


# built at import: msgspec prepares a struct at its first decoder, which two threads must not do at once
_DECODE = msgspec.msgpack.Decoder(_Kept).decode
_PEOPLE = msgspec.msgpack.Decoder(tuple[str, float | None, float | None]).decode


class Found(NamedTuple):
    """What a thread has found: windows by bed, and in words what it could not read."""

    windows: Mapping[str, Copy]
    fault: str


def setting(bed: str) -> str:
    """The name of the setting that keeps the window of a bed."""
    return _KEY + bed


def described(bed: str) -> str:
    """The name of the setting that keeps age and sex of the patient in a bed."""
    return _PERSON + bed


def person(patient: str, age: float | None, sex: float | None) -> bytes:
    """Age in years and sex of a patient as a setting of the alarm log."""
    return msgspec.msgpack.encode((patient, age, sex))


def people(patients: Mapping[str, str], settings: Mapping[str, bytes]) -> dict[str, tuple[float | None, float | None]]:
    """Age and sex by bed of those patients that were described before the restart."""
    out = {}
    for bed, patient in patients.items():
        try:
            who, age, sex = _PEOPLE(settings.get(described(bed), b""))
        except msgspec.MsgspecError:
            continue
        if who == patient:
            out[bed] = (age, sex)
    return out


def kept(bins: bytes, patient: str, at_ns: int, clock: Clock) -> bytes:
    """A packed window as a setting of the alarm log."""
    moment = clock.utc_ns() - (clock.monotonic_ns() - at_ns)
    return msgspec.msgpack.encode(_Kept(at_ns, clock.boot(), moment, patient, bins))


class Restart:
    """Reads back the windows of some beds; `done` is called in its thread, once."""

    def __init__(
        self,
        data_dir: Path,
        kek: bytes,
        patients: Mapping[str, str],
        settings: Mapping[str, bytes],
        ready: Callable[[float], bool],
        done: Callable[[Found], None],
        clock: Clock | None = None,
    ) -> None:
        """`patients`: who lies in each bed now; `ready(timeout_s)` waits for the buffer's files."""
        self._data_dir, self._kek, self._patients, self._settings = data_dir, kek, dict(patients), settings
        self._ready, self._done, self._clock = ready, done, clock or Clock()
        self._windows = Windows(patients)
        self._whose: dict[str, str] = {}
        self._since: dict[str, int] = {}  # what came before it is in the kept window
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="risk-restart", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End early; what was found until then is told."""
        self._stop.set()

    def _run(self) -> None:
        fault = ""
        try:
            self._take_kept()
            self._ready(READY_S)
            fault = self._read_buffer()
        except Exception as error:  # whatever it is, the model begins with what there is
            fault = f"{type(error).__name__}: {error}"
        now_ns = self._clock.monotonic_ns()
        mine = [bed for bed, patient in self._patients.items() if self._whose.get(bed) == patient]
        self._done(Found({bed: self._windows.copy(bed, now_ns) for bed in mine}, fault))

    def _take_kept(self) -> None:
        import models_tflite  # noqa: F401 - before numpy, of which it imports as little as it can
        from edge_agent.risk.hours import unpack

        clock = self._clock
        now_ns, utc_ns, boot = clock.monotonic_ns(), clock.utc_ns(), clock.boot()
        for bed, patient in self._patients.items():
            blob = self._settings.get(setting(bed), b"")
            if not blob:
                continue
            try:
                found = _DECODE(blob)
                at_ns = min(now_ns, found.at_ns if found.boot == boot else now_ns - (utc_ns - found.utc_ns))
                if found.patient != patient:
                    continue
                self._windows.fill(bed, at_ns // BIN_NS, unpack(found.bins, at_ns // BIN_NS))
            except (ValueError, msgspec.MsgspecError) as error:
                log.warning("kept window unreadable: %s", error)
                continue
            self._whose[bed], self._since[bed] = patient, at_ns

    def _read_buffer(self) -> str:
        """Observe what the buffer holds of the last day; in words why not all of it, empty when it was all."""
        end = time.monotonic() + BUDGET_S
        reader = Reader(self._data_dir, self._kek)
        try:
            now_ns = self._clock.monotonic_ns()
            least_ns = now_ns - _WINDOW_NS
            if len(self._since) == len(self._patients):
                least_ns = max(least_ns, min(self._since.values(), default=least_ns))
            place = _before(reader, self._clock.utc_ns() - (now_ns - least_ns))
            while not self._stop.is_set():
                began = time.monotonic()
                blocks = reader.read("data", place, READ_BLOCKS)
                if not blocks:
                    return reader.fault
                for block in blocks:
                    self._take(block, least_ns, now_ns)
                place = blocks[-1].position
                if time.monotonic() > end:
                    return "the buffer holds more than could be read in time"
                self._stop.wait(time.monotonic() - began)  # the alarm loop shares the interpreter with this thread
            return "stopped"
        except KeyProblem as error:
            return str(error)
        finally:
            reader.close()

    def _take(self, block: Block, least_ns: int, now_ns: int) -> None:
        clock, windows, whose = self._clock, self._windows, self._whose
        shift_ns = 0
        if block.boot != clock.boot():
            shift_ns = clock.monotonic_ns() - clock.utc_ns() + block.committed_ns - block.committed_mono_ns
        for entry in block.entries:
            record, bed = entry.record, entry.bed
            if record.__class__ is not Observation or bed not in self._patients:
                continue
            at_ns = record.at_ns + shift_ns
            if whose.get(bed) != entry.patient:
                if at_ns <= self._since.get(bed, at_ns - 1):
                    continue  # of somebody before the one whose window was kept
                windows.clear(bed)
                whose[bed] = entry.patient
            if max(least_ns, self._since.get(bed, least_ns)) < at_ns <= now_ns:
                windows.observe(bed, record, shift_ns)


def _before(reader: Reader, utc_ns: int) -> Position | None:
    """A place in the data stream behind which everything since a moment lies, not far before it."""
    first = reader.read("data", None, 1)
    if not first or first[0].committed_ns >= utc_ns:
        return None
    low, step = first[0].position, 256
    while True:
        found = reader.read("data", Position(low.instance, low.block + step - 1), 1)
        if found and found[0].committed_ns < utc_ns:
            low, step = found[0].position, step * 2
        elif step == 1:
            return low
        else:
            step = max(1, step // 4)
