"""Limits in force: what an authorised operator may change, how it takes effect, and what outlives a restart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edge_agent.alarms import Alarms
from edge_agent.config import Alarms as Settings
from edge_agent.limits import Limits, Unchangeable
from edge_agent.presets import load_presets
from edge_agent.records import AlarmEvent, Observation, Signal
from edge_agent.watch import Watch

S = 1_000_000_000
BED = "ICU-3"
KNOWN = load_presets()


class Bedside:
    """Watch, alarms and limits of one bed, as the agent puts them together."""

    def __init__(self, kept: bytes = b"") -> None:
        self.events: list[AlarmEvent] = []
        self.signals: list[Signal] = []
        self.kept = kept
        presets = {BED: KNOWN["adult"], "": KNOWN["gateway"]}
        self.watch = Watch(presets)
        numbers = itertools.count(1)
        self.alarms = Alarms(
            presets,
            Settings(),
            new_id=lambda: f"id-{next(numbers)}",
            on_event=lambda _bed, event: self.events.append(event),
            on_signal=self.signals.append,
        )
        self.limits = Limits(presets, lambda _bed, name: KNOWN.get(name), self.watch, self.alarms, self.keep)

    def keep(self, settings: bytes) -> None:
        self.kept = settings

    def spo2(self, value: float, second: float) -> None:
        obs = Observation("spo2", value, "valid", round(second * S))
        self.apply([*self.watch.tick(obs.at_ns), *self.watch.observe(BED, "oximeter", obs)])

    def apply(self, changes: Any) -> None:
        for change in changes:
            self.alarms.apply(change)

    def limit(self, present: str, second: float, delay_s: float | None = None) -> None:
        self.apply(self.limits.set_limit(BED, "spo2_low", present, delay_s, "uid=7", round(second * S)))

    def active(self) -> list[str]:
        return [alarm["condition"] for alarm in self.alarms.view(BED, 0)["alarms"]]


@pytest.mark.alm("ALM-20")
def test_a_changed_limit_is_in_force_at_once_and_recorded_with_who_changed_it() -> None:
    bed = Bedside()
    bed.spo2(87, 0)
    bed.limit("below 86", 1)
    bed.spo2(87, 30)
    assert bed.active() == []
    event = next(each for each in bed.events if each.event == "limit")
    assert (event.condition, event.limit, event.operator) == ("spo2_low", "below 86", "uid=7")
    assert "below 90" in event.detail and "15 s" in event.detail
    assert bed.limits.in_force(BED)["spo2"] == {"low": 86.0, "high": None}


def test_a_change_never_ends_an_alarm_that_holds_under_the_new_limit_too() -> None:
    bed = Bedside()
    for second in range(17):
        bed.spo2(85, second)
    (alarm,) = bed.alarms.view(BED, 0)["alarms"]
    bed.limit("below 88", 18)
    (after,) = bed.alarms.view(BED, 0)["alarms"]
    assert after["alert_id"] == alarm["alert_id"] and after["limit"] == "below 88"


def test_a_stricter_limit_judges_the_newest_value_without_waiting_for_the_next() -> None:
    bed = Bedside()
    bed.spo2(91, 0)
    bed.limit("below 92", 1, delay_s=5)
    bed.apply(bed.watch.tick(round(5.9 * S)))
    assert bed.active() == []
    bed.apply(bed.watch.tick(6 * S))
    assert bed.active() == ["spo2_low"]


@pytest.mark.parametrize(
    ("condition", "present", "delay_s", "word"),
    [
        ("spo2_low", "below 79", None, "desaturation"),  # inside the more urgent limit
        ("spo2_low", "below 900", None, "plausible"),
        ("spo2_low", "below", None, "number"),
        ("spo2_low", "silent 3", None, "silent"),
        ("spo2_low", "below 88", 31.0, "ceiling"),
        ("spo2_desaturation", "below 80", 11.0, "ceiling"),
        ("spo2_stale", "silent 999", None, "spo2_stale"),
        ("nothing", "below 88", None, "no limit"),
    ],
)
def test_what_a_file_may_not_say_an_operator_may_not_say(
    condition: str, present: str, delay_s: float | None, word: str
) -> None:
    bed = Bedside()
    with pytest.raises(Unchangeable, match=word):
        bed.limits.set_limit(BED, condition, present, delay_s, "uid=7", S)
    assert not bed.events and not bed.kept
    assert bed.limits.preset(BED) is KNOWN["adult"]


def test_another_preset_is_in_force_with_all_its_limits() -> None:
    bed = Bedside()
    bed.apply(bed.limits.set_preset(BED, "neonate", "uid=7", S))
    assert bed.limits.in_force(BED)["spo2"] == {"low": 85.0, "high": 95.0}
    (event,) = bed.events
    assert (event.event, event.operator) == ("preset", "uid=7") and "neonate" in event.detail
    with pytest.raises(Unchangeable, match="nobody"):
        bed.limits.set_preset(BED, "nobody", "uid=7", S)


@pytest.mark.alm("ALM-19")
def test_a_new_patient_gets_the_configured_preset_and_a_restart_keeps_the_changed_one() -> None:
    bed = Bedside()
    bed.apply(bed.limits.set_preset(BED, "neonate", "uid=7", S))
    bed.apply(bed.limits.set_limit(BED, "spo2_low", "below 84", None, "uid=7", S))
    after = Bedside(bed.kept)
    assert after.limits.restore(bed.kept, 2 * S) == []
    assert after.limits.preset(BED) == bed.limits.preset(BED) and after.limits.is_changed(BED)
    assert {row["condition"] for row in after.limits.rows(BED) if row["changed"]} > {"spo2_low"}
    after.apply(after.limits.new_patient(BED, 3 * S))
    assert after.limits.preset(BED) is KNOWN["adult"] and not after.limits.is_changed(BED)
    again = Bedside()
    assert again.limits.restore(after.kept, 4 * S) == []
    assert again.limits.preset(BED) is KNOWN["adult"]


def test_what_cannot_be_restored_is_told_and_the_rest_is_restored() -> None:
    bed = Bedside()
    kept = (
        b'{"ICU-3":{"preset":"adult","limits":{"spo2_low":["below 70",15],"heart_rate_low":["below 45",10]}},'
        b'"gone":{"preset":"adult"}}'
    )
    (lost,) = bed.limits.restore(kept, S)
    assert "spo2_low" in lost
    assert bed.limits.preset(BED).by_id["heart_rate_low"].present == "below 45"
    assert "preset" in Bedside().limits.restore(b'{"ICU-3":{"preset":"away"}}', S)[0]
    assert "unreadable" in Bedside().limits.restore(b"{", S)[0]


def test_rows_tell_what_is_off_and_what_was_changed() -> None:
    bed = Bedside()
    bed.limit("below 88", 1)
    rows = {row["condition"]: row for row in bed.limits.rows(BED)}
    assert rows["spo2_low"]["changed"] and not rows["spo2_desaturation"]["changed"]
    assert "spo2_stale" not in rows
