"""Alarms that a device has raised itself: IHE PCD-04 (ORU^R40) and Philips alarm texts.

Theory of operation. An alarm is one OBR with its rows. The rows are facets, found by reference identifier: their
numbers and order differ between generations of senders. The row whose identifier names an event gives event and text;
OBX-8 gives priority and type where their rows are missing. MDC_EVT_ACTIVE is no alarm: it says that the sender lives
and how soon it will say so again.

Texts and names of alarms go to screens, logs and other systems, so a patient identifier that a sender repeats there is
taken out; the alarm's own field for it keeps it.

A priority that cannot be read becomes medium, not none: what a device found worth an alarm is not silenced here.
Source: IHE PCD technical framework, PCD-04; Philips Efficia CM data export guide, alarm messages.
"""

from __future__ import annotations

import re

from drivers.contract import Outlet
from drivers.hl7 import values
from drivers.hl7.dialects import unit
from drivers.hl7.tokens import component, fields, named, patient, place, shown, unescape
from edge_agent.records import DeviceAlarm, DeviceStatus, Item, Priority, Reject

_PRIORITIES: dict[str, Priority] = {"PH": "high", "PM": "medium", "PL": "low", "PN": "none", "PI": "none"}
_TYPES = frozenset({"SP", "ST", "SA"})
_PHASES = {"de-escalate": "deescalate", "reset": "end"}
_ENDED = frozenset({"off", "inactive"})
_ALIVE = "MDC_EVT_ACTIVE"
_SHORTEST = 4
_PATIENT = "[patient]"
_GENERIC = frozenset({"MDC_EVT_ALARM", "MDC_EVT_ALERT"})  # the row's value names the event
_NUMBERED = {"196614": _ALIVE, "196616": "MDC_EVT_ALARM"}

# What the identifier of a facet ends with, over both generations of names.
_FACETS = (
    ("_EVENT_PHASE", "phase"),
    ("_INACTIVATION_STATE", "inactivation"),
    ("_ALARM_STATE", "state"),
    ("_ALERT_STATE", "state"),
    ("_ALARM_PRIORITY", "priority"),
    ("_ALERT_PRIORITY", "priority"),
    ("_ALARM_TYPE", "type"),
    ("_ALERT_TYPE", "type"),
    ("_ALARM_SOURCE", "source"),
    ("_ALERT_SOURCE", "source"),
    ("_ALARM_TEXT", "text"),
    ("_ALERT_TEXT", "text"),
    ("_CONFIRM_TIMEOUT", "timeout"),
)

# Philips grades. Severe and hard: the parameter is not monitored any more, so they are not low.
_GRADES: tuple[tuple[str, str, Priority], ...] = (
    ("red", "red", "high"),
    ("yellow", "yellow", "medium"),
    ("severe", "", "high"),
    ("hard", "", "medium"),
    ("soft", "", "low"),
    ("cyan", "cyan", "low"),
)


class Alarm:
    """The rows of one alarm, gathered until the next OBR."""

    __slots__ = ("alert_id", "codec", "device_time", "event", "facets", "flags", "location", "subject", "text")

    def __init__(self, header: str, zone: str, codec: str, location: str, subject: str) -> None:
        obr = fields(header, 29)
        self.alert_id = next((named(name) for name in (obr[3], obr[29], obr[2]) if name.strip("^&")), "")
        self.device_time = values.device_time(obr[7], zone)
        self.codec = codec
        self.location = location
        self.subject = subject
        self.event = ""
        self.text = ""
        self.flags: list[str] = []
        self.facets: dict[str, str] = {}

    def row(self, line: str) -> None:
        """Take one OBX."""
        obx = fields(line, 8)
        name = component(obx[3], 2).upper()
        if "MDC" not in name[:4]:
            name = _NUMBERED.get(component(obx[3], 1), name)
        if obx[8]:
            self.flags = obx[8].upper().split("~")
        for ending, facet in _FACETS:
            if name.endswith(ending):
                self.facets.setdefault(facet, f"{obx[5]}|{obx[6]}" if facet == "timeout" else obx[5])
                return
        if "_EVT_" in name and not self.event:
            self.event = shown(name, longest=100)
            self.text = self._words(obx[5])
            if name in _GENERIC:
                said = next((part for part in obx[5].upper().split("^") if "_EVT_" in part), name)
                self.event = shown(said, longest=100)

    def item(self, at_ns: int) -> Item:
        """The alarm, or the heartbeat that its rows are."""
        facets = self.facets
        if self.event == _ALIVE:
            return DeviceStatus("heartbeat", "active", at_ns, _timeout(facets.get("timeout", "")), self.location)
        if not self.event and "priority" not in facets and "phase" not in facets:
            return Reject("alarm without event, phase or priority", 0, at_ns, self.location)
        state = self._word("state")
        phase = self._word("phase") or ("end" if state in _ENDED else "start")
        priority = self._word("priority").upper()
        if priority not in _PRIORITIES:
            priority = next((flag for flag in self.flags if flag in _PRIORITIES), priority)
        known = _PRIORITIES.get(priority)
        return DeviceAlarm(
            known or "medium",
            _PHASES.get(phase, phase),
            unsaid(self._words(facets.get("text", "")) or self.text or self.event, self.subject),
            at_ns,
            self.event,
            state,
            self._word("inactivation"),
            self._word("type").upper() or next((flag for flag in self.flags if flag in _TYPES), ""),
            "" if known else priority,
            unsaid(self.alert_id, self.subject),
            self.device_time,
            self.location,
            self.subject,
            unsaid(self._words(facets.get("source", "")), self.subject),
        )

    def _word(self, facet: str) -> str:
        """A facet that is one word from a closed list, plain or coded."""
        sent = self.facets.get(facet, "")
        return shown(component(sent, 1) or component(sent, 2), self.codec, 40).lower()

    def _words(self, sent: str) -> str:
        """Text of a plain or coded field: original text, else the text beside the code, else the first component."""
        chosen = component(sent, 9) or component(sent, 2) or component(sent, 1) if "^" in sent else sent
        return shown(chosen, self.codec)


