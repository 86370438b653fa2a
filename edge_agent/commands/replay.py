"""`edge-agent replay`: plays captures through a configuration's alarm path, offline, on the captures' own time.

No link, disk or output is touched. The same captures print the same lines every time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.config import load
from edge_agent.links.capture import CaptureError, read_capture
from edge_agent.parts import Parts, build_pipeline, source_names
from edge_agent.pipeline import Feed, Pipeline
from edge_agent.records import AlarmEvent, Chunk, Entry, PatientEvent, Reject, Signal, shape

AFTER_NS = 60_000_000_000  # silence played after the last chunk, so that a source that ends is seen to end
TURN_NS = 250_000_000  # as the agent's own clock turns


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay`."""
    replay = subparsers.add_parser("replay", help="play captures through a configuration's alarm path, offline")
    replay.add_argument("--config", type=Path, required=True, metavar="FILE")
    replay.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE")
    replay.set_defaults(func=run_replay)


class _Printed:
    """The end of a replay's path: prints alarm events and signals, counts the rest."""

    def __init__(self) -> None:
        self.entries = 0
        self.rejects = 0

    def append(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int:  # noqa: ARG002
        for entry in entries:
            self.entries += 1
            self.rejects += isinstance(entry.record, Reject)
            if isinstance(entry.record, AlarmEvent | PatientEvent):
                print(json.dumps({"at_s": entry.record.at_ns / 1e9, "bed": entry.bed, **shape(entry.record)}))
        return 0

    def signal(self, signal: Signal) -> None:
        print(json.dumps({"signal": signal.priority, "bed": signal.bed, "visual": signal.visual,
                          "audio": signal.audio, "condition": signal.condition}))  # fmt: skip


def run_replay(arguments: argparse.Namespace) -> int:
    """Play captures, each through the source of its driver, in the order of their times."""
    parts = Parts(load(arguments.config))
    printed = _Printed()
    numbers = itertools.count(1)  # a replay of the same captures prints the same lines every time
    pipeline = build_pipeline(parts, printed.append, printed.signal, new_id=lambda: f"replay-{next(numbers)}")
    played: list[tuple[Feed, Chunk]] = []
    feeds: dict[str, Feed] = {}
    free = list(enumerate(source_names(parts.loaded.config)))
    for path in arguments.captures:
        try:
            capture = read_capture(path)
        except (OSError, CaptureError) as error:
            print(f"replay: {error}", file=sys.stderr)
            return 1
        wanted = capture.header.get("driver", "")
        match = next(((index, name) for index, name in free if parts.drivers[index].name == wanted), None)
        if match is None:
            print(f"replay: {path}: no unused [[source]] with driver {wanted!r} in {arguments.config}", file=sys.stderr)
            return 1
        free.remove(match)
        index, name = match
        driver, source = parts.drivers[index], parts.loaded.config.source[index]
        feed = feeds[name] = Feed(
            name=name, driver=driver, make=parts.maker(index), send=lambda _data, _channel: True,
            bed=source.bed, silence_s=source.silence_s or driver.silence_s, link=str(path),
        )  # fmt: skip
        played += [(feed, chunk) for direction, chunk in capture.entries if direction == "<"]
    _play(pipeline, feeds, sorted(played, key=lambda each: each[1].at_ns))
    print(f"replay: {printed.entries} records, {printed.rejects} rejects", file=sys.stderr)
    return 0


def _play(pipeline: Pipeline, feeds: dict[str, Feed], played: list[tuple[Feed, Chunk]]) -> None:
    now = played[0][1].at_ns if played else 0
    for feed in feeds.values():
        feed.last_item_ns = now
    for feed, chunk in played:
        while now + TURN_NS <= chunk.at_ns:
            now += TURN_NS
            _turn(pipeline, feeds, now)
        now = chunk.at_ns
        pipeline.chunk(feed, chunk)
    for _ in range(int(AFTER_NS // TURN_NS)):
        now += TURN_NS
        _turn(pipeline, feeds, now)


def _turn(pipeline: Pipeline, feeds: dict[str, Feed], now: int) -> None:
    for feed in feeds.values():
        pipeline.tick_feed(feed, now)
    pipeline.tick(feeds, now)
