"""A process that is killed: it forks writers of a buffer, one a round, and says which tickets were reported durable.

On its standard input it gets the number of a round and forks; the child fills the buffer as fast as it can until it is
killed. Lines on standard output: `P <round> <pid>`, `A <round> <ticket>`.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from buffer_rig import KEK, alert, numeric, wave

from edge_agent import buffer, config


def write(folder: Path, number: int) -> None:
    os.write(1, f"P {number} {os.getpid()}\n".encode())  # short writes to a pipe are whole
    settings = config.Buffer(commit_ms=2)
    held = buffer.Buffer(
        folder,
        KEK,
        "gw-1",
        settings,
        on_committed=lambda ticket: os.write(1, f"A {number} {ticket}\n".encode()) and None,
        on_fault=lambda kind, detail: os.write(1, f"F {number} {kind} {detail}\n".encode()) and None,
    )
    for ticket in itertools.count(1):
        stamp = ticket << 8
        entries = [numeric(ticket, at_ns=stamp + part, bed=f"round-{number}") for part in range(ticket % 5)]
        if ticket % 3 == 0:
            entries.append(wave(ticket, 50))
        if ticket % 4 == 0:
            entries.append(alert(ticket))
        held.append(entries, wanted_soon=ticket % 2 == 0)
        while held.stats()["pending"] > 500:
            os.sched_yield()


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write(Path(sys.argv[1]), int(line))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
