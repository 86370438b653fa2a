"""A model that hangs, fails, lies or cannot be opened is a technical alarm; every other alarm is as without a model."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import model_bundles
import pytest
from risk_rig import NS, Held, Invented, Ward

from edge_agent.pipeline import GATEWAY
from edge_agent.records import AlarmEvent
from edge_agent.risk import model_opener
from edge_agent.risk.engine import Batch, Model, Result
from edge_agent.risk.live import MOST_HUNG, OPEN_NS, PAUSES_NS
from edge_agent.risk.opener import AT_WORK, MOST_DEATHS, Watched

ROOT = Path(__file__).parent.parent
MODEL = ("sepsis_risk", "sepsis_risk_stale", "model_fault")


class Hangs(Invented):
    """Answers until it is told to hang."""

    def __init__(self) -> None:
        super().__init__(0.9)
        self.held: Held | None = None

    def score(self, batch: Batch) -> Sequence[Result]:
        if self.held is not None:
            self.held.wait()
        return super().score(batch)


class Killed(BaseException):
    """What no sane code catches."""


def fault(ward: Ward) -> str:
    """What the technical alarm of the gateway says; empty when there is none."""
    return ward.active(GATEWAY).get("model_fault", "")


@pytest.mark.alm("ALM-29")
def test_a_model_that_hangs_is_told_at_its_deadline_left_behind_and_followed_by_another(tmp_path: Path) -> None:
    models = [Hangs(), Hangs()]
    first, second = models
    ward = Ward(tmp_path, lambda: models.pop(0))
    ward.begin()
    ward.ask()
    assert "sepsis_risk" in ward.active()
    first.held = held = Held()
    ward.turn(60)
    assert held.reached.wait(20)
    ward.turn(4)
    assert fault(ward) == ""
    ward.turn(1)
    assert fault(ward) == "the model does not answer within 5 s"
    assert "sepsis_risk" in ward.active(), "what was present stays until it is too old"
    held.open()  # the late answer, and it may say what it likes
    scores = len(ward.scores())
    ward.hear()
    assert len(ward.scores()) == scores and fault(ward), "a late answer is dropped"
    assert ward.risk is not None and ward.risk.status()["dropped"] == 1
    ward.turn(PAUSES_NS[0] // NS)
    ward.hear()
    second.risk = 0.1
    ward.ask(1)
    assert fault(ward) == "" and ward.scores()[-1].value == 0.1 and ward.active() == {}
    assert ward.risk.status()["late"] == 1


@pytest.mark.alm("ALM-29")
def test_a_model_that_hangs_while_it_is_opened_is_told_and_tried_again_a_bounded_number_of_times(
    tmp_path: Path,
) -> None:
    doors: list[Held] = []
    slow = True

    def open_model() -> Model:
        doors.append(door := Held())
        if slow:
            door.wait()
        return Invented()

    ward = Ward(tmp_path, open_model)
    ward.turn()
    ward.turn(OPEN_NS // NS - 1)
    assert fault(ward) == ""
    ward.turn()
    assert "has not opened" in fault(ward)
    for _ in range(200):
        ward.turn(600)
    assert len(doors) == MOST_HUNG, "threads that hang for good are not without end"
    assert "restart the agent" in ward.faults[-1]
    for door in doors:
        door.open()
        ward.hear()
    slow = False
    ward.turn(3600)
    ward.hear()
    ward.ask(1)
    assert len(doors) == MOST_HUNG + 1 and fault(ward) == "", "threads that have ended make room"


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (ZeroDivisionError("by nought"), "ZeroDivisionError: by nought"), (MemoryError(), "MemoryError"),
        (SystemExit(3), "SystemExit: 3"), (Killed(), "Killed"),
    ],
)  # fmt: skip
def test_a_model_that_crashes_is_told_and_the_next_one_ends_it(tmp_path: Path, what: BaseException, says: str) -> None:
    def crash(_bed: str) -> float:
        raise what

    risks: list[Any] = [crash, 0.1]
    ward = Ward(tmp_path, lambda: Invented(risks.pop(0)))
    ward.begin()
    ward.ask()
    assert fault(ward) == says and ward.scores() == []
    ward.turn(59)
    assert risks == [0.1], "not before its pause is over"
    ward.begin()
    ward.ask(1)
    assert fault(ward) == "" and ward.scores()[-1].value == 0.1


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize("risk", [math.nan, math.inf, -0.01, 1.01])
def test_a_risk_that_is_none_is_a_technical_alarm_of_the_bed_until_one_is(tmp_path: Path, risk: float) -> None:
    model = Invented(lambda bed: risk if bed == "ICU-2" else 0.7)
    ward = Ward(tmp_path, lambda: model, beds=2)
    ward.begin()
    ward.ask()
    assert set(ward.active()) == {"sepsis_risk"}
    assert ward.active("ICU-2") == {"model_fault:sepsis_risk": "the risk is not a number of 0 to 1"}
    assert ward.scores("ICU-2")[-1].value is None and fault(ward) == ""
    model.risk = None
    ward.ask()
    assert "model_fault:sepsis_risk" in ward.active("ICU-2"), "to abstain is not to be well"
    model.risk = 0.2
    ward.ask()
    assert ward.active("ICU-2") == {}


@pytest.mark.alm("ALM-29")
def test_answers_for_other_beds_than_asked_are_not_believed(tmp_path: Path) -> None:
    class Confused(Invented):
        def score(self, batch: Batch) -> Sequence[Result]:
            return tuple(reversed(super().score(batch)))

    ward = Ward(tmp_path, lambda: Confused(0.9), beds=2)
    ward.begin()
    ward.ask()
    assert "other beds" in fault(ward) and ward.scores() == [] and ward.active() == {}


def _flip(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: _flip(folder, "model.tflite"), "SHA-256"),
        (lambda folder: _flip(folder, "model.json"), "is no signature"),
        (lambda folder: _flip(folder, "model.json.sig"), "is no signature"),
        (lambda folder: (folder / "model.json.sig").unlink(), "cannot be opened"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_broken_bundle_is_refused_and_taken_once_it_is_whole(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder, key = model_bundles.write(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    damage(folder)
    settings = f'bundle = "{folder}"\ntrusted = ["{key}"]\n'
    ward = Ward(tmp_path, model_opener(Ward(tmp_path, None, model=settings).parts.loaded), model=settings)
    ward.begin()
    assert says in fault(ward) and str(folder) in fault(ward)
    low(ward)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    ward.turn(60)
    ward.hear()
    ward.ask(1)
    assert fault(ward) == "" and ward.scores()[-1].version.startswith("small-lstm-1.2.3 ")


def low(ward: Ward) -> None:
    """A desaturation alarms after its delay to the second."""
    ward.see("spo2", 97)
    for _ in range(5):
        ward.turn()
        ward.see("spo2", 75)
        assert "spo2_desaturation" not in ward.active()
    ward.turn(1)
    assert "spo2_desaturation" in ward.active()
    for _ in range(8):
        ward.see("spo2", 97)
        ward.turn()


class Whatever(Invented):
    """Says well, ill, nothing, nonsense, or fails, by a seed."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    def score(self, batch: Batch) -> Sequence[Result]:
        if self.chance.random() < 0.1:
            raise RuntimeError("of no use")
        self.risk = self.chance.choice((0.0, 0.2, 0.99, 1.0, None, math.nan, math.inf, -3.0))
        return super().score(batch)


