"""Whole-path throughput: tokenise, map, watch, seal, commit, acknowledge, against python-hl7 parsing alone.

Four connections keep a window of messages in flight; a message counts when its acknowledgement, which waits for the
durable commit, has come. The peer parses the same messages, one process, no transport, no commit. Both rates are taken
in turns in one run.
"""

from __future__ import annotations

import selectors
import socket
import time

import hl7

from bench.gateway import Gateway, connect
from bench.messages import frame, message

CONNECTIONS = 4
WINDOW = 64  # messages in flight on a connection
SECONDS = 6.0
ROUNDS = 3
PEER_SECONDS = 3.0


class _Sender:
    """One connection that keeps its window full."""

    def __init__(self, port: int, bed: int, frames: list[bytes]) -> None:
        self.socket = connect(port)
        self.socket.setblocking(False)
        self.frames = frames
        self.sent = self.acknowledged = 0
        self._out = b""
        self._tail = b""
        self.bed = bed

    def fill(self) -> None:
        """Send what the window allows."""
        room = WINDOW - (self.sent - self.acknowledged)
        if not self._out and room >= WINDOW // 2:
            self._out = b"".join(self.frames[(self.sent + step) % len(self.frames)] for step in range(room))
            self.sent += room
        if self._out:
            try:
                self._out = self._out[self.socket.send(self._out) :]
            except BlockingIOError:
                pass

    def drain(self) -> None:
        """Count acknowledgements; a negative one ends the run."""
        try:
            data = self._tail + self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        self.acknowledged += data.count(b"|AA|")
        if b"|AE|" in data or b"|AR|" in data:
            raise RuntimeError("the agent refused a message")
        self._tail = data[-3:]


def agent_rate(gateway: Gateway, seconds: float) -> float:
    """Acknowledged messages a second over all connections."""
    frames = [[frame(number, bed) for number in range(512)] for bed in range(CONNECTIONS)]
    senders = [_Sender(gateway.port, bed, frames[bed]) for bed in range(CONNECTIONS)]
    waiting = selectors.DefaultSelector()
    for sender in senders:
        waiting.register(sender.socket, selectors.EVENT_READ, sender)
        sender.fill()
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        for key, _ in waiting.select(0.05):
            key.data.drain()
            key.data.fill()
        for sender in senders:
            if sender._out:
                sender.fill()
    elapsed = time.monotonic() - start
    for sender in senders:
        sender.socket.shutdown(socket.SHUT_RDWR)
        sender.socket.close()
    return sum(sender.acknowledged for sender in senders) / elapsed


def peer_rate(seconds: float) -> float:
    """Messages a second that python-hl7 parses."""
    texts = [message(number).decode() for number in range(64)]
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        hl7.parse(texts[count % len(texts)])
        count += 1
    return count / (time.monotonic() - start)


def run() -> list[dict[str, object]]:
    """Both rates in turns; the ratio of their sums."""
    agent, peer = [], []
    with Gateway(beds=CONNECTIONS) as gateway:
        agent_rate(gateway, 1.0)
        for _ in range(ROUNDS):
            peer.append(peer_rate(PEER_SECONDS))
            agent.append(agent_rate(gateway, SECONDS))
    return [
        {
            "connections": CONNECTIONS,
            "agent_per_s": round(sum(agent) / ROUNDS),
            "python_hl7_per_s": round(sum(peer) / ROUNDS),
            "ratio": round(sum(agent) / sum(peer), 1),
            "ratios": [round(ours / theirs, 1) for ours, theirs in zip(agent, peer, strict=True)],
        }
    ]
