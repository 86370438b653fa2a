"""Restored images and cloned cards: identities never collide, what is older than its marks is told, clocks may step."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, gaps, numeric, read_all, values

from edge_agent import buffer
from edge_agent.buffer import admin, files

Identity = tuple[str, int]


def identities(data_dir: Path, stream: str = "data") -> dict[Identity, object]:
    """Every record by instance and sequence; a repeated identity fails."""
    out: dict[Identity, object] = {}
    for block in read_all(data_dir, stream):
        for sequence, entry in enumerate(block.entries, block.first):
            assert (block.instance, sequence) not in out
            out[block.instance, sequence] = entry.record
    return out


def run(data_dir: Path, boot: bytes, *numbers: float) -> Rig:
    """One run of the agent in some boot; closed, with its faults."""
    clock = FakeClock()
    clock.boot_id = boot
    rig = Rig(data_dir, clock=clock)
    for number in numbers:
        rig.commit(numeric(number), alert(int(number)))
    rig.close()
    return rig


def deliver(data_dir: Path, blocks: int | None = None) -> None:
    """Notes all blocks, or the first few, as delivered."""
    for stream in buffer.STREAMS:
        found = read_all(data_dir, stream)
        buffer.Marks(data_dir).set(stream, found[-1 if blocks is None else blocks - 1].position)


def test_two_copies_of_a_card_never_share_an_identity_for_different_records(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(first, b"1" * 16, 1, 2, 3)
    shutil.copytree(first, second)
    assert not run(first, b"2" * 16, 10, 11).current_fault("buffer corrupt")
    assert not run(second, b"3" * 16, 20, 21).current_fault("buffer corrupt")
    for stream in buffer.STREAMS:
        mine, other = identities(first, stream), identities(second, stream)
        shared = mine.keys() & other.keys()
        assert len(shared) == 3
        assert all(mine[identity] == other[identity] for identity in shared)
    keks = [{row["id"] for file in admin.key_report(card)["files"] for row in file["keys"]} for card in (first, second)]
    assert len(keks[0] & keks[1]) == 2  # the old data key of either stream: the new blocks are under keys of their own


def test_two_copies_that_were_started_without_writing_do_not_share_one_either(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    run(origin, b"1" * 16, 1)
    run(origin, b"2" * 16)  # an instance without a block
    copies = [tmp_path / "a", tmp_path / "b"]
    for number, copy in enumerate(copies):
        shutil.copytree(origin, copy)
        run(copy, bytes([65 + number]) * 16, 5.0 + number)
    a, b = (identities(copy) for copy in copies)
    assert len(a.keys() & b.keys()) == 1
    with closing(sqlite3.connect(files.database(copies[0], "data"))) as connection:
        assert connection.execute("SELECT count(*) FROM instances").fetchone() == (2,)  # empty ones do not pile up


def test_a_restored_image_of_the_whole_folder_goes_on_under_new_identities(tmp_path: Path) -> None:
    live, image = tmp_path / "live", tmp_path / "image"
    run(live, b"1" * 16, 1, 2)
    deliver(live, 1)
    shutil.copytree(live, image)
    run(live, b"2" * 16, 3, 4)
    lost = identities(live)
    shutil.rmtree(live)
    shutil.copytree(image, live)
    run(live, b"3" * 16, 30, 40)
    now = identities(live)
    assert all(now[identity] == lost[identity] for identity in now.keys() & lost.keys())
    reader = buffer.Reader(live, KEK)
    left = reader.read("data", buffer.Marks(live).get("data"))
    reader.close()
    assert values(left) == [2.0, 30.0, 40.0]  # a mark of an old instance still finds its place


@pytest.mark.parametrize("boot", [b"1" * 16, b"2" * 16])
def test_a_database_that_is_older_than_its_mark_is_told_and_repeats_no_identity(tmp_path: Path, boot: bytes) -> None:
    live, image = tmp_path / "live", tmp_path / "image"
    run(live, b"1" * 16, 1, 2)
    shutil.copytree(live, image)
    run(live, b"1" * 16, 3, 4, 5)
    delivered = identities(live)
    alerts_delivered = identities(live, "alerts")
    deliver(live)
    shutil.rmtree(live / "buffer")
    shutil.copytree(image / "buffer", live / "buffer")
    rig = run(live, boot, 30)
    told = rig.current_fault("buffer corrupt")
    assert "data.db is older" in told and "alerts.db is older" in told and "ends with block 2, block 5" in told
    now = identities(live)
    assert all(now[identity] == delivered[identity] for identity in now.keys() & delivered.keys())
    assert {record.value for key, record in now.items() if key not in delivered} == {30.0}  # type: ignore[attr-defined]
    fresh = identities(live, "alerts")
    assert all(fresh[identity] == alerts_delivered[identity] for identity in fresh.keys() & alerts_delivered.keys())
    restored = [gap for gap in gaps(live) if gap.reason == "restored"]
    old = next(iter(delivered))[0]
    assert (old, 3, 0) in {(gap.instance, gap.first, gap.count) for gap in restored}
    assert len(restored) == 2
    reader = buffer.Reader(live, KEK)
    assert values(reader.read("data", buffer.Marks(live).get("data"))) == [30.0]  # nothing new counts as delivered
    reader.close()
    again = run(live, boot, 31)
    assert not again.current_fault("buffer corrupt")  # told once
    assert len([gap for gap in gaps(live) if gap.reason == "restored"]) == 2


def test_a_mark_that_overtakes_the_file_while_the_agent_runs_is_noticed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(1))
    before = read_all(tmp_path, "data")[0]
    buffer.Marks(tmp_path).set("data", buffer.Position(before.instance, 70))  # as cloud-sync learns from Kafka
    rig.buffer.prune()
    rig.wait(lambda: "ends with block 1, block 70" in rig.current_fault("buffer corrupt"))
    rig.commit(numeric(2))
    rig.wait(lambda: any(gap.reason == "restored" for gap in gaps(tmp_path)))
    newest = read_all(tmp_path, "data")[-1]
    assert values([newest]) == [2.0] and newest.number == 71 and newest.instance != before.instance
    rig.close()


def test_an_ordinary_restart_or_a_damaged_mark_is_no_older_copy(tmp_path: Path) -> None:
    run(tmp_path, b"1" * 16, 1, 2)
    deliver(tmp_path)
    assert not run(tmp_path, b"1" * 16).faults
    (tmp_path / "marks" / "other.json").write_text("{")
    assert not run(tmp_path, b"2" * 16, 3).faults
    assert len({instance for instance, _ in identities(tmp_path)}) <= 2


def test_steps_of_the_wall_clock_change_no_order_lose_nothing_and_keep_every_key_that_is_needed(tmp_path: Path) -> None:
    chance = random.Random(3)
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock, max_age_h=1)
    for number in range(60):
        if number % 4 == 0:
            clock.utc_step_ns = chance.choice((-1, 1)) * chance.randrange(40 * 86_400) * 1_000_000_000
            clock.state = chance.choice((0, 1, 2))
        if number % 10 == 9:
            rig.buffer.prune()  # tidies: age, keys
        if number % 25 == 24:
            rig.close()
            rig = Rig(tmp_path, clock=clock, max_age_h=1)
        rig.commit(numeric(number), alert(number))
    rig.buffer.prune()
    rig.close()
    assert not rig.faults
    assert values(read_all(tmp_path, "data")) == [float(number) for number in range(60)]
    assert [sequence for _, sequence in identities(tmp_path)] == list(range(1, 61))
    assert admin.verify(tmp_path, KEK)["ok"]
    assert gaps(tmp_path) == []


def test_hours_of_room_follow_the_rate(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock, quota_mb=100)
    rig.commit(numeric(0))
    assert rig.buffer.stats()["capacity_h"] is None
    looks = rig.buffer._rate
    rig.wait(lambda: looks._looks)
    for number in range(1, 8):
        rig.commit(numeric(number))
        seen = len(looks._looks)
        clock.mono_step_ns += 20_000_000_000
        rig.wait(lambda seen=seen: len(looks._looks) > seen)
    stats = rig.buffer.stats()
    assert 1 < stats["bytes_per_s"] < 60  # a sealed block of one record every 20 s
    expected = (100 << 20) / stats["bytes_per_s"] / 3600
    assert abs(stats["capacity_h"] / expected - 1) < 0.05
    assert 0 < stats["room_h"] < stats["capacity_h"]
    offline = admin.capacity(tmp_path, 100 << 20)
    assert offline["bytes"] == stats["bytes"]
    rig.close()
