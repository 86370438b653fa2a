"""The limits in force on each bed: the preset of the configuration, and what authorised operators changed since.

A change is checked like a line of a preset file, takes effect in watch and alarms at once, and is recorded as an
alarm event `limit` or `preset` with who made it. A new patient brings the configured preset back. What was changed
outlives a restart of the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge_agent.alarms import Alarms
from edge_agent.presets import LIMIT_VERBS, Condition, Preset
from edge_agent.records import Change
from edge_agent.watch import Watch


class Unchangeable(ValueError):
    """A change that cannot be made; `str` says why and what is possible."""


class _Changed(msgspec.Struct):
    """How a bed differs from the configuration: another preset, and limits by condition (present, delay in s)."""

    preset: str
    limits: dict[str, tuple[str, float]] = {}


# built at import: msgspec prepares a struct at its first decoder, which two threads must not do at once
_DECODE = msgspec.json.Decoder(dict[str, _Changed]).decode


class Limits:
    """Presets in force by bed; `known` gives a named preset as this bed has it (latching of the bed applied)."""

    def __init__(
        self,
        configured: Mapping[str, Preset],
        known: Callable[[str, str], Preset | None],
        watch: Watch,
        alarms: Alarms,
        keep: Callable[[bytes], None] = lambda _settings: None,
    ) -> None:
        self._configured, self._known, self._watch, self._alarms = dict(configured), known, watch, alarms
        self._keep = keep
        self._now = dict(configured)
        self._changed: dict[str, _Changed] = {}

    def preset(self, bed: str) -> Preset:
        """The preset in force on a bed."""
        return self._now[bed]

    def is_changed(self, bed: str) -> bool:
        """Whether an operator changed the preset or a limit of a bed for this patient."""
        return bed in self._changed

    def rows(self, bed: str) -> list[dict[str, Any]]:
        """Every limit of a bed, those that the preset takes out included, as an operator's view shows them."""
        preset, configured = self._now[bed], self._configured[bed]
        rows = [
            {
                "condition": row.id,
                "vital": row.vital,
                "present": row.present,
                "low": row.low,
                "high": row.high,
                "delay_s": row.delay_s,
                "deadband": row.deadband,
                "priority": row.priority,
                "latching": row.latching,
                "off": False,
                "changed": configured.by_id.get(row.id) != row,
            }
            for row in preset.conditions
            if row.verb in LIMIT_VERBS
        ]
        return rows + [{"condition": name, "off": True, "changed": False} for name in preset.disabled]

    def in_force(self, bed: str) -> dict[str, dict[str, Any]]:
        """The nearest limits of each vital of a bed: low and high, None where there is none."""
        found: dict[str, dict[str, Any]] = {}
        for row in self._now[bed].conditions:
            if row.verb not in LIMIT_VERBS:
                continue
            limits = found.setdefault(row.vital, {"low": None, "high": None})
            if row.low is not None:
                limits["low"] = row.low if limits["low"] is None else max(limits["low"], row.low)
            if row.high is not None:
                limits["high"] = row.high if limits["high"] is None else min(limits["high"], row.high)
        return found

    def set_limit(
        self, bed: str, condition: str, present: str, delay_s: float | None, operator: str, at_ns: int
    ) -> list[Change]:
        """Change one limit of a bed; the changes of conditions that this causes.

        Raises: Unchangeable when the row, the limit or the delay is not possible.
        """
        before = self._now[bed]
        row = before.by_id.get(condition)
        if row is None:
            known = ", ".join(each.id for each in before.conditions if each.verb in LIMIT_VERBS)
            raise Unchangeable(f"bed {bed} has no limit {condition!r}; it has: {known}")
        try:
            preset = before.with_row(condition, present, delay_s)
        except ValueError as error:
            raise Unchangeable(str(error)) from error
        changed = self._changed.setdefault(bed, _Changed(before.name))
        after = preset.by_id[condition]
        changed.limits[condition] = (after.present, after.delay_s)
        detail = f"was {row.present}, delay {row.delay_s:g} s; now delay {after.delay_s:g} s"
        return self._put(bed, preset, after, "limit", operator, detail, at_ns)

    def set_preset(self, bed: str, name: str, operator: str, at_ns: int) -> list[Change]:
        """Put another preset into force on a bed; the changes of conditions that this causes.

        Raises: Unchangeable when there is no such preset.
        """
        preset = self._known(bed, name)
        if preset is None:
            raise Unchangeable(f"no preset {name!r} is known to this gateway; docs/alarms.md says how to add one")
        before = self._now[bed]
        self._changed[bed] = _Changed(name)
        return self._put(bed, preset, None, "preset", operator, f"preset {name}, was {before.name}", at_ns)

    def new_patient(self, bed: str, at_ns: int) -> list[Change]:
        """Bring the configured preset of a bed back, where it was changed."""
        if self._changed.pop(bed, None) is None:
            return []
        preset = self._configured[bed]
        return self._put(bed, preset, None, "preset", "", f"preset {preset.name} again: new patient", at_ns)

    def restore(self, settings: bytes, at_ns: int) -> list[str]:
        """Put back what was in force before a restart; what can no longer be, in words."""
        try:
            saved = _DECODE(settings)
        except msgspec.DecodeError as error:
            return [f"changed limits are unreadable: {error}"]
        lost = []
        for bed, changed in saved.items():
            if bed not in self._now:
                continue
            preset = self._known(bed, changed.preset)
            if preset is None:
                lost.append(f"bed {bed}: preset {changed.preset!r} is gone, the configured one is in force")
                continue
            kept = _Changed(changed.preset)
            for condition, (present, delay_s) in changed.limits.items():
                try:
                    preset = preset.with_row(condition, present, delay_s)
                except (ValueError, KeyError) as error:
                    lost.append(f"bed {bed}: limit {condition} {present!r} is not possible any more: {error}")
                    continue
                kept.limits[condition] = (present, delay_s)
            self._changed[bed] = kept
            self._now[bed] = preset
            self._watch.set_preset(bed, preset, at_ns)
            self._alarms.set_preset(bed, preset, at_ns)
        return lost

    def _put(
        self, bed: str, preset: Preset, row: Condition | None, event: str, operator: str, detail: str, at_ns: int
    ) -> list[Change]:
        self._now[bed] = preset
        self._alarms.set_preset(bed, preset, at_ns)
        self._alarms.note(bed, row, event, operator, detail, at_ns)
        changes = list(self._watch.set_preset(bed, preset, at_ns))
        self._keep(msgspec.json.encode(self._changed))
        return changes
