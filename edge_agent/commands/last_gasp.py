"""`edge-agent last-gasp`: lights and buzzer on until the agent is back; systemd starts it when the agent has failed."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_agent import last_gasp


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `last-gasp`."""
    parser = subparsers.add_parser(
        "last-gasp", help="lights and buzzer on until the agent is back", description=last_gasp.__doc__
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    return last_gasp.run(arguments.config)
