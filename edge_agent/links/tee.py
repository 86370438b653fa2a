"""Everything that goes over a link, also into a capture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.links.capture import CaptureWriter
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report


@dataclass(frozen=True, slots=True)
class Reporting:
    """How a link reports: silent after `silence_s`, and into the capture `tee`, with `driver` in its header."""

    silence_s: float
    tee: Path | None = None
    driver: str = ""

    @asynccontextmanager
    async def run(self, sink: Sink, url: str) -> AsyncIterator[Report]:
        """A report for one run of the link `url`, with its capture; both are ended on the way out."""
        tee = None
        if self.tee is not None:
            tee = CaptureWriter(self.tee, header={"driver": self.driver, "link": url})
        report = Report(sink, self.silence_s, tee)
        try:
            yield report
        finally:
            report.stop()
            if tee is not None:
                await asyncio.to_thread(tee.close)
