"""The acceptance record: what was tried on which gateway and bed, by whom, with what result; signed.

One JSON object with three members. `record` is what is said. `signature` holds the public key, its fingerprint and the
Ed25519 signature over the canonical text of `record`. The file is written in one exact form, and a file of any other
form is refused, so that every changed byte is found, also one that changes no meaning.

The record names no patient and, unless that was chosen, no value: of a vital sign it holds the deviation and whether
that was good enough. docs/biomed.md lists every field.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import NOTICE, __version__
from edge_agent.provisioning.signing import Signer, fingerprint, holds
from edge_agent.provisioning.steps import TITLES, Result, verdict

SCHEMA = 1
KIND = "bedside-edge acceptance record"
LIMIT = 1 << 20  # bytes; a record is about 6 kB
_BOARD = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))
_SERIAL = (Path("/proc/device-tree/serial-number"), Path("/sys/class/dmi/id/product_serial"))


class RecordError(Exception):
    """A record that does not hold; `str` says why."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A record that is what was signed."""

    record: Mapping[str, Any]
    fingerprint: str
    sha256: str  # of the file


def build(
    *,
    gateway: str,
    bed: str,
    engineer: Mapping[str, str],
    results: Sequence[Result],
    configuration: Mapping[str, Any],
    devices: Sequence[Mapping[str, Any]],
    clock: str,
    started: str,
    ended: str,
    with_values: bool,
) -> dict[str, Any]:
    """What is said, ready to be signed."""
    accepted, reason = verdict(results)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "notice": NOTICE,
        "gateway": gateway,
        "bed": bed,
        "engineer": dict(engineer),
        "started": started,
        "ended": ended,
        "clock": clock,
        "versions": {
            "bedside-edge": __version__,
            "python": platform.python_version(),
            "system": _system(),
            "kernel": platform.release(),
        },
        "hardware": {"board": _first(_BOARD), "serial": _first(_SERIAL), "machine": platform.machine()},
        "devices": [dict(device) for device in devices],
        "configuration": dict(configuration),
        "values": "recorded" if with_values else "deviations only",
        "steps": [_step(result) for result in results],
        "verdict": {"accepted": accepted, "reason": reason},
    }


def _step(result: Result) -> dict[str, Any]:
    return {
        "step": result.step,
        "title": TITLES[result.step],
        "outcome": result.outcome,
        "mandatory": result.mandatory,
        "seen": result.seen,
        "remedy": result.remedy,
        "at": result.at,
        "seconds": round(result.seconds, 1),
        "details": dict(result.details),
    }


def signed(record: Mapping[str, Any], signer: Signer) -> str:
    """The text of the file."""
    return _text(record, signer.public, signer.sign(_canonical(record)))


def _text(record: Mapping[str, Any], public: bytes, signature: bytes) -> str:
    whole = {
        "record": record,
        "signature": {
            "algorithm": "Ed25519",
            "fingerprint": fingerprint(public),
            "key": base64.b64encode(public).decode(),
            "value": base64.b64encode(signature).decode(),
        },
    }
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(
        record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()  # fmt: skip


def verify(path: Path, key: bytes | None = None) -> Verified:
    """The record in `path` when it is what was signed; with `key` (32 bytes) also by whom.

    Raises: RecordError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise RecordError(f"cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise RecordError(f"is longer than {LIMIT} bytes: no acceptance record")
    try:
        whole = json.loads(data)
        record, signature = whole["record"], whole["signature"]
        public = base64.b64decode(signature["key"], validate=True)
        value = base64.b64decode(signature["value"], validate=True)
        text = _text(record, public, value).encode()
        canonical = _canonical(record)
        schema = record["schema"]
        record["verdict"]["accepted"], record["steps"], record["configuration"]["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError("is no acceptance record, or was damaged") from error
    if text != data:
        raise RecordError("was changed after it was signed: it has not the exact form that was written")
    if not holds(public, value, canonical):
        raise RecordError("was changed after it was signed: the signature does not fit")
    if key is not None and key != public:
        raise RecordError(f"was signed by another key: {fingerprint(public)}, expected {fingerprint(key)}")
    if schema != SCHEMA:
        raise RecordError(f"has schema {schema!r}; this version reads {SCHEMA}")
    return Verified(record, fingerprint(public), hashlib.sha256(data).hexdigest())


def _first(places: Sequence[Path]) -> str:
    for place in places:
        try:
            text = place.read_text(errors="replace").strip("\x00\n ")
        except OSError:
            continue
        if text:
            return text[:128]
    return "unknown"


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", sys.platform)
    except OSError:
        return os.uname().sysname
