"""The last gasp: lights and buzzer are on while the agent does not run.

Theory of operation: systemd starts this process whenever the agent has ended without being asked to. It reads of the
configuration only the annunciators, as far as they can be read, because a wrong configuration may be why the agent has
ended; it needs no key, no disk to write on and next to nothing of the rest of the program. It drives every output that
it can have and tries again for those that it cannot.

    loud ── the agent that comes calls on the socket ──▶ outputs off and given back, socket closed, end
         ── SIGTERM (an operator stops it)           ──▶ the same

The agent calls (`relieve`) right before it opens its outputs, so that the loud state lasts while it starts and fails
and starts again. What the kernel sees is one loop that never waits for a disk or a device: records and sound have
threads of their own.

The pattern is that of no alarm: red flashes as for HIGH, every other light is steady, and the buzzer is on for half of
every second. The heartbeat line is left alone, so that an external monostable sounds too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_agent import gpio_chips
from edge_agent.notifier import Notifier

NAME = "last-gasp.sock"  # beside the control socket
OUTPUTS = ("buzzer", "red", "yellow", "cyan")
STEP_S = 0.25  # red: on and off for one step each, 2 Hz as in HIGH; the buzzer for two
RETRY_S = 0.5  # for outputs that are not to be had: a dying agent may hold them a little longer
CONDITION, TEXT = "agent_down", "The gateway gives no alarms"
CONTROL = Path("/run/edge-agent/control.sock")  # as in config.Control, which this module does not import
# what an exit code means, the large ones being systemd's own: systemd.exec(5), process exit codes
_STATUS = {
    "78": "its configuration is wrong",
    "203": "its program cannot be run; see where /opt/bedside-edge/current leads",
    "216": "its groups are missing; run systemd-sysusers",
    "217": "its user is missing; run systemd-sysusers",
    "226": "a folder that it needs is missing; run systemd-tmpfiles --create",
    "243": "its key, or another credential, cannot be decrypted on this machine; see docs/keys.md",
}
_HEADER = re.compile(r"^\s*(\[\[?[^\[\]]*\]\]?)\s*(?:#.*)?$")


def relieve(control: Path, timeout_s: float = 1.0) -> bool:
    """Have the last gasp give its outputs back; False when there is none, or it has not done so in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(timeout_s)
        try:
            caller.connect(str(control.with_name(NAME)))
            return caller.recv(1) == b""
        except OSError:
            return False


def levels(step: int) -> dict[str, bool]:
    """What each output is in a step of STEP_S, counted from the beginning."""
    return {"buzzer": step % 4 < 2, "red": step % 2 == 0, "yellow": True, "cyan": True}


