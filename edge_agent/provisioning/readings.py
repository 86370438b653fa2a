"""Live values of a bed: from its sources themselves, or from the agent that runs.

Theory of operation. A `Reading` runs in a thread of its own while the engineer is asked, and keeps what came: the
number that a person reads from a screen is compared with all of the last WINDOW_S seconds, for it may have changed
between the look and the key. Without an agent each source of the bed is opened as the agent would open it, with its
real link and decoder. Questions that a device must be asked are sent; acknowledgements are not, for nothing is stored
here and a monitor may only forget what is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from drivers.contract import Decoder, Driver
from edge_agent import terms
from edge_agent.association import Beds
from edge_agent.config import Loaded, Source
from edge_agent.control import ControlClient, Refused
from edge_agent.links import Link, LinkState, open_link
from edge_agent.parts import Parts
from edge_agent.records import Chunk, Observation, Reply

WINDOW_S = 6.0  # before a question, whose numbers may be the ones that were read from the screen
TICK_S = 0.25
POLL_S = 0.5  # of the agent's status
STOP_S = 15.0  # a link to a terminal server ends within 10 s


@dataclass(slots=True)
class Seen:
    """What came of one term: values with their times, and how often there was none."""

    values: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=4096))  # seconds, value
    without: int = 0

    def since(self, at_s: float) -> list[float]:
        """Values that came at `at_s` or later, and at least the newest."""
        recent = [value for at, value in self.values if at >= at_s]
        return recent or [value for _, value in list(self.values)[-1:]]


class Reading(Protocol):
    """Live values while it runs."""

    def seen(self) -> dict[str, Seen]:
        """By term, what came until now."""

    def trouble(self) -> str:
        """What is wrong with the sources, empty when nothing is."""

    def lost(self) -> str:
        """Likewise, of those that belong to this bed alone: another bed's monitor may be off."""

    def stop(self) -> None:
        """End; waits."""


class SourceReading:
    """The sources of a bed, opened here."""

    def __init__(self, parts: Parts, bed: str, indexes: Sequence[int], clock: Callable[[], float]) -> None:
        self._parts, self._bed, self._clock = parts, bed, clock
        self._seen: dict[str, Seen] = {}
        self._trouble: dict[tuple[str, str], str] = {}  # by bed and link of the source
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._beds = Beds(parts.loaded.config.bed)
        self._feeds = [self._feed(index) for index in indexes]
        self._thread = threading.Thread(target=self._run, name="provisioning values", daemon=True)
        self._thread.start()

    def _feed(self, index: int) -> _Feed:
        source, driver = self._parts.loaded.config.source[index], self._parts.drivers[index]
        link = open_link(source.link, silence_s=source.silence_s or driver.silence_s, channels=driver.channels)
        return _Feed(self, link, driver, self._parts.maker(index), source)

    def seen(self) -> dict[str, Seen]:
        """By term, what came until now."""
        with self._lock:
            return {term: Seen(deque(each.values), each.without) for term, each in self._seen.items()}

    def trouble(self) -> str:
        """What the links say."""
        with self._lock:
            return "; ".join(text for text in self._trouble.values() if text)

    def lost(self) -> str:
        """What the links of this bed's own sources say."""
        with self._lock:
            return "; ".join(text for (bed, _), text in self._trouble.items() if text and bed)

    def stop(self) -> None:
        """End the links and their thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(STOP_S)

    def note(self, item: Observation, source: Source) -> None:
        """Keep an observation that is of this bed."""
        if (source.bed or self._beds.at(item.location)) != self._bed:
            return
        with self._lock:
            seen = self._seen.setdefault(item.term, Seen())
            if item.value is None:
                seen.without += 1
            else:
                seen.values.append((self._clock(), item.value))

    def link_state(self, source: Source, state: LinkState, detail: str) -> None:
        """Keep what a source's link says of itself."""
        link = source.link.partition("?")[0]
        with self._lock:
            self._trouble[source.bed, link] = "" if state == "connected" else f"{link}: {state}, {detail}"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        tasks = [asyncio.create_task(feed.run()) for feed in self._feeds]
        try:
            await self._end.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Feed:
    """One source: its link, and a decoder for it or for each of its channels."""

    def __init__(
        self, reading: SourceReading, link: Link, driver: Driver, make: Callable[[], Decoder], source: Source
    ) -> None:
        self._reading, self._link, self._driver, self._make, self._source = reading, link, driver, make, source
        self._decoders: dict[str, Decoder] = {} if driver.per_channel else {"": make()}

    async def run(self) -> None:
        """Run the link, and let time pass for the decoders."""
        ticking = asyncio.create_task(self._tick())
        try:
            await self._link.run(self)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(self._driver.poll_s or TICK_S, TICK_S))
            for channel, decoder in list(self._decoders.items()):
                self._take(list(decoder.tick(time.monotonic_ns())), channel)

    def chunk(self, chunk: Chunk) -> None:
        """Bytes have come in."""
        key = chunk.channel if self._driver.per_channel else ""
        if key not in self._decoders:
            self._decoders[key] = self._make()
        self._take(list(self._decoders[key].feed(chunk)), chunk.channel)

    def state(self, state: LinkState, at_ns: int, detail: str) -> None:
        """The link says how it is."""
        del at_ns
        self._reading.link_state(self._source, state, detail)

    def closed(self, channel: str, at_ns: int) -> None:
        """A peer has gone."""
        del at_ns
        if self._driver.per_channel:
            self._decoders.pop(channel, None)

    def _take(self, items: Sequence[object], channel: str) -> None:
        for item in items:
            if isinstance(item, Observation):
                self._reading.note(item, self._source)
            elif isinstance(item, Reply) and not item.after_commit:
                self._link.send(item.data, item.channel or channel)


