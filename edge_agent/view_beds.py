"""What the terminal view says of one bed, as single lines: vital signs with limits and trend, alarms, states.

It draws what `status` says and decides nothing. An alarm is told by pattern and word as well as by colour
("!!! HIGH"); a value that is invalid, not available or too old never shows a number; a trend has gaps where nothing
valid came. Every line is cut to the width it is given, never a number within it.

Source: IEC 60601-1-8, 6.3.2.2 (red, yellow and cyan for high, medium and low priority).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from edge_agent import terms, view_scores
from edge_agent.trends import SLOTS

Status = dict[str, Any]

PRIORITIES = ("high", "medium", "low", "none")
PATTERN = {"high": "!!!", "medium": "!!", "low": "!", "none": ""}
_BADGE = {"high": "bold white on red", "medium": "bold black on yellow", "low": "bold black on cyan", "none": ""}
TEXT_STYLE = {"high": "bold red", "medium": "bold yellow", "low": "bold cyan", "none": ""}
_INACTIVE = "bold white on magenta"
_STATE = {"Off": "over", "Latch": "latched", "Ack": "acknowledged"}
_OLD_S = 10.0  # a value older than this shows its age; most devices send once a second
_UNITS = {"mm[Hg]": "mmHg", "Cel": "°C", "1": ""}
_LEAST_TREND = 8  # columns: a shorter line shows no course
_WIDE = 60  # columns from which on there is room for units

# Heading, and the terms it may show: the first one that the bed has, or all of them as one value when `joined`.
_GROUPS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("HR", ("heart_rate",), False),
    ("SpO2", ("spo2",), False),
    ("PR", ("pulse_rate", "pulse_rate_other", "abp_pulse_rate", "nibp_pulse_rate"), False),
    ("RR", ("resp_rate", "resp_rate_impedance", "resp_rate_co2", "resp_rate_pleth"), False),
    ("NIBP", ("nibp_sys", "nibp_dia", "nibp_mean"), True),
    ("ABP", ("abp_sys", "abp_dia", "abp_mean"), True),
    ("Temp", ("temp", "temp_core", "temp_skin", "temp_axillary"), False),
    ("etCO2", ("etco2",), False),
    ("PI", ("perfusion_index",), False),
)


class Glyphs(NamedTuple):
    """The signs that not every terminal has: block characters of a trend from low to high, and others."""

    levels: str
    dash: str
    least: str
    most: str
    under: str
    over: str


BLOCKS = Glyphs("▁▂▃▄▅▆▇█", "–", "≥", "≤", "↓", "↑")
ASCII = Glyphs("_.-~^", "-", ">=", "<=", "<", ">")


class Vital(NamedTuple):
    """One vital sign, or one pressure with its parts, ready to be laid out."""

    label: str
    number: Text
    unit: str
    limits: str
    age: str  # empty while the value is fresh
    trend: Sequence[float | None]
    low: float | None
    high: float | None


def clean(text: object) -> str:
    """Text without anything a terminal would act on: what a device sent may hold control or escape characters."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def cut(line: Text, width: int) -> Text:
    """The line in at most `width` columns."""
    line.truncate(max(1, width), overflow="ellipsis")
    return line


def styled(text: str, style: str) -> Text:
    """Text whose style ends with it: what is put behind it does not take it over."""
    return Text.assemble((text, style))


def duration(seconds: float) -> str:
    """A time in words, short."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def clock(seconds: float) -> str:
    """A time left, as minutes and seconds, 1:32."""
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02}"


# -- alarms -------------------------------------------------------------------------------------------------------


def priority_of(bed: Status) -> str:
    """The highest priority among a bed's alarms."""
    found = [alarm["priority"] for alarm in bed.get("alarms", ())] + [(bed.get("alarm") or {}).get("priority", "none")]
    return str(min(found, key=PRIORITIES.index))


def by_priority(alarms: Iterable[Status]) -> list[Status]:
    """Alarms, the highest first."""
    return sorted(alarms, key=lambda alarm: PRIORITIES.index(alarm["priority"]))


