"""From the start of `edge-agent run` to armed alarms: eight beds, HL7 and a serial line, the model, a buffer with data.

The agent starts as a service manager starts it, with a socket for READY=1. Seconds count from before the process is
made: to READY=1, and to the light of an alarm caused by a monitor that dials without a pause from the first moment.
The floor, started in the same turn, is a Python that says READY=1 out of an asyncio loop and does nothing else. Cold
starts find the kernel's cache of files empty, as after a boot (root only).
"""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench.aims import NOT_MEASURED, at_most
from bench.backlog import fill
from bench.gateway import BIN, Gateway, connect, free_port, wait_until
from bench.messages import frame

BEDS = 8
ROUNDS = 10
COLD_ROUNDS = 3
WAITING = 440_000  # numerics that no broker has taken yet
MESSAGES = 500  # a bed, before the first start
WANTED_S = 2.0
DEADLINE_S = 30.0
HELLO = """\
import asyncio, os, socket
async def main():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
asyncio.run(main())
"""


class _Ward(Gateway):
    """The gateway of the measurement: it has a serial line and the model, and is started over and over."""

    def tables(self) -> list[str]:
        self.line, self._far_end = pty.openpty()
        return [
            *super().tables(),
            '[[bed]]\nid = "oximeter"\npreset = "adult"',
            f'[[source]]\ndriver = "nonin"\nlink = "serial://{os.ttyname(self._far_end)}?baud=9600"\nbed = "oximeter"',
            '[[annunciator]]\nkind = "gpio"\nchip = "pinctrl-bcm2711"\nbuzzer = 17\nred = 22\nyellow = 23\ncyan = 24',
            "[model]",
            f'[cloud.kafka]\nbootstrap = "127.0.0.1:{free_port()}"\nsecurity = "plaintext"',  # so that everything waits
        ]

    def fill(self) -> None:
        """A backlog, and messages of every bed through the agent, so that a start finds what a used gateway has."""
        fill(self.data_dir, self.folder / "kek", WAITING)
        self.start("edge-agent")
        for bed in range(BEDS):
            with connect(self.port) as client:
                for first in range(0, MESSAGES, 50):
                    client.sendall(b"".join(frame(number, bed) for number in range(first, first + 50)))
                    answered = 0
                    while answered < 50:
                        answered += client.recv(65536).count(b"\x1c\r")
        self.stop("edge-agent")

    def stop(self, program: str) -> None:
        """End a process as the service manager does."""
        child = self._children.pop(program)
        child.terminate()
        child.wait(20)

    def started(self, program: str, child: subprocess.Popen[bytes]) -> None:
        """A process that was started elsewhere ends with this gateway."""
        self._children[program] = child


def _ready(command: list[str], notify: Path) -> tuple[subprocess.Popen[bytes], float, socket.socket]:
    """Start a process; give it, when it was started, and the socket on which its READY=1 comes."""
    notify.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(notify))
    listener.settimeout(DEADLINE_S)
    began = time.monotonic()
    with (notify.parent / "start.log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(notify)})
    return child, began, listener


def _told(listener: socket.socket, began: float) -> float:
    with listener:
        while b"READY=1" not in listener.recv(4096):
            pass
        return time.monotonic() - began


def _hello(folder: Path) -> float:
    child, began, listener = _ready([sys.executable, "-c", HELLO], folder / "notify")
    seconds = _told(listener, began)
    child.wait()
    return seconds


def _start(ward: _Ward, number: int) -> tuple[float, float]:
    """Seconds to READY=1 and to the edge of the alarm of a monitor that dials meanwhile."""
    seen = ward.edges.stat().st_size if ward.edges.exists() else 0
    command = [str(BIN / "edge-agent"), "run", "--config", str(ward.config)]
    child, began, listener = _ready(command, ward.folder / "notify")
    ward.started("edge-agent", child)
    with _dial(ward.port, began) as client:
        sent = time.monotonic()
        client.sendall(frame(MESSAGES + 2 * number, BEDS - 1, spo2=80.0))
        ready = _told(listener, began)
        alarm = _edge(ward.edges, seen, True, sent)
        client.sendall(
            frame(MESSAGES + 2 * number + 1, BEDS - 1)
        )  # over, so that the next start has none to bring back
        _edge(ward.edges, seen, False, alarm)
    time.sleep(1.0)  # the agent's own time to keep what a restart finds
    return ready, alarm - began


def _edge(file: Path, begin: int, on: bool, after: float) -> float:
    """When the light of the alarm next went on or off."""
    found: list[float] = []

    def came() -> bool:
        with file.open("rb") as edges:
            edges.seek(begin)
            lines = [json.loads(line) for line in edges.read().splitlines() if line.endswith(b"}")]
        found[:] = [
            line["at_ns"] / 1e9
            for line in lines
            if (line["output"], line["on"]) == ("red", on)
            and line["at_ns"] / 1e9 > after
            and (not on or line["condition"] == "spo2_low")
        ]
        return bool(found)

    wait_until(came, DEADLINE_S, f"the alarm's light {'on' if on else 'off'}")
    return found[0]


def _dial(port: int, began: float) -> socket.socket:
    while True:
        try:
            return connect(port)
        except ConnectionRefusedError:
            if time.monotonic() - began > DEADLINE_S:
                raise
            time.sleep(0.002)


def _cold() -> bool:
    """Whether the kernel has emptied its cache of files."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def _row(what: str, ready: list[float], armed: list[float], floor: list[float]) -> dict[str, object]:
    if not ready:
        return {"start": what, "READY=1, median / worst": NOT_MEASURED}
    return {
        "start": what,
        "rounds": len(ready),
        "READY=1, median / worst": f"{median(ready):.2f} / {max(ready):.2f} s",
        "first alarm, median / worst": f"{median(armed):.2f} / {max(armed):.2f} s",
        "floor, median": f"{median(floor):.3f} s",
        "ratio to the floor": round(median(ready) / median(floor), 1),
    }


def run() -> list[dict[str, object]]:
    """Seconds to armed alarms after a stop, after a kill, and on a cold cache."""
    found: dict[str, tuple[list[float], list[float], list[float]]] = {}
    with _Ward(beds=BEDS) as ward:
        ward.stop("edge-agent")
        ward.fill()
        megabytes = sum(file.stat().st_size for file in ward.data_dir.rglob("*") if file.is_file()) / 1e6
        ways = [("after a stop", ROUNDS), ("after a kill", ROUNDS), ("after a kill, cold cache", COLD_ROUNDS)]
        number = 0
        for way, rounds in ways:
            ready, armed, floor = found.setdefault(way, ([], [], []))
            for _ in range(rounds):
                if "cold" in way and not _cold():
                    break
                number += 1
                if "cold" not in way:
                    floor.append(_hello(ward.folder))
                one, other = _start(ward, number)
                ready.append(one)
                armed.append(other)
                if way == "after a stop":
                    ward.stop("edge-agent")
                else:
                    ward.kill("edge-agent")
                if "cold" in way:
                    _cold()
                    floor.append(_hello(ward.folder))
    rows = [_row(way, *lists) for way, lists in found.items()]
    rows[0]["buffer and log"] = f"{megabytes:.1f} MB"
    worst = [max(*ready, *armed) for ready, armed, _ in found.values() if ready]
    return [*rows, at_most("worst start, s: " + ", ".join(way for way in found if found[way][0]), worst, WANTED_S)]
