"""The terminal view of a running agent: beds with values and alarm states, sources, latency, buffer and cloud.

It draws what the control socket's `status` says and decides nothing. An alarm is told by pattern and word as well as by
colour ("!!! HIGH"), a value that is not valid never shows a number, and beds with the highest alarms stay visible when
the terminal is too small for all of them.

Source: IEC 60601-1-8, 6.3.2.2 (red, yellow and cyan for high, medium and low priority).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from edge_agent import terms

Status = dict[str, Any]

PRIORITIES = ("high", "medium", "low", "none")
_PATTERN = {"high": "!!!", "medium": "!!", "low": "!", "none": ""}
_STYLE = {"high": "bold white on red", "medium": "bold black on yellow", "low": "bold black on cyan", "none": ""}
_TEXT_STYLE = {"high": "bold red", "medium": "bold yellow", "low": "bold cyan", "none": ""}
_LINK_STYLE = {"connected": "green", "silent": "bold yellow", "lost": "bold red", "starting": "dim"}
_OLD_S = 10.0  # a value older than this shows its age; most devices send once a second

# Column heading, and the terms it may show: the first one that the bed has, or all of them joined by "/" when `joined`.
_COLUMNS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("HR", ("heart_rate",), False),
    ("SpO2", ("spo2",), False),
    ("PR", ("pulse_rate", "pulse_rate_other", "abp_pulse_rate", "nibp_pulse_rate"), False),
    ("RR", ("resp_rate", "resp_rate_impedance", "resp_rate_co2", "resp_rate_pleth"), False),
    ("NIBP", ("nibp_sys", "nibp_dia", "nibp_mean"), True),
    ("ABP", ("abp_sys", "abp_dia", "abp_mean"), True),
    ("Temp", ("temp", "temp_core", "temp_skin", "temp_axillary"), False),
    ("etCO2", ("etco2",), False),
)


def clean(text: object) -> str:
    """Text without anything a terminal would act on: what a device sent may hold control or escape characters."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def render(status: Status, width: int = 120, height: int = 40) -> RenderableType:
    """The whole view of one `status`, for a terminal of that many columns and lines."""
    foot = _footer(status)
    sources = _sources(status, width)
    gateway = _alarm_lines(status.get("gateway_alarms", ()))
    foot_lines = sum(-(-len(line) // width) for line in foot)
    fixed = 5 + foot_lines + (sources.row_count + 2 if sources else 0) + (1 if gateway else 0)  # 5: title and headings
    shown, hidden = _fit(status.get("beds", ()), height - fixed)
    parts: list[RenderableType] = [_title(status)]
    if gateway:
        parts.append(Text.assemble(("gateway ", "bold"), Text("  ").join(gateway)))
    parts.append(_beds(shown, width))
    if hidden:
        worst = min((_priority(bed) for bed in hidden), key=PRIORITIES.index)
        note = f"{len(hidden)} more beds are not shown, make the terminal taller"
        parts.append(Text(f"{note} (highest alarm among them: {worst})", style=_TEXT_STYLE[worst] or "dim"))
    if sources:
        parts += [Rule(style="dim"), sources]
    parts.append(Rule(style="dim"))
    parts += foot
    return Group(*parts)


def plain_line(status: Status) -> str:
    """The status in one line without colour, for logs and pipes."""
    alarms = [
        f"{clean(bed['id'])} {alarm['priority'].upper()} {_text(alarm)} ({alarm['kind']}, {alarm['state']})"
        for bed in status.get("beds", ())
        for alarm in _sorted(bed.get("alarms", ()))
    ] + [f"gateway {alarm['priority'].upper()} {_text(alarm)}" for alarm in status.get("gateway_alarms", ())]
    links = " ".join(f"{clean(source['name'])}={source['state']}" for source in status.get("sources", ()))
    buffer = status.get("buffer") or {}
    cloud = status.get("cloud")
    forwarded = f"{cloud['state']} forwarded {_forwarded(cloud)}" if cloud else "off"
    return (
        f"beds {len(status.get('beds', ()))} | alarms: {'; '.join(alarms) or 'none'} | {links} | "
        f"latency {_latency(status)} | buffered {buffer.get('stored', 0)} pending {buffer.get('pending', 0)} | "
        f"cloud {forwarded}"
    )


def screen(console: Console | None = None) -> Live:
    """A full-screen display, a context manager; `show` puts a status on it."""
    return Live(console=console, screen=True, auto_refresh=False, transient=True)


def show(display: Live, status: Status) -> None:
    """Draw `status` on a `screen`, in the size that the terminal has now."""
    display.update(render(status, display.console.width, display.console.height), refresh=True)


def live(statuses: Iterable[Status], console: Console | None = None) -> None:
    """Draw each status as it comes, full screen, until they end or Ctrl-C is pressed."""
    with screen(console) as display:
        try:
            for status in statuses:
                show(display, status)
        except KeyboardInterrupt:
            pass  # that is how a person leaves the view


def _title(status: Status) -> Text:
    up = int(status.get("uptime_s", 0))
    return Text.assemble(
        (clean(status.get("gateway", "")), "bold"),
        f"  bedside-edge {clean(status.get('version', ''))}  up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}",
    )


def _priority(bed: dict[str, Any]) -> str:
    found = [alarm["priority"] for alarm in bed.get("alarms", ())] + [(bed.get("alarm") or {}).get("priority", "none")]
    return str(min(found, key=PRIORITIES.index))


def _sorted(alarms: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(alarms, key=lambda alarm: PRIORITIES.index(alarm["priority"]))


def _lines_of(bed: dict[str, Any]) -> int:
    paused = 1 if (bed.get("alarm") or {}).get("inactivation") else 0
    return max(1, len(bed.get("alarms", ())) + paused)


def _fit(beds: Sequence[dict[str, Any]], lines: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Beds that fit in so many lines, in their own order, and the rest; the highest alarms are kept."""
    if sum(map(_lines_of, beds)) <= lines:
        return list(beds), []
    by_need = sorted(range(len(beds)), key=lambda index: (PRIORITIES.index(_priority(beds[index])), index))
    kept: set[int] = set()
    left = lines - 1  # the line that tells how many are missing
    for index in by_need:
        left -= _lines_of(beds[index])
        if left < 0 and kept:
            break
        kept.add(index)
    return [bed for index, bed in enumerate(beds) if index in kept], [
        bed for index, bed in enumerate(beds) if index not in kept
    ]


def _beds(beds: Sequence[dict[str, Any]], width: int) -> Table:
    present = {name for bed in beds for name in bed.get("values", {})}
    columns = [column for column in _COLUMNS if present.intersection(column[1])]
    room = width - 18 - 46  # the bed's name and its alarms come first
    while columns and sum(_column_width(column) for column in columns) > room:
        columns.pop()
    table = Table(expand=True, box=None, pad_edge=False, header_style="dim")
    table.add_column("bed", no_wrap=True, min_width=8)
    table.add_column(
        "alarm", ratio=3, min_width=36, no_wrap=True, overflow="ellipsis"
    )  # a line an alarm, or the lines of _fit lie
    for heading, names, joined in columns:
        unit = terms.BY_NAME[names[0]].ucum
        table.add_column(f"{heading} {unit}", justify="right", no_wrap=True, min_width=8 if joined else 6)
    table.add_column("other", ratio=1, no_wrap=True, overflow="ellipsis")
    for bed in beds:
        values: dict[str, dict[str, Any]] = dict(bed.get("values", {}))
        cells = [_column_cell(names, joined, values) for _, names, joined in columns]
        others = Text("  ").join(_named(name, value) for name, value in values.items())
        name = Text.assemble((clean(bed["id"]), "bold"), ("" if bed.get("patient") else " (no patient)", "dim"))
        table.add_row(name, _alarm_cell(bed), *cells, others)
    return table


def _column_width(column: tuple[str, tuple[str, ...], bool]) -> int:
    return max(14 if column[2] else 7, len(column[0]) + len(terms.BY_NAME[column[1][0]].ucum) + 1) + 1


def _column_cell(names: tuple[str, ...], joined: bool, values: dict[str, dict[str, Any]]) -> Text:
    """The cell of one column; the terms it shows are taken out of `values`."""
    if joined:
        taken = [values.pop(name) for name in names if name in values]
        text = Text("/").join(map(_number, taken))
        return text + _age(max((value.get("age_s", 0.0) for value in taken), default=0.0))
    for name in names:
        if name in values:
            return _value(values.pop(name))
    return Text()


def _value(value: dict[str, Any]) -> Text:
    return _number(value) + _age(value.get("age_s", 0.0))


def _age(age_s: float) -> Text:
    return Text(f" ({_duration(age_s)} ago)", style="dim") if age_s > _OLD_S else Text()


def _number(value: dict[str, Any]) -> Text:
    number, validity = value.get("value"), value.get("validity", "not_available")
    if number is None or validity in ("invalid", "not_available"):
        return Text("---", style="dim")
    text = Text(f"{round(number, 1):g}", style="bold")
    if validity == "questionable":
        text.append("?", style="yellow")
    return text


def _named(name: str, value: dict[str, Any]) -> Text:
    return Text.assemble((f"{clean(name)} ", "dim"), _value(value), (f" {clean(value.get('unit', ''))}", "dim"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _badge(priority: str) -> Text:
    return Text(f" {_PATTERN[priority]} {priority.upper()} ", style=_STYLE[priority])


def _text(alarm: dict[str, Any]) -> str:
    """What the alarm says, with the device when it is the device's fault."""
    source = alarm.get("source") if alarm.get("kind") == "technical" else ""
    return clean(f"{alarm['text']} [{source}]" if source else alarm["text"])


def _alarm_lines(alarms: Iterable[dict[str, Any]]) -> list[Text]:
    lines = []
    for alarm in _sorted(alarms):
        priority = alarm["priority"]
        line = _badge(priority) if priority != "none" else Text()
        line.append(f" {_text(alarm)}", style=_TEXT_STYLE[priority])
        if alarm.get("value") is not None:
            line.append(f" {round(alarm['value'], 1):g}")
        if alarm.get("limit"):
            line.append(f" ({clean(alarm['limit'])})", style="dim")
        kind = "" if alarm.get("kind") == "physiological" else f"{clean(alarm.get('kind', ''))}, "
        state = "" if alarm.get("state") == "On" else f"{_STATE.get(alarm.get('state', ''), '')}, "
        line.append(f" {kind}{state}{_duration(alarm.get('since_s', 0.0))}", style="dim")
        lines.append(line)
    return lines


_STATE = {"Off": "over", "Latch": "latched", "Ack": "acknowledged"}


def _alarm_cell(bed: dict[str, Any]) -> Text:
    lines = _alarm_lines(bed.get("alarms", ()))
    inactivation = (bed.get("alarm") or {}).get("inactivation")
    if inactivation:
        remaining = inactivation.get("remaining_s")
        until = f", {_duration(remaining)} left" if remaining is not None else ""
        lines.append(Text(f" {clean(inactivation['state']).replace('-', ' ')}{until}", style="bold magenta"))
    return Text("\n").join(lines) if lines else Text("none", style="dim")


def _sources(status: Status, width: int) -> Table | None:
    sources = status.get("sources", ())
    if not sources:
        return None
    table = Table(expand=True, box=None, pad_edge=False, header_style="dim")
    for heading in ("source", "bed", "state"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    table.add_column("detail", no_wrap=True, overflow="ellipsis", ratio=1)
    for heading in ("items", "rejects"):
        table.add_column(heading, justify="right", no_wrap=True)
    most = width // 2
    for source in sources:
        beds = source.get("beds", ())
        named = ", ".join(map(clean, beds)) if len(beds) <= 2 else f"{len(beds)} beds"
        name = clean(source["name"])
        table.add_row(
            name if len(name) <= most else name[: most - 1] + "…",
            named,
            Text(source["state"], style=_LINK_STYLE.get(source["state"], "")),
            clean(source.get("detail", "")),
            str(source.get("items", 0)),
            Text(str(source.get("rejects", 0)), style="yellow" if source.get("rejects") else "dim"),
        )
    return table


def _latency(status: Status) -> str:
    latency = status.get("latency") or {}
    if not latency.get("count"):
        return "not measured yet"
    return f"p50 {latency['p50_us'] / 1000:.2f} ms p99 {latency['p99_us'] / 1000:.2f} ms"


def _forwarded(cloud: dict[str, Any]) -> int:
    return int(sum((cloud.get("forwarded") or {}).values()))


def _footer(status: Status) -> list[Text]:
    lines = []
    latency, buffer, cloud = status.get("latency") or {}, status.get("buffer") or {}, status.get("cloud")
    lines.append(Text(f"alarm path  {_latency(status)} (receipt to signal, {latency.get('count', 0)} chunks)"))
    stored = f"buffer      {buffer.get('stored', 0)} records, {buffer.get('pending', 0)} on their way to the disk"
    line = Text(f"{stored}, {buffer.get('bytes', 0) / 1e6:.1f} MB, oldest {_duration(buffer.get('oldest_s') or 0.0)}")
    if buffer.get("fault"):
        line.append(f"  fault: {clean(buffer['fault'])}", style="bold yellow")
    lines.append(line)
    if cloud:
        count = cloud.get("forwarded") or {}
        line = Text("cloud       ")
        line.append(clean(cloud["state"]), style="green" if cloud["state"] == "connected" else "bold yellow")
        line.append(f", forwarded {count.get('alerts', 0)} alerts and {count.get('data', 0)} data records")
        line.append(f", backlog {cloud.get('backlog_records', 0)}")
        if cloud.get("detail"):
            line.append(f"  {clean(cloud['detail'])}", style="dim")
        lines.append(line)
    else:
        lines.append(Text("cloud       no state from cloud-sync", style="dim"))
    faults = [f"{item['kind']}: {item['fault']}" for item in status.get("annunciators", ()) if item.get("fault")]
    if faults:
        lines.append(Text(f"annunciator fault: {clean('; '.join(faults))}", style="bold yellow"))
    lines.append(Text(clean(status.get("notice", "")), style="bold"))
    return lines
