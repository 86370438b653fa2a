"""Signal to world: lights, buzzer, loudspeaker, terminal, record; patterns as data, one thread an annunciator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edge_agent import config
from edge_agent.annunciators.annunciator import Annunciator
from edge_agent.annunciators.console import Console
from edge_agent.annunciators.gpio import Gpio
from edge_agent.annunciators.output import Output
from edge_agent.annunciators.pace import prefer_alarm_loop
from edge_agent.annunciators.record import Record
from edge_agent.annunciators.sound import Sound

__all__ = ["Annunciator", "open_annunciators", "prefer_alarm_loop"]


def open_annunciators(
    settings: Iterable[config.Annunciator],
    *,
    resolve: Callable[[Path], Path],
    on_fault: Callable[[str, str], None],
    escalate_s: float = 0,
) -> list[Annunciator]:
    """One running annunciator for each of the configuration's; those that fail say so through `on_fault`.

    A sound that nobody answers gets louder after `escalate_s`, and again after twice that time; 0: never.
    """
    return [
        Annunciator(_output(one, resolve), bed=one.bed, on_fault=on_fault, escalate_s=escalate_s) for one in settings
    ]


def _output(settings: config.Annunciator, resolve: Callable[[Path], Path]) -> Output:
    if settings.kind == "gpio":
        return Gpio(settings)
    if settings.kind == "sound":
        return Sound(settings, resolve)
    if settings.kind == "record" and settings.path is not None:
        return Record(resolve(settings.path))
    return Console()
