"""What a link promises to the agent, and what it asks of it."""

from __future__ import annotations

from typing import Literal, Protocol

from edge_agent.records import Chunk

LinkState = Literal["connected", "silent", "lost"]


class LinkError(Exception):
    """A link URL that cannot be used: what is wrong with it, and what to write instead."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {remedy}")


class Sink(Protocol):
    """Where a link delivers to; every method is called in the event loop's thread and returns quickly."""

    def chunk(self, chunk: Chunk) -> None:
        """Bytes have come in."""

    def state(self, state: LinkState, at_ns: int, detail: str) -> None:
        """The state has changed, or a lost link has a new reason for being lost."""

    def closed(self, channel: str, at_ns: int) -> None:
        """The network peer `channel` has gone and sends nothing more; its decoder can be dropped."""


class Link(Protocol):
    """One way to one device, or to one network of devices."""

    url: str

    async def run(self, sink: Sink) -> None:
        """Carry bytes until cancelled, through every loss; returns early only when a capture has been played."""

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` is on its way; never waits. An empty channel means the only peer."""
