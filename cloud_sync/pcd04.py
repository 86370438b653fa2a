"""Alarm events as IHE PCD-04 messages (HL7 v2.6, ORU^R40^ORU_R40) for a hospital's alert manager.

Theory of operation. One message tells one transition of one alarm: MSH, PID, PV1, an OBR whose third field names the
alarm from its start to its end, and one OBX for each facet. Everything follows from the sealed record, so a copy that
is sent later carries the same control identifier (MSH-10); only the time of sending (MSH-7) and the note of lateness
may differ. What a bed as a whole does (pauses) is no alarm and gives no message; the inactivation facet of the alarms'
own messages says it. Text is one line, its delimiters escaped, in UTF-8.

Source: IHE PCD technical framework, volume 2, PCD-04; HL7 v2.6 chapters 2 and 7; codes of ISO/IEEE 11073-10101.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from cloud_sync.pseudonym import Identities
from cloud_sync.sinks import Message
from edge_agent import config_cloud, records, terms
from edge_agent.buffer import Block, Position, Reader
from edge_agent.buffer.clock import Clock

LATE_S = 900.0  # what is older when it is sent says so in a note: an alert manager may then page nobody for its start
CONTROL_HEADER = "control-id"

_PROFILE = "IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.4.4^ISO"
_LONGEST_TEXT = 500  # characters of a text before its escapes; no preset comes near
_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "~": "\\R\\", "&": "\\T\\"})
_PLACE_ESCAPES = str.maketrans({"|": "\\F\\", "~": "\\R\\"})  # a configured location is HL7 notation already

# What became of an alarm (AlarmEvent.event) as the phase of the message. An event that is not listed ends the alarm
# when its state is Off, and is an update otherwise.
PHASES: dict[str, str] = {
    "start": "start",
    "restore": "continue",  # raised again under its old name after a restart of the agent
    "state": "continue",
    "reminder": "continue",
    "escalate": "escalate",
    "deescalate": "de-escalate",
    "acknowledge": "update",
    "latch": "update",  # the condition is gone, the alarm is not
    "return": "update",  # a latched condition is present again
    "end": "end",
    "reset": "end",
}
_STATES = {"Off": "inactive", "On": "active", "Latch": "latched", "Ack": "active"}
_PRIORITIES = {"high": "PH", "medium": "PM", "low": "PL", "none": "PN"}
_TYPES = {"physiological": "SP", "technical": "ST", "advisory": "SA"}
_INACTIVATIONS = {
    "": "enabled",
    "audio_paused": "audio-paused",
    "audio_off": "audio-off",
    "alarm_paused": "alarm-paused",
    "alarm_off": "alarm-off",
}
_ACKNOWLEDGED = "alert-acknowledged"  # of one alarm, where its bed is not inactivated as a whole


class _Code(NamedTuple):
    number: int
    refid: str

    def __str__(self) -> str:
        return f"{self.number}^{self.refid}^MDC"


_ALARM = _Code(196616, "MDC_EVT_ALARM")
_LOW = _Code(196674, "MDC_EVT_LO_VAL_LT_LIM")
_HIGH = _Code(196652, "MDC_EVT_HI_VAL_GT_LIM")
_APNEA = _Code(199680, "MDC_EVT_APNEA")
_BATTERY = _Code(196802, "MDC_EVT_BATT_LO")
_OF_CONDITION = {"apnoea": _APNEA, "spo2_desaturation": _Code(199854, "MDC_EVT_DESAT")}
_APNEA_BELOW = 1.0  # breaths a minute: a limit so low says that there is none
_MONITOR = "69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC"

_TERM_OF: dict[str, terms.Term] = {}
for _term in terms.TERMS:  # the row named like its vital stands for the family, else its first row
    if _term.kind != "waveform" and (_term.vital not in _TERM_OF or _term.name == _term.vital):
        _TERM_OF[_term.vital] = _term
_SCORE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Sender(NamedTuple):
    """MSH-3 to MSH-6: who speaks and to whom."""

    application: str = "BEDSIDE-EDGE"
    facility: str = ""
    receiver: str = ""
    receiver_facility: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alarm event with everything that its message says beside it."""

    event: records.AlarmEvent
    identity: str  # gateway/instance/sequence of the sealed record
    gateway: str
    utc_ns: int  # when it happened
    bed: str = ""  # empty: the gateway's own alarm
    location: str = ""  # the bed as HL7 PV1-3 has it; empty: the bed's id stands in
    patient: str = ""


def phase(event: records.AlarmEvent) -> str:
    """The phase facet of an event."""
    return PHASES.get(event.event) or ("end" if event.state == "Off" else "update")


