"""kill -9 and power cuts: what was reported durable is in the log, in order, and the chain holds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alarm_log_rig import Rig, alerts, break_at, entries, event, marks

from edge_agent.alarm_log import FILE
from edge_agent.alarm_log import log as log_module
from edge_agent.buffer import files

KILLS = 25


@pytest.mark.alm("ALM-21", "ALM-24")
def test_nothing_reported_is_lost_over_random_kills(tmp_path: Path) -> None:
    chance = random.Random(7)
    victim = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("alarm_log_victim.py")), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert victim.stdin is not None
    reported: dict[int, int] = {}
    try:
        for number in range(KILLS):
            victim.stdin.write(f"{number}\n".encode())
            word, _, pid = _line(victim).split()
            assert word == "P"
            reported[number] = 0
            if number % 4:  # else also in the middle of opening
                reported[number] = int(_line(victim).split()[2])
            time.sleep(chance.uniform(0.0, 0.08))  # the moment of the kill
            os.kill(int(pid), signal.SIGKILL)
            _await_death(int(pid))
            reported[number] = max(reported[number], _rest(victim))
    finally:
        victim.stdin.close()
        victim.kill()
        victim.wait()
        assert victim.stdout is not None
        victim.stdout.close()
    assert sum(reported.values()) > KILLS * 20
    found = entries(tmp_path / FILE)
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    for number, highest in reported.items():
        times = [entry.alarm.at_ns for entry in found if entry.alarm and entry.bed == f"bed-{number}"]
        assert times == list(range(1, len(times) + 1)), "in order, each once, without a hole"
        assert len(times) >= highest
    boots = marks(tmp_path / FILE, "boot")
    assert {boot["previous"] for boot in boots} <= {"none", "interrupted"}
    assert not marks(tmp_path / FILE, "power_down")
    assert not (tmp_path / "quarantine").exists()
    _check_active(tmp_path)


def _check_active(folder: Path) -> None:
    """What a restart is told is the last event of each alarm in the log whose state is not Off."""
    last = {entry.alarm.alert_id: entry.alarm for entry in entries(folder / FILE) if entry.alarm}
    rig = Rig(folder)
    assert rig.log.wait_ready(30)
    assert [item.event for item in rig.log.active()] == [each for each in last.values() if each.state != "Off"]
    rig.close()


def _line(victim: subprocess.Popen[bytes]) -> str:
    """The next line; bytes are read one by one so that nothing is kept back from `_rest`."""
    assert victim.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        byte = victim.stdout.read(1)
        assert byte, "the victim ended by itself"
        line += byte
    assert not line.startswith(b"F"), line
    return line.decode()


def _rest(victim: subprocess.Popen[bytes]) -> int:
    """The highest ticket that the killed writer had still reported."""
    assert victim.stdout is not None
    highest = 0
    os.set_blocking(victim.stdout.fileno(), False)
    try:
        while data := victim.stdout.read(65536):
            for line in data.decode().splitlines():
                assert line.startswith("A "), line
                highest = max(highest, int(line.split()[2]))
    finally:
        os.set_blocking(victim.stdout.fileno(), True)
    return highest


def _await_death(pid: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)  # its parent reaps it
        except ProcessLookupError:
            return
        os.sched_yield()
    raise AssertionError("it does not die")


class _Crash:
    """A log at the moment of a power cut, with the length of its write-ahead log after each commit."""

    def __init__(self, folder: Path, commits: int, checkpoint_at: int = 0) -> None:
        self.ends: list[tuple[int, int]] = []  # bytes of the write-ahead log, events that are durable with them
        rig = Rig(folder / "live")
        wal = rig.path.with_name(rig.path.name + "-wal")
        assert rig.log.wait_ready(30)
        for number in range(commits):
            if checkpoint_at and number == checkpoint_at:
                with closing(sqlite3.connect(rig.path)) as other:
                    other.execute("PRAGMA wal_checkpoint(PASSIVE)")
            rig.write(event(f"alert-{number}", at_ns=number))
            self.ends.append((wal.stat().st_size, number + 1))
        self.database, self.wal = rig.path.read_bytes(), wal.read_bytes()
        rig.close()

    def lay(self, folder: Path, database: bytes, wal: bytes) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / FILE).write_bytes(database)
        (folder / (FILE + "-wal")).write_bytes(wal)
        return folder

    def durable(self, length: int) -> int:
        return max((count for end, count in self.ends if end <= length), default=0)


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Crash]:
    yield _Crash(tmp_path_factory.mktemp("crash"), 12)


def _reopened(folder: Path) -> Rig:
    rig = Rig(folder)
    rig.close()
    assert break_at(rig.path) == (-1, "")
    return rig


@pytest.mark.alm("ALM-21")
def test_a_write_ahead_log_cut_anywhere_leaves_every_durable_entry(crash: _Crash, tmp_path: Path) -> None:
    lengths = [*range(0, len(crash.wal), 512), len(crash.wal)]
    chosen = lengths if len(lengths) < 120 else lengths[:: len(lengths) // 120] + lengths[-3:]
    held = set()
    for length in chosen:
        rig = _reopened(crash.lay(tmp_path / "cut", crash.database, crash.wal[:length]))
        assert not rig.faults
        there = alerts(rig.path)
        assert there == [f"alert-{number}" for number in range(len(there))]
        assert len(there) >= crash.durable(length)
        held.add(len(there))
    assert len(held) == 13, "cuts fell between all commits"


@pytest.mark.alm("ALM-21")
@pytest.mark.parametrize("torn", [512, 1024, 4096])
def test_a_torn_end_of_the_write_ahead_log_costs_nothing_before_it(crash: _Crash, tmp_path: Path, torn: int) -> None:
    for end, _ in crash.ends:
        wal = crash.wal[: end - torn] + os.urandom(torn)
        rig = _reopened(crash.lay(tmp_path / "torn", crash.database, wal))
        assert not rig.faults
        there = alerts(rig.path)
        assert there == [f"alert-{number}" for number in range(len(there))]
        assert len(there) >= crash.durable(end - torn)


@pytest.mark.alm("ALM-21")
def test_a_checkpoint_cut_at_any_page_loses_nothing(tmp_path: Path) -> None:
    crash = _Crash(tmp_path, 12)
    whole = tmp_path / "whole"
    crash.lay(whole, crash.database, crash.wal)
    with closing(sqlite3.connect(whole / FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(FULL)")
        after = (whole / FILE).read_bytes()
    assert len(after) > len(crash.database)
    for length in range(0, len(after), 512):  # the first bytes are new, the rest is as it was before
        database = after[:length] + crash.database[length:]
        rig = _reopened(crash.lay(tmp_path / "part", database, crash.wal))
        assert not rig.faults
        assert alerts(rig.path) == [f"alert-{number}" for number in range(12)]


@pytest.mark.alm("ALM-21")
def test_a_database_cut_anywhere_is_put_aside_as_it_is_and_a_new_log_begins(tmp_path: Path) -> None:
    crash = _Crash(tmp_path, 12, checkpoint_at=8)
    outcomes = set()
    for length in range(0, len(crash.database), 512):
        folder = crash.lay(tmp_path / "short", crash.database[:length], b"")
        rig = _reopened(folder)
        boot = marks(rig.path, "boot")[-1]
        outcomes.add(boot["previous"])
        if boot["previous"] == "put_aside":
            assert rig.fault("log corrupt")
            (aside,) = (folder / "quarantine").iterdir()
            assert (aside / FILE).read_bytes() == crash.database[:length]
            assert aside.name in boot["aside"]
        else:
            assert alerts(rig.path) == [f"alert-{number}" for number in range(8)]
    assert "put_aside" in outcomes


def test_a_kill_while_the_log_is_replaced_leaves_one_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the replacement fails once; the next start goes on from there and the old file is never lost."""
    monkeypatch.setattr(log_module, "_CLOSE_S", 0.1)
    for step in ("create_private", "publish", "adopt", "sync_folder", "put_aside"):
        folder = tmp_path / step
        folder.mkdir()
        (folder / FILE).write_bytes(b"this is no database" * 1000)
        with monkeypatch.context() as patch:

            def fail(*_: object, **__: object) -> None:
                raise OSError(5, "power cut")

            patch.setattr(files, step, fail)
            rig = Rig(folder)
            rig.wait(lambda rig=rig: rig.fault("log disk"))  # type: ignore[misc]
            rig.log.close(30)
        rig = _reopened(folder)
        assert marks(rig.path, "boot")
        kept = [path.read_bytes() for path in (folder / "quarantine").rglob(FILE)]
        assert kept and set(kept) == {b"this is no database" * 1000}
