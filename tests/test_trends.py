"""Trends: one sample an interval and vital, gaps where nothing valid came, memory of a fixed size."""

from __future__ import annotations

import json
import tracemalloc

from edge_agent import terms
from edge_agent.records import Observation, Validity, observation
from edge_agent.trends import INTERVAL_S, SHOWN, SLOTS, Trends

S = 1_000_000_000
START = 1_000 * S  # a multiple of the interval


def seen(term: str, value: float | None, at_s: float, validity: Validity = "valid") -> Observation:
    return observation(terms.BY_NAME[term], value, START + round(at_s * S), validity=validity)


class Ward:
    """One bed whose latest observations are sampled every second."""

    def __init__(self, **settings: int) -> None:
        self.trends = Trends(["B"], **settings)
        self.latest: dict[str, dict[str, Observation]] = {"B": {}}

    def sample(self, at_s: float) -> bool:
        return self.trends.sample(self.latest, START + round(at_s * S))

    def see(self, term: str, value: float | None, at_s: float, validity: Validity = "valid") -> None:
        self.latest["B"][term] = seen(term, value, at_s, validity)
        self.sample(at_s)


def test_ten_minutes_are_kept() -> None:
    assert INTERVAL_S * SLOTS == 600


def test_a_sample_is_the_last_valid_value_of_its_interval() -> None:
    ward = Ward()
    ward.see("spo2", 97, 0.5)
    ward.see("spo2", 93, 3.0)
    ward.see("spo2", 12, 4.0, "questionable")
    ward.see("spo2", None, 4.5, "invalid")
    assert ward.trends.view("B") == {}, "an interval that runs is no sample yet"
    assert ward.sample(5.0)
    assert ward.trends.view("B") == {"spo2": [93.0]}


def test_nothing_is_carried_forward() -> None:
    ward = Ward()
    ward.see("spo2", 97, 1)
    for second in range(2, 21):
        ward.sample(second)  # the latest observation is still there, from the first interval
    ward.see("spo2", 95, 22)
    ward.sample(25)
    assert ward.trends.view("B") == {"spo2": [97.0, None, None, None, 95.0]}
    ward.sample(30)
    assert ward.trends.view("B")["spo2"][-1] is None


def test_a_value_that_came_just_before_the_end_belongs_to_the_interval_that_ends() -> None:
    ward = Ward()
    ward.sample(0)
    ward.latest["B"]["spo2"] = seen("spo2", 88, 4.999)
    ward.sample(5.2)
    assert ward.trends.view("B") == {"spo2": [88.0]}
    ward.latest["B"]["spo2"] = seen("spo2", 89, 10.1)
    ward.sample(10.2)  # came after the end: it is no sample of the second interval
    assert ward.trends.view("B")["spo2"] == [88.0, None]


def test_intervals_that_nobody_sampled_are_gaps() -> None:
    ward = Ward(slots=6)
    ward.see("spo2", 97, 1)
    ward.sample(22)  # four intervals later
    assert ward.trends.view("B")["spo2"] == [97.0, None, None, None]
    ward.see("spo2", 96, 23)
    ward.sample(5000)
    assert ward.trends.view("B") == {}, "older than the ring is long"


def test_the_ring_holds_the_newest_slots_oldest_first() -> None:
    ward = Ward(slots=4)
    for number in range(11):
        ward.see("heart_rate", 60 + number, number * 5 + 1)
    ward.sample(55)
    assert ward.trends.view("B") == {"heart_rate": [67.0, 68.0, 69.0, 70.0]}


def test_beds_are_apart_and_a_new_patient_does_not_see_the_last_one() -> None:
    trends = Trends(["A", "B"])
    latest = {"A": {"spo2": seen("spo2", 91, 1)}, "B": {"spo2": seen("spo2", 99, 1)}}
    trends.sample(latest, START + S)
    trends.sample(latest, START + 5 * S)
    assert (trends.view("A"), trends.view("B")) == ({"spo2": [91.0]}, {"spo2": [99.0]})
    trends.clear("A")
    assert (trends.view("A"), trends.view("B")) == ({}, {"spo2": [99.0]})
    trends.sample(latest, START + 10 * S)
    assert trends.view("A") == {}


def test_what_is_encoded_is_what_is_seen() -> None:
    ward = Ward()
    ward.see("spo2", 91.5, 1)
    assert json.loads(bytes(ward.trends.encoded("B"))) == {}
    ward.sample(5)
    assert json.loads(bytes(ward.trends.encoded("B"))) == ward.trends.view("B") == {"spo2": [91.5]}
    ward.sample(10)
    assert json.loads(bytes(ward.trends.encoded("B"))) == {"spo2": [91.5, None]}
    ward.trends.clear("B")
    assert bytes(ward.trends.encoded("B")) == b"{}"


def test_a_waiting_value_does_not_outlive_its_patient() -> None:
    ward = Ward()
    ward.see("spo2", 91, 1)
    ward.trends.clear("B")
    ward.latest["B"].clear()
    ward.sample(5)
    assert ward.trends.view("B") == {}


def test_terms_past_the_most_are_left_out_until_one_has_gone() -> None:
    ward = Ward(most=2, slots=3)
    for term in ("heart_rate", "spo2", "resp_rate"):
        ward.latest["B"][term] = seen(term, 50, 1)
    ward.sample(1)
    ward.sample(5)
    assert set(ward.trends.view("B")) == {"heart_rate", "spo2"}
    for second in (6, 11, 16, 21):
        ward.see("spo2", 97, second)
        ward.see("resp_rate", 14, second)
    ward.sample(25)
    assert set(ward.trends.view("B")) == {"spo2", "resp_rate"}, "heart rate has left the ring"
    assert ward.trends.view("B")["resp_rate"][-1] == 14.0


def test_what_says_nothing_in_ten_minutes_is_not_kept() -> None:
    assert {"spo2", "heart_rate", "nibp_sys", "temp"} <= SHOWN
    assert not SHOWN & {"weight", "battery", "ecg_ii"}
    ward = Ward()
    ward.see("weight", 80, 1)
    ward.sample(5)
    assert ward.trends.view("B") == {}


def test_memory_does_not_grow() -> None:
    names = [str(number) for number in range(4)]
    trends = Trends(names)
    tracemalloc.start()
    try:
        sizes = []
        for minute in (12, 36):
            for second in range(minute * 60 - 720, minute * 60, 5):
                latest = {bed: {term: seen(term, 40.5, second + 1) for term in sorted(SHOWN)} for bed in names}
                trends.sample(latest, START + (second + 1) * S)
            del latest
            sizes.append(tracemalloc.get_traced_memory()[0])
        assert sizes[1] - sizes[0] < 20_000, sizes
    finally:
        tracemalloc.stop()
    assert all(len(values) == SLOTS for values in trends.view("3").values())
