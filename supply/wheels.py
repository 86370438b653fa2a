"""Wheels of the lock for another machine: `python -m supply.wheels --python 3.13 --machine aarch64 FOLDER`.

For releases that install without a package index. `pip download` alone looks at the lock's markers with the Python that
it runs in, whatever it is asked for: for Debian 13 it fetched the numpy of Debian 12. Here they are looked at for the
gateway's Python. Hashes are checked as ever. Exit status 1, with pip's words, when a package has no wheel there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from supply.lock import ROOT, LockError, Pin, pins

MACHINES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13")
_GLIBC = (17, 24, 27, 28, 31, 34, 35)  # Ubuntu 22.04 has 2.35, the oldest of the systems that are supported


def download(locked: Sequence[Pin], python: str, machine: str, folder: Path) -> None:
    """Fetch the wheels into `folder`. Raises: LockError with pip's words."""
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC)]
    with tempfile.NamedTemporaryFile("w", suffix=".lock") as wanted:
        for pin in locked:
            wanted.write(f"{pin.name}=={pin.version} {' '.join(f'--hash=sha256:{each}' for each in pin.hashes)}\n")
        wanted.flush()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
             "--no-deps", "--only-binary=:all:", *(word for each in platforms for word in ("--platform", each)),
             "--python-version", python, "-r", wanted.name, "-d", str(folder)],
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
    if done.returncode:
        raise LockError(f"no wheels for Python {python} on {machine}:\n{done.stderr.strip()[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all wheels are there."""
    parser = argparse.ArgumentParser(prog="python -m supply.wheels", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--python", choices=PYTHONS, default="3.11", help="of the gateways; default: 3.11")
    parser.add_argument("--machine", choices=MACHINES, default="aarch64", help="of the gateways; default: aarch64")
    options = parser.parse_args(arguments)
    try:
        locked = pins(ROOT, options.python)
        download(locked, options.python, options.machine, options.folder)
    except LockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{len(locked)} packages in {options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
