"""The agent: builds the path from the configuration, runs the links, and keeps time.

Theory of operation: one asyncio loop is the alarm loop. Links call `_LinkSink` in it, `Pipeline` does the work, and
`_keep_time` turns at least four times a second for condition delays, freshness and the watchdog. The buffer has
threads of its own and reports commits and faults through `call_soon_threadsafe`; each annunciator has a thread of its
own. Nothing in the loop waits for a disk, a network or a model.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import drivers
from drivers.contract import Decoder, Driver
from edge_agent import links, presets
from edge_agent.alarms import Alarms
from edge_agent.annunciators import Annunciator, open_annunciators
from edge_agent.association import Beds
from edge_agent.buffer import Buffer, KeyProblem, load_kek
from edge_agent.config import Config, ConfigError, Loaded
from edge_agent.control import AlreadyRunning, ControlServer
from edge_agent.health import Latency, Notifier, WallClock
from edge_agent.operations import Operations
from edge_agent.pipeline import GATEWAY, Append, Feed, Pipeline
from edge_agent.records import AlarmEvent, Chunk, Signal
from edge_agent.watch import Watch

log = logging.getLogger("edge_agent")

TURN_S = 0.25  # the longest turn of the alarm loop's clock: a quarter of the second an alarm may take
LISTEN_GRACE_S = 5.0  # between two connections of a sender that dials for every message or batch
DECODER_TICK_NS = 1_000_000_000
# which technical condition of the gateway a fault of the buffer is
BUFFER_CONDITIONS = {
    "buffer corrupt": "buffer_quarantined",
    "buffer key": "key_missing",
    "buffer disk": "disk_fault",
    "buffer shed": "records_shed",
}


class Parts:
    """What a configuration names, looked up and checked but not started: drivers, links, presets of beds."""

    def __init__(self, loaded: Loaded) -> None:
        """Raises: ConfigError for a driver, link, option or preset that does not exist or cannot be used."""
        self.loaded = loaded
        self.presets = _bed_presets(loaded)
        self.drivers: list[Driver] = []
        for index, source in enumerate(loaded.config.source):
            self.drivers.append(_driver(loaded, index, source.driver))
            self._check_source(index)

    def _check_source(self, index: int) -> None:
        source, driver = self.loaded.config.source[index], self.drivers[index]
        try:
            kind = links.link_kind(source.link)
        except links.LinkError as error:
            raise self.loaded.error(("source", index, "link"), error.reason, error.remedy) from error
        if kind not in driver.links and kind != "file":
            speaks = ", ".join(sorted(driver.links))
            raise self.loaded.error(
                ("source", index, "link"),
                f"driver {driver.name} does not speak over {kind}",
                f"it speaks over: {speaks}",
            )
        unknown = [key for key in source.options if key not in driver.options]
        if unknown:
            known = ", ".join(driver.options) or "none"
            raise self.loaded.error(("source", index, "options", unknown[0]), "unknown option", f"known: {known}")
        try:
            driver.decoder(**source.options)
        except (ValueError, TypeError) as error:
            raise self.loaded.error(("source", index, "options"), str(error)) from error
        if not source.bed and not driver.per_channel:
            raise self.loaded.error(
                ("source", index, "bed"),
                f"driver {driver.name} does not tell beds apart",
                'add bed = "..." to this source',
            )

    def maker(self, index: int) -> Callable[[], Decoder]:
        """What makes a fresh decoder for one source."""
        driver, options = self.drivers[index], self.loaded.config.source[index].options
        return lambda: driver.decoder(**options)


def _driver(loaded: Loaded, index: int, name: str) -> Driver:
    try:
        return drivers.load(name)
    except KeyError:
        known = ", ".join(drivers.names())
        raise loaded.error(("source", index, "driver"), f"no driver {name!r}", f"known drivers: {known}") from None
    except (ImportError, TypeError) as error:
        raise loaded.error(("source", index, "driver"), f"driver {name!r} cannot be loaded: {error}") from error


def _bed_presets(loaded: Loaded) -> dict[str, presets.Preset]:
    config = loaded.config
    paths = [loaded.resolve(path) for path in config.gateway.presets]
    for path in paths:
        if not path.is_file():
            raise loaded.error(("gateway", "presets"), f"{path} is not a file", "correct the path of the preset file")
    known = presets.load_presets(paths)
    chosen = {}
    for index, bed in enumerate(config.bed):
        if bed.preset not in known:
            raise loaded.error(
                ("bed", index, "preset"), f"no preset {bed.preset!r}", f"known presets: {', '.join(sorted(known))}"
            )
        preset = known[bed.preset]
        chosen[bed.id] = preset if bed.latching is None else preset.with_latching(bed.latching)
    chosen[GATEWAY] = known["gateway"]
    return chosen


def source_names(config: Config) -> list[str]:
    """A unique name for each source: the one configured, else driver@link."""
    names: list[str] = []
    for source in config.source:
        name = source.name or f"{source.driver}@{source.link}"
        names.append(name if name not in names else f"{name}#{len(names)}")
    return names


def build_pipeline(
    parts: Parts,
    append: Append,
    on_signal: Callable[[Signal], None],
    new_id: Callable[[], str],
    on_latency: Callable[[int], None] = lambda _delay_ns: None,
) -> Pipeline:
    """The alarm path for these parts, without links: what the agent and a replay have in common."""
    config = parts.loaded.config
    beds = Beds(config.bed)
    watch = Watch(parts.presets)
    holder: list[Pipeline] = []

    def signalled(signal: Signal) -> None:
        on_signal(signal)
        holder[0].signalled()

    def recorded(bed: str, event: AlarmEvent) -> None:
        holder[0].alarm_event(bed, event)

    alarms = Alarms(
        parts.presets,
        config.alarms,
        new_id=new_id,
        on_event=recorded,
        on_signal=signalled,
    )
    pipeline = Pipeline(beds, watch, alarms, append, on_latency)
    holder.append(pipeline)
    return pipeline


class _LinkSink:
    """One source's way into the pipeline."""

    def __init__(self, pipeline: Pipeline, feed: Feed) -> None:
        self._pipeline, self._feed = pipeline, feed
        self.chunk: Callable[[Chunk], None] = partial(pipeline.chunk, feed)

    def state(self, state: links.LinkState, at_ns: int, detail: str) -> None:
        feed = self._feed
        feed.link_state, feed.link_since_ns = state, at_ns
        if state == "connected":
            # bytes are not yet items: the source counts as connected, and its alarm ends, when its first item has been
            # decoded; it is silent when none comes in time
            if feed.state != "connected":
                feed.last_item_ns = at_ns
                feed.state, feed.detail = "starting", detail
            return
        if state == "lost" and feed.grace_s and feed.state == "connected":
            feed.link_detail = detail  # a sender that dials for every message is back before the grace is over
            return
        self._pipeline.source_state(feed, state, at_ns, detail)

    def closed(self, channel: str, at_ns: int) -> None:
        self._pipeline.closed(self._feed, channel, at_ns)


