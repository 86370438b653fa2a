"""Lateness of light and pulse edges against their timetable, while other processes and the alarm loop are busy.

A process of its own, as the agent is one, holds three real annunciators with `record` outputs, each with a HIGH alarm.
The timetable is what the player asks for on a clock that is never late; the time of an edge is what its record line
says. Two endless loops in processes of their own compete for the processors. "Loop busy": the thread in which the
alarm loop would run computes in Python without a pause and so holds the interpreter. "Ordinary": real-time scheduling
is refused to the annunciators' threads and to the alarm loop, as it is without the right to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent import config
from edge_agent.annunciators import open_annunciators, prefer_alarm_loop
from edge_agent.annunciators.player import Player
from edge_agent.records import Signal

SECONDS = 18.0  # of each scenario
ANNUNCIATORS = 3
AIM_MS = 5.0
SCENARIOS = (  # name, endless loops beside, alarm loop busy, real-time scheduling asked for
    ("quiet", 0, False, True),
    ("two busy processes", 2, False, True),
    ("two busy processes, ordinary", 2, False, False),
    ("two busy processes, loop busy", 2, True, True),
    ("two busy processes, loop busy, ordinary", 2, True, False),
)


def alarm() -> Signal:
    """A HIGH alarm that lights and sounds."""
    return Signal("bench", "high", True, True, "spo2_low", "SpO2 low", "high", "spo2_low", 1, 1)


def timetable(length_ns: int) -> list[tuple[int, str, bool]]:
    """Time from the start in ns, output and level of every edge that the player asks for."""
    player = Player()
    player.show(alarm())
    out: list[tuple[int, str, bool]] = []
    at: int | None = 0
    while at is not None and at < length_ns:
        edges, after = player.step(at)
        out += [(at, edge.output, edge.on) for edge in edges]
        at = after
    return out


def play(folder: Path, seconds: float, busy: bool, realtime: bool) -> list[int]:
    """Drive annunciators in this process for `seconds`; when each was handed its alarm, in ns."""
    if not realtime:

        def refuse(*_: object) -> None:
            raise PermissionError("refused for the measurement")

        os.sched_setscheduler = refuse  # type: ignore[assignment]
    prefer_alarm_loop()  # as `edge-agent run` does
    settings = [config.Annunciator(kind="record", path=Path(f"{number}.jsonl")) for number in range(ANNUNCIATORS)]
    faults: list[str] = []
    annunciators = open_annunciators(
        settings, resolve=lambda path: folder / path, on_fault=lambda _, detail: faults.append(detail)
    )
    starts = []
    time.sleep(0.5)  # all have opened their files
    for annunciator in annunciators:
        time.sleep(0.037)  # so that their edges do not fall together
        starts.append(time.monotonic_ns())
        annunciator.drive(alarm())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if busy:
            sum(number * number for number in range(2000))
        else:
            time.sleep(0.01)
    for annunciator in annunciators:
        annunciator.close()
    if any(faults):
        raise RuntimeError(f"an annunciator failed: {faults}")
    return starts


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """Endless loops in processes of their own."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def lateness(folder: Path, starts: list[int], seconds: float) -> tuple[list[int], int]:
    """How late each edge came, in ns, and how many that were due never came."""
    late, missed = [], 0
    wanted = timetable(round((seconds - 0.5) * 1e9))
    for number, start in enumerate(starts):
        lines = [json.loads(line) for line in (folder / f"{number}.jsonl").read_text().splitlines()]
        position = 0
        for offset, output, on in wanted:
            ahead = position
            while ahead < len(lines) and (lines[ahead]["output"], lines[ahead]["on"]) != (output, on):
                ahead += 1
            delay = lines[ahead]["at_ns"] - start - offset if ahead < len(lines) else None
            if delay is None or delay > 100_000_000:  # the next of its kind, not this one
                missed += 1
                continue
            late.append(delay)
            position = ahead + 1
    return late, missed


def scenario(name: str, loops: int, busy: bool, realtime: bool, seconds: float = SECONDS) -> dict[str, object]:
    """One row of the table; times in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="bedside-jitter-") as folder, competitors(loops):
        command = [sys.executable, "-m", "bench.jitter", folder, str(seconds), str(int(busy)), str(int(realtime))]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
        late, missed = lateness(Path(folder), json.loads(done.stdout), seconds)
    late.sort()
    p50, p99, most = (late[min(len(late) - 1, int(len(late) * share))] / 1e6 for share in (0.5, 0.99, 1.0))
    return {
        "scenario": name, "edges": len(late), "missed": missed,
        "p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "max_ms": round(most, 3), "p99_below_aim": p99 < AIM_MS,
    }  # fmt: skip


def run() -> list[dict[str, object]]:
    """Alone, beside busy processes, and with a busy alarm loop; with and without real-time scheduling."""
    return [scenario(*each) for each in SCENARIOS]


if __name__ == "__main__":
    print(json.dumps(play(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4] == "1")))
