"""Random damage of every kind, opened by the agent itself: it starts, tells what is lost, and gives no wrong value.

Both files and both ways of ending are damaged: closed in order, and killed with a write-ahead log. What may come out is
the record that went in under its identity, or a word that it is missing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, gaps, numeric, read_all, wave

from edge_agent import buffer
from edge_agent.buffer import admin, files
from edge_agent.records import Gap

TURNS = 6  # of each damage to each kind of file
PAGE = 4096


class Origin(NamedTuple):
    """A gateway's folder as it was left, an older picture of it, and what it held."""

    closed: Path
    killed: Path  # the same records, most of them in the write-ahead log
    older: Path
    held: dict[str, dict[tuple[str, int], object]]  # of `closed`
    held_killed: dict[str, dict[tuple[str, int], object]]


def contents(data_dir: Path) -> dict[str, dict[tuple[str, int], object]]:
    """By stream every record under its identity; the Gaps that stand for damaged blocks are left out."""
    return {
        stream: {
            (block.instance, sequence): entry.record
            for block in read_all(data_dir, stream)
            if not block.damaged
            for sequence, entry in enumerate(block.entries, block.first)
        }
        for stream in buffer.STREAMS
    }


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    root = tmp_path_factory.mktemp("origin")
    clock = FakeClock()

    def fill(rig: Rig, start: int, end: int) -> None:
        for number in range(start, end):
            rig.commit(numeric(number), numeric(-number), wave(number, 300), alert(number))

    rig = Rig(root / "live", clock=clock)
    fill(rig, 1, 30)
    rig.close()
    shutil.copytree(root / "live", root / "older")
    clock.utc_step_ns = 86_400_000_000_000
    rig = Rig(root / "live", clock=clock)
    fill(rig, 30, 90)
    shutil.copytree(root / "live", root / "killed")
    rig.close()
    assert (root / "killed" / "buffer" / "data.db-wal").stat().st_size > 50 * PAGE
    shutil.copytree(root / "killed", root / "looked-at")
    return Origin(root / "live", root / "killed", root / "older", contents(root / "live"), contents(root / "looked-at"))


Damage = Callable[[Path, Path, random.Random], None]  # a database, its older picture, chance


def target(path: Path, chance: random.Random) -> Path:
    """The database, or its log where there is one."""
    log = files.beside(path, "-wal")
    return log if log.exists() and log.stat().st_size and chance.random() < 0.6 else path


def bit_flips(path: Path, _older: Path, chance: random.Random) -> None:
    path = target(path, chance)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncation(path: Path, _older: Path, chance: random.Random) -> None:
    path = target(path, chance)
    size = path.stat().st_size
    keep = chance.choice((0, 1, 16, 99, 100, PAGE, size - 1, chance.randrange(size), chance.randrange(size)))
    path.write_bytes(path.read_bytes()[:keep])


