"""A gateway under measurement: the real processes with a configuration of their own in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_agent.buffer import create_key_file
from edge_agent.control import ControlClient, wait_for_socket

BIN = Path(sys.executable).parent
START_S = 30.0

# every limit acts at once, so that each message out of limits must give an edge and each one back must end it
PRESET = """\
name = "immediate"
population = "none: measurements only"
extends = "bedside"

[[condition]]
id = "spo2_low"
kind = "physiological"
vital = "spo2"
present = "below 90"
deadband = 0
delay_s = 0
off_delay_s = 0
priority = "high"
latching = false
text = "SpO2 low"
source = "bench: every message acts at once"
"""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """`edge-agent run`, and `cloud-sync run` when a broker address is given, until the with-block ends."""

    def __init__(self, beds: int = 1, *, broker: str = "", topic_prefix: str = "bench") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bedside-bench-"))
        self.port = free_port()
        self.edges = self.folder / "edges.jsonl"
        self.socket = self.folder / "control.sock"
        self.data_dir = self.folder / "data"
        self._beds, self._broker, self._prefix = beds, broker, topic_prefix
        self._preload: dict[str, str] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Gateway:
        self.config = self.write()
        self.start("edge-agent")
        if self._broker:
            self.start("cloud-sync")
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.discard()

    def discard(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, program: str) -> None:
        """Start `edge-agent` and wait until it answers, or start `cloud-sync`."""
        environment = {**os.environ, **(self._preload if program == "edge-agent" else {})}
        with (self.folder / f"{program}.log").open("ab") as log:
            command = [str(BIN / program), "run", "--config", str(self.config)]
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._children[program] = child
        if program == "edge-agent" and not wait_for_socket(self.socket, START_S, lambda: child.poll() is None):
            told = (self.folder / "edge-agent.log").read_text()
            self.__exit__()
            raise RuntimeError(f"the agent did not start:\n{told[-2000:]}")

    def kill(self, program: str) -> None:
        """End a process at once, as a crash would."""
        child = self._children.pop(program)
        child.kill()
        child.wait()

    def preload(self, environment: dict[str, str]) -> None:
        """Start the agent with these variables added to its environment."""
        self._preload = environment

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        return self.pid_of("edge-agent")

    def pid_of(self, program: str) -> int:
        """Process id of `edge-agent` or `cloud-sync`."""
        return self._children[program].pid

    def status(self) -> dict[str, Any]:
        """The agent's status."""
        with ControlClient(self.socket) as client:
            status: dict[str, Any] = client.call("status")["status"]
            return status

    def resident_kb(self) -> int:
        """Resident memory of the agent in kB, shared pages included."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError("the kernel does not tell VmRSS")

    def tables(self) -> list[str]:
        """Beds and further sources of the configuration, TOML tables."""
        return [
            f'[[bed]]\nid = "B{number}"\npreset = "immediate"\nlocation = "ICU^^{number}"'
            for number in range(self._beds)
        ]

    def write(self) -> Path:
        """The configuration, with its key and preset beside it."""
        create_key_file(self.folder / "kek")
        (self.folder / "immediate.toml").write_text(PRESET)
        lines = [
            f'[gateway]\nid = "bench"\ndata_dir = "{self.data_dir}"\npresets = ["immediate.toml"]',
            f'[control]\nsocket = "{self.socket}"',
            "[alarms]\nself_test = false",  # its edges would be counted
            f'[buffer]\nkey = "file:{self.folder / "kek"}"\nquota_mb = 512',
            f'[[source]]\ndriver = "hl7"\nlink = "mllp-listen://127.0.0.1:{self.port}"',
            f'[[annunciator]]\nkind = "record"\npath = "{self.edges}"',
        ]
        lines += self.tables()
        if self._broker:
            lines.append(
                f'[cloud.kafka]\nbootstrap = "{self._broker}"\nsecurity = "plaintext"\ntopic_prefix = "{self._prefix}"'
            )
        path = self.folder / "edge.toml"
        path.write_text("\n\n".join(lines) + "\n")
        return path


def connect(port: int) -> socket.socket:
    """A connected client, without delay of small packets."""
    client = socket.create_connection(("127.0.0.1", port), 10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def wait_until(condition: Any, deadline_s: float, what: str) -> None:
    """Return when `condition()` holds. Raises: RuntimeError naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen within {deadline_s:g} s")
        time.sleep(0.02)
