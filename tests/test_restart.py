"""kill -9 and start again: alarms come back under their identifiers, pauses, limits and patients as they were."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, dial, running, until

from bench.gateway import Gateway, connect
from bench.messages import frame
from edge_agent.alarm_log import FILE, reader
from edge_agent.buffer import load_kek
from edge_agent.buffer.clock import Clock
from edge_agent.continuity import Continuity
from edge_agent.control import ControlClient, Refused

LOW, NORMAL = 80.0, 97.0
DEADLINE_S = 30.0


class Monitor:
    """One monitor's connection that waits for every acknowledgement: the agent has handled what was sent."""

    def __init__(self, port: int) -> None:
        self._socket = connect(port)
        self._socket.settimeout(DEADLINE_S)
        self._number = 0

    def send(self, bed: int, spo2: float) -> None:
        self._number += 1
        self._socket.sendall(frame(self._number, bed, spo2))
        reply = b""
        while not reply.endswith(b"\x1c\r"):
            reply += self._socket.recv(4096)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(beds=2) as gateway:
        yield gateway


def monitor_of(gateway: Gateway) -> Monitor:
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return Monitor(gateway.port)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def bed_of(gateway: Gateway, number: int) -> dict[str, Any]:
    found: dict[str, Any] = gateway.status()["beds"][number]
    return found


def spo2_alarm(gateway: Gateway, number: int) -> dict[str, Any]:
    (alarm,) = [each for each in bed_of(gateway, number)["alarms"] if each["condition"] == "spo2_low"]
    return dict(alarm)


def wait(done: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)


def ask(gateway: Gateway, op: str, **request: Any) -> dict[str, Any]:
    with ControlClient(gateway.socket) as client:
        return client.call(op, **request)


def kill_and_start(gateway: Gateway) -> None:
    wait(lambda: gateway.status()["log"]["waiting"] == 0, "the alarm log on the disk")
    gateway.kill("edge-agent")
    gateway.start("edge-agent")


@pytest.mark.alm("ALM-24", "ALM-19")
def test_active_alarms_come_back_under_their_identifier_and_in_their_state(gateway: Gateway) -> None:
    monitor = monitor_of(gateway)
    monitor.send(0, LOW)
    monitor.send(1, LOW)
    ask(gateway, "acknowledge", bed="B1")
    before = [spo2_alarm(gateway, number) for number in (0, 1)]
    assert [alarm["state"] for alarm in before] == ["On", "Ack"]
    monitor.close()
    kill_and_start(gateway)
    after = [spo2_alarm(gateway, number) for number in (0, 1)]
    assert [alarm["alert_id"] for alarm in after] == [alarm["alert_id"] for alarm in before]
    assert [alarm["state"] for alarm in after] == ["On", "Ack"]
    assert [alarm["value"] for alarm in after] == [LOW, LOW]
    assert bed_of(gateway, 0)["alarm"]["audio"] and not bed_of(gateway, 1)["alarm"]["audio"]
    assert all(bed_of(gateway, number)["alarm"]["visual"] for number in (0, 1))
    monitor = monitor_of(gateway)
    monitor.send(0, LOW)  # still low: the same alarm, not a new one
    assert spo2_alarm(gateway, 0)["alert_id"] == before[0]["alert_id"]
    monitor.send(0, NORMAL)
    wait(lambda: not [a for a in bed_of(gateway, 0)["alarms"] if a["condition"] == "spo2_low"], "the end")
    assert spo2_alarm(gateway, 1)["alert_id"] == before[1]["alert_id"]
    monitor.close()


@pytest.mark.alm("ALM-19")
def test_pause_limits_and_patient_survive_and_a_new_patient_resets_them(gateway: Gateway) -> None:
    monitor = monitor_of(gateway)
    monitor.send(0, NORMAL)
    ask(gateway, "set_limit", bed="B0", condition="spo2_low", present="below 85")
    ask(gateway, "pause_audio", bed="B0", seconds=170)
    ask(gateway, "admit", bed="B1", patient_id="SIM-7")
    monitor.close()
    time_before = time.monotonic()
    kill_and_start(gateway)
    bed = bed_of(gateway, 0)
    assert bed["alarm"]["inactivation"]["state"] == "audio_paused"
    remaining = bed["alarm"]["inactivation"]["remaining_s"]
    assert 170 - (time.monotonic() - time_before) - 5 <= remaining <= 170
    assert bed["limits"]["spo2"]["low"] == 85.0
    assert bed["patient"] and bed_of(gateway, 1)["patient"]
    ask(gateway, "admit", bed="B0", patient_id="SIM-8")
    bed = bed_of(gateway, 0)
    assert bed["alarm"]["inactivation"] is None
    assert bed["limits"]["spo2"]["low"] == 90.0
    kill_and_start(gateway)
    bed = bed_of(gateway, 0)
    assert bed["alarm"]["inactivation"] is None and bed["limits"]["spo2"]["low"] == 90.0


