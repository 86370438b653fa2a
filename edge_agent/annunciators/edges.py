"""What leaves the player: one output that goes on or off."""

from __future__ import annotations

from typing import NamedTuple

from edge_agent.records import Priority

SELF_TEST = "self_test"  # in `condition` of what a self-test switches
REMINDER_TONE = "reminder"  # likewise of a reminder
MS = 1_000_000


class Edge(NamedTuple):
    """One output that goes on or off, with the alarm that owns it.

    `priority` is none for what no alarm owns: the cyan light's hint at a pause, whose `condition` is the state, and
    the reminder tone.
    """

    output: str  # buzzer, burst, red, yellow, cyan
    on: bool
    bed: str
    priority: Priority
    condition: str
    text: str
    pulse: int = 0  # of its burst, from 0
    level: int = 0  # how often the sound has become louder because nobody answered
    cut: bool = False  # off before its time: what an output still holds of the sound is dropped
