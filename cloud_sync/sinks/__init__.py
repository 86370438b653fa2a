"""The contract of a sink: batches in, one verdict for each batch out.

A batch is what the buffer sealed together. The sink answers every batch exactly once: each of its messages is
accepted by the receiver or rejected for good, or the whole batch is kept, that is, nothing is known to have arrived
and the forwarder will read it again from the buffer. Errors are named by what the caller does next: `Drop` this one
message and go on, `Retry` after a while, or stop and ask a person (`Fatal`), looking again from time to time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec


class Retry(Exception):
    """Nothing is wrong with the messages: keep them and try again after a while."""


class Drop(Exception):
    """The receiver will never take this message: count it, say so, go on with the next."""


class Fatal(Exception):
    """Nothing can be sent until a person changes something; keep everything and look again slowly."""


class Resend(Retry):
    """The sink has learned from a refusal: send the same again at once."""


class Refused(Exception):
    """The receiver does not offer this sink's guarantee: a sink with a lesser one may be used in its place."""


Header = tuple[str, bytes]


class Message(msgspec.Struct, frozen=True, gc=False):
    """One record, encoded: a sink adds only how the receiver addresses it.

    Thousands are under way at a time, so it refers to nothing that Python's garbage collector would have to walk.
    """

    topic: str  # alerts, observations, waveforms or status; the sink puts the configured prefix before it
    key: str  # messages of one key keep their order: the bed, or the gateway for its own
    value: bytes
    identity: bytes  # gateway/instance/sequence: the same for every copy of one record
    about: tuple[Header, ...] = ()  # the other headers: the same object for all messages of a kind

    @property
    def headers(self) -> list[Header]:
        """What a receiver is told beside the value, `dedup` first."""
        return [("dedup", self.identity), *self.about]

    @property
    def dedup(self) -> str:
        """The identity as text."""
        return self.identity.decode()


class Rejected(NamedTuple):
    """A message that the receiver refused for good."""

    dedup: str
    reason: str


class Settled(NamedTuple):
    """The verdict on one batch."""

    token: object  # as given to `begin`
    accepted: int  # messages the receiver has confirmed; 0 when the batch is kept
    rejected: tuple[Rejected, ...] = ()
    keep: Retry | Fatal | None = None  # set: send the whole batch again, later


@dataclass(slots=True, eq=False)
class Tally:
    """A batch whose messages come back one by one; it has its verdict when none is open, or when it is kept."""

    token: object
    open: int
    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    keep: Retry | Fatal | None = None

    def verdict(self) -> Settled:
        """What has become of it."""
        return Settled(self.token, 0 if self.keep else self.accepted, tuple(self.rejected), self.keep)


State = Literal["connected", "waiting", "fatal"]
CONNECTING = "connecting"  # the detail of `waiting` before anything went wrong


class Sink(Protocol):
    """One way to one receiver, used by one thread; every call returns within the time it is given."""

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its verdict comes out of `settle`. Messages of one key leave in the order of the calls."""

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready, waiting up to `timeout_s` seconds for the first; lets the sink do its work."""

    def state(self) -> tuple[State, str]:
        """Whether the receiver answers, and the last trouble in words."""

    def reset(self) -> None:
        """Forgets every batch without a verdict; the caller sends them again. Raises: Fatal when it cannot reopen."""

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts that still come within `timeout_s` seconds; the rest stays unsettled, and the sink is gone."""


@runtime_checkable
class Tracking(Protocol):
    """What a sink is besides when its receiver itself remembers how far it has come."""

    def resume(self, timeout_s: float) -> dict[str, int] | None:
        """For each instance of the buffer file the newest block that the receiver has; None: not yet known.

        To be asked before the first batch and after each `reset`; nothing may be sent before it has told.

        Raises: Refused when the receiver does not keep progress; Retry; Fatal.
        """


@runtime_checkable
class Placed(Protocol):
    """A token whose batch ends at a place in the buffer, for sinks that are `Tracking`."""

    @property
    def position(self) -> tuple[str, int]:
        """Instance and number of the block."""
