"""Serial links on a pseudo-terminal that is pulled out and put back, and on terminal servers."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import threading
import tty
from pathlib import Path

import pytest
import serial
import serial.rfc2217
from link_sink import DEADLINE_S, running

from edge_agent.links import serial as module
from edge_agent.links.address import parse
from edge_agent.links.backoff import Backoff
from edge_agent.links.capture import read_capture
from edge_agent.links.serial import SerialLink, line_settings
from edge_agent.links.tee import Reporting


class Cable:
    """A pseudo-terminal behind a symlink whose name stays, like a USB adapter's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.master = -1

    def plug(self) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.path.symlink_to(os.ttyname(slave))
        os.close(slave)

    def pull(self) -> None:
        self.path.unlink()
        os.close(self.master)
        self.master = -1


def link_to(url: str, **more: object) -> SerialLink:
    return SerialLink(parse(url), Reporting(30, **more), backoff=Backoff(0.01, 0.05))  # type: ignore[arg-type]


async def read_master(cable: Cable, size: int) -> bytes:
    return await asyncio.wait_for(asyncio.to_thread(os.read, cable.master, size), DEADLINE_S)


async def test_a_cable_pulled_out_and_put_back(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "ttyUSB0")
    link = link_to(f"serial://{cable.path}?baud=9600", tee=tmp_path / "nonin.cap", driver="nonin")
    async with running(link) as sink:
        await sink.until_state("lost", "plug the cable in")
        assert not link.send(b"poll")
        for frame in (b"\x01\x81\x01\x00\x83", b"\x01\x80\x02\x03\x86"):
            cable.plug()
            await sink.until_state("connected", "is open")
            sink.forget()
            sent = os.write(cable.master, frame)
            await sink.until(lambda sent=sent: len(sink.data) == sent)
            assert sink.data == frame
            assert link.send(b"poll") and await read_master(cable, 100) == b"poll"
            os.write(cable.master, frame[:3])  # pulled in the middle of the next frame
            await sink.until(lambda frame=frame: sink.data == frame + frame[:3])
            cable.pull()
            await sink.until_state("lost")
            assert not link.send(b"poll")
        assert {chunk.channel for chunk in sink.chunks} == {""}
    assert b"poll" in {chunk.data for _, chunk in read_capture(tmp_path / "nonin.cap").entries}
    assert not [thread for thread in threading.enumerate() if thread.name == link.url]


async def test_reads_are_stamped_in_order_and_nothing_is_lost(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "tty")
    cable.plug()
    async with running(link_to(f"serial://{cable.path}?baud=115200")) as sink:
        await sink.until_state("connected")
        sent = os.urandom(200_000)

        def write() -> None:
            view = memoryview(sent)
            while view:
                view = view[os.write(cable.master, view[:1000]) :]

        await asyncio.to_thread(write)
        await sink.until(lambda: sum(len(chunk.data) for chunk in sink.chunks) >= len(sent))
        assert sink.data == sent
        stamps = [chunk.at_ns for chunk in sink.chunks]
        assert stamps == sorted(stamps)
    cable.pull()


async def test_a_device_that_reads_nothing_is_given_a_bounded_output(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "tty")
    cable.plug()
    link = link_to(f"serial://{cable.path}")
    async with running(link) as sink:
        await sink.until_state("connected")
        accepted = 0
        while link.send(bytes(500)):
            accepted += 500
            assert accepted < 10_000_000
        assert accepted > module.OUTPUT_LIMIT - 500
        os.write(cable.master, b"x")  # the line can still be read
        await sink.until(lambda: sink.data == b"x")
        got = 0
        while got < accepted:
            got += len(await read_master(cable, 65536))
        os.write(cable.master, b"y")
        await sink.until(lambda: sink.data == b"xy")
        assert link.send(b"again") and await read_master(cable, 100) == b"again"
    cable.pull()


