"""Captures as links, and links without a device."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from link_sink import DEADLINE_S, RecordingSink, running

from edge_agent.links import open_link
from edge_agent.links.capture import read_capture

TEXT = """# driver: masimo
< 0.0 - 01
> 0.1 - ff
< 0.2 2a37 02 03
< 0.4 - 04
"""


async def play(path: Path, speed: str) -> RecordingSink:
    sink = RecordingSink()
    link = open_link(f"file://{path}?speed={speed}", silence_s=0.01)
    await asyncio.wait_for(link.run(sink), DEADLINE_S)
    assert not link.send(b"x")
    return sink


@pytest.mark.parametrize(("speed", "seconds"), [("1", 0.4), ("4", 0.1), ("max", 0.0)])
async def test_a_capture_is_played_in_its_rhythm(tmp_path: Path, speed: str, seconds: float) -> None:
    (tmp_path / "a.cap").write_text(TEXT)
    before = time.monotonic_ns()
    sink = await play(tmp_path / "a.cap", speed)
    assert [(chunk.data, chunk.channel) for chunk in sink.chunks] == [
        (b"\x01", ""),
        (b"\x02\x03", "2a37"),
        (b"\x04", ""),
    ]
    assert sink.names == ["connected", "lost"] and "played to its end" in sink.states[-1][1]
    stamps = [chunk.at_ns for chunk in sink.chunks]
    assert before <= stamps[0] and stamps == sorted(stamps) and stamps[-1] <= time.monotonic_ns()
    assert (stamps[-1] - stamps[0]) / 1e9 > 0.9 * seconds


async def test_a_long_capture_can_be_played_quickly(tmp_path: Path) -> None:
    (tmp_path / "a.cap").write_text("< 0 - 01\n< 50 - 02\n")
    sink = await play(tmp_path / "a.cap", "1000")
    assert 0.05 <= (sink.chunks[1].at_ns - sink.chunks[0].at_ns) / 1e9 < 50


async def test_a_capture_that_cannot_be_read_is_a_lost_link(tmp_path: Path) -> None:
    sink = await play(tmp_path / "none.cap", "max")
    assert sink.names == ["lost"] and "No such file" in sink.states[0][1]
    (tmp_path / "bad.cap").write_text("< 0 - 00\n< 1 - 0\n")
    sink = await play(tmp_path / "bad.cap", "max")
    assert sink.names == ["lost"] and "bad.cap:2:" in sink.states[0][1] and not sink.chunks


async def test_what_a_link_captured_plays_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.cap").write_text(TEXT)
    listen = open_link("tcp-listen://127.0.0.1:0", silence_s=5, tee=tmp_path / "b.cap", driver="masimo")
    async with running(listen) as sink:
        await sink.until_state("lost")
        _, writer = await asyncio.open_connection(*listen.bound)  # type: ignore[attr-defined]
        for number in range(1, 51):
            writer.write(bytes([number]))
            await sink.until(lambda number=number: len(sink.data) == number)
        writer.close()
        received = sink.chunks
    assert read_capture(tmp_path / "b.cap").header["driver"] == "masimo"
    played = await play(tmp_path / "b.cap", "max")
    assert [(c.data, c.channel) for c in played.chunks] == [(c.data, c.channel) for c in received]


async def test_a_link_without_a_device_is_connected_and_never_silent() -> None:
    link = open_link("sim://", silence_s=0.001)
    async with running(link) as sink:
        await sink.until_state("connected")
        await asyncio.sleep(0.02)
        assert sink.names == ["connected"] and not link.send(b"x")
