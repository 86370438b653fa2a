"""Which values cannot be what they say: such a value raises a technical condition and feeds no limit.

Source: the bounds of edge_agent/terms.py; rates over 300/min, saturation over 100 % or sent as a fraction, and a
diastolic pressure that is not below the systolic are signs of a wrong unit, scale or field, not of a patient.
"""

from __future__ import annotations

import math
from functools import cache

from edge_agent.terms import Term

GREATEST_RATE = 300.0  # beats a minute; no heart or pulse rate beyond it is physiological
FRACTION = 1.0  # a saturation of 1 % or less is a fraction of one that was sent in the wrong unit

# Terms of one pressure measurement: systolic, diastolic, and the name of the pair.
PRESSURE_PAIRS: tuple[tuple[str, str], ...] = (
    ("nibp_sys", "nibp_dia"),
    ("abp_sys", "abp_dia"),
    ("art_sys", "art_dia"),
    ("pap_sys", "pap_dia"),
)
PAIR_OF: dict[str, tuple[str, str]] = {term: pair for pair in PRESSURE_PAIRS for term in pair}


@cache
def bounds(term: Term) -> tuple[float, float]:
    """Least and greatest plausible value of a term, in its unit."""
    least = -math.inf if term.plausible_min is None else term.plausible_min
    greatest = math.inf if term.plausible_max is None else term.plausible_max
    if term.vital in ("heart_rate", "pulse_rate"):
        greatest = min(greatest, GREATEST_RATE)
    return least, greatest


def reason(term: Term, value: float) -> str:
    """Why a value is implausible, in words without the value; empty when it is plausible."""
    least, greatest = bounds(term)
    if not least <= value <= greatest:
        return f"{term.name} outside {least:g} to {greatest:g} {term.ucum}"
    if term.vital == "spo2" and 0.0 < value <= FRACTION:
        return f"{term.name} looks like a fraction, not per cent"
    return ""
