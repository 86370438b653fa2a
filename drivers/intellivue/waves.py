"""Waves: blocks of samples, and what must be known of a wave before its samples are physical values.

Theory of operation. The samples come every 256 ms; rate, sample size, scale, unit and the masks of invalid samples
come apart, one object a second, and are kept for each object and metric (the ECG leads share one object). Only
together they make a waveform: a block without its rate, its size or its scale is rejected, never guessed. What is kept
belongs to one metric of one association; another metric in the same object knows nothing of it.

Samples are unsigned. The bits that are no part of the value are taken off where the monitor says so, and samples that
a mask marks as invalid or saturated, or all of a block whose state says so, become NO_SAMPLE. A missing block stays
missing.

Source: Philips IntelliVue Data Export Interface Programming Guide, real time sample array object: SaObsValue,
SaObsValueCmp, SaSpec, SaFixedValSpec16, ScaleRangeSpec16, sample period.
"""

from __future__ import annotations

import struct
from array import array
from sys import byteorder
from typing import NamedTuple

from drivers.intellivue import nomenclature, replies
from drivers.intellivue.nomenclature import TICKS_PER_S, WAVES
from edge_agent import terms
from edge_agent.records import NO_SAMPLE, Reject, Waveform

VALUE, COMPOUND, SPECIFICATION, FIXED, SCALE, PERIOD, UNIT = 0x096E, 0x0967, 0x096D, 0x0A16, 0x096F, 0x098D, 0x0996
_CONTEXT = (SPECIFICATION, FIXED, SCALE, PERIOD, UNIT)
_INVALID_MASK, _SATURATION_MASK = 1, 4
_MASKED = 0x1000  # flag: bits beyond the significant ones are no part of the value
_RATES_HZ = (20.0, 1000.0)  # the monitor's rates are 62.5, 125, 250 and 500
_KEPT = 64  # waves; a monitor sends at most 11
_MASKS_MAX = 16  # the guide knows six
_VALUES_MAX = 16  # in one compound; the monitor has three

_HEAD = struct.Struct(">HHH")
_SPECIFICATION = struct.Struct(">HBBH")
_SCALE = struct.Struct(">IIHH")
_PAIR = struct.Struct(">HH")

Key = tuple[int, int, tuple[int, ...]]


class Context(NamedTuple):
    """What turns samples into a waveform: value = sample * scale + offset."""

    rate_hz: float
    samples_max: int
    octets: int
    value_mask: int
    invalid: tuple[int, ...]  # masks
    plain: bool  # a sample that has no bit beyond `value_mask` is not marked
    scale: float
    offset: float


class Waves:
    """The waves of one monitor."""

    def __init__(self) -> None:
        self._attributes: dict[Key, replies.Attributes] = {}
        self._contexts: dict[tuple[Key, int], Context | str] = {}

    def forget(self) -> None:
        """Begin anew, with another association."""
        self._attributes.clear()
        self._contexts.clear()

    def items(
        self, poll: replies.Poll, at_ns: int, device_time: str | None, subject: str, real: bool
    ) -> list[Waveform | Reject]:
        """Blocks of one result; without `real` the monitor makes its data up. Raises: Malformed."""
        out: list[Waveform | Reject] = []
        every = [_values(found) for *_, found in poll.objects]
        for (context, handle, found), values in zip(poll.objects, every, strict=True):
            if not values:
                continue
            key = (context, handle, tuple(code for code, _, _ in values))
            self._learn(key, found)
            for code, state, data in values:
                term = WAVES.get(code)
                if term is None or not data:
                    continue
                known = self._context(key, code, term)
                if isinstance(known, str):
                    out.append(Reject(f"waveform {term.name}: {known}", len(data), at_ns))
                    continue
                if len(data) % known.octets or len(data) > known.samples_max * known.octets:
                    out.append(Reject(f"waveform {term.name}: samples do not fit", len(data), at_ns))
                    continue
                usable = real and nomenclature.validity(state) in ("valid", "questionable")
                samples, shift = _pack(data, known, usable)
                offset = nomenclature.clean(known.offset + shift * known.scale) if shift else known.offset
                out.append(
                    Waveform(
                        term.name, known.rate_hz, samples, known.scale, offset, at_ns, device_time, "", subject,
                        f"{handle}",
                    )
                )  # fmt: skip
        return out

    def _learn(self, key: Key, found: replies.Attributes) -> None:
        new = {name: found[name] for name in _CONTEXT if name in found}
        if not new:
            return
        kept = self._attributes.get(key)
        if kept is None and len(self._attributes) >= _KEPT:
            self.forget()
        self._attributes[key] = {**(kept or {}), **new}
        for code in key[2]:
            self._contexts.pop((key, code), None)

    def _context(self, key: Key, code: int, term: terms.Term) -> Context | str:
        """What is known of a wave, or what is missing."""
        known = self._contexts.get((key, code))
        if known is None:
            known = _context(self._attributes.get(key, {}), term)
            if key in self._attributes:
                self._contexts[key, code] = known
        return known


