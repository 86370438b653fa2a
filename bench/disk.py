"""A disk that tells exactly what was written to it: an ext4 image on a loop device.

The kernel counts the sectors that reach the device, the file system's journal and its own tables included. Mounting
needs root and a loop device; without them the count of the process (`write_bytes`, without the journal) stands in, and
the table says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_BYTES = 2 << 30  # sparse: takes only what is written
_SECTOR = 512
_SECTORS_WRITTEN = 6  # place in /sys/block/NAME/stat


class Disk:
    """A mounted folder, and what was written below it."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self._device = folder, device
        self.exact = bool(device)

    def written(self) -> int:
        """Bytes that the device has taken, after everything that waits was written; 0 when nobody tells."""
        if not self._device:
            return 0
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
        finally:
            os.close(descriptor)
        stat = Path(f"/sys/block/{self._device}/stat").read_text().split()
        return int(stat[_SECTORS_WRITTEN]) * _SECTOR


@contextmanager
def mounted() -> Iterator[Disk]:
    """A fresh disk, gone afterwards; a plain folder where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix=".bench-disk-", dir=Path.cwd()))
    device = ""
    try:
        device = _mount(folder / "image", folder / "disk")
        yield Disk(folder / "disk", device.rpartition("/")[2])
    finally:
        if device:
            subprocess.run(["umount", str(folder / "disk")], check=False)
            subprocess.run(["losetup", "-d", device], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _mount(image: Path, folder: Path) -> str:
    """The device, or nothing when it may not be."""
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        return ""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    # everything that a fresh ext4 would write later by itself is written now
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    try:
        device = _run("losetup", "--find", "--show", str(image)).strip()
    except subprocess.CalledProcessError:
        return ""
    try:
        _run("mount", "-t", "ext4", device, str(folder))
    except subprocess.CalledProcessError:
        subprocess.run(["losetup", "-d", device], check=False)
        return ""
    return device


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
