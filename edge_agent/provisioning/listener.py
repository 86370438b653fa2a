"""A line that is only listened to: a serial port, or a terminal server's TCP port.

What keeps a serial line silent from this side: it is opened for reading only, so that not even a mistake can write;
echo, flow control by XON/XOFF and hardware flow control are switched off at once, for an echoing line answers every
byte and a full one sends XOFF. The kernel raises DTR and RTS when it opens a port, before any program can say
otherwise, exactly as the agent's own link does later; they stay as they are, because optically isolated cables live on
them, and because the port is opened once and only its rate is changed, they do not move from one rate to the next.

The lock is the same as the agent's link takes, so a port that the agent reads is not listened to beside it.

Source: termios(3), ioctl_tty(2) TIOCGICOUNT.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import termios
from typing import Protocol

from drivers.contract import Line
from edge_agent.links.address import Address

READ_SIZE = 4096  # the size of Linux's line buffer
DIAL_S = 3.0
_TIOCGICOUNT = 0x545D
_COUNTERS = struct.Struct("20i")  # serial_icounter_struct: cts dsr rng dcd rx tx frame overrun parity brk, reserved
_FRAME, _PARITY = 6, 8
_SIZES = {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}


class ListenError(OSError):
    """A line that cannot be listened to; `str` says why and what to do."""


class Listener(Protocol):
    """What `detect` listens to."""

    fixed: bool  # whether rate and form are set elsewhere, so that `tune` has no effect

    def tune(self, line: Line) -> None:
        """Listen with these settings from now on; what came before is forgotten. Raises: ListenError."""

    def read(self, wait_s: float) -> bytes:
        """What has come within `wait_s` seconds, at least a byte when there is one. Raises: ListenError when lost."""

    def errors(self) -> int:
        """Framing and parity errors since the last `tune`, as far as the port counts them."""

    def close(self) -> None:
        """Give the line back."""


def open_listener(address: Address) -> Listener:
    """The line behind a serial link. Raises: ListenError."""
    if address.scheme == "serial":
        return SerialPort(address.path)
    if address.scheme in ("socket", "tcp"):
        return TcpPort(address.host, address.port)
    if address.scheme == "rfc2217":
        raise ListenError(
            f"{address.url}: RFC 2217 begins with a negotiation, which is sending\n"
            "  set the rate in the terminal server and listen to its raw port: socket://HOST:PORT"
        )
    raise ListenError(f"{address.url}: this is no serial line\n  write serial:///dev/... or socket://HOST:PORT")


class SerialPort:
    """A serial port, opened for reading only."""

    fixed = False

    def __init__(self, path: str) -> None:
        """Raises: ListenError."""
        self.path = path
        self._errors_before = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ListenError(_why(path, error)) from error
        try:
            self._apply(Line())  # first of all: an echoing line answers what it hears
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, termios.error) as error:
            os.close(self._fd)
            raise ListenError(_why(path, error)) from error

    def fileno(self) -> int:
        """The descriptor, which cannot write."""
        return self._fd

    def close(self) -> None:
        """Give the port back."""
        os.close(self._fd)

    def tune(self, line: Line) -> None:
        """Set rate and form and forget what came before."""
        try:
            self._apply(line)
            termios.tcflush(self._fd, termios.TCIFLUSH)
        except (OSError, termios.error) as error:
            raise ListenError(_why(self.path, error)) from error
        self._errors_before = self._counted()

    def read(self, wait_s: float) -> bytes:
        """What has come within `wait_s`."""
        readable, _, _ = select.select([self._fd], [], [], wait_s)
        if not readable:
            return b""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise ListenError(f"{self.path} was lost: {error.strerror}\n  plug the cable in again") from error
        if not data:
            raise ListenError(f"{self.path} was lost\n  plug the cable in again")
        return data

    def errors(self) -> int:
        """Framing and parity errors since the last `tune`; 0 where the driver of the port does not count."""
        return self._counted() - self._errors_before

    def _counted(self) -> int:
        counters = bytearray(_COUNTERS.size)
        try:
            fcntl.ioctl(self._fd, _TIOCGICOUNT, counters)
        except OSError:
            return 0
        values = _COUNTERS.unpack(counters)
        return int(values[_FRAME] + values[_PARITY])

    def _apply(self, line: Line) -> None:
        speed = getattr(termios, f"B{line.baud}", None)
        if speed is None:
            raise OSError(errno.EINVAL, f"{line.baud} baud is no rate of this system")
        present = termios.tcgetattr(self._fd)
        # CLOCAL: no carrier is waited for; CRTSCTS is left out; what happens at the end (HUPCL) stays as it was
        control = termios.CREAD | termios.CLOCAL | _SIZES[line.bits] | present[2] & termios.HUPCL
        control |= {"N": 0, "E": termios.PARENB, "O": termios.PARENB | termios.PARODD}[line.parity]
        control |= termios.CSTOPB if line.stop == 2 else 0
        checked = termios.INPCK if line.parity != "N" else 0
        special = present[6]
        special[termios.VMIN], special[termios.VTIME] = 0, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, [checked, 0, control, 0, speed, speed, special])


class TcpPort:
    """The raw port of a terminal server, which has the rate set."""

    fixed = True

    def __init__(self, host: str, port: int) -> None:
        """Raises: ListenError."""
        self._where = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), DIAL_S)
        except OSError as error:
            raise ListenError(f"{self._where} cannot be reached: {error}\n  is the terminal server on?") from error

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def tune(self, line: Line) -> None:
        """Nothing: the terminal server has its settings."""

    def read(self, wait_s: float) -> bytes:
        """What has come within `wait_s`."""
        readable, _, _ = select.select([self._socket], [], [], wait_s)
        if not readable:
            return b""
        try:
            data = self._socket.recv(READ_SIZE)
        except OSError as error:
            raise ListenError(f"{self._where} was lost: {error}\n  is the terminal server on?") from error
        if not data:
            raise ListenError(f"{self._where} closed the connection\n  does another program use its port?")
        return data

    def errors(self) -> int:
        """None is known of."""
        return 0


def _why(path: str, error: Exception) -> str:
    number = error.args[0] if error.args else 0
    remedy = {
        errno.ENOENT: "it is not there: plug the adapter in; `edge-agent provision --only ports` lists what is there",
        errno.EACCES: "permission denied: run as root, or be in the group of the device file (dialout)",
        errno.EAGAIN: "another program reads it: where that is the agent, its `edge-agent status` shows the source",
        errno.EBUSY: "another program reads it: where that is the agent, its `edge-agent status` shows the source",
        errno.ENOTTY: "it is not a serial line",
        errno.EIO: "it answers with an input/output error: plug the adapter in again",
    }.get(number if isinstance(number, int) else 0, str(error))
    return f"{path} cannot be listened to\n  {remedy}"
