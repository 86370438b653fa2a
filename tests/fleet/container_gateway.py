"""The product on a booted container, put there by hand; the installer has tests of its own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent import __version__
from tests.fleet import emulated_gateway, image
from tests.fleet.machine import Machine

UNITS = ("edge-agent.service", "cloud-sync.service", "edge-agent-last-gasp.service", "bedside-edge-clock.service")
BIN = "/opt/bedside-edge/current/.venv/bin"
CONFIG = "/etc/edge-agent/edge-agent.toml"
DATA = "/var/lib/edge-agent"
EDGES = f"{DATA}/edges.jsonl"
HEAD = f"""\
[gateway]
id = "gw"
data_dir = "{DATA}"
[buffer]
key = "credential:edge-agent.kek"
[[bed]]
id = "ICU-3"
[[source]]
driver = "sim"
link = "sim://"
bed = "ICU-3"
[[annunciator]]
kind = "record"
path = "{EDGES}"
[cloud.kafka]
bootstrap = "127.0.0.1:1"
security = "plaintext"
"""


class Gateway:
    """The product on a machine, and what the tests look at and wait for."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run

    def configure(self, text: str = HEAD) -> None:
        """Gives it this configuration; nothing is restarted."""
        self.run(f"cat > {CONFIG} && chgrp bedside-edge {CONFIG} && chmod 0640 {CONFIG}", stdin=text)

    def show(self, unit: str, *properties: str) -> list[str]:
        """Properties of a unit, in the order asked for."""
        told = self.run(f"systemctl show {unit} " + " ".join(f"-p {name}" for name in properties)).stdout
        found = dict(line.split("=", 1) for line in told.splitlines())
        return [found[name] for name in properties]

    def pid(self, unit: str = "edge-agent") -> int:
        """Main process of a unit as the machine counts, 0 when it has none."""
        return int(self.show(unit, "MainPID")[0])

    def status(self) -> dict[str, Any]:
        """The running agent's status."""
        done = self.run(f"{BIN}/edge-agent status --socket /run/edge-agent/control.sock --json")
        return dict(json.loads(done.stdout))

    def edges(self, condition: str) -> list[dict[str, Any]]:
        """What the recorded annunciator was switched for this condition."""
        path = self.machine.path(EDGES)
        lines = path.read_text().splitlines() if path.exists() else []
        return [edge for edge in map(json.loads, lines) if edge["condition"] == condition]

    def loud(self) -> bool:
        """Whether the last gasp holds the outputs: what it switched last is on."""
        last = {edge["output"]: edge["on"] for edge in self.edges("agent_down")}
        return last.get("yellow", False) and last.get("cyan", False)  # the steady ones

    def until(self, condition: Callable[[], object], what: str, seconds: float = 20) -> float:
        """Seconds until the condition held; AssertionError with the journal's end when it never does."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                journal = self.run(f"journalctl --no-pager -n 60 {' '.join(f'-u {unit}' for unit in UNITS)}").stdout
                raise AssertionError(f"{what} did not come within {seconds:.0f} s\n{journal}")
            time.sleep(0.02)
        return time.monotonic() - began

    def fresh(self, text: str = HEAD) -> None:
        """Everything stopped, no recorded edges, this configuration, everything started."""
        self.run("systemctl stop bedside-edge.target edge-agent cloud-sync; systemctl stop edge-agent-last-gasp")
        self.run("systemctl reset-failed", check=False)
        self.configure(text)
        self.run(f"rm -f {EDGES}; systemctl start bedside-edge.target edge-agent")


def install(machine: Machine) -> Gateway:
    """Puts release, units, users, folders and a key where a gateway has them, and enables the target.

    The environment without the project lies under the machine's disk already.
    """
    root = machine.path("/")
    release = root / emulated_gateway.RELEASE
    shutil.copytree(emulated_gateway.UNITS, release / "systemd")
    wheel = image.project_wheel()
    shutil.copy2(wheel, root / "var/tmp")
    venv = f"/{emulated_gateway.RELEASE}/.venv"
    machine.run(f"{venv}/bin/pip install -q --no-index --no-deps /var/tmp/{wheel.name} && {venv}/bin/python -m"
                f" compileall -q {venv}/lib/python3*/site-packages/edge_agent", timeout=300)  # fmt: skip
    (root / "opt/bedside-edge/current").symlink_to(f"releases/{__version__}")
    source = "/opt/bedside-edge/current/systemd"
    machine.run(
        f"cd {source} && cp *.service *.target /etc/systemd/system/ && cp udev/* /etc/udev/rules.d/ &&"
        " for one in sysusers.d tmpfiles.d modules-load.d; do mkdir -p /etc/$one && cp $one/* /etc/$one/; done &&"
        " systemd-sysusers && systemd-tmpfiles --create bedside-edge.conf && mkdir -p /etc/edge-agent"
        " /etc/credstore.encrypted && chmod 0700 /etc/credstore.encrypted &&"
        " head -c 32 /dev/urandom | systemd-creds encrypt --name=edge-agent.kek -"
        " /etc/credstore.encrypted/edge-agent.kek && systemctl daemon-reload &&"
        " systemctl -q enable bedside-edge.target edge-agent cloud-sync"
    )
    gateway = Gateway(machine)
    gateway.configure()
    return gateway


@contextmanager
def booted(folder: Path) -> Iterator[Gateway]:
    """A container that has the product on it."""
    with Machine(folder, over=(emulated_gateway.environment(),)) as machine:
        yield install(machine)
