"""What flows: frozen, slotted records with one JSON shape each.

Inside the sealed buffer a record is a msgpack array that starts with its tag; on the wire and on the terminal it is
the JSON object that `shape` gives. New fields are appended with a default, so that older blocks stay readable.

Three times belong to a record: the device's own time as it sent it (`device_time`), the gateway's CLOCK_MONOTONIC at
receipt (`at_ns`, for order and delays), and UTC, which the buffer stamps on the block at commit.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Literal

import msgspec

from edge_agent import terms

SHAPE_VERSION = 1

Validity = Literal["valid", "questionable", "invalid", "not_available"]
Priority = Literal["high", "medium", "low", "none"]
Inactivation = Literal["", "audio_paused", "audio_off", "alarm_paused", "alarm_off"]  # of a bed; empty: enabled

NO_SAMPLE = -32768  # the int16 that stands for a sample the device marked invalid; never a physical value


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """What a link delivers and a capture file holds: bytes, time of receipt, and the channel they came by."""

    at_ns: int
    data: bytes
    channel: str = ""  # BLE characteristic as 4 hex digits or a full UUID in lower case; TCP peer as host:port


class _Item(msgspec.Struct, frozen=True, array_like=True, gc=False, tag_field="record"):
    """Base of everything that is stored; array_like gives the compact form of the buffer."""


class Observation(_Item, frozen=True, tag="o"):
    """One numeric in the UCUM unit of its term; `value` is None exactly when validity is invalid or not_available."""

    term: str
    value: float | None
    validity: Validity
    at_ns: int
    device_time: str | None = None  # ISO 8601 as the device meant it, with offset when it sent one
    location: str = ""  # the bed as the device names it (HL7 PV1-3); empty when the link carries one bed
    subject: str = ""  # the patient identifier that came with the value
    channel: str = ""  # which of several like metrics: HL7 containment (VMD.CHAN), BLE sensor site


class Waveform(_Item, frozen=True, tag="w"):
    """A block of equally spaced samples, oldest first: physical value = raw * scale + offset, NO_SAMPLE = none."""

    term: str
    rate_hz: float
    samples: bytes  # int16 little-endian
    scale: float
    offset: float
    at_ns: int  # receipt of the block, that is of its last sample
    device_time: str | None = None  # of the first sample
    location: str = ""
    subject: str = ""
    channel: str = ""

    def physical(self) -> list[float | None]:
        """Samples in the unit of the term, None where the device gave no valid sample."""
        raw = struct.unpack(f"<{len(self.samples) // 2}h", self.samples)
        return [None if value == NO_SAMPLE else value * self.scale + self.offset for value in raw]


class DeviceStatus(_Item, frozen=True, tag="s"):
    """A state of device, sensor or link that is not a vital sign, such as sensor off, low battery, link lost."""

    kind: str  # link, sensor, signal, battery, device, heartbeat, clock; of people: operator, entered
    state: str
    at_ns: int
    detail: str = ""
    location: str = ""


class DeviceAlarm(_Item, frozen=True, tag="d"):
    """An alarm that the device itself has raised or ended."""

    priority: Priority
    phase: str  # start, continue, update, end, escalate, deescalate, tpoint
    text: str
    at_ns: int
    event: str = ""  # reference identifier, for example MDC_EVT_LO_VAL_LT_LIM
    state: str = ""  # off, inactive, active, latched
    inactivation: str = ""  # enabled, audio-paused, audio-off, alarm-paused, alarm-off
    type: str = ""  # SP physiological, ST technical, SA advisory
    level: str = ""  # the vendor's own grade: red, yellow, HardInop ...
    alert_id: str = ""  # stays the same from start to end
    device_time: str | None = None
    location: str = ""
    subject: str = ""
    source: str = ""


class PatientEvent(_Item, frozen=True, tag="p"):
    """Association of a patient with a location: HL7 ADT trigger (A01, A02, A03, A08, A40 ...) or `observed`."""

    event: str
    patient_id: str
    location: str
    at_ns: int
    prior_location: str = ""
    prior_patient_id: str = ""  # the identifier merged away by A40
    device_time: str | None = None


class Reject(_Item, frozen=True, tag="r"):
    """Bytes a decoder did not understand and skipped; never carries the bytes themselves."""

    reason: str
    size: int
    at_ns: int = 0
    location: str = ""


class Reply(_Item, frozen=True, tag="y"):
    """Bytes that a decoder owes its device; with `after_commit` they leave only when what precedes them is durable."""

    data: bytes
    after_commit: bool = False
    channel: str = ""


class AlarmEvent(_Item, frozen=True, tag="a"):
    """One transition in the life of an alarm condition on one bed."""

    alert_id: str  # the same from start to end
    condition: str
    kind: Literal["physiological", "technical", "advisory"]
    priority: Priority
    event: str  # start, escalate, acknowledge, latch, end, reset, restore, audio_pause, resume, reminder, limit ...
    state: str  # state of the condition after the event: Off, On, Latch, Ack (IEEE 11073-10207 presence)
    at_ns: int
    text: str = ""
    vital: str = ""
    value: float | None = None
    limit: str = ""  # as the preset states it, for example "below 90"
    operator: str = ""
    source: str = ""
    detail: str = ""
    inactivation: Inactivation = ""  # of the bed after the event


class Score(_Item, frozen=True, tag="c"):
    """A score or model output; `value` is None when it abstained, with the reason in `detail`."""

    name: str
    value: float | None
    at_ns: int
    coverage: float = 1.0  # share of its inputs that were present
    version: str = ""
    detail: str = ""


class Gap(_Item, frozen=True, tag="g"):
    """Records that are missing on purpose and say so: shed by quota or age, or lost with a quarantined file."""

    reason: str  # quota, age, memory, quarantine, restored, damaged, unencodable, device
    first: int  # first and last sequence that are missing
    last: int
    count: int  # 0: unknown how many, within first..last or, when those are 0 too, anywhere
    at_ns: int
    instance: str = ""  # of the missing records, when it is not the block's own
    priority: int = 0  # class of the missing records; -1: of any


Item = Observation | Waveform | DeviceStatus | DeviceAlarm | PatientEvent | Reject | Reply
Stored = Observation | Waveform | DeviceStatus | DeviceAlarm | PatientEvent | Reject | AlarmEvent | Score | Gap


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record on its way to the buffer, with what the agent knows about it and the decoder could not."""

    bed: str  # empty for the gateway itself
    source: str  # which [[source]] of the configuration, for example "nonin@serial:///dev/ttyUSB0"; empty for the agent
    patient: str  # identifier associated with the bed when the record came in; empty when none
    record: Stored


