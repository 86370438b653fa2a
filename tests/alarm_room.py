"""An alarm room with a clock and ears: what the tests of the alarm states share."""

from __future__ import annotations

import itertools
from typing import Any

from edge_agent import config
from edge_agent.alarms import Alarms
from edge_agent.presets import Condition, Preset, load_presets
from edge_agent.records import AlarmEvent, Change, Signal

NS = 1_000_000_000
BED = "ICU-3"
SHIPPED = load_presets()


def row(condition: str, priority: str, *, latching: bool = False, kind: str = "physiological") -> Condition:
    """A row of a test's preset."""
    return Condition(condition, kind, priority, "below 1", condition, "test", "below", "spo2", latching=latching)  # type: ignore[arg-type]


PRESET = Preset(
    "test", "test",
    (row("high", "high"), row("high2", "high"), row("latched", "high", latching=True), row("medium", "medium"),
     row("low", "low"), row("fault", "medium", kind="technical"), row("device_alarm", "medium")),
)  # fmt: skip


class Room:
    """Alarms of one bed and the gateway; every `put` is one nanosecond after what was before."""

    def __init__(self, presets: dict[str, Preset] | None = None, prefix: str = "A", **settings: Any) -> None:
        ids = itertools.count(1)
        self.told: list[tuple[str, AlarmEvent]] = []
        self.signals: list[Signal] = []
        self.now = 0
        self.settings = config.Alarms(**{"reminder_s": 600, **settings})
        self.alarms = Alarms(
            presets or {BED: PRESET, "": SHIPPED["gateway"]},
            self.settings,
            new_id=lambda: f"{prefix}{next(ids)}",
            on_event=lambda bed, event: self.told.append((bed, event)),
            on_signal=self.signals.append,
        )

    @property
    def events(self) -> list[AlarmEvent]:
        return [event for _, event in self.told]

    def names(self) -> list[str]:
        """What was recorded since the last call, by the names of the events."""
        told, self.told = self.told, []
        return [event.event for _, event in told]

    def put(self, condition: str, present: bool = True, bed: str = BED, **more: Any) -> None:
        self.now += 1
        self.alarms.apply(Change(bed, condition, present, self.now, **more))

    def hold(self, state: str, seconds: int | None = None, bed: str = BED) -> int:
        self.now += 1
        return self.alarms.inactivate(bed, state, seconds, "nurse ann", self.now)  # type: ignore[arg-type]

    def acknowledge(self, alert_id: str | None = None) -> int:
        self.now += 1
        return self.alarms.acknowledge(BED, alert_id, "nurse ann", self.now)

    def resume(self) -> bool:
        self.now += 1
        return self.alarms.resume(BED, "nurse ann", self.now)

    def at(self, seconds: float) -> Room:
        """Let time pass up to so many seconds after the beginning."""
        self.now = round(seconds * NS)
        self.alarms.tick(self.now)
        return self

    @property
    def signal(self) -> Signal:
        return self.signals[-1] if self.signals else Signal(BED, "none", False, False)

    def view(self) -> dict[str, Any]:
        return self.alarms.view(BED, self.now)

    def shown(self, condition: str) -> dict[str, Any]:
        """What the view says of one alarm."""
        return next(alarm for alarm in self.view()["alarms"] if alarm["condition"] == condition)

    def states(self) -> dict[str, str]:
        return {alarm["condition"]: alarm["state"] for alarm in self.view()["alarms"]}
