"""When a simulated device sends: at its own rate, faster, or as fast as the far end takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def paced(items: Iterable[Item], interval_s: float) -> AsyncIterator[Item]:
    """The items one by one, each at its place on a grid of `interval_s` seconds; 0 gives them without waiting.

    The grid starts at the first item and does not drift; an item that comes late does not move the ones behind it, and
    none is left out.
    """
    start = time.monotonic()
    for count, item in enumerate(items):
        wait = start + count * interval_s - time.monotonic() if interval_s else 0.0
        await asyncio.sleep(max(0.0, wait))
        yield item
