"""Real file systems that are full or read-only, and real writes that stall or fail, below the unmodified buffer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def play(scene: str, folder: Path, *around: str, env: Mapping[str, str] | None = None) -> None:
    command = [*around, sys.executable, str(TESTS / "disk_scenes.py"), scene, str(folder)]
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, **(env or {})}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def around() -> tuple[str, ...]:
    """What gives a command a mount namespace in which it may mount: as root, or as root of a user namespace."""
    for words in (("unshare", "-m", "--propagation", "private"), ("unshare", "-rm", "--propagation", "private")):
        probe = [*words, "sh", "-c", "mount -t tmpfs edge-probe /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return words
    return ()


def library(folder: Path, source: Path) -> str:
    built = folder / f"{source.stem}.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return str(built)


AROUND = around()
needs_mount = pytest.mark.skipif(
    not AROUND and not os.environ.get("CI"), reason="only who may mount can make such file systems; in CI that fails"
)
needs_cc = pytest.mark.skipif(
    shutil.which("cc") is None and not os.environ.get("CI"), reason="there is no C compiler; with CI that is a failure"
)


@needs_mount
@pytest.mark.parametrize("scene", ["full", "read_only", "agent_read_only", "agent_full"])
def test_a_file_system_without_room_or_right_to_write(tmp_path: Path, scene: str) -> None:
    assert AROUND, "this machine lets nobody mount (unshare -m, unshare -rm)"
    play(scene, tmp_path / "data", *AROUND)


@needs_cc
def test_a_disk_that_takes_five_seconds_for_a_sync(tmp_path: Path) -> None:
    env = {
        "LD_PRELOAD": library(tmp_path, TESTS.parent / "bench" / "stall.c"), "STALL_MS": "5000",
        "STALL_BELOW": str(tmp_path / "data"), "STALL_FLAG": str(tmp_path / "data.flag"),
    }  # fmt: skip
    play("stalls", tmp_path / "data", env=env)


@needs_cc
def test_a_disk_that_refuses_writes_in_the_middle_of_the_work(tmp_path: Path) -> None:
    env = {
        "LD_PRELOAD": library(tmp_path, TESTS / "disk_refuses.c"),
        "REFUSE_BELOW": str(tmp_path / "data" / "buffer"), "REFUSE_FLAG": str(tmp_path / "data.flag"),
    }  # fmt: skip
    play("refuses", tmp_path / "data", env=env)
