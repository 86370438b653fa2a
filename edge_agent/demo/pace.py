"""When a simulated device sends: at its own rate, faster, or as fast as the far end takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

MAX = 0.0  # the speed that waits for nothing


async def paced(timed: Iterable[tuple[float, Item]], speed: float = 1.0) -> AsyncIterator[Item]:
    """Items that carry their time in seconds, each given when its time has come, `speed` times as fast as real.

    The first one comes at once. An item that is late does not move the ones behind it, and none is left out.
    """
    started, first_s = time.monotonic(), 0.0
    for count, (at_s, item) in enumerate(timed):
        if count == 0:
            first_s = at_s
        due = started + (at_s - first_s) / speed if speed else 0.0
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield item
