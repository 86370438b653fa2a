"""The simulated IntelliVue monitor on a network: it answers at a UDP port, announces itself, and misbehaves when told.

Misbehaviour is drawn from a seed: datagrams that are dropped, come late, twice, or damaged in a way that a receiver can
see (cut, or with a wrong length; UDP's own checksum guards the rest), and a monitor that aborts or starts anew.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, cast

from drivers.sim.intellivue_monitor import Monitor

TURN_S = 0.064  # a quarter of the time of a wave's block


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """How often what goes wrong: shares of datagrams, 0 to 1, and seconds from one event to the next, 0 for never."""

    drop: float = 0.0
    late: float = 0.0  # comes behind those sent within the next `LATE_S`
    twice: float = 0.0
    corrupt: float = 0.0
    abort_s: float = 0.0
    restart_s: float = 0.0


LATE_S = 0.6


def parse(text: str) -> Misbehaviour:
    """Misbehaviour as the command line gives it: `drop=0.1,abort_s=30`. Raises: ValueError with what is possible."""
    known = {each.name for each in fields(Misbehaviour)}
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
        given[name] = float(value)
        if not 0 <= given[name] <= (86_400 if name.endswith("_s") else 1):
            raise ValueError(f"{part}: shares are from 0 to 1, seconds from 0 to 86400")
    return Misbehaviour(**given)


class Host:
    """A monitor at a UDP port; `counts` tells what was done to its datagrams."""

    def __init__(self, monitor: Monitor, misbehaviour: Misbehaviour | None = None, seed: int = 1) -> None:
        self.monitor = monitor
        self.misbehaviour = misbehaviour or Misbehaviour()
        self.port = 0
        self.associations = 0
        self.counts = dict.fromkeys(("sent", "dropped", "late", "twice", "corrupted", "aborts", "restarts"), 0)
        self._random = random.Random(seed)
        self._started = time.monotonic()
        self._client: tuple[Any, ...] | None = None
        self._transport: asyncio.DatagramTransport | None = None

    def now_s(self) -> float:
        """Seconds since the monitor was switched on."""
        return time.monotonic() - self._started

    def abort(self) -> None:
        """Have the monitor end its association."""
        self.counts["aborts"] += 1
        self._send(self.monitor.abort())

    def restart(self) -> None:
        """Switch the monitor off and on."""
        self.counts["restarts"] += 1
        self.monitor.restart()
        self._started = time.monotonic()

    async def serve(self, indicate: tuple[str, int] | None = None) -> None:
        """Send what is due until cancelled; a free monitor announces itself every second to `indicate`."""
        announced = aborted = restarted = time.monotonic()
        wrong = self.misbehaviour
        while True:
            await asyncio.sleep(TURN_S)
            now = time.monotonic()
            if wrong.abort_s and now - aborted >= wrong.abort_s and self.monitor.state == "serving":
                aborted = now
                self.abort()
            if wrong.restart_s and now - restarted >= wrong.restart_s:
                restarted = now
                self.restart()
            for message in self.monitor.advance(self.now_s()):
                self._send(message)
            if indicate is not None and self.monitor.state == "free" and now - announced >= 1.0:
                announced = now
                self._pass(self.monitor.indication(self.now_s(), "127.0.0.1", self.port), indicate)

    def _heard(self, data: bytes, client: tuple[Any, ...]) -> None:
        state = self.monitor.state
        if data[:1] == b"\x0d":
            self._client = client
        elif client != self._client:
            return
        answers = self.monitor.receive(data, self.now_s())
        if state == "creating" and self.monitor.state == "serving":
            self.associations += 1
        for message in answers:
            self._send(message)

    def _send(self, message: bytes) -> None:
        wrong, draw = self.misbehaviour, self._random.random
        self.counts["sent"] += 1
        if draw() < wrong.drop:
            self.counts["dropped"] += 1
            return
        if draw() < wrong.corrupt:
            self.counts["corrupted"] += 1
            message = self._damaged(message)
        if draw() < wrong.twice:
            self.counts["twice"] += 1
            self._pass(message, self._client)
        if draw() < wrong.late:
            self.counts["late"] += 1
            asyncio.get_running_loop().call_later(draw() * LATE_S, self._pass, message, self._client)
            return
        self._pass(message, self._client)

    def _damaged(self, message: bytes) -> bytes:
        at = self._random.randrange(1, len(message))
        if self._random.random() < 0.5 or len(message) < 8:
            return message[:at]
        return message[:6] + bytes((message[6] ^ 1, message[7])) + message[8:]

    def _pass(self, message: bytes, to: tuple[Any, ...] | None) -> None:
        if self._transport is not None and to is not None and not self._transport.is_closing():
            self._transport.sendto(message, to)


class _Port(asyncio.DatagramProtocol):
    def __init__(self, host: Host) -> None:
        self._host = host

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._host._heard(data, addr)


@asynccontextmanager
async def hosted(
    host: Host, address: str, port: int = 0, indicate: tuple[str, int] | None = None
) -> AsyncIterator[Host]:
    """The monitor at `address` and `port` (0: a free one) until the with-block ends.

    Raises: OSError when the port cannot be had.
    """
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Port(host), local_addr=(address, port)
    )
    host._transport = transport
    host.port = cast(int, transport.get_extra_info("sockname")[1])
    task = asyncio.create_task(host.serve(indicate), name="intellivue monitor")
    try:
        yield host
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        transport.close()
