"""Provisioning on a booted container, with the commands of docs/biomed.md: a proposal first, then a bed accepted with
the agent that watches it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edge_agent import __version__
from tests.fleet import image
from tests.fleet.container_gateway import BIN, CONFIG, DATA, HEAD, Gateway, booted

BARE = HEAD.partition("[[source]]")[0] + HEAD[HEAD.index("[[annunciator]]") :].partition("[cloud.kafka]")[0]
ANSWERS = """\
bed = "ICU-3"
simulator = true
button = true
{port}
[engineer]
name = "A. Engineer"
id = "bme-17"
[values]
spo2 = 97
pulse_rate = 72
[signals]
high = true
medium = true
low = true
"""
TOOL = f"{BIN}/edge-agent"
PORT = 4001  # of a terminal server, within the container's own network


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An installed gateway whose bed has no source, and two monitors: on a cable, and on a terminal server."""
    lacking = image.missing()
    if lacking:
        pytest.fail(lacking, pytrace=False)
    with booted(tmp_path_factory.mktemp("provision")) as made:
        manifest = made.machine.path(f"/opt/bedside-edge/releases/{__version__}/manifest.json")
        if not manifest.exists():
            manifest.write_text(json.dumps({"version": __version__}))
        rows = "".join(f"{second},97,72\n" for second in range(3600))
        made.run("cat > /root/steady.csv", stdin=f"time,spo2,pulse_rate\n{rows}")
        for name, to in (("cable", "pty:///run/monitor"), ("server", f"tcp-listen://127.0.0.1:{PORT}")):
            sends = f"{TOOL} simulate --as oximeter --file /root/steady.csv --to {to}"
            made.run(f"systemd-run -q -p Restart=always --unit=monitor-{name} {sends}")
        made.fresh(BARE)
        made.until(lambda: made.run(f"{TOOL} status", check=False).returncode == 0, "the agent")
        made.until(lambda: made.run("test -e /run/monitor", check=False).returncode == 0, "the monitor on the cable")
        yield made


def test_a_monitor_is_found_and_a_configuration_proposed(gateway: Gateway) -> None:
    assert "1. Serial ports" in gateway.run(f"{TOOL} provision --only ports").stdout
    assert "nonin at 9600 8N1" in gateway.run(f"{TOOL} detect /run/monitor").stdout
    told = json.loads(gateway.run(f"{TOOL} detect --json socket://127.0.0.1:{PORT}").stdout)
    assert (told["driver"], told["link"]) == ("nonin", f"socket://127.0.0.1:{PORT}")
    gateway.run("cat > /root/find.toml", stdin=ANSWERS.format(port='port = "/run/monitor"'))
    steps = "--only protocol,bluetooth,configuration --write /root/ICU-3.toml"
    told = gateway.run(f"{TOOL} provision --bed ICU-3 {steps} --answers /root/find.toml").stdout
    assert "partial run: all of these steps passed" in told, told
    assert gateway.run(f"{TOOL} check /root/ICU-3.toml").stdout.endswith("valid\n")
    assert 'link = "serial:///run/monitor?baud=9600"' in gateway.run("cat /root/ICU-3.toml").stdout
    before = gateway.run(f"{TOOL} provision --bed ICU-3 < /dev/null", check=False)
    assert before.returncode == 2 and "--answers FILE" in before.stderr


def test_a_bed_is_accepted_with_the_agent_that_watches_it(gateway: Gateway) -> None:
    source = f'[[source]]\ndriver = "nonin"\nlink = "socket://127.0.0.1:{PORT}"\nbed = "ICU-3"\n'
    gateway.fresh(BARE + source)
    gateway.until(lambda: gateway.run(f"{TOOL} status", check=False).returncode == 0, "the agent")
    gateway.until(lambda: gateway.status()["beds"][0]["values"], "the monitor's values")
    gateway.run("cat > /root/answers.toml", stdin=ANSWERS.format(port=""))
    done = gateway.run(f"{TOOL} provision --answers /root/answers.toml", check=False, timeout=120)
    assert done.returncode == 0 and "Bed ICU-3: ACCEPTED" in done.stdout, done.stdout + done.stderr
    record = f"{DATA}/acceptance/ICU-3.json"
    said = json.loads(gateway.run(f"cat {record}").stdout)["record"]
    by = {step["step"]: step["details"].get("by") for step in said["steps"]}
    assert by["values"] == by["signals"] == "the running agent"
    lit = {edge["output"] for edge in gateway.edges("self_test") if edge["on"]}
    assert {"red", "yellow", "cyan", "buzzer"} <= lit, "the agent's own lamps and sound were tried"
    key = f"--key {DATA}/acceptance.pub"
    assert "ACCEPTED" in gateway.run(f"{TOOL} provision verify {record} {key} --against {CONFIG}").stdout
    gateway.run(f"{TOOL} provision verify {record} --page /root/again.html && cmp /root/again.html {record[:-4]}html")
    assert "ICU-3: accepted on" in gateway.run(f"{TOOL} doctor", check=False).stdout
    assert gateway.run(f"stat -c %a {DATA}/acceptance.key").stdout.strip() == "400"

    gateway.run(f"sed s/bme-17/bme-71/ {record} > /root/changed.json")
    changed = gateway.run(f"{TOOL} provision verify /root/changed.json", check=False)
    assert changed.returncode == 1 and "changed after it was signed" in changed.stderr
    gateway.configure(BARE + source + "# another configuration\n")
    stale = gateway.run(f"{TOOL} provision --answers /root/answers.toml --record /root/stale.json", check=False)
    assert stale.returncode == 1 and "changed after the running agent was started" in stale.stdout
    assert "the configuration has changed since" in gateway.run(f"{TOOL} doctor", check=False).stdout


def test_a_bed_is_tried_without_an_agent(gateway: Gateway) -> None:
    gateway.run("systemctl stop bedside-edge.target edge-agent")
    gateway.configure(gateway.run("cat /root/ICU-3.toml").stdout)
    gateway.run("cat > /root/direct.toml", stdin=ANSWERS.format(port='port = "/run/monitor"\ndriver = "nonin"'))
    steps = "--only protocol,configuration,values,signals,button"
    told = gateway.run(f"{TOOL} provision {steps} --answers /root/direct.toml", check=False, timeout=120)
    assert told.returncode == 0 and "as on the screen: pulse_rate, spo2" in told.stdout, told.stdout + told.stderr
