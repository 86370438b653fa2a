"""The stays that training and evaluation read: hourly vital signs, age, sex and the label, many stays end to end.

Read from a Parquet table (one row per hour) or from the folder of the public original (one .psv file per stay). Both
give the same arrays. Nothing is filled, smoothed or cut here: a value that was not measured in an hour is NaN.

Split. A stay belongs to training (70 %), validation (10 %) or test (20 %) by a hash of its patient id alone, so that
the share is the same in every table that holds the patient, whatever else is in it. The test share is never used for
a choice.

Source: PhysioNet/Computing in Cardiology Challenge 2019, doi 10.13026/v64v-d857, CC BY 4.0. Reyna and others, Early
prediction of sepsis from clinical data, Crit Care Med 2020;48(2):210-217.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

COLUMN = {  # vital sign -> its column; the order is that of models_tflite.features.VITALS
    "heart_rate": "HR",
    "spo2": "O2Sat",
    "temperature": "Temp",
    "systolic": "SBP",
    "mean_pressure": "MAP",
    "diastolic": "DBP",
    "resp_rate": "Resp",
}
LABORATORY = (
    "BaseExcess", "HCO3", "FiO2", "pH", "PaCO2", "SaO2", "AST", "BUN", "Alkalinephos", "Calcium", "Chloride",
    "Creatinine", "Bilirubin_direct", "Glucose", "Lactate", "Magnesium", "Phosphate", "Potassium", "Bilirubin_total",
    "TroponinI", "Hct", "Hgb", "PTT", "WBC", "Fibrinogen", "Platelets",
)  # fmt: skip
_ROW = ("Age", "Gender", "ICULOS", "SepsisLabel")
SHARES = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}  # tenths of the hash
_SALT = "bedside-edge sepsis split 1:"  # so that no other split by hash of the same ids lines up with this one


class DataError(ValueError):
    """A table or folder that cannot be read as stays; the message says where and why."""


class Stay(NamedTuple):
    """One stay: `vitals` of shape (T, 7), hours since admission and labels of shape (T,)."""

    pid: int
    site: str
    age: float
    sex: float  # 1 male, 0 female, NaN unknown
    hour: NDArray[np.int16]
    label: NDArray[np.int8]
    vitals: Floats
    labs: Floats | None


@dataclass(frozen=True, slots=True)
class Stays:
    """Many stays: S per-stay arrays, and N per-row arrays in which stay i has the rows `first[i]` to `first[i + 1]`."""

    pid: Ints  # (S,)
    site: NDArray[np.str_]  # (S,) hospital
    age: Floats  # (S,) years or NaN
    sex: Floats  # (S,) 1 male, 0 female, NaN unknown
    first: Ints  # (S + 1,)
    hour: NDArray[np.int16]  # (N,) hours since admission to intensive care
    label: NDArray[np.int8]  # (N,) 1 from six hours before onset
    vitals: Floats  # (N, 7) in the order of COLUMN, NaN where not measured
    labs: Floats | None = None  # (N, 26) in the order of LABORATORY; for the teacher only

    def __len__(self) -> int:
        return len(self.pid)

    def __iter__(self) -> Iterator[Stay]:
        return (self.stay(index) for index in range(len(self)))

    @property
    def rows(self) -> int:
        """Hours in all stays together."""
        return len(self.hour)

    @property
    def of_row(self) -> Ints:
        """The index of the stay to which each row belongs, shape (N,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    @property
    def septic(self) -> NDArray[np.bool_]:
        """Whether a stay has a row with the label, shape (S,)."""
        return np.add.reduceat(self.label.astype(np.int64), self.first[:-1]) > 0 if len(self) else np.zeros(0, bool)

    def stay(self, index: int) -> Stay:
        """One stay, as views."""
        rows = slice(int(self.first[index]), int(self.first[index + 1]))
        return Stay(
            int(self.pid[index]),
            str(self.site[index]),
            float(self.age[index]),
            float(self.sex[index]),
            self.hour[rows],
            self.label[rows],
            self.vitals[rows],
            None if self.labs is None else self.labs[rows],
        )

    def select(self, chosen: NDArray[Any]) -> Stays:
        """The stays of a mask or of indices, copied."""
        index = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else np.asarray(chosen)
        length = np.diff(self.first)[index]
        first = np.concatenate(([0], np.cumsum(length)))
        rows = np.repeat(self.first[index] - first[:-1], length) + np.arange(first[-1])
        return Stays(
            self.pid[index],
            self.site[index],
            self.age[index],
            self.sex[index],
            first,
            self.hour[rows],
            self.label[rows],
            self.vitals[rows],
            None if self.labs is None else self.labs[rows],
        )


def read(path: Path, *, labs: bool = False) -> Stays:
    """The stays of a Parquet file, or of a folder of .psv files.

    Raises: DataError when there is none, a column is missing, or a value is not what its column holds.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return _read_folder(path, labs) if path.is_dir() else _read_table(path, labs)


def share_of(pid: int) -> str:
    """The share to which a patient belongs: train, validation or test."""
    tenth = int.from_bytes(hashlib.sha256(f"{_SALT}{pid}".encode()).digest()[:8], "big") % 10
    return next(name for name, tenths in SHARES.items() if tenth in tenths)


def shares(stays: Stays) -> NDArray[np.str_]:
    """The share of every stay, shape (S,)."""
    return np.array([share_of(int(pid)) for pid in stays.pid], dtype="<U10")


def split(stays: Stays) -> dict[str, Stays]:
    """The stays of each share."""
    of_stay = shares(stays)
    return {name: stays.select(of_stay == name) for name in SHARES}


def describe(stays: Stays) -> str:
    """Stays, rows and prevalence per share and hospital, as a table in Markdown."""
    of_stay, septic, length = shares(stays), stays.septic, np.diff(stays.first)
    lines = ["| share | hospital | stays | septic | rows | rows labelled |", "|---|---|---|---|---|---|"]
    labelled = np.add.reduceat(stays.label.astype(np.int64), stays.first[:-1])
    for name in SHARES:
        for site in sorted(set(stays.site.tolist())):
            here = (of_stay == name) & (stays.site == site)
            if not here.any():
                continue
            lines.append(
                f"| {name} | {site} | {here.sum()} | {septic[here].sum()} ({septic[here].mean():.1%}) "
                f"| {length[here].sum()} | {labelled[here].sum() / length[here].sum():.2%} |"
            )
    return "\n".join(lines)


def windows(stays: Stays, rows: NDArray[Any], hours: int) -> Floats:
    """The last `hours` rows up to and with each of `rows`, NaN before the stay begins, shape (len(rows), hours, 7)."""
    rows = np.asarray(rows)
    begin = stays.first[np.searchsorted(stays.first, rows, "right") - 1]
    index = rows[:, None] - np.arange(hours - 1, -1, -1)
    within = index >= begin[:, None]
    return np.where(within[..., None], stays.vitals[np.maximum(index, 0)], np.float32(np.nan))


def _read_table(path: Path, labs: bool) -> Stays:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise DataError(f"{path}: pyarrow, which reads Parquet, cannot be loaded ({error})") from error
    wanted = ["pid", "Site", *COLUMN.values(), *_ROW, *(LABORATORY if labs else ())]
    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path}: lacks the columns {', '.join(missing)}")
        if not file.metadata.num_rows:
            raise DataError(f"{path}: holds no rows")
        table = file.read(columns=wanted)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error

    def numbers(name: str) -> Floats:
        try:
            return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: column {name} does not hold numbers ({error})") from error

    if table["pid"].null_count:
        raise DataError(f"{path}: column pid is empty in {table['pid'].null_count} rows")
    known = table["pid"].combine_chunks().dictionary_encode()
    pid = np.array([number_of(value, path) for value in known.dictionary.to_pylist()], dtype=np.int64)
    code = known.indices.to_numpy()
    named = table["Site"].cast("string").combine_chunks().dictionary_encode()
    if named.null_count:
        raise DataError(f"{path}: column Site is empty in {named.null_count} rows")
    site = np.asarray(named.dictionary.to_pylist(), dtype=np.str_)[named.indices.to_numpy()]
    columns = {name: numbers(name) for name in wanted[2:]}
    return _assemble(path, pid[code], site, columns, labs)


def number_of(value: object, path: Path) -> int:
    """A patient id as a number: 17 of 17 or p000017. Raises: DataError."""
    try:
        return int(str(value).removeprefix("p"))
    except ValueError:
        raise DataError(f"{path}: {value!r} in column pid is not a patient id like 17 or p000017") from None


def _read_folder(path: Path, labs: bool) -> Stays:
    files = sorted(path.rglob("*.psv"))
    if not files:
        raise DataError(f"{path}: no .psv file in it")
    wanted = [*COLUMN.values(), *_ROW, *(LABORATORY if labs else ())]
    pids, sites, blocks = [], [], []
    for file in files:
        block = read_psv(file, wanted)
        blocks.append(block)
        pids.append(np.full(len(block), number_of(file.stem, file)))
        sites.append(np.full(len(block), site_of(file)))
    rows = np.concatenate(blocks)
    columns = {name: rows[:, index] for index, name in enumerate(wanted)}
    return _assemble(path, np.concatenate(pids), np.concatenate(sites), columns, labs)


def site_of(file: Path) -> str:
    """The hospital of a .psv file: from a folder like training_setB, else from its number (B from p100001)."""
    folder = file.parent.name
    if folder.startswith("training_set") and len(folder) == len("training_setA"):
        return folder[-1]
    return "B" if number_of(file.stem, file) > 100_000 else "A"


def read_psv(file: Path, wanted: list[str]) -> Floats:
    """The wanted columns of one original file, shape (hours, columns), NaN where empty. Raises: DataError."""
    header, *lines = file.read_text(encoding="ascii", errors="replace").split("\n")
    names = header.strip().split("|")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"{file}: lacks the columns {', '.join(missing)}")
    where = [names.index(name) for name in wanted]
    rows = []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        fields = line.strip().split("|")
        try:
            rows.append([float(fields[index]) for index in where])
        except (ValueError, IndexError):
            raise DataError(f"{file}: line {number} is not {len(names)} numbers") from None
    if not rows:
        raise DataError(f"{file}: holds no rows")
    return np.array(rows, dtype=np.float32)


def _assemble(path: Path, pid: Ints, site: NDArray[np.str_], columns: dict[str, Floats], labs: bool) -> Stays:
    hour, label = columns["ICULOS"], columns["SepsisLabel"]
    for name, values in (("ICULOS", hour), ("SepsisLabel", label)):
        if not np.isfinite(values).all():
            raise DataError(f"{path}: column {name} is empty in {int((~np.isfinite(values)).sum())} rows")
    if not np.isin(label, (0.0, 1.0)).all():
        raise DataError(f"{path}: column SepsisLabel holds values other than 0 and 1")
    order = np.lexsort((hour, pid))
    pid, hour, site = pid[order], hour[order], site[order]
    begins = np.flatnonzero(np.diff(pid, prepend=-1))
    if np.any((np.diff(hour) <= 0) & (np.diff(pid) == 0)):
        raise DataError(f"{path}: a stay holds the same hour twice")
    gaps = np.flatnonzero((np.diff(hour) > 1) & (np.diff(pid) == 0))
    if len(gaps):
        what = f"{path}: {len(np.unique(pid[gaps]))} stays skip hours; their rows are taken as one after another"
        warnings.warn(what, stacklevel=2)
    male = columns["Gender"][order][begins]
    return Stays(
        pid=pid[begins],
        site=site[begins],
        age=columns["Age"][order][begins],
        sex=male,
        first=np.concatenate((begins, [len(pid)])),
        hour=hour.astype(np.int16),
        label=label[order].astype(np.int8),
        vitals=np.stack([columns[name][order] for name in COLUMN.values()], axis=1),
        labs=np.stack([columns[name][order] for name in LABORATORY], axis=1) if labs else None,
    )
