"""Disks that stall, fill up or refuse: the loop does not notice, nothing acknowledged is lost, memory stays bounded."""

from __future__ import annotations

import itertools
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from buffer_rig import KEK, Rig, alert, gaps, numeric, read_all, values, wave

from edge_agent import buffer
from edge_agent.buffer import store
from edge_agent.buffer.store import Store


class Gate(threading.Event):
    """While it is clear, every commit hangs as on a disk that does not answer; `held` names the streams that do."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, real = Gate(), store.commit
    gate.set()

    def slow(connection: sqlite3.Connection) -> None:
        if not gate.is_set():
            gate.held.add(threading.current_thread().name)
        assert gate.wait(60)
        real(connection)

    monkeypatch.setattr(store, "commit", slow)
    yield gate
    gate.set()


def test_append_returns_at_once_while_the_disk_stalls(tmp_path: Path, gate: Gate) -> None:
    rig = Rig(tmp_path)
    before = rig.commit(numeric(0))
    gate.clear()
    times = []
    for value in range(1, 2001):
        started = time.perf_counter()
        rig.append(numeric(value), soon=True)
        times.append(time.perf_counter() - started)
    assert sorted(times)[1900] < 0.002  # a shared machine may preempt some; the gate stays shut for seconds
    rig.wait(lambda: "has not answered" in rig.current_fault("buffer disk"))
    assert rig.committed[-1] == before
    gate.set()
    rig.wait(lambda: rig.committed[-1] == 2001)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()
    assert values(read_all(tmp_path, "data")) == [float(value) for value in range(2001)]
    assert not rig.shed


def test_what_waits_in_memory_is_bounded_and_waveforms_go_first(tmp_path: Path, gate: Gate) -> None:
    rig = Rig(tmp_path, pending_mb=1)
    rig.commit(numeric(0))
    gate.clear()
    rig.append(wave(0))  # in flight, with the first numeric: what the writer already holds stays
    rig.wait(lambda: "buffer-data" in gate.held)
    sent = []
    for number in range(1, 2001):  # 2.4 MB of waveforms and 0.8 MB of numerics
        sent.append((rig.append(wave(number, 400)), rig.append(numeric(number))))
    rig.wait(lambda: rig.buffer.stats()["pending_bytes"] <= 1 << 20 and rig.buffer.stats()["shed"])
    assert rig.buffer.stats()["shed"] < 2001  # waveforms were enough
    rig.wait(lambda: "pending_mb" in rig.current_fault("buffer shed"))
    gate.set()
    rig.wait(lambda: rig.committed[-1] == sent[-1][1])
    rig.wait(lambda: len(gaps(tmp_path)) >= 1)
    rig.close()
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [float(value) for value in range(2001)]
    kept = sum(block.count for block in blocks if block.priority == 2)
    told = gaps(tmp_path)
    assert {(gap.reason, gap.priority, gap.instance) for gap in told} == {("memory", 2, blocks[0].instance)}
    assert sum(gap.count for gap in told) == 2001 - kept == rig.buffer.stats()["shed"]
    held = {block.first + offset for block in blocks for offset in range(block.count)}
    for gap in told:
        assert gap.last - gap.first + 1 == gap.count
        assert not held & set(range(gap.first, gap.last + 1))
    waves = {ticket for ticket, _ in sent}
    assert set(rig.shed) <= waves  # what carried numerics only may be acknowledged
    assert len(rig.shed) == 2001 - kept


def test_numerics_follow_when_waveforms_were_not_enough_and_alerts_come_last(tmp_path: Path, gate: Gate) -> None:
    rig = Rig(tmp_path, pending_mb=1)
    rig.commit(numeric(0))
    gate.clear()
    rig.append(numeric(1))
    rig.wait(lambda: "buffer-data" in gate.held)
    for value in range(2, 6000):
        rig.append(numeric(value))
    alerts = [rig.append(alert(number)) for number in range(200)]
    rig.wait(lambda: rig.buffer.stats()["pending_bytes"] <= 1 << 20 and rig.buffer.stats()["shed"])
    gate.set()
    rig.wait(lambda: rig.committed[-1] == alerts[-1])
    rig.wait(lambda: len(gaps(tmp_path)) >= 1)
    rig.close()
    assert {gap.priority for gap in gaps(tmp_path)} == {1}
    kept = values(read_all(tmp_path, "data"))
    assert kept[-1] == 5999.0
    assert sum(gap.count for gap in gaps(tmp_path)) == 6000 - len(kept)
    stored = [entry.record for block in read_all(tmp_path, "alerts") for entry in block.entries]
    assert len([record for record in stored if type(record).__name__ == "AlarmEvent"]) == 200


def test_a_file_that_cannot_grow_keeps_records_in_memory_until_it_can(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(0))
    size = (tmp_path / "buffer" / "data.db-wal").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, hard))
    try:
        last = [rig.append(numeric(value), soon=True) for value in range(1, 3000)][-1]
        rig.wait(lambda: rig.current_fault("buffer disk"))
        assert rig.committed[-1] < last
        assert "nothing is acknowledged" in rig.current_fault("buffer disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    rig.wait(lambda: rig.committed[-1] == last)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [float(value) for value in range(3000)]
    assert blocks[-1].first + blocks[-1].count == 3001
    assert len({block.instance for block in blocks}) == 1


def test_a_read_only_disk_is_told_once_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(0))
    real, refuse = Store.begin, threading.Event()
    refuse.set()
    tries = itertools.count()

    def begin(self: Store) -> None:
        if self.stream == 1:
            next(tries)
            self.connection.execute(f"PRAGMA query_only = {int(refuse.is_set())}")
        real(self)

    monkeypatch.setattr(Store, "begin", begin)
    ticket = rig.append(numeric(1))
    rig.wait(lambda: next(tries) > 8)
    assert rig.committed[-1] < ticket
    assert [kind for kind, _ in rig.faults] == ["buffer disk"]
    assert "cannot be written to; check mount" in rig.faults[0][1]
    rig.commit_alert = rig.append(alert(1))  # type: ignore[attr-defined]
    rig.wait(lambda: read_all(tmp_path, "alerts"))  # the other stream goes on
    refuse.clear()
    rig.wait(lambda: rig.committed[-1] > ticket)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()
    assert values(read_all(tmp_path, "data")) == [0.0, 1.0]


def test_a_commit_of_unknown_outcome_is_not_stored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(0))
    real = store.commit
    failures = iter([True, True])

    def lies(connection: sqlite3.Connection) -> None:
        real(connection)
        if threading.current_thread().name == "buffer-data" and next(failures, False):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # type: ignore[misc]
            raise error

    monkeypatch.setattr(store, "commit", lies)
    rig.commit(numeric(1), wave(1))
    rig.commit(numeric(2))
    rig.close()
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [0.0, 1.0, 2.0]
    assert [block.first for block in blocks] == [1, 2, 3, 4]


def test_a_second_agent_on_the_same_buffer_waits_and_says_why(tmp_path: Path) -> None:
    first = Rig(tmp_path)
    first.commit(numeric(1))
    second = Rig(tmp_path)
    ticket = second.append(numeric(2))
    second.wait(lambda: "another agent" in second.current_fault("buffer disk"))
    first.close()
    second.wait(lambda: second.committed and second.committed[-1] == ticket)
    second.close()
    assert values(read_all(tmp_path, "data")) == [1.0, 2.0]


def test_closing_while_the_disk_stalls_returns_and_reports_nothing(tmp_path: Path, gate: Gate) -> None:
    rig = Rig(tmp_path)
    before = rig.commit(numeric(0))
    gate.clear()
    rig.append(numeric(1))
    rig.wait(lambda: "buffer-data" in gate.held)
    started = time.monotonic()
    rig.buffer.close(0.3)
    assert time.monotonic() - started < 3
    assert rig.committed[-1] == before


def test_a_folder_that_cannot_be_made_is_a_fault_and_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "buffer").write_text("in the way")
    rig = Rig(tmp_path)
    ticket = rig.append(numeric(1))
    rig.wait(lambda: rig.current_fault("buffer disk"))
    (tmp_path / "buffer").unlink()
    rig.wait(lambda: rig.committed and rig.committed[-1] == ticket)
    rig.close()
    assert values(read_all(tmp_path, "data")) == [1.0]


def test_callbacks_that_fail_do_not_stop_the_writer(tmp_path: Path) -> None:
    from edge_agent import config

    def gone(*_: object) -> None:
        raise RuntimeError("Event loop is closed")

    held = buffer.Buffer(tmp_path, KEK, "gw-1", config.Buffer(commit_ms=5), on_committed=gone, on_fault=gone)
    held.append([numeric(1)], wanted_soon=True)
    held.append([numeric(2)], wanted_soon=True)
    held.close(10)
    assert values(read_all(tmp_path, "data")) == [1.0, 2.0]
