"""A buffer on a temporary folder with what it reports, for the tests of edge_agent/buffer."""

from __future__ import annotations

import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_agent import buffer, config
from edge_agent.buffer.clock import SYNCHRONIZED, Clock
from edge_agent.buffer.marks import KAFKA_ONLY
from edge_agent.records import AlarmEvent, Entry, Gap, Observation, Waveform

KEK = bytes(range(1, 33))
DEADLINE_S = 60.0  # a virtual machine was seen to stand still for 25 s


class FakeClock(Clock):
    """A clock whose UTC, boot and quality a test sets; the monotonic one runs on."""

    def __init__(self) -> None:
        super().__init__()
        self.utc_step_ns = 0
        self.mono_step_ns = 0
        self.state = SYNCHRONIZED
        self.boot_id = b"B" * 16

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self.mono_step_ns

    def utc_ns(self) -> int:
        return 1_700_000_000_000_000_000 + time.monotonic_ns() + self.utc_step_ns

    def quality(self) -> int:
        return self.state

    def boot(self) -> bytes:
        return self.boot_id


class Rig:
    """A running buffer and everything it has said."""

    def __init__(
        self,
        data_dir: Path,
        kek: bytes = KEK,
        clock: Clock | None = None,
        receivers: Mapping[str, tuple[str, ...]] = KAFKA_ONLY,
        **settings: float,
    ) -> None:
        self.data_dir = data_dir
        self.committed: list[int] = []
        self.shed: list[int] = []
        self.faults: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self.buffer = buffer.Buffer(
            data_dir,
            kek,
            "gw-1",
            config.Buffer(**{"commit_ms": 5, **settings}),  # type: ignore[arg-type]
            on_committed=self._on_committed,
            on_fault=self._on_fault,
            on_shed=self._on_shed,
            clock=clock,
            receivers=receivers,
        )

    def _on_committed(self, ticket: int) -> None:
        with self._changed:
            self.committed.append(ticket)
            self._changed.notify_all()

    def _on_shed(self, tickets: list[int]) -> None:
        with self._changed:
            self.shed += tickets
            self._changed.notify_all()

    def _on_fault(self, kind: str, detail: str) -> None:
        with self._changed:
            self.faults.append((kind, detail))
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object], seconds: float = DEADLINE_S) -> None:
        """Returns when the condition holds; the test fails when it does not within the time."""
        until = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = until - time.monotonic()
                assert left > 0, f"waited in vain; committed {self.committed[-3:]}, faults {self.faults}\n{_stacks()}"
                self._changed.wait(min(left, 0.02))

    def append(self, *entries: Entry, soon: bool = True) -> int:
        return self.buffer.append(list(entries), wanted_soon=soon)

    def commit(self, *entries: Entry) -> int:
        """Appends and waits until the ticket is reported."""
        ticket = self.append(*entries)
        self.wait(lambda: self.committed and self.committed[-1] >= ticket)
        return ticket

    def current_fault(self, kind: str) -> str:
        return next((detail for name, detail in reversed(self.faults) if name == kind), "")

    def close(self) -> None:
        self.buffer.close(DEADLINE_S)


def _stacks() -> str:
    """Where every thread of the buffer stands, for a wait that has failed."""
    frames = sys._current_frames()
    return "\n".join(
        f"{thread.name}: {''.join(traceback.format_stack(frames[thread.ident])[-4:])}"
        for thread in threading.enumerate()
        if thread.ident in frames and thread.name.startswith("buffer")
    )


def numeric(value: float, at_ns: int | None = None, bed: str = "ICU-3") -> Entry:
    at_ns = time.monotonic_ns() if at_ns is None else at_ns
    return Entry(bed, "hl7@mllp", "MRN-1", Observation("spo2", value, "valid", at_ns))


def wave(number: int, samples: int = 500) -> Entry:
    data = struct.pack("<h", number % 3000) * samples
    return Entry("ICU-3", "hl7@mllp", "", Waveform("pleth", 125.0, data, 1.0, 0.0, number))


def alert(number: int) -> Entry:
    return Entry("ICU-3", "", "", AlarmEvent(f"a{number}", "spo2_low", "physiological", "high", "start", "On", number))


def read_all(data_dir: Path, stream: str, kek: bytes = KEK) -> list[buffer.Block]:
    """Every block of a stream, read in small steps as cloud-sync does."""
    reader = buffer.Reader(data_dir, kek)
    out: list[buffer.Block] = []
    while blocks := reader.read(stream, out[-1].position if out else None, 7):
        out += blocks
    assert not reader.fault
    reader.close()
    return out


def values(blocks: list[buffer.Block]) -> list[float | None]:
    """The numerics of blocks, in order."""
    return [entry.record.value for block in blocks for entry in block.entries if isinstance(entry.record, Observation)]


def gaps(data_dir: Path) -> list[Gap]:
    """The Gap records of the alerts stream."""
    blocks = read_all(data_dir, "alerts")
    return [entry.record for block in blocks for entry in block.entries if isinstance(entry.record, Gap)]
