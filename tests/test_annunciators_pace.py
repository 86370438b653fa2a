"""Who is served first, in processes of their own: real-time scheduling must not stay in the one that tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from bench import jitter


def child(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


PREFER = """
import json, os, sys, threading
from edge_agent.annunciators import pace
{before}
allowed = pace.prefer_alarm_loop()
seen = []
started = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
started.start(); started.join()
pulses = pace.prefer_pulses()
print(json.dumps([allowed, pulses, seen[0], os.sched_getscheduler(0), os.sched_getparam(0).sched_priority,
                  sys.getswitchinterval()]))
"""


def may_be_realtime() -> bool:
    code = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_loop_and_what_it_starts_come_before_others_and_the_pulses_before_them() -> None:
    allowed, pulses, thread, policy, priority, interval = child(PREFER.format(before=""))
    assert allowed is pulses is may_be_realtime()
    assert interval <= 0.0005
    if allowed:
        assert (thread, policy, priority) == (os.SCHED_RR, os.SCHED_FIFO, 10)


def test_without_the_right_to_it_all_goes_on_as_before() -> None:
    refuse = "def no(*_): raise PermissionError\nos.sched_setscheduler = no"
    allowed, pulses, thread, policy, _, interval = child(PREFER.format(before=refuse))
    assert (allowed, pulses, thread, policy) == (False, False, os.SCHED_OTHER, os.SCHED_OTHER)
    assert interval <= 0.0005


def test_the_measurement_sees_every_edge_of_the_timetable() -> None:
    row = jitter.scenario("quiet", 0, False, True, seconds=2.0)
    assert row["missed"] == 0 and row["edges"] == 3 * len(jitter.timetable(1_500_000_000))
    assert 0 <= float(str(row["p50_ms"])) <= float(str(row["p99_ms"])) <= float(str(row["max_ms"]))


def test_the_measurement_tells_edges_that_are_late_or_do_not_come(tmp_path: Any) -> None:
    wanted = jitter.timetable(1_500_000_000)
    lines = [
        {"at_ns": 1000 + offset + 3_000_000, "output": output, "on": on}
        for number, (offset, output, on) in enumerate(wanted)
        if number != 5
    ]
    for number in range(jitter.ANNUNCIATORS):
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    late, missed = jitter.lateness(tmp_path, [1000] * jitter.ANNUNCIATORS, 2.0)
    assert set(late) == {3_000_000} and missed == jitter.ANNUNCIATORS
