"""Patient movements (ADT) to patient events. Names, birth dates and addresses are never read.

Rows in an ADT message (height, weight) are what somebody typed in at admission, with 0 for nothing: they are not
measurements and give no observation.

Source: HL7 v2.6 chapter 3, trigger events A01 to A04, A08, A11 to A13, A40.
"""

from __future__ import annotations

from drivers.contract import Outlet
from drivers.hl7.tokens import component, fields, named, patient, place
from drivers.hl7.values import device_time
from edge_agent.records import PatientEvent, Reject

TRIGGERS = frozenset({"A01", "A02", "A03", "A04", "A08", "A11", "A12", "A13", "A40"})


def patient_events(lines: list[str], trigger: str, sent_at: str, zone: str, at_ns: int, out: Outlet) -> None:
    """Append one event for each patient of the message; a merge may name several."""
    subject: str | None = None
    location = prior_location = prior_subject = ""
    when = sent_at

    def close() -> None:
        if subject is not None:
            time = device_time(when, zone)
            out.append(PatientEvent(trigger, subject, location, at_ns, prior_location, prior_subject, time))

    for line in lines:
        kind = line[:4]
        if kind == "PID|":
            close()
            subject, location, prior_location, prior_subject = patient(line), "", "", ""
        elif kind == "PV1|":
            pv1 = fields(line, 6)
            location, prior_location = place(pv1[3]), place(pv1[6])
            subject = subject or ""
        elif kind == "MRG|":
            prior_subject = named(component(fields(line, 1)[1], 1))
        elif kind == "EVN|":
            evn = fields(line, 6)
            when = evn[6] or evn[2] or when
    if subject is None:
        out.append(Reject("patient message without PID and PV1", sum(map(len, lines)), at_ns))
    close()
