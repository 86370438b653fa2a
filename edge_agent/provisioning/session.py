"""One run of provisioning at one bed: the steps in their order, each with its result.

What the steps share is in `Session`: who is asked, what was found so far, the configuration that the bed gets, and
whether an agent runs. A step never raises for what it looks at; what it could not do is its result.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import drivers
from edge_agent import __version__
from edge_agent.buffer.clock import QUALITY_NAMES, Clock
from edge_agent.config import ConfigError, Loaded, load
from edge_agent.control import ControlClient, Refused, answers
from edge_agent.links import LinkError
from edge_agent.links.address import parse
from edge_agent.parts import Parts, source_names
from edge_agent.provisioning import comparison, detect, signals
from edge_agent.provisioning.listener import ListenError, open_listener
from edge_agent.provisioning.ports import Port, describe, ports
from edge_agent.provisioning.proposal import Conflict, Found, Proposal, propose
from edge_agent.provisioning.readings import AgentReading, Reading, SourceReading, sources_of
from edge_agent.provisioning.steps import NAMES, TITLES, Result, failed, passed, skipped
from edge_agent.provisioning.talk import Talk

SCAN_S = 8.0  # devices advertise at least every 10 s when nobody has found them, usually every second
VALUES_S = 20.0  # for the first values: HL7 monitors send every 1 to 15 s
AGE_MARGIN_S = 2.0  # between the clock of files and the start of an agent


class Finding(Protocol):
    """What a check of `edge-agent doctor` says."""

    @property
    def part(self) -> str:
        """What was looked at."""

    @property
    def state(self) -> str:
        """One of ok, warn, FAIL."""

    @property
    def detail(self) -> str:
        """What was seen."""

    @property
    def remedy(self) -> str:
        """What to do."""


Check = Callable[[Loaded], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the engineer wants done, from the command line."""

    config: Path
    bed: str
    steps: Sequence[str] = NAMES
    ports: Sequence[str] = ()  # to listen at; none: those that are found
    write: Path | None = None  # where a proposed configuration goes
    listen_s: float = detect.BUDGET_S
    values_s: float = VALUES_S
    press_s: float = signals.PRESS_S
    scan_s: float = SCAN_S
    adapter: str = ""
    hci: str = ""
    with_values: bool = False
    gateway: str = ""


