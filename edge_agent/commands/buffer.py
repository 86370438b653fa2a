"""`edge-agent buffer stats|verify|export`: looks into the sealed buffer, read-only, also while the agent runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_agent.config import load


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `buffer` with its three commands."""
    buffer = subparsers.add_parser("buffer", help="look into the sealed buffer")
    commands = buffer.add_subparsers(metavar="COMMAND", required=True)
    for name, text in (
        ("stats", "records, bytes, keys and gaps"),
        ("verify", "check every block's seal and the sequence; exit 1 when something is wrong"),
        ("export", "print records as JSON lines; holds patient data"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("--config", type=Path, required=True, metavar="FILE")
        each.set_defaults(func=run_buffer, command=name)
        if name == "export":
            each.add_argument("--stream", choices=("alerts", "data"), help="only one of the two files")


def run_buffer(arguments: argparse.Namespace) -> int:
    """Run one of the three; a key that is missing or wrong is told with what to do."""
    from edge_agent.buffer import STREAMS, KeyProblem, admin, load_kek

    loaded = load(arguments.config)
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    try:
        key = load_kek(loaded.buffer_key)
        if arguments.command == "stats":
            print(json.dumps(admin.stats(data_dir, key), indent=2))
            return 0
        if arguments.command == "verify":
            report = admin.verify(data_dir, key)
            print(json.dumps(report, indent=2))
            return 0 if report["ok"] else 1
        for stream in [arguments.stream] if arguments.stream else STREAMS:
            for record in admin.export(data_dir, key, stream):
                print(json.dumps(record, ensure_ascii=False))
    except (KeyProblem, OSError) as error:
        print(f"edge-agent buffer: {error}", file=sys.stderr)
        return 1
    return 0
