"""What `evaluate` found, as tables in Markdown and as plots (SVG, matplotlib)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models_tflite.training import alerts, metrics
from models_tflite.training.data import Stays

if TYPE_CHECKING:
    from models_tflite.training.evaluate import Candidate

_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "utility": "utility", "wh": "WH"}
_SWEEP = 1 - np.geomspace(0.002, 0.6, 25)  # shares of rows below the thresholds of a curve
_COLOURS = ("#0b5394", "#d9822b", "#5b8c5a", "#8e5ea2", "#7f7f7f", "#b03a2e", "#2a9d8f", "#444444")


def markdown(found: dict[str, Any]) -> str:
    """The tables of everything found, for a terminal and for the model card."""
    data = found["data"]
    about = f"{data['stays']} stays, {data['septic']} septic, {data['rows']} hourly rows"
    lines = [
        f"Measured on {about} ({data.get('file', 'given')}, {data.get('share', 'all')}).",
        "Thresholds come from the bundle or from training and validation patients; none was chosen on these stays.",
        "",
        *_discrimination(found),
        "",
        *_hospitals(found),
        *_differences(found),
        *_alarms(found),
        *_calibration(found),
        *_clock(found),
    ]
    return "\n".join(lines)


def _discrimination(found: dict[str, Any]) -> list[str]:
    count = found["resamples"]
    note = f"95 % intervals from {count} resamples of the patients." if count else "No intervals were asked for."
    lines = [f"### All hospitals\n\n{note}\n", "| model | AUROC | AUPRC | utility | WH |", "|---|---|---|---|---|"]
    for model in found["models"].values():
        cells = (cell(model["figures"]["all"][name]) for name in _NAMES)
        lines.append(f"| {model['title']} | {' | '.join(cells)} |")
    return lines


def _hospitals(found: dict[str, Any]) -> list[str]:
    sites = [site for site in found["data"]["hospitals"] if len(found["data"]["hospitals"]) > 1]
    if not sites:
        return []
    heads = [f"{_NAMES[name]} {site}" for name in _NAMES for site in sites]
    lines = ["### Per hospital\n", f"| model | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for model in found["models"].values():
        cells = (cell(model["figures"][site][name]) for name in _NAMES for site in sites)
        lines.append(f"| {model['title']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _differences(found: dict[str, Any]) -> list[str]:
    if not found["differences"]:
        return []
    first = next(iter(found["models"].values()))["title"]
    lines = [f"### {first}, less each other (paired over patients)\n", "| less | AUROC | AUPRC | utility | WH |"]
    lines.append("|---|---|---|---|---|")
    for name, figures in found["differences"].items():
        cells = (cell(figures[figure], "+") for figure in _NAMES)
        lines.append(f"| {found['models'][name]['title']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _alarms(found: dict[str, Any]) -> list[str]:
    lines = [
        f"### Alarms, at most one in {alerts.LOCKOUT_H} h per stay\n",
        "Per patient: a septic stay is caught by an alarm from 12 h before onset to 3 h after. The number of alarms is "
        "what the threshold, chosen elsewhere, gave here.\n",
        "| model | asked | alarms per patient-day | sensitivity | before onset | PPV of alarms | PPV of patients "
        "| patients with an alarm | lead time, h (quartiles) |",
        "|" + "---|" * 9,
    ]
    for model in found["models"].values():
        for asked, row in model["alarms"].items():
            lead = f"{row['lead_h']:.1f} ({row['lead_low_h']:.1f} to {row['lead_high_h']:.1f})"
            shares = (row[name] for name in ("sensitivity", "in_time", "ppv", "ppv_patients", "alarmed"))
            name = "greatest utility" if asked == "threshold" else asked
            lines.append(
                f"| {model['title']} | {name} | {row['per_day']:.2f} | {' | '.join(map(_share, shares))} "
                f"| {lead if math.isfinite(row['lead_h']) else 'none'} |"
            )
    return [*lines, ""]


def _calibration(found: dict[str, Any]) -> list[str]:
    models = [model for model in found["models"].values() if model["calibration"]]
    if not models:
        return []
    lines = [
        "### Calibration\n",
        "| model | slope | intercept | Brier | ECE | mean risk | observed |",
        "|" + "---|" * 7,
    ]
    for model in models:
        held = model["calibration"]
        values = (held[name] for name in ("slope", "intercept", "brier", "ece", "mean_risk", "observed"))
        lines.append(f"| {model['title']} | {' | '.join(f'{value:.4f}' for value in values)} |")
    return [*lines, ""]


def _clock(found: dict[str, Any]) -> list[str]:
    lines = [
        "### What the score gives away of the hour since admission\n",
        f"| model | R2, hour on score | AUROC, later than {metrics.LATER_THAN_H} h | rows without a score |",
        "|---|---|---|---|",
    ]
    for model in found["models"].values():
        hour = model["hour"]
        lines.append(f"| {model['title']} | {hour['r_squared']:.3f} | {hour['later']:.3f} | {model['abstained']:.1%} |")
    return lines


def cell(figure: dict[str, float], sign: str = "") -> str:
    """A figure with its interval, if it has one."""
    if not math.isfinite(figure["value"]):
        return "none"
    shown = f"{figure['value']:{sign}.3f}"
    if math.isfinite(figure["low"]):
        shown += f" ({figure['low']:{sign}.3f} to {figure['high']:{sign}.3f})"
    return shown


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "none"


def figures(stays: Stays, candidates: list[Candidate], folder: Path) -> list[Path]:
    """Write calibration.svg, roc.svg, alarms.svg and lead-time.svg into `folder`; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    # the same file each time, and text as text
    plain: dict[Any, Any] = {"svg.hashsalt": "bedside-edge", "svg.fonttype": "none"}
    matplotlib.rcParams.update({**plain, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    plots = {"calibration": _plot_risk, "roc": _plot_roc, "alarms": _plot_alarms, "lead-time": _plot_lead}
    for name, draw in plots.items():
        figure = pyplot.figure(figsize=(8, 3.8) if name == "roc" else (5.2, 3.8), layout="constrained")
        draw(figure, stays, candidates)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})  # the same figures give the same file
        pyplot.close(figure)
        written.append(path)
    return written


