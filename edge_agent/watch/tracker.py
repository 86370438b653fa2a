"""A condition on its way between absent and present.

Theory of operation: a tracker is told whether its condition holds at this moment (`out`). It becomes present when it
has held without a break for the condition delay, and absent when it has not held for the off delay; both are measured
on the monotonic times passed in, not on the number of samples. A delay that runs is a `deadline` in the queue that
all trackers share; a deadline that was withdrawn stays in the queue and is recognised by not being current.

A condition with a cool-down that has ended does not become present again before the cool-down is over; when what holds
it up is still there then, it becomes so at that moment. Where it ended for want of data, or with its patient, there is
none.

Severity shortens the condition delay: the deficit, held from value to value, is integrated over the time that the
condition has held, and the deadline lies where the area reaches the row's severity, if that is earlier.

A condition that only repetition keeps up, or that stood before a restart, has a `Lapse`: the time by which it must have
been reported again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

from edge_agent.presets import Condition
from edge_agent.records import Change, Priority

Changes = list[Change]
NS = 1_000_000_000


class Queue:
    """Deadlines in the order of time; each entry is taken back to its owner when it is due."""

    __slots__ = ("_count", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Any]] = []
        self._count = 0

    def push(self, at_ns: int, owner: Any) -> None:
        """Ask for `owner.due(at_ns)` at that time."""
        self._count += 1
        heapq.heappush(self.heap, (at_ns, self._count, owner))

    def run(self, at_ns: int, changes: Changes) -> None:
        """Call every owner whose time has come, earliest first."""
        heap = self.heap
        while heap and heap[0][0] <= at_ns:
            deadline, _, owner = heapq.heappop(heap)
            owner.due(deadline, at_ns, changes)

    def earliest(self) -> int | None:
        """The next time at which anything can happen by itself, in ns of CLOCK_MONOTONIC; None when nothing can."""
        heap = self.heap
        while heap and not heap[0][2].waits(heap[0][0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None


class Lapse:
    """A time by which something must have happened; `judge` says at that time how long to wait on, or None."""

    __slots__ = ("at_ns", "judge", "queue")

    def __init__(self, queue: Queue, at_ns: int, judge: Callable[[int, Changes], int | None]) -> None:
        self.queue, self.judge = queue, judge
        self.at_ns: int | None = at_ns
        queue.push(at_ns, self)

    def later(self, at_ns: int) -> None:
        """Wait until a later time; the entry in the queue is looked at once more on the way."""
        self.at_ns = at_ns

    def cancel(self) -> None:
        """Wait no more."""
        self.at_ns = None

    def waits(self, _deadline: int) -> bool:
        """Whether a queue entry for that deadline still means something."""
        return self.at_ns is not None

    def due(self, _deadline: int, at_ns: int, changes: Changes) -> None:
        """Take a deadline back from the queue."""
        until = self.at_ns
        if until is not None and until <= at_ns:
            until = self.at_ns = self.judge(at_ns, changes)
        if until is not None:
            self.queue.push(until, self)


class Tracker:
    """State of one condition on one bed."""

    __slots__ = (
        "area", "armed", "bed", "condition", "deadline", "deficit", "delay_ns", "detail", "leaving", "off_ns", "off_s",
        "on_flip", "out", "outs", "present", "priority", "queue", "rest_ns", "rests_ns", "row", "severity_ns",
        "since_ns", "source", "text", "value", "weighed_ns",
    )  # fmt: skip

    def __init__(self, queue: Queue, bed: str, condition: str, row: Condition | None, *, off_s: float | None = None):
        self.queue, self.bed, self.condition = queue, bed, condition
        self.off_s = off_s  # in place of the row's
        self.follow(row)
        self.since_ns = 0  # when `out` became what it is
        self.rests_ns: int | None = None  # until when it may not become present again
        self.area = self.deficit = 0.0  # integral up to `weighed_ns`, in ns, and the deficit held since then
        self.weighed_ns = 0
        self.out = False
        self.present = False
        self.armed = False
        self.deadline: int | None = None
        self.outs: set[object] = set()  # those that hold the condition up, where several may
        self.leaving: set[object] = set()  # those that held it up and came back in, until it has ended
        self.value: float | None = None
        self.source = ""
        self.detail = ""
        self.priority: Priority | None = None
        self.text = ""
        self.on_flip: Callable[[Tracker, int, Changes], None] | None = None

    def follow(self, row: Condition | None) -> None:
        """Take over the figures of a row."""
        off_s = self.off_s if self.off_s is not None else row.off_delay_s if row else 0.0
        self.row = row
        self.delay_ns = round((row.delay_s if row else 0.0) * NS)
        self.off_ns = round(off_s * NS)
        self.severity_ns = row.severity * NS if row else 0.0
        self.rest_ns = round((row.cool_down_s if row else 0.0) * NS)

    def settle(self, at_ns: int, changes: Changes) -> None:
        """Let a delay that runs be as long as the row says by now, counted from its begin."""
        if self.deadline is not None and self.out:
            self.weigh(self.deficit, at_ns, changes)
        elif self.deadline is not None:
            self._wait_until(self.since_ns + self.off_ns, at_ns, changes)

    def drive(self, out: bool, at_ns: int, changes: Changes) -> None:
        """Say whether the condition holds at `at_ns`; a delay that has run out by then takes effect first."""
        if self.deadline is not None and self.deadline <= at_ns:
            self._flip(at_ns, changes)
        if out == self.out:
            return
        self.out = out
        self.since_ns = self.weighed_ns = at_ns
        self.area = self.deficit = 0.0
        if out == self.present:
            self.deadline = None
            return
        wait = self.delay_ns if out else self.off_ns
        if out and self.rests_ns is not None:
            wait = max(wait, self.rests_ns - at_ns)
        if wait == 0:
            self._flip(at_ns, changes)
        else:
            self.deadline = at_ns + wait
            self.queue.push(self.deadline, self)

    def drive_within(self, out: bool, at_ns: int, wait_ns: int, changes: Changes) -> None:
        """Like `drive`, with an end that comes after `wait_ns` at the latest."""
        self.drive(out, at_ns, changes)
        if self.present and not out and self.deadline is not None and self.deadline > at_ns + wait_ns:
            self.deadline = at_ns + wait_ns
            self.queue.push(self.deadline, self)

    def weigh(self, deficit: float, at_ns: int, changes: Changes) -> None:
        """Say how far beyond the limit the worst value is from `at_ns` on: it may end the condition delay early."""
        if self.present or self.deadline is None:
            return
        self.area += self.deficit * (at_ns - self.weighed_ns)
        self.deficit, self.weighed_ns = deficit, at_ns
        until = self.since_ns + self.delay_ns
        if deficit > 0.0 and self.severity_ns:
            until = min(until, at_ns + max(0, math.ceil((self.severity_ns - self.area) / deficit)))
        self._wait_until(until if self.rests_ns is None else max(until, self.rests_ns), at_ns, changes)

    def hold(self, at_ns: int) -> None:
        """Make the condition present without telling: it was told before a restart."""
        self.armed = self.present = self.out = True
        self.since_ns = at_ns
        self.deadline = None

    def withdraw(self, at_ns: int, changes: Changes, detail: str) -> None:
        """End the condition at once, without its off delay, saying why."""
        self.outs.clear()
        self.out = False
        self.deadline = None
        if self.present:
            self.detail = detail
            self._flip(at_ns, changes)
        self.rests_ns = None

    def waits(self, deadline: int) -> bool:
        """Whether a queue entry for that deadline still means something."""
        return self.deadline == deadline

    def due(self, deadline: int, at_ns: int, changes: Changes) -> None:
        """Take a deadline back from the queue."""
        if self.deadline == deadline:
            self._flip(at_ns, changes)

    def announce(self, at_ns: int) -> Change:
        """The Change that states this condition as it stands."""
        value = self.value if self.present else None  # a condition does not end by the value that held it up
        return Change(
            self.bed, self.condition, self.present, at_ns, value, self.source, self.detail, self.priority, self.text
        )

    def _wait_until(self, until_ns: int, at_ns: int, changes: Changes) -> None:
        if until_ns <= at_ns:
            self._flip(at_ns, changes)
        elif until_ns != self.deadline:
            self.deadline = until_ns
            self.queue.push(until_ns, self)

    def _flip(self, at_ns: int, changes: Changes) -> None:
        self.deadline = None
        self.present = not self.present
        if self.present:
            self.rests_ns = None
            changes.append(self.announce(at_ns))
            if self.on_flip is not None:
                self.on_flip(self, at_ns, changes)
            return
        if self.rest_ns:
            self.rests_ns = at_ns + self.rest_ns
        if self.on_flip is not None:  # what takes the place of this condition is raised before it ends
            self.on_flip(self, at_ns, changes)
        changes.append(self.announce(at_ns))
        self.leaving.clear()
        self.detail = ""
