"""The association with the monitor as a table of states.

Theory of operation. The monitor serves one client at a time and only after an association: request, accept, the
monitor's MDS Create event, the gateway's answer to it. Then it answers polls, as long as the gateway keeps asking; ten
seconds without a request end it. `TABLE` says for each state and event what comes next, what is to be done, and how
long that state may last before the event `due`.

  listening    until a time is told: a recording, or the first second of a run. Everything is decoded, whatever
               association it belongs to, and an association that ends ends here
  idle         no association; `due` asks for one
  freeing      told to end an association of which this gateway knows nothing (any more); `due` asks for one
  requested    asked, not answered; `due` asks again
  accepted     associated, and the MDS Create is awaited
  associated   polls run; `due` comes when no result has come for six seconds, although they were asked for again
  releasing    release requested, because the MDS Create did not come

A connect indication is what a monitor broadcasts when it has no client. In an association that still gives results it
means nothing; where they have stopped, the monitor has started anew.

Source: Philips IntelliVue Data Export Interface Programming Guide, association control protocol and its time-outs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

LISTENING, IDLE, FREEING, REQUESTED = "listening", "idle", "freeing", "requested"
ACCEPTED, ASSOCIATED, RELEASING = "accepted", "associated", "releasing"

# what is to be done
REQUEST, CONFIRM, START, STOP, RELEASE, ANSWER, GIVE_UP = (
    "request", "confirm", "start", "stop", "release", "answer", "abort",
)  # fmt: skip

_FIRST_S = 0.5
_PAUSE_S = 2.0  # after an end: the monitor takes a moment to be free again
_REFUSED_S = 4.0  # the client it has may be this gateway before its restart, which it gives up after ten seconds
_ANSWER_S = 5.0
_CREATE_S = 10.0  # a monitor repeats an MDS Create that was not answered three times over about so long
_RESULT_S = 6.0  # results come every second and are asked for again after three
_RELEASE_S = 3.0


class Step(NamedTuple):
    """What follows: the next state, how long it may last, what is to be done."""

    state: str
    for_s: float
    actions: tuple[str, ...] = ()


_ENDED = Step(IDLE, _PAUSE_S)
_LOST = Step(IDLE, _PAUSE_S, (STOP,))
_ASK = Step(REQUESTED, _ANSWER_S, (REQUEST,))
_BEGIN = Step(ASSOCIATED, _RESULT_S, (CONFIRM, START))
_AWAIT = Step(ACCEPTED, _CREATE_S)
_FREE = Step(FREEING, _PAUSE_S, (GIVE_UP,))  # a result of an association that is no more
# An answer to a request that was given up: both sides begin anew.
_STALE = Step(IDLE, _PAUSE_S, (GIVE_UP,))

TABLE: Final[dict[tuple[str, str], Step]] = {
    (LISTENING, "begin"): _ASK,
    (LISTENING, "due"): Step(IDLE, _FIRST_S),  # the end of a recording is no beginning of a conversation
    (LISTENING, "indicated"): _ASK,
    (LISTENING, "accepted"): _AWAIT,
    (LISTENING, "created"): _BEGIN,
    (LISTENING, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (LISTENING, "aborted"): _ENDED,
    (IDLE, "due"): _ASK,
    (IDLE, "indicated"): _ASK,
    (IDLE, "accepted"): _STALE,
    (IDLE, "created"): _STALE,
    (IDLE, "result"): _FREE,
    (IDLE, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (FREEING, "due"): _ASK,
    (FREEING, "indicated"): _ASK,
    (FREEING, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (REQUESTED, "due"): _ASK,
    (REQUESTED, "result"): _FREE,
    (REQUESTED, "accepted"): _AWAIT,
    (REQUESTED, "created"): _BEGIN,  # the accept was lost
    (REQUESTED, "refused"): Step(IDLE, _REFUSED_S),
    (REQUESTED, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (REQUESTED, "disconnected"): _ENDED,
    (REQUESTED, "aborted"): _ENDED,
    (ACCEPTED, "due"): Step(RELEASING, _RELEASE_S, (RELEASE,)),
    (ACCEPTED, "created"): _BEGIN,
    (ACCEPTED, "refused"): _ENDED,
    (ACCEPTED, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (ACCEPTED, "disconnected"): _ENDED,
    (ACCEPTED, "aborted"): _ENDED,
    (ASSOCIATED, "due"): Step(IDLE, _PAUSE_S, (GIVE_UP, STOP)),
    (ASSOCIATED, "created"): Step(ASSOCIATED, _RESULT_S, (CONFIRM,)),  # repeated: our answer was lost
    (ASSOCIATED, "result"): Step(ASSOCIATED, _RESULT_S),
    (ASSOCIATED, "abandoned"): Step(REQUESTED, _ANSWER_S, (STOP, REQUEST)),
    (ASSOCIATED, "anew"): Step(ACCEPTED, _CREATE_S, (STOP,)),
    (ASSOCIATED, "released"): Step(IDLE, _PAUSE_S, (ANSWER, STOP)),
    (ASSOCIATED, "disconnected"): _LOST,
    (ASSOCIATED, "refused"): _LOST,
    (ASSOCIATED, "aborted"): _LOST,
    (RELEASING, "due"): _STALE,
    (RELEASING, "disconnected"): Step(IDLE, 0.0),
    (RELEASING, "released"): Step(IDLE, _PAUSE_S, (ANSWER,)),
    (RELEASING, "aborted"): _ENDED,
}
_ABANDONED_NS = 2_500_000_000  # a monitor that gives results gives one a second


class Association:
    """State of the association with one monitor."""

    def __init__(self, live: bool) -> None:
        self.state = LISTENING
        self._live = live
        self._untold = True
        self._due_ns: int | None = None  # None: as soon as a time is told
        self._result_ns = 0

    def event(self, name: str, at_ns: int) -> tuple[str, ...]:
        """What is to be done now that `name` has happened; an event that a state does not know changes nothing."""
        if name == "indicated" and self.state == ASSOCIATED:
            if at_ns - self._result_ns < _ABANDONED_NS:
                return ()
            name = "abandoned"
        elif name == "accepted" and self.state == ASSOCIATED and self._untold:
            name = "anew"  # a recording does not hold what the client said when it ended the association before
        step = TABLE.get((self.state, name))
        if step is None:
            return ()
        if name in ("result", "created"):
            self._result_ns = at_ns
        self.state = LISTENING if self._untold and step.state in (IDLE, FREEING) else step.state
        self._due_ns = at_ns + round(step.for_s * 1e9)
        return step.actions

    def tick(self, at_ns: int) -> tuple[str, ...]:
        """What is to be done because time has passed."""
        self._untold = False
        if self.state == LISTENING:
            return self.event("begin" if self._live else "due", at_ns)
        if self._due_ns is None or at_ns >= self._due_ns:
            return self.event("due", at_ns)
        return ()
