"""`edge-agent release`: build, verify, install and roll back signed releases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_agent.release.bundle import Stop
from edge_agent.release.command import CODES, add_commands


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `release`."""
    parser = subparsers.add_parser("release", help="build, verify, install and roll back signed releases", epilog=CODES)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    made = commands.add_parser("build", help="make a signed bundle from a checkout")
    made.add_argument("--source", type=Path, default=Path(), metavar="DIR", help="the checkout, by default this folder")
    made.add_argument("--version", default="", metavar="X", help="its number, by default the project's")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument("--sign-key", type=Path, required=True, metavar="KEY.pem", help="Ed25519 private key")
    made.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of requirements.lock, for machines off-line")
    made.add_argument("--dirty", action="store_true", help="also from files that are not committed (not for a ward)")
    made.set_defaults(func=run_build)
    add_commands(commands)


def run_build(arguments: argparse.Namespace) -> int:
    """Build; prints the bundle's path."""
    from edge_agent.release.build import build  # not on the installer's way

    try:
        path = build(
            arguments.source.resolve(), arguments.out, arguments.sign_key,
            version=arguments.version, wheels=arguments.wheels, dirty=arguments.dirty,
        )  # fmt: skip
    except Stop as stop:
        print(f"edge-agent release: {stop}", file=sys.stderr)
        return stop.code
    print(path)
    return 0
