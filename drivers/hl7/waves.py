"""Blocks of waveform samples: the NA row, and the rows beside it that say rate, resolution and invalid marker.

The rows belong together by OBX-4: the block stands at `1.7.6.131329`, its facets at `1.7.6.131329.1`, `.2`, `.3`, in
any order. A block is given out when its message ends. Without a sample rate or a way to a physical value there is no
waveform: a guessed scale would be a wrong number.

Source: IHE PCD waveform content module; Mindray 99MNDRY continuous waveform, public message structure.
"""

from __future__ import annotations

import math
import re
from array import array
from sys import byteorder
from typing import NamedTuple

from drivers.contract import Outlet
from drivers.hl7 import dialects, values
from drivers.hl7.tokens import shown
from edge_agent import terms
from edge_agent.records import NO_SAMPLE, Item, Reject, Waveform

_MARKER = 32767.0  # of a block that declares none
_MARKER_FACET = "3"  # last part of OBX-4, for senders that give the marker another identifier
_LARGEST = 32767  # int16; -32768 is NO_SAMPLE
_RATE_MAX_HZ = 100_000.0  # a thousand times an ECG; beyond it the field is not a rate
_SAMPLES_MAX = 65536
_INTEGERS = re.compile(r"-?[0-9]{1,9}(?:\^-?[0-9]{1,9})*")
_DECIMALS_MAX = 9


class _Block(NamedTuple):
    term: terms.Term
    samples: str
    unit: str
    device_time: str | None
    location: str
    subject: str


class Facet(NamedTuple):
    """One value that describes a block, with its unit as sent."""

    value: float | None
    unit: str


class Waves:
    """The blocks and facets of one message."""

    __slots__ = ("_blocks", "_facets", "_twice")

    def __init__(self) -> None:
        self._blocks: dict[str, _Block] = {}
        self._facets: dict[tuple[str, str], Facet] = {}
        self._twice: list[_Block] = []

    def block(self, term: terms.Term, row: list[str], device_time: str | None, location: str, subject: str) -> None:
        """Take the row that holds the samples; one that says it has none is passed over."""
        if not row[5] or row[11] in ("X", "D", "W"):
            return
        block = _Block(term, row[5], row[6], device_time, location, subject)
        if row[4] in self._blocks:  # its facets would belong to either
            self._twice.append(block)
        else:
            self._blocks[row[4]] = block

    def facet(self, name: str, row: list[str]) -> None:
        """Take a row that describes a block; `name` is rate, resolution, marker, or empty when only OBX-4 tells."""
        if not name and not self._blocks:
            return
        parent, _, position = row[4].rpartition(".")
        if not name:
            if position != _MARKER_FACET or parent not in self._blocks:
                return
            name = "marker"
        self._facets[parent, name] = Facet(values.decimal(row[5].strip(" ")), row[6])

    def row(
        self, meaning: dialects.Meaning, row: list[str], device_time: str | None, location: str, subject: str
    ) -> None:
        """Take a row whose OBX-3 is that of a waveform or of a facet."""
        if meaning.kind == dialects.FACET:
            self.facet(meaning.facet, row)
        elif meaning.kind == dialects.WAVE and meaning.term is not None and row[2] == "NA":
            self.block(meaning.term, row, device_time, location, subject)

    def end(self, at_ns: int, out: Outlet) -> None:
        """Append a Waveform for every block, or a Reject that says what it lacks, and begin anew."""
        if not self._blocks and not self._facets:
            return
        for channel, block in self._blocks.items():
            out.append(self._item(channel, block, at_ns))
        for block in self._twice:
            reason = f"waveform {block.term.name}: two blocks at one place"
            out.append(Reject(reason, len(block.samples), at_ns, block.location))
        self._blocks, self._facets, self._twice = {}, {}, []

    def _item(self, channel: str, block: _Block, at_ns: int) -> Item:
        def reject(reason: str) -> Reject:
            return Reject(f"waveform {block.term.name}: {reason}", len(block.samples), at_ns, block.location)

        rate = self._facets.get((channel, "rate"))
        if rate is None or rate.value is None or not 0.0 < rate.value <= _RATE_MAX_HZ:
            return reject("no sample rate")
        if dialects.unit(rate.unit) not in ("", "Hz"):
            return reject("sample rate not in Hz")
        scale = self._scale(channel, block)
        if scale is None:
            return reject("no resolution in a unit that converts")
        marker = self._facets.get((channel, "marker"))
        packed = pack(block.samples, _MARKER if marker is None or marker.value is None else marker.value)
        if isinstance(packed, str):
            return reject(packed)
        return Waveform(
            block.term.name,
            rate.value,
            packed.samples,
            _clean(packed.step * scale[0]),
            _clean(packed.offset * scale[0] + scale[1]),
            at_ns,
            block.device_time,
            block.location,
            block.subject,
            shown(channel, longest=64),
        )

    def _scale(self, channel: str, block: _Block) -> tuple[float, float] | None:
        """Factor and offset from a sample as sent to the unit of the term."""
        resolution = self._facets.get((channel, "resolution"))
        step = 1.0
        unit: str | None
        if resolution is None:
            unit = dialects.unit(block.unit)
            if not unit and block.term.ucum != "1":
                return None
        else:
            if not resolution.value:
                return None
            step = resolution.value
            unit = dialects.unit(resolution.unit) or dialects.unit(block.unit)
        if unit is None:
            return None
        found = terms.conversion(unit, block.term.ucum) if unit else (1.0, 0.0)
        return None if found is None else (step * found[0], found[1])


