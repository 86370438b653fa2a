"""The optional port for Prometheus: GET /metrics over HTTP/1, on this machine's loopback by default.

Theory of operation: one thread serves all connections, and what it may take from the alarm loop is bounded whatever
comes in. Each connection has DEADLINE_S and MAX_REQUEST bytes to say what it wants, at most MAX_CONNECTIONS are open,
and a new one is accepted every ACCEPT_S at most: what comes beyond that waits in the kernel, which refuses it in the
end without our doing. The numbers are put together in the alarm loop, which is asked at most once in FRESH_S and while
no earlier question is open; a loop that does not answer within ANSWER_S is answered for with status 503.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("edge_agent")

MAX_CONNECTIONS = 8  # Prometheus needs one; the rest is for those that hang
MAX_REQUEST = 8192  # Prometheus asks in less than 500 bytes
DEADLINE_S = 5.0  # for a connection, from its first byte to our last
ACCEPT_S = 0.05  # between two connections: 20 answers a second are far more than anybody scrapes
TURN_S = 0.005  # between two turns of the thread, so that a sender of single bytes gets no more than the others
FRESH_S = 1.0  # how long an answer of the loop serves
HOST_FRESH_S = 60.0  # and one about certificates and disk, which means reading files
ANSWER_S = 2.0
RETRY_S = 10.0  # until a port that is taken is tried again
BACKLOG = 16
FORM = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class _Connection:
    peer: socket.socket
    until: float
    request: bytes = b""
    reply: bytes = b""


class MetricsPort:
    """Serves until `close`. `bound` is the address once the port is open, for a configuration that names port 0."""

    def __init__(
        self,
        address: tuple[str, int],
        post: Callable[[Callable[[], None]], None],
        text: Callable[[], str],
        host_text: Callable[[], str] = str,
    ) -> None:
        """post: has something done in the alarm loop. text: is called there. host_text: is called in our thread."""
        self._address, self._post, self._text, self._host_text = address, post, text, host_text
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._connections: dict[socket.socket, _Connection] = {}
        self._accept_at = 0.0
        self._answer, self._answered_at, self._answer_due = "", float("-inf"), False
        self._host, self._host_at = "", float("-inf")
        self._answered = threading.Event()
        self._stop, self._told = threading.Event(), ""
        self.bound: tuple[str, int] | None = None
        self.open = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="metrics port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and every connection; waits at most for the answer of a loop that hangs."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._answered.set()
        self._wake_in.send(b"x")
        self._thread.join(ANSWER_S)
        self._wake_in.close()
        self._wake_out.close()

    # -- all of this in our thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._turn()
                except OSError as error:
                    self._tell(f"{error.strerror or error}")
                    self._stop.wait(RETRY_S)
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            if self._listener is not None:
                self._listener.close()
            self._selector.close()

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            log.warning("metrics port=%s trouble=%r", "{}:{}".format(*self._address), trouble)

    def _turn(self) -> None:
        if self._listener is None:
            self._listen()
        now = time.monotonic()
        waits = [each.until for each in self._connections.values()]
        self._watch_listener(now)
        if len(self._connections) < MAX_CONNECTIONS and now < self._accept_at:
            waits.append(self._accept_at)
        ready = self._selector.select(None if not waits else max(0.0, min(waits) - now))
        for key, _ in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Connection):
                self._serve(key.data)
        now = time.monotonic()
        for connection in [each for each in self._connections.values() if each.until <= now]:
            self._drop(connection)
        self._stop.wait(TURN_S)

    def _listen(self) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(self._address)
            made.listen(BACKLOG)
            made.setblocking(False)
        except OSError:
            made.close()
            raise
        self._listener, self._told = made, ""
        self.bound = made.getsockname()[:2]
        self.open.set()
        log.info("metrics port=%s open", "{}:{}".format(*self.bound))

    def _watch_listener(self, now: float) -> None:
        """Look for new connections only while one may be accepted."""
        assert self._listener is not None
        wanted = len(self._connections) < MAX_CONNECTIONS and now >= self._accept_at
        present = self._listener in self._selector.get_map()
        if wanted and not present:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif present and not wanted:
            self._selector.unregister(self._listener)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        peer.setblocking(False)
        now = time.monotonic()
        self._accept_at = now + ACCEPT_S
        connection = self._connections[peer] = _Connection(peer, now + DEADLINE_S)
        self._selector.register(peer, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.peer, None)
        self._selector.unregister(connection.peer)
        connection.peer.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            if not connection.reply:
                data = connection.peer.recv(MAX_REQUEST + 1 - len(connection.request))
                connection.request += data
                reply = self._reply(connection.request)
                if reply is None:
                    if not data:
                        self._drop(connection)
                    return
                connection.reply = reply
                self._selector.modify(connection.peer, selectors.EVENT_WRITE, connection)
            sent = connection.peer.send(connection.reply)
            connection.reply = connection.reply[sent:]
        except BlockingIOError:
            return
        except OSError:
            connection.reply = b""
        if not connection.reply:
            self._drop(connection)

    def _reply(self, request: bytes) -> bytes | None:
        """The whole answer to what has come so far, None while more is needed."""
        end = request.find(b"\r\n\r\n")
        if end < 0 and request.find(b"\n\n") < 0:
            return _response(431, "the request is too long\n") if len(request) > MAX_REQUEST else None
        words = request.partition(b"\n")[0].strip().split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, "not a request of HTTP/1\n")
        method, path = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(405, "only GET is answered\n", "Allow: GET, HEAD\r\n")
        if path != b"/metrics":
            return _response(404, "the numbers are at /metrics\n")
        found = self._numbers()
        if found is None:
            return _response(503, "the alarm loop does not answer\n")
        return _response(200, found, head=method == b"HEAD")

    def _numbers(self) -> str | None:
        """The text of now, None when the loop does not give it."""
        now = time.monotonic()
        if now - self._host_at >= HOST_FRESH_S:
            self._host, self._host_at = self._host_text(), now
        if now - self._answered_at >= FRESH_S:
            if not self._answer_due:
                self._answer_due = True
                self._answered.clear()
                self._post(self._fill)
            if not self._answered.wait(ANSWER_S) or self._answer_due:
                return None
        return self._answer + self._host

    def _fill(self) -> None:
        """Runs in the alarm loop."""
        try:
            self._answer = self._text()
            self._answered_at = time.monotonic()
        finally:
            self._answer_due = False
            self._answered.set()


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
            431: "Request Header Fields Too Large", 503: "Service Unavailable"}  # fmt: skip


def _response(status: int, text: str, more: str = "", *, head: bool = False) -> bytes:
    body = text.encode()
    form = FORM if status == 200 else "text/plain; charset=utf-8"
    lines = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"{lines}Connection: close\r\n\r\n".encode() + (b"" if head else body)
