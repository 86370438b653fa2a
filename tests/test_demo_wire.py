"""The simulated serial lines, read by pyserial and by a TCP peer as the gateway reads them."""

from __future__ import annotations

import asyncio
import os
import select
import termios
from pathlib import Path

import pytest
import serial

from edge_agent.demo import wire
from edge_agent.demo.pace import MAX, paced
from edge_agent.demo.wire import PtyWire, TcpWire

RAW = bytes(range(256))  # what a line in cooked mode would change: CR, XON, XOFF, interrupt, end of file


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SETTLE_S", 0.1)


def opened(path: Path) -> serial.Serial:
    return serial.Serial(str(path), 9600, timeout=10)


def test_bytes_go_through_unchanged(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    with opened(line.link) as port:
        assert line.send(RAW)
        assert port.read(len(RAW)) == RAW
    line.pull()


def test_the_line_is_raw_before_anyone_sets_it_up(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    reader = os.open(line.link, os.O_RDONLY | os.O_NOCTTY)
    assert line.send(RAW)
    got = b""
    while len(got) < len(RAW) and select.select([reader], [], [], 5)[0]:
        got += os.read(reader, 4096)
    os.close(reader)
    line.pull()
    assert got == RAW


async def test_what_a_receiver_throws_away_while_opening_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SETTLE_S", 1.0)
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    delivery = asyncio.create_task(line.deliver(b"first"))
    reader = os.open(line.link, os.O_RDONLY | os.O_NOCTTY)
    await asyncio.sleep(5 * wire.LOOK_S)  # the device has noticed by now that somebody listens
    termios.tcflush(reader, termios.TCIFLUSH)
    await asyncio.wait_for(delivery, 10)
    assert select.select([reader], [], [], 5)[0]
    assert os.read(reader, 64) == b"first"
    os.close(reader)
    line.pull()


def test_without_a_listener_bytes_are_lost_as_on_a_real_line(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    assert not line.listening()
    assert not line.send(b"lost")
    with opened(line.link) as port:
        assert line.listening()
        assert line.send(b"heard")
        assert port.read(5) == b"heard"
    assert not line.listening()
    assert not line.send(b"lost again")
    line.pull()


def test_a_full_line_does_not_block_the_device(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    with opened(line.link):
        sent = [line.send(RAW * 16) for _ in range(200)]
    assert sent[0]
    assert not sent[-1]
    line.pull()


def test_what_the_host_writes_never_fills_the_line(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    with serial.Serial(str(line.link), timeout=10, write_timeout=10) as port:
        for _ in range(200):
            port.write(b"poll" * 100)
            assert line.send(b"answer")
            assert port.read(6) == b"answer"
    line.pull()


def test_a_pulled_cable_is_an_error_for_the_reader_and_comes_back_under_its_name(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    with opened(line.link) as port:
        line.send(b"before")
        assert port.read(6) == b"before"
        line.pull()
        assert not line.plugged
        assert not os.path.lexists(line.link)
        with pytest.raises(serial.SerialException):
            port.read(1)
    assert not line.send(b"nowhere")
    line.plug()
    with opened(line.link) as port:
        assert line.send(b"after")
        assert port.read(5) == b"after"
    line.pull()


def test_a_stale_link_is_replaced_but_never_a_file(tmp_path: Path) -> None:
    (tmp_path / "stale").symlink_to(tmp_path / "gone")
    line = PtyWire(tmp_path / "stale")
    line.plug()
    line.pull()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        PtyWire(tmp_path / "file").plug()
    assert (tmp_path / "file").read_text() == "mine"


async def test_deliver_waits_for_the_listener_and_loses_nothing(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    data = b"".join(number.to_bytes(4, "big") for number in range(50_000))  # far more than a line holds
    delivery = asyncio.create_task(line.deliver(data))
    await asyncio.sleep(0.05)
    assert not delivery.done()
    with opened(line.link) as port:
        read = await asyncio.wait_for(asyncio.to_thread(port.read, len(data)), 30)
        await asyncio.wait_for(delivery, 10)
        assert read == data
        await line.close()
    assert not line.plugged


async def test_deliver_to_a_pulled_cable_is_an_error(tmp_path: Path) -> None:
    line = PtyWire(tmp_path / "oximeter")
    line.plug()
    delivery = asyncio.create_task(line.deliver(b"x"))
    await asyncio.sleep(0)
    line.pull()
    with pytest.raises(ConnectionError, match="cable is pulled"):
        await asyncio.wait_for(delivery, 10)


@pytest.mark.parametrize("listen", [False, True])
async def test_tcp_line_survives_a_peer_that_goes(listen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_DIAL_S", 0.01)
    arrived: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        arrived.put_nowait(reader)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if listen:
        server.close()
        await server.wait_closed()
    line = TcpWire("127.0.0.1", port, listen=listen)

    async def peer() -> asyncio.StreamReader:
        if not listen:
            return await arrived.get()
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writers.append(writer)
            return reader

    async def exchange(text: bytes) -> None:
        delivery = asyncio.create_task(line.deliver(text))
        reader = await asyncio.wait_for(peer(), 10)
        assert await asyncio.wait_for(reader.readexactly(len(text)), 10) == text
        await delivery

    await exchange(b"first")
    writers.pop().transport.abort()

    async def heard() -> bytes:
        return await (await peer()).readexactly(5)

    second = asyncio.create_task(heard())
    async with asyncio.timeout(20):
        while not second.done():  # what is written before the loss is noticed goes nowhere, as on any TCP connection
            await line.deliver(b"again")
            await asyncio.sleep(0.01)
    assert await second == b"again"
    await line.close()
    for writer in writers:
        writer.close()
    server.close()


async def test_pace_keeps_to_its_grid_and_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(round(seconds, 6))
        now += seconds

    monkeypatch.setattr("edge_agent.demo.pace.time.monotonic", lambda: now)
    monkeypatch.setattr("edge_agent.demo.pace.asyncio.sleep", sleep)
    got = []
    async for item in paced((float(at_s), at_s) for at_s in range(6)):
        got.append(item)
        now += 2.5 if item == 1 else 0.25  # one item takes longer than its interval
    assert got == [0, 1, 2, 3, 4, 5]
    assert waits == [0.0, 0.75, 0.0, 0.0, 0.0, 0.75]  # items 2 and 3 are late, 4 is back on the grid
    waits.clear()
    timed = [(50.0, "a"), (52.0, "b"), (52.5, "c")]
    assert [item async for item in paced(timed, speed=4.0)] == ["a", "b", "c"]
    assert waits == [0.0, 0.5, 0.125]
    waits.clear()
    assert [item async for item in paced(timed, MAX)] == ["a", "b", "c"]
    assert waits == [0.0, 0.0, 0.0]
