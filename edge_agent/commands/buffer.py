"""`edge-agent buffer stats|verify|export`: looks into the sealed buffer, read-only, also while the agent runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_agent.commands.since import add_since
from edge_agent.config import load

_KINDS = (
    "observation", "waveform", "device_status", "device_alarm", "patient", "reject", "alarm_event", "score", "gap",
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `buffer` with its three commands."""
    buffer = subparsers.add_parser("buffer", help="look into the sealed buffer")
    commands = buffer.add_subparsers(metavar="COMMAND", required=True)
    for name, text in (
        ("stats", "records, bytes, hours of room, keys, marks and gaps"),
        ("verify", "check every block's seal and the sequence; exit 1 when something is wrong"),
        ("export", "print records as JSON lines; patients are numbered, not named"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("--config", type=Path, required=True, metavar="FILE")
        each.set_defaults(func=run_buffer, command=name)
        if name != "stats":
            each.add_argument("--stream", choices=("alerts", "data"), help="only one of the two files")
        if name == "verify":
            each.add_argument("--file", type=Path, metavar="DB", help="an alerts.db or data.db put aside in quarantine")
        if name == "export":
            add_since(each)
            each.add_argument("--bed", metavar="ID", help="only this bed")
            each.add_argument("--kind", action="append", choices=_KINDS, help="only this kind; may be repeated")
            each.add_argument("--identifiers", action="store_true", help="with the patients' identifiers")


def run_buffer(arguments: argparse.Namespace) -> int:
    """Run one of the three; a key that is missing or wrong is told with what to do."""
    from edge_agent.buffer import KeyProblem, admin, load_kek

    loaded = load(arguments.config)
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    try:
        key = load_kek(loaded.buffer_key)
        if arguments.command == "stats":
            print(json.dumps(admin.stats(data_dir, key, loaded.config.buffer.quota_mb << 20), indent=2))
            return 0
        if arguments.command == "verify":
            return _verify(arguments, data_dir, key)
        _export(arguments, data_dir, key)
    except (KeyProblem, OSError) as error:
        print(f"edge-agent buffer: {error}", file=sys.stderr)
        return 1
    return 0


def _verify(arguments: argparse.Namespace, data_dir: Path, key: bytes) -> int:
    from edge_agent.buffer import admin

    report = admin.verify(data_dir, key, arguments.file, arguments.stream)
    print(json.dumps(report, indent=2))
    for stream, found in report["streams"].items():
        bad = found["first_bad"]
        if bad is not None:
            told = f"the first bad block of {stream} is {bad['block']}: {bad['reason']}"
            print(f"edge-agent buffer: {found['file']}: {told}", file=sys.stderr)
        elif not found["ok"]:
            print(f"edge-agent buffer: {found['file']}: {found['fault']}", file=sys.stderr)
    return 0 if report["ok"] else 1


def _export(arguments: argparse.Namespace, data_dir: Path, key: bytes) -> None:
    from edge_agent.buffer import STREAMS, admin

    chosen = admin.Choice(arguments.since, arguments.bed, frozenset(arguments.kind or ()), arguments.identifiers)
    for stream in [arguments.stream] if arguments.stream else STREAMS:
        for record in admin.export(data_dir, key, stream, chosen):
            print(json.dumps(record, ensure_ascii=False))