def inactivation(event: records.AlarmEvent) -> str:
    """The inactivation facet: that of the bed, else whether this alarm is acknowledged."""
    return _ACKNOWLEDGED if not event.inactivation and event.state == "Ack" else _INACTIVATIONS[event.inactivation]


def control_id(identity: str) -> str:
    """MSH-10: 20 letters and digits (all that older receivers keep), the same for every copy of a record."""
    digest = hashlib.sha256(identity.encode()).digest()
    return base64.b32encode(digest)[:20].decode("ascii")  # 100 bits: two records in a lifetime do not meet


def message(alert: Alert, sender: Sender, sent_ns: int, late_s: float = 0.0) -> bytes:
    """The message without its MLLP frame, in UTF-8; above LATE_S seconds `late_s` is noted in it."""
    event, at, gateway = alert.event, _time(alert.utc_ns), _escaped(alert.gateway)
    name = f"{_escaped(event.alert_id)}^{gateway}"
    stage = phase(event)
    parent = "" if stage == "start" else f"^{_escaped(event.alert_id)}&{gateway}"
    parties = "|".join(_escaped(party) for party in sender)
    segments = [
        f"MSH|^~\\&|{parties}|{_time(sent_ns)}||ORU^R40^ORU_R40|{control_id(alert.identity)}|P|2.6|||AL|NE||"
        f"UNICODE UTF-8|||{_PROFILE}",
        f"PID|||{_escaped(alert.patient)}{'^^^^PI' if alert.patient else ''}||^^^^^^U",
        f"PV1||I|{place(alert)}",
        f"OBR|1||{name}|{_ALARM}|||{at}{'|' * 22}{parent}",
    ]
    if late_s > LATE_S:
        segments.append(f"NTE|1|L|sent {late_s:.0f} s after the event")
    rows = _rows(event, at, gateway, stage)
    segments += [f"OBX|{number}|{row}" for number, row in enumerate(rows, 1)]
    return ("\r".join(segments) + "\r").encode("utf-8", "replace")


def place(alert: Alert) -> str:
    """PV1-3: the configured location, else the bed's id as the bed of a location without more."""
    if alert.location:
        return _line(alert.location).translate(_PLACE_ESCAPES)
    return f"^^{_escaped(alert.bed)}" if alert.bed else ""


def _rows(event: records.AlarmEvent, at: str, gateway: str, stage: str) -> list[str]:
    code, abnormal = _meaning(event)
    flags = f"{'N' if stage == 'end' else abnormal}~{_PRIORITIES[event.priority]}~{_TYPES[event.kind]}"
    text = _escaped(event.text) or _escaped(event.condition)
    shown = text
    if code is _ALARM and "_EVT_" in text.upper():  # a reader takes such a word in this row for the event's name
        shown = _ALARM.refid
    rows = [
        f"|{_MONITOR}|1.0.0.0|||||||X|||||||{gateway}",
        f"ST|{code}|1.0.0.0.1|{shown}|||{flags}|||R|||{at}",
    ]
    value = _value_row(event, flags, at)
    if value:
        rows.append(value)
    facets = (
        (68481, "EVENT_PHASE", 3, stage),
        (68482, "ALARM_STATE", 4, _STATES.get(event.state, "active")),
        (68483, "ALARM_INACTIVATION_STATE", 5, inactivation(event)),
        (68484, "ALARM_PRIORITY", 6, _PRIORITIES[event.priority]),
        (68485, "ALERT_TYPE", 7, _TYPES[event.kind]),
        (68480, "ALERT_SOURCE", 8 if value else 2, _escaped(event.source) or gateway),
        (68546, "ALERT_TEXT", 9, text),
    )
    rows += [f"ST|{number}^MDC_ATTR_{name}^MDC|1.0.0.0.{facet}|{said}||||||R" for number, name, facet, said in facets]
    return rows


def _meaning(event: records.AlarmEvent) -> tuple[_Code, str]:
    """The event's code and OBX-8's abnormality, from what the condition watches."""
    verb, limits = _limits(event.limit)
    low = high = False
    if verb == "below" and limits:
        low = True
    elif verb == "above" and limits:
        high = True
    elif verb == "outside" and len(limits) == 2 and event.value is not None:
        low = event.value < sum(limits) / 2  # also for a value that has come back: the limit it lay beyond is nearer
        high = not low
    abnormal = "L" if low else "H" if high else "A"
    known = _OF_CONDITION.get(event.condition)
    if known:
        return known, abnormal
    if low and event.vital == "resp_rate" and limits[0] <= _APNEA_BELOW:
        return _APNEA, abnormal
    if low and event.vital == "battery":
        return _BATTERY, abnormal
    return (_LOW if low else _HIGH if high else _ALARM), abnormal


