"""A process that is killed: it forks writers of an alarm log, one a round, and says what was reported durable.

On its standard input it gets the number of a round and forks; the child appends events as fast as they become durable
until it is killed. Lines on standard output: `P <round> <pid>`, `A <round> <ticket>`; event number n of a round has
at_ns = n and is ticket n.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from alarm_log_rig import KEK, event

from edge_agent.alarm_log import FILE, AlarmLog


def write(folder: Path, number: int) -> None:
    os.write(1, f"P {number} {os.getpid()}\n".encode())  # short writes to a pipe are whole
    log = AlarmLog(
        folder / FILE,
        KEK,
        run_id=f"round-{number}",
        on_fault=lambda kind, detail: os.write(1, f"F {number} {kind} {detail}\n".encode()) and None,
        log_mb=256,
    )
    told = 0
    for ticket in itertools.count(1):
        state = "Off" if ticket % 3 == 0 else "On"
        log.append(f"bed-{number}", "12345", event(f"{number}-{ticket // 2}", "x", state, at_ns=ticket))
        while log.waiting() > 200:
            log.wait_durable(told + 1, 1.0)
        if log.durable > told:
            told = log.durable
            os.write(1, f"A {number} {told}\n".encode())


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write(Path(sys.argv[1]), int(line))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