def _clean(value: float) -> float:
    """The number without the binary tail of its arithmetic; 12 digits are more than any resolution has."""
    return float(f"{value:.12g}")


class Packed(NamedTuple):
    """Samples as int16, little-endian; sample as sent = int16 * step + offset."""

    samples: bytes
    step: float
    offset: float


def pack(text: str, marker: float) -> Packed | str:
    """The samples of an OBX-5, `^` or `~` between them, without loss; or the reason why that cannot be.

    Samples equal to `marker`, and empty ones, become NO_SAMPLE. Samples beyond 16 bits are shifted and divided by
    their greatest common divisor when that fits; they are never wrapped or rounded.
    """
    text = text.replace("~", "^")
    if text.count("^") >= _SAMPLES_MAX:
        return "too many samples"
    whole: list[int | None]
    if _INTEGERS.fullmatch(text):
        whole = list(map(int, text.split("^")))
        unit = 1
    else:
        scaled = _decimals([part.strip(" ") for part in text.split("^")])
        if scaled is None:
            return "a sample is not a number"
        whole, unit = scaled
    none = marker * unit
    whole = [None if sample == none else sample for sample in whole]
    known = [sample for sample in whole if sample is not None]
    low, high = (min(known), max(known)) if known else (0, 0)
    if low >= -_LARGEST and high <= _LARGEST:
        shift, divisor = 0, 1
    else:
        divisor = math.gcd(*(sample - low for sample in known)) or 1
        if (high - low) // divisor > 2 * _LARGEST:
            return "samples need more than 16 bits"
        shift = low + (high - low) // divisor // 2 * divisor
    raw = array("h", [NO_SAMPLE if sample is None else (sample - shift) // divisor for sample in whole])
    if byteorder == "big":
        raw.byteswap()
    return Packed(raw.tobytes(), divisor / unit, shift / unit)


def _decimals(parts: list[str]) -> tuple[list[int | None], int] | None:
    """Samples with a decimal point as integers, and the power of ten that they were multiplied with."""
    places = max(len(part.partition(".")[2]) for part in parts)
    if places > _DECIMALS_MAX:
        return None
    unit = 10**places
    out: list[int | None] = []
    for part in parts:
        if not part:
            out.append(None)
            continue
        if values.decimal(part) is None:
            return None
        before, _, after = part.partition(".")
        sign = -1 if before.startswith("-") else 1
        out.append(sign * (int(before.lstrip("+-") or "0") * unit + int(after.ljust(places, "0") or "0")))
    return out, unit
