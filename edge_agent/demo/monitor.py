"""A patient monitor's HL7 end: dials the gateway, sends one message after the other, keeps each until acknowledged.

Theory of operation: MLLP frames a message as 0B message 1C 0D. The next message leaves only when the last one has been
acknowledged by its control identifier (MSH-10 = MSA-2) with AA or CA. An error code, no answer within `ack_timeout_s`
or a lost connection makes the same message go again, after a pause that doubles up to RETRY_MAX_S; nothing is left out
and the order never changes, so a gateway that acknowledges after its commit gets every message at least once.

Source: HL7 v2.6 chapter 2.9 (original and enhanced acknowledgement), MLLP release 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

START, END = b"\x0b", b"\x1c\r"
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
MAX_ACK = 64 * 1024  # an acknowledgement is some hundred bytes


class Hl7Monitor:
    """The sending end of one TCP connection to `host`:`port`; counts what it did."""

    def __init__(self, host: str, port: int, *, ack_timeout_s: float = 10.0) -> None:
        self._host, self._port = host, port
        self._ack_timeout_s = ack_timeout_s
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.acknowledged = 0
        self.resent = 0
        self.connects = 0
        self.last_refusal = ""

    async def run(self, messages: AsyncIterator[bytes]) -> None:
        """Send all messages in order, each until it is acknowledged, and hang up."""
        try:
            async for message in messages:
                await self.send(message)
        finally:
            await self.close()

    async def send(self, message: bytes) -> float:
        """Send one message until it is acknowledged; the seconds from its last transmission to the acknowledgement."""
        identifier = control_id(message)
        pause = RETRY_MIN_S
        while True:
            try:
                started = time.monotonic()
                async with asyncio.timeout(self._ack_timeout_s):
                    accepted = await self._exchange(message, identifier)
                if accepted:
                    self.acknowledged += 1
                    return time.monotonic() - started
            except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
                self.last_refusal = f"{type(error).__name__}: {error}".rstrip(": ")
                await self.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MAX_S)
            self.resent += 1

    async def close(self) -> None:
        """Hang up; the next send dials again."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass  # the connection was lost before it was closed

    async def _exchange(self, message: bytes, identifier: bytes) -> bool:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=MAX_ACK)
            self.connects += 1
        self._writer.write(START + message + END)
        await self._writer.drain()
        while True:
            answer = (await self._reader.readuntil(END))[: -len(END)].rpartition(START)[2]
            code, about, text = acknowledgement(answer)
            if about != identifier:
                continue  # the answer to an earlier transmission that was given up
            if code in (b"AA", b"CA"):
                return True
            self.last_refusal = f"{code.decode('ascii', 'replace')} {text.decode('utf-8', 'replace')}".strip()
            return False


def control_id(message: bytes) -> bytes:
    """The message control identifier, MSH-10. Raises: ValueError when the message has none."""
    fields = message.partition(b"\r")[0].split(message[3:4]) if message.startswith(b"MSH") else []
    if len(fields) < 10 or not fields[9]:
        raise ValueError("an HL7 message starts with MSH and carries a control identifier in MSH-10")
    return fields[9]


def acknowledgement(answer: bytes) -> tuple[bytes, bytes, bytes]:
    """Code, control identifier and text (MSA-1, -2, -3) of an answer; empty when it is no acknowledgement."""
    separator = answer[3:4]
    for segment in answer.split(b"\r"):
        if segment.startswith(b"MSA" + separator):
            fields = [*segment.split(separator), b"", b"", b""]
            return fields[1], fields[2], fields[3]
    return b"", b"", b""
