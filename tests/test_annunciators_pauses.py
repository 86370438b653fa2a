"""On a virtual clock: hints at pauses, reminders, louder sound, and the self-test's timetable."""

from __future__ import annotations

import itertools
import random

import pytest
from test_annunciators_patterns import MS, Stage, alarm, clear

from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.patterns import BURSTS, HINT_PERIOD, REMINDER, REMINDER_PAUSE
from edge_agent.annunciators.player import Player
from edge_agent.records import Inactivation, Priority, Signal

STATES: tuple[Inactivation, ...] = ("audio_paused", "audio_off", "alarm_paused", "alarm_off")


def paused(state: Inactivation, bed: str = "A", reminder: int = 0) -> Signal:
    """Nothing is active on the bed and its signals are paused or off."""
    return Signal(bed, "none", False, False, inactivation=state, reminder=reminder)


def under(signal: Signal, state: Inactivation, *, visual: bool = True) -> Signal:
    """The same alarm without sound, of a bed in an inactivation state; without light too where alarms are paused."""
    return Signal(
        signal.bed, signal.priority, visual, False, signal.condition, signal.text, "none", "", signal.onset, 0,
        inactivation=state,
    )  # fmt: skip


def flashes(stage: Stage, output: str = "cyan", on: bool = True) -> list[tuple[int, int]]:
    """Start and length of each time the output was on, or off between two times on, in ms."""
    out: list[tuple[int, int]] = []
    since: int | None = None
    for at, edge in stage.edges:
        if edge.output == output and edge.on is on:
            since = at
        elif edge.output == output and since is not None:
            out.append((since, at - since))
    return out


@pytest.mark.alm("ALM-15")
@pytest.mark.parametrize("state", STATES)
def test_a_pause_shows_in_the_cyan_light_though_nothing_is_active(state: Inactivation) -> None:
    stage = Stage()
    stage.show(paused(state))
    stage.run(30_000)
    wanted = [0] if state.endswith("paused") else [0, 300]
    assert flashes(stage) == [(turn + at, 150) for turn in range(0, 30_000, HINT_PERIOD) for at in wanted]
    assert {(e.output, e.bed, e.priority, e.condition) for _, e in stage.edges} == {("cyan", "A", "none", state)}
    assert stage.edges[0][1].text == state.replace("_", " ").upper()
    stage.show(clear(), at=30_050)
    assert not stage.levels["cyan"] and stage.next is None, "enabled again: the light is off at once and stays off"


@pytest.mark.alm("ALM-15")
@pytest.mark.parametrize("state", STATES)
def test_a_pause_shows_as_a_dark_gap_while_a_low_is_steady(state: Inactivation) -> None:
    stage = Stage()
    stage.show(under(alarm("low"), state))
    stage.run(1400)
    assert stage.levels["cyan"], "an alarm that has just come does not go dark at once"
    stage.run(30_000)
    assert [(at, e.priority) for at, e in stage.edges][:1] == [(0, "low")], "the alarm first"
    gaps = flashes(stage, on=False)
    each = 1 if state.endswith("paused") else 2
    assert {length for _, length in gaps if length != 150} == set()
    assert len(gaps) == pytest.approx(each * 30_000 / HINT_PERIOD, abs=each)
    starts = [at for at, _ in gaps][::each]
    assert {b - a for a, b in itertools.pairwise(starts)} == {HINT_PERIOD}


@pytest.mark.alm("ALM-15", "ALM-03")
@pytest.mark.parametrize("priority", ["high", "medium"])
def test_a_pause_shows_in_cyan_beside_a_red_or_yellow_light_that_keeps_its_rhythm(priority: Priority) -> None:
    stage, alone = Stage(), Stage()
    stage.show(under(alarm(priority), "audio_paused"))
    alone.show(alarm(priority, audio=False))
    stage.run(30_000)
    alone.run(30_000)
    colour = {"high": "red", "medium": "yellow"}[priority]
    assert flashes(stage, colour) == flashes(alone, colour)
    assert len(flashes(stage)) == 10
    for _, edge in stage.edges:
        assert (edge.output == "cyan") == (edge.priority == "none"), "red and yellow are for alarms alone"


@pytest.mark.alm("ALM-15")
def test_alarm_paused_shows_no_alarm_light_but_the_pause() -> None:
    stage = Stage()
    stage.show(under(alarm("high"), "alarm_paused", visual=False))
    stage.run(10_000)
    assert {e.output for _, e in stage.edges} == {"cyan"} and len(flashes(stage)) == 4


