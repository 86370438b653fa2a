"""The alarm path while a backlog of a million records drains, against the same agent while it does not.

One agent, its buffer holding a million records as after an outage, and one forwarder that is held (SIGSTOP) and let go
in turns of a few seconds, so that both phases see the same processes and the same noise. Alarms are measured as in
`latency`; the echo, a process that has nothing to do with either, tells what the machine alone adds. Kafka stands for a
machine elsewhere and runs at nice 19, the forwarder at the weight that its unit gives it against the agent's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.aims import at_most
from bench.backlog import PARTITIONS, TOPIC, drained_to, fill
from bench.gateway import Gateway, connect, wait_until
from bench.latency import agent_round, echo_round, echo_server, edges, matched, percentile

RECORDS = 1_000_000
GATEWAYS = 2  # fresh processes: where the kernel puts them matters, and lasts as they do
MESSAGES = 300  # a turn, to the agent; half of them raise
ECHOES = 100
WARM_UP = 200
SETTLE_S = 0.5  # after holding or letting go: what was under way has come to rest
NICE = 7  # CPUWeight=20 beside the default of 100, as a nice value
NICE_ELSEWHERE = 19


class _Turn(NamedTuple):
    phase: str
    sent: list[int]
    echoes: list[int]


class _Outage(Gateway):
    """An agent that starts over a full buffer; its forwarder starts when told."""

    last = 0

    def __enter__(self) -> _Outage:
        self.config = self.write()
        self.last = fill(self.data_dir, self.folder / "kek", RECORDS)
        self.start("edge-agent")
        return self

    def drained(self) -> bool:
        """Whether the million is delivered."""
        return drained_to(self.data_dir) >= self.last


def run() -> list[dict[str, object]]:
    """Both phases, and their ratios."""
    from tests.kafka_broker import missing

    why = missing()
    if why:
        return [{"phase": f"not measured: {why}"}]
    delays: dict[str, list[int]] = {"quiet": [], "draining": []}
    echoes: dict[str, list[int]] = {"quiet": [], "draining": []}
    missed = dict.fromkeys(delays, 0)
    with _broker() as bootstrap:
        for number in range(GATEWAYS):
            prefix = f"outage{number}"
            topic = NewTopic(f"{prefix}.{TOPIC}", PARTITIONS, 1)
            admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
            admin.create_topics([topic])[topic.topic].result(30)
            turns, seen = _turns(_Outage(broker=bootstrap, topic_prefix=prefix))
            for turn in turns:
                found, without = matched(turn.sent, seen)
                delays[turn.phase] += found
                missed[turn.phase] += without
                echoes[turn.phase] += turn.echoes
    return _rows(delays, echoes, missed)


def _rows(
    delays: dict[str, list[int]], echoes: dict[str, list[int]], missed: dict[str, int]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for phase in delays:
        row: dict[str, object] = {"phase": phase, "alarms": len(delays[phase]), "missed": missed[phase]}
        for who, values in (("agent", delays[phase]), ("echo", echoes[phase])):
            row[f"{who}_p50_us"] = round(percentile(values, 0.5), 1)
            row[f"{who}_p99_us"] = round(percentile(values, 0.99), 1)
        rows.append(row)

    def ratio(values: dict[str, list[int]], share: float) -> float:
        return percentile(values["draining"], share) / percentile(values["quiet"], share)

    return [
        *rows,
        at_most("alarm p99, draining / quiet", [ratio(delays, 0.99)], 1.25),
        at_most("alarm p50, draining / quiet", [ratio(delays, 0.5)], 1.25),
    ]


def _turns(gateway: _Outage) -> tuple[list[_Turn], list[int]]:
    """The turns in which the phase held from begin to end, and every edge."""
    turns = []
    with gateway, echo_server() as echo_port:
        client, echo = connect(gateway.port), connect(echo_port)
        number = WARM_UP
        agent_round(client, 0, WARM_UP)
        echo_round(echo, 0, WARM_UP)
        gateway.start("cloud-sync")
        forwarder = gateway.pid_of("cloud-sync")
        os.setpriority(os.PRIO_PROCESS, forwarder, NICE)
        wait_until(lambda: drained_to(gateway.data_dir) > 0, 30, "the first delivery")
        try:
            while not gateway.drained():
                for phase, order in (("quiet", signal.SIGSTOP), ("draining", signal.SIGCONT)):
                    os.kill(forwarder, order)
                    time.sleep(SETTLE_S)
                    turn = _Turn(phase, agent_round(client, number, MESSAGES), echo_round(echo, number, ECHOES))
                    number += MESSAGES
                    if phase == "quiet" or not gateway.drained():
                        turns.append(turn)
        finally:
            os.kill(forwarder, signal.SIGCONT)
        time.sleep(1.0)  # the last edge's line reaches the file through a thread
        seen = edges(gateway.edges)
        for each in (client, echo):
            each.close()
    if not any(turn.phase == "draining" for turn in turns):
        raise RuntimeError("the backlog was drained before a turn was over: enlarge it")
    return turns, seen


@contextmanager
def _broker() -> Iterator[str]:
    """The address of a Kafka in processes of their own, which leave the processors to everybody else."""
    with tempfile.TemporaryDirectory(prefix="bedside-outage-") as folder:
        told = Path(folder) / "address"
        command = ["nice", "-n", str(NICE_ELSEWHERE), sys.executable, "-m", "tests.kafka_broker"]
        child = subprocess.Popen([*command, "--port-file", str(told)], stdout=subprocess.DEVNULL)
        try:
            wait_until(told.exists, 60, "the broker's start")
            yield told.read_text().strip()
        finally:
            child.terminate()
            child.wait(60)
