"""Signals and time to edges: a state machine without clock, thread or output.

Theory of operation: light and sound are levels that follow from the time and the newest signal of every bed. `step`
puts the levels right for `now` and says when the next one changes. Whoever is late gets the levels of now; what was
missed is not made up for, so that no backlog ever plays. Schedules count from the start of their pattern, so lateness
does not add up.

Light: the highest priority over all beds owns it, among equals the newest onset. A newer onset of the same priority
puts the light off and on again, which starts its flashing anew; an owner that steps back to an older alarm changes
nothing that can be seen. Light goes off at once when nothing is active.

Sound: likewise, among the beds that sound. A burst that has begun keeps its owner. A more urgent alarm cuts it off; a
newer one of the same priority starts a burst at once if none sounds. When the alarm ends, a HIGH burst sounds to its
half at least and another to its end. When an operator's action ends it, it stops at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edge_agent.annunciators.patterns import BURSTS, BUZZER, FLASHES, LOW_WITHOUT_CYAN, OUTPUTS, SHORTEST_GAP, Burst
from edge_agent.presets import RANK
from edge_agent.records import Priority, Signal

MS = 1_000_000


class Edge(NamedTuple):
    """One output that goes on or off, with the alarm that owns it."""

    output: str  # buzzer, red, yellow, cyan
    on: bool
    bed: str
    priority: Priority
    condition: str
    text: str


class _Light:
    __slots__ = ("bed", "colour", "condition", "lit", "onset", "priority", "start_ns", "text")

    def __init__(self) -> None:
        self.priority: Priority = "none"
        self.bed = self.condition = self.text = self.colour = ""
        self.onset = 0
        self.start_ns = 0
        self.lit = False


class _Sound:
    __slots__ = ("bed", "burst", "condition", "next_ns", "on", "priority", "start_ns", "stop_ns", "text")

    def __init__(self) -> None:
        self.burst: Burst | None = None  # that sounds now
        self.priority: Priority = "none"
        self.bed = self.condition = self.text = ""
        self.start_ns = 0
        self.stop_ns = 0
        self.next_ns: int | None = None  # start of the next burst
        self.on = False


class Player:
    """Levels of one annunciator's outputs over time."""

    def __init__(self, outputs: Iterable[str] = OUTPUTS) -> None:
        self._outputs = frozenset(outputs)
        self._signals: dict[str, Signal] = {}
        self._light = _Light()
        self._sound = _Sound()
        self._heard = 0  # newest onset among the alarms that sounded at the last step
        self._stopped: set[str] = set()  # beds whose operator ended a sound since the last step

    def show(self, signal: Signal) -> None:
        """Take over the newest signal of a bed; `step` draws the consequences."""
        if signal.priority == "none":
            self._signals.pop(signal.bed, None)
        else:
            self._signals[signal.bed] = signal
        if signal.stopped:
            self._stopped.add(signal.bed)

    def step(self, now_ns: int) -> tuple[list[Edge], int | None]:
        """Edges that put the outputs right for `now_ns`, and when to come again; None: with the next signal."""
        edges: list[Edge] = []
        light_ns = self.light(now_ns, edges)
        sound_ns = self.sound(now_ns, edges)
        if light_ns is None or (sound_ns is not None and sound_ns < light_ns):
            return edges, sound_ns
        return edges, light_ns

    def off(self) -> list[Edge]:
        """Edges that put every output off."""
        self._signals.clear()
        edges: list[Edge] = []
        self._switch_light(False, edges)
        self._switch_sound(False, edges)
        self._light, self._sound = _Light(), _Sound()
        return edges

    def light(self, now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges of the lights for `now_ns`; the time of their next."""
        light = self._light
        owner: Signal | None = None
        best = (0, 0)
        for signal in self._signals.values():
            rank = (RANK[signal.priority], signal.onset)
            if signal.visual and rank > best:
                owner, best = signal, rank
        if owner is None:
            self._switch_light(False, edges)
            light.priority, light.onset = "none", 0
            return None
        if owner.priority != light.priority or owner.onset > light.onset:
            self._switch_light(False, edges)
            light.priority, light.start_ns = owner.priority, now_ns
            light.colour = self._colour(owner.priority)
        light.bed, light.condition, light.text, light.onset = owner.bed, owner.condition, owner.text, owner.onset
        flash = FLASHES[light.priority]
        if not flash.period:
            self._switch_light(True, edges)
            return None
        period, on = flash.period * MS, flash.on * MS
        since = (now_ns - light.start_ns) % period
        self._switch_light(since < on, edges)
        return now_ns - since + (on if since < on else period)

    def _colour(self, priority: Priority) -> str:
        colour = FLASHES[priority].colour
        if colour not in self._outputs and priority == "low":
            return LOW_WITHOUT_CYAN
        return colour

    def _switch_light(self, lit: bool, edges: list[Edge]) -> None:
        light = self._light
        if light.lit != lit:
            light.lit = lit
            if light.colour in self._outputs:
                edges.append(Edge(light.colour, lit, light.bed, light.priority, light.condition, light.text))

    def sound(self, now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges of the buzzer for `now_ns`; the time of its next."""
        sound = self._sound
        owner: Signal | None = None
        best, heard = (0, 0), self._heard
        for signal in self._signals.values():
            rank = (RANK[signal.audio_priority], signal.audio_onset)
            if signal.audio and rank > best:
                owner, best = signal, rank
            self._heard = max(self._heard, signal.audio_onset)
        if sound.burst is not None:
            self._hold(now_ns, RANK[owner.audio_priority] if owner is not None else 0, edges)
        self._stopped.clear()
        if sound.burst is None and owner is not None:
            due = sound.next_ns is None or now_ns >= sound.next_ns
            if due or owner.audio_onset > heard or RANK[owner.audio_priority] > RANK[sound.priority]:
                self._begin(now_ns, owner)
        if sound.burst is None:
            if owner is None:
                sound.next_ns = None
            return sound.next_ns
        return self._pulse(now_ns, sound.burst, edges)

    def _hold(self, now_ns: int, wanted: int, edges: list[Edge]) -> None:
        """Decide how long the burst that sounds goes on, given the rank of the alarm that should sound."""
        sound, burst = self._sound, self._sound.burst
        assert burst is not None
        whole_ns, half_ns = sound.start_ns + burst.length * MS, sound.start_ns + burst.half_length * MS
        if wanted > RANK[sound.priority] or (wanted < RANK[sound.priority] and sound.bed in self._stopped):
            sound.stop_ns = now_ns
        elif wanted == RANK[sound.priority]:
            sound.stop_ns = whole_ns
        elif sound.stop_ns == whole_ns and now_ns < half_ns:
            sound.stop_ns = half_ns  # kept when the next step comes late
        if now_ns < sound.stop_ns:
            return
        self._switch_sound(False, edges)
        sound.burst = None
        if wanted > RANK[sound.priority]:
            sound.next_ns = now_ns
        elif wanted == RANK[sound.priority]:
            sound.next_ns = sound.stop_ns + burst.gap * MS
        else:
            sound.next_ns = sound.stop_ns + SHORTEST_GAP * MS

    def _begin(self, now_ns: int, owner: Signal) -> None:
        sound = self._sound
        sound.priority, sound.burst = owner.audio_priority, BURSTS[owner.audio_priority]
        sound.bed, sound.condition, sound.text = owner.bed, owner.audio_condition, owner.text
        on_time = sound.next_ns is not None and 0 <= now_ns - sound.next_ns < sound.burst.pulse * MS
        sound.start_ns = sound.next_ns if on_time and sound.next_ns is not None else now_ns
        sound.stop_ns = sound.start_ns + sound.burst.length * MS
        sound.next_ns = None

    def _pulse(self, now_ns: int, burst: Burst, edges: list[Edge]) -> int:
        """Put the buzzer right within a burst; the time of its next change."""
        sound = self._sound
        since = now_ns - sound.start_ns
        for start in burst.starts:
            if since < start * MS:
                self._switch_sound(False, edges)
                return min(sound.start_ns + start * MS, sound.stop_ns)
            if since < (start + burst.pulse) * MS:
                self._switch_sound(True, edges)
                return min(sound.start_ns + (start + burst.pulse) * MS, sound.stop_ns)
        self._switch_sound(False, edges)
        return sound.stop_ns

    def _switch_sound(self, on: bool, edges: list[Edge]) -> None:
        sound = self._sound
        if sound.on != on:
            sound.on = on
            if BUZZER in self._outputs:
                edges.append(Edge(BUZZER, on, sound.bed, sound.priority, sound.condition, sound.text))
