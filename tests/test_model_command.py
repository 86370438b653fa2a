"""`edge-agent model`: a bundle is proven, told, and scores a file; what is wrong ends with 1 and one line."""

from __future__ import annotations

import json
from pathlib import Path

import model_bundles
import pytest

from edge_agent.__main__ import main
from models_tflite import bundle, features
from models_tflite.runner import Runner, Window

HEADING = "HR|O2Sat|Temp|SBP|MAP|DBP|Resp|EtCO2|Age|Gender|ICULOS|SepsisLabel"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return model_bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def model(made: tuple[Path, Path]) -> list[str]:
    return ["--bundle", str(made[0]), "--key", str(made[1])]


def psv(path: Path, hours: int = 30) -> Path:
    """A stay as the Challenge writes it, of an invented patient."""
    lines = [HEADING]
    for number, row in enumerate(model_bundles.rows(3, hours=hours), start=1):
        cells = ["NaN" if value != value else f"{value:.2f}" for value in row]  # noqa: PLR0124 - NaN alone differs
        lines.append("|".join([*cells, "NaN", "61", "1", str(number), "0"]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_verify_proves_the_bundle_in_each_runtime(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "verify", *model]) == 0
    out = capsys.readouterr().out
    assert "signed by SHA256:" in out and "ai-edge-litert 2." in out and "all 4 goldens within 0.0001" in out
    assert out.strip().endswith("accepted")


def test_verify_refuses_a_flipped_byte_and_says_what_to_do(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / made[0].name
    shutil.copytree(made[0], folder)
    whole = bytearray((folder / "model.tflite").read_bytes())
    whole[1000] ^= 4
    (folder / "model.tflite").write_bytes(whole)
    for command in (["verify"], ["info"], ["score", str(psv(tmp_path / "a.psv"))]):
        assert main(["model", *command, "--bundle", str(folder), "--key", str(made[1])]) == 1
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.startswith(f"edge-agent model: {folder}/model.tflite: ")
        assert "copy the bundle anew" in streams.err


def test_verify_refuses_a_key_that_nobody_trusts(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "verify", "--bundle", str(made[0])]) == 1
    error = capsys.readouterr().err  # whether a key comes with the package or not
    assert "is no signature of model.json by any" in error or "no public key is trusted" in error


def test_info_tells_what_the_model_is(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", *model]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["version"], told["intended_use"]) == ("small-lstm", "1.2.3", "Tests only.")
    assert told["vitals"][1] == "spo2 30 to 100 %"
    assert told["risk_begins"] == 0.6 and told["goldens"] == 4


def test_each_hour_of_a_stay_gets_the_risk_of_the_window_that_ends_with_it(
    model: list[str], made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = psv(tmp_path / "stay.psv")
    assert main(["model", "score", *model, "--json", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["hour"] for line in lines] == list(range(1, 31))
    rows = [[float(cell) for cell in line.split("|")[:7]] for line in path.read_text().splitlines()[1:]]
    runner = Runner(bundle.read(made[0], [made[1]]))
    for end, line in enumerate(lines, start=1):
        (expected,) = runner.score([Window("", rows[max(0, end - features.WINDOW) : end], 61.0, 1.0)])
        assert line["status"] == expected.status == "scored"
        assert line["risk"] == pytest.approx(expected.risk, abs=1e-6)


def test_a_csv_may_name_its_columns_as_this_program_does(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*features.VITALS, "age", "sex"]
    path = tmp_path / "stay.CSV"
    row = "85,97,37.1,120,80,60,18,61"
    path.write_text(
        "\ufeff" + ",".join(names) + f"\r\n{row},m\r\n{row},1\r\n\r\n{row},F\r\n,,,,,,,,\r\n", encoding="utf-8"
    )
    assert main(["model", "score", *model, "--json", "--explain", str(path)]) == 0
    first, second, third, fourth = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["risk"] == pytest.approx(second["risk"], abs=0.1)
    assert set(first["contributions"]) == set(features.VITALS)
    assert third["status"] == fourth["status"] == "scored"  # an hour without values leans on the hours before


def test_mistaken_units_and_numbers_that_are_none_abstain_with_the_reason(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stay.csv"
    names = "HR,O2Sat,Temp,SBP,MAP,DBP,Resp"
    path.write_text(f"{names}\n85,0.97,37,120,80,60,18\n85,97,98.6,120,80,60,18\n85,97,37,inf,80,60,18\n,97,,,,,18\n")
    assert main(["model", "score", *model, "--json", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["risk"] for line in lines] == [None] * 4
    assert [line["reason"] for line in lines] == ["implausible", "implausible", "not_finite", "not_finite"]
    assert "fraction" in lines[0]["text"] and "Fahrenheit" in lines[1]["text"]
    path.write_text(f"{names}\n85,97,,,,,\n")
    assert main(["model", "score", *model, str(path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert "condition from 0.600" in table[0]
    assert "abstained: 2 of 7 vital signs within the last 6 hours, at least 4 are needed" in table[2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("stay.txt", "HR|Resp\n1|2\n", "ends neither in .psv nor in .csv"),
        ("stay.psv", "HR|Resp\n1|2|3\n", "stay.psv:2: 3 columns, the heading has 2"),
        ("stay.psv", "HR|Resp\n1|high\n", "stay.psv:2: resp_rate 'high' is no number"),
        ("stay.psv", "HR|heart_rate\n1|2\n", "two columns hold heart_rate"),
        ("stay.psv", "a|b\n1|2\n", "no column is a vital sign. Name them heart_rate"),
        ("stay.psv", "HR|Resp\n", "no row below the heading"),
        ("stay.psv", "", "no column is a vital sign"),
        ("stay.psv", "HR\n" + "80\n" * 100_001, "more than 100000 rows"),
    ],
)
def test_a_file_that_cannot_be_scored_is_told_by_line(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["model", "score", *model, str(tmp_path / name)]) == 1
    streams = capsys.readouterr()
    assert streams.out == "" and words in streams.err


def test_a_file_or_bundle_that_is_not_there(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "score", *model, str(tmp_path / "absent.psv")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["model", "verify", "--bundle", str(tmp_path / "absent")]) == 1
    assert "not a folder" in capsys.readouterr().err


def test_bundle_and_keys_may_come_from_the_configuration(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'[gateway]\nid = "icu-gw-1"\ndata_dir = "{tmp_path}"\n[control]\nsocket = "{tmp_path}/c.sock"\n'
        f'[[bed]]\nid = "ICU-1"\npreset = "adult"\n[model]\nbundle = "{made[0]}"\ntrusted = ["{made[1]}"]\n'
    )
    assert main(["model", "verify", "--config", str(path)]) == 0
    assert "small-lstm-1.2.3" in capsys.readouterr().out
