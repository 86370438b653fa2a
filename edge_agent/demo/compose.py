"""The demo: simulated bedside, agent, cloud-sync and an embedded Kafka, and one terminal view of all of it.

Everything runs as it does in a hospital, in processes of its own with a configuration of its own, in a temporary folder
that goes at the end. The demo itself holds the devices and is a client of the agent's control socket. On a terminal a
person is the operator, by keys; elsewhere a script acknowledges and pauses. It ends with a summary, and with exit code
0 only when alarms of every priority, the technical alarm, the operator's actions, a whole NEWS2, the alarm log and the
forwarding were really seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.resources import files
from pathlib import Path

from edge_agent import view
from edge_agent.buffer import create_key_file
from edge_agent.control import answers
from edge_agent.demo.children import Child, ChildDied, started
from edge_agent.demo.follow import statuses, until
from edge_agent.demo.logbook import last_entries
from edge_agent.demo.operator import KEYS, Operator, keys
from edge_agent.demo.outcome import Edge, Outcome, edges
from edge_agent.demo.ward import STRAP_NAME, Script, Ward, bed_names, location
from edge_agent.presets import load_presets

START_S = 30.0  # a Raspberry Pi imports for some seconds
DRAIN_S = 15.0  # until what was recorded last has arrived
KAFKA_NOTE = "embedded Kafka: demo only, it keeps nothing and guarantees nothing"
PRESET = "adult"
KEY_FILE = "key"
_OXIMETER = "oximeter"
_LOOK_S = 0.05
_STATUS_S = 1.0
_LOG_LINES = 12
_NOTES = 8  # of what happened, below the beds
_BUNDLES = Path(str(files("models_tflite"))) / "bundles"  # of the risk model, with the package
_SOUND_CARDS = Path("/dev/snd")  # a playback device of ALSA is pcmC*D*p in it

Say = Callable[[str], None]


def free_port() -> int:
    """A TCP port on the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(Exception):
    """The demo could not begin; `str` says what was waited for."""


def configuration(beds: list[str], folder: Path, mllp_port: int, serial_path: Path, hci: str, bootstrap: str) -> str:
    """The demo's configuration file; relative paths start at its folder."""
    quoted = json.dumps  # TOML's basic strings are JSON's
    lines = [
        '[gateway]\nid = "demo-gw"\ndata_dir = "data"\n',
        '[control]\nsocket = "control.sock"\n',
        f"[buffer]\nkey = {quoted(f'file:{folder / KEY_FILE}')}\nquota_mb = 64\n",
        # the mock cluster accepts transactions and keeps none of their promises
        f'[cloud.kafka]\nbootstrap = {quoted(bootstrap)}\nsecurity = "plaintext"\nexactly_once = false\n',
    ]
    # an output of its own for each bed that gets an alarm: a shared one shows the highest of all and hides the other
    lines += [
        f'[[annunciator]]\nkind = "record"\npath = "edges.jsonl"\nbed = {quoted(bed)}\n'
        for bed in dict.fromkeys((beds[0], beds[-1]))
    ]
    if has_sound():
        lines.append('[[annunciator]]\nkind = "sound"\n')
    lines += [f'[[bed]]\nid = {quoted(bed)}\npreset = "{PRESET}"\nlocation = {quoted(location(bed))}\n' for bed in beds]
    if any(_BUNDLES.glob("*/model.json")):
        lines.append("[model]\nevery_s = 5\n")  # the newest one; at the bedside once a minute
    serial, strap = f"serial://{serial_path}", f"ble://name/{STRAP_NAME}?hci={hci}"
    lines += [
        _source("monitor", "hl7", f"mllp-listen://127.0.0.1:{mllp_port}"),
        _source(_OXIMETER, "nonin", serial, beds[-1]),
        _source("strap", "gatt", strap, beds[-1]),
    ]
    return "\n".join(lines)


def has_sound() -> bool:
    """Whether this machine has a sound device; without one the terminal's bell rings for every pulse."""
    return any(_SOUND_CARDS.glob("pcm*p"))


