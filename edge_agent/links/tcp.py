"""TCP in both directions, with or without MLLP inside.

A listening link carries several peers at once, each its own channel `host:port`. It is connected while at least one
peer is, and lost while none is or the port cannot be had; that is tried again. A peer that closes its sending side may
still be owed acknowledgements, so it is kept for a moment and only then dropped. Peers that have vanished without a
word are found by keep-alive; when all places are taken, one that has ended or has been idle makes room, so that a
monitor that was switched off and on is not kept out by its own dead connections. A peer that does not read its
acknowledgements is cut off when its output has reached a bound.

Bytes go from the socket to the sink in one call, without streams or tasks, because this is the way of an alarm.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Protocol, cast

from edge_agent.links.address import Address
from edge_agent.links.backoff import LOCAL_CAP_S, Backoff
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report
from edge_agent.links.tee import Reporting

MAX_PEERS = 64
OUTPUT_LIMIT = 256 << 10  # bytes; about 1000 acknowledgements, beside what the kernel holds
HALF_CLOSED_S = 3.0  # an acknowledgement waits for the buffer's commit, which takes well under a second
CONNECT_S = 10.0
PROBE_IDLE_S, PROBE_INTERVAL_S, PROBES = 10, 5, 3  # a peer without power is found after 25 s


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out when the other end has vanished, and send small writes at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_IDLE_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", (PROBE_IDLE_S + PROBES * PROBE_INTERVAL_S) * 1000),
    ):
        if hasattr(socket, name):  # Linux has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def host_port(address: tuple[object, ...]) -> str:
    """A socket address as a channel: host:port, an IPv6 host in brackets."""
    host = str(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def reason(error: BaseException | None) -> str:
    """Why a connection failed or ended, in the words of the system."""
    if error is None:
        return "closed by the other end"
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


class _Owner(Protocol):
    def joined(self, peer: _Peer) -> bool: ...  # False: no place for it
    def ended(self, peer: _Peer) -> bool: ...  # True: keep it for what it is still owed
    def left(self, peer: _Peer, why: str) -> None: ...


class _Peer(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_grace", "_owner", "_report", "_transport", "_why", "channel", "got_data", "has_ended", "last_ns")

    def __init__(self, owner: _Owner, report: Report, channel: str = "") -> None:
        self._owner, self._report = owner, report
        self.channel = channel
        self.got_data = self.has_ended = False
        self.last_ns = monotonic_ns()
        self._transport: asyncio.Transport | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._why = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        try:
            keep_alive(transport.get_extra_info("socket"))
        except OSError:
            peername = None
        if not peername:  # it was reset between its connection and now
            self._transport.abort()
            return
        channel = self.channel or host_port(peername)
        self.channel = channel
        if not self._owner.joined(self):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.got_data = True
        self.last_ns = at_ns = monotonic_ns()
        self._report.received(data, self.channel, at_ns)

    def eof_received(self) -> bool:
        self.has_ended = True
        if not self._owner.ended(self):
            return False
        assert self._transport is not None
        self._grace = asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._transport.close)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._owner.left(self, self._why or reason(exc))

    def send(self, data: bytes) -> bool:
        """Whether `data` is on its way; a peer that lets its output grow over the bound is cut off."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(data) > OUTPUT_LIMIT:
            self.cut(f"did not read {OUTPUT_LIMIT >> 10} kB of replies")
            return False
        transport.write(data)
        self._report.sent(data, self.channel)
        return True

    def cut(self, why: str) -> None:
        """End the connection now; what it has not read is lost."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()


class ListenLink:
    """A port that devices connect to."""

    def __init__(self, address: Address, reporting: Reporting, *, backoff: Backoff | None = None) -> None:
        self.url = address.url
        self.bound: tuple[str, int] | None = None  # host and port, once the port is open
        self.refused = 0  # connections for which there was no place
        self._host, self._port = address.host, address.port
        self._max = int(address.options.get("max", MAX_PEERS))
        self._reporting = reporting
        self._backoff = backoff or Backoff(cap_s=LOCAL_CAP_S)
        self._peers: dict[str, _Peer] = {}
        self._live = 0  # peers that have not ended
        self._report: Report | None = None

    async def run(self, sink: Sink) -> None:
        """Listen until cancelled; a port that cannot be had is tried again."""
        async with self._reporting.run(sink, self.url) as report:
            self._report = report
            server = await self._listen(report)
            self.bound = server.sockets[0].getsockname()[:2]
            report.lost(self._nobody())
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.bound = None
                server.close()
                report.stop()
                for peer in list(self._peers.values()):
                    peer.cut("the gateway stops")

    async def _listen(self, report: Report) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.create_server(
                    lambda: _Peer(self, report), self._host, self._port, reuse_address=True, backlog=128
                )
            except OSError as error:
                report.lost(self._cannot_listen(error))
            await asyncio.sleep(self._backoff.next())

    def _cannot_listen(self, error: OSError) -> str:
        # later Pythons pass over an address that the machine does not have, and then give an error without a number
        number = errno.EADDRNOTAVAIL if error.errno is None else error.errno
        remedy = {
            errno.EADDRINUSE: "another program has the port; `ss -ltnp` names it",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one",
            errno.EADDRNOTAVAIL: "this machine does not have that address; write 0.0.0.0 for all",
        }.get(number, reason(error))
        return f"cannot listen on {host_port((self._host, self._port))}: {remedy}"

    def _nobody(self) -> str:
        return f"no peer connected to {host_port(self.bound)}" if self.bound else "no peer connected"

    def joined(self, peer: _Peer) -> bool:
        """Take a new peer in, in the place of an idle one when all are taken."""
        assert self._report is not None
        former = self._peers.get(peer.channel)
        if former is not None:  # it was reset after it had ended, and its port is used again
            former.cut("its port is used by another connection")
            self._forget(former)
        if len(self._peers) >= self._max and not self._make_room():
            self.refused += 1
            return False
        self._peers[peer.channel] = peer
        self._live += 1
        self._report.connected(f"peer {peer.channel}")
        return True

    def _make_room(self) -> bool:
        idlest = min(self._peers.values(), key=lambda peer: (not peer.has_ended, peer.last_ns))
        if not idlest.has_ended and monotonic_ns() - idlest.last_ns < self._reporting.silence_s * 1e9:
            return False
        idlest.cut("made room for another peer")
        self._forget(idlest)
        return True

    def ended(self, peer: _Peer) -> bool:
        """A peer sends nothing more; it is kept when a reply may be on its way to it."""
        if self._peers.get(peer.channel) is peer:
            self._one_less()
        return peer.got_data

    def left(self, peer: _Peer, why: str) -> None:
        """A connection is gone."""
        del why
        if self._peers.get(peer.channel) is peer:
            self._forget(peer)

    def _forget(self, peer: _Peer) -> None:
        assert self._report is not None
        del self._peers[peer.channel]
        if not peer.has_ended:
            self._one_less()
        self._report.closed(peer.channel)

    def _one_less(self) -> None:
        assert self._report is not None
        self._live -= 1
        if self._live == 0:
            self._report.lost(self._nobody())

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` is on its way to the peer `channel`, or to the only one."""
        peer = self._peers.get(channel)
        if peer is None and not channel and len(self._peers) == 1:
            peer = next(iter(self._peers.values()))
        return peer is not None and peer.send(data)


