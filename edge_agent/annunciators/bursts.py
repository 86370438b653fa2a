"""Signals and time to the sound: bursts, their loudness, and the reminder tone.

Theory of operation: the highest priority over the beds that sound owns the sound, among equals the newest onset. A
burst that has begun keeps its owner. A more urgent alarm cuts it off; a newer one of the same priority starts a burst
at once if none sounds. When the alarm ends, a HIGH burst sounds to its half at least and another to its end. When an
operator's action ends it, it stops at once.

A sound that nobody has answered for `escalate_s` becomes louder, and after twice that time louder again; each burst
has one loudness from its first pulse to its last. The time counts for the onset that a bed sounds for, so it begins
anew with another alarm and after an answer.

A reminder is one pulse of its own length. It never sounds into a burst, nor so shortly before one that it would seem
a part of it: then it waits until that burst is over.
"""

from __future__ import annotations

from collections.abc import Collection

from edge_agent.annunciators.edges import MS, REMINDER_TONE, Edge
from edge_agent.annunciators.patterns import (
    BURST,
    BURSTS,
    BUZZER,
    LOUDER,
    REMINDER,
    REMINDER_PAUSE,
    SHORTEST_GAP,
    Burst,
)
from edge_agent.presets import RANK
from edge_agent.records import Priority, Signal


class _Burst:
    __slots__ = (
        "bed", "burst", "condition", "level", "next_ns", "on", "over_ns", "priority", "pulse", "start_ns", "stop_ns",
        "text",
    )  # fmt: skip

    def __init__(self) -> None:
        self.burst: Burst | None = None  # that sounds now
        self.priority: Priority = "none"
        self.bed = self.condition = self.text = ""
        self.level = self.pulse = 0
        self.start_ns = self.stop_ns = 0
        self.over_ns = -REMINDER_PAUSE * MS  # end of the last burst
        self.next_ns: int | None = None  # start of the next
        self.on = False


class _Reminder:
    __slots__ = ("bed", "end_ns", "on", "waits")

    def __init__(self) -> None:
        self.bed = ""
        self.waits = self.on = False
        self.end_ns = 0


