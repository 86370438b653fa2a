"""UDP: a bound port, or one peer that is spoken to first; each sender is a channel `host:port`, each datagram a chunk.

`udp` hears whoever sends to its port. With `reply` a sender is told apart by its host alone and answered at that port:
a device that announces itself from one port and converses on another is then one channel. `udp-dial` has a port of its
own, sends to its peer without having heard it, and hears nobody else.

Nothing says that a sender has gone, so the senders that are kept are bounded: a new one takes the place of the one
heard longest ago. The link is connected while its port is open, and silent when nothing comes.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from edge_agent.links.address import Address
from edge_agent.links.backoff import LOCAL_CAP_S, Backoff
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report
from edge_agent.links.tcp import host_port, reason
from edge_agent.links.tee import Reporting

MAX_SENDERS = 64
OUTPUT_LIMIT = 256 << 10  # bytes waiting in the process; the kernel takes datagrams at once unless it is out of memory


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, link: UdpLink, report: Report) -> None:
        self._link, self._report = link, report
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._report.received(data, self._link.heard(addr, self._report))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(reason(exc) if exc else "closed")


class UdpLink:
    """A UDP port that devices send to, or that speaks to one device."""

    def __init__(self, address: Address, reporting: Reporting, *, backoff: Backoff | None = None) -> None:
        self.url = address.url
        self.bound: tuple[str, int] | None = None
        self._host, self._port = address.host, address.port
        self._dials = address.scheme == "udp-dial"
        self._max = int(address.options.get("max", MAX_SENDERS))
        self._reply = int(address.options.get("reply", 0))
        self._reporting = reporting
        self._backoff = backoff or Backoff(cap_s=LOCAL_CAP_S)
        self._senders: dict[tuple[Any, ...], str] = {}  # address -> channel, heard longest ago first
        self._addresses: dict[str, tuple[Any, ...]] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._report: Report | None = None

    async def run(self, sink: Sink) -> None:
        """Receive until cancelled; a port that cannot be had is tried again."""
        async with self._reporting.run(sink, self.url) as report:
            self._report = report
            while True:
                await self._receive(report)
                await asyncio.sleep(self._backoff.next())

    async def _receive(self, report: Report) -> None:
        where = host_port((self._host, self._port))
        loop = asyncio.get_running_loop()
        end = "remote_addr" if self._dials else "local_addr"
        try:
            transport, protocol = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self, report),
                **{end: (self._host, self._port)},  # type: ignore[arg-type]
            )
        except OSError as error:
            if self._dials:
                report.lost(f"cannot send to {where}: {reason(error)}")
            else:
                report.lost(f"cannot receive on {where}: {reason(error)}; `ss -lunp` names who has the port")
            return
        try:
            self._transport = transport
            self.bound = transport.get_extra_info("sockname")[:2]
            if self._dials:
                self.heard(transport.get_extra_info("peername"), report)
            report.connected(
                f"{f'speaking to {where} from' if self._dials else 'receiving on'} "
                f"{host_port(cast(tuple[str, int], self.bound))}"
            )
            report.lost(f"receiving on {where}: {await protocol.gone}")
        finally:
            self._transport = self.bound = None
            transport.abort()
            self._senders.clear()
            self._addresses.clear()

    def heard(self, addr: tuple[Any, ...], report: Report) -> str:
        """The channel of a sender, which becomes the one heard last."""
        if self._reply:
            addr = (addr[0], self._reply, *addr[2:])
        channel = self._senders.pop(addr, None)
        if channel is None:
            channel = host_port(addr)
            if len(self._senders) >= self._max:
                oldest = next(iter(self._senders))
                gone = self._senders.pop(oldest)
                del self._addresses[gone]
                report.closed(gone)
            self._addresses[channel] = addr
        self._senders[addr] = channel
        return channel

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` is on its way to the sender `channel`, or to the only one."""
        transport, report = self._transport, self._report
        address = self._addresses.get(channel)
        if address is None and not channel and len(self._addresses) == 1:
            address = next(iter(self._addresses.values()))
        if transport is None or report is None or address is None:
            return False
        # asyncio's datagram transports have the method; the type's stub does not
        if cast(Any, transport).get_write_buffer_size() + len(data) > OUTPUT_LIMIT:
            return False
        transport.sendto(data, None if self._dials else address)
        report.sent(data, self._senders[address])
        return True
