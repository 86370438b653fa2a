"""The baselines: equal to the scores of the bedside and to xgboost, blind to the clock, refused when damaged."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_agent.watch import scores
from models_tflite.training import baselines, metrics, trees
from models_tflite.training.data import COLUMN, Stays

NAMES = tuple(COLUMN)


def rows(count: int, seed: int) -> np.ndarray:
    """Random vital signs, a fifth missing, a third right on a whole number, where the bands have their bounds."""
    chance = np.random.default_rng(seed)
    low = np.array([25, 75, 33, 60, 40, 25, 2])
    high = np.array([160, 100, 41, 240, 140, 120, 45])
    values = chance.uniform(low, high, (count, 7))
    values = np.where(chance.random(values.shape) < 0.33, np.round(values), values)
    values[chance.random(values.shape) < 0.2] = np.nan
    return values


def test_scores_equal_those_of_the_bedside_on_random_rows() -> None:
    vitals = rows(4000, 1)
    vitals[0] = np.nan
    named = [
        {name: None if np.isnan(value) else value for name, value in zip(NAMES, row, strict=True)}
        for row in vitals.tolist()
    ]
    for row, (five, three, two) in zip(
        named,
        zip(baselines.news2(vitals), baselines.sirs(vitals), baselines.qsofa(vitals), strict=True),
        strict=True,
    ):
        rate, systolic, heart = row["resp_rate"], row["systolic"], row["heart_rate"]
        warm = row["temperature"]
        known = scores.news2(resp_rate=rate, spo2=row["spo2"], systolic=systolic, pulse=heart, temperature=warm)
        assert (known.value or 0) == five
        assert (scores.sirs(temperature=warm, heart_rate=heart, resp_rate=rate).value or 0) == three
        assert (scores.qsofa(resp_rate=rate, systolic=systolic).value or 0) == two


def test_all_baselines_give_what_they_gave_when_fitted_and_trees_what_xgboost_gave() -> None:
    """The stored figures of the trees are xgboost's own predictions, made when they were grown."""
    assert [baseline.name for baseline in baselines.load()] == list(baselines.NAMES)
    learned = json.loads((baselines.FOLDER / baselines.LEARNED).read_text())
    stays = baselines.example()
    for baseline in baselines.load():
        assert baseline.score(stays) == pytest.approx(learned["golden"][baseline.name], abs=2e-6)
    assert len(set(learned["golden"]["xgboost_inputs"])) > 50  # figures that tell rows apart
    assert sum(path.stat().st_size for path in baselines.FOLDER.iterdir()) < 1.5e6


in_training = pytest.mark.skipif(
    importlib.util.find_spec("xgboost") is None, reason="xgboost and scikit-learn are in the training environment only"
)


@in_training
def test_what_is_fitted_is_loaded_again_and_finds_what_was_put_in(tmp_path: Path) -> None:
    """Made-up stays whose pulse tells the label: fitted trees and regression find it, the clock does not."""
    from models_tflite.training import fit

    made_up = baselines.example(count=300, hours=30)
    pulse = baselines.carried(made_up)[:, 0]
    label = np.zeros(made_up.rows, np.int8)
    label[np.flatnonzero(pulse > 112)] = 1
    label = np.maximum.accumulate(label.reshape(300, 30), axis=1).ravel()  # from the first such hour on
    stays = Stays(**{name: getattr(made_up, name) for name in Stays.__dataclass_fields__} | {"label": label})
    half = np.arange(300) % 2 == 0
    fit.fit(stays.select(half), stays.select(~half), tmp_path)
    found = {each.name: each for each in baselines.load(tmp_path)}
    other = stays.select(~half)
    assert list(found) == list(baselines.NAMES)
    for name in ("logistic", "xgboost", "xgboost_inputs"):
        risk = found[name].score(other)
        assert metrics.within_hour(other.label, risk, other.hour) > 0.75, name
        assert metrics.calibration(other.label, risk).slope == pytest.approx(1, abs=0.05)
        assert metrics.utility(other.label, other.first, risk >= found[name].threshold) > 0.2
    assert fit.prevalence(stays)[0] == 0.0 and (np.diff(fit.prevalence(stays)) >= -0.2).all()
    first = (tmp_path / baselines.LEARNED).read_bytes()
    fit.fit(stays.select(half), stays.select(~half), tmp_path)
    assert (tmp_path / baselines.LEARNED).read_bytes() == first  # the same stays and seed, the same baselines


