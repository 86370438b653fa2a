"""TCP links against real sockets: peers that talk, vanish, come back by the thousand, or never read."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from pathlib import Path

import pytest
from link_sink import DEADLINE_S, RecordingSink, running

from edge_agent.links import tcp
from edge_agent.links.address import parse
from edge_agent.links.backoff import Backoff
from edge_agent.links.capture import RECEIVED, SENT, read_capture
from edge_agent.links.tcp import DialLink, ListenLink, keep_alive
from edge_agent.links.tee import Reporting


def listen(options: str = "", *, silence_s: float = 30, tee: Path | None = None) -> ListenLink:
    return ListenLink(parse(f"tcp-listen://127.0.0.1:0{options}"), Reporting(silence_s, tee, "hl7"))


def dial(port: int, **more: object) -> DialLink:
    return DialLink(parse(f"tcp://127.0.0.1:{port}"), Reporting(30), **more)  # type: ignore[arg-type]


async def connect(link: ListenLink) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    assert link.bound is not None
    reader, writer = await asyncio.open_connection(*link.bound)
    return reader, writer, tcp.host_port(writer.get_extra_info("sockname"))


def reset(writer: asyncio.StreamWriter) -> None:
    """Vanish with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_peers_are_channels_and_the_last_to_leave_loses_the_link() -> None:
    link = listen()
    async with running(link) as sink:
        await sink.until_state("lost", "no peer connected")
        _, first, first_name = await connect(link)
        await sink.until_state("connected", first_name)
        reader, second, second_name = await connect(link)
        first.write(b"one")
        second.write(b"two")
        await sink.until(lambda: len(sink.chunks) == 2)
        assert {chunk.channel: chunk.data for chunk in sink.chunks} == {first_name: b"one", second_name: b"two"}

        assert link.send(b"reply", second_name)
        assert await reader.readexactly(5) == b"reply"
        assert not link.send(b"x", "10.0.0.1:1") and not link.send(b"x")

        reset(first)
        await sink.until(lambda: sink.gone == [first_name])
        assert sink.names == ["lost", "connected"]
        assert link.send(b"only one", "") and await reader.readexactly(8) == b"only one"
        reset(second)
        await sink.until(lambda: sink.gone == [first_name, second_name])
        assert sink.names == ["lost", "connected", "lost"]
    assert link.bound is None


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_peer_that_vanishes_mid_message_is_dropped_and_can_return(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "HALF_CLOSED_S", 0.05)
    link = listen()
    async with running(link) as sink:
        await sink.until_state("lost")
        _, writer, name = await connect(link)
        writer.write(b"\x0bMSH|^~\\&|half a mess")
        await sink.until(lambda: bool(sink.chunks))
        if end == "rst":
            reset(writer)
        else:
            writer.close()
        await sink.until(lambda: sink.gone == [name])
        assert sink.names == ["lost", "connected", "lost"] and not link.send(b"ack", name)

        _, writer, name = await connect(link)
        writer.write(b"whole")
        await sink.until(lambda: sink.chunks[-1].data == b"whole")
        assert sink.chunks[-1].channel == name and sink.names[-1] == "connected"
        writer.close()


async def test_a_sender_that_has_finished_still_gets_its_acknowledgement() -> None:
    link = listen()
    async with running(link) as sink:
        await sink.until_state("lost")
        reader, writer, name = await connect(link)
        writer.write(b"message")
        writer.write_eof()
        await sink.until_state("lost")
        assert not sink.gone and link.send(b"ack", name)
        assert await reader.readexactly(3) == b"ack"
        writer.close()


async def test_silence_is_told_once_and_ends_with_the_next_byte() -> None:
    link = listen(silence_s=0.05)
    async with running(link) as sink:
        await sink.until_state("lost")
        _, writer, _ = await connect(link)
        await sink.until_state("silent", "0.05 s")
        writer.write(b"x")
        await sink.until(lambda: bool(sink.chunks))
        await sink.until_state("silent")
        writer.transport.abort()
        await sink.until_state("lost")
        assert sink.names == ["lost", "connected", "silent", "connected", "silent", "lost"]
        assert sink.order.index("chunk") == 4, "the link is connected before its bytes are delivered"


