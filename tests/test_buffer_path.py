"""Records through the buffer and out again: identity, order, restart, reading while writing, pruning."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, numeric, read_all, values, wave

from edge_agent import buffer
from edge_agent.buffer import admin
from edge_agent.records import Entry, Gap, Observation


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    entries = [
        numeric(97.5),
        Entry("ICU-4", "nonin@serial", "", Observation("pulse_rate", None, "not_available", 5, "2025-01-01T00:00:00")),
        wave(7),
        alert(1),
    ]
    rig.commit(*entries)
    rig.close()
    data, alerts = read_all(tmp_path, "data"), read_all(tmp_path, "alerts")
    assert [block.entries for block in alerts] == [[entries[3]]]
    by_priority = {block.priority: block for block in data}
    assert by_priority[1].entries == entries[:2]
    assert by_priority[2].entries == [entries[2]]
    assert {block.gateway for block in data} == {"gw-1"}


def test_a_record_keeps_its_identity_and_order_over_restarts(tmp_path: Path) -> None:
    for start in range(0, 300, 100):
        rig = Rig(tmp_path)
        for value in range(start, start + 100):
            rig.append(numeric(value), soon=value % 7 == 0)
        rig.close()
        assert rig.committed[-1] == 100
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [float(value) for value in range(300)]
    assert len({block.instance for block in blocks}) == 1
    sequence = 1
    for number, block in enumerate(blocks, 1):
        assert (block.first, block.count, block.number) == (sequence, len(block.entries), number)
        sequence += block.count


def test_each_hand_over_of_alerts_is_a_block_and_a_commit_of_its_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for number in range(5):
        rig.commit(alert(number), alert(number + 100))
    rig.close()
    assert [block.count for block in read_all(tmp_path, "alerts")] == [2] * 5


def test_data_is_committed_in_groups_and_at_once_when_an_acknowledgement_waits(tmp_path: Path) -> None:
    rig = Rig(tmp_path, commit_ms=5000)
    assert rig.buffer.wait_ready(10)
    rig.wait(lambda: rig.buffer.stats()["commits"] == 0)
    for value in range(20):
        rig.append(numeric(value), soon=False)
    started = time.monotonic()
    ticket = rig.append(numeric(20), soon=True)
    rig.wait(lambda: rig.committed and rig.committed[-1] == ticket)
    assert time.monotonic() - started < 4
    rig.close()
    assert [block.count for block in read_all(tmp_path, "data")] == [21]


def test_a_ticket_without_records_is_reported_when_what_precedes_it_is_durable(tmp_path: Path) -> None:
    rig = Rig(tmp_path, commit_ms=5000)
    rig.append(numeric(1), soon=False)
    ticket = rig.append(soon=True)
    rig.wait(lambda: rig.committed and rig.committed[-1] == ticket)
    assert values(read_all(tmp_path, "data")) == [1.0]
    rig.close()


def test_a_ticket_of_both_streams_waits_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_agent.buffer import store

    gate, real = threading.Event(), store.commit

    def held(connection: sqlite3.Connection) -> None:
        if threading.current_thread().name == "buffer-alerts":
            assert gate.wait(20)
        real(connection)

    rig = Rig(tmp_path)
    rig.commit(numeric(1))
    monkeypatch.setattr(store, "commit", held)
    ticket = rig.append(numeric(2), alert(1))
    rig.wait(lambda: values(read_all(tmp_path, "data")) == [1.0, 2.0])
    assert rig.committed[-1] < ticket
    gate.set()
    rig.wait(lambda: rig.committed[-1] == ticket)
    rig.close()


def test_a_reader_sees_blocks_in_order_while_they_are_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, commit_ms=1)
    reader = buffer.Reader(tmp_path, KEK)
    assert reader.read("data", None) == []  # perhaps no file yet
    seen: list[float | None] = []
    done = threading.Event()

    def read() -> None:
        place = None
        until = time.monotonic() + 20
        while len(seen) < 2000 and time.monotonic() < until:
            for block in reader.read("data", place, 5):
                seen.extend(values([block]))
                place = block.position
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    for value in range(2000):
        rig.append(numeric(value), soon=value % 3 == 0)
        if value % 50 == 0:
            rig.wait(lambda: rig.buffer.stats()["pending"] == 0)
    assert done.wait(20)
    thread.join()
    rig.close()
    assert seen == [float(value) for value in range(2000)]


def test_what_is_delivered_is_pruned_and_numbers_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    marks = buffer.Marks(tmp_path)
    for value in range(10):
        rig.commit(numeric(value))
    blocks = read_all(tmp_path, "data")
    marks.set("data", blocks[5].position)
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [6.0, 7.0, 8.0, 9.0]
    marks.set("data", blocks[-1].position)
    rig.buffer.prune()
    assert read_all(tmp_path, "data") == []
    assert rig.buffer.stats()["stored"] == 0
    rig.close()
    rig = Rig(tmp_path)
    rig.commit(numeric(10))
    rig.close()
    (block,) = buffer.Reader(tmp_path, KEK).read("data", blocks[-1].position)
    assert (block.instance, block.number, block.first) == (blocks[0].instance, 11, 11)


def test_a_mark_of_another_instance_prunes_nothing_and_reads_from_the_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(1))
    stranger = buffer.Position("11111111-2222-3333-4444-555555555555", 99)
    buffer.Marks(tmp_path).set("data", stranger)
    rig.buffer.prune()
    assert values(buffer.Reader(tmp_path, KEK).read("data", stranger)) == [1.0]
    rig.close()


def test_a_damaged_mark_is_put_aside_and_reported(tmp_path: Path) -> None:
    said: list[str] = []
    marks = buffer.Marks(tmp_path, on_fault=lambda kind, detail: said.append(kind + detail))
    place = buffer.Position("11111111-2222-3333-4444-555555555555", 7)
    marks.set("data", place)
    assert marks.get("data") == place
    path = tmp_path / "marks" / "data.json"
    whole = path.read_bytes()
    for wrong in (b"", whole[:-5], whole.replace(b" 7", b" 8"), b"\x00" * len(whole), b"[1]", whole + b"{"):
        path.write_bytes(wrong)
        assert marks.get("data") is None
        assert marks.get("data") is None  # it is gone, not found again
    assert len(said) == 6
    assert len(list((tmp_path / "marks").glob("data.json.bad-*"))) == 6


def test_times_are_stamped_on_the_block(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(1, at_ns=clock.monotonic_ns()))
    clock.utc_step_ns, clock.state = 3_600_000_000_000, 1
    rig.commit(numeric(2, at_ns=clock.monotonic_ns()))
    rig.close()
    early, late = read_all(tmp_path, "data")
    assert (early.clock_quality, late.clock_quality) == ("synchronized", "unsynchronized")
    true_utc = 1_700_000_000_000_000_000 + early.entries[0].record.at_ns
    assert abs(early.utc_ns(early.entries[0].record.at_ns) - true_utc) < 1_000_000
    true_utc = 1_700_000_000_000_000_000 + late.entries[0].record.at_ns + 3_600_000_000_000
    assert abs(late.utc_ns(late.entries[0].record.at_ns) - true_utc) < 1_000_000


def test_every_boot_and_every_day_has_a_data_key_and_drained_ones_go(tmp_path: Path) -> None:
    clock = FakeClock()

    def key_count() -> int:
        return len(admin.stats(tmp_path, KEK)["streams"]["data"]["keys"])

    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(1))
    rig.commit(numeric(2))
    rig.close()
    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(3))
    assert key_count() == 1
    clock.utc_step_ns = 86_400_000_000_000
    rig.commit(numeric(4))
    assert key_count() == 2
    rig.close()
    clock.boot_id = b"C" * 16
    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(5))
    assert key_count() == 3
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [1.0, 2.0, 3.0, 4.0, 5.0]
    buffer.Marks(tmp_path).set("data", blocks[3].position)
    rig.buffer.prune()
    assert key_count() == 1
    assert values(read_all(tmp_path, "data")) == [5.0]
    rig.close()


def test_files_are_for_the_agent_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        rig = Rig(tmp_path)
        rig.commit(numeric(1), alert(1))
        folder = tmp_path / "buffer"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        rig.close()
    finally:
        os.umask(old)


def test_an_entry_that_cannot_be_encoded_becomes_a_gap_and_holds_up_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(1), numeric(2, at_ns=1 << 70), numeric(3))
    rig.commit(numeric(4))
    rig.close()
    blocks = read_all(tmp_path, "data")
    assert values(blocks) == [1.0, 3.0, 4.0]
    broken = blocks[0].entries[1].record
    assert isinstance(broken, Gap)
    assert (broken.reason, broken.first, broken.count) == ("unencodable", 2, 1)


def test_inspection_agrees_with_what_was_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(1), numeric(2), wave(1), alert(1))
    report = admin.verify(tmp_path, KEK)
    assert report["ok"]
    assert [report["streams"][stream]["records"] for stream in buffer.STREAMS] == [1, 3]
    assert admin.stats(tmp_path, KEK)["streams"]["data"]["by_priority"] == {"numeric": 2, "waveform": 1}
    exported = list(admin.export(tmp_path, KEK, "data"))
    assert [record["sequence"] for record in exported] == [1, 2, 3]
    assert exported[0]["record"]["value"] == 1.0
    assert exported[2]["record"]["samples"] == [1.0] * 500
    stats = buffer.Reader(tmp_path, KEK).stats()
    assert stats["data"] == {"blocks": 2, "records": 3, "exact": True}
    rig.close()
    assert buffer.Reader(tmp_path, KEK).stats()["alerts"]["records"] == 1  # also when the agent is gone
