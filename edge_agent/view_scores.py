"""What is said of a bed's scores, in plain words: in the status as text, in the terminal view, in the demo.

A score with a missing input is always told with how many it rests on; its band is then a least one. Without any input
there is no number. What is not one of the bedside scores comes from a model: it is told with its coverage, or with why
it abstains. Nothing here wears the colours of an alarm: a score is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.scoring import LABELS

MAIN = "news2"
Scores = Mapping[str, Mapping[str, Any]]


def of_models(scores: Scores) -> list[str]:
    """Names of the scores that are not bedside scores."""
    return [name for name in scores if name not in LABELS]


def text(name: str, score: Mapping[str, Any]) -> str:
    """One score, NEWS2 5 (partial, 5 of 7) at least medium."""
    value, present, needed = score.get("value"), score.get("present"), score.get("needed")
    label = str(score.get("label") or name)
    partial = present is not None and needed is not None and present < needed
    words = [label, "---" if value is None else f"{value:g}"]
    if name not in LABELS:
        if needed:
            words.append(f"({present} of {needed})")
    elif partial:
        words.append(f"(partial, {present} of {needed})")
    if score.get("band"):
        words.append(("at least " if partial and name in LABELS else "") + str(score["band"]))
    line = " ".join(words)
    return f"{line}: {score['detail']}" if value is None and name not in LABELS and score.get("detail") else line


def short(scores: Scores) -> str:
    """NEWS2 in as little room as possible, NEWS2 5 (5/7); empty when there is none."""
    found = scores.get(MAIN)
    if not found or found.get("value") is None:
        return ""
    part = f" ({found['present']}/{found['needed']})" if found["present"] < found["needed"] else ""
    return f"{LABELS[MAIN]} {found['value']:g}{part}"


def main(scores: Scores) -> tuple[str, str]:
    """NEWS2 and what models say, on one line, and the response that the band of NEWS2 asks for."""
    told = [text(name, scores[name]) for name in (MAIN, *of_models(scores)) if name in scores]
    return " | ".join(told), str(scores.get(MAIN, {}).get("response", ""))


def lines(bed: Mapping[str, Any]) -> list[str]:
    """What was entered on a bed, and its scores, a line each."""
    entered = dict(bed.get("entered") or {})
    scale = entered.pop("scale", 1)
    said = [f"{name} {_entered(each)} {each['age_s'] / 60:.0f} min ago" for name, each in entered.items()]
    said += ["SpO2 scale 2"] if scale == 2 else []
    out = [f"entered: {', '.join(said)}"] if said else []
    for name, score in (bed.get("scores") or {}).items():
        line = text(name, score)
        detail = score.get("detail", "")
        if detail and detail not in line:
            line += f" [{detail}]"
        out.append(f"{line}: {score['response']}" if score.get("response") else line)
    return out


def _entered(each: Mapping[str, Any]) -> str:
    value = each["value"]
    if not isinstance(value, bool):
        return str(value)
    return ("yes" if value else "no") + (f" {each['fio2']:g} %" if each.get("fio2") is not None else "")
