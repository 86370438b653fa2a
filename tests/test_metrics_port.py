"""The port for Prometheus: right numbers, no patient, and nothing that comes in holds the alarm loop."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running_agent import Bedside, dial, running, until
from test_exposition import parsed

from bench.gateway import PRESET
from bench.messages import frame
from edge_agent import metrics_port
from edge_agent.agent import Agent
from edge_agent.config import ConfigError, load
from edge_agent.metrics_port import MetricsPort

ROOT = Path(__file__).parent.parent
LISTEN = '[metrics]\nlisten = "127.0.0.1:0"'


class Loop:
    """Stands for the alarm loop: counts questions, and may hang."""

    def __init__(self) -> None:
        self.asked, self.hangs = 0, False

    def post(self, done: Callable[[], None]) -> None:
        if not self.hangs:
            threading.Thread(target=done).start()

    def text(self) -> str:
        self.asked += 1
        return f"x {self.asked}\n"


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def port(loop: Loop) -> Iterator[MetricsPort]:
    made = MetricsPort(("127.0.0.1", 0), loop.post, loop.text, lambda: "y 1\n")
    assert made.open.wait(10)
    yield made
    made.close()
    assert not made._thread.is_alive()


def get(port: MetricsPort, path: str = "/metrics", method: str = "GET") -> tuple[int, str, dict[str, str]]:
    assert port.bound is not None
    connection = http.client.HTTPConnection(*port.bound, timeout=20)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), dict(reply.getheaders())
    finally:
        connection.close()


def raw(port: MetricsPort, data: bytes) -> bytes:
    """What comes back for these bytes until the port hangs up."""
    assert port.bound is not None
    found = b""
    with socket.create_connection(port.bound, 20) as peer:
        try:
            peer.sendall(data)
            while more := peer.recv(65536):
                found += more
        except ConnectionError:
            pass  # it was hung up on while it still spoke
    return found


def test_it_answers_as_prometheus_asks(port: MetricsPort) -> None:
    status, text, headers = get(port)
    assert (status, text) == (200, "x 1\ny 1\n")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4") and headers["Connection"] == "close"
    assert get(port, "/metrics?collect=all")[0] == 200
    assert get(port, method="HEAD")[:2] == (200, "")
    assert get(port, "/")[:2] == (404, "the numbers are at /metrics\n")
    status, _, headers = get(port, method="POST")
    assert status == 405 and headers["Allow"] == "GET, HEAD"


def test_the_loop_is_asked_once_a_second_at_most(port: MetricsPort, loop: Loop) -> None:
    begun = time.monotonic()
    for _ in range(5):
        assert get(port)[0] == 200
    assert loop.asked <= 1 + (time.monotonic() - begun) / metrics_port.FRESH_S


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS to a port that has none
        (b"GET /metrics\r\n\r\n", 400), (b"\r\n\r\n", 400), (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404), (b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics HTTP/1.0\n\n", 200), (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nCookie: " + b"x" * 100_000, 431), (b"\0" * 8193, 431),
    ],
)  # fmt: skip
def test_garbage_is_answered_and_hung_up_on(port: MetricsPort, data: bytes, status: int) -> None:
    found = raw(port, data)
    # one that is hung up on while it still sends may lose the answer
    assert found.startswith(f"HTTP/1.1 {status} ".encode()) or (len(data) > 8193 and found == b"")
    assert get(port)[0] == 200


def test_one_that_sends_byte_by_byte_is_dropped(port: MetricsPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port, "DEADLINE_S", 0.4)
    assert port.bound is not None
    time.sleep(metrics_port.ACCEPT_S)
    with socket.create_connection(port.bound, 10) as slow:
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < begun + 10:
                slow.sendall(b"G")
                time.sleep(0.01)
        assert time.monotonic() - begun < 5
    assert get(port)[0] == 200


def test_a_thousand_connections_leave_it_and_the_agent_as_they_were(
    port: MetricsPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight are open at most; the kernel keeps or refuses the rest, and the next scrape is answered."""
    monkeypatch.setattr(metrics_port, "DEADLINE_S", 1.0)
    monkeypatch.setattr(metrics_port, "ACCEPT_S", 0.0)
    assert port.bound is not None
    peers = []
    most = 0
    try:
        for _ in range(1000):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex(port.bound)
            peers.append(peer)
        end = time.monotonic() + 10
        while most < metrics_port.MAX_CONNECTIONS and time.monotonic() < end:
            most = max(most, len(port._connections))
        end = time.monotonic() + 0.3  # in which an unbounded one would take a dozen more
        while time.monotonic() < end:
            most = max(most, len(port._connections))
            time.sleep(0.01)
    finally:
        for peer in peers:
            peer.close()
    assert most == metrics_port.MAX_CONNECTIONS
    end = time.monotonic() + 20
    while True:
        try:
            assert get(port)[0] == 200
            break
        except OSError:
            assert time.monotonic() < end


