"""The model at the bedside: scores of the live path are those of the rows, and what becomes of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import model_bundles
import numpy as np
import pytest
from risk_rig import ABOUT, HOUR_NS, NS, Invented, Ward

from edge_agent.config import ConfigError
from edge_agent.presets import load_presets
from edge_agent.records import Observation
from edge_agent.risk import hours, live, model_opener
from edge_agent.risk.engine import Batch, Result
from edge_agent.risk.restart import Found, described, people, setting
from edge_agent.watch.windows import Windows
from models_tflite import bundle, features
from models_tflite.runner import Runner, Window

TERMS = ("heart_rate", "spo2", "temp", "nibp_sys", "nibp_mean", "nibp_dia", "resp_rate")


def configured(folder: Path, kind: str = "int8", more: str = "") -> tuple[str, Runner]:
    path, key = model_bundles.write(folder, kind)
    runner = Runner(bundle.read(path, [key]))
    return f'bundle = "{path}"\ntrusted = ["{key}"]\n{more}', runner


def opened(folder: Path, settings: str, **more: object) -> Ward:
    ward = Ward(folder, None, model=settings, **more)  # type: ignore[arg-type]
    ward = Ward(folder, model_opener(ward.parts.loaded), model=settings, **more)  # type: ignore[arg-type]
    ward.begin()
    return ward


@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize("seed", [3, 11])
def test_hourly_rows_as_live_values_give_the_risks_of_the_rows(tmp_path: Path, kind: str, seed: int) -> None:
    settings, runner = configured(tmp_path, kind)
    ward = opened(tmp_path, settings)
    assert ward.risk is not None
    rows = model_bundles.rows(seed, hours=40, missing=0.3)
    rows[20:22] = np.nan  # two hours without anything
    ward.risk.people["ICU-1"] = (67.0, 1.0)
    begin = ward.now
    for hour, row in enumerate(rows):
        ward.now = begin + hour * HOUR_NS
        for term, value in zip(TERMS, row.tolist(), strict=True):
            ward.see(term, None if math.isnan(value) else value, validity="invalid" if math.isnan(value) else "valid")
        (score,) = ward.ask(30.0)
        (expected,) = runner.score([Window("", rows[max(0, hour - features.WINDOW + 1) : hour + 1], 67.0, 1.0)])
        if hour in (20, 21):
            assert score.value is None and "last hour" in score.detail
            continue
        assert expected.risk is not None or expected.status == "abstained"
        assert score.value == pytest.approx(expected.risk, abs=1e-6)
        assert score.version == runner.bundle.identity
    assert sum(score.value is not None for score in ward.scores()) > 30


def test_a_score_above_its_limit_is_an_advisory_alarm_that_says_on_what_it_rests(tmp_path: Path) -> None:
    model = Invented(0.3)
    ward = Ward(tmp_path, lambda: model)
    ward.begin()
    (score,) = ward.ask()
    assert (score.name, score.value, score.coverage, score.version) == ("sepsis_risk", 0.3, 0.5, ABOUT.identity)
    assert ward.active() == {}
    model.risk = 0.7
    ward.ask()
    assert ward.active() == {"sepsis_risk": f"{ABOUT.identity}; coverage 50%; resp_rate +0.200, heart_rate +0.100"}
    (event,) = [each for _, each in ward.events if each.condition == "sepsis_risk"]
    assert (event.kind, event.priority, event.event, event.value) == ("advisory", "medium", "start", 0.7)
    assert (event.vital, event.limit, event.source) == ("sepsis_risk", "score_above 0.6", "model")
    model.risk = 0.55  # within the deadband
    ward.ask()
    assert "sepsis_risk" in ward.active()
    model.risk = 0.4
    ward.ask()
    assert ward.active() == {}


def test_a_score_that_comes_back_within_the_cool_down_waits_for_its_end(tmp_path: Path) -> None:
    model = Invented(0.9)
    ward = Ward(tmp_path, lambda: model)
    ward.begin()
    ward.ask()
    model.risk = 0.1
    ward.ask()
    assert ward.active() == {}
    ended, model.risk = ward.now, 0.9
    while ward.now < ended + 3540 * NS:
        ward.ask()
        assert ward.active() == {}
    ward.ask()
    assert "sepsis_risk" in ward.active() and ward.now == ended + 3600 * NS
    ward.pipeline.admit("ICU-1", "P2", ward.now)
    assert ward.active() == {}
    ward.ask()
    assert "sepsis_risk" in ward.active(), "the cool-down was the other patient's"


def test_a_model_commands_no_high_alarm_and_no_limit_rests(tmp_path: Path) -> None:
    for row, says in (
        ('id = "sepsis_risk"\npriority = "high"', "medium at most"),
        ('id = "spo2_low"\ncool_down_s = 60', "only a score may rest"),
        ('id = "sepsis_risk"\ncool_down_s = 86401', "over the ceiling"),
        ('id = "sepsis_risk"\nkind = "physiological"', "a score is advisory"),
    ):
        path = tmp_path / "site.toml"
        path.write_text(f'name = "site"\nextends = "adult"\n[[condition]]\n{row}\n')
        with pytest.raises(ConfigError, match=says):
            load_presets([path])


def test_shadow_records_scores_and_raises_nothing(tmp_path: Path) -> None:
    model = Invented(0.9)
    ward = Ward(tmp_path, lambda: model, model="shadow = true\n")
    ward.begin()
    (score,) = ward.ask()
    assert score.value == 0.9 and score.detail.startswith("shadow")
    model.risk = math.nan
    ward.ask()
    model.risk = lambda bed: 1 / 0
    ward.turn(60)
    ward.hear()
    ward.turn(1000)
    assert ward.events == [] and ward.faults == [] and ward.signals == []
    assert ward.risk is not None and ward.risk.status()["state"] == "fault"


def test_an_answer_about_a_patient_who_has_left_is_dropped(tmp_path: Path) -> None:
    model = Invented(0.9)
    ward = Ward(tmp_path, lambda: model, beds=2)
    ward.begin()
    ward.turn(60)
    ward.pipeline.admit("ICU-1", "P2", ward.now)
    ward.hear()
    assert ward.scores("ICU-1") == [] and [score.value for score in ward.scores("ICU-2")] == [0.9]
    assert ward.active() == {} and "sepsis_risk" in ward.active("ICU-2")
    assert ward.risk is not None and ward.risk.status()["dropped"] == 1


def test_only_beds_whose_preset_has_the_score_are_scored_in_batches(tmp_path: Path) -> None:
    model = Invented()
    ward = Ward(tmp_path, lambda: model, beds=40)
    ward.begin()
    now = ward.now
    limits = ward.pipeline.limits
    assert limits is not None
    limits.set_preset("ICU-7", "paediatric", "biomed", now)
    ward.turn(1)
    for _ in range(3):
        ward.hear()
        ward.turn(1)
    beds = [[each.window.bed for each in batch.beds] for batch in model.batches]
    assert [len(each) for each in beds] == [16, 16, 7]
    assert [bed for each in beds for bed in each] == [f"ICU-{bed}" for bed in range(1, 41) if bed != 7]
    assert len(ward.scores()) == 39
    assert ward.risk is not None
    for _ in range(55):
        ward.turn(1)
        assert ward.risk.status()["rounds"] == 1, "the next round begins a minute after this one"
    ward.turn(1)
    assert ward.risk.status()["rounds"] == 2


def test_silence_of_the_model_on_a_scored_bed_is_a_technical_alarm(tmp_path: Path) -> None:
    model = Invented(0.7)
    ward = Ward(tmp_path, lambda: model)
    ward.begin()
    ward.ask()
    model.risk = None
    for _ in range(9):
        ward.ask()
    assert set(ward.active()) == {"sepsis_risk"}, "to abstain ends nothing"
    ward.ask()
    assert set(ward.active()) == {"sepsis_risk_stale"}
    model.risk = 0.7
    ward.ask()
    assert set(ward.active()) == {"sepsis_risk"}, "no cool-down where the score was only missing"


def test_status_and_metrics_tell_model_answers_and_drift(tmp_path: Path) -> None:
    model = Invented(0.2)
    ward = Ward(tmp_path, lambda: model)
    assert ward.risk is not None
    assert ward.risk.status()["state"] == "waiting" and ward.risk.bed_status("ICU-1", ward.now) is None
    ward.begin()
    for term, value in zip(TERMS, (80, 100, 40, 80, 80, 120, 20), strict=True):
        ward.see(term, value)
    ward.ask(30)
    model.risk = None
    ward.ask()
    status = ward.risk.status()
    assert (status["state"], status["model"], status["suggested_limit"]) == ("running", ABOUT.identity, 0.6)
    drift = status["drift"]
    assert (drift["evaluations"], drift["scored"], drift["abstained"], drift["mean_risk"]) == (2, 1, 1, 0.2)
    assert drift["abstained_share"] == 0.5 and drift["reasons"] == {"coverage": 1}
    assert drift["vitals"]["heart_rate"]["shift_sd"] == 0 and drift["vitals"]["spo2"]["shift_sd"] == 2
    assert drift["vitals"]["resp_rate"]["far"] == 1, "six deviations from the mean"
    bed = ward.risk.bed_status("ICU-1", ward.now)
    assert bed is not None and (bed["value"], bed["detail"], bed["age_s"]) == (None, "coverage", 0.0)
    ward.turn(7)
    bed = ward.risk.bed_status("ICU-1", ward.now)
    assert bed is not None and bed["age_s"] == 7.0
    lines = {
        (name, *labels.values()): value for name, _, _, samples in ward.risk.metrics() for labels, value in samples
    }
    assert lines["edge_agent_model", "fault"] == 0 and lines["edge_agent_model_total", "rounds"] == 2
    assert lines["edge_agent_model_drift", "spo2", "shift_sd"] == 2


def test_a_model_that_would_score_no_bed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.score: no bed would be scored(.|\n)*rows for: sepsis_risk"):
        Ward(tmp_path, None, model='score = "stroke"\n')
    with pytest.raises(ConfigError, match="no bed would be scored"):
        Ward(tmp_path, None, preset='name = "scored"\nextends = "neonate"\n')


def test_nothing_is_asked_before_the_windows_are_read_back_or_their_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, ...]] = []

    class Reading:
        def __init__(self, *given: Any) -> None:
            started.append(given)

        def start(self) -> None: ...

        def stop(self) -> None: ...

    monkeypatch.setattr(live, "Restart", Reading)
    past = Windows(["ICU-1", "ICU-2", "ICU-3"])
    for comes in ("in time", "late"):
        model = Invented(lambda bed: 0.1)
        ward = Ward(tmp_path, lambda model=model: model, beds=3)  # type: ignore[misc]
        assert ward.risk is not None
        for bed in ("ICU-1", "ICU-2", "ICU-3"):
            past.observe(bed, Observation("spo2", 91.0, "valid", ward.now - HOUR_NS))
        ward.risk.restart(tmp_path, b"", {}, lambda _s: True)
        ward.begin()
        for _ in range(2):
            ward.turn(60)
        assert model.batches == [] and ward.risk.status()["state"] == "waiting"
        ward.pipeline.admit("ICU-2", "P2", ward.now)
        done = started[-1][-1]
        if comes == "late":
            ward.turn(70)
            ward.hear()
            assert [each.window.rings for each in model.batches[0].beds] == [(), (), ()]
        done(Found({bed: past.copy(bed, ward.now) for bed in ("ICU-1", "ICU-2", "ICU-3")}, ""))
        ward.hear()
        for _ in range(3):
            ward.turn(20)
        ward.hear()
        filled = [[hours.rows(each.window)[-2, 1] for each in batch.beds] for batch in model.batches[-1:]]
        assert filled == [[91.0, pytest.approx(math.nan, nan_ok=True), 91.0]], "not of the patient who has left"


def test_the_shipped_rows_are_what_the_shipped_bundle_was_tuned_to() -> None:
    about = bundle.read(bundle.shipped()).description
    row = load_presets()["adult"].by_id["sepsis_risk"]
    assert row.high is not None
    told = f"the bundle suggests {about.thresholds}: give edge_agent/alarms/presets/adult.toml round figures near these"
    assert row.high == pytest.approx(about.thresholds.on, rel=0.1), told
    assert row.high - row.deadband == pytest.approx(about.thresholds.off, rel=0.1), told
    assert row.cool_down_s == about.thresholds.cool_down_s, told


@pytest.mark.parametrize("seed", [1, 2])
def test_the_shipped_bundle_scores_live_as_it_scores_rows(tmp_path: Path, seed: int) -> None:
    ward = opened(tmp_path, "")
    runner = Runner(bundle.read(bundle.shipped()))
    rows, begin, scored = model_bundles.rows(seed, hours=30, missing=0.3), ward.now, 0
    for hour, row in enumerate(rows):
        ward.now = begin + hour * HOUR_NS
        for term, value in zip(TERMS, row.tolist(), strict=True):
            ward.see(term, None if math.isnan(value) else value, validity="invalid" if math.isnan(value) else "valid")
        (score,) = ward.ask(30.0)
        (expected,) = runner.score([Window("", rows[max(0, hour - features.WINDOW + 1) : hour + 1])])
        scored += expected.risk is not None
        assert score.value == (None if expected.risk is None else pytest.approx(expected.risk, abs=1e-6))
    assert scored > 25


def test_windows_are_kept_every_five_minutes_and_go_with_the_patient(tmp_path: Path) -> None:
    class Packs(Invented):
        def score(self, batch: Batch) -> Sequence[Result]:
            kept = {each.window.bed: hours.pack(each.window) for each in batch.beds if each.keep}
            return [each._replace(kept=kept.get(each.bed, b"")) for each in super().score(batch)]

    ward = Ward(tmp_path, lambda: Packs(0.1), beds=2)
    ward.begin()
    assert ward.risk is not None
    ward.pipeline.admit("ICU-1", "P1", ward.now)
    ward.risk.describe("ICU-1", 67.0, None)
    ward.see("spo2", 95.0)
    ward.ask()
    first = dict(ward.kept)
    assert first[setting("ICU-1")] and first[setting("ICU-2")] and first[described("ICU-1")]
    for _ in range(4):
        ward.ask()
    assert ward.kept == first
    ward.ask()
    assert ward.kept[setting("ICU-1")] != first[setting("ICU-1")], "it says when it was kept"
    ward.pipeline.admit("ICU-1", "P2", ward.now)
    assert ward.kept[setting("ICU-1")] == ward.kept[described("ICU-1")] == b"" and ward.kept[setting("ICU-2")]
    assert people({"ICU-1": "P1", "ICU-2": ""}, first) == {"ICU-1": (67.0, None)}
    assert people({"ICU-1": "P2"}, first) == {} == people({"ICU-1": "P1"}, {described("ICU-1"): b"x"})


def test_the_time_that_answers_take_is_told(tmp_path: Path) -> None:
    ward = Ward(tmp_path, lambda: Invented(0.1))
    ward.begin()
    assert ward.risk is not None and ward.risk.status()["answer_ms"] is None
    for seconds in (3, 1, 2):
        ward.turn(60)
        ward.now += seconds * NS
        ward.hear()
    assert ward.risk.status()["answer_ms"] == 2000