def badge(priority: str) -> Text:
    """Pattern and word of a priority, coloured."""
    return styled(f" {PATTERN[priority]} {priority.upper()} ", _BADGE[priority])


def alarm_text(alarm: Status) -> str:
    """What an alarm says, with the device when it is the device's fault."""
    source = alarm.get("source") if alarm.get("kind") == "technical" else ""
    return clean(f"{alarm['text']} [{source}]" if source else alarm["text"])


def short_id(alarm: Status) -> str:
    """The end of an alert id, enough for `acknowledge --alert`: four signs of the run, and the number."""
    run, dash, number = clean(alarm.get("alert_id", "")).rpartition("-")
    return f"{run[-4:]}{dash}{number}"


def alarm_line(alarm: Status, width: int) -> Text:
    """One alarm on one line: what does not fit goes, the least important first."""
    priority = alarm["priority"]
    line = badge(priority) if priority != "none" else Text()
    line.append(f" {alarm_text(alarm)}", style=TEXT_STYLE[priority])
    # (importance, text, style) in the order of reading
    pieces: list[tuple[int, str, str]] = []
    if alarm.get("value") is not None:
        pieces.append((0, f"{round(alarm['value'], 1):g}", TEXT_STYLE[priority]))
    if alarm.get("limit"):
        pieces.append((2, f"({clean(alarm['limit'])})", ""))
    if alarm.get("state", "On") != "On":
        pieces.append((1, _STATE.get(alarm["state"], clean(alarm["state"])), "bold"))
    if alarm.get("breaking"):
        pieces.append((4, "sounds in spite of the pause", "bold"))
    if alarm.get("kind", "physiological") != "physiological":
        pieces.append((6, clean(alarm["kind"]), "dim"))
    pieces.append((3, duration(alarm.get("since_s", 0.0)), "dim"))
    if alarm.get("alert_id"):
        pieces.append((5, f"id {short_id(alarm)}", "dim"))
    left = width - line.cell_len
    kept: set[int] = set()
    for index in sorted(range(len(pieces)), key=lambda index: pieces[index][0]):
        needed = 1 + cell_len(pieces[index][1])
        if needed <= left:
            left -= needed
            kept.add(index)
    for index in sorted(kept):
        line.append(f" {pieces[index][1]}", style=pieces[index][2])
    return cut(line, width)


def inactivation(bed: Status) -> Text:
    """The bed's inactivation state in words with the time left, AUDIO PAUSED 1:32; empty while enabled."""
    found = (bed.get("alarm") or {}).get("inactivation")
    if not found or not found.get("state"):
        return Text()
    words = clean(found["state"]).replace("_", " ").replace("-", " ").upper()
    remaining = found.get("remaining_s")
    return styled(f" {words}{'' if remaining is None else ' ' + clock(remaining)} ", _INACTIVE)


def heading(bed: Status, width: int) -> Text:
    """A bed's own line: name, highest priority, inactivation state, preset in force."""
    line = styled(clean(bed["id"]), "bold")
    priority = priority_of(bed)
    line.append("  ")
    line.append(badge(priority) if priority != "none" else styled("no alarm", "dim"))
    inactive = inactivation(bed)
    if inactive:
        line.append("  ")
        line.append(inactive)
    changed = " (limits changed)" if bed.get("preset_changed") else ""
    line.append(f"  preset {clean(bed.get('preset', ''))}{changed}", style="dim")
    off = len(bed.get("limits_off", ()))
    if off:
        line.append(f"  {off} limit{'s' * (off > 1)} off", style="bold")
    if not bed.get("patient"):
        line.append("  no patient", style="dim")
    return cut(line, width)


def score_line(bed: Status, width: int) -> list[Text]:
    """NEWS2 and the risk on one line, with the response to the band where it fits whole; none without scores."""
    told, response = view_scores.main(bed)
    if not told:
        return []
    line = Text(f"  {clean(told)}")
    if response and line.cell_len + 2 + cell_len(response) <= width:
        line.append(f": {response}", style="dim")
    return [cut(line, width)]


