"""A model and what must be known of it, in a signed folder: read, checked and written.

`<name>-<version>/` holds `model.tflite`, `model.json` (the description, see `Description`) and `model.json.sig`, the
raw 64 bytes of an Ed25519 signature over the exact bytes of `model.json`; the description holds the SHA-256 and
the size of `model.tflite`, so that the one signature covers both. Nothing of the description is interpreted before the
signature was verified. What is found wrong is a `BundleRefused` that says what, where and what to do.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from models_tflite import description
from models_tflite.description import Description, ModelFile

MODEL, DESCRIPTION, SIGNATURE = "model.tflite", "model.json", "model.json.sig"
TRUSTED = Path(__file__).parent / "trusted"  # the public keys that come with the package
BUNDLES = Path(__file__).parent / "bundles"  # the bundles that come with the package
MODEL_LIMIT = 4 << 20  # bytes; a bedside model is below 300 kB, ten times that is a mistake or an attack
DESCRIPTION_LIMIT = 1 << 20  # bytes
SIGNATURE_SIZE = 64  # bytes of an Ed25519 signature
_KEY_LIMIT = 4096  # bytes of a PEM file


class BundleRefused(Exception):
    """A bundle that is not used; the text says what is wrong, in which file, and what to do."""

    def __init__(self, where: Path, what: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}. {remedy}")
        self.where, self.what, self.remedy = where, what, remedy


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose signature, hash and description are right; goldens are proven by the runner that opens it."""

    folder: Path
    description: Description
    model: bytes
    signer: str  # fingerprint of the public key that verified it

    @property
    def identity(self) -> str:
        """Name, version and the first 12 characters of the model's SHA-256, for alerts and records."""
        about = self.description
        return f"{about.name}-{about.version} {about.model.sha256[:12]}"


def read(folder: Path, trusted: Iterable[Path] = ()) -> Bundle:
    """The bundle in `folder`, verified against the keys of the package and those in `trusted` (.pub files, PEM).

    Raises: BundleRefused. The goldens need a runtime: `runner.Runner(bundle)` proves them.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise BundleRefused(folder, "is not a folder of its own", "Name the folder that holds model.json")
    keys = public_keys(trusted)
    text = _file(folder / DESCRIPTION, DESCRIPTION_LIMIT)
    signature = _file(folder / SIGNATURE, SIGNATURE_SIZE)
    signer = _signer(folder, text, signature, keys)
    about = _description(folder / DESCRIPTION, text)
    if folder.resolve().name != f"{about.name}-{about.version}":
        raise BundleRefused(
            folder,
            f"holds {about.name}-{about.version}",
            "Rename the folder: a bundle's folder is called <name>-<version>",
        )
    model = _file(folder / MODEL, MODEL_LIMIT)
    found = hashlib.sha256(model).hexdigest()
    if len(model) != about.model.bytes or found != about.model.sha256:
        raise BundleRefused(
            folder / MODEL,
            f"{len(model)} bytes with SHA-256 {found}; described are {about.model.bytes} and {about.model.sha256}",
            _COPY_ANEW,
        )
    return Bundle(folder, about, model, signer)


def shipped() -> Path:
    """The folder of the newest bundle that comes with the package. Raises: BundleRefused when there is none."""
    found = [path for path in BUNDLES.glob("*-*") if path.is_dir()]
    if not found:
        raise BundleRefused(BUNDLES, "no bundle comes with this package", "Name the folder of one")
    return max(found, key=_release)


def _release(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.rpartition("-")[2].split("."))


def write(folder: Path, model: bytes, about: Description, key: Ed25519PrivateKey) -> Path:
    """Write `folder`/<name>-<version>/ with all three files, signed with `key`; returns that folder.

    The description's `schema` and `model` (hash, size) are filled in here. A bundle that is there is replaced file by
    file, the description's signature last. Raises: BundleRefused when `read` would refuse what is to be written.
    """
    about = msgspec.structs.replace(
        about, schema=description.SCHEMA, model=ModelFile(hashlib.sha256(model).hexdigest(), len(model))
    )
    target = folder / f"{about.name}-{about.version}"
    text = description.encode(about)
    _description(target / DESCRIPTION, text)
    for what, size, limit in ((MODEL, len(model), MODEL_LIMIT), (DESCRIPTION, len(text), DESCRIPTION_LIMIT)):
        if size > limit:
            raise BundleRefused(target / what, f"{size} bytes, the limit is {limit}", "Make a smaller model")
    target.mkdir(parents=True, exist_ok=True)
    _replace(target / MODEL, model)
    _replace(target / DESCRIPTION, text)
    _replace(target / SIGNATURE, key.sign(text))
    return target


def private_key(path: Path) -> Ed25519PrivateKey:
    """The signing key in a PEM file (`openssl genpkey -algorithm ed25519 -out FILE`). Raises: BundleRefused."""
    try:
        key = load_pem_private_key(_file(path, _KEY_LIMIT, _NAME_KEY), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleRefused(path, f"no unencrypted private key in PEM ({error})", _MAKE_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleRefused(path, "a private key, but not Ed25519", _MAKE_KEY)
    return key


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half of a signing key as the text of a .pub file."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_keys(more: Iterable[Path] = ()) -> dict[str, Ed25519PublicKey]:
    """Fingerprint to key, of the package's own .pub files and of those in `more`. Raises: BundleRefused."""
    keys: dict[str, Ed25519PublicKey] = {}
    for path in [*sorted(TRUSTED.glob("*.pub")), *more]:
        try:
            key = load_pem_public_key(_file(path, _KEY_LIMIT, _NAME_KEY))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise BundleRefused(path, f"no public key in PEM ({error})", _MAKE_KEY) from error
        if not isinstance(key, Ed25519PublicKey):
            raise BundleRefused(path, "a public key, but not Ed25519", _MAKE_KEY)
        keys[fingerprint(key)] = key
    return keys


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA256: and the base64 of the SHA-256 over the key's 32 bytes."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