# Buffer priorities: a lower number leaves first and is shed last.
ALERT, NUMERIC, WAVEFORM = 0, 1, 2
ALERT_RECORDS = frozenset((AlarmEvent, DeviceAlarm, PatientEvent, Gap))


def buffer_priority(record: Stored) -> int:
    """The class under which the buffer keeps, forwards and sheds a record: ALERT, NUMERIC or WAVEFORM."""
    kind = type(record)
    if kind is Observation:
        return NUMERIC
    if kind is Waveform:
        return WAVEFORM
    if kind in ALERT_RECORDS:
        return ALERT
    return NUMERIC


def observation(
    term: terms.Term,
    value: float | None,
    at_ns: int,
    *,
    validity: Validity = "valid",
    device_time: str | None = None,
    location: str = "",
    subject: str = "",
    channel: str = "",
) -> Observation:
    """An Observation that keeps the rule: no value when invalid or not available, no validity without a value."""
    if value is None or not math.isfinite(value):
        value = None
        if validity in ("valid", "questionable"):
            validity = "not_available"
    elif validity in ("invalid", "not_available"):
        value = None
    return Observation(term.name, value, validity, at_ns, device_time, location, subject, channel)


_ITEM_NAMES: dict[type, str] = {
    Observation: "observation",
    Waveform: "waveform",
    DeviceStatus: "device_status",
    DeviceAlarm: "device_alarm",
    PatientEvent: "patient",
    Reject: "reject",
    Reply: "reply",
    AlarmEvent: "alarm_event",
    Score: "score",
    Gap: "gap",
}
_DECODED_FIRST: dict[str, tuple[str, ...]] = {
    "observation": ("term", "value", "unit", "validity"),
    "waveform": ("term", "unit", "rate_hz", "samples"),
    "device_alarm": ("priority", "phase", "text"),
    "patient": ("event", "patient_id", "location"),
    "reject": ("reason", "size"),
    "reply": ("hex",),
}


def shape(record: Item | Stored) -> dict[str, Any]:
    """The JSON object of a record: `item` names it, empty optional fields are left out, `at_ns` stays outside."""
    name = _ITEM_NAMES[type(record)]
    fields: dict[str, Any] = {
        key: getattr(record, key) for key in record.__struct_fields__ if key not in ("at_ns", "after_commit")
    }
    if isinstance(record, Observation):
        fields["unit"] = terms.BY_NAME[record.term].ucum
    elif isinstance(record, Waveform):
        fields["unit"] = terms.BY_NAME[record.term].ucum
        fields["samples"] = record.physical()
        del fields["scale"], fields["offset"]
    elif isinstance(record, Reply):
        fields = {"hex": record.data.hex(), **({"channel": record.channel} if record.channel else {})}
    first = _DECODED_FIRST.get(name, ())
    out: dict[str, Any] = {"item": name}
    for key in first:
        out[key] = fields.pop(key)
    out.update({key: value for key, value in fields.items() if value is not None and value != ""})
    return out


class Change(msgspec.Struct, frozen=True, gc=False):
    """What the watch room tells the alarm room: a condition became present or absent on a bed."""

    bed: str
    condition: str  # id within the bed's preset
    present: bool
    at_ns: int
    value: float | None = None
    source: str = ""
    detail: str = ""
    priority: Priority | None = None  # overrides the preset's, for alarms the device itself has graded
    text: str = ""  # overrides the preset's, likewise


class Signal(msgspec.Struct, frozen=True, gc=False):
    """What the alarm room asks of every annunciator for one bed: the highest active priority owns light and sound."""

    bed: str
    priority: Priority  # none: everything off
    visual: bool
    audio: bool
    condition: str = ""  # the condition that owns the light
    text: str = ""
    audio_priority: Priority = "none"  # of the burst while `audio`; lower than `priority` once that is acknowledged
    audio_condition: str = ""  # the condition that owns the sound
    onset: int = 0  # number of the owner's onset, rising over all beds: a greater one is a newer alarm
    audio_onset: int = 0  # likewise of the condition that owns the sound
    stopped: bool = False  # an operator's action brought this signal: a burst that it ends is cut, not played out
    inactivation: Inactivation = ""  # of the bed, to be shown even while nothing is active
    reminder: int = 0  # number of the bed's newest reminder, rising; one that is new asks for one reminder tone
