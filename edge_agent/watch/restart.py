"""What was present before a restart, until data or its reporter says otherwise.

Theory of operation: an alarm's last event says which row raised it. A limit is held up by a slot that has the age and
the value of a fresh one: the next values of its source take over, and without any the vital is lost as usual. A vital
that was too old stays so until it has data, a source until it speaks. What only its reporter can end (device alarms,
implausible values, technical conditions of other parts) waits for a minute to be reported again; a device's alarm
begins that minute when its source is first heard. A source that nobody has heard or missed within `FORGOTTEN_S` has
left the configuration. So nothing is held that nothing can end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.presets import LIMIT_VERBS
from edge_agent.records import AlarmEvent
from edge_agent.watch.tracker import NS, Changes, Lapse, Tracker
from edge_agent.watch.vital import TAKEN_OUT

if TYPE_CHECKING:
    from edge_agent.watch.room import Bed

REPORTED_AGAIN_S = 60.0  # in which a reporter must repeat itself: twice the silence after which a device is missed
FORGOTTEN_S = 600.0  # in which every configured source has spoken or has been reported silent or lost
ABSENT = "not present after the restart"
_SOURCE_ROWS = ("source_silent", "source_lost")  # in the order of the pair that a bed has for a source
_AGAIN_NS, _FORGOTTEN_NS = round(REPORTED_AGAIN_S * NS), round(FORGOTTEN_S * NS)


def restore(bed: Bed, event: AlarmEvent, at_ns: int) -> None:
    """Hold the condition of one event up on a bed."""
    row_id, _, name = event.condition.partition(":")
    row = bed.preset.by_id.get(row_id)
    verb = row.verb if row is not None else ""
    if row is not None and verb in LIMIT_VERBS:
        vital = bed.vital(row.vital)
        tracker = next(limit for limit in vital.limits if limit.condition == event.condition)
        vital.hold(tracker, event.source, event.value, at_ns)
    elif row is not None and verb == "silent":
        stale = bed.vital(row.vital).stale
        assert stale is not None  # its row is of this vital
        tracker = stale
        tracker.hold(at_ns)
    elif verb == "implausible" and name:
        vital = bed.vital(name)
        tracker = vital.implausible
        vital.hold_odd(event.source, at_ns, at_ns + _AGAIN_NS, ABSENT)
    elif verb == "device_alarm" and name:
        tracker = _device_alarm(bed, event, at_ns)
    elif row_id in _SOURCE_ROWS and name:
        tracker = _source(bed, row_id, name, at_ns)
    else:
        tracker = _reported(bed, event, at_ns)
    tracker.source, tracker.value, tracker.detail = event.source or tracker.source, event.value, event.detail
    if verb == "device_alarm":
        tracker.priority, tracker.text = event.priority, event.text


def _device_alarm(bed: Bed, event: AlarmEvent, at_ns: int) -> Tracker:
    forgotten_ns = at_ns + _FORGOTTEN_NS

    def judge(now_ns: int) -> int | None:
        heard_ns = bed.heard.get(event.source)
        until_ns = forgotten_ns if heard_ns is None else heard_ns + _AGAIN_NS
        if heard_ns is None and now_ns < forgotten_ns:
            return min(forgotten_ns, now_ns + _AGAIN_NS)
        return until_ns if until_ns > now_ns else None

    tracker = bed.device.hold(event.condition, event.source, at_ns + _AGAIN_NS, judge)
    tracker.hold(at_ns)
    return tracker


def _source(bed: Bed, row_id: str, source: str, at_ns: int) -> Tracker:
    tracker = bed.cover(source)[_SOURCE_ROWS.index(row_id)]
    tracker.hold(at_ns)

    def judge(now_ns: int, changes: Changes) -> None:
        bed.awaited.pop(tracker.condition, None)
        if tracker.out:  # else the source has been heard, and its conditions end by that
            tracker.withdraw(now_ns, changes, ABSENT)

    bed.awaited[tracker.condition] = Lapse(bed.queue, at_ns + _FORGOTTEN_NS, judge)
    return tracker


def _reported(bed: Bed, event: AlarmEvent, at_ns: int) -> Tracker:
    """A condition that another part reports, or one whose row is gone: a limit then ends at once, saying so."""
    tracker = bed.tracker(event.condition)
    tracker.hold(at_ns)
    limit = event.limit.partition(" ")[0] in LIMIT_VERBS

    def judge(now_ns: int, changes: Changes) -> None:
        bed.awaited.pop(event.condition, None)
        tracker.withdraw(now_ns, changes, TAKEN_OUT if limit else ABSENT)

    bed.awaited[event.condition] = Lapse(bed.queue, at_ns + (0 if limit else _AGAIN_NS), judge)
    return tracker
