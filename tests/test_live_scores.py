"""Scores fed live: which observations are inputs, what operators enter, what is recorded, what the watch is told."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, running, until
from test_limits import KNOWN

from edge_agent.__main__ import main
from edge_agent.buffer.clock import SYNCHRONIZED, UNSYNCHRONIZED, Clock
from edge_agent.config import load
from edge_agent.continuity import ENTERED, Continuity
from edge_agent.control import ControlClient
from edge_agent.parts import Parts, build_pipeline
from edge_agent.pipeline import Feed
from edge_agent.records import AlarmEvent, DeviceStatus, Entry, Observation, PatientEvent, Score, Signal
from edge_agent.scoring import EVERY_S, LABELS, Scoring
from edge_agent.watch.scores import NEWS2_RESPONSE

S = 1_000_000_000
BED = "ICU-3"
NORMAL = {
    "heart_rate": 70.0, "spo2": 97.0, "resp_rate": 16.0, "nibp_sys": 120.0, "nibp_dia": 75.0, "temp": 37.0,
}  # fmt: skip
ALERT_ON_AIR = {"consciousness": "A", "oxygen": False}


class Bed:
    """Scoring of one bed on a clock that the test turns."""

    def __init__(self, preset: str = "adult", **options: Any) -> None:
        self.preset = KNOWN[preset]
        self.scoring = Scoring([BED], lambda _bed: self.preset, **options)
        self.latest: dict[str, dict[str, Observation]] = {BED: {}}
        self.records: list[Score] = []
        self.second = 0.0

    def see(self, second: float = 0, **values: float | None) -> None:
        for term, value in values.items():
            validity = "not_available" if value is None else "valid"
            self.latest[BED][term] = Observation(term, value, validity, round(second * S))

    def turn(self, second: float) -> list[Score]:
        found = [each.score for each in self.scoring.evaluate(self.latest, round(second * S)) if each.record]
        self.second = second
        self.records += found
        return found

    def enter(self, second: float, **given: Any) -> dict[str, str]:
        return self.scoring.enter(BED, given, round(second * S))

    def score(self, name: str = "news2") -> dict[str, Any]:
        return self.scoring.view(BED, round(self.second * S))[name]

    def missing(self, name: str = "news2") -> set[str]:
        words = self.score(name)["detail"].partition("missing ")[2].partition(";")[0]
        return set(filter(None, words.split(", ")))


def whole(**options: Any) -> Bed:
    bed = Bed(**options)
    bed.see(**NORMAL)
    bed.enter(0, **ALERT_ON_AIR)
    bed.turn(0)
    assert (bed.score()["value"], bed.score()["present"], bed.score()["band"]) == (0, 7, "zero")
    return bed


# -- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.alm("ALM-32")
def test_devices_alone_make_a_partial_news2_without_a_band() -> None:
    bed = Bed()
    bed.see(**NORMAL)
    bed.turn(0)
    assert {name: (each["value"], each["present"], each["needed"], each["band"]) for name, each in
            bed.scoring.view(BED, 0).items()} == {
        "news2": (0, 5, 7, None), "mews": (1, 4, 5, None), "qsofa": (0, 2, 3, None), "sirs": (0, 3, 4, None),
        "shock_index": (0.58, 2, 2, "normal"),
    }  # fmt: skip
    assert bed.missing() == {"oxygen", "consciousness"}
    assert "response" not in bed.score()


@pytest.mark.parametrize(
    ("inputs", "gone"),
    [
        ({"spo2": 0.97}, {"spo2"}), ({"spo2": None}, {"spo2"}), ({"temp": 98.6}, {"temperature"}),
        ({"heart_rate": 301.0}, {"pulse"}), ({"nibp_sys": 75.0}, {"systolic"}), ({"spo2": math.nan}, {"spo2"}),
        ({"resp_rate": None}, {"resp rate"}), ({"temp": None, "temp_skin": 33.0}, {"temperature"}),
    ],
)  # fmt: skip
@pytest.mark.alm("ALM-32")
def test_a_fault_is_a_missing_input_and_no_value(inputs: dict[str, Any], gone: set[str]) -> None:
    bed = whole()
    bed.see(5, **NORMAL)
    bed.see(5, **inputs)
    bed.turn(5)
    assert bed.missing() == gone
    assert (bed.score()["value"], bed.score()["present"], bed.score()["band"]) == (0, 6, None)


def test_a_questionable_value_is_no_input() -> None:
    bed = whole()
    bed.latest[BED]["spo2"] = Observation("spo2", 97.0, "questionable", 5 * S)
    bed.turn(5)
    assert bed.missing() == {"spo2"}


@pytest.mark.parametrize(
    ("term", "gone", "age_s"),
    [("heart_rate", "pulse", 30), ("spo2", "spo2", 30), ("resp_rate", "resp rate", 30), ("temp", "temperature", 300),
     ("nibp_sys", "systolic", 3900)],
)  # fmt: skip
def test_an_input_counts_until_the_age_at_which_the_preset_calls_it_missing(term: str, gone: str, age_s: int) -> None:
    bed = whole(entry_h=24)
    for second in (age_s - 0.001, age_s):
        others = {name: value for name, value in NORMAL.items() if name != term}
        bed.see(second, **others)
        bed.turn(second)
        bed.scoring.due_ns = 0
        bed.scoring._beds[BED].due_ns = 0
        assert bed.missing() == (set() if second < age_s else {gone}), second


def test_without_a_row_of_the_preset_an_input_counts_a_minute_at_most() -> None:
    bed = Bed()
    rows = tuple(row for row in bed.preset.conditions if row.verb != "silent")
    bed.preset = type(bed.preset)("site", "adults, surgical", rows)
    bed.see(**NORMAL)
    for second, left in ((59.9, 5), (60, 2), (3599.9, 2), (3600, 1), (3899.9, 1), (3900, 0)):
        bed.scoring._beds[BED].due_ns = 0
        bed.turn(second)
        assert bed.score()["present"] == left, second


def test_the_first_usable_source_of_an_input_is_taken() -> None:
    bed = whole()
    bed.see(5, **NORMAL, abp_sys=90.0, abp_dia=50.0, pulse_rate=131.0, temp_core=39.5)
    bed.turn(5)
    assert bed.score()["detail"] == "systolic 3, temperature 2", "the artery and the core, and the pulse of the ECG"
    bed.see(10, **NORMAL)
    bed.see(10, heart_rate=None, pulse_rate=131.0, abp_sys=50.0, abp_dia=50.0, temp_core=None)
    bed.turn(10)
    assert bed.score()["detail"] == "pulse 3", "an artery without a pulse pressure is open to air"


def test_a_monitor_without_a_patient_sends_zeros_and_scores_nothing() -> None:
    bed = Bed()
    bed.see(heart_rate=0.0, spo2=0.0, resp_rate=2.0)
    bed.turn(0)
    assert (bed.score()["value"], bed.score()["present"]) == (None, 0)
    bed.see(5, heart_rate=60.0, spo2=97.0, resp_rate=14.0)
    bed.turn(5)
    bed.see(10, heart_rate=0.0, spo2=97.0, resp_rate=0.0)
    bed.turn(10)
    assert (bed.score()["value"], bed.score()["band"]) == (6, "medium"), "now it is an asystole"
    assert bed.score()["at_least"] and bed.turn(10) == []
    bed.see(15, heart_rate=120.0, resp_rate=25.0, temp=39.5, spo2=80.0)
    (news2,) = [each for each in bed.turn(15) if each.name == "news2"]
    assert (bed.score()["value"], bed.score()["band"], bed.score()["at_least"]) == (10, "high", False)
    assert news2.detail.startswith("high; resp rate 3")
    assert (bed.score("sirs")["band"], bed.score("sirs")["at_least"]) == ("positive", False), "there is nothing above"


def test_beds_that_are_not_for_adults_have_no_score_and_take_no_entry() -> None:
    for preset in ("paediatric", "neonate", "bedside"):
        bed = Bed(preset)
        bed.see(**NORMAL)
        assert bed.turn(0) == [] and bed.scoring.view(BED, 0) == {}
        with pytest.raises(ValueError, match=f"for adults, and preset '{preset}'"):
            bed.enter(0, consciousness="A")
    bed = whole()
    bed.preset = KNOWN["paediatric"]
    bed.turn(5)
    assert bed.scoring.view(BED, 5 * S) == {}, "the preset that is in force counts"


# -- what is entered ----------------------------------------------------------------------------------------------


def test_what_was_entered_counts_at_once_and_for_its_time() -> None:
    bed = Bed(entry_h=4)
    bed.see(**NORMAL)
    bed.turn(0)
    bed.enter(1, consciousness="v", oxygen=True, fio2=40)
    bed.turn(1)
    assert (bed.score()["value"], bed.score()["band"]) == (5, "medium")
    assert bed.score()["response"] == NEWS2_RESPONSE["medium"]
    assert bed.scoring.entered(BED, 61 * S) == {
        "scale": 1, "consciousness": {"value": "V", "age_s": 60.0, "left_s": 14340.0},
        "oxygen": {"value": True, "fio2": 40.0, "age_s": 60.0, "left_s": 14340.0},
    }  # fmt: skip
    bed.enter(100, oxygen=False)
    for second, gone in ((4 * 3600 + 0.9, set()), (4 * 3600 + 1, {"consciousness"}),
                         (4 * 3600 + 100, {"consciousness", "oxygen"})):  # fmt: skip
        bed.see(second, **NORMAL)
        bed.scoring._beds[BED].due_ns = 0
        bed.turn(second)
        assert bed.missing() == gone, second
    assert bed.scoring.entered(BED, round(bed.second * S)) == {"scale": 1}


def test_levels_reach_the_scores_that_know_them() -> None:
    bed = whole()
    for second, (level, news2, mews, qsofa) in enumerate(
        (("A", 0, "not critical", 0), ("C", 3, None, 1), ("V", 3, "not critical", 1), ("U", 3, "not critical", 1)), 1
    ):
        bed.enter(second, consciousness=level)
        bed.turn(second)
        assert (bed.score()["value"], bed.score("mews")["band"], bed.score("qsofa")["value"]) == (news2, mews, qsofa)
    assert bed.missing("mews") == set()
    bed.enter(9, consciousness="unknown", oxygen="unknown")
    bed.turn(9)
    assert bed.missing() == {"consciousness", "oxygen"} and bed.missing("mews") == {"avpu"}


def test_the_second_scale_is_used_only_when_entered_and_stays() -> None:
    bed = whole(entry_h=0.25)
    bed.enter(1, scale=2, oxygen=True)
    bed.see(1, **{**NORMAL, "spo2": 97.0})
    bed.turn(1)
    assert (bed.score()["value"], bed.score()["detail"]) == (5, "spo2 3, oxygen 2; SpO2 scale 2")
    bed.see(901, **NORMAL)
    bed.turn(901)
    assert bed.missing() == {"spo2", "oxygen", "consciousness"}, "over 92 % the oxygen decides"
    assert bed.scoring.entered(BED, 901 * S) == {"scale": 2}


def test_rox_is_there_while_oxygen_is() -> None:
    bed = whole()
    assert "rox" not in bed.scoring.view(BED, 0)
    bed.enter(1, oxygen=True)
    bed.turn(1)
    assert bed.score("rox")["value"] is None
    bed.see(1, fio2=60.0, spo2=92.0, resp_rate=28.0)
    bed.enter(2, oxygen=True)
    bed.turn(2)
    assert (bed.score("rox")["value"], bed.score("rox")["band"]) == (5.48, None)
    bed.enter(3, fio2=80)
    bed.turn(3)
    assert bed.score("rox")["value"] == pytest.approx(92 / 0.8 / 28, abs=0.01), "what was entered stands above"


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "nothing to enter"), ({"consciousness": "X"}, "A .alert., C .new"), ({"consciousness": 3}, "not 3"),
     ({"oxygen": "yes"}, "true, false or unknown"), ({"fio2": 0.4}, "40, not 0.4"), ({"fio2": True}, "in %"),
     ({"fio2": 101}, "21 to 100"), ({"oxygen": False, "fio2": 40}, "on oxygen only"), ({"scale": 3}, "not 3"),
     ({"scale": True}, "not True"), ({"scale": 2.0}, "not 2.0"), ({"scale": 2, "fio2": math.nan}, "in %")],
)  # fmt: skip
def test_what_cannot_be_entered_changes_nothing(given: dict[str, Any], words: str) -> None:
    bed = whole()
    with pytest.raises(ValueError, match=words):
        bed.enter(1, **given)
    assert bed.scoring.entered(BED, S)["consciousness"]["value"] == "A"
    assert bed.scoring.entered(BED, S)["scale"] == 1


# -- records ------------------------------------------------------------------------------------------------------


def test_a_score_is_recorded_when_it_changes_and_every_minute() -> None:
    bed = Bed()
    bed.see(**NORMAL)
    assert {each.name for each in bed.turn(0)} == set(LABELS) - {"rox"}
    for second in range(5, 60, 5):
        bed.see(second, **{**NORMAL, "heart_rate": 70.0 + second % 7})
        assert bed.turn(second) == []
    bed.see(60, **NORMAL)
    assert len(bed.turn(60)) == 5
    bed.see(65, **{**NORMAL, "heart_rate": 131.0})
    changed = {each.name: each for each in bed.turn(65)}
    assert set(changed) == {"news2", "mews", "sirs", "shock_index"}
    it = changed["news2"]
    assert (it.value, it.coverage, it.version) == (3, 5 / 7, "RCP 2017")
    assert it.detail == "at least low-medium; pulse 3; missing oxygen, consciousness"
    assert bed.turn(67) == [], "no bed is looked at more often"
    assert EVERY_S == 5


def test_a_bed_without_devices_records_nothing_and_a_lost_input_once() -> None:
    bed = Bed()
    assert [bed.turn(second) for second in (0, 5, 60, 120)] == [[], [], [], []]
    bed.see(120, heart_rate=70.0)
    assert {each.name for each in bed.turn(125)} == {"news2", "mews", "sirs", "shock_index"}
    gone = bed.turn(150)
    assert {(each.name, each.value) for each in gone} == {
        (name, None) for name in ("news2", "mews", "sirs", "shock_index")
    }
    assert bed.turn(300) == []


def test_beds_take_turns() -> None:
    scoring = Scoring(["A", "B"], lambda _bed: KNOWN["adult"])
    latest = {bed: {"spo2": Observation("spo2", 97.0, "valid", 0)} for bed in ("A", "B")}
    looked = [sorted({each.bed for each in scoring.evaluate(latest, round(second * S))}) for second in (0, 2.4, 2.5)]
    assert looked == [["A"], [], ["B"]]
    assert scoring.due_ns == 5 * S
    list(scoring.evaluate(latest, 21 * S))  # the loop stood still
    scoring.enter("B", {"oxygen": True}, 22 * S)
    due = [scoring.due_ns]
    for _ in range(4):
        list(scoring.evaluate(latest, due[-1]))
        due.append(scoring.due_ns)
    assert due == [22 * S, round(22.5 * S), 25 * S, round(27.5 * S), 30 * S], "they are apart again"


# -- the path -----------------------------------------------------------------------------------------------------

ROWS = """
[[condition]]
id = "news2_urgent"
kind = "advisory"
vital = "news2"
present = "score_above 4"
priority = "low"
off_delay_s = 0
[[condition]]
id = "news2_emergency"
kind = "advisory"
vital = "news2"
present = "score_above 6"
priority = "medium"
off_delay_s = 0
[[condition]]
id = "news2_stale"
kind = "technical"
vital = "news2"
present = "silent 60"
priority = "low"
"""


class Ward:
    """The alarm path of one adult's bed, with limits on NEWS2."""

    def __init__(self, folder: Path) -> None:
        (folder / "site.toml").write_text(f'name = "site"\nextends = "adult"\n{ROWS}')
        config = folder / "edge.toml"
        config.write_text(
            f'[gateway]\nid = "g"\ndata_dir = "data"\npresets = ["site.toml"]\n[[bed]]\nid = "{BED}"\npreset = "site"\n'
            '[[source]]\nname = "mon"\ndriver = "hl7"\nlink = "mllp-listen://127.0.0.1:1"\n'
        )
        self.entries: list[Entry] = []
        self.numbers = 0
        parts = Parts(load(config))
        self.pipeline = build_pipeline(parts, self.append, self.unheard, self.new_id)
        self.feed = Feed("mon", parts.drivers[0], parts.maker(0), lambda _data, _channel: True, bed=BED, silence_s=3600)

    def append(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int:
        self.entries += entries
        return 0

    def unheard(self, _signal: Signal) -> None:
        pass

    def new_id(self) -> str:
        self.numbers += 1
        return f"id-{self.numbers}"

    def see(self, second: float, **values: float | None) -> None:
        at_ns = round(second * S)
        self.pipeline.handle(
            self.feed,
            [
                Observation(term, value, "valid" if value is not None else "not_available", at_ns)
                for term, value in {**NORMAL, **values}.items()
            ],
            at_ns,
        )
        self.pipeline.tick({"mon": self.feed}, at_ns)

    def active(self) -> set[str]:
        found = {event.condition for _, event in self.pipeline.alarms.active() if event.state in ("On", "Ack")}
        return {each for each in found if each.startswith("news2")}

    def events(self) -> list[AlarmEvent]:
        return [entry.record for entry in self.entries if isinstance(entry.record, AlarmEvent)]


@pytest.mark.alm("ALM-32", "ALM-29")
def test_a_lost_sensor_ends_no_condition_on_a_score_and_a_whole_score_does(tmp_path: Path) -> None:
    path = Ward(tmp_path)
    ill = {"heart_rate": 131.0, "resp_rate": 25.0, "spo2": 94.0}
    path.see(5, **ill)
    assert path.active() == {"news2_urgent", "news2_emergency"}, "partial, but what is missing can only add to it"
    path.pipeline.enter(BED, ALERT_ON_AIR, 6 * S)
    path.see(20, heart_rate=131.0, resp_rate=None, spo2=94.0)
    path.see(25, heart_rate=131.0, resp_rate=None, spo2=94.0)
    assert path.pipeline.scores is not None
    view = path.pipeline.scores.view(BED, 25 * S)["news2"]
    assert (view["value"], view["present"]) == (4, 6)
    assert path.active() == {"news2_urgent", "news2_emergency"}
    path.see(65.9, heart_rate=131.0, resp_rate=None, spo2=94.0)
    assert path.active() == {"news2_urgent", "news2_emergency"}
    path.see(66, heart_rate=131.0, resp_rate=None, spo2=94.0)
    assert path.active() == {"news2_stale"}, "a minute after the last that counted: told, not silently gone"
    path.see(85, heart_rate=131.0, resp_rate=25.0, spo2=94.0)
    assert path.active() == {"news2_urgent", "news2_emergency"}
    path.see(90, heart_rate=131.0, resp_rate=21.0)
    assert path.active() == {"news2_urgent"}, "whole, and 5"
    path.see(95)
    assert path.active() == set()
    path.see(100, heart_rate=111.0, resp_rate=21.0, spo2=95.0)
    assert path.active() == {"news2_urgent"}, "whole, and 5"
    path.see(105, heart_rate=111.0, resp_rate=21.0, spo2=None)
    assert path.active() == {"news2_urgent"}, "4, which is not over the limit, but a part"
    starts = [each for each in path.events() if each.event == "start" and each.condition.startswith("news2")]
    assert [(each.condition, each.kind, each.priority, each.source) for each in starts][:2] == [
        ("news2_urgent", "advisory", "low", "scores"), ("news2_emergency", "advisory", "medium", "scores"),
    ]  # fmt: skip


def test_a_partial_score_after_a_restart_ends_nothing_that_stood_before(tmp_path: Path) -> None:
    path = Ward(tmp_path)
    event = AlarmEvent("id-0", "news2_emergency", "advisory", "medium", "start", "On", 0, value=8.0, source="scores")
    path.pipeline.watch.restore(BED, event, 0)
    path.pipeline.alarms.restore([(BED, event, 0)], [], 0)
    assert path.pipeline.scores is not None
    path.pipeline.scores.held(BED, "news2_emergency")
    path.pipeline.scores.held(BED, "spo2_low")
    path.pipeline.scores.held("gone", "news2_emergency")
    for second in (5, 10, 15):
        path.see(second)
    assert path.active() == {"news2_emergency"}
    path.pipeline.enter(BED, ALERT_ON_AIR, 16 * S)
    assert path.active() == set()


def test_entries_and_scores_are_records_of_the_bed_and_go_with_the_patient(tmp_path: Path) -> None:
    path = Ward(tmp_path)
    path.pipeline.admit(BED, "P1", 0)
    path.see(5)
    path.pipeline.enter(BED, {"fio2": 40, "consciousness": "A", "scale": 2}, 6 * S)
    told = [(entry.bed, entry.patient, entry.source, entry.record.state, entry.record.detail) for entry in path.entries
            if isinstance(entry.record, DeviceStatus) and entry.record.kind == "entered"]  # fmt: skip
    assert told == [(BED, "P1", "operator", "consciousness", "A"), (BED, "P1", "operator", "fio2", "40 %"),
                    (BED, "P1", "operator", "scale", "2")]  # fmt: skip
    scores = [entry for entry in path.entries if isinstance(entry.record, Score)]
    assert {(entry.bed, entry.patient, entry.source) for entry in scores} == {(BED, "P1", "")}
    assert [entry.record.value for entry in scores if entry.record.name == "news2"] == [0, 5]  # type: ignore[union-attr]
    assert path.pipeline.scores is not None
    version = path.pipeline.scores.version
    path.pipeline.admit(BED, "P1", 7 * S)
    assert path.pipeline.scores.entered(BED, 7 * S)["scale"] == 2, "the same patient"
    path.pipeline.handle(path.feed, [PatientEvent("A03", "P1", BED, 8 * S)], 8 * S)
    assert path.pipeline.scores.entered(BED, 8 * S) == {"scale": 1}
    assert path.pipeline.scores.view(BED, 8 * S) == {}
    assert path.pipeline.scores.version > version


# -- the agent ----------------------------------------------------------------------------------------------------


class Machine(Clock):
    """A clock of another boot, some time after."""

    def __init__(self, after_s: float, quality: int = SYNCHRONIZED, *, rebooted: bool = True) -> None:
        super().__init__()
        self._now, self._utc = time.monotonic_ns(), time.time_ns() + round(after_s * S)
        self._quality, self._rebooted = quality, rebooted

    def monotonic_ns(self) -> int:
        return self._now

    def utc_ns(self) -> int:
        return self._utc

    def quality(self) -> int:
        return self._quality

    def boot(self) -> bytes:
        return b"another boot...." if self._rebooted else super().boot()


async def test_the_command_enters_and_the_status_the_log_and_a_restart_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bedside = Bedside(tmp_path)
    config = bedside.write()
    (tmp_path / "site.toml").write_text(f'name = "site"\nextends = "adult"\n{ROWS}')
    text = config.read_text().replace('"immediate.toml"', '"immediate.toml", "site.toml"')
    config.write_text(text.replace('preset = "immediate"', 'preset = "site"', 1))
    socket = str(tmp_path / "control.sock")

    async def run(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["observe", "--socket", socket, *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    async with running(config) as agent:
        code, out, _ = await run("--bed", "ICU-3", "--consciousness", "v", "--fio2", "40", "--scale", "2")
        assert code == 0
        assert "ICU-3:\n  entered: consciousness V 0 min ago, oxygen yes 40 % 0 min ago, SpO2 scale 2\n" in out
        assert "  NEWS2 5 (partial, 2 of 7) at least medium [oxygen 2, consciousness 3; missing resp rate" in out
        code, _, err = await run("--bed", "ICU-3", "--fio2", "0.4")
        assert code == 1 and "40, not 0.4" in err
        code, _, err = await run("--bed", "ICU-4", "--consciousness", "A")
        assert code == 1 and "for adults" in err
        with pytest.raises(SystemExit):
            await run("--bed", "ICU-3", "--consciousness", "X")
        with ControlClient(tmp_path / "control.sock") as client:
            status = await asyncio.to_thread(client.call, "status")
        beds = status["status"]["beds"]
        assert (beds[0]["scores"]["news2"]["value"], beds[0]["entered"]["scale"]) == (5, 2)
        assert (beds[1]["scores"], beds[1]["entered"]) == ({}, {"scale": 1})
        assert agent.log is not None
        await until(lambda: agent.log is not None and agent.log.waiting() == 0, "the log on the disk")
    async with running(config) as agent:
        scores = agent.pipeline.scores
        assert scores is not None and agent.log is not None
        kept = scores.entered("ICU-3", time.monotonic_ns())
        assert (kept["consciousness"]["value"], kept["oxygen"]["fio2"], kept["scale"]) == ("V", 40.0, 2)
        assert kept["consciousness"]["age_s"] < 60
        continuity = Continuity(agent.log, agent.pipeline, agent.feeds)
        for clock, level in (
            (Machine(3600), "V"), (Machine(4 * 3600 + 60), None), (Machine(-3600), None),
            (Machine(60, UNSYNCHRONIZED), None), (Machine(60, UNSYNCHRONIZED, rebooted=False), "V"),
        ):  # fmt: skip
            continuity.restore(clock)
            found = scores.entered("ICU-3", clock.monotonic_ns())
            assert (found.get("consciousness", {}).get("value"), found["scale"]) == (level, 2)
        agent.log.put(ENTERED, b"{")
        assert "unreadable" in continuity.restore(Machine(0, rebooted=False))[0]
        for level in ("V", "unknown"):
            agent.pipeline.enter("ICU-3", {"consciousness": level}, time.monotonic_ns())
        agent.keep()
        assert scores.view("ICU-3", 0)["news2"]["value"] == 2
        assert [event.condition for _, event in agent.pipeline.alarms.active()] == ["news2_urgent"]
    async with running(config) as agent:
        scores = agent.pipeline.scores
        assert scores is not None
        await until(lambda: "news2" in scores.view("ICU-3", 0), "the first look")
        assert scores.view("ICU-3", 0)["news2"]["value"] == 2
        assert "news2_urgent" in {event.condition for _, event in agent.pipeline.alarms.active()}
    assert await asyncio.to_thread(main, ["alarms", "log", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "consciousness=V" in said and "refused" in said, said