def test_without_a_cyan_light_a_pause_lights_nothing() -> None:
    stage = Stage(outputs=("buzzer", "red", "yellow"))
    stage.show(paused("audio_off"))
    stage.run(10_000)
    assert stage.edges == [] and stage.next is None


@pytest.mark.alm("ALM-15")
def test_the_strongest_pause_of_all_beds_shows() -> None:
    stage = Stage()
    stage.show(paused("audio_paused", "A"))
    stage.show(paused("alarm_off", "B"), at=1000)
    stage.run(4000)
    assert {e.bed for at, e in stage.edges if at > 1000} == {"B"}
    stage.show(clear("B"), at=5000)
    stage.run(9000)
    assert {e.bed for at, e in stage.edges if at > 5000} == {"A"}


@pytest.mark.parametrize("moment", [0, 1, 75, 149, 150, 1000, 2999, 3000, 3100])
def test_a_low_that_comes_during_a_hint_lights_at_once(moment: int) -> None:
    stage = Stage()
    stage.show(paused("audio_paused"))
    edges = stage.show(under(alarm("low"), "audio_paused"), at=moment)
    assert [(e.output, e.on, e.priority) for e in edges][-1] == ("cyan", True, "low")
    stage.run(moment + 1400)
    assert stage.levels["cyan"], "and is not dark soon after"


@pytest.mark.alm("ALM-15")
def test_random_signals_leave_no_hint_without_a_pause_and_no_pause_without_a_hint() -> None:
    for seed in range(40):
        rng, stage = random.Random(seed), Stage()
        held: dict[str, Signal] = {}
        for onset in range(1, 60):
            bed = rng.choice("AB")
            state = rng.choice(("", "", *STATES))
            priority: Priority = rng.choice(("high", "medium", "low", "none"))
            held[bed] = Signal(
                bed, priority, priority != "none", False, "c", "t", "none", "", onset, 0, inactivation=state
            )  # fmt: skip
            stage.show(held[bed], at=stage.now + rng.choice((1, 100, 700, 5000)))
            before = len(stage.edges)
            stage.run(stage.now + 6000)
            hints = [e for _, e in stage.edges[before:] if e.priority == "none"]
            states = {signal.inactivation for signal in held.values()} - {""}
            assert {e.condition for e in hints} <= states and bool(hints) == bool(states), (seed, onset)


# -- reminder --------------------------------------------------------------------------------------------------------


def tones(stage: Stage) -> list[tuple[int, int]]:
    out, since = [], 0
    for at, edge in stage.edges:
        if edge.condition == "reminder" and edge.on:
            since = at
        elif edge.condition == "reminder":
            out.append((since, at - since))
    return out


@pytest.mark.alm("ALM-14")
@pytest.mark.parametrize("state", STATES)
def test_a_new_reminder_gives_one_tone(state: Inactivation) -> None:
    stage = Stage()
    stage.show(paused(state))
    assert tones(stage) == []
    edges = stage.show(paused(state, reminder=1), at=60_000)
    assert [(e.output, e.on, e.bed, e.priority) for e in edges if e.output == "buzzer"] == [
        ("buzzer", True, "A", "none")
    ]
    stage.show(paused(state, reminder=1), at=90_000)
    stage.show(paused(state, reminder=2), at=120_000)
    stage.show(paused(state, "B", reminder=1), at=150_000)
    stage.run(200_000)
    assert tones(stage) == [(60_000, REMINDER), (120_000, REMINDER), (150_000, REMINDER)]


@pytest.mark.alm("ALM-14")
def test_a_reminder_waits_for_the_burst_that_sounds() -> None:
    stage = Stage()
    stage.show(alarm("high", bed="B"))
    stage.show(paused("audio_paused", reminder=1), at=1000)
    stage.run(9000)
    assert tones(stage) == [(BURSTS["high"].length + REMINDER_PAUSE, REMINDER)]
    assert [length for _, length in stage.pulses()][:10] == [150] * 10


