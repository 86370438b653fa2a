"""The evaluation command on made-up stays: right figures, thresholds from elsewhere, clear refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from models_tflite import bundle
from models_tflite.runner import Runner, Window
from models_tflite.training import alerts, baselines, data, evaluate, metrics, report
from tests import model_bundles

ROOT = Path(__file__).parent.parent


def table(path: Path, stays: int = 60, seed: int = 1) -> Path:
    """Made-up stays of two hospitals; the pulse of the septic ones rises from twelve hours before onset."""
    chance = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {name: [] for name in ("pid", "Site", *data.COLUMN.values(), *data._ROW)}
    for pid in range(1, stays + 1):
        hours = int(chance.integers(10, 50))
        begin = int(chance.integers(4, hours)) if pid % 4 == 0 else hours  # row of the first label
        rows = model_bundles.rows(seed * 1000 + pid, hours)
        rows[:, 0] += 25 * np.clip((np.arange(hours) - begin + 6) / 6, 0, 1)
        if pid == 3:
            rows[:] = np.nan  # nothing was measured: the model has nothing to say
        for name, values in zip(data.COLUMN.values(), rows.T, strict=True):
            columns[name] += [None if np.isnan(value) else float(value) for value in values]
        columns["pid"] += [pid] * hours
        columns["Site"] += ["AB"[pid // 4 % 2]] * hours
        columns["Age"] += [float(40 + pid % 40)] * hours
        columns["Gender"] += [pid % 2] * hours
        columns["ICULOS"] += list(range(1, hours + 1))
        columns["SepsisLabel"] += [int(hour >= begin) for hour in range(hours)]
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A table, a signed bundle of a small network, and the key it is signed for."""
    there = tmp_path_factory.mktemp("evaluate")
    folder, key = model_bundles.write(
        there, training={"data": "none", **{alerts.KEY.format(rate): 0.5 + rate / 100 for rate in alerts.PER_DAY}}
    )
    return table(there / "stays.parquet"), folder, key


