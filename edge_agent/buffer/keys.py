"""Keys: the key-encryption key that the hospital provides, and the data keys that it wraps.

Blocks are sealed with data keys; data keys lie in the database, wrapped with AES key wrap by the key-encryption key
(KEK), which never does. A data key lives for one boot and one UTC day, so that changing the KEK means rewrapping a few
rows and deleting a drained data key makes its blocks unreadable for good.

Source: RFC 3394 (AES key wrap); systemd.exec(5), credentials.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from edge_agent.buffer import keys_tpm

KEY_BYTES = 32  # AES-256
_READ_LIMIT = 4096  # a key file is 32 or 64 bytes; reading more only serves the message
_RESTORE = (
    "restore it from your copy; a new key makes everything that is still buffered unreadable. "
    "Only on a gateway without a buffer make a new one: head -c 32 /dev/urandom > FILE && chmod 0400 FILE"
)
_TPM_RESTORE = (
    "on another board restore the copy of the key as a key file (file:PATH) and change over with `keys rotate`; "
    "docs/keys.md says how"
)


class KeyProblem(Exception):
    """A key that cannot be used; `str` says what happened, where, and what to do."""


def load_kek(spec: str) -> bytes:
    """The 32-byte key-encryption key that `credential:NAME`, `file:PATH` or `tpm:PATH` names.

    Raises: KeyProblem when it is missing, open to others, half-written, or of another form.
    """
    provider, _, rest = spec.partition(":")
    if provider == "file" and rest:
        path = Path(rest)
        return _parse(_read(path, private=True), path)
    if provider == "tpm" and rest:
        path = Path(rest)
        sealed = _read(path, private=True)
        try:
            return _parse(keys_tpm.unseal(sealed), path)
        except keys_tpm.TpmTrouble as error:
            raise KeyProblem(f"{path}: the TPM does not give the key: {error}\n  {_TPM_RESTORE}") from error
    if provider == "credential" and rest:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if "/" in rest or rest in (".", ".."):
            raise KeyProblem(f"buffer.key = {spec!r}: a credential's name holds no slash\n  write credential:NAME")
        if not folder:
            raise KeyProblem(
                f"buffer.key = {spec!r}: no systemd credentials are here (CREDENTIALS_DIRECTORY is not set)\n"
                f"  start the service with LoadCredentialEncrypted={rest}:/path/to/file, or set buffer.key = file:PATH"
            )
        path = Path(folder) / rest
        return _parse(_read(path, private=False), path)  # systemd guards the folder; its modes carry ACL masks
    raise KeyProblem(f"buffer.key = {spec!r}: no such provider\n  write credential:NAME, file:PATH or tpm:PATH")


def create_key_file(path: Path) -> None:
    """Writes a new random key with mode 0400; the file appears whole or not at all, and nothing is ever overwritten.

    Raises: KeyProblem when the file exists already or cannot be written.
    """
    _publish(path, os.urandom(KEY_BYTES))


def create_tpm_file(path: Path, copy: Path | None = None) -> None:
    """Writes a new random key that only this board's TPM opens, as `create_key_file` does.

    copy: a key file that gets the key itself first, for a medium that is kept elsewhere.
    Raises: KeyProblem when a file exists already or cannot be written, or the TPM refuses.
    """
    if path.exists():
        raise KeyProblem(f"{path}: exists already; a key is never overwritten\n  use it, or give another path")
    key = os.urandom(KEY_BYTES)
    try:
        sealed = keys_tpm.seal(key)
    except keys_tpm.TpmTrouble as error:
        raise KeyProblem(
            f"{path}: the TPM does not take a key: {error}\n  ls -l /dev/tpmrm0; tpm2_getrandom 4"
        ) from error
    if copy is not None:
        _publish(copy, key)
    _publish(path, sealed)


def _publish(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(part, path)  # unlike rename, link refuses to replace
        finally:
            os.unlink(part)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise KeyProblem(
            f"{path}: exists already; a key is never overwritten\n  use it, or give another path"
        ) from error
    except OSError as error:
        raise KeyProblem(
            f"{path}: the key file cannot be written: {error.strerror}\n  make its folder and its rights right"
        ) from error


def fingerprint(kek: bytes) -> bytes:
    """Eight bytes that tell one key-encryption key from another and reveal nothing of it."""
    return hmac.digest(kek, b"bedside-edge kek fingerprint", hashlib.sha256)[:8]


def new_data_key() -> bytes:
    """A fresh random data key."""
    return os.urandom(KEY_BYTES)


def wrap(kek: bytes, data_key: bytes) -> bytes:
    """The data key as it lies in the database: 40 bytes."""
    return aes_key_wrap(kek, data_key)


def unwrap(kek: bytes, wrapped: bytes) -> bytes | None:
    """The data key, or None when `wrapped` is damaged or belongs to another key-encryption key."""
    try:
        return aes_key_unwrap(kek, wrapped)
    except (InvalidUnwrap, ValueError):
        return None


def _read(path: Path, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise KeyProblem(f"{path}: the key is missing\n  {_RESTORE}") from error
    except OSError as error:
        raise KeyProblem(
            f"{path}: the key cannot be read: {error.strerror}\n  let the agent's user own it, with mode 0400"
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyProblem(f"{path}: is not a regular file\n  give the path of a key file")
        mode = stat.S_IMODE(status.st_mode)
        if private and mode not in (0o400, 0o600):
            raise KeyProblem(f"{path}: has mode {mode:04o}, others may use the key\n  chmod 0400 {path}")
        if private and status.st_uid != os.geteuid():
            raise KeyProblem(
                f"{path}: belongs to user {status.st_uid}, the agent runs as {os.geteuid()}\n"
                f"  chown {os.geteuid()} {path}"
            )
        return os.read(descriptor, _READ_LIMIT)
    except OSError as error:
        raise KeyProblem(f"{path}: the key cannot be read: {error.strerror}\n  check the disk") from error
    finally:
        os.close(descriptor)


def _parse(data: bytes, path: Path) -> bytes:
    key = data
    if len(data) != KEY_BYTES:
        text = data.strip()
        try:
            key = bytes.fromhex(text.decode("ascii")) if len(text) == 2 * KEY_BYTES else b""
        except (UnicodeDecodeError, ValueError):
            key = b""
    if len(key) != KEY_BYTES:
        raise KeyProblem(
            f"{path}: holds {len(data)} bytes, a key is 32 raw bytes or 64 hex digits; it may be half-written\n"
            f"  {_RESTORE}"
        )
    if len(set(key)) == 1:  # a file system that lost power fills a file with one byte; chance does not
        raise KeyProblem(f"{path}: holds one byte {KEY_BYTES} times, no key; it may be half-written\n  {_RESTORE}")
    return key
