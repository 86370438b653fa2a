"""What is asked of the monitor and how often, and which of its answers are new.

Theory of operation. Numerics, waves and alerts are asked for once and then come by themselves, for the minute that the
request names: an extended poll. It is renewed long before that minute ends, and at once when results fail to come,
because a datagram may be lost. A monitor without extended polls answers such a request with an error and is asked
every second. Patient and system (which also keep the association alive) are single polls.

Every row has its number, and the answer names number and class: what names another is an answer to nobody here. Within
a row time runs forwards. A result that is older than the last one came late, one of the same time with the same
sequence and link came twice; both are rejected, because a wave must not be repeated and an old number is not a new one.
A result from before the MDS Create belongs to an earlier association.

Source: Philips IntelliVue Data Export Interface Programming Guide, single and extended poll data requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from drivers.intellivue import replies, requests

_ACTIVE_S = 60
_RENEW_NS = 20_000_000_000
_MISSING_NS = 3_000_000_000  # results come every second, waves four times
_EARLY_NS = 250_000_000  # time is told once a second, a little more or less
_LATE_MAX = 5  # so many in a row are not late: the one before them was wrong
_HALF = 1 << 31
_BEFORE = (8_000, 480_000)  # a second, a minute before: what is older counts from another moment and tells nothing
_SAME_TIME_MAX = 64  # results of one moment: a split list has a few


@dataclass(slots=True)
class Row:
    """One line of the table of polls."""

    name: str
    number: int
    polled: int
    group: int  # of attributes; 0: all
    every_ns: int  # 0: extended
    refused: bool = False  # by this monitor: not asked again
    asked_ns: int | None = None
    heard_ns: int = 0
    invoke: int = 0
    last: int | None = None  # relative time of the newest result
    seen: set[tuple[int, int]] = field(default_factory=set)  # sequence and link of the results of that time
    late: int = 0  # results in a row that came late

    def begin(self) -> None:
        """Forget the association before."""
        self.asked_ns, self.heard_ns, self.last, self.invoke, self.late = None, 0, None, 0, 0
        self.refused = False
        self.seen.clear()

    def due(self, at_ns: int) -> bool:
        """Whether it is time to ask."""
        if self.asked_ns is None or self.refused:
            return not self.refused
        waited = at_ns - self.asked_ns
        if self.every_ns:
            return waited >= self.every_ns - _EARLY_NS
        return waited >= _RENEW_NS or (waited >= _MISSING_NS and at_ns - self.heard_ns >= _MISSING_NS)

    def fresh(self, poll: replies.Poll) -> str:
        """Why this result is not to be used; empty when it is new."""
        once = (poll.sequence or 0, poll.link)
        if self.last is None or poll.relative != self.last:
            if self.last is not None and (poll.relative - self.last) % (2 * _HALF) >= _HALF:
                self.late += 1
                if self.late < _LATE_MAX:
                    return "late"
            self.last, self.late = poll.relative, 0
            self.seen = {once}
            return ""
        if once in self.seen or len(self.seen) >= _SAME_TIME_MAX:
            return "twice"
        self.seen.add(once)
        return ""


class Polls:
    """The polls of one association."""

    def __init__(self, waves: bool) -> None:
        second = 1_000_000_000
        self.rows = [
            Row("patient", 4, replies.PATIENT, 0x0807, 2 * second),
            Row("system", 5, replies.MDS, 0, 2 * second),
            Row("numerics", 1, replies.NUMERIC, 0, 0),
            Row("alerts", 3, replies.ALERTS, 0x0801, 0),
        ]
        if waves:
            self.rows.append(Row("waves", 2, replies.WAVE, 0, 0))
        self._by_number = {row.number: row for row in self.rows}
        self._strangers: dict[tuple[int, int], Row] = {}  # of a recording that another client made
        self._invoke = 0
        self._since: int | None = None

    def begin(self, since: int) -> None:
        """A new association, made at the relative time `since`: everything is asked anew."""
        self._since = since
        for row in self.rows:
            row.begin()
        self._strangers.clear()

    def invoke(self) -> int:
        """A number for a request, another each time."""
        self._invoke = self._invoke % 0xFFFF + 1
        return self._invoke

    def ask(self, at_ns: int) -> list[bytes]:
        """The requests whose time has come."""
        out = []
        for row in self.rows:
            if row.due(at_ns):
                row.asked_ns, row.invoke = at_ns, self.invoke()
                if row.every_ns:
                    out.append(requests.poll(row.invoke, row.number, row.polled, row.group))
                else:
                    out.append(requests.extended_poll(row.invoke, row.number, row.polled, row.group, _ACTIVE_S))
        return out

    def answered(self, poll: replies.Poll, at_ns: int, anybody: bool) -> str:
        """Why this result is not to be used; empty when it is. `anybody`: it may have been asked by another client."""
        row = self._by_number.get(poll.number)
        if row is None or row.polled != poll.polled:
            if not anybody:
                return "for another poll"
            if len(self._strangers) >= _SAME_TIME_MAX:
                self._strangers.clear()
            row = self._strangers.setdefault((poll.number, poll.polled), Row("", poll.number, poll.polled, 0, 0))
        if self._since is not None and _BEFORE[0] < (self._since - poll.relative) % (2 * _HALF) < _BEFORE[1]:
            return "of an earlier association"
        why = row.fresh(poll)
        if not why:
            row.heard_ns = at_ns
        return why

    def failed(self, failure: replies.Failure) -> None:
        """Take a refusal: what cannot be had by itself is asked for every second; waves cannot be had at all then."""
        for row in self.rows:
            if row.invoke == failure.invoke and not row.every_ns:
                row.refused = row.polled == replies.WAVE
                row.every_ns = 0 if row.refused else 1_000_000_000
