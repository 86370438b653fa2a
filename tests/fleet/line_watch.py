"""Runs in the guest: prints every change of simulated GPIO lines, as `milliseconds line level`, until its input ends.

    line_watch.py FOLDER LINE...

FOLDER is the chip's in sysfs. The kernel wakes nobody when an output changes, so the lines are looked at every 2 ms; a
change is stamped with the middle between the two looks that it lies between. What the lines are at first is told, too.
"""

from __future__ import annotations

import os
import select
import sys
import time

LOOK_S = 0.002


def main() -> None:
    folder, *lines = sys.argv[1:]
    files = {line: os.open(f"{folder}/sim_gpio{line}/value", os.O_RDONLY) for line in lines}
    levels = dict.fromkeys(lines, b"")
    began = looked = time.monotonic()
    while not select.select([0], [], [], LOOK_S)[0]:
        for line, file in files.items():
            level = os.pread(file, 1, 0)
            now = time.monotonic()
            if level != levels[line]:
                levels[line] = level
                print(f"{((looked + now) / 2 - began) * 1000:.1f} {line} {level.decode()}", flush=True)
        looked = now


main()
