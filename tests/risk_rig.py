"""Beds with a risk model on a virtual clock: the real alarm path, the real engine thread, and models that misbehave."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import drivers
from edge_agent.config import load
from edge_agent.parts import Parts, build_pipeline
from edge_agent.pipeline import GATEWAY, Feed
from edge_agent.records import AlarmEvent, Entry, Observation, Score, Signal
from edge_agent.risk import Risk
from edge_agent.risk.engine import About, Batch, Model, Result

NS = 1_000_000_000
HOUR_NS = 3600 * NS
DEADLINE_S = 20.0  # real time in which a thread must have said something
ABOUT = About("invented-1.0.0 0123456789ab", "invented", "1.0.0", "0" * 64, "none", 0.6, 0.5, (80.0,) * 7, (10.0,) * 7)

PRESET = """
name = "scored"
extends = "adult"
[[condition]]
id = "sepsis_risk"
present = "score_above 0.6"
deadband = 0.1
cool_down_s = 3600
priority = "medium"
off_delay_s = 0
"""


class Invented:
    """A model that says what it is told to; `risks` by bed, or a function of the batch."""

    def __init__(self, risk: Any = 0.1, coverage: float = 0.5) -> None:
        self.about, self.risk, self.coverage = ABOUT, risk, coverage
        self.batches: list[Batch] = []

    def score(self, batch: Batch) -> Sequence[Result]:
        self.batches.append(batch)
        out = []
        for each in batch.beds:
            risk = self.risk(each.window.bed) if callable(self.risk) else self.risk
            status, why = ("abstained", "coverage") if risk is None else ("scored", "")
            newest = tuple(ring.values[-1] if ring.values else float("nan") for ring in each.window.rings)
            shares = (("resp_rate", 0.2), ("heart_rate", 0.1)) if risk and risk >= batch.explain_from else ()
            out.append(
                Result(each.window.bed, each.window.epoch, status, risk, why, why, self.coverage, shares, newest)
            )
        return out


class Held:
    """A door that a model hangs at until the test opens it."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        self._open.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()


class Ward:
    """Some adult beds with limits, alarms and a model; nothing happens but by `see` and `turn`."""

    def __init__(
        self,
        folder: Path,
        open_model: Callable[[], Model] | None,
        *,
        beds: int = 1,
        preset: str = PRESET,
        model: str = "",
    ) -> None:
        (folder / "scored.toml").write_text(preset)
        path = folder / "edge.toml"
        path.write_text(
            '[gateway]\nid = "gw"\ndata_dir = "data"\npresets = ["scored.toml"]\n'
            + "".join(f'[[bed]]\nid = "ICU-{bed}"\npreset = "scored"\n' for bed in range(1, beds + 1))
            + f"[model]\n{model}"
        )
        self.parts = Parts(load(path))
        self.now = 1000 * HOUR_NS
        self.signals: list[Signal] = []
        self.events: list[tuple[str, AlarmEvent]] = []
        self.entries: list[Entry] = []
        self.kept: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        ids = iter(range(1, 1_000_000))
        self.pipeline = build_pipeline(
            self.parts, self._append, self.signals.append, lambda: f"A{next(ids)}",
            on_alarm=lambda bed, _patient, event: self.events.append((bed, event)),
            on_restart=lambda bed: self.risk.new_patient(bed) if self.risk is not None else None,
        )  # fmt: skip
        self.feeds: dict[str, Feed] = {}
        self.risk: Risk | None = None
        if open_model is not None:
            assert self.parts.loaded.config.model is not None
            self.risk = Risk(
                self.parts.loaded.config.model, self.pipeline, open_model, fault=self._fault, post=self.posted.put,
                now=lambda: self.now, keep=self.kept.__setitem__,
            )  # fmt: skip

    def _append(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int:
        self.entries.extend(entries)
        return 1

    def _fault(self, condition: str, kind: str, detail: str) -> None:
        self.faults.append(detail)
        self.pipeline.apply(self.pipeline.watch.technical(GATEWAY, condition, bool(detail), self.now, detail))
        self.pipeline.flush(self.now)

    def see(self, term: str, value: float | None, bed: str = "ICU-1", validity: str = "valid") -> None:
        """A value of a bed, now."""
        feed = self.feeds.setdefault(
            bed,
            Feed(f"mon-{bed}", drivers.load("hl7"), lambda: None, lambda _data, _channel: True, bed=bed, silence_s=9e9),  # type: ignore[arg-type,return-value]
        )
        self.pipeline.handle(feed, [Observation(term, value, validity, self.now)], self.now)  # type: ignore[arg-type]

    def turn(self, seconds: float = 1.0) -> None:
        """Let time pass, and the loop turn once at its end."""
        self.now += round(seconds * NS)
        self.pipeline.tick({}, self.now)
        if self.risk is not None:
            self.risk.tick(self.now)

    def hear(self) -> None:
        """Take the next thing that a thread says; fails when none comes."""
        self.posted.get(timeout=DEADLINE_S)()

    def begin(self) -> None:
        """Open the model."""
        self.turn()
        self.hear()

    def ask(self, seconds: float = 60.0) -> list[Score]:
        """A round a minute later, with its answers; the scores recorded by it."""
        before = len(self.scores())
        self.turn(seconds)
        self.hear()
        return self.scores()[before:]

    def scores(self, bed: str = "") -> list[Score]:
        """Every Score record so far, oldest first."""
        return [
            each.record
            for each in self.entries
            if isinstance(each.record, Score) and each.source == "model" and bed in ("", each.bed)
        ]

    def active(self, bed: str = "ICU-1") -> dict[str, str]:
        """The alarms of a bed that are not over, with what they say."""
        return {each.condition: each.detail for name, each in self.pipeline.alarms.active() if name == bed}
