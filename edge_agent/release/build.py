"""Makes a signed bundle from a checkout: the same checkout, version and wheels give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.release.bundle import BUNDLE, FORMAT, MACHINE, NAME, Stop, order
from edge_agent.release.installer import archive

PARTS = ("edge_agent", "drivers", "cloud_sync", "models_tflite", "systemd")  # of the checkout, with the files below
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "requirements.lock")
# Where the numbers stand that tell the formats of what the agent keeps: a release of the same ones can be gone back to.
FORMATS = {"buffer": "edge_agent/buffer/store.py", "alarm log": "edge_agent/alarm_log/store.py"}
# What docs/it.md says is supported; the installer refuses others.
SYSTEMS = {"debian": ["12", "13"], "raspbian": ["12", "13"], "ubuntu": ["22.04"]}
MOMENT = 315532800  # 1980-01-01, the earliest that a zip can hold: nobody needs the hour of a build, all need its bytes


def build(
    checkout: Path, out: Path, sign_key: Path, *, version: str = "", wheels: Path | None = None, dirty: bool = False
) -> Path:
    """Path of the new bundle, its .sig and installer.pyz beside it. Raises: Stop."""
    commit = _commit(checkout, dirty)
    found = {} if wheels is None else {f"wheels/{path.name}": path for path in wheels.glob("*.whl")}
    if wheels is not None and not found:
        raise Stop(BUNDLE, f"{wheels}: no wheels there", "pip download -r requirements.lock -d DIR fills it")
    _signature(b"whether this key can sign", sign_key)
    with tempfile.TemporaryDirectory(prefix="bedside-edge-") as name:
        work = Path(name)
        copy = work / "source"
        _copy(checkout, copy)
        version = _set_version(copy, version)
        wheel = _wheel(copy, work)
        files = {wheel.name: wheel, "requirements.lock": copy / "requirements.lock"}
        files |= {str(path.relative_to(copy)): path for path in (copy / "systemd").rglob("*") if path.is_file()}
        return pack(files | found, wheel.name, version, _python_range(copy), commit, out, sign_key, _formats(copy))


def pack(
    files: dict[str, Path],
    wheel: str,
    version: str,
    requires_python: str,
    commit: str,
    out: Path,
    sign_key: Path,
    formats: Mapping[str, int],
) -> Path:
    """A signed bundle of these files, by name inside. Raises: Stop."""
    order(version)
    entries: dict[str, dict[str, Any]] = {}
    for name, path in sorted(files.items()):
        if not NAME.fullmatch(name):
            raise Stop(BUNDLE, f"{path}: a file of that name cannot be in a bundle", "rename it")
        with path.open("rb") as content:
            entries[name] = {
                "sha256": hashlib.file_digest(content, "sha256").hexdigest(), "size": path.stat().st_size
            }  # fmt: skip
        if name.endswith(".whl"):
            with zipfile.ZipFile(path) as packed:
                entries[name]["unpacked"] = sum(each.file_size for each in packed.infolist())
    manifest = {
        "format": FORMAT, "name": "bedside-edge", "version": version, "commit": commit, "wheel": wheel,
        "requires_python": requires_python, "systems": SYSTEMS, "files": entries, "data": dict(formats),
    }  # fmt: skip
    raw = json.dumps(manifest, indent=1, sort_keys=True).encode()
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"bedside-edge-{version}.tar"
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(_member("manifest.json", len(raw)), io.BytesIO(raw))
        for name, path in sorted(files.items()):
            with path.open("rb") as content:
                tar.addfile(_member(name, path.stat().st_size), content)
    with target.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    stated = {
        "format": FORMAT, "name": "bedside-edge", "version": version, "size": target.stat().st_size,
        "sha256": digest, "manifest_sha256": hashlib.sha256(raw).hexdigest(),
    }  # fmt: skip
    sign(stated, target.with_name(target.name + ".sig"), sign_key)
    (out / "installer.pyz").write_bytes(archive())
    return target


def sign(stated: dict[str, Any], target: Path, key: Path) -> None:
    """Write a line of JSON and its Ed25519 signature. Raises: Stop when the key cannot be used."""
    line = json.dumps(stated, sort_keys=True).encode()
    target.write_bytes(line + b"\n" + base64.b64encode(_signature(line, key)) + b"\n")


def _signature(line: bytes, key: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="bedside-edge-") as name:
        content = Path(name) / "line"
        content.write_bytes(line)
        command = ["openssl", "pkeyutl", "-sign", "-inkey", str(key), "-rawin", "-in", str(content)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    if done.returncode or len(done.stdout) != 64:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["its signature is not 64 bytes long"]
        raise Stop(
            BUNDLE, f"{key}: cannot sign: {said[0]}", "openssl genpkey -algorithm ed25519 -out KEY.pem makes one"
        )
    return done.stdout


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, MOMENT, 0o644
    return member


def _commit(checkout: Path, dirty: bool) -> str:
    """The commit that is built. Raises: Stop when the checkout has other files than it."""
    git = ["git", "-C", str(checkout)]
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode and dirty:
        return "none"
    if done.returncode:
        raise Stop(MACHINE, f"{checkout}: is no git checkout", "name one with --source")
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", *PARTS, *FILES], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if changed and not dirty:
        what = f"{checkout}: {len(changed)} files are not as committed, such as {changed[0][3:]}"
        raise Stop(MACHINE, what, "commit them, or build with --dirty what is not for a ward")
    return done.stdout.strip() + ("-dirty" if changed else "")


def _copy(checkout: Path, copy: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*")
    for name in PARTS:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, copy / name, ignore=ignore)
    for name in FILES:
        shutil.copyfile(checkout / name, copy / name)
    for path in copy.rglob("*"):  # a wheel keeps the modes, which depend on who has checked it out
        path.chmod(0o755 if path.is_dir() else 0o644)


def _set_version(copy: Path, version: str) -> str:
    """The version that the copy has now: in its project file and in what the agent says of itself. Raises: Stop."""
    project, module = copy / "pyproject.toml", copy / "edge_agent/__init__.py"
    for path, pattern in ((project, r'^version = "(.+)"$'), (module, r'^__version__ = "(.+)"$')):
        text = path.read_text()
        found = re.search(pattern, text, re.M)
        if found is None:
            raise Stop(MACHINE, f"{path.name}: no version there", "build from a checkout of bedside-edge")
        version = version or found[1]
        path.write_text(text[: found.start(1)] + version + text[found.end(1) :])
    try:
        order(version)
    except ValueError as error:
        raise Stop(2, str(error), "give --version a number like these") from None
    return version


def _python_range(copy: Path) -> str:
    found = re.search(r'^requires-python = "(.+)"$', (copy / "pyproject.toml").read_text(), re.M)
    if found is None:
        raise Stop(MACHINE, "pyproject.toml: no requires-python", "build from a checkout of bedside-edge")
    return found[1]


def _formats(copy: Path) -> dict[str, int]:
    found = {}
    for name, path in FORMATS.items():
        number = re.search(r"^SCHEMA_VERSION = (\d+)$", (copy / path).read_text(), re.M)
        if number is None:
            raise Stop(MACHINE, f"{path}: no SCHEMA_VERSION", "build from a checkout of bedside-edge")
        found[name] = int(number[1])
    return found


def _wheel(copy: Path, work: Path) -> Path:
    """The project's wheel, built without a network."""
    command = [sys.executable, "-c", "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])", str(work)]
    clean = {**os.environ, "SOURCE_DATE_EPOCH": str(MOMENT), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=copy, env=clean, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Stop(MACHINE, f"the wheel was not built: {done.stderr.strip()[-600:]}", "pip install 'setuptools>=77'")
    return next(work.glob("*.whl"))
