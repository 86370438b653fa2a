"""The list of foreign software in a gateway: `python -m supply.soup [--write]`.

SOUP, software of unknown provenance, is what IEC 62304 calls software that was not developed for the device under its
own process. Generated from requirements.lock (versions), pyproject.toml (where our code uses it), docs/licences.md
(licences) and supply/parts.toml (what a person has to say). Exit status 1, with a line for each, when one of them says
nothing of a package, or of one that is not there, or docs/soup.md is not what comes out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent import NOTICE
from supply.licences import PAGE as LICENCES
from supply.licences import PARTS, listed, parts
from supply.lock import ROOT, LockError, doors, pins

PAGE = Path("docs") / "soup.md"
HAZARDS = Path("docs") / "hazards.md"
WHERE = {
    "loop": "in the alarm loop, while data come",
    "agent": "in the agent's process, at start or in a thread that the alarm loop does not wait for",
    "forwarder": "in cloud-sync, a process of its own that the agent does not notice, or only in commands",
    "commands": "only in commands that a person calls",
    "unused": "nowhere: installed because another package asks for it",
}
_COLUMNS = "| package | version | licence | what for | door | how its failure is met | hazard |"
_KEYS = {"where", "for", "fails", "hazards", "licence", "licence_from", "inside", "left_out"}
_HEAD = f"""\
# Foreign software in a gateway (SOUP)

> {NOTICE}

Made by `make soup` from `requirements.lock`, `pyproject.toml`, [licences.md](licences.md) and `supply/parts.toml`; do
not edit. For whoever judges what a failure of somebody else's code can do. The hazards are in [hazards.md](hazards.md).

- **Version**: exactly this one is installed, its files checked by SHA-256 (`pip --require-hashes`). Where there are
  two, the newer is for Python 3.12 and later.
- **Known anomalies**: `make audit` holds every version against the advisories of the Python Packaging Authority. Beyond
  that, the issue tracker and the release notes of each project, which the bill of materials (`make sbom`) names, are to
  be read before its version in the lock is changed; a change runs the whole suite, with the agent over real links,
  disks and brokers.
- Beside these a gateway runs Debian's or Ubuntu's Python, SQLite, systemd, OpenSSL, BlueZ and kernel, with the system's
  updates.
"""


def page(root: Path = ROOT) -> tuple[str, list[str]]:
    """The page, and what is wrong, a line each."""
    said, licences, used = parts(root), listed(root), doors(root)
    older, newer = pins(root, "3.11"), {pin.name: pin.version for pin in pins(root, "3.13")}
    hazards = set(re.findall(r"^\| (H\d+) \|", (root / HAZARDS).read_text(), re.MULTILINE))
    problems = [f"{PARTS}: {name} is not in requirements.lock: take it out" for name in sorted(set(said) - set(newer))]
    rows: dict[str, list[str]] = {where: [] for where in WHERE}
    for pin in older:
        own = said.get(pin.name)
        if own is None or own.get("where") not in WHERE or not own.get("for") or not own.get("fails"):
            problems.append(
                f"{PARTS}: say of {pin.name} where it runs ({', '.join(WHERE)}), what for, and how it fails"
            )
            continue
        problems += [f"{PARTS}: {pin.name}: unknown key {key}" for key in sorted(own.keys() - _KEYS)]
        strange = [each for each in own["hazards"] if each not in hazards]
        problems += [f"{PARTS}: {pin.name}: there is no {each} in {HAZARDS}" for each in strange]
        if (at := licences.get(pin.name, ("", ""))[0]) not in (pin.version, newer[pin.name]):
            problems.append(
                f"{LICENCES} has {pin.name} {at or 'not at all'}, the lock has {pin.version}: run make sbom"
            )
            continue
        versions = " / ".join(dict.fromkeys((pin.version, newer[pin.name])))
        door = f"`{used[pin.name]}`" if pin.name in used else f"for {', '.join(pin.via)}"
        rows[own["where"]].append(
            f"| {pin.name} | {versions} | {licences[pin.name][1]} | {own['for']} | {door} | {own['fails']} | "
            f"{', '.join(own['hazards']) or '-'} |"
        )
    lines = [_HEAD]
    for where, words in WHERE.items():
        lines += [f"## {words[0].upper()}{words[1:]}", ""]
        lines += [_COLUMNS, "|---|---|---|---|---|---|---|"]
        lines += [*rows[where], ""]
    return "\n".join(lines), problems


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the page says what is so, else 1."""
    parser = argparse.ArgumentParser(prog="python -m supply.soup", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"renew {PAGE}")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        text, problems = page(options.root)
    except LockError as error:
        text, problems = "", [str(error)]
    target = options.root / PAGE
    if options.write and not problems:
        target.write_text(text)
    elif text and (not target.exists() or target.read_text() != text):
        problems.append(f"{PAGE} is out of date: run make soup")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
