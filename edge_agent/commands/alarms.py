"""`edge-agent alarms log|verify|export|report|whatif`: looks into the alarm log, read-only, also while the agent runs.

Patients appear only as the pseudonyms that the log itself holds.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.commands.since import add_since
from edge_agent.config import load

if TYPE_CHECKING:
    from edge_agent.alarm_log import reader
    from edge_agent.alarm_log.chain import Entry

_COLUMNS = ("utc", "bed", "priority", "event", "condition", "text", "value", "limit", "state", "operator")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `alarms` with its commands."""
    alarms = subparsers.add_parser("alarms", help="the alarm log, and the burden of alarms")
    commands = alarms.add_subparsers(metavar="COMMAND", required=True)

    log = commands.add_parser("log", help="print the newest entries of the alarm log, oldest first")
    log.add_argument("--config", type=Path, required=True, metavar="FILE")
    log.add_argument("--bed", metavar="BED", help="only this bed; leaves out marks")
    log.add_argument("--priority", choices=("high", "medium", "low", "none"), help="only this one; leaves out marks")
    add_since(log)
    log.add_argument("--limit", type=_positive, default=200, metavar="N", help="at most N entries (default 200)")
    log.add_argument("--json", action="store_true", help="one JSON object a line")
    log.set_defaults(func=run_log)

    verify = commands.add_parser(
        "verify", help="check seal, order and chain of every entry; exit 1 at the first bad one"
    )
    _add_data(verify)
    verify.set_defaults(func=run_verify)

    export = commands.add_parser("export", help="write every entry with its hash as JSON lines, each checked")
    export.add_argument("--config", type=Path, required=True, metavar="FILE")
    export.add_argument("--out", type=Path, metavar="FILE", help="a new file instead of standard output")
    export.add_argument("--csv", action="store_true", help="a table for a spreadsheet; cannot be verified")
    export.set_defaults(func=run_export)

    report = commands.add_parser("report", help="alarm burden by bed, condition and priority; who answered, and whose")
    _add_data(report)
    add_since(report)
    report.add_argument("--json", action="store_true", help="one JSON object")
    report.set_defaults(func=run_report)

    # `whatif` belongs to edge_agent/burden and is a module of its own beside this one.
    from edge_agent.commands import whatif

    whatif.add_parser(commands)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--config", type=Path, metavar="FILE", help="the log of this gateway")
    data.add_argument("--file", type=Path, metavar="EXPORT", help="what `alarms export` wrote; needs no key")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


class _Failed(Exception):
    """What ends a command with exit 1; `str` is told."""


