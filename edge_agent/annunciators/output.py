"""What an annunciator switches: the contract of the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from edge_agent.annunciators.edges import Edge


class FaultError(Exception):
    """An output cannot do what it should; `str` says what happened and what to do."""


class Output(Protocol):
    """Lights and a buzzer, or what stands for them; called by one thread at a time, apart from `beat`.

    `name`: as it is called in a technical alarm, for example "gpio:pinctrl-bcm2711".
    `outputs`: which of buzzer, burst, red, yellow and cyan it has.
    `prompt`: `switch` waits for no disk, terminal or network, so that the alarm loop itself may call it.
    `due_ns`: when it wants `tend` next; None: never.
    `doubt`: what it has found wrong and what to do, although it goes on; empty while there is nothing.
    `proof`: what a self-test without doubt has shown.
    """

    name: str
    outputs: tuple[str, ...]
    prompt: bool
    due_ns: int | None = None
    doubt: str = ""
    proof: str = "all was switched; whether it was seen and heard, only somebody at the bedside can tell"

    @abstractmethod
    def open(self) -> None:
        """Make ready, with everything off.

        Raises: FaultError.
        """

    @abstractmethod
    def switch(self, edges: Sequence[Edge]) -> None:
        """Put these edges out, in order, at once.

        Raises: FaultError.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what is held; never raises."""

    def tend(self, now_ns: int) -> None:  # noqa: ARG002 - most outputs have nothing to do
        """Do what is due between edges, and set `due_ns` anew; called in the annunciator's thread.

        Raises: FaultError.
        """
        return

    def beat(self, at_ns: int) -> None:  # noqa: ARG002 - most outputs have no heartbeat
        """Note that the alarm loop was alive at `at_ns`; called in the alarm loop."""
        return
