"""The demo's nurse: keys of a real terminal line, and requests on a real control socket."""

from __future__ import annotations

import asyncio
import os
import termios
from pathlib import Path

import pytest

from edge_agent.control import ControlServer
from edge_agent.demo.operator import Operator, keys


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> int:
    master, slave = os.openpty()
    monkeypatch.setattr("sys.stdin", os.fdopen(slave, "r"))
    return master


async def test_a_key_acts_at_once_and_the_terminal_is_as_before_in_the_end(terminal: int) -> None:
    import sys

    before = termios.tcgetattr(sys.stdin.fileno())
    acted: asyncio.Queue[str] = asyncio.Queue()

    async def later() -> None:
        await acted.put("a")

    with keys({"a": later, "c": lambda: acted.put_nowait("c")}):
        os.write(terminal, b"xAc")  # without a line end; an unknown key does nothing
        async with asyncio.timeout(10):
            assert {await acted.get(), await acted.get()} == {"a", "c"}
    assert termios.tcgetattr(sys.stdin.fileno()) == before
    os.close(terminal)


async def test_what_an_operator_does_is_a_request_and_is_told(tmp_path: Path) -> None:
    asked: list[str] = []
    told: list[str] = []
    replies = {"acknowledge": {"acknowledged": 2}, "pause_audio": {"seconds": 120}, "resume": {"beds": []},
               "observe": {"scores": {"news2": {"label": "NEWS2", "value": 0, "present": 6, "needed": 7}}}}  # fmt: skip

    def operation(name: str) -> object:
        def run(request: dict[str, object], _operator: str) -> dict[str, object]:
            asked.append(name)
            if name == "observe":
                assert request == {"op": "observe", "bed": "ICU-1", "consciousness": "A", "oxygen": False}
            return dict(replies[name])

        return run

    server = ControlServer(
        tmp_path / "s", {name: operation(name) for name in replies}, lambda *_: None  # type: ignore[misc]
    )  # fmt: skip
    operator = Operator(tmp_path / "s", told.append)
    await operator.resume()
    assert len(told) == 1 and "no answer" in told[0]
    await server.start()
    try:
        await operator.acknowledge()
        await operator.pause()
        await operator.resume()
        await operator.observe("ICU-1")
    finally:
        await server.close()
    assert asked == ["acknowledge", "pause_audio", "resume", "observe"]
    assert "2 alarms" in told[1] and "120 s" in told[2]
    assert told[4] == "operator: ICU-1 is alert and on air; NEWS2 0 (6/7)"
