"""The README's walk of one SpO2 value: the value really goes through these functions, in this order."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bench.gateway import Gateway
from bench.messages import frame
from cloud_sync.embedded import EmbeddedKafka
from cloud_sync.forwarder import Forwarder
from cloud_sync.sinks.kafka import KafkaSink
from cloud_sync.sinks.kafka_properties import properties
from edge_agent.agent import Agent
from edge_agent.buffer import Reader, load_kek
from edge_agent.config import load
from edge_agent.parts import Parts

ROOT = Path(__file__).parent.parent
STEP = re.compile(r"^\| \d+ \| `([^`:]+):([^`]+)` \|", re.MULTILINE)
MENTION = re.compile(r"`([a-z_]+/[a-z0-9_/]+\.py):([^`:][^`]*)`")
DEADLINE_S = 30.0


class Trace:
    """First call of each function of the walk after `start`, by number of call; in whichever thread it happens."""

    def __init__(self, steps: list[tuple[str, str]]) -> None:
        self._wanted = {(str(ROOT / file), name): (file, name) for file, name in steps}
        self._calls = 0
        self.first: dict[tuple[str, str], int] = {}

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event != "call":
            return
        step = self._wanted.get((frame.f_code.co_filename, frame.f_code.co_qualname))
        if step is not None:
            self._calls += 1
            self.first.setdefault(step, self._calls)


def steps() -> list[tuple[str, str]]:
    return STEP.findall((ROOT / "README.md").read_text())


def test_every_function_that_a_document_names_exists() -> None:
    found = 0
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for file, name in MENTION.findall(document.read_text()):
            last = name.split(".")[-1].rstrip("()")
            source = (ROOT / file).read_text()
            assert re.search(rf"^\s*(async )?(def|class) {last}\b", source, re.MULTILINE), (
                f"{document.name}: {file}:{name}"
            )
            found += 1
    assert found >= 15


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


async def connected(port: int, running: asyncio.Task[None]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while not running.done():
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    raise AssertionError("the agent ended") from running.exception()


def test_one_value_walks_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = steps()
    assert len(walk) == 15
    with EmbeddedKafka() as kafka:
        gateway = Gateway(beds=1, broker=kafka.bootstrap)
        loaded = load(gateway.write())
        trace = Trace(walk)

        async def bedside() -> bytes:
            agent = Agent(Parts(loaded))
            running = asyncio.create_task(agent.run())
            try:
                reader, writer = await connected(gateway.port, running)
                while agent.buffer is None or agent.buffer.stats()["committed"] < agent.buffer.stats()["issued"]:
                    await asyncio.sleep(0.01)  # what the start itself has recorded is not part of the walk
                trace.first.clear()
                sys.setprofile(trace)
                writer.write(frame(1, 0, spo2=80.0))
                reply = await asyncio.wait_for(reader.readuntil(b"\x1c\r"), DEADLINE_S)
                writer.close()
                return reply
            finally:
                sys.setprofile(None)
                agent.stop()
                await running

        threading.setprofile(trace)
        try:
            reply = asyncio.run(bedside())
            key = load_kek(loaded.config.buffer.key)
            forwarder = Forwarder(
                gateway.data_dir,
                "bench",
                lambda: Reader(gateway.data_dir, key),
                lambda stream: KafkaSink(properties(loaded), "bench", stream, 5),
                gateway.socket,
            )
            thread = threading.Thread(target=forwarder.run)
            thread.start()
            until(lambda: walk[-1] in trace.first, "forwarding")
            forwarder.stop.set()
            thread.join(DEADLINE_S)
        finally:
            threading.setprofile(None)
            gateway.discard()
    assert b"MSA|AA|M0-1" in reply
    missing = [step for step in walk if step not in trace.first]
    assert not missing, f"the value never came through {missing}"
    order = sorted(walk, key=trace.first.__getitem__)
    assert order == walk