async def test_a_port_in_use_is_told_and_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        link = ListenLink(parse(f"tcp-listen://127.0.0.1:{port}"), Reporting(1), backoff=Backoff(0.01, 0.02))
        async with running(link) as sink:
            await sink.until_state("lost", "another program has the port")
            taken.close()
            await sink.until_state("lost", "no peer connected")
            _, writer, _ = await connect(link)
            await sink.until_state("connected")
            writer.close()
    elsewhere = ListenLink(parse("tcp-listen://192.0.2.1:9999"), Reporting(1))  # TEST-NET-1 is nobody's address
    async with running(elsewhere) as sink:
        assert "does not have that address" in await sink.until_state("lost")


async def test_ten_thousand_reconnects_leave_nothing_behind() -> None:
    link = listen("?max=16")

    def storm(address: tuple[str, int], count: int) -> None:
        for number in range(count):
            with socket.create_connection(address) as sock:
                sock.sendall(b"\x0bhello")
                if number % 20:  # the others end with FIN and are kept for a moment, for replies that may be owed
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def rounds(sink: RecordingSink, count: int) -> int:
        """Objects alive after so many hundred connections, when all of them have been let in."""
        for _ in range(count):
            await asyncio.to_thread(storm, link.bound, 100)  # fewer than the backlog, or the kernel has them wait 1 s
            while not await arrives(sink):  # while the rest of the storm is being let in, there may be no place
                pass
            sink.forget()
        gc.collect()
        return len(gc.get_objects())

    async def arrives(sink: RecordingSink) -> bool:
        """Whether one more connection is let in, and not refused."""
        mark = os.urandom(8)
        reader, writer, _ = await connect(link)
        writer.write(mark)
        arrived = asyncio.create_task(sink.until(lambda: any(chunk.data == mark for chunk in sink.chunks)))
        refused = asyncio.create_task(reader.read(1))
        done, _ = await asyncio.wait({arrived, refused}, return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel(), refused.cancel()
        await asyncio.gather(arrived, refused, return_exceptions=True)
        reset(writer)
        return arrived in done

    async with running(link) as sink:
        await sink.until_state("lost")
        before = await rounds(sink, 30)
        files = len(os.listdir("/proc/self/fd"))
        after = await rounds(sink, 70)
        assert len(link._peers) <= 16 and len(os.listdir("/proc/self/fd")) <= files + 16
        assert after - before < 2_000, f"{after - before} objects more after 7,000 further connections"


async def test_a_channel_that_is_used_again_begins_afresh() -> None:
    link = listen()
    async with running(link) as sink:
        await sink.until_state("lost")
        _, first, name = await connect(link)
        first.write(b"half")
        first.write_eof()
        await sink.until_state("lost")
        # the first peer's host restarts, and its next connection has the same port by chance
        first.transport.abort()
        former = link._peers[name]
        _, second, second_name = await connect(link)
        await sink.until_state("connected")
        joined = link._peers.pop(second_name)
        joined.channel = name
        assert link.joined(joined)
        assert sink.gone == [name] and link._peers == {name: joined}
        assert former._transport is not None and former._transport.is_closing()
        second.transport.abort()


async def test_a_peer_that_never_reads_its_replies_is_cut_off() -> None:
    link = listen()
    async with running(link) as sink:
        await sink.until_state("lost")
        _, writer, name = await connect(link)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"x")
        await sink.until(lambda: bool(sink.chunks))
        peer = link._peers[name]
        peer._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # type: ignore[union-attr]
        most = sent = 0
        while link.send(bytes(1000), name):
            sent += 1000
            most = max(most, peer._transport.get_write_buffer_size())  # type: ignore[union-attr]
            assert sent < 100_000_000, "output is not bounded"
        assert 0 < most <= tcp.OUTPUT_LIMIT
        await sink.until(lambda: sink.gone == [name])
        await sink.until_state("lost")
        writer.transport.abort()


