"""Serial lines a simulated device can be plugged into: a pseudo-terminal with a cable to pull, or a TCP socket.

Theory of operation of the pseudo-terminal: the device holds the master side, the gateway opens the slave side through
a symlink whose name stays the same. Pulling the cable closes the master and removes the symlink, so that the gateway
meets what a pulled USB adapter gives it: an input/output error and a device file that is gone. Plugging it in again
makes a new pseudo-terminal under the old name.

A real line does not wait: bytes sent while nobody listens are lost. `send` keeps to that. `deliver` waits until the far
end has opened the line and has taken every byte, for recordings that must arrive value by value.
"""

from __future__ import annotations

import asyncio
import os
import select
import tty
from pathlib import Path
from typing import Protocol

SETTLE_S = 1.0  # after opening, a receiver sets its line up and throws away what came before (pyserial does both)
LOOK_S = 0.02  # how often a closed line is looked at again
_DIAL_S = 0.5  # between two attempts to reach a TCP peer


class Wire(Protocol):
    """One way out of a simulated device."""

    async def deliver(self, data: bytes) -> None:
        """Hand all of `data`, or nothing, to a listening far end, waiting for it as long as it takes."""

    async def close(self) -> None:
        """Take the device off the line."""


class PtyWire:
    """A pseudo-terminal under the name `link`; the gateway opens `serial://LINK`."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self._master: int | None = None
        self._opened = False

    @property
    def plugged(self) -> bool:
        """Whether the cable is in."""
        return self._master is not None

    def plug(self) -> None:
        """Put the cable in. Raises: OSError when `link` exists and is no symlink, or no pseudo-terminal is left."""
        if self._master is not None:
            return
        master, slave = os.openpty()
        try:
            tty.setraw(slave)
            name = os.ttyname(slave)
            os.set_blocking(master, False)
            if self.link.is_symlink():
                self.link.unlink()
            self.link.symlink_to(name)
        except OSError:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self._master, self._opened = master, False

    def pull(self) -> None:
        """Pull the cable: the far end reads an input/output error and the device file is gone."""
        if self._master is not None:
            self.link.unlink(missing_ok=True)
            os.close(self._master)
            self._master = None

    def listening(self) -> bool:
        """Whether a far end has the line open."""
        if self._master is None:
            return False
        poll = select.poll()
        poll.register(self._master, 0)
        return not poll.poll(0)  # POLLHUP, reported without being asked for: no one holds the slave side

    def send(self, data: bytes) -> bool:
        """Put bytes on the line; whether they went out, which they do not with no listener or with its buffer full."""
        if self._master is None or not self.listening():
            return False
        self._drop_input(self._master)
        try:
            return os.write(self._master, data) == len(data)
        except OSError:
            return False

    async def deliver(self, data: bytes) -> None:
        """Hand all of `data` to a listening far end, waiting for it as long as it takes.

        Raises: ConnectionError when the cable is pulled meanwhile.
        """
        left = memoryview(data)
        while left or not self._opened:
            if self._master is None:
                raise ConnectionError(f"{self.link}: the cable is pulled")
            if not self.listening():
                self._opened = False
                await asyncio.sleep(LOOK_S)
                continue
            if not self._opened:
                self._opened = True
                await asyncio.sleep(SETTLE_S)
                continue
            self._drop_input(self._master)
            try:
                left = left[os.write(self._master, left) :]
            except BlockingIOError:
                await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """Wait until the far end has read what was delivered, at most SETTLE_S, and pull the cable."""
        await asyncio.sleep(SETTLE_S if self.listening() else 0.0)
        self.pull()

    @staticmethod
    def _drop_input(master: int) -> None:
        try:
            while os.read(master, 4096):
                pass
        except OSError:
            pass  # nothing waits, or no one listens


class TcpWire:
    """A TCP line, as terminal servers give one: dials `host`:`port` again and again, or listens for one peer there."""

    def __init__(self, host: str, port: int, *, listen: bool = False) -> None:
        self._host, self._port, self._listen = host, port, listen
        self._server: asyncio.Server | None = None
        self._peer: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None

    async def deliver(self, data: bytes) -> None:
        """Hand all of `data` to the peer, waiting for one as long as it takes; a lost peer gets all of it again."""
        while True:
            writer = await self._connected()
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                self._writer = None
                continue
            return

    async def close(self) -> None:
        """Hang up after what was written has left."""
        if self._writer is not None:
            self._writer.close()
            try:
                await self._writer.wait_closed()
            except OSError:
                pass  # the peer was first
        if self._server is not None:
            self._server.close()

    async def _connected(self) -> asyncio.StreamWriter:
        if self._writer is not None and self._writer.is_closing():
            self._writer = None
        if self._listen and self._server is None:
            self._server = await asyncio.start_server(self._accept, self._host, self._port)
        while self._writer is None:
            if self._listen:
                self._writer = await self._peer.get()
                continue
            try:
                _, self._writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                await asyncio.sleep(_DIAL_S)
        return self._writer

    def _accept(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer.put_nowait(writer)
