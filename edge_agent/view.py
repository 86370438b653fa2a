"""The terminal view of a running agent: beds with vital signs, trends and alarms, sources, latency, buffer and cloud.

It draws what the control socket's `status` says and decides nothing. Theory of operation: a frame is a list of lines
that is never higher or wider than the terminal. What must be seen comes first (faults, alarms, the notice); the beds
take the richest of three forms that fits them all: a card with a trend for each vital sign, two lines, or one line.
When not even one line a bed fits, the beds with the highest alarms stay and a line tells how many do not.

Keys of `status` that may be missing: `trends`, `limits`, `limits_off`, `preset_changed`, `scores`, `entered` and
`risk` of a bed, `max_age_s` of a value, `buttons`, `announcement`.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from edge_agent import view_scores
from edge_agent.trends import INTERVAL_S, SLOTS
from edge_agent.view_beds import (
    ASCII,
    BLOCKS,
    PRIORITIES,
    TEXT_STYLE,
    Glyphs,
    Status,
    alarm_line,
    alarm_text,
    badge,
    by_priority,
    clean,
    clock,
    cut,
    duration,
    heading,
    inactivation,
    joined,
    priority_of,
    score_line,
    score_lines,
    styled,
    vital_lines,
    vitals,
)

__all__ = [
    "Lost",
    "NoBed",
    "Status",
    "alarm_line",
    "glyphs_for",
    "live",
    "once",
    "plain_line",
    "render",
    "screen",
    "show",
]

_LINK_STYLE = {"connected": "green", "silent": "bold yellow", "lost": "bold red", "starting": "dim"}
_FAULT = "bold yellow"
_TALLEST_TREND = 4  # lines: more show nothing that a person would read off from across the bed
_PLAIN = str.maketrans({"…": "~", "°": " "})
_CRITICAL = "edical device"  # the sentence of the notice that stays when there is no room for the whole


class Lost(NamedTuple):
    """No agent answers: for how long, and why."""

    since_s: float
    detail: str


class NoBed(ValueError):
    """The bed that was asked for does not exist; `str` names those that do."""


def render(
    status: Status | Lost, width: int = 120, height: int = 40, bed: str | None = None, glyphs: Glyphs = BLOCKS
) -> RenderableType:
    """The whole view of one `status`, for a terminal of that many columns and lines; of one bed when `bed` names it.

    Raises: NoBed.
    """
    lines = _lost(status, width) if isinstance(status, Lost) else _frame(status, width, height, bed, glyphs)
    for line in lines:
        line.no_wrap = True
        if glyphs is ASCII:  # the same length, so that styles stay where they are
            line.plain = line.plain.translate(_PLAIN).encode("ascii", "replace").decode()
    return Group(*lines)


def plain_line(status: Status) -> str:
    """The status in one line without colour, for logs and pipes."""
    alarms = [
        f"{clean(bed['id'])} {alarm['priority'].upper()} {alarm_text(alarm)} ({alarm['kind']}, {alarm['state']})"
        for bed in status.get("beds", ())
        for alarm in by_priority(bed.get("alarms", ()))
    ] + [f"gateway {alarm['priority'].upper()} {alarm_text(alarm)}" for alarm in status.get("gateway_alarms", ())]
    told = [(clean(bed["id"]), clean(view_scores.main(bed)[0]).replace(" | ", ", ")) for bed in status.get("beds", ())]
    scores = "; ".join(f"{bed} {line}" for bed, line in told if line)
    links = " ".join(f"{clean(source['name'])}={source['state']}" for source in status.get("sources", ()))
    buffer = status.get("buffer") or {}
    cloud = status.get("cloud")
    forwarded = f"{cloud['state']} forwarded {_forwarded(cloud)}" if cloud else "off"
    announcement = status.get("announcement")
    said = f"{clean(announcement['text'])} | " if announcement else ""
    return (
        f"{said}beds {len(status.get('beds', ()))} | alarms: {'; '.join(alarms) or 'none'} | "
        f"{f'scores: {scores} | ' if scores else ''}{links} | "
        f"latency {_latency(status)} | buffered {buffer.get('stored', 0)} pending {buffer.get('pending', 0)} | "
        f"cloud {forwarded}"
    )


@contextmanager
def screen(console: Console | None = None) -> Iterator[Live]:
    """A full-screen display, a context manager; `show` puts a status on it."""
    with Live(console=console, screen=True, auto_refresh=False, transient=True, vertical_overflow="crop") as display:
        yield display


def show(display: Live, status: Status | Lost, bed: str | None = None, *, plain: bool = False) -> None:
    """Draw `status` on a `screen`, in the size that the terminal has now."""
    console = display.console
    display.update(render(status, console.width, console.height, bed, glyphs_for(console, plain)), refresh=True)


def live(
    statuses: Iterable[Status | Lost], console: Console | None = None, bed: str | None = None, *, plain: bool = False
) -> None:
    """Draw each status as it comes, full screen, until they end or Ctrl-C is pressed."""
    with screen(console) as display:
        try:
            for status in statuses:
                show(display, status, bed, plain=plain)
        except KeyboardInterrupt:
            pass  # that is how a person leaves the view


def glyphs_for(console: Console, plain: bool = False) -> Glyphs:
    """Block characters where the terminal has them, else what every terminal has; `plain` asks for the latter."""
    return ASCII if plain or not console.encoding.lower().startswith("utf") else BLOCKS


def once(
    status: Status, size: tuple[int, int] | None = None, bed: str | None = None, *, plain: bool = False, svg: str = ""
) -> str:
    """Print one frame in the terminal's size or `size`; the frame as an SVG image titled `svg`, when that is given."""
    width, height = size or (None, None)
    console = Console(width=width, height=height, highlight=False)
    width, height = size or (console.width, console.height)
    frame = render(status, width, height, bed, glyphs_for(console, plain))
    if not svg:
        console.print(frame)
        return ""
    image = Console(
        width=width, height=height, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    image.print(frame)
    drawn = image.export_svg(title=svg, unique_id="watch")
    # without the font that it would fetch from the network: a hospital's page shows it in its own
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


# -- the frame ----------------------------------------------------------------------------------------------------


def _frame(status: Status, width: int, height: int, only: str | None, glyphs: Glyphs) -> list[Text]:
    said = [cut(Text(clean(line)), width) for line in status.get("notes", ())]  # of a caller, such as the demo
    notice = [*said[-max(1, height // 3) :], *_notice(str(status.get("notice", "")), width, max(1, height // 8))]
    top = [_title(status, width), *_announced(status, width), *_gateway(status, width, max(1, height // 5))]
    faults = _faults(status, width, max(1, height // 8))
    short = [*faults, _summary(status, width)]
    full = [Text("─" * width if glyphs is BLOCKS else "-" * width, style="dim"), *_whole_footer(status, width)]
    room = height - len(top) - len(notice)
    if only is not None:
        foot = short if height >= 20 else faults
        return [*top, *_large(status, only, width, room - len(foot), glyphs), *foot, *notice]
    beds: Sequence[Status] = status.get("beds", ())
    alarms = sum(len(bed.get("alarms", ())) for bed in beds)
    cards = len(beds) + alarms + sum(max(1, len(vitals(bed, glyphs))) + len(score_line(bed, width)) for bed in beds)
    briefs = 2 * len(beds) + alarms
    forms: tuple[tuple[Callable[[Status, int, Glyphs], list[Text]], int, list[Text]], ...] = (
        (_card, cards, full), (_card, cards, short), (_card, cards, faults), (_brief, briefs, short),
        (_brief, briefs, faults), (_row, len(beds), short),
    )  # fmt: skip
    for form, lines, foot in forms:
        if lines <= room - len(foot):
            return [*top, *(line for bed in beds for line in form(bed, width, glyphs)), *foot, *notice]
    return [*top, *_most_urgent(beds, width, room - len(faults), glyphs), *faults, *notice]


def _most_urgent(beds: Sequence[Status], width: int, room: int, glyphs: Glyphs) -> list[Text]:
    """One line a bed for those with the highest alarms, in their own order, and one that tells of the others."""
    by_need = sorted(range(len(beds)), key=lambda index: (PRIORITIES.index(priority_of(beds[index])), index))
    room = max(2, room)
    kept = set(by_need[:room]) if len(beds) <= room else set(by_need[: room - 1])
    body = [line for index, bed in enumerate(beds) if index in kept for line in _row(bed, width, glyphs)]
    hidden = [bed for index, bed in enumerate(beds) if index not in kept]
    if hidden:
        worst = min((priority_of(bed) for bed in hidden), key=PRIORITIES.index)
        note = f"+{len(hidden)} beds not shown, highest alarm: {worst.upper()}"
        body.append(cut(Text(note, style=TEXT_STYLE[worst] or "dim"), width))
    return body


def _card(bed: Status, width: int, glyphs: Glyphs) -> list[Text]:
    alarms = [cut(Text("  ") + alarm_line(alarm, width - 2), width) for alarm in by_priority(bed.get("alarms", ()))]
    return [heading(bed, width), *alarms, *score_line(bed, width), *vital_lines(vitals(bed, glyphs), width, 1, glyphs)]


def _brief(bed: Status, width: int, glyphs: Glyphs) -> list[Text]:
    alarms = [cut(Text("  ") + alarm_line(alarm, width - 2), width) for alarm in by_priority(bed.get("alarms", ()))]
    numbers = Text(" ")
    score = clean(view_scores.short(bed))
    if score:
        numbers.append(f" {score}")
    _append_vitals(numbers, bed, width, glyphs)
    return [heading(bed, width), *alarms, numbers]


def _row(bed: Status, width: int, glyphs: Glyphs) -> list[Text]:
    name = clean(bed["id"])
    line = cut(styled(f"{name:<8}" if width >= 60 else name, "bold"), max(8, width // 4)) + Text(" ")
    alarms = by_priority(bed.get("alarms", ()))
    inactive = inactivation(bed)
    if alarms:
        more = Text(f" +{len(alarms) - 1}", style="bold") if len(alarms) > 1 and width >= 60 else Text()
        left = width - line.cell_len - more.cell_len - inactive.cell_len
        # vital signs get what the alarm leaves
        line = line + alarm_line(alarms[0], min(left, max(width // 2, left - 30))) + more + inactive
    else:
        priority = priority_of(bed)
        line = line + (badge(priority) if priority != "none" else styled("no alarm", "dim")) + inactive
    _append_vitals(line, bed, width, glyphs)
    return [cut(line, width)]


def _append_vitals(line: Text, bed: Status, width: int, glyphs: Glyphs) -> None:
    """Put as many whole vital signs behind the line as fit."""
    for vital in vitals(bed, glyphs):
        part = joined(vital)
        if line.cell_len + 2 + part.cell_len > width:
            return
        line.append(" " if line.plain == " " else "  ")
        line.append(part)


def _large(status: Status, only: str, width: int, room: int, glyphs: Glyphs) -> list[Text]:
    """One bed in all the room there is; the highest alarm of the others keeps a line."""
    beds: Sequence[Status] = status.get("beds", ())
    bed = next((each for each in beds if each["id"] == only), None)
    if bed is None:
        raise NoBed(f"no bed {only!r}; known: {', '.join(clean(each['id']) for each in beds)}")
    out = [heading(bed, width)]
    others = [each for each in beds if each is not bed and priority_of(each) != "none"]
    elsewhere: list[Text] = []
    if others:
        worst = min(others, key=lambda each: PRIORITIES.index(priority_of(each)))
        line = Text("other beds: ") + badge(priority_of(worst)) + Text(f" {clean(worst['id'])}", style="bold")
        elsewhere = [cut(line + Text(f" and {len(others) - 1} more" if len(others) > 1 else ""), width)]
    alarms = [alarm_line(alarm, width) for alarm in by_priority(bed.get("alarms", ()))]
    most = max(1, (room - 1 - len(elsewhere)) // 2)
    out += _capped(alarms, most, "more alarms", width)
    reminder = (bed.get("alarm") or {}).get("reminder")
    found = vitals(bed, glyphs)
    left = room - len(out) - len(elsewhere)
    told = score_lines(bed, width)
    if left > len(found) + len(told):
        out += told
        left -= len(told)
    elif left > len(found) and told:
        out += score_line(bed, width)
        left -= 1
    if reminder and left > len(found):
        of = clean(reminder.get("of", "")).replace("_", " ")
        out.append(cut(Text(f"reminder in {clock(reminder.get('next_s', 0))} of: {of}", style="dim"), width))
        left -= 1
    tall = max(1, min(_TALLEST_TREND, left // max(1, len(found))))
    lines = vital_lines(found, width, tall, glyphs)
    if bed.get("trends") and left > len(lines):
        out.append(Text(f"{f'last {INTERVAL_S * SLOTS // 60} min':>{width}}", style="dim"))
    return [*out, *_capped(lines, max(1, left), "more vital signs", width), *elsewhere]


def _capped(lines: list[Text], most: int, what: str, width: int) -> list[Text]:
    if len(lines) <= most:
        return lines
    note = Text(f"+ {len(lines) - most + 1} {what}", style="bold")
    return [*lines[: most - 1], cut(note, width)]


def _lost(lost: Lost, width: int) -> list[Text]:
    """What is drawn while no agent answers: no value, and what a person must do instead."""
    loud = "bold white on red"
    told = (
        f"NO CONNECTION TO THE GATEWAY for {clock(lost.since_s)}",
        "Nothing is watched on this screen. Look at the patients and at their monitors.",
    )
    lines = [Text(f" {line:<{width - 2}} ", style=loud) for text in told for line in textwrap.wrap(text, width - 2)]
    lines += [Text(line) for part in lost.detail.splitlines() for line in textwrap.wrap(clean(part), width)]
    return [*lines, cut(Text("Trying again every second; Ctrl-C ends the view.", style="dim"), width)]


# -- what is not of a bed -----------------------------------------------------------------------------------------


def _title(status: Status, width: int) -> Text:
    up = int(status.get("uptime_s", 0))
    line = Text.assemble(
        (clean(status.get("gateway", "")), "bold"),
        f"  bedside-edge {clean(status.get('version', ''))}  up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}",
    )
    return cut(line, width)


def _notice(text: str, width: int, most: int) -> list[Text]:
    """The notice in at most `most` lines; the sentence that matters when it is too long."""
    lines = textwrap.wrap(clean(text), width)
    if len(lines) > most:
        critical = [part for part in re.split(r"(?<=\.) ", clean(text)) if _CRITICAL in part]
        lines = textwrap.wrap(" ".join(critical), width)[:most] if critical else lines[:most]
    return [Text(line, style="bold") for line in lines]


def _announced(status: Status, width: int) -> list[Text]:
    """The line that says that the alarm system is about to restart, when it is."""
    announcement = status.get("announcement")
    return [cut(Text(clean(announcement["text"]), style=_FAULT), width)] if announcement else []


def _gateway(status: Status, width: int, most: int) -> list[Text]:
    alarms = by_priority(status.get("gateway_alarms", ()))
    lines = [styled("gateway ", "bold") + alarm_line(alarm, width - 8) for alarm in alarms]
    return _capped([cut(line, width) for line in lines], most, "more alarms of the gateway", width)


def _faults(status: Status, width: int, most: int) -> list[Text]:
    """What is wrong with sources, buffer and annunciators, a line each."""
    told = [
        (f"source {source['name']}: {source['state']}", source.get("detail", ""))
        for source in status.get("sources", ())
        if source["state"] in ("silent", "lost")
    ]
    if (status.get("buffer") or {}).get("fault"):
        told.append(("buffer fault", status["buffer"]["fault"]))
    told += [
        (f"annunciator fault: {item['kind']}", item["fault"])
        for item in status.get("annunciators", ())
        if item.get("fault")
    ]
    told += [(f"button fault: {item['name']}", item["fault"]) for item in status.get("buttons", ()) if item["fault"]]
    lines = [cut(Text(clean(": ".join(filter(None, pair))), style=_FAULT), width) for pair in told]
    return _capped(lines, most, "more faults", width)


def _latency(status: Status) -> str:
    latency = status.get("latency") or {}
    if not latency.get("count"):
        return "not measured yet"
    return f"p50 {latency['p50_us'] / 1000:.2f} ms p99 {latency['p99_us'] / 1000:.2f} ms"


def _forwarded(cloud: Status) -> int:
    return int(sum((cloud.get("forwarded") or {}).values()))


def _summary(status: Status, width: int) -> Text:
    """Sources, buffer, cloud and alarm path in one line."""
    sources = status.get("sources", ())
    connected = sum(source["state"] == "connected" for source in sources)
    cloud = status.get("cloud")
    parts = (
        f"sources {connected}/{len(sources)}",
        f"cloud {clean(cloud['state'])} {_forwarded(cloud)}" if cloud else "no cloud",
        f"buffer {(status.get('buffer') or {}).get('stored', 0)}",
        f"alarm path {_latency(status)}",
    )
    return cut(Text(" | ".join(parts), style="dim"), width)


def _whole_footer(status: Status, width: int) -> list[Text]:
    latency, buffer, cloud = status.get("latency") or {}, status.get("buffer") or {}, status.get("cloud")
    lines = [_source_line(source, width) for source in status.get("sources", ())]
    lines.append(Text(f"alarm path  {_latency(status)} (receipt to signal, {latency.get('count', 0)} chunks)"))
    stored = f"buffer      {buffer.get('stored', 0)} records, {buffer.get('pending', 0)} on their way to the disk"
    line = Text(f"{stored}, {buffer.get('bytes', 0) / 1e6:.1f} MB, oldest {duration(buffer.get('oldest_s') or 0.0)}")
    if buffer.get("fault"):
        line.append(f"  fault: {clean(buffer['fault'])}", style=_FAULT)
    lines.append(line)
    if cloud:
        count = cloud.get("forwarded") or {}
        line = Text("cloud       ")
        line.append(clean(cloud["state"]), style="green" if cloud["state"] == "connected" else _FAULT)
        line.append(f", forwarded {count.get('alerts', 0)} alerts and {count.get('data', 0)} data records")
        line.append(f", backlog {cloud.get('backlog_records', 0)}")
        if cloud.get("detail"):
            line.append(f"  {clean(cloud['detail'])}", style="dim")
        lines.append(line)
    else:
        lines.append(Text("cloud       no state from cloud-sync", style="dim"))
    without_sources = {**status, "sources": (), "buffer": {}}  # these have lines of their own here
    return [cut(line, width) for line in lines] + _faults(without_sources, width, 4)


def _source_line(source: Status, width: int) -> Text:
    name, state, beds = clean(source["name"]), source["state"], source.get("beds", ())
    most = width // 2
    line = Text("source      ")
    line.append(name if len(name) <= most else name[: most - 1] + "…")
    line.append("  ")
    line.append(clean(state), style=_LINK_STYLE.get(state, ""))
    if source.get("detail"):
        line.append(f" ({clean(source['detail'])})", style="dim")
    if beds:
        line.append(f"  {', '.join(map(clean, beds)) if len(beds) <= 2 else f'{len(beds)} beds'}")
    line.append(f"  {source.get('items', 0)} items")
    if source.get("rejects"):
        line.append(f" {source['rejects']} rejects", style="yellow")
    return line
