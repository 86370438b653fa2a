"""The report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from edge_agent.burden.compare import TECHNICAL, Comparison, HighLost, Line, totals, unit
from edge_agent.burden.recorded import moment_text

_HEAD = (
    "condition", "priority", "before", "after", "change", "/bed-day", "->", "lost", "raised",
    "seconds before", "after", "median", "after", "shorter", "longer", "later", "earlier",
)  # fmt: skip


def report(comparison: Comparison, names: tuple[str, str]) -> Iterator[str]:
    """Lines of the report; `names` are the presets'."""
    hours = comparison.bed_days * 24
    yield f"alarms under {names[0]!r} (before) and {names[1]!r} (after)"
    yield (
        f"{comparison.beds} beds, {comparison.bed_days:.2f} bed-days ({hours:.1f} h) observed, "
        f"{comparison.observations} values"
    )
    if comparison.bed_days < 1:
        yield "less than one bed-day: rates are extrapolated, look at the counts"
    if comparison.top_before is not None:
        after = "-" if comparison.top_after is None else f"{comparison.top_after:.0%}"
        yield f"the busiest tenth of the beds has {comparison.top_before:.0%} of the alarms before, {after} after"
    for title, technical in (("physiological and advisory alarms", False), ("technical alarms", True)):
        lines = [line for line in comparison.lines if (line.kind == TECHNICAL) == technical]
        yield ""
        yield title
        if not lines:
            yield "  none"
            continue
        rows = [_row(line, comparison.bed_days) for line in [*lines, *totals(lines, technical)]]
        yield from _aligned([_HEAD, *rows])
    yield ""
    yield from _high(comparison.high_lost)


def _row(line: Line, bed_days: float) -> tuple[str, ...]:
    before, after = len(line.before_s), len(line.after_s)
    return (
        line.condition, line.priority, str(before), str(after),
        f"{(after - before) / before:+.0%}" if before else "new",
        f"{before / bed_days:.2f}" if bed_days else "-", f"{after / bed_days:.2f}" if bed_days else "-",
        str(line.lost), str(line.raised), f"{sum(line.before_s):.0f}", f"{sum(line.after_s):.0f}",
        _median(line.before_s), _median(line.after_s),
        _events(line.shortened_s), _events(line.lengthened_s), _events(line.later_s), _events(line.earlier_s),
    )  # fmt: skip


def _median(times: list[float]) -> str:
    return f"{median(times):.1f} s" if times else "-"


def _events(times: list[float]) -> str:
    """How many events, and the median of how much."""
    return f"{len(times)} x {median(times):.1f} s" if times else "-"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def _high(lost: tuple[HighLost, ...]) -> Iterator[str]:
    if not lost:
        yield "HIGH alarms lost: none"
        return
    yield f"HIGH alarms lost or lowered: {len(lost)}; look at each before the change"
    for each in lost:
        episode = each.episode
        worst = "" if episode.worst is None else f", worst {episode.worst:g} {unit(episode.vital)}"
        becomes = "lost" if each.becomes == "lost" else f"becomes {each.becomes}"
        covered = ", ".join(f"{condition} ({priority})" for condition, priority in each.covered_by)
        yield (
            f"  bed {episode.bed}  {moment_text(episode.start_ns)}  {episode.condition}{worst}, "
            f"{episode.seconds:.0f} s: {becomes}{f'; still rings: {covered}' if covered else '; nothing else rings'}"
        )
