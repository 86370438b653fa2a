"""The gateway's certificates: which ones the configuration names, and what is wrong with one of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from edge_agent.config import Loaded


class Unreadable(Exception):
    """A file that is no certificate, or cannot be read; `str` names it."""


class Named(NamedTuple):
    """One receiver's files, as the configuration names them."""

    receiver: str  # kafka, mqtt, rest
    certificate: Path
    private_key: Path
    ca: Path | None


class Certificate(NamedTuple):
    """What a certificate says of itself."""

    subject: str
    issuer: str
    not_before: float  # Unix time
    not_after: float
    x509: x509.Certificate


def named(loaded: Loaded) -> list[Named]:
    """Client certificates of the receivers, each with its key and its authority."""
    cloud = loaded.config.cloud
    found = []
    for receiver, table in (("kafka", cloud.kafka), ("mqtt", cloud.mqtt), ("rest", cloud.rest)):
        if table is not None and table.certificate is not None and table.private_key is not None:
            found.append(
                Named(
                    receiver,
                    loaded.resolve(table.certificate),
                    loaded.resolve(table.private_key),
                    None if table.ca is None else loaded.resolve(table.ca),
                )
            )
    return found


def read(path: Path) -> list[Certificate]:
    """The certificates of a PEM file, the gateway's own first. Raises: Unreadable."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Unreadable(f"{path} holds no certificate in PEM form") from error
    return [
        Certificate(
            each.subject.rfc4514_string(), each.issuer.rfc4514_string(),
            each.not_valid_before_utc.timestamp(), each.not_valid_after_utc.timestamp(), each,
        )
        for each in found
    ]  # fmt: skip


def matches(certificate: Certificate, private_key: Path) -> bool:
    """Whether the key is the certificate's. Raises: Unreadable; PermissionError where only the service may look."""
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except PermissionError:
        raise
    except OSError as error:
        raise Unreadable(f"{private_key} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Unreadable(f"{private_key} holds no private key in PEM form") from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form) == certificate.x509.public_key().public_bytes(*form)


def issued_by(chain: list[Certificate], authorities: list[Certificate]) -> bool:
    """Whether signatures lead from the first certificate to one of the authorities; dates are looked at elsewhere."""
    present, seen = chain[0], 0
    while seen <= len(chain):
        if any(_signed(present, each) for each in authorities):
            return True
        above = next((each for each in chain[1:] if each is not present and _signed(present, each)), None)
        if above is None:
            return False
        present, seen = above, seen + 1
    return False


def _signed(certificate: Certificate, authority: Certificate) -> bool:
    try:
        certificate.x509.verify_directly_issued_by(authority.x509)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def days_left(certificate: Certificate, now: float | None = None) -> float:
    """Days until it ends; negative once it has."""
    return (certificate.not_after - (time.time() if now is None else now)) / 86400


def day(moment: float) -> str:
    """A Unix time as a day, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
