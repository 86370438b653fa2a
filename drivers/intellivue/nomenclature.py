"""What the monitor's codes mean: terms, units, numbers, measurement states, times and texts.

The nomenclature is that of IEEE 11073-10101 with Philips' own codes from F000 on: partition 2 of the metrics and 4 of
the units, each without its upper 16 bits. A code that is not in the vocabulary is read over.

A measurement carries a word of state bits. Test and demonstration data are never a patient's, a value that is invalid
or being calibrated is none, an unavailable one does not exist; each of them ends here, and no number passes.

Source: Philips IntelliVue Data Export Interface Programming Guide, attribute data types: FLOAT-Type, MeasurementState,
AbsoluteTime, String; IEEE 11073-10101 annex A.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from edge_agent import terms
from edge_agent.records import Validity

_METRICS, _UNITS = 2 << 16, 4 << 16  # partitions
_PRIVATE = 0xF000  # codes of the vendor begin here and are no MDC codes
TICKS_PER_S = 8000  # relative time counts eighths of a millisecond

_INVALID, _QUESTIONABLE, _UNAVAILABLE, _CALIBRATING = 0x8000, 0x4000, 0x2000, 0x1000
_TEST, _DEMO, _RESERVED, _EARLY = 0x0800, 0x0400, 0x0300, 0x0040

_NAN, _NRES, _RESERVED_FLOAT = 0x7FFFFF, 0x800000, 0x800001
_POSITIVE_INFINITY, _NEGATIVE_INFINITY = 0x7FFFFE, 0x800002

_NOT_MEASURED = ("weight", "height", "glucose")  # by this monitor: what it tells of them was entered


def _of_kind(kind: str) -> dict[int, terms.Term]:
    return {
        term.mdc_code - _METRICS: term
        for term in terms.TERMS
        if term.kind == kind and 0 < term.mdc_code - _METRICS < _PRIVATE and term.name not in _NOT_MEASURED
    }


# Codes under which the monitor sends a term besides the term's own.
NUMERICS: dict[int, terms.Term] = _of_kind("numeric") | {
    0x4261: terms.BY_NAME["pvc_rate"],  # the count of a minute
    0x4822: terms.BY_NAME["pulse_rate"],  # from the pleth
    0x5012: terms.BY_NAME["resp_rate_co2"],  # of the airway
    0x580B: terms.BY_NAME["icp"],  # its mean, which is what a monitor shows
    0xF0E5: terms.BY_NAME["nibp_pulse_rate"],  # Philips' own
}
WAVES: dict[int, terms.Term] = _of_kind("waveform") | {0x5000: terms.BY_NAME["resp_wave"]}
UNITS: dict[int, str] = {
    code - _UNITS: unit for code, unit in terms.UNIT_CODES.items() if 0 <= code - _UNITS < 1 << 16
} | {0x0C00: "L/min", 0x10C0: "Ohm"}


class Scaling(NamedTuple):
    """How a number as sent becomes a value in the term's unit: times `factor` plus `offset`."""

    term: terms.Term
    factor: float
    offset: float


@lru_cache(maxsize=512)
def scaling(term: terms.Term, unit: int) -> Scaling | None:
    """How values in the monitor's `unit` become values of `term`; None when they do not."""
    name = UNITS.get(unit)
    found = None if name is None else terms.conversion(name, term.ucum)
    return None if found is None else Scaling(term, *found)


def validity(state: int) -> Validity:
    """What a word of state bits leaves of a value: a number only when valid or questionable."""
    if state & (_TEST | _DEMO):
        return "invalid"
    if state & _UNAVAILABLE:
        return "not_available"
    if state & (_INVALID | _CALIBRATING):
        return "invalid"
    return "questionable" if state & (_QUESTIONABLE | _EARLY | _RESERVED) else "valid"


def decimal(word: int) -> float | None:
    """A FLOAT that is a finite number: signed exponent in the upper octet, signed mantissa in the other three."""
    mantissa = word & 0xFFFFFF
    if mantissa in (_NAN, _NRES, _RESERVED_FLOAT, _POSITIVE_INFINITY, _NEGATIVE_INFINITY):
        return None
    if mantissa & 0x800000:
        mantissa -= 1 << 24
    exponent = word >> 24
    if exponent & 0x80:
        exponent -= 1 << 8
    return float(f"{mantissa}e{exponent}")


def is_nan(word: int) -> bool:
    """Whether a FLOAT says that there is no number, rather than that there is one which cannot be told."""
    return word & 0xFFFFFF == _NAN


def clean(value: float) -> float:
    """The number without the binary tail of its arithmetic; 12 digits are more than 24 bits have."""
    return float(f"{value:.12g}")


def value(found: Scaling, state: int, word: int) -> tuple[float | None, Validity]:
    """The value in the term's unit and its validity; no value when the state or the FLOAT says so."""
    valid = validity(state)
    if valid in ("invalid", "not_available"):
        return None, valid
    sent = decimal(word)
    if sent is None:
        return None, "not_available" if is_nan(word) else "invalid"
    scaled = sent if found.factor == 1.0 and found.offset == 0.0 else clean(sent * found.factor + found.offset)
    low, high = found.term.plausible_min, found.term.plausible_max
    if (low is not None and scaled < low) or (high is not None and scaled > high):
        return None, "invalid"
    return scaled, valid


def absolute(octets: bytes) -> datetime | None:
    """A date and time of eight BCD octets, without zone; None for FF, which is "not supported", and for no date."""
    if len(octets) != 8 or not octets.hex().isdecimal():
        return None
    century, year, month, day, hour, minute, second, hundredth = (int(f"{octet:02x}") for octet in octets)
    try:
        return datetime(century * 100 + year, month, day, hour, minute, second, hundredth * 10_000)
    except ValueError:
        return None


class Clock:
    """The monitor's clock: relative times become dates once a message has told both."""

    def __init__(self) -> None:
        self._known: tuple[int, datetime] | None = None

    def learn(self, relative: int, at: datetime | None) -> None:
        """Take the date that belongs to a relative time."""
        if at is not None:
            self._known = (relative, at)

    def forget(self) -> None:
        """Begin anew: another association counts relative time from another moment."""
        self._known = None

    def date(self, relative: int) -> str | None:
        """ISO 8601 of a relative time, as far as the monitor's clock is right; None before its date is known."""
        if self._known is None:
            return None
        known, at = self._known
        ticks = (relative - known + (1 << 31)) % (1 << 32) - (1 << 31)
        try:
            return iso(at + timedelta(seconds=ticks / TICKS_PER_S))
        except OverflowError:
            return None


def iso(at: datetime) -> str:
    """ISO 8601 to the millisecond."""
    return at.isoformat(timespec="milliseconds")


def text(octets: bytes, longest: int = 100) -> str | None:
    """A String attribute, without its closing zero and with spaces for what cannot be shown; None when it is none."""
    if len(octets) < 2:
        return None
    size = int.from_bytes(octets[:2], "big")
    if size % 2 or size > len(octets) - 2:
        return None
    try:
        sent = octets[2 : 2 + size].decode("utf-16-be")
    except UnicodeDecodeError:
        return None
    shown = "".join(each if each.isprintable() else " " for each in sent.partition("\0")[0])
    return shown.strip()[:longest]
