"""The two clocks of a block: CLOCK_MONOTONIC for order, UTC for people, and whether UTC can be believed."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from edge_agent import clock_state

UNKNOWN, UNSYNCHRONIZED, SYNCHRONIZED = 0, 1, 2
QUALITY_NAMES = ("unknown", "unsynchronized", "synchronized")

_TIMESYNC_FLAG = "/run/systemd/timesync/synchronized"


class Clock:
    """The machine's clocks; tests pass another object with the same four methods."""

    def __init__(self) -> None:
        self._ask = clock_state.adjtimex()
        self._boot = _boot_id()

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00:00Z, as the machine believes."""
        return time.time_ns()

    def quality(self) -> int:
        """UNKNOWN, UNSYNCHRONIZED or SYNCHRONIZED, as the kernel says, or bedside-edge-clock.service in its place."""
        state = self._ask()
        if state is None:  # the sandbox of the service hides the question
            state = clock_state.read(clock_state.FILE, time.monotonic_ns())
        if state is None:
            return SYNCHRONIZED if os.path.exists(_TIMESYNC_FLAG) else UNKNOWN
        return SYNCHRONIZED if state else UNSYNCHRONIZED

    def boot(self) -> bytes:
        """Sixteen bytes that name this boot of the machine; CLOCK_MONOTONIC counts within it."""
        return self._boot


def _boot_id() -> bytes:
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()).bytes
    except (OSError, ValueError):
        return uuid.uuid4().bytes  # without the kernel's word every process counts as a boot: safe, only more keys
