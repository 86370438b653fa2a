"""An arm64 Debian with the lock installed: every package imports, captures decode, the agent runs, the model scores.

Run by `make test-arm64`, as root, and by nothing else: emulated, Python is about ten times slower. What an emulator
cannot show is the speed and the devices of a real board.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from supply.licences import parts
from supply.lock import canonical, pins
from tests.fleet import arm64, image
from tests.fleet.test_size import LIMIT_MB, disk_bytes

AGENT = "/opt/bedside/.venv/bin/edge-agent"
PYTHON = "/opt/bedside/.venv/bin/python"
CONFIG = """
[gateway]
id = "arm64"
data_dir = "/var/lib/edge-agent"
[control]
socket = "/run/edge-agent/control.sock"
[buffer]
key = "file:/etc/kek"
[[bed]]
id = "ICU-3"
location = "ICU^^3"
[[source]]
driver = "hl7"
link = "mllp-listen://127.0.0.1:2575"
[[annunciator]]
kind = "record"
path = "/var/lib/edges.jsonl"
[model]
"""
# the agent, a monitor with a low SpO2, and the light; then the model's first answer
SCENE = """
import json, pathlib, socket, subprocess, time
AGENT = "/opt/bedside/.venv/bin/edge-agent"
edges = pathlib.Path("/var/lib/edges.jsonl")
agent = subprocess.Popen([AGENT, "run", "--config", "/etc/edge.toml"], stderr=open("/tmp/agent.log", "wb"))
end = time.monotonic() + 300
def until(condition):
    while not condition():
        assert agent.poll() is None, open("/tmp/agent.log").read()
        assert time.monotonic() < end, open("/tmp/agent.log").read()
        time.sleep(0.2)
def status():
    done = subprocess.run([AGENT, "status", "--json", "--config", "/etc/edge.toml"], capture_output=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}
def dial():
    try:
        return socket.create_connection(("127.0.0.1", 2575), 10)
    except ConnectionRefusedError:
        time.sleep(0.2)
        assert time.monotonic() < end and agent.poll() is None, open("/tmp/agent.log").read()
        return dial()
try:
    from datetime import UTC, datetime
    from drivers.sim.hl7_monitor import mllp, oru_r01
    client = dial()
    acknowledged = 0
    def lit():
        global acknowledged
        message = oru_r01({"spo2": 80.0, "heart_rate": 75.0}, location="ICU^^3", control_id=f"A{time.monotonic_ns()}",
                          at=datetime.now(UTC), patient_id="P1", device="MON")
        client.sendall(mllp(message))
        acknowledged += b"|AA|" in client.recv(65536)
        lines = [json.loads(line) for line in edges.read_text().splitlines()]
        return any(line["condition"] == "spo2_low" and line["on"] for line in lines)
    until(lit)
    def scored():
        told = json.dumps(status())
        return '"answer_ms"' in told and '"answer_ms": null' not in told and '"state": "running"' in told
    until(scored)
    print(json.dumps({"acknowledged": acknowledged}))
finally:
    agent.terminate()
    agent.wait(60)
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[arm64.Root]:
    """A root with a release's environment in it, made by the installer's own hand."""
    if lacking := arm64.missing():
        pytest.fail(lacking, pytrace=False)
    wheels = arm64.wheels("3.11")
    folder = tmp_path_factory.mktemp("arm64")
    with arm64.emulated(), arm64.Root(folder) as root:
        release = root.path / "opt" / "bedside"
        shutil.copytree(wheels, release / "wheels")
        wheel = image.project_wheel()
        shutil.copy(wheel, release)
        shutil.copy(image.REPOSITORY / "requirements.lock", release)
        shutil.copytree(image.REPOSITORY / "edge_agent", root.path / "srv" / "edge_agent")
        shutil.copytree(image.REPOSITORY / "tests" / "captures", root.path / "srv" / "captures")
        code = (
            "from pathlib import Path; from edge_agent.release.installer import environment; "
            "from edge_agent.release.machine import Python; "
            f"environment(Path('/opt/bedside'), Path('/opt/bedside'), '{wheel.name}', Python('/usr/bin/python3'))"
        )
        root.run("/usr/bin/env", "--chdir=/srv", "/usr/bin/python3", "-c", code)
        (root.path / "etc" / "edge.toml").write_text(CONFIG)
        yield root


