"""Plays captures into decoders in every way their bytes may come; shared by the tests of captures and of properties."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import drivers
from drivers.contract import Decoder, Driver
from edge_agent.links.capture import Capture, read_capture
from edge_agent.records import Chunk, Item, shape

CAPTURES = Path(__file__).parent / "captures"
SILENCE_NS = 60_000_000_000  # after the last chunk: every decoder has given up on what was not finished


def paths() -> list[Path]:
    """Every capture of the repository, in order of names."""
    return sorted(CAPTURES.glob("*.cap"))


def driver_of(path: Path) -> tuple[Driver, Capture]:
    """The capture and the driver that its header names."""
    capture = read_capture(path)
    return drivers.load(capture.header["driver"]), capture


def of_messages(driver: Driver, capture: Capture) -> bool:
    """Whether each chunk is one whole message, because the driver's all are or because the link (`# link: udp`) was."""
    return driver.message_oriented or capture.header.get("link") == "udp"


def options(capture: Capture) -> dict[str, str]:
    """Options of the decoder from the header line `# options: key=value key=value`."""
    return dict(pair.split("=", 1) for pair in capture.header.get("options", "").split())


def whole(chunks: Iterable[Chunk]) -> list[Chunk]:
    """All bytes of a channel at once, at the time of its last chunk."""
    joined: dict[str, Chunk] = {}
    for chunk in chunks:
        before = joined.pop(chunk.channel, None)
        joined[chunk.channel] = Chunk(chunk.at_ns, (before.data if before else b"") + chunk.data, chunk.channel)
    return list(joined.values())


def byte_by_byte(chunks: Iterable[Chunk]) -> list[Chunk]:
    """One byte a chunk, at the time of the chunk it came in."""
    return [Chunk(chunk.at_ns, bytes((byte,)), chunk.channel) for chunk in chunks for byte in chunk.data]


def play(driver: Driver, chunks: Iterable[Chunk], **settings: Any) -> list[Item]:
    """Items of these chunks and of the silence behind them."""
    decoders: dict[str, Decoder] = {}
    out: list[Item] = []
    at_ns = 0
    for chunk in chunks:
        key = chunk.channel if driver.per_channel else ""
        if key not in decoders:
            decoders[key] = driver.decoder(**settings)
        at_ns = chunk.at_ns
        out += decoders[key].feed(chunk)
    for decoder in decoders.values():
        out += decoder.tick(at_ns + SILENCE_NS)
    return out


def shapes(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Items as the JSON objects that `.expect` files hold."""
    return [shape(item) for item in items]
