"""Patterns and player on a virtual clock: what each priority looks and sounds like, and who owns the output."""

from __future__ import annotations

import itertools
import random

import pytest

from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.patterns import BURSTS, FLASHES, SHORTEST_GAP
from edge_agent.annunciators.player import Player
from edge_agent.presets import RANK
from edge_agent.records import Priority, Signal

MS = 1_000_000

# Ranges in ms: pulse, spacing between pulses, end of burst to start of the next; pulses of a burst
PULSE = {"high": (75, 200), "medium": (125, 250), "low": (125, 250)}
SPACING = {"high": (50, 125), "medium": (125, 250), "low": (125, 250)}
GAP = {"high": (2500, 15_000), "medium": (2500, 30_000), "low": (15_000, float("inf"))}
COUNT = {"high": 10, "medium": 3, "low": 2}


def alarm(priority: Priority, onset: int = 1, bed: str = "A", audio: bool = True, **more: object) -> Signal:
    condition = str(more.pop("condition", f"{bed}-{priority}-{onset}"))
    sound = more.pop("sound", priority) if audio else "none"
    return Signal(
        bed, priority, True, audio, condition, "text", sound, condition if audio else "", onset,  # type: ignore[arg-type]
        int(more.pop("audio_onset", onset)) if audio else 0, bool(more.pop("stopped", False)),  # type: ignore[call-overload]
    )  # fmt: skip


def clear(bed: str = "A", stopped: bool = False) -> Signal:
    return Signal(bed, "none", False, False, stopped=stopped)


class Stage:
    """A player and a clock in ms that jumps to the times it asks for, as a thread that is never late would."""

    def __init__(self, **options: object) -> None:
        self.player = Player(**options)  # type: ignore[arg-type]
        self.now = 0
        self.next: int | None = None
        self.edges: list[tuple[int, Edge]] = []
        self.levels: dict[str, bool] = {}

    def step(self) -> list[Edge]:
        edges, self.next = self.player.step(self.now * MS)
        for edge in edges:
            assert self.levels.get(edge.output, False) is not edge.on, f"{edge} is not an edge at {self.now} ms"
            self.levels[edge.output] = edge.on
            self.edges.append((self.now, edge))
        assert self.next is None or self.next > self.now * MS
        return edges

    def show(self, signal: Signal, at: int | None = None) -> list[Edge]:
        self.run(at if at is not None else self.now)
        self.player.show(signal)
        return self.step()

    def run(self, until: int) -> None:
        while self.next is not None and self.next <= until * MS:
            assert self.next % MS == 0
            self.now = self.next // MS
            self.step()
        self.now = max(self.now, until)

    def pulses(self, output: str = "buzzer") -> list[tuple[int, int]]:
        """Start and length of each time the output was on, in ms."""
        out, since = [], 0
        for at, edge in self.edges:
            if edge.output == output and edge.on:
                since = at
            elif edge.output == output:
                out.append((since, at - since))
        return out


@pytest.mark.alm("ALM-02")
@pytest.mark.parametrize("priority", ["high", "medium", "low"])
def test_bursts_lie_within_the_ranges(priority: Priority) -> None:
    stage = Stage()
    stage.show(alarm(priority))
    stage.run(120_000)
    pulses = stage.pulses()
    burst, count = BURSTS[priority], COUNT[priority]
    assert len(pulses) >= 2 * count
    starts = [start for start, _ in pulses]
    for length in (length for _, length in pulses):
        assert PULSE[priority][0] <= length <= PULSE[priority][1]
        assert length == burst.pulse
    first = pulses[:count]
    spaces = [b[0] - (a[0] + a[1]) for a, b in itertools.pairwise(first)]
    if priority == "high":
        x = spaces[0]
        assert [spaces[i] for i in (0, 1, 3, 5, 6, 8)] == [x] * 6
        assert [spaces[2], spaces[7]] == [2 * x + burst.pulse] * 2
        assert 350 <= spaces[4] <= 1300
        low, high = SPACING["high"]
        assert low <= x <= high
    else:
        assert all(SPACING[priority][0] <= space <= SPACING[priority][1] for space in spaces)
    gap = starts[count] - (starts[count - 1] + burst.pulse)
    assert GAP[priority][0] <= gap <= GAP[priority][1]
    assert GAP["high"][0] <= SHORTEST_GAP
    period = starts[count] - starts[0]
    assert starts[count:] == [start + period for start in starts[: len(starts) - count]], "no drift"


