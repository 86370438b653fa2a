"""The root file systems and wheels that the test beds boot and install, built once and kept outside the tree.

Everything comes from Debian's and the Python packages' usual places, whatever mirror this machine has set for them.
A folder is built under a name of its own and renamed when it is whole, so that a broken build is never taken for a good
one. The names carry a hash of what went in: a changed list of packages or a changed lock builds anew.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

_Given = ParamSpec("_Given")
REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bedside-edge" / "fleet"
SUITE = "bookworm"
# What a gateway has before the role runs (an SD card with Debian on it), and what the emulated machine needs to boot.
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "openssh-server", "iproute2", "ca-certificates", "sudo",
    "openssl", "python3", "python3-venv", "libasound2", "bluez", "gpiod", "usbutils", "linux-image-amd64",
)  # fmt: skip
PROJECT = ("edge_agent", "drivers", "cloud_sync", "models_tflite", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
TOOLS = {  # program: Debian package
    "mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "ssh": "openssh-client", "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs", "openssl": "openssl",
}  # fmt: skip


def missing() -> str:
    """What this machine lacks to run the test beds, with the command that helps; empty when nothing is missing."""
    if os.geteuid() != 0:
        return "the test beds need root (containers, overlays, network devices): run as root, or sudo make test-fleet"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = sorted({package for program, package in TOOLS.items() if not shutil.which(program, path=path)})
    return f"the test beds need {', '.join(lacking)}: apt install {' '.join(lacking)}" if lacking else ""


def digest(*parts: str | bytes) -> str:
    """A short name for what went into something."""
    return hashlib.sha256(b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)).hexdigest()[
        :12
    ]


def one_at_a_time(build: Callable[_Given, Path]) -> Callable[_Given, Path]:
    """The same function, waiting while another test process is in it: what both want is built once."""

    @functools.wraps(build)
    def alone(*given: _Given.args, **named: _Given.kwargs) -> Path:
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f".{build.__module__}.{build.__qualname__}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return build(*given, **named)

    return alone


@one_at_a_time
def root() -> Path:
    """Folder with the Debian root that containers overlay and the emulated machine's disk is made from."""
    target = CACHE / f"{SUITE}-{digest(*PACKAGES)}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"mmdebstrap failed ({done.returncode}):\n{done.stderr[-2000:]}")
    (partial / "etc" / "machine-id").write_text("uninitialized\n")
    partial.rename(target)
    return target


@one_at_a_time
def wheels() -> Path:
    """Folder with the wheels of requirements.lock for this machine's Python version, hashes checked by pip."""
    lock = (REPOSITORY / "requirements.lock").read_bytes()
    target = CACHE / f"wheels-{sys.version_info[0]}{sys.version_info[1]}-{digest(lock)}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
         "--only-binary=:all:", "-r", str(REPOSITORY / "requirements.lock"), "-d", str(partial)],
        check=True, timeout=900,
    )  # fmt: skip
    partial.rename(target)
    return target


@one_at_a_time
def bundle(version: str, change: Callable[[Path], None] | None = None, name: str = "") -> Path:
    """A signed release bundle of this tree under that version; `.sig`, installer.pyz and release.pub lie beside it.

    `change` is given a copy of the tree to alter before it is built, and `name` tells apart what it makes. All bundles
    are signed with one key, made on this machine for nothing else.
    """
    from edge_agent.release.build import FILES, PARTS, build

    CACHE.mkdir(parents=True, exist_ok=True)
    key = CACHE / "release-signing.pem"
    if not key.exists():
        partial = key.with_suffix(f".{os.getpid()}")
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(partial)], check=True)
        partial.rename(key)
    found = (REPOSITORY / part for part in (*PARTS, *FILES))
    files = sorted(path for part in found for path in ([part] if part.is_file() else part.rglob("*")) if path.is_file())
    content = [
        f"{path.relative_to(REPOSITORY)}".encode() + path.read_bytes()
        for path in files
        if "__pycache__" not in path.parts
    ]
    target = CACHE / f"bundle-{version}{name}-{digest(key.read_bytes(), *content)}"
    if not target.exists():
        for old in sorted(CACHE.glob("bundle-*"), key=lambda path: path.stat().st_mtime)[:-7]:
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            tree, partial = Path(folder) / "tree", Path(folder) / "bundle"
            for part in (*PARTS, *FILES):
                copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy2
                tree.mkdir(exist_ok=True)
                copy(REPOSITORY / part, tree / part)
            if change is not None:
                change(tree)
            build(tree, partial, key, version=version, wheels=wheels(), dirty=True)
            public = ["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(partial / "release.pub")]
            subprocess.run(public, check=True)
            partial.rename(target)
    os.utime(target)  # used last, removed last
    return target / f"bedside-edge-{version}.tar"


@one_at_a_time
def project_wheel() -> Path:
    """The project's wheel, built from this tree; kept until the tree changes."""
    files = sorted(path for part in PROJECT for path in _files(REPOSITORY / part))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    target = CACHE / f"project-{digest.hexdigest()[:12]}"
    if not target.exists():
        for old in sorted(CACHE.glob("project-*"), key=lambda path: path.stat().st_mtime)[:-3]:
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:  # by itself: setuptools leaves a folder `build`
            source, out = Path(name) / "source", Path(name) / "out"
            for path in files:
                copy = source / path.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--no-build-isolation", "-w", str(out), str(source)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"the project's wheel cannot be built:\n{done.stdout}{done.stderr}")
            out.rename(target)
    return next(target.glob("*.whl"))


def _files(part: Path) -> Iterator[Path]:
    if part.is_file():
        yield part
        return
    for path in part.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path
