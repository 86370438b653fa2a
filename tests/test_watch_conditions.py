"""The watch: delays, deadband, arming, freshness, plausibility, sources and devices' own alarms on a virtual clock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edge_agent.presets import Preset, load_presets
from edge_agent.records import Change, DeviceAlarm, Observation, Score
from edge_agent.watch import Watch
from edge_agent.watch.devices import DEVICE_ALARMS_PER_BED
from edge_agent.watch.room import RETURN_GRACE_S, SETTLE_S, SLOTS_PER_BED

NS = 1_000_000_000
BED = "ICU-3"


class Bedside:
    """A watch with one bed and a clock in seconds that the test turns."""

    def __init__(self, preset: Preset) -> None:
        self.watch = Watch({BED: preset})
        self.log: list[tuple[float, str, bool]] = []
        self.changes: list[Change] = []

    def take(self, changes: object) -> list[Change]:
        for change in changes:  # type: ignore[attr-defined]
            self.log.append((change.at_ns / NS, change.condition, change.present))
            self.changes.append(change)
        return list(changes)  # type: ignore[call-overload]

    def see(
        self, at: float, term: str, value: float | None, *, source: str = "mon", validity: str = "", channel: str = ""
    ) -> list[Change]:
        validity = validity or ("valid" if value is not None else "not_available")
        obs = Observation(term, value, validity, round(at * NS), None, "", "", channel)  # type: ignore[arg-type]
        return self.take(self.watch.observe(BED, source, obs))

    def tick(self, at: float) -> list[Change]:
        return self.take(self.watch.tick(round(at * NS)))

    def state(self, at: float, state: str, source: str = "mon") -> list[Change]:
        return self.take(self.watch.source_state(source, [BED], state, round(at * NS), "test"))

    @property
    def present(self) -> set[str]:
        now: set[str] = set()
        for _, condition, present in self.log:
            (now.add if present else now.discard)(condition)
        return now


def preset(tmp_path: Path, rows: str, extends: str = "bedside") -> Preset:
    path = tmp_path / "site.toml"
    path.write_text(f'name = "site"\nextends = "{extends}"\n{rows}')
    return load_presets([path])["site"]


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


@pytest.fixture
def bed(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low()))


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


def test_condition_delay_is_exact(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    assert bed.watch.next_deadline() == 25 * NS
    bed.tick(24.999999)
    assert bed.present == set()
    bed.tick(25)
    assert bed.log == [(25, "spo2_low", True)]
    assert bed.changes[0].value == 85 and bed.changes[0].source == "mon"


def test_delay_counts_time_not_samples(bed: Bedside) -> None:
    for step in range(149):
        bed.see(10 + step / 10, "spo2", 85)
    assert bed.log == []
    bed.see(25, "spo2", 84)
    assert bed.log == [(25, "spo2_low", True)]


def test_a_value_back_inside_the_limit_cancels_the_delay(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    bed.see(24, "spo2", 90)  # inside the limit, though not beyond the deadband
    bed.see(24.5, "spo2", 89)
    bed.tick(39.4)
    assert bed.log == []
    bed.tick(39.5)
    assert bed.log == [(39.5, "spo2_low", True)]


def test_a_late_tick_does_not_lose_a_delay_that_ran_out(bed: Bedside) -> None:
    bed.see(10, "spo2", 85)
    bed.see(26, "spo2", 97)
    bed.tick(31)
    assert bed.log == [(26, "spo2_low", True), (31, "spo2_low", False)]


def test_delay_zero_is_present_in_observe(prompt: Bedside) -> None:
    changes = prompt.see(10, "spo2", 89.9)
    assert [(change.condition, change.present) for change in changes] == [("spo2_low", True)]
    assert prompt.see(10.1, "spo2", 85) == []


def test_the_limit_itself_is_inside(prompt: Bedside) -> None:
    assert prompt.see(1, "spo2", 90) == []


def test_deadband_prevents_chatter(prompt: Bedside) -> None:
    for step in range(100):
        prompt.see(step, "spo2", 89 if step % 2 == 0 else 91)
    assert prompt.log == [(0, "spo2_low", True)]
    prompt.see(100, "spo2", 92)
    assert prompt.log[1:] == [(100, "spo2_low", False)]


def test_off_delay_starts_anew_when_the_value_goes_out_again(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(delay=0)))
    bed.see(0, "spo2", 85)
    bed.see(1, "spo2", 95)
    bed.see(5.9, "spo2", 85)
    bed.tick(6)
    bed.see(7, "spo2", 95)
    bed.tick(11.9)
    assert bed.present == {"spo2_low"}
    bed.tick(12)
    assert bed.log[-1] == (12, "spo2_low", False)
    assert bed.changes[-1].value is None


def test_outside_watches_both_sides(tmp_path: Path) -> None:
    bed = Bedside(
        preset(
            tmp_path,
            '[[condition]]\nid = "t"\nkind = "physiological"\nvital = "temp"\npresent = "outside 36 39"\n'
            'deadband = 0.2\noff_delay_s = 0\npriority = "low"\n',
        )
    )
    bed.see(0, "temp", 36)
    bed.see(1, "temp", 35.9)
    bed.see(2, "temp", 36.1)
    bed.see(3, "temp", 36.2)
    bed.see(4, "temp", 39.1)
    bed.see(5, "temp", 38.9)
    bed.see(6, "temp", 38.8)
    assert [entry[:1] + entry[2:] for entry in bed.log] == [(1, True), (3, False), (4, True), (6, False)]


def test_no_value_neither_raises_nor_ends(prompt: Bedside) -> None:
    prompt.see(0, "spo2", None)
    prompt.tick(1000)
    assert prompt.log == []
    prompt.see(1000, "spo2", 85)
    for second in range(1001, 1029):
        prompt.see(second, "spo2", None, validity="invalid")
        prompt.tick(second)
    assert prompt.present == {"spo2_low"}


def test_vanished_value_is_replaced_by_a_technical_condition_that_comes_first(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85)
    prompt.tick(29.999)
    assert prompt.present == {"spo2_low"}
    prompt.tick(30)
    assert prompt.log[1:] == [(30, "spo2_stale", True), (30, "spo2_low", False)]
    assert prompt.changes[-1].detail == "no data"
    prompt.see(40, "spo2", 85)
    assert prompt.present == {"spo2_low"}
    assert [entry[1] for entry in prompt.log[3:]] == ["spo2_low", "spo2_stale"], "raised before the other ends"


def test_a_pending_delay_runs_on_while_data_is_fresh_and_ends_with_it(bed: Bedside) -> None:
    bed.see(0, "spo2", 85)
    bed.tick(15)
    assert bed.present == {"spo2_low"}
    slow = Bedside(bed.watch._beds[BED].preset)
    slow.see(0, "spo2", 95)
    slow.see(20, "spo2", 85)
    slow.see(30, "spo2", None)
    slow.tick(35)
    assert slow.present == {"spo2_low"}, "no value is not a value inside the limit"


def test_nothing_is_stale_before_the_first_value(prompt: Bedside) -> None:
    prompt.tick(10_000)
    assert prompt.watch.next_deadline() is None
    assert prompt.log == []


def test_arming_by_value(tmp_path: Path) -> None:
    bed = Bedside(load_presets()["adult"])
    bed.see(0, "resp_rate", 0)
    bed.see(1, "heart_rate", 0)
    bed.tick(29)
    assert bed.log == [], "apnoea and asystole need a patient who was breathing and had a heart beat"
    bed.see(29, "resp_rate", 12)
    bed.see(30, "resp_rate", 0)
    assert bed.present == {"apnoea"}


def test_arming_by_measured_time(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, low(delay=0, more='arming = "measured 30"')))
    for second in range(0, 30, 5):
        bed.see(second, "spo2", 85)
    assert bed.log == []
    bed.see(30, "spo2", 85)
    assert bed.present == {"spo2_low"}


def test_a_limit_that_no_technical_condition_can_replace_stays(tmp_path: Path) -> None:
    stale = '[[condition]]\nid = "spo2_stale"\narming = "measured 3000"\n'
    bed = Bedside(preset(tmp_path, low(delay=0, more='arming = "first"') + stale))
    bed.see(0, "spo2", 85)
    bed.tick(500)
    assert bed.present == {"spo2_low"}
    bed.see(501, "spo2", 97)
    bed.tick(506)
    assert bed.present == set()


def test_questionable_values_alarm_and_say_so(prompt: Bedside) -> None:
    (change,) = prompt.see(0, "spo2", 85, validity="questionable")
    assert change.present and change.detail == "questionable value"


@pytest.mark.parametrize(
    ("term", "value"),
    [("spo2", 0.97), ("spo2", 1.0), ("spo2", 101), ("heart_rate", 301), ("pulse_rate", 301), ("temp", 98.6),
     ("resp_rate", -1), ("icp", 900)],
)  # fmt: skip
def test_implausible_is_technical_and_feeds_no_limit(term: str, value: float) -> None:
    bed = Bedside(load_presets()["adult"])
    vital = {"temp": "temp"}.get(term, term)
    bed.see(0, term, value)
    bed.tick(29)
    assert bed.present == {f"implausible:{vital}"}
    assert str(value) not in bed.changes[0].detail
    good = {"spo2": 97, "temp": 37, "resp_rate": 15, "icp": 10}.get(term, 70)
    bed.see(29.5, term, good)
    assert bed.present == set()


def test_implausible_does_not_end_or_refresh_a_limit(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85)
    for second in range(1, 31):
        prompt.see(second, "spo2", 0.97)
        prompt.tick(second)
    assert prompt.present == {"implausible:spo2", "spo2_stale"}


def test_implausible_from_the_start_and_then_silence_becomes_stale(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 0.97)
    prompt.tick(30)
    assert prompt.present == {"spo2_stale"}


@pytest.mark.parametrize("order", [("nibp_sys", "nibp_dia"), ("nibp_dia", "nibp_sys")])
def test_swapped_pressures_are_implausible_whatever_comes_first(order: tuple[str, str]) -> None:
    bed = Bedside(load_presets()["adult"])
    swapped = {"nibp_sys": 70, "nibp_dia": 120}  # each by itself would raise a limit alarm
    for term in order:
        bed.see(10, term, swapped[term])
    bed.tick(10.2)
    assert {condition.partition(":")[0] for condition in bed.present} == {"implausible"}


def test_pressures_of_different_measurements_are_not_compared() -> None:
    bed = Bedside(load_presets()["adult"])
    for at, systolic, diastolic in ((0, 158, 89), (60, 85, 55)):  # the new systolic is below the old diastolic
        bed.see(at, "nibp_sys", systolic)
        bed.see(at, "nibp_dia", diastolic)
    assert bed.present == {"nibp_sys_low"}


def test_a_pressure_without_its_partner_waits_for_one_tick_only() -> None:
    bed = Bedside(load_presets()["adult"])
    assert bed.see(10, "nibp_sys", 85) == []
    assert bed.watch.next_deadline() == 10 * NS
    bed.tick(10.1)
    assert bed.present == {"nibp_sys_low"}
    other = Bedside(load_presets()["adult"])
    other.see(10, "nibp_sys", 85)
    other.see(10, "nibp_dia", None)
    assert other.present == {"nibp_sys_low"}


def test_terms_of_one_vital_share_its_condition(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85, channel="right")
    prompt.see(1, "spo2", 97, channel="left")
    prompt.see(2, "spo2", 85, source="oximeter")
    assert prompt.log == [(0, "spo2_low", True)]
    prompt.see(3, "spo2", 97, channel="right")
    assert prompt.present == {"spo2_low"}
    prompt.see(4, "spo2", 97, source="oximeter")
    assert prompt.log[1:] == [(4, "spo2_low", False)]


def test_different_terms_of_the_vital_resp_rate() -> None:
    bed = Bedside(load_presets()["adult"])
    bed.see(0, "resp_rate_co2", 12)
    bed.see(0, "resp_rate", 35)
    bed.tick(15)
    assert bed.present == {"resp_rate_high"}
    bed.see(16, "resp_rate_co2", 13)
    bed.tick(29)
    assert bed.present == {"resp_rate_high"}
    bed.tick(30)  # the violating stream is no longer fresh, the other one is
    bed.tick(35)
    assert bed.present == set()


def test_one_stream_that_ends_is_not_stale_while_another_is_fresh(prompt: Bedside) -> None:
    for second in range(0, 60):
        if second < 10:
            prompt.see(second, "spo2", 85, source="a")
        prompt.see(second, "spo2", 97, source="b")
        prompt.tick(second)
    assert prompt.log == [(0, "spo2_low", True), (39, "spo2_low", False)]


def test_a_lost_source_speaks_for_its_vitals(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85)
    prompt.see(0, "temp", 37)
    prompt.state(5, "lost")
    assert prompt.log[1:] == [(5, "source_lost:mon", True)]
    prompt.tick(30)
    assert prompt.present == {"source_lost:mon"}, "one technical condition, not one for each vital"
    prompt.tick(400)
    assert prompt.present == {"source_lost:mon"}


def test_a_source_that_is_back_ends_its_condition_with_data_and_the_rest_is_stale(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    prompt.see(0, "heart_rate", 70)
    prompt.state(5, "lost")
    prompt.tick(60)
    prompt.state(61, "connected")
    prompt.see(62, "spo2", 97)
    assert prompt.present == {"source_lost:mon"}
    prompt.tick(62 + SETTLE_S)
    assert prompt.log[-2:] == [(62 + SETTLE_S, "heart_rate_stale", True), (62 + SETTLE_S, "source_lost:mon", False)]
    prompt.see(70, "heart_rate", 71)
    assert prompt.present == set()


def test_a_source_that_is_connected_without_data_hands_over_to_its_vitals(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    prompt.state(5, "silent")
    prompt.tick(60)
    prompt.state(61, "connected")
    prompt.tick(60.9 + RETURN_GRACE_S)
    assert prompt.present == {"source_silent:mon"}
    prompt.tick(61 + RETURN_GRACE_S)
    assert prompt.present == {"spo2_stale"}


def test_silent_then_lost_leaves_no_moment_without_an_alarm(prompt: Bedside) -> None:
    prompt.state(1, "silent")
    prompt.state(2, "lost")
    assert [entry[1:] for entry in prompt.log] == [
        ("source_silent:mon", True), ("source_lost:mon", True), ("source_silent:mon", False),
    ]  # fmt: skip
    prompt.state(3, "connected")
    prompt.state(4, "silent")
    assert prompt.present == {"source_silent:mon"}


def test_a_bed_that_a_shared_source_no_longer_feeds_is_noticed() -> None:
    presets = load_presets()
    watch = Watch({"a": presets["adult"], "b": presets["adult"]})
    for second in range(0, 40):
        watch.observe("a", "central", Observation("spo2", 97.0, "valid", second * NS))
        if second == 0:
            watch.observe("b", "central", Observation("spo2", 97.0, "valid", 0))
    assert [(c.bed, c.condition) for c in watch.tick(40 * NS)] == [("b", "spo2_stale")]


def test_new_patient_arms_anew_and_keeps_faults_of_devices(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85)
    prompt.state(1, "lost", source="pump")
    prompt.take(prompt.watch.new_patient(BED, 2 * NS))
    assert prompt.present == {"source_lost:pump"}
    prompt.tick(500)
    assert prompt.present == {"source_lost:pump"}, "nothing is stale before the new patient's first value"
    prompt.see(501, "spo2", 85)
    assert "spo2_low" in prompt.present


def device(
    at: float, phase: str, priority: str = "high", text: str = "VTACH", alert_id: str = "7", **more: str
) -> DeviceAlarm:
    return DeviceAlarm(priority, phase, text, round(at * NS), alert_id=alert_id, **more)  # type: ignore[arg-type]


def test_device_alarm_keeps_the_devices_grade_and_text(prompt: Bedside) -> None:
    (change,) = prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "start", "medium", event="MDC_EVT_X")))
    assert (change.condition, change.priority, change.text) == ("device_alarm:7", "medium", "VTACH")
    assert prompt.take(prompt.watch.device_alarm(BED, "mon", device(1, "continue", "medium", event="MDC_EVT_X"))) == []
    (change,) = prompt.take(prompt.watch.device_alarm(BED, "mon", device(2, "escalate", "high")))
    assert change.present and change.priority == "high" and change.condition == "device_alarm:7"
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(3, "end")))
    assert prompt.present == set()
    assert prompt.take(prompt.watch.device_alarm(BED, "mon", device(4, "end"))) == []


def test_technical_device_alarm_has_a_row_of_its_own_and_an_inactive_one_is_none(prompt: Bedside) -> None:
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "start", "low", "LEAD OFF", "8", type="ST")))
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "update", "high", state="inactive", alert_id="9")))
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "start", "none", alert_id="10")))
    assert prompt.present == {"device_technical:8"}


def test_device_alarms_end_behind_the_technical_condition_of_a_lost_device(prompt: Bedside) -> None:
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "start")))
    prompt.state(1, "lost")
    assert prompt.log[1:] == [(1, "source_lost:mon", True), (1, "device_alarm:7", False)]


def test_a_storm_of_device_alarms_is_bounded_and_keeps_the_highest(prompt: Bedside) -> None:
    for number in range(DEVICE_ALARMS_PER_BED):
        prompt.take(prompt.watch.device_alarm(BED, "mon", device(0, "start", "low", "x", str(number))))
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(1, "start", "high", "VF", "new")))
    prompt.take(prompt.watch.device_alarm(BED, "mon", device(2, "start", "low", "x", "newer")))
    last = [change for change in prompt.changes if change.condition.startswith("device_alarm:more")]
    assert [(change.priority, change.text) for change in last] == [("high", "VF")]
    assert len(prompt.watch._beds[BED].device.trackers) <= DEVICE_ALARMS_PER_BED + 1


def test_streams_of_a_bed_are_bounded(prompt: Bedside) -> None:
    for number in range(SLOTS_PER_BED * 3):
        prompt.see(1, "spo2", 97, channel=str(number))
    assert len(prompt.watch._beds[BED].slots) <= SLOTS_PER_BED + 1
    prompt.see(2, "spo2", 85, channel="one more")
    assert prompt.present == {"spo2_low"}


def test_technical_conditions_of_the_gateway() -> None:
    watch = Watch({"": load_presets()["gateway"]})
    (change,) = watch.technical("", "disk_fault", True, 5, "0 MB left")
    assert (change.bed, change.condition, change.detail) == ("", "disk_fault", "0 MB left")
    assert list(watch.technical("", "disk_fault", True, 6)) == []
    assert [c.present for c in watch.technical("", "disk_fault", False, 7)] == [False]
    assert list(watch.technical("", "disk_fault", False, 8)) == []
    assert [c.condition for c in watch.technical("", "never heard of", True, 9)] == ["never heard of"]


def test_score_raises_and_abstaining_does_nothing(tmp_path: Path) -> None:
    rows = (
        '[[condition]]\nid = "worse"\nkind = "advisory"\nvital = "risk"\npresent = "score_above 0.5"\n'
        'priority = "low"\noff_delay_s = 0\n'
        '[[condition]]\nid = "risk_stale"\nkind = "technical"\n'
        'vital = "risk"\npresent = "silent 60"\npriority = "low"\n'
    )
    bed = Bedside(preset(tmp_path, rows))
    for at, value in ((0, 0.4), (1, 0.6), (2, None), (3, 0.2)):
        bed.take(bed.watch.score(BED, "model", Score("risk", value, at * NS)))
    assert bed.log == [(1, "worse", True), (3, "worse", False)]
    bed.tick(63)
    assert bed.present == {"risk_stale"}


def test_unknown_beds_and_terms_are_ignored(prompt: Bedside) -> None:
    assert list(prompt.watch.observe("nobody", "s", Observation("spo2", 1.0, "valid", 0))) == []
    assert prompt.see(0, "no such term", 5) == []
    assert prompt.see(0, "spo2", float("nan")) == []


def test_presence_always_alternates_and_no_alarm_ends_silently() -> None:
    """Random values, gaps and link states: every change alternates, and a limit ends only for a reason that shows."""
    for seed in range(40):
        rng = random.Random(seed)
        bed = Bedside(load_presets()["adult"])
        at, values = 0.0, {"spo2": (97, 85, 70, 0.9, None), "heart_rate": (70, 30, 160, 400, None, 0)}
        while at < 600:
            at += rng.choice((0.2, 1, 1, 1, 5, 31))
            if rng.random() < 0.05:
                bed.state(at, rng.choice(("lost", "silent", "connected")))
            elif rng.random() < 0.8:
                term = rng.choice(list(values))
                bed.see(at, term, rng.choice(values[term]))
            changes = bed.tick(at)
            for change in changes:
                if change.detail == "no data":
                    assert bed.present & {"spo2_stale", "heart_rate_stale", "source_lost:mon", "source_silent:mon"}
        seen: dict[str, bool] = {}
        for moment, condition, present in bed.log:
            assert seen.get(condition, False) is not present, (seed, moment, condition)
            seen[condition] = present
        assert [moment for moment, _, _ in bed.log] == sorted(moment for moment, _, _ in bed.log)


def test_equal_pressures_are_implausible_and_one_measurement_may_come_in_two_chunks() -> None:
    def pressure(term: str, value: float, at: int, device_time: str | None) -> Observation:
        return Observation(term, value, "valid", at * NS, device_time)

    for systolic, diastolic, second, device_time, expected in (
        (100.0, 100.0, 10, None, {"implausible:nibp_sys", "implausible:nibp_dia"}),
        (70.0, 120.0, 12, "2026-03-03T10:00:00", {"implausible:nibp_sys", "implausible:nibp_dia"}),
        (70.0, 120.0, 12, None, {"nibp_sys_low", "nibp_dia_high"}),
    ):
        bed = Bedside(load_presets()["adult"])
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_sys", systolic, 10, device_time)))
        bed.take(bed.watch.observe(BED, "m", pressure("nibp_dia", diastolic, second, device_time)))
        bed.tick(13)
        assert bed.present == expected


def test_arming_begins_anew_with_the_patient_and_its_value_is_enough() -> None:
    bed = Bedside(load_presets()["adult"])
    bed.see(0, "resp_rate", 3)
    bed.see(1, "resp_rate", 0)
    assert bed.present == {"apnoea"}
    bed.take(bed.watch.new_patient(BED, 2 * NS))
    bed.see(3, "resp_rate", 0)
    bed.tick(300)
    assert bed.present == set()


def test_a_fraction_is_noticed_where_no_limit_is_set_and_after_good_values() -> None:
    bed = Bedside(load_presets()["bedside"])
    bed.see(0, "spo2", 97)
    bed.see(1, "spo2", 97)
    bed.see(2, "spo2", 0.97)
    assert bed.present == {"implausible:spo2"}


def test_a_value_that_changes_nothing_takes_the_short_way(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    (slot,) = prompt.watch._beds[BED].slots.values()
    assert slot.quiet
    prompt.see(1, "spo2", 85)
    assert not slot.quiet
