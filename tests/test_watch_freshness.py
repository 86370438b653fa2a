"""Freshness and sources: what is too old, silent or lost, and what takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from watch_rig import BED, NS, Bedside, built_in, low, preset

from edge_agent.presets import LIMIT_VERBS
from edge_agent.records import Observation, Score
from edge_agent.terms import TERMS, Term
from edge_agent.watch import Watch
from edge_agent.watch.room import RETURN_GRACE_S, SETTLE_S


@pytest.fixture
def prompt(tmp_path: Path) -> Bedside:
    return Bedside(preset(tmp_path, low(delay=0, off=0)))


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


def test_nothing_is_stale_before_the_first_value(prompt: Bedside) -> None:
    prompt.tick(10_000)
    assert prompt.watch.next_deadline() is None
    assert prompt.log == []


def test_a_limit_that_no_technical_condition_can_replace_stays(tmp_path: Path) -> None:
    stale = '[[condition]]\nid = "spo2_stale"\narming = "measured 3000"\n'
    bed = Bedside(preset(tmp_path, low(delay=0, more='arming = "first"') + stale))
    bed.see(0, "spo2", 85)
    bed.tick(500)
    assert bed.present == {"spo2_low"}
    bed.see(501, "spo2", 97)
    bed.tick(506)
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
    presets = built_in()
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


def test_technical_conditions_of_the_gateway() -> None:
    watch = Watch({"": built_in()["gateway"]})
    (change,) = watch.technical("", "disk_fault", True, 5, "0 MB left")
    assert (change.bed, change.condition, change.detail) == ("", "disk_fault", "0 MB left")
    assert list(watch.technical("", "disk_fault", True, 6)) == []
    assert [c.present for c in watch.technical("", "disk_fault", False, 7)] == [False]
    assert list(watch.technical("", "disk_fault", False, 8)) == []
    assert [c.condition for c in watch.technical("", "never heard of", True, 9)] == ["never heard of"]


@pytest.mark.alm("ALM-16")
@pytest.mark.parametrize("name", ["adult", "paediatric", "neonate"])
def test_every_vital_that_is_watched_is_missed_at_its_age_to_the_nanosecond(name: str) -> None:
    rows = built_in()[name]
    ages = {row.vital: row for row in rows.conditions if row.verb == "silent"}
    assert {row.vital for row in rows.conditions if row.verb in LIMIT_VERBS} <= set(ages)
    for vital, row in ages.items():
        assert row.silence_s is not None
        bed = Bedside(rows)
        term = next((term for term in TERMS if term.vital == vital), None)
        value = {"temp": 37.0, "resp_rate": 12.0}.get(vital, 70.0)

        def say(bed: Bedside, at_ns: int, term: Term | None = term, name: str = vital, value: float = value) -> None:
            if term is None:
                bed.take(bed.watch.score(BED, "mon", Score(name, 0.0, at_ns)))
            else:
                bed.see_ns(at_ns, term.name, value)

        say(bed, 5)
        bed.tick_ns(6)  # a pressure waits for its partner until the next turn
        again = 5 + round(row.silence_s * NS) // 2
        say(bed, again)
        bed.tick_ns(again + 1)
        due = again + round(row.silence_s * NS)
        bed.tick_ns(due - 1)
        assert row.id not in bed.present
        bed.tick_ns(due)
        assert row.id in bed.present and row.kind == "technical"
        assert bed.log[-1][0] * NS == pytest.approx(due) and bed.changes[-1].source == "mon"


@pytest.mark.alm("ALM-16")
def test_a_value_that_is_not_valid_does_not_count_as_data(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    for second in range(1, 30):
        prompt.see(second, "spo2", None, validity="invalid")
    prompt.tick_ns(30 * NS - 1)
    assert prompt.log == []
    prompt.tick_ns(30 * NS)
    assert prompt.present == {"spo2_stale"}


def test_grace_and_settling_are_exact(prompt: Bedside) -> None:
    prompt.state(0, "lost")
    prompt.state(5, "connected")
    prompt.tick_ns(round((5 + RETURN_GRACE_S) * NS) - 1)
    assert prompt.present == {"source_lost:mon"}
    (change,) = prompt.tick_ns(round((5 + RETURN_GRACE_S) * NS))
    assert (change.condition, change.present, change.detail) == ("source_lost:mon", False, "test")
    prompt.state(20, "silent")
    prompt.see(30, "spo2", 97)
    prompt.see(30.5, "spo2", 97)
    prompt.tick_ns(round((30 + SETTLE_S) * NS) - 1)
    assert prompt.present == {"source_silent:mon"}
    prompt.tick_ns(round((30 + SETTLE_S) * NS))
    assert prompt.present == set()


def test_a_value_after_the_link_is_back_shortens_the_grace_and_never_lengthens_it(prompt: Bedside) -> None:
    prompt.state(0, "lost")
    prompt.state(5, "connected")
    prompt.see(5 + RETURN_GRACE_S - 0.5, "spo2", 97)
    prompt.tick(5 + RETURN_GRACE_S)
    assert prompt.present == set()
    prompt.state(20, "lost")
    prompt.state(21, "connected")
    prompt.see(22, "spo2", 97)
    prompt.tick_ns(round((22 + SETTLE_S) * NS) - 1)
    assert prompt.present == {"source_lost:mon"}
    prompt.tick_ns(round((22 + SETTLE_S) * NS))
    assert prompt.present == set()


def test_a_source_that_is_lost_again_while_it_settles_stays_lost(prompt: Bedside) -> None:
    prompt.state(0, "lost")
    prompt.see(1, "spo2", 97)
    prompt.state(1.5, "lost")
    prompt.tick(1000)
    assert prompt.log == [(0, "source_lost:mon", True)]


def test_what_a_source_says_of_itself_is_carried(prompt: Bedside) -> None:
    (change,) = prompt.state(0, "lost")
    assert (change.source, change.detail, change.value, change.priority) == ("mon", "test", None, None)
    changes = prompt.state(1, "silent")
    assert [change.detail for change in changes] == ["test", "now silent"]
    assert list(prompt.watch.source_state("mon", ["nobody", BED], "connected", 2 * NS)) == []
    prompt.tick(2 + RETURN_GRACE_S)
    assert prompt.present == set(), "an unknown bed does not hide the next"
    assert prompt.state(20, "connected", "never lost") == []


def test_a_row_with_a_delay_hands_over_without_a_gap(tmp_path: Path) -> None:
    bed = Bedside(preset(tmp_path, '[[condition]]\nid = "source_lost"\ndelay_s = 10\n'))
    bed.state(0, "silent")
    bed.state(1, "lost")
    assert bed.present == {"source_silent:mon"}, "lost is not present yet"
    bed.tick(1 + RETURN_GRACE_S)
    assert bed.log[1:] == [(11, "source_lost:mon", True), (11, "source_silent:mon", False)]


def test_a_reported_condition_carries_its_newest_words(prompt: Bedside) -> None:
    prompt.technical(0, "driver_fault", True)
    assert prompt.technical(1, "driver_fault", True) == []
    (change,) = prompt.take(prompt.watch.technical(BED, "driver_fault", False, 2 * NS, "well again"))
    assert (change.present, change.detail) == (False, "well again")
    (change,) = prompt.take(prompt.watch.technical("nobody", "x", True, 3, "words"))
    assert (change.bed, change.condition, change.present, change.at_ns, change.detail) == (
        "nobody",
        "x",
        True,
        3,
        "words",
    )
    assert (change.value, change.source) == (None, "")


def test_a_lost_source_takes_over_from_stale_vitals_only_what_is_its_own(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97, source="a")
    prompt.see(0, "heart_rate", 70, source="b")
    prompt.state(1, "lost", "a")
    prompt.tick(30)
    assert prompt.present == {"source_lost:a", "heart_rate_stale"}


def test_a_lost_source_among_two_of_a_vital_does_not_speak_for_the_other(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 85, source="a")
    prompt.see(0, "spo2", 85, source="b")
    prompt.state(1, "lost", "a")
    prompt.tick(30)
    assert prompt.present == {"source_lost:a", "spo2_stale"}


def test_a_new_patient_is_missed_like_the_last_one(prompt: Bedside) -> None:
    prompt.see(0, "spo2", 97)
    prompt.take(prompt.watch.new_patient(BED, NS))
    assert prompt.watch.next_deadline() is None, "the last patient's values wait for nothing"
    prompt.see(2, "spo2", 97)
    prompt.tick_ns(32 * NS - 1)
    assert prompt.log == []
    prompt.tick_ns(32 * NS)
    assert prompt.present == {"spo2_stale"}


def test_what_was_never_reported_leaves_nothing_behind(prompt: Bedside) -> None:
    for number in range(100):
        assert prompt.technical(number, f"never {number}", False) == []
    assert prompt.watch._beds[BED].reported == {}
