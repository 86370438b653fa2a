"""The option `--since` of the commands that look back."""

from __future__ import annotations

import argparse
import datetime
import re
import time

NS = 1_000_000_000
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_since(parser: argparse.ArgumentParser) -> None:
    """Add `--since`; its value is UTC in ns, 0 when it is not given."""
    parser.add_argument(
        "--since", type=since, default=0, metavar="WHEN", help="2h, 30min, 7d ago, or a time such as 2026-05-01T08:00Z"
    )


def since(text: str) -> int:
    """UTC in ns that a user means; a time without an offset is UTC."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)", text)
    if found:
        return time.time_ns() - round(float(found[1]) * _UNITS[found[2]] * NS)
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return round(moment.timestamp() * NS)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2h, 30min, 7d or 2026-05-01T08:00Z") from error
