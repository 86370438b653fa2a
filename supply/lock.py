"""requirements.lock and the dependencies of pyproject.toml, read as they stand.

The lock holds for several systems and Python versions; a pin with a marker that is false on a Linux gateway with the
running Python is left out.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[1]
_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^ ;]+)(?: ; (?P<marker>[^\\]+?))? \\?$")
_HASH = re.compile(r" {4}--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r" {4}#(?: via|  ) ([a-z0-9][\w.-]*)(?: \(pyproject\.toml\))?$")
_WANTED = re.compile(r'    "(?P<name>[A-Za-z0-9._-]+)[^"]*", +# (?P<door>.+)$', re.MULTILINE)
_GATEWAY = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


class LockError(Exception):
    """A lock or pyproject.toml that is not as expected; the text names file and place."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version, the hashes of its files, and the packages that asked for it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    via: tuple[str, ...]


def canonical(name: str) -> str:
    """A package's name as the lock writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(root: Path = ROOT, python: str | None = None) -> list[Pin]:
    """The pins for a Linux gateway, by name; `python` is a version like 3.13, else the running one.

    Raises: LockError for a line that is not understood, and for a pin without a hash.
    """
    path = root / "requirements.lock"
    found: list[tuple[re.Match[str], list[str], list[str]]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := _PIN.match(line):
            found.append((match, [], []))
        elif found and (hashed := _HASH.match(line)):
            found[-1][1].append(hashed[1])
        elif found and (asked := _VIA.match(line)):
            found[-1][2].append(canonical(asked[1]))
        elif not line.lstrip().startswith("#"):
            raise LockError(f"{path}:{number}: not understood: {line!r}; make it anew with make lock")
    environment = dict(_GATEWAY)
    if python is not None:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    kept = []
    for match, hashes, via in found:
        if not hashes:
            raise LockError(f"{path}: {match['name']} has no hash; make it anew with make lock")
        if match["marker"] is None or Marker(match["marker"]).evaluate(environment):
            kept.append(Pin(match["name"], match["version"], tuple(hashes), tuple(via)))
    return sorted(kept, key=lambda pin: pin.name)


def doors(root: Path = ROOT) -> dict[str, str]:
    """The direct dependencies, and behind each what pyproject.toml says of where it is used.

    Raises: LockError for a dependency without such a word.
    """
    text = (root / "pyproject.toml").read_text()
    listed = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
    found = {canonical(match["name"]): match["door"] for match in _WANTED.finditer(listed)}
    wanted = {
        canonical(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in tomllib.loads(text)["project"]["dependencies"]
    }
    if wanted - set(found):
        raise LockError(f"pyproject.toml: {', '.join(sorted(wanted - set(found)))}: no comment says where it is used")
    return found


def version(root: Path = ROOT) -> str:
    """The project's own version."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
