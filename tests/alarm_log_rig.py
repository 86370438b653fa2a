"""An alarm log on a temporary folder with what it reports, and ways to damage it, for tests/test_alarm_log_*.py."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_agent.alarm_log import FILE, AlarmLog, chain, reader
from edge_agent.buffer.clock import Clock
from edge_agent.records import AlarmEvent

KEK = bytes(range(1, 33))
DEADLINE_S = 60.0  # a virtual machine was seen to stand still for 25 s


class FakeClock(Clock):
    """A clock whose times, boot and quality a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.mono = 1_000_000_000_000
        self.utc = 1_780_000_000_000_000_000
        self.state = 2
        self.boot_id = b"B" * 16

    def pass_s(self, seconds: float) -> None:
        self.mono += round(seconds * 1e9)
        self.utc += round(seconds * 1e9)

    def monotonic_ns(self) -> int:
        return self.mono

    def utc_ns(self) -> int:
        return self.utc

    def quality(self) -> int:
        return self.state

    def boot(self) -> bytes:
        return self.boot_id


class Rig:
    """A running log and everything it has said."""

    def __init__(self, folder: Path, kek: bytes | None = KEK, clock: Clock | None = None, **more: Any) -> None:
        self.path = folder / FILE
        self.faults: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        settings: dict[str, Any] = {"run_id": "run-1", "log_mb": 256, "beds": ["ICU-3"], **more}
        self.log = AlarmLog(self.path, kek, on_fault=self._on_fault, clock=clock, **settings)

    def _on_fault(self, kind: str, detail: str) -> None:
        with self.changed:
            self.faults.append((kind, detail))
            self.changed.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), self.faults

    def fault(self, kind: str) -> str:
        return next((detail for name, detail in reversed(self.faults) if name == kind), "")

    def write(self, *events: AlarmEvent, bed: str = "ICU-3", patient: str = "") -> None:
        for event in events:
            self.log.append(bed, patient, event)
        assert self.log.flush(DEADLINE_S), self.faults

    def close(self) -> None:
        assert self.log.close(DEADLINE_S), self.faults


def event(alert: str, name: str = "start", state: str = "On", at_ns: int = 1, **more: Any) -> AlarmEvent:
    fields: dict[str, Any] = {
        "condition": "spo2_low", "kind": "physiological", "priority": "medium", "text": "SpO2 low", "vital": "spo2",
        "value": 87.0, "limit": "below 90", "source": "nonin@serial:///dev/ttyUSB0", **more,
    }  # fmt: skip
    return AlarmEvent(alert_id=alert, event=name, state=state, at_ns=at_ns, **fields)


def of_bed(name: str, at_ns: int = 1, **more: Any) -> AlarmEvent:
    return AlarmEvent("", "", "technical", "none", name, "Off", at_ns, **more)


def entries(path: Path, kek: bytes = KEK) -> list[chain.Entry]:
    """Every entry of a log that verifies."""
    with reader.snapshot(path, kek) as found:
        return [entry for entry, _ in found.entries()]


def marks(path: Path, kind: str) -> list[dict[str, Any]]:
    return [entry.mark.detail for entry in entries(path) if entry.mark is not None and entry.mark.kind == kind]


def alerts(path: Path) -> list[str]:
    return [entry.alarm.alert_id for entry in entries(path) if entry.alarm is not None]


def break_at(path: Path) -> tuple[int, str]:
    """Number and reason of the first bad entry; (-1, "") when the log verifies."""
    try:
        entries(path)
    except chain.Broken as error:
        return error.number, error.reason
    return -1, ""


def run_sql(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