def unsaid(text: str, subject: str) -> str:
    """The text without the patient's identifier; one of three letters or fewer would be found in any number."""
    for form in {subject, unescape(subject)}:
        if len(form) >= _SHORTEST and text:
            text = re.sub(re.escape(form), _PATIENT, text, flags=re.IGNORECASE)
    return text


def alarm_groups(
    lines: list[str], at_ns: int, zone: str, codec: str, out: Outlet, everything: bool
) -> list[tuple[list[str], str, str]]:
    """Append the alarms among the segments; what is left are groups of other rows with their location and subject.

    `everything`: the message type says that each OBR is an alarm, even if it does not name itself one.
    """
    left: list[tuple[list[str], str, str]] = []
    location = subject = ""
    alarm: Alarm | None = None
    rest: list[str] | None = None
    found = False

    def close() -> None:
        nonlocal alarm, found
        if alarm is not None:
            found = True
            out.append(alarm.item(at_ns))
            alarm = None

    for line in lines:
        kind = line[:4]
        if kind == "OBX|":
            if alarm is None and rest is None and everything:
                alarm = Alarm("OBR", zone, codec, location, subject)
            if alarm is not None:
                alarm.row(line)
            else:
                if rest is None:  # rows without an order of their own
                    rest = []
                    left.append((rest, location, subject))
                rest.append(line)
        elif kind == "OBR|":
            close()
            rest = None
            if everything or _is_alarm(line):
                alarm = Alarm(line, zone, codec, location, subject)
            else:
                rest = [line]
                left.append((rest, location, subject))
        elif kind == "PID|":
            close()
            rest = None
            subject, location = patient(line), ""
        elif kind == "PV1|":
            location = place(fields(line, 3)[3])
    close()
    if everything and not found:
        out.append(Reject("alarm message without OBR and OBX", sum(map(len, lines)), at_ns))
    return left


def _is_alarm(line: str) -> bool:
    service = fields(line, 4)[4]
    return component(service, 2) == "MDC_EVT_ALARM" or component(service, 1) == "196616"


def _timeout(sent: str) -> str:
    """The promise of a heartbeat as text, such as `timeout 5 s`; empty when it makes none that can be read."""
    value, _, sent_unit = sent.partition("|")
    seconds = values.decimal(value.strip(" "))
    if seconds is None or seconds <= 0:
        return ""
    name = unit(sent_unit)
    return f"timeout {seconds:g} s" if name in ("", "s") else ""


def text_alarm(
    row: list[str], grade: str, codec: str, at_ns: int, device_time: str | None, location: str, subject: str
) -> Item:
    """The alarm of a Philips MDIL-ALERT row: a grade and a text, no facets, no end of its own."""
    low = grade.lower()
    level, priority = next(
        ((name or shown(grade, codec, 40), found) for word, name, found in _GRADES if word in low),
        (shown(grade, codec, 40), "medium"),
    )
    text = unsaid(shown(row[5], codec), subject)
    technical = "inop" in low
    return DeviceAlarm(
        priority,
        "end" if row[11] in ("X", "D") else "start",
        text or shown(grade, codec),
        at_ns,
        "",
        "",
        "",
        "ST" if technical else "SP",
        level,
        named(f"MDIL-ALERT:{text.split(',', 1)[0]}"),
        device_time,
        location,
        subject,
    )
