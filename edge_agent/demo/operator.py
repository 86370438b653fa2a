"""The nurse of the demo: keys on the terminal, or a script where there is no terminal; both act as an operator would.

Every action is a request on the agent's control socket, as `edge-agent acknowledge` makes it, or something that a
hand does at the bedside, such as pulling a cable. What a hand did is told in one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent import view_scores

REPLY_S = 5.0
KEYS = (
    "a acknowledge  o observe  p pause audio  r resume  c pull or plug the cable  b battery alarm  l alarm log  q quit"
)


class Operator:
    """Acts through the control socket at `socket`; `tell` says what came of it."""

    def __init__(self, socket: Path, tell: Callable[[str], None]) -> None:
        self._socket, self._tell = socket, tell

    async def acknowledge(self) -> None:
        """Acknowledge everything that is active."""
        reply = await self._ask("acknowledge")
        if reply:
            self._tell(f"operator: acknowledge; {reply['acknowledged']} alarms")

    async def pause(self) -> None:
        """AUDIO PAUSED on all beds."""
        reply = await self._ask("pause_audio")
        if reply:
            self._tell(f"operator: AUDIO PAUSED for {reply['seconds']} s; lights go on")

    async def resume(self) -> None:
        """End the pause."""
        if await self._ask("resume"):
            self._tell("operator: audio on again")

    async def observe(self, bed: str) -> None:
        """Look at the patient of a bed: alert, on air. No device knows that, and NEWS2 is partial without it."""
        reply = await self._ask("observe", bed=bed, consciousness="A", oxygen=False)
        if reply:
            self._tell(f"operator: {bed} is alert and on air; {view_scores.short(reply) or 'no NEWS2'}")

    async def _ask(self, op: str, **request: Any) -> dict[str, Any]:
        """The reply, empty when the agent refused or did not answer, which is told."""
        try:
            async with asyncio.timeout(REPLY_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(json.dumps({"op": op, **request}).encode() + b"\n")
                    reply: dict[str, Any] = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            self._tell(f"operator: {op}: no answer ({error})")
            return {}
        if not reply.get("ok"):
            self._tell(f"operator: {op} refused: {reply.get('error')}")
            return {}
        return reply


@contextmanager
def keys(actions: dict[str, Callable[[], Awaitable[None] | None]]) -> Iterator[None]:
    """While the block runs, a key typed on standard input calls its action in the running loop."""
    descriptor = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)
    started: set[asyncio.Future[None]] = set()

    def typed() -> None:
        for key in os.read(descriptor, 64).decode("utf-8", "replace"):
            action = actions.get(key.lower())
            result = action() if action else None
            if result is not None:
                task = asyncio.ensure_future(result)
                started.add(task)
                task.add_done_callback(started.discard)

    tty.setcbreak(descriptor)  # keys arrive at once and unechoed; Ctrl-C still interrupts
    loop.add_reader(descriptor, typed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
