"""What `edge-agent doctor` says of one thing that it has looked at, and whose gateway it looks at."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

AGENT, FORWARDER, SHARED = "edge-agent", "cloud-sync", "bedside-edge"  # users, and the group of both
BASE = Path("opt/bedside-edge")  # below the root
SYSTEM = Path("/")


class Finding(NamedTuple):
    """One thing that was looked at: state is ok, warn or FAIL, `remedy` says what to do."""

    part: str
    state: str
    detail: str
    remedy: str = ""


class User(NamedTuple):
    """A user of the machine that is looked at."""

    name: str
    uid: int
    gids: frozenset[int]

    def may(self, found: os.stat_result, want: int) -> bool:
        """Whether the file modes give this user all of `want` (4 read, 2 write, 1 enter); root may everything."""
        if self.uid == 0:
            return True
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid == self.uid:
            mode >>= 6
        elif found.st_gid in self.gids:
            mode >>= 3
        return mode & want == want


def installed(root: Path = SYSTEM) -> bool:
    """Whether this machine is a gateway with releases and units, and no desk on which somebody tries things."""
    return (root / BASE / "releases").is_dir() or (root / "etc/systemd/system/edge-agent.service").exists()


def groups(root: Path = SYSTEM) -> dict[str, tuple[int, frozenset[str]]]:
    """Number and named members of each group."""
    found = {}
    for words in _lines(root / "etc/group", 4):
        if words[2].isdigit():
            found[words[0]] = int(words[2]), frozenset(name for name in words[3].split(",") if name)
    return found


def user(name: str, root: Path = SYSTEM) -> User | None:
    """The user of that name with all of his groups, None when there is none."""
    for words in _lines(root / "etc/passwd", 7):
        if words[0] == name and words[2].isdigit() and words[3].isdigit():
            others = (gid for gid, members in groups(root).values() if name in members)
            return User(name, int(words[2]), frozenset((int(words[3]), *others)))
    return None


def agent_user(root: Path = SYSTEM) -> User:
    """Who runs the agent: the user of its unit, on a desk whoever asks."""
    found = user(AGENT, root) if installed(root) else None
    return found or User("", os.geteuid(), frozenset((os.getegid(), *os.getgroups())))


@contextmanager
def as_service(unit: str, root: Path = SYSTEM) -> Iterator[None]:
    """See what a running service sees: root reads its credentials, and files as its user."""
    folder = root / "run/credentials" / unit
    service = user(unit.removesuffix(".service"), root) if root == SYSTEM and installed(root) else None
    given = "CREDENTIALS_DIRECTORY" not in os.environ and os.access(folder, os.R_OK | os.X_OK)
    changed = service is not None and os.geteuid() == 0
    if given:
        os.environ["CREDENTIALS_DIRECTORY"] = str(folder)
    own = os.getegid(), os.getgroups()
    try:
        if changed and service is not None:
            os.setgroups(sorted(service.gids))
            os.seteuid(service.uid)
        yield
    finally:
        if changed:
            os.seteuid(0)
            os.setegid(own[0])
            os.setgroups(own[1])
        if given:
            del os.environ["CREDENTIALS_DIRECTORY"]


def _lines(path: Path, count: int) -> Iterator[list[str]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        words = line.split(":")
        if len(words) >= count:
            yield words


def text(path: Path) -> str:
    """The first 4 KiB of a small file of the kernel's, without its line end; empty when there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip("\n\0 ")
    except OSError:
        return ""
