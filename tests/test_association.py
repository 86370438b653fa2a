"""Which bed, which patient: nothing is guessed, and nobody's values run under another patient's limits."""

from edge_agent.association import MAX_LOCATIONS, Beds
from edge_agent.config import Bed
from edge_agent.records import PatientEvent


def beds() -> Beds:
    return Beds([Bed(id="ICU-3", location="ICU^^3"), Bed(id="ICU-4", location="ICU^^4"), Bed(id="24")])


def adt(event: str, patient: str, location: str, prior: str = "", merged: str = "") -> PatientEvent:
    return PatientEvent(event, patient, location, 1, prior_location=prior, prior_patient_id=merged)


def test_empty_components_match_anything() -> None:
    assert beds().at("ICU^12^3^TAM") == "ICU-3"
    assert beds().at("ICU^12^4") == "ICU-4"


def test_no_match_and_two_matches_are_no_bed() -> None:
    assert beds().at("ICU^12^5") is None
    assert beds().at("") is None
    double = Beds([Bed(id="a", location="ICU"), Bed(id="b", location="ICU^^3")])
    assert double.at("ICU^^3") is None
    assert double.at("ICU^^4") == "a"


def test_a_bed_without_location_is_known_by_its_id() -> None:
    assert beds().at("^^24") == "24"
    assert beds().at("24") == "24"
    assert beds().at("ICU-3") is None  # it has a configured location, and that one rules


def test_invented_locations_do_not_grow_the_cache() -> None:
    hospital = beds()
    for number in range(3 * MAX_LOCATIONS):
        hospital.at(f"X^{number}")
    assert len(hospital._cache) <= MAX_LOCATIONS


def test_admit_transfer_discharge_and_cancels() -> None:
    hospital = beds()
    (move,) = hospital.apply(adt("A01", "P1", "ICU^^3"))
    assert (move.bed, move.patient, move.fresh) == ("ICU-3", "P1", True)
    (again,) = hospital.apply(adt("A08", "P1", "ICU^^3"))
    assert not again.fresh
    moves = hospital.apply(adt("A02", "P1", "ICU^^4", prior="ICU^^3"))
    assert [(move.bed, move.patient) for move in moves] == [("ICU-3", ""), ("ICU-4", "P1")]
    back = hospital.apply(adt("A12", "P1", "ICU^^3", prior="ICU^^4"))
    assert [(move.bed, move.patient) for move in back] == [("ICU-4", ""), ("ICU-3", "P1")]
    assert hospital.apply(adt("A03", "P2", "ICU^^3")) == []  # somebody else's discharge
    (gone,) = hospital.apply(adt("A03", "P1", "ICU^^3"))
    assert gone.patient == ""
    (returned,) = hospital.apply(adt("A13", "P1", "ICU^^3"))
    assert returned.patient == "P1"
    (cancelled,) = hospital.apply(adt("A11", "P1", "ICU^^3"))
    assert cancelled.patient == ""


def test_merge_keeps_the_person() -> None:
    hospital = beds()
    hospital.apply(adt("A01", "OLD", "ICU^^3"))
    (move,) = hospital.apply(adt("A40", "NEW", "", merged="OLD"))
    assert (move.bed, move.patient, move.fresh) == ("ICU-3", "NEW", False)
    assert hospital.patient("ICU-3") == "NEW"


def test_events_elsewhere_change_nothing() -> None:
    hospital = beds()
    assert hospital.apply(adt("A01", "P1", "WARD^^9")) == []
    assert all(not hospital.patient(bed) for bed in hospital.ids)


def test_a_monitor_may_name_a_patient_but_not_overrule() -> None:
    hospital = beds()
    assert hospital.observed("ICU-3", "monitor", "P1") == "new"
    assert hospital.observed("ICU-3", "monitor", "P1") == "same"
    assert hospital.observed("ICU-3", "pump", "P2") == "mismatch"
    assert hospital.observed("ICU-3", "monitor", "P2") == "new"
    hospital.apply(adt("A01", "P3", "ICU^^3"))
    assert hospital.observed("ICU-3", "monitor", "P2") == "mismatch"
    assert hospital.patient("ICU-3") == "P3"