class AgentReading:
    """The values of a bed as the running agent has them."""

    def __init__(self, socket: Path, bed: str, own: Collection[str], clock: Callable[[], float]) -> None:
        """`own` are the names of the sources that belong to this bed alone."""
        self._socket, self._bed, self._own, self._clock = socket, bed, own, clock
        self._seen: dict[str, Seen] = {}
        self._trouble = self._lost = ""
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="provisioning values", daemon=True)
        self._thread.start()

    def seen(self) -> dict[str, Seen]:
        """By term, what came until now."""
        with self._lock:
            return {term: Seen(deque(each.values), each.without) for term, each in self._seen.items()}

    def trouble(self) -> str:
        """Why the agent does not tell, or what it says of the sources."""
        return self._trouble or self._lost

    def lost(self) -> str:
        """Likewise, of the sources that belong to this bed alone."""
        return self._trouble or self._lost

    def stop(self) -> None:
        """Ask no more."""
        self._end.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            with ControlClient(self._socket) as client:
                while not self._end.is_set():
                    self._take(client.call("status")["status"])
                    self._end.wait(POLL_S)
        except (ConnectionError, Refused, OSError) as error:
            self._trouble = str(error)

    def _take(self, status: dict[str, Any]) -> None:
        self._lost = "; ".join(
            f"{each['name']}: {each['state']}, {each['detail']}"
            for each in status["sources"]
            if each["name"] in self._own and each["state"] != "connected"
        )
        for bed in status["beds"]:
            if bed["id"] != self._bed:
                continue
            with self._lock:
                for term, told in bed["values"].items():
                    seen = self._seen.setdefault(term, Seen())
                    if told["value"] is None:
                        seen.without += 1
                    elif told["age_s"] <= (told["max_age_s"] or WINDOW_S):
                        seen.values.append((self._clock() - told["age_s"], told["value"]))


def sources_of(loaded: Loaded, bed: str) -> list[int]:
    """Which sources of a configuration can bring values of a bed: its own, and those that tell beds apart."""
    return [index for index, source in enumerate(loaded.config.source) if source.bed in ("", bed)]


def shown(term: str, value: float) -> str:
    """A value with its unit, as it is shown to the engineer."""
    return f"{value:g} {terms.BY_NAME[term].ucum}".replace("{", "").replace("}", "")
