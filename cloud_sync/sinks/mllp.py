"""MLLP: one HL7 message at a time over TCP, the next one only when the peer has acknowledged the last.

Theory of operation. Messages wait in the order in which they came. The first is sent in its frame (0B message 1C 0D);
then the reply decides:

    AA, CA            accepted: the next one
    AE, CE            refused for now: the same message again, some times, each after a longer wait; then dropped
    AR, CR            refused for good: dropped
    nothing in time, no reply but other bytes, a reply too long, a lost connection
                      nothing is known: the connection is closed and everything unsettled kept, to be sent again

The connection is held open while nothing is to be sent, so that its loss is seen before it matters; a peer that closes
an idle connection is called again after a second, without the caller's growing waits.

A reply that names another message (a second acknowledgement of an earlier one) is passed over. The peer is not trusted:
what is kept of its bytes is bounded, and its words are never logged, because they may repeat the message.

Source: HL7 v2.6 chapter 2 (acknowledgement, original and enhanced mode); HL7 MLLP release 1.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cloud_sync.sinks import CONNECTING, Message, Rejected, Retry, Settled, State

REPLY_LIMIT = 64 << 10  # bytes; an acknowledgement has 200, with the errors of every segment a few thousand
ERROR_TRIES = 5  # times that a message answered with AE is sent before it is dropped
_ERROR_WAIT_S = (0.5, 4.0)  # first and longest wait before it is sent again; doubles, so 7.5 s in all
_IDLE_S = 1.0  # before a peer that has closed an idle connection is called again
_CONNECT_S = 5.0  # a hospital's own network answers in milliseconds; a firewall that drops packets never does
_START, _END = b"\x0b", b"\x1c\r"
_BLANK = b"\r\n"  # between two frames, nobody's fault

_ACCEPTED = frozenset({"AA", "CA"})
_ERROR = frozenset({"AE", "CE"})
_REFUSED = frozenset({"AR", "CR"})


class _Broken(Exception):
    """What came from the peer cannot be a reply."""


_TROUBLE = (OSError, UnicodeError, _Broken)  # UnicodeError: of a host that no resolver can be asked for


@dataclass(slots=True)
class _Batch:
    token: object
    messages: Sequence[Message]
    done: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    def verdict(self) -> Settled:
        return Settled(self.token, self.done - len(self.rejected), tuple(self.rejected))


class MllpSink:
    """A sink of cloud_sync.sinks over one connection; a message's `control_header` is its MSH-10."""

    def __init__(
        self,
        host: str,
        port: int,
        reply_s: float,
        control_header: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peer = f"{host}:{port}"
        self._host, self._port, self._reply_s, self._control = host, port, reply_s, control_header
        self._clock = clock
        self._batches: deque[_Batch] = deque()
        self._socket: socket.socket | None = None
        self._open = False  # the connection is established
        self._deadline = 0.0  # for the connection, then for the reply
        self._unsent = memoryview(b"")
        self._waiting = ""  # the control identifier whose reply is due
        self._received = bytearray()
        # What the peer has said survives `reset`, because it may close the connection behind every answer.
        self._judged: dict[str, Rejected | None] = {}  # by control identifier, until the batch has its verdict
        self._errors: tuple[str, int] = ("", 0)  # control identifier and how often it was answered with AE
        self._again_at = 0.0
        self._calls = 0  # a name may stand for several addresses, of which not all listen
        self._call_at = 0.0
        self._detail = CONNECTING

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its messages leave behind all earlier ones."""
        self._batches.append(_Batch(token, messages))

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready; connects, sends and listens for up to `timeout_s` seconds.

        Raises: Retry when the connection is lost or useless; everything without a verdict must be begun again.
        """
        until = self._clock() + timeout_s
        while True:
            ready = self._ready()
            if ready:
                return ready
            left = until - self._clock()
            try:
                self._work(max(0.0, left))
            except _TROUBLE as trouble:
                was_idle = self._open and not self._batches
                self._close()
                self._detail = f"{self._peer}: {_words(trouble)}"
                if not was_idle:
                    raise Retry(self._detail) from trouble
                self._call_at = self._clock() + _IDLE_S
            if left <= 0:
                return self._ready()

    def state(self) -> tuple[State, str]:
        """Connected, or waiting for what."""
        if self._errors[1] and self._again_at:
            return "waiting", f"{self._peer} answered a message with an error {self._errors[1]} times of {ERROR_TRIES}"
        return ("connected", "") if self._open else ("waiting", self._detail)

    def reset(self) -> None:
        """Forgets every batch and closes the connection."""
        self._close()
        self._batches.clear()

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts that come within `timeout_s` seconds; begins no further message."""
        until = self._clock() + timeout_s
        out = self._ready()
        with suppress(*_TROUBLE):
            while self._waiting and self._clock() < until:
                self._exchange(until - self._clock())
        out += self._ready()
        self.reset()
        return out

    # One step

    def _ready(self) -> list[Settled]:
        """Verdicts of the batches at the head whose every message the peer has judged."""
        out: list[Settled] = []
        while self._batches:
            batch = self._batches[0]
            while batch.done < len(batch.messages):
                message = batch.messages[batch.done]
                control = self._name(message)
                if control not in self._judged:
                    return out
                refused = self._judged[control]
                batch.done += 1
                if refused is not None:
                    batch.rejected.append(refused)
            out.append(self._batches.popleft().verdict())
            for message in batch.messages:
                self._judged.pop(self._name(message), None)
        return out

    def _name(self, message: Message) -> str:
        return next(value.decode() for name, value in message.headers if name == self._control)

    def _work(self, timeout_s: float) -> None:
        """One wait for the network, or for the time at which a refused message goes again."""
        now = self._clock()
        if self._socket is None:
            if now < self._call_at:
                time.sleep(min(timeout_s, self._call_at - now))
                return
            self._connect()
        if not self._open:
            self._finish_connecting(min(timeout_s, max(0.0, self._deadline - now)))
            return
        if not self._waiting and self._batches and now >= self._again_at:
            self._send(self._batches[0].messages[self._batches[0].done])
        if self._again_at > now:
            timeout_s = min(timeout_s, self._again_at - now)
        self._exchange(timeout_s)

    def _connect(self) -> None:
        self._deadline = self._clock() + _CONNECT_S
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[self._calls % len(found)]
        self._calls += 1
        self._socket = connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = connection.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

    def _finish_connecting(self, timeout_s: float) -> None:
        assert self._socket is not None
        if self._poll(select.POLLOUT, timeout_s):
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            self._open, self._detail = True, ""
            self._calls -= 1  # this address is the right one
        elif self._clock() >= self._deadline:
            raise OSError(errno.ETIMEDOUT, f"no connection within {_CONNECT_S:g} s")

    def _send(self, message: Message) -> None:
        self._waiting = self._name(message)
        self._unsent = memoryview(_START + message.value + _END)
        self._deadline = self._clock() + self._reply_s
        self._again_at = 0.0

    def _exchange(self, timeout_s: float) -> None:
        """Sends what still waits and takes what has come."""
        assert self._socket is not None
        if self._waiting:
            timeout_s = min(timeout_s, max(0.0, self._deadline - self._clock()))
        found = self._poll(select.POLLIN | (select.POLLOUT if self._unsent else 0), timeout_s)
        if found & select.POLLOUT:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        if found & ~select.POLLOUT:
            data = self._socket.recv(4096)
            if not data:
                raise _Broken("the connection was closed by the peer")
            self._received += data
            self._take()
        if self._waiting and self._clock() >= self._deadline:
            raise _Broken(f"no acknowledgement within {self._reply_s:g} s")

    def _poll(self, events: int, timeout_s: float) -> int:
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, events)
        found = poll.poll(timeout_s * 1000)
        return found[0][1] if found else 0

    # Replies

    def _take(self) -> None:
        """Every whole frame among the received bytes."""
        received = self._received
        while received:
            if received[0] in _BLANK:
                del received[0]
                continue
            if received[0] != _START[0]:
                raise _Broken("what it sent is no MLLP frame")
            end = received.find(_END)
            if end < 0:
                if len(received) > REPLY_LIMIT:
                    raise _Broken(f"a reply longer than {REPLY_LIMIT >> 10} KiB")
                return
            payload = bytes(received[1:end])
            del received[: end + len(_END)]
            code, control = _acknowledgement(payload)
            if control == self._waiting and self._waiting and not self._unsent:
                self._judge(code)

    def _judge(self, code: str) -> None:
        """The peer's word on the message that is under way."""
        batch, control = self._batches[0], self._waiting
        if code in _ERROR:
            count = self._errors[1] + 1 if self._errors[0] == control else 1
            if count < ERROR_TRIES:
                first, longest = _ERROR_WAIT_S
                self._errors = (control, count)
                self._again_at = self._clock() + min(longest, first * 2 ** (count - 1))
                self._waiting = ""
                return
            code = f"{code}, {count} times"
        elif code not in _ACCEPTED | _REFUSED:
            raise _Broken("its acknowledgement has no code that is known")
        self._waiting, self._errors, self._again_at = "", ("", 0), 0.0
        refused = Rejected(batch.messages[batch.done].dedup, f"refused by {self._peer} ({code})")
        self._judged[control] = None if code in _ACCEPTED else refused

    def _close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
        self._socket, self._open = None, False
        self._waiting, self._unsent = "", memoryview(b"")
        self._received.clear()


def _acknowledgement(payload: bytes) -> tuple[str, str]:
    """MSA-1 and MSA-2 of a reply. Raises: _Broken when it has none."""
    text = payload.decode("latin-1").lstrip("\r\n ")
    if text[:3] == "MSH" and len(text) > 3:
        for segment in text.replace("\n", "\r").split("\r"):
            if segment[:4] == f"MSA{text[3]}":
                fields = segment.split(text[3], 3)
                return fields[1].strip(), fields[2].strip() if len(fields) > 2 else ""
    raise _Broken("its reply is no acknowledgement")


def _words(trouble: Exception) -> str:
    if isinstance(trouble, OSError) and trouble.strerror:
        return trouble.strerror
    return str(trouble)
