"""Numbers and times as HL7 writes them, read strictly: what is not plainly a number is not a number."""

from __future__ import annotations

import re
from datetime import datetime

from edge_agent.records import Validity

CACHE_SIZE = 4096  # entries of any one cache; vital signs take a few hundred values, hostile input cannot grow it

# What monitors write where they have no value, as numbers and as text.
NO_VALUE = frozenset({-100.0, -1000.0, -10000.0, 32767.0, 8388607.0})
_NO_VALUE_TEXT = frozenset({"", '""', "?", "NA", "N/A"})

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_LONGEST = 24  # characters of a number; no device sends more, and a float holds 17 digits

NUMBERS: dict[str, float] = {}  # texts that are valid numbers, already seen


def decimal(text: str) -> float | None:
    """The number that `text` spells with sign, digits and point alone; None for everything else."""
    if len(text) > _LONGEST or _DECIMAL.fullmatch(text) is None:
        return None
    return float(text)


def number(text: str) -> tuple[float | None, Validity]:
    """The value of an OBX-5 and its validity: a device's "no value" marker is never a number."""
    text = text.strip(" ")
    value = decimal(text)
    if value is None:
        missing = text in _NO_VALUE_TEXT or not text.strip("-*_. ")
        return None, "not_available" if missing else "invalid"
    if value in NO_VALUE:
        return None, "not_available"
    if len(NUMBERS) >= CACHE_SIZE:
        NUMBERS.clear()
    NUMBERS[text] = value
    return value, "valid"


# Milliseconds may follow the seconds without a point, as one vendor sends them.
_TIME = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})"
    r"(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:\.([0-9]{1,6})[0-9]*|([0-9]{3}))?)?)?)?([+-][0-9]{4})?"
)
MINUTES: dict[str, str] = {}  # YYYYMMDDHHMM that is a time, already seen, to ISO 8601
_SECONDS = {f"{second:02d}": f":{second:02d}" for second in range(60)}
_ZONE = re.compile(r"[+-](?:0[0-9]|1[0-4])[0-5][0-9]")


def zone(text: str) -> str:
    """The offset at the end of an HL7 time, such as +0100; empty when there is none."""
    tail = text[-5:]
    return tail if tail[:1] in ("+", "-") and _ZONE.fullmatch(tail) else ""


def device_time(text: str, default_zone: str = "") -> str | None:
    """An HL7 time as ISO 8601, in the precision and offset that were sent; None when it is no time.

    A time without an offset gets that of the message's MSH-7, as HL7 has it.
    """
    iso = MINUTES.get(text[:12])
    if iso is not None and not default_zone:
        second = _SECONDS.get(text[12:])
        if second is not None:  # the usual: a minute that was seen, whole seconds, no offset
            return iso + second
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, millis, offset = found.groups()
    try:
        datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError:
        return None
    iso = f"{year}-{month}-{day}"
    if hour is None:
        return iso
    iso += f"T{hour}:{minute or '00'}"
    if len(MINUTES) >= CACHE_SIZE:
        MINUTES.clear()
    if minute is not None:
        MINUTES[text[:12]] = iso
    if second is not None:
        iso += f":{second}"
        if fraction or millis:
            iso += f".{fraction or millis}"
    offset = offset or default_zone
    if offset:
        if _ZONE.fullmatch(offset) is None:
            return None
        iso += f"{offset[:3]}:{offset[3:]}"
    return iso
