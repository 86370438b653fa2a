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
# What was read before: YYYYMMDDHHMM to ISO 8601, and what follows the seconds, with the offset that stands in.
_MINUTES: dict[str, str] = {}
_TAILS: dict[tuple[str, str], str] = {}
_SECONDS = {f"{second:02d}": f":{second:02d}" for second in range(60)}
_TIME_KEPT = 32  # characters; digits of a fraction may go on without end
_ZONES: set[str] = set()  # offsets already seen
_ZONE = re.compile(r"[+-](?:0[0-9]|1[0-4])[0-5][0-9]")


def zone(text: str) -> str:
    """The offset at the end of an HL7 time, such as +0100; empty when there is none."""
    tail = text[-5:]
    if tail in _ZONES:
        return tail
    if tail[:1] not in ("+", "-") or _ZONE.fullmatch(tail) is None:
        return ""
    _ZONES.add(tail)  # at most one for each quarter of an hour and the odd minute: 1,800 can match
    return tail


def device_time(text: str, default_zone: str = "") -> str | None:
    """An HL7 time as ISO 8601, in the precision and offset that were sent; None when it is no time.

    A time without an offset gets that of the message's MSH-7, as HL7 has it.
    """
    known = _MINUTES.get(text[:12]), _SECONDS.get(text[12:14]), _TAILS.get((text[14:], default_zone))
    if None not in known:
        return "".join(known)  # type: ignore[arg-type]
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
    to_the_minute = iso
    if second is not None:
        iso += f":{second}"
        if fraction or millis:
            iso += f".{fraction or millis}"
    offset = offset or default_zone
    if offset:
        if _ZONE.fullmatch(offset) is None:
            return None
        iso += f"{offset[:3]}:{offset[3:]}"
    if second is not None and len(text) <= _TIME_KEPT:
        _remember(text, default_zone, to_the_minute, iso[len(to_the_minute) + 3 :])
    return iso


def _remember(text: str, default_zone: str, to_the_minute: str, tail: str) -> None:
    """Keep the parts of a time that come again with the next message."""
    for cache in (_MINUTES, _TAILS):
        if len(cache) >= CACHE_SIZE:
            cache.clear()
    _MINUTES[text[:12]] = to_the_minute
    _TAILS[text[14:], default_zone] = tail
