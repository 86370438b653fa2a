"""GPIO chips by label and their lines, found through the kernel's character device (libgpiod 2).

A chip is found by its label because the numbers of chips change between boards and kernels.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DEVICES = Path("/dev")
CONSUMER = "edge-agent"  # as whom the kernel, and `gpioinfo`, name the holder of a line


class ChipError(Exception):
    """A chip or line cannot be had; `str` says what happened and what to do."""


def load() -> Any:
    """The package gpiod. Raises: ChipError where it does not exist."""
    try:
        import gpiod
    except ImportError as error:
        raise ChipError("the package gpiod is not installed; it exists for Linux only") from error
    return gpiod


def open_chip(label: str, lines: Iterable[int | str]) -> Any:
    """The chip with this label, open, its `lines` there and free; the caller closes it.

    Raises: ChipError.
    """
    chip = _find(label)
    try:
        for line in lines:
            _check(chip, label, line)
    except BaseException:
        chip.close()
        raise
    return chip


def chip_labels() -> list[str]:
    """Labels of the GPIO chips of this machine, empty where there are none.

    Raises: ChipError without permission to look.
    """
    try:
        load()
    except ChipError:
        return []
    labels: list[str] = []
    for chip in _chips():
        labels.append(chip.get_info().label)
        chip.close()
    return labels


def _find(label: str) -> Any:
    found: list[str] = []
    for chip in _chips():
        here = chip.get_info().label
        if here == label:
            return chip
        found.append(here)
        chip.close()
    there = f"found {', '.join(found)}" if found else "this machine has none"
    raise ChipError(f"no GPIO chip is labelled {label!r}, {there}; `gpiodetect` shows the labels in brackets")


def _check(chip: Any, label: str, line: int | str) -> None:
    try:
        info = chip.get_line_info(line)
    except (OSError, ValueError) as error:
        raise ChipError(f"gpio:{label}: there is no line {line!r}; `gpioinfo` shows offsets and names") from error
    if info.used:
        raise ChipError(
            f"gpio:{label}: line {line!r} is taken by {info.consumer or 'the kernel'!r}; "
            "end that program or choose another line"
        )


def _chips() -> Iterator[Any]:
    """Every GPIO chip, open; whoever takes one closes it."""
    gpiod = load()
    for path in sorted(DEVICES.glob("gpiochip*")):
        try:
            chip = gpiod.Chip(str(path)) if gpiod.is_gpiochip_device(str(path)) else None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ChipError(
                    f"no permission for {path}; add the agent's user to the group that owns it "
                    "(gpio on Raspberry Pi OS)"
                ) from error
            continue
        if chip is not None:
            yield chip