class Agent:
    """A running gateway. `run` returns when `stop` has been called."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.loaded.config
        self.latency = Latency()
        self.faults: dict[str, str] = {}  # technical condition of the gateway -> detail
        self.started_ns = time.monotonic_ns()
        self.run_id = uuid.uuid4().hex
        self.ready = asyncio.Event()
        self.buffer: Buffer | None = None
        self.annunciators: list[Annunciator] = []
        self.feeds: dict[str, Feed] = {}
        self.cloud: dict[str, Any] | None = None  # what cloud-sync last wrote about itself
        self._notifier = Notifier()
        self._committed = 0
        self._shed: set[int] = set()  # tickets whose records were let go: nobody may be told that they are kept
        self._release_due = False
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._turn_due: asyncio.TimerHandle | None = None
        # a number behind the run's own identifier: drawing a fresh UUID for each alert took 50 us of the alarm path
        alerts = itertools.count(1)
        self.pipeline = build_pipeline(
            parts, self._append, self._drive, lambda: f"{self.run_id}-{next(alerts)}", self.latency.add
        )

    # -- start and stop -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Open everything, serve until `stop`, close everything. A part that fails to open is a technical alarm."""
        data_dir = self.parts.loaded.resolve(self.config.gateway.data_dir)
        operations = Operations(self)
        settings = self.config.control
        socket = self.parts.loaded.resolve(settings.socket)
        control = ControlServer(
            socket, operations.table(), operations.audit, settings.nurse_group, settings.biomed_group
        )
        try:  # first, so that a second agent finds the first one before it touches its files or outputs
            await control.start()
        except AlreadyRunning:
            raise
        except OSError as error:
            self._fault("control_fault", "socket", f"{socket}: {error.strerror or error}; operators cannot be heard")
        tasks: list[asyncio.Task[None]] = []
        try:
            self._open_annunciators()
            self._open_buffer(data_dir)
            tasks = [asyncio.create_task(link.run(sink), name=link.url) for link, sink in self._open_links()]
            tasks.append(asyncio.create_task(self._keep_time(), name="clock"))
            tasks.append(asyncio.create_task(self._follow_cloud(data_dir / "cloud-sync" / "status.json"), name="cloud"))
            self._notifier.send("READY=1")
            log.info(
                "ready gateway=%s beds=%d sources=%d", self.config.gateway.id, len(self.config.bed), len(self.feeds)
            )
            self.ready.set()
            await self._serve(tasks)
        finally:
            self._notifier.send("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await control.close()
            self._close()

    async def _serve(self, tasks: list[asyncio.Task[None]]) -> None:
        """Return when `stop` is called. Raises: what the clock or a link died of: the path is not whole then."""
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        left: set[asyncio.Task[Any]] = {stopped, *tasks}
        try:
            while stopped in left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    if (error := task.exception()) is not None:
                        raise error
                    if task.get_name() in ("clock", "cloud"):
                        raise RuntimeError(f"the agent's {task.get_name()} task ended")
                    log.info("link ended url=%s", task.get_name())  # a capture file has been played to its end
        finally:
            stopped.cancel()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    def _close(self) -> None:
        for annunciator in self.annunciators:
            annunciator.close()
        if self.buffer is not None:
            self.buffer.close(5.0)
        self._notifier.close()

    def _open_annunciators(self) -> None:
        def fault(name: str, detail: str) -> None:
            self._loop.call_soon_threadsafe(self._fault, "annunciator_fault", name, detail)

        self.annunciators = open_annunciators(
            self.config.annunciator, resolve=self.parts.loaded.resolve, on_fault=fault
        )

    def _open_buffer(self, data_dir: Path) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = load_kek(self.parts.loaded.buffer_key)
            self.buffer = Buffer(
                data_dir, key, self.config.gateway.id, self.config.buffer,
                on_committed=self._on_committed, on_fault=self._on_buffer_fault, on_shed=self._on_shed,
            )  # fmt: skip
        except (KeyProblem, OSError) as error:
            # alarms go on without a buffer; nothing is acknowledged, so senders keep what they have
            self._fault(BUFFER_CONDITIONS["buffer key"], "buffer", str(error))

    def _open_links(self) -> list[tuple[links.Link, _LinkSink]]:
        opened = []
        now = time.monotonic_ns()
        for index, (source, name) in enumerate(zip(self.config.source, source_names(self.config), strict=True)):
            driver = self.parts.drivers[index]
            silence_s = source.silence_s or driver.silence_s
            tee = self.parts.loaded.resolve(source.capture) if source.capture else None
            link = links.open_link(
                source.link, silence_s=silence_s, channels=driver.channels, tee=tee, driver=driver.name
            )
            feed = Feed(
                name=name, driver=driver, make=self.parts.maker(index), send=link.send, bed=source.bed,
                silence_s=silence_s, link=source.link, last_item_ns=now,
                grace_s=min(LISTEN_GRACE_S, silence_s) if "-listen://" in source.link else 0.0,
            )  # fmt: skip
            self.feeds[name] = feed
            if not driver.per_channel:
                feed.taker("")  # a decoder that speaks first needs its ticks before any byte has come
            opened.append((link, _LinkSink(self.pipeline, feed)))
        return opened

    # -- between the rooms --------------------------------------------------------------------------------------

    def _append(self, entries: Any, *, wanted_soon: bool = False) -> int:
        if self.buffer is None:
            return 1 << 62  # never committed: whoever waits for an acknowledgement sends again
        return self.buffer.append(entries, wanted_soon=wanted_soon)

    def _drive(self, signal: Signal) -> None:
        for annunciator in self.annunciators:
            annunciator.drive(signal)

    def _on_committed(self, ticket: int) -> None:
        """Called in the buffer's writer threads; one wake-up of the loop serves all commits until it runs."""
        self._committed = max(self._committed, ticket)
        if not self._release_due:
            self._release_due = True
            self._loop.call_soon_threadsafe(self._release)

    def _on_shed(self, tickets: list[int]) -> None:
        """Called in the writer threads, before the commit that passes these tickets is reported."""
        self._shed.update(tickets)

    def _release(self) -> None:
        self._release_due = False
        committed = self._committed
        self.pipeline.replies.release(committed, self._shed)
        if self._shed:
            self._shed.difference_update(ticket for ticket in tuple(self._shed) if ticket <= committed)

    def _on_buffer_fault(self, kind: str, detail: str) -> None:
        self._loop.call_soon_threadsafe(self._fault, BUFFER_CONDITIONS.get(kind, "buffer_fault"), kind, detail)

    def _fault(self, condition: str, kind: str, detail: str) -> None:
        """A fault of the gateway begins, or with an empty detail ends; several kinds share one condition."""
        key = f"{condition}/{kind}"
        if detail:
            if self.faults.get(key) != detail:
                log.warning("fault condition=%s kind=%s detail=%r", condition, kind, detail)
            self.faults[key] = detail
        elif self.faults.pop(key, None) is not None:
            log.info("fault ended condition=%s kind=%s", condition, kind)
        now = time.monotonic_ns()
        present = [text for name, text in self.faults.items() if name.startswith(condition + "/")]
        watch = self.pipeline.watch
        self.pipeline.apply(watch.technical(GATEWAY, condition, bool(present), now, "; ".join(present)))
        self.pipeline.flush(now)

    # -- time ---------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        wall = WallClock(time.time_ns(), time.monotonic_ns())
        decoders_due = 0
        watchdog = bool(os.environ.get("WATCHDOG_USEC"))
        while True:
            now = time.monotonic_ns()
            if now >= decoders_due:
                decoders_due = now + DECODER_TICK_NS
                for feed in self.feeds.values():
                    self.pipeline.tick_feed(feed, now)
                moved = wall.step(time.time_ns(), now)
                self._clock_stepped(moved)
                if watchdog:
                    self._notifier.send("WATCHDOG=1")
            self.pipeline.tick(self.feeds, now)
            deadline = self.pipeline.watch.next_deadline()
            wait_s = TURN_S if deadline is None else min(TURN_S, max(0.0, (deadline - time.monotonic_ns()) / 1e9))
            await asyncio.sleep(wait_s)

    def _clock_stepped(self, moved_ns: int) -> None:
        """A step of the wall clock is shown until the next look, a second later, and is kept as a record."""
        if moved_ns:
            log.warning("clock stepped by_s=%.1f", moved_ns / 1e9)
            self._fault("clock_step", "wall clock", f"stepped by {moved_ns / 1e9:.1f} s")
        elif "clock_step/wall clock" in self.faults:
            self._fault("clock_step", "wall clock", "")

    async def _follow_cloud(self, path: Path) -> None:
        """Keep the forwarder's own view of itself at hand; read in a thread, because the disk may not answer."""
        while True:
            self.cloud = await asyncio.to_thread(_read_object, path)
            await asyncio.sleep(1.0)


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return found if isinstance(found, dict) else None


def check(loaded: Loaded) -> Mapping[str, str]:
    """What a valid configuration would run, one line a part. Raises: ConfigError for anything that could not run."""
    parts = Parts(loaded)
    lines = {f"bed {bed.id}": f"preset {bed.preset}" for bed in loaded.config.bed}
    for name, driver in zip(source_names(loaded.config), parts.drivers, strict=True):
        lines[f"source {name}"] = f"driver {driver.name}"
    return lines


__all__ = ["Agent", "ConfigError", "Parts", "build_pipeline", "check", "source_names"]
