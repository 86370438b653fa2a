"""Windows are scored bed by bed, alike in any company; an unsound input or output gives a reason, never a number."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_bundles
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models_tflite import bundle, features, runner, runtime
from models_tflite.bundle import Bundle, BundleRefused
from models_tflite.description import Calibration, GoldenWindow, Quality, WindowShape
from models_tflite.runner import Runner, Scored, Window

VITAL = {name: column for column, name in enumerate(features.VITALS)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder, key = model_bundles.write(tmp_path_factory.mktemp("bundles"))
    return bundle.read(folder, [key])


@pytest.fixture(scope="module")
def opened(found: Bundle) -> Runner:
    return Runner(found)


def only(opened: Runner, window: Window) -> Scored:
    (result,) = opened.score([window])
    return result


def with_value(vital: str, value: float, step: int = -1, seed: int = 1) -> Window:
    rows = model_bundles.rows(seed)
    rows[step, VITAL[vital]] = value
    return Window("ICU-1", rows, 60.0, 1.0)


def test_each_bed_gets_its_own_risk_in_its_own_place(opened: Runner) -> None:
    windows = model_bundles.windows(40)
    results = opened.score(windows)
    assert [result.bed for result in results] == [window.bed for window in windows]
    assert {result.status for result in results} == {"scored"}
    assert all(0 < (result.risk or 0) < 1 for result in results)
    assert len({result.risk for result in results}) == 40


def test_a_beds_risk_does_not_depend_on_who_lies_beside(opened: Runner) -> None:
    """Were any state shared or left behind, another order or company would change it."""
    windows = model_bundles.windows(33)
    alone = [only(opened, window).risk for window in windows]
    together = {result.bed: result.risk for result in opened.score(windows)}
    assert [together[window.bed] for window in windows] == pytest.approx(alone, abs=1e-6)
    for seed in range(5):
        shuffled = random.Random(seed).sample(windows, len(windows))
        again = {result.bed: result.risk for result in opened.score(shuffled)}
        assert again == pytest.approx(together, abs=1e-6)
    ill = replace(windows[0], vitals=np.full((24, 7), np.nan))  # and one who is refused makes no difference either
    assert opened.score([ill, *windows[1:]])[5].risk == pytest.approx(alone[5], abs=1e-6)


def test_the_same_windows_give_the_same_bits(found: Bundle, opened: Runner) -> None:
    windows = model_bundles.windows(5)
    assert opened.score(windows, 0.0) == opened.score(windows, 0.0) == Runner(found).score(windows, 0.0)


def test_a_rest_changes_nothing(opened: Runner) -> None:
    windows = model_bundles.windows(5)
    before = opened.score(windows, 0.0)
    for _ in range(3):
        opened.rest()
        assert opened.score(windows, 0.0) == before


def test_more_beds_than_a_batch_holds(opened: Runner) -> None:
    windows = model_bundles.windows(3) * 50
    risks = [result.risk for result in opened.score(windows)]
    assert len(risks) > 2 * runner.ROWS
    assert risks == pytest.approx(risks[:3] * 50, abs=1e-6)


def test_both_runtimes_give_the_same_risks(found: Bundle, opened: Runner) -> None:
    pytest.importorskip("tflite_runtime", reason="tflite-runtime ends with Python 3.11")
    old = Runner(found, "tflite-runtime")
    assert (old.runtime, opened.runtime[:14]) == ("tflite-runtime 2.14.0", "ai-edge-litert")
    for new, other in zip(opened.score(model_bundles.windows(32)), old.score(model_bundles.windows(32)), strict=True):
        assert new.risk == pytest.approx(other.risk, abs=1e-5)


def test_a_short_window_is_scored_and_an_empty_one_is_not(opened: Runner) -> None:
    rows = model_bundles.rows(1, hours=2, missing=0.0)
    assert only(opened, Window("ICU-1", rows, 60.0, 1.0)).status == "scored"
    assert only(opened, Window("ICU-1", rows.tolist(), 60.0, 1.0)).status == "scored"
    for vitals in (np.empty((0, 7)), rows[:, :6], rows[0], np.zeros((25, 7)), "nothing", [[1.0], [1.0, 2.0]]):
        result = only(opened, Window("ICU-1", vitals, 60.0, 1.0))
        assert (result.status, result.risk, result.reason) == ("abstained", None, "shape")
        assert result.text
    assert opened.score([]) == []


@pytest.mark.parametrize(
    ("vital", "value", "reason", "words"),
    [
        ("spo2", 0.97, "implausible", "spo2 0.97 of this hour is outside 30 to 100 %: it looks like a fraction"),
        ("temperature", 98.6, "implausible", "it looks like degrees Fahrenheit"),
        ("temperature", 310.2, "implausible", "it looks like kelvin"),
        ("systolic", 16.0, "implausible", "it looks like kPa"),
        ("heart_rate", 900.0, "implausible", "heart_rate 900 of this hour is outside"),
        ("heart_rate", -1.0, "implausible", "heart_rate -1"),
        ("resp_rate", 0.0, "implausible", "resp_rate 0"),
        ("spo2", float("inf"), "not_finite", "spo2 of this hour is inf, which is no number"),
        ("mean_pressure", float("-inf"), "not_finite", "-inf"),
    ],
)
def test_what_no_patient_can_have_is_not_scored(
    opened: Runner, vital: str, value: float, reason: str, words: str
) -> None:
    result = only(opened, with_value(vital, value))
    assert (result.status, result.risk, result.reason) == ("abstained", None, reason)
    assert words in result.text


def test_a_stray_value_hours_ago_counts_as_not_measured(opened: Runner) -> None:
    for value in (0.97, 900.0, -3.0):
        stray, missing = (only(opened, with_value("spo2", each, step=3)) for each in (value, float("nan")))
        assert stray.status == "scored" and stray.risk == missing.risk
    infinite = only(opened, with_value("spo2", float("inf"), step=3))  # no device means that by accident
    assert infinite.reason == "not_finite" and "20 h ago" in infinite.text


def test_a_stray_value_is_no_coverage(opened: Runner) -> None:
    rows = model_bundles.rows(1, missing=0.0)
    full = only(opened, Window("ICU-1", rows, 60.0, 1.0)).coverage
    rows[-2, VITAL["spo2"]] = 0.97
    assert only(opened, Window("ICU-1", rows, 60.0, 1.0)).coverage == pytest.approx(full - 1 / 42)


def test_many_strays_or_the_newest_of_a_vital_are_no_accident(opened: Runner) -> None:
    rows = model_bundles.rows(1, missing=0.0)
    rows[:6, VITAL["temperature"]] = 98.6  # a quarter of the hours
    assert only(opened, Window("ICU-1", rows, 60.0, 1.0)).status == "scored"
    rows[6, VITAL["temperature"]] = 98.6
    result = only(opened, Window("ICU-1", rows, 60.0, 1.0))
    assert result.reason == "implausible" and "temperature 98.6 17 h ago" in result.text
    rows = model_bundles.rows(1, missing=0.0)
    rows[-1, VITAL["temperature"]] = np.nan  # not measured in this hour: the newest is that of the hour before
    rows[-2, VITAL["temperature"]] = 98.6
    result = only(opened, Window("ICU-1", rows, 60.0, 1.0))
    assert result.reason == "implausible" and "temperature 98.6 1 h ago" in result.text


def test_a_nan_is_not_measured_and_too_few_vitals_are_not_scored(opened: Runner) -> None:
    rows = model_bundles.rows(1, missing=0.0)
    rows[-6:, 3:] = np.nan
    result = only(opened, Window("ICU-1", rows, 60.0, 1.0))
    assert (result.status, result.risk, result.reason) == ("abstained", None, "coverage")
    assert result.text == "3 of 7 vital signs within the last 6 hours, at least 4 are needed"
    assert result.coverage == pytest.approx(3 / 7)
    rows[-6, 3] = 120.0
    assert only(opened, Window("ICU-1", rows, 60.0, 1.0)).status == "scored"
    nothing = only(opened, Window("ICU-1", np.full((24, 7), np.nan), 60.0, 1.0))
    assert (nothing.risk, nothing.reason, nothing.coverage) == (None, "coverage", 0.0)


_NUMBER = st.one_of(
    st.floats(30, 100), st.just(float("nan")), st.floats(), st.sampled_from([0.97, 98.6, 16.0, 1e308, -1e308, 5e-324])
)
_WINDOW = st.builds(
    lambda rows, age, sex: Window("ICU-1", rows, age, sex),
    st.lists(st.lists(_NUMBER, min_size=7, max_size=7), max_size=26),
    _NUMBER,
    _NUMBER,
)


@settings(max_examples=150)
@given(st.lists(_WINDOW, min_size=1, max_size=4))
def test_any_numbers_give_a_risk_or_a_reason(opened: Runner, windows: list[Window]) -> None:
    for result in opened.score(windows, 0.0):
        if result.status == "scored":
            assert result.risk is not None and 0 <= result.risk <= 1 and not result.reason
        else:
            assert result.risk is None and result.reason and result.text and not result.contributions
        assert 0 <= result.coverage <= 1


def test_age_and_sex_may_be_unknown(opened: Runner) -> None:
    window = Window("ICU-1", model_bundles.rows(1))
    assert only(opened, window).status == "scored"
    for age in (float("inf"), -3.0, 1e9):
        assert only(opened, replace(window, age=age)).risk == only(opened, window).risk


def test_a_patient_unlike_all_in_training_is_not_guessed_at(opened: Runner) -> None:
    window = Window("ICU-1", model_bundles.rows(1), 12.0, 1.0)
    result = only(opened, window)
    assert (result.status, result.risk, result.reason) == ("abstained", None, "unfamiliar")
    assert result.text == "age is 12; training saw 16 to 100"
    assert only(opened, replace(window, age=16.0)).status == "scored"  # the least that training saw is familiar
    assert only(opened, with_value("heart_rate", 240.0)).reason == "unfamiliar"


def test_contributions_are_what_the_risk_loses_without_a_vital(opened: Runner) -> None:
    window = model_bundles.windows(1)[0]
    (result,) = opened.score([window], 0.0)
    assert [name for name, _ in result.contributions] != list(features.VITALS)
    shares = [share for _, share in result.contributions]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0
    for name, share in result.contributions:
        without = np.array(window.vitals)
        without[:, VITAL[name]] = np.nan
        assert (result.risk or 0) - (only(opened, replace(window, vitals=without)).risk or 0) == pytest.approx(
            share, abs=1e-6
        )


def test_contributions_come_with_risks_that_ask_for_them_and_for_vitals_that_were_measured(opened: Runner) -> None:
    windows = model_bundles.windows(20)
    risks = sorted(result.risk or 0 for result in opened.score(windows))
    for result in opened.score(windows, risks[10]):
        assert bool(result.contributions) == ((result.risk or 0) >= risks[10])
    rows = model_bundles.rows(1, missing=0.0)
    rows[:, VITAL["temperature"]] = np.nan
    (result,) = opened.score([Window("ICU-1", rows, 60.0, 1.0)], 0.0)
    assert {name for name, _ in result.contributions} == set(features.VITALS) - {"temperature"}


class _Faulty:
    """An engine that gives what it was told to."""

    def __init__(self, value: float, finite: bool = True, raises: Exception | None = None) -> None:
        self.value, self.finite, self.raises = value, finite, raises

    def roll(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.raises:
            raise self.raises
        risk, finite = np.full(x.shape[1], 0.4, np.float32), np.full(x.shape[1], True)
        risk[1], finite[1] = self.value, self.finite
        return risk, finite


@pytest.mark.parametrize(
    ("value", "finite", "words"),
    [
        (1.2, True, "1.2 is no risk"),
        (-0.1, True, "-0.1 is no risk"),
        (0.3, False, "not finite"),
        (np.nan, False, "not finite"),
    ],
)
def test_an_output_that_is_no_risk_is_an_error_of_that_bed_only(
    found: Bundle, value: float, finite: bool, words: str
) -> None:
    opened = Runner(found)
    opened._engine = _Faulty(value, finite)
    first, second, third = opened.score(model_bundles.windows(3))
    assert (first.status, third.status) == ("scored", "scored")
    assert (second.status, second.risk, second.reason) == ("error", None, "output")
    assert words in second.text


def test_a_runtime_that_fails_is_an_error_and_no_exception(found: Bundle) -> None:
    opened = Runner(found)
    opened._engine = _Faulty(0.4, raises=RuntimeError("out of arena\nmore"))
    refused, scored = opened.score([with_value("spo2", 0.97), model_bundles.windows(1)[0]], 0.0)
    assert refused.reason == "implausible"
    assert (scored.status, scored.risk, scored.reason) == ("error", None, "runtime")
    assert scored.text == "the runtime failed: out of arena"


def changed(found: Bundle, **changes: Any) -> Bundle:
    return replace(found, description=msgspec.structs.replace(found.description, **changes))


def test_goldens_that_come_out_otherwise_refuse_the_bundle(found: Bundle) -> None:
    about = found.description
    step, window = about.goldens.steps[0], about.goldens.windows[1]
    wrong_step = msgspec.structs.replace(step, output=step.output + 2e-4)
    wrong_window = msgspec.structs.replace(window, risk=window.risk - 2e-4)
    no_risk = GoldenWindow(vitals=((None,) * 7,), age=None, sex=None, risk=0.5)
    for goldens, what in (
        (msgspec.structs.replace(about.goldens, steps=(wrong_step,)), "golden 0 gives .* in ai-edge-litert"),
        (msgspec.structs.replace(about.goldens, windows=(wrong_window,)), "golden window 0 gives risk"),
        (msgspec.structs.replace(about.goldens, windows=(no_risk,)), "golden window 0 gives no risk"),
    ):
        with pytest.raises(BundleRefused, match=what):
            Runner(changed(found, goldens=goldens))


def test_another_network_with_the_same_tensors_fails_the_goldens(found: Bundle) -> None:
    with pytest.raises(BundleRefused, match="golden"):
        Runner(replace(found, model=model_bundles.model("float")))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"state": {"h": 16, "c": 8}}, r"its inputs are .*c \[-1, 16\] float32.*says c \[-1, 8\]"),
        ({"state": {"h": 16}}, "its inputs are"),
        ({"window": WindowShape(steps=24, step_s=60.0)}, "a window of 24 rows every 60 s, here 24 hours"),
        ({"runtime": {"ai-edge-litert": "99.0"}}, "runs in no runtime"),
    ],
)
def test_a_model_with_other_tensors_or_needs_is_refused(found: Bundle, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BundleRefused, match=what) as refused:
        Runner(changed(found, **changes))
    assert refused.value.remedy


def test_inputs_vitals_and_units_must_be_those_of_this_version(found: Bundle) -> None:
    about = found.description
    names = ("blood_type", *about.features.names[1:])
    first = msgspec.structs.replace(about.vitals[0], name="pulse")
    fahrenheit = msgspec.structs.replace(about.vitals[2], unit="[degF]")
    for changes, what in (
        ({"features": msgspec.structs.replace(about.features, names=names)}, "computes no input 'blood_type'"),
        ({"vitals": (first, *about.vitals[1:])}, "vitals are not heart_rate"),
        ({"vitals": (*about.vitals[:2], fahrenheit, *about.vitals[3:])}, "units are not"),
    ):
        with pytest.raises(BundleRefused, match=what):
            Runner(changed(found, **changes))


def test_bytes_that_are_no_model_are_refused(found: Bundle) -> None:
    for model in (b"", b"TFL3" * 100, found.model[:2000]):
        with pytest.raises(BundleRefused, match="runs in no runtime"):
            Runner(replace(found, model=model))


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (Calibration(kind="none"), lambda raw: raw),
        (
            Calibration(kind="platt", a=2.0, b=-1.0),
            lambda raw: 1 / (1 + np.exp(-(2.0 * np.log(raw / (1 - raw)) - 1.0))),
        ),
        (
            Calibration(kind="points", x=(0.0, 0.5, 1.0), y=(0.0, 0.1, 1.0)),
            lambda raw: np.interp(raw, [0.0, 0.5, 1.0], [0.0, 0.1, 1.0]),
        ),
    ],
)
def test_calibration_is_what_the_bundle_says(found: Bundle, calibration: Calibration, expected: Any) -> None:
    raw = Runner(changed(found, calibration=Calibration(kind="none")), prove=False).score(model_bundles.windows(4))
    calibrated = Runner(changed(found, calibration=calibration), prove=False).score(model_bundles.windows(4))
    assert [result.risk for result in calibrated] == pytest.approx([expected(result.risk) for result in raw], abs=1e-9)


def test_the_gate_is_the_bundles(found: Bundle) -> None:
    strict = Runner(changed(found, quality=Quality(recent_steps=1, least_vitals=7)), prove=False)
    rows = model_bundles.rows(1, missing=0.0)
    assert strict.score([Window("ICU-1", rows, 60.0, 1.0)])[0].status == "scored"
    rows[-1, 2] = np.nan
    assert strict.score([Window("ICU-1", rows, 60.0, 1.0)])[0].reason == "coverage"


def test_the_risk_is_the_networks_of_the_normalised_inputs(found: Bundle, opened: Runner) -> None:
    """The way from vital signs to risk again, written out with the engine alone."""
    about, window = found.description, model_bundles.windows(1)[0]
    x = features.inputs(np.asarray(window.vitals), window.age, window.sex)
    x = x[:, [features.NAMES.index(name) for name in about.features.names]]
    x = ((x - np.array(about.features.mean)) / np.array(about.features.std)).astype(np.float32)
    raw = float(runtime.open_engine(found.model).roll(np.ascontiguousarray(x[:, None]))[0][0])
    logit = about.calibration.a * np.log(raw / (1 - raw)) + about.calibration.b
    assert only(opened, window).risk == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_the_shipped_bundles_are_accepted_with_the_shipped_keys() -> None:
    folders = sorted(path for path in bundle.BUNDLES.glob("*-*") if path.is_dir())
    if not folders:
        pytest.skip("no bundle comes with the package")
    for folder in folders:
        opened = Runner(bundle.read(folder))
        assert sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("model.")) < 300_000
        (result,) = opened.score([Window("ICU-1", model_bundles.rows(1, missing=0.0), 60.0, 1.0)], 0.0)
        assert result.status == "scored" and result.contributions
    assert bundle.shipped() in folders


def test_no_private_key_lies_in_the_repository() -> None:
    root = Path(bundle.__file__).parent
    assert not [path for path in root.rglob("*") if path.is_file() and b"PRIVATE " + b"KEY-----" in path.read_bytes()]