def test_it_is_arm64(board: arm64.Root) -> None:
    code = "import platform, sys; print(platform.machine(), sys.maxsize > 2**32)"
    assert board.run(PYTHON, "-c", code).stdout.split() == ["aarch64", "True"]


def test_every_package_of_the_lock_is_there_and_imports(board: arm64.Root) -> None:
    code = """
import importlib, importlib.metadata, json
found = {}
for each in list(importlib.metadata.distributions()):
    for name in (each.read_text("top_level.txt") or each.metadata["Name"].replace("-", "_")).split():
        if not name.startswith("_") and "/" not in name and each.metadata["Name"] not in ("protobuf", "tzdata"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
    found[each.metadata["Name"]] = each.version
import ai_edge_litert.interpreter, confluent_kafka, cryptography.hazmat.primitives.ciphers.aead, dbus_fast, fastavro
import gpiod, google.protobuf, httpx, msgspec, numpy, paho.mqtt.client, pydantic, serial, zstandard
print(json.dumps(found))
"""
    found = {canonical(name): version for name, version in json.loads(board.run(PYTHON, "-c", code).stdout).items()}
    wanted = {pin.name: pin.version for pin in pins(python="3.11") if not parts()[pin.name].get("left_out")}
    assert {name: found.get(name) for name in wanted} == wanted


def test_it_is_small_enough(board: arm64.Root) -> None:
    size = disk_bytes(board.path / "opt" / "bedside" / ".venv") / 1e6
    print(f"{size:.0f} MB")
    assert size <= LIMIT_MB


@pytest.mark.parametrize("capture", ["hl7.pcd01", "hl7.waveforms", "nonin.format7", "masimo.ascii1", "gatt.wearables"])
def test_captures_decode_as_they_do_elsewhere(capture: str, board: arm64.Root) -> None:
    driver = capture.partition(".")[0]
    done = board.run(AGENT, "decode", "--driver", driver, f"/srv/captures/{capture}.cap", check=False)
    expected = (image.REPOSITORY / "tests" / "captures" / f"{capture}.expect").read_text().splitlines()
    assert [json.loads(line) for line in done.stdout.splitlines()] == [json.loads(line) for line in expected], (
        done.stderr
    )


def test_the_model_gives_its_goldens_and_scores_a_stay(board: arm64.Root) -> None:
    proven = board.run(AGENT, "model", "verify").stdout
    assert "ai-edge-litert" in proven and "goldens within" in proven and "accepted" in proven
    rows = ["heart_rate,spo2,temperature,systolic,diastolic,resp_rate,age,sex"]
    rows += [
        f"{80 + 5 * hour},{97 - hour},{36.8 + hour / 4},{120 - 5 * hour},{80 - 4 * hour},{14 + 2 * hour},60,male"
        for hour in range(6)
    ]
    (board.path / "srv" / "stay.csv").write_text("\n".join(rows) + "\n")
    here = _scores(board.run(AGENT, "model", "score", "--json", "/srv/stay.csv").stdout)
    assert len(here) == 6 and here[-1] > here[0] > 0, "a patient who gets worse has a rising risk"


def _scores(text: str) -> list[float]:
    return [json.loads(line)["risk"] for line in text.splitlines()]


def test_the_agent_alarms_acknowledges_and_scores(board: arm64.Root) -> None:
    board.run(AGENT, "keys", "init", "--config", "/etc/edge.toml")
    for folder in ("run/edge-agent", "var/lib/edge-agent"):
        (board.path / folder).mkdir(parents=True, exist_ok=True)
    assert "valid" in board.run(AGENT, "check", "/etc/edge.toml").stdout
    told = json.loads(board.run(PYTHON, "-c", SCENE).stdout.splitlines()[-1])
    assert told["acknowledged"] >= 1
