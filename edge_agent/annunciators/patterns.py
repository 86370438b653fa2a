"""How each priority looks and sounds: pulses of a burst, repetition, light colour and flashing.

All times are in milliseconds. The figures lie within the ranges for alarm signals after which this product is
patterned (IEC 60601-1-8, tables of auditory and visual signals); no conformity is claimed. docs/alarms.md lists them
beside the ranges, tests/test_annunciators_patterns.py holds them there.
"""

from __future__ import annotations

from typing import NamedTuple

from edge_agent.records import Inactivation, Priority


class Burst(NamedTuple):
    """Pulses of one priority, from the start of the burst."""

    starts: tuple[int, ...]
    pulse: int  # length of each pulse
    half: int  # pulses that sound once a burst has begun, even if its alarm ends meanwhile
    gap: int  # end of a burst to the start of the next

    @property
    def length(self) -> int:
        """From the start of the burst to the end of its last pulse, in ms."""
        return self.starts[-1] + self.pulse

    @property
    def half_length(self) -> int:
        """From the start of the burst to the end of the last pulse that must sound, in ms."""
        return self.starts[self.half - 1] + self.pulse


class Flash(NamedTuple):
    """Light of one priority: on for `on` of every `period`; steady when period is 0."""

    colour: str
    period: int
    on: int


BURSTS: dict[Priority, Burst] = {
    # 5 + 5 pulses in groups of 3 + 2: 150 ms with 100 ms between, 350 ms before the 4th, 700 ms before the 6th
    "high": Burst((0, 250, 500, 1000, 1250, 2100, 2350, 2600, 3100, 3350), pulse=150, half=5, gap=7000),
    "medium": Burst((0, 400, 800), pulse=200, half=3, gap=15000),
    "low": Burst((0, 400), pulse=200, half=2, gap=30000),
}
FLASHES: dict[Priority, Flash] = {
    "high": Flash("red", period=500, on=250),  # 2.0 Hz
    "medium": Flash("yellow", period=1666, on=833),  # 0.6 Hz
    "low": Flash("cyan", period=0, on=0),
}
LOW_WITHOUT_CYAN = "yellow"  # steady yellow is the other accepted light of a LOW
SHORTEST_GAP = 2500  # between a burst that was let go and the first of a less urgent alarm
REMINDER = 125  # length of the one pulse that reminds of something paused, off or acknowledged: unlike every burst
REMINDER_PAUSE = 500  # from the end of a burst to a reminder: more than lies between the pulses of any burst's group
HINT_PERIOD = 3000  # the cyan light shows once in this time that signals of a bed are paused or off
HINTS: dict[Inactivation, tuple[tuple[int, int], ...]] = {
    # start and end of what differs from the cyan light as it would otherwise be: once for paused, twice for off
    "audio_paused": ((0, 150),),
    "alarm_paused": ((0, 150),),
    "audio_off": ((0, 150), (300, 450)),
    "alarm_off": ((0, 150), (300, 450)),
}
STRENGTH: dict[Inactivation, int] = {"": 0, "audio_paused": 1, "alarm_paused": 2, "audio_off": 3, "alarm_off": 4}
LOUDER = 2  # levels by which a sound that nobody answers may rise
LIGHTS = ("red", "yellow", "cyan")
BUZZER = "buzzer"
BURST = "burst"  # on for a whole burst: for an output that plays a recording in place of pulses
OUTPUTS = (BUZZER, *LIGHTS)
