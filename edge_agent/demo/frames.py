"""Rows of vital signs, and what each simulated device makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from drivers.sim import hl7_monitor, intellivue_monitor, oximeter
from drivers.sim.patient import Patient
from drivers.sim.recorded import RecordedError, Row, rows

OXIMETER_FORMATS = ("2", "7", "8", "ascii")
_WHOLE = {"oximeter": ("spo2", "pulse_rate"), "wearable": ("heart_rate",)}  # devices that know whole numbers only
CARRIES = {**_WHOLE, "intellivue": intellivue_monitor.CARRIED}  # the HL7 monitor carries every term

_PACKETS_A_SECOND = 3  # of formats 2 and 7
_PLETH_HZ = 75


def recorded_rows(path: Path, seconds: float | None = None) -> list[Row]:
    """The rows of a file, only those of its first `seconds` when given.

    Raises: RecordedError with file and line when any row cannot be used, OSError when the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = list(rows(file))
    except (RecordedError, UnicodeDecodeError) as error:
        raise RecordedError(f"{path}: {error}") from error
    if not found:
        raise RecordedError(f"{path}: holds no row; the first line names the columns, then one line a moment")
    return [row for row in found if seconds is None or row.at_s - found[0].at_s < seconds]


def simulated_rows(profile: str, seed: int, seconds: float | None = None) -> Iterator[Row]:
    """A row a second of a simulated patient, endless without `seconds`. Raises: ValueError for an unknown profile."""
    patient = Patient(seed, profile)
    return (Row(float(second), patient.step()) for second in _seconds(seconds))


def _seconds(seconds: float | None) -> Iterable[int]:
    return count() if seconds is None else range(max(1, round(seconds)))


def left_out(device: str, columns: Iterable[str]) -> tuple[list[str], bool]:
    """Columns that the device does not carry, and whether it carries any of them."""
    columns = list(columns)
    carried = CARRIES.get(device)
    if carried is None:
        return [], bool(columns)
    return [name for name in columns if name not in carried], any(name in carried for name in columns)


def hl7_messages(
    source: Iterable[Row], *, location: str, start: datetime, series: str, patient_id: str = ""
) -> Iterator[tuple[float, bytes]]:
    """An HL7 message without frame for each row, with its time; the control identifiers count up behind `series`."""
    for number, row in enumerate(source, 1):
        at = start + timedelta(seconds=row.at_s)
        yield (
            row.at_s,
            hl7_monitor.oru_r01(
                row.values, location=location, control_id=f"{series}{number}", at=at, patient_id=patient_id
            ),
        )


def oximeter_bytes(source: Iterable[Row], format_name: str) -> Iterator[tuple[float, bytes]]:
    """What an oximeter sends for each row, with its time: three packets of format 2 or 7, else one packet or line."""
    patient = Patient()  # the recording has no pulse wave: one of the right rate is made up
    for row in source:
        yield row.at_s, oximeter_second(row.values, format_name, patient)


def oximeter_second(values: Mapping[str, float | None], format_name: str, patient: Patient) -> bytes:
    """One second of an oximeter's line with the pulse wave of `patient`."""
    spo2, pulse = values.get("spo2"), values.get("pulse_rate")
    if format_name == "8":
        return oximeter.packet_8(spo2, pulse)
    if format_name == "ascii":
        return oximeter.line(spo2, pulse)
    packet, full_scale = (oximeter.packet_2, 255) if format_name == "2" else (oximeter.packet_7, 65535)
    wave: Sequence[int] = patient.pleth(pulse, _PLETH_HZ, full_scale)
    size = _PLETH_HZ // _PACKETS_A_SECOND
    return b"".join(packet(spo2, pulse, pleth=wave[first : first + size]) for first in range(0, _PLETH_HZ, size))


def rounded(source: Iterable[Row], device: str) -> int:
    """How many values the device cannot send as they are, because it knows whole numbers only."""
    carried = _WHOLE.get(device, ())
    return sum(value is not None and value != round(value) for row in source for value in map(row.values.get, carried))
