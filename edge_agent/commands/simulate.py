"""`edge-agent simulate`: recorded vital signs, or a simulated patient, sent as a bedside device sends them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Iterable
from datetime import datetime
from pathlib import Path

from drivers.sim.patient import PROFILES
from drivers.sim.recorded import RecordedError, Row
from edge_agent.config import EXIT_CONFIG
from edge_agent.demo import frames, intellivue
from edge_agent.demo.pace import MAX
from edge_agent.demo.simulate import TARGETS, Report, Settings, TargetError, parse_target, simulate


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate`."""
    targets = "\n".join(f"  --as {device:9} {text}" for device, each in TARGETS.items() for text in each.values())
    parser = subparsers.add_parser(
        "simulate",
        help="send recorded or simulated vital signs as a bedside device does",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A file's first line names its columns: terms, and `time` in seconds when rows are not a second\n"
        f"apart; an empty field is a missing value.\n\ntargets of --to:\n{targets}",
    )
    parser.add_argument("--as", dest="device", required=True, choices=tuple(TARGETS))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--file", type=Path, metavar="VITALS.csv", help="recorded vital signs, one column a term")
    what.add_argument("--profile", choices=PROFILES, help="a simulated patient")
    parser.add_argument("--to", required=True, metavar="URL", help="where the gateway is met, see below")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the simulated patient")
    parser.add_argument(
        "--bed-location", default="", metavar="LOC", help="hl7: PV1-3, for example ICU^^3; intellivue: bed label"
    )
    parser.add_argument("--patient", default="", metavar="ID", help="hl7: PID-3; intellivue: patient ID")
    parser.add_argument("--start", type=_start, metavar="TIME", help="hl7: device time of second 0, ISO 8601; now")
    parser.add_argument("--format", choices=frames.OXIMETER_FORMATS, default="2", help="oximeter: data format")
    parser.add_argument("--name", default="HRM-SIM", metavar="NAME", help="wearable: its Bluetooth name")
    parser.add_argument(
        "--misbehave", type=_misbehaviour, default="", metavar="WHAT=HOW,...",
        help="intellivue: drop, late, twice, corrupt=SHARE; abort_s, restart_s=SECONDS",
    )  # fmt: skip
    parser.add_argument(
        "--announce-to", type=_place, metavar="HOST:PORT", help="intellivue: where a free monitor announces itself"
    )
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="N|max", help="times real time")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="only so much of the file or the patient")
    parser.set_defaults(func=run)


def _speed(text: str) -> float:
    if text == "max":
        return MAX
    value = float(text)
    if not 0.01 <= value <= 10_000:
        raise argparse.ArgumentTypeError("a number from 0.01 to 10000, or max")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("more than 0")
    return value


def _misbehaviour(text: str) -> str:
    try:
        intellivue.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError("HOST:PORT")
    return host, int(port)


def _start(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is not None else at.astimezone()


def run(args: argparse.Namespace) -> int:
    """Send until the rows end or Ctrl-C; 0 when every row was sent."""
    try:
        target = parse_target(args.device, args.to)
        if args.device == "intellivue" and args.speed != 1.0:
            raise TargetError(f"{args.to}: a monitor keeps its own time; leave out --speed")
        source = _rows(args)
    except TargetError as error:
        print(f"edge-agent simulate: --to {error}", file=sys.stderr)
        return 2
    except (RecordedError, OSError) as error:
        print(f"edge-agent simulate: {error}", file=sys.stderr)
        return EXIT_CONFIG
    settings = Settings(
        speed=args.speed,
        location=args.bed_location,
        patient_id=args.patient,
        start=args.start or datetime.now().astimezone(),
        format_name=args.format,
        name=args.name,
        misbehaviour=args.misbehave,
        indicate=args.announce_to,
        seed=args.seed,
    )
    report = Report()
    try:
        complete = asyncio.run(_until_done_or_signal(simulate(args.device, source, target, settings, report)))
    except OSError as error:
        print(f"edge-agent simulate: {error}", file=sys.stderr)
        return 1
    answered = f", {report.acknowledged} acknowledged, {report.resent} sent again" if args.device == "hl7" else ""
    if report.told:
        answered = f", {report.connects} associations; datagrams and events: {report.told};"
    print(f"sent {report.rows} rows{answered} in {report.seconds:.1f} s{'' if complete else ', interrupted'}")
    return 0 if complete else 130


def _rows(args: argparse.Namespace) -> Iterable[Row]:
    if args.profile is not None:
        return frames.simulated_rows(args.profile, args.seed, args.seconds)
    rows = frames.recorded_rows(args.file, args.seconds)
    missing, any_carried = frames.left_out(args.device, rows[0].values)
    if not any_carried:
        carried = ", ".join(frames.CARRIES[args.device])
        raise RecordedError(f"{args.file}: has no column that this device sends; it sends {carried}")
    if missing:
        print(f"not sent, because this device has no place for them: {', '.join(missing)}", file=sys.stderr)
    changed = frames.rounded(rows, args.device)
    if changed:
        print(f"{changed} values are sent as whole numbers, because this device knows no others", file=sys.stderr)
    return rows


async def _until_done_or_signal(work: Coroutine[None, None, None]) -> bool:
    """Whether `work` came to its end before SIGINT or SIGTERM."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return True
    return False