def test_the_command_tells_all_figures_of_the_bundle_and_of_every_baseline(
    place: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder, key = place
    asked = ["--data", str(path), "--bundle", str(folder), "--trusted", str(key), "--bootstrap", "20"]
    written = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md"), "--figures", str(tmp_path)]
    assert evaluate.main([*asked, *written]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["models"]) == ["bundle", *baselines.NAMES]
    assert found["data"]["stays"] == 60 and found["data"]["septic"] == 15 and found["data"]["hospitals"] == ["A", "B"]
    stays = data.read(path)
    whole = found["models"]["news2"]["figures"]["all"]
    score = baselines.news2(baselines.carried(stays))
    assert whole["auroc"]["value"] == pytest.approx(metrics.auroc(stays.label, score))
    assert whole["wh"]["value"] == pytest.approx(metrics.within_hour(stays.label, score, stays.hour))
    threshold = found["models"]["news2"]["threshold"]
    assert whole["utility"]["value"] == pytest.approx(metrics.utility(stays.label, stays.first, score >= threshold))
    assert found["models"]["clock"]["figures"]["all"]["wh"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    in_b = stays.select(stays.site == "B")
    assert found["models"]["sirs"]["figures"]["B"]["auprc"]["value"] == pytest.approx(
        metrics.auprc(in_b.label, baselines.sirs(baselines.carried(in_b)))
    )
    ours = found["models"]["bundle"]
    assert ours["alarms"]["2 per day"]["threshold"] == pytest.approx(0.52) and ours["threshold"] == 0.6
    assert found["differences"]["news2"]["auroc"]["value"] == pytest.approx(
        ours["figures"]["all"]["auroc"]["value"] - whole["auroc"]["value"]
    )
    assert whole["auroc"]["low"] < whole["auroc"]["value"] < whole["auroc"]["high"]
    for title in (ours["title"], *baselines.TITLES.values(), "Per hospital", "Calibration", "none was chosen on these"):
        assert title in shown
    assert (tmp_path / "out.md").read_text() == shown
    for name in ("calibration", "roc", "alarms", "lead-time"):
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert drawn.startswith("<?xml") and ("XGBoost" if name == "calibration" else "NEWS2") in drawn


def test_the_bundle_scores_as_at_the_bedside_and_is_silent_where_it_abstains(place: tuple[Path, Path, Path]) -> None:
    path, folder, key = place
    stays, opened = data.read(path), bundle.read(folder, [key])
    candidate = evaluate.from_bundle(opened, stays)
    stay = stays.stay(1)
    for hour in (0, 7, len(stay.hour) - 1):
        window = Window("bed", stay.vitals[max(0, hour - 23) : hour + 1], stay.age, stay.sex)
        (scored,) = Runner(opened).score([window])
        row = int(stays.first[1]) + hour
        assert candidate.abstained is not None and candidate.abstained[row] == (scored.risk is None)
        assert candidate.score[row] == pytest.approx(scored.risk or 0.0, abs=1e-5)
    silent = slice(int(stays.first[2]), int(stays.first[3]))
    assert candidate.abstained is not None and candidate.abstained[silent].all()
    assert not candidate.score[silent].any() and 0 < candidate.abstained.mean() < 0.3
    told = evaluate.evaluate(stays, [candidate], 0)["models"]["bundle"]
    assert told["abstained"] == pytest.approx(candidate.abstained.mean())
    assert "rows without a score" in report.markdown(evaluate.evaluate(stays, [candidate], 0))


def test_no_threshold_depends_on_what_is_evaluated(place: tuple[Path, Path, Path]) -> None:
    stays = data.read(place[0])
    held = {name: getattr(stays, name) for name in data.Stays.__dataclass_fields__}
    turned = data.Stays(**held | {"label": 1 - stays.label})
    first, second = (
        evaluate.evaluate(each, [evaluate.from_baseline(one, each) for one in baselines.load()], 0)
        for each in (stays, turned)
    )
    for name in baselines.NAMES:
        one, other = first["models"][name], second["models"][name]
        assert one["threshold"] == other["threshold"]
        for asked, row in one["alarms"].items():
            assert row["threshold"] == other["alarms"][asked]["threshold"]
        assert one["figures"]["all"]["auroc"]["value"] != other["figures"]["all"]["auroc"]["value"]


def test_a_function_is_evaluated_with_the_thresholds_of_other_patients(tmp_path: Path) -> None:
    here, there = data.read(table(tmp_path / "a.parquet")), data.read(table(tmp_path / "b.parquet", seed=2))

    def pulse(stays: data.Stays) -> np.ndarray:
        return np.nan_to_num(baselines.carried(stays)[:, 0], nan=80.0).astype(float)

    candidate = evaluate.from_function("pulse", pulse, here, tuned_on=there)
    gain = metrics.gains(there.label, there.first)
    assert candidate.threshold == metrics.best_threshold(gain, pulse(there))
    found = evaluate.evaluate(here, [candidate], 0)["models"]["pulse"]
    assert found["figures"]["all"]["auroc"]["value"] > 0.6 and found["calibration"] is None


def test_one_hospital_and_no_septic_stay_are_told_as_what_they_are(
    place: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = parquet.read_table(place[0])
    keep = [pid // 4 % 2 == 1 and pid % 4 != 0 for pid in rows["pid"].to_pylist()]
    parquet.write_table(rows.filter(pyarrow.array(keep)), tmp_path / "healthy.parquet")
    assert evaluate.main(["--data", str(tmp_path / "healthy.parquet"), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["data"]["septic"] == 0 and found["models"]["news2"]["figures"]["all"]["auroc"]["value"] is None
    assert list(found["models"]["news2"]["figures"]) == ["all"]
    assert "| NEWS2, 5 vitals | none | none | none | none |" in capsys.readouterr().out


def test_what_cannot_be_used_is_refused_with_the_reason(
    place: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder, key = place
    rows = parquet.read_table(path)
    parquet.write_table(rows.drop_columns(["MAP"]), tmp_path / "narrow.parquet")
    parquet.write_table(rows.slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "damaged.parquet").write_bytes(path.read_bytes()[:-100])
    for name, said in (
        ("narrow", "lacks the columns MAP"),
        ("empty", "holds no rows"),
        ("damaged", "cannot be read as Parquet"),
        ("none", "no such file"),
    ):
        assert evaluate.main(["--data", str(tmp_path / f"{name}.parquet")]) == 2
        assert said in capsys.readouterr().err
    damaged = tmp_path / folder.name
    damaged.mkdir()
    for file in folder.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= file.name == "model.tflite"
        (damaged / file.name).write_bytes(content)
    for given, said in ((damaged, "SHA-256"), (tmp_path / "nowhere", "is not a folder")):
        assert evaluate.main(["--data", str(path), "--bundle", str(given), "--trusted", str(key)]) == 2
        assert said in capsys.readouterr().err


def test_it_needs_no_training_packages(place: tuple[Path, Path, Path]) -> None:
    """The command runs where tensorflow, xgboost and scikit-learn cannot be imported."""
    block = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'xgboost', 'sklearn', 'mlflow')))"
    run = "import runpy; runpy.run_module('models_tflite.training.evaluate', run_name='__main__')"
    asked = ["--data", str(place[0]), "--bundle", str(place[1]), "--trusted", str(place[2]), "--bootstrap", "0"]
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; {run}", *asked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "small-lstm-1.2.3" in done.stdout
