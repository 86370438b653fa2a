"""The simulated IntelliVue monitor and the agent on a network: values, alarms, waves, and what goes wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from running_agent import Bedside, running, until

from drivers.sim.intellivue_monitor import RED, Alert, Monitor
from edge_agent.agent import Agent
from edge_agent.demo.intellivue import Host, Misbehaviour, hosted, parse
from edge_agent.pipeline import Feed
from edge_agent.records import DeviceAlarm, Entry, Observation, Waveform

NAME = "philips"


class Heard:
    """What the agent hands to its buffer from the monitor's source."""

    def __init__(self, agent: Agent) -> None:
        self.entries: list[Entry] = []
        append = agent.pipeline._append

        def listened(entries: Iterable[Entry], *, wanted_soon: bool = False) -> int:
            listed = list(entries)
            self.entries += [entry for entry in listed if entry.source == NAME]
            return append(listed, wanted_soon=wanted_soon)

        agent.pipeline._append = listened  # type: ignore[assignment]

    def values(self, term: str) -> list[float | None]:
        records = [entry.record for entry in self.entries]
        return [record.value for record in records if isinstance(record, Observation) and record.term == term]


def source(link: str, options: str = "", silence_s: float = 3.0) -> str:
    return (
        f'[[source]]\nname = "{NAME}"\ndriver = "intellivue"\nlink = "{link}"\nbed = "ICU-4"\n'
        f"silence_s = {silence_s}\noptions = {{ {options} }}"
    )


def monitor() -> Monitor:
    return Monitor(bed_label="ICU 4", patient_id="P-1", started=datetime(2026, 3, 1, 6, 30))


def feed(agent: Agent) -> Feed:
    return agent.feeds[NAME]


async def test_a_monitor_at_its_address_alarms_aborts_and_comes_back(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    host = Host(monitor())
    host.monitor.measure({"heart_rate": 71, "spo2": 97, "nibp_sys": 121, "nibp_dia": 79, "nibp_mean": 93}, 0.0)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hosted(host, "127.0.0.1"))
        agent = await stack.enter_async_context(running(bedside.write(source(f"udp-dial://127.0.0.1:{host.port}"))))
        heard = Heard(agent)
        await until(lambda: heard.values("spo2"), "the first SpO2")
        assert heard.values("nibp_sys") == [121]
        measured = [entry for entry in heard.entries if isinstance(entry.record, Observation | Waveform)]
        assert {entry.bed for entry in measured} == {"ICU-4"}
        await until(lambda: any(isinstance(e.record, Waveform) for e in heard.entries), "a wave")
        await until(lambda: agent.pipeline.beds.patient("ICU-4") == "P-1", "the patient")

        host.monitor.measure({"spo2": 78}, host.now_s())
        fell = time.monotonic()
        await until(lambda: bedside.lit("spo2"), "the gateway's own alarm")
        assert time.monotonic() - fell < 3, "the monitor tells its numbers once a second"
        host.monitor.alerts = [Alert("*** ASYSTOLE", RED, 40, 0x4182)]
        await until(lambda: bedside.lit("device_alarm"), "the monitor's alarm")
        assert [e.record.phase for e in heard.entries if isinstance(e.record, DeviceAlarm)] == ["start"]

        host.abort()
        await until(lambda: host.associations == 2, "an association after the abort")
        before = len(heard.values("spo2"))
        await until(lambda: len(heard.values("spo2")) > before, "values after the abort")
        assert feed(agent).failures == 0
        assert [e.record.phase for e in heard.entries if isinstance(e.record, DeviceAlarm)] == ["start"]


async def test_an_announced_monitor_on_a_bad_network_restarts_and_nothing_is_made_up(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    host = Host(monitor(), Misbehaviour(drop=0.1, late=0.15, twice=0.15, corrupt=0.15), seed=3)
    host.monitor.measure({"heart_rate": 71, "spo2": 97}, 0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hosted(host, "127.0.0.1", indicate=("127.0.0.1", port)))
        link = f"udp://127.0.0.1:{port}?reply={host.port}"
        agent = await stack.enter_async_context(running(bedside.write(source(link, 'monitor = "127.0.0.1"'))))
        heard = Heard(agent)
        await until(lambda: len(heard.values("spo2")) >= 2 and feed(agent).rejects > 2, "values and rejects")
        host.monitor.started += timedelta(hours=1)
        host.restart()
        restarted = host.associations
        await until(lambda: host.associations > restarted, "an association with the restarted monitor")
        before = len(heard.values("heart_rate"))
        await until(lambda: len(heard.values("heart_rate")) > before, "values after the restart")
        await until(lambda: feed(agent).state == "connected", "the end of the silence")
        assert set(heard.values("spo2")) == {97} and set(heard.values("heart_rate")) == {71}
        records = [entry.record for entry in heard.entries if isinstance(entry.record, Waveform | Observation)]
        told = [(record.term, record.device_time) for record in records]
        assert len(told) == len(set(told)), "nothing is given out twice"
        assert feed(agent).failures == 0
        assert min(host.counts[name] for name in ("dropped", "late", "twice", "corrupted")) > 0


def test_misbehaviour_is_told_by_name() -> None:
    assert parse("drop=0.5,abort_s=30") == Misbehaviour(drop=0.5, abort_s=30)
    for wrong in ("dropped=1", "drop=2", "drop=x"):
        with pytest.raises(ValueError, match=r"none of|from 0 to 1|float"):
            parse(wrong)
