"""A condition on its way between absent and present.

Theory of operation: a tracker is told whether its condition holds at this moment (`out`). It becomes present when it
has held without a break for the condition delay, and absent when it has not held for the off delay; both are measured
on the monotonic times passed in, not on the number of samples. A delay that runs is a `deadline` in the queue that
all trackers share; a deadline that was withdrawn stays in the queue and is recognised by not being current.
"""

from __future__ import annotations

import heapq
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


class Tracker:
    """State of one condition on one bed."""

    __slots__ = (
        "armed", "bed", "condition", "deadline", "delay_ns", "detail", "off_ns", "on_flip", "out", "outs", "present",
        "priority", "queue", "row", "source", "text", "value",
    )  # fmt: skip

    def __init__(self, queue: Queue, bed: str, condition: str, row: Condition | None, *, off_s: float | None = None):
        self.queue, self.bed, self.condition, self.row = queue, bed, condition, row
        self.delay_ns = round((row.delay_s if row else 0.0) * NS)
        self.off_ns = round((off_s if off_s is not None else row.off_delay_s if row else 0.0) * NS)
        self.out = False
        self.present = False
        self.armed = False
        self.deadline: int | None = None
        self.outs: set[object] = set()  # those that hold the condition up, where several may
        self.value: float | None = None
        self.source = ""
        self.detail = ""
        self.priority: Priority | None = None
        self.text = ""
        self.on_flip: Callable[[Tracker, int, Changes], None] | None = None

    def drive(self, out: bool, at_ns: int, changes: Changes) -> None:
        """Say whether the condition holds at `at_ns`; a delay that has run out by then takes effect first."""
        if self.deadline is not None and self.deadline <= at_ns:
            self._flip(at_ns, changes)
        if out == self.out:
            return
        self.out = out
        if out == self.present:
            self.deadline = None
            return
        wait = self.delay_ns if out else self.off_ns
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

    def withdraw(self, at_ns: int, changes: Changes, detail: str) -> None:
        """End the condition at once, without its off delay, saying why."""
        self.outs.clear()
        self.out = False
        self.deadline = None
        self.detail = detail
        if self.present:
            self._flip(at_ns, changes)

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

    def _flip(self, at_ns: int, changes: Changes) -> None:
        self.deadline = None
        self.present = not self.present
        if self.present:
            changes.append(self.announce(at_ns))
            if self.on_flip is not None:
                self.on_flip(self, at_ns, changes)
            return
        if self.on_flip is not None:  # what takes the place of this condition is raised before it ends
            self.on_flip(self, at_ns, changes)
        changes.append(self.announce(at_ns))
        self.detail = ""
