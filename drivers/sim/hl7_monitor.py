"""What an HL7 patient monitor sends: vital signs, IHE PCD-01 in form, and its own alarms, IHE PCD-04 in form.

Written from the published message structure and not from the decoder, so that the two do not share a misunderstanding.
A missing value is a row with an empty OBX-5 and status X: the monitor knows the metric and has no result.

Source: HL7 v2.6 chapters 2 and 7; IHE PCD technical framework, transactions PCD-01 and PCD-04.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from edge_agent import terms

_START, _END = b"\x0b", b"\x1c\r"
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\r": " ", "\n": " "})
# (VMD, channel) of each vital's family in the containment 1.VMD.CHANNEL.METRIC
_PLACES = {
    "heart_rate": (1, 1),
    "pvc_rate": (1, 1),
    "resp_rate": (2, 1),
    "spo2": (3, 1),
    "perfusion_index": (3, 1),
    "pulse_rate": (3, 1),
    "nibp_sys": (4, 1),
    "nibp_dia": (4, 1),
    "nibp_mean": (4, 1),
    "temp": (5, 1),
}
_OTHER_PLACE = (9, 1)


def mllp(message: bytes) -> bytes:
    """The message in its frame for a TCP connection: 0B message 1C 0D."""
    return _START + message + _END


def hl7_time(at: datetime) -> str:
    """A time as HL7 writes it, to the millisecond, with the offset when `at` has one."""
    return at.strftime("%Y%m%d%H%M%S.") + f"{at.microsecond // 1000:03d}" + at.strftime("%z")


def oru_r01(
    values: Mapping[str, float | None],
    *,
    location: str,
    control_id: str,
    at: datetime,
    patient_id: str = "",
    device: str = "SIM-MONITOR^0011223344556677^EUI-64",
) -> bytes:
    """One ORU^R01 without frame: a row for each term of `values`, in its order, None as a row without result.

    `location` is PV1-3 as it stands on the wire (for example ICU^^3), `device` MSH-3 and OBX-18.
    Raises: KeyError for a name that is no term.
    """
    stamp = hl7_time(at)
    segments = [
        f"MSH|^~\\&|{device}|WARD|||{stamp}||ORU^R01^ORU_R01|{_text(control_id)}|P|2.6|||NE|AL||UNICODE UTF-8|||"
        "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO",
        f"PID|||{_text(patient_id)}^^^HOSPITAL^PI||",
        f"PV1||I|{location}",
        f"OBR|1||{_text(control_id)}^SIM|182777000^monitoring of patient^SCT|||{stamp}",
        f"OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||{stamp}||||{device}",
    ]
    counts: dict[tuple[int, int], int] = {}
    for number, (name, value) in enumerate(values.items(), 2):
        term = terms.BY_NAME[name]
        place = _PLACES.get(term.vital, _OTHER_PLACE)
        counts[place] = counts.get(place, 0) + 1
        result, status = ("", "X") if value is None else (f"{value:.10g}", "R")
        segments.append(
            f"OBX|{number}|NM|{term.mdc_code}^{term.refid}^MDC|1.{place[0]}.{place[1]}.{counts[place]}|{result}|"
            f"{_unit(term)}|||||{status}|||{stamp}||||{device}"
        )
    return ("\r".join(segments) + "\r").encode()


def oru_r40(
    *,
    location: str,
    control_id: str,
    at: datetime,
    alert_id: str,
    phase: str,
    text: str,
    priority: str = "PL",
    kind: str = "ST",
    event: str = "196802^MDC_EVT_BATT_LO^MDC",
    patient_id: str = "",
    device: str = "SIM-MONITOR^0011223344556677^EUI-64",
) -> bytes:
    """One ORU^R40 without frame: an alarm of the monitor with one row for each facet.

    `phase` is start, continue, update or end; `priority` PH, PM, PL or PN; `kind` SP or ST.
    """
    stamp = hl7_time(at)
    state = "inactive" if phase == "end" else "active"
    facets = (
        ("ST", event, _text(text)),
        ("ST", "68481^MDC_ATTR_EVENT_PHASE^MDC", phase),
        ("ST", "68482^MDC_ATTR_ALARM_STATE^MDC", state),
        ("ST", "68483^MDC_ATTR_ALARM_INACTIVATION_STATE^MDC", "enabled"),
        ("ST", "68484^MDC_ATTR_ALARM_PRIORITY^MDC", priority),
        ("ST", "68485^MDC_ATTR_ALERT_TYPE^MDC", kind),
    )
    segments = [
        f"MSH|^~\\&|{device}|WARD|||{stamp}||ORU^R40^ORU_R40|{_text(control_id)}|P|2.6|||NE|AL||UNICODE UTF-8|||"
        "IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.4.1^ISO",
        f"PID|||{_text(patient_id)}^^^HOSPITAL^PI||",
        f"PV1||I|{location}",
        f"OBR|1||{_text(alert_id)}^SIM|196616^MDC_EVT_ALARM^MDC|||{stamp}",
        *(
            f"OBX|{number}|{form}|{name}|1.0.0.0.{number}|{value}|||{'A~' + priority + '~' + kind}|||F|||{stamp}"
            for number, (form, name, value) in enumerate(facets, 1)
        ),
    ]
    return ("\r".join(segments) + "\r").encode()


def _unit(term: terms.Term) -> str:
    if term.unit_code:
        return f"{term.unit_code}^{term.unit_refid}^MDC"
    return f"{term.ucum}^^UCUM"


def _text(value: str) -> str:
    return value.translate(_ESCAPES)
