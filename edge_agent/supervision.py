"""Supervision: what else can fail, looked at in turn, each a technical condition of the gateway.

Theory of operation: the alarm loop calls `look` about once a second and `turn` at each of its turns. A look compares
what the parts say about themselves with a deadline each, and reports through `fault(condition, kind, detail)`, with an
empty detail when it is well again. Nothing here waits, and nothing is decided from a single late moment: a part is
reported when its deadline has passed, and as well only after it has been so for a while. A forwarder that says it was
refused for good, a cloned card's for one, has no deadline to wait for and is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

NS = 1_000_000_000
LATE_NS = NS // 2  # a turn so much later than planned has eaten half of the second that an alarm may take
PUNCTUAL_NS = 10 * NS  # without a late turn before that ends
STUCK_NS = 2 * NS  # an output that works on one thing for so long hangs: no burst edge is further apart from its switch
CLOCK_NS = 900 * NS  # a gateway that has just started may take some minutes to find its time server
SILENT_NS = 5 * NS  # cloud-sync rewrites its status every second

Fault = Callable[[str, str, str], None]


class Watched(Protocol):
    """An annunciator, as supervision sees it."""

    @property
    def name(self) -> str: ...

    def stuck_ns(self, at_ns: int) -> int:
        """How long it has been at one thing."""


class Supervision:
    """Deadlines of loop, outputs, clock and central link."""

    def __init__(self, fault: Fault, *, central: bool, central_link_s: int, started_ns: int) -> None:
        self._fault, self._central = fault, central
        self._central_ns = central_link_s * NS
        self._late_until: int | None = None
        self._synchronised_ns = started_ns
        self._linked_ns = started_ns
        self._report: tuple[object, int] = (None, started_ns)
        self._told: set[tuple[str, str]] = set()

    def turn(self, planned_ns: int, at_ns: int) -> None:
        """Take note of a turn of the alarm loop that was planned for `planned_ns`."""
        late = at_ns - planned_ns
        if late > LATE_NS:
            self._late_until = at_ns + PUNCTUAL_NS
            self._say("alarm_loop_late", "alarm loop", f"a turn came {late / NS:.1f} s late; the machine is overloaded")
        elif self._late_until is not None and at_ns >= self._late_until:
            self._late_until = None
            self._say("alarm_loop_late", "alarm loop", "")

    def look(
        self,
        at_ns: int,
        annunciators: Sequence[Watched],
        synchronised: bool,
        cloud: Mapping[str, Any] | None,
    ) -> None:
        """Look at every part once; `cloud` is what cloud-sync last wrote about itself."""
        for each in annunciators:
            stuck = each.stuck_ns(at_ns) >= STUCK_NS
            self._say("annunciator_fault", f"{each.name} hangs", f"{each.name} does not answer" if stuck else "")
        if synchronised:
            self._synchronised_ns = at_ns
        unsure = at_ns - self._synchronised_ns >= CLOCK_NS
        self._say(
            "clock_unsynchronised", "time", "no time server has set the clock for 15 min; check NTP" if unsure else ""
        )
        if self._central:
            self._look_at_central(at_ns, cloud)

    def _look_at_central(self, at_ns: int, cloud: Mapping[str, Any] | None) -> None:
        stamp = None if cloud is None else (cloud.get("pid"), cloud.get("utc"), cloud.get("uptime_s"))
        if stamp != self._report[0]:
            self._report = (stamp, at_ns)
        fresh = stamp is not None and at_ns - self._report[1] <= SILENT_NS
        if fresh and cloud is not None and cloud.get("state") == "connected":
            self._linked_ns = at_ns
        if fresh and cloud is not None and cloud.get("state") == "fatal":
            self._linked_ns = min(self._linked_ns, at_ns - self._central_ns)  # it will not mend itself: no deadline
        if at_ns - self._linked_ns < self._central_ns:
            self._say("central_link_lost", "central link", "")
        elif not fresh or cloud is None:
            self._say("central_link_lost", "central link", "cloud-sync does not run; systemctl status cloud-sync")
        else:
            self._say("central_link_lost", "central link", str(cloud.get("detail") or cloud.get("state") or "no link"))

    def _say(self, condition: str, kind: str, detail: str) -> None:
        if detail:
            self._told.add((condition, kind))
        elif (condition, kind) in self._told:
            self._told.discard((condition, kind))
        else:
            return
        self._fault(condition, kind, detail)