@in_training
def test_trees_as_arrays_equal_xgboost() -> None:
    import xgboost

    chance = np.random.default_rng(4)
    inputs = chance.normal(size=(3000, 5)).astype(np.float32)
    label = (inputs[:, 0] * inputs[:, 1] + inputs[:, 2] > 0.3).astype(np.float32)
    options = {"max_depth": 5, "base_score": 0.5, "objective": "binary:logistic", "gamma": 1.0}  # uneven trees
    booster = xgboost.train(options, xgboost.DMatrix(inputs, label=label), 40)
    grown = trees.from_xgboost(booster.get_dump(dump_format="json"), base=0.0)
    want = booster.predict(xgboost.DMatrix(inputs), output_margin=True)
    assert grown.logit(inputs) == pytest.approx(want, abs=1e-5)


def test_trees_send_each_row_down_its_branch(tmp_path: Path) -> None:
    def leaf(node: int, value: float) -> dict[str, object]:
        return {"nodeid": node, "leaf": value}

    def split(node: int, feature: str, at: float, children: list[dict[str, object]]) -> dict[str, object]:
        yes, no = (child["nodeid"] for child in children)
        return {"nodeid": node, "split": feature, "split_condition": at, "yes": yes, "no": no, "children": children}

    deep = split(0, "f0", 0.5, [leaf(1, -1.0), split(2, "f1", 2.0, [leaf(3, 10.0), leaf(4, 20.0)])])
    grown = trees.from_xgboost([json.dumps(deep), json.dumps(leaf(0, 100.0))], base=0.25)
    inputs = np.array([[0.4, 9], [0.5, 1.9], [0.5, 2.0], [7, 7]], dtype=np.float32)
    want = [99.25, 110.25, 120.25, 120.25]  # a value equal to the threshold goes the upper way
    assert grown.logit(inputs).tolist() == want
    grown.save(tmp_path / "trees.npz")
    assert trees.load(tmp_path / "trees.npz").logit(inputs).tolist() == want
    with pytest.raises(ValueError, match="without missing values"):
        grown.logit(np.array([[np.nan, 1.0]], dtype=np.float32))


def test_values_are_carried_on_within_a_stay_and_never_into_the_next() -> None:
    nan = np.nan
    vitals = np.full((5, 7), nan, dtype=np.float32)
    vitals[:, 0] = [nan, 70, nan, nan, 90]
    stays = Stays(
        pid=np.array([1, 2]),
        site=np.array(["A", "A"]),
        age=np.array([50, nan], np.float32),
        sex=np.array([1, nan], np.float32),
        first=np.array([0, 3, 5]),
        hour=np.array([1, 2, 3, 1, 2], np.int16),
        label=np.zeros(5, np.int8),
        vitals=vitals,
    )
    assert np.array_equal(baselines.carried(stays)[:, 0], [nan, 70, 70, nan, 90], equal_nan=True)
    seen = baselines.current(stays)
    assert seen[:, 0].tolist() == [84, 70, 70, 84, 90] and np.isfinite(seen).all()
    assert seen[:, 7].tolist() == [50, 50, 50, 64, 64] and seen[:, 8].tolist() == [1, 1, 1, 0.5, 0.5]


def test_none_but_the_clock_knows_the_hour() -> None:
    stays = baselines.example()
    later = Stays(**{name: getattr(stays, name) for name in Stays.__dataclass_fields__} | {"hour": stays.hour + 100})
    for baseline in baselines.load():
        same = np.array_equal(baseline.score(stays), baseline.score(later))
        assert same == (baseline.name != "clock"), baseline.name
    label = (np.random.default_rng(2).random(stays.rows) < 0.2).astype(np.int8)
    clock = next(baseline for baseline in baselines.load() if baseline.name == "clock")
    assert metrics.within_hour(label, clock.score(stays), stays.hour) == 0.5


def test_baselines_that_score_otherwise_than_when_fitted_are_left_out(tmp_path: Path) -> None:
    there = tmp_path / "baselines"
    shutil.copytree(baselines.FOLDER, there)
    held = trees.load(there / "xgboost.npz")
    trees.Trees(held.feature, held.threshold, held.leaf * 1.01, held.base).save(there / "xgboost.npz")
    with pytest.warns(UserWarning, match="current vitals.*is left out; fit them anew"):
        found = baselines.load(there)
    assert [baseline.name for baseline in found] == [name for name in baselines.NAMES if name != "xgboost"]
    (there / "xgboost.npz").write_bytes(b"no trees")
    with pytest.raises(ValueError, match="cannot be read"):
        baselines.load(there)
    (there / baselines.LEARNED).write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        baselines.load(there)