def _values(found: replies.Attributes) -> list[tuple[int, int, bytes]]:
    """Metric, state and samples of each wave in an object. Raises: Malformed."""
    out: list[tuple[int, int, bytes]] = []
    single, compound = found.get(VALUE), found.get(COMPOUND)
    data, count = b"", 0
    if single is not None:
        data, count = single, 1
    elif compound is not None:
        count, data = replies.entries(compound, "compound wave")
        if count > _VALUES_MAX:
            raise replies.Malformed("compound wave: count")
    at = 0
    for _ in range(count):
        if len(data) - at < _HEAD.size:
            raise replies.Malformed("wave: cut")
        code, state, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if length > len(data) - at:
            raise replies.Malformed("wave: longer than its attribute")
        out.append((code, state, data[at : at + length]))
        at += length
    if at != len(data):
        raise replies.Malformed("wave: length")
    return out


def _context(kept: replies.Attributes, term: terms.Term) -> Context | str:
    period, specification = kept.get(PERIOD, b""), kept.get(SPECIFICATION, b"")
    ticks = int.from_bytes(period, "big")
    if len(period) != 4 or not _RATES_HZ[0] <= TICKS_PER_S / (ticks or 1) <= _RATES_HZ[1]:
        return "no sample period that can be"
    if len(specification) != _SPECIFICATION.size:
        return "no specification of its samples"
    samples_max, bits, significant, flags = _SPECIFICATION.unpack(specification)
    if bits not in (8, 16) or not 0 < significant <= bits:
        return f"samples of {significant} in {bits} bits"
    line = _line(kept, term)
    if isinstance(line, str):
        return line
    invalid = _masks(kept.get(FIXED))
    if invalid is None:
        return "masks that do not fit"
    marks = 0
    for mask in invalid:
        marks |= mask
    whole = (1 << bits) - 1
    significant_mask = (1 << significant) - 1
    value_mask = significant_mask if flags & _MASKED else whole & ~(marks & ~significant_mask)
    plain = all(mask & ~value_mask for mask in invalid)
    return Context(TICKS_PER_S / ticks, samples_max, bits // 8, value_mask, invalid, plain, *line)


def _line(kept: replies.Attributes, term: terms.Term) -> tuple[float, float] | str:
    """Scale and offset from a sample to the term's unit, or what is missing."""
    sent, unit = kept.get(SCALE, b""), kept.get(UNIT)
    free = term.ucum == "1"  # counts of the device are all there is
    if len(sent) != _SCALE.size:
        return "no scale"
    low, high, low_sample, high_sample = _SCALE.unpack(sent)
    if free and nomenclature.is_nan(low) and nomenclature.is_nan(high):
        return 1.0, 0.0
    first, last = nomenclature.decimal(low), nomenclature.decimal(high)
    if first is None or last is None or low_sample == high_sample or first == last:
        return "no scale to a physical value"
    found = None if unit is None or len(unit) != 2 else nomenclature.scaling(term, int.from_bytes(unit, "big"))
    if found is None:
        return "no unit that converts"
    step = (last - first) / (high_sample - low_sample)
    return (
        nomenclature.clean(step * found.factor),
        nomenclature.clean((first - low_sample * step) * found.factor + found.offset),
    )


def _masks(sent: bytes | None) -> tuple[int, ...] | None:
    """The masks of samples that are no value; None when the attribute does not fit."""
    if sent is None:
        return ()
    try:
        count, data = replies.entries(sent, "masks")
    except replies.Malformed:
        return None
    if len(data) != count * _PAIR.size or count > _MASKS_MAX:
        return None
    return tuple(mask for kind, mask in _PAIR.iter_unpack(data) if kind in (_INVALID_MASK, _SATURATION_MASK) and mask)


def _pack(data: bytes, known: Context, usable: bool) -> tuple[bytes, int]:
    """The samples as int16, little-endian, and what was taken off each of them."""
    if known.octets == 2:
        raw = array("H", data)
        if byteorder == "little":
            raw.byteswap()
    else:
        raw = array("H", list(data))
    if not usable:
        return struct.pack("<h", NO_SAMPLE) * len(raw), 0
    mask, invalid = known.value_mask, known.invalid
    greatest = max(raw)
    if greatest <= mask and known.plain:
        sent: list[int] | array[int] = raw  # the usual wave, and the cheapest
        marked: list[bool] = []
    else:
        sent = [sample & mask for sample in raw]
        marked = [any(sample & each == each for each in invalid) for sample in raw]
        greatest = max(sent)
    # of 65536 values one has no place beside NO_SAMPLE: the lowest, which is the end of the converter's range
    shift = 32768 if greatest > 32767 else 0
    packed = array("h", [sample - shift for sample in sent])
    for place, mark in enumerate(marked):
        if mark:
            packed[place] = NO_SAMPLE
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes(), shift
