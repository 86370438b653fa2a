"""The counters over the control socket: valid Prometheus text, with what a real forwarder has counted."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from rest_proxy import CLUSTER, RestProxy
from running_agent import dial, running
from test_privacy_path import Gateway

from bench.messages import frame
from edge_agent.control import ControlClient
from edge_agent.exposition import cloud, family

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9.]+(?:e[+-]?[0-9]+)?|NaN|[+-]Inf)")

Samples = dict[tuple[str, str], float]


def parsed(text: str) -> Samples:
    """Every sample by name and labels; fails where the text is not what the format says."""
    assert text.endswith("\n")
    found: Samples = {}
    seen: set[str] = set()
    helped = present = ""
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert line.split(" ", 3)[3], "a help says something"
            continue
        if line.startswith("# TYPE "):
            _, _, present, kind = line.split(" ")
            assert present not in seen, f"{present} stands twice"
            assert helped == present, f"{present} has no help"
            assert kind in ("counter", "gauge", "summary") and (kind == "counter") == present.endswith("_total")
            seen.add(present)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1] == present, f"{line} does not stand below its type"
        key = (match[1], match[2] or "")
        assert key not in found, f"{key} stands twice"
        found[key] = float(match[3])
    return found


def test_labels_are_escaped_and_an_empty_family_says_nothing() -> None:
    lines = family("x_total", "counter", "What.", [({"source": 'a "b" \\ c\nd'}, 3), ({"source": "e"}, 0.5)])
    assert lines == [
        "# HELP x_total What.", "# TYPE x_total counter", r'x_total{source="a \"b\" \\ c\nd"} 3',
        'x_total{source="e"} 0.5',
    ]  # fmt: skip
    assert len(parsed("\n".join(lines) + "\n")) == 2
    assert family("x", "gauge", "What.", []) == []


def test_every_receiver_is_counted_and_a_state_file_of_another_form_breaks_nothing() -> None:
    counts = {"alerts": 1, "data": 2}
    both = {"forwarded": counts, "dropped": {"alerts": 0, "data": 4}}
    manager = {"sent": 7, "refused": 1}
    status = {"state": "connected", "backlog_records": 5, "backlog_oldest_s": 1.5, **both, "mqtt": both, "rest": both}
    found = parsed("\n".join(cloud(status | {"alert_manager": manager})) + "\n")
    for receiver in ("kafka", "mqtt", "rest"):
        assert found["cloud_sync_forwarded_total", f'receiver="{receiver}",stream="data"'] == 2
        assert found["cloud_sync_dropped_total", f'receiver="{receiver}",stream="data"'] == 4
    assert found["cloud_sync_forwarded_total", 'receiver="alert_manager",stream="alerts"'] == 7
    assert (found["cloud_sync_backlog_records", ""], found["cloud_sync_backlog_oldest_seconds", ""]) == (5, 1.5)
    assert found["cloud_sync_connected", ""] == 1
    for strange in (None, {}, {"state": 3, "forwarded": [], "mqtt": {"forwarded": {"data": "x"}}, "alert_manager": {}}):
        assert parsed("\n".join(cloud(strange)) + "\n") == {("cloud_sync_connected", ""): 0}


async def test_a_running_agent_tells_what_a_real_forwarder_has_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway, proxy = Gateway(tmp_path), RestProxy()
    config = gateway.write(f'[cloud.rest]\nurl = "{proxy.url}"\ncluster = "{CLUSTER}"')

    def ask() -> Samples:
        with ControlClient(tmp_path / "control.sock") as client:
            return parsed(client.call("metrics")["text"])

    def counted() -> Samples:
        while True:
            found = ask()
            if found.get(("cloud_sync_forwarded_total", 'receiver="rest",stream="data"'), 0) >= 10:
                return found

    try:
        async with running(config):
            monitor = await dial(gateway.port)
            monitor.send(frame(1, 3, 80.0))
            await monitor.reply()
            before = await asyncio.to_thread(ask)
            with gateway.forwarding(config):
                found = await asyncio.wait_for(asyncio.to_thread(counted), 30)
            printed = await asyncio.to_thread(gateway.command, "edge_agent", "metrics", "--config", str(config))
            monitor.close()
    finally:
        proxy.close()
    assert before["cloud_sync_connected", ""] == 0 and found["cloud_sync_connected", ""] == 1
    assert found["edge_agent_items_total", 'source="monitor"'] == 10
    assert found["edge_agent_alarms", 'bed="ICU-3",priority="high"'] == 1
    assert found["cloud_sync_forwarded_total", 'receiver="rest",stream="alerts"'] >= 1
    assert parsed(printed).keys() >= before.keys()