def swapped_pages(path: Path, _older: Path, chance: random.Random) -> None:
    path = target(path, chance)
    data = bytearray(path.read_bytes())
    first, second = (chance.randrange(len(data) // PAGE) * PAGE for _ in range(2))
    data[first : first + PAGE], data[second : second + PAGE] = (
        data[second : second + PAGE], data[first : first + PAGE],
    )  # fmt: skip
    path.write_bytes(data)


def pages_of_an_older_picture(path: Path, older: Path, chance: random.Random) -> None:
    data, old = bytearray(path.read_bytes()), older.read_bytes()
    for _ in range(chance.choice((1, 3, 10))):
        place = chance.randrange(min(len(data), len(old)) // PAGE) * PAGE
        data[place : place + PAGE] = old[place : place + PAGE]
    path.write_bytes(data)


def the_whole_older_file_under_the_newer_log(path: Path, older: Path, _chance: random.Random) -> None:
    shutil.copy(older, path)


def a_log_of_another_time(path: Path, older: Path, chance: random.Random) -> None:
    log = files.beside(path, "-wal")
    content = log.read_bytes() if log.exists() else chance.randbytes(20 * PAGE)
    shutil.copy(older, path)
    log.write_bytes(content[: chance.randrange(len(content) + 1)])


def zeros(path: Path, _older: Path, chance: random.Random) -> None:
    path = target(path, chance)
    data = bytearray(path.read_bytes())
    start, length = chance.randrange(len(data)), chance.choice((512, PAGE, 8 * PAGE))
    end = min(start + length, len(data))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def noise(path: Path, _older: Path, chance: random.Random) -> None:
    path = target(path, chance)
    data = bytearray(path.read_bytes())
    start, length = chance.randrange(len(data)), chance.choice((512, PAGE, 8 * PAGE))
    end = min(start + length, len(data))
    data[start:end] = chance.randbytes(end - start)
    path.write_bytes(data)


def the_other_streams_file(path: Path, _older: Path, _chance: random.Random) -> None:
    other = path.with_name("alerts.db" if path.name == "data.db" else "data.db")
    for suffix in ("-wal", "-shm"):
        files.beside(path, suffix).unlink(missing_ok=True)
    shutil.copy(other, path)


def gone(path: Path, _older: Path, chance: random.Random) -> None:
    path.unlink()
    if chance.random() < 0.5:
        files.beside(path, "-wal").unlink(missing_ok=True)


def gone_log(path: Path, _older: Path, _chance: random.Random) -> None:
    files.beside(path, "-wal").unlink(missing_ok=True)


DAMAGES = [
    bit_flips, truncation, swapped_pages, pages_of_an_older_picture, the_whole_older_file_under_the_newer_log,
    a_log_of_another_time, zeros, noise, the_other_streams_file, gone, gone_log,
]  # fmt: skip
# After these a file may be whole and only older or empty; no mark speaks of what is missing, so nobody can tell it.
UNTOLD = {
    truncation, the_whole_older_file_under_the_newer_log, a_log_of_another_time, gone, gone_log, zeros, noise,
    bit_flips, swapped_pages, pages_of_an_older_picture,
}  # fmt: skip


@pytest.mark.parametrize("left", ["closed", "killed"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_survived_and_no_record_is_ever_wrong(
    tmp_path: Path, origin: Origin, damage: Damage, left: str
) -> None:
    chance = random.Random(f"{damage.__name__} {left}")
    before = origin.held if left == "closed" else origin.held_killed
    for turn in range(TURNS):
        here = tmp_path / str(turn)
        shutil.copytree(origin.closed if left == "closed" else origin.killed, here)
        stream = chance.choice(buffer.STREAMS)
        path = files.database(here, stream)
        damage(path, files.database(origin.older, stream), chance)
        rig = Rig(here)
        rig.commit(numeric(1000.0), alert(1000))
        after = contents(here)
        known = {key for found in before.values() for key in found}
        for name in buffer.STREAMS:
            for identity, record in after[name].items():
                if identity in known:
                    assert record == before[name].get(identity), (
                        turn,
                        identity,
                    )  # never a wrong one, nor in another file
        assert 1000.0 in {getattr(record, "value", None) for record in after["data"].values()}
        assert "a1000" in {getattr(record, "alert_id", None) for record in after["alerts"].values()}
        _is_told(rig, here, before, after, left, damage)
        rig.close()
        report = admin.verify(here, KEK)
        if left == "killed" or rig.current_fault(
            "buffer corrupt"
        ):  # else the start has looked at the newest blocks only
            assert all(not found["fault"] for found in report["streams"].values())
        again = Rig(here)
        again.commit(numeric(1001.0))
        again.close()
        assert not again.current_fault("buffer key")
        assert not again.current_fault("buffer corrupt"), turn  # what was put aside stays there
        shutil.rmtree(here)


def _is_told(
    rig: Rig,
    here: Path,
    before: dict[str, dict[tuple[str, int], object]],
    after: dict[str, dict[tuple[str, int], object]],
    left: str,
    damage: Damage,
) -> None:
    """What is missing is in a Gap, or in a damaged block's place, or a Gap of unknown extent stands for it."""
    lost = {identity for name in buffer.STREAMS for identity in before[name].keys() - after[name].keys()}
    if not lost:
        return
    aside = rig.current_fault("buffer corrupt")
    if not aside and (left == "killed" or damage in UNTOLD) and not _damaged(here):
        return  # a whole, older file: without a mark that is ahead nothing speaks of it

    def told() -> bool:
        found = [*gaps(here), *_damaged(here)]
        spans = {(gap.instance, number) for gap in found for number in range(gap.first, gap.last + 1)}
        return any(gap.count == 0 for gap in found) or lost <= spans

    rig.wait(told, 20)


def _damaged(here: Path) -> list[Gap]:
    return [
        entry.record
        for stream in buffer.STREAMS
        for block in read_all(here, stream)
        if block.damaged
        for entry in block.entries
        if isinstance(entry.record, Gap)
    ]


def test_truncation_at_any_length_of_the_log_keeps_what_precedes_it(tmp_path: Path, origin: Origin) -> None:
    chance = random.Random(5)
    size = (origin.killed / "buffer" / "data.db-wal").stat().st_size
    for turn in range(25):
        here = tmp_path / str(turn)
        shutil.copytree(origin.killed, here)
        log = here / "buffer" / "data.db-wal"
        log.write_bytes(log.read_bytes()[: chance.randrange(size)])
        rig = Rig(here)
        rig.commit(numeric(1000.0))
        assert not rig.faults  # a torn log is what a power cut leaves
        rig.close()
        after = contents(here)["data"]
        kept = [identity for identity in origin.held_killed["data"] if identity in after]
        assert kept == list(origin.held_killed["data"])[: len(kept)]
        assert all(after[identity] == origin.held_killed["data"][identity] for identity in kept)
        shutil.rmtree(here)
