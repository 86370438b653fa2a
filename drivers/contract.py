"""The contract of a driver: bytes in, items out; no clock, socket, thread, logger or file.

A decoder never raises on input. What it does not understand becomes `Reject(reason, size)` and it resynchronises at
the next frame; internal buffers are capped. Items are handled in order, so a `Reply` yielded last with `after_commit`
leaves only after what precedes it is durable. Vendor "no value" codes and vendor units end in the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from edge_agent.records import Chunk, Item


class Decoder(Protocol):
    """State of one conversation with one device."""

    def feed(self, chunk: Chunk) -> Iterable[Item]:
        """Items that these bytes complete, in order. A list or tuple, never lazy: state is final on return."""

    def tick(self, at_ns: int) -> Iterable[Item]:
        """Items that the passing of time produces: handshakes, polls, keep-alives, frames ended by silence."""


class Outlet(Protocol):
    """Where items go one by one; a list is one."""

    def append(self, item: Item, /) -> None:
        """Take the next item."""


class EagerDecoder(Decoder, Protocol):
    """A decoder whose messages are long: it gives each item away as soon as it is known.

    An alarm then does not wait for the rows behind its own, nor for the text of the acknowledgement.
    """

    def feed_into(self, chunk: Chunk, out: Outlet) -> None:
        """What `feed` gives, appended to `out` item by item, in the same order."""


@dataclass(frozen=True, slots=True)
class Line:
    """Settings of a serial line as a device comes with them; the defaults are those of a serial link that says none."""

    baud: int = 9600
    parity: Literal["N", "E", "O"] = "N"
    bits: int = 8
    stop: int = 1


@dataclass(frozen=True, slots=True)
class Driver:
    """One row of the registry."""

    name: str
    decoder: Callable[..., Decoder]  # called with the [source.options] of the configuration as keywords
    links: frozenset[str]  # kinds of link it speaks over: serial, tcp, mllp, udp, ble, file, none
    emits: tuple[str, ...]  # names of terms
    silence_s: float  # without any item for so long, the source is silent
    evidence: str  # honestly, how it was verified
    options: tuple[str, ...] = ()  # keywords that `decoder` accepts
    channels: tuple[str, ...] = ()  # BLE characteristics to subscribe to or read, as the link names them
    per_channel: bool = False  # one decoder for each channel (TCP peers) instead of one for the source
    message_oriented: bool = False  # a chunk is one whole message (a BLE notification); never fed in pieces
    poll_s: float | None = None  # how often `tick` wants to be called; None: once a second
    lines: tuple[Line, ...] = ()  # settings its devices can be found with, the usual first; empty with serial: Line()
    services: tuple[str, ...] = ()  # BLE services that its devices advertise, named as `channels` are
    tells_link: str = ""  # keyword by which `decoder` is told the kind of its link, for those that frame by it


def hex_uuid(uuid: str) -> str:
    """A BLE characteristic as the decoders name it: 4 hex digits for a 16-bit UUID, else the full UUID, lower case."""
    lower = uuid.lower()
    if lower.endswith("-0000-1000-8000-00805f9b34fb") and lower.startswith("0000"):
        return lower[4:8]
    return lower
