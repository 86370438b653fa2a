"""The command line `edge-agent`: one module in edge_agent/commands for each family of commands.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 wrong use, 78 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from edge_agent import NOTICE, __version__
from edge_agent.config import EXIT_CONFIG, ConfigError

# Which module in edge_agent/commands holds a command: only the one that is asked for is imported, so that the agent
# does not carry the terminal view's memory.
COMMANDS: dict[str, str] = {
    "run": "run", "check": "run",
    "demo": "demo", "simulate": "simulate",
    "decode": "offline", "drivers": "offline", "replay": "replay",
    "status": "operate", "acknowledge": "operate", "pause": "operate", "resume": "operate", "reset": "operate",
    "admit": "operate", "discharge": "operate", "watch": "operate", "metrics": "operate",
    "audio-off": "operate", "alarm-off": "operate", "limits": "operate", "limit": "operate", "preset": "operate",
    "self-test": "operate",
    "doctor": "doctor", "support-bundle": "support_bundle", "buffer": "buffer", "keys": "keys", "alarms": "alarms",
    "model": "model", "release": "release", "last-gasp": "last_gasp",
    "provision": "provision", "detect": "provision",
}  # fmt: skip


def parser(command: str = "") -> argparse.ArgumentParser:
    """The command line of one command, or the whole when `command` is not one."""
    main_parser = argparse.ArgumentParser(
        prog="edge-agent", description="The bedside gateway's agent.", epilog=NOTICE, allow_abbrev=False
    )
    main_parser.add_argument("--version", action="version", version=f"edge-agent {__version__}\n{NOTICE}")
    subparsers = main_parser.add_subparsers(metavar="COMMAND", required=True)
    modules = [COMMANDS[command]] if command in COMMANDS else sorted(set(COMMANDS.values()), key=_order)
    for name in modules:
        import_module(f"edge_agent.commands.{name}").add_parser(subparsers)
    return main_parser


def _order(module: str) -> int:
    return list(COMMANDS.values()).index(module)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words[0] if words else "").parse_args(words)
    try:
        return int(arguments.func(arguments))
    except ConfigError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except BrokenPipeError:
        # the reader of our output has gone; the interpreter must not complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
