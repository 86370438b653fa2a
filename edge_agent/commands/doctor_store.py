"""What `edge-agent doctor` looks at of the sealed buffer: its key, how full it is, what was put aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.commands.finding import SYSTEM, Finding, as_service
from edge_agent.config import Loaded
from edge_agent.control import ControlClient, Refused

BUFFER_FULL = 0.8  # of the quota: waveforms go at 0.95


def check_key(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """The key that wraps the buffer's keys."""
    from edge_agent.buffer import KeyProblem, load_kek

    spec = loaded.buffer_key
    try:
        with as_service("edge-agent.service", root):
            kek = load_kek(spec)
    except KeyProblem as error:
        state = "warn" if spec.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in os.environ else "FAIL"
        yield Finding(
            "key", state, str(error), "inside the service systemd passes the credential; see docs/getting-started.md"
        )
        return
    detail = f"{spec}: readable"
    if spec.startswith("file:"):
        yield Finding("key", "warn", detail, "a key file on the same card protects copied files, not a stolen card")
    else:
        yield Finding("key", "ok", detail)
    yield from _fits(loaded, kek)


def _fits(loaded: Loaded, kek: bytes) -> Iterator[Finding]:
    """Whether the key opens what is stored."""
    from edge_agent.buffer import admin
    from edge_agent.buffer.keys import fingerprint

    present = fingerprint(kek).hex()
    report = admin.key_report(loaded.resolve(loaded.config.gateway.data_dir))
    if report["rotation"]:
        yield Finding(
            "key", "FAIL", f"a rotation to {report['rotation']['new']} was interrupted",
            "stop the agent; edge-agent keys rotate --new KEY, again with the same key",
        )  # fmt: skip
    for file in report["files"]:
        others = [kek_id for kek_id in file["keks"] if kek_id != present]
        if others:
            yield Finding(
                "key", "FAIL", f"{file['file']} was sealed under {', '.join(others)}, the key is {present}",
                "set buffer.key to the key that fits before the agent starts, or it puts the file aside",
            )  # fmt: skip


def check_buffer(loaded: Loaded) -> Iterator[Finding]:
    """How full the buffer is, how long an outage it bridges, and what was put aside."""
    from edge_agent.buffer import admin

    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    quota_bytes = loaded.config.buffer.quota_mb << 20
    found = admin.capacity(data_dir, quota_bytes) | _live_buffer(loaded)
    share = found["bytes"] / quota_bytes
    detail = f"{found['bytes'] >> 20} of {loaded.config.buffer.quota_mb} MB used"
    if found.get("capacity_h") is None:
        detail += "; hours of room are known when records have come for a minute"
    else:
        detail += f"; holds {found['capacity_h']:g} h at the present rate, room for {found['room_h']:g} h more"
    full = share > BUFFER_FULL
    yield Finding("buffer", "warn" if full else "ok", detail, "see why cloud-sync does not deliver: cloud-sync status")
    for folder in admin.key_report(data_dir)["quarantine"]:
        yield Finding(
            "buffer", "warn", f"{folder['folder']}: {folder['bytes'] >> 10} KiB were put aside, still sealed",
            "docs/buffer.md says how to forward it; then archive or delete the folder",
        )  # fmt: skip


def _live_buffer(loaded: Loaded) -> dict[str, Any]:
    """The figures of a running agent, whose rate is that of now; none when nobody answers or it has no buffer."""
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            told = client.call("status").get("buffer", {})
    except (ConnectionError, Refused, OSError):
        return {}
    return {key: told[key] for key in ("bytes", "capacity_h", "room_h") if told.get(key) is not None}
