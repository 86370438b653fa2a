"""A preset that changes while it is in force: nothing is disabled on the way, the newest values are judged at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, device, low, preset

from edge_agent.presets import Preset
from edge_agent.watch.vital import TAKEN_OUT


@pytest.fixture
def adult() -> Preset:
    return built_in()["adult"]


@pytest.fixture
def ward(adult: Preset) -> Bedside:
    return Bedside(adult)


def site(tmp_path: Path, limit: str = "below 90", delay: float = 0, off: float = 0, more: str = "") -> Preset:
    return preset(tmp_path, low(delay, off, more).replace("below 90", limit))


def test_what_is_present_under_both_goes_on(ward: Bedside, adult: Preset) -> None:
    ward.see(0, "spo2", 85)
    ward.tick(15)
    assert ward.change(16, adult.with_row("spo2_low", "below 88")) == []
    ward.see(17, "spo2", 85)
    ward.tick(40)
    assert ward.log == [(15, "spo2_low", True)]


def test_a_value_that_the_new_limit_excludes_is_judged_at_once_with_its_delay(ward: Bedside, adult: Preset) -> None:
    ward.see(0, "spo2", 91)
    assert ward.change(10, adult.with_row("spo2_low", "below 92", 5)) == []
    ward.tick_ns(15 * NS - 1)
    assert ward.log == []
    ward.tick_ns(15 * NS)
    assert ward.log == [(15, "spo2_low", True)] and ward.changes[0].value == 91


def test_a_value_that_the_new_limit_allows_ends_the_alarm_after_the_off_delay(ward: Bedside, adult: Preset) -> None:
    ward.see(0, "spo2", 89)
    ward.tick(15)
    ward.change(20, adult.with_row("spo2_low", "below 88"))  # 89 lies within its deadband
    ward.see(22, "spo2", 89)
    ward.tick_ns(25 * NS - 1)
    assert ward.present == {"spo2_low"}
    ward.tick_ns(25 * NS)
    assert ward.log[1:] == [(25, "spo2_low", False)]


def test_a_changed_delay_alone_keeps_the_deadband(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 85)
    bed.see(1, "spo2", 91)
    assert bed.change(2, site(tmp_path, delay=5)) == []
    assert bed.see(3, "spo2", 91) == []
    assert len(bed.see(4, "spo2", 92)) == 1


def test_a_changed_deadband_is_judged_anew(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 85)
    bed.see(1, "spo2", 91)
    wider = preset(tmp_path, low(0, 0).replace("deadband = 2", "deadband = 1"))
    assert [change.present for change in bed.change(2, wider)] == [False]


@pytest.mark.parametrize(("delay", "at"), [(20, 20), (5, 12), (12, 12), (12.5, 12.5), (0, 12)])
def test_a_delay_that_runs_is_as_long_as_the_new_one_says_from_its_begin(
    tmp_path: Path, delay: float, at: float
) -> None:
    bed = Bedside(site(tmp_path, delay=15))
    bed.see(0, "spo2", 85)
    bed.change(12, site(tmp_path, delay=delay))
    bed.tick_ns(round(at * NS) - 1)
    assert [entry for entry in bed.log if entry[0] < at] == []
    bed.tick(at)
    assert bed.log == [(at, "spo2_low", True)]


def test_an_off_delay_that_runs_likewise(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path, off=20))
    bed.see(0, "spo2", 85)
    bed.see(1, "spo2", 97)
    bed.change(5, site(tmp_path, off=10))
    bed.tick_ns(11 * NS - 1)
    assert bed.present == {"spo2_low"}
    bed.tick_ns(11 * NS)
    assert bed.present == set()


def test_a_shorter_delay_does_not_raise_what_the_new_limit_allows(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path, delay=15))
    bed.see(0, "spo2", 85)
    assert bed.change(12, site(tmp_path, "below 80", delay=5)) == []
    bed.tick(29)
    assert bed.log == []


def test_the_old_limit_is_in_force_until_the_moment_of_the_change(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path, delay=10))
    bed.see(0, "spo2", 85)
    assert bed.change(12, site(tmp_path, "below 80"))[0].present, "its delay ran out before"
    assert bed.log == [(12, "spo2_low", True), (12, "spo2_low", False)]


def test_a_row_that_is_gone_ends_saying_so_and_stays_away(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 85)
    (change,) = bed.change(1, preset(tmp_path, ""))
    assert (change.condition, change.present, change.detail) == ("spo2_low", False, TAKEN_OUT)
    bed.see(2, "spo2", 70)
    bed.tick(31)
    assert bed.log[2:] == []
    bed.tick(32)
    assert bed.present == {"spo2_stale"}
    bed.see(40, "spo2", 80)
    assert [entry[1:] for entry in bed.take(bed.watch.set_preset(BED, site(tmp_path), 41 * NS)) and bed.log[-1:]] == [
        ("spo2_low", True)
    ]


def test_a_pending_delay_of_a_row_that_is_gone_never_runs_out(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path, delay=15))
    bed.see(0, "spo2", 85)
    assert bed.change(5, preset(tmp_path, "")) == []
    bed.tick(29)
    assert bed.log == []


def test_the_short_way_follows_the_new_limits(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 93)
    bed.see(1, "spo2", 93)
    bed.change(2, site(tmp_path, "below 92"))
    assert len(bed.see(3, "spo2", 91)) == 1
    bed.see(4, "spo2", 97)
    bed.change(5, site(tmp_path, "below 60"))
    assert bed.see(6, "spo2", 61) == []
    assert len(bed.see(7, "spo2", 59)) == 1
    (slot,) = bed.watch._beds[BED].slots.values()
    assert slot.low == 60


def test_a_limit_that_is_new_is_armed_by_what_was_seen(tmp_path: Path, adult: Preset) -> None:
    bed = Bedside(preset(tmp_path, "", "bedside"))
    bed.see(0, "resp_rate", 12)
    bed.see(1, "resp_rate", 0)
    bed.change(2, adult)
    assert bed.present == {"apnoea"}, "a row with the same arming had been armed"
    unarmed = Bedside(preset(tmp_path, "", "bedside"))
    unarmed.see(1, "resp_rate", 2)
    unarmed.change(2, adult)
    unarmed.see(3, "resp_rate", 0)
    unarmed.tick(20)
    assert unarmed.present == set()
    unarmed.see(21, "resp_rate", 3)
    unarmed.see(22, "resp_rate", 0)
    assert unarmed.present == {"apnoea"}


@pytest.mark.parametrize(("arming", "at", "armed"), [("first", 1, True), ("measured 30", 30, True),
                                                     ("measured 30", 29.9, False), ("at_least 85", 1, True),
                                                     ("at_least 86", 1, False)])  # fmt: skip
def test_arming_of_a_new_row(tmp_path: Path, arming: str, at: float, armed: bool) -> None:
    bed = Bedside(preset(tmp_path, '[[condition]]\nid = "spo2_stale"\narming = "at_least 84"\npresent = "silent 90"\n'))
    bed.see(7, "spo2", 85)
    bed.change(7 + at, preset(tmp_path, low(0, 0, f'arming = "{arming}"')))
    assert bed.present == ({"spo2_low"} if armed else set())


def test_a_vital_without_data_of_this_patient_arms_nothing(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 97)
    bed.take(bed.watch.new_patient(BED, NS))
    bed.change(2, site(tmp_path, more='arming = "at_least 90"'))
    assert bed.see(3, "spo2", 85) == []


def test_a_shorter_age_is_noticed_in_time_and_a_longer_one_waited_for(tmp_path: Path) -> None:
    def aged(seconds: float) -> Preset:
        return preset(tmp_path, low(0, 0) + f'[[condition]]\nid = "spo2_stale"\npresent = "silent {seconds}"\n')

    bed = Bedside(aged(60))
    bed.see(0, "spo2", 97)
    bed.change(1, aged(10))
    bed.tick_ns(10 * NS - 1)
    assert bed.log == []
    bed.tick_ns(10 * NS)
    assert bed.log == [(10, "spo2_stale", True)]
    bed.see(11, "spo2", 97)
    bed.change(12, aged(60))
    bed.tick_ns(71 * NS - 1)
    assert bed.present == set()
    bed.tick_ns(71 * NS)
    assert bed.present == {"spo2_stale"}
    bed.see(80, "spo2", 97)
    bed.change(100, aged(10))
    assert bed.watch.next_deadline() == 100 * NS, "the value is too old by now"
    bed.tick(100)
    assert bed.present == {"spo2_stale"}


def test_many_changes_leave_no_deadlines_behind(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 97)
    for second in range(100):
        bed.change(second / 10, site(tmp_path, f"below {80 + second % 10}"))
    assert len(bed.watch._queue.heap) < 5


def test_a_stale_row_of_another_name_takes_over_before_the_old_one_ends(tmp_path: Path) -> None:
    cvp = (
        '[[condition]]\nid = "cvp_high"\nkind = "physiological"\nvital = "cvp"\npresent = "above 15"\n'
        'priority = "low"\n[[condition]]\nid = "NAME"\nkind = "technical"\nvital = "cvp"\n'
        'present = "silent 30"\npriority = "low"\n'
    )
    bed = Bedside(preset(tmp_path, cvp.replace("NAME", "old")))
    bed.see(0, "cvp", 10)
    bed.tick(30)
    changes = bed.change(31, preset(tmp_path, cvp.replace("NAME", "new")))
    assert [(change.condition, change.present, change.detail) for change in changes] == [
        ("new", True, ""), ("old", False, TAKEN_OUT),
    ]  # fmt: skip
    assert changes[0].source == "mon"
    assert [entry[1:] for entry in bed.change(32, preset(tmp_path, "")) and bed.log[-1:]] == [("new", False)]
    bed.see(33, "cvp", 10)
    bed.change(34, preset(tmp_path, cvp.replace("NAME", "old")))
    bed.tick(63)
    assert bed.present == {"old"}, "armed by the value before the change"


def test_an_id_that_moves_to_another_vital_ends_before_it_begins(tmp_path: Path) -> None:
    row = '[[condition]]\nid = "x"\nkind = "physiological"\nvital = "{}"\npresent = "{}"\npriority = "low"\n'
    bed = Bedside(preset(tmp_path, row.format("spo2", "below 90")))
    bed.see(0, "heart_rate", 130)
    bed.see(0, "spo2", 85)
    for at, vital, limit in ((1, "heart_rate", "above 120"), (2, "spo2", "below 90")):
        bed.change(at, preset(tmp_path, row.format(vital, limit)))
        assert bed.log[-2:] == [(at, "x", False), (at, "x", True)]


def test_device_alarms_and_technical_conditions_follow(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.tell(device(0, "start", state="active"))
    bed.tell(device(0, "start", "low", "LEAD", "8", state="active", type="ST"))
    bed.technical(0, "driver_fault", True)
    bed.state(0, "lost", "other")
    bed.see(0, "icp", 900)
    assert bed.change(1, site(tmp_path, "below 80")) == []
    changes = bed.change(2, preset(tmp_path, '[[condition]]\nid = "device_alarm"\nenabled = false\n'))
    assert [(change.condition, change.detail) for change in changes] == [("device_alarm:7", TAKEN_OUT)]
    assert bed.present == {"device_technical:8", "driver_fault", "source_lost:other", "implausible:icp"}
    assert bed.tell(device(3, "continue", state="active")) == []


def test_delays_of_technical_rows_follow_too(tmp_path: Path) -> None:
    def delayed(seconds: float) -> Preset:
        ids = ("driver_fault", "implausible", "device_alarm", "source_lost")
        return preset(tmp_path, "".join(f'[[condition]]\nid = "{each}"\ndelay_s = {seconds}\n' for each in ids))

    bed = Bedside(delayed(20))
    bed.technical(0, "driver_fault", True)
    bed.see(0, "icp", 900)
    bed.tell(device(0, "start", state="active"))
    bed.change(1, delayed(5))
    bed.tick_ns(5 * NS - 1)
    assert bed.log == []
    bed.tick_ns(5 * NS)
    assert bed.present == {"driver_fault", "implausible:icp", "device_alarm:7"}
    bed.state(10, "lost", "other")
    bed.tick(15)
    assert "source_lost:other" in bed.present


def test_a_changed_row_of_a_source_counts_from_its_next_loss(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, ""))
    bed.state(0, "lost")
    bed.see(1, "spo2", 97)
    bed.tick(2)
    bed.change(3, preset(tmp_path, '[[condition]]\nid = "source_lost"\ndelay_s = 20\n'))
    bed.state(4, "lost")
    bed.tick_ns(24 * NS - 1)
    assert "source_lost:mon" not in bed.present
    bed.tick_ns(24 * NS)
    assert "source_lost:mon" in bed.present


def test_what_a_restart_left_is_judged_by_the_new_limit(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.restore(0, "spo2_low", 85.0)
    assert bed.change(1, site(tmp_path, "below 88")) == []
    assert [change.present for change in bed.change(2, site(tmp_path, "below 80"))] == [False]
    unknown = Bedside(site(tmp_path))
    unknown.restore(0, "spo2_low")
    assert unknown.change(1, site(tmp_path, "below 80")) == []
    assert unknown.present == {"spo2_low"}


def test_old_values_are_not_judged(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 91)
    bed.tick(30)
    bed.change(31, site(tmp_path, "below 95"))
    assert bed.present == {"spo2_stale"}


def test_two_streams_are_judged_as_one_vital(tmp_path: Path) -> None:
    bed = Bedside(site(tmp_path))
    bed.see(0, "spo2", 85, channel="left")
    bed.see(0, "spo2", 75, channel="right")
    assert bed.change(1, site(tmp_path, "below 80")) == []
    assert bed.present == {"spo2_low"}
    bed.see(2, "spo2", 97, channel="right")
    assert bed.present == set()


def test_an_unknown_bed_has_no_preset_to_change(ward: Bedside, adult: Preset) -> None:
    assert list(ward.watch.set_preset("nobody", adult, 0)) == []


def test_a_change_never_leaves_a_violating_vital_without_its_alarm(adult: Preset) -> None:
    """Against a watch that had the last preset all the time, once every delay has run out."""
    for seed in range(40):
        rng = random.Random(seed)
        limits = ("below 86", "below 90", "below 94")
        bed, current = Bedside(adult), adult
        value, at = 97.0, 0.0
        for _ in range(40):
            at += rng.choice((0.5, 1, 2))
            if rng.random() < 0.3:
                current = current.with_row("spo2_low", rng.choice(limits), rng.choice((0.0, 5.0, 15.0)))
                bed.change(at, current)
            value = rng.choice((97.0, 95.0, 93.0, 89.0, 85.0))
            bed.see(at, "spo2", value)
            bed.tick(at)
        same = Bedside(current)
        for step in range(21):
            for each in (bed, same):
                each.see(at + step, "spo2", value)
                each.tick(at + step)
        row = current.by_id["spo2_low"]
        assert row.low is not None
        if not row.low <= value < row.low + row.deadband:
            assert bed.present == same.present, seed
        seen: dict[str, bool] = {}
        for moment, condition, present in bed.log:
            assert seen.get(condition, False) is not present, (seed, moment, condition)
            seen[condition] = present
