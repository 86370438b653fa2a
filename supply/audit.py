"""Known holes in what a gateway installs: `python -m supply.audit`, with pip-audit, in its environment.

pip-audit asks for the advisories of each package of requirements.lock. Where they cannot be had it may end as if all
were well: a mirror without advisories answers "not found", which pip-audit only mentions. So its report is read package
by package. Exit status: 0 every package was looked up and none has a known hole; 1 a known hole, or a report that does
not say enough; 3 no advisories could be had, nothing is known. `--tell` ends with 0 instead of 3, after saying so: for
runs on machines without a way to the advisories. Further options go to pip-audit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supply.lock import ROOT, LockError, canonical, pins

FINE, HOLES, UNREACHABLE = 0, 1, 3
_LIMIT_S = 300
# pip-audit's words, or those of what it is built on, when nobody answered
_NOBODY = (
    "ConnectionError", "ConnectTimeout", "Max retries exceeded", "Failed to resolve", "Could not connect",
    "Connection refused", "Read timed out", "ServiceError", "503 Server Error", "502 Server Error", "ProxyError",
)  # fmt: skip


@dataclass
class Found:
    """What the report says: packages looked up, packages of which nothing is known, holes as lines of text."""

    looked_up: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)


def judged(report: dict[str, Any]) -> Found:
    """A report of pip-audit, package by package. Raises: ValueError when it is none."""
    found = Found()
    try:
        for each in report["dependencies"]:
            name = canonical(each["name"])
            if "skip_reason" in each:
                found.unknown.append(name)
                continue
            found.looked_up.append(name)
            for hole in each["vulns"]:
                better = ", ".join(hole["fix_versions"]) or "no version yet"
                found.holes.append(f"{name} {each['version']}: {hole['id']}, mended in {better}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"pip-audit's report lacks {error}") from None
    return found


def report(root: Path, options: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report, None when nobody answered, and what it said beside it.

    Raises: LockError when pip-audit is missing or failed for another reason.
    """
    program = Path(sys.executable).parent / "pip-audit"
    if not program.exists():
        raise LockError(f"{program} is missing: run make audit, which installs it")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [str(program), "--requirement", str(root / "requirements.lock"), "--require-hashes", "--disable-pip",
                   "--format", "json", "--output", str(target), "--progress-spinner", "off", *options]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return None, f"no answer in {_LIMIT_S} s"
        if target.exists() and (text := target.read_text()):
            return json.loads(text), done.stderr
    if any(word in done.stderr for word in _NOBODY):
        return None, done.stderr.strip().rpartition("\n")[2]
    raise LockError(f"pip-audit failed ({done.returncode}):\n{done.stderr[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status as the module says."""
    parser = argparse.ArgumentParser(prog="python -m supply.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--tell", action="store_true", help="end with 0 where the advisories cannot be had")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    say = sys.stdout.write
    try:
        answered, words = report(options.root, rest)
        found = judged(answered) if answered is not None else Found()
        locked = {pin.name for pin in pins(options.root)}
    except (LockError, ValueError) as error:
        sys.stderr.write(f"audit: {error}\n")
        return HOLES
    if answered is None or not found.looked_up:
        why = words if answered is None else "the index that answers has no advisories"
        say(f"audit: NOTHING IS KNOWN: no advisories can be had from this machine ({why}).\n"
            "  Run make audit where they can, before a release and once a week.\n")  # fmt: skip
        return FINE if options.tell else UNREACHABLE
    for hole in found.holes:
        say(f"audit: {hole}\n")
    missed = sorted(locked - set(found.looked_up))
    if missed:
        say(f"audit: nothing is known of {', '.join(missed)}\n")
    say(f"audit: {len(found.looked_up)} of {len(locked)} packages looked up, {len(found.holes)} known holes\n")
    return HOLES if found.holes or missed else FINE


if __name__ == "__main__":
    sys.exit(main())
