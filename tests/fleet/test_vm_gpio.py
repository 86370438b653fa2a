"""Buzzer, lights, button and last gasp through the kernel's GPIO device: gpio-sim in the emulated machine.

The pulses are those of the specification that docs/alarms.md repeats, in milliseconds from the burst's first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.fleet.emulated_gateway import BOARD_LINES, CHIP, PERIPHERAL, Gateway
from tests.fleet.senders import Monitor
from tests.fleet.waiting import DEADLINE_S, until

BUZZER, RED, YELLOW, CYAN, HEARTBEAT, BUTTON = 17, 22, 23, 24, 25, 27
HIGH_BURST = (0, 250, 500, 1000, 1250, 2100, 2350, 2600, 3100, 3350)
LATE_MS = 60  # an emulated processor that other work interrupts; pulses of HIGH are 100 ms apart
TABLES = (
    '[[bed]]\nid = "ICU-1"\npreset = "immediate"\nlocation = "ICU^^1"',
    '[[source]]\nname = "monitor"\ndriver = "hl7"\nlink = "mllp-listen://0.0.0.0:2575"',
    f'[[annunciator]]\nkind = "gpio"\nchip = "{CHIP}"\nbuzzer = {BUZZER}\nred = {RED}\nyellow = {YELLOW}\n'
    f"cyan = {CYAN}\nheartbeat = {HEARTBEAT}",
    f'[[button]]\nchip = "{CHIP}"\nline = {BUTTON}',
)
Change = tuple[float, int]  # when, in ms, and to which level


class Watched:
    """Changes of the lines while `watching` lasts."""

    def __init__(self) -> None:
        self.changes: dict[int, list[Change]] = {}

    def pulses(self, line: int) -> list[tuple[float, float]]:
        """Start and end of each pulse of a line, in ms, that began and ended while it was watched."""
        changes = self.changes.get(line, [])
        return [
            (start, end)
            for (start, up), (end, down) in pairwise(changes)
            if up and not down
        ]  # fmt: skip


@contextmanager
def watching(gateway: Gateway) -> Iterator[Watched]:
    """Looks at all lines in the guest meanwhile; what changed is there afterwards, and as it comes."""
    watched = Watched()
    lines = " ".join(str(line) for line in (BUZZER, RED, YELLOW, CYAN, HEARTBEAT))
    with gateway.machine.stream(f"exec python3 -S -E /{PERIPHERAL}/line_watch.py {BOARD_LINES} {lines}") as (_, output):
        first = output.readline().split()

        def follow() -> None:
            fields = first
            while len(fields) == 3:
                at, line, level = fields
                watched.changes.setdefault(int(line), []).append((float(at), int(level)))
                fields = output.readline().split()

        reader = threading.Thread(target=follow)
        reader.start()
        yield watched
    reader.join(DEADLINE_S)


def levels(gateway: Gateway) -> list[int]:
    """What buzzer, red, yellow and cyan are."""
    files = " ".join(f"{BOARD_LINES}/sim_gpio{line}/value" for line in (BUZZER, RED, YELLOW, CYAN))
    return [int(value) for value in gateway.machine.run(f"cat {files}").stdout.split()]


def press(gateway: Gateway, seconds: float) -> None:
    """The button connects its line to ground for so long."""
    pull = f"{BOARD_LINES}/sim_gpio{BUTTON}/pull"
    gateway.machine.run(f"echo pull-down > {pull}; sleep {seconds}; echo pull-up > {pull}")


def alarm(gateway: Gateway) -> dict[str, object]:
    """The bed's alarm of SpO2; empty while there is none."""
    found = [each for each in gateway.status()["beds"][0]["alarms"] if each["condition"] == "spo2_low"]
    return found[0] if found else {}


@pytest.fixture(scope="module")
def gateway(emulated: Gateway) -> Gateway:
    emulated.configure(*TABLES)
    return emulated


@pytest.fixture
def monitor(gateway: Gateway) -> Iterator[Monitor]:
    with Monitor(gateway.machine.ports[2575], "ICU^^1") as monitor:
        monitor.spo2(97)
        until(lambda: not gateway.status()["gateway_alarms"] and not alarm(gateway), "a quiet gateway")
        until(lambda: not any(levels(gateway)), "dark and silent lines")
        yield monitor


def near(found: float, wanted: float) -> bool:
    return abs(found - wanted) < LATE_MS