class Bursts:
    """Levels of the buzzer over time."""

    def __init__(self, outputs: Collection[str], escalate_s: float = 0) -> None:
        self._outputs, self._escalate_ns = outputs, round(escalate_s * 1e9)
        self._sound, self._reminder = _Burst(), _Reminder()
        self._heard = 0  # newest onset among the alarms that sounded at the last step
        self._stopped: set[str] = set()  # beds whose operator ended a sound since the last step
        self._reminded: dict[str, int] = {}  # newest reminder of each bed that was asked for
        self._unanswered: dict[str, tuple[int, int]] = {}  # of each bed that sounds: the onset and since when, in ns

    def heed(self, signal: Signal) -> None:
        """Take over what is in a signal once and not for as long as it lasts: an operator's stop, a reminder."""
        if signal.stopped:
            self._stopped.add(signal.bed)
        if signal.reminder > self._reminded.get(signal.bed, 0):
            self._reminded[signal.bed] = signal.reminder
            self._reminder.waits, self._reminder.bed = True, signal.bed

    def step(self, signals: Collection[Signal], now_ns: int, edges: list[Edge]) -> int | None:
        """Add the edges that put the buzzer right for `now_ns`; the time of its next change, None: no change."""
        sound = self._sound
        owner: Signal | None = None
        best, heard = (1, -1), self._heard  # below every alarm
        for signal in signals:
            rank = (RANK[signal.audio_priority], signal.audio_onset)
            if signal.audio and rank > best:
                owner, best = signal, rank
            self._heard = max(self._heard, signal.audio_onset)
        if self._escalate_ns:
            self._count(signals, now_ns)
        if sound.burst is not None:
            self._hold(now_ns, RANK[owner.audio_priority] if owner is not None else 0, edges)
        self._stopped.clear()
        if sound.burst is None and owner is not None:
            due = sound.next_ns is None or now_ns >= sound.next_ns
            if due or owner.audio_onset > heard or RANK[owner.audio_priority] > RANK[sound.priority]:
                self._begin(now_ns, owner, edges)
        if sound.burst is not None:
            return self._pulse(now_ns, sound.burst, edges)
        if owner is None:
            sound.next_ns = None
        if not self._reminder.waits and not self._reminder.on:
            return sound.next_ns
        return self._remind(now_ns, edges)

    def off(self, edges: list[Edge]) -> None:
        """Add the edges that put the sound off, and forget what sounded; who has not answered is kept."""
        self._switch_reminder(False, True, edges)
        self._switch(False, True, edges)
        self._end(True, edges)
        self._sound = _Burst()
        self._heard = 0

    def _count(self, signals: Collection[Signal], now_ns: int) -> None:
        sounding = {signal.bed: signal.audio_onset for signal in signals if signal.audio}
        for bed in [bed for bed in self._unanswered if bed not in sounding]:
            del self._unanswered[bed]
        for bed, onset in sounding.items():
            if bed not in self._unanswered or self._unanswered[bed][0] != onset:
                self._unanswered[bed] = (onset, now_ns)

    def _level(self, bed: str, now_ns: int) -> int:
        if not self._escalate_ns or bed not in self._unanswered:
            return 0
        return min(LOUDER, (now_ns - self._unanswered[bed][1]) // self._escalate_ns)

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
        pulse_ns = sound.start_ns + (burst.starts[sound.pulse] + burst.pulse) * MS
        self._switch(False, now_ns < pulse_ns, edges)
        self._end(sound.stop_ns < whole_ns, edges)
        if wanted > RANK[sound.priority]:
            sound.next_ns = now_ns
        elif wanted == RANK[sound.priority]:
            sound.next_ns = sound.stop_ns + burst.gap * MS
        else:
            sound.next_ns = sound.stop_ns + SHORTEST_GAP * MS

    def _begin(self, now_ns: int, owner: Signal, edges: list[Edge]) -> None:
        self._switch_reminder(False, True, edges)
        sound = self._sound
        sound.priority, sound.burst = owner.audio_priority, BURSTS[owner.audio_priority]
        sound.bed, sound.condition, sound.text = owner.bed, owner.audio_condition, owner.text
        sound.level = self._level(owner.bed, now_ns)
        on_time = sound.next_ns is not None and 0 <= now_ns - sound.next_ns < sound.burst.pulse * MS
        sound.start_ns = sound.next_ns if on_time and sound.next_ns is not None else now_ns
        sound.stop_ns = sound.start_ns + sound.burst.length * MS
        sound.next_ns = None
        sound.pulse = 0
        if BURST in self._outputs:
            edges.append(self._edge(BURST, True))

    def _end(self, cut: bool, edges: list[Edge]) -> None:
        sound = self._sound
        if sound.burst is not None:
            sound.burst = None
            sound.over_ns = sound.stop_ns
            if BURST in self._outputs:
                edges.append(self._edge(BURST, False, cut=cut))

    def _pulse(self, now_ns: int, burst: Burst, edges: list[Edge]) -> int:
        """Put the buzzer right within a burst; the time of its next change."""
        sound = self._sound
        since = now_ns - sound.start_ns
        for number, start in enumerate(burst.starts):
            if since < start * MS:
                self._switch(False, False, edges)
                return min(sound.start_ns + start * MS, sound.stop_ns)
            if since < (start + burst.pulse) * MS:
                if sound.pulse != number:  # so late that the end of the pulse before has been missed
                    self._switch(False, False, edges)
                    sound.pulse = number
                self._switch(True, False, edges)
                return min(sound.start_ns + (start + burst.pulse) * MS, sound.stop_ns)
        self._switch(False, False, edges)
        return sound.stop_ns

    def _switch(self, on: bool, cut: bool, edges: list[Edge]) -> None:
        sound = self._sound
        if sound.on != on:
            sound.on = on
            if BUZZER in self._outputs:
                edges.append(self._edge(BUZZER, on, cut=cut))

    def _edge(self, output: str, on: bool, *, cut: bool = False) -> Edge:
        sound = self._sound
        return Edge(
            output, on, sound.bed, sound.priority, sound.condition, sound.text, sound.pulse, sound.level, cut
        )  # fmt: skip

    def _remind(self, now_ns: int, edges: list[Edge]) -> int | None:
        reminder, next_ns = self._reminder, self._sound.next_ns
        if reminder.on:
            if now_ns < reminder.end_ns:
                return reminder.end_ns if next_ns is None else min(reminder.end_ns, next_ns)
            self._switch_reminder(False, False, edges)
            self._sound.over_ns = now_ns
            if not reminder.waits:
                return next_ns
        due_ns = self._sound.over_ns + REMINDER_PAUSE * MS
        begin_ns = max(now_ns, due_ns)
        if next_ns is not None and next_ns < begin_ns + (REMINDER + REMINDER_PAUSE) * MS:
            return next_ns
        if now_ns < due_ns:
            return due_ns
        reminder.waits = False
        reminder.end_ns = now_ns + REMINDER * MS
        self._switch_reminder(True, False, edges)
        return reminder.end_ns

    def _switch_reminder(self, on: bool, cut: bool, edges: list[Edge]) -> None:
        reminder = self._reminder
        if reminder.on != on:
            reminder.on = on
            if BUZZER in self._outputs:
                edges.append(Edge(BUZZER, on, reminder.bed, "none", REMINDER_TONE, "Reminder", cut=cut))
