"""An agent inside the test's own loop, with a configuration in a temporary folder, and an MLLP client for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.gateway import PRESET, free_port
from edge_agent.agent import Agent
from edge_agent.buffer import create_key_file
from edge_agent.config import load
from edge_agent.parts import Parts

DEADLINE_S = 20.0


class Bedside:
    """The folder, port and files of one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.edges = folder / "edges.jsonl"
        self.data_dir = folder / "data"
        self.key = folder / "kek"
        create_key_file(self.key)
        (folder / "immediate.toml").write_text(PRESET)

    def write(self, *tables: str, link: str = "", driver_options: str = "") -> Path:
        """The configuration file: two beds on one HL7 listener, a record annunciator, and further tables."""
        parts = [
            f'[gateway]\nid = "gw"\ndata_dir = "{self.data_dir}"\npresets = ["immediate.toml"]',
            f'[control]\nsocket = "{self.folder}/control.sock"',
            "[alarms]\nself_test = false",  # its edges would be counted
            f'[buffer]\nkey = "file:{self.key.name}"',  # relative to the configuration's folder
            '[[bed]]\nid = "ICU-3"\npreset = "immediate"\nlocation = "ICU^^3"',
            '[[bed]]\nid = "ICU-4"\npreset = "immediate"\nlocation = "ICU^^4"',
            f'[[source]]\nname = "monitor"\ndriver = "hl7"\nlink = "{link or f"mllp-listen://127.0.0.1:{self.port}"}"\n'
            + driver_options,
            f'[[annunciator]]\nkind = "record"\npath = "{self.edges}"',
            *tables,
        ]
        path = self.folder / "edge.toml"
        path.write_text("\n\n".join(parts) + "\n")
        return path

    def edge_lines(self) -> list[dict[str, Any]]:
        """What the record annunciator has written."""
        if not self.edges.exists():
            return []
        return [json.loads(line) for line in self.edges.read_text().splitlines()]

    def lit(self, condition: str) -> bool:
        """Whether a light has gone on for this condition."""
        return any(line["on"] and line["condition"].startswith(condition) for line in self.edge_lines())


@asynccontextmanager
async def running(config: Path) -> AsyncIterator[Agent]:
    """The agent, until the with-block ends; its failure fails the test."""
    agent = Agent(Parts(load(config)))
    task = asyncio.create_task(agent.run())
    try:
        await until(lambda: task.done() or agent.ready.is_set(), "the agent's start")
        if task.done():
            await task
        yield agent
    finally:
        agent.stop()
        await task


async def until(done: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when `done()` is true; fail naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:g} s"
        await asyncio.sleep(0.01)


class Monitor:
    """A monitor's connection: sends frames, reads acknowledgements."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    async def reply(self, deadline_s: float = DEADLINE_S) -> str:
        """The next acknowledgement, unframed. Raises: TimeoutError when none comes."""
        data = await asyncio.wait_for(self._reader.readuntil(b"\x1c\r"), deadline_s)
        return data[1:-2].decode()

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def dial(port: int) -> Monitor:
    """A connected monitor; waits for the listener."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return Monitor(*await asyncio.open_connection("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            await asyncio.sleep(0.01)
