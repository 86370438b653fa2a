"""`make demo`'s whole run: the exit code says whether alarm, technical alarm and forwarding were really seen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil

EDGE_AGENT = Path(sys.executable).parent / "edge-agent"


def test_the_demo_shows_what_it_promises_and_leaves_nothing_behind() -> None:
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [EDGE_AGENT, "demo", "--seconds", "45", "--plain"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Not a medical device" in done.stdout + done.stderr
    assert "demo" in done.stdout.lower() and "embedded Kafka" in done.stdout
    assert "operator: acknowledge; " in done.stdout and "operator: AUDIO PAUSED" in done.stdout
    assert "entries, chain holds" in done.stdout
    assert (
        "seen: alarms of every priority, technical alarm, acknowledgement, pause, whole NEWS2, alarm log, "
        "forwarding" in done.stdout
    )
    assert "operator: ICU-1 is alert and on air; NEWS2 0" in done.stdout
    assert re.search(r"scores: ICU-1 NEWS2 3 low-medium[^;]*; ICU-2 NEWS2 \d+ \(partial, 5 of 7\)", done.stdout)
    left = [
        process.cmdline()
        for process in psutil.process_iter()
        if process.pid not in before and any("bedside-demo" in word for word in process.cmdline())
    ]
    assert not left
