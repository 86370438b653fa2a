"""Training from end to end on made-up patients: `make test-training`, in the environment that has TensorFlow.

Made-up septic stays get a faster heart and a lower pressure before onset, so that a network can learn it in a minute.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="training packages are not installed; make test-training has them")
pytest.importorskip("xgboost")

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pyarrow import parquet

from models_tflite import bundle, features
from models_tflite.runner import Runner, Window
from models_tflite.training import data, metrics, network, quantize, recipe, samples, studies, train
from models_tflite.training.data import COLUMN, LABORATORY, Stays
from models_tflite.training.network import Settings
from models_tflite.training.tracking import Track

NORMAL = np.array([80.0, 97.0, 37.0, 120.0, 85.0, 65.0, 16.0])
ILL = np.array([115.0, 93.0, 38.8, 92.0, 62.0, 47.0, 26.0])
UNITS, BATCH = 8, 32  # of every network here: a step is compiled once for each shape, in half a minute
SMALL = Settings(members=2, units=UNITS, rounds=8, rate=1e-2, batch=BATCH, share=1.0, seed=3)


def table(path: Path, stays: int = 240, hours: int = 30) -> Path:
    """Made-up stays in the format of the recordings, every third septic."""
    generator = np.random.default_rng(11)
    blocks = []
    for pid in range(1, stays + 1):
        onset = 24 if pid % 3 == 0 else None
        course = np.clip((np.arange(hours) - (onset or hours + 9) + 14) / 10, 0, 1)[:, None]
        vitals = NORMAL + course * (ILL - NORMAL) + generator.normal(0, 1, (hours, 7)) * [6, 1, 0.2, 8, 5, 5, 2]
        vitals[generator.random(vitals.shape) < 0.2] = np.nan
        labs = np.where(
            generator.random((hours, 26)) < 0.1, 1.0 + course + generator.normal(0, 0.1, (hours, 26)), np.nan
        )
        block = {name: vitals[:, index] for index, name in enumerate(COLUMN.values())}
        block |= {name: labs[:, index] for index, name in enumerate(LABORATORY)}
        block |= {
            "pid": np.full(hours, pid),
            "Site": np.full(hours, "AB"[pid % 2]),
            "Age": np.full(hours, 20.0 + pid % 70),
        }
        label = (np.arange(hours) >= onset - 6) if onset else np.zeros(hours, bool)
        block |= {
            "Gender": np.full(hours, pid % 2),
            "ICULOS": np.arange(1, hours + 1),
            "SepsisLabel": label.astype(int),
        }
        blocks.append(pa.table(block))
    parquet.write_table(pa.concat_tables(blocks), path)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("data") / "made-up.parquet")


@pytest.fixture(scope="module")
def stays(recordings: Path) -> Stays:
    return data.read(recordings, labs=True)


@pytest.fixture(scope="module")
def net(stays: Stays) -> network.Network:
    lesson = recipe.prepare(stays, SMALL, 1, lambda _: None)
    return recipe.fit(lesson, SMALL, lambda _: None)


@pytest.fixture(scope="module")
def converted(net: network.Network) -> Callable[[str], bytes]:
    return cache(lambda mode: quantize.convert(net, mode))  # each takes a process of its own with TensorFlow


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "signing.pem"
    made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.touch(0o600)
    path.write_bytes(made)
    return path


def test_one_command_makes_a_bundle_that_the_bedside_opens(recordings: Path, key: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(recordings), "--sign-key", str(key), "--seed", "5", "--members", "2"]
    arguments += ["--units", str(UNITS), "--rounds", "1", "--batch", str(BATCH), "--bootstrap", "10"]
    studied = dict.fromkeys(("auroc", "auprc", "utility", "wh", "later"), 0.5)
    (tmp_path / "studies.json").write_text(json.dumps({"validation": {"one": studied}, "across": {"A to B": studied}}))
    told = ["--track", str(tmp_path / "runs"), "--studies", str(tmp_path / "studies.json")]
    assert train.main([*arguments, "--out", str(tmp_path / "out"), *told]) == 0
    folder = tmp_path / "out" / f"{train.NAME}-{train.VERSION}"
    public = tmp_path / "signer.pub"
    public.write_bytes(bundle.public_pem(bundle.private_key(key)))
    read = bundle.read(folder, [public])
    worse = np.linspace(NORMAL, ILL, 8)
    for scored in Runner(read).score([Window("worse", worse, 60, 1), Window("well", np.tile(NORMAL, (8, 1)), 60, 1)]):
        assert scored.risk is not None, scored.text
        assert 0 <= scored.risk <= 1
    assert read.description.state == {"h": 16, "c": 16}
    text = (folder / "MODEL_CARD.md").read_text()
    for part in (
        "Not a medical device",
        "CC BY 4.0",
        "WH",
        "NEWS2, 5 vitals",
        "ICU clock alone",
        "Limits",
        "int8",
        "A to B",
        "Two choices were made after a result on test was known",
        "every row scored, AUROC",
        "trained by this run",
    ):
        assert part in text
    assert (folder / "figures" / "roc.svg").exists()
    assert list((tmp_path / "runs").rglob("validation_quantized_auroc"))
    assert not [path for path in folder.rglob("*.*") if b"PRIVATE" in path.read_bytes()]

    assert train.main([*arguments, "--out", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / folder.name / "model.tflite"
    assert again.read_bytes() == (folder / "model.tflite").read_bytes()


def test_a_network_learns_what_the_patients_have(stays: Stays, net: network.Network) -> None:
    risk = network.risks(net, stays)
    chosen = recipe.choose(stays, risk)
    found = recipe.figures(stays, recipe.calibrate(risk, chosen.slope, chosen.offset), chosen.threshold)
    assert found.auroc > 0.8
    assert found.utility > 0.3


def test_tensorflow_and_numpy_say_the_same(stays: Stays, net: network.Network) -> None:
    rows = np.arange(0, stays.rows, 37)
    x = network.normalised(samples.seen(stays, rows), net.scale).transpose(1, 0, 2)
    np.testing.assert_allclose(network.risks(net, stays, rows), quantize.reference(net, x), atol=1e-5)


@pytest.mark.parametrize("mode", quantize.MODES)
def test_a_converted_network_does_what_the_weights_do(
    stays: Stays, net: network.Network, converted: Callable[[str], bytes], mode: str
) -> None:
    model = converted(mode)
    rows = np.arange(0, stays.rows, 37)
    x = np.ascontiguousarray(network.normalised(samples.seen(stays, rows), net.scale).transpose(1, 0, 2))
    errors = quantize.check(model, net, x)
    assert "ai-edge-litert" in errors
    if mode == "float":
        assert errors["ai-edge-litert"].largest < 1e-4


def test_a_conversion_that_went_wrong_is_refused(
    stays: Stays, net: network.Network, converted: Callable[[str], bytes]
) -> None:
    model = converted("float")
    bent = tuple({**member, "o": -member["o"]} for member in net.members)
    x = np.ascontiguousarray(network.normalised(samples.seen(stays, np.arange(40)), net.scale).transpose(1, 0, 2))
    with pytest.raises(quantize.ConversionFailed, match="is more than"):
        quantize.check(model, network.Network(bent, net.scale), x)


def test_a_converter_that_ends_is_told(monkeypatch: pytest.MonkeyPatch, net: network.Network) -> None:
    monkeypatch.setattr(quantize.sys, "executable", "/bin/false")
    with pytest.raises(quantize.ConversionFailed, match="ended with 1"):
        quantize.convert(net)


def test_every_row_is_an_example_and_none_before_its_stay(stays: Stays) -> None:
    marked = samples.Samples(stays, np.arange(stays.rows, dtype=np.float32), share=1.0)
    seen_rows: set[int] = set()
    for batch in marked.round(np.random.default_rng(0), batch=8):
        assert batch.inputs.shape[1:] == (features.WINDOW, len(features.NAMES))
        seen_rows |= set(batch.target[batch.weight > 0].astype(int).tolist())
    assert len(seen_rows) > 0.97 * stays.rows  # what does not fill the last batch is left out


def test_the_teacher_judges_nobody_whom_it_knows(stays: Stays) -> None:
    """Labels drawn by lot cannot be told by somebody who has not seen them."""
    lots = np.random.default_rng(2).random(len(stays)) < 0.3
    label = np.repeat(lots, np.diff(stays.first)).astype(np.int8)
    still = np.full_like(stays.vitals, 80.0)
    blind = Stays(stays.pid, stays.site, stays.age, stays.sex, stays.first, stays.hour, label, still, stays.labs)
    said = recipe.prepare(blind, SMALL, 1, lambda _: None).said
    assert abs(metrics.auroc(label, said.astype(np.float64)) - 0.5) < 0.15


def test_studies_tell_of_every_part_and_both_hospitals(stays: Stays, tmp_path: Path) -> None:
    out = tmp_path / "studies.json"
    few = stays.select(stays.pid <= 120)
    settings = Settings(members=1, units=UNITS, rounds=1, batch=BATCH, share=1.0)
    out.write_text(json.dumps({"validation": {"without age and sex": {"auroc": 2.0}}, "across": {}}))
    studies.run(few, settings, 1, out, Track())
    found = json.loads(out.read_text())
    assert {"without the teacher", "current vitals, age and sex only"} <= set(found["validation"])
    assert found["validation"].pop("without age and sex") == {"auroc": 2.0}, "it was there, and is not made anew"
    for figures in (*found["validation"].values(), *found["across"].values()):
        assert 0 < figures["auroc"] <= 1
    assert set(found["across"]) == {"A to B", "B to A"}
