"""What `edge-agent doctor` looks at of the beds: whether somebody accepted each as it is configured now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from edge_agent.commands.finding import SYSTEM, Finding
from edge_agent.config import Loaded

FOLDER = "acceptance"  # below the data folder, BED.json for each


def check_acceptance(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:  # noqa: ARG001
    """The acceptance record of each bed: there, whole, positive, and of the present configuration."""
    from edge_agent.provisioning.record import RecordError, verify

    folder = loaded.resolve(loaded.config.gateway.data_dir) / FOLDER
    present = hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    for bed in loaded.config.bed:
        path = folder / f"{bed.id}.json"
        again = f"edge-agent provision --config {loaded.path} --bed {bed.id}"
        try:
            if not path.exists():
                yield Finding("acceptance", "warn", f"{bed.id}: nobody has accepted this bed ({path})", again)
                continue
            record = verify(path).record
        except PermissionError:
            yield Finding("acceptance", "warn", f"{bed.id}: {path} cannot be read", "sudo edge-agent doctor")
            continue
        except RecordError as error:
            yield Finding("acceptance", "FAIL", f"{bed.id}: {path} {error}", again)
            continue
        when = str(record.get("ended", ""))[:10]
        if record.get("bed") != bed.id or record.get("gateway") != loaded.config.gateway.id:
            detail = f"{bed.id}: {path} is of {record.get('bed')} on {record.get('gateway')}"
            yield Finding("acceptance", "FAIL", detail, again)
        elif not record["verdict"]["accepted"]:
            detail = f"{bed.id}: not accepted on {when}: {record['verdict'].get('reason', '')}"
            yield Finding("acceptance", "warn", detail, again)
        elif record["configuration"]["sha256"] != present:
            yield Finding("acceptance", "warn", f"{bed.id}: the configuration has changed since {when}", again)
        else:
            yield Finding("acceptance", "ok", f"{bed.id}: accepted on {when} with this configuration")