@pytest.mark.alm("ALM-14")
def test_a_reminder_just_before_a_burst_comes_after_it_and_an_alarm_cuts_it_off() -> None:
    stage = Stage()
    stage.show(alarm("high", bed="B"))
    due = BURSTS["high"].length + BURSTS["high"].gap
    stage.show(paused("audio_paused", reminder=1), at=due - 300)
    stage.run(due + 9000)
    assert tones(stage) == [(due + BURSTS["high"].length + REMINDER_PAUSE, REMINDER)]
    other = Stage()
    other.show(paused("audio_off", reminder=1))
    edges = other.show(alarm("medium", bed="B"), at=60)
    sound = [(e.output, e.on, e.priority, e.cut) for e in edges if e.output == "buzzer"]
    assert sound == [("buzzer", False, "none", True), ("buzzer", True, "medium", False)]


def test_two_reminders_at_once_are_one_tone_and_one_during_a_tone_is_another() -> None:
    stage = Stage()
    stage.player.show(paused("audio_off", "A", reminder=1))
    stage.show(paused("audio_off", "B", reminder=1))
    stage.show(paused("audio_off", "B", reminder=2), at=50)
    stage.run(20_000)
    assert tones(stage) == [(0, REMINDER), (REMINDER + REMINDER_PAUSE, REMINDER)]


# -- louder ----------------------------------------------------------------------------------------------------------


def levels(stage: Stage) -> list[tuple[int, int]]:
    """Start and loudness of the first pulse of each burst."""
    return [(at, e.level) for at, e in stage.edges if e.output == "buzzer" and e.on and e.pulse == 0]