@pytest.mark.alm("ALM-20")
def test_the_alarm_log_says_who_changed_a_limit_and_who_was_refused(gateway: Gateway) -> None:
    ask(gateway, "set_limit", bed="B0", condition="spo2_low", present="below 85", delay_s=3)
    with pytest.raises(Refused, match="ceiling"):
        ask(gateway, "set_limit", bed="B0", condition="spo2_low", present="below 85", delay_s=300)
    ask(gateway, "admit", bed="B1", patient_id="SIM-7")
    wait(lambda: gateway.status()["log"]["waiting"] == 0, "the alarm log on the disk")
    with reader.snapshot(gateway.data_dir / FILE, load_kek(f"file:{gateway.folder / 'kek'}")) as found:
        entries = [entry for entry, _ in found.entries()]
    (changed,) = [entry.alarm for entry in entries if entry.alarm and entry.alarm.event == "limit"]
    assert changed.operator == f"uid={os.getuid()}" and "was below 90" in changed.detail
    marks = [entry.mark.detail for entry in entries if entry.mark and entry.mark.kind == "operator"]
    assert [(mark["op"], mark["detail"].partition(":")[0]) for mark in marks] == [
        ("set_limit", "refused"),
        ("admit", "bed=B1"),
    ]
    assert "SIM-7" not in str(entries)


def test_a_source_that_is_gone_after_the_restart_is_told_and_nothing_ends_silently(gateway: Gateway) -> None:
    monitor = monitor_of(gateway)
    monitor.send(0, LOW)
    alert = spo2_alarm(gateway, 0)["alert_id"]
    monitor.close()
    kill_and_start(gateway)
    assert spo2_alarm(gateway, 0)["alert_id"] == alert
    wait(lambda: {"source_lost", "source_silent"} & conditions(gateway, 0), "the technical alarm of the source")


def conditions(gateway: Gateway, number: int) -> set[str]:
    return {alarm["condition"].split(":")[0] for alarm in bed_of(gateway, number)["alarms"]}


@pytest.mark.alm("ALM-22")
@pytest.mark.parametrize("step_s", [3600, -3600])
async def test_a_step_of_the_wall_clock_changes_no_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    bedside = Bedside(tmp_path)
    async with running(bedside.write()) as agent:
        alarms = agent.pipeline.alarms
        alarms.inactivate("ICU-3", "audio_paused", 120, "nurse", time.monotonic_ns())
        deadlines = (alarms.next_deadline(), agent.pipeline.watch.next_deadline())
        utc_ns = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: utc_ns() + step_s * 1_000_000_000)
        await until(
            lambda: any(a["condition"] == "clock_step" for a in alarms.view("", time.monotonic_ns())["alarms"]),
            "the alarm of the stepped clock",
        )
        assert alarms.next_deadline() == deadlines[0]
        left = alarms.view("ICU-3", time.monotonic_ns())["inactivation"]["remaining_s"]
        assert 100 <= left <= 120
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, LOW))
        await monitor.reply()
        assert bedside.lit("spo2_low") or await _lit(bedside)
        monitor.close()


async def _lit(bedside: Bedside) -> bool:
    await until(lambda: bedside.lit("spo2_low"), "the light")
    return True


@pytest.mark.alm("ALM-31")
async def test_a_hung_loop_feeds_no_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    received: list[float] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")

        def listen() -> None:
            while True:
                if b"WATCHDOG=1" in (message := systemd.recv(256)):
                    received.append(time.monotonic())
                if b"STOPPING=1" in message:
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        async with running(Bedside(tmp_path).write()):
            await until(lambda: len(received) >= 2, "two feeds of the watchdog")
            hung = time.monotonic()
            time.sleep(3.0)  # noqa: ASYNC251 - the fault itself: nothing else runs in the alarm loop meanwhile
            back = time.monotonic()
            fed = len(received)
            await until(lambda: len(received) > fed, "the next feed")
        listener.join(DEADLINE_S)
    assert not [at for at in received if hung + 0.1 < at < back], (
        "the watchdog was fed by something that is not the loop"
    )


async def test_an_alarm_of_a_bed_that_was_taken_out_is_over(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    config = bedside.write()
    async with running(config):
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 4, LOW))
        await monitor.reply()
        monitor.close()
    config.write_text(config.read_text().replace('[[bed]]\nid = "ICU-4"', '[[bed]]\nid = "ICU-5"'))
    for told in (True, False):
        async with running(config) as agent:
            assert agent.log is not None
            assert ("ICU-4" in {kept.bed for kept in agent.log.active()}) == told
            assert not [bed for bed, event in agent.pipeline.alarms.active() if event.condition == "spo2_low"]


class Rebooted(Clock):
    """The clocks of the machine after a restart: another boot, CLOCK_MONOTONIC from anew, UTC as it may be."""

    def __init__(self, utc_ns: int) -> None:
        super().__init__()
        self._utc_ns = utc_ns

    def monotonic_ns(self) -> int:
        return 5_000_000_000

    def utc_ns(self) -> int:
        return self._utc_ns

    def boot(self) -> bytes:
        return b"another boot...."


@pytest.mark.parametrize(("ago_s", "left_s"), [(40, 60), (-5000, 100), (99, 1), (100, None)])
async def test_after_a_restart_of_the_machine_utc_decides_how_old_a_pause_is(
    tmp_path: Path, ago_s: int, left_s: int | None
) -> None:
    bedside = Bedside(tmp_path)
    async with running(bedside.write()) as agent:
        agent.pipeline.alarms.inactivate("ICU-3", "audio_paused", 100, "nurse", time.monotonic_ns())
    async with running(bedside.write()) as agent:
        assert agent.log is not None
        (kept,) = agent.log.inactivations()
        agent.pipeline.alarms.resume("ICU-3", "nurse", time.monotonic_ns())
        clock = Rebooted(kept.event_utc_ns + ago_s * 1_000_000_000)
        Continuity(agent.log, agent.pipeline, agent.feeds).restore(clock)
        found = agent.pipeline.alarms.view("ICU-3", clock.monotonic_ns())["inactivation"]
        assert (None if found is None else found["remaining_s"]) == left_s
