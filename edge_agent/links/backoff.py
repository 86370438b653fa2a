"""How long to wait before the next attempt: doubling, capped, and spread out so that gateways do not march in step."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_S = 0.5
CAP_S = 30.0  # for what is reached over a network or by radio, where an attempt costs others something
LOCAL_CAP_S = 5.0  # for a port of this machine: a cable that is plugged in again must not wait half a minute


class Backoff:
    """Waits in seconds, each up to twice the one before, never above the cap; starts again after `reset`."""

    def __init__(
        self, first_s: float = FIRST_S, cap_s: float = CAP_S, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._first_s, self._cap_s, self._uniform = first_s, cap_s, uniform
        self._ceiling_s = first_s

    def next(self) -> float:
        """Seconds to wait now: between the half and the whole of a ceiling that doubles each time."""
        ceiling = self._ceiling_s
        self._ceiling_s = min(ceiling * 2, self._cap_s)
        return max(self._first_s, self._uniform(ceiling / 2, ceiling))

    def reset(self) -> None:
        """Start again at the first wait; called when data came, because a connection alone proves nothing."""
        self._ceiling_s = self._first_s
