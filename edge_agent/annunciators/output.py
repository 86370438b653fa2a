"""What an annunciator switches: the contract of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge_agent.annunciators.player import Edge


class FaultError(Exception):
    """An output cannot do what it should; `str` says what happened and what to do."""


class Output(Protocol):
    """Lights and a buzzer, or what stands for them; called by one thread at a time.

    `prompt`: `switch` waits for no disk, terminal or network, so that the alarm loop itself may call it.
    """

    prompt: bool

    @property
    def name(self) -> str:
        """As it is called in a technical alarm, for example "gpio:pinctrl-bcm2711"."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which of buzzer, red, yellow and cyan it has."""

    def open(self) -> None:
        """Make ready, with everything off.

        Raises: FaultError.
        """

    def switch(self, edges: Sequence[Edge]) -> None:
        """Put these edges out, in order, at once.

        Raises: FaultError.
        """

    def close(self) -> None:
        """Give back what is held; never raises."""