class DialLink:
    """A device that listens, called by the gateway."""

    def __init__(
        self,
        address: Address,
        reporting: Reporting,
        *,
        backoff: Backoff | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.url = address.url
        self._host, self._port = address.host, address.port
        self._channel = host_port((address.host, address.port))
        self._reporting = reporting
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._peer: _Peer | None = None
        self._gone: asyncio.Future[str] | None = None
        self._report: Report | None = None

    async def run(self, sink: Sink) -> None:
        """Call, and call again after every loss, until cancelled."""
        async with self._reporting.run(sink, self.url) as report:
            self._report = report
            while True:
                await self._converse(report)
                await self._sleep(self._backoff.next())

    async def _converse(self, report: Report) -> None:
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[str] = loop.create_future()
        self._gone = gone
        peer = _Peer(self, report, self._channel)
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: peer, self._host, self._port)
            why = await gone
        except OSError as error:  # also TimeoutError, and gaierror for a name that does not resolve
            report.lost(f"no connection to {self._channel}: {reason(error)}")
            return
        finally:
            self._peer = self._gone = None
            peer.cut("the gateway stops")
        report.lost(f"connection to {self._channel}: {why}")
        report.closed(self._channel)
        if peer.got_data:
            self._backoff.reset()

    def joined(self, peer: _Peer) -> bool:
        """The device has answered."""
        assert self._report is not None
        self._peer = peer
        self._report.connected(f"connected to {self._channel}")
        return True

    def ended(self, peer: _Peer) -> bool:
        """False: the device sends nothing more, so nothing is owed to it."""
        del peer
        return False

    def left(self, peer: _Peer, why: str) -> None:
        """The connection is gone."""
        del peer
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(why)

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` is on its way to the device."""
        del channel
        return self._peer is not None and self._peer.send(data)