def lived(ward: Ward, seed: int) -> list[tuple[str, AlarmEvent]]:
    """Half an hour of two beds, the same for every ward with this seed; the alarms that are not the model's."""
    chance, heard = random.Random(seed), random.Random(seed)
    for _ in range(1800):
        ward.turn()
        if ward.risk is not None and ward.risk._due_ns is not None and heard.random() < 0.5:
            ward.hear()  # else the answer is late, more and more
        for bed in ("ICU-1", "ICU-2"):
            if chance.random() < 0.9:
                ward.see("spo2", chance.choice((97.0, 97.0, 97.0, 85.0, 75.0, 0.97)), bed)
                ward.see("heart_rate", chance.choice((80.0, 80.0, 145.0, 30.0)), bed)
        if chance.random() < 0.01:
            ward.pipeline.alarms.acknowledge("ICU-1", None, "nurse", ward.now)
        if chance.random() < 0.005:
            ward.pipeline.admit("ICU-2", f"P{ward.now}", ward.now)
    # a reminder is the bed's, also of an acknowledged alarm of the model
    return [(bed, each) for bed, each in ward.events if each.condition.partition(":")[0] not in (*MODEL, "")]


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize("seed", range(4))
def test_every_other_alarm_is_the_same_to_the_nanosecond_whatever_the_model_does(tmp_path: Path, seed: int) -> None:
    def told(ward: Ward) -> list[tuple[object, ...]]:
        return [
            (bed, each.at_ns, each.condition, each.event, each.state, each.priority, each.value)
            for bed, each in lived(ward, seed)
        ]

    chance = random.Random(-seed - 1)
    advised = Ward(tmp_path, lambda: Whatever(chance), beds=2, model="every_s = 7\n")
    with_model = told(advised)
    alone = Ward(tmp_path, None, beds=2)
    assert with_model == told(alone) and len(with_model) > 100
    assert {each.condition for _, each in advised.events} >= {"sepsis_risk", "model_fault", "model_fault:sepsis_risk"}


