"""Damaged, foreign and half-replaced files: the agent starts, nothing is deleted, what is readable is kept."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from buffer_rig import KEK, Rig, alert, gaps, numeric, read_all, values

from edge_agent import buffer
from edge_agent.buffer import admin, files
from edge_agent.buffer.store import Store
from edge_agent.records import Gap

Filled = Callable[..., list[buffer.Block]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where filled buffers are kept, so that each is written once."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def fill(shelf: Path, tmp_path: Path) -> Filled:
    """Puts a closed buffer with `count` blocks of three numerics each into a folder."""

    def filled(count: int = 100, folder: Path = tmp_path) -> list[buffer.Block]:
        kept = shelf / str(count)
        if not kept.exists():
            rig = Rig(kept)
            for value in range(count):
                rig.commit(numeric(value), numeric(value + 0.25), numeric(value + 0.5))
            rig.commit(alert(1))
            rig.close()
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return read_all(folder, "data")

    return filled


def database(tmp_path: Path) -> Path:
    """The data file, with nothing left in its log."""
    path = tmp_path / "buffer" / "data.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def blob_place(path: Path, number: int) -> int:
    """Offset in the file of some byte inside the blob of a block."""
    connection = sqlite3.connect(path)
    (blob,) = connection.execute("SELECT blob FROM blocks WHERE number = ?", (number,)).fetchone()
    connection.close()
    place = path.read_bytes().find(blob[:40])
    assert place > 0
    return place + 30


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def overwrite(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def restart(tmp_path: Path, kek: bytes = KEK) -> Rig:
    """The next start goes on: it takes records, and what was there is told as the test then reads."""
    rig = Rig(tmp_path, kek=kek)
    rig.commit(numeric(1000.0))
    return rig


def test_a_flipped_bit_in_the_tail_is_found_at_start_and_the_rest_is_saved(tmp_path: Path, fill: Filled) -> None:
    before = fill()
    path = database(tmp_path)
    flip(path, blob_place(path, 95))
    image = path.read_bytes()
    rig = restart(tmp_path)
    assert "block 95: tag does not fit" in rig.current_fault("buffer corrupt")
    after = read_all(tmp_path, "data")
    assert after[:-1] == [block for block in before if block.number != 95]
    new = after[-1]
    assert new.instance != before[0].instance
    assert (new.first, new.number) == (1, 101)
    assert values([new]) == [1000.0]
    rig.wait(lambda: gaps(tmp_path))
    (gap,) = gaps(tmp_path)
    lost = before[94]
    assert (gap.reason, gap.first, gap.last, gap.count) == ("quarantine", lost.first, lost.first + 2, 3)
    assert gap.instance == lost.instance
    (folder,) = files.quarantined(tmp_path)
    assert (folder / "data.db").read_bytes() == image
    rig.close()
    assert admin.verify(tmp_path, KEK)["ok"]
    again = Rig(tmp_path)
    again.commit(numeric(1001.0))
    assert not again.faults  # the damage is dealt with
    again.close()


def test_marks_hold_over_a_salvage(tmp_path: Path, fill: Filled) -> None:
    before = fill()
    path = database(tmp_path)
    flip(path, blob_place(path, 95))
    marks = buffer.Marks(tmp_path)
    marks.set("data", before[49].position)
    rig = restart(tmp_path)
    reader = buffer.Reader(tmp_path, KEK)
    assert reader.read("data", marks.get("data"), 1)[0].number == 51
    marks.set("data", before[-1].position)  # all of the old instance
    assert values(reader.read("data", marks.get("data"))) == [1000.0]
    rig.buffer.prune()
    assert values(read_all(tmp_path, "data")) == [1000.0]
    rig.close()


def test_a_reader_passes_a_damaged_block_and_says_what_is_missing(tmp_path: Path, fill: Filled) -> None:
    before = fill()
    path = database(tmp_path)
    flip(path, blob_place(path, 5))  # far from the tail: the start does not look there
    rig = restart(tmp_path)
    assert not rig.faults
    after = read_all(tmp_path, "data")
    assert [block.number for block in after] == list(range(1, 102))
    assert after[4].damaged
    gap = after[4].entries[0].record
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.first, gap.count, gap.instance) == ("damaged", before[4].first, 3, before[4].instance)
    assert [*after[:4], *after[5:-1]] == [*before[:4], *before[5:]]
    report = admin.verify(tmp_path, KEK)
    assert not report["ok"]
    assert [entry["block"] for entry in report["streams"]["data"]["damaged"]] == [5]
    rig.close()


def swap(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TEMP TABLE two AS SELECT number, blob FROM blocks WHERE number IN (98, 99)")
        connection.execute("UPDATE blocks SET blob = (SELECT blob FROM two WHERE number = 99) WHERE number = 98")
        connection.execute("UPDATE blocks SET blob = (SELECT blob FROM two WHERE number = 98) WHERE number = 99")
    connection.close()


def renumber(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET number = 101 WHERE number = 99")
    connection.close()


def alter_first(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET first = first + 1 WHERE number = 99")
    connection.close()


def cut_blob(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET blob = substr(blob, 1, 20) WHERE number = 99")
    connection.close()


@pytest.mark.parametrize("change", [swap, renumber, alter_first, cut_blob])
def test_blocks_that_were_swapped_renumbered_or_cut_are_found(
    tmp_path: Path, fill: Filled, change: Callable[[Path], None]
) -> None:
    before = fill()
    change(database(tmp_path))
    assert not admin.verify(tmp_path, KEK)["ok"]
    rig = restart(tmp_path)
    assert "tag does not fit" in rig.current_fault("buffer corrupt")
    after = read_all(tmp_path, "data")
    assert after[:-1] == [block for block in before if block.number < 98 or block in after]
    assert len(after) in (99, 100)  # one or two lost, one new
    rig.wait(lambda: gaps(tmp_path))
    rig.close()


def cut_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def cut_within_a_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def no_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def zero_page(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2 // 4096 * 4096, bytes(4096))


def noise_page(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2 // 4096 * 4096, os.urandom(4096))


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def other_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()


def newer_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def no_instances(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM instances")
    connection.close()


def no_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE blocks")
    connection.close()


DAMAGES = [
    cut_half, cut_within_a_page, empty, no_header, zero_page, noise_page, noise, zeros, other_program, newer_version,
    no_instances, no_table,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_is_survived_with_a_fault_a_gap_and_the_file_put_aside(
    tmp_path: Path, fill: Filled, damage: Callable[[Path], None]
) -> None:
    before = fill(300)
    path = database(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE state SET clean = 0")  # as after a power cut
    connection.close()
    damage(database(tmp_path))
    image = path.read_bytes()
    rig = restart(tmp_path)
    assert "put aside" in rig.current_fault("buffer corrupt")
    (folder,) = files.quarantined(tmp_path)
    assert (folder / "data.db").read_bytes() == image
    after = read_all(tmp_path, "data")
    assert values(after[-1:]) == [1000.0]
    saved = after[:-1]
    assert saved == [block for block in before if block.number in {kept.number for kept in saved}]
    if damage in (zero_page, noise_page, cut_within_a_page):
        assert len(saved) > 200
    if damage is newer_version:
        assert saved == before
    else:
        rig.wait(lambda: gaps(tmp_path))
        lost = {sequence for block in before for sequence in range(block.first, block.first + block.count)}
        lost -= {sequence for block in saved for sequence in range(block.first, block.first + block.count)}
        told = {sequence for gap in gaps(tmp_path) for sequence in range(gap.first, gap.last + 1)}
        extent_unknown = any(gap.count == 0 for gap in gaps(tmp_path))
        assert lost <= told or extent_unknown
    assert len(after[-1].instance) == 36
    assert after[-1].instance not in {block.instance for block in saved}
    rig.close()
    assert admin.verify(tmp_path, KEK)["ok"]


def test_random_damage_is_survived_and_what_is_lost_is_told(tmp_path: Path, fill: Filled) -> None:
    chance = random.Random(7)
    origin = tmp_path / "origin"
    before = fill(400, origin)
    with sqlite3.connect(origin / "buffer" / "data.db") as connection:
        connection.execute("UPDATE state SET clean = 0")
    connection.close()
    pages = database(origin).stat().st_size // 4096
    whole = {sequence for block in before for sequence in range(block.first, block.first + block.count)}
    shares = []
    for turn in range(30):
        here = tmp_path / str(turn)
        shutil.copytree(origin, here)
        path = here / "buffer" / "data.db"
        start = pages - 2 if turn == 0 else chance.randrange(1, pages)  # page 0 is the schema: told elsewhere
        length = chance.choice((16, 4096, 3 * 4096))
        overwrite(path, start * 4096 + chance.randrange(4096 - 16), chance.randbytes(length))
        rig = restart(here)
        after = read_all(here, "data")
        saved = [block for block in after if not block.damaged and 1000.0 not in values([block])]
        assert saved == [block for block in before if block.number in {kept.number for kept in saved}]
        assert 1000.0 in values(after)
        lost = whole - {sequence for block in saved for sequence in range(block.first, block.first + block.count)}

        def told(here: Path = here, after: list[buffer.Block] = after, lost: set[int] = lost) -> bool:
            found = gaps(here) + [entry.record for block in after if block.damaged for entry in block.entries]
            return any(gap.count == 0 for gap in found) or lost <= {
                sequence for gap in found for sequence in range(gap.first, gap.last + 1)
            }

        rig.wait(told)
        rig.close()
        shares.append(len(saved) / len(before))
    assert sorted(shares)[10] > 0.8  # in most places, most is saved


def test_damage_of_the_alerts_file_is_survived_too(tmp_path: Path, fill: Filled) -> None:
    fill(3)
    (tmp_path / "buffer" / "alerts.db").write_bytes(b"x" * 9000)
    (tmp_path / "buffer" / "alerts.db-wal").unlink(missing_ok=True)
    rig = Rig(tmp_path)
    rig.commit(alert(2))
    assert "alerts.db" in rig.current_fault("buffer corrupt")
    rig.wait(lambda: [gap.count for gap in gaps(tmp_path)] == [0])
    rig.close()


def test_damage_that_shows_while_running_is_recovered_without_losing_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    for value in range(10):
        rig.commit(numeric(value))
    real = Store.begin
    failures = iter([True])

    def begin(self: Store) -> None:
        if self.stream == 1 and next(failures, False):
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # type: ignore[misc]
            raise error
        real(self)

    monkeypatch.setattr(Store, "begin", begin)
    rig.commit(numeric(10))
    assert "malformed" in rig.current_fault("buffer corrupt")
    assert values(read_all(tmp_path, "data")) == [float(value) for value in range(11)]
    assert len({block.instance for block in read_all(tmp_path, "data")}) == 2
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()


def test_another_key_puts_the_file_aside_untouched_and_goes_on(tmp_path: Path, fill: Filled) -> None:
    before = fill(10)
    image = database(tmp_path).read_bytes()
    other = bytes(range(101, 133))
    rig = restart(tmp_path, other)
    rig.wait(lambda: rig.current_fault("buffer key").count("another key-encryption key") == 2)  # both files
    folders = files.quarantined(tmp_path)
    data_folder = next(folder for folder in folders if folder.name.startswith("data-"))
    assert (data_folder / "data.db").read_bytes() == image
    assert values(read_all(tmp_path, "data", other)) == [1000.0]
    rig.wait(lambda: len([gap for gap in _gaps_under(tmp_path, other) if gap.count == 30]) == 1)
    rig.close()
    with pytest.raises(buffer.KeyProblem, match="same key as the agent"):
        buffer.Reader(tmp_path, KEK).read("data", None)
    shutil.copy(data_folder / "data.db", tmp_path / "buffer" / "data.db")  # what the operator does with the old key
    for suffix in ("-wal", "-shm"):
        (tmp_path / "buffer" / f"data.db{suffix}").unlink(missing_ok=True)
    assert read_all(tmp_path, "data") == before


def _gaps_under(tmp_path: Path, kek: bytes) -> list[Gap]:
    blocks = read_all(tmp_path, "alerts", kek)
    return [entry.record for block in blocks for entry in block.entries if isinstance(entry.record, Gap)]


def test_a_log_without_its_database_never_meets_a_new_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(1))
    folder = tmp_path / "buffer"
    kept = (folder / "data.db-wal").read_bytes()
    assert kept
    rig.close()
    (folder / "data.db").unlink()
    (folder / "data.db-wal").write_bytes(kept)
    rig = restart(tmp_path)
    assert "gone" in rig.current_fault("buffer corrupt")
    assert values(read_all(tmp_path, "data")) == [1000.0]
    (aside,) = files.quarantined(tmp_path)
    assert (aside / "data.db-wal").read_bytes() == kept
    rig.close()


@pytest.mark.parametrize("step", ["published", "log dropped", "half built"])
def test_an_interrupted_replacement_is_finished_at_the_next_start(tmp_path: Path, step: str) -> None:
    """The replacement is whole once it is published; a log of the old file must not be replayed into it."""
    rig = Rig(tmp_path)
    for value in range(5):
        rig.commit(numeric(value))
    folder = tmp_path / "buffer"
    crashed = tmp_path / "crashed"
    shutil.copytree(folder, crashed)  # with a log full of committed blocks
    rig.close()
    good = tmp_path / "good"
    fresh = Rig(good)
    fresh.commit(numeric(77))
    fresh.close()
    replacement = database(good)
    shutil.rmtree(folder)
    shutil.copytree(crashed, folder)
    (folder / "data.lock").unlink()
    if step == "half built":
        (folder / "data.db.tmp").write_bytes(replacement.read_bytes()[:5000])
    else:
        shutil.copy(replacement, folder / "data.db.new")
    if step == "log dropped":
        (folder / "data.db-wal").unlink()
    rig = restart(tmp_path)
    expected = [0.0, 1.0, 2.0, 3.0, 4.0] if step == "half built" else [77.0]
    assert values(read_all(tmp_path, "data")) == [*expected, 1000.0]
    assert not rig.faults
    assert not (folder / "data.db.new").exists()
    rig.close()


def test_a_new_database_is_born_in_its_final_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the mode under the final name leaves, when killed, a journal that no reader may roll back."""
    seen: list[tuple[str, bytes, list[str]]] = []
    real = files.publish

    def publish(path: Path) -> None:
        part = files.beside(path, ".tmp")
        beside = [entry.name for entry in path.parent.iterdir() if entry.name.startswith(part.name + "-")]
        seen.append((path.name, part.read_bytes()[18:20], beside))
        real(path)

    monkeypatch.setattr(files, "publish", publish)
    files.make_folder(tmp_path / "buffer")
    (tmp_path / "buffer" / "data.db.tmp-wal").write_bytes(b"of an older attempt")
    rig = Rig(tmp_path)
    rig.commit(numeric(1), alert(1))
    rig.close()
    # file format versions 2 in the header mean WAL: https://www.sqlite.org/fileformat2.html, section 1.3
    assert sorted(seen) == [("alerts.db", b"\x02\x02", []), ("data.db", b"\x02\x02", [])]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_power_cut_right_after_the_change_of_names_leaves_no_old_log(
    tmp_path: Path, fill: Filled, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    fill(3)
    path = tmp_path / "buffer" / "data.db"
    shutil.copy(path, files.beside(path, ".new"))
    files.beside(path, suffix).write_bytes(b"the old log")
    real = os.rename

    def cut(source: Path, target: Path) -> None:
        real(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        files.adopt(path)
    assert not files.beside(path, suffix).exists()


def test_a_reader_follows_a_replaced_file(tmp_path: Path, fill: Filled) -> None:
    fill(3)
    reader = buffer.Reader(tmp_path, KEK)
    place = reader.read("data", None)[-1].position
    overwrite(database(tmp_path), 0, b"x" * 100)
    assert reader.read("data", None) == []
    assert "data.db" in reader.fault
    rig = restart(tmp_path)
    assert values(reader.read("data", place)) == [1000.0]
    rig.close()
    reader.close()
