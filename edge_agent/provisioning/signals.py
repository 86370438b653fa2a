"""Light and sound of each priority, and the acknowledge button: through the agent's own rooms, or through the agent.

Without an agent the annunciators and buttons of the configuration are opened here, exactly as the agent opens them, and
given back with everything off, whatever happens. With an agent its own self-test is asked for; it gives way to an alarm
by itself, and then counts as not passed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.annunciators import Annunciator, open_annunciators
from edge_agent.annunciators.patterns import BURSTS, FLASHES
from edge_agent.button import Button
from edge_agent.config import Loaded
from edge_agent.control import ControlClient
from edge_agent.provisioning.steps import Result, failed, passed, skipped
from edge_agent.provisioning.talk import Talk
from edge_agent.records import Priority, Signal

PRIORITIES: tuple[Priority, ...] = ("high", "medium", "low")
MARGIN_S = 0.5  # beyond the burst: an output that hangs or is not there has said so by then
SELF_TEST_S = 30.0  # three lamps and three bursts take about ten seconds
PRESS_S = 30.0  # to walk to the bed and press
LOOK_S = 0.1
TEXT = "Test of light and sound"


def test_signals(loaded: Loaded, bed: str, talk: Talk, socket: Path | None) -> Result:
    """Show and sound each priority and ask whether it was seen and heard; `socket` is that of a running agent."""
    present = [each for each in loaded.config.annunciator if each.bed in ("", bed)]
    if not present:
        return failed(
            "signals", "no annunciator is configured for this bed",
            "add [[annunciator]] to the configuration; docs/configuration.md, Annunciators",
        )  # fmt: skip
    if socket is not None:
        return _by_agent(talk, socket)
    faults: dict[str, str] = {}
    answers: dict[str, bool] = {}
    with _open(loaded, bed, faults) as outputs:
        for number, priority in enumerate(PRIORITIES, 1):
            _drive(outputs, bed, priority, number)
            time.sleep(hold_s(priority))
            if any(faults.values()):
                break
            answers[priority] = talk.yes(_question(priority), "signals", priority)
    return _judge(answers, [text for text in faults.values() if text], [each.name for each in outputs])


def hold_s(priority: Priority) -> float:
    """How long a priority is shown at least, in seconds: its whole burst."""
    return BURSTS[priority].length / 1000 + MARGIN_S


def _question(priority: Priority) -> str:
    flash = FLASHES[priority]
    how = "flashing" if flash.period else "steady"
    pulses = len(BURSTS[priority].starts)
    return f"{priority.upper()}: {flash.colour} light {how}, {pulses} pulses of sound: seen and heard?"


@contextmanager
def _open(loaded: Loaded, bed: str, faults: dict[str, str]) -> Iterator[list[Annunciator]]:
    """The bed's annunciators, off and given back at the end."""

    def fault(name: str, detail: str) -> None:
        faults[name] = detail

    present = [each for each in loaded.config.annunciator if each.bed in ("", bed)]
    outputs = open_annunciators(present, resolve=loaded.resolve, on_fault=fault)
    try:
        yield outputs
    finally:
        for each in outputs:
            each.close()


def _drive(outputs: Sequence[Annunciator], bed: str, priority: Priority, number: int) -> None:
    name = "provisioning"
    signal = Signal(
        bed, priority, visual=True, audio=True, condition=name, text=TEXT, audio_priority=priority,
        audio_condition=name, onset=number, audio_onset=number, stopped=True,
    )  # fmt: skip
    off = Signal(bed, "none", visual=False, audio=False, stopped=True)
    for each in outputs:
        each.drive(off)
        each.drive(signal)


def _judge(answers: dict[str, bool], faults: Sequence[str], names: Sequence[str]) -> Result:
    details: dict[str, Any] = {"outputs": list(names), "priorities": dict(answers), "by": "provisioning"}
    if faults:
        return failed("signals", faults[0], "put it right and run this step again", details=details)
    missing = [priority for priority in PRIORITIES if not answers.get(priority)]
    if missing:
        return failed(
            "signals", f"not seen and heard: {', '.join(missing)}",
            "check wiring, lines and volume in [[annunciator]]; docs/biomed.md, When something fails",
            details=details,
        )  # fmt: skip
    return passed("signals", f"high, medium and low seen and heard: {', '.join(names)}", details=details)


