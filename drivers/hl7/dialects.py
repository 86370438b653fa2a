"""What a row's codes mean: OBX-3 to a term, OBX-6 to a unit, for every coding system that monitors send.

The reference identifier (component 2) decides, the number comes second: field devices send numbers that belong to
another metric, and the text beside them was right. A number that contradicts its identifier is reported, not obeyed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from drivers.hl7.tokens import shown, unescape
from edge_agent import terms

# Kinds of row, by their OBX-3.
METRIC, WAVE, FACET, ALERT, OTHER = "metric", "wave", "facet", "alert", "other"

# Facets of a waveform, IHE PCD and Mindray: what describes the block stands in rows of its own.
FACETS = {"MDC_ATTR_SAMP_RATE": "rate", "MDC_ATTR_NU_MSMT_RES": "resolution", "MDC_EVT_INOP": "marker"}

# Numbers that belong to an identifier under which terms.py knows a term only by its second name.
_OWN_CODES = {
    "MDC_PRESS_CUFF_SYS": 150301,
    "MDC_PRESS_CUFF_DIA": 150302,
    "MDC_PRESS_CUFF_MEAN": 150303,
    "MDC_PULS_OXIM_PERF_REL": 150448,
    "MDC_PLETH_PULS_RATE": 149538,
    "MDC_AWAY_RESP_RATE": 151570,
}
_MDC_SYSTEMS = frozenset({"", "MDC", "ISO11073", "ISO/IEEE 11073-10101", "IEEE 11073-10101", "11073-10101"})
_LOINC_SYSTEMS = frozenset({"LN", "LOINC"})
_EDAN = {  # coding system EHC
    "131072": "heart_rate",
    "327680": "spo2",
    "327681": "pulse_rate",
    "393216": "nibp_sys",
    "393217": "nibp_dia",
    "393218": "nibp_mean",
    "393219": "nibp_pulse_rate",
    "458752": "temp",
}
# Six digits, group and item; the leading zeros tell them from MDC numbers, whatever the coding system is called.
_NIHON_KOHDEN = {
    "001000": "heart_rate",
    "007000": "spo2",
    "007001": "pulse_rate",
    "009000": "nibp_sys",
    "009001": "nibp_dia",
    "009002": "nibp_mean",
}
_SYSTEM_NAMES = frozenset({"MDC", "LN", "LOINC", "MDIL", "MDIL-ALERT", "EHC", "UCUM"})
_MDIL = re.compile(r"([0-9A-Fa-f]{4})-([0-9A-Fa-f]{4})")
_MDIL_PRIVATE = 0xF000  # terms from here on mean something else in every product
_LOINC = re.compile(r"[0-9]{1,7}-[0-9]")
_NUMBER = re.compile(r"[0-9]{1,9}")

# Where one identifier serves several sensors, the device or channel it hangs under says which.
# Source: IHE PCD-01 containment; GE B40 HL7 reference manual, two MDC_RESP_RATE rows.
PARENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "resp_rate": (
        ("AWAY", "resp_rate_co2"),
        ("CO2", "resp_rate_co2"),
        ("RESP_GAS", "resp_rate_co2"),
        ("ECG", "resp_rate_impedance"),
        ("TTHOR", "resp_rate_impedance"),
        ("IMPED", "resp_rate_impedance"),
        ("PULS_OXIM", "resp_rate_pleth"),
    ),
}


class Code(NamedTuple):
    """A coded element: number or code, text, coding system, all in one notation."""

    code: str
    text: str
    system: str


class Meaning(NamedTuple):
    """What an OBX-3 stands for; `mismatch` says how its parts disagree, `alert` is the grade of an alarm text."""

    kind: str
    term: terms.Term | None = None
    mismatch: str = ""
    facet: str = ""
    alert: str = ""


def codes(field: str) -> tuple[Code, Code]:
    """The code and its alternative (components 1 to 3 and 4 to 6) of a CWE or CE field."""
    parts = [unescape(part).strip() for part in field.split("~", 1)[0].split("^", 6)[:6]]
    parts += [""] * (6 - len(parts))
    return _code(*parts[:3]), _code(*parts[3:])


def _code(code: str, text: str, system: str) -> Code:
    if not system and text.upper() in _SYSTEM_NAMES:  # some senders leave the text out instead of empty
        text, system = "", text
    return Code(code, text, system.upper())


def meaning(field: str) -> Meaning:
    """What the row with this OBX-3 carries."""
    mismatch = ""
    for code in codes(field):
        found = _meaning(code)
        mismatch = mismatch or found.mismatch
        if found.kind != OTHER:
            return found._replace(mismatch=mismatch)
    return Meaning(OTHER, mismatch=mismatch)


def _meaning(code: Code) -> Meaning:
    refid = code.text.upper()
    if refid in FACETS:
        return Meaning(FACET, facet=FACETS[refid])
    if code.system == "MDIL-ALERT":
        return Meaning(ALERT, alert=code.text)
    by_refid = terms.BY_REFID.get(refid)
    by_code = _by_code(code)
    if by_refid is not None:
        expected = _OWN_CODES.get(refid, by_refid.mdc_code)
        wrong = code.system in _MDC_SYSTEMS and _NUMBER.fullmatch(code.code) and int(code.code) not in (0, expected)
        return _of(by_refid, f"{code.code} sent as {refid}" if wrong else "")
    if by_code is not None and refid.startswith("MDC") and code.system in _MDC_SYSTEMS:
        # An identifier we do not know beside a number we do: only a number that is the term's own is believed.
        mismatch = f"{code.code} sent as {shown(refid, longest=60)}"
        return _of(by_code, mismatch) if int(code.code) == by_code.mdc_code else Meaning(OTHER, mismatch=mismatch)
    return Meaning(OTHER) if by_code is None else _of(by_code)


def _of(term: terms.Term, mismatch: str = "") -> Meaning:
    return Meaning(WAVE if term.kind == "waveform" else METRIC, term, mismatch)


def _by_code(code: Code) -> terms.Term | None:
    name: str | None = None
    if code.system == "EHC":
        name = _EDAN.get(code.code)
    elif code.system in _LOINC_SYSTEMS:
        return terms.BY_LOINC.get(code.code)
    elif code.system == "MDIL":
        number = mdil(code.code)
        return terms.BY_MDIL.get(code.code.lower()) or (terms.BY_MDC.get(number) if number else None)
    elif code.code in _NIHON_KOHDEN:
        name = _NIHON_KOHDEN[code.code]
    elif code.system in _MDC_SYSTEMS and _NUMBER.fullmatch(code.code):
        return terms.BY_MDC.get(int(code.code))
    elif not code.system and _LOINC.fullmatch(code.code):
        return terms.BY_LOINC.get(code.code)
    return terms.BY_NAME[name] if name else None


def mdil(code: str) -> int | None:
    """The MDC number that a Philips code PPPP-hhhh spells in hex; None for private terms and anything else."""
    found = _MDIL.fullmatch(code)
    if found is None:
        return None
    term = int(found[2], 16)
    return None if term >= _MDIL_PRIVATE else (int(found[1], 16) << 16) + term


def unit(field: str) -> str | None:
    """The UCUM unit of an OBX-6, empty when none was sent; None when it is unknown or contradicts itself."""
    if not field or field == '""':
        return ""
    named = [code for code in codes(field) if code.code or code.text]
    found = {name for name in map(_unit, named) if name is not None}
    if not named:
        return ""
    return found.pop() if len(found) == 1 else None


def _unit(code: Code) -> str | None:
    refid = code.text.upper()
    if refid in terms.UNIT_REFIDS:  # decides against the number, as in OBX-3
        return terms.UNIT_REFIDS[refid]
    if code.code.upper() in terms.UNIT_REFIDS:
        return terms.UNIT_REFIDS[code.code.upper()]
    by_code = terms.UNIT_NAMES.get(code.code.lower()) if code.code else None
    if code.system == "UCUM":  # its text is free
        return by_code
    number = mdil(code.code) if code.system == "MDIL" else None
    if code.system in _MDC_SYSTEMS and _NUMBER.fullmatch(code.code):
        number = int(code.code)
    by_number = terms.UNIT_CODES.get(number) if number else None
    by_text = terms.UNIT_NAMES.get(code.text.lower()) if code.text else None
    found = {name for name in (by_number, by_code, by_text) if name is not None}
    return found.pop() if len(found) == 1 else None


def parent_term(name: str, parents: tuple[str, ...]) -> str:
    """The term that `name` becomes under these device or channel identifiers, nearest first."""
    for parent in parents:
        for word, other in PARENTS[name]:
            if word in parent:
                return other
    return name
