"""The picture of a what-if and the simulated week it can be tried on: the same bytes every time, from any process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.burden import week

PRESET = 'name = "site"\nextends = "adult"\n[[condition]]\nid = "spo2_low"\npresent = "below 88"\n'


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(PRESET)
    rows = [97] * 60 + [89] * 60 + [97] * 60 + [85] * 90 + [70] * 30 + [97] * 60
    (tmp_path / "table.csv").write_text("time,spo2\n" + "".join(f"{at},{value}\n" for at, value in enumerate(rows)))
    return tmp_path


def words(folder: Path, picture: str) -> list[str]:
    table, preset = str(folder / "table.csv"), str(folder / "site.toml")
    return ["alarms", "whatif", "--preset", preset, "--data", table, "--plot", str(folder / picture)]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_report_gives_the_same_picture_in_every_process(recorded: Path, kind: str) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "edge_agent", *words(recorded, f"{seed}.{kind}")],
            check=True,
            stdout=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if key != "DISPLAY"} | {"PYTHONHASHSEED": seed},
        )
    one, other = ((recorded / f"{seed}.{kind}").read_bytes() for seed in ("1", "2"))
    assert one == other
    assert one.startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_the_picture_says_what_it_shows(recorded: Path) -> None:
    assert main(words(recorded, "out.svg")) == 0
    text = (recorded / "out.svg").read_text()
    for each in (
        "adult (before) and site (after)",
        "spo2_low (medium)",
        "spo2_desaturation (high)",
        "alarms per bed-day",
        "an alarm lasts at least, s",
        "before (3 alarms)",
        "after (2 alarms)",
    ):
        assert each in text, each
    assert str(recorded) not in text
    assert len(text) < 60_000


def test_without_matplotlib_it_says_what_to_install(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(words(recorded, "out.svg")) == 1
    captured = capsys.readouterr()
    assert "pip install 'bedside-edge[report]'" in captured.err
    assert captured.out == ""  # before the work, not after it
    assert main(words(recorded, "out.svg")[:-2]) == 0  # text needs no extra


def test_another_kind_of_picture_is_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words(recorded, "out.gif"))
    assert refused.value.code == 2
    assert ".svg or .png" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_week(tmp_path: Path) -> None:
    for name, seed in (("a.csv", 3), ("b.csv", 3), ("c.csv", 4)):
        assert week.write(tmp_path / name, beds=2, days=0.02, seed=seed) == 2 * 1728
    texts = [(tmp_path / name).read_text() for name in ("a.csv", "b.csv", "c.csv")]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].splitlines()[0] == ",".join(week.COLUMNS)


def test_a_week_as_parquet_holds_what_the_csv_holds(tmp_path: Path) -> None:
    from pyarrow import parquet

    assert week.main([str(tmp_path / "a.parquet"), "--beds", "2", "--days", "0.02"]) == 0
    week.write(tmp_path / "a.csv", beds=2, days=0.02)
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    lines = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert [None if field == "" else field for field in line[1:3]] == [row["bed"], row["patient"]]
        spo2 = line[week.COLUMNS.index("spo2")]
        assert row["spo2"] == (float(spo2) if spo2 else None)


def test_a_week_has_falls_gaps_and_patients_who_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(week, "STAY_DAYS", (0.05, 0.1))
    rows = list(week.bed_rows(1, 0.5, 1))
    spo2 = [row[week.COLUMNS.index("spo2")] for row in rows]
    assert len({row[2] for row in rows}) >= 5
    assert None in spo2
    assert min(value for value in spo2 if value is not None) < 88
    usual = sorted(value for value in spo2 if value is not None)[len(spo2) // 2]
    assert 95 <= usual <= 99
