"""Every package of the lock has wheels for arm64: Raspberry Pi OS and Debian 12 (Python 3.11), Debian 13 (3.13).

Resolved from any machine. That they run is tried by `make test-arm64`, every night.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from supply import lock, wheels
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
    with pytest.raises(lock.LockError, match="DO NOT MATCH THE HASHES"):
        wheels.download([lock.Pin("h11", "0.16.0", ("0" * 64,), ())], "3.11", "aarch64", tmp_path)


def test_a_package_without_a_wheel_is_named(tmp_path: Path) -> None:
    pin = lock.Pin("pyobjc-core", "13.0", ("0" * 64,), ())
    with pytest.raises(lock.LockError, match=r"no wheels for Python 3\.13 on aarch64"):
        wheels.download([pin], "3.13", "aarch64", tmp_path)
