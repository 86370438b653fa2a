"""The log: for systemd's journal as fields that can be asked for, for everybody else as lines on standard error.

Theory of operation: a log line of this house reads `log.info("event words key=%s other=%r", ...)`. The event and the
keys are taken from the template and the values from the arguments, so that nobody has to say them twice and no text is
parsed: `journalctl EVENT=fault CONDITION=disk_fault` finds what `log.warning("fault condition=%s ...")` wrote. The
agent logs from the alarm loop into a queue; a thread of its own takes each record to the journal or to standard error.

systemd tells a service by JOURNAL_STREAM that its standard error goes to the journal; only then its socket is used.
Source: systemd, "Native Journal Protocol"; systemd.exec(5), $JOURNAL_STREAM; systemd.journal-fields(7).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import logging.handlers
import os
import queue
import re
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

from edge_agent import __version__

SOCKET = Path("/run/systemd/journal/socket")
SEND_S = 1.0  # until a line that the journal does not take goes another way: the log may not fill the memory
LINE = "%(levelname)s %(name)s %(message)s"
# names that the journal gives a meaning of its own: ours are told apart by a prefix
_TAKEN = frozenset({"MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "DOCUMENTATION", "TID", "UNIT", "USER_UNIT",
                    "INVOCATION_ID", "USER_INVOCATION_ID", "OBJECT_PID", "COREDUMP_UNIT"})  # fmt: skip
# a key with a word of the template, or a conversion with or without a key
_TOLD = re.compile(
    r"([A-Za-z][A-Za-z0-9_]*)=([A-Za-z0-9_.-]+)(?=\s|$)"
    r"|(?:([A-Za-z][A-Za-z0-9_]*)=)?%(?:(%)|[-+ #0]*[0-9]*(?:\.[0-9]+)?[a-zA-Z])"
)
_KEY = re.compile(r"\s*[A-Za-z][A-Za-z0-9_]*=")
# the journal takes no file that could still change
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def fields(template: object, arguments: object) -> dict[str, str]:
    """What a log call says as field by name: EVENT from the words before the first key, a field for every key."""
    text = str(template)
    found: dict[str, str] = {}
    first = _KEY.search(text)
    words = (text[: first.start()] if first else text).strip(" :")
    if words and "%" not in words:
        found["EVENT"] = words
    values = list(arguments) if isinstance(arguments, tuple) else []
    for key, word, converted, percent in _TOLD.findall(text):
        if percent or not (key or values):
            continue
        value = word if key else values.pop(0)
        if key or converted:
            name = (key or converted).upper()
            found[f"EDGE_{name}" if name in _TAKEN or name.startswith(("CODE_", "SYSLOG_")) else name] = str(value)
    return found


def priority(level: int) -> int:
    """The syslog severity of a Python log level, 7 to 2."""
    for least, severity in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return severity
    return 7


def encoded(entry: dict[str, str]) -> bytes:
    """One entry as the journal's socket takes it; a value with a line break in it goes with its length."""
    parts = []
    for name, value in entry.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Sends records with their fields to the journal; what it does not take goes to `fallback` as a line."""

    def __init__(self, identifier: str, path: Path = SOCKET, fallback: TextIO | None = None) -> None:
        """identifier: SYSLOG_IDENTIFIER, the name that journalctl shows before each line."""
        super().__init__()
        self._identifier, self._path = identifier, str(path)
        self._fallback = logging.StreamHandler(fallback)
        self._fallback.setFormatter(logging.Formatter(LINE))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(SEND_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._send(encoded(self._entry(record)))
            self._socket.settimeout(SEND_S)
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                self._socket.settimeout(0)  # one wait is enough: the next lines are only offered
            self._fallback.handle(record)

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()
        super().close()

    def _entry(self, record: logging.LogRecord) -> dict[str, str]:
        # a queue has made one text of template and arguments: what is in that text is nobody's field
        told: dict[str, str] = record.fields if hasattr(record, "fields") else fields(record.msg, record.args)
        return {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority(record.levelno)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
            "RELEASE": __version__,
            **told,
        }

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """What is too long for a datagram goes as a sealed file in memory."""
        descriptor = os.memfd_create("journal", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
            self._socket.sendmsg([], rights, 0, self._path)
        finally:
            os.close(descriptor)


class QueueHandler(logging.handlers.QueueHandler):
    """Hands records to another thread with their fields, which the usual handler would flatten into text."""

    def prepare(self, record: logging.LogRecord) -> Any:
        """The record as it goes into the queue."""
        told = fields(record.msg, record.args)
        ready = super().prepare(record)
        ready.fields = told
        return ready


def from_systemd(stream: TextIO | None = None) -> bool:
    """Whether systemd has connected `stream`, by default standard error, to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat((stream or sys.stderr).fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def handler(identifier: str, line: str = LINE, path: Path = SOCKET) -> logging.Handler:
    """Where this process logs to: the journal when systemd has started it, else lines on standard error."""
    if from_systemd() and path.exists():
        return JournalHandler(identifier, path)
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter(line))
    return stream


def start(identifier: str, level: str | int, line: str = LINE) -> logging.handlers.QueueListener:
    """Log from a thread of its own, so that a full pipe never holds the alarm loop; give the listener to stop."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.root.handlers = [QueueHandler(lines)]
    logging.root.setLevel(level)
    listener = logging.handlers.QueueListener(lines, handler(identifier, line))
    listener.start()
    return listener
