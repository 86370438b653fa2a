"""The public originals: fetch them, prove them by their checksums, turn them into one Parquet file.

    python -m models_tflite.training.originals fetch FOLDER
    python -m models_tflite.training.originals verify FOLDER
    python -m models_tflite.training.originals convert FOLDER FILE.parquet

The data set is PhysioNet/CinC Challenge 2019, version 1.0.0, 40,336 files of one stay each; `wget -r -N -c -np` on its
address does what `fetch` does, and a folder filled by hand will do. The checksums are those that PhysioNet publishes
with the files, in SHA256SUMS.txt at the top of the data set; none is repeated here. `fetch` can be called again after
an interruption and asks only for what is missing or wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from models_tflite.training.data import COLUMN, LABORATORY, DataError, number_of, read_psv, site_of

ADDRESS = "https://physionet.org/files/challenge-2019/1.0.0/"
SUMS = "SHA256SUMS.txt"
_LINE = re.compile(r"([0-9a-f]{64})[ *]+(\S+)")
_STAY = re.compile(r"training/training_set[AB]/p[0-9]{6}\.psv")
_STAY_COLUMNS = ("Age", "Gender", "Unit1", "Unit2", "HospAdmTime", "ICULOS", "SepsisLabel")
_TABLE = (*COLUMN.values(), "EtCO2", *LABORATORY, *_STAY_COLUMNS)
_WHOLE = ("Gender", "ICULOS", "SepsisLabel")  # whole numbers
_PARALLEL = 4  # connections: polite to a public server, and as quick as it answers
_PATIENCE_S = 60
_FILES = 2000  # stays at a time, so that the memory stays small


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked; returns the exit code: 0, or 1 when files are missing or wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m models_tflite.training.originals", description=(__doc__ or "").split("\n")[0]
    )
    doing = parser.add_subparsers(dest="what", required=True)
    for what, about in (("fetch", "download, or go on"), ("verify", "compare with SHA256SUMS.txt")):
        one = doing.add_parser(what, help=about)
        one.add_argument("folder", type=Path)
        one.add_argument("--address", default=ADDRESS, help="where the data set lies")
    one = doing.add_parser("convert", help="write one Parquet file")
    one.add_argument("folder", type=Path)
    one.add_argument("file", type=Path)
    asked = parser.parse_args(arguments)
    try:
        if asked.what == "fetch":
            print(f"{fetch(asked.folder, asked.address)} files fetched")
        if asked.what != "convert":
            print(f"{verify(asked.folder)} files are as published")
        else:
            print(f"{convert(asked.folder, asked.file)} rows written to {asked.file}")
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def published(folder: Path) -> dict[str, str]:
    """The published SHA-256 of every stay's file, by its path in the data set. Raises: DataError without the list."""
    path = folder / SUMS
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it from {ADDRESS}{SUMS}") from error
    found = {match[2]: match[1] for line in text.splitlines() if (match := _LINE.fullmatch(line.strip()))}
    stays = {name: digest for name, digest in found.items() if _STAY.fullmatch(name)}
    if not stays:
        raise DataError(f"{path}: lists no file like training/training_setA/p000001.psv")
    return stays


def wrong(folder: Path) -> list[str]:
    """The published files that are missing or differ from their checksum."""
    return [name for name, digest in published(folder).items() if _digest(folder / name) != digest]


def verify(folder: Path) -> int:
    """How many files were found as published. Raises: DataError that names the first that was not."""
    bad, count = wrong(folder), len(published(folder))
    if bad:
        raise DataError(f"{folder}: {len(bad)} of {count} files are missing or not as published, the first is {bad[0]}")
    return count


def fetch(folder: Path, address: str = ADDRESS) -> int:
    """Download what is missing or wrong; returns how many files that was.

    Raises: DataError when the server cannot be reached or gives something else than it published.
    """
    if not address.startswith(("https://", "http://127.0.0.1")):
        raise DataError(f"{address}: the data set is fetched over https only")
    address = address if address.endswith("/") else f"{address}/"
    if not (folder / SUMS).exists():
        _put(folder / SUMS, _get(address + SUMS))
    sums, missing = published(folder), wrong(folder)

    def one(name: str) -> None:
        content = _get(address + name)
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise DataError(f"{address}{name}: is not what {SUMS} says; fetch {SUMS} anew or try later")
        _put(folder / name, content)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        asked = [pool.submit(one, name) for name in missing]
        try:
            for each in asked:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(missing)


def convert(folder: Path, file: Path) -> int:
    """Write all stays of the folder into one Parquet file that `data.read` takes; returns the number of rows."""
    import pyarrow
    from pyarrow import parquet

    stays = sorted(folder.rglob("*.psv"), key=lambda path: number_of(path.stem, path))
    if not stays:
        raise DataError(f"{folder}: no .psv file in it")
    kinds = [(name, pyarrow.int16() if name in _WHOLE else pyarrow.float32()) for name in _TABLE]
    schema = pyarrow.schema([("pid", pyarrow.int32()), ("Site", pyarrow.string()), *kinds])
    total = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for begin in range(0, len(stays), _FILES):
            blocks = [(path, read_psv(path, list(_TABLE))) for path in stays[begin : begin + _FILES]]
            rows = np.concatenate([block for _, block in blocks])
            hours = [len(block) for _, block in blocks]
            columns: dict[str, Any] = {
                "pid": np.repeat([number_of(path.stem, path) for path, _ in blocks], hours),
                "Site": np.repeat([site_of(path) for path, _ in blocks], hours),
            }
            for index, name in enumerate(_TABLE):
                values = rows[:, index]
                columns[name] = pyarrow.array(values, schema.field(name).type, mask=np.isnan(values), safe=False)
            writer.write_table(pyarrow.table(columns, schema=schema))
            total += len(rows)
    return total


def _get(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE_S) as answer:  # noqa: S310 - the scheme was looked at
            content: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise DataError(f"{address}: cannot be fetched ({error})") from error
    return content


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
