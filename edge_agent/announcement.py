"""What is said before the alarm system goes down on purpose: an update restarts it.

Theory of operation: the installer asks for the announcement right before the restart. It stands in the status and on
every screen until the restart, in the alarm log and in the forwarded records. The annunciators get nothing: a light or
tone that is no alarm would be taken for one. A HIGH physiological alarm of any bed refuses it, because somebody is
needed there now; who insists says so. An announcement that no restart has followed is over after STANDS_NS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from edge_agent.records import AlarmEvent

STANDS_NS = 120_000_000_000  # longer than an installer needs from here to the restart
_VERSION = re.compile(r"[A-Za-z0-9.+-]{0,32}")


class NotNow(Exception):
    """A restart must wait; `str` tells which bed for, and what to do."""


class Announcement:
    """The one announcement that stands now, if any."""

    def __init__(self) -> None:
        self._text, self._at_ns = "", 0

    def make(self, version: str, active: Iterable[tuple[str, AlarmEvent]], now: bool, at_ns: int) -> str:
        """The text that stands from now on. Raises: NotNow while a HIGH physiological alarm is active and not `now`."""
        high = sorted({bed for bed, event in active if event.kind == "physiological" and event.priority == "high"})
        if high and not now:
            raise NotNow(f"a HIGH alarm is active on {', '.join(high)}; go to the patient, and restart when it is over")
        to = f" to version {version}" if version and _VERSION.fullmatch(version) else ""
        self._text, self._at_ns = f"ALARMS STOP FOR SOME SECONDS: update{to}, watch the patients", at_ns
        return self._text

    def view(self, at_ns: int) -> dict[str, Any] | None:
        """Text and age in seconds of the announcement that stands, None when there is none."""
        if not self._text or at_ns - self._at_ns > STANDS_NS:
            return None
        return {"text": self._text, "since_s": round((at_ns - self._at_ns) / 1e9, 1)}
