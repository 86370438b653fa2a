"""How far the gateway's number may be from the one on the monitor's screen.

Both are the same measurement, so nothing here is about how well a device measures: the difference comes from rounding
on the screen, and from a number that changed between two looks. The figures are engineering values for a steady
simulator; docs/biomed.md lists them.
"""

from __future__ import annotations

from typing import NamedTuple

from edge_agent import terms

# Vital (the family that a limit applies to) -> tolerance in the unit of its terms
TOLERANCE: dict[str, float] = {
    "heart_rate": 2.0,
    "pulse_rate": 2.0,
    "resp_rate": 1.0,
    "spo2": 1.0,
    "perfusion_index": 0.2,
    "temp": 0.1,
    "nibp_sys": 1.0,  # one measurement stays until the next: only rounding, as of kPa
    "nibp_dia": 1.0,
    "nibp_mean": 1.0,
    "etco2": 1.0,
    "ico2": 1.0,
    "cardiac_output": 0.1,
    "st_i": 0.1,
    "weight": 0.1,
    "battery": 5.0,  # devices tell it in steps
}
PRESSURE_MMHG = 3.0  # an invasive pressure changes with each beat
SHARE = 0.02  # of anything else, and at least one unit
_STEPS = 1e-9  # a difference of exactly the tolerance passes, whatever binary fractions make of it


class Comparison(NamedTuple):
    """One vital sign beside the screen; `deviation` is gateway minus screen, None where nothing was compared."""

    term: str
    unit: str
    outcome: str  # match, deviates, not shown, undeclared, no value
    deviation: float | None
    tolerance: float

    @property
    def good(self) -> bool:
        """Whether it stands in the way of acceptance."""
        return self.outcome in ("match", "not shown")


def tolerance(term: str, value: float) -> float:
    """The tolerance of a term at a value, in its unit."""
    row = terms.BY_NAME[term]
    if row.vital in TOLERANCE:
        return TOLERANCE[row.vital]
    return PRESSURE_MMHG if row.ucum == "mm[Hg]" else max(1.0, abs(value) * SHARE)


def compare(term: str, values: list[float], screen: float) -> Comparison:
    """The number on the screen beside those that the gateway had meanwhile; the nearest of them counts."""
    unit = terms.BY_NAME[term].ucum
    nearest = min((value - screen for value in values), key=abs)
    allowed = tolerance(term, screen)
    outcome = "match" if abs(nearest) <= allowed + _STEPS else "deviates"
    return Comparison(term, unit, outcome, round(nearest, 3), allowed)
