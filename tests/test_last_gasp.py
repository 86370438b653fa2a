"""The last gasp: loud with whatever can be read and had, quiet at once when the agent comes or an operator says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import clock_state, gpio_chips, last_gasp
from edge_agent.notifier import Notifier

pytest.importorskip("gpiod")
from gpiod.line import Value

DEADLINE_S = 10.0
ROOT = Path(__file__).resolve().parents[1]


def test_the_pattern_is_that_of_no_alarm() -> None:
    shown = [last_gasp.levels(step) for step in range(8)]
    assert [step["red"] for step in shown] == [True, False] * 4  # 2 Hz
    assert [step["buzzer"] for step in shown] == [True, True, False, False] * 2  # half of every second
    assert all(step["yellow"] and step["cyan"] for step in shown)


WHOLE = """
[control]
socket = "/run/here/control.sock"
[[annunciator]]
kind = "gpio"
chip = "pinctrl-bcm2711"
buzzer = 17
[[annunciator]]
kind = "sound"
"""


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        WHOLE + "[gateway\nid = nonsense\n",  # no TOML any more
        WHOLE.replace("buzzer = 17", "buzzer = 17\nred = oops\nwhat = ["),
        WHOLE.replace("[[annunciator]]", " [[ annunciator ]]  # the buzzer", 1) + "\nx = = 1\n",
        "\x00\n" + WHOLE,
    ],
)
def test_annunciators_are_read_from_a_configuration_that_is_broken_elsewhere(text: str) -> None:
    tables, control = last_gasp.annunciators(text)
    assert tables == [{"kind": "gpio", "chip": "pinctrl-bcm2711", "buzzer": 17}, {"kind": "sound"}]
    assert control == Path("/run/here/control.sock")


@pytest.mark.parametrize(
    "text", ["", "annunciator = 3\ncontrol = 4\n", "[[annunciator]]\n[control]\nsocket = 5\n", "["]
)
def test_what_is_no_configuration_gives_no_output_and_no_error(text: str) -> None:
    tables, control = last_gasp.annunciators(text)
    assert not any(tables)
    assert control == last_gasp.CONTROL


class Chip:
    """A chip of which some lines cannot be had."""

    def __init__(self) -> None:
        self.taken: set[int | str] = set()
        self.levels: dict[int | str, Value] = {}
        self.held: set[int | str] = set()
        self.low: set[int | str] = set()

    def __call__(self, path: str) -> Chip:
        return self

    def get_info(self) -> Any:
        return type("Info", (), {"label": "pinctrl-bcm2711"})

    def get_line_info(self, line: int | str) -> Any:
        return type("Line", (), {"used": line in self.taken, "consumer": "edge-agent"})

    def request_lines(self, config: dict[int | str, Any], consumer: str) -> Any:
        ((line, settings),) = config.items()
        assert consumer == "edge-agent-last-gasp"
        assert settings.output_value == Value.INACTIVE, "nothing may flash while a line is requested"
        if settings.active_low:
            self.low.add(line)
        self.held.add(line)
        chip = self

        class Request:
            def set_value(self, line: int | str, value: Value) -> None:
                chip.levels[line] = value

            def release(self) -> None:
                chip.held.discard(line)

        return Request()

    def close(self) -> None:
        """Chips are closed again and again."""


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    import gpiod

    (tmp_path / "gpiochip0").touch()
    stand_in = Chip()
    monkeypatch.setattr(gpio_chips, "DEVICES", tmp_path)
    monkeypatch.setattr(gpiod, "Chip", stand_in)
    monkeypatch.setattr(gpiod, "is_gpiochip_device", lambda path: True)
    return stand_in


GPIO = (
    '[[annunciator]]\nkind = "gpio"\nchip = "pinctrl-bcm2711"\nbuzzer = 17\nred = 22\nyellow = "LAMP"\nheartbeat = 5\n'
)


def test_every_line_that_can_be_had_is_driven_and_the_others_are_tried_again(tmp_path: Path, chip: Chip) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        GPIO + "active_low = true\n[[annunciator]]\nkind = 'gpio'\nchip = 'other'\nbuzzer = true\nred = 1\n"
    )
    chip.taken = {22}
    gasp = last_gasp.LastGasp(config)
    gasp.read()
    gasp.open()
    gasp.show(last_gasp.levels(0))
    assert chip.held == {17, "LAMP"} == chip.low, "the heartbeat is left to the monostable"
    assert chip.levels[17] == chip.levels["LAMP"] == Value.ACTIVE
    assert ["22" in fault or "other" in fault for fault in gasp.faults()] == [True, True], gasp.faults()
    chip.taken = set()
    gasp.open()
    gasp.show(last_gasp.levels(0))
    assert chip.levels[22] == Value.ACTIVE
    gasp.close()
    assert set(chip.levels.values()) == {Value.INACTIVE}
    assert not chip.held


def test_a_configuration_that_comes_later_is_taken(tmp_path: Path, chip: Chip) -> None:
    gasp = last_gasp.LastGasp(tmp_path / "c.toml")
    gasp.read()
    assert "c.toml" in gasp.faults()[0]
    (tmp_path / "c.toml").write_text("[gateway]\n")
    gasp.read()
    assert "no annunciator" in gasp.faults()[0]
    (tmp_path / "c.toml").write_text(GPIO)
    gasp.read()
    assert len(gasp.lines) == 3
    assert not gasp.faults()


class Running:
    """`edge-agent last-gasp` as a process, with a recorded annunciator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.edges, self.control = folder, folder / "edges.jsonl", folder / "control.sock"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *command: str, extra: str = "") -> subprocess.Popen[str]:
        text = f'[control]\nsocket = "{self.control}"\n[[annunciator]]\nkind = "record"\npath = "edges.jsonl"\n{extra}'
        (self.folder / "c.toml").write_text(text)
        words = command or (sys.executable, "-m", "edge_agent.last_gasp")
        self.process = subprocess.Popen(
            [*words, "--config", str(self.folder / "c.toml")], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        return self.process

    def last(self) -> dict[str, bool]:
        lines = self.edges.read_text().splitlines() if self.edges.exists() else []
        edges = [json.loads(line) for line in lines]
        assert all(edge["condition"] == "agent_down" and edge["priority"] == "high" for edge in edges)
        return {edge["output"]: edge["on"] for edge in edges}

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, (self.last(), self.process and self.process.poll())
            time.sleep(0.01)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    here = Running(tmp_path)
    yield here
    if here.process is not None and here.process.poll() is None:
        here.process.kill()
        here.process.wait(DEADLINE_S)


def test_the_agent_that_comes_gets_the_outputs(running: Running) -> None:
    assert not last_gasp.relieve(running.control), "there is none"
    process = running.start(sys.executable, "-m", "edge_agent", "last-gasp", extra="[gateway\n")
    running.until(lambda: running.last().get("buzzer") is False)  # the pattern goes on
    running.until(lambda: (running.folder / last_gasp.NAME).exists())
    assert (running.folder / last_gasp.NAME).stat().st_mode & 0o777 == 0o600, "nobody else may silence it"
    assert last_gasp.relieve(running.control, DEADLINE_S)
    assert not any(running.last().values()), "off before the agent was answered"
    assert process.wait(DEADLINE_S) == 0
    assert not last_gasp.relieve(running.control)
    assert process.stderr is not None
    told = process.stderr.read()
    assert told.startswith("<2>edge-agent does not run"), told
    assert "systemctl restart edge-agent" in told


def test_an_operator_ends_it(running: Running) -> None:
    process = running.start()
    running.until(lambda: running.last().get("yellow"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(1.0) == 0
    assert not any(running.last().values())
    assert not (running.folder / last_gasp.NAME).exists()


def test_a_stale_socket_and_a_silent_caller_do_no_harm(running: Running) -> None:
    (running.folder / last_gasp.NAME).touch()
    running.start()
    running.until(lambda: (running.folder / last_gasp.NAME).is_socket())
    assert last_gasp.relieve(running.control, DEADLINE_S)


def test_without_a_socket_the_outputs_are_free_when_the_agent_answers(running: Running) -> None:
    import socket

    (running.folder / last_gasp.NAME).mkdir()  # what cannot be replaced by a socket
    process = running.start()
    running.until(lambda: running.last().get("yellow"))
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(running.control))
        agent.listen()
        assert process.wait(DEADLINE_S) == 0
    assert not any(running.last().values())


def test_an_agent_that_was_there_first_keeps_its_outputs(running: Running) -> None:
    """A last gasp that is slow to start comes after the agent has called in vain: it must not stay on beside it."""
    import socket

    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(running.control))
        agent.listen()
        process = running.start()
        assert process.wait(DEADLINE_S) == 0
    assert not running.last(), "nothing was switched"


def test_it_needs_next_to_nothing_of_the_program() -> None:
    code = (
        "import sys, edge_agent.last_gasp;"
        "print([name for name in ('pydantic', 'asyncio', 'cryptography', 'sqlite3', 'gpiod') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("Result=exit-code\nExecMainCode=1\nExecMainStatus=78\n", "its configuration is wrong"),
        ("Result=exit-code\nExecMainCode=1\nExecMainStatus=5\n", "it ended with exit code 5"),
        ("Result=watchdog\nExecMainCode=2\nExecMainStatus=6\n", "its alarm loop hung"),
        ("Result=signal\nExecMainCode=2\nExecMainStatus=9\n", "it was ended by signal 9"),
        ("Result=timeout\nExecMainCode=0\nExecMainStatus=0\n", "systemd says: timeout"),
        ("Result=success\n", ""),
        ("", ""),
    ],
)
def test_the_journal_learns_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, why: str) -> None:
    (tmp_path / "answer").write_text(told)
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\nexec cat {tmp_path}/answer\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert last_gasp.reason() == why


def test_it_stays_loud_where_systemd_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert last_gasp.reason() == ""


def test_the_clock_file_counts_while_it_is_new(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    assert clock_state.read(path, 0) is None
    for state in (True, False):
        clock_state.write(path, state, 1_000)
        assert clock_state.read(path, 1_000 + clock_state.STALE_NS) is state
        assert clock_state.read(path, 1_001 + clock_state.STALE_NS) is None, "its writer is gone"
        assert clock_state.read(path, 999) is None, "of another boot"
    for nonsense in ("", "synchronized", "perhaps 1000", "synchronized soon"):
        path.write_text(nonsense)
        assert clock_state.read(path, 1_000) is None


def test_a_notifier_without_systemd_is_silent() -> None:
    notifier = Notifier("")
    notifier.send("READY=1")
    notifier.close()
