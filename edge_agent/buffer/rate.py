"""How fast the buffer fills, and so how many hours it holds."""

from __future__ import annotations

from collections import deque

_STEP_NS = 10_000_000_000  # between two looks: the figure is for people
_LOOKS = 61  # ten minutes: long enough for one patient's admission not to move it, short enough for a new bed to show
_SHORTEST_NS = 60_000_000_000  # below it a burst at the start would be taken for the rate


class Rate:
    """Bytes per second over the last ten minutes, from a total that only rises; for one thread."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque(maxlen=_LOOKS)

    def note(self, at_ns: int, total: int) -> None:
        """Takes a look at the total; looks that come too soon are left out."""
        if not self._looks or at_ns - self._looks[-1][0] >= _STEP_NS:
            self._looks.append((at_ns, total))

    def per_s(self) -> float | None:
        """Bytes per second; None while less than a minute has been seen."""
        if not self._looks:
            return None
        (start, low), (end, high) = self._looks[0], self._looks[-1]
        return (high - low) * 1e9 / (end - start) if end - start >= _SHORTEST_NS else None


def hours(room_bytes: float, per_s: float | None) -> float | None:
    """Hours until so many bytes are full; None when the rate is not known, or nothing comes."""
    return round(max(room_bytes, 0) / per_s / 3600, 1) if per_s else None
