"""Serial lines through pyserial: a device file, or a terminal server by rfc2217:// or socket://.

One thread a line does all that can wait: it opens, reads, writes, closes, and waits between attempts. What it reads
is stamped at once, put into an inbox, and taken out by the event loop, which is woken once for all that has gathered.
When the loop is so far behind that the inbox is full, the thread stops reading, and a terminal server's TCP holds the
rest back. A line that is pulled out makes reading fail, and the thread tries to open it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import serial

from edge_agent.links.address import Address
from edge_agent.links.backoff import CAP_S, LOCAL_CAP_S, Backoff
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report
from edge_agent.links.tcp import keep_alive
from edge_agent.links.tee import Reporting

INBOX_LIMIT = 1 << 20  # bytes; a 115200 baud line fills it in 90 s
OUTPUT_LIMIT = 64 << 10  # bytes; serial devices are asked in frames of a few bytes
READ_SIZE = 4096  # the size of Linux's line buffer
RFC2217_WAIT_S = 0.05  # pyserial reads these byte by byte from a queue; a write waits as long
STOP_S = 10.0  # rfc2217's own thread may take 7 s to end


def line_settings(address: Address) -> dict[str, Any]:
    """The settings of the line as pyserial's keywords; 9600 baud, 8 data bits, no parity, 1 stop bit if not told."""
    options = address.options
    return {
        "baudrate": options.get("baud", 9600),
        "parity": options.get("parity", "N"),
        "bytesize": options.get("bits", 8),
        "stopbits": options.get("stop", 1),
        "rtscts": options.get("rtscts", False),
        "xonxoff": options.get("xonxoff", False),
    }