def score_lines(bed: Status, width: int) -> list[Text]:
    """What was entered, and every score, a line each."""
    return [cut(Text(f"  {clean(line)}"), width) for line in view_scores.lines(bed)]


# -- vital signs --------------------------------------------------------------------------------------------------


def vitals(bed: Status, glyphs: Glyphs = BLOCKS) -> list[Vital]:
    """The bed's vital signs in the order of every bed, what has no place of its own last."""
    values: dict[str, Status] = dict(bed.get("values", {}))
    out = []
    for label, names, joined in _GROUPS:
        present = [name for name in names if name in values]
        taken = present if joined else present[:1]
        if taken:
            out.append(_vital(label, bed, taken, [values.pop(name) for name in taken], glyphs))
    out += [_vital(clean(name).replace("_", " "), bed, [name], [value], glyphs) for name, value in values.items()]
    return out


def _vital(label: str, bed: Status, names: list[str], values: list[Status], glyphs: Glyphs) -> Vital:
    limits = [_limits(bed, name) for name in names]
    numbers = [_number(value, *pair, glyphs) for value, pair in zip(values, limits, strict=True)]
    number = Text("/").join(numbers[:2])
    if len(numbers) == 3:
        number = number + Text(" (") + numbers[2] + Text(")")
    told = next((index for index, pair in enumerate(limits) if pair != (None, None)), 0)
    low, high = limits[told]
    text = _limit_text(low, high, glyphs)
    if text and told:
        text = f"{names[told].rpartition('_')[2]} {text}"
    elif not text and "limits" in bed:
        text = "no limit"
    age_s = max(value.get("age_s", 0.0) for value in values)
    trend = (bed.get("trends") or {}).get(names[told], ())
    unit = values[0].get("unit", "")
    age = f"{duration(age_s)} ago" if age_s > _OLD_S else ""
    return Vital(label, number, _UNITS.get(unit, clean(unit)), text, age, trend, low, high)


def _limits(bed: Status, name: str) -> tuple[float | None, float | None]:
    term = terms.BY_NAME.get(name)
    found = (bed.get("limits") or {}).get(term.vital if term else name) or {}
    return found.get("low"), found.get("high")


def _limit_text(low: float | None, high: float | None, glyphs: Glyphs) -> str:
    if low is not None and high is not None:
        return f"{low:g}{glyphs.dash}{high:g}"
    if low is not None:
        return f"{glyphs.least}{low:g}"
    return f"{glyphs.most}{high:g}" if high is not None else ""


def _number(value: Status, low: float | None, high: float | None, glyphs: Glyphs) -> Text:
    number, validity = value.get("value"), value.get("validity", "not_available")
    oldest_s = value.get("max_age_s")
    too_old = oldest_s is not None and value.get("age_s", 0.0) > oldest_s
    if number is None or validity in ("invalid", "not_available") or too_old:
        return styled("---", "dim")
    text = styled(f"{round(number, 1):g}", "bold")
    if validity == "questionable":
        text.append("?", style="yellow")
    if low is not None and number < low:
        text.append(glyphs.under, style="bold red")
    elif high is not None and number > high:
        text.append(glyphs.over, style="bold red")
    return text


def joined(vital: Vital) -> Text:
    """A vital sign in as little room as possible, HR 72."""
    line = styled(f"{vital.label} ", "dim") + vital.number
    return line + styled(f" {vital.age}", "dim") if vital.age else line


