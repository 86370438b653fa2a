"""A gateway that releases are installed on: signed bundles, a booted machine, a monitor that never stops sending."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gateway import PRESET
from bench.messages import START, frame
from tests.fleet.machine import Machine

BASE = "/opt/bedside-edge"
CONFIG = "/etc/edge-agent/edge-agent.toml"
KEY = "/etc/credstore.encrypted/edge-agent.kek"
REFUSED = "# as the release before wanted it"
PORT = 2575
CONFIGURATION = f"""\
[gateway]
id = "gw"
data_dir = "/var/lib/edge-agent"
presets = ["immediate.toml"]
[buffer]
key = "credential:edge-agent.kek"
[[bed]]
id = "ICU-3"
preset = "immediate"
location = "ICU^^3"
[[source]]
name = "monitor"
driver = "hl7"
link = "mllp-listen://0.0.0.0:{PORT}"
[[annunciator]]
kind = "record"
path = "/var/lib/edge-agent/edges.jsonl"
[cloud.kafka]
bootstrap = "127.0.0.1:1"
security = "plaintext"
"""


def unwell(tree: Path) -> None:
    """A release that refuses one configuration, accepts all others, and whose agent dies a moment after its start."""
    path = tree / "edge_agent/commands/run.py"
    text = path.read_text()
    for before, after in (
        ("    parts = Parts(load(arguments.config))\n", '    raise SystemExit("an error in this release")\n'),
        (
            '    """Say what the configuration would run; a ConfigError ends in exit code 78."""\n',
            f"    if {REFUSED!r} in arguments.file.read_text():\n"
            "        print(f'{arguments.file}:1: this key has gone; use the other one', file=sys.stderr)\n"
            "        return 78\n",
        ),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    path.write_text(text)


class Gateway:
    """A machine with bundles on it, and what the tests ask of its installer and its agent."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.run = machine, machine.run

    def bring(self, bundle: Path) -> str:
        """Puts a bundle, its signature and the installer on the machine; the bundle's path there."""
        for path in (bundle, bundle.with_name(bundle.name + ".sig"), bundle.parent / "installer.pyz"):
            self.machine.put(path, f"/root/{path.name}")
        trusted = self.machine.path("/etc/edge-agent/trusted")
        trusted.mkdir(parents=True, exist_ok=True)
        (trusted / "release.pub").write_bytes((bundle.parent / "release.pub").read_bytes())
        return f"/root/{bundle.name}"

    def install(self, bundle: str, *words: str) -> subprocess.CompletedProcess[str]:
        """One run of the installer, as a person starts it on any machine."""
        return self.run(f"python3 /root/installer.pyz install {bundle} {' '.join(words)}", check=False, timeout=300)

    def configure(self, text: str = CONFIGURATION) -> None:
        """A key, as `systemd-creds` keeps it, and the configuration."""
        self.run(
            f"test -e {KEY} || (install -d -m 0700 {Path(KEY).parent} && head -c 32 /dev/urandom |"
            f" systemd-creds encrypt --name=edge-agent.kek - {KEY})"
        )
        self.run(f"cat > {Path(CONFIG).parent}/immediate.toml", stdin=PRESET)
        self.run(f"cat > {CONFIG} && chgrp bedside-edge {CONFIG} && chmod 0640 {CONFIG}", stdin=text)

    def release(self, words: str) -> str:
        """What a command of the installed release printed."""
        return self.run(f"{BASE}/current/.venv/bin/edge-agent {words}").stdout

    def state(self) -> dict[str, Any]:
        """What `release status` tells."""
        return dict(json.loads(self.release("release status --json")))

    def running(self) -> str:
        """Version of the agent that answers, empty when none does."""
        done = self.run(f"{BASE}/current/.venv/bin/edge-agent status --json", check=False)
        return str(json.loads(done.stdout)["version"]) if done.returncode == 0 else ""

    def pid(self) -> int:
        """The agent's process, 0 when it does not run."""
        return int(self.run("systemctl show edge-agent -p MainPID --value").stdout)

    def files(self) -> str:
        """What an installation might change, in one line each: releases, links, units, what enables them."""
        return self.run(
            f"cd / && find {BASE} /etc/systemd /etc/udev /etc/tmpfiles.d /etc/sysusers.d -path '*/.venv' -prune -o"
            " ! -name .lock -printf '%p %y %m %T@ %s %l\\n' | grep -v ' d ' | sort"
        ).stdout

    def keyed(self, words: str) -> str:
        """What a command of the installed release printed that needs the key, as the agent has it."""
        return self.run(
            f"mkdir -p /run/kek && systemd-creds decrypt --name=edge-agent.kek {KEY} /run/kek/edge-agent.kek &&"
            f" CREDENTIALS_DIRECTORY=/run/kek {BASE}/current/.venv/bin/edge-agent {words}"
        ).stdout

    def kept(self) -> set[int]:
        """Numbers of the monitor's messages that are in the sealed buffer, by the device's time in them."""
        told = self.keyed(f"buffer export --config {CONFIG} --kind observation")
        return {
            round((_device_time(record) - START).total_seconds())
            for record in map(json.loads, told.splitlines())
            if '"spo2"' in json.dumps(record)
        }


def _device_time(record: dict[str, Any]) -> datetime:
    found = record.get("device_time") or record["record"]["device_time"]
    return datetime.strptime(re.sub(r"\D", "", found)[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)


class Monitor:
    """Sends a message every 50 ms over one connection, dials again when it breaks, and keeps what was acknowledged."""

    def __init__(self, address: str, spo2: float = 97.0) -> None:
        self._address, self._spo2 = address, spo2
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.acknowledged: set[int] = set()
        self.longest_gap_s = 0.0
        self._last = 0.0

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def until(self, count: int, seconds: float = 30) -> None:
        """Return when so many more messages have been acknowledged."""
        wanted, end = len(self.acknowledged) + count, time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < end, f"only {len(self.acknowledged)} messages were acknowledged, not {wanted}"
            time.sleep(0.05)

    def _serve(self) -> None:
        number = 1
        while not self._stop.is_set():
            try:
                with socket.create_connection((self._address, PORT), timeout=2) as connection:
                    while not self._stop.wait(0.05):
                        connection.sendall(frame(number, 3, self._spo2))
                        self._take(connection, number)
                        number += 1
            except OSError:
                self._stop.wait(0.05)  # not acknowledged: the same message goes again

    def _take(self, connection: socket.socket, number: int) -> None:
        data = b""
        while not data.endswith(b"\x1c\r"):
            ready, _, _ = select.select([connection], [], [], 5)
            piece = connection.recv(4096) if ready else b""
            if not piece:
                raise ConnectionError("no acknowledgement")
            data += piece
        if b"MSA|AA" in data:
            now = time.monotonic()
            if self._last:
                self.longest_gap_s = max(self.longest_gap_s, now - self._last)
            self._last = now
            self.acknowledged.add(number)
