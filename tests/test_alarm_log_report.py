"""Alarm burden from hand-made logs whose figures are known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
from alarm_log_rig import event, of_bed

from edge_agent.alarm_log import chain
from edge_agent.alarm_log.report import burden
from edge_agent.records import AlarmEvent

HOUR_S = 3600
DAY_S = 24 * HOUR_S
UTC = 1_780_000_000_000_000_000


class Log:
    """Entries by hand: times in seconds since the first boot."""

    def __init__(self) -> None:
        self.entries: list[chain.Entry] = []
        self.run, self.boot, self.booted_s = "run-1", "00" * 16, 0.0

    def _entry(self, at_s: float, **more: Any) -> None:
        number, utc_ns = len(self.entries) + 1, UTC + round(at_s * 1e9)
        at_ns = round((at_s - self.booted_s) * 1e9)
        self.entries.append(chain.Entry(number, utc_ns, "synchronized", at_ns, self.boot, self.run, **more))

    def mark(self, at_s: float, kind: str, **detail: Any) -> None:
        self._entry(at_s, mark=chain.Mark(kind, detail))

    def add(self, at_s: float, bed: str, alarm: AlarmEvent, patient: str = "") -> None:
        at_ns = round((at_s - self.booted_s) * 1e9)
        fields = {name: getattr(alarm, name) for name in alarm.__struct_fields__} | {"at_ns": at_ns}
        self._entry(at_s, bed=bed, patient=patient, alarm=AlarmEvent(**fields))

    def alarm(self, alert: str, bed: str, start_s: float, end_s: float, patient: str = "", **more: Any) -> None:
        self.add(start_s, bed, event(alert, **more), patient)
        self.add(end_s, bed, event(alert, "end", "Off", **more), patient)


def row(result: dict[str, Any], bed: str, condition: str = "spo2_low", priority: str = "medium") -> dict[str, Any]:
    (found,) = (
        row for row in result["rows"] if (row["bed"], row["condition"], row["priority"]) == (bed, condition, priority)
    )
    return dict(found)


def two_days() -> Log:
    log = Log()
    log.mark(0, "boot", previous="none", beds=["ICU-1", "ICU-2"])
    log.alarm("a", "ICU-1", 100, 110)
    log.alarm("b", "ICU-1", 200, 230)
    log.add(1000, "ICU-1", event("c"))
    log.add(1012, "ICU-1", event("c", "acknowledge", "Ack", operator="nurse"))
    log.add(1100, "ICU-1", event("c", "end", "Off"))
    log.add(2000, "ICU-1", event("d"))
    log.add(2050, "ICU-1", event("d", "acknowledge", "Ack", operator="nurse"))
    log.alarm("h", "ICU-1", 3000, 3005, condition="asystole", priority="high")
    log.alarm("e", "ICU-2", 5000, 5001)
    log.add(6000, "", event("g", condition="disk_full", kind="technical", vital=""))
    log.mark(2 * DAY_S, "power_down")
    return log


def test_counts_durations_and_answers_are_those_of_the_log() -> None:
    result = burden(two_days().entries)
    assert result["bed_days"] == 4.0
    assert row(result, "ICU-1") == {
        "bed": "ICU-1", "condition": "spo2_low", "priority": "medium", "count": 4, "per_bed_day": 2.0, "audible": 4,
        "audible_per_bed_day": 2.0, "median_duration_s": 30.0, "open": 1, "acknowledged_share": 0.5,
        "median_to_acknowledge_s": 31.0,
    }  # fmt: skip
    assert row(result, "ICU-1", "asystole", "high")["count"] == 1
    assert row(result, "ICU-2")["per_bed_day"] == 0.5
    assert row(result, "ICU-2")["median_to_acknowledge_s"] is None
    assert row(result, "", "disk_full")["per_bed_day"] is None
    assert result["all"]["count"] == 6
    assert result["all"]["per_bed_day"] == 1.5
    assert [(bed["bed"], bed["count"], bed["bed_days"]) for bed in result["beds"]] == [
        ("ICU-1", 5, 2.0),
        ("ICU-2", 1, 2.0),
    ]
    assert [(each["priority"], each["count"]) for each in result["priorities"]] == [("high", 1), ("medium", 5)]
    assert [(each["condition"], each["count"]) for each in result["conditions"]] == [("spo2_low", 5), ("asystole", 1)]


def test_a_bed_without_an_alarm_counts_in_the_bed_days() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1", "ICU-2"])
    log.mark(DAY_S, "power_down")
    result = burden(log.entries)
    assert result["bed_days"] == 2.0
    assert [bed["per_bed_day"] for bed in result["beds"]] == [0.0, 0.0]
    assert result["all"]["acknowledged_share"] is None


def test_time_without_the_agent_is_not_observed_and_a_run_ends_with_its_last_entry() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.alarm("a", "ICU-1", HOUR_S - 10, HOUR_S)  # killed after this
    log.run, log.boot, log.booted_s = "run-2", "11" * 16, 10 * HOUR_S
    log.mark(10 * HOUR_S, "boot", beds=["ICU-1"])
    log.mark(12 * HOUR_S, "power_down")
    assert burden(log.entries)["bed_days"] == pytest.approx(3 / 24)


def test_a_run_that_names_no_beds_observes_every_bed_of_the_log() -> None:
    log = Log()
    log.mark(0, "boot")
    log.alarm("a", "ICU-1", 10, 20)
    log.alarm("b", "ICU-2", 10, 20)
    log.mark(DAY_S, "power_down")
    assert burden(log.entries)["bed_days"] == 2.0


def test_an_alarm_over_a_restart_is_one_and_lasts_by_the_wall_clock() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.add(100, "ICU-1", event("a"))
    log.run, log.boot, log.booted_s = "run-2", "11" * 16, 500
    log.mark(510, "boot", beds=["ICU-1"])
    log.add(511, "ICU-1", event("a", "restore", "On"))
    log.add(700, "ICU-1", event("a", "end", "Off"))
    figures = row(burden(log.entries), "ICU-1")
    assert (figures["count"], figures["median_duration_s"]) == (1, 600.0)


def test_a_step_of_the_wall_clock_changes_no_duration_and_no_bed_day() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.alarm("a", "ICU-1", 100, 130)
    log.mark(DAY_S, "power_down")
    stepped = [
        chain.Entry(
            entry.number, entry.utc_ns + (3_600_000_000_000 if entry.number > 2 else 0), "synchronized", entry.at_ns,
            entry.boot, entry.run, entry.bed, "", entry.alarm, entry.mark,
        )
        for entry in log.entries
    ]  # fmt: skip
    assert burden(stepped) == burden(log.entries)


@pytest.mark.parametrize(
    ("state", "priority", "audible"),
    [
        ("", "low", 1), ("", "none", 0),
        ("audio_paused", "medium", 0), ("audio_paused", "high", 1),
        ("audio_off", "low", 0), ("audio_off", "high", 1),
        ("alarm_paused", "medium", 0), ("alarm_paused", "high", 1),
        ("alarm_off", "medium", 0), ("alarm_off", "high", 0),
    ],
)  # fmt: skip
def test_an_alarm_is_audible_unless_the_bed_holds_its_sound_back(state: Any, priority: str, audible: int) -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.alarm("a", "ICU-1", 10, 20, inactivation=state, priority=priority)
    assert row(burden(log.entries), "ICU-1", priority=priority)["audible"] == audible


def test_the_inactivation_states_are_those_of_the_alarm_room() -> None:
    from edge_agent.alarm_log import report
    from edge_agent.alarms.inactivation import ENDS, RULES

    assert {state for state, rule in RULES.items() if rule.breakable} == report._BREAKABLE
    assert report._RESUMES == ENDS


def test_an_alarm_that_began_in_a_pause_is_audible_once_the_pause_ends_before_it() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.add(10, "ICU-1", event("on", inactivation="audio_paused"))
    log.add(11, "ICU-1", event("acknowledged", inactivation="audio_paused"))
    log.add(12, "ICU-1", event("over", inactivation="audio_paused"))
    log.add(13, "ICU-2", event("elsewhere", inactivation="audio_paused"))
    log.add(20, "ICU-1", event("acknowledged", "acknowledge", "Ack", inactivation="audio_paused"))
    log.add(21, "ICU-1", event("over", "end", "Off", inactivation="audio_paused"))
    log.add(30, "ICU-1", of_bed("audio_resume"))
    result = burden(log.entries)
    assert row(result, "ICU-1")["audible"] == 1
    assert row(result, "ICU-2")["audible"] == 0


def test_acknowledging_a_latched_alarm_ends_it_and_counts_as_an_answer() -> None:
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    log.add(10, "ICU-1", event("a"))
    log.add(20, "ICU-1", event("a", "latch", "Latch"))
    log.add(45, "ICU-1", event("a", "end", "Off", operator="nurse"))
    log.alarm("b", "ICU-1", 50, 60)
    figures = row(burden(log.entries), "ICU-1")
    assert (figures["acknowledged_share"], figures["median_to_acknowledge_s"]) == (0.5, 35.0)


def test_only_what_begins_in_the_time_asked_for_is_counted() -> None:
    log = two_days()
    result = burden(log.entries, UTC + DAY_S * 1_000_000_000)
    assert (result["bed_days"], result["all"]["count"]) == (2.0, 0)
    result = burden(log.entries, UTC + 1500 * 1_000_000_000)
    assert row(result, "ICU-1")["count"] == 1
    assert result["bed_days"] == pytest.approx(4 - 2 * 1500 / DAY_S, abs=1e-5)


def test_an_alarm_whose_start_is_no_longer_in_the_log_is_not_counted() -> None:
    log = Log()
    log.add(10, "ICU-1", event("a", "end", "Off"))
    log.alarm("b", "ICU-1", 20, 30)
    assert row(burden(log.entries), "ICU-1")["count"] == 1


def test_shares_of_the_patients_with_the_most_alarms() -> None:
    """Forty patients: ten with ten alarms each and thirty with one: 130 alarms."""
    log = Log()
    log.mark(0, "boot", beds=["ICU-1"])
    alert = 0
    for patient in range(40):
        for _ in range(10 if patient < 10 else 1):
            alert += 1
            log.alarm(f"a{alert}", "ICU-1", alert * 10, alert * 10 + 5, patient=f"{patient:016x}")
    log.alarm("nobody's", "ICU-1", 9000, 9001)
    who = burden(log.entries)["patients"]
    assert (who["patients"], who["alarms"], who["without_patient"]) == (40, 130, 1)
    assert who["top_10_share"] == round(100 / 130, 4)
    assert (who["top_10_percent"], who["top_10_percent_share"]) == (4, round(40 / 130, 4))
    assert who["top"][0] == {"patient": f"{0:016x}", "count": 10}
    assert len(who["top"]) == 10


def test_an_empty_log_has_a_report_too() -> None:
    result = burden([])
    assert (result["bed_days"], result["rows"], result["patients"]["top_10_share"]) == (0.0, [], None)
