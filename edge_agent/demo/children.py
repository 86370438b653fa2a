"""Child processes that are started with a log file, watched, and always ended by their handle."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

STOP_S = 15.0  # a child that ignores SIGTERM for so long is killed; the agent's last commit takes well under a second
_TAIL_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildDied(Exception):
    """A child ended without being asked; `str` tells which, how, and shows the end of its log."""


class Child:
    """One running process; its output goes to `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log = name, log
        self._process = process

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def check(self) -> None:
        """Raises: ChildDied when the process has ended."""
        if self._process.returncode is not None:
            raise ChildDied(f"{self.name} ended with status {self._process.returncode}; its last lines:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output, indented."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        kept = text.splitlines()[-lines:] or ["(it wrote nothing)"]
        return "\n".join(f"  {line}" for line in kept)

    async def wait(self, deadline_s: float) -> int | None:
        """Exit status, or None when it still runs after `deadline_s`."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._process.wait()
        except TimeoutError:
            return None

    async def stop(self) -> int:
        """Ask it to end, kill it when it does not; its exit status."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            if await self.wait(STOP_S) is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
        return await self._process.wait()


def _end_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def apply() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the line above took effect
            os._exit(1)

    return apply


@contextlib.asynccontextmanager
async def started(
    name: str, argv: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[Child]:
    """A child that runs while the block runs. It gets no terminal: Ctrl-C reaches it through its parent only.

    Raises: OSError when it cannot be started.
    """
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
    child = Child(name, process, log)
    try:
        yield child
    finally:
        await asyncio.shield(child.stop())
