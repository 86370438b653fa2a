"""What a service that has been taken over could do: probes in the sandbox that its unit makes, and the same as root."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import image
from tests.fleet.container_gateway import BIN, DATA, UNITS, Gateway, booted

PROBE = "/opt/probe/probe.py"
# What must work in each sandbox, and nothing beside it. Real-time scheduling needs a limit that a container may not
# raise; test_real_time_scheduling_passes_the_agents_filter looks at the filter.
ALLOWED = {
    "edge-agent.service": {
        "read the configuration", "read the sealed buffer", "read the alarm log", "read a key file of the agent",
        "read the marks", "list the data folder", "write the data folder", "write the buffer's folder",
        "write the database", "write the database's index", "write through SQLite", "take a bed's alarm back",
        "internet", "Unix sockets", "open /dev/null", "write a temporary file",
    },
    "cloud-sync.service": {
        "read the configuration", "read the sealed buffer", "read the marks", "write the marks",
        "write the forwarder's folder", "internet", "Unix sockets", "open /dev/null", "write a temporary file",
    },
    "edge-agent-last-gasp.service": {
        "read the configuration", "read the sealed buffer", "read the alarm log", "read a key file of the agent",
        "read the marks", "list the data folder", "write the data folder", "write the buffer's folder",
        "write the database", "write the database's index", "write through SQLite", "take a bed's alarm back",
        "Unix sockets", "open /dev/null", "write a temporary file",
    },
    "bedside-edge-clock.service": {
        "read the configuration", "read the sealed buffer", "read the alarm log", "read a key file of the agent",
        "read the marks", "list the data folder", "open /dev/null", "write a temporary file",
    },
}  # fmt: skip
# What root may do even in this container: a probe that failed here would prove nothing in a sandbox.
AS_ROOT = {
    "read /etc/shadow", "read root's files", "read users' files", "read encrypted credentials",
    "read the agent's credential", "read the forwarder's credential", "read another service's key file",
    "read the alarm log", "read a key file of the agent", "see processes of others", "read process 1's environment",
    "write /etc", "write /usr", "write the release", "write the program", "write the configuration", "write /var/lib",
    "write /home", "write the marks", "write the forwarder's folder", "write /run", "take a bed's alarm back",
    "become root", "change an owner", "set a set-user bit", "mount", "new mount namespace", "new network namespace",
    "trace a process", "set the host's name", "write and run memory", "make a device", "packets", "netlink",
    "internet", "Unix sockets",
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    lacking = image.missing()
    if lacking:
        pytest.fail(lacking, pytrace=False)
    with booted(tmp_path_factory.mktemp("sandbox")) as here:
        here.machine.put(Path(__file__).with_name("sandbox_probe.py"), PROBE)
        here.run(
            "useradd --create-home nina && echo x > /home/nina/secret && chmod 0644 /home/nina/secret &&"
            " chmod 0755 /home/nina && echo x > /root/secret && mkdir -p /etc/edge-agent/pki &&"
            " echo x > /etc/edge-agent/pki/other.key && chmod 0600 /etc/edge-agent/pki/other.key &&"
            f" echo x > {DATA}/kek && chown edge-agent {DATA}/kek && chmod 0400 {DATA}/kek &&"
            f" echo x > {DATA}/marks/probe.json && chown cloud-sync:bedside-edge {DATA}/marks/probe.json &&"
            f" chmod 0640 {DATA}/marks/probe.json && systemctl start bedside-edge.target edge-agent cloud-sync"
        )
        yield here


def probe(gateway: Gateway, unit: str, command: str = f"{BIN}/python {PROBE}", more: str = "") -> str:
    """What a command said that ran in place of the program of a unit, in everything else as the unit says."""
    text = gateway.machine.path(f"/etc/systemd/system/{unit}").read_text()
    text = re.sub(r"(?m)^(ExecStart|ExecStopPost|OnFailure|Restart|RestartPreventExitStatus|WatchdogSec|Wants"
                  r"|PartOf|After|Before|Type)=.*\n", "", text)  # fmt: skip
    text = text.partition("[Install]")[0] + f"Type=oneshot\nExecStart={command}\nStandardOutput=file:/run/probe.out\n"
    gateway.run(
        "rm -f /run/probe.out; cat > /run/systemd/system/probe.service && systemctl daemon-reload", stdin=text + more
    )
    done = gateway.run("systemctl start probe.service", check=False)
    said = gateway.run("cat /run/probe.out", check=False).stdout
    assert done.returncode == 0, gateway.run("journalctl -u probe -n 20 --no-pager").stdout + said
    return said


def test_the_probes_would_find_something(gateway: Gateway) -> None:
    told = json.loads(gateway.run(f"{BIN}/python {PROBE}").stdout)
    assert AS_ROOT - set(told["worked"]) == set(), {name: told["refused"].get(name) for name in AS_ROOT}


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_can_do_what_it_must_and_no_more(gateway: Gateway, unit: str) -> None:
    told = json.loads(probe(gateway, unit))
    worked, allowed = set(told["worked"]), ALLOWED[unit]
    assert worked - allowed == set(), "more than it should"
    assert allowed - worked == set(), {name: told["refused"].get(name) for name in allowed - worked}
    confined(told["status"])


def confined(status: dict[str, str]) -> None:
    assert {status[name] for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2", "no filter of system calls"
    assert "0" not in status["Uid"].split()


@pytest.mark.parametrize("unit", ["edge-agent", "cloud-sync", "bedside-edge-clock"])
def test_the_running_processes_are_confined_so(gateway: Gateway, unit: str) -> None:
    pid = gateway.pid(unit)
    lines = gateway.run(f"cat /proc/{pid}/status").stdout.splitlines()
    confined(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    writable = set()
    for line in gateway.run(f"cat /proc/{pid}/mountinfo").stdout.splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if "rw" in fields[5].split(",") and kind not in ("proc", "devpts", "mqueue"):
            writable.add(fields[4])
    expected: dict[str, set[str]] = {
        "edge-agent": {DATA, "/run/edge-agent", "/tmp", "/var/tmp"},
        "cloud-sync": {f"{DATA}/marks", f"{DATA}/cloud-sync", "/tmp", "/var/tmp"},
        "bedside-edge-clock": {"/run/edge-agent", "/tmp", "/var/tmp"},
    }
    container = ("/dev", "/run/host/")  # what it mounts for itself, over one another
    assert {path for path in writable if not path.startswith(container)} == expected[unit]


def test_the_forwarder_reads_what_the_agent_seals_and_the_agent_its_marks(gateway: Gateway) -> None:
    """The real programs, each as its own user: records are read, and their number is told to the agent."""
    gateway.until(lambda: (gateway.status()["cloud"] or {}).get("backlog_records"), "records that the forwarder sees")
    script = (
        "import sys, json; from pathlib import Path; from edge_agent.buffer import Marks, Position, Reader, load_kek;"
        f"reader = Reader(Path('{DATA}'), load_kek('credential:edge-agent.kek'));"
        "blocks = reader.read('data', None);"
        f"Marks(Path('{DATA}')).set('data', blocks[0].position);"
        "print(json.dumps([len(blocks), [block.damaged for block in blocks if block.damaged], reader.fault]))"
    )
    count, damaged, fault = json.loads(probe(gateway, "cloud-sync.service", f'{BIN}/python -c "{script}"'))
    assert count > 0
    assert (damaged, fault) == ([], "")
    gateway.until(lambda: _first_block(gateway) > 1, "the agent's pruning of what the mark says is delivered")


def _first_block(gateway: Gateway) -> int:
    query = f"sqlite3.connect('file:{DATA}/buffer/data.db?mode=ro', uri=True).execute('SELECT min(number) FROM blocks')"
    return int(gateway.run(f'{BIN}/python -c "import sqlite3; print({query}.fetchone()[0] or 0)"').stdout)


def test_a_forwarder_that_starts_before_the_agent_waits_for_it(gateway: Gateway) -> None:
    """Without the agent there is no index of the log, and the forwarder may not make one."""

    def backlog() -> object:
        return json.loads(gateway.machine.path(f"{DATA}/cloud-sync/status.json").read_text())["backlog_records"]

    script = (
        "from pathlib import Path; from edge_agent.buffer import Reader, load_kek;"
        f"reader = Reader(Path('{DATA}'), load_kek('credential:edge-agent.kek'));"
        "print(reader.read('data', None), reader.fault)"
    )
    gateway.run("systemctl stop cloud-sync && systemctl stop edge-agent && systemctl start cloud-sync")
    try:
        gateway.until(lambda: backlog() is None, "a forwarder that does not know the backlog")
        told = probe(gateway, "cloud-sync.service", f'{BIN}/python -c "{script}"')
        assert told.startswith("[] data.db: the agent does not run and has closed it"), told
    finally:
        gateway.run("systemctl start edge-agent")
    gateway.until(backlog, "records that the forwarder sees")
    assert gateway.show("cloud-sync", "NRestarts") == ["0"]


def test_a_forwarder_may_look_and_not_touch(gateway: Gateway) -> None:
    script = (
        "import json, socket\n"
        "def ask(request):\n"
        "    with socket.socket(socket.AF_UNIX) as client:\n"
        "        client.connect('/run/edge-agent/control.sock')\n"
        "        client.sendall(json.dumps(request).encode() + b'\\n')\n"
        "        return json.loads(client.makefile('rb').readline())\n"
        "told = {op: ask({'op': op, 'bed': 'ICU-3'}) for op in ('status', 'acknowledge', 'alarm_off', 'discharge')}\n"
        "print(json.dumps({op: reply.get('error', 'done') for op, reply in told.items()}))\n"
    )
    gateway.run("cat > /opt/probe/ask.py", stdin=script)
    told: dict[str, Any] = json.loads(probe(gateway, "cloud-sync.service", f"{BIN}/python /opt/probe/ask.py"))
    assert told.pop("status") == "done"
    assert all("you are viewer" in answer for answer in told.values()), told


def test_real_time_scheduling_passes_the_agents_filter(gateway: Gateway) -> None:
    """The limit cannot be raised in a container; with the capability in its place only the filter is in the way."""
    more = "User=root\nGroup=root\nCapabilityBoundingSet=CAP_SYS_NICE CAP_DAC_OVERRIDE\nLoadCredentialEncrypted=\n"
    for unit, passes in (
        ("edge-agent.service", True),
        ("edge-agent-last-gasp.service", True),
        ("cloud-sync.service", False),
    ):
        told = json.loads(probe(gateway, unit, more=more))
        assert ("real-time scheduling" in told["worked"]) is passes, (unit, told["refused"])


def test_the_model_runs_in_the_sandbox(gateway: Gateway) -> None:
    """A runtime that makes code while it runs would be refused memory that is written and run."""
    from tests.fleet.container_gateway import HEAD

    gateway.configure(HEAD + "[model]\nevery_s = 1\n")
    gateway.run("systemctl restart edge-agent")
    gateway.until(lambda: gateway.status()["model"]["rounds"] >= 2, "two answers of the model")
    model = gateway.status()["model"]
    assert (model["state"], model["failed"]) == ("running", 0)
