"""The configuration of an accepted bed: the present one when it fits, else a proposal that adds what was found.

Tables are put behind the text that is there, so that comments and order stay; nothing is ever changed or taken out. The
result is checked as `edge-agent check` does it before anybody sees it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.config import Loaded, load
from edge_agent.links import LinkError
from edge_agent.links.address import parse
from edge_agent.parts import check

DATA_DIR = "/var/lib/edge-agent"


class Conflict(Exception):
    """What was found and what the configuration says exclude each other; `str` says what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A device at the bed: its driver and the link of its source."""

    driver: str
    link: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A whole configuration, and whether it differs from the one in place."""

    loaded: Loaded
    text: str
    added: tuple[str, ...]  # the tables that are new
    draft: Path | None = None  # where it lies until it is published

    @property
    def sha256(self) -> str:
        """Of the file as it is, or will be."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def publish(self, target: Path, *, replace: bool) -> None:
        """Put the draft in place under its name. Raises: FileExistsError, OSError."""
        if self.draft is None:
            publish(self.text, target, replace=replace)
        else:
            _settle(self.draft, target, replace=replace)

    def forget(self) -> None:
        """Take the draft away."""
        if self.draft is not None:
            self.draft.unlink(missing_ok=True)


def propose(
    present: Path | None, target: Path | None, bed: str, found: Sequence[Found], *,
    gateway: str = "", location: str = "", preset: str = "",
) -> Proposal:  # fmt: skip
    """The configuration for `bed` with the devices found.

    With a `target` it lies beside it as a draft, so that everything in it can be tried as it will be.
    Raises: Conflict; ConfigError when the present or the proposed one is not valid; OSError.
    """
    text, loaded = "", None
    if present is not None:
        text = present.read_text(encoding="utf-8")
        loaded = load(present)
    added = [] if loaded is not None else [_gateway(gateway)]
    beds = [] if loaded is None else [each.id for each in loaded.config.bed]
    if bed not in beds:
        more = {"location": location} if location else {}
        added.append(_table("bed", {"id": bed, "preset": preset or "adult", **more}))
    added += [_source(each, bed) for each in found if not _is_there(loaded, each, bed)]
    text = "\n".join([text.rstrip("\n"), *added]).lstrip("\n") + "\n" if added else text
    if loaded is not None and not added and target in (None, present):
        check(loaded)
        return Proposal(loaded, text, ())
    draft = _draft(target) if target is not None else None
    try:
        return Proposal(_checked(text, draft, present), text, tuple(added), draft)
    except BaseException:
        if draft is not None:
            draft.unlink()
        raise


def publish(text: str, target: Path, *, replace: bool, mode: int = 0o640) -> None:
    """Write `target` whole or not at all. Raises: FileExistsError, OSError."""
    part = _draft(target)
    try:
        part.chmod(mode)
        _fill(part, text)
        _settle(part, target, replace=replace)
    finally:
        part.unlink(missing_ok=True)


def _draft(target: Path) -> Path:
    """A new empty file beside `target`. Raises: OSError."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
    return part


def _fill(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _settle(part: Path, target: Path, *, replace: bool) -> None:
    if replace and target.exists():
        before = target.stat()
        os.chmod(part, before.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(part, before.st_uid, before.st_gid)
    if replace:
        os.replace(part, target)
    else:
        os.link(part, target)  # unlike rename, link refuses to replace
        part.unlink()
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_there(loaded: Loaded | None, found: Found, bed: str) -> bool:
    """Whether the configuration has this very source. Raises: Conflict when it has another on the same device."""
    if loaded is None:
        return False
    for source in loaded.config.source:
        if _device(source.link) != _device(found.link):
            continue
        if source.bed not in ("", bed):
            raise Conflict(
                f"{_device(found.link)} already belongs to bed {source.bed}\n"
                "  plug the adapter of this bed in, or take that source out of the configuration"
            )
        if source.driver == found.driver and _settings(source.link) == _settings(found.link):
            return True
        raise Conflict(
            f'{loaded.path} has driver = "{source.driver}", link = "{source.link}" for this device; '
            f'found were driver = "{found.driver}", link = "{found.link}"\n'
            "  correct that source in the configuration, then run provisioning again"
        )
    return False


def _device(link: str) -> str:
    """What a link leads to, whatever its settings: a serial port by the kernel's name for it."""
    try:
        address = parse(link)
    except LinkError:
        return link
    if address.scheme == "serial":
        return str(Path(address.path).resolve())
    return f"{address.scheme}://{address.host}:{address.port}{address.path}"


def _settings(link: str) -> tuple[Any, ...]:
    options = parse(link).options
    usual = {"baud": 9600, "parity": "N", "bits": 8, "stop": 1}
    return tuple(options.get(key, value) for key, value in usual.items())


def _gateway(name: str) -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).strip("-._")[:64]
    return _table("gateway", {"id": name or host or "gateway", "data_dir": DATA_DIR}, array=False)


def _source(found: Found, bed: str) -> str:
    return _table("source", {"driver": found.driver, "link": found.link, "bed": bed})


def _table(name: str, keys: dict[str, str], *, array: bool = True) -> str:
    head = f"[[{name}]]" if array else f"[{name}]"
    # a JSON string is a TOML basic string
    return "\n".join(["", head, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items())])


def _checked(text: str, draft: Path | None, present: Path | None) -> Loaded:
    """The configuration in `text`, as `edge-agent check` takes it. Raises: ConfigError."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        place = draft or Path(folder) / "edge-agent.toml"
        _fill(place, text)
        loaded = load(place)
        if draft is None and present is not None:
            loaded = dataclasses.replace(loaded, path=present)  # relative paths start where the file stands
        check(loaded)
    return loaded
