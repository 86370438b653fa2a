"""UDP links: datagrams from several senders, replies, and a bound on the senders that are kept."""

from __future__ import annotations

import socket

from link_sink import DEADLINE_S, running

from edge_agent.links.address import parse
from edge_agent.links.backoff import Backoff
from edge_agent.links.tcp import host_port
from edge_agent.links.tee import Reporting
from edge_agent.links.udp import UdpLink


def udp(options: str = "", silence_s: float = 30) -> UdpLink:
    return UdpLink(parse(f"udp://127.0.0.1:0{options}"), Reporting(silence_s))


def sender() -> tuple[socket.socket, str]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(DEADLINE_S)
    return sock, host_port(sock.getsockname())


async def test_datagrams_keep_their_bounds_and_senders_are_answered() -> None:
    link = udp()
    (one, one_name), (two, two_name) = sender(), sender()
    with one, two:
        async with running(link) as sink:
            await sink.until_state("connected")
            assert link.bound is not None and not link.send(b"to nobody")
            one.sendto(b"first", link.bound)
            one.sendto(b"", link.bound)
            await sink.until(lambda: len(sink.chunks) == 2)
            assert [(chunk.data, chunk.channel) for chunk in sink.chunks] == [(b"first", one_name), (b"", one_name)]
            assert link.send(b"only one") and one.recv(100) == b"only one"
            two.sendto(bytes(60_000), link.bound)
            await sink.until(lambda: len(sink.chunks) == 3)
            assert len(sink.chunks[2].data) == 60_000 and sink.chunks[2].channel == two_name
            assert not link.send(b"which?") and link.send(b"you", two_name) and two.recv(100) == b"you"
        assert not link.send(b"late", two_name)


async def test_senders_are_bounded_and_the_one_heard_longest_ago_goes() -> None:
    link = udp("?max=2")
    socks = [sender() for _ in range(3)]
    async with running(link) as sink:
        await sink.until_state("connected")
        for number, index in enumerate((0, 1, 0, 2), 1):
            socks[index][0].sendto(b"x", link.bound)  # type: ignore[arg-type]
            await sink.until(lambda number=number: len(sink.chunks) == number)
        assert sink.gone == [socks[1][1]]
        assert not link.send(b"x", socks[1][1]) and link.send(b"x", socks[0][1])
    for sock, _ in socks:
        sock.close()


async def test_silence_is_told_and_ends_with_a_datagram() -> None:
    link = udp(silence_s=0.05)
    sock, _ = sender()
    with sock:
        async with running(link) as sink:
            await sink.until_state("silent")
            assert link.bound is not None
            sock.sendto(b"x", link.bound)
            await sink.until(lambda: bool(sink.chunks))
            assert sink.names == ["connected", "silent", "connected"]


async def test_a_port_in_use_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        link = UdpLink(parse(f"udp://127.0.0.1:{taken.getsockname()[1]}"), Reporting(1), backoff=Backoff(0.01, 0.02))
        async with running(link) as sink:
            await sink.until_state("lost", "already in use")
            taken.close()
            await sink.until_state("connected")


async def test_one_peer_is_spoken_to_first_and_nobody_else_is_heard() -> None:
    (peer, name), (stranger, _) = sender(), sender()
    with peer, stranger:
        link = UdpLink(parse(f"udp-dial://{name}"), Reporting(30))
        async with running(link) as sink:
            await sink.until_state("connected", name)
            assert link.send(b"hello") and link.send(b"again", name)
            data, back = peer.recvfrom(100)
            assert (data, peer.recv(100)) == (b"hello", b"again")
            stranger.sendto(b"no", back)
            peer.sendto(b"yes", back)
            await sink.until(lambda: bool(sink.chunks))
            assert [(chunk.data, chunk.channel) for chunk in sink.chunks] == [(b"yes", name)]


async def test_a_peer_that_is_not_there_is_no_end() -> None:
    peer, name = sender()
    port = peer.getsockname()
    peer.close()
    link = UdpLink(parse(f"udp-dial://{name}"), Reporting(30))
    async with running(link) as sink:
        await sink.until_state("connected")
        link.send(b"nobody")  # the kernel tells of the closed port with the next call
        link.send(b"nobody")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.bind(port)
            late.settimeout(DEADLINE_S)
            assert link.send(b"now") and late.recv(100)
        assert sink.names == ["connected"]


async def test_a_sender_is_answered_at_the_port_of_the_url() -> None:
    (one, _), (two, name) = sender(), sender()
    with one, two:
        link = udp(f"?reply={two.getsockname()[1]}")
        async with running(link) as sink:
            await sink.until_state("connected")
            assert link.bound is not None
            one.sendto(b"from another port", link.bound)
            await sink.until(lambda: bool(sink.chunks))
            assert sink.chunks[0].channel == name
            assert link.send(b"here", name) and two.recv(100) == b"here"
