"""The size of a release's virtual environment, made by the installer's own hand from the lock and nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.release import lean
from edge_agent.release.installer import environment
from edge_agent.release.machine import Python
from tests.fleet import image

LIMIT_MB = 250
CURRENT_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"


def disk_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk, as `du` counts them."""
    seen = {(at.st_dev, at.st_ino): at.st_blocks * 512 for at in (path.lstat() for path in folder.rglob("*"))}
    return sum(seen.values())


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    wheel = Path(shutil.copy2(image.project_wheel(), folder))
    (folder / "wheels").symlink_to(image.wheels())
    shutil.copy(image.REPOSITORY / "requirements.lock", folder)
    environment(folder, folder, wheel.name, Python(str(CURRENT_PYTHON)))
    return folder / ".venv"


def test_the_environment_of_a_release_is_small(venv: Path) -> None:
    (packages,) = venv.glob("lib/python3*/site-packages")
    parts = sorted(((disk_bytes(part), part.name) for part in packages.iterdir() if part.is_dir()), reverse=True)
    size = disk_bytes(venv) / 1e6
    told = ", ".join(f"{name} {part / 1e6:.0f}" for part, name in parts[:10])
    print(f"{size:.0f} MB: {told}")
    assert size <= LIMIT_MB, f"{size:.0f} MB, at most {LIMIT_MB}; the largest: {told}"


def test_what_is_left_out_was_there_and_nothing_misses_it(venv: Path) -> None:
    with_all = Path(importlib.util.find_spec("msgspec").submodule_search_locations[0]).parent
    for pattern in lean.UNUSED:
        assert any(with_all.glob(pattern)), f"{pattern} matches nothing any more: take it out of the list"
        assert not any(next(venv.glob("lib/python3*/site-packages")).glob(pattern))
    done = subprocess.run([venv / "bin" / "edge-agent", "model", "verify"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "accepted" in done.stdout, done.stderr
    code = (
        "import zstandard, numpy, cloud_sync.sinks.kafka, cloud_sync.sinks.rest, sqlite_utils; print(zstandard.backend)"
    )
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cext\n"
