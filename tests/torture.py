"""The long kill test: `python -m tests.torture [--kills 500]` runs it and writes its figures into docs/durability.md.

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
FULL = 500  # kills of agent and forwarder
BEGIN, END = "<!-- result: begin; written by `make torture` -->", "<!-- result: end -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=FULL)
    parser.add_argument("--result", type=Path, help="figures of an earlier run")
    options = parser.parse_args(argv)
    if options.result is not None:
        write(json.loads(options.result.read_text()))
        return 0
    with tempfile.TemporaryDirectory(prefix="bedside-torture-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_kills.py"]
        environment = {**os.environ, "KILLS": str(options.kills), "TORTURE_RESULT": str(result)}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status == 0:
            write(json.loads(result.read_text()))
        else:
            replace(f"The run of {_today()} **failed**: pytest ended with {status}.")
    return status


def write(figures: dict[str, Any]) -> None:
    """Put the figures of a run that has passed into the page."""
    kills = figures["kills"]
    rows = [
        ("kill -9 of the agent", kills["edge-agent"]),
        ("kill -9 of the forwarder", kills["cloud-sync"]),
        ("kill -9 of the broker, for two more kills", kills["broker"]),
        ("messages acknowledged to the monitors", f"{figures['acknowledged']:,}"),
        ("records read with read_committed", f"{figures['records']:,}"),
        ("of these starts of physiological alarms", f"{figures['alerts']:,}"),
        ("acknowledged messages missing or incomplete", figures["missing"]),
        ("records found twice", figures["twice"]),
        ("duration", f"{figures['seconds'] / 60:.1f} min"),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    short = "" if kills["edge-agent"] + kills["cloud-sync"] >= FULL else f" Shorter than the full run of {FULL} kills."
    replace(f"Passed on {_today()}, {machine}.{short}\n\n{table}")


def replace(text: str) -> None:
    """Put a text between the page's marks."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


if __name__ == "__main__":
    sys.exit(main())