def annunciators(text: str) -> tuple[list[dict[str, Any]], Path]:
    """The annunciators and the control socket that a configuration names, also one that is wrong elsewhere."""
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        whole = _pieces(text)
    found, control = whole.get("annunciator"), whole.get("control")
    tables = [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []
    path = control.get("socket") if isinstance(control, dict) else None
    return tables, Path(path) if isinstance(path, str) and path else CONTROL


def _pieces(text: str) -> dict[str, Any]:
    """The tables that are wanted, line by line; what is no line of TOML by itself is left out."""
    out: dict[str, Any] = {"annunciator": [], "control": {}}
    table: dict[str, Any] | None = None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header[1].replace(" ", "")
            table = out["control"] if name == "[control]" else None
            if name == "[[annunciator]]":
                table = {}
                out["annunciator"].append(table)
        elif table is not None:
            with contextlib.suppress(tomllib.TOMLDecodeError):
                table.update(tomllib.loads(line))
    return out


class Line:
    """One GPIO line, requested when it can be had."""

    def __init__(self, chip: str, line: int | str, *, active_low: bool) -> None:
        self.name = f"gpio:{chip} line {line!r}"
        self.fault = ""
        self._chip, self._line, self._active_low = chip, line, active_low
        self._request: Any = None

    def open(self) -> None:
        """Request it, off, unless it is held already; `fault` says why that cannot be done."""
        if self._request is not None:
            return
        try:
            gpiod = gpio_chips.load()
            chip = gpio_chips.open_chip(self._chip, [self._line])
            from gpiod.line import Direction, Value

            settings = gpiod.LineSettings(
                direction=Direction.OUTPUT, active_low=self._active_low, output_value=Value.INACTIVE
            )
            try:
                self._request = chip.request_lines(config={self._line: settings}, consumer="edge-agent-last-gasp")
            finally:
                chip.close()
            self.fault = ""
        except Exception as error:  # whatever one line does, the others are driven on
            self.fault = f"{self.name}: {error}"

    def set(self, on: bool) -> None:
        """Switch it, if it is held."""
        if self._request is None:
            return
        from gpiod.line import Value

        try:
            self._request.set_value(self._line, Value.ACTIVE if on else Value.INACTIVE)
        except Exception as error:  # the chip has gone: it is asked for again
            self.fault = f"{self.name}: {error}"
            self._release()

    def close(self) -> None:
        """Off, and given back."""
        self.set(False)
        self._release()

    def _release(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            with contextlib.suppress(Exception):
                request.release()


class Recorder(threading.Thread):
    """A file that gets one JSON line for every change, as a `record` annunciator writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__(name=f"record {path}", daemon=True)
        self.name_of_output = f"record:{path}"
        self.fault = ""
        self._path = path
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._shown: dict[str, bool] = {}
        self.start()

    def show(self, wanted: dict[str, bool]) -> None:
        """Note what has changed."""
        for output, on in wanted.items():
            if self._shown.get(output, False) != on:
                self._shown[output] = on
                edge = {
                    "at_ns": time.monotonic_ns(), "bed": "", "output": output, "on": on, "priority": "high",
                    "condition": CONDITION,
                }  # fmt: skip
                self._lines.put(json.dumps(edge, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Everything off; what waits is written, unless the disk does not answer."""
        self.show(dict.fromkeys(self._shown, False))
        self._lines.put(None)
        self.join(0.5)

    def run(self) -> None:
        """Write line by line, each to the file that has the name by then."""
        while (line := self._lines.get()) is not None:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
                try:
                    os.write(descriptor, line)
                finally:
                    os.close(descriptor)
                self.fault = ""
            except OSError as error:
                self.fault = f"{self.name_of_output}: {error.strerror}"


class Speaker(threading.Thread):
    """A sound device that gives the pulse of HIGH, as loud as it gets, twice a second."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(name="sound", daemon=True)
        self.fault = ""
        self._table = {key: table[key] for key in ("device", "volume") if key in table}
        self._end = threading.Event()
        self.start()

    def close(self) -> None:
        """Silence; a device that hangs is not waited for."""
        self._end.set()
        self.join(0.3)

    def run(self) -> None:
        """Play until the end; where the device cannot be had, try again."""
        while not self._end.is_set():
            try:
                self._play()
            except Exception as error:  # an import that fails, a device that is gone: GPIO goes on
                self.fault = f"sound: {error}"
                self._end.wait(5.0)

    def _play(self) -> None:
        # here and not above: lights and buzzer must not wait for these, nor fail with them
        from edge_agent.annunciators.edges import Edge
        from edge_agent.annunciators.patterns import LOUDER
        from edge_agent.annunciators.sound import Sound
        from edge_agent.config import Annunciator

        output = Sound(Annunciator(kind="sound", **self._table), lambda path: path)
        edge = Edge("buzzer", True, "", "high", CONDITION, TEXT, 0, LOUDER, False)
        output.open()
        self.fault = ""
        try:
            while not self._end.is_set():
                output.switch([edge])
                self._end.wait(2 * STEP_S)
                output.tend(time.monotonic_ns())
        finally:
            output.close()


class LastGasp:
    """Everything that can be seen or heard of one configuration."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.control = CONTROL
        self.lines: list[tuple[str, Line]] = []
        self.recorders: list[Recorder] = []
        self.speakers: list[Speaker] = []
        self._read_fault = ""

    def read(self) -> None:
        """Take the outputs from the configuration, as long as there are none."""
        if self.lines or self.recorders or self.speakers:
            return
        try:
            text = self._config.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self._read_fault = f"{self._config}: {error.strerror}"
            return
        tables, self.control = annunciators(text)
        for table in tables:
            self._add(table)
        none = f"{self._config}: no annunciator can be read from it; nothing can be seen or heard"
        self._read_fault = "" if self.lines or self.recorders or self.speakers else none

    def _add(self, table: dict[str, Any]) -> None:
        kind, chip, path = table.get("kind"), table.get("chip"), table.get("path")
        if kind == "gpio" and isinstance(chip, str):
            for output in OUTPUTS:
                line = table.get(output)
                if isinstance(line, int | str) and not isinstance(line, bool):
                    self.lines.append((output, Line(chip, line, active_low=table.get("active_low") is True)))
        elif kind == "record" and isinstance(path, str):
            self.recorders.append(Recorder(self._config.parent / path))
        elif kind == "sound":
            self.speakers.append(Speaker(table))

    def open(self) -> None:
        """Request what is not held yet."""
        for _, line in self.lines:
            line.open()

    def show(self, wanted: dict[str, bool]) -> None:
        """Put every output right."""
        for output, line in self.lines:
            line.set(wanted[output])
        for recorder in self.recorders:
            recorder.show(wanted)

    def faults(self) -> list[str]:
        """What cannot be driven, and why."""
        outputs: Iterable[Line | Recorder | Speaker] = (
            *(line for _, line in self.lines), *self.recorders, *self.speakers
        )  # fmt: skip
        return [fault for fault in (self._read_fault, *(output.fault for output in outputs)) if fault]

    def close(self) -> None:
        """Everything off and given back: the lines first, because the agent waits for them."""
        for _, line in self.lines:
            line.close()
        for speaker in self.speakers:
            speaker.close()
        for recorder in self.recorders:
            recorder.close()


def _tell(level: int, text: str) -> None:
    """One line to the journal, with its priority as sd-daemon(3) has it."""
    print(f"<{level}>{text}", file=sys.stderr, flush=True)  # noqa: T201 - the journal of a process without logging


def reason() -> str:
    """Why the agent does not run, as systemd knows it; empty when it cannot be asked."""
    query = ["systemctl", "show", "edge-agent.service", "--property=Result,ExecMainCode,ExecMainStatus"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=3, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    result, code, status = told.get("Result", ""), told.get("ExecMainCode", ""), told.get("ExecMainStatus", "")
    if result == "exit-code":
        return _STATUS.get(status, f"it ended with exit code {status}")
    if result == "watchdog":
        return "its alarm loop hung"
    if result in ("signal", "core-dump") and code in ("2", "3"):  # CLD_KILLED, CLD_DUMPED
        return f"it was ended by signal {status}"
    return f"systemd says: {result}" if result not in ("", "success") else ""


def _say_why() -> None:
    why = reason()
    _tell(
        2,
        f"edge-agent does not run{': ' if why else ''}{why}. NO ALARMS ARE GIVEN AT THE BEDSIDE. Lights and buzzer stay"
        " on until it is back. See why: journalctl -u edge-agent -n 50 and edge-agent check"
        " /etc/edge-agent/edge-agent.toml; then: systemctl restart edge-agent. To end the sound without it:"
        " systemctl stop edge-agent edge-agent-last-gasp",
    )


def _listen(control: Path) -> socket.socket | None:
    """The socket that the agent calls; None, after saying so, when it cannot be made."""
    path = control.with_name(NAME)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # the agent's own user and root, nobody else, may silence this
        try:
            server.bind(str(path))
        finally:
            os.umask(before)
        server.listen(4)
    except OSError as error:
        server.close()
        _tell(3, f"{path}: {error.strerror}; the outputs are given back when the control socket answers")
        return None
    return server


def _answers(control: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(str(control)) == 0


def run(config: Path) -> int:
    """Be loud until the agent calls or SIGTERM comes; 0."""
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the wake-up tells
    with contextlib.suppress(OSError):  # as docs/systemd.md says: LimitRTPRIO allows it
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    gasp, notifier = LastGasp(config), Notifier()
    gasp.read()
    server = _listen(gasp.control)
    # An agent that called before there was a socket to call has its own open since before that: one sees the other.
    if not _answers(gasp.control):
        gasp.open()
        gasp.show(levels(0))
    notifier.send("READY=1\nSTATUS=loud: edge-agent does not run")
    threading.Thread(target=_say_why, name="reason", daemon=True).start()
    try:
        caller = _be_loud(gasp, server, woken, notifier)
    finally:
        gasp.close()
    if server is not None:
        gasp.control.with_name(NAME).unlink(missing_ok=True)
        server.close()
    if caller is not None:
        caller.close()  # from here on the agent opens its outputs
    _tell(5, "outputs given back, to the agent that is back" if caller is not None else "outputs given back")
    notifier.close()
    return 0


def _be_loud(
    gasp: LastGasp, server: socket.socket | None, woken: socket.socket, notifier: Notifier
) -> socket.socket | None:
    """Play the pattern; the connection of the agent that wants the outputs, None after a signal."""
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    if server is not None:
        poll.register(server, select.POLLIN)
    retry_at = begin = time.monotonic()
    told = ""
    while True:
        now = time.monotonic()
        step = int((now - begin) / STEP_S)
        if now >= retry_at:
            retry_at = now + RETRY_S
            if _answers(gasp.control):
                return None
            gasp.read()
            gasp.open()
            notifier.send("WATCHDOG=1")
            faults = "; ".join(gasp.faults())
            if faults != told:
                told = faults
                _tell(2 if faults else 5, faults or "every output is driven now")
        gasp.show(levels(step))
        left_s = begin + (step + 1) * STEP_S - time.monotonic()
        for descriptor, _ in poll.poll(max(0, round(left_s * 1000))):
            if server is None or descriptor != server.fileno():
                return None
            with contextlib.suppress(OSError):
                return server.accept()[0]


def main(argv: list[str] | None = None) -> int:
    """The command line of `python -m edge_agent.last_gasp`, which needs less than `edge-agent last-gasp`."""
    parser = argparse.ArgumentParser(prog="edge-agent last-gasp", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    return run(parser.parse_args(argv).config)


if __name__ == "__main__":
    sys.exit(main())