def trend(
    values: Sequence[float | None], width: int, height: int, low: float | None, high: float | None, glyphs: Glyphs
) -> list[Text]:
    """The course of a vital, newest at the right: `height` lines of `width` columns, spaces where nothing valid came.

    A column that stands for several samples shows one outside the limits, else the one farthest from the middle, so
    that no peak is lost. The scale reaches at least from limit to limit; what lies outside the limits is also coloured.
    """
    columns = _columns(values, width, low, high)
    there = [value for value in columns if value is not None]
    rows = [Text() for _ in range(height)]
    if not there:
        note = "no trend yet" if width >= 12 else ""
        rows[-1].append(f"{note:<{width}}", style="dim")
        return rows
    scale = [*there, *(limit for limit in (low, high) if limit is not None)]
    bottom, top = min(scale), max(scale)
    steps = len(glyphs.levels)
    levels = [0 if value is None else 1 + round(_share(value, bottom, top) * (steps * height - 1)) for value in columns]
    styles = ["bold red" if value is not None and _outside(value, low, high) else "green" for value in columns]
    for index, row in enumerate(rows):
        under = steps * (height - 1 - index)  # what the rows below show
        signs = "".join(" " if level <= under else glyphs.levels[min(steps, level - under) - 1] for level in levels)
        start = 0
        for style, run in groupby(styles):  # a piece a style: a frame of twenty beds is drawn once a second
            end = start + sum(1 for _ in run)
            row.append(signs[start:end], style=style)
            start = end
    return rows


def _share(value: float, bottom: float, top: float) -> float:
    return (value - bottom) / (top - bottom) if top > bottom else 0.5


def _outside(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and value < low) or (high is not None and value > high)


def _columns(values: Sequence[float | None], width: int, low: float | None, high: float | None) -> list[float | None]:
    """Samples as `width` columns, the newest in the last one, several samples in one where the whole does not fit."""
    samples = len(values)
    each = max(1, -(-max(samples, SLOTS) // width))
    there = [value for value in values if value is not None]
    middle = median(there) if there else 0.0
    columns: list[float | None] = []
    for end in range(samples, 0, -each):
        part = [value for value in values[max(0, end - each) : end] if value is not None]
        columns.append(max(part, key=lambda value: (_outside(value, low, high), abs(value - middle))) if part else None)
    columns += [None] * (width - len(columns))
    return columns[::-1]


def vital_lines(found: Sequence[Vital], width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Vital signs below each other, each `height` lines: name, value, limits, unit, and the trend in what is left.

    The age of an old value covers the oldest part of its trend; a value without room for its limits keeps its number.
    """
    if not found:
        return [Text("  no values yet", style="dim")]
    label = min(10, max(cell_len(vital.label) for vital in found))
    number = max(vital.number.cell_len for vital in found)
    limits = max(cell_len(vital.limits) for vital in found)
    unit = max(cell_len(vital.unit) for vital in found) if width >= _WIDE else 0
    left = width - 2 - label - 1 - number
    limits, unit = (size if 0 < size < left else 0 for size in (limits, unit))
    left -= sum(size + 1 for size in (limits, unit) if size)
    lines = []
    for vital in found:
        line = Text("  ") + cut(Text(f"{vital.label:<{label}}"), label) + Text(" ")
        line.append(" " * (number - vital.number.cell_len))
        line.append(vital.number)
        for part, size in ((vital.limits, limits), (vital.unit, unit)):
            if size:
                line.append(f" {part:<{size}}", style="dim")
        lines += [cut(row, width) for row in _with_course(line, vital, left, height, glyphs)]
    return lines


def _with_course(line: Text, vital: Vital, left: int, height: int, glyphs: Glyphs) -> list[Text]:
    """A vital sign's line with its trend in the `left` columns behind it, and above it when that is higher."""
    age = styled(f" {vital.age}" if vital.age else "", "dim")
    if left <= _LEAST_TREND:
        return [line + age]
    course = trend(vital.trend, left - 1, height, vital.low, vital.high, glyphs)
    above = [Text(" " * (line.cell_len + 1)) + row for row in course[:-1]]
    covered = age.cell_len
    if covered and (left - covered <= _LEAST_TREND or not any(value is not None for value in vital.trend)):
        return [*above, line + age]
    return [*above, line + age + Text(" ") + course[-1][covered:]]
