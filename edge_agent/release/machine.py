"""The machine that a release is for: its system, its Python, its wheels, its room. Nothing here writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.release.bundle import MACHINE, Stop

ONLINE_BYTES = 300 << 20  # of an environment whose wheels are not in the bundle
GROWTH = 1.2  # of unpacked wheels by compiled modules, at the peak: measured 1.07 on x86_64 with Python 3.11
MARGIN = 32 << 20  # what the running agent writes while an update takes its minute
_PROBE = """
import glob, json, os, sys, sysconfig
libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
pip = glob.glob("/usr/share/python-wheels/pip-*.whl")
try:
    import ensurepip
    pip += glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), "_bundled", "pip-*.whl"))
except ImportError:
    pass
machine = sysconfig.get_platform().split("-", 1)[1].replace("-", "_")
machine = machine if sys.maxsize > 2**32 else machine + " (32 bit)"
print(json.dumps({"version": list(sys.version_info[:2]), "machine": machine, "libc": libc, "pip": pip}))
"""


class Python:
    """The interpreter that a release is built with, and what it can run."""

    def __init__(self, path: str) -> None:
        """Raises: OSError, ValueError, subprocess.SubprocessError when it is no interpreter."""
        self.path = path
        done = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(done.stdout)
        self.version: tuple[int, int] = tuple(found["version"])
        self.machine: str = found["machine"]
        self.libc = tuple(int(part) for part in re.findall(r"\d+", found["libc"])[:2])
        self.pip: list[str] = found["pip"]

    def __str__(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]} on {self.machine}, glibc {'.'.join(map(str, self.libc))}"

    def fits(self, wheel: str) -> bool:
        """Whether a wheel of that file name can be installed here."""
        pythons, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
        minor = self.version[1]
        exact = any(tag in ("py3", f"py3{minor}", f"cp3{minor}") for tag in pythons.split("."))
        stable = "abi3" in abi and any(int(tag[3:] or 0) <= minor for tag in pythons.split(".") if tag[:3] == "cp3")
        return (exact or stable) and any(self._runs(tag) for tag in platforms.split("."))

    def _runs(self, tag: str) -> bool:
        old = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
        first, _, rest = tag.partition("_")
        found = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", f"{old[first]}_{rest}" if first in old else tag)
        if found:
            return found[3] == self.machine and (int(found[1]), int(found[2])) <= self.libc
        return tag in ("any", f"linux_{self.machine}")

    def within(self, wanted: str) -> bool:
        """Whether the version lies in a range such as `>=3.11,<3.14`."""
        bounds = re.findall(r"(>=|<)\s*(\d+)\.(\d+)", wanted)
        return all((self.version >= (int(a), int(b))) == (sign == ">=") for sign, a, b in bounds)


def find_python(wanted: str, named: str = "") -> Python:
    """The interpreter named, else the first on the machine within the range. Raises: Stop."""
    own = os.path.realpath(sys.executable)
    names = [named] if named else [own, "/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"]
    found = []
    for name in names:
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            python = Python(name)
            if python.within(wanted):
                return python
            found.append(f"{name} is {python}")
    remedy = "apt install python3.11 python3.11-venv (Debian 12, Ubuntu 22.04), or name one with --python"
    raise Stop(MACHINE, f"the release needs Python {wanted}; {'; '.join(found) or 'there is none'}", remedy)


def wheels_for(manifest: Mapping[str, Any], python: Python) -> list[str]:
    """The bundle's wheels that fit this machine, empty when it brings none. Raises: Stop when a package has no fit."""
    wheels = [name for name in manifest["files"] if name.startswith("wheels/")]
    fitting = [name for name in wheels if python.fits(name)]
    packages = [{name.split("/")[1].split("-")[0] for name in names} for names in (wheels, fitting)]
    if lacking := sorted(packages[0] - packages[1]):
        tags = sorted({name.rsplit("-", 1)[1].removesuffix(".whl").split(".")[-1] for name in wheels} - {"any"})
        what = f"the bundle has no wheel of {', '.join(lacking[:3])} for {python}; it is for {', '.join(tags)}"
        raise Stop(MACHINE, what, "get the bundle of this architecture and this Python version")
    return fitting


def check_machine(manifest: Mapping[str, Any], release: Mapping[str, str]) -> None:
    """Return when the release supports this system. Raises: Stop."""
    name, version = release.get("ID", "?"), release.get("VERSION_ID", "?")
    if version not in manifest["systems"].get(name, ()):
        known = ", ".join(f"{each} {'/'.join(versions)}" for each, versions in manifest["systems"].items())
        what = f"{release.get('PRETTY_NAME', name)}: this system is not supported; known: {known}"
        raise Stop(MACHINE, what, "install one of these systems, or try --any-system on a machine without patients")


def check_room(manifest: Mapping[str, Any], wheels: list[str], folder: Path) -> None:
    """Return when the file system has room for bundle, environment and margin. Raises: Stop."""
    while not folder.exists():
        folder = folder.parent
    files = manifest["files"]
    packed = sum(entry["size"] for entry in files.values())
    unpacked = sum(files[name].get("unpacked", 0) for name in [*wheels, manifest["wheel"]])
    need = int(packed + unpacked * GROWTH + MARGIN + (0 if wheels else ONLINE_BYTES))
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if free < need:
        what = f"{folder}: {free >> 20} MB free, {need >> 20} MB needed for {manifest['version']}"
        raise Stop(MACHINE, what, "free space there (edge-agent release status lists releases), or use a larger card")
