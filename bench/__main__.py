"""`make bench`: runs every measurement, prints a table, writes bench/results/latest.json and latest.md.

`python -m bench NAME ...` runs only the named ones.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from importlib import import_module
from itertools import groupby
from pathlib import Path

MEASUREMENTS = (
    "latency", "storm", "throughput", "memory", "buffer", "jitter", "day", "drain", "outage", "forwarder", "model",
    "start",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def tables(rows: list[dict[str, object]]) -> str:
    """Rows as Markdown tables: a new one where the first column changes its name."""
    return "\n\n".join(table(list(some)) for _, some in groupby(rows, lambda row: next(iter(row))))


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table, the union of their keys as columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Run the measurements in `names`, or all."""
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        print(f"bench: no measurement {', '.join(sorted(unknown))}; known: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    machine = {
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    results: dict[str, object] = {"machine": machine}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was mounted and started is cleared away
    text = [f"Measured on {machine['date']}: {machine['processors']} processors, {machine['machine']}, "
            f"Python {machine['python']}. Ratios are taken in one run."]  # fmt: skip
    for name in names or MEASUREMENTS:
        module = import_module(f"bench.{name}")
        rows = module.run()
        results[name] = rows
        text.append(f"## {name}\n\n{(module.__doc__ or '').strip()}\n\n{tables(rows)}")
        print(f"\n{name}\n{tables(rows)}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "latest.md").write_text("\n\n".join(text) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(Path.cwd())}/latest.json and latest.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
