"""A hospital's alert manager for tests: a real MLLP server that notes what it gets and answers as a test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

DEADLINE_S = 60.0
GONE = b""  # an answer that stands for closing the connection

Answer = Callable[[bytes], bytes | None]


def control(message: bytes) -> str:
    """MSH-10."""
    return message.split(b"\r", 1)[0].split(b"|")[9].decode()


def framed(payload: bytes) -> bytes:
    return b"\x0b" + payload + b"\x1c\r"


def reply(message: bytes, code: str = "AA", name: str | None = None) -> bytes:
    """An acknowledgement in its frame."""
    said = f"MSA|{code}|{control(message) if name is None else name}|the alarm of Mrs Example was refused"
    return framed(f"MSH|^~\\&|AM||||20260101||ACK^R40^ACK|1|P|2.6\r{said}\r".encode())


class AlertManager:
    """Listens on 127.0.0.1; `answer` gives the bytes for each message, None for silence, GONE to hang up."""

    def __init__(self, answer: Answer = reply, port: int = 0) -> None:
        self.answer = answer
        self.messages: list[bytes] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def controls(self) -> list[str]:
        with self._changed:
            return [control(message) for message in self.messages]

    def wait(self, done: Callable[[], object]) -> None:
        """Returns when it is done; the test fails when it is not within the time."""
        end = time.monotonic() + DEADLINE_S
        while not done():
            left = end - time.monotonic()
            assert left > 0, f"{len(self.messages)} messages over {self.connections} connections, and waited in vain"
            with self._changed:
                self._changed.wait(min(left, 0.05))

    def hang_up(self) -> None:
        """Closes every connection; new ones are taken."""
        with self._changed:
            peers, self._peers = self._peers, []
        for peer in peers:
            _shut(peer)

    def close(self) -> None:
        _shut(self._listener)
        self.hang_up()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                self._peers.append(peer)
                self._changed.notify_all()
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        held = b""
        try:
            while data := peer.recv(65536):
                held += data
                while b"\x1c\r" in held:
                    frame, _, held = held.partition(b"\x1c\r")
                    assert frame[:1] == b"\x0b"
                    with self._changed:
                        self.messages.append(frame[1:])
                        self._changed.notify_all()
                    said = self.answer(frame[1:])
                    if said == GONE:
                        return
                    if said is not None:
                        peer.sendall(said)
        except OSError:
            return
        finally:
            _shut(peer)


def _shut(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    peer.close()
