"""A ratio beside what it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

NOT_MEASURED = "not measured"


def at_least(what: str, rounds: Sequence[float], wanted: float) -> dict[str, object]:
    """A row of the table: the median of the rounds, each round, and whether it is not less than wanted."""
    return _row(what, rounds, f"at least {wanted:g}", lambda found: found >= wanted)


def at_most(what: str, rounds: Sequence[float], wanted: float) -> dict[str, object]:
    """A row of the table: the median of the rounds, each round, and whether it is not more than wanted."""
    return _row(what, rounds, f"at most {wanted:g}", lambda found: found <= wanted)


def _row(what: str, rounds: Sequence[float], aim: str, holds: Callable[[float], bool]) -> dict[str, object]:
    if not rounds:
        return {"compared": what, "found": NOT_MEASURED, "aim": aim}
    found = median(rounds)
    return {
        "compared": what,
        "found": float(f"{found:.3g}"),
        "aim": aim,
        "met": "yes" if holds(found) else "no",
        "rounds": " ".join(f"{each:.3g}" for each in rounds),
    }