def _plot_risk(figure: Any, stays: Stays, candidates: list[Candidate]) -> None:
    axes = figure.add_subplot()
    most = 0.0
    for colour, each in zip(_COLOURS, candidates, strict=False):
        if not each.is_risk:
            continue
        table = metrics.reliability(stays.label, each.score)
        axes.plot(table[:, 0], table[:, 1], "o-", color=colour, markersize=3, label=each.title)
        most = max(most, float(table[:, :2].max()))
    axes.plot([0, most], [0, most], "--", color="grey", linewidth=1)
    axes.set(xlabel="mean risk in tenths of the rows", ylabel="share of rows labelled")
    axes.legend(fontsize=7)


def _plot_roc(figure: Any, stays: Stays, candidates: list[Candidate]) -> None:
    sites = sorted(set(stays.site.tolist()))
    for place, site in enumerate(sites, start=1):
        axes = figure.add_subplot(1, len(sites), place)
        rows = np.repeat(stays.site == site, np.diff(stays.first))
        for colour, each in zip(_COLOURS, candidates, strict=False):
            false, true = roc(stays.label[rows], each.score[rows])
            area = metrics.auroc(stays.label[rows], each.score[rows])
            axes.plot(false, true, color=colour, linewidth=1, label=f"{each.title} ({area:.3f})")
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        axes.set(xlabel="1 - specificity, rows", ylabel="sensitivity, rows", title=f"hospital {site}")
        axes.legend(fontsize=6)


def roc(label: NDArray[Any], score: NDArray[Any], points: int = 200) -> tuple[NDArray[Any], NDArray[Any]]:
    """False and true positive rates, rising from 0 to 1, thinned to about `points`."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    true = np.cumsum(label[order])[ends]
    false = ends + 1 - true
    keep = np.unique(np.linspace(0, len(ends) - 1, min(points, len(ends))).astype(int))
    rates = (np.append(0, side[keep]) / max(int(side[-1]), 1) for side in (false, true))
    return next(rates), next(rates)


def _plot_alarms(figure: Any, stays: Stays, candidates: list[Candidate]) -> None:
    axes = figure.add_subplot()
    for colour, each in zip(_COLOURS, candidates, strict=False):
        levels = np.unique(np.quantile(each.score, _SWEEP))  # a curve over all thresholds, no choice of one
        at = [alerts.burden(stays.label, stays.first, each.score, one) for one in levels]
        axes.plot([one.per_day for one in at], [one.sensitivity for one in at], ".-", color=colour, label=each.title)
    axes.set(xlabel="alarms per patient-day", ylabel="septic stays caught", xscale="log", ylim=(0, 1))
    axes.legend(fontsize=7)


def _plot_lead(figure: Any, stays: Stays, candidates: list[Candidate]) -> None:
    axes = figure.add_subplot()
    septic = max(int(stays.septic.sum()), 1)
    edges = np.arange(-metrics.LATEST, -metrics.EARLIEST + 1)
    for colour, each in zip(_COLOURS, candidates, strict=False):
        if not np.isfinite(each.threshold):
            continue
        lead = alerts.lead_times(stays.label, stays.first, each.score, each.threshold)
        axes.plot(edges, [(lead >= edge).sum() / septic for edge in edges], color=colour, label=each.title)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(xlabel="hours before onset", ylabel="septic stays caught by then", ylim=(0, 1))
    axes.invert_xaxis()
    axes.legend(fontsize=7)
