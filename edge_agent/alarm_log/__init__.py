"""The alarm log: what happened to every alarm and who acted, sealed, ordered and hash-chained.

The agent writes through `AlarmLog`; `edge-agent alarms` reads through `edge_agent.alarm_log.reader`. What it promises:
docs/alarm-log.md.
"""

from edge_agent.alarm_log.log import FAULTS, FILE, AlarmLog, Previous
from edge_agent.alarm_log.store import Active, now_in

__all__ = ["FAULTS", "FILE", "Active", "AlarmLog", "Previous", "now_in"]
