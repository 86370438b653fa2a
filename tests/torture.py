"""The long kill tests: `python -m tests.torture` runs them and writes their figures into docs/durability.md.

    python -m tests.torture                        one broker and 500 kills, then three brokers and 50
    python -m tests.torture --nodes 3 --kills 10   only the part with so many brokers, with another number of kills

`--result FILE` only writes what an earlier run has left. Exit status of the run; the page tells a failed one too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "durability.md"
FULL = {1: 500, 3: 50}  # brokers -> kills of agent and forwarder
BEGIN, END = "<!-- result {}: begin; written by `make torture` -->", "<!-- result {}: end -->"
NAMES = {1: "one broker", 3: "three brokers"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, choices=sorted(FULL), help="brokers; both parts without it")
    parser.add_argument("--kills", type=int, help="of agent and forwarder; brokers come on top")
    parser.add_argument("--result", type=Path, help="figures of an earlier run")
    options = parser.parse_args(argv)
    if options.result is not None:
        write(json.loads(options.result.read_text()))
        return 0
    parts = sorted(FULL) if options.nodes is None else [options.nodes]
    return max(run(nodes, options.kills or FULL[nodes]) for nodes in parts)


def run(nodes: int, kills: int) -> int:
    """Run one part, write its result, and give its exit status."""
    with tempfile.TemporaryDirectory(prefix="bedside-torture-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_kills.py"]
        environment = {**os.environ, "KILLS": str(kills), "NODES": str(nodes), "TORTURE_RESULT": str(result)}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status == 0 and result.exists():
            write(json.loads(result.read_text()))
        else:
            status = status or 1  # skipped
            replace(nodes, f"The run of {_today()} **failed**: pytest ended with {status}.")
    return status


def write(figures: dict[str, Any]) -> None:
    """Put the figures of a run that has passed into the page."""
    kills, nodes = figures["kills"], figures["nodes"]
    broker = "the broker" if nodes == 1 else "one broker of three"
    rows = [
        ("kill -9 of the agent", kills["edge-agent"]),
        ("kill -9 of the forwarder", kills["cloud-sync"]),
        (f"kill -9 of {broker}, away for two more kills", kills["broker"]),
        ("messages acknowledged to the monitors", f"{figures['acknowledged']:,}"),
        ("records read with read_committed", f"{figures['records']:,}"),
        ("of these starts of physiological alarms", f"{figures['alerts']:,}"),
        ("acknowledged messages missing or incomplete", figures["missing"]),
        ("records found twice", figures["twice"]),
        ("duration", f"{figures['seconds'] / 60:.1f} min"),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    full = FULL[nodes]
    short = "" if kills["edge-agent"] + kills["cloud-sync"] >= full else f" Shorter than the full run of {full} kills."
    replace(nodes, f"Passed on {_today()}, {machine}.{short}\n\n{table}")


def replace(nodes: int, text: str) -> None:
    """Put a text between the page's marks for a part."""
    begin, end = BEGIN.format(NAMES[nodes]), END.format(NAMES[nodes])
    before, found, rest = PAGE.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for the result with {NAMES[nodes]}: {begin} … {end}")
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


if __name__ == "__main__":
    sys.exit(main())