def burst_of_high(lines: Watched) -> bool:
    """Whether ten pulses of the buzzer in a row were those of HIGH."""
    pulses = lines.pulses(BUZZER)
    runs = [pulses[first : first + len(HIGH_BURST)] for first in range(len(pulses) - len(HIGH_BURST) + 1)]
    return any(
        all(
            near(start - run[0][0], wanted) and near(end - start, 150)
            for (start, end), wanted in zip(run, HIGH_BURST, strict=True)
        )
        for run in runs
    )


def flashes_of_high(lines: Watched) -> bool:
    """Whether red flashed ten times in a row with 2 Hz, on for half of the time."""
    row = 0
    for (start, end), (following, _) in pairwise(lines.pulses(RED)):
        row = row + 1 if near(end - start, 250) and near(following - start, 500) else 0
        if row == 10:
            return True
    return False


def test_an_alarm_flashes_red_and_sounds_the_burst_of_high_and_both_end_with_it(
    gateway: Gateway, monitor: Monitor
) -> None:
    with watching(gateway) as lines:
        monitor.spo2(84)
        # the first burst usually; it comes again every 10 s, should somebody else have had the processor
        until(lambda: burst_of_high(lines) and flashes_of_high(lines), "a burst and flashes as they must be", 120)
        monitor.spo2(97)
        until(lambda: not alarm(gateway), "the end of the alarm")
    assert not lines.pulses(YELLOW) and not lines.pulses(CYAN)
    until(lambda: not any(levels(gateway)), "dark and silent lines")


def test_a_short_press_acknowledges_and_a_long_one_pauses(gateway: Gateway, monitor: Monitor) -> None:
    monitor.spo2(84)
    until(lambda: alarm(gateway).get("audible"), "an alarm that sounds")
    press(gateway, 0.3)
    until(lambda: alarm(gateway).get("state") == "Ack", "the acknowledgement")
    until(lambda: levels(gateway)[0] == 0, "silence")
    assert not alarm(gateway)["audible"]
    with watching(gateway) as lines:
        until(lambda: len(lines.pulses(RED)) > 4, "the light of an acknowledged alarm")
    assert not lines.pulses(BUZZER)
    press(gateway, 3)
    until(lambda: gateway.status()["beds"][0]["alarm"]["inactivation"], "the pause of audio")
    assert gateway.status()["beds"][0]["alarm"]["inactivation"]["state"] == "audio_paused"
    press(gateway, 3)
    until(lambda: not gateway.status()["beds"][0]["alarm"]["inactivation"], "the end of the pause")


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_an_agent_that_is_killed_or_hangs_leaves_the_loud_state_until_it_is_back(
    gateway: Gateway, monitor: Monitor, how: str
) -> None:
    monitor.spo2(84)
    until(lambda: alarm(gateway).get("audible"), "an alarm that sounds")
    first = gateway.status()["instance"]
    with watching(gateway) as lines:
        until(lambda: len(lines.pulses(HEARTBEAT)) > 4, "the heartbeat")
        gateway.machine.run(f"systemctl kill --kill-whom=main --signal={how} edge-agent")
        until(lambda: gasps(lines), "the last gasp", 120)
        until(lambda: returned(gateway, first), "the agent's return", 180)
        until(lambda: alarm(gateway).get("audible"), "the alarm again")
        gone = len(lines.pulses(BUZZER))
        until(lambda: len(lines.pulses(BUZZER)) > gone + len(HIGH_BURST), "the burst again")
    assert levels(gateway)[2:] == [0, 0], "the last gasp has given the lines back"
    began, ended = gasps(lines)[0][0], gasps(lines)[-1][1]
    assert any(start <= began + 1000 and end >= ended - 1000 for start, end in lines.pulses(YELLOW)), lines.changes[
        YELLOW
    ]
    assert any(start <= began + 1000 and end >= ended - 1000 for start, end in lines.pulses(CYAN)), lines.changes[CYAN]
    assert [each for each in lines.pulses(RED) if began <= each[0] <= ended], lines.changes[RED]
    assert not [at for at, _ in lines.changes[HEARTBEAT] if began < at < ended], "a monostable would not have sounded"


def gasps(lines: Watched) -> list[tuple[float, float]]:
    """Pulses of the buzzer of half a second, as no alarm has them; one that was on when its agent hung is longer."""
    return [(start, end) for start, end in lines.pulses(BUZZER) if 400 < end - start < 600]


def returned(gateway: Gateway, before: str) -> bool:
    """Whether another instance of the agent answers than the one before."""
    try:
        return bool(gateway.status()["instance"] != before)
    except ConnectionError:
        return False
