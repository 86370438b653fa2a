"""The licences of what a gateway installs: `python -m supply.licences [--write]`, in the environment of the lock.

Reads the metadata of the packages of requirements.lock that are installed beside the running Python, holds each licence
against those that are allowed, and compares docs/licences.md with what comes out, or with `--write` renews it. Exit
status 1, with a line for each, when a licence is unknown or not allowed, or the page is out of date.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supply.lock import ROOT, LockError, Pin, pins

PAGE = Path("docs") / "licences.md"
PARTS = Path("supply") / "parts.toml"

# What may be installed on a gateway, and what follows for whoever hands a gateway or a release on.
_NOTICE = "keep copyright line and licence text, which stand in the installed wheel"
FOLLOWS: dict[str, str] = {
    "0BSD": "nothing",
    "Apache-2.0": "keep licence text and NOTICE; say what you changed",
    "BSD-2-Clause": _NOTICE,
    "BSD-3-Clause": f"{_NOTICE}; no advertising with the authors' names",
    "CC0-1.0": "nothing",
    "ISC": _NOTICE,
    "LGPL-2.1-or-later": "the library stays as it came and replaceable, as a wheel of its own; hand its licence on, "
    "and its source or an offer of it; whoever changes it publishes the change",
    "MIT": _NOTICE,
    "MIT-0": "nothing",
    "MPL-2.0": "its files stay as they came; hand on where their source is; whoever changes one publishes that file",
    "PSF-2.0": _NOTICE,
    "Zlib": "keep the notice in source; do not claim to have written it",
}
# Words of older metadata that mean one licence and no other. "BSD" alone may mean two or three clauses: it is not here.
_WORDS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}
_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_HEAD = """\
# Licences of what a gateway installs

For whoever hands on a gateway or a release. Made by `make sbom` from the metadata of the packages in
`requirements.lock`; do not edit. bedside-edge itself is under Apache-2.0. A licence that is not in the second table,
or cannot be read, makes `make sbom` fail. Tools of development, training and operation are not installed on gateways
and not listed.
"""
_CHOICE = "Where there is a choice (OR), the allowed licence is taken: `paho-mqtt` under BSD-3-Clause."
_INSIDE = """\
## Inside the wheels

Libraries that a wheel carries in its binaries; versions are in the bill of materials. The GCC exception lets
libgfortran be handed on with programs under any licence; `gpiod` is the one package under the LGPL, and nothing is
linked to it: it is imported as a wheel of its own, which can be replaced."""


def allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences alone.

    Raises: ValueError for an expression that is not one, or has parts that are not understood, such as WITH.
    """
    tokens = _TOKEN.findall(expression)

    def either(position: int) -> tuple[bool, int]:
        holds, position = both(position)
        while position < len(tokens) and tokens[position] == "OR":
            other, position = both(position + 1)
            holds = holds or other
        return holds, position

    def both(position: int) -> tuple[bool, int]:
        holds, position = one(position)
        while position < len(tokens) and tokens[position] == "AND":
            other, position = one(position + 1)
            holds = holds and other
        return holds, position

    def one(position: int) -> tuple[bool, int]:
        if position >= len(tokens) or tokens[position] in (")", "AND", "OR", "WITH"):
            raise ValueError(f"not an SPDX expression: {expression!r}")
        if tokens[position] != "(":
            return tokens[position] in FOLLOWS, position + 1
        holds, position = either(position + 1)
        if position >= len(tokens) or tokens[position] != ")":
            raise ValueError(f"not an SPDX expression: {expression!r}")
        return holds, position + 1

    holds, end = either(0)
    if end != len(tokens):
        raise ValueError(f"not an SPDX expression: {expression!r}")
    return holds


def parts(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """What a person wrote of each package."""
    return tomllib.loads((root / PARTS).read_text())


def declared(name: str, said: dict[str, Any]) -> tuple[str, str]:
    """SPDX expression of an installed package, empty when there is none to be had, and where it was read."""
    data = importlib.metadata.metadata(name)
    if expression := data.get("License-Expression"):
        return str(expression), "expression"
    if "licence" in said:
        return str(said["licence"]), str(said.get("licence_from", ""))
    text = str(data.get("License", ""))
    if text in FOLLOWS or (_TOKEN.findall(text)[1:2] in (["AND"], ["OR"])):
        return text, "licence field"
    words = [_WORDS.get(each, "") for each in data.get_all("Classifier", []) if each.startswith("License ::")]
    return (words[0], "classifier") if len(words) == 1 and words[0] else ("", "")


def page(root: Path, locked: Sequence[Pin]) -> tuple[str, list[str]]:
    """The page, and what is wrong, a line each."""
    said, problems, rows = parts(root), [], []
    used: set[str] = set()
    for pin in locked:
        try:
            installed = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            raise LockError(f"{pin.name} is not installed beside {sys.executable}; run make sbom") from None
        if installed != pin.version:
            raise LockError(f"{pin.name} is installed as {installed} and locked at {pin.version}; run make sbom")
        expression, where = declared(pin.name, said.get(pin.name, {}))
        try:
            fine = bool(expression) and allowed(expression)
        except ValueError as error:
            problems.append(f"{pin.name}: {error}")
            continue
        if not expression:
            problems.append(
                f"{pin.name} {pin.version}: its metadata names no one licence: read its licence file and write "
                f"`licence` and `licence_from` into {PARTS}"
            )
        elif not fine:
            problems.append(
                f"{pin.name} {pin.version}: {expression} is not allowed on a gateway: take another package, or "
                "have the licence judged and add it to supply/licences.py with what follows from it"
            )
        used |= set(_TOKEN.findall(expression))
        rows.append(f"| {pin.name} | {pin.version} | {expression} | {where} |")
    lines = [_HEAD, "| package | version | licence | read from |", "|---|---|---|---|", *rows]
    lines += ["", "What follows for whoever hands it on, unchanged:", "", "| licence | what follows |", "|---|---|"]
    lines += [f"| {each} | {FOLLOWS[each]} |" for each in sorted(used & FOLLOWS.keys())]
    lines += ["", _CHOICE, "", _INSIDE, "", "| wheel | carries | licence |", "|---|---|---|"]
    lines += [
        f"| {pin.name} | {each['name']} | {each['licence']} |"
        for pin in locked
        for each in said.get(pin.name, {}).get("inside", [])
    ]
    return "\n".join(lines) + "\n", problems


def listed(root: Path = ROOT) -> dict[str, tuple[str, str]]:
    """Version and licence of each package as the page has them."""
    rows = re.findall(r"^\| ([a-z0-9.-]+) \| ([^ |]+) \| ([^|]+) \| [^|]* \|$", (root / PAGE).read_text(), re.MULTILINE)
    return {name: (version, licence) for name, version, licence in rows if name != "package"}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every licence is allowed and the page says so, else 1."""
    parser = argparse.ArgumentParser(prog="python -m supply.licences", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"renew {PAGE}")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        text, problems = page(options.root, pins(options.root))
    except LockError as error:
        text, problems = "", [str(error)]
    target = options.root / PAGE
    if options.write and not problems:
        target.write_text(text)
    elif text and (not target.exists() or target.read_text() != text):
        problems.append(f"{PAGE} is out of date: run make sbom")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems:
        sys.stdout.write(f"{len(listed(options.root))} packages in {PAGE}, every licence is allowed\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
