"""The demo's bedside: simulated patients, the devices on them, and what happens to them at fixed seconds.

All beds but the last are on a monitor that reports them over one HL7 connection. The last bed has an oximeter on a
serial line and a heart-rate strap. The first bed deteriorates: its SpO2 falls by FALL_A_SECOND to LOWEST_SPO2 and
recovers later. The monitor tells of its low battery, a technical alarm of its own. The oximeter's cable is pulled and
put back. With one bed only, all of it happens there. A person may pull and plug too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from drivers.sim.hl7_monitor import oru_r01, oru_r40
from drivers.sim.patient import Patient
from edge_agent.demo import frames
from edge_agent.demo.monitor import Hl7Monitor
from edge_agent.demo.pace import paced
from edge_agent.demo.radio import VirtualRadio, Wearable
from edge_agent.demo.wire import PtyWire

FALL_A_SECOND = 3.0  # %, quicker than any patient, so that the demo needs no patience
LOWEST_SPO2 = 74.0  # under the desaturation limit of every built-in preset
STRAP_NAME = "HRM-SIM"
_NIBP_EVERY_S = 60.0
_WAITING_MESSAGES = 600  # a monitor keeps some minutes for a gateway that does not acknowledge, then drops the oldest

Values = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Script:
    """What happens when, in seconds since the devices began to send."""

    battery_s: float = 6.0
    falls_s: float = 15.0
    recovers_s: float = 75.0
    pulled_s: float = 30.0
    plugged_s: float = 38.0
    charged_s: float = 90.0
    observes_s: float = 10.0  # by then the monitor has named the patient and the cuff has measured
    acknowledges_s: float = 29.0  # by then the HIGH has sounded for some seconds
    pauses_s: float = 33.0
    resumes_s: float = 42.0


def bed_names(count_of_beds: int) -> list[str]:
    """Names of the demo's beds."""
    return [f"ICU-{number}" for number in range(1, count_of_beds + 1)]


class Patients:
    """The patients of all beds; `step` gives each bed's vital signs of the next second."""

    def __init__(self, beds: list[str], script: Script) -> None:
        self._script, self._sick = script, beds[0]
        self._patients = {
            bed: Patient(seed, nibp_interval_s=_NIBP_EVERY_S) for seed, bed in enumerate(beds, 1)
        }  # one seed a bed: every demo shows the same patients

    def step(self, second: float) -> dict[str, Values]:
        """Vital signs by bed."""
        values = {bed: patient.step() for bed, patient in self._patients.items()}
        own = values[self._sick]["spo2"]
        if own is not None:
            values[self._sick]["spo2"] = self._course(second, own)
        return values

    def wave_of(self, bed: str) -> Patient:
        """Who makes the pulse wave of a bed."""
        return self._patients[bed]

    def _course(self, second: float, own: float) -> float:
        script = self._script
        fallen = max(LOWEST_SPO2, own - FALL_A_SECOND * max(0.0, second - script.falls_s))
        risen = LOWEST_SPO2 + FALL_A_SECOND * max(0.0, second - script.recovers_s)
        return min(own, max(fallen, risen))


