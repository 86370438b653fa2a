"""What an operator can hold back for a whole bed: one row for each of the four inactivation states.

Theory of operation: a bed is in one of the states of `records.Inactivation`; "" is enabled. *Audio* holds back sound,
*alarm* sound and light; *paused* ends by itself after the seconds that were granted, *off* only by an operator or a
new patient. A state masks output and never edits presence: every alarm is still listed and still recorded. What may
pass the mask are the alarms that broke through: HIGH, with an onset or a rise to HIGH after the state began. ALARM OFF
lets nothing pass; it must be allowed by the responsible organisation and, like the others, is recalled by a reminder.
"""

from __future__ import annotations

from typing import NamedTuple

from edge_agent import config
from edge_agent.records import AlarmEvent, Inactivation

LONGEST_PAUSE_S = 180  # of AUDIO PAUSED and ALARM PAUSED, whatever is asked; product standards cap at 120 to 180 s
NS = 1_000_000_000


class Rule(NamedTuple):
    """What a state holds back and what the records call its begin and its end."""

    begins: str
    ends: str
    timed: bool
    holds_sound: bool
    holds_light: bool
    breakable: bool  # whether a new HIGH passes


# fmt: off
RULES: dict[Inactivation, Rule] = {
    "":             Rule("",            "",             False, False, False, False),
    "audio_paused": Rule("audio_pause", "audio_resume", True,  True,  False, True),
    "audio_off":    Rule("audio_off",   "audio_resume", False, True,  False, True),
    "alarm_paused": Rule("alarm_pause", "alarm_resume", True,  True,  True,  True),
    "alarm_off":    Rule("alarm_off",   "alarm_resume", False, True,  True,  False),
}
# fmt: on
BEGINS: dict[str, Inactivation] = {rule.begins: state for state, rule in RULES.items() if state}
ENDS: frozenset[str] = frozenset(rule.ends for state, rule in RULES.items() if state)


def allowed(state: Inactivation, settings: config.Alarms) -> bool:
    """Whether the responsible organisation allows a state; those that end by themselves always are."""
    return RULES[state].timed or bool(getattr(settings, state))


def grant(state: Inactivation, seconds: int | None, settings: config.Alarms) -> int:
    """The seconds that a state may last, 0 for one without an end of its own.

    Raises: ValueError when the state is unknown or not allowed, or `seconds` is not within 1 and the maximum.
    """
    if not state or state not in RULES:
        raise ValueError(f"no inactivation state {state!r}; known: {', '.join(filter(None, RULES))}")
    if not allowed(state, settings):
        raise ValueError(f"{state} is not allowed here; the responsible organisation allows it by [alarms] {state}")
    if not RULES[state].timed:
        if seconds is not None:
            raise ValueError(f"{state} lasts until it is ended; for {seconds} s choose {state[:5]}_paused")
        return 0
    default: int = settings.audio_pause_s if state == "audio_paused" else settings.alarm_pause_s
    granted = default if seconds is None else seconds
    if not 1 <= granted <= LONGEST_PAUSE_S:
        raise ValueError(f"{state} lasts 1 to {LONGEST_PAUSE_S} s, not {granted}")
    return granted


def end_after_restart(event: AlarmEvent, at_ns: int) -> int | None:
    """When a state that `event` began before a restart ends, in ns of `at_ns`; None for one without an end of its own.

    A state whose record says no length, or which the clocks would stretch, ends no later than its maximum allows.
    """
    if not RULES[BEGINS[event.event]].timed:
        return None
    seconds = min(float(LONGEST_PAUSE_S), event.value or 0.0)
    return min(event.at_ns, at_ns) + round(seconds * NS)
