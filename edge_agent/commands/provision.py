"""`edge-agent detect` and `edge-agent provision`: what the biomedical engineer needs at a new bed; docs/biomed.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from edge_agent.links import LinkError
from edge_agent.links.address import Address, parse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    _add_detect(subparsers)


def _add_detect(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from edge_agent.provisioning.detect import BUDGET_S

    found = subparsers.add_parser("detect", help="which driver and settings a serial line has, by listening only")
    found.add_argument("link", metavar="LINK", help="serial:///dev/..., socket://HOST:PORT, or the path of a port")
    found.add_argument("--seconds", type=_seconds, default=BUDGET_S, metavar="S", help="at most, by default 10")
    found.add_argument("--json", action="store_true", help="as one JSON object")
    found.set_defaults(func=run_detect)


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 600:
        raise argparse.ArgumentTypeError("a number from 1 to 600")
    return value


def run_detect(arguments: argparse.Namespace) -> int:
    """Listen and say what was found, with the lines for the configuration; 1 when nobody can be named."""
    from edge_agent.provisioning import detect
    from edge_agent.provisioning.listener import ListenError, open_listener

    try:
        address = parse(arguments.link if "://" in arguments.link else f"serial://{arguments.link}")
        listener = open_listener(address)
    except (LinkError, ListenError) as error:
        print(f"edge-agent detect: {error}", file=sys.stderr)
        return 1
    try:
        search = detect.Search(
            listener,
            detect.serial_drivers(),
            now_ns=time.monotonic_ns,
            budget_s=arguments.seconds,
            only=detect.told_line(address),
        )
        found = search.run()
    except ListenError as error:
        print(f"edge-agent detect: {error}", file=sys.stderr)
        return 1
    finally:
        listener.close()
    if arguments.json:
        print(json.dumps(_as_json(address, found)))
    else:
        _tell(address, found)
    return 0 if found.state == "found" else 1


def _as_json(address: Address, found: Any) -> dict[str, Any]:
    from edge_agent.provisioning import detect

    named = found.state == "found"
    return {
        "state": found.state,
        "driver": found.drivers[0] if named else None,
        "link": detect.source_link(address, found.line) if named else None,
        "drivers": list(found.drivers),
        "reason": found.reason,
        "seconds": round(found.seconds, 1),
        "tried": [each.said() for each in found.tried],
    }


def _tell(address: Address, found: Any) -> None:
    from edge_agent.provisioning import detect

    for each in found.tried:
        print(f"  {each.said()}")
    print(found.reason)
    if found.state == "found":
        link = detect.source_link(address, found.line)
        print(f'\n[[source]]\ndriver = "{found.drivers[0]}"\nlink = "{link}"\nbed = "..."')