def test_a_sound_nobody_answers_gets_louder_twice() -> None:
    stage = Stage(escalate_s=30)
    stage.show(alarm("high"))
    stage.run(120_000)
    assert levels(stage) == [(at, min(2, at // 30_000)) for at in range(0, 120_000, 10_500)]
    for _, edge in stage.edges:
        if edge.output == "buzzer":
            assert edge.level in (0, 1, 2)


def test_a_burst_keeps_its_loudness_to_its_end() -> None:
    stage = Stage(escalate_s=11)  # falls due within the second burst, which starts at 10.5 s
    stage.show(alarm("high"))
    stage.run(20_000)
    second = [e.level for at, e in stage.edges if e.output == "buzzer" and at >= 10_500]
    assert len(second) == 20 and set(second) == {0}


def test_an_answer_another_onset_or_zero_seconds_give_the_first_loudness() -> None:
    stage = Stage(escalate_s=10)
    stage.show(alarm("high", 1))
    stage.run(30_000)
    assert levels(stage)[-1][1] == 2
    stage.show(alarm("high", 1, audio=False, stopped=True), at=30_000)
    stage.show(alarm("high", 1), at=40_000)  # its pause is over
    assert levels(stage)[-1] == (40_000, 0)
    stage.run(62_000)
    assert levels(stage)[-1][1] == 2
    stage.show(alarm("high", 2), at=66_000)
    assert levels(stage)[-1] == (66_000, 0)
    never = Stage()
    never.show(alarm("high"))
    never.run(300_000)
    assert {level for _, level in levels(never)} == {0}


def test_an_alarm_of_another_bed_does_not_make_it_forget_since_when_this_one_sounds() -> None:
    stage = Stage(escalate_s=10)
    stage.show(alarm("medium", 1, "A"))
    stage.show(alarm("high", 2, "B"), at=5000)
    stage.show(clear("B", stopped=True), at=30_000)
    stage.run(60_000)
    assert next(e.level for at, e in stage.edges if e.bed == "A" and e.output == "buzzer" and at > 30_000) == 2


def test_an_output_that_failed_goes_on_as_loud_as_it_was() -> None:
    player = Player(escalate_s=10)
    player.show(alarm("high"))
    player.step(0)
    player.off()
    edges, _ = player.step(25_000 * MS)
    assert [(e.output, e.on, e.level) for e in edges] == [("red", True, 0), ("buzzer", True, 2)]


# -- bursts as a whole, for recordings -------------------------------------------------------------------------------


@pytest.mark.alm("ALM-05")
def test_the_burst_as_a_whole_begins_with_its_pulses_and_is_cut_at_the_half() -> None:
    stage = Stage(outputs=("buzzer", "burst"))
    stage.show(alarm("high"))
    stage.show(clear(), at=200)
    stage.run(20_000)
    assert [(at, e.on, e.cut) for at, e in stage.edges if e.output == "burst"] == [
        (0, True, False),
        (1400, False, True),
    ]
    other = Stage(outputs=("buzzer", "burst"))
    other.show(alarm("medium"))
    other.show(clear(), at=200)
    other.run(20_000)
    assert [(at, e.on, e.cut) for at, e in other.edges if e.output == "burst"] == [
        (0, True, False),
        (1000, False, False),
    ]
    assert not any(e.cut for _, e in (*stage.edges, *other.edges) if e.output == "buzzer"), "each pulse had its time"


def test_an_operators_stop_between_pulses_cuts_the_burst_and_within_one_the_pulse() -> None:
    stage = Stage(outputs=("buzzer", "burst"))
    stage.show(alarm("high"))
    edges = stage.show(alarm("high", audio=False, stopped=True), at=200)
    assert [(e.output, e.on, e.cut) for e in edges] == [("burst", False, True)]
    other = Stage(outputs=("buzzer", "burst"))
    other.show(alarm("high"))
    edges = other.show(alarm("high", audio=False, stopped=True), at=100)
    assert [(e.output, e.on, e.cut) for e in edges] == [("buzzer", False, True), ("burst", False, True)]


# -- self-test -------------------------------------------------------------------------------------------------------


def begin(stage: Stage, at: int = 0) -> None:
    stage.run(at)
    for edge in stage.player.begin_test(at * MS):
        stage.levels[edge.output] = edge.on
        stage.edges.append((at, edge))
    stage.step()


@pytest.mark.alm("ALM-30")
def test_the_self_test_lights_every_lamp_and_sounds_every_priority() -> None:
    stage = Stage()
    begin(stage)
    stage.run(60_000)
    assert stage.player.test == "done" and stage.next is None and not any(stage.levels.values())
    spans = [
        (output, start, length) for output in ("red", "yellow", "cyan") for start, length in flashes(stage, output)
    ]
    assert spans == [("red", 0, 1000), ("yellow", 1000, 1000), ("cyan", 2000, 1000)]
    pulses = [(e.priority, e.pulse) for _, e in stage.edges if e.output == "buzzer" and e.on]
    assert pulses == [
        *(("low", n) for n in range(2)),
        *(("medium", n) for n in range(3)),
        *(("high", n) for n in range(5)),
    ]
    lengths = [length for _, length in stage.pulses()]
    assert lengths == [200] * 5 + [150] * 5
    assert {(e.condition, e.bed) for _, e in stage.edges} == {("self_test", "")}
    high = [at for at, e in stage.edges if e.output == "buzzer" and e.on and e.priority == "high"]
    assert [at - high[0] for at in high] == list(BURSTS["high"].starts[:5])


@pytest.mark.alm("ALM-30")
@pytest.mark.parametrize("moment", [0, 1, 500, 2500, 3800, 5000, 7900])
def test_a_real_alarm_cuts_the_self_test_off_at_once(moment: int) -> None:
    stage = Stage()
    begin(stage)
    edges = stage.show(alarm("medium"), at=moment)
    assert stage.player.test == "cut"
    assert [(e.output, e.on) for e in edges if e.condition != "self_test"] == [("yellow", True), ("buzzer", True)]
    assert all(not e.on and e.cut for e in edges if e.condition == "self_test")
    stage.run(moment + 10_000)
    assert {e.condition for at, e in stage.edges if at > moment} == {"A-medium-1"}


def test_a_self_test_during_an_alarm_is_cut_before_it_begins() -> None:
    stage = Stage()
    stage.show(alarm("low"))
    begin(stage, 5000)
    stage.run(20_000)
    assert stage.player.test == "cut" and not any(e.condition == "self_test" for _, e in stage.edges)


def test_a_self_test_of_an_output_without_lamps_or_without_sound() -> None:
    for outputs in (("buzzer",), ("red",), ("cyan", "yellow"), ("buzzer", "burst")):
        stage = Stage(outputs=outputs)
        begin(stage)
        stage.run(60_000)
        assert {e.output for _, e in stage.edges} == set(outputs) and stage.player.test == "done"


def test_hint_and_reminder_make_way_for_the_self_test_and_come_back() -> None:
    stage = Stage()
    stage.show(paused("audio_off", reminder=1))
    begin(stage, 100)
    stage.show(paused("audio_off", reminder=2), at=200)
    stage.run(7000)
    assert {e.condition for at, e in stage.edges if 100 < at < 7000} == {"self_test"}
    stage.run(30_000)
    after: list[Edge] = [e for at, e in stage.edges if at > 8200]
    assert {e.condition for e in after} == {"audio_off", "reminder"}
