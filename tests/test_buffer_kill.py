"""kill -9 of a writing process at random moments: what was reported durable is there, in order, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from buffer_rig import KEK, read_all

from edge_agent import buffer
from edge_agent.buffer import admin
from edge_agent.records import Observation

KILLS = 40


def test_nothing_reported_is_lost_over_random_kills(tmp_path: Path) -> None:
    chance = random.Random(11)
    victim = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("buffer_victim.py")), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert victim.stdin is not None
    assert victim.stdout is not None
    places: dict[str, buffer.Position | None] = {"alerts": None, "data": None}
    first: dict[str, int] = {}
    reader = buffer.Reader(tmp_path, KEK)
    reported_in_all = 0
    try:
        for number in range(KILLS):
            victim.stdin.write(f"{number}\n".encode())
            word, _, pid = _line(victim)
            assert word == "P"
            acknowledged = 0
            if number % 4:  # else also in the middle of opening
                word, _, ticket = _line(victim)
                assert word == "A"
                acknowledged = int(ticket)
            time.sleep(chance.uniform(0.0, 0.06))
            os.kill(int(pid), signal.SIGKILL)
            _await_death(int(pid))
            acknowledged = max(acknowledged, _rest(victim, number))
            reported_in_all += acknowledged
            _check(reader, places, first, number, acknowledged)
    finally:
        victim.stdin.close()
        victim.kill()
        victim.wait()
        victim.stdout.close()
    assert reported_in_all > KILLS * 5
    report = admin.verify(tmp_path, KEK)
    assert report["ok"]
    for stream in buffer.STREAMS:
        assert not report["streams"][stream]["holes"]
        assert len({block.instance for block in read_all(tmp_path, stream)}) == 1
    assert not (tmp_path / "buffer" / "quarantine").exists()
    reader.close()


def _await_death(pid: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)  # its parent reaps it
        except ProcessLookupError:
            return
        os.sched_yield()
    raise AssertionError("it does not die")


def _line(victim: subprocess.Popen[bytes]) -> list[str]:
    """The next line; bytes are read one by one so that nothing is kept back from `_rest`."""
    assert victim.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        byte = victim.stdout.read(1)
        assert byte, "the victim ended by itself"
        line += byte
    assert not line.startswith(b"F"), line
    return line.decode().split()


def _rest(victim: subprocess.Popen[bytes], number: int) -> int:
    """The highest ticket that the killed writer had still reported."""
    assert victim.stdout is not None
    highest = 0
    os.set_blocking(victim.stdout.fileno(), False)
    try:
        while data := victim.stdout.read(65536):
            for line in data.decode().splitlines():
                word, of, ticket = line.split()
                assert (word, int(of)) == ("A", number)
                highest = max(highest, int(ticket))
    finally:
        os.set_blocking(victim.stdout.fileno(), True)
    return highest


def _check(
    reader: buffer.Reader,
    places: dict[str, buffer.Position | None],
    first: dict[str, int],
    number: int,
    acknowledged: int,
) -> None:
    found: Counter[tuple[str, int]] = Counter()
    for stream in buffer.STREAMS:
        while blocks := reader.read(stream, places[stream]):
            for block in blocks:
                assert not block.damaged
                assert block.first == first.get(stream, 1)
                first[stream] = block.first + block.count
                for entry in block.entries:
                    record = entry.record
                    if isinstance(record, Observation):
                        assert entry.bed == f"round-{number}"
                        assert record.value == record.at_ns >> 8
                        found["numeric", record.at_ns] += 1
                    elif stream == "data":
                        found["wave", record.at_ns] += 1
                    else:
                        found["alert", record.at_ns] += 1
            places[stream] = blocks[-1].position
        assert not reader.fault
    assert set(found.values()) <= {1}, "something is stored twice"
    for ticket in range(1, acknowledged + 1):
        for part in range(ticket % 5):
            assert found["numeric", (ticket << 8) + part], f"ticket {ticket} of {acknowledged} lost a numeric"
        assert ticket % 3 or found["wave", ticket], f"ticket {ticket} of {acknowledged} lost a waveform"
        assert ticket % 4 or found["alert", ticket], f"ticket {ticket} of {acknowledged} lost an alert"