def _by_agent(talk: Talk, socket: Path) -> Result:
    talk.say("The running agent tries its lamps one after the other, then LOW, MEDIUM and HIGH sound. Look and listen.")
    end = time.monotonic() + SELF_TEST_S
    with ControlClient(socket) as client:
        told = client.call("self_test", annunciators=True)["annunciators"]
        while any(each["test"]["state"] == "running" for each in told) and time.monotonic() < end:
            time.sleep(LOOK_S)
            told = client.call("self_test")["annunciators"]
    faults = [
        f"{each['kind']}: self-test {each['test']['state']}: {each['test']['detail'] or each['fault']}"
        for each in told
        if each["test"]["state"] != "passed"
    ]
    answers: dict[str, bool] = {}
    if not faults:
        answers = {str(priority): talk.yes(_question(priority), "signals", priority) for priority in PRIORITIES}
    result = _judge(answers, faults, [each["kind"] for each in told])
    return Result(
        result.step, result.outcome, result.seen, result.remedy, details={**result.details, "by": "the running agent"}
    )


class _Presses:
    """Presses of the bed's buttons, as they come from the threads of the buttons."""

    def __init__(self) -> None:
        self._new = threading.Condition()
        self.pressed: set[str] = set()
        self.faults: dict[str, str] = {}

    def press(self, name: str) -> Callable[[str, str], None]:
        """What button `name` calls."""

        def pressed(_bed: str, kind: str) -> None:
            with self._new:
                if kind == "short":
                    self.pressed.add(name)
                self._new.notify_all()

        return pressed

    def fault(self, name: str, detail: str) -> None:
        """A button's fault, empty when it has ended."""
        with self._new:
            self.faults[name] = detail
            self._new.notify_all()

    def wait(self, names: set[str], deadline_s: float) -> None:
        """Until each has been pressed, one is at fault, or the time is over."""
        with self._new:
            self._new.wait_for(lambda: names <= self.pressed or any(self.faults.values()), deadline_s)


def test_button(loaded: Loaded, bed: str, talk: Talk, socket: Path | None, deadline_s: float = PRESS_S) -> Result:
    """Wait for a short press of each button of the bed."""
    present = [each for each in loaded.config.button if each.bed in ("", bed)]
    if not present:
        return skipped("button", "no button is configured for this bed", mandatory=False)
    if not talk.yes(f"{len(present)} button(s): will somebody press each of them shortly now?", "button"):
        return skipped("button", "nobody was there to press it")
    talk.say(f"Press now, shortly. {deadline_s:g} s ...")
    if socket is not None:
        return _pressed_by_agent(bed, socket, deadline_s)
    presses = _Presses()
    names = [f"button:{each.chip}:{each.line}" for each in present]
    buttons = [Button(each, presses.press(name), presses.fault) for each, name in zip(present, names, strict=True)]
    try:
        presses.wait(set(names), deadline_s)
    finally:
        for button in buttons:
            button.close()
    faults = [text for text in presses.faults.values() if text]
    return _judge_presses(names, presses.pressed, faults, deadline_s, "provisioning")


def _judge_presses(
    names: Sequence[str], pressed: set[str], faults: Sequence[str], deadline_s: float, by: str
) -> Result:
    details = {"buttons": {name: name in pressed for name in names}, "by": by}
    if faults:
        return failed("button", faults[0], "put it right and run this step again", details=details)
    missing = [name for name in names if name not in pressed]
    if missing:
        return failed(
            "button", f"no short press within {deadline_s:g} s: {', '.join(missing)}",
            "check its wiring, `line` and `active_low` in [[button]]; `gpioinfo` shows the line", details=details,
        )  # fmt: skip
    return passed("button", f"pressed: {', '.join(names)}", details=details)


def _pressed_by_agent(bed: str, socket: Path, deadline_s: float) -> Result:
    """What the running agent counts; a short press acknowledges what is active, as it should."""
    with ControlClient(socket) as client:
        buttons = _buttons(client, bed)
        if not buttons or any("presses" not in each for each in buttons.values()):
            return failed(
                "button", "the running agent has no such button, or does not count its presses",
                "restart it with this configuration, or stop it and run this step again",
            )  # fmt: skip
        before = {name: each["presses"] for name, each in buttons.items()}
        end = time.monotonic() + deadline_s
        pressed: set[str] = set()
        faults: list[str] = []
        while pressed != set(before) and not faults and time.monotonic() < end:
            time.sleep(LOOK_S)
            now = _buttons(client, bed)
            pressed = {name for name, count in before.items() if now[name]["presses"] > count}
            faults = [each["fault"] for each in now.values() if each["fault"]]
    return _judge_presses(list(before), pressed, faults, deadline_s, "the running agent")


def _buttons(client: ControlClient, bed: str) -> dict[str, dict[str, Any]]:
    told = client.call("status")["status"]["buttons"]
    return {each["name"]: each for each in told if each["bed"] in ("", bed)}