def _told(function: Any) -> Any:
    """Turns what can go wrong with key and files into a message and exit 1."""

    def run(arguments: argparse.Namespace) -> int:
        from edge_agent.alarm_log.reader import Unreadable
        from edge_agent.alarm_log.store import BadLog, WrongKey
        from edge_agent.buffer import KeyProblem

        try:
            return int(function(arguments))
        except WrongKey as error:
            remedy = "give the key back with which it was written (buffer.key)"
            print(f"edge-agent alarms: the alarm log is {error}\n  {remedy}", file=sys.stderr)
        except BadLog as error:
            remedy = "keep a copy of it; the agent puts it aside at its next start and begins a new one"
            print(f"edge-agent alarms: the alarm log cannot be used: {error}\n  {remedy}", file=sys.stderr)
        except (KeyProblem, Unreadable, _Failed, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            print(f"edge-agent alarms: {error}", file=sys.stderr)
        return 1

    return run


@contextmanager
def _snapshot(config: Path) -> Iterator[reader.Snapshot]:
    from edge_agent.alarm_log import FILE, reader
    from edge_agent.buffer import load_kek

    loaded = load(config)
    path = loaded.resolve(loaded.config.gateway.data_dir) / FILE
    with reader.snapshot(path, load_kek(loaded.buffer_key)) as found:
        yield found


@contextmanager
def _checked(arguments: argparse.Namespace) -> Iterator[Iterator[tuple[Entry, bytes]]]:
    """The entries of a log or of an export, each checked, with their hashes."""
    from edge_agent.alarm_log import reader

    if arguments.config is not None:
        with _snapshot(arguments.config) as found:
            yield found.entries()
        return
    with arguments.file.open("rb") as lines:
        yield reader.exported(lines)


@_told
def run_log(arguments: argparse.Namespace) -> int:
    """Print the newest entries that pass the filters."""
    chosen: list[Entry] = []
    with _snapshot(arguments.config) as found:
        for entry in found.newest():
            if entry.utc_ns >= arguments.since and _wanted(entry, arguments.bed, arguments.priority):
                chosen.append(entry)
                if len(chosen) == arguments.limit:
                    break
    chosen.reverse()
    if arguments.json:
        from edge_agent.alarm_log.chain import canonical

        for entry in chosen:
            print(canonical(entry).decode())
    else:
        _print_table(_COLUMNS, [_row(entry) for entry in chosen])
    return 0


def _wanted(entry: Entry, bed: str | None, priority: str | None) -> bool:
    if bed is not None and entry.bed != bed:
        return False
    alarm = entry.alarm
    if alarm is None:
        return bed is None and priority is None
    return priority is None or alarm.priority == priority


def _row(entry: Entry) -> list[str]:
    utc = _iso(entry.utc_ns) + ("" if entry.clock == "synchronized" else "?")
    alarm, mark = entry.alarm, entry.mark
    if alarm is None:
        detail = {} if mark is None else mark.detail
        text = " ".join(f"{key}={_words(value)}" for key, value in detail.items())
        return [utc, entry.bed, "", "" if mark is None else mark.kind, "", text, "", "", "", ""]
    value = "" if alarm.value is None else f"{alarm.value:g}"
    text = alarm.text or alarm.detail
    return [
        utc, entry.bed, alarm.priority, alarm.event, alarm.condition, text, value, alarm.limit, alarm.state,
        alarm.operator,
    ]  # fmt: skip


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _iso(utc_ns: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(utc_ns // 1_000_000 / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{utc_ns} ns"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _print_table(columns: Iterable[str], rows: list[list[str]]) -> None:
    """Aligned columns; control characters, which a device may have sent, do not reach the terminal."""
    head = list(columns)
    clean = [[re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *clean, strict=True)]
    for row in (head, *clean):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@_told
def run_verify(arguments: argparse.Namespace) -> int:
    """Check everything and print what the log says of itself; the chain's head is for comparison with a noted one."""
    from edge_agent.alarm_log.chain import Broken

    first: Entry | None = None
    last: Entry | None = None
    digest = b""
    marks: dict[str, int] = {}
    runs = _Runs()
    entries = 0
    broken: Broken | None = None
    with _checked(arguments) as found:
        try:
            for entry, each in found:
                digest = each
                first, last, entries = first or entry, entry, entries + 1
                runs.take(entry)
                if entry.mark is not None:
                    marks[entry.mark.kind] = marks.get(entry.mark.kind, 0) + 1
        except Broken as error:
            broken = error
    print(f"entries           {entries}")
    if first is not None and last is not None:
        print(f"first             {first.number}  {_iso(first.utc_ns)}")
        print(f"last              {last.number}  {_iso(last.utc_ns)}")
        print("marks             " + ("  ".join(f"{kind} {marks[kind]}" for kind in sorted(marks)) or "none"))
        print(f"runs              {runs.count}, {len(runs.cut)} without power-down before the next began")
        for cut in runs.cut:
            print(f"  no power-down   last entry {cut.number}  {_iso(cut.utc_ns)}")
    if broken is not None:
        print(f"first bad entry   {broken.number}")
        print(
            f"edge-agent alarms: {broken.reason}\n  what precedes it is whole; keep a copy of the file", file=sys.stderr
        )
        return 1
    if last is not None:
        print(f"chain head        {last.number}  {digest.hex()}")
    print("ok")
    return 0


class _Runs:
    """Which runs ended without a power-down mark, as the order of entries shows."""

    def __init__(self) -> None:
        self.count = 0
        self.cut: list[Entry] = []
        self._last: Entry | None = None

    def take(self, entry: Entry) -> None:
        """Look at the next entry."""
        last = self._last
        if last is None or entry.run != last.run or (entry.mark is not None and entry.mark.kind == "boot"):
            self.count += 1
            if last is not None and (last.mark is None or last.mark.kind != "power_down"):
                self.cut.append(last)
        self._last = entry


@_told
def run_export(arguments: argparse.Namespace) -> int:
    """Write the export; a file appears only when all of it has been written and checked."""
    if arguments.out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")  # the hashes are over these bytes, in any locale
        _export(arguments, sys.stdout)
        return 0
    out: Path = arguments.out
    if out.exists():
        raise _Failed(f"{out}: exists already; an export overwrites nothing\n  give another name")
    part = out.with_name(f".{out.name}.part")
    try:
        with open(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            number = _export(arguments, file)
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    print(f"{out}: {number} entries", file=sys.stderr)
    return 0


def _export(arguments: argparse.Namespace, out: Any) -> int:
    from edge_agent.alarm_log import reader
    from edge_agent.alarm_log.chain import Broken

    with _snapshot(arguments.config) as found:
        try:
            if arguments.csv:
                reader.write_csv(found.entries(), out)
            else:
                for line in reader.export_lines(found):
                    out.write(line + "\n")
        except Broken as error:
            raise _Failed(f"{error.reason}\n  the export ends before it; run `edge-agent alarms verify`") from error
        return found.head.number - found.head.after


@_told
def run_report(arguments: argparse.Namespace) -> int:
    """Print the burden of alarms; a log that does not verify is reported up to where it is whole, with exit 1."""
    from edge_agent.alarm_log.chain import Broken
    from edge_agent.alarm_log.report import Burden

    counted = Burden(arguments.since)
    broken: Broken | None = None
    with _checked(arguments) as found:
        try:
            for entry, _ in found:
                counted.take(entry)
        except Broken as error:
            broken = error
    result = counted.result()
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print_report(result)
    if broken is not None:
        print(f"edge-agent alarms: counted only up to a break: {broken.reason}", file=sys.stderr)
        return 1
    return 0


_FIGURES = {
    "count": "alarms", "per_bed_day": "/bed-day", "audible": "audible", "audible_per_bed_day": "audible/bed-day",
    "median_duration_s": "median s", "acknowledged_share": "ack", "median_to_acknowledge_s": "median s to ack",
    "open": "open",
}  # fmt: skip


def _print_report(result: dict[str, Any]) -> None:
    total = result["all"]
    print(f"{total['count']} alarms at beds in {result['bed_days']:.2f} bed-days observed\n")
    for title, key, names in (
        ("by bed", "beds", ("bed", "bed_days")),
        ("by priority", "priorities", ("priority",)),
        ("by condition", "conditions", ("condition",)),
        ("by bed, condition and priority", "rows", ("bed", "condition", "priority")),
    ):
        print(title)
        rows = [
            [*(_figure(name, row[name]) for name in names), *(_figure(f, row[f]) for f in _FIGURES)]
            for row in result[key]
        ]
        _print_table((*names, *_FIGURES.values()), rows)
        print()
    who = result["patients"]
    print(
        f"patients          {who['patients']} with {who['alarms']} alarms; {who['without_patient']} without a patient"
    )
    if who["patients"]:
        print(f"top ten patients  {who['top_10_share']:.1%} of these alarms")
        print(f"top 10 %          {who['top_10_percent']} patients, {who['top_10_percent_share']:.1%} of these alarms")


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "bed" and value == "":
        return "(gateway)"
    if name == "acknowledged_share":
        return f"{value:.0%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
