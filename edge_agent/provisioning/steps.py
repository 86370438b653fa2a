"""What provisioning consists of: the steps in their order, and how one of them ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["passed", "failed", "skipped"]


class Step(NamedTuple):
    """One row of the table: its name on the command line, and what it is called on paper."""

    name: str
    title: str


STEPS: tuple[Step, ...] = (
    Step("ports", "Serial ports"),
    Step("protocol", "Protocol of the serial line"),
    Step("bluetooth", "Bluetooth devices"),
    Step("configuration", "Configuration"),
    Step("values", "Values beside the monitor's screen"),
    Step("signals", "Light and sound of each priority"),
    Step("button", "Acknowledge button"),
    Step("checks", "Clock, disk, key, receivers"),
)
NAMES = tuple(step.name for step in STEPS)
TITLES = {step.name: step.title for step in STEPS}


@dataclass(frozen=True, slots=True)
class Result:
    """How one step ended."""

    step: str
    outcome: Outcome
    seen: str  # what was seen, in a line
    remedy: str = ""  # of one that failed: what to do
    mandatory: bool = True  # whether a bed can be accepted without it
    details: Mapping[str, Any] = field(default_factory=dict)  # for the record
    lines: Sequence[str] = ()  # for the engineer, as they came up
    at: str = ""  # UTC, ISO 8601
    seconds: float = 0.0


def passed(step: str, seen: str, **more: Any) -> Result:
    """A step that went well."""
    return Result(step, "passed", seen, **more)


def failed(step: str, seen: str, remedy: str, **more: Any) -> Result:
    """A step that did not go well, and what to do."""
    return Result(step, "failed", seen, remedy, **more)


def skipped(step: str, reason: str, *, mandatory: bool = True, **more: Any) -> Result:
    """A step that was not done; when it is mandatory the bed is not accepted."""
    return Result(step, "skipped", reason, mandatory=mandatory, **more)


def verdict(results: Sequence[Result]) -> tuple[bool, str]:
    """Whether the bed is accepted, and why or why not."""
    against = [
        f"{TITLES[each.step]}: {each.outcome}, {each.seen}"
        for each in results
        if each.outcome == "failed" or (each.outcome == "skipped" and each.mandatory)
    ]
    missing = [TITLES[name] for name in NAMES if name not in {each.step for each in results}]
    against += [f"{title}: not done" for title in missing]
    if against:
        return False, "; ".join(against)
    return True, "every mandatory step passed"