_COPY_ANEW = "The folder was damaged or changed after it was signed: copy the bundle anew from where it was issued"
_COPY_WHOLE = f"Copy the whole bundle: {MODEL}, {DESCRIPTION}, {SIGNATURE}"
_NAME_KEY = "Name a key file that is there and may be read"
_MAKE_KEY = "Make one with: openssl genpkey -algorithm ed25519, and its .pub with: openssl pkey -pubout"


def _signer(folder: Path, text: bytes, signature: bytes, keys: dict[str, Ed25519PublicKey]) -> str:
    if not keys:
        raise BundleRefused(
            folder, "no public key is trusted", "Name the issuer's .pub file: [model] trusted, or --key"
        )
    for name, key in keys.items():
        try:
            key.verify(signature, text)
        except InvalidSignature:
            continue
        return name
    raise BundleRefused(
        folder / SIGNATURE,
        f"is no signature of {DESCRIPTION} by any of {len(keys)} trusted keys ({', '.join(keys)})",
        "Either a file was changed after it was signed: copy the bundle anew. Or the issuer's key is not trusted here",
    )


def _file(path: Path, limit: int, remedy: str = _COPY_WHOLE) -> bytes:
    """The bytes of a regular file of at most `limit`; follows no link, never waits for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleRefused(path, f"cannot be opened ({error.strerror})", remedy) from error
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BundleRefused(path, "is not a regular file", "Copy the file itself, not a link or a device")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BundleRefused(path, f"is longer than {limit} bytes", _COPY_ANEW if remedy == _COPY_WHOLE else remedy)
    return content


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)  # a temporary file is the owner's alone, a bundle is read by the agent's user
    os.replace(file.name, path)


def _description(path: Path, text: bytes) -> Description:
    try:
        return description.parse(text)
    except ValueError as error:
        raise BundleRefused(path, str(error), "Have the bundle issued anew by those who trained it") from error