def _value_row(event: records.AlarmEvent, flags: str, at: str) -> str:
    if event.value is None or not math.isfinite(event.value):
        return ""
    verb, limits = _limits(event.limit)
    limit = ""
    if verb == "below" and limits:
        limit = f">{_number(limits[0])}"
    elif verb in ("above", "score_above") and limits:
        limit = f"<{_number(limits[0])}"
    elif verb == "outside" and len(limits) == 2:
        limit = f"{_number(limits[0])}-{_number(limits[1])}"
    term = _TERM_OF.get(event.vital)
    if term is not None:
        name = f"{term.mdc_code}^{term.refid}^MDC"
        unit = f"{term.unit_code}^{term.unit_refid}^MDC" if term.unit_code else f"{term.ucum}^{term.ucum}^UCUM"
    elif _SCORE.fullmatch(event.vital):
        name, unit = f"{event.vital}^{event.vital} score^L", ""  # local: the nomenclature has no number for it
    else:
        return ""
    return f"NM|{name}|1.0.0.0.2|{_number(event.value)}|{unit}|{limit}|{flags}|||R|||{at}"


def _limits(limit: str) -> tuple[str, tuple[float, ...]]:
    """Verb and numbers of a limit as a preset states it, for example `outside 36 39`."""
    verb, *words = limit.split() or [""]
    try:
        return verb, tuple(float(word) for word in words)
    except ValueError:
        return verb, ()


def _number(value: float) -> str:
    """A number with all its digits and no exponent, which HL7 does not know."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _line(text: str) -> str:
    return text.translate(_CONTROL).strip()[:_LONGEST_TEXT].strip()


def _escaped(text: str) -> str:
    return _line(text).translate(_ESCAPES)


def _time(utc_ns: int) -> str:
    """An HL7 time in UTC, to the millisecond."""
    second, rest = divmod(utc_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(second, UTC):%Y%m%d%H%M%S}.{rest // 1_000_000:03d}+0000"


class AlertEncoder:
    """The messages of one gateway's alarms, block by block."""

    def __init__(
        self,
        gateway: str,
        settings: config_cloud.AlertManager,
        locations: Mapping[str, str],
        clock: Clock | None = None,
        identities: Identities | None = None,
    ) -> None:
        """`locations`: the configured HL7 location of each bed that has one; without `identities` none is sent."""
        self._leaving = (identities or Identities()).leaving
        self._gateway, self._locations, self._clock = gateway, locations, clock or Clock()
        self._sender = Sender(settings.application, settings.facility, settings.receiver, settings.receiver_facility)
        self._technical = settings.technical

    def block(self, block: Block) -> list[Message]:
        """One message for each alarm event of the block that concerns an alert manager, in order."""
        out: list[Message] = []
        gateway, sent_ns = block.gateway or self._gateway, self._clock.utc_ns()
        for sequence, entry in enumerate(self._leaving(block.entries), block.first):
            event = entry.record
            if not isinstance(event, records.AlarmEvent) or not event.alert_id:
                continue
            if event.kind == "technical" and not self._technical:
                continue
            identity = f"{gateway}/{block.instance}/{sequence}"
            location = self._locations.get(entry.bed, "")
            alert = Alert(event, identity, gateway, block.utc_ns(event.at_ns), entry.bed, location, entry.patient)
            value = message(alert, self._sender, sent_ns, self.age_s(block, event.at_ns))
            about = ((CONTROL_HEADER, control_id(identity).encode()),)
            out.append(Message("alert_manager", entry.bed or gateway, value, identity.encode(), about))
        return out

    def begin_at(self, reader: Reader) -> Position | None:
        """Behind what a manager that is new should not hear: blocks older than LATE_S; None: from the oldest block."""
        place: Position | None = None
        while blocks := reader.read("alerts", place):
            for block in blocks:
                if self.age_s(block, block.committed_mono_ns) <= LATE_S:
                    return place
                instance = block.instance or (place.instance if place else "")
                place = Position(instance, block.number)
        return place

    def age_s(self, block: Block, at_ns: int) -> float:
        """Seconds since a moment of the block, by the monotonic clock within one boot and by UTC across boots."""
        if block.boot == self._clock.boot():
            return (self._clock.monotonic_ns() - at_ns) / 1e9
        return (self._clock.utc_ns() - block.utc_ns(at_ns)) / 1e9
