"""A sink that remembers, and a link that runs for the length of a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from edge_agent.links import Link, LinkState
from edge_agent.records import Chunk

DEADLINE_S = 20.0  # for what takes milliseconds on a free machine


class RecordingSink:
    """What a link told, in order; `until` waits for it to have told something."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.states: list[tuple[LinkState, str]] = []
        self.gone: list[str] = []
        self.order: list[str] = []
        self._told = asyncio.Event()

    def chunk(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.order.append("chunk")
        self._told.set()

    def state(self, state: LinkState, at_ns: int, detail: str) -> None:
        assert at_ns > 0
        self.states.append((state, detail))
        self.order.append(state)
        self._told.set()

    def closed(self, channel: str, at_ns: int) -> None:
        assert at_ns > 0
        self.gone.append(channel)
        self.order.append("closed")
        self._told.set()

    def forget(self) -> None:
        for told in (self.chunks, self.states, self.gone, self.order):
            told.clear()

    @property
    def names(self) -> list[LinkState]:
        return [state for state, _ in self.states]

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def until_state(self, state: LinkState, saying: str = "") -> str:
        await self.until(lambda: bool(self.states) and self.states[-1][0] == state and saying in self.states[-1][1])
        return self.states[-1][1]


@contextlib.asynccontextmanager
async def running(link: Link) -> AsyncIterator[RecordingSink]:
    """The link at work; on the way out it must end at its first cancellation, and its own exception is the test's."""
    sink = RecordingSink()
    task = asyncio.create_task(link.run(sink))
    try:
        yield sink
    finally:
        was_done = task.done()
        task.cancel()
        await asyncio.wait({task}, timeout=DEADLINE_S)
        assert task.done(), "the link goes on though it was cancelled"
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert not was_done
