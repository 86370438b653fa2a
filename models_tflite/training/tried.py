"""What was tried while the recipe was made, with figures: what helped, and what did not.

Measured on validation stays (every third row of 3,200 stays), one member, threshold best on the same rows, so that the
utility is a little too good; good for comparing rows of this table with one another and for nothing else.
"""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """One experiment: AUROC, utility, WH, and the AUROC of its score for a late hour."""

    what: str
    auroc: float
    utility: float
    wh: float
    later: float


_TRIALS: tuple[Trial, ...] = ()


def markdown() -> str:
    """The table of the trials for the model card."""
    lines = [
        "## What was tried\n",
        _ABOUT,
        "| trained | AUROC | utility | WH | AUROC, later than 54 h |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {t.what} | {t.auroc:.3f} | {t.utility:.3f} | {t.wh:.3f} | {t.later:.3f} |" for t in _TRIALS]
    return "\n".join(lines)


_ABOUT = ""
