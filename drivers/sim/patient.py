"""A patient whose vital signs belong together: one step is one second.

Theory of operation. Each vital sign wanders around its set point as an Ornstein-Uhlenbeck process, so that neighbouring
seconds resemble each other. The set points move with two severities between 0 and 1, respiratory and circulatory, which
a profile raises after its onset. Coupling: falling pressure raises the heart rate (baroreflex), falling saturation
raises respiratory and heart rate (chemoreflex), fever raises both (about 8 beats and 2 breaths a degree), and the pulse
at the finger follows the heart two seconds later. The same seed gives the same patient.

The figures are engineering values for trying out a gateway. They are no physiological model and prove nothing about
alarm limits.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final

PROFILES: Final = ("stable", "deteriorating", "sepsis", "noisy")

# (respiratory, circulatory, fever in Cel, seconds from onset to full severity)
_COURSES: Final = {
    "stable": (0.0, 0.0, 0.0, 1.0),
    "noisy": (0.0, 0.0, 0.0, 1.0),
    "deteriorating": (1.0, 0.25, 0.0, 180.0),
    "sepsis": (0.35, 0.9, 2.2, 5400.0),
}
# (time constant in seconds, standard deviation) of each wandering
_WANDER: Final = {
    "heart_rate": (40.0, 2.0),
    "resp_rate": (30.0, 1.0),
    "spo2": (60.0, 0.5),
    "pressure": (120.0, 3.0),
    "temp": (1800.0, 0.08),
}
_FINGER_DELAY_S = 2


class Patient:
    """One simulated patient; `step` makes a second pass.

    Raises: ValueError for a profile that is none of PROFILES.
    """

    def __init__(
        self, seed: int = 1, profile: str = "stable", onset_s: float = 60.0, nibp_interval_s: float = 300.0
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r} is none of {', '.join(PROFILES)}")
        if nibp_interval_s < 1:
            raise ValueError("nibp_interval_s is below 1")
        self.profile = profile
        self.second = -1
        self._onset_s = onset_s
        self._nibp_interval_s = round(nibp_interval_s)
        self._random = random.Random(seed)
        self._base = {
            "heart_rate": self._random.uniform(64, 82),
            "resp_rate": self._random.uniform(13, 17),
            "spo2": self._random.uniform(96.5, 98.5),
            "sys": self._random.uniform(112, 132),
            "dia": self._random.uniform(66, 80),
            "temp": self._random.uniform(36.5, 37.0),
            "perfusion_index": self._random.uniform(2.0, 6.0),
        }
        self._wander = dict.fromkeys(_WANDER, 0.0)
        self._at_finger: deque[float] = deque(maxlen=_FINGER_DELAY_S + 1)
        self._sensor_off_s = 0
        self._phase = 0.0  # of the pulse, in beats

    @property
    def sensor_on(self) -> bool:
        """Whether the oximeter's sensor is on the finger."""
        return self._sensor_off_s == 0

    def step(self) -> dict[str, float | None]:
        """The vital signs of the next second by term name; nibp_* only in the second their measurement ends."""
        self.second += 1
        self._move()
        respiratory, circulatory, fever = self._severity()
        base, wander = self._base, self._wander
        spo2 = base["spo2"] - 16.0 * respiratory + wander["spo2"]
        hypoxia = max(0.0, 94.0 - spo2)
        systolic = base["sys"] - 42.0 * circulatory + wander["pressure"]
        diastolic = base["dia"] - 26.0 * circulatory + 0.6 * wander["pressure"]
        mean = diastolic + (systolic - diastolic) / 3
        pressure_lost = max(0.0, base["dia"] + (base["sys"] - base["dia"]) / 3 - mean - 4.0)
        heart = base["heart_rate"] + wander["heart_rate"] + 0.9 * pressure_lost + 1.2 * hypoxia + 8.0 * fever
        breath = base["resp_rate"] + wander["resp_rate"] + 14.0 * respiratory + 0.5 * hypoxia + 2.0 * fever
        self._at_finger.append(heart)
        out: dict[str, float | None] = {
            "heart_rate": float(round(min(heart, 210.0))),
            "pulse_rate": float(round(min(self._at_finger[0], 210.0))),
            "spo2": float(round(min(max(spo2, 40.0), 100.0))),
            "perfusion_index": round(max(0.1, base["perfusion_index"] * (1 - 0.8 * circulatory)), 2),
            "resp_rate": float(round(min(breath, 60.0))),
            "temp": round(base["temp"] + fever + wander["temp"], 1),
        }
        if self.second % self._nibp_interval_s == min(5, self._nibp_interval_s - 1):
            out["nibp_sys"], out["nibp_dia"] = float(round(systolic)), float(round(diastolic))
            out["nibp_mean"] = float(round(mean))
        if self.profile == "noisy":
            self._disturb(out)
        return out

    def pleth(self, pulse_rate: float | None, rate_hz: int = 75, full_scale: int = 255) -> list[int]:
        """One second of the pulse wave at the finger, 0 to `full_scale`; flat without a pulse."""
        if pulse_rate is None:
            return [0] * rate_hz
        out = []
        for _ in range(rate_hz):
            self._phase = (self._phase + pulse_rate / 60 / rate_hz) % 1.0
            upstroke = math.exp(-(((self._phase - 0.18) / 0.09) ** 2))
            dicrotic = 0.35 * math.exp(-(((self._phase - 0.48) / 0.12) ** 2))
            out.append(round(full_scale * (0.1 + 0.8 * min(1.0, upstroke + dicrotic))))
        return out

    def _severity(self) -> tuple[float, float, float]:
        respiratory, circulatory, fever, full_s = _COURSES[self.profile]
        share = min(1.0, max(0.0, (self.second - self._onset_s) / full_s))
        grown = share * share * (3 - 2 * share)  # slow start, slow end
        return respiratory * grown, circulatory * grown, fever * grown

    def _move(self) -> None:
        for name, (constant_s, deviation) in _WANDER.items():
            keep = math.exp(-1.0 / constant_s)
            kick = self._random.gauss(0.0, deviation * math.sqrt(1 - keep * keep))
            self._wander[name] = self._wander[name] * keep + kick

    def _disturb(self, out: dict[str, float | None]) -> None:
        """What happens at a bedside without any change of the patient: movement, and a sensor that falls off."""
        if self._sensor_off_s:
            self._sensor_off_s -= 1
        elif self._random.random() < 1 / 120:
            self._sensor_off_s = self._random.randint(5, 20)
        if self._sensor_off_s:
            out["spo2"] = out["pulse_rate"] = out["perfusion_index"] = None
        elif self._random.random() < 1 / 40:
            out["spo2"] = float(self._random.randint(70, 92))
