"""Simulated patients and devices: a driver that needs no device, and encoders for what real devices send.

`patient` and `simulator` make vital signs; `recorded` reads them from text; `hl7_monitor`, `oximeter` and `wearable`
turn them into the bytes of an HL7 monitor, a serial oximeter and a Bluetooth wearable. The encoders do no input or
output and share no code with the decoders.
"""

from __future__ import annotations

from drivers.contract import Driver
from drivers.sim.simulator import Simulator

DRIVER = Driver(
    name="sim",
    decoder=Simulator,
    links=frozenset({"none", "file", "tcp"}),
    emits=(
        "heart_rate",
        "pulse_rate",
        "spo2",
        "perfusion_index",
        "resp_rate",
        "temp",
        "nibp_sys",
        "nibp_dia",
        "nibp_mean",
        "pleth",
    ),
    silence_s=5.0,
    evidence="No device: a simulated patient for demonstrations, or recorded vital signs as comma-separated text.",
    options=("seed", "profile", "onset_s", "nibp_interval_s", "pleth"),
)
