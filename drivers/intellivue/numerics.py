"""Numerics and compound numerics: a value, or several of one measurement, with state, unit and time.

Theory of operation. A monitor repeats every numeric once a second, also one that is measured now and then, such as a
cuff pressure, and tells by an absolute time stamp when that was. What has its own time stamp is given out once for
each stamp and content, so that an old pressure is not a new one every second.

Source: Philips IntelliVue Data Export Interface Programming Guide, numeric object: NuObsValue, NuObsValueCmp,
absolute time stamp.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from drivers.intellivue import nomenclature, replies
from drivers.intellivue.nomenclature import NUMERICS
from edge_agent.records import Observation, Reject

VALUE, COMPOUND, STAMP, LABEL_STRING = 0x0950, 0x094B, 0x0990, 0x0927

_ENTRY = struct.Struct(">HHHI")  # metric, state, unit, FLOAT
_KEPT = 512  # objects that are told apart; a monitor has some 200
_T = TypeVar("_T", bytes, str)


class Numerics:
    """The numerics of one monitor."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], bytes] = {}  # object -> stamp and values that were given out last
        self._labels: dict[tuple[int, int], str] = {}

    def forget(self) -> None:
        """Begin anew, with another association; a measurement that was given out is still no new one."""
        self._labels.clear()

    def items(
        self, poll: replies.Poll, at_ns: int, device_time: str | None, subject: str, real: bool
    ) -> list[Observation | Reject]:
        """Observations of one result; without `real` the monitor makes its data up. Raises: Malformed."""
        out: list[Observation | Reject] = []
        every = [_values(found) for *_, found in poll.objects]
        for (context, handle, found), values in zip(poll.objects, every, strict=True):
            key = (context, handle)
            self._label(key, found)
            if not values:
                continue
            stamp = found.get(STAMP)
            stamped = None if stamp is None else nomenclature.absolute(stamp)
            if stamp is not None and stamped is not None:
                content = stamp + b"".join(_ENTRY.pack(*each) for each in values) + bytes((real,))
                if self._told.get(key) == content:
                    continue
                _keep(self._told, key, content)
            time = device_time if stamped is None else nomenclature.iso(stamped)
            label = self._labels.get(key, "")
            for code, state, unit, word in values:
                term = NUMERICS.get(code)
                if term is None:
                    continue
                scaling = nomenclature.scaling(term, unit)
                if scaling is None:
                    out.append(Reject(f"{term.name}: unit {unit:#06x} does not convert", _ENTRY.size, at_ns))
                    continue
                value, validity = nomenclature.value(scaling, state, word)
                if not real:
                    value, validity = None, "invalid"
                out.append(Observation(term.name, value, validity, at_ns, time, "", subject, label))
        return out

    def _label(self, key: tuple[int, int], found: replies.Attributes) -> None:
        sent = found.get(LABEL_STRING)
        label = None if sent is None else nomenclature.text(sent, 32)
        if label is not None:
            _keep(self._labels, key, label)


def _values(found: replies.Attributes) -> list[tuple[int, int, int, int]]:
    out: list[tuple[int, int, int, int]] = []
    single, compound = found.get(VALUE), found.get(COMPOUND)
    if single is not None:
        if len(single) != _ENTRY.size:
            raise replies.Malformed("numeric: length")
        out.append(_ENTRY.unpack(single))
    if compound is not None:
        count, data = replies.entries(compound, "compound numeric")
        if len(data) != count * _ENTRY.size:
            raise replies.Malformed("compound numeric: count")
        out.extend(_ENTRY.iter_unpack(data))
    return out


def _keep(store: dict[tuple[int, int], _T], key: tuple[int, int], value: _T) -> None:
    if key not in store and len(store) >= _KEPT:
        store.clear()
    store[key] = value