async def test_one_line_has_one_reader(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "tty")
    cable.plug()
    url = f"serial://{cable.path}"
    async with running(link_to(url)) as first:
        await first.until_state("connected")
        async with running(link_to(url)) as second:
            await second.until_state("lost", "another program has it open")
    cable.pull()


async def test_what_is_not_a_serial_line_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a tty")
    async with running(link_to(f"serial://{tmp_path}/file")) as sink:
        assert str(tmp_path) in await sink.until_state("lost", "cannot open")


async def test_a_full_inbox_holds_the_reader_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While the loop does not take chunks, a terminal server's bytes stay in TCP and not in this process."""
    monkeypatch.setattr(module, "INBOX_LIMIT", 20_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = link_to(f"socket://127.0.0.1:{server.getsockname()[1]}")
        async with running(link) as sink:
            peer, _ = await asyncio.to_thread(server.accept)
            await sink.until_state("connected")
            line = link._line
            assert line is not None
            sent = threading.Thread(target=peer.sendall, args=(bytes(3_000_000),), daemon=True)
            sent.start()
            held = [line._read_bytes - line._given_bytes]
            for _ in range(200):  # the loop's thread is busy: nothing is taken out
                held.append(line._read_bytes - line._given_bytes)
                threading.Event().wait(0.002)
            assert 20_000 < max(held) <= 20_000 + module.READ_SIZE
            await sink.until(lambda: sum(len(chunk.data) for chunk in sink.chunks) == 3_000_000)
            await asyncio.to_thread(sent.join, DEADLINE_S)
            peer.close()
            await sink.until_state("lost", "socket disconnected")


class TerminalServer:
    """An RFC 2217 server for one client, over pyserial's own server side, with a loop as its serial line."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.line = serial.serial_for_url("loop://", timeout=0)
        self.connection: socket.socket | None = None
        self.reached = b""
        self.reaching = threading.Condition()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def write(self, data: bytes) -> None:
        """Telnet answers of PortManager, as they are."""
        with self.lock:
            assert self.connection is not None
            self.connection.sendall(data)

    def device_says(self, data: bytes) -> None:
        """Bytes of the serial device."""
        self.write(b"".join(self.manager.escape(data)))

    def until_reached(self, data: bytes) -> None:
        """Wait until the client has sent `data`."""
        with self.reaching:
            assert self.reaching.wait_for(lambda: data in self.reached, DEADLINE_S), self.reached

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connection = connection
            self.manager = serial.rfc2217.PortManager(self.line, self)
            try:
                while data := connection.recv(1024):
                    with self.reaching:
                        self.reached += b"".join(self.manager.filter(data))
                        self.reaching.notify_all()
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()
        self.drop()

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


async def test_a_terminal_server_that_hangs_up_and_returns() -> None:
    server = TerminalServer()
    link = link_to(f"rfc2217://127.0.0.1:{server.port}?baud=19200&parity=E")
    async with running(link) as sink:
        for round_number in (1, 2):
            await sink.until_state("connected")
            assert server.line.baudrate == 19200 and server.line.parity == "E"
            sink.forget()
            server.device_says(b"\x01\xff\x00data")
            await sink.until(lambda: len(sink.data) == 7)
            assert sink.data == b"\x01\xff\x00data"
            assert link.send(b"ask%d" % round_number)
            await asyncio.to_thread(server.until_reached, b"ask%d" % round_number)
            server.drop()
            await sink.until_state("lost", "closed the connection")
    server.close()


def test_line_settings() -> None:
    assert line_settings(parse("serial:///dev/x")) == {
        "baudrate": 9600,
        "parity": "N",
        "bytesize": 8,
        "stopbits": 1,
        "rtscts": False,
        "xonxoff": False,
    }
    assert line_settings(parse("serial:///dev/x?baud=19200&parity=E&bits=7&stop=2&rtscts=1&xonxoff=1")) == {
        "baudrate": 19200,
        "parity": "E",
        "bytesize": 7,
        "stopbits": 2,
        "rtscts": True,
        "xonxoff": True,
    }
