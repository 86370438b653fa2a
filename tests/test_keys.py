"""Keys: made whole, changed without a moment at which neither the old nor the new one opens a file, erased for good."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, numeric, read_all, values

from edge_agent import buffer
from edge_agent.alarm_log.log import FILE, AlarmLog
from edge_agent.buffer import admin, files, keys, rewrap
from edge_agent.records import AlarmEvent

NEW = bytes(range(101, 133))
OLD_ID, NEW_ID = keys.fingerprint(KEK), keys.fingerprint(NEW)


class Log:
    """An alarm log beside the buffer and what it has said."""

    def __init__(self, data_dir: Path, kek: bytes) -> None:
        self.faults: list[tuple[str, str]] = []
        self.log = AlarmLog(
            data_dir / FILE, kek, run_id="r", on_fault=lambda kind, text: self.faults.append((kind, text)), log_mb=8
        )

    def add(self, number: int) -> None:
        event = AlarmEvent(f"a{number}", "spo2_low", "physiological", "high", "start", "On", time.monotonic_ns())
        assert self.log.wait_durable(self.log.append("ICU-3", "MRN-1", event), 30)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A stopped gateway with three days of data keys, alerts and an alarm log."""
    data_dir = tmp_path / "data"
    clock = FakeClock()
    for day in range(3):
        clock.utc_step_ns = day * 86_400_000_000_000
        rig = Rig(data_dir, clock=clock)
        rig.commit(numeric(day), alert(day))
        rig.close()
    log = Log(data_dir, KEK)
    log.add(1)
    assert log.log.close()
    return data_dir


def wrapped(data_dir: Path) -> dict[str, list[tuple[bytes, bytes]]]:
    """The wrapped keys of every file with the fingerprint of what wraps them."""
    out = {}
    for path, table in rewrap.places(data_dir):
        connection = sqlite3.connect(path)
        out[path.name] = connection.execute(f"SELECT wrapped, kek FROM {table}").fetchall()
        connection.close()
    return out


def holds(data_dir: Path, piece: bytes) -> list[str]:
    """Names of the files below the folder in which these bytes occur."""
    return [path.name for path in data_dir.rglob("*") if path.is_file() and piece in path.read_bytes()]


def opens(data_dir: Path, kek: bytes) -> None:
    """With this key an agent starts, puts nothing aside, and reads everything; the alarm log as well."""
    rig = Rig(data_dir, kek=kek)
    rig.commit(numeric(1000))
    log = Log(data_dir, kek)
    assert log.log.wait_ready(30)
    log.add(2)
    assert [item.event.alert_id for item in log.log.active()] == ["a1"]
    assert log.log.close()
    rig.close()
    assert not [fault for fault in rig.faults + log.faults if fault[1]]
    assert not admin.key_report(data_dir)["quarantine"]
    assert values(read_all(data_dir, "data", kek)) == [0.0, 1.0, 2.0, 1000.0]
    assert len(read_all(data_dir, "alerts", kek)) == 3
    assert admin.verify(data_dir, kek)["ok"]


def test_the_alarm_log_is_where_the_rotation_looks_for_it() -> None:
    assert files.ALARM_LOG == FILE


def test_rotation_wraps_every_key_anew_and_leaves_no_old_one(site: Path) -> None:
    before = wrapped(site)
    sealed = [(block.instance, block.number, block.entries) for block in read_all(site, "data")]
    assert rewrap.rotate(site, KEK, NEW) == {"alerts.db": 3, "data.db": 3, FILE: 1}
    after = wrapped(site)
    assert {kek for rows in after.values() for _, kek in rows} == {NEW_ID}
    for rows in before.values():
        for piece, _ in rows:
            assert holds(site, piece) == []
    assert not (site / rewrap.NOTE).exists()
    assert [(block.instance, block.number, block.entries) for block in read_all(site, "data", NEW)] == sealed
    with pytest.raises(buffer.KeyProblem, match=OLD_ID.hex()):
        read_all(site, "data", KEK)
    opens(site, NEW)


def test_the_old_key_after_a_rotation_puts_aside_and_the_new_one_still_opens_what_was_put_aside(site: Path) -> None:
    rewrap.rotate(site, KEK, NEW)
    rig = Rig(site, kek=KEK)
    rig.commit(numeric(5))
    log = Log(site, KEK)
    log.add(2)
    assert log.log.close()
    rig.close()
    assert NEW_ID.hex() in rig.current_fault("buffer key")
    assert any(kind == "log key" and NEW_ID.hex() in text for kind, text in log.faults)
    aside = admin.key_report(site)["quarantine"]
    assert [folder["keks"] for folder in aside] == [[NEW_ID.hex()]] * 3
    (folder,) = (site / "buffer" / "quarantine").glob("data-*")
    assert admin.verify(site, NEW, folder / "data.db")["streams"]["data"]["records"] == 3


