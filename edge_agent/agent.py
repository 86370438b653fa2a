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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import links, metrics
from edge_agent.alarm_log import FILE, AlarmLog
from edge_agent.annunciators import Annunciator, open_annunciators
from edge_agent.buffer import Buffer, KeyProblem, load_kek, receivers
from edge_agent.buffer.clock import UNSYNCHRONIZED, Clock
from edge_agent.button import Button
from edge_agent.continuity import LIMITS, Continuity
from edge_agent.control import AlreadyRunning, ControlServer
from edge_agent.health import Latency, Notifier, WallClock
from edge_agent.last_gasp import relieve
from edge_agent.metrics_port import MetricsPort
from edge_agent.operations import Operations
from edge_agent.parts import Parts, build_pipeline, source_names
from edge_agent.pipeline import GATEWAY, Feed, Pipeline
from edge_agent.records import AlarmEvent, Chunk, Signal
from edge_agent.risk import Risk, watched_opener
from edge_agent.supervision import Supervision
from edge_agent.trends import Trends

log = logging.getLogger("edge_agent")

TURN_NS = 250_000_000  # the longest turn of the alarm loop's clock: a quarter of the second an alarm may take
LISTEN_GRACE_S = 5.0  # between two connections of a sender that dials for every message or batch
LOOK_NS = 1_000_000_000
LOG_OPEN_S = 10.0  # a disk that has not opened the alarm log by then is a fault, and the alarms begin without it
# which technical condition of the gateway a fault of the buffer is
BUFFER_CONDITIONS = {
    "buffer corrupt": "buffer_quarantined",
    "buffer key": "key_missing",
    "buffer disk": "disk_fault",
    "buffer shed": "records_shed",
}


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
        if state == "lost" and feed.grace_s and feed.state in ("starting", "connected"):
            # a sender that dials for every message, or again after our restart, is back before the grace is over
            feed.link_detail = detail
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
        self.started_ns, self.started_utc = time.monotonic_ns(), round(time.time(), 3)
        self.turns, self.watchdog = 0, bool(os.environ.get("WATCHDOG_USEC"))
        self.run_id = uuid.uuid4().hex
        self.ready = asyncio.Event()
        self.buffer: Buffer | None = None
        self.log: AlarmLog | None = None
        self.annunciators: list[Annunciator] = []
        self.buttons: list[Button] = []
        self.feeds: dict[str, Feed] = {}
        self.trends = Trends([bed.id for bed in self.config.bed])
        self.cloud: dict[str, Any] | None = None  # what cloud-sync last wrote about itself
        self._metrics_port: MetricsPort | None = None
        self._notifier = Notifier()
        self._clock, self._wall = Clock(), WallClock(time.time_ns(), time.monotonic_ns())
        self._continuity: Continuity | None = None
        self._early: list[tuple[str, str, AlarmEvent]] = []  # alarm events from before the alarm log was open
        self._committed = 0
        self._shed: set[int] = set()  # tickets whose records were let go: nobody may be told that they are kept
        self._release_due = False
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._turn_due: asyncio.TimerHandle | None = None
        self.operations = Operations(self)
        # a number behind the run's own identifier: drawing a fresh UUID for each alert took 50 us of the alarm path
        alerts = itertools.count(1)
        self.pipeline = build_pipeline(
            parts, self._append, self._drive, lambda: f"{self.run_id}-{next(alerts)}", self.latency.add,
            on_alarm=self._on_alarm, on_restart=self._on_new_patient,
            keep_limits=lambda settings: self._keep(LIMITS, settings),
        )  # fmt: skip
        cloud = self.config.cloud
        self.risk: Risk | None = None
        if self.config.model is not None:
            self.risk = Risk(
                self.config.model, self.pipeline, watched_opener(parts.loaded), fault=self.fault,
                post=self._post, keep=self._keep,
            )  # fmt: skip
        self._supervision = Supervision(
            self.fault, central=any((cloud.kafka, cloud.mqtt, cloud.rest, cloud.alert_manager)),
            central_link_s=self.config.alarms.central_link_s, started_ns=self.started_ns,
        )  # fmt: skip

    # -- start and stop -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Open everything, serve until `stop`, close everything. A part that fails to open is a technical alarm."""
        data_dir = self.parts.loaded.resolve(self.config.gateway.data_dir)
        operations = self.operations
        settings = self.config.control
        socket = self.parts.loaded.resolve(settings.socket)
        control = ControlServer(
            socket, operations.table(), operations.audit, settings.nurse_group, settings.biomed_group, self.ready
        )
        try:  # first, so that a second agent finds the first one before it touches its files or outputs
            await control.start()
        except AlreadyRunning:
            raise
        except OSError as error:
            self.fault("control_fault", "socket", f"{socket}: {error.strerror or error}; operators cannot be heard")
        tasks: list[asyncio.Task[None]] = []
        try:
            if await asyncio.to_thread(relieve, socket):
                log.info("last gasp ended: its outputs are ours")
            self._open_annunciators()
            opened = self._open_links()
            key = await self._load_key(data_dir)
            await self._open_log(data_dir, key)
            self._open_buffer(data_dir, key)
            if self.risk is not None and key is not None and self.buffer is not None and self.log is not None:
                self.risk.restart(data_dir, key, self.log.settings(0.0), self.buffer.wait_ready)
            self.buttons = [
                Button(each, on_press=self._on_press, on_fault=self._on_button_fault) for each in self.config.button
            ]
            self.self_test_at_start()
            tasks = [asyncio.create_task(link.run(sink), name=link.url) for link, sink in opened]
            tasks.append(asyncio.create_task(self._keep_time(), name="clock"))
            tasks.append(asyncio.create_task(self._follow_cloud(data_dir / "cloud-sync" / "status.json"), name="cloud"))
            self._notifier.send("READY=1")
            log.info(
                "ready gateway=%s beds=%d sources=%d", self.config.gateway.id, len(self.config.bed), len(self.feeds)
            )
            self.ready.set()
            self._open_metrics_port()
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

    def _open_metrics_port(self) -> None:
        if self.config.metrics.listen:
            self._metrics_port = MetricsPort(
                self.config.metrics.address, self._post, partial(metrics.text, self, port=True),
                partial(metrics.host_text, self.parts.loaded),
            )  # fmt: skip

    def _close(self) -> None:
        if self._metrics_port is not None:
            self._metrics_port.close()
        if self.risk is not None:
            self.risk.close()
        for button in self.buttons:
            button.close()
        for annunciator in self.annunciators:
            annunciator.close()
        if self.log is not None:
            self.log.close()
        if self.buffer is not None:
            self.buffer.close(5.0)
        self._notifier.close()

    def _open_annunciators(self) -> None:
        def fault(name: str, detail: str) -> None:
            self._loop.call_soon_threadsafe(self.fault, "annunciator_fault", name, detail)

        self.annunciators = open_annunciators(
            self.config.annunciator, resolve=self.parts.loaded.resolve, on_fault=fault,
            escalate_s=self.config.alarms.escalate_s,
        )  # fmt: skip

    async def _load_key(self, data_dir: Path) -> bytes | None:
        def load() -> bytes:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return load_kek(self.parts.loaded.buffer_key)

        try:
            return await asyncio.to_thread(load)  # a TPM takes its seconds, and so may a disk
        except (KeyProblem, OSError) as error:
            # alarms go on without a key; nothing is kept or acknowledged, so senders keep what they have
            self.fault(BUFFER_CONDITIONS["buffer key"], "buffer", str(error))
            return None

    async def _open_log(self, data_dir: Path, key: bytes | None) -> None:
        """Open the alarm log and put back what a restart keeps; without the log the alarms begin anew."""
        settings = self.config.alarms

        def fault(kind: str, detail: str) -> None:
            self._loop.call_soon_threadsafe(self.fault, "log_fault", kind, detail)

        self.log = AlarmLog(
            data_dir / FILE, key, run_id=self.run_id, on_fault=fault, log_mb=settings.log_mb,
            beds=[bed.id for bed in self.config.bed],
        )  # fmt: skip
        for bed, patient, event in self._early:
            self.log.append(bed, patient, event)
        self._early.clear()
        self._continuity = Continuity(self.log, self.pipeline, self.feeds)
        if await asyncio.to_thread(self.log.wait_ready, LOG_OPEN_S):
            lost = self._continuity.restore(self._clock)
            if lost:
                self.fault("log_fault", "restore", "; ".join(lost))

    def _open_buffer(self, data_dir: Path, key: bytes | None) -> None:
        if key is None:
            return
        try:
            self.buffer = Buffer(
                data_dir, key, self.config.gateway.id, self.config.buffer,
                on_committed=self._on_committed, on_fault=self._on_buffer_fault, on_shed=self._on_shed,
                receivers=receivers(self.config.cloud),
            )  # fmt: skip
        except (KeyProblem, OSError) as error:
            self.fault(BUFFER_CONDITIONS["buffer key"], "buffer", str(error))

    def self_test_at_start(self) -> None:
        """Show every lamp and sound every priority, unless an alarm is already there to be heard."""
        quiet = all(self.pipeline.alarms.signal(bed).priority == "none" for bed in (*self.pipeline.beds.ids, GATEWAY))
        if self.config.alarms.self_test and quiet:
            for annunciator in self.annunciators:
                annunciator.self_test(time.monotonic_ns())

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

    def _on_alarm(self, bed: str, patient: str, event: AlarmEvent) -> None:
        if self.log is not None:
            self.log.append(bed, patient, event)
        elif not self.ready.is_set():
            self._early.append((bed, patient, event))

    def _on_new_patient(self, bed: str) -> None:
        self.trends.clear(bed)
        if self.risk is not None:
            self.risk.new_patient(bed)
        self.keep()  # at once: after a kill the same patient must not look like a new one

    def keep(self) -> None:
        """Hand what a restart is to find again to the alarm log, now and not at the next look; never waits."""
        if self._continuity is not None:
            self._continuity.keep()

    def _keep(self, key: str, settings: bytes) -> None:
        if self.log is not None:
            self.log.put(key, settings)

    def _post(self, done: Callable[[], None]) -> None:
        """Have something done in the loop; called in any thread, also while the agent ends."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(done)

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

    def _on_press(self, bed: str, press: str) -> None:
        self._loop.call_soon_threadsafe(self.operations.pressed, bed, press)

    def _on_button_fault(self, name: str, detail: str) -> None:
        self._loop.call_soon_threadsafe(self.fault, "button_fault", name, detail)

    def _on_buffer_fault(self, kind: str, detail: str) -> None:
        self._loop.call_soon_threadsafe(self.fault, BUFFER_CONDITIONS.get(kind, "buffer_fault"), kind, detail)

    def fault(self, condition: str, kind: str, detail: str) -> None:
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
        look_ns = 0
        planned_ns = time.monotonic_ns()
        while True:
            now = time.monotonic_ns()
            self.turns += 1
            self._supervision.turn(planned_ns, now)
            if now >= look_ns:
                look_ns = now + LOOK_NS
                self._look(now)
                if self.watchdog:
                    self._notifier.send("WATCHDOG=1")
            self.pipeline.tick(self.feeds, now)
            for annunciator in self.annunciators:
                annunciator.beat(now)
            now = time.monotonic_ns()
            deadlines = (self.pipeline.watch.next_deadline(), self.pipeline.alarms.next_deadline())
            planned_ns = min((at for at in deadlines if at is not None), default=now + TURN_NS)
            planned_ns = min(max(planned_ns, now), now + TURN_NS)
            await asyncio.sleep((planned_ns - now) / 1e9)

    def _look(self, now: int) -> None:
        """What is done once a second: decoders see the time, every part is looked at."""
        for feed in self.feeds.values():
            self.pipeline.tick_feed(feed, now)
        self._clock_stepped(self._wall.step(time.time_ns(), now))
        self._supervision.look(now, self.annunciators, self._clock.quality() != UNSYNCHRONIZED, self.cloud)
        self.trends.sample(self.pipeline.latest, now)
        if self.risk is not None:
            self.risk.tick(now)
        self.keep()

    def _clock_stepped(self, moved_ns: int) -> None:
        """A step of the wall clock is shown until the next look, a second later, and is kept as a record."""
        if moved_ns:
            log.warning("clock stepped by_s=%.1f", moved_ns / 1e9)
            self.fault("clock_step", "wall clock", f"stepped by {moved_ns / 1e9:.1f} s")
        elif "clock_step/wall clock" in self.faults:
            self.fault("clock_step", "wall clock", "")

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
