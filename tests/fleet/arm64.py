"""The arm64 side without arm64 hardware: wheels for it from any machine, and a Debian root whose programs run emulated.

The kernel hands arm64 programs to QEMU's user mode emulation by its binfmt_misc table. An entry there holds for the
whole machine, so ours has a name of its own, is made only when no other one serves arm64, and goes with the tests.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from supply.lock import pins
from supply.wheels import download
from tests.fleet import image

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libasound2")
EMULATOR = ("qemu-user", "trixie")  # package and suite
QEMU_MAJOR = 10
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_NAME = "bedside-edge-aarch64"
# the first bytes of a 64 bit, little endian ELF program for machine 183, and which of their bits count
_MAGIC = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"


@image.one_at_a_time
def wheels(python: str) -> Path:
    """Folder with the wheels of requirements.lock for arm64 and a Python version like 3.13, hashes checked by pip.

    Raises: LockError when a package has none.
    """
    lock = (image.REPOSITORY / "requirements.lock").read_bytes()
    target = image.CACHE / f"wheels-arm64-{python}-{image.digest(lock)}"
    if target.exists():
        return target
    image.CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    download(pins(python=python), python, "aarch64", partial)
    partial.rename(target)
    return target


def emulator() -> Path:
    """QEMU's user mode emulation of arm64, a static program: this machine's, or out of Debian 13's package.

    Before 10 it crashes in what the model's runtime does with the processor that /proc and /sys tell of: 7.2, of
    Debian 12, ends in a segmentation fault.
    """
    for name in ("qemu-aarch64-static", "qemu-aarch64"):  # Debian 12; Debian 13
        if found := shutil.which(name):
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
            if int(told.split()[2].partition(".")[0]) >= QEMU_MAJOR:
                return Path(found)
    target = image.CACHE / f"{EMULATOR[0]}-{EMULATOR[1]}"
    if not target.exists():
        image.CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _mmdebstrap("--variant=extract", f"--include={EMULATOR[0]}", EMULATOR[1], str(partial))
        partial.rename(target)
    return target / "usr" / "bin" / "qemu-aarch64"


def _mmdebstrap(*words: str) -> None:
    done = subprocess.run(
        ["mmdebstrap", "--mode=root", *words], capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"mmdebstrap failed ({done.returncode}):\n{done.stderr[-2000:]}")


def missing() -> str:
    """What this machine lacks to run an arm64 root, with the command that helps; empty when nothing is missing."""
    if os.geteuid() != 0:
        return "an arm64 root needs root (chroot, binfmt_misc): run as root, or sudo make test-arm64"
    if not shutil.which("mmdebstrap"):
        return "an arm64 root needs mmdebstrap: apt install mmdebstrap"
    return ""


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """While it lasts the kernel runs arm64 programs."""
    if platform.machine() == "aarch64" or _served():
        yield
        return
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
    program = emulator()
    # F: opened now and by this path, so that a root in which it is not can use it
    (_BINFMT / "register").write_text(f":{_NAME}:M::{_MAGIC}:{_MASK}:{program}:F")
    try:
        yield
    finally:
        (_BINFMT / _NAME).write_text("-1")


def _served() -> bool:
    if not (_BINFMT / "status").exists():
        return False
    entries = (each for each in _BINFMT.iterdir() if each.name not in ("register", "status"))
    return any("7f454c460201010000000000000000000200b700" in each.read_text() for each in entries)


def root() -> Path:
    """Folder with a Debian root for arm64; built once, within `emulated`, in some four minutes."""
    target = image.CACHE / f"{SUITE}-arm64-{image.digest(*PACKAGES)}"
    if target.exists():
        return target
    image.CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _mmdebstrap("--variant=minbase", "--architectures=arm64", f"--include={','.join(PACKAGES)}", SUITE, str(partial))
    partial.rename(target)
    return target


class Root:
    """A root of one's own over the shared one; what is written goes with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "root"

    def __enter__(self) -> Root:
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={root()},upperdir={self._folder / 'upper'},workdir={self._folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.path)], check=True)
        for kind, inside in (("proc", "proc"), ("sysfs", "sys")):
            subprocess.run(["mount", "-t", kind, kind, str(self.path / inside)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        for inside in ("sys", "proc", ""):
            subprocess.run(["umount", "--lazy", str(self.path / inside)], check=False, capture_output=True)

    def run(self, *words: str, check: bool = True, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """What a program of the root gave; nothing of this machine's environment reaches it."""
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        chroot = shutil.which("chroot", path=clean["PATH"]) or "chroot"
        done = subprocess.run(
            [chroot, str(self.path), *words],
            capture_output=True, text=True, timeout=timeout, check=False, env=clean,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{words} exited with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done
