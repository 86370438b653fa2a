"""Stays read from tables and from originals: the same arrays, clear refusals, a split that belongs to the patient."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from models_tflite import features
from models_tflite.training import baselines, data, originals


def psv(path: Path, hours: int, onset: int | None, seed: int) -> None:
    """A made-up stay as an original file, with all columns of the data set."""
    chance = np.random.default_rng(seed)
    lines = ["|".join(originals._TABLE)]
    for hour in range(1, hours + 1):
        row = []
        for name in originals._TABLE:
            if name == "ICULOS":
                row.append(str(hour))
            elif name == "SepsisLabel":
                row.append(str(int(onset is not None and hour >= onset)))
            elif name in ("Gender", "Unit1", "Unit2"):
                row.append(str(seed % 2) if name == "Gender" else "NaN")
            elif name == "Age":
                row.append(f"{40 + seed}.5")
            else:
                row.append("NaN" if chance.random() < 0.4 else f"{chance.uniform(30, 120):.1f}")
        lines.append("|".join(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four made-up stays in the layout of the data set, with its list of checksums."""
    top = tmp_path / "originals"
    for number, (name, hours, onset) in enumerate(
        (("A/p000001", 20, None), ("A/p000017", 9, 5), ("B/p100003", 31, 30), ("B/p100004", 1, None))
    ):
        psv(top / "training" / f"training_set{name}.psv", hours, onset, number)
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(top).as_posix()}"
        for path in top.rglob("*.psv")
    ]
    (top / originals.SUMS).write_text("\n".join(["0" * 64 + " LICENSE.txt", *sums]) + "\n")
    return top


def test_originals_and_their_table_give_the_same_stays(folder: Path, tmp_path: Path) -> None:
    stays = data.read(folder, labs=True)
    assert originals.main(["convert", str(folder), str(tmp_path / "all.parquet")]) == 0
    again = data.read(tmp_path / "all.parquet", labs=True)
    for name in data.Stays.__dataclass_fields__:
        assert np.array_equal(getattr(stays, name), getattr(again, name), equal_nan=name not in ("site",)), name
    assert stays.pid.tolist() == [1, 17, 100003, 100004] and stays.site.tolist() == ["A", "A", "B", "B"]
    assert stays.septic.tolist() == [False, True, True, False] and stays.rows == 61
    one = stays.stay(1)
    assert one.vitals.shape == (9, 7) and one.labs is not None and one.labs.shape == (9, 26)
    assert one.label.tolist() == [0] * 4 + [1] * 5 and one.age == 41.5 and one.sex == 1.0
    first_line = (folder / "training/training_setA/p000017.psv").read_text().splitlines()[1].split("|")
    for place, column in enumerate(data.COLUMN.values()):
        assert one.vitals[0, place] == pytest.approx(float(first_line[originals._TABLE.index(column)]), nan_ok=True)
    assert tuple(data.COLUMN) == features.VITALS


def test_rows_in_any_order_are_put_in_order(folder: Path, tmp_path: Path) -> None:
    originals.convert(folder, tmp_path / "all.parquet")
    table = parquet.read_table(tmp_path / "all.parquet")
    mixed = table.take(np.random.default_rng(1).permutation(table.num_rows))
    text = pyarrow.array([f"p{value:06d}" for value in mixed["pid"].to_pylist()])  # ids as text will do
    parquet.write_table(mixed.set_column(0, "pid", text), tmp_path / "mixed.parquet")
    want, found = data.read(tmp_path / "all.parquet"), data.read(tmp_path / "mixed.parquet")
    assert np.array_equal(want.vitals, found.vitals, equal_nan=True) and np.array_equal(want.first, found.first)
    assert np.array_equal(want.site, found.site) and np.array_equal(want.label, found.label)


