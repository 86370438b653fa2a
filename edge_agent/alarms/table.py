"""What an alarm *does*: one table of states and events, the same for every condition.

Theory of operation: an alarm is Off, On, Latch or Ack (the presence of IEEE 11073-10207). On and Latch sound and
show; Ack shows only; Off does neither. `present` and `absent` come from the watch, the other events from operators.
A row gives the next state and the name under which the transition is recorded; an empty name means that nothing
happened worth a record. Latching matters in one row only: a latching alarm whose condition ends unacknowledged.
`escalate` is a condition that becomes more urgent: it sounds again whatever was acknowledged before. Pausing and
switching off are no events of this table: they belong to the bed (`inactivation`) and mask output only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["Off", "On", "Latch", "Ack"]
Event = Literal["present", "absent", "escalate", "acknowledge", "reset", "new_patient"]


class Step(NamedTuple):
    """Where an event leads and what the record calls it."""

    state: State
    record: str


# fmt: off
TABLE: dict[tuple[State, Event], Step] = {
    ("Off", "present"):       Step("On", "start"),
    ("Off", "absent"):        Step("Off", ""),
    ("Off", "escalate"):      Step("On", "start"),
    ("Off", "acknowledge"):   Step("Off", ""),
    ("Off", "reset"):         Step("Off", ""),
    ("Off", "new_patient"):   Step("Off", ""),

    ("On", "present"):        Step("On", ""),
    ("On", "absent"):         Step("Off", "end"),       # the table LATCHING replaces this row
    ("On", "escalate"):       Step("On", "escalate"),
    ("On", "acknowledge"):    Step("Ack", "acknowledge"),
    ("On", "reset"):          Step("On", ""),           # a condition that is present cannot be reset away
    ("On", "new_patient"):    Step("On", ""),           # presence is the watch's; it has ended the patient's own

    ("Latch", "present"):     Step("On", "return"),
    ("Latch", "absent"):      Step("Latch", ""),
    ("Latch", "escalate"):    Step("On", "escalate"),
    ("Latch", "acknowledge"): Step("Off", "end"),
    ("Latch", "reset"):       Step("Off", "reset"),
    ("Latch", "new_patient"): Step("Off", "end"),

    ("Ack", "present"):       Step("Ack", ""),
    ("Ack", "absent"):        Step("Off", "end"),       # latching or not: the operator has acted
    ("Ack", "escalate"):      Step("On", "escalate"),
    ("Ack", "acknowledge"):   Step("Ack", ""),
    ("Ack", "reset"):         Step("Ack", ""),
    ("Ack", "new_patient"):   Step("Ack", ""),
}
LATCHING: dict[tuple[State, Event], Step] = {
    **TABLE,
    ("On", "absent"):         Step("Latch", "latch"),
}
# fmt: on

SOUNDS: frozenset[State] = frozenset({"On", "Latch"})
SHOWS: frozenset[State] = frozenset({"On", "Latch", "Ack"})
RESTARTS: frozenset[str] = frozenset({"start", "return", "escalate"})  # a new onset: the newest of its priority
NEW: frozenset[str] = frozenset({"start", "escalate"})  # these may break through; a return is the same alarm again
