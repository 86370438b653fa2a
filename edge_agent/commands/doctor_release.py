"""What `edge-agent doctor` looks at of the installed releases: links, leftovers, units, version, room for the next."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge_agent.commands.finding import BASE, SYSTEM, Finding, installed
from edge_agent.config import Loaded
from edge_agent.control import ControlClient, Refused
from edge_agent.release.gateway import Folders

INSTALL = "edge-agent release install BUNDLE"
ROOM_SPARE = 1.2  # the next release is about as large as the present one


def check_release(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Whether the links lead to whole releases, and the running agent is the one in force."""
    if not installed(root):
        return
    base = root / BASE
    current = _linked(base, "current")
    if current is None:
        detail = f"{base / 'current'} leads to no release: nothing can start"
        yield Finding("release", "FAIL", detail, f"edge-agent release rollback; or {INSTALL}")
    else:
        yield from _whole(base, current)
        yield from _running(loaded, current.name)
        yield from _placed(current, root)
        yield from _room(base, current)
    if (base / "previous").is_symlink() and _linked(base, "previous") is None:
        yield Finding("release", "warn", f"{base / 'previous'} leads nowhere: no way back", f"{INSTALL} makes one")
    elif not (base / "previous").is_symlink():
        yield Finding("release", "ok", "no release before this one: a rollback has nothing to go back to")
    yield from _leftovers(base)


def _linked(base: Path, name: str) -> Path | None:
    try:
        found = base / "releases" / Path(os.readlink(base / name)).name
    except OSError:
        return None
    return found if (found / "manifest.json").is_file() else None


def _whole(base: Path, current: Path) -> Iterator[Finding]:
    try:
        version = json.loads((current / "manifest.json").read_text()).get("version")
    except (OSError, ValueError, AttributeError) as error:
        yield Finding("release", "FAIL", f"{current / 'manifest.json'} cannot be read: {error}", INSTALL)
        return
    program = current / ".venv/bin/edge-agent"
    if not program.exists():
        yield Finding("release", "FAIL", f"{program} is missing", f"edge-agent release rollback; or {INSTALL}")
    elif version != current.name:
        yield Finding(
            "release", "FAIL", f"{current} holds version {version}", f"edge-agent release rollback; {INSTALL}"
        )
    else:
        count = sum(1 for each in (base / "releases").iterdir() if (each / "manifest.json").is_file())
        yield Finding("release", "ok", f"{version} is in force, {count} on this gateway")


def _running(loaded: Loaded, version: str) -> Iterator[Finding]:
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            running = client.call("status")["status"]["version"]
    except (ConnectionError, Refused, OSError, KeyError):
        return  # told of as an agent that does not answer
    if running != version:
        detail = f"the agent that runs is {running}, in force is {version}"
        yield Finding("release", "FAIL", detail, "systemctl restart edge-agent cloud-sync, when no alarm is active")


def _placed(current: Path, root: Path) -> Iterator[Finding]:
    """Whether units and rules in /etc are those of the release."""
    source = current / "systemd"
    other, missing = [], []
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = Folders(root).place(str(file.relative_to(source)))
        if place is None:
            continue
        if not place.is_file():
            missing.append(str(place))
        elif place.read_bytes() != file.read_bytes():
            other.append(str(place))
    if missing:
        yield Finding("release", "FAIL", f"not there: {', '.join(missing)}", f"edge-agent release status; {INSTALL}")
    if other:
        detail = f"not as the release has it: {', '.join(other)}"
        yield Finding(
            "release", "warn", detail, "put changes into drop-ins (systemctl edit UNIT); the next update ends them"
        )


def _room(base: Path, current: Path) -> Iterator[Finding]:
    size = sum(path.lstat().st_size for path in current.rglob("*") if not path.is_dir())
    free = shutil.disk_usage(base).free
    detail = f"{free >> 20} MB free at {base}, the present release takes {size >> 20} MB"
    if free < size * ROOM_SPARE:
        remedy = "an update would be refused: journalctl --vacuum-size=100M; apt clean; edge-agent release status"
        yield Finding("release", "warn", f"{detail}: no room for the next", remedy)
    else:
        yield Finding("release", "ok", detail)


def _leftovers(base: Path) -> Iterator[Finding]:
    for path in sorted((base / "releases").glob("*.partial")):
        detail = f"{path} is left of an installation that was cut off; it is never used"
        yield Finding("release", "warn", detail, f"{INSTALL} again completes it; or rm -r {path}")
    if (base / "update.json").exists():
        remedy = "edge-agent release status says what runs; edge-agent release recover ends it"
        yield Finding("release", "warn", "an update is under way, or was cut off", remedy)