def test_hours_that_are_skipped_are_told(folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    originals.convert(folder, tmp_path / "all.parquet")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert data.read(tmp_path / "all.parquet").rows == 61 and not recwarn
    parquet.write_table(pyarrow.concat_tables([table.slice(0, 4), table.slice(6)]), tmp_path / "gap.parquet")
    with pytest.warns(UserWarning, match=r"gap\.parquet: 1 stays skip hours"):
        assert data.read(tmp_path / "gap.parquet").rows == 59


def test_select_and_windows(folder: Path) -> None:
    stays = data.read(folder)
    some = stays.select(np.array([2, 1]))
    assert some.pid.tolist() == [100003, 17] and np.diff(some.first).tolist() == [31, 9]
    assert np.array_equal(some.stay(0).vitals, stays.stay(2).vitals, equal_nan=True)
    assert np.array_equal(some.stay(1).hour, stays.stay(1).hour)
    window = data.windows(stays, np.array([20, 28]), 24)  # the first and the last hour of the second stay
    assert np.isnan(window[0, :-1]).all() and np.array_equal(window[0, -1], stays.vitals[20], equal_nan=True)
    assert np.isnan(window[1, :15]).all() and np.array_equal(window[1, 15:], stays.vitals[20:29], equal_nan=True)


def test_the_split_belongs_to_the_patient_and_has_the_shares_that_are_told() -> None:
    assert [data.share_of(pid) for pid in (2, 17, 100003, 119999)] == ["train", "test", "validation", "train"]
    of = np.array([data.share_of(pid) for pid in range(20_000)])
    assert [round(float((of == name).mean()), 2) for name in data.SHARES] == [0.7, 0.1, 0.2]
    stays = baselines.example()
    parts = data.split(stays)
    assert sorted(pid for part in parts.values() for pid in part.pid) == stays.pid.tolist()
    assert all(data.share_of(int(pid)) == name for name, part in parts.items() for pid in part.pid)
    assert data.describe(stays).count("\n") >= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["Resp", "Age"]), "lacks the columns Resp, Age"),
        (lambda table: table.slice(0, 0), "holds no rows"),
        (lambda table: pyarrow.concat_tables([table, table.slice(0, 1)]), "the same hour twice"),
        (lambda table: table.set_column(0, "pid", pyarrow.array(["x9"] * table.num_rows)), "'x9' in column pid"),
        (lambda table: table.set_column(2, "HR", pyarrow.array(["high"] * table.num_rows)), "HR does not hold numbers"),
        (lambda table: table.set_column(42, "SepsisLabel", pyarrow.array([2] * table.num_rows)), "other than 0 and 1"),
        (lambda table: table.set_column(42, "SepsisLabel", pyarrow.nulls(table.num_rows, pyarrow.int16())), "is empty"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(folder: Path, tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "all.parquet"
    originals.convert(folder, path)
    parquet.write_table(change(parquet.read_table(path)), path)
    with pytest.raises(data.DataError, match=said) as refused:
        data.read(path)
    assert str(path) in str(refused.value)


def test_what_is_no_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="no such file"):
        data.read(tmp_path / "none.parquet")
    with pytest.raises(data.DataError, match=r"no \.psv file"):
        data.read(tmp_path)
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(data.DataError, match="cannot be read as Parquet"):
        data.read(tmp_path / "text.parquet")
    (tmp_path / "p000003.psv").write_text("HR|O2Sat\n80|97\n")
    with pytest.raises(data.DataError, match=r"p000003\.psv: lacks the columns Temp"):
        data.read(tmp_path)
    psv(tmp_path / "p000003.psv", 3, None, 1)
    text = (tmp_path / "p000003.psv").read_text().splitlines()
    (tmp_path / "p000003.psv").write_text("\n".join([*text[:2], "80|fast"]))
    with pytest.raises(data.DataError, match=r"p000003\.psv: line 3 is not 41 numbers"):
        data.read(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The made-up data set behind a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, directory=str(folder), **more)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def test_fetching_proves_every_file_and_goes_on_where_it_stopped(
    folder: Path, server: str, tmp_path: Path, capsys
) -> None:
    there = tmp_path / "fetched"
    assert originals.main(["fetch", str(there), "--address", server]) == 0
    assert np.array_equal(data.read(there).vitals, data.read(folder).vitals, equal_nan=True)
    victim = there / "training/training_setB/p100003.psv"
    victim.write_bytes(victim.read_bytes().replace(b"1", b"2", 1))
    (there / "training/training_setA/p000001.psv").unlink()
    assert originals.main(["verify", str(there)]) == 1
    assert "2 of 4 files are missing or not as published" in capsys.readouterr().err
    assert originals.fetch(there, server) == 2
    assert originals.verify(there) == 4
    victim.unlink()
    (folder / "training/training_setB/p100003.psv").write_text("not what was published")
    with pytest.raises(data.DataError, match=r"p100003\.psv: is not what SHA256SUMS\.txt says"):
        originals.fetch(there, server)
    assert not victim.exists()


def test_fetching_refuses_what_it_cannot_prove(tmp_path: Path, server: str) -> None:
    with pytest.raises(data.DataError, match="over https only"):
        originals.fetch(tmp_path, "ftp://example.org/")
    with pytest.raises(data.DataError, match="cannot be fetched"):
        originals.fetch(tmp_path, f"{server}/nowhere/")
    (tmp_path / originals.SUMS).write_text("0" * 64 + " ../../etc/passwd\n")
    with pytest.raises(data.DataError, match="lists no file like"):
        originals.fetch(tmp_path, server)
