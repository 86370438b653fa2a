"""Quota and age: waveforms go first, then numerics, never unsent alerts, and every loss leaves a Gap record."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, gaps, numeric, read_all, values

from edge_agent import buffer
from edge_agent.buffer import writer
from edge_agent.records import AlarmEvent, Entry, Waveform


def noise(number: int, samples: int = 4000) -> Entry:
    """A waveform that does not compress."""
    return Entry("ICU-3", "hl7@mllp", "", Waveform("pleth", 125.0, os.urandom(2 * samples), 1.0, 0.0, number))


def bulky(value: float) -> Entry:
    """A numeric of some size that does not compress."""
    entry = numeric(value)
    return Entry(entry.bed, os.urandom(1500).hex(), "", entry.record)


def file_bytes(data_dir: Path) -> int:
    return sum((data_dir / "buffer" / f"{stream}.db").stat().st_size for stream in buffer.STREAMS)


def accounted(data_dir: Path) -> None:
    """Every sequence of the data stream is in a block or in exactly one Gap of its class."""
    blocks = read_all(data_dir, "data")
    told = gaps(data_dir)
    kept = sum(block.count for block in blocks)
    newest = max(block.first + block.count - 1 for block in blocks)
    assert kept + sum(gap.count for gap in told) == newest
    assert {gap.instance for gap in told} <= {blocks[0].instance}


def test_waveforms_are_shed_first_and_alerts_never(tmp_path: Path) -> None:
    rig = Rig(tmp_path, quota_mb=2)
    for number in range(400):  # 3.2 MB of waveforms, little else
        rig.append(noise(number), numeric(number), soon=False)
        if number % 10 == 0:
            rig.commit(alert(number))
    rig.commit(numeric(400))
    rig.buffer.prune()  # one round of tidying
    rig.wait(lambda: rig.buffer.stats()["pending"] == 0)
    assert "quota" in rig.current_fault("buffer shed")
    rig.close()
    assert file_bytes(tmp_path) <= 2 << 20
    assert values(read_all(tmp_path, "data")) == [float(number) for number in range(401)]
    told = gaps(tmp_path)
    assert {(gap.reason, gap.priority) for gap in told} == {("quota", 2)}
    waves = [entry.record.at_ns for b in read_all(tmp_path, "data") if b.priority == 2 for entry in b.entries]
    assert waves == list(range(400 - len(waves), 400))  # the oldest went
    assert len(waves) > 50
    accounted(tmp_path)
    stored = [entry.record for block in read_all(tmp_path, "alerts") for entry in block.entries]
    assert [record.at_ns for record in stored if isinstance(record, AlarmEvent)] == list(range(0, 400, 10))


def test_alerts_after_the_last_tidying_stay_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "TIDY_S", 3600.0)  # nobody makes room while the alerts grow
    rig = Rig(tmp_path, quota_mb=1)
    for number in range(200):  # 1.6 MB: the data file is as large as it may be
        rig.commit(noise(number))
    for number in range(200):
        rig.commit(alert(number))
    rig.close()
    assert 900 << 10 < file_bytes(tmp_path) <= 1 << 20


def test_numerics_are_shed_when_no_waveform_is_left(tmp_path: Path) -> None:
    rig = Rig(tmp_path, quota_mb=1)
    for number in range(20):
        rig.append(noise(number))
    for value in range(1000):  # 1.5 MB sealed
        rig.append(bulky(value))
        if value % 50 == 0:
            rig.commit(bulky(-1.0))
    rig.commit(bulky(1000))
    rig.buffer.prune()
    rig.wait(lambda: rig.buffer.stats()["pending"] == 0)
    rig.close()
    assert not [block for block in read_all(tmp_path, "data") if block.priority == 2]
    kept = [value for value in values(read_all(tmp_path, "data")) if value != -1.0]
    assert kept == [float(value) for value in range(1001 - len(kept), 1001)]
    assert 100 < len(kept) < 1000
    assert {gap.priority for gap in gaps(tmp_path)} == {1, 2}
    accounted(tmp_path)


def test_delivered_blocks_go_before_anything_is_shed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, quota_mb=1)
    marks = buffer.Marks(tmp_path)
    for number in range(300):  # 2.4 MB, delivered as it comes
        rig.commit(noise(number))
        if number % 20 == 19:
            reader = buffer.Reader(tmp_path, KEK)
            while blocks := reader.read("data", marks.get("data")):
                marks.set("data", blocks[-1].position)
            reader.close()
            rig.buffer.prune()
    assert rig.buffer.stats()["shed"] == 0
    assert not rig.current_fault("buffer shed")
    rig.close()
    assert file_bytes(tmp_path) <= 1 << 20


def test_a_full_file_drops_what_is_delivered_although_nobody_has_asked_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TIDY_S", 3600.0)  # the marks are read when the file is full, or not at all
    rig = Rig(tmp_path, quota_mb=1)
    marks = buffer.Marks(tmp_path)
    for number in range(150):
        rig.commit(noise(number))
        if number == 99:
            marks.set("data", read_all(tmp_path, "data")[-1].position)
    waves = [entry.record.at_ns for block in read_all(tmp_path, "data") for entry in block.entries]
    assert waves == list(range(100, 150))
    assert rig.buffer.stats()["shed"] == 0
    rig.close()


def test_a_request_to_prune_is_not_satisfied_with_an_older_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TIDY_S", 3600.0)
    rig = Rig(tmp_path, commit_ms=5000)
    for value in range(6):
        rig.commit(numeric(value))
    buffer.Marks(tmp_path).set("data", read_all(tmp_path, "data")[4].position)
    rig.buffer._data._prune_to = 2  # what an earlier round has read and not yet done
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [5.0]
    rig.close()


def test_space_that_is_free_again_is_given_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, quota_mb=64)
    for number in range(100):
        rig.append(*(noise(number * 10 + part) for part in range(10)))  # 8 MB in all
    rig.commit(numeric(1))
    rig.buffer.prune()
    before = rig.buffer._data.file_bytes
    assert before > 7 << 20
    buffer.Marks(tmp_path).set("data", read_all(tmp_path, "data")[-1].position)
    for _ in range(3):
        rig.buffer.prune()
    assert before - rig.buffer._data.file_bytes >= 3 * 256 * 4096 - 4096  # 256 pages a round
    rig.close()


def test_a_quota_full_of_unsent_alerts_keeps_them_and_resumes_when_they_are_delivered(tmp_path: Path) -> None:
    def big(number: int) -> Entry:
        return Entry("", "", "", AlarmEvent(str(number), os.urandom(8000).hex(), "technical", "low", "start", "On", 1))

    rig = Rig(tmp_path, quota_mb=1)
    last = [rig.append(big(number)) for number in range(200)][-1]  # 1.6 MB
    rig.wait(lambda: "quota is full of undelivered alerts" in rig.current_fault("buffer disk"))
    assert rig.committed[-1] < last
    reader, marks = buffer.Reader(tmp_path, KEK), buffer.Marks(tmp_path)
    seen: list[str] = []

    def deliver() -> bool:
        blocks = reader.read("alerts", marks.get("alerts"))
        seen.extend(entry.record.alert_id for block in blocks for entry in block.entries)  # type: ignore[union-attr]
        if blocks:
            marks.set("alerts", blocks[-1].position)
        return len(seen) == 200

    rig.wait(deliver)
    rig.wait(lambda: rig.committed[-1] == last)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    assert seen == [str(number) for number in range(200)]
    assert rig.buffer.stats()["shed"] == 0
    rig.close()


def test_age_sheds_undelivered_data_but_no_alert(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock, max_age_h=1.0)
    rig.commit(numeric(1), noise(1), alert(1))
    clock.mono_step_ns = 3_500 * 10**9
    rig.commit(numeric(2))
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [1.0, 2.0]
    clock.mono_step_ns = 3_700 * 10**9
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [2.0]
    rig.wait(lambda: len(gaps(tmp_path)) == 2)
    assert {(gap.reason, gap.priority, gap.count) for gap in gaps(tmp_path)} == {("age", 1, 1), ("age", 2, 1)}
    assert read_all(tmp_path, "alerts")[0].entries[0].record.at_ns == 1
    rig.close()


def test_a_clock_step_sheds_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock, max_age_h=1.0)
    rig.commit(numeric(1))
    clock.utc_step_ns = 10**6 * 3_600 * 10**9  # same boot: the monotonic clock knows better
    rig.buffer.prune()
    rig.close()
    clock.boot_id, clock.state = b"C" * 16, 1  # another boot, and nobody vouches for UTC
    rig = Rig(tmp_path, clock=clock, max_age_h=1.0)
    rig.commit(numeric(2))
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [1.0, 2.0]
    clock.state = 2
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [2.0]  # both ends synchronised now: it is old indeed
    rig.close()


def test_a_loss_that_was_not_told_before_the_end_is_told_at_the_next_start(tmp_path: Path) -> None:
    import sqlite3

    rig = Rig(tmp_path)
    rig.commit(numeric(1))
    rig.close()
    with sqlite3.connect(tmp_path / "buffer" / "data.db") as connection:
        connection.execute("INSERT INTO gaps VALUES (NULL, 'quota', ?, 5, 9, 5, 2, 0)", (b"I" * 16,))
    connection.close()
    for _ in range(2):
        rig = Rig(tmp_path)
        rig.wait(lambda: len(gaps(tmp_path)) == 1)
        rig.buffer.prune()  # the journal row goes with a further turn
        rig.commit(numeric(2))
        rig.close()
    (gap,) = gaps(tmp_path)
    assert (gap.first, gap.last, gap.count) == (5, 9, 5)
