"""Everything that goes over a link, also into a capture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edge_agent.links.capture import CaptureWriter
from edge_agent.links.contract import Sink
from edge_agent.links.report import Report


@asynccontextmanager
async def reporting(
    sink: Sink, silence_s: float | None, path: Path | None, driver: str, url: str
) -> AsyncIterator[Report]:
    """A report for one run of a link, with its capture when `path` is given; both are ended on the way out."""
    tee = CaptureWriter(path, header={"driver": driver, "link": url}) if path is not None else None
    report = Report(sink, silence_s, tee)
    try:
        yield report
    finally:
        report.stop()
        if tee is not None:
            await asyncio.to_thread(tee.close)
