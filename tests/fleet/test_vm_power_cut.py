"""The power is cut while monitors send as fast as they are answered: nothing that was acknowledged is missing."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from datetime import datetime

from tests.fleet.emulated_gateway import Gateway
from tests.fleet.senders import Monitor, measured_at
from tests.fleet.waiting import until

BEDS = ("CUT-1", "CUT-2", "CUT-3")  # no other test records these
ENOUGH = 200  # acknowledged messages before the cut
UNFLUSHED = "/var/tmp/unflushed"
COUNT = f"i=0; while :; do i=$((i + 1)); echo $i >> {UNFLUSHED}; echo $i; sleep 0.05; done"
TABLES = (
    *(f'[[bed]]\nid = "{bed}"\npreset = "adult"\nlocation = "{bed}"' for bed in BEDS),
    '[[source]]\nname = "monitors"\ndriver = "hl7"\nlink = "mllp-listen://0.0.0.0:2575"',
    '[[annunciator]]\nkind = "record"\npath = "/var/lib/edge-agent/edges.jsonl"',
)


def answers(gateway: Gateway) -> bool:
    try:
        return bool(gateway.status())
    except ConnectionError:
        return False


def test_a_power_cut_under_load_loses_nothing_that_was_acknowledged(emulated: Gateway) -> None:
    emulated.configure(*TABLES)
    machine = emulated.machine
    before = emulated.status()["instance"]
    told: list[int] = []
    with ExitStack() as stack:
        monitors = {bed: stack.enter_context(Monitor(machine.ports[2575], bed, every_s=0)) for bed in BEDS}
        until(lambda: sum(len(each.acknowledged) for each in monitors.values()) >= ENOUGH, "the load", 300)
        _, counter = stack.enter_context(machine.stream(COUNT))
        counting = threading.Thread(target=lambda: told.extend(int(line) for line in counter))
        counting.start()
        until(lambda: len(told) > 20, "what nobody flushes")
        machine.kill()
        counting.join(60)
    acknowledged = {bed: set(monitor.acknowledged) for bed, monitor in monitors.items()}
    assert all(acknowledged.values()) and not any(monitor.refused for monitor in monitors.values())
    machine.boot()
    until(lambda: answers(emulated), "the agent that starts by itself", 180)
    # what shows that power was cut: a program that told first and did not flush has lost what it told last
    survived = machine.run(f"cat {UNFLUSHED}", check=False).stdout.split()
    assert told[-1] > len(survived)
    status = emulated.status()
    assert status["instance"] != before and status["buffer"]["fault"] == "", status["buffer"]
    assert json.loads(emulated.keyed("buffer verify"))["ok"]
    emulated.keyed("alarms verify")
    kept: dict[str, set[datetime]] = {bed: set() for bed in BEDS}
    for line in emulated.keyed("buffer export --kind observation").splitlines():
        record = json.loads(line)
        if record["bed"] in kept:
            kept[record["bed"]].add(datetime.fromisoformat(record["record"]["device_time"]))
    for bed, numbers in acknowledged.items():
        missing = [number for number in sorted(numbers) if measured_at(number) not in kept[bed]]
        assert not missing, f"{bed}: of {len(numbers)} acknowledged messages {missing} are missing"
