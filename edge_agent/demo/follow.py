"""The agent's control socket, followed from an asyncio program."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

_MAX_STATUS = 4 * 1024 * 1024  # a status of 8 beds is about 20 kB


async def statuses(socket: Path, interval_s: float) -> AsyncGenerator[dict[str, Any], None]:
    """The agent's status now and every `interval_s` seconds, until the agent closes the connection.

    Raises: ConnectionError when no agent answers at `socket` or it refuses.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=_MAX_STATUS)
    except OSError as error:
        raise ConnectionError(f"{socket}: no agent answers ({error})") from error
    try:
        writer.write(json.dumps({"op": "subscribe", "interval_s": interval_s}).encode() + b"\n")
        while line := await reader.readline():
            reply = json.loads(line)
            if not reply.get("ok"):
                raise ConnectionError(f"{socket}: the agent refused: {reply.get('error', 'without a reason')}")
            yield reply["status"]
    finally:
        writer.close()


async def until(
    stream: AsyncGenerator[dict[str, Any], None], stop: asyncio.Event
) -> AsyncGenerator[dict[str, Any], None]:
    """The stream's items until `stop` is set, which is noticed also while the stream says nothing."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while True:
            item = asyncio.ensure_future(anext(stream))
            await asyncio.wait((item, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                item.cancel()
                await asyncio.gather(item, return_exceptions=True)
                return
            try:
                yield item.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()
