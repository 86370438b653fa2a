"""Waiting for something with a deadline; an emulated machine takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> None:
    """Returns when `condition()` is true; AssertionError that names `what` when it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.2)
