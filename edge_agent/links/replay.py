"""Links without a device: a capture that is played back, and the link of a driver that makes its own values."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from edge_agent.links.address import Address
from edge_agent.links.capture import Capture, CaptureError, read_capture
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report


class FileLink:
    """A capture, played once in its own rhythm, `speed` times as fast, or as fast as it is taken.

    Chunks are stamped when they are delivered, like those of any link; to play a day in seconds with the capture's
    own times is the replay command's work.
    """

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._path = Path(address.path)
        self._speed = float(address.options.get("speed", 1.0))

    async def run(self, sink: Sink) -> None:
        """Deliver what the capture received; returns when it has been played, with the state `lost`."""
        report = Report(sink, None, None)
        try:
            try:
                capture = await asyncio.to_thread(read_capture, self._path)
            except CaptureError as error:
                report.lost(str(error))
                return
            report.connected(f"playing {self._path}")
            await self._play(capture, report)
            report.lost(f"{self._path} has been played to its end")
        finally:
            report.stop()

    async def _play(self, capture: Capture, report: Report) -> None:
        start = time.monotonic()
        for chunk in capture.received():
            due = start + chunk.at_ns / 1e9 / self._speed if self._speed else 0.0
            await asyncio.sleep(max(due - time.monotonic(), 0))  # 0 lets the rest of the agent work, also at full speed
            report.received(chunk.data, chunk.channel)

    def send(self, data: bytes, channel: str = "") -> bool:
        """False: nobody is there to listen."""
        del data, channel
        return False


class StillLink:
    """The link of a driver that needs none: always connected, never a byte."""

    def __init__(self, address: Address) -> None:
        self.url = address.url

    async def run(self, sink: Sink) -> None:
        """Stay connected until cancelled."""
        report = Report(sink, None, None)
        report.connected("no device")
        await asyncio.get_running_loop().create_future()

    def send(self, data: bytes, channel: str = "") -> bool:
        """False: nobody is there to listen."""
        del data, channel
        return False
