"""Programs that the measurements are held against and the product does not need, fetched when first asked for.

They are installed into a folder of their own below .cache, with the hashes of bench/peers.lock, and never become part
of the environment that the product runs in.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("peers.lock")
FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "peers"


def fetch() -> tuple[Path | None, str]:
    """The folder to put on the path, and why there is none when there is none."""
    stamp = FOLDER / LOCK.name
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return FOLDER, ""
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", "--require-hashes", "--target", str(FOLDER), "-r", str(LOCK),
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    if done.returncode:
        shutil.rmtree(FOLDER, ignore_errors=True)
        return None, (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    shutil.copyfile(LOCK, stamp)
    return FOLDER, ""