class SerialLink:
    """A device on a serial line."""

    def __init__(self, address: Address, reporting: Reporting, *, backoff: Backoff | None = None) -> None:
        self.url = address.url
        self._address = address
        self._reporting = reporting
        self._backoff = backoff or Backoff(cap_s=LOCAL_CAP_S if address.scheme == "serial" else CAP_S)
        self._line: _Line | None = None
        self._report: Report | None = None

    async def run(self, sink: Sink) -> None:
        """Read until cancelled; a line that cannot be opened, or is pulled out, is tried again."""
        async with self._reporting.run(sink, self.url) as report:
            self._report = report
            line = _Line(self._address, self._backoff, asyncio.get_running_loop(), report)
            self._line = line
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._line = None
                report.stop()
                await asyncio.to_thread(line.stop)

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` is on its way to the line; False when it is not open or does not take what it was given."""
        del channel
        if self._line is None or self._report is None or not self._line.send(data):
            return False
        self._report.sent(data)
        return True


class _Line:
    """The thread behind a link, and what it shares with the event loop: two queues and their counters.

    Each counter is changed by one thread only and each queue is put into by one and emptied by the other, so nothing
    here needs a lock that the event loop could have to wait for.
    """

    def __init__(self, address: Address, backoff: Backoff, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        self._address, self._backoff, self._loop, self._report = address, backoff, loop, report
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._read_bytes = self._given_bytes = 0
        self._due = False  # the loop has been woken and has not yet looked
        self._outbox: deque[bytes] = deque()
        self._rest = b""  # what the line did not take at once; belongs to the line's thread
        self._asked_bytes = self._written_bytes = 0
        self._open = False  # as the loop knows it
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._work, name=address.url, daemon=True)
        self._thread.start()

    # -- in the event loop's thread -----------------------------------------------------------------------------

    def send(self, data: bytes) -> bool:
        if not self._open or self._asked_bytes - self._written_bytes + len(data) > OUTPUT_LIMIT:
            return False
        self._asked_bytes += len(data)
        self._outbox.append(data)
        self._wake()
        return True

    def _deliver(self) -> None:
        self._due = False
        was_full = self._read_bytes - self._given_bytes > INBOX_LIMIT
        while self._inbox:
            at_ns, data = self._inbox.popleft()
            self._given_bytes += len(data)
            self._report.received(data, "", at_ns)
        if was_full:
            self._wake()

    def _opened(self, at_ns: int) -> None:
        self._open = True
        self._report.connected(f"{self._address.path or self._address.url} is open", at_ns)

    def _lost(self, detail: str, at_ns: int) -> None:
        self._open = False
        self._report.lost(detail, at_ns)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it has been woken often enough
            os.write(self._wake_write, b"x")

    def stop(self) -> None:
        """End the thread; waits, so it is called in one that may."""
        self._stopping = True
        self._wake()
        self._thread.join(STOP_S)
        if not self._thread.is_alive():  # else the pipe stays open, for its number must not go to another
            os.close(self._wake_read)
            os.close(self._wake_write)

    # -- in the line's own thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping:
            port = None
            try:
                port = self._open_port()
                self._clear_outbox()
                self._call(self._opened, monotonic_ns())
                if self._address.scheme == "rfc2217":
                    self._converse_rfc2217(port)
                else:
                    self._converse(port)
            except Exception as error:
                self._call(self._lost, self._why(error, opened=port is not None), monotonic_ns())
            finally:
                if port is not None:
                    with contextlib.suppress(Exception):  # the device may be gone
                        port.close()
            if not self._stopping:
                select.select([self._wake_read], [], [], self._backoff.next())

    def _open_port(self) -> Any:
        address = self._address
        settings: dict[str, Any] = {"timeout": RFC2217_WAIT_S}
        target = f"{address.scheme}://{address.host}:{address.port}"
        if address.scheme == "serial":
            # exclusive: two programs on one line would each get half of the bytes
            settings = {"timeout": 0, "write_timeout": 0, "exclusive": True}
            target = address.path
        elif address.scheme == "socket":
            settings = {"timeout": 0, "write_timeout": 0}
        if address.scheme != "socket":
            settings |= line_settings(address)
        port = serial.serial_for_url(target, **settings)
        sock = getattr(port, "_socket", None)
        if sock is not None:
            keep_alive(sock)
        return port

    def _converse(self, port: Any) -> None:
        descriptor = port.fileno()
        while not self._stopping:
            self._rest = rest = self._rest or self._next_output()
            if self._read_bytes - self._given_bytes > INBOX_LIMIT:
                select.select([self._wake_read], [], [], 0.05)
            else:
                readable, writable, _ = select.select([descriptor, self._wake_read], [descriptor] if rest else [], [])
                if descriptor in readable:
                    self._take(port.read(READ_SIZE))
                if descriptor in writable:
                    written = port.write(rest)
                    self._written_bytes += written
                    self._rest = rest[written:]
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)

    def _converse_rfc2217(self, port: Any) -> None:
        while not self._stopping:
            while data := self._next_output():
                self._written_bytes += len(data)
                port.write(data)
            if self._read_bytes - self._given_bytes > INBOX_LIMIT:
                select.select([self._wake_read], [], [], 0.05)
                continue
            got = port.read(1)
            if got:
                waiting = port.in_waiting
                self._take(got + port.read(waiting) if waiting else got)
            elif not port._thread.is_alive():
                raise serial.SerialException("the terminal server closed the connection")

    def _next_output(self) -> bytes:
        return self._outbox.popleft() if self._outbox else b""

    def _clear_outbox(self) -> None:
        data = self._rest or self._next_output()
        while data:  # a question asked before the loss is not for the device that answers now
            self._written_bytes += len(data)
            data = self._next_output()
        self._rest = b""

    def _take(self, data: bytes) -> None:
        if not data:
            return
        at_ns = monotonic_ns()
        self._backoff.reset()
        self._read_bytes += len(data)
        self._inbox.append((at_ns, data))
        if not self._due:
            self._due = True
            self._call(self._deliver)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has ended
            self._stopping = True

    def _why(self, error: Exception, *, opened: bool) -> str:
        where = self._address.path or self._address.url.partition("?")[0]
        if opened:
            return f"{where} was lost: {error}"
        remedy = {
            errno.ENOENT: "it is not there; plug the cable in, or correct the path",
            errno.EACCES: "permission denied; add the agent's user to the group of the device file (dialout)",
            errno.EAGAIN: "another program has it open",
            errno.EBUSY: "another program has it open",
            errno.ENOTTY: "it is not a serial line",
            errno.EIO: "it answers with an input/output error; plug the cable in again",
        }.get(getattr(error, "errno", None) or 0, str(error))
        return f"cannot open {where}: {remedy}"
