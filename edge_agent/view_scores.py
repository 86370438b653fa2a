"""What is said of a bed's scores, in plain words: in the status as text, in the terminal view, in the demo.

A score with a missing input is always told with how many it rests on, and a band that could yet rise is "at least" that
one. Without any input there is no number. A model's risk is told with its coverage, or with why it abstains. Nothing
here wears the colours of an alarm: a score is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAIN = "news2"
_OLD_S = 120.0  # a risk is worked out every minute
Bed = Mapping[str, Any]


def text(name: str, score: Mapping[str, Any]) -> str:
    """One score, NEWS2 5 (partial, 5 of 7) at least medium."""
    value, present, needed = score.get("value"), score["present"], score["needed"]
    words = [str(score.get("label") or name), "---" if value is None else f"{value:g}"]
    if present < needed:
        words.append(f"(partial, {present} of {needed})")
    if score.get("band"):
        words.append(("at least " if score.get("at_least") else "") + str(score["band"]))
    return " ".join(words)


def risk(bed: Bed) -> str:
    """What the model says of a bed, sepsis risk 0.012 (coverage 83 %), or why it says nothing; empty: no model."""
    found = bed.get("risk")
    if not found:
        return ""
    name, value = str(found["name"]).replace("_", " "), found.get("value")
    shadow = " in shadow" if found.get("shadow") else ""
    if value is None:
        return f"{name} ---{shadow}: {found.get('detail') or 'no reason given'}"
    age_s = found.get("age_s", 0.0)
    old = f", {age_s / 60:.0f} min ago" if age_s > _OLD_S else ""
    return f"{name} {value:.3f}{shadow} (coverage {100 * found['coverage']:.0f} %{old})"


def short(bed: Bed) -> str:
    """NEWS2 in as little room as possible, NEWS2 5 (5/7); empty when there is none."""
    found = (bed.get("scores") or {}).get(MAIN)
    if not found or found["value"] is None:
        return ""
    part = f" ({found['present']}/{found['needed']})" if found["present"] < found["needed"] else ""
    return f"{found.get('label') or MAIN} {found['value']:g}{part}"


def main(bed: Bed) -> tuple[str, str]:
    """NEWS2 and the risk on one line, and the response that the band of NEWS2 asks for."""
    found = (bed.get("scores") or {}).get(MAIN)
    told = [text(MAIN, found)] if found else []
    return " | ".join(filter(None, (*told, risk(bed)))), str((found or {}).get("response", ""))


def lines(bed: Bed) -> list[str]:
    """What was entered on a bed, its scores and its risk, a line each."""
    entered = dict(bed.get("entered") or {})
    scale = entered.pop("scale", 1)
    said = [f"{name} {_entered(each)} {each['age_s'] // 60:.0f} min ago" for name, each in entered.items()]
    said += ["SpO2 scale 2"] if scale == 2 else []
    out = [f"entered: {', '.join(said)}"] if said else []
    for name, score in (bed.get("scores") or {}).items():
        line = text(name, score)
        line += f" [{score['detail']}]" if score.get("detail") else ""
        out.append(line)
        if score.get("response"):
            out.append(f"  response: {score['response']}")
    told = risk(bed)
    detail = (bed.get("risk") or {}).get("detail", "")
    return [*out, f"{told} [{detail}]" if detail and detail not in told else told] if told else out


def _entered(each: Mapping[str, Any]) -> str:
    value = each["value"]
    if not isinstance(value, bool):
        return str(value)
    return ("yes" if value else "no") + (f" {each['fio2']:g} %" if each.get("fio2") is not None else "")
