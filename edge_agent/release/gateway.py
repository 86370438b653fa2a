"""A gateway as the installer sees it: its folders, its services, and the agent's answers on the control socket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

AGENT, FORWARDER, TARGET = "edge-agent.service", "cloud-sync.service", "bedside-edge.target"
BESIDE = (FORWARDER, "bedside-edge-clock.service")  # restarted with the agent where they run
SETTLED_S = 5.0  # the watchdog, the outputs' loop-back and supervision have all spoken once by then
REPLY_S = 5.0
# Technical conditions of the gateway that a release can be the cause of; a cable or a network is not one of them.
OWN_FAULTS = frozenset(
    {"log_fault", "driver_fault", "alarm_loop_late", "disk_fault", "buffer_quarantined", "key_missing",
     "annunciator_fault", "control_fault", "model_fault", "button_fault"}
)  # fmt: skip
UNITS = (".service", ".target", ".timer", ".socket", ".path", ".slice", ".mount")


class Folders:
    """Where everything lies on a gateway, or below `root` in an image that is being made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / "opt/bedside-edge"
        self.releases = self.base / "releases"
        self.current, self.previous = self.base / "current", self.base / "previous"
        self.note = self.base / "update.json"
        self.installer = self.base / "installer.pyz"
        self.etc = root / "etc"
        self.config = self.etc / "edge-agent/edge-agent.toml"
        self.trusted = self.etc / "edge-agent/trusted"

    def version(self, link: Path) -> str:
        """The release that `current` or `previous` names, empty when there is none."""
        try:
            name = os.path.basename(os.readlink(link))
        except OSError:
            return ""
        return name if (self.releases / name / "manifest.json").is_file() else ""

    def system(self) -> dict[str, str]:
        """The keys of os-release."""
        for name in ("etc/os-release", "usr/lib/os-release"):
            with contextlib.suppress(OSError):
                lines = (self.root / name).read_text().splitlines()
                return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
        return {}

    def place(self, name: str) -> Path | None:
        """Where a file of a release's systemd/ belongs, None for one that belongs nowhere."""
        folder, _, last = name.rpartition("/")
        if name.endswith(".rules"):
            return self.etc / "udev/rules.d" / last
        if folder in ("tmpfiles.d", "sysusers.d", "modules-load.d"):
            return self.etc / name
        if folder.endswith(".d") and folder.removesuffix(".d").endswith(UNITS):
            return self.etc / "systemd/system" / name
        return self.etc / "systemd/system" / last if last.endswith(UNITS) else None


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put a file in the place of another one in one step, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        out.write(content)
        out.flush()
        os.fsync(descriptor)
    partial.rename(path)
    sync(path.parent)


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` in one step, on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Services:
    """systemd on a running gateway; the one place that calls it."""

    live = True

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=120, check=False)

    def reload(self) -> None:
        """Let systemd, udev, sysusers and tmpfiles see what has changed."""
        name = "bedside-edge.conf"
        for command in (
            ["systemd-sysusers", name], ["systemd-tmpfiles", "--create", name], ["systemctl", "daemon-reload"],
            ["udevadm", "control", "--reload"],
        ):  # fmt: skip
            if shutil.which(command[0]):
                subprocess.run(command, capture_output=True, timeout=60, check=False)

    def enable(self) -> None:
        """Start the gateway's services at every boot from now on."""
        self._ask("enable", TARGET, AGENT, FORWARDER)

    def restart(self, *, first: bool) -> None:
        """Ask for a restart of the agent, then of what runs beside it; for the `first` time for all of the gateway."""
        self._ask("reset-failed", AGENT, *BESIDE)
        self._ask("--no-block", "restart", AGENT)
        if first:
            self._ask("--no-block", "start", TARGET)
        self._ask("--no-block", "try-restart", *BESIDE)

    def show(self, unit: str) -> dict[str, str]:
        """What systemd says of a unit."""
        keys = "ActiveState,SubState,NRestarts,Result,ActiveEnterTimestampMonotonic,ActiveExitTimestampMonotonic"
        lines = self._ask("show", unit, f"--property={keys}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def active(self, unit: str) -> bool:
        """Whether a unit runs now."""
        return self.show(unit).get("ActiveState") == "active"


class NoServices(Services):
    """An image that is being made: nothing runs there."""

    live = False

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, "", "")

    def reload(self) -> None:
        """Nothing runs that could see it."""


class Refused(Exception):
    """The agent's own words for not doing what was asked."""


def ask(path: Path, op: str, **request: Any) -> dict[str, Any]:
    """The agent's reply to one request. Raises: OSError or ValueError when none comes, Refused when it will not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REPLY_S)
        connection.connect(str(path))
        connection.sendall(json.dumps({"op": op, **request}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            reply: dict[str, Any] = json.loads(lines.readline())
    if not reply.get("ok"):
        raise Refused(str(reply.get("error", "no reason given")))
    return reply


def own_faults(status: Mapping[str, Any]) -> set[str]:
    """The faults that a release can be the cause of."""
    return {alarm["condition"] for alarm in status.get("gateway_alarms", ())} & OWN_FAULTS


def health(
    services: Services, path: Path, version: str, known: set[str] | None, health_s: float, forwarder: bool,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> str:  # fmt: skip
    """Why the release is not well, empty as soon as it has been well for SETTLED_S seconds.

    `known` are the faults of the release before it, which are nobody's; None, and none counts, when it did not answer.
    """
    end, since = clock() + health_s, None
    while True:
        why = _unwell(services, path, version, known, forwarder)
        now = clock()
        if not why:
            since = now if since is None else since
            if now - since >= min(SETTLED_S, health_s):
                return ""
        else:
            since = None
        state = services.show(AGENT)
        if int(state.get("NRestarts") or 0) or state.get("ActiveState") == "failed":
            return f"{AGENT} ended by itself ({state.get('Result')}): journalctl -u {AGENT}"
        if since is None and now >= end:
            return why
        sleep(0.1)


def _unwell(services: Services, path: Path, version: str, known: set[str] | None, forwarder: bool) -> str:
    try:
        status = ask(path, "status")["status"]
    except (OSError, ValueError, Refused) as error:
        return f"the agent does not answer on {path}: {error}"
    if status["version"] != version:
        return f"version {status['version']} answers"
    if known is not None and (new := own_faults(status) - known):
        return f"a fault that was not there before: {', '.join(sorted(new))}"
    if forwarder and not services.active(FORWARDER):
        return f"{FORWARDER} does not run: journalctl -u {FORWARDER}"
    return ""