@pytest.mark.alm("ALM-29")
def test_a_high_alarm_owns_light_and_sound_over_a_raised_risk_and_a_dead_model(tmp_path: Path) -> None:
    models: list[Invented] = [Invented(0.9)]
    ward = Ward(tmp_path, lambda: models.pop())
    ward.begin()
    ward.ask()
    low(ward)
    highs = [signal for signal in ward.signals if signal.bed == "ICU-1" and signal.priority == "high"]
    assert highs and highs[0].condition == "spo2_desaturation" and highs[0].audio_priority == "high"
    assert "sepsis_risk" in ward.active()


def test_the_pause_before_another_try_doubles_and_begins_anew_after_an_answer(tmp_path: Path) -> None:
    opened: list[float] = []
    good = False

    def open_model() -> Model:
        opened.append(ward.now / NS)
        if good:
            return Invented()
        raise OSError("no card")

    ward = Ward(tmp_path, open_model)
    while len(opened) < 9:
        ward.turn(30)
        if len(opened) > (ward.risk.status()["failed"] if ward.risk is not None else 0) or not ward.posted.empty():
            ward.hear()
    pauses = [round(after - before) for before, after in itertools.pairwise(opened)]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


_DIES = """
import os, sys
from pathlib import Path
from risk_rig import Invented
from edge_agent.risk.opener import Watched

class Dies(Invented):
    def score(self, batch):
        os._exit(7)

def opened():
    if sys.argv[2] == "open":
        os._exit(7)
    return Dies()

try:
    Watched(opened, Path(sys.argv[1])).score(None)
except Exception as error:
    print(error)
"""


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize("when", ["open", "score"])
def test_a_model_that_kills_the_agent_does_so_three_times_at_most(tmp_path: Path, when: str) -> None:
    file = tmp_path / AT_WORK

    def run(how: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", _DIES, str(file), how], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )  # fmt: skip
        return done.returncode, done.stdout

    if when == "score":
        run("score")
        assert file.exists()
        Watched(Invented, file)
        assert not file.exists(), "a model that was opened has lived"
    for _ in range(MOST_DEATHS):
        assert run("open") == (7, "")
    code, told = run(when)
    assert code == 0 and f"died {MOST_DEATHS} times" in told and f"remove {file}" in told
    file.unlink()
    model = Watched(Invented, file)
    model.score(Batch(1, (), 1.0))
    assert not file.exists()


def test_a_refused_bundle_or_a_thread_that_hangs_is_no_death(tmp_path: Path) -> None:
    file, held = tmp_path / AT_WORK, Held()

    def refused() -> Model:
        raise OSError("refused")

    def hangs() -> Model:
        held.wait()
        return Invented()

    threads = []
    for _ in range(2 * MOST_DEATHS):
        with pytest.raises(OSError, match="refused"):
            Watched(refused, file)
        threads.append(threading.Thread(target=Watched, args=(hangs, file)))
        threads[-1].start()
        assert held.reached.wait(20)
    held.open()
    for thread in threads:
        thread.join(20)
    Watched(Invented, file)


@pytest.mark.alm("ALM-29")
def test_what_goes_wrong_around_a_model_never_reaches_the_alarm_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Invented):
        def score(self, batch: Batch) -> Sequence[Result]:
            return [each._replace(contributions=(("spo2", "much"),)) for each in super().score(batch)]  # type: ignore[arg-type]

    models: list[Invented] = [Odd(0.9), Invented(0.1)]
    ward = Ward(tmp_path, lambda: models.pop(0))
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError("no thread left")))
        ward.turn()
    assert fault(ward) == "RuntimeError: no thread left"
    low(ward)
    ward.turn(60)
    ward.hear()
    ward.turn(1)
    ward.hear()
    assert "ValueError" in ward.faults[-1] and ward.active(GATEWAY)
    ward.turn(120)
    ward.hear()
    ward.ask(1)
    assert fault(ward) == "" and ward.scores()[-1].value == 0.1


@pytest.mark.alm("ALM-29")
def test_an_answer_is_late_also_when_the_loop_looked_late(tmp_path: Path) -> None:
    ward = Ward(tmp_path, lambda: Invented(0.9))
    ward.begin()
    ward.turn(60)
    ward.now += 5 * NS + 1  # the loop was busy, and hears the answer before its clock turns
    ward.hear()
    assert fault(ward) == "the model answered after more than 5 s" and ward.scores() == []
