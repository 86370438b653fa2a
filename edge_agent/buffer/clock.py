"""The two clocks of a block: CLOCK_MONOTONIC for order, UTC for people, and whether UTC can be believed."""

from __future__ import annotations

import ctypes
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

UNKNOWN, UNSYNCHRONIZED, SYNCHRONIZED = 0, 1, 2
QUALITY_NAMES = ("unknown", "unsynchronized", "synchronized")

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64-bit Linux; room to spare
_TIMESYNC_FLAG = "/run/systemd/timesync/synchronized"


class Clock:
    """The machine's clocks; tests pass another object with the same four methods."""

    def __init__(self) -> None:
        self._adjtimex: Callable[[object], int] | None = None
        try:
            self._adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
        except (OSError, AttributeError):
            pass
        self._boot = _boot_id()

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00:00Z, as the machine believes."""
        return time.time_ns()

    def quality(self) -> int:
        """UNKNOWN, UNSYNCHRONIZED or SYNCHRONIZED, as the kernel says (adjtimex with nothing to set)."""
        if self._adjtimex is not None:
            state = self._adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
            if state >= 0:
                return UNSYNCHRONIZED if state == _TIME_ERROR else SYNCHRONIZED
        return SYNCHRONIZED if os.path.exists(_TIMESYNC_FLAG) else UNKNOWN

    def boot(self) -> bytes:
        """Sixteen bytes that name this boot of the machine; CLOCK_MONOTONIC counts within it."""
        return self._boot


def _boot_id() -> bytes:
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()).bytes
    except (OSError, ValueError):
        return uuid.uuid4().bytes  # without the kernel's word every process counts as a boot: safe, only more keys