async def test_when_all_places_are_taken_only_an_idle_peer_makes_room() -> None:
    link = listen("?max=2", silence_s=0.2)
    async with running(link) as sink:
        await sink.until_state("lost")
        _, first, first_name = await connect(link)
        _, second, second_name = await connect(link)
        await sink.until(lambda: len(link._peers) == 2)
        for writer in (first, second):
            writer.write(b"x")
        await sink.until(lambda: len(sink.chunks) == 2)
        reader, third, _ = await connect(link)
        assert await reader.read() == b"" and link.refused == 1  # both have spoken just now
        third.close()
        await sink.until_state("silent")
        second.write(b"y")
        await sink.until(lambda: len(sink.chunks) == 3)
        _, fourth, fourth_name = await connect(link)
        fourth.write(b"z")
        await sink.until(lambda: len(sink.chunks) == 4)
        assert sink.gone == [first_name] and sink.chunks[-1].channel == fourth_name
        assert set(link._peers) == {second_name, fourth_name}
        for writer in (first, second, fourth):
            writer.transport.abort()


async def test_dial_comes_back_after_every_loss_and_reports_why() -> None:
    conversations: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    readers: list[asyncio.StreamReader] = []

    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        readers.append(reader)
        conversations.put_nowait(writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = dial(port, backoff=Backoff(0.01, 0.02))
    async with running(link) as sink:
        for number in (1, 2):
            writer = await asyncio.wait_for(conversations.get(), DEADLINE_S)
            writer.write(b"data")
            await sink.until(lambda number=number: len(sink.chunks) == number)
            assert link.send(b"poll") and link.send(b"poll", f"127.0.0.1:{port}")
            assert await readers[-1].readexactly(8) == b"pollpoll"
            reset(writer) if number == 1 else writer.close()
            await sink.until(lambda number=number: len(sink.gone) == number)
        details = [detail for state, detail in sink.states if state == "lost"]
        assert "reset by peer" in details[0] and "closed by the other end" in details[1]
        assert {chunk.channel for chunk in sink.chunks} == {f"127.0.0.1:{port}"} == set(sink.gone)
        writer = await asyncio.wait_for(conversations.get(), DEADLINE_S)
        server.close()
        reset(writer)
        await sink.until_state("lost", "Connection refused")
        assert not link.send(b"poll")


async def test_dial_waits_longer_each_time_up_to_the_cap_and_data_resets_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    waits: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            enough.set()
            await asyncio.get_running_loop().create_future()

    link = dial(port, backoff=Backoff(uniform=lambda _low, high: high), sleep=sleep)
    async with running(link) as sink:
        await asyncio.wait_for(enough.wait(), DEADLINE_S)
        assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30]
        assert sink.states == [("lost", f"no connection to 127.0.0.1:{port}: Connection refused")]

    closes = iter([False, False, True])
    waits.clear()

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(closes, None):
            writer.write(b"data")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    enough = asyncio.Event()
    link = dial(server.sockets[0].getsockname()[1], backoff=Backoff(uniform=lambda _low, high: high), sleep=sleep)
    async with running(link) as sink:
        await sink.until(lambda: len(waits) >= 4)
        assert waits[:4] == [0.5, 1, 0.5, 1]  # a connection proves nothing, data does
    server.close()


async def test_everything_received_and_sent_is_in_the_capture(tmp_path: Path) -> None:
    link = listen(tee=tmp_path / "hl7.cap")
    async with running(link) as sink:
        await sink.until_state("lost")
        reader, writer, name = await connect(link)
        writer.write(b"message")
        await sink.until(lambda: bool(sink.chunks))
        assert link.send(b"ack", name)
        await reader.readexactly(3)
        writer.close()
    capture = read_capture(tmp_path / "hl7.cap")
    assert capture.header["driver"] == "hl7" and capture.header["link"] == link.url
    assert [(d, c.data, c.channel) for d, c in capture.entries] == [(RECEIVED, b"message", name), (SENT, b"ack", name)]


def test_keep_alive_finds_a_dead_peer_within_half_a_minute() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        idle, interval, probes = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * probes <= 30
