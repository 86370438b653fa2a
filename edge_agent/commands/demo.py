"""`edge-agent demo`: the whole path on one machine with simulated devices."""

from __future__ import annotations

import argparse
import asyncio
import sys

from edge_agent import NOTICE


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`."""
    parser = subparsers.add_parser("demo", help="simulated bedside, whole path, embedded parts, one terminal view")
    parser.add_argument("--beds", type=_beds, default=4, metavar="N", help="1 to 64, by default 4")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end after so long; without it, Ctrl-C ends it")
    parser.add_argument("--plain", action="store_true", help="lines instead of a screen, as when it is no terminal")
    parser.set_defaults(func=run)


def _beds(text: str) -> int:
    beds = int(text)
    if not 1 <= beds <= 64:
        raise argparse.ArgumentTypeError("from 1 to 64")
    return beds


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError("more than 0")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 only when all that it promises was really seen."""
    try:
        from edge_agent.demo.compose import KAFKA_NOTE, demo
    except ModuleNotFoundError as error:
        if error.name != "bumble":
            raise
        print("edge-agent demo: its virtual radio needs the package bumble; pip install 'bedside-edge[demo]'")
        return 1
    print(f"{NOTICE}\n{KAFKA_NOTE}", flush=True)
    return asyncio.run(demo(args.beds, args.seconds, plain=args.plain or not sys.stdout.isatty()))
