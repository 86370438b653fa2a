"""The report as a picture, PNG or SVG: how often each condition rings, and how long.

The only place that knows matplotlib. No display is asked for, and the same report gives the same bytes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edge_agent.burden.compare import TECHNICAL, Comparison, Line

BEFORE, AFTER = "#9aa5b1", "#1f6feb"  # told apart in grey as well
_WIDTH_IN, _ROW_IN, _HEAD_IN = 11.0, 0.34, 2.2
_DPI = 110
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "alarm burden",  # else the identifiers inside the file are drawn anew each time
    "svg.fonttype": "none",  # text stays text: small, and can be searched
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the same picture is drawn everywhere
    "font.size": 9.0,
}


def missing() -> str:
    """Why nothing can be drawn and what to do; empty when it can."""
    try:
        found = importlib.util.find_spec("matplotlib") is not None
    except ValueError:
        found = False
    return "" if found else "matplotlib, which draws, is not installed; run pip install 'bedside-edge[report]'"


def draw(comparison: Comparison, names: tuple[str, str], path: Path) -> None:
    """Draw the report into a file whose name ends in .svg or .png; `names` are the presets'."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for line in comparison.lines if line.before_s or line.after_s][::-1]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_SETTINGS}):
        figure = Figure(figsize=(_WIDTH_IN, _HEAD_IN + _ROW_IN * max(len(lines), 4)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        figure.suptitle(
            f"{names[0]} (before) and {names[1]} (after): {comparison.beds} beds, {comparison.bed_days:.2f} bed-days"
        )
        _counts(left, lines, comparison.bed_days)
        _durations(right, lines, comparison.bed_days)
        kind = path.suffix.lower().removeprefix(".")
        # a date or a program's version in the file would make every drawing another one
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, format=kind, dpi=_DPI, metadata=metadata)


def _counts(axes: Any, lines: list[Line], bed_days: float) -> None:
    """Bars of alarms per bed-day, before above after, for each condition."""
    for place, line in enumerate(lines):
        for offset, times, colour in ((0.2, line.before_s, BEFORE), (-0.2, line.after_s, AFTER)):
            rate = len(times) / bed_days if bed_days else 0.0
            axes.barh(place + offset, rate, 0.38, color=colour)
            axes.annotate(
                f"{rate:.3g}", (rate, place + offset), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_yticks(range(len(lines)), [f"{line.condition} ({line.priority})" for line in lines])
    axes.set_xlabel("alarms per bed-day")
    axes.margins(x=0.12, y=0.02)
    axes.spines[["top", "right"]].set_visible(False)


def _durations(axes: Any, lines: list[Line], bed_days: float) -> None:
    """How many physiological and advisory alarms per bed-day last at least so long."""
    for name, side, colour, width in (("before", "before_s", BEFORE, 4.0), ("after", "after_s", AFTER, 1.5)):
        times = sorted(seconds for line in lines if line.kind != TECHNICAL for seconds in getattr(line, side))
        if not times or not bed_days:
            continue
        rates = [(len(times) - index) / bed_days for index in range(len(times))]
        axes.step(
            [0.0, *times],
            [rates[0], *rates],
            where="pre",
            color=colour,
            lw=width,
            label=f"{name} ({len(times)} alarms)",
        )
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("an alarm lasts at least, s")
    axes.set_ylabel("physiological alarms per bed-day")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
