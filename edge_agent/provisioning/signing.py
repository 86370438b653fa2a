"""The gateway's acceptance key: who signed a record, and whether it is still what was signed. Ed25519.

The private key is made at first use, mode 0400, in the agent's data folder, or comes as a systemd credential. It proves
that a record was made on a gateway that held the key, by somebody who could read it; it proves nothing about people.
The public half lies beside it (acceptance.pub), for whoever keeps the records.

Source: RFC 8032.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

KEY, PUBLIC = "acceptance.key", "acceptance.pub"
_LIMIT = 4096  # bytes of a PEM file


class SigningError(Exception):
    """A key that cannot be used; `str` says which, why, and what to do."""


class Signer:
    """A private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def fingerprint(self) -> str:
        """Of the public key, as it is printed."""
        return fingerprint(self.public)

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._key.sign(data)

    def public_pem(self) -> bytes:
        """The text of a .pub file."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def open_signer(spec: str) -> Signer | None:
    """The key that `file:PATH` or `credential:NAME` names; None for a file that is not there yet.

    Raises: SigningError.
    """
    provider, _, name = spec.partition(":")
    if provider == "credential" and name and "/" not in name:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise SigningError(f"{spec}: systemd has passed no credentials here\n  give file:PATH instead")
        return Signer(_private(Path(folder) / name, guarded=True))
    if provider != "file" or not name:
        raise SigningError(f"{spec}: names no key\n  write file:PATH or credential:NAME")
    path = Path(name)
    if path.exists():
        return Signer(_private(path, guarded=False))
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise SigningError(f"{path}: the acceptance key cannot be made there\n  run as root or as the agent's user")
    return None


def make_signer(path: Path) -> Signer:
    """A new key in `path`, mode 0400, never over another, and its public half beside it. Raises: SigningError."""
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signer = Signer(key)
    try:
        _write_new(path, text, 0o400)
        public = path.with_name(PUBLIC) if path.name == KEY else path.with_suffix(".pub")
        public.unlink(missing_ok=True)  # of a key that is gone
        _write_new(public, signer.public_pem(), 0o444)
    except OSError as error:
        raise SigningError(f"{path}: the acceptance key cannot be written: {error.strerror}") from error
    return signer


def public_key(path: Path) -> bytes:
    """The 32 bytes of the public key in a .pub file. Raises: SigningError."""
    try:
        key = load_pem_public_key(path.read_bytes()[:_LIMIT])
    except OSError as error:
        raise SigningError(f"{path}: cannot be read: {error.strerror}\n  name the gateway's {PUBLIC}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{path}: no public key in PEM\n  name the gateway's {PUBLIC}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{path}: a public key, but not Ed25519\n  name the gateway's {PUBLIC}")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def holds(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is that of `data` by this public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """SHA256: and the base64 of the SHA-256 over the key's 32 bytes."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def _private(path: Path, *, guarded: bool) -> Ed25519PrivateKey:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SigningError(f"{path}: the acceptance key cannot be read: {error.strerror}") from error
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise SigningError(f"{path}: is not a regular file\n  give the path of the acceptance key")
        if not guarded and mode & 0o077:
            raise SigningError(f"{path}: has mode {mode:04o}, others may use the key\n  chmod 0400 {path}")
        text = file.read(_LIMIT)
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{path}: no private key in PEM; it may be damaged\n"
            "  move it away: the next record is signed with a new key, whose fingerprint is another"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path}: a private key, but not Ed25519")
    return key


def _write_new(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
