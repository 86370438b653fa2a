"""Links: bytes in, bytes out; each reconnects by itself and says whether it is connected, silent or lost.

`open_link` makes one from its URL; `links.address` tells which URLs there are. A link delivers a `Chunk` for every
read, stamped at receipt, synchronously in the event loop's thread. It knows nothing of what the bytes mean: the MLLP
schemes are TCP with HL7's port, and the framing stays with the decoder, because `decode` and `replay` need it there.

The module of a link, and with it pyserial or bleak, is imported when a link of that kind is opened, so that a gateway
without wearables does not carry Bluetooth in its memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.links.address import parse
from edge_agent.links.contract import Link, LinkError, LinkState, Sink
from edge_agent.links.tee import Reporting

if TYPE_CHECKING:
    from edge_agent.links.backoff import Backoff

__all__ = ["Link", "LinkError", "LinkState", "Sink", "link_kind", "open_link"]


def link_kind(url: str) -> str:
    """The kind of a link URL: serial, tcp, mllp, udp, ble, file or none.

    Raises: LinkError for a URL that cannot be used; nothing is opened to find out.
    """
    return parse(url).kind


def open_link(
    url: str,
    *,
    silence_s: float,
    channels: tuple[str, ...] = (),
    tee: Path | None = None,
    driver: str = "",
    backoff: Backoff | None = None,
    ble_radio: Any = None,
) -> Link:
    """A link, not yet running.

    `channels` are the BLE characteristics to subscribe to or read, all that notify when empty. `tee` is a capture of
    all that is received and sent, with `driver` in its header. `backoff` replaces the usual waits, and `ble_radio`
    (links.ble.Radio) the system's Bluetooth.
    Raises: LinkError for a URL that cannot be used, or when the package that the link needs is not installed.
    """
    address = parse(url)
    reporting = Reporting(silence_s, tee, driver)
    if address.kind in ("tcp", "mllp"):
        from edge_agent.links.tcp import DialLink, ListenLink

        return (ListenLink if address.scheme.endswith("-listen") else DialLink)(address, reporting, backoff=backoff)
    if address.kind == "udp":
        from edge_agent.links.udp import UdpLink

        return UdpLink(address, reporting, backoff=backoff)
    if address.kind == "serial":
        from edge_agent.links.serial import SerialLink

        return SerialLink(address, reporting, backoff=backoff)
    if address.kind == "ble":
        from edge_agent.links.ble import BleLink

        return BleLink(address, reporting, backoff=backoff, channels=channels, radio=ble_radio)
    from edge_agent.links.replay import FileLink, StillLink

    if address.kind == "file":
        return FileLink(address)
    return StillLink(address)
