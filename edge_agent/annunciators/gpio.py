"""Lights and an active buzzer on GPIO lines, through the kernel's character device (libgpiod 2).

The chip is found by its label, a line by its offset or name, because the numbers of chips change between boards and
kernels. The kernel gives the lines back when the process ends, whatever way it ends.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_agent import config
from edge_agent.annunciators.output import FaultError
from edge_agent.annunciators.patterns import OUTPUTS
from edge_agent.annunciators.player import Edge

DEVICES = Path("/dev")
CONSUMER = "edge-agent"


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
            import gpiod
            from gpiod.line import Direction, Value
        except ImportError as error:
            raise FaultError("the package gpiod is not installed; it exists for Linux only") from error
        self._on, self._off = Value.ACTIVE, Value.INACTIVE
        chip = self._find(gpiod)
        try:
            for line in self._lines.values():
                self._check(chip, line)
            one = gpiod.LineSettings(
                direction=Direction.OUTPUT, active_low=self._active_low, output_value=Value.INACTIVE
            )
            self._request = chip.request_lines(config=dict.fromkeys(self._lines.values(), one), consumer=CONSUMER)
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

    def _find(self, gpiod: Any) -> Any:
        """The chip with the label, open."""
        found: list[str] = []
        for chip in _chips(gpiod):
            label = chip.get_info().label
            if label == self._chip:
                return chip
            found.append(label)
            chip.close()
        there = f"found {', '.join(found)}" if found else "this machine has none"
        raise FaultError(f"no GPIO chip is labelled {self._chip!r}, {there}; `gpiodetect` shows the labels in brackets")

    def _check(self, chip: Any, line: int | str) -> None:
        try:
            info = chip.get_line_info(line)
        except (OSError, ValueError) as error:
            raise FaultError(f"{self.name}: there is no line {line!r}; `gpioinfo` shows offsets and names") from error
        if info.used:
            raise FaultError(
                f"{self.name}: line {line!r} is taken by {info.consumer or 'the kernel'!r}; "
                "end that program or choose another line"
            )


def chip_labels() -> list[str]:
    """Labels of the GPIO chips of this machine, empty where there are none.

    Raises: FaultError without permission to look.
    """
    try:
        import gpiod
    except ImportError:
        return []
    labels: list[str] = []
    for chip in _chips(gpiod):
        labels.append(chip.get_info().label)
        chip.close()
    return labels


def _chips(gpiod: Any) -> Iterator[Any]:
    """Every GPIO chip, open; whoever takes one closes it."""
    for path in sorted(DEVICES.glob("gpiochip*")):
        try:
            chip = gpiod.Chip(str(path)) if gpiod.is_gpiochip_device(str(path)) else None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise FaultError(
                    f"no permission for {path}; add the agent's user to the group that owns it "
                    "(gpio on Raspberry Pi OS)"
                ) from error
            continue
        if chip is not None:
            yield chip
