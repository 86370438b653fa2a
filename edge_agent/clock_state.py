"""Whether the kernel's clock is synchronized, told in a file for the agent, whose sandbox hides the question.

The agent's sandbox refuses adjtimex, which only asks when nobody has the right to set. This process has a sandbox that
allows it, and nothing else to do: bedside-edge-clock.service.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

FILE = Path("/run/edge-agent/clock")
PERIOD_S = 10.0
STALE_NS = 60_000_000_000  # of CLOCK_MONOTONIC: older, and its writer is gone
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64-bit Linux; room to spare
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def adjtimex() -> Callable[[], bool | None]:
    """What asks the kernel: True or False, None where it does not tell."""
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return lambda: None

    def ask() -> bool | None:
        state = call(ctypes.create_string_buffer(_TIMEX_BYTES))
        return None if state < 0 else state != _TIME_ERROR

    return ask


def write(path: Path, synchronized: bool, at_ns: int) -> None:
    """Replace the file. Raises: OSError."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(f"{'synchronized' if synchronized else 'unsynchronized'} {at_ns}\n", encoding="ascii")
    os.replace(fresh, path)


def read(path: Path, at_ns: int) -> bool | None:
    """What the file says, None when it is not there, or not of the last minute."""
    try:
        word, stamp = path.read_text(encoding="ascii").split()
        age_ns = at_ns - int(stamp)
    except (OSError, ValueError):
        return None
    if not 0 <= age_ns <= STALE_NS or word not in ("synchronized", "unsynchronized"):
        return None
    return word == "synchronized"


def main(argv: list[str]) -> int:
    """Tell until SIGTERM; where the kernel does not, say so once and leave no file."""
    path = Path(argv[0]) if argv else FILE
    ask, stop, told = adjtimex(), threading.Event(), False
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.is_set():
        state = ask()
        if state is not None:
            write(path, state, time.monotonic_ns())
        elif not told:
            told = True
            print("<4>the kernel does not tell whether its clock is synchronized", file=sys.stderr)  # noqa: T201
        stop.wait(PERIOD_S)
    path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
