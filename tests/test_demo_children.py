"""Child processes of the demo: watched, ended by handle, and gone when their parent dies."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edge_agent.demo import children
from edge_agent.demo.children import ChildDied, started

SLEEP = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


async def until_up(child: children.Child) -> None:
    async with asyncio.timeout(20):
        while "up" not in child.tail():
            child.check()
            await asyncio.sleep(0.01)


async def test_a_child_is_ended_with_its_block_also_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ours"):
        async with started("sleeper", SLEEP, tmp_path / "log") as child:
            await until_up(child)
            assert os.getsid(child.pid) == child.pid
            raise RuntimeError("ours")
    assert child.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(child.pid)


async def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "STOP_S", 0.2)
    async with started("stubborn", STUBBORN, tmp_path / "log") as child:
        await until_up(child)
    assert child.returncode == -signal.SIGKILL


async def test_a_child_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    script = "import sys; [print('line', n) for n in range(50)]; sys.exit('broken: no key')"
    async with started("agent", [sys.executable, "-c", script], tmp_path / "log") as child:
        assert await child.wait(20) == 1
        with pytest.raises(ChildDied) as died:
            child.check()
    text = str(died.value)
    assert text.startswith("agent ended with status 1; its last lines:\n  line ")
    assert text.endswith("\n  broken: no key")
    assert "line 10\n" not in text


async def test_cancelling_still_ends_the_child(tmp_path: Path) -> None:
    pid = 0
    running = asyncio.Event()

    async def forever() -> None:
        nonlocal pid
        async with started("sleeper", SLEEP, tmp_path / "log") as child:
            pid = child.pid
            running.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await asyncio.wait_for(running.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from edge_agent.demo.children import started

async def main():
    async with started("sleeper", {SLEEP!r}, Path({str(tmp_path / "log")!r})) as child:
        while "up" not in child.tail():
            await asyncio.sleep(0.01)
        print(child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        parent.kill()
        parent.wait(10)
        ready, _, _ = select.select([handle], [], [], 10)  # readable when the process has ended
        os.close(handle)
        assert ready
    finally:
        parent.kill()
        parent.wait(10)