class Ward:
    """The devices of the demo, an async context manager in which their lines are up; `run` makes them send."""

    def __init__(
        self,
        beds: list[str],
        mllp_port: int,
        serial_path: Path,
        script: Script,
        tell: Callable[[str], None],
    ) -> None:
        self.monitored = beds[:-1] or beds
        self.oximeter_bed = beds[-1]
        self.sick_bed = beds[0]
        self.spo2_sent: list[tuple[int, float]] = []  # (CLOCK_MONOTONIC in ns, value) of the sick bed
        self.pulled_ns: int | None = None
        self.plugged_ns: int | None = None
        self.not_sent = 0  # messages that the monitor dropped
        self._patients = Patients(beds, script)
        self._script, self._tell = script, tell
        self._monitor = Hl7Monitor("127.0.0.1", mllp_port)
        self._messages: asyncio.Queue[bytes] = asyncio.Queue(_WAITING_MESSAGES)
        self._wire = PtyWire(serial_path)
        self._radio = VirtualRadio()
        self._stack = AsyncExitStack()
        self._strap: Wearable | None = None
        self._battery_low = False
        self._numbers = count(1)

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            await stack.enter_async_context(self._radio)
            self._strap = Wearable(self._radio, STRAP_NAME)
            await self._strap.appear()
            self._wire.plug()
            stack.callback(self._wire.pull)
            stack.push_async_callback(self._monitor.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def hci(self) -> str:
        """What the strap's link says behind `hci=`."""
        return self._radio.hci

    @property
    def acknowledged(self) -> int:
        """HL7 messages the gateway has acknowledged."""
        return self._monitor.acknowledged

    async def run(self) -> None:
        """Send, a second a second, until cancelled."""
        monitor = asyncio.create_task(self._send_messages())
        try:
            async for second in paced((float(number), number) for number in count()):
                self._happen(second)
                await self._send(self._patients.step(second))
                if monitor.done():
                    await monitor  # raises what ended it
        finally:
            monitor.cancel()
            await asyncio.gather(monitor, return_exceptions=True)

    async def _send(self, values: dict[str, Values]) -> None:
        now = datetime.now().astimezone()
        sick = values[self.sick_bed]["spo2"]
        if sick is not None:
            self.spo2_sent.append((time.monotonic_ns(), sick))
        for bed in self.monitored:
            self._queue(self._message(bed, values[bed], now))
        last = values[self.oximeter_bed]
        self._wire.send(frames.oximeter_second(last, "2", self._patients.wave_of(self.oximeter_bed)))
        rate = last.get("heart_rate")
        if self._strap is not None and rate is not None:
            await self._strap.notify_heart_rate(round(rate))

    def _message(self, bed: str, values: Values, at: datetime) -> bytes:
        if bed == self.oximeter_bed:  # one bed only: what the other devices measure, the monitor does not
            values = {name: value for name, value in values.items() if name not in ("spo2", "pulse_rate", "heart_rate")}
        number = next(self._numbers)
        return oru_r01(values, location=location(bed), control_id=f"DEMO{number}", at=at, patient_id=f"SIM-{bed}")

    def _queue(self, message: bytes) -> None:
        if self._messages.full():
            self._messages.get_nowait()
            self.not_sent += 1
        self._messages.put_nowait(message)

    async def _send_messages(self) -> None:
        while True:
            await self._monitor.send(await self._messages.get())

    def pull_or_plug(self) -> None:
        """Pull the oximeter's cable, or put it back."""
        if self._wire.plugged:
            self._tell(f"{self.oximeter_bed}: the oximeter's cable is pulled")
            self.pulled_ns = time.monotonic_ns()
            self._wire.pull()
        else:
            self._tell(f"{self.oximeter_bed}: the oximeter's cable is put back")
            self.plugged_ns = time.monotonic_ns()
            self._wire.plug()

    def battery(self, *, low: bool | None = None) -> None:
        """Let the monitor say that its battery is low, or well again; without `low`, the other of the two."""
        self._battery_low = not self._battery_low if low is None else low
        self._tell(f"{self.sick_bed}: the monitor's battery is {'low' if self._battery_low else 'charged'}")
        self._queue(
            oru_r40(
                location=location(self.sick_bed), control_id=f"DEMO{next(self._numbers)}",
                at=datetime.now().astimezone(), alert_id="battery", phase="start" if self._battery_low else "end",
                text="Monitor: battery low", patient_id=f"SIM-{self.sick_bed}",
            )
        )  # fmt: skip

    def _happen(self, second: int) -> None:
        script = self._script
        if second == script.battery_s:
            self.battery(low=True)
        elif second == script.charged_s and self._battery_low:
            self.battery(low=False)
        if second == script.falls_s:
            self._tell(f"{self.sick_bed}: SpO2 begins to fall")
        elif second == script.recovers_s:
            self._tell(f"{self.sick_bed}: SpO2 recovers")
        if (second == script.pulled_s and self._wire.plugged) or (
            second == script.plugged_s and not self._wire.plugged
        ):
            self.pull_or_plug()


def location(bed: str) -> str:
    """PV1-3 of a bed."""
    return f"SIM^^{bed}"
