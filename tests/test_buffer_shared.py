"""The buffer's files are private, unless their folder shares them; tests/fleet/test_sandbox.py has the second user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from buffer_rig import Rig, numeric

from edge_agent.buffer import Position, files
from edge_agent.buffer.marks import Marks


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("folder_mode", "wanted"), [(0o700, 0o600), (0o750, 0o600), (0o2750, 0o640)])
def test_the_folder_says_who_may_read(tmp_path: Path, folder_mode: int, wanted: int) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    folder.chmod(folder_mode)
    before = os.umask(0o077)  # the agent's; the bit counts, whatever it is
    try:
        Marks(tmp_path).set("data", Position("9b0a3c2e-0000-4000-8000-000000000000", 7))
    finally:
        os.umask(before)
    assert mode(folder / "data.json") == wanted


def test_files_from_before_the_folder_was_shared_are_adapted(tmp_path: Path) -> None:
    for name in ("data.db", "data.db-wal", "data.db-shm", "data.lock"):
        (tmp_path / name).touch(0o600)
    tmp_path.chmod(0o2750)
    files.adapt(tmp_path / "data.db")
    assert [mode(tmp_path / name) for name in ("data.db", "data.db-wal", "data.db-shm")] == [0o640] * 3
    assert mode(tmp_path / "data.lock") == 0o600, "nobody else may hold the writer's lock"
    tmp_path.chmod(0o700)
    files.adapt(tmp_path / "data.db")
    assert mode(tmp_path / "data.db") == 0o600


def test_a_shared_folder_shares_the_database_its_log_and_its_index(tmp_path: Path) -> None:
    shared = tmp_path / "buffer"
    shared.mkdir()
    shared.chmod(0o2750)
    rig = Rig(tmp_path)
    try:
        rig.commit(numeric(97.0))
        for name in ("data.db", "data.db-wal", "data.db-shm"):
            assert mode(shared / name) == 0o640, name
        assert mode(shared / "data.lock") == 0o600, "nobody else may hold the writer's lock"
    finally:
        rig.close()


def test_a_private_folder_keeps_everything_private(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    try:
        rig.commit(numeric(97.0))
        for name in ("data.db", "data.db-wal", "data.db-shm", "data.lock"):
            assert mode(tmp_path / "buffer" / name) == 0o600, name
    finally:
        rig.close()