@pytest.mark.parametrize("finished", range(4))
@pytest.mark.parametrize("by", ["rotate", "agent"])
def test_an_interrupted_rotation_is_taken_up(
    site: Path, finished: int, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = rewrap.rewrap, []

    def dies(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) > finished:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rewrap, "rewrap", dies)
    if finished == 3:  # everything is done but the note
        monkeypatch.setattr(rewrap, "end", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rewrap.rotate(site, KEK, NEW)
    monkeypatch.undo()
    assert len(rewrap.under(site, NEW_ID)) == finished
    assert admin.key_report(site)["rotation"] == {"old": OLD_ID.hex(), "new": NEW_ID.hex()}
    if by == "rotate":
        given = NEW if finished % 2 else KEK  # the configuration may name either by now
        assert sum(rewrap.rotate(site, given, NEW).values()) == 7 - (0, 3, 6, 7)[finished]
        assert not (site / rewrap.NOTE).exists()
    opens(site, NEW)
    assert not rewrap.under(site, OLD_ID)


def test_an_agent_that_finishes_a_rotation_removes_the_note(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrap, "rewrap", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rewrap.rotate(site, KEK, NEW)
    monkeypatch.undo()
    assert (site / rewrap.NOTE).exists()
    opens(site, NEW)
    assert not (site / rewrap.NOTE).exists()


def test_before_the_first_file_is_changed_the_old_key_still_opens_everything(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrap, "rewrap", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rewrap.rotate(site, KEK, NEW)
    monkeypatch.undo()
    opens(site, KEK)
    assert sum(rewrap.rotate(site, KEK, NEW).values()) >= 7
    assert rewrap.under(site, OLD_ID) == []


def test_a_rotation_that_is_killed_anywhere_can_be_finished(site: Path, tmp_path: Path) -> None:
    chance = random.Random(11)
    started = time.perf_counter()
    shutil.copytree(site, tmp_path / "timed")
    rewrap.rotate(tmp_path / "timed", KEK, NEW)
    whole_s = time.perf_counter() - started
    interrupted = 0
    for turn in range(25):
        here = tmp_path / str(turn)
        shutil.copytree(site, here)
        child = os.fork()
        if child == 0:
            try:
                rewrap.rotate(here, KEK, NEW)
            finally:
                os._exit(0)
        time.sleep(chance.random() * whole_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += bool(rewrap.under(here, OLD_ID)) or (here / rewrap.NOTE).exists()
        rows = [row for rows in wrapped(here).values() for row in rows]
        assert all(keys.unwrap(KEK if kek == OLD_ID else NEW, piece) for piece, kek in rows)
        if rewrap.under(here, OLD_ID):
            rewrap.rotate(here, KEK, NEW)
        for stream in buffer.STREAMS:
            assert len(read_all(here, stream, NEW)) == 3
        shutil.rmtree(here)
    assert interrupted > 3


def test_a_running_agent_is_not_disturbed(site: Path) -> None:
    rig = Rig(site)
    rig.commit(numeric(3))
    before = wrapped(site)
    with pytest.raises(buffer.KeyProblem, match=r"alerts\.lock: an agent runs.*\n.*systemctl stop"):
        rewrap.rotate(site, KEK, NEW)
    rig.close()
    assert wrapped(site) == before
    log = Log(site, KEK)
    log.add(3)
    with pytest.raises(buffer.KeyProblem, match=r"alarm-log\.lock: an agent runs"):
        rewrap.rotate(site, KEK, NEW)
    assert log.log.close()
    assert wrapped(site) == before
    assert not (site / rewrap.NOTE).exists()


def test_a_reader_that_holds_on_does_not_stop_a_rotation(site: Path) -> None:
    reader = buffer.Reader(site, KEK)
    assert len(reader.read("data", None)) == 3
    rewrap.rotate(site, KEK, NEW)
    assert not rewrap.under(site, OLD_ID)
    reader.close()


def test_what_cannot_be_rotated_is_refused_before_anything_changes(site: Path) -> None:
    third = b"t" * 31 + b"u"
    before = wrapped(site)
    with pytest.raises(buffer.KeyProblem, match="is the present one"):
        rewrap.rotate(site, KEK, KEK)
    with pytest.raises(buffer.KeyProblem, match=r"neither.*nothing was changed"):
        rewrap.rotate(site, third, NEW)
    with pytest.raises(buffer.KeyProblem, match="is not there"):
        rewrap.rotate(site / "none", KEK, NEW)
    assert wrapped(site) == before
    assert not (site / rewrap.NOTE).exists()


def test_a_second_rotation_waits_for_the_first(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = rewrap.rewrap, []

    def once(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rewrap, "rewrap", once)
    with pytest.raises(KeyboardInterrupt):
        rewrap.rotate(site, KEK, NEW)
    monkeypatch.undo()
    with pytest.raises(buffer.KeyProblem, match=f"was interrupted\n.*{NEW_ID.hex()}"):
        rewrap.rotate(site, KEK, b"t" * 31 + b"u")
    rewrap.rotate(site, KEK, NEW)
    assert rewrap.under(site, OLD_ID) == []


def test_a_damaged_wrapped_key_does_not_hold_up_a_rotation(site: Path) -> None:
    connection = sqlite3.connect(files.database(site, "data"))
    connection.execute("UPDATE keys SET wrapped = zeroblob(40) WHERE id = (SELECT id FROM keys ORDER BY since LIMIT 1)")
    connection.commit()
    connection.close()
    rewrap.rotate(site, KEK, NEW)
    assert rewrap.under(site, OLD_ID) == []
    blocks = read_all(site, "data", NEW)
    assert [bool(block.damaged) for block in blocks] == [True, False, False]


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": 1}', b'{"version":1,"old":"00","new":"11","wrapped":"22","crc":5}']
)
def test_a_damaged_note_of_a_rotation_stands_for_none(site: Path, content: bytes) -> None:
    (site / rewrap.NOTE).write_bytes(content)
    assert rewrap.read_note(site) is None
    opens(site, KEK)
    rewrap.rotate(site, KEK, NEW)
    assert not (site / rewrap.NOTE).exists()


def test_the_note_never_tells_the_new_key_to_who_knows_the_old_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrap, "rewrap", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rewrap.rotate(site, KEK, NEW)
    note = rewrap.read_note(site)
    assert note is not None
    assert keys.unwrap(KEK, note.wrapped) is None
    assert keys.unwrap(NEW, note.wrapped) == KEK
    assert holds(site, KEK) + holds(site, NEW) + holds(site, KEK.hex().encode()) + holds(site, NEW.hex().encode()) == []


@pytest.mark.parametrize("days", [3, 120])  # 120 rows of the table of keys fill more than one page
def test_a_drained_data_key_is_gone_from_every_byte_of_the_files(tmp_path: Path, days: int) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock)
    for day in range(days):
        clock.utc_step_ns = day * 86_400_000_000_000
        rig.commit(numeric(day))
    connection = sqlite3.connect(files.database(tmp_path, "data"))
    old = [row[0] for row in connection.execute("SELECT wrapped FROM keys ORDER BY since")]
    connection.close()
    assert len(old) == days
    assert all(holds(tmp_path, piece) for piece in old)
    blocks = read_all(tmp_path, "data")
    buffer.Marks(tmp_path).set("data", blocks[-2].position)
    rig.buffer.prune()
    rig.wait(lambda: not holds(tmp_path, old[0]))
    assert [piece for piece in old[:-1] if holds(tmp_path, piece)] == []
    assert holds(tmp_path, old[-1])
    (found,) = [file for file in admin.key_report(tmp_path)["files"] if file["file"].endswith("data.db")]
    assert (found["erased"], len(found["keys"])) == (days - 1, 1)
    assert values(read_all(tmp_path, "data")) == [float(days - 1)]
    rig.close()


def test_a_key_between_others_goes_as_soon_as_its_own_blocks_are_gone(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock)
    for day in range(4):
        clock.utc_step_ns = day * 86_400_000_000_000
        rig.commit(numeric(day))
    rig.close()
    connection = sqlite3.connect(files.database(tmp_path, "data"))
    (middle,) = connection.execute("SELECT wrapped FROM keys ORDER BY since LIMIT 1 OFFSET 1").fetchone()
    connection.execute("DELETE FROM blocks WHERE number = 2")
    connection.commit()
    connection.close()
    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(9))
    rig.buffer.prune()
    rig.wait(lambda: not holds(tmp_path, middle))
    assert values(read_all(tmp_path, "data")) == [0.0, 2.0, 3.0, 9.0]
    rig.close()


def test_a_reader_in_the_middle_only_delays_the_erasure(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, clock=clock)
    rig.commit(numeric(0))
    clock.utc_step_ns = 86_400_000_000_000
    rig.commit(numeric(1))
    connection = sqlite3.connect(files.database(tmp_path, "data"), isolation_level=None)
    (old,) = connection.execute("SELECT wrapped FROM keys ORDER BY since LIMIT 1").fetchone()
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM keys").fetchone()
    buffer.Marks(tmp_path).set("data", read_all(tmp_path, "data")[0].position)
    started = time.monotonic()
    rig.buffer.prune()
    assert time.monotonic() - started < 2.0  # it does not wait for the reader
    assert holds(tmp_path, old)
    connection.execute("COMMIT")
    connection.close()
    rig.buffer.prune()
    rig.wait(lambda: not holds(tmp_path, old))
    rig.close()


def test_a_damaged_file_is_named_before_anything_changes(site: Path) -> None:
    files.database(site, "data").write_bytes(b"x" * 8192)
    with pytest.raises(buffer.KeyProblem, match=r"data\.db: .*nothing was changed\n  start the agent once"):
        rewrap.rotate(site, KEK, NEW)
    assert not (site / rewrap.NOTE).exists()
