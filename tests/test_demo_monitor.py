"""The simulated monitor's HL7 end against a gateway that withholds, delays, refuses and hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from edge_agent.demo import monitor
from edge_agent.demo.monitor import END, START, Hl7Monitor

Answer = Callable[
    [int, bytes], Awaitable[bytes | None]
]  # (transmission from 1, message) -> bytes to send, None: hang up


def message(identifier: str) -> bytes:
    return b"MSH|^~\\&|M||||20240101||ORU^R01^ORU_R01|" + identifier.encode() + b"|P|2.6\rOBX|1|NM|x\r"


def ack(code: str, about: bytes, text: str = "") -> bytes:
    return (
        START
        + b"MSH|^~\\&|G||||20240101||ACK|9|P|2.6\rMSA|"
        + code.encode()
        + b"|"
        + about
        + b"|"
        + text.encode()
        + END
    )


class Gateway:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                frame = await reader.readuntil(END)
                assert frame.startswith(START)
                self.received.append(frame[1:-2])
                answer = await self.answer(len(self.received), frame[1:-2])
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def identifiers(self) -> list[bytes]:
        return [monitor.control_id(received) for received in self.received]


@asynccontextmanager
async def gateway(answer: Answer) -> AsyncIterator[tuple[Gateway, int]]:
    it = Gateway(answer)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    try:
        yield it, server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def each(*messages: bytes) -> AsyncIterator[bytes]:
    for one in messages:
        yield one


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "RETRY_MIN_S", 0.01)


async def run(sender: Hl7Monitor, *messages: bytes) -> None:
    await asyncio.wait_for(sender.run(each(*messages)), 20)


async def test_every_message_waits_for_its_acknowledgement() -> None:
    release = asyncio.Event()
    arrived = asyncio.Event()

    async def answer(count: int, received: bytes) -> bytes:
        arrived.set()
        await release.wait()
        return ack("AA", monitor.control_id(received))

    async with gateway(answer) as (it, port):
        sender = Hl7Monitor("127.0.0.1", port)
        task = asyncio.create_task(sender.run(each(message("1"), message("2"), message("3"))))
        await asyncio.wait_for(arrived.wait(), 10)
        assert it.identifiers() == [b"1"]
        assert sender.acknowledged == 0
        release.set()
        await asyncio.wait_for(task, 10)
    assert it.identifiers() == [b"1", b"2", b"3"]
    assert it.received[0] == message("1")
    assert (sender.acknowledged, sender.resent, sender.connects) == (3, 0, 1)


async def test_a_withheld_acknowledgement_makes_the_same_message_go_again() -> None:
    async def answer(count: int, received: bytes) -> bytes:
        return b"" if count in (1, 3) else ack("CA", monitor.control_id(received))

    async with gateway(answer) as (it, port):
        sender = Hl7Monitor("127.0.0.1", port, ack_timeout_s=0.2)
        await run(sender, message("1"), message("2"))
    assert it.identifiers() == [b"1", b"1", b"2", b"2"]
    assert it.received[0] == it.received[1]
    assert (sender.acknowledged, sender.resent) == (2, 2)


async def test_a_refusal_makes_the_same_message_go_again_on_the_same_connection() -> None:
    async def answer(count: int, received: bytes) -> bytes:
        return ack("AE" if count < 3 else "AA", monitor.control_id(received), "not committed")

    async with gateway(answer) as (it, port):
        sender = Hl7Monitor("127.0.0.1", port)
        await run(sender, message("1"), message("2"))
    assert it.identifiers() == [b"1", b"1", b"1", b"2"]
    assert it.connections == 1
    assert sender.last_refusal == "AE not committed"


async def test_an_answer_to_another_message_is_no_acknowledgement() -> None:
    async def answer(count: int, received: bytes) -> bytes:
        stale = ack("AA", b"77") + b"garbage"
        return stale if count == 1 else stale + ack("AA", monitor.control_id(received))

    async with gateway(answer) as (it, port):
        sender = Hl7Monitor("127.0.0.1", port, ack_timeout_s=0.2)
        await run(sender, message("1"))
    assert it.identifiers() == [b"1", b"1"]


async def test_a_lost_connection_is_dialled_again_and_order_is_kept() -> None:
    async def answer(count: int, received: bytes) -> bytes | None:
        return None if count == 2 else ack("AA", monitor.control_id(received))

    async with gateway(answer) as (it, port):
        sender = Hl7Monitor("127.0.0.1", port)
        await run(sender, *(message(str(number)) for number in range(1, 5)))
    assert it.identifiers() == [b"1", b"2", b"2", b"3", b"4"]
    assert it.connections == 2
    assert sender.connects == 2


async def test_a_gateway_that_starts_later_gets_everything() -> None:
    async def answer(count: int, received: bytes) -> bytes:
        return ack("AA", monitor.control_id(received))

    it = Gateway(answer)
    probe = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    await probe.wait_closed()
    sender = Hl7Monitor("127.0.0.1", port)
    task = asyncio.create_task(sender.run(each(message("1"), message("2"))))
    while sender.resent < 2:
        await asyncio.sleep(0)
    server = await asyncio.start_server(it.serve, "127.0.0.1", port)
    await asyncio.wait_for(task, 10)
    server.close()
    assert it.identifiers() == [b"1", b"2"]


@pytest.mark.parametrize("bad", [b"", b"PID|1", b"MSH|^~\\&|a", b"MSH|^~\\&|M||||20240101||ORU^R01||P|2.6\r"])
def test_a_message_without_control_identifier_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="MSH-10"):
        monitor.control_id(bad)
