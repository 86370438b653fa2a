"""One simulated device that sends a recording, or a simulated patient, to a gateway, and counts what became of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from drivers.sim.intellivue_monitor import CARRIED, Monitor
from drivers.sim.recorded import Row
from edge_agent.demo import frames, intellivue
from edge_agent.demo.monitor import Hl7Monitor
from edge_agent.demo.pace import paced
from edge_agent.demo.wire import PtyWire, TcpWire, Wire

# Device -> scheme -> what it does there. The other end's link stands in docs/simulate.md.
TARGETS: dict[str, dict[str, str]] = {
    "hl7": {"mllp": "dial mllp://HOST:PORT (the gateway's mllp-listen)"},
    "oximeter": {
        "pty": "make a serial line pty:///PATH (the gateway's serial:///PATH)",
        "tcp": "dial tcp://HOST:PORT (the gateway's tcp-listen)",
        "tcp-listen": "wait at tcp-listen://HOST:PORT (the gateway's tcp or socket)",
    },
    "wearable": {
        "radio": "open a virtual radio at radio://HOST:PORT (the gateway's ble://name/NAME?hci=tcp-client:HOST:PORT)"
    },
    "intellivue": {"udp": "answer at udp://HOST:PORT (the gateway's udp-dial://HOST:PORT)"},
}


LINGER_S = 1.2  # a strap that leaves the air takes with it what the radio has not passed on; a monitor its last second


class TargetError(ValueError):
    """A --to that this device cannot use; `str` says what to write."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a device sends to."""

    scheme: str
    host: str = ""
    port: int = 0
    path: Path = Path()


@dataclass(frozen=True, slots=True)
class Settings:
    """How a device sends; each device looks at its own fields."""

    speed: float = 1.0  # 0: as fast as the gateway takes it
    location: str = ""  # hl7: PV1-3; intellivue: bed label
    patient_id: str = ""  # hl7: PID-3; intellivue: its identifier
    start: datetime = field(default_factory=lambda: datetime.now().astimezone())  # hl7: device time of second 0
    format_name: str = "2"  # oximeter
    name: str = "HRM-SIM"  # wearable
    misbehaviour: str = ""  # intellivue: what goes wrong, as intellivue.parse takes it
    indicate: tuple[str, int] | None = None  # intellivue: where a free monitor announces itself
    seed: int = 1  # of the misbehaviour


@dataclass(slots=True)
class Report:
    """What was sent: one row is one moment of the recording."""

    rows: int = 0
    acknowledged: int = 0
    resent: int = 0
    connects: int = 0
    seconds: float = 0.0
    told: str = ""  # what else there is to say


def parse_target(device: str, url: str) -> Target:
    """The target in `url`. Raises: TargetError when `device` cannot send there."""
    known = "; ".join(TARGETS[device].values())
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        raise TargetError(f"{url!r}: {error}; possible: {known}") from error
    if parts.scheme not in TARGETS[device]:
        raise TargetError(f"{url!r} is no target for this device; possible: {known}")
    if parts.scheme == "pty":
        if parts.netloc or len(parts.path) < 2:
            raise TargetError(f"{url!r} names no path; write pty:///PATH with three slashes")
        return Target("pty", path=Path(parts.path))
    if not host or not port or parts.path not in ("", "/"):
        raise TargetError(f"{url!r} names no host and port; write {parts.scheme}://HOST:PORT")
    return Target(parts.scheme, host, port)


async def simulate(device: str, source: Iterable[Row], target: Target, settings: Settings, report: Report) -> None:
    """Send every row of `source`; `report` counts while it goes, so that it holds when this is cancelled.

    Raises: OSError when a port or a path cannot be used.
    """
    started = time.monotonic()
    try:
        if device == "hl7":
            await _monitor(source, target, settings, report)
        elif device == "oximeter":
            await _oximeter(source, target, settings, report)
        elif device == "intellivue":
            await _intellivue(source, target, settings, report)
        else:
            await _wearable(source, target, settings, report)
    finally:
        report.seconds = time.monotonic() - started


async def _monitor(source: Iterable[Row], target: Target, settings: Settings, report: Report) -> None:
    series = f"{uuid.uuid4().hex[:8]}-"  # a second run must not look like a repetition of the first one
    messages = frames.hl7_messages(
        source, location=settings.location, start=settings.start, series=series, patient_id=settings.patient_id
    )
    monitor = Hl7Monitor(target.host, target.port)
    try:
        async for message in paced(messages, settings.speed):
            await monitor.send(message)
            report.rows += 1
    finally:
        report.acknowledged, report.resent, report.connects = monitor.acknowledged, monitor.resent, monitor.connects
        await monitor.close()


async def _oximeter(source: Iterable[Row], target: Target, settings: Settings, report: Report) -> None:
    wire: Wire
    if target.scheme == "pty":
        wire = pty = PtyWire(target.path)
        pty.plug()
    else:
        wire = TcpWire(target.host, target.port, listen=target.scheme == "tcp-listen")
    try:
        await wire.deliver(b"")  # time starts when the gateway listens
        async for data in paced(frames.oximeter_bytes(source, settings.format_name), settings.speed):
            await wire.deliver(data)
            report.rows += 1
    finally:
        await asyncio.shield(wire.close())


async def _intellivue(source: Iterable[Row], target: Target, settings: Settings, report: Report) -> None:
    monitor = Monitor(settings.location or "BED 1", settings.patient_id, settings.start.replace(tzinfo=None))
    host = intellivue.Host(monitor, intellivue.parse(settings.misbehaviour), settings.seed)
    try:
        async with intellivue.hosted(host, target.host, target.port, settings.indicate):
            async for row in paced(((row.at_s, row) for row in source), settings.speed):
                monitor.measure({name: row.values[name] for name in row.values if name in CARRIED}, host.now_s())
                report.rows += 1
            await asyncio.sleep(LINGER_S)
    finally:
        report.connects = host.associations
        report.told = ", ".join(f"{count} {name}" for name, count in host.counts.items() if count)


async def _wearable(source: Iterable[Row], target: Target, settings: Settings, report: Report) -> None:
    from edge_agent.demo.radio import VirtualRadio, Wearable

    async with VirtualRadio(target.host, target.port) as radio:
        strap = Wearable(radio, settings.name)
        await strap.appear()
        await strap.wait_subscribed()
        async for row in paced(((row.at_s, row) for row in source), settings.speed):
            await strap.wait_subscribed()
            rate = row.values.get("heart_rate")
            await strap.notify_heart_rate(0 if rate is None else round(rate), contact=rate is not None)
            report.rows += 1
        await asyncio.sleep(LINGER_S)
