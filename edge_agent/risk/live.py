"""The loop's side of the risk model: when it is asked, how long it may take, and what becomes of its answers.

Theory of operation: once in `every_s` the windows of the beds are handed over in batches, one at a time, as copies that
nothing changes any more. The engine (`engine.py`) answers through `call_soon_threadsafe`; nothing here ever waits for
it. An answer becomes a Score record and, unless in shadow mode, a change of the advisory conditions of its bed. An
engine that is late, fails, or cannot open its model is left behind: what it says later is dropped, a technical
condition of the gateway is raised, and after a pause that doubles each time another engine is tried, as long as fewer
than `MOST_HUNG` threads that were left behind are still alive. The condition ends with the next answer.

A bed is scored when the preset in force on it has a `score_above` row for the score. A result for a patient who has
left the bed meanwhile is dropped. What the model says touches no other condition: `watch.score` sees to that.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from edge_agent import config
from edge_agent.buffer.clock import Clock
from edge_agent.pipeline import Pipeline
from edge_agent.presets import Condition
from edge_agent.records import Score
from edge_agent.risk.drift import Drift
from edge_agent.risk.engine import About, Answer, Asked, Batch, Engine, Failed, Message, Model, Opened, Result
from edge_agent.risk.restart import Found, Restart, described, kept, people, person, setting
from edge_agent.watch.windows import Copy, Windows

log = logging.getLogger("edge_agent.risk")

NS = 1_000_000_000
SOURCE: Final = "model"  # of the score's records and conditions
CONDITION: Final = "model_fault"
OPEN_NS = 60 * NS  # in which a model must be open and proven: importing its runtime from a slow card takes seconds
RESTART_NS = 180 * NS  # a disk that has not given the windows back by then is not waited for
BATCH_BEDS = 16  # copying so many windows takes the loop a fraction of a millisecond
MOST_HUNG = 3  # threads that hang for good; more would only be more memory
PAUSES_NS = (60 * NS, 3600 * NS)  # before another engine is tried: at first, and at most
KEEP_NS = 300 * NS  # between two keepings of a window for a restart: the length of its bins

OLDEST: Final = 120  # years; the model's inputs end there
SEXES: Final = {"female": 0.0, "male": 1.0}  # as the model was trained

Fault = Callable[[str, str, str], None]
Tell = Callable[[Engine, Message], None]


class Risk:
    """Scores of all beds; every method belongs to the alarm loop."""

    def __init__(
        self,
        settings: config.Model,
        pipeline: Pipeline,
        open_model: Callable[[], Model],
        *,
        fault: Fault,
        post: Callable[[Callable[[], None]], None],
        now: Callable[[], int] = time.monotonic_ns,
        keep: Callable[[str, bytes], None] = lambda _key, _value: None,
    ) -> None:
        """`post` has a function called in the loop, from any thread; `keep(key, value)`, a setting, must not wait."""
        self.windows = Windows(pipeline.beds.ids)
        self._settings, self._pipeline, self._open = settings, pipeline, open_model
        self._fault, self._post, self._now, self._keep = fault, post, now, keep
        self._every_ns, self._deadline_ns = round(settings.every_s * NS), round(settings.deadline_s * NS)
        self._engine: Engine | None = None
        self._about: About | None = None
        self._hung: list[Engine] = []
        self._batch: Batch | None = None  # that is with the engine
        self._asked_ns = 0
        self._due_ns: int | None = None  # of the batch, or of the opening
        self._number = 0
        self._queue: deque[tuple[str, ...]] = deque()  # beds of this round that are still to be asked about
        self._next_ns = 0  # when the next round begins
        self._retry_ns = 0
        self._pause_ns = PAUSES_NS[0]
        self._kept: dict[str, int] = {}
        self._restart: Restart | None = None  # while it reads the windows of before the start
        self._epochs: dict[str, int] = {}  # of the beds when it began
        self._read_ns = 0  # when it is not waited for any more
        self._past: list[Copy] = []  # windows of before the start that are still to be filled in
        self._clock = Clock()
        self.people: dict[str, tuple[float | None, float | None]] = {}  # age in years, sex 1 male 0 female
        self._last: dict[str, Score] = {}
        self._why = ""  # the newest engine was left behind
        self._detail = ""  # of the fault that is told
        self._drift = Drift()
        self._counts = {"rounds": 0, "late": 0, "failed": 0, "dropped": 0}
        self._took_ns: deque[int] = deque(maxlen=60)
        pipeline.note = self.windows.observe

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self, at_ns: int) -> None:
        """Notice what is late, begin what is due; call it about once a second."""
        try:
            self._turn(at_ns)
        except Exception as error:  # whatever goes wrong around a model is its own fault, and never the alarm loop's
            self._failed(at_ns, error)

    def _turn(self, at_ns: int) -> None:
        self._fill(at_ns)
        if self._due_ns is not None and at_ns >= self._due_ns:
            doing = "has not opened its bundle" if self._about is None else "does not answer"
            limit = OPEN_NS if self._about is None else self._deadline_ns
            self._counts["late"] += 1
            self._abandon(at_ns, f"the model {doing} within {limit / NS:g} s")
        if self._engine is None:
            self._begin(at_ns)
            return
        if self._about is None or self._batch is not None or self._restart is not None or self._past:
            return
        if not self._queue and at_ns >= self._next_ns:
            self._next_ns = max(self._next_ns + self._every_ns, at_ns + self._every_ns // 2)
            beds = tuple(bed for bed in self._pipeline.beds.ids if self._row(bed) is not None)
            self._queue.extend(beds[first : first + BATCH_BEDS] for first in range(0, len(beds), BATCH_BEDS))
            self._counts["rounds"] += 1
        if self._queue:
            self._ask(self._queue.popleft(), at_ns)

    def restart(
        self, data_dir: Path, kek: bytes, settings: Mapping[str, bytes], ready: Callable[[float], bool]
    ) -> None:
        """Have the windows of before the start read back; until that is done the model is asked nothing."""
        beds = self._pipeline.beds
        self._epochs = {bed: self.windows.epoch(bed) for bed in beds.ids}
        patients = {bed: beds.patient(bed) for bed in beds.ids}
        self.people.update(people(patients, settings))
        self._restart = Restart(
            data_dir, kek, patients, settings, ready, lambda found: self._post(lambda: self._found(found))
        )
        self._read_ns = self._now() + RESTART_NS
        self._restart.start()

    def _found(self, found: Found) -> None:
        log.info("windows read back beds=%d detail=%r", len(found.windows), found.fault)
        self._past, self._restart = list(found.windows.values()), None

    def _fill(self, at_ns: int) -> None:
        """Fill one bed in: it takes about a millisecond, and the alarm loop has other things to do."""
        if self._restart is not None and at_ns >= self._read_ns:
            log.warning("windows not read back within_s=%d", RESTART_NS // NS)
            self._restart.stop()
            self._restart = None  # what it finds is filled in all the same
        while self._past:
            window = self._past.pop()
            if self._epochs[window.bed] == self.windows.epoch(window.bed):
                self.windows.fill(window.bed, window.number, window.rings)
                return

    def new_patient(self, bed: str) -> None:
        """Forget everything of a bed."""
        self.windows.clear(bed)
        self.people.pop(bed, None)
        self._last.pop(bed, None)
        self._kept.pop(bed, None)
        self._keep(setting(bed), b"")
        self._keep(described(bed), b"")

    def describe(self, bed: str, age: float | None, sex: float | None) -> None:
        """Take over age in years and sex of the patient in a bed, None where unknown; a restart finds them again."""
        known = (age, sex)
        if known == (None, None):
            return
        self.people[bed] = known
        self._keep(described(bed), person(self._pipeline.beds.patient(bed), age, sex))

    def close(self) -> None:
        """Let the engine end; it is not waited for."""
        if self._restart is not None:
            self._restart.stop()
        if self._engine is not None:
            self._engine.leave()
            self._engine = None

    # -- the engine ---------------------------------------------------------------------------------------------------

    def _begin(self, at_ns: int) -> None:
        if at_ns < self._retry_ns:
            return
        self._hung = [engine for engine in self._hung if engine.alive]
        if len(self._hung) >= MOST_HUNG:
            self._retry_ns = at_ns + PAUSES_NS[1]
            self._say(f"{self._why}; {MOST_HUNG} of its threads hang, another is not tried: restart the agent")
            return
        self._engine = Engine(self._open, self._told)
        self._about, self._due_ns = None, at_ns + OPEN_NS
        self._engine.start()

    def _told(self, engine: Engine, message: Message) -> None:
        """Called in an engine's thread."""
        self._post(lambda: self._take(engine, message))

    def _take(self, engine: Engine, message: Message) -> None:
        at_ns = self._now()
        try:
            self._heard(engine, message, at_ns)
        except Exception as error:  # as in tick
            self._failed(at_ns, error)

    def _heard(self, engine: Engine, message: Message, at_ns: int) -> None:
        if engine is not self._engine:
            self._counts["dropped"] += 1
            return
        if isinstance(message, Failed):
            self._counts["failed"] += 1
            self._abandon(at_ns, message.text)
        elif isinstance(message, Opened):
            self._about, self._due_ns = message.about, None
            log.info("model open identity=%s runtime=%s", message.about.identity, message.about.runtime)
            self._next_ns = at_ns
        elif self._batch is not None and message.number == self._batch.number:
            self._answered(message, self._batch, at_ns)

    def _failed(self, at_ns: int, error: Exception) -> None:
        log.error("model failed", exc_info=error)
        self._counts["failed"] += 1
        self._abandon(at_ns, f"{type(error).__name__}: {error}")

    def _abandon(self, at_ns: int, why: str) -> None:
        """Turn away from the engine, whatever it is at; another begins after a pause."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.leave()
            self._hung.append(engine)
        self._batch = self._due_ns = None
        self._queue.clear()
        self._retry_ns = at_ns + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, PAUSES_NS[1])
        self._why = why
        self._say(why)

    def _say(self, detail: str) -> None:
        """Raise the technical condition, or with an empty detail end it; a shadow raises none."""
        if detail != self._detail:
            log.log(logging.WARNING if detail else logging.INFO, "model fault detail=%r", detail)
            self._detail = detail
            if not self._settings.shadow:
                self._fault(CONDITION, SOURCE, detail)

    # -- questions and answers ----------------------------------------------------------------------------------------

    def _row(self, bed: str) -> Condition | None:
        """The row for the score in the preset that is in force on a bed."""
        limits = self._pipeline.limits
        if limits is None:
            return None
        rows = limits.preset(bed).conditions
        return next((row for row in rows if row.verb == "score_above" and row.vital == self._settings.score), None)

    def _ask(self, beds: tuple[str, ...], at_ns: int) -> None:
        assert self._engine is not None  # tick looked
        asked, explain_from = [], math.inf
        for bed in beds:
            row = self._row(bed)
            if row is not None and row.high is not None:
                explain_from = min(explain_from, row.high - row.deadband)
            keep = at_ns - self._kept.get(bed, at_ns - KEEP_NS) >= KEEP_NS
            age, sex = self.people.get(bed, (None, None))
            asked.append(Asked(self.windows.copy(bed, at_ns), age, sex, keep))
        self._number += 1
        self._batch = Batch(self._number, tuple(asked), explain_from)
        self._asked_ns, self._due_ns = at_ns, at_ns + self._deadline_ns
        self._engine.hand(self._batch)

    def _answered(self, answer: Answer, batch: Batch, at_ns: int) -> None:
        self._batch = self._due_ns = None
        if at_ns - self._asked_ns > self._deadline_ns:  # the loop itself was late to look; the answer is no fresher
            self._counts["late"] += 1
            self._abandon(at_ns, f"the model answered after more than {self._deadline_ns / NS:g} s")
            return
        if [each.window.bed for each in batch.beds] != [result.bed for result in answer.results]:
            self._counts["failed"] += 1
            self._abandon(at_ns, "the model answered for other beds than it was asked about")
            return
        self._took_ns.append(at_ns - self._asked_ns)
        self._pause_ns = PAUSES_NS[0]
        self._say("")
        for asked, result in zip(batch.beds, answer.results, strict=True):
            if result.epoch == asked.window.epoch == self.windows.epoch(result.bed):
                self._result(result, at_ns)
                if result.kept:
                    self._kept[result.bed] = self._asked_ns
                    patient = self._pipeline.beds.patient(result.bed)
                    self._keep(setting(result.bed), kept(result.kept, patient, self._asked_ns, self._clock))
            else:
                self._counts["dropped"] += 1
        self._pipeline.flush(at_ns)

    def _result(self, result: Result, at_ns: int) -> None:
        about, settings, bed = self._about, self._settings, result.bed
        assert about is not None  # who answers has opened
        status, risk, text = result.status, result.risk, result.text
        if status == "scored" and not (risk is not None and math.isfinite(risk) and 0.0 <= risk <= 1.0):
            status, risk, text = "error", None, "the risk is not a number of 0 to 1"
        value = risk if status == "scored" else None
        if value is not None:
            text = ", ".join(f"{vital} {share:+.3f}" for vital, share in result.contributions[:3])
        if settings.shadow:
            text = f"shadow; {text}" if text else "shadow"
        coverage = result.coverage if math.isfinite(result.coverage) else 0.0
        score = Score(settings.score, value, at_ns, min(max(coverage, 0.0), 1.0), about.identity, text)
        self._drift.add(status, result.reason, value, result.newest, about.means, about.deviations)
        self._last[bed] = score
        self._pipeline.record(bed, SOURCE, score)
        if settings.shadow:
            return
        watch = self._pipeline.watch
        if status == "error":
            fault = f"{CONDITION}:{settings.score}"
            self._pipeline.apply(watch.technical(bed, fault, True, at_ns, text or "the model gave no usable result"))
        else:
            self._pipeline.apply(watch.score(bed, SOURCE, score))

    # -- what only looks ----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Which model runs, how it is, and how today's patients compare with those of its training."""
        about, took = self._about, sorted(self._took_ns)
        return {
            "score": self._settings.score,
            "shadow": self._settings.shadow,
            "model": None if about is None else about.identity,
            "runtime": None if about is None else about.runtime,
            "state": self._state(),
            "detail": self._detail,
            "suggested_limit": None if about is None else about.on,
            "answer_ms": round(took[len(took) // 2] / 1e6, 1) if took else None,
            **self._counts,
            "drift": self._drift.view(),
        }

    def _state(self) -> str:
        if self._detail:
            return "fault"
        return "waiting" if self._about is None or self._restart is not None or self._past else "running"

    def bed_status(self, bed: str, at_ns: int) -> Mapping[str, Any] | None:
        """The newest score of a bed; None when it is not scored."""
        score = self._last.get(bed)
        if score is None:
            return None
        return {
            "name": score.name,
            "value": score.value,
            "coverage": round(score.coverage, 3),
            "model": score.version,
            "detail": score.detail,
            "shadow": self._settings.shadow,
            "age_s": round((at_ns - score.at_ns) / 1e9, 1),
        }

    def metrics(self) -> list[tuple[str, Literal["counter", "gauge"], str, list[tuple[dict[str, str], float]]]]:
        """Name, type, help and samples of each metric."""
        view = self._drift.view()
        figures = {"fault": int(bool(self._detail)), **{key: view[key] for key in ("abstained_share", "mean_risk")}}
        drift = [
            ({"vital": vital, "figure": key}, float(value))
            for vital, found in view["vitals"].items()
            for key, value in found.items()
            if value is not None
        ]
        return [
            (
                "edge_agent_model_total", "counter", "Rounds, and answers of the model that were late or of no use.",
                [({"what": key}, float(value)) for key, value in self._counts.items()],
            ),
            (
                "edge_agent_model", "gauge", "Whether the risk model is at fault, and what it says on average.",
                [({"figure": key}, float(value)) for key, value in figures.items() if value is not None],
            ),
            ("edge_agent_model_drift", "gauge", "Vital signs of today against those of the training.", drift),
        ]  # fmt: skip