def _source(name: str, driver: str, link: str, bed: str = "") -> str:
    keys = {"name": name, "driver": driver, "link": link, "bed": bed}
    return "\n".join(["[[source]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value), ""])


class Demo:
    """One demo in one folder; `run` gives its exit code."""

    def __init__(
        self,
        folder: Path,
        beds: int,
        seconds: float | None,
        say: Say,
        script: Script | None = None,
        *,
        hand: bool = False,
    ) -> None:
        """With `hand` a person at the keys is the operator; else the script acts."""
        self.beds = bed_names(beds)
        self.children: list[Child] = []
        self._folder, self._seconds, self._say = folder, seconds, say
        self._script = script or Script()
        self._stop = asyncio.Event()
        self._started = time.monotonic()
        self._outcome = Outcome(self.beds[0], self.beds[-1], _OXIMETER, scripted=not hand)
        self.hand = hand
        self._operator = Operator(folder / "control.sock", self._tell)

    def stop(self) -> None:
        """End the demo as when its seconds are over."""
        self._stop.set()

    def elapsed(self) -> float:
        """Seconds since the devices began to send."""
        return time.monotonic() - self._started

    async def run(self, show: Callable[[view.Status], None]) -> int:
        """Start everything, show every status until `stop` or the end, stop everything, tell what was seen."""
        async with AsyncExitStack() as stack:
            folder, mllp_port = self._folder, free_port()
            ward = await stack.enter_async_context(
                Ward(self.beds, mllp_port, folder / "oximeter", self._script, self._tell)
            )
            kafka = await self._child(stack, "embedded Kafka", "cloud_sync", self._kafka_arguments())
            await self._wait("its address", (folder / "bootstrap").exists, kafka)
            self._configure(mllp_port, ward)
            run = ["run", "--config", str(folder / "demo.toml")]
            agent = await self._child(stack, "edge-agent", "edge_agent", run)
            await self._wait("its control socket", lambda: answers(folder / "control.sock"), agent)
            await self._child(stack, "cloud-sync", "cloud_sync", run)
            self._started = time.monotonic()
            devices = asyncio.create_task(ward.run())
            stack.push_async_callback(_cancelled, devices)
            stack.push_async_callback(_cancelled, asyncio.create_task(self._look_at_patient()))
            if self.hand:
                stack.enter_context(keys(self._keys(ward)))
                stack.push_async_callback(_cancelled, asyncio.create_task(self._ring()))
            else:
                stack.push_async_callback(_cancelled, asyncio.create_task(self._act()))
            await self._follow(show, devices, ward)
            await self._drained(kafka)
            return self._tell_end(ward, kafka)

    def _kafka_arguments(self) -> list[str]:
        return ["embedded", "--port-file", str(self._folder / "bootstrap"), "--count", "0.5"]

    def _configure(self, mllp_port: int, ward: Ward) -> None:
        folder = self._folder
        bootstrap = (folder / "bootstrap").read_text(encoding="utf-8").strip()
        create_key_file(folder / KEY_FILE)
        text = configuration(self.beds, folder, mllp_port, folder / "oximeter", ward.hci, bootstrap)
        (folder / "demo.toml").write_text(text, encoding="utf-8")

    async def _child(self, stack: AsyncExitStack, name: str, module: str, arguments: list[str]) -> Child:
        log = self._folder / f"{name.replace(' ', '-').lower()}.log"
        argv = [sys.executable, "-m", module, *arguments]
        child = await stack.enter_async_context(started(name, argv, log))
        self.children.append(child)
        return child

    async def _wait(self, what: str, there: Callable[[], bool], child: Child) -> None:
        deadline = time.monotonic() + START_S
        while not there():
            child.check()
            if self._stop.is_set():
                raise NotStarted("interrupted before everything had started")
            if time.monotonic() > deadline:
                raise NotStarted(f"{child.name} did not show {what} within {START_S:.0f} s")
            await asyncio.sleep(_LOOK_S)

    async def _follow(self, show: Callable[[view.Status], None], devices: asyncio.Task[None], ward: Ward) -> None:
        """Take every status until the end; a child or device that ends early ends the demo with an error."""
        socket_path = self._folder / "control.sock"
        async with (
            contextlib.aclosing(statuses(socket_path, _STATUS_S)) as every,
            contextlib.aclosing(until(every, self._stop)) as stream,
        ):
            async for status in stream:
                for child in self.children:
                    child.check()
                if devices.done():
                    await devices  # raises what ended it
                self._outcome.pulled = ward.pulled_ns is not None  # what this status shows may still be older
                self._outcome.observe(status)
                show(status)
                if self._seconds is not None and self.elapsed() >= self._seconds:
                    return
        for child in self.children:
            child.check()
        if not self._stop.is_set():
            raise ChildDied("edge-agent closed its control socket")

    def _keys(self, ward: Ward) -> dict[str, Callable[[], Awaitable[None] | None]]:
        return {
            "a": self._operator.acknowledge,
            "o": partial(self._operator.observe, self.beds[0]),
            "p": self._operator.pause,
            "r": self._operator.resume,
            "c": ward.pull_or_plug,
            "b": ward.battery,
            "l": self._read_log,
            "q": self.stop,
        }

    async def _act(self) -> None:
        """What the operator does where nobody sits at the keys."""
        script, operator = self._script, self._operator
        for second, action in (
            (script.acknowledges_s, operator.acknowledge),
            (script.pauses_s, operator.pause),
            (script.resumes_s, operator.resume),
        ):
            await asyncio.sleep(max(0.0, second - self.elapsed()))
            await action()

    async def _look_at_patient(self) -> None:
        """What a nurse enters on every round, whoever acts on alarms."""
        await asyncio.sleep(max(0.0, self._script.observes_s - self.elapsed()))
        await self._operator.observe(self.beds[0])

    async def _ring(self) -> None:
        """Ring the terminal's bell for every pulse where there is no loudspeaker."""
        heard = 0
        while not has_sound():
            await asyncio.sleep(_LOOK_S)
            pulses = sum(edge.output == "buzzer" for edge in self._output())
            if pulses > heard:
                heard = pulses
                os.write(1, b"\a")  # past the screen, which would print it

    def _read_log(self) -> None:
        lines, fault = last_entries(self._folder / "data", self._folder / KEY_FILE, _LOG_LINES)
        for line in lines or [f"alarm log: {fault}"]:
            self._say(line)

    async def _drained(self, kafka: Child) -> None:
        """Wait until as much has arrived as has been forwarded by now, at most DRAIN_S."""
        wanted = max(1, self._outcome.forwarded())
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and sum(consumed(kafka).values()) < wanted:
            kafka.check()
            await asyncio.sleep(_LOOK_S)

    def _tell(self, text: str) -> None:
        self._say(f"[{self.elapsed():3.0f} s] {text}")

    def _tell_end(self, ward: Ward, kafka: Child) -> int:
        output, arrived = self._output(), consumed(kafka)
        conditions = dict(load_presets()[PRESET].by_id)
        self._say(f"\n{len(self.beds)} beds, {self.elapsed():.0f} s, {ward.acknowledged} HL7 messages acknowledged")
        for line in self._outcome.summary(output, arrived, ward.spo2_sent, ward.pulled_ns, conditions):
            self._say(line)
        listed, log_fault = last_entries(self._folder / "data", self._folder / KEY_FILE, _LOG_LINES)
        for line in listed:
            self._say(line)
        missing = self._outcome.missing(output, arrived) + self._outcome.unattended(output, log_fault)
        for what in missing:
            self._say(f"NOT SEEN: {what}")
        if missing and self.elapsed() < _shortest(self._script):
            self._say(f"the demo was shorter than the {_shortest(self._script):.0f} s that its story takes")
        if not missing:
            acted = "" if self.hand else "acknowledgement, pause, "
            self._say(f"seen: alarms of every priority, technical alarm, {acted}whole NEWS2, alarm log, forwarding")
        return 1 if missing else 0

    def _output(self) -> list[Edge]:
        try:
            return edges((self._folder / "edges.jsonl").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []


def _shortest(script: Script) -> float:
    return max(script.falls_s + 25, script.pulled_s + 10)  # fall, condition delay and silence deadline, with a margin


def consumed(kafka: Child) -> dict[str, int]:
    """Messages by topic as the embedded Kafka's process last printed them."""
    for line in reversed(kafka.log.read_text(encoding="utf-8").splitlines()):
        if line.startswith("{") and line.endswith("}"):
            counts: dict[str, int] = json.loads(line)
            return counts
    return {}


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def demo(beds: int, seconds: float | None, *, plain: bool) -> int:
    """Run a demo in a temporary folder and print it; its exit code."""
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bedside-demo-")))  # made with mode 0700
        display = None
        if not plain:
            display = stack.enter_context(view.screen())
        it = Demo(folder, beds, seconds, said.append if display else _print, hand=not plain and sys.stdin.isatty())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, it.stop)

        def show(status: view.Status) -> None:
            if display is not None:
                notes = [*said[-_NOTES:], f"keys: {KEYS}" if it.hand else "Ctrl-C ends it", KAFKA_NOTE]
                view.show(display, {**status, "notes": notes})
            else:
                _print(f"[{it.elapsed():3.0f} s] {view.plain_line(status)}")

        try:
            return await it.run(show)
        except (ChildDied, NotStarted, ConnectionError) as error:
            said.append(f"the demo broke off: {error}")
            others = [child for child in it.children if not str(error).startswith(child.name)]
            said += [f"{child.name}, last lines:\n{child.tail()}" for child in others]
            return 1
        finally:
            if display is not None:
                display.stop()
            for text in said:
                _print(text)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the demo's output
