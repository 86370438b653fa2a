"""Whether the agent itself is well: systemd notifications, latency of the alarm path, state of the clock."""

from __future__ import annotations

from array import array

from edge_agent.notifier import Notifier

__all__ = ["Latency", "Notifier", "WallClock"]


class Latency:
    """The last measured delays from receipt of a chunk to the hand-over of the signal it caused, in nanoseconds."""

    SIZE = 4096  # enough for a p99 of some weight, 32 kB

    def __init__(self) -> None:
        self._ring = array("q", bytes(8 * self.SIZE))
        self.count = 0

    def add(self, delay_ns: int) -> None:
        """Remember one delay; allocates nothing."""
        self._ring[self.count % self.SIZE] = delay_ns
        self.count += 1

    def view(self) -> dict[str, float | int | None]:
        """Median and 99th percentile in microseconds over the remembered delays, None before the first."""
        kept = sorted(self._ring[: min(self.count, self.SIZE)])
        if not kept:
            return {"p50_us": None, "p99_us": None, "count": 0}
        return {
            "p50_us": round(kept[len(kept) // 2] / 1000, 1),
            "p99_us": round(kept[min(len(kept) - 1, len(kept) * 99 // 100)] / 1000, 1),
            "count": self.count,
        }


class WallClock:
    """Notices steps of the wall clock by comparing it with the monotonic one; timers never use the wall clock."""

    STEP_NS = 2_000_000_000  # slewing stays far below; a step of less does not matter to a record's minute

    def __init__(self, wall_ns: int, at_ns: int) -> None:
        self._offset = wall_ns - at_ns

    def step(self, wall_ns: int, at_ns: int) -> int:
        """Nanoseconds by which the wall clock has been stepped since the last call, 0 when it only slewed."""
        offset = wall_ns - at_ns
        moved = offset - self._offset
        self._offset = offset
        return moved if abs(moved) >= self.STEP_NS else 0
