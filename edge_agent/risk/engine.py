"""One thread with one model in it: batches go in, answers come out, and nobody ever waits for it.

Theory of operation: the thread opens the model and then takes one batch after the other. Whatever happens it says by
`tell`: opened, answered, or failed, after which it ends. A thread that says nothing is the loop's to notice: it sets a
deadline, turns its back on this engine and lets another begin. The thread dies with the process; it holds no lock, no
file and nothing that the alarm path reads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from edge_agent.watch.windows import Copy


class Asked(NamedTuple):
    """One bed of a batch: its window, what is known of the patient, and whether its window shall be kept."""

    window: Copy
    age: float | None = None  # years
    sex: float | None = None  # 1 male, 0 female
    keep: bool = False


class Batch(NamedTuple):
    """What the model is asked at once; risks from `explain_from` on are explained."""

    number: int
    beds: tuple[Asked, ...]
    explain_from: float


class Result(NamedTuple):
    """What the model says of one bed; `status` is scored, abstained or error, `text` says why it is not scored."""

    bed: str
    epoch: int
    status: str
    risk: float | None
    reason: str = ""
    text: str = ""
    coverage: float = 0.0
    contributions: tuple[tuple[str, float], ...] = ()  # vital and what it adds to the risk, the largest first
    newest: tuple[float, ...] = ()  # the vitals of the last hour, NaN where none was measured
    kept: bytes = b""  # the window, for a restart


class About(NamedTuple):
    """Which model answers: identity for alerts, its parts, runtime, the limits it was tuned to, means in training."""

    identity: str
    name: str
    version: str
    sha256: str
    runtime: str
    on: float
    off: float
    means: tuple[float, ...] = ()  # of the vitals in training, in the order of windows.VITALS
    deviations: tuple[float, ...] = ()


class Model(Protocol):
    """An open model; belongs to its engine's thread."""

    about: About

    def score(self, batch: Batch) -> Sequence[Result]:
        """One result for each bed of the batch, in order."""


class Opened(NamedTuple):
    """The model is open and proven."""

    about: About


class Answer(NamedTuple):
    """The results of one batch."""

    number: int
    results: tuple[Result, ...]


class Failed(NamedTuple):
    """The engine has ended: `text` says why and, where there is something, what to do."""

    text: str


Message = Opened | Answer | Failed


class Engine:
    """A thread that opens a model and scores batches until it fails, is closed or left behind."""

    def __init__(self, open_model: Callable[[], Model], tell: Callable[[Engine, Message], None]) -> None:
        """`tell` is called in the engine's thread and must not wait."""
        self._open, self._tell = open_model, tell
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="risk-model", daemon=True)

    def start(self) -> None:
        """Begin to open the model."""
        self._thread.start()

    def hand(self, batch: Batch) -> None:
        """Give it a batch; never waits."""
        self._inbox.put(batch)

    def leave(self) -> None:
        """Ask it to end after what it is at; whether and when it does is not waited for."""
        self._inbox.put(None)

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            model = self._open()
            self._tell(self, Opened(model.about))
            while (batch := self._inbox.get()) is not None:
                self._tell(self, Answer(batch.number, tuple(model.score(batch))))
        except BaseException as error:  # whatever a model throws ends its thread, and is told
            self._tell(self, Failed(_words(error)))


def _words(error: BaseException) -> str:
    """An error for a person: refusals speak for themselves, others are named."""
    text = " ".join(str(error).split())
    if getattr(error, "remedy", ""):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
