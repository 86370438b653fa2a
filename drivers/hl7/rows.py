"""Rows of vital signs (OBX) to observations: IHE PCD-01 and what resembles it.

Theory of operation. One pass over the segments, in order. PID, PV1 and OBR set patient, bed and time for the rows
that follow; a row without value type names a device or channel at its OBX-4 and is kept for this message, because
two equal identifiers are told apart by what they hang under. What an OBX-3 and OBX-6 mean together is worked out
once and kept as a Plan in a bounded dictionary under the raw texts, so that the usual row costs one split, two
look-ups and the record. Everything that is not usual (waveforms, alarm texts, disagreeing codes, units that do not
convert) is marked in the plan and leaves the fast path.

Source: IHE PCD technical framework, PCD-01; HL7 v2.6 chapter 7, OBX and table 0085.
"""

from __future__ import annotations

from drivers.contract import Outlet
from drivers.hl7 import dialects, values
from drivers.hl7.alarms import text_alarm
from drivers.hl7.tokens import patient, place, shown
from drivers.hl7.waves import Waves
from edge_agent import terms
from edge_agent.records import DeviceStatus, Observation, Reject, Validity

_LAST_FIELD = 14  # OBX-14, time of the observation; what follows is not used
_REPORTED_MAX = 256  # distinct disagreements that one decoder tells about
_PLANS_MAX = 4096
_KEY_MAX = 400  # characters of OBX-3 and OBX-6 together, beyond which a plan is not kept
_CHANNEL_MAX = 64
_LINE_MAX = 4096  # characters of a PID or PV1 beyond which it is not kept

_PLAIN = frozenset({"R", "F", "P", "C", "S", ""})  # OBX-11: results, preliminary, final or corrected
# OBX-11: the value is not there, or is there and must not be used. W: sent for the wrong patient.
STATUS: dict[str, Validity] = {
    "X": "not_available",
    "D": "not_available",
    "N": "not_available",
    "O": "not_available",
    "I": "not_available",
    "W": "invalid",
}
# OBX-8 as IHE PCD-01 carries the measurement status of ISO/IEEE 11073-20601. Test and demonstration are never real.
_FLAGS: dict[str, Validity] = {
    "INV": "invalid",
    "NAV": "not_available",
    "BUSY": "not_available",
    "TEST": "invalid",
    "DEMO": "invalid",
    "QUES": "questionable",
    "EARLY": "questionable",
    "CAL": "questionable",
}
_WORST: tuple[Validity, ...] = ("invalid", "not_available", "questionable")


# Term, factor and offset (None: as sent), and the meaning of a row that is not a plain metric (None: it is one).
Plan = tuple[str, tuple[float, float] | None, dialects.Meaning | None]
_UNUSABLE = (0.0, 0.0)  # the unit is unknown or does not convert: no value of the row becomes a number
_IGNORE: Plan = ("", None, None)
_PLANS: dict[tuple[str, str], Plan] = {}


class Memory:
    """What one decoder remembers between messages: the disagreements it has told about, and the last PID and PV1.

    A monitor sends the same two segments with every message, and reading them costs as much as five rows.
    """

    __slots__ = ("_location", "_patient", "_pid", "_pv1", "reported")

    def __init__(self) -> None:
        self.reported: set[tuple[str, str]] = set()
        self._pid = self._patient = self._pv1 = self._location = ""

    def patient(self, line: str) -> str:
        """The patient identifier of a PID segment."""
        if line != self._pid:
            self._patient = patient(line)
            self._pid = line if len(line) <= _LINE_MAX else ""
        return self._patient

    def location(self, line: str) -> str:
        """The location of a PV1 segment."""
        if line != self._pv1:
            self._location = place(_field(line, 3))
            self._pv1 = line if len(line) <= _LINE_MAX else ""
        return self._location

    def report(self, state: str, detail: str, at_ns: int, location: str, out: Outlet) -> None:
        """Tell about a disagreement once."""
        key = (state, detail)
        if key not in self.reported and len(self.reported) < _REPORTED_MAX:
            self.reported.add(key)
            out.append(DeviceStatus("device", state, at_ns, detail, location))