@dataclass(slots=True)
class Session:
    """The run. `checks` are those of `edge-agent doctor`."""

    wanted: Wanted
    talk: Talk
    checks: Sequence[Check]
    results: list[Result] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    proposal: Proposal | None = None
    _present: Loaded | None = None

    def run(self) -> list[Result]:
        """Go through the steps; those that are not wanted are skipped. Raises: ConfigError, KeyboardInterrupt."""
        if self.wanted.config.exists():
            self._present = load(self.wanted.config)
            Parts(self._present)
        table: Mapping[str, Callable[[], Result]] = {
            "ports": self._ports,
            "protocol": self._protocol,
            "bluetooth": self._bluetooth,
            "configuration": self._configuration,
            "values": self._values,
            "signals": self._signals,
            "button": self._button,
            "checks": self._checks,
        }
        for number, name in enumerate(NAMES, 1):
            if name not in self.wanted.steps:
                self.results.append(skipped(name, "not asked for", at=now()))
                continue
            self.talk.say(f"\n{number}. {TITLES[name]}")
            began, at = time.monotonic(), now()
            result = self._guarded(name, table[name])
            self.results.append(replace(result, at=at, seconds=time.monotonic() - began))
            self.talk.say(f"   {result.outcome.upper()}: {result.seen}")
            if result.remedy:
                self.talk.say(f"   do: {result.remedy}")
        return self.results

    def close(self) -> None:
        """Leave nothing behind that was not published."""
        if self.proposal is not None:
            self.proposal.forget()

    def _guarded(self, name: str, step: Callable[[], Result]) -> Result:
        try:
            return step()
        except (ListenError, LinkError, Conflict, ConnectionError, Refused, OSError, ConfigError) as error:
            what, _, remedy = str(error).partition("\n")
            return failed(name, what, remedy.strip() or "docs/biomed.md, When something fails")

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> Loaded | None:
        """The configuration that the bed gets."""
        return self.proposal.loaded if self.proposal is not None else self._present

    def agent(self) -> Path | None:
        """The control socket of the agent that runs here with the present configuration, None when none answers."""
        if self._present is None:
            return None
        socket = self._present.resolve(self._present.config.control.socket)
        return socket if answers(socket) else None

    def devices(self) -> list[dict[str, Any]]:
        """What the bed's sources are, for the record."""
        loaded = self.loaded
        if loaded is None:
            return []
        told = []
        for index in sources_of(loaded, self.wanted.bed):
            source = loaded.config.source[index]
            device: dict[str, Any] = {"driver": source.driver, "link": source.link}
            address = parse(source.link)
            if address.scheme == "serial":
                port = describe(address.path)
                device |= {"adapter": port.adapter, "usb": f"{port.vendor}:{port.product}", "serial": port.serial}
            told.append(device)
        return told

    # -- the steps --------------------------------------------------------------------------------------------------

    def _ports(self) -> Result:
        found = [describe(path) for path in self.wanted.ports] or ports()
        for port in found:
            self.talk.say(f"   {port.said()}")
        details = {"ports": [_port(port) for port in found]}
        if not found:
            return skipped("ports", "this gateway has no serial port", mandatory=False, details=details)
        moving = [port.path for port in found if not port.stable]
        seen = f"{len(found)} found" + (f", without a name that stays: {', '.join(moving)}" if moving else "")
        return passed("ports", seen, details=details)

    def _protocol(self) -> Result:
        chosen = self._chosen_port()
        if not chosen:
            return self._configured("protocol")
        driver = self.talk.text("", "driver") if self.talk.scripted else ""
        if driver and driver not in drivers.names():
            return failed("protocol", f"no driver {driver!r}", f"known drivers: {', '.join(drivers.names())}")
        address = parse(chosen if "://" in chosen else f"serial://{chosen}")
        self.talk.say(f"   Listening at {chosen}, up to {self.wanted.listen_s:g} s; nothing is sent ...")
        listener = open_listener(address)
        try:
            found = detect.Search(
                listener, detect.serial_drivers(), now_ns=time.monotonic_ns, budget_s=self.wanted.listen_s,
                only=detect.told_line(address),
            ).run()  # fmt: skip
        finally:
            listener.close()
        for tried in found.tried:
            self.talk.say(f"   {tried.said()}")
        details = {"port": chosen, "state": found.state, "tried": [each.said() for each in found.tried]}
        if found.state != "found":
            return failed(
                "protocol", f"{chosen}: {found.reason}",
                "check cable, levels and the monitor's output setting; docs/biomed.md, When something fails",
                details=details,
            )  # fmt: skip
        if driver and driver != found.drivers[0]:
            return failed(
                "protocol", f"{chosen} is {found.reason}, expected was {driver}",
                "is this the right port, and the right monitor?", details=details,
            )  # fmt: skip
        link = detect.source_link(address, found.line)
        self.found.append(Found(found.drivers[0], link))
        return passed("protocol", f"{chosen}: {found.reason}", details={**details, "link": link})

    def _chosen_port(self) -> str:
        """The port to listen at: the one that was named, or that the engineer chooses; empty for none."""
        if len(self.wanted.ports) == 1:
            return self.wanted.ports[0]
        known = list(self.wanted.ports) or [port.path for port in ports()]
        if self.agent() is not None and self._present is not None and not self.wanted.ports:
            held = {
                str(Path(parse(each.link).path).resolve())
                for each in self._present.config.source
                if each.link.startswith("serial:")
            }
            known = [path for path in known if str(Path(path).resolve()) not in held]
            if not known and not self.talk.scripted:
                return ""
        if not known and not self.talk.scripted:
            return ""
        return self.talk.choose("   Which port is the monitor on?", known, "port")

    def _configured(self, step: str) -> Result:
        """Nothing new to listen at: the sources that the configuration has already must be there."""
        present = self._present
        indexes = [] if present is None else sources_of(present, self.wanted.bed)
        if present is None or not indexes:
            return skipped(
                step, "no port was chosen, and the configuration has no source for this bed", mandatory=False
            )
        links = [present.config.source[index].link for index in indexes]
        return skipped(step, f"the configuration has {', '.join(links)}; step values tries it", mandatory=False)

    def _bluetooth(self) -> Result:
        wish = self.talk.text("", "bluetooth") if self.talk.scripted else ""
        if self.talk.scripted and not wish:
            return skipped("bluetooth", "no Bluetooth device is wanted", mandatory=False)
        if not wish and not self.talk.yes("   Is a Bluetooth device used at this bed?"):
            return skipped("bluetooth", "no Bluetooth device is used at this bed", mandatory=False)
        from edge_agent.links import ble

        self.talk.say(f"   Looking for {self.wanted.scan_s:g} s ...")
        scanned = asyncio.run(ble.scan(self.wanted.scan_s, adapter=self.wanted.adapter, hci=self.wanted.hci))
        fits = {each.address: _fitting(each.services) for each in scanned}
        lines = [
            f"{each.address}  {each.name or '(no name)'}  {each.rssi} dBm  services {', '.join(each.services) or '-'}"
            f"  driver {fits[each.address] or 'none fits'}"
            for each in scanned
        ]
        for line in lines:
            self.talk.say(f"   {line}")
        details = {"heard": len(scanned)}  # what else is on the air is nobody's business
        if not wish:
            usable = [each.address for each in scanned if fits[each.address]]
            wish = self.talk.choose("   Which one is the device?", usable, "bluetooth") if usable else ""
        device = next((each for each in scanned if wish in (each.address, each.name)), None)
        remedy = "is it on, near, and not connected to something else?"
        if device is None:
            return failed("bluetooth", f"{wish or 'no device'} was not heard", remedy, details=details)
        driver = fits[device.address]
        if not driver:
            return failed(
                "bluetooth", f"no driver fits {device.name or device.address}",
                "docs/drivers.md lists the services that are understood", details=details,
            )  # fmt: skip
        suffix = f"?hci={self.wanted.hci}" if self.wanted.hci else ""
        suffix = suffix or (f"?adapter={self.wanted.adapter}" if self.wanted.adapter else "")
        known = [] if self._present is None else [parse(source.link) for source in self._present.config.source]
        by_name = next((each.url for each in known if each.scheme == "ble" and each.path == device.name), "")
        self.found.append(Found(driver, by_name or f"ble://{device.address}{suffix}"))
        return passed("bluetooth", f"{device.address} {device.name}: {driver}", details=details)

    def _configuration(self) -> Result:
        target = self.wanted.write or self.wanted.config
        said = {key: self.talk.text("", key) if self.talk.scripted else "" for key in ("location", "preset", "gateway")}
        self.proposal = proposal = propose(
            self.wanted.config if self._present is not None else None, self.wanted.write, self.wanted.bed, self.found,
            gateway=self.wanted.gateway or said["gateway"], location=said["location"], preset=said["preset"],
        )  # fmt: skip
        config = proposal.loaded.config
        details = {"file": str(target), "sha256": proposal.sha256, "added": len(proposal.added)}
        for table in proposal.added:
            for line in table.strip().splitlines():
                self.talk.say(f"   + {line}")
        if not sources_of(proposal.loaded, self.wanted.bed):
            return failed(
                "configuration", f"bed {self.wanted.bed} has no source",
                "choose a serial port or a Bluetooth device, or add [[source]]; docs/configuration.md", details=details,
            )  # fmt: skip
        if proposal.added and self.wanted.write is None:
            return failed(
                "configuration", f"{target} lacks {len(proposal.added)} table(s), shown above",
                "run again with --write FILE, or add them and run again", details=details,
            )  # fmt: skip
        if "values" in self.wanted.steps:  # else nothing is accepted, and the proposal may be for later
            stale = self._stale(proposal)
            if stale:
                return failed("configuration", stale, "restart the agent with it, then run again", details=details)
        what = f"{len(proposal.added)} table(s) added" if proposal.added else "as it is"
        seen = f"gateway {config.gateway.id}, {target} {what}, valid, SHA-256 {proposal.sha256[:12]}..."
        return passed("configuration", seen, details=details)

    def _stale(self, proposal: Proposal) -> str:
        """Why the running agent does not run this configuration, empty when it does."""
        socket = self.agent()
        if socket is None:
            return ""
        if proposal.added:
            return "the running agent does not have the proposed configuration"
        with ControlClient(socket) as client:
            status = client.call("status")["status"]
        if status["version"] != __version__:
            return f"the running agent is version {status['version']}, this is {__version__}"
        started = time.time() - status["uptime_s"]
        if self.wanted.config.stat().st_mtime > started + AGE_MARGIN_S:
            return f"{self.wanted.config} was changed after the running agent was started"
        return ""

    def _values(self) -> Result:
        loaded = self.loaded
        if loaded is None or not sources_of(loaded, self.wanted.bed):
            return failed("values", "there is no source to read", "put the steps before this one right")
        if self.proposal is not None and self.proposal.added and self.agent() is not None:
            return failed(
                "values", "the running agent does not have the proposed source", "restart it with it, then run again"
            )
        reading = self._reading(loaded)
        try:
            result = comparison.beside_the_screen(reading, self.talk, self.wanted.values_s, self.wanted.with_values)
        finally:
            reading.stop()
        by = "the running agent" if isinstance(reading, AgentReading) else "provisioning"
        return replace(result, details={**result.details, "by": by})

    def _reading(self, loaded: Loaded) -> Reading:
        socket = self.agent()
        if socket is not None:
            named = zip(source_names(loaded.config), loaded.config.source, strict=True)
            own = {name for name, source in named if source.bed == self.wanted.bed}
            return AgentReading(socket, self.wanted.bed, own, time.monotonic)
        return SourceReading(Parts(loaded), self.wanted.bed, sources_of(loaded, self.wanted.bed), time.monotonic)

    def _signals(self) -> Result:
        loaded = self.loaded
        if loaded is None:
            return failed("signals", "there is no configuration", "put the steps before this one right")
        return signals.test_signals(loaded, self.wanted.bed, self.talk, self.agent())

    def _button(self) -> Result:
        loaded = self.loaded
        if loaded is None:
            return failed("button", "there is no configuration", "put the steps before this one right")
        return signals.test_button(loaded, self.wanted.bed, self.talk, self.agent(), self.wanted.press_s)

    def _checks(self) -> Result:
        loaded = self.loaded
        if loaded is None:
            return failed("checks", "there is no configuration", "put the steps before this one right")
        findings: list[Finding] = [finding for check in self.checks for finding in check(loaded)]
        for each in findings:
            self.talk.say(f"   [{each.state:4}] {each.part}: {each.detail}")
            if each.remedy and each.state != "ok":
                self.talk.say(f"          do: {each.remedy}")
        details = {
            "clock": clock_quality(),
            "findings": [{"part": each.part, "state": each.state, "detail": each.detail} for each in findings],
        }
        bad = [each for each in findings if each.state == "FAIL"]
        if bad:
            text = "; ".join(f"{each.part}: {each.detail}" for each in bad)
            return failed("checks", text, bad[0].remedy or "edge-agent doctor says what to do", details=details)
        warnings = sorted({each.part for each in findings if each.state == "warn"})
        told = f", warnings: {', '.join(warnings)}" if warnings else ""
        return passed("checks", f"{len(findings)} checks, none failed{told}", details=details)


def clock_quality() -> str:
    """How far UTC can be believed: synchronized, unsynchronized or unknown."""
    return QUALITY_NAMES[Clock().quality()]


def now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _port(port: Port) -> dict[str, Any]:
    usb = f"{port.vendor}:{port.product}" if port.vendor else ""
    return {"path": port.path, "adapter": port.adapter, "usb": usb, "serial": port.serial, "stable": port.stable}


def _fitting(services: Sequence[str]) -> str:
    """The driver for a device that advertises these services, empty when none fits."""
    for name in drivers.names():
        try:
            driver = drivers.load(name)
        except (ImportError, TypeError, KeyError):
            continue  # `edge-agent drivers` tells of it
        if "ble" in driver.links and not set(driver.services).isdisjoint(services):
            return name
    return ""


@contextmanager
def undisturbed() -> Iterator[None]:
    """SIGTERM, and a terminal that hangs up, end the run as Ctrl-C does: outputs are put off on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only a program's main thread may say what a signal does
        return

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
