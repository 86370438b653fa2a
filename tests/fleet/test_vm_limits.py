"""A forwarder that takes all the memory and processor it can get does not stop the agent: the kernel holds its limits.

A container cannot show this: the memory limit of a unit is not enforced in one.
"""

from __future__ import annotations

import time

from tests.fleet.emulated_gateway import FORWARDS, Gateway
from tests.fleet.senders import Monitor
from tests.fleet.waiting import until

UNIT = "cloud-sync"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}.service"
LIMIT = 256 << 20  # MemoryMax of systemd/cloud-sync.service
GREEDY = """\
import os
for _ in range(3):
    if os.fork() == 0:
        while True:
            pass
held = []
while True:
    try:
        held.append(b"x" * (4 << 20))
    except MemoryError:
        pass
"""
DROP_IN = """\
[Service]
Type=exec
ExecStart=
ExecStart=/usr/bin/python3 /run/greedy.py
WatchdogSec=0
LoadCredentialEncrypted=
"""
TABLES = (
    '[[bed]]\nid = "ICU-1"\npreset = "adult"\nlocation = "ICU^^1"',
    '[[source]]\nname = "monitor"\ndriver = "hl7"\nlink = "mllp-listen://0.0.0.0:2575"',
    '[[annunciator]]\nkind = "record"\npath = "/var/lib/edge-agent/edges.jsonl"',
)


def memory_bytes(gateway: Gateway) -> int:
    return int(gateway.machine.run(f"cat {GROUP}/memory.current").stdout)


def refused(gateway: Gateway) -> bool:
    """Whether the forwarder has met its memory limit."""
    text = gateway.machine.run(f"cat {GROUP}/memory.events", check=False).stdout
    events = dict(line.split() for line in text.splitlines())
    return any(int(events.get(name, 0)) for name in ("high", "max", "oom_kill"))


def test_a_greedy_forwarder_meets_its_limits_and_the_agent_goes_on(emulated: Gateway) -> None:
    machine = emulated.machine
    emulated.configure(*TABLES)
    first = emulated.status()["instance"]
    machine.put(GREEDY, "/run/greedy.py")
    drop_in = f"/etc/systemd/system/{UNIT}.service.d/zz-greedy.conf"
    machine.put(DROP_IN, drop_in)
    try:
        with Monitor(machine.ports[2575], "ICU^^1", every_s=0.2) as monitor:
            until(lambda: len(monitor.acknowledged) > 5, "the first acknowledgements")
            machine.run(f"touch {FORWARDS} && systemctl daemon-reload && systemctl start {UNIT}")
            until(lambda: refused(emulated), "the forwarder's memory limit", 180)
            answered = len(monitor.acknowledged)
            until(lambda: len(monitor.acknowledged) > answered + 20, "acknowledgements beside a greedy forwarder")
            assert memory_bytes(emulated) <= LIMIT
            began = time.monotonic()
            assert emulated.status()["instance"] == first
            assert time.monotonic() - began < 5, "the agent's loop waits for a forwarder"
    finally:
        machine.run(f"systemctl stop {UNIT}; rm {drop_in} {FORWARDS}; systemctl daemon-reload")
