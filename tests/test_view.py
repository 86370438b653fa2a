"""The terminal view: what a person reads for a given status."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from edge_agent import NOTICE, view
from edge_agent.trends import SLOTS
from edge_agent.view_beds import ASCII, BLOCKS, trend


def value(number: float | None, unit: str, validity: str = "valid", age_s: float = 0.5) -> dict[str, Any]:
    return {"value": number, "unit": unit, "validity": validity, "age_s": age_s}


def alarm(priority: str, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "alert_id": "1-1",
        "condition": "c",
        "kind": "physiological",
        "priority": priority,
        "state": "On",
        "text": text,
        "value": None,
        "limit": "",
        "since_s": 3.0,
        **fields,
    }


def bed(name: str, **fields: Any) -> dict[str, Any]:
    quiet = {"priority": "none", "visual": False, "audio": False, "inactivation": None}
    return {"id": name, "preset": "adult", "patient": True, "values": {}, "alarm": quiet, "alarms": [], **fields}


STATUS: dict[str, Any] = {
    "gateway": "icu-gw-1",
    "version": "0.1.0",
    "instance": "i",
    "uptime_s": 3675,
    "notice": NOTICE,
    "beds": [
        bed(
            "ICU-1",
            values={
                "heart_rate": value(72.0, "/min"),
                "spo2": value(97.0, "%"),
                "nibp_sys": value(121.0, "mm[Hg]", age_s=300.0),
                "nibp_dia": value(78.0, "mm[Hg]", age_s=300.0),
                "temp": value(36.64, "Cel", "questionable"),
                "perfusion_index": value(1.4, "%"),
                "cardiac_output": value(5.2, "L/min"),
            },
            limits={
                "heart_rate": {"low": 50.0, "high": 120.0},
                "spo2": {"low": 90.0, "high": None},
                "nibp_sys": {"low": 90.0, "high": 180.0},
                "temp": {"low": None, "high": 38.5},
            },
            limits_off=["etco2_low"],
            trends={"heart_rate": [72.0] * 60, "spo2": [97.0] * 119 + [None]},
        ),
        bed(
            "ICU-2",
            patient=False,
            values={"spo2": value(None, "%", "not_available"), "heart_rate": value(55.0, "/min", "invalid")},
            alarm={
                "priority": "high",
                "visual": True,
                "audio": False,
                "inactivation": {"state": "audio-paused", "remaining_s": 96.0},
            },
            alarms=[
                alarm("low", "Source silent", kind="technical", source="oximeter"),
                alarm("high", "Desaturation", value=78.0, limit="below 80", state="Ack", since_s=12.0),
            ],
        ),
    ],
    "gateway_alarms": [],
    "sources": [
        {
            "name": "hl7@mllp-listen://127.0.0.1:2575",
            "driver": "hl7",
            "link": "mllp-listen://127.0.0.1:2575",
            "beds": ["ICU-1", "ICU-2", "ICU-3"],
            "state": "connected",
            "detail": "1 peer",
            "items": 212,
            "rejects": 0,
        },
        {
            "name": "nonin@serial:///tmp/oximeter",
            "driver": "nonin",
            "link": "serial:///tmp/oximeter",
            "beds": ["ICU-1"],
            "state": "lost",
            "detail": "no such file",
            "items": 90,
            "rejects": 2,
        },
    ],
    "latency": {"p50_us": 210, "p99_us": 900, "count": 200},
    "buffer": {"stored": 3000, "pending": 1, "bytes": 1_234_567, "oldest_s": 3.0, "fault": ""},
    "cloud": {
        "state": "connected",
        "forwarded": {"alerts": 3, "data": 400},
        "backlog_records": 2,
        "detail": "",
    },
    "annunciators": [{"kind": "record", "fault": ""}],
}


SIZES = [(80, 24), (40, 15), (120, 40)]


def drawn(status: Any, width: int = 130, height: int = 40, bed: str | None = None, glyphs: Any = BLOCKS) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view.render(status, width, height, bed, glyphs))
    return [line.rstrip() for line in capture.get().splitlines()]


def coloured(status: Any, width: int = 120, height: int = 40) -> str:
    console = Console(width=width, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(view.render(status, width, height))
    return capture.get()


def only(**fields: Any) -> dict[str, Any]:
    """A status with one bed and nothing else on the screen but title, summary and notice."""
    return {**STATUS, "beds": [bed("B", **fields)], "sources": []}


def ward(count: int) -> dict[str, Any]:
    status = copy.deepcopy(STATUS)
    status["beds"] = [{**copy.deepcopy(status["beds"][number % 2]), "id": f"ICU-{number}"} for number in range(count)]
    return status


def line_with(lines: list[str], text: str) -> str:
    found = [line for line in lines if text in line]
    assert len(found) == 1, (text, lines)
    return found[0]


def squeezed(line: str) -> str:
    return " ".join(line.split())


def news2(value: float | None, present: int, band: str | None = None) -> dict[str, Any]:
    said = {"label": "NEWS2", "value": value, "present": present, "needed": 7, "band": band, "detail": "pulse 3"}
    said["at_least"] = band is not None and present < 7
    return {"news2": {**said, "response": "be there"} if band else said}


def risk(value: float | None, **fields: Any) -> dict[str, Any]:
    return {
        "name": "sepsis_risk",
        "value": value,
        "coverage": 0.833,
        "detail": "",
        "shadow": False,
        "age_s": 9.0,
        **fields,
    }


SHOCK = {"label": "SI", "value": 0.9, "present": 2, "needed": 2, "band": "concern", "detail": ""}
VITALS = {"heart_rate": value(131.0, "/min"), "spo2": value(97.0, "%")}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"scores": news2(3, 7, "low-medium")}, "NEWS2 3 low-medium: be there"),
        ({"scores": news2(3, 5, "low-medium")}, "NEWS2 3 (partial, 5 of 7) at least low-medium: be there"),
        ({"scores": news2(0, 5)}, "NEWS2 0 (partial, 5 of 7)"),
        ({"scores": news2(None, 0)}, "NEWS2 --- (partial, 0 of 7)"),
        ({"scores": news2(0, 7), "risk": risk(0.1234)}, "NEWS2 0 | sepsis risk 0.123 (coverage 83 %)"),
        ({"risk": risk(0.5, shadow=True, age_s=180)}, "sepsis risk 0.500 in shadow (coverage 83 %, 3 min ago)"),
        ({"scores": news2(0, 7), "risk": risk(None, detail="3 of 6 hours")}, "NEWS2 0 | sepsis risk ---: 3 of 6 hours"),
        ({"risk": risk(None)}, "sepsis risk ---: no reason given"),
    ],
)
def test_a_card_tells_news2_and_the_risk_with_what_they_rest_on(fields: dict[str, Any], line: str) -> None:
    lines = drawn(only(values=VITALS, **fields), width=100)
    assert [squeezed(each) for each in lines[1:4]] == ["B no alarm preset adult", line, squeezed(lines[3])]
    assert f"| scores: B {line.partition(': be')[0].replace(' | ', ', ')} | " in view.plain_line(only(**fields))


def test_a_bed_without_scores_has_no_line_for_them() -> None:
    lines = drawn(only(values=VITALS, scores={}, risk=None, entered={"scale": 1}), width=100)
    assert [squeezed(each).partition(" ")[0] for each in lines[1:4]] == ["B", "HR", "SpO2"]
    assert "scores" not in view.plain_line(only(scores={}, risk=None))


def test_one_bed_large_tells_every_score_and_what_was_entered() -> None:
    entered = {"scale": 2, "consciousness": {"value": "V", "age_s": 60.0, "left_s": 9.0},
               "oxygen": {"value": True, "fio2": 40.0, "age_s": 300.0, "left_s": 9.0}}  # fmt: skip
    scores = {**news2(5, 7, "medium"), "shock_index": SHOCK}
    status = only(values=VITALS, scores=scores, entered=entered, risk=risk(0.2, detail="resp_rate +0.1"))
    told = [squeezed(line) for line in drawn(status, width=100, bed="B")]
    at = told.index("entered: consciousness V 1 min ago, oxygen yes 40 % 5 min ago, SpO2 scale 2")
    assert told[at + 1 : at + 5] == [
        "NEWS2 5 medium [pulse 3]", "response: be there", "SI 0.9 concern",
        "sepsis risk 0.200 (coverage 83 %) [resp_rate +0.1]",
    ]  # fmt: skip
    entered = {"scale": 1, "oxygen": {"value": False, "fio2": None, "age_s": 0.0, "left_s": 9.0}}
    assert "  entered: oxygen no 0 min ago" in drawn(only(values=VITALS, scores=scores, entered=entered), bed="B")


def test_in_little_room_scores_take_one_line_then_a_word_then_none() -> None:
    status = only(values=VITALS, scores={**news2(3, 5), "shock_index": SHOCK}, risk=risk(None, detail="too few hours"))
    small = {height: [squeezed(line) for line in drawn(status, 40, height, bed="B")] for height in range(5, 10)}
    assert "SI 0.9 concern" in small[9]
    assert "NEWS2 3 (partial, 5 of 7) | sepsis ri…" in small[6] and "SI 0.9 concern" not in small[6]
    assert not any(line.startswith("NEWS2") for line in small[5])
    assert all(any(line.startswith("SpO2 97") for line in lines) for lines in small.values()), "values come first"
    two = {**ward(8), "sources": []}
    for each in two["beds"]:
        each["scores"] = news2(3, 5)
    brief = drawn(two, 80, 30)
    assert sum(squeezed(line).startswith("NEWS2 3 (5/7)") for line in brief) == 8
    whole = only(values=VITALS, scores=news2(3, 7, "low-medium"))
    assert any(line.startswith("  NEWS2 3  HR 131") for line in drawn(whole, 60, 5))


def test_a_score_wears_no_colour_of_an_alarm() -> None:
    line = line_with(coloured(only(values=VITALS, scores=news2(9, 7, "high"))).splitlines(), "NEWS2")
    assert not re.search(r"\x1b\[[0-9;]*(3[1-7]|4[1-7])", line), line


def test_a_whole_screen_reads_as_expected() -> None:
    lines = drawn(STATUS, width=170)
    assert lines[0] == "icu-gw-1  bedside-edge 0.1.0  up 1:01:15"
    assert squeezed(lines[1]) == "ICU-1 no alarm preset adult 1 limit off"
    assert re.fullmatch(r"  HR +72 50–120 +/min +▃{60}", lines[2]), "72 is a third of the way from 50 to 120"
    assert squeezed(lines[3]).startswith("SpO2 97 ≥90 % ")
    assert squeezed(lines[4]) == "NIBP 121/78 90–180 mmHg 5 min ago"
    assert squeezed(lines[5]).startswith("Temp 36.6? ≤38.5 °C")
    assert squeezed(lines[6]).startswith("PI 1.4 no limit %")
    assert squeezed(lines[7]).startswith("cardiac o… 5.2 no limit L/min")
    assert squeezed(lines[8]) == "ICU-2 !!! HIGH AUDIO PAUSED 1:36 preset adult no patient"
    assert squeezed(lines[9]) == "!!! HIGH Desaturation 78 (below 80) acknowledged 12 s id 1-1"
    assert squeezed(lines[10]) == "! LOW Source silent [oximeter] technical 3 s id 1-1"
    assert squeezed(line_with(lines, "nonin@")) == (
        "source nonin@serial:///tmp/oximeter lost (no such file) ICU-1 90 items 2 rejects"
    )
    assert "3 beds" in line_with(lines, "hl7@")
    assert line_with(lines, "alarm path") == "alarm path  p50 0.21 ms p99 0.90 ms (receipt to signal, 200 chunks)"
    assert "3000 records, 1 on their way to the disk, 1.2 MB, oldest 3 s" in line_with(lines, "buffer")
    assert line_with(lines, "cloud") == "cloud       connected, forwarded 3 alerts and 400 data records, backlog 2"
    assert "Not a medical device" in " ".join(lines)


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("only_bed", [None, "B"])
@pytest.mark.parametrize("validity", ["invalid", "not_available"])
def test_a_value_that_is_not_valid_shows_no_number(validity: str, only_bed: str | None, size: tuple[int, int]) -> None:
    lines = drawn(only(values={"spo2": value(83.0, "%", validity)}), *size, only_bed)
    row = line_with(lines, "SpO2")
    assert "---" in row
    assert "83" not in row


@pytest.mark.parametrize(("age_s", "shown"), [(29.0, "83"), (31.0, "---")])
def test_a_value_older_than_it_may_be_shows_no_number(age_s: float, shown: str) -> None:
    old = {**value(83.0, "%", age_s=age_s), "max_age_s": 30.0}
    row = line_with(drawn(only(values={"spo2": old})), "SpO2")
    assert squeezed(row).startswith(f"SpO2 {shown} % {age_s:.0f} s ago")


@pytest.mark.parametrize(("number", "shown"), [(89.0, "89↓"), (90.0, "90"), (100.0, "100"), (101.0, "101↑")])
def test_a_value_outside_its_limits_points_the_way(number: float, shown: str) -> None:
    limits = {"heart_rate": {"low": 90.0, "high": 100.0}}
    row = line_with(drawn(only(values={"heart_rate": value(number, "/min")}, limits=limits)), "HR")
    assert squeezed(row).startswith(f"HR {shown} 90–100 /min")


def test_limits_belong_to_the_vital_whatever_term_measured_it() -> None:
    limits = {"resp_rate": {"low": 8.0, "high": 30.0}}
    row = line_with(drawn(only(values={"resp_rate_co2": value(14.0, "/min")}, limits=limits)), "RR")
    assert "8–30" in row


def test_a_pressure_shows_its_parts_and_says_which_one_is_limited() -> None:
    values = {
        "nibp_sys": value(121.0, "mm[Hg]"),
        "nibp_dia": value(None, "mm[Hg]", "invalid"),
        "nibp_mean": value(59.0, "mm[Hg]"),
    }
    limits = {"nibp_mean": {"low": 60.0, "high": None}}
    row = line_with(drawn(only(values=values, limits=limits)), "NIBP")
    assert squeezed(row).startswith("NIBP 121/--- (59↓) mean ≥60 mmHg")


def test_without_limits_in_the_status_nothing_is_said_of_them() -> None:
    values = {"spo2": value(97.0, "%")}
    assert "no limit" not in "".join(drawn(only(values=values)))
    assert "no limit" in line_with(drawn(only(values=values, limits={})), "SpO2")


# -- alarms and states --------------------------------------------------------------------------------------------


def test_text_from_a_device_cannot_steer_the_terminal() -> None:
    nasty = bed(
        "B\x1b[2J",
        alarms=[alarm("medium", "x\x07\x9b2K[red]y", source="s\x1b", kind="technical")],
        preset="\x1b]0;p\x07",
        values={"\x1b[H": value(1.0, "\x1b[m")},
    )
    for height in (40, 8):
        console = Console(width=120, force_terminal=True, color_system="truecolor")
        with console.capture() as capture:
            console.print(view.render({**STATUS, "beds": [nasty]}, 120, height))
        text = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())  # what rich itself sets
        assert not {"\x1b", "\x07", "\x9b"} & set(text)
        assert "x??2K[red]y" in text
    assert "\x1b" not in view.plain_line(STATUS)


@pytest.mark.parametrize(
    ("priority", "pattern", "colour"),
    [("high", "!!! HIGH", "41"), ("medium", "!! MEDIUM", "43"), ("low", "! LOW", "46")],
)
def test_priority_has_pattern_word_and_colour(priority: str, pattern: str, colour: str) -> None:
    text = coloured({**STATUS, "beds": [bed("B", alarms=[alarm(priority, "t")])]})
    assert text.count(f"{colour}m {pattern} \x1b[0m") == 2, "of the bed and of the alarm, and nothing behind it"


@pytest.mark.alm("ALM-15")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beds", [1, 2, 20])
@pytest.mark.parametrize(
    ("state", "remaining_s", "words"),
    [
        ("audio_paused", 92, "AUDIO PAUSED 1:32"),
        ("audio_off", None, "AUDIO OFF"),
        ("alarm_paused", 5, "ALARM PAUSED 0:05"),
        ("alarm_off", None, "ALARM OFF"),
    ],
)
def test_every_inactivation_state_is_on_the_screen(
    state: str, remaining_s: int | None, words: str, beds: int, size: tuple[int, int]
) -> None:
    status = ward(beds)
    for each in status["beds"]:
        each["alarm"] = {"priority": "none", "inactivation": None}
        each["alarms"] = []
    status["beds"][0]["alarm"]["inactivation"] = {"state": state, "remaining_s": remaining_s}
    assert words in "".join(drawn(status, *size))
    status["beds"][0]["alarms"] = [alarm("high", "A text that is much longer than the line of a small screen", value=1)]
    assert words in "".join(drawn(status, *size))
    assert words in "".join(drawn(status, *size, "ICU-0"))


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (100, "!!! HIGH Desaturation 78 (below 80) acknowledged sounds in spite of the pause 12 s id 4f2a-17"),
        (66, "!!! HIGH Desaturation 78 (below 80) acknowledged 12 s id 4f2a-17"),
        (56, "!!! HIGH Desaturation 78 (below 80) acknowledged 12 s"),
        (50, "!!! HIGH Desaturation 78 (below 80) acknowledged"),
        (40, "!!! HIGH Desaturation 78 acknowledged"),
        (28, "!!! HIGH Desaturation 78"),
        (16, "!!! HIGH Desa…"),
    ],
)
def test_what_an_alarm_line_leaves_out_on_a_narrow_screen(width: int, expected: str) -> None:
    full = alarm(
        "high", "Desaturation", value=78.0, limit="below 80", state="Ack", since_s=12.0, breaking=True,
        alert_id="0123456789abcdef4f2a-17",
    )  # fmt: skip
    assert squeezed(view.alarm_line(full, width).plain) == expected


def test_a_reminder_is_announced_on_the_large_view() -> None:
    state = {"priority": "none", "inactivation": None, "reminder": {"of": "audio_off, spo2_low", "next_s": 42}}
    assert "reminder in 0:42 of: audio off, spo2 low" in drawn(only(alarm=state, values={}), 80, 24, "B")


# -- room ---------------------------------------------------------------------------------------------------------


def test_beds_with_alarms_stay_visible_when_lines_are_few() -> None:
    beds = [bed(f"ICU-{number}", values={"spo2": value(97.0, "%")}) for number in range(20)]
    beds[17]["alarms"] = [alarm("high", "Asystole"), alarm("low", "Battery")]
    lines = drawn({**STATUS, "beds": beds}, height=20)
    assert len(lines) <= 20
    assert "Asystole" in line_with(lines, "ICU-17") and "+1" in line_with(lines, "ICU-17")
    shown = [line.split()[0] for line in lines if line.startswith("ICU-")]
    assert shown == sorted(shown, key=lambda name: int(name.removeprefix("ICU-")))
    assert line_with(lines, "not shown") == f"+{20 - len(shown)} beds not shown, highest alarm: NONE"
    for each in beds:
        each["alarms"] = [alarm("medium", "m")]
    assert drawn({**STATUS, "beds": beds}, 40, 15)[-3].endswith("highest alarm: MEDIUM")


@pytest.mark.parametrize("width", [40, 60, 80, 150])
@pytest.mark.parametrize("height", [12, 15, 24, 40, 60])
@pytest.mark.parametrize("beds", [1, 8, 20])
@pytest.mark.parametrize("only_bed", [None, "ICU-0"])
def test_nothing_is_wider_or_higher_than_the_screen(width: int, height: int, beds: int, only_bed: str | None) -> None:
    status = ward(beds)
    status["gateway_alarms"] = [alarm("medium", "Buffer fault", kind="technical")] * 4
    lines = drawn(status, width, height, only_bed)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height, lines
    assert "Not a medical device." in squeezed(" ".join(lines))
    assert "Buffer fault" in lines[1]


@pytest.mark.parametrize("size", SIZES)
def test_twenty_beds_each_have_a_line_or_are_counted(size: tuple[int, int]) -> None:
    lines = drawn(ward(20), *size)
    shown = sum(line.startswith("ICU-") for line in lines)
    hidden = [int(found[1]) for line in lines if (found := re.match(r"\+(\d+) beds not shown", line))]
    assert shown + sum(hidden) == 20
    assert bool(hidden) == (size == (40, 15))


def test_one_bed_large_has_high_trends_all_alarms_and_what_is_wrong_elsewhere() -> None:
    lines = drawn(STATUS, 80, 24, "ICU-1")
    assert sum("█" in line for line in lines) >= 2, "a trend of two lines or more"
    assert line_with(lines, "other beds") == "other beds:  !!! HIGH  ICU-2"
    assert "last 10 min" in "".join(lines)
    assert not any("Desaturation" in line for line in lines)
    many = [alarm("low", f"Alarm {number}") for number in range(30)]
    small = drawn(only(alarms=many, values={"spo2": value(97.0, "%")}), 40, 15, "B")
    assert line_with(small, "more alarms").startswith("+ 2") and "97" in line_with(small, "SpO2")


def test_a_bed_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(view.NoBed, match="no bed 'ICU-9'; known: ICU-1, ICU-2"):
        view.render(STATUS, bed="ICU-9")


def test_without_block_characters_everything_is_ascii() -> None:
    status = copy.deepcopy(STATUS)
    status["beds"][0]["id"] = "Bett Ä"
    status["beds"][1]["alarms"][0]["text"] = "x" * 300
    lines = drawn(status, 80, 24, glyphs=ASCII)
    assert "".join(lines).isascii()
    assert "50-120" in "".join(lines)
    assert view.glyphs_for(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))) is ASCII
    assert view.glyphs_for(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))) is BLOCKS


# -- trends -------------------------------------------------------------------------------------------------------


def course(values: list[float | None], width: int, low: float | None = None, high: float | None = None) -> str:
    (line,) = trend(values, width, 1, low, high, BLOCKS)
    return line.plain


def test_a_trend_has_its_newest_value_at_the_right_and_gaps_where_nothing_came() -> None:
    assert course([10.0, None, 20.0], SLOTS) == " " * (SLOTS - 3) + "▁ █"
    assert course([10.0, 20.0, None], SLOTS).endswith("▁█ ")


def test_the_scale_reaches_from_limit_to_limit() -> None:
    assert course([50.0], SLOTS, 0.0, 100.0)[-1] in "▄▅"
    assert course([0.0, 100.0], SLOTS, 0.0, 100.0)[-2:] == "▁█"
    assert course([100.0, 50.0, 0.0], SLOTS, 50.0, None)[-3:] in ("█▄▁", "█▅▁")


@pytest.mark.parametrize("at", range(0, SLOTS, 7))
def test_a_single_dip_is_seen_however_narrow_the_trend(at: int) -> None:
    values: list[float | None] = [97.0] * SLOTS
    values[at] = 70.0
    line = course(values, 20)
    assert line.count("▁") == 1 and line.count("█") == 19
    assert abs(line.index("▁") - at // 6) <= 1


def test_what_lies_outside_the_limits_is_coloured() -> None:
    status = only(
        values={"spo2": value(97.0, "%")},
        limits={"spo2": {"low": 90.0, "high": None}},
        trends={"spo2": [97.0, 97.0, 96.0, 85.0]},
    )
    assert "\x1b[1;31m▁" in coloured(status) and re.search(r"\x1b\[32m +█", coloured(status))


def test_the_age_of_a_value_covers_the_oldest_part_of_its_trend() -> None:
    status = only(values={"spo2": value(97.0, "%", age_s=700.0)}, trends={"spo2": [97.0] * SLOTS})
    row = line_with(drawn(status, 80), "SpO2")
    assert "12 min ago" in row and row.endswith("▅") and len(row) == 80
    assert line_with(drawn(status, 25, 15), "SpO2").endswith("12 min ago")


# -- the rest -----------------------------------------------------------------------------------------------------


def test_faults_are_told() -> None:
    status = copy.deepcopy(STATUS)
    status["buffer"]["fault"] = "disk full"
    status["cloud"] = None
    status["annunciators"] = [{"kind": "gpio", "fault": "no chip labelled x"}]
    status["buttons"] = [{"name": "button:x:3", "bed": "", "fault": "held for 30 s"}]
    status["gateway_alarms"] = [alarm("medium", "Buffer fault", kind="technical")]
    status["latency"] = {"p50_us": 0, "p99_us": 0, "count": 0}
    for height in (40, 24):
        lines = drawn(status, height=height)
        assert "disk full" in line_with(lines, "disk full")
        assert line_with(lines, "annunciator") == "annunciator fault: gpio: no chip labelled x"
        assert line_with(lines, "button") == "button fault: button:x:3: held for 30 s"
        assert "!! MEDIUM  Buffer fault technical 3 s" in line_with(lines, "Buffer fault")
        assert "not measured yet" in line_with(lines, "alarm path")
    assert line_with(drawn(status), "cloud ") == "cloud       no state from cloud-sync"


def test_a_source_that_is_lost_is_told_on_a_small_screen_too() -> None:
    assert "source nonin@serial:///tmp/oximeter: lo" in "".join(drawn(ward(20), 40, 15))


def test_plain_line() -> None:
    assert view.plain_line(STATUS) == (
        "beds 2 | alarms: ICU-2 HIGH Desaturation (physiological, Ack); "
        "ICU-2 LOW Source silent [oximeter] (technical, On) | "
        "hl7@mllp-listen://127.0.0.1:2575=connected nonin@serial:///tmp/oximeter=lost | "
        "latency p50 0.21 ms p99 0.90 ms | buffered 3000 pending 1 | cloud connected forwarded 403"
    )


def test_live_draws_every_status_and_leaves_the_screen() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, height=40, force_terminal=True)

    def statuses() -> Iterator[dict[str, Any]]:
        yield STATUS
        yield {**STATUS, "gateway": "second-status"}
        raise KeyboardInterrupt

    view.live(statuses(), console)
    text = stream.getvalue()
    assert text.index("icu-gw-1") < text.index("second-status")
    assert text.rindex("\x1b[?1049l") > text.index("second-status")  # back to the normal screen


@pytest.mark.parametrize("size", SIZES)
def test_without_an_agent_the_screen_is_loud_and_shows_no_value(size: tuple[int, int]) -> None:
    lines = drawn(view.Lost(72.0, "no agent answers\x1b[2J.\n  Is it running?"), *size)
    text = squeezed(" ".join(lines))
    assert "NO CONNECTION TO THE GATEWAY for 1:12" in text and "Look at the patients" in text
    assert "Is it running?" in text and "\x1b" not in text
    assert max(map(len, lines)) <= size[0] and len(lines) <= size[1]


def test_one_frame_as_text_and_as_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert view.once(STATUS, (80, 24)) == ""
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 24 and "ICU-1" in printed and "\x1b" not in printed
    image = view.once(STATUS, (80, 24), svg="edge-agent watch")
    assert capsys.readouterr().out == ""
    assert image.startswith("<svg") and "ICU-1" in image and "url(http" not in image
