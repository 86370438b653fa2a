"""Time from `Annunciator.drive` to the first edge in the record, behind an alarm loop that stays busy for a while.

    python -m bench.handoff [--busy-us 100] [--count 500] [--no-lend] [--no-realtime] [--switch-us 5000]

Prints one JSON object with the hand-off and the time that `drive` itself took, in microseconds. `--no-lend` shows what
it would be if the alarm loop did not lend the interpreter, `--no-realtime` what an agent without the right to
SCHED_FIFO gets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from edge_agent.annunciators import Annunciator, annunciator
from edge_agent.annunciators.record import Record
from edge_agent.records import Signal

QUIET_S = 0.004  # between signals, so that the thread is asleep when one comes


def measure(path: Path, count: int, busy_s: float) -> tuple[list[int], list[int]]:
    """Hand-off of each alarm and duration of each `drive`, in ns, sorted."""
    player = Annunciator(Record(path), on_fault=lambda name, detail: sys.exit(f"{name}: {detail}"))
    begun: dict[str, int] = {}
    taken: list[int] = []
    for number in range(1, count + 1):
        condition = f"c{number}"
        signal = Signal("bed", "high", True, True, condition, "", "high", condition, number, number)
        time.sleep(QUIET_S)
        begun[condition] = time.monotonic_ns()
        player.drive(signal)
        taken.append(time.monotonic_ns() - begun[condition])
        end = time.perf_counter() + busy_s
        while time.perf_counter() < end:
            pass
        time.sleep(QUIET_S)
        player.drive(Signal("bed", "none", False, False))
    player.close()
    first: dict[str, int] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if line["on"]:
            first.setdefault(line["condition"], line["at_ns"])
    return sorted(first[condition] - at for condition, at in begun.items()), sorted(taken)


def main() -> None:
    """Measure once and print the result."""
    parser = argparse.ArgumentParser(prog="python -m bench.handoff", description=__doc__.partition("\n")[0])
    parser.add_argument("--busy-us", type=float, default=100.0)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--no-lend", action="store_true")
    parser.add_argument("--no-realtime", action="store_true")
    parser.add_argument("--switch-us", type=float, default=5000.0, help="interpreter's switch interval")
    options = parser.parse_args()
    if options.no_lend:
        annunciator.LEND_S = 0.0
    if options.no_realtime:
        annunciator.REALTIME_PRIORITY = 1000  # outside the kernel's range: refused, as without the right to it
    sys.setswitchinterval(options.switch_us / 1e6)
    with tempfile.TemporaryDirectory() as folder:
        handoff, taken = measure(Path(folder) / "edges.jsonl", options.count, options.busy_us / 1e6)

    def share(values: list[int], part: float) -> float:
        return round(values[min(len(values) - 1, int(len(values) * part))] / 1000, 1)

    report = {
        "handoff_us": {"p50": share(handoff, 0.5), "p99": share(handoff, 0.99), "max": share(handoff, 1.0)},
        "drive_us": {"p50": share(taken, 0.5), "p99": share(taken, 0.99)},
    }
    print(json.dumps(report | vars(options)))


if __name__ == "__main__":
    main()