def observations(
    lines: list[str],
    at_ns: int,
    zone: str,
    codec: str,
    memory: Memory,
    out: Outlet,
    location: str = "",
    subject: str = "",
) -> None:
    """Append what the segments in `lines` say, in order; waveforms at the end of their OBR, after all their facets."""
    plans, numbers = _PLANS, values.NUMBERS
    append = out.append
    parents: dict[str, str] = {}
    waves: Waves | None = None  # made by the first row that is part of one
    group_time: str | None = None
    row_time: str | None = None
    row_time_raw = ""
    for line in lines:
        kind = line[:4]
        if kind == "OBX|":
            row = line.split("|", _LAST_FIELD + 1)
            if len(row) <= _LAST_FIELD:
                row += [""] * (_LAST_FIELD + 1 - len(row))
            name, scale, meaning = plans.get((row[3], row[6])) or _plan(row[3], row[6])
            if not name:
                if not row[2] and row[4]:
                    parents[row[4]] = row[3]
                else:
                    waves = waves or Waves()
                    waves.facet("", row)
                continue
            raw_time = row[14]
            if not raw_time:
                at = group_time
            elif raw_time == row_time_raw:
                at = row_time
            else:
                row_time_raw = raw_time
                at = row_time = values.device_time(raw_time, zone) or group_time
            if meaning is not None:
                if meaning.mismatch:
                    memory.report("code mismatch", meaning.mismatch, at_ns, location, out)
                if meaning.kind != dialects.METRIC:
                    if meaning.kind == dialects.ALERT:
                        append(text_alarm(row, meaning.alert, codec, at_ns, at, location, subject))
                    else:
                        waves = waves or Waves()
                        waves.row(meaning, row, at, location, subject)
                    continue
                if name in dialects.PARENTS:
                    name = dialects.parent_term(name, _parents(row[4], parents))
            channel = row[4]
            if len(channel) > _CHANNEL_MAX or not channel.isprintable():
                channel = shown(channel, codec, _CHANNEL_MAX)
            value = numbers.get(row[5])
            if value is not None and scale is None and row[2] == "NM" and not row[8] and row[11] in _PLAIN:
                append(Observation(name, value, "valid", at_ns, at, location, subject, channel))
                continue
            value, validity = _careful(row)
            if value is not None and scale is not None:
                if scale is _UNUSABLE:
                    detail = f"{name} in {shown(row[6], codec, 60)}"
                    memory.report("unit not usable", detail, at_ns, location, out)
                    value, validity = None, "invalid"
                else:
                    value = round(value * scale[0] + scale[1], 6)  # 98.6 degF is 37 Cel, not 36.99999999999999
            append(Observation(name, value, validity, at_ns, at, location, subject, channel))
        elif kind == "OBR|":
            if waves is not None:
                waves.end(at_ns, out)
            row_time_raw = _field(line, 7)
            group_time = row_time = values.device_time(row_time_raw, zone)
        elif kind == "PV1|":
            location = memory.location(line)
        elif kind == "PID|":
            subject, location = memory.patient(line), ""
    if waves is not None:
        waves.end(at_ns, out)


def _field(line: str, number: int) -> str:
    parts = line.split("|", number + 1)
    return parts[number] if len(parts) > number else ""


def _plan(code: str, unit: str) -> Plan:
    """What rows with this OBX-3 and OBX-6 mean, worked out once for each pair."""
    plan = _make_plan(code, unit)
    if len(code) + len(unit) <= _KEY_MAX:
        if len(_PLANS) >= _PLANS_MAX:
            _PLANS.clear()
        _PLANS[code, unit] = plan
    return plan


def _make_plan(code: str, unit: str) -> Plan:
    meaning = dialects.meaning(code)
    if meaning.kind == dialects.OTHER and not meaning.mismatch:
        return _IGNORE
    if meaning.term is None or meaning.kind != dialects.METRIC:
        return meaning.kind, None, meaning  # no metric, but the row counts: it needs a name
    term = meaning.term
    sent = dialects.unit(unit)
    found = (1.0, 0.0) if sent == "" else terms.conversion(sent, term.ucum) if sent else None
    scale = _UNUSABLE if found is None else None if found == (1.0, 0.0) else found
    return term.name, scale, meaning if meaning.mismatch or term.name in dialects.PARENTS else None


def _parents(containment: str, names: dict[str, str]) -> tuple[str, ...]:
    """Identifiers of channel and device above a row's OBX-4, nearest first: 1.20.1.4 hangs under 1.20.1.0, 1.20.0.0."""
    parts = containment.split(".", 4)[:4]
    if len(parts) < 3:
        return ()
    above = (".".join([*parts[:3], "0"]), ".".join([*parts[:2], "0", "0"]))
    return tuple(names[key].upper() for key in above if key in names)


def _careful(row: list[str]) -> tuple[float | None, Validity]:
    """Value and validity of a row with anything unusual about it."""
    status = STATUS.get(row[11])
    if status is not None:
        return None, status
    if row[2].upper() in ("NM", "ST", "TX", ""):
        value, validity = values.number(row[5])
    elif row[5] in ("", '""'):
        value, validity = None, "not_available"
    else:
        value, validity = None, "invalid"  # a structured or coded value: its comparator is part of it
    if value is not None and row[8]:
        sent = {_FLAGS.get(flag) for flag in row[8].replace("^", "~").split("~")}
        validity = next((worst for worst in _WORST if worst in sent), validity)
        if validity in ("invalid", "not_available"):
            value = None
    return value, validity


def without_cut_row(lines: list[str], at_ns: int, out: Outlet) -> None:
    """Take away a last row that silence has cut before its status: 12 of 120, or a value without the X behind it."""
    row = lines[-1].split("|", 12)
    if row[0] == "OBX" and (len(row) < 12 or not row[11]):
        out.append(Reject("row cut short", len(lines[-1]), at_ns))
        del lines[-1]
