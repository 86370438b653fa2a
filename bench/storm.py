"""A HIGH alarm in a storm: from its observation to its first edge with 10,000 LOW conditions present, and alone.

Watch, alarms and an annunciator with a `record` output, in a process for each layout. The same HIGH is raised and ended
in all of them in turn, one round after the other, so that the machine's mood meets them alike. The edge's time is the
one of its record: when a GPIO line would have been set. Aim: twice the time alone at most, in the median and at p99.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench.gateway import PRESET
from edge_agent import config
from edge_agent.alarms import Alarms
from edge_agent.annunciators import open_annunciators
from edge_agent.presets import load_presets
from edge_agent.records import Change, Observation
from edge_agent.watch import Watch

ROUNDS = 2000
PAUSE_S = 0.001  # between rounds, so that the annunciators' threads are at rest, and up to as much again
WARM = 50  # rounds before the measurement
LOW_ROW = """
[[condition]]
id = "module_fault"
kind = "technical"
present = "reported"
priority = "low"
text = "A module has failed"
source = "bench: stands for any LOW condition"
"""
# name -> beds, LOW conditions on each of them
LAYOUTS = {"alone": (1, 0), "one bed": (1, 10_000), "100 beds": (100, 100)}


class _Bedside:
    """Watch, alarms and an annunciator with the LOW conditions of a layout present."""

    def __init__(self, folder: Path, beds: int, each: int) -> None:
        file = folder / "immediate.toml"
        file.write_text(PRESET + LOW_ROW)
        preset = load_presets([file])["immediate"]
        names = [f"B{number}" for number in range(beds)]
        self.edges = folder / "edges.jsonl"
        ids = itertools.count(1)
        self.annunciators = open_annunciators(
            [config.Annunciator(kind="record", path=self.edges)], resolve=Path, on_fault=_fail
        )
        self.watch = Watch(dict.fromkeys(names, preset))
        self.alarms = Alarms(
            dict.fromkeys(names, preset),
            config.Alarms(),
            new_id=lambda: f"A{next(ids)}",
            on_event=lambda _bed, _event: None,
            on_signal=self.annunciators[0].drive,
        )
        for number in range(each):
            for name in names:
                self._apply(self.watch.technical(name, f"module_fault:{number}", True, time.monotonic_ns()))
        self.present = sum(len(self.alarms.view(name, 0)["alarms"]) for name in names)
        self.name = names[len(names) // 2]

    def _apply(self, changes: object) -> None:
        for change in changes:  # type: ignore[attr-defined]
            assert isinstance(change, Change)
            self.alarms.apply(change)

    def round(self) -> int:
        """Raise the HIGH and end it; when its observation came, in ns of CLOCK_MONOTONIC."""
        watch, alarms, name = self.watch, self.alarms, self.name
        begin = time.monotonic_ns()
        for change in watch.observe(name, "oximeter", Observation("spo2", 80.0, "valid", begin)):
            alarms.apply(change)
        for change in watch.observe(name, "oximeter", Observation("spo2", 97.0, "valid", time.monotonic_ns())):
            alarms.apply(change)
        return begin

    def delays(self, begins: list[int]) -> list[int]:
        """Time to the first edge of the HIGH of each round, in ns. Raises: RuntimeError when one had none."""
        self.annunciators[0].close()
        lines = (json.loads(line) for line in self.edges.read_text().splitlines())
        highs = [
            line["at_ns"] for line in lines if line["on"] and line["priority"] == "high" and line["output"] == "red"
        ]
        found, at = [], 0
        for begin, end in itertools.pairwise([*begins, time.monotonic_ns()]):
            while at < len(highs) and highs[at] < begin:
                at += 1
            if at == len(highs) or highs[at] >= end:
                raise RuntimeError("a HIGH alarm had no edge")
            found.append(highs[at] - begin)
        return found


def _fail(name: str, detail: str) -> None:
    raise RuntimeError(f"{name}: {detail}")


def _serve(pipe: Connection, beds: int, each: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bedside-storm-") as folder:
        start = time.monotonic()
        bedside = _Bedside(Path(folder), beds, each)
        pipe.send((bedside.present, time.monotonic() - start))
        begins: list[int] = []
        while pipe.recv():
            begins.append(bedside.round())
            pipe.send(True)
        pipe.send(bedside.delays(begins)[WARM:])


def run() -> list[dict[str, object]]:
    """A row for each layout, with the ratios to the HIGH alone."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    told: dict[str, tuple[int, float]] = {}
    for name, (beds, each) in LAYOUTS.items():
        pipes[name], far = spawn.Pipe()
        child = spawn.Process(target=_serve, args=(far, beds, each), daemon=True)
        child.start()
        far.close()
        children.append(child)
        told[name] = pipes[name].recv()
    order = list(pipes.values())
    draw = random.Random(1)
    for _ in range(WARM + ROUNDS):
        draw.shuffle(order)
        for pipe in order:
            pipe.send(True)
            pipe.recv()
            time.sleep(PAUSE_S * (1 + draw.random()))
    delays: dict[str, list[int]] = {}
    for name, pipe in pipes.items():
        pipe.send(False)
        delays[name] = pipe.recv()
    for child in children:
        child.join(10)
    alone = _figures(delays["alone"])
    rows: list[dict[str, object]] = []
    for name, values in delays.items():
        p50, p99 = _figures(values)
        rows.append(
            {
                "layout": name,
                "LOW conditions": told[name][0],
                "raised in s": round(told[name][1], 2),
                "HIGH alarms": len(values),
                "to edge p50 us": round(p50 / 1000, 1),
                "p99 us": round(p99 / 1000, 1),
                "p50 ratio": round(p50 / alone[0], 2),
                "p99 ratio": round(p99 / alone[1], 2),
            }
        )
    return rows


def _figures(values: list[int]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100)[98]
