"""The messages under measurement: ORU^R01 of about 1.5 kB with ten numerics, as a monitor network sends them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from drivers.sim.hl7_monitor import mllp, oru_r01

START = datetime(2026, 1, 1, tzinfo=UTC)
DEVICE = "MON-1"


def message(number: int, bed: int = 0, spo2: float = 97.0) -> bytes:
    """The `number`-th message of a bed, unframed; device time advances a second a message."""
    values = {
        "heart_rate": 70.0 + number % 30,
        "pvc_rate": float(number % 3),
        "spo2": spo2,
        "pulse_rate": 71.0 + number % 30,
        "perfusion_index": 2.1 + number % 10 / 10,
        "resp_rate": 12.0 + number % 9,
        "nibp_sys": 118.0 + number % 12,
        "nibp_dia": 76.0,
        "nibp_mean": 90.0,
        "temp": 36.6 + number % 5 / 10,
    }
    return oru_r01(
        values, location=f"ICU^^{bed}", control_id=f"M{bed}-{number}", at=START + timedelta(seconds=number),
        patient_id=f"P{bed}", device=DEVICE,
    )  # fmt: skip


def frame(number: int, bed: int = 0, spo2: float = 97.0) -> bytes:
    """The same in its MLLP frame."""
    return mllp(message(number, bed, spo2))
