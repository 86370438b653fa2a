"""The monitor's own alarms: its lists of active alerts become starts, updates and ends.

Theory of operation. The monitor tells every second which alerts are active, the patient's in one list and the
technical ones (INOPs) in another. An alert is told apart by source, code, object and instance. One that was not in the
list before starts, one whose priority, text or state differs is updated, one that is no longer there ends; what stays
as it is says nothing. An alert of a monitor in test or demonstration mode is no patient's and counts as not there. A
list that does not fit changes nothing.

Source: Philips IntelliVue Data Export Interface Programming Guide, alert monitor object: DevAlarmList, DevAlarmEntry,
AlertType, AlertState, AlMonGenInfo, StrAlMonInfo.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from drivers.intellivue import nomenclature, replies
from edge_agent.records import DeviceAlarm, Priority

PATIENT_LIST, TECHNICAL_LIST = 0x0902, 0x0904
_TEXT_INFO = 0x0204  # with a text; 0201 is the same without

_INHIBITED, _SUSPENDED, _LATCHED, _SILENCED, _TEST, _DEMO = 0x8000, 0x4000, 0x2000, 0x1000, 0x0400, 0x0100
_PRIORITIES: dict[int, tuple[Priority, str]] = {
    0x0400: ("high", "red"),
    0x0200: ("medium", "yellow"),
    0x0100: ("low", "short yellow"),
    0x0004: ("high", "severe INOP"),
    0x0002: ("medium", "INOP"),
    0x0001: ("low", "soft INOP"),
}
_ENTRY = struct.Struct(">HHHHHHHHH")
_INFO = struct.Struct(">HIHH")
_ALERTS_MAX = 256  # in one list; a message of 1364 octets holds about 60
_LISTS_MAX = 8

Key = tuple[int, ...]


class Alert(NamedTuple):
    """One entry of a list."""

    priority: Priority
    level: str
    text: str
    state: str
    inactivation: str


class Alarms:
    """The active alerts of one monitor."""

    def __init__(self) -> None:
        self._active: dict[tuple[int, int, int], dict[Key, Alert]] = {}

    def items(
        self, poll: replies.Poll, at_ns: int, device_time: str | None, subject: str, real: bool
    ) -> list[DeviceAlarm]:
        """What has changed since the last result; without `real` no alert is. Raises: Malformed."""
        lists = [
            ((context, handle, name), _alerts(found[name], real))
            for context, handle, found in poll.objects
            for name in (PATIENT_LIST, TECHNICAL_LIST)
            if name in found
        ]
        out: list[DeviceAlarm] = []
        for where, now in lists:
            if where not in self._active and len(self._active) >= _LISTS_MAX:
                continue
            before = self._active.get(where, {})
            kind = "SP" if where[2] == PATIENT_LIST else "ST"

            def said(key: Key, alert: Alert, phase: str, kind: str = kind) -> DeviceAlarm:
                ended = phase == "end"
                return DeviceAlarm(
                    alert.priority, phase, alert.text, at_ns, "", "inactive" if ended else alert.state,
                    alert.inactivation, kind, alert.level, "-".join(f"{part:04x}" for part in key), device_time, "",
                    subject,
                )  # fmt: skip

            out += [said(key, alert, "end") for key, alert in before.items() if key not in now]
            for key, alert in now.items():
                if key not in before:
                    out.append(said(key, alert, "start"))
                elif before[key] != alert:
                    out.append(said(key, alert, "update"))
            self._active[where] = now
        return out


def _alerts(sent: bytes, real: bool) -> dict[Key, Alert]:
    count, data = replies.entries(sent, "alerts")
    if count > _ALERTS_MAX:
        raise replies.Malformed("alerts: count")
    out: dict[Key, Alert] = {}
    at = 0
    for _ in range(count):
        if len(data) - at < _ENTRY.size:
            raise replies.Malformed("alert: cut")
        source, code, kind, state, object_class, context, handle, info, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if length > len(data) - at:
            raise replies.Malformed("alert: longer than its list")
        detail = data[at : at + length]
        at += length
        priority = next((found for bit, found in _PRIORITIES.items() if kind & bit), None)
        if priority is None or not real or state & (_TEST | _DEMO):
            continue
        instance = int.from_bytes(detail[:2], "big")
        text = nomenclature.text(detail[_INFO.size :]) if info == _TEXT_INFO else None
        out[source, code, object_class, context, handle, instance] = Alert(
            *priority,
            text or f"alert {code:#06x} of {source:#06x}",
            "latched" if state & _LATCHED else "active",
            _inactivation(state),
        )
    if at != len(data):
        raise replies.Malformed("alerts: length")
    return out


def _inactivation(state: int) -> str:
    if state & _INHIBITED:
        return "alarm-off"
    if state & _SUSPENDED:
        return "alarm-paused"
    return "audio-off" if state & _SILENCED else "enabled"