def test_a_loop_that_hangs_is_told_and_not_asked_again(
    port: MetricsPort, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_port, "ANSWER_S", 0.1)
    loop.hangs = True
    posted: list[Callable[[], None]] = []
    monkeypatch.setattr(loop, "post", posted.append)
    port._post = loop.post
    assert get(port)[:2] == (503, "the alarm loop does not answer\n")
    assert get(port)[0] == 503 and len(posted) == 1, "one question is open at most"
    posted[0]()  # it is back
    assert get(port)[0] == 200


def test_a_port_that_is_taken_is_taken_later(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_port, "RETRY_S", 0.05)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        made = MetricsPort(other.getsockname(), loop.post, loop.text)
        assert not made.open.wait(0.3)
    assert made.open.wait(10) and get(made)[0] == 200
    made.close()


def test_only_the_loopback_unless_told(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    for listen in ("127.0.0.1:9464", "[::1]:9464", "localhost:9464", "127.8.8.8:1"):
        assert load(bedside.write(f'[metrics]\nlisten = "{listen}"')).config.metrics.address[1] > 0
    for listen, words in (
        ("0.0.0.0:9464", "can be reached from the network"), ("[::]:9464", "can be reached from the network"),
        ("10.1.2.3:9464", "allow_remote = true"), ("9464", "write an address"), ("127.0.0.1:x", "write an address"),
        ("monitoring.example:1", "write an address"), ("127.0.0.1:70000", "is no port"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="metrics") as error:
            load(bedside.write(f'[metrics]\nlisten = "{listen}"'))
        assert words in str(error.value), listen
    assert load(bedside.write('[metrics]\nlisten = "0.0.0.0:9464"\nallow_remote = true')).config.metrics.allow_remote


# -- a real agent -------------------------------------------------------------------------------------------------


def port_of(agent: Agent) -> MetricsPort:
    made = agent._metrics_port
    assert made is not None and made.open.wait(10)
    return made


async def scraped(agent: Agent) -> str:
    status, text, _ = await asyncio.to_thread(get, port_of(agent))
    assert status == 200
    return text


async def test_a_running_agent_is_scraped(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    async with running(bedside.write(LISTEN)) as agent:
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, 80.0))
        await monitor.reply()
        found = parsed(await scraped(agent))
        monitor.close()
    assert found["edge_agent_armed", ""] == 1 and found["edge_agent_beds", ""] == 2
    assert found["edge_agent_alarms_active", 'kind="physiological",priority="high"'] == 1
    assert found["edge_agent_source_connected", 'source="monitor"'] == 1
    assert 0 <= found["edge_agent_source_silence_seconds", 'source="monitor"'] < 10
    assert found["edge_agent_fault", 'condition="disk_fault"'] == 0 and found["edge_agent_turns_total", ""] >= 1
    assert abs(found["edge_agent_start_time_seconds", ""] - time.time()) < 60
    assert found["edge_agent_disk_free_bytes", ""] > 0 and found["edge_agent_buffer_used_ratio", ""] >= 0


async def test_what_is_wrong_shows(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    async with running(bedside.write(LISTEN)) as agent:
        agent.fault("disk_fault", "buffer disk", "no space left")
        agent.annunciators[0]._fault = "broken"
        found = parsed(await scraped(agent))
        agent.annunciators[0]._fault = ""
    assert found["edge_agent_fault", 'condition="disk_fault"'] == 1 and found["edge_agent_faults", ""] >= 1
    assert found["edge_agent_armed", ""] == 0, "nobody would hear an alarm"


async def test_the_port_tells_nothing_of_a_patient(tmp_path: Path) -> None:
    """The control socket gives alarms by bed and the model's means; the port, which leaves the gateway, gives none."""
    bedside = Bedside(tmp_path)
    (tmp_path / "immediate.toml").write_text(PRESET.replace('extends = "bedside"', 'extends = "adult"'))
    async with running(bedside.write(LISTEN, "[model]")) as agent:
        agent.pipeline.admit("ICU-3", "CANARY-4711", time.monotonic_ns())
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, 81.0))
        await monitor.reply()
        assert agent.risk is not None
        agent.risk._drift.add("scored", "", 0.25, [81.0] * 7, [97.0] * 7, [2.0] * 7)
        text = await scraped(agent)
        inside = agent.operations.metrics()
        monitor.close()
    assert "mean_risk" in inside and "edge_agent_model_total" in text and "edge_agent_model_drift" in inside
    for word in ("CANARY", "ICU-3", "drift", "mean_risk", " 81", "spo2"):
        assert word not in text, word


