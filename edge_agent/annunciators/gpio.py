"""Lights and an active buzzer on GPIO lines, through the kernel's character device (libgpiod 2).

The chip is found by its label, a line by its offset or name. The kernel gives the lines back when the process ends,
whatever way it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_agent import config, gpio_chips
from edge_agent.annunciators.output import FaultError
from edge_agent.annunciators.patterns import OUTPUTS
from edge_agent.annunciators.player import Edge


class Gpio:
    """The lines of one chip."""

    prompt = True  # one system call that sets a register

    def __init__(self, settings: config.Annunciator) -> None:
        self.name = f"gpio:{settings.chip}"
        self._chip, self._active_low = settings.chip, settings.active_low
        self._lines: dict[str, int | str] = {
            output: line for output in OUTPUTS if (line := getattr(settings, output)) is not None
        }
        self.outputs = tuple(self._lines)
        self._request: Any = None
        self._on: Any = None
        self._off: Any = None

    def open(self) -> None:
        """Request all lines as outputs that are off."""
        try:
            gpiod = gpio_chips.load()
            chip = gpio_chips.open_chip(self._chip, self._lines.values())
        except gpio_chips.ChipError as error:
            raise FaultError(str(error)) from error
        from gpiod.line import Direction, Value

        self._on, self._off = Value.ACTIVE, Value.INACTIVE
        try:
            one = gpiod.LineSettings(
                direction=Direction.OUTPUT, active_low=self._active_low, output_value=Value.INACTIVE
            )
            self._request = chip.request_lines(
                config=dict.fromkeys(self._lines.values(), one), consumer=gpio_chips.CONSUMER
            )
        except (OSError, ValueError) as error:
            raise FaultError(f"{self.name}: the lines cannot be used: {error}; `gpioinfo` shows them") from error
        finally:
            chip.close()

    def switch(self, edges: Sequence[Edge]) -> None:
        """Set the lines, one system call for the last state of each."""
        values = {self._lines[edge.output]: self._on if edge.on else self._off for edge in edges}
        try:
            self._request.set_values(values)
        except Exception as error:  # gpiod has errors of its own for a request that was released
            raise FaultError(f"{self.name}: a line cannot be set: {error}") from error

    def close(self) -> None:
        """Give the lines back."""
        request, self._request = self._request, None
        if request is not None:
            try:
                request.release()
            except OSError:
                pass
