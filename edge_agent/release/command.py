"""The installer's command line, as one file (`python3 installer.pyz ...`) and below `edge-agent release`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from edge_agent.release.bundle import BUNDLE, MACHINE, Stop, verify
from edge_agent.release.gateway import Folders, NoServices, Services
from edge_agent.release.installer import HEALTH_S, Installer

CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 wrong use, 3 the bundle is not to be trusted or damaged, 4 it does not fit "
    "this machine or its room, 5 not now (an alarm, another installation), 6 not well: the old one is in force again, "
    "7 not well and nothing well to go back to, 78 the new release refuses the configuration."
)


def say(text: str) -> None:
    """Tell the person or the journal, at once."""
    print(text, flush=True)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add install, verify, rollback, status and recover."""
    install = _command(commands, "install", "install a signed release, or the next one", run_install)
    install.add_argument("bundle", type=Path, metavar="BUNDLE", help="bedside-edge-VERSION.tar, its .sig beside it")
    install.add_argument("--sig", type=Path, metavar="FILE", help="the signature, by default BUNDLE.sig")
    install.add_argument("--trusted", type=Path, metavar="DIR", help="public keys, by default /etc/edge-agent/trusted")
    install.add_argument("--python", default="", metavar="PATH", help="the interpreter, by default a fitting one")
    install.add_argument("--allow-older", action="store_true", help="also a release older than the one in force")
    install.add_argument("--any-system", action="store_true", help="also on a system that the release does not name")
    install.add_argument("--prepare", action="store_true", help="do everything but the switch")
    install.add_argument("--no-start", action="store_true", help="do not start services that do not run yet")
    rollback = _command(commands, "rollback", "back to the release before", run_rollback)
    for each in (install, rollback):
        each.add_argument("--new-format", action="store_true", help="also when the format of the kept data changes")
        each.add_argument("--now", action="store_true", help="also while a HIGH physiological alarm is active")
        each.add_argument(
            "--health-s", type=_seconds, default=HEALTH_S, metavar="S", help="how long it may take to be well"
        )
        each.add_argument("--socket", type=Path, metavar="PATH", help="the agent's control socket")
    verify_ = _command(commands, "verify", "check signature and bytes of a bundle; changes nothing", run_verify)
    verify_.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify_.add_argument("--sig", type=Path, metavar="FILE")
    verify_.add_argument("--trusted", type=Path, metavar="DIR")
    status = _command(commands, "status", "releases on this gateway", run_status)
    status.add_argument("--json", action="store_true")
    status.add_argument("--socket", type=Path, metavar="PATH")
    _command(commands, "recover", "at boot: undo an update that was cut off", run_recover)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, func: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, epilog=CODES)
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR",
        help="an image's root: installs there and starts nothing (same architecture and Python as here)",
    )  # fmt: skip
    parser.set_defaults(func=lambda arguments: _guarded(func, arguments))
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError("1 to 600 seconds")
    return seconds


def _guarded(func: Any, arguments: argparse.Namespace) -> int:
    os.umask(0o022)
    try:
        func(arguments)
    except Stop as stop:
        print(f"edge-agent release: {stop}", file=sys.stderr)
        return stop.code
    except PermissionError as error:
        print(f"edge-agent release: {error.filename}: {error.strerror}\n  run it as root (sudo)", file=sys.stderr)
        return MACHINE
    return 0


def _installer(arguments: argparse.Namespace) -> Installer:
    folders = Folders(arguments.root.resolve())
    if getattr(arguments, "trusted", None):
        folders.trusted = arguments.trusted
    services = Services() if folders.root == Path("/") else NoServices()
    socket = getattr(arguments, "socket", None) or Path("/run/edge-agent/control.sock")
    return Installer(folders, services, say=say, socket=socket)


def run_install(arguments: argparse.Namespace) -> None:
    """Install the bundle."""
    _installer(arguments).install(
        arguments.bundle, signature=arguments.sig, python=arguments.python, allow_older=arguments.allow_older,
        any_system=arguments.any_system, new_format=arguments.new_format, now=arguments.now,
        health_s=arguments.health_s, prepare=arguments.prepare, start=not arguments.no_start,
    )  # fmt: skip


def run_rollback(arguments: argparse.Namespace) -> None:
    """Go back to the release before."""
    _installer(arguments).rollback(now=arguments.now, health_s=arguments.health_s, new_format=arguments.new_format)


def run_recover(arguments: argparse.Namespace) -> None:
    """Undo an update that was cut off."""
    _installer(arguments).recover()


def run_verify(arguments: argparse.Namespace) -> None:
    """Say what the bundle is when it can be trusted."""
    trusted = arguments.trusted or Folders(arguments.root.resolve()).trusted
    signature = arguments.sig or arguments.bundle.with_name(arguments.bundle.name + ".sig")
    try:
        with arguments.bundle.open("rb") as bundle:
            manifest = verify(bundle, signature, trusted)
    except OSError as error:
        raise Stop(BUNDLE, f"{arguments.bundle}: {error.strerror}", "name the .tar file of the release") from None
    say(f"{arguments.bundle}: bedside-edge {manifest['version']}, commit {manifest['commit']}, signature good")


def run_status(arguments: argparse.Namespace) -> None:
    """Print what is installed."""
    state = _installer(arguments).state()
    if arguments.json:
        say(json.dumps(state, indent=2))
        return
    say(f"in force: {state['current'] or 'none'}\nbefore it: {state['previous'] or 'none'}")
    say(f"running: {state['running'] or 'no agent answers'}\non the disk: {', '.join(state['releases']) or 'none'}")
    if state["unfinished"] or state["interrupted"]:
        say("an installation was cut off: run it again (what is in force is not affected)")


def main(argv: list[str] | None = None) -> int:
    """The installer as one file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="installer.pyz", description="Installs bedside-edge.", epilog=CODES)
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True))
    arguments = parser.parse_args(argv)
    return int(arguments.func(arguments))