async def test_a_flood_does_not_hold_the_alarm_loop(tmp_path: Path) -> None:
    """Half a second is what the supervision calls late; a flood of connections must not come near."""
    bedside = Bedside(tmp_path)
    async with running(bedside.write(LISTEN)) as agent:
        address = port_of(agent).bound
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                try:
                    with socket.create_connection(address, 0.2) as peer:
                        peer.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                except OSError:
                    pass

        thread = threading.Thread(target=flood)
        thread.start()
        worst = 0.0
        try:
            for _ in range(100):
                planned = time.monotonic() + 0.01
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - planned)
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
    assert worst < 0.5
    assert "alarm_loop_late" not in str(agent.faults)


# -- the examples for Prometheus and Grafana ------------------------------------------------------------------------

NAME = re.compile(r"\b(?:edge_agent|cloud_sync)_[a-z_]+\b")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((ROOT / "docs/monitoring/alert-rules.yml").read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docs/monitoring/grafana-dashboard.json").read_text()))


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [rule["expr"] for rule in rules()] + panels


async def test_every_number_of_the_examples_is_one_that_an_agent_gives(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    told = {
        "state": "connected", "backlog_records": 1, "backlog_oldest_s": 2, "forwarded": {"data": 1},
        "dropped": {"data": 0},
    }  # fmt: skip
    file = bedside.data_dir / "cloud-sync/status.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(told))
    async with running(bedside.write(LISTEN)) as agent:
        await until(lambda: agent.cloud, "what the forwarder says")
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, 80.0))
        await monitor.reply()
        text = await scraped(agent)
        monitor.close()
    given = {name for name, _ in parsed(text)} | {"edge_agent_certificate_expiry_seconds"}  # test_doctor_certificates
    for expression in expressions():
        wanted = set(NAME.findall(expression))
        assert wanted or expression.startswith("up{"), expression
        assert wanted <= given, expression
    labels = {label for _, labels in parsed(text) for label in re.findall(r'(\w+)="', labels)}
    for expression in expressions():
        for label in re.findall(r"[{,]\s*(\w+)=", expression):
            assert label in labels | {"job", "instance"}, f"{label} in {expression}"


def test_every_rule_says_what_to_do() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) >= 12
    for rule in found:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "action"} and "instance" in rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
    text = (ROOT / "docs/monitoring.md").read_text()
    for rule in found:
        assert f"`{rule['alert']}`" in text, f"docs/monitoring.md does not tell of {rule['alert']}"


def test_the_dashboard_can_be_imported() -> None:
    found = dashboard()
    assert found["schemaVersion"] >= 36 and found["uid"] == "bedside-edge" and "id" not in found
    assert {each["name"]: each["type"] for each in found["templating"]["list"]} == {
        "datasource": "datasource", "gateway": "query",
    }  # fmt: skip
    shown = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"]) and len(shown) >= 15
    for panel in shown:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel["targets"]:
            assert '"$gateway"' in target["expr"], panel["title"]
