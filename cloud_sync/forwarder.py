"""The forwarder: every way out of the buffer (`cloud_sync.way`), the status file and the gateway's own report."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cloud_sync.encode import Encoder
from cloud_sync.sinks import Fatal, Message, Retry, Sink
from cloud_sync.way import AT_LEAST_ONCE, PACES, Progress, Stream, Way, one_line
from edge_agent import __version__
from edge_agent.buffer import ALERT_MANAGER, MQTT, REST, KeyProblem, Marks, Reader, receiver_mark
from edge_agent.notifier import Notifier

LOG = logging.getLogger("cloud_sync")

STREAMS = ("alerts", "data")
STATUS_FILE = "status.json"
REPORT_S = 10.0  # between two gateway status messages
_Backlog = tuple[int | None, float | None]  # records, age of the oldest in seconds; None: unknown, none


class Busy(Exception):
    """Another forwarder already works on this data folder."""


class Forwarder:
    """Every way, the status file and the gateway's report; one at a time for each data folder."""

    def __init__(
        self,
        data_dir: Path,
        gateway: str,
        open_reader: Callable[[], Reader],
        open_sink: Callable[[str], Sink] | None,
        agent_socket: Path,
        alert_manager: Way | None = None,
        make_encoder: Callable[[], Encoder] | None = None,
        others: Sequence[Way] = (),
        open_lesser: Callable[[str], Sink] | None = None,
    ) -> None:
        """`open_sink` opens Kafka for a stream; None, like `alert_manager`, when it is not configured.

        `others` are the ways to MQTT and REST, two each. At least one way must be given.

        `make_encoder` makes one for each thread; None: JSON without patients' identifiers.

        `open_lesser` opens Kafka without transactions, for a cluster that refuses them.

        Raises: Busy when another process forwards this folder; OSError when the folder cannot be written.
        """
        self._folder = data_dir / "cloud-sync"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _claim(self._folder / "lock")
        self._open_reader, self._agent_socket = open_reader, agent_socket
        make_encoder = make_encoder or (lambda: Encoder(gateway))
        self._encoder = make_encoder()
        self._gateway = gateway
        self._started = time.monotonic()
        self._run_id = f"cloud-sync-{uuid.uuid4().hex}"
        self._reports = 0
        self._due: dict[str, Message] = {}  # the report for each way of the data
        self._reader: Reader | None = None
        self._failure: BaseException | None = None
        self.stop = threading.Event()
        marks = Marks(data_dir, on_fault=lambda kind, detail: LOG.error("event=%r detail=%r", kind, detail))
        ways = [] if alert_manager is None else [alert_manager]
        if open_sink is not None:
            ways += [
                Way(
                    name,
                    name,
                    make_encoder(),
                    partial(open_sink, name),
                    open_lesser=None if open_lesser is None else partial(open_lesser, name),
                )
                for name in STREAMS
            ]
        ways += others
        self._ways = ways
        self.streams = [
            Stream(
                way,
                open_reader,
                marks,
                self.stop,
                PACES[way.name],
                partial(self._due.pop, way.name, None)
                if way.source == "data"
                else lambda: None,  # never in the way of an alert
                self._folder / f"{way.name}.guarantee" if way.name in STREAMS else None,
            )
            for way in ways
        ]

    def run(self) -> None:
        """Forward until `stop` is set. Raises: what a stream's thread died of, because a silent one would look well."""
        threads = [threading.Thread(target=self._guard, args=(stream,), name=stream.name) for stream in self.streams]
        for thread in threads:
            thread.start()
        notifier = Notifier()
        notifier.send("READY=1")
        next_report = time.monotonic()
        try:
            while not self.stop.is_set():
                status = self.status()
                if time.monotonic() >= next_report:
                    next_report = time.monotonic() + REPORT_S
                    report = self._compose(status)
                    if report is not None:
                        self._due.update({way.name: report for way in self._ways if way.source == "data"})
                self._write(status)
                notifier.send("WATCHDOG=1")
                self.stop.wait(1.0)
        finally:
            self.stop.set()
            notifier.send("STOPPING=1")
            notifier.close()
            for thread in threads:
                thread.join()
            self._write({**self.status(), "state": "stopped", "detail": "stopped"})
            os.close(self._lock)
        if self._failure is not None:
            raise self._failure

    def status(self) -> dict[str, Any]:
        """The state that the status file holds."""
        progress = {stream.name: stream.progress for stream in self.streams}
        worst = max(progress, key=lambda name: ("connected", "waiting", "fatal").index(progress[name].state))
        detail = progress[worst].detail
        if detail and worst not in STREAMS:
            detail = f"{'alert manager' if worst == ALERT_MANAGER else worst.partition('_')[0]} {detail}"
        backlog, trouble = self._backlog()
        records, oldest_s = self._undelivered(backlog)
        last = max(item.last_delivery_ns for item in progress.values())
        kafka = {name: item for name, item in progress.items() if name in STREAMS}
        out: dict[str, Any] = {
            "state": progress[worst].state,
            "detail": detail or next((p.buffer_fault for p in progress.values() if p.buffer_fault), trouble),
            "error": next((item.error for item in progress.values() if item.error), ""),
            "streams": {
                name: {"state": item.state, "detail": item.detail, "guarantee": item.guarantee}
                for name, item in progress.items()
            },
            "forwarded": {name: item.forwarded for name, item in kafka.items()},
            "dropped": {name: item.dropped for name, item in kafka.items()},
            "last_drop": next((item.last_drop for item in kafka.values() if item.last_drop), ""),
            "backlog_records": records,
            "backlog_oldest_s": oldest_s,
            "last_delivery_utc": self._utc(last),
            "guarantee": _least(item.guarantee for item in kafka.values()) if kafka else AT_LEAST_ONCE,
            "guarantee_detail": next((item.refused for item in kafka.values() if item.refused), ""),
            "identifiers": self._encoder.identifiers,
            "gateway": self._gateway,
            "pid": os.getpid(),
            "utc": self._encoder.utc(time.time_ns()),
            "uptime_s": round(time.monotonic() - self._started, 1),
        }
        if ALERT_MANAGER in progress:
            item = progress[ALERT_MANAGER]
            records, oldest_s = backlog.get(ALERT_MANAGER, (None, None))
            out[ALERT_MANAGER] = {
                "state": item.state,
                "detail": item.detail,
                "sent": item.forwarded,
                "refused": item.dropped,
                "last_refused": item.last_drop,
                "last_delivery_utc": self._utc(item.last_delivery_ns),
                "backlog_records": records,
                "backlog_oldest_s": oldest_s,
            }
        for receiver in (MQTT, REST):
            ways = {name: progress[mark] for name in STREAMS if (mark := receiver_mark(receiver, name)) in progress}
            if ways:
                out[receiver] = self._receiver(ways, [backlog.get(receiver_mark(receiver, name)) for name in ways])
        return out

    def _receiver(self, ways: dict[str, Progress], backlog: list[_Backlog | None]) -> dict[str, Any]:
        """What the state file says of MQTT or REST."""
        worst = max(ways.values(), key=lambda item: ("connected", "waiting", "fatal").index(item.state))
        records = [None if known is None else known[0] for known in backlog]
        return {
            "state": worst.state,
            "detail": worst.detail or next((item.detail for item in ways.values() if item.detail), ""),
            "forwarded": {name: item.forwarded for name, item in ways.items()},
            "dropped": {name: item.dropped for name, item in ways.items()},
            "last_drop": next((item.last_drop for item in ways.values() if item.last_drop), ""),
            "last_delivery_utc": self._utc(max(item.last_delivery_ns for item in ways.values())),
            "backlog_records": None if None in records else sum(count or 0 for count in records),
            "guarantee": "at least once",
        }

    def _utc(self, utc_ns: int) -> str | None:
        return self._encoder.utc(utc_ns) if utc_ns else None

    def _guard(self, stream: Stream) -> None:
        try:
            stream.run()
        except BaseException as error:
            self._failure = error
            self.stop.set()

    def _backlog(self) -> tuple[dict[str, _Backlog], str]:
        """For each way the records not settled and the oldest one's age in seconds; and why they cannot be counted."""
        out: dict[str, _Backlog] = {}
        fault = ""
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            for stream in self.streams:
                source, settled = stream.way.source, stream.progress.settled
                found = self._reader.stats({source: settled})[source]
                first = self._reader.read(source, settled, 1) if found["records"] else ()
                ages = [max(0.0, round((time.time_ns() - block.committed_ns) / 1e9, 1)) for block in first]
                out[stream.name] = (None if "fault" in found else found["records"], max(ages, default=None))
                fault = fault or found.get("fault", "")
        except (Retry, Fatal, KeyProblem) as error:
            return {}, one_line(error)
        return out, fault

    def _undelivered(self, backlog: dict[str, _Backlog]) -> _Backlog:
        """What no receiver, or not every receiver, has yet: of each file the longest backlog counts."""
        records = dict.fromkeys((stream.way.source for stream in self.streams), 0)
        for stream in self.streams:
            count = backlog.get(stream.name, (None, None))[0]
            if count is None:
                return None, None
            records[stream.way.source] = max(records[stream.way.source], count)
        return sum(records.values()), max((age for _, age in backlog.values() if age is not None), default=None)

    def _compose(self, status: dict[str, Any]) -> Message | None:
        self._reports += 1
        facts = {
            "state": status["state"],
            "detail": status["detail"],
            "agent_listening": _listens(self._agent_socket),
            **{key: status[key] for key in ("backlog_records", "backlog_oldest_s", "forwarded", "dropped")},
            "version": __version__,
            "uptime_s": status["uptime_s"],
            "clock_quality": self.streams[-1].progress.clock_quality,  # of the data, when Kafka gets them
        }
        return self._encoder.gateway_status(self._run_id, self._reports, time.time_ns(), time.monotonic_ns(), facts)

    def _write(self, status: dict[str, Any]) -> None:
        path = self._folder / STATUS_FILE
        fresh = path.with_suffix(".new")
        with suppress(OSError):  # a full or failing disk must not end the forwarding that may empty it
            fresh.write_bytes(msgspec.json.encode(status))
            fresh.replace(path)


def _least(guarantees: Iterable[str]) -> str:
    return AT_LEAST_ONCE if AT_LEAST_ONCE in (found := set(guarantees)) else next(iter(found))


def _claim(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Busy(f"{path} is held by another cloud-sync") from error
    return descriptor


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
