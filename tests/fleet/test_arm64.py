"""Every package of the lock has wheels for arm64: Raspberry Pi OS and Debian 12 (Python 3.11), Debian 13 (3.13).

Resolved from any machine. That they run is tried by `make test-arm64`, every night.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from supply import lock
from tests.fleet import arm64


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_every_package_has_a_wheel_for_arm64(python: str) -> None:
    found = {}
    for path in arm64.wheels(python).glob("*.whl"):
        name, version, *_, platform = path.stem.split("-")
        found[lock.canonical(name)] = version
        assert platform == "any" or platform.endswith("aarch64"), path.name
    assert found == {pin.name: pin.version for pin in lock.pins(python=python)}


def test_a_wheel_that_is_not_the_lock_s_is_refused(tmp_path: Path) -> None:
    """Hashes count for arm64, too."""
    (tmp_path / "lock").write_text(f"h11==0.16.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        arm64.download("3.11", tmp_path / "lock", tmp_path / "wheels")
    assert "DO NOT MATCH THE HASHES" in failed.value.stderr