# The reference schedules: pulse starts from the start of a burst, its length and period, all in ms
REFERENCE = {
    "high": ((0, 250, 500, 1000, 1250, 2100, 2350, 2600, 3100, 3350), 150, 3500, 10_500),
    "medium": ((0, 400, 800), 200, 1000, 16_000),
    "low": ((0, 400), 200, 600, 30_600),
}


@pytest.mark.alm("ALM-02")
@pytest.mark.parametrize("priority", ["high", "medium", "low"])
def test_bursts_are_the_reference_schedules(priority: Priority) -> None:
    starts, pulse, length, period = REFERENCE[priority]
    stage = Stage()
    stage.show(alarm(priority))
    stage.run(4 * period - 1)
    assert stage.pulses() == [(turn * period + start, pulse) for turn in range(4) for start in starts]
    assert starts[-1] + pulse == length == BURSTS[priority].length


@pytest.mark.alm("ALM-03")
@pytest.mark.parametrize(("priority", "period", "on"), [("high", 500, 250), ("medium", 1666, 833)])
def test_lights_are_the_reference_flashes(priority: Priority, period: int, on: int) -> None:
    stage = Stage()
    stage.show(alarm(priority))
    stage.run(60_000)
    flashes = stage.pulses({"high": "red", "medium": "yellow"}[priority])
    assert all(start == number * period and length == on for number, (start, length) in enumerate(flashes))
    assert len(flashes) in (60_000 // period, 60_000 // period + 1), "the last one may still be on"


@pytest.mark.alm("ALM-02")
def test_more_urgent_bursts_repeat_sooner() -> None:
    assert BURSTS["high"].gap <= BURSTS["medium"].gap <= BURSTS["low"].gap
    assert BURSTS["low"].gap > 15_000
    assert BURSTS["high"].half == 5 and BURSTS["medium"].half == 3 and BURSTS["low"].half == 2


@pytest.mark.alm("ALM-03")
@pytest.mark.parametrize(("priority", "rate"), [("high", (1.4, 2.8)), ("medium", (0.4, 0.8))])
def test_lights_flash_within_the_ranges(priority: Priority, rate: tuple[float, float]) -> None:
    stage = Stage()
    stage.show(alarm(priority))
    stage.run(60_000)
    colour = {"high": "red", "medium": "yellow"}[priority]
    flashes = stage.pulses(colour)
    assert rate[0] <= len(flashes) / 60 <= rate[1]
    assert 0.2 <= sum(length for _, length in flashes) / 60_000 <= 0.6
    assert {edge.output for _, edge in stage.edges} == {colour, "buzzer"}


@pytest.mark.alm("ALM-03")
def test_low_is_steady_cyan_or_yellow_where_there_is_no_cyan() -> None:
    stage = Stage()
    stage.show(alarm("low"))
    stage.run(60_000)
    assert [(at, e.output, e.on) for at, e in stage.edges if e.output != "buzzer"] == [(0, "cyan", True)]
    other = Stage(outputs=("buzzer", "red", "yellow"))
    other.show(alarm("low"))
    assert ("yellow", True) in [(e.output, e.on) for _, e in other.edges]
    assert FLASHES["low"].period == 0


def test_a_new_alarm_lights_and_sounds_at_once() -> None:
    stage = Stage()
    edges = stage.show(alarm("high"), at=12_345)
    assert [(e.output, e.on, e.bed, e.priority, e.condition) for e in edges] == [
        ("red", True, "A", "high", "A-high-1"), ("buzzer", True, "A", "high", "A-high-1"),
    ]  # fmt: skip


@pytest.mark.alm("ALM-05")
@pytest.mark.parametrize("when", [0, 10, 60, 149, 200, 1399])
def test_a_high_burst_sounds_to_its_half_when_the_alarm_ends(when: int) -> None:
    stage = Stage()
    stage.show(alarm("high"))
    edges = stage.show(clear(), at=when)
    assert [e.output for e in edges] in ([["red"], []][when % 500 >= 250],), "light off at once, sound goes on"
    stage.run(60_000)
    assert stage.pulses() == [(start, 150) for start in BURSTS["high"].starts[:5]]


@pytest.mark.alm("ALM-05")
@pytest.mark.parametrize(("priority", "when"), [("high", 1401), ("high", 2200), ("medium", 1), ("low", 250)])
def test_other_bursts_sound_whole_when_the_alarm_ends(priority: Priority, when: int) -> None:
    stage = Stage()
    stage.show(alarm(priority))
    stage.show(clear(), at=when)
    stage.run(60_000)
    assert stage.pulses() == [(start, BURSTS[priority].pulse) for start in BURSTS[priority].starts]


@pytest.mark.alm("ALM-05")
def test_the_half_holds_for_a_thread_that_is_late() -> None:
    player = Player()
    player.show(alarm("high"))
    player.step(0)
    player.show(clear())
    player.step(100 * MS)
    player.step(1403 * MS)  # asked for 1400
    assert player.step(2150 * MS) == ([], None)


def test_a_raise_soon_after_a_clear_lights_at_once() -> None:
    stage = Stage()
    for cycle in range(20):
        edges = stage.show(alarm("high", onset=cycle + 1), at=cycle * 100)
        assert ("red", True, f"A-high-{cycle + 1}") in [(e.output, e.on, e.condition) for e in edges]
        assert ("red", False) in [(e.output, e.on) for e in stage.show(clear(), at=cycle * 100 + 50)]


def test_a_newer_alarm_of_another_bed_shows_at_once_and_sounds_in_a_pause_between_bursts() -> None:
    stage = Stage()
    stage.show(alarm("high", 1, "A"))
    edges = stage.show(alarm("high", 2, "B"), at=100)
    assert [(e.output, e.on, e.bed) for e in edges] == [("red", False, "A"), ("red", True, "B")]
    stage.run(4000)
    edges = stage.show(alarm("high", 3, "C"), at=5000)
    assert ("buzzer", True, "C") in [(e.output, e.on, e.bed) for e in edges]
    assert {e.bed for at, e in stage.edges if e.output == "buzzer" and at < 4000} == {"A"}, "a burst keeps its owner"


def test_stepping_back_to_an_older_alarm_is_no_new_one() -> None:
    stage = Stage()
    stage.show(alarm("high", 1, "A"))
    stage.show(alarm("high", 2, "B"), at=100)
    assert stage.show(clear("B"), at=200) == []
    stage.run(3999)
    assert len(stage.pulses()) == 10
    stage.run(5000)
    assert stage.show(alarm("high", 1, "A"), at=5000) == []


@pytest.mark.alm("ALM-06")
def test_a_more_urgent_alarm_cuts_in() -> None:
    stage = Stage()
    stage.show(alarm("medium", 1, "A"))
    edges = stage.show(alarm("high", 2, "B"), at=100)
    assert [(e.output, e.on, e.priority) for e in edges] == [
        ("yellow", False, "medium"), ("red", True, "high"), ("buzzer", False, "medium"), ("buzzer", True, "high"),
    ]  # fmt: skip
    stage.run(3700)
    assert stage.pulses()[1:] == [(100 + start, 150) for start in BURSTS["high"].starts]


def test_after_a_high_the_less_urgent_one_follows_behind_a_gap() -> None:
    stage = Stage()
    stage.show(alarm("medium", 1, "A"))
    stage.show(alarm("high", 2, "B"), at=5000)
    stage.show(clear("B"), at=5100)
    stage.run(9200)
    half = [5000 + start for start in BURSTS["high"].starts[:5]]
    assert [start for start, _ in stage.pulses()][3:] == [*half, 6400 + SHORTEST_GAP]


def test_a_high_whose_pause_ends_sounds_at_once_though_a_medium_is_newer() -> None:
    stage = Stage()
    stage.show(alarm("high", 1, "A", audio=False))
    stage.show(alarm("medium", 2, "B"))
    edges = stage.show(alarm("high", 1, "A"), at=5000)
    assert ("buzzer", True, "high") in [(e.output, e.on, e.priority) for e in edges]


def test_acknowledge_stops_the_sound_at_once_and_keeps_the_light() -> None:
    stage = Stage()
    stage.show(alarm("high"))
    edges = stage.show(alarm("high", audio=False, stopped=True), at=100)
    assert [(e.output, e.on) for e in edges] == [("buzzer", False)]
    stage.run(10_000)
    assert len(stage.pulses()) == 1 and len(stage.pulses("red")) == 20


def test_acknowledging_one_of_two_beds_does_not_cut_the_burst_that_the_other_needs() -> None:
    stage = Stage()
    stage.show(alarm("high", 1, "A"))
    stage.show(alarm("high", 2, "B"), at=50)
    stage.show(alarm("high", 1, "A", audio=False, stopped=True), at=400)
    stage.run(3600)
    assert [start for start, _ in stage.pulses()] == list(BURSTS["high"].starts)


def test_a_burst_that_begins_a_little_late_keeps_to_the_schedule() -> None:
    player = Player()
    player.show(alarm("medium"))
    player.step(0)
    for at in (200, 400, 600, 800, 1000):
        player.step(at * MS)
    edges, following = player.step((1000 + BURSTS["medium"].gap + 7) * MS)  # 7 ms after the time it asked for
    assert [(e.output, e.on) for e in edges if e.output == "buzzer"] == [("buzzer", True)]
    assert following is not None
    edges, _ = player.step((1000 + BURSTS["medium"].gap + BURSTS["medium"].pulse) * MS)
    assert ("buzzer", False) in [(e.output, e.on) for e in edges]


@pytest.mark.alm("ALM-06")
def test_an_acknowledged_high_lets_a_new_medium_sound_under_the_red_light() -> None:
    stage = Stage()
    stage.show(alarm("high", 1))
    stage.show(alarm("high", 1, audio=False, stopped=True), at=100)
    stage.show(Signal("A", "high", True, True, "A-high-1", "t", "medium", "m", 1, 2), at=1000)
    stage.run(5000)
    sound = [e for at, e in stage.edges if e.output == "buzzer" and at >= 1000]
    assert {(e.priority, e.condition) for e in sound} == {("medium", "m")} and len(sound) == 6
    assert {e.output for at, e in stage.edges if at > 1000} == {"red", "buzzer"}


def test_lateness_is_not_made_up_for() -> None:
    stage = Stage()
    stage.show(alarm("high"))
    stage.now = 60_000  # the machine stood still for a minute
    assert len(stage.step()) <= 2
    stage.run(62_000)
    assert all(length <= 150 for start, length in stage.pulses()[1:] if start >= 60_000)


def test_off_puts_out_what_is_on() -> None:
    stage = Stage()
    stage.show(alarm("high"))
    assert {(e.output, e.on) for e in stage.player.off()} == {("red", False), ("buzzer", False)}
    stage.player.show(clear())
    assert stage.player.step(5_000 * MS) == ([], None)


def test_outputs_that_do_not_exist_give_no_edges() -> None:
    stage = Stage(outputs=("buzzer",))
    stage.show(alarm("high"))
    stage.run(20_000)
    assert {e.output for _, e in stage.edges} == {"buzzer"}


@pytest.mark.alm("ALM-06")
def test_random_alarms_the_highest_owns_the_light_and_edges_alternate() -> None:
    for seed in range(60):
        rng, stage, active = random.Random(seed), Stage(), {}
        onset = 0
        for _ in range(80):
            bed = rng.choice("ABC")
            at = stage.now + rng.choice((1, 30, 400, 3000, 9000))
            if rng.random() < 0.4:
                active.pop(bed, None)
                edges = stage.show(clear(bed, stopped=rng.random() < 0.5), at=at)
            else:
                onset += 1
                active[bed] = alarm(rng.choice(("high", "medium", "low")), onset, bed, rng.random() < 0.7)
                edges = stage.show(active[bed], at=at)
            highest = max(active.values(), key=lambda s: (RANK[s.priority], s.onset), default=None)
            colours = {FLASHES[highest.priority].colour} if highest else set()
            lit = {output for output, on in stage.levels.items() if on and output != "buzzer"}
            assert lit <= colours, (seed, stage.now)
            loudest = max((RANK[s.audio_priority] for s in active.values() if s.audio), default=0)
            begun = [e for e in edges if e.output == "buzzer" and e.on and not e.pulse]
            assert all(RANK[e.priority] == loudest for e in begun), (seed, stage.now, "a burst of the highest begins")
            sounding = [e for _, e in stage.edges if e.output == "buzzer"][-1:] if stage.levels.get("buzzer") else []
            assert all(RANK[e.priority] >= loudest for e in sounding), (seed, stage.now, "none sounds below it")
            if not any(s.audio for s in active.values()):
                stage.run(stage.now + 4000)
                assert not stage.levels.get("buzzer", False)
