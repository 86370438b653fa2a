"""The signed bundle: one line that is signed, a tar that the line names by hash, a manifest that names every file.

`bedside-edge-1.4.2.tar.sig` holds a line of JSON (version, size and hash of the tar, hash of the manifest) and below it
the Ed25519 signature of that line, so that nothing of the tar is looked at before its bytes are known to be the signed
ones, and no file of any size is ever held in memory. `openssl` checks the signature: a bare machine has nothing else.
This module and all that the installer needs use the standard library alone, in the syntax of Python 3.10.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

BUNDLE, MACHINE, BUSY, WENT_BACK, UNHEALTHY, CONFIG = 3, 4, 5, 6, 7, 78  # exit codes beside 0, 1 and 2
FORMAT = 1
MAX_BYTES = 2 << 30  # of a bundle: the wheels of both architectures are a tenth of that
MAX_FILES = 2000
MAX_MANIFEST = 1 << 20
MAX_SIGNATURE = 4096
PIECE = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9][A-Za-z0-9._+@-]*)*")
VERSION = re.compile(r"(\d+(?:\.\d+){1,3})(?:(a|b|rc)(\d+))?")


class Stop(Exception):
    """The end of a run that did not do what was asked: exit code, what happened and where, what to do."""

    def __init__(self, code: int, what: str, remedy: str) -> None:
        super().__init__(f"{what}\n  {remedy}")
        self.code = code


def order(version: str) -> tuple[Any, ...]:
    """What versions are compared by. Raises: ValueError for one that is none."""
    found = VERSION.fullmatch(version)
    if found is None:
        raise ValueError(f"{version!r} is not a version such as 1.4.2 or 1.5.0rc1")
    numbers = [int(part) for part in found[1].split(".")]
    return (*numbers, *[0] * (4 - len(numbers)), found[2] or "z", int(found[3] or 0))


def verify(bundle: IO[bytes], signature: Path, trusted: Path) -> dict[str, Any]:
    """The manifest of a bundle whose signature and bytes are right. Raises: Stop."""
    here = f"{bundle.name}: "
    try:
        raw = signature.read_bytes() if signature.stat().st_size <= MAX_SIGNATURE else b""
        line, encoded = raw.split(b"\n")[:2]
        seal = base64.b64decode(encoded, validate=True)
        stated = json.loads(line)
        version, size = str(stated["version"]), int(stated["size"])
        order(version)
    except OSError as error:
        raise Stop(BUNDLE, f"{signature}: {error.strerror}", "copy the .sig file beside the bundle") from None
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise Stop(BUNDLE, f"{signature}: is not a signature of a release", "copy bundle and .sig again") from None
    _check_signature(line, seal, trusted, signature)
    if stated.get("format") != FORMAT or stated.get("name") != "bedside-edge":
        raise Stop(BUNDLE, f"{signature}: signs something else than a release of format {FORMAT}", "use its installer")
    if not 0 < size <= MAX_BYTES or os.fstat(bundle.fileno()).st_size != size:
        raise Stop(BUNDLE, f"{here}is not {size} bytes long as was signed", "copy the bundle again")
    digest = hashlib.sha256()
    while piece := bundle.read(PIECE):
        digest.update(piece)
    if digest.hexdigest() != stated.get("sha256"):
        raise Stop(BUNDLE, f"{here}its bytes are not those that were signed", "copy the bundle again; trust no other")
    return _manifest(bundle, stated, here)


def _check_signature(line: bytes, seal: bytes, trusted: Path, signature: Path) -> None:
    """Return when a trusted key in force made the seal. Raises: Stop."""
    problems: list[str] = []
    keys = sorted(trusted.glob("*.pub")) if trusted.is_dir() else []
    for key in keys:
        try:
            text = key.read_text("ascii")
            if key.stat().st_mode & 0o022:
                raise ValueError("others than its owner may write it: chmod 0644")
            expires = re.search(r"^expires\b:?(.*)$", text.partition("-----BEGIN")[0], re.M | re.I)
            last = datetime.date.fromisoformat(expires[1].strip()) if expires else datetime.date.max
        except (OSError, ValueError) as error:
            problems.append(f"{key}: cannot be used: {getattr(error, 'strerror', None) or error}")
            continue
        if not _signed_by(key, line, seal):
            continue
        if datetime.datetime.now(datetime.timezone.utc).date() > last:  # noqa: UP017  (Python 3.10 has no datetime.UTC)
            problems.append(f"{key}: made the signature, and expired on {last}")
            continue
        return
    found = "; ".join(problems) or (f"none of {len(keys)} trusted keys made it" if keys else "no key is trusted yet")
    remedy = f"put the release-signing public key into {trusted}, or get a release signed with a key that is there"
    raise Stop(BUNDLE, f"{signature}: the signature is not trusted: {found}", remedy)


def _signed_by(key: Path, line: bytes, seal: bytes) -> bool:
    """Whether `openssl` finds that this key sealed the line; both are handed over in memory."""
    files = []
    try:
        for name, content in (("line", line), ("seal", seal)):
            files.append(os.memfd_create(name))
            os.write(files[-1], content)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key), "-rawin"]
        command += ["-in", f"/proc/self/fd/{files[0]}", "-sigfile", f"/proc/self/fd/{files[1]}"]
        done = subprocess.run(command, capture_output=True, pass_fds=files, timeout=30, check=False)
    except FileNotFoundError:
        raise Stop(MACHINE, "openssl is not installed: no signature can be checked", "apt install openssl") from None
    finally:
        for each in files:
            os.close(each)
    return done.returncode == 0


def _manifest(bundle: IO[bytes], stated: Mapping[str, Any], here: str) -> dict[str, Any]:
    for member, content in _members(bundle, here):
        if member.name != "manifest.json" or member.size > MAX_MANIFEST:
            break
        raw = content.read()
        if hashlib.sha256(raw).hexdigest() != stated.get("manifest_sha256"):
            break
        manifest: dict[str, Any] = json.loads(raw)
        return {**manifest, "sha256": stated["manifest_sha256"]}
    raise Stop(BUNDLE, f"{here}does not begin with the manifest that was signed", "build and sign the release again")


def _members(bundle: IO[bytes], here: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of a tar, anything else than a plain file with a plain name refused. Raises: Stop."""
    bundle.seek(0)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=bundle, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse() or not NAME.fullmatch(member.name) or member.name in seen:
                    raise Stop(BUNDLE, f"{here}entry {member.name!r} is no plain file of its own", "build it again")
                seen.add(member.name)
                content = archive.extractfile(member)
                if content is None or len(seen) > MAX_FILES:
                    raise Stop(BUNDLE, f"{here}entry {member.name!r} is one too many", "build the release again")
                yield member, content
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Stop(BUNDLE, f"{here}is damaged: {error}", "copy the bundle again") from None


def unpack(bundle: IO[bytes], manifest: Mapping[str, Any], folder: Path) -> None:
    """Every file of the manifest into an empty folder, each with the size and the hash that it names. Raises: Stop."""
    here, left = f"{bundle.name}: ", dict(manifest["files"])
    for member, content in _members(bundle, here):
        if member.name == "manifest.json":
            (folder / member.name).write_bytes(content.read())
            continue
        entry = left.pop(member.name, None)
        if entry is None or entry["size"] != member.size:
            raise Stop(BUNDLE, f"{here}entry {member.name!r} is not as in the manifest", "build the release again")
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            while piece := content.read(PIECE):
                digest.update(piece)
                out.write(piece)
        if digest.hexdigest() != entry["sha256"]:
            raise Stop(BUNDLE, f"{here}{member.name} was changed after signing", "copy the bundle again")
    if left:
        raise Stop(BUNDLE, f"{here}lacks {sorted(left)[0]}", "build the release again")
