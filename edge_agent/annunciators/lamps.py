"""Signals and time to the lights: the alarm that owns them, and the cyan light's hint at what is paused or off.

Theory of operation: two levels follow from the time. The alarm's light is that of the highest priority over all beds,
among equals of the newest onset. A newer onset of the same priority puts it off and on again, which starts its
flashing anew; an owner that steps back to an older alarm changes nothing that can be seen. It goes off at once when
nothing is active.

The hint is a short change of the cyan light in a rhythm of its own: a flash while cyan is off, a dark gap while a LOW
holds it steady. The red and yellow lights belong to alarms alone, so without a cyan light there is no hint. Where the
alarm's light changes cyan during a hint, the hint gives way and comes again later: no alarm's edge waits for it.
"""

from __future__ import annotations

from collections.abc import Collection

from edge_agent.annunciators.edges import MS, Edge
from edge_agent.annunciators.patterns import FLASHES, HINT_PERIOD, HINTS, LOW_WITHOUT_CYAN, STRENGTH
from edge_agent.presets import RANK
from edge_agent.records import Inactivation, Priority, Signal

CYAN = "cyan"
LATER = HINT_PERIOD // 2  # from a change of the alarm's cyan light to the next hint, in ms


class _Hint:
    __slots__ = ("bed", "shown", "start_ns", "state")

    def __init__(self) -> None:
        self.state: Inactivation = ""
        self.bed = ""
        self.start_ns = 0
        self.shown = False  # the cyan light differs from what the alarms ask


class Lamps:
    """Levels of red, yellow and cyan over time."""

    def __init__(self, outputs: Collection[str]) -> None:
        self._outputs = outputs
        self._priority: Priority = "none"
        self._bed = self._condition = self._text = self._colour = ""
        self._onset = self._start_ns = 0
        self._lit = False
        self._hint = _Hint()

    def step(self, signals: Collection[Signal], now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges that put the lights right for `now_ns`; the time of their next change, None: no change."""
        owner: Signal | None = None
        paused: Signal | None = None
        best, strongest = (1, -1), 0  # below every alarm
        for signal in signals:
            rank = (RANK[signal.priority], signal.onset)
            if signal.visual and rank > best:
                owner, best = signal, rank
            if signal.inactivation and STRENGTH[signal.inactivation] > strongest:
                paused, strongest = signal, STRENGTH[signal.inactivation]
        alarm_ns = self._show(owner, now_ns, edges)
        if paused is None and not self._hint.state:
            return alarm_ns
        hint_ns = self._remind(paused, now_ns, edges)
        return min((at for at in (alarm_ns, hint_ns) if at is not None), default=None)

    def off(self, edges: list[Edge]) -> None:
        """Add the edges that put every light off."""
        self._switch_hint(False, edges)
        self._switch(False, 0, edges)

    def _show(self, owner: Signal | None, now_ns: int, edges: list[Edge]) -> int | None:
        if owner is None:
            self._switch(False, now_ns, edges)
            self._priority, self._onset = "none", 0
            return None
        if owner.priority != self._priority or owner.onset > self._onset:
            self._switch(False, now_ns, edges)
            self._priority, self._start_ns = owner.priority, now_ns
            self._colour = self._colour_of(owner.priority)
        self._bed, self._condition, self._text, self._onset = owner.bed, owner.condition, owner.text, owner.onset
        flash = FLASHES[self._priority]
        if not flash.period:
            self._switch(True, now_ns, edges)
            return None
        period, on = flash.period * MS, flash.on * MS
        since = (now_ns - self._start_ns) % period
        self._switch(since < on, now_ns, edges)
        return now_ns - since + (on if since < on else period)

    def _colour_of(self, priority: Priority) -> str:
        colour = FLASHES[priority].colour
        if colour not in self._outputs and priority == "low":
            return LOW_WITHOUT_CYAN
        return colour

    def _switch(self, lit: bool, now_ns: int, edges: list[Edge]) -> None:
        if self._lit == lit:
            return
        if self._colour == CYAN and self._hint.state:
            self._switch_hint(False, edges)
            self._hint.start_ns = now_ns + LATER * MS
        self._lit = lit
        if self._colour in self._outputs:
            edges.append(Edge(self._colour, lit, self._bed, self._priority, self._condition, self._text))

    def _remind(self, paused: Signal | None, now_ns: int, edges: list[Edge]) -> int | None:
        hint = self._hint
        if paused is None or CYAN not in self._outputs:
            self._switch_hint(False, edges)
            hint.state = ""
            return None
        if not hint.state:
            steady = self._lit and self._colour == CYAN  # an alarm's light that has just come does not go dark at once
            hint.start_ns = max(now_ns, self._start_ns + LATER * MS) if steady else now_ns
        elif hint.state != paused.inactivation or hint.bed != paused.bed:
            self._switch_hint(False, edges)
        hint.state, hint.bed = paused.inactivation, paused.bed
        if now_ns < hint.start_ns:
            return hint.start_ns
        since = (now_ns - hint.start_ns) % (HINT_PERIOD * MS)
        begin_ns = now_ns - since
        for start, end in HINTS[hint.state]:
            if since < start * MS:
                self._switch_hint(False, edges)
                return begin_ns + start * MS
            if since < end * MS:
                self._switch_hint(True, edges)
                return begin_ns + end * MS
        self._switch_hint(False, edges)
        return begin_ns + HINT_PERIOD * MS

    def _switch_hint(self, shown: bool, edges: list[Edge]) -> None:
        hint = self._hint
        if hint.shown == shown:
            return
        hint.shown = shown
        steady = self._lit and self._colour == CYAN
        text = hint.state.replace("_", " ").upper()
        edges.append(Edge(CYAN, steady != shown, hint.bed, "none", hint.state, text))
