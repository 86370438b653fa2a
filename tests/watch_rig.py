"""A watch with one bed and a clock that the test turns; shared by the tests of the watch room."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from edge_agent.presets import Preset, load_presets
from edge_agent.records import AlarmEvent, Change, DeviceAlarm, Observation, Score
from edge_agent.watch import Watch

NS = 1_000_000_000
BED = "ICU-3"


class Bedside:
    """A watch with one bed; `log` holds (second, condition, present), `changes` the changes themselves."""

    def __init__(self, preset: Preset) -> None:
        self.watch = Watch({BED: preset})
        self.log: list[tuple[float, str, bool]] = []
        self.changes: list[Change] = []
        self.already: set[str] = set()  # restored

    def take(self, changes: Iterable[Change]) -> list[Change]:
        taken = list(changes)
        for change in taken:
            self.log.append((change.at_ns / NS, change.condition, change.present))
            self.changes.append(change)
        return taken

    def see(
        self, at: float, term: str, value: float | None, *, source: str = "mon", validity: str = "", channel: str = ""
    ) -> list[Change]:
        validity = validity or ("valid" if value is not None else "not_available")
        obs = Observation(term, value, validity, round(at * NS), None, "", "", channel)  # type: ignore[arg-type]
        return self.take(self.watch.observe(BED, source, obs))

    def see_ns(self, at_ns: int, term: str, value: float | None) -> list[Change]:
        validity = "valid" if value is not None else "not_available"
        return self.take(self.watch.observe(BED, "mon", Observation(term, value, validity, at_ns)))  # type: ignore[arg-type]

    def tick(self, at: float) -> list[Change]:
        return self.take(self.watch.tick(round(at * NS)))

    def tick_ns(self, at_ns: int) -> list[Change]:
        return self.take(self.watch.tick(at_ns))

    def state(self, at: float, state: str, source: str = "mon") -> list[Change]:
        return self.take(self.watch.source_state(source, [BED], state, round(at * NS), "test"))

    def tell(self, alarm: DeviceAlarm, source: str = "mon") -> list[Change]:
        return self.take(self.watch.device_alarm(BED, source, alarm))

    def score(self, at: float, value: float | None, name: str = "risk") -> list[Change]:
        return self.take(self.watch.score(BED, "model", Score(name, value, round(at * NS))))

    def technical(self, at: float, condition: str, present: bool) -> list[Change]:
        return self.take(self.watch.technical(BED, condition, present, round(at * NS), "why"))

    def change(self, at: float, preset: Preset) -> list[Change]:
        return self.take(self.watch.set_preset(BED, preset, round(at * NS)))

    def restore(self, at: float, condition: str, value: float | None = None, **more: str) -> None:
        event = AlarmEvent(
            "id-1", condition, "technical", more.pop("priority", "medium"), "start", more.pop("state", "On"), 0,
            value=value, source=more.pop("source", "mon"), **more,
        )  # type: ignore[arg-type]  # fmt: skip
        self.watch.restore(BED, event, round(at * NS))
        self.already.add(condition)

    @property
    def present(self) -> set[str]:
        now: set[str] = set(self.already)
        for _, condition, present in self.log:
            (now.add if present else now.discard)(condition)
        return now


@cache
def built_in() -> dict[str, Preset]:
    """The shipped presets, read once."""
    return load_presets()


_site: dict[tuple[str, str], Preset] = {}


def preset(tmp_path: Path, rows: str, extends: str = "bedside") -> Preset:
    """A site preset with these rows, read from a file; the same rows are read once."""
    known = _site.get((rows, extends))
    if known is None:
        path = tmp_path / "site.toml"
        path.write_text(f'name = "site"\nextends = "{extends}"\n{rows}')
        known = _site[rows, extends] = load_presets([path])["site"]
    return known


def low(delay: float = 15, off: float = 5, more: str = "") -> str:
    return f"""
[[condition]]
id = "spo2_low"
kind = "physiological"
vital = "spo2"
present = "below 90"
deadband = 2
delay_s = {delay}
off_delay_s = {off}
priority = "medium"
{more}
"""


def device(
    at: float, phase: str, priority: str = "high", text: str = "VTACH", alert_id: str = "7", **more: str
) -> DeviceAlarm:
    return DeviceAlarm(priority, phase, text, round(at * NS), alert_id=alert_id, **more)  # type: ignore[arg-type]
