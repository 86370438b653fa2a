"""Bedside scores: published tables at their boundaries, public vectors, and missing inputs that are not normal."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from edge_agent.watch.scores import NEWS2_RESPONSE, Result, mews, news2, qsofa, rox, shock_index, sirs

NORMAL: dict[str, Any] = {
    "resp_rate": 16, "spo2": 97, "oxygen": False, "systolic": 120, "pulse": 70, "consciousness": "A",
    "temperature": 37.0,
}  # fmt: skip

# RR, SpO2, O2, SBP, pulse, ACVPU, T, scale, total
VECTORS = [
    (16, 97, False, 120, 70, "A", 37.0, 1, 0), (4, 80, True, 80, 35, "U", 34.0, 1, 20),
    (21, 97, False, 120, 95, "A", 38.5, 1, 4), (26, 90, False, 120, 95, "A", 37.0, 1, 7),
    (22, 93, False, 120, 95, "A", 37.0, 1, 5), (18, 90, False, 120, 80, "A", 37.0, 2, 0),
    (18, 90, True, 120, 80, "A", 37.0, 2, 2), (18, 95, False, 120, 80, "A", 37.0, 2, 0),
    (18, 95, True, 120, 80, "A", 37.0, 2, 4), (18, 97, True, 120, 80, "A", 37.0, 2, 5),
    (18, 93, True, 120, 80, "A", 37.0, 2, 3), (18, 85, False, 120, 80, "A", 37.0, 2, 2),
    (18, 83, True, 120, 80, "A", 37.0, 2, 5), (18, 95, True, 120, 80, "A", 37.0, 1, 3),
    (16, 97, False, 120, 70, "C", 37.0, 1, 3), (16, 97, False, 220, 70, "A", 37.0, 1, 3),
    (16, 97, False, 120, 131, "A", 37.0, 1, 3), (16, 97, False, 120, 70, "A", 35.05, 1, 1),
    (24, 94, True, 105, 112, "A", 38.4, 1, 9),
]  # fmt: skip

# parameter: (value, points) at both sides of every boundary of the chart
NEWS2_EDGES: dict[str, list[tuple[float, int]]] = {
    "resp_rate": [(0, 3), (8, 3), (8.5, 1), (9, 1), (11, 1), (11.5, 0), (12, 0), (20, 0), (20.5, 2), (21, 2), (24, 2),
                  (24.5, 3), (25, 3), (60, 3)],
    "systolic": [(40, 3), (90, 3), (90.5, 2), (91, 2), (100, 2), (101, 1), (110, 1), (111, 0), (219, 0), (219.5, 3),
                 (220, 3)],
    "pulse": [(30, 3), (40, 3), (41, 1), (50, 1), (51, 0), (90, 0), (91, 1), (110, 1), (111, 2), (130, 2), (131, 3)],
    "temperature": [(34, 3), (35.0, 3), (35.01, 1), (35.05, 1), (35.1, 1), (36.0, 1), (36.1, 0), (38.0, 0),
                    (38.05, 1), (38.1, 1), (39.0, 1), (39.05, 2), (39.1, 2), (42, 2)],
    "spo2": [(70, 3), (91, 3), (91.5, 2), (92, 2), (93, 2), (93.5, 1), (94, 1), (95, 1), (95.5, 0), (96, 0), (100, 0)],
}  # fmt: skip
SCALE_2_EDGES = {
    False: [(83, 3), (83.5, 2), (84, 2), (85, 2), (85.5, 1), (86, 1), (87, 1), (87.5, 0), (88, 0), (92, 0), (93, 0),
            (97, 0), (100, 0)],
    True: [(83, 3), (83.5, 2), (84, 2), (85, 2), (85.5, 1), (86, 1), (87, 1), (87.5, 0), (88, 0), (92, 0), (92.5, 1),
           (93, 1), (94, 1), (94.5, 2), (95, 2), (96, 2), (96.5, 3), (97, 3), (100, 3)],
}  # fmt: skip
MEWS_EDGES: dict[str, list[tuple[float, int]]] = {
    "systolic": [(70, 3), (71, 2), (80, 2), (81, 1), (100, 1), (101, 0), (199, 0), (199.5, 2), (200, 2)],
    "heart_rate": [(40, 2), (41, 1), (50, 1), (51, 0), (100, 0), (101, 1), (110, 1), (111, 2), (129, 2), (130, 3)],
    "resp_rate": [(8, 2), (8.9, 2), (9, 0), (14, 0), (15, 1), (20, 1), (21, 2), (29, 2), (30, 3)],
    "temperature": [(34.9, 2), (34.99, 2), (35, 0), (38.4, 0), (38.45, 2), (38.5, 2)],
}
MEWS_NORMAL: dict[str, Any] = {
    "systolic": 120, "heart_rate": 70, "resp_rate": 12, "temperature": 37.0, "avpu": "A",
}  # fmt: skip


@pytest.mark.alm("ALM-32")
@pytest.mark.parametrize("vector", VECTORS)
def test_news2_vectors(vector: tuple[Any, ...]) -> None:
    result = news2(**dict(zip((*NORMAL, "scale"), vector[:8], strict=True)))
    assert (result.value, result.present, result.needed, result.partial) == (vector[8], 7, 7, False)


@pytest.mark.alm("ALM-32")
@pytest.mark.parametrize("parameter", NEWS2_EDGES)
def test_news2_boundaries(parameter: str) -> None:
    for value, points in NEWS2_EDGES[parameter]:
        result = news2(**{**NORMAL, parameter: value})
        assert (result.points[parameter], result.value) == (points, points), value


@pytest.mark.alm("ALM-32")
def test_news2_second_scale_and_the_inputs_that_are_words() -> None:
    for oxygen, edges in SCALE_2_EDGES.items():
        for spo2, points in edges:
            result = news2(**{**NORMAL, "spo2": spo2, "oxygen": oxygen}, scale=2)
            assert (result.points["spo2"], result.value) == (points, points + 2 * oxygen), (oxygen, spo2)
    for level, points in {"A": 0, "C": 3, "V": 3, "P": 3, "U": 3}.items():
        assert news2(**{**NORMAL, "consciousness": level}).points["consciousness"] == points


@pytest.mark.parametrize(
    ("changed", "band"),
    [({}, "zero"), ({"pulse": 91}, "low"), ({"pulse": 111, "resp_rate": 21}, "low"), ({"pulse": 131}, "low-medium"),
     ({"pulse": 131, "temperature": 38.5}, "low-medium"), ({"pulse": 131, "resp_rate": 21}, "medium"),
     ({"pulse": 111, "resp_rate": 21, "temperature": 39.5}, "medium"),
     ({"pulse": 131, "resp_rate": 25}, "medium"), ({"pulse": 131, "resp_rate": 25, "temperature": 38.5}, "high")],
)  # fmt: skip
def test_news2_bands(changed: dict[str, Any], band: str) -> None:
    assert news2(**{**NORMAL, **changed}).band == band
    assert NEWS2_RESPONSE[band]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_missing_in_every_score(value: float) -> None:
    for name in ("resp_rate", "spo2", "systolic", "pulse", "temperature"):
        for scale in (1, 2):
            assert news2(**{**NORMAL, name: value}, scale=scale).points[name] is None  # type: ignore[arg-type]
    for name in ("systolic", "heart_rate", "resp_rate", "temperature"):
        assert mews(**{**MEWS_NORMAL, name: value}).points[name] is None
    assert qsofa(resp_rate=value, systolic=value).present == sirs(temperature=value, paco2=value).present == 0
    assert shock_index(heart_rate=value, systolic=120).value is None
    assert rox(spo2=value, fio2=0.5, resp_rate=20).value is None


def test_no_two_scores_ask_for_the_same_response() -> None:
    assert len(set(NEWS2_RESPONSE.values())) == 5


@pytest.mark.alm("ALM-32")
@pytest.mark.parametrize("missing", NORMAL)
def test_a_missing_input_is_a_partial_score_and_never_a_normal_one(missing: str) -> None:
    result = news2(**{**NORMAL, missing: None})
    assert (result.value, result.present, result.partial, result.band) == (0, 6, True, None)
    assert result.points[missing] is None
    assert str(result) == "NEWS2 0 (partial, 6 of 7)"


@pytest.mark.alm("ALM-32")
def test_a_partial_score_has_a_band_only_where_it_cannot_be_lost() -> None:
    assert news2(resp_rate=21, pulse=111).band is None
    assert news2(resp_rate=25).band == "low-medium"
    assert news2(resp_rate=25, pulse=111).band == "medium"
    assert news2(resp_rate=25, pulse=111, spo2=92).band == "high"
    nothing = news2()
    assert (nothing.value, nothing.present, nothing.band, str(nothing)) == (
        None, 0, None, "NEWS2 none (partial, 0 of 7)",
    )  # fmt: skip
    assert news2(**{**NORMAL, "spo2": math.nan}).points["spo2"] is None
    unknown_oxygen = news2(**{**NORMAL, "spo2": 95, "oxygen": None}, scale=2)
    assert (unknown_oxygen.points["spo2"], unknown_oxygen.present) == (None, 5)
    assert news2(**{**NORMAL, "spo2": 85, "oxygen": None}, scale=2).points["spo2"] == 2
    assert news2(**{**NORMAL, "spo2": None}, scale=2).points["spo2"] is None


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="scales 1 and 2, not 3"):
        news2(**NORMAL, scale=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of A, C, V, P, U, not 'X'"):
        news2(consciousness="X")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of A, V, P, U, not 'C'"):
        mews(avpu="C")  # type: ignore[arg-type]


@pytest.mark.alm("ALM-32")
def test_no_band_is_left_open_and_more_information_never_lowers_a_score() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        values = {
            "resp_rate": rng.uniform(0, 60), "spo2": rng.uniform(60, 100), "oxygen": rng.random() < 0.5,
            "systolic": rng.uniform(40, 260), "pulse": rng.uniform(20, 200), "consciousness": rng.choice("ACVPU"),
            "temperature": rng.uniform(33, 42),
        }  # fmt: skip
        scale = rng.choice((1, 2))
        whole = news2(**values, scale=scale)
        assert 0 <= (whole.value or 0) <= 20 and whole.band is not None
        part = news2(**{name: value for name, value in values.items() if rng.random() < 0.5}, scale=scale)
        assert (part.value or 0) <= (whole.value or 0)
        order = ("zero", "low", "low-medium", "medium", "high")
        assert part.band is None or order.index(part.band) <= order.index(whole.band)


@pytest.mark.alm("ALM-32")
@pytest.mark.parametrize("parameter", MEWS_EDGES)
def test_mews_boundaries(parameter: str) -> None:
    for value, points in MEWS_EDGES[parameter]:
        result = mews(**{**MEWS_NORMAL, parameter: value})
        assert (result.points[parameter], result.value) == (points, points), value


@pytest.mark.alm("ALM-32")
def test_mews_words_threshold_and_missing_inputs() -> None:
    for level, points in zip("AVPU", range(4), strict=True):
        assert mews(**{**MEWS_NORMAL, "avpu": level}).value == points
    assert mews(**MEWS_NORMAL).band == "not critical"
    assert mews(**{**MEWS_NORMAL, "avpu": "U", "systolic": 81}).band == "not critical"
    assert mews(**{**MEWS_NORMAL, "avpu": "U", "systolic": 80}).band == "critical"
    for missing in MEWS_NORMAL:
        result = mews(**{**MEWS_NORMAL, missing: None})
        assert (result.value, result.present, result.needed, result.band) == (0, 4, 5, None)
    assert mews(avpu="U", systolic=60).band == "critical"
    assert mews(systolic=60, heart_rate=130, resp_rate=30, temperature=34, avpu="U").value == 14
    assert "Subbe 2001" in mews().name


def test_qsofa() -> None:
    for rate, pressure, gcs in itertools.product((21, 22), (100, 101), (14, 15)):
        result = qsofa(resp_rate=rate, systolic=pressure, gcs=gcs)
        points = (rate >= 22) + (pressure <= 100) + (gcs < 15)
        assert (result.value, result.band) == (points, "positive" if points >= 2 else "negative")
    assert (qsofa(resp_rate=30).value, qsofa(resp_rate=30).band) == (1, None)
    assert qsofa(resp_rate=30, gcs=3).band == "positive"
    assert qsofa().value is None


def test_sirs() -> None:
    normal = {"temperature": 37, "heart_rate": 80, "resp_rate": 16, "white_cells": 8}
    assert (sirs(**normal).value, sirs(**normal).band, sirs(**normal).needed) == (0, "negative", 4)
    for name, outside, inside in (
        ("temperature", (38.01, 35.9), (38, 36)), ("heart_rate", (90.5, 91), (90,)), ("resp_rate", (21, 20.5), (20,)),
        ("paco2", (31.9,), (32,)), ("white_cells", (12.1, 3.9), (12, 4)), ("bands", (10.1,), (10,)),
    ):  # fmt: skip
        assert [sirs(**{**normal, name: value}).value for value in outside] == [1] * len(outside), name
        assert [sirs(**{**normal, name: value}).value for value in inside] == [0] * len(inside), name
    assert sirs(temperature=39, heart_rate=100).band == "positive"
    assert sirs(temperature=39).band is None
    assert sirs(paco2=30).points == {"temperature": None, "heart_rate": None, "respiration": 1, "white_cells": None}
    assert sirs(resp_rate=12, paco2=30).points["respiration"] == 1


def test_shock_index() -> None:
    assert shock_index(heart_rate=110, systolic=90).value == pytest.approx(1.22, abs=0.005)
    for rate, band in ((49, "below normal"), (50, "normal"), (70, "normal"), (71, "raised"), (89, "raised"),
                       (90, "concern"), (150, "concern")):  # fmt: skip
        assert shock_index(heart_rate=rate, systolic=100).band == band
    for given in ({"heart_rate": 70.0}, {"systolic": 120.0}):
        assert (shock_index(**given).value, shock_index(**given).present) == (None, 1)
    assert shock_index(heart_rate=70, systolic=0) == Result("shock index", None, 2, 2, {})
    assert str(shock_index(heart_rate=60, systolic=100)) == "shock index 0.6"


def test_rox() -> None:
    assert rox(spo2=92, fio2=0.6, resp_rate=28).value == pytest.approx(5.48, abs=0.005)
    assert rox(spo2=88, fio2=0.8, resp_rate=35).value == pytest.approx(3.14, abs=0.005)
    assert rox(spo2=92, fio2=0.6, resp_rate=28).band is None
    assert rox(spo2=92, fio2=0.6, resp_rate=28, hours=3).band is None
    for hours, high in ((2, 2.85), (6, 3.47), (12, 3.85)):
        for index, band in ((4.88, "low risk"), (4.87, "unclear"), (high, "unclear"), (high - 0.01, "high risk")):
            assert rox(spo2=index * 20, fio2=1.0, resp_rate=20, hours=hours).band == band, (hours, index)
    assert (rox(spo2=92, resp_rate=28).value, rox(spo2=92, resp_rate=28).present) == (None, 2)
    assert rox(spo2=92, fio2=0.5, resp_rate=0) == Result("ROX", None, 3, 3, {})
    assert rox(spo2=97, fio2=0.21, resp_rate=10).value == pytest.approx(46.19, abs=0.01)
    for wrong in (60, 0.2, 1.01):
        with pytest.raises(ValueError, match="fraction"):
            rox(spo2=92, fio2=wrong, resp_rate=28)
