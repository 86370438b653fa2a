"""Scores are advisory: they add conditions of their own and touch no other."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, device, preset

from edge_agent.config import ConfigError
from edge_agent.presets import load_presets
from edge_agent.records import Score
from edge_agent.watch.room import SLOTS_PER_BED


def test_score_raises_and_abstaining_does_nothing(tmp_path: Path) -> None:
    rows = (
        '[[condition]]\nid = "worse"\nkind = "advisory"\nvital = "risk"\npresent = "score_above 0.5"\n'
        'priority = "low"\noff_delay_s = 0\n'
        '[[condition]]\nid = "risk_stale"\nkind = "technical"\n'
        'vital = "risk"\npresent = "silent 60"\npriority = "low"\n'
    )
    bed = Bedside(preset(tmp_path, rows))
    for at, value in ((0, 0.4), (1, 0.6), (2, None), (3, 0.2)):
        bed.take(bed.watch.score(BED, "model", Score("risk", value, at * NS)))
    assert bed.log == [(1, "worse", True), (3, "worse", False)]
    bed.tick(63)
    assert bed.present == {"risk_stale"}


RISK = (
    '[[condition]]\nid = "worse"\nkind = "advisory"\nvital = "risk"\npresent = "score_above 0.5"\n'
    'priority = "medium"\ndelay_s = 5\noff_delay_s = 0\n'
    '[[condition]]\nid = "risk_stale"\nkind = "technical"\n'
    'vital = "risk"\npresent = "silent 60"\npriority = "low"\n'
)


def ward(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, RISK, "adult"))


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_a_technical_condition_until_a_finite_one(tmp_path: Path, value: float) -> None:
    bed = ward(tmp_path)
    (change,) = bed.score(0, value)
    assert (change.condition, change.present, change.detail) == ("model_fault:risk", True, "not a finite number")
    assert bed.score(1, value) == []
    assert bed.score(2, None) == [], "to abstain is not to be well"
    (change,) = bed.score(3, 0.1)
    assert (change.condition, change.present, change.at_ns) == ("model_fault:risk", False, 3 * NS)


@pytest.mark.alm("ALM-29")
def test_a_score_that_stops_coming_is_a_technical_condition(tmp_path: Path) -> None:
    bed = ward(tmp_path)
    bed.score(0, 0.9)
    bed.tick(5)
    for second in range(10, 60, 10):
        bed.score(second, math.nan)
        bed.score(second, None)
    bed.tick_ns(60 * NS - 1)
    assert bed.present == {"worse", "model_fault:risk"}
    bed.tick_ns(60 * NS)
    assert bed.present == {"risk_stale", "model_fault:risk"}
    bed.score(61, 0.9)
    assert bed.present == set(), "with its delay anew"


def test_a_fault_of_a_score_without_a_row_is_told_too() -> None:
    bed = Bedside(built_in()["adult"])
    bed.score(0, math.nan, "sepsis")
    assert bed.present == {"model_fault:sepsis"}
    bed.score(1, 0.5, "sepsis")
    bed.score(2, 0.5, "other")
    assert bed.present == set() and len(bed.watch._beds[BED].scores) == 0


@pytest.mark.alm("ALM-29")
@pytest.mark.parametrize("name", ["spo2", "resp_rate_co2", "heart_rate"])
def test_a_score_called_like_a_vital_sign_feeds_nothing(name: str) -> None:
    bed = Bedside(built_in()["adult"])
    bed.see(0, "spo2", 75)
    bed.tick(15)
    assert bed.present == {"spo2_low", "spo2_desaturation"}
    for second in range(15, 40):
        bed.score(second, 99.0, name)
        bed.tick(second)
    assert bed.present == {"spo2_stale"}, "nor does it keep a vital fresh"
    assert bed.watch._beds[BED].vitals["heart_rate"].slots == []


def test_a_score_of_an_unknown_bed_is_ignored() -> None:
    bed = Bedside(built_in()["adult"])
    assert list(bed.watch.score("nobody", "model", Score("risk", math.nan, 0))) == []


@pytest.mark.alm("ALM-29")
def test_an_operator_can_change_a_score_limit_and_a_new_patient_forgets_it(tmp_path: Path) -> None:
    bed = ward(tmp_path)
    bed.score(0, 0.9)
    bed.tick(5)
    bed.change(6, bed.watch._beds[BED].preset.with_row("worse", "score_above 0.95"))
    assert bed.present == set()
    bed.take(bed.watch.new_patient(BED, 7 * NS))
    bed.tick(500)
    assert bed.present == set(), "the last patient's score is not missed"


@pytest.mark.alm("ALM-29")
def test_no_score_ends_delays_or_lowers_another_condition(tmp_path: Path) -> None:
    """Random patients with and without a model that says well, ill, nothing, nonsense, or hangs."""
    rows = load_presets([_file(tmp_path)])["site"]
    raised: set[str] = set()
    for seed in range(60):
        rng, model = random.Random(seed), random.Random(-seed - 1)
        alone, advised = Bedside(rows), Bedside(rows)
        at, hung_from = 0.0, model.choice((0, 100, 1e9))
        while at < 400:
            at += rng.choice((0.2, 1, 1, 1, 5, 31))
            step = rng.random()
            if step < 0.05:
                state = rng.choice(("lost", "silent", "connected"))
                calls = [lambda bed, at=at, state=state: bed.state(at, state)]
            elif step < 0.1:
                alarm = device(at, rng.choice(("start", "end")), rng.choice(("high", "low")))
                calls = [lambda bed, alarm=alarm: bed.tell(alarm)]
            else:
                term, values = rng.choice((("spo2", (97, 89, 70, 0.9, None)), ("heart_rate", (70, 30, 160, 400, 0))))
                value = rng.choice(values)  # type: ignore[arg-type]
                calls = [lambda bed, at=at, term=term, value=value: bed.see(at, term, value)]
            if at < hung_from:
                for name in ("risk", "spo2", "heart_rate"):
                    score = model.choice((0.0, 1.0, 97.0, None, math.nan, math.inf))
                    advised.take(
                        advised.watch.score(BED, model.choice(("mon", "model")), Score(name, score, round(at * NS)))
                    )
            for bed in (alone, advised):
                calls[0](bed)
                bed.tick(at)
        kept = [c for c in advised.changes if not c.condition.startswith(("model_fault", "worse", "risk_stale"))]
        assert kept == alone.changes, seed
        raised |= {c.condition for c in advised.changes} - {c.condition for c in alone.changes}
    assert {"worse", "risk_stale", "model_fault:risk", "model_fault:spo2"} <= raised


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(f'name = "site"\nextends = "adult"\n{RISK}')
    return path


def test_scores_take_no_place_from_streams(tmp_path: Path) -> None:
    bed = ward(tmp_path)
    for number in range(SLOTS_PER_BED + 5):
        bed.take(bed.watch.score(BED, f"model {number}", Score("risk", 0.1, 0)))
    bed.see(0, "spo2", 97)
    assert ("mon", "spo2", "") in bed.watch._beds[BED].slots


def test_a_preset_that_brings_a_score_limit_is_fed_at_once(tmp_path: Path) -> None:
    bed = Bedside(built_in()["adult"])
    bed.score(0, 0.9)
    bed.change(1, preset(tmp_path, RISK, "adult"))
    bed.score(2, 0.9)
    bed.tick(7)
    assert bed.present == {"worse"}


RESTS = (
    '[[condition]]\nid = "worse"\nkind = "advisory"\nvital = "risk"\npresent = "score_above 0.5"\n'
    'priority = "medium"\ndelay_s = 5\noff_delay_s = 0\ncool_down_s = 100\n'
    '[[condition]]\nid = "risk_stale"\nkind = "technical"\n'
    'vital = "risk"\npresent = "silent 60"\npriority = "low"\n'
)


def test_a_score_that_has_ended_does_not_come_again_before_its_cool_down_is_over(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, RESTS, "adult"))
    for at, value in ((0, 0.9), (10, 0.1), (50, 0.9)):
        bed.tick(at)
        bed.score(at, value)
    for at in (90, 109):
        bed.score(at, 0.9)
        bed.tick(at)
    bed.tick_ns(110 * NS - 1)
    assert bed.present == set()
    bed.tick_ns(110 * NS)
    assert bed.log == [(10, "worse", True), (10, "worse", False), (110, "worse", True)]


def test_a_score_that_rises_late_in_its_cool_down_has_its_delay_in_full(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, RESTS, "adult"))
    for at, value in ((0, 0.9), (10, 0.1), (50, 0.2), (100, 0.2), (108, 0.9)):
        bed.tick(at)
        bed.score(at, value)
    bed.tick_ns(113 * NS - 1)
    assert bed.present == set()
    bed.tick(113)
    assert bed.present == {"worse"}


def test_a_score_that_falls_within_its_cool_down_does_not_come(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, RESTS, "adult"))
    for at, value in ((0, 0.9), (10, 0.1), (50, 0.9), (80, 0.2), (120, 0.2), (121, 0.9)):
        bed.tick(at)
        bed.score(at, value)
    assert bed.present == set()
    bed.tick(126)
    assert bed.log[2:] == [(126, "worse", True)], "and the cool-down is over"


def test_there_is_no_cool_down_where_the_score_was_missing_or_another_patients(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, RESTS, "adult"))
    bed.score(0, 0.9)
    bed.tick(5)
    bed.tick(60)
    assert bed.present == {"risk_stale"}
    bed.score(61, 0.9)
    bed.tick(66)
    assert bed.present == {"worse"}
    bed.score(67, 0.1)
    bed.take(bed.watch.new_patient(BED, 68 * NS))
    bed.score(69, 0.9)
    bed.tick(74)
    assert bed.present == {"worse"}


def test_a_changed_cool_down_or_delay_keeps_the_one_that_runs(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, RESTS, "adult"))
    for at, value in ((0, 0.9), (10, 0.1), (50, 0.9)):
        bed.tick(at)
        bed.score(at, value)
    bed.change(51, bed.watch._beds[BED].preset.with_row("worse", "score_above 0.5", 2))
    assert bed.watch._beds[BED].preset.by_id["worse"].cool_down_s == 100
    bed.score(100, 0.9)
    bed.tick_ns(110 * NS - 1)
    assert bed.present == set()
    bed.tick(110)
    assert bed.present == {"worse"}


def test_an_alarm_of_a_score_says_on_what_it_rests(tmp_path: Path) -> None:
    for version, coverage, detail, says in (
        ("m-1 abc", 0.834, "resp_rate +0.1", "m-1 abc; coverage 83%; resp_rate +0.1"),
        ("m-1 abc", 1.0, "", "m-1 abc; coverage 100%"),
        ("", 0.5, "because", "because"),
        ("", 1.0, "", ""),
    ):
        bed = Bedside(preset(tmp_path, RISK, "adult"))
        bed.take(bed.watch.score(BED, "model", Score("risk", 0.9, 0, coverage, version, detail)))
        bed.tick(5)
        assert [(each.condition, each.detail, each.value) for each in bed.changes] == [("worse", says, 0.9)]


def test_a_cool_down_is_a_scores_alone_and_a_day_at_most(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    for row, says in (
        (RESTS.replace("cool_down_s = 100", "cool_down_s = 86401"), "over the ceiling of 86400"),
        ('[[condition]]\nid = "spo2_low"\ncool_down_s = 1\n', "only a score may rest"),
    ):
        path.write_text(f'name = "other"\nextends = "adult"\n{row}')
        with pytest.raises(ConfigError, match=says):
            load_presets([path])
    path.write_text('name = "other"\nextends = "adult"\n' + RESTS.replace("= 100", "= 86400"))
    assert load_presets([path])["other"].by_id["worse"].cool_down_s == 86400
