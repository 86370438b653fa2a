"""Which bed a record belongs to, and which patient lies in it.

Theory of operation: a source that serves one bed names it in the configuration. A source that serves many is told
apart by the location its messages carry (HL7 PV1-3): a configured location matches when each of its non-empty
components equals the message's. Two beds that match, or none, is no match; nothing is ever guessed.

A patient comes to a bed by an ADT event, by an operator, or because a monitor names one (`observed`). What an ADT
event or an operator said is only changed by the same authority; a monitor that names somebody else is a mismatch and
raises a technical alarm, because values of another patient under this bed's limits are a hazard. Without such an
authority the one source that named the patient may name the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from edge_agent.config import Bed
from edge_agent.records import PatientEvent

MAX_LOCATIONS = 4096  # a hostile sender may invent locations without end; the cache may not grow with them

AUTHORITY = "adt"


class Moved(NamedTuple):
    """A change of the patient in a bed; `fresh` when limits, pauses and alarms must start anew."""

    bed: str
    patient: str
    fresh: bool


class _Association(NamedTuple):
    patient: str
    by: str  # AUTHORITY, or the source that observed it


_EMPTY = _Association("", "")


class Beds:
    """The beds of this gateway with the patients in them."""

    def __init__(self, beds: Sequence[Bed]) -> None:
        self.ids: tuple[str, ...] = tuple(bed.id for bed in beds)
        self._patterns = [(bed.id, _components(bed.location)) for bed in beds if bed.location]
        self._unlabelled = {bed.id for bed in beds if not bed.location}
        self._cache: dict[str, str | None] = {}
        self._patients: dict[str, _Association] = dict.fromkeys(self.ids, _EMPTY)
        self.version = 0  # counts every change of a patient

    def at(self, location: str) -> str | None:
        """The bed that a location as sent means, None when no bed or more than one matches."""
        try:
            return self._cache[location]
        except KeyError:
            pass
        found = self._match(location)
        if len(self._cache) >= MAX_LOCATIONS:
            self._cache.clear()
        self._cache[location] = found
        return found

    def _match(self, location: str) -> str | None:
        sent = _components(location)
        hits = [
            bed
            for bed, pattern in self._patterns
            if len(pattern) <= len(sent)
            and all(not want or want == have for want, have in zip(pattern, sent, strict=False))
        ]
        if not hits and location:
            # a bed without a configured location is known by its own id, as the whole field or as its bed component
            bed_part = sent[2] if len(sent) > 2 else ""
            hits = [bed for bed in self._unlabelled if bed in (location, bed_part)]
        return hits[0] if len(hits) == 1 else None

    def patient(self, bed: str) -> str:
        """Identifier of the patient in `bed`, empty when none is known."""
        return self._patients.get(bed, _EMPTY).patient

    def associations(self) -> dict[str, tuple[str, str]]:
        """By bed, the patient and who said so, of the beds that have one: what outlives a restart."""
        return {bed: (now.patient, now.by) for bed, now in self._patients.items() if now.patient}

    def restore(self, associations: Mapping[str, tuple[str, str]]) -> None:
        """Put back what `associations` gave; beds that are no longer configured are left out."""
        for bed, (patient, by) in associations.items():
            if bed in self._patients:
                self._patients[bed] = _Association(patient, by)
                self.version += 1

    def observed(self, bed: str, source: str, subject: str) -> Literal["same", "new", "mismatch"]:
        """What it means that `source` names the patient `subject` on `bed`; "new" has taken effect."""
        now = self._patients.get(bed, _EMPTY)
        if now.patient == subject:
            return "same"
        if not now.patient or now.by == source:
            self._patients[bed] = _Association(subject, source)
            self.version += 1
            return "new"
        return "mismatch"

    def admit(self, bed: str, patient: str) -> Moved:
        """Put `patient` into `bed` by authority; an empty patient discharges."""
        before = self._patients.get(bed, _EMPTY)
        self._patients[bed] = _Association(patient, AUTHORITY) if patient else _EMPTY
        self.version += 1
        # the same patient confirmed by authority keeps pauses and alarms
        return Moved(bed, patient, fresh=before.patient != patient)

    def apply(self, event: PatientEvent) -> list[Moved]:
        """The changes that an ADT event makes to this gateway's beds; events for other beds change nothing.

        Source: HL7 v2.6 chapter 3, trigger events A01, A02, A03, A04, A08, A11, A12, A13, A40.
        """
        bed, prior = self.at(event.location), self.at(event.prior_location) if event.prior_location else None
        kind = event.event
        if kind in ("A01", "A04", "A08", "A13") and bed and event.patient_id:
            return [self.admit(bed, event.patient_id)]
        if kind in ("A03", "A11") and bed:
            occupied = self.patient(bed)
            return [self.admit(bed, "")] if occupied and event.patient_id in ("", occupied) else []
        if kind in ("A02", "A12"):
            moved = []
            if prior and prior != bed and self.patient(prior) in (event.patient_id, ""):
                moved.append(self.admit(prior, ""))
            if bed and event.patient_id:
                moved.append(self.admit(bed, event.patient_id))
            return moved
        if kind == "A40" and event.prior_patient_id and event.patient_id:
            merged = [bed for bed, now in self._patients.items() if now.patient == event.prior_patient_id]
            for each in merged:  # the same person under another identifier: nothing starts anew
                self._patients[each] = self._patients[each]._replace(patient=event.patient_id)
                self.version += 1
            return [Moved(each, event.patient_id, fresh=False) for each in merged]
        return []


def _components(location: str) -> list[str]:
    return [part.strip() for part in location.split("^")]
