"""Condition to signal: states, acknowledgement, pauses, latching; the rows of what an alarm is lie in presets/."""

from edge_agent.alarms.room import Alarms

__all__ = ["Alarms"]
