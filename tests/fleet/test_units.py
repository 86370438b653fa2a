"""The units on a booted machine: armed in time, restarted in time, and loud whenever the agent does not run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.fleet import image
from tests.fleet.container_gateway import BIN, CONFIG, EDGES, HEAD, UNITS, Gateway, booted

ARMED_S = 2.0  # from the start of the process to alarms that are given
EXPOSURE = 1.5
WATCHDOG_S = 5.0  # WatchdogSec of the agent
LOUD_S = 2.5  # from an end of the agent to the last gasp; 0.5 s on a machine that is busy four times over
BACK_S = 5.0  # from an end of the agent to one that is armed; 2.6 s on such a machine
DROP_IN = "/run/systemd/system/{unit}.service.d/test.conf"

# The real agent, but for one function of its loop that hangs when it is told to: everything else goes on meanwhile.
HANG = """\
import os, sys, time
from edge_agent.{module} import {owner}
whole = {owner}.{function}
def hang(*arguments, **named):
    if os.path.exists("/run/edge-agent/hang"):
        os.unlink("/run/edge-agent/hang")
        time.sleep(3600)
    return whole(*arguments, **named)
{owner}.{function} = hang
from edge_agent.__main__ import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    lacking = image.missing()
    if lacking:
        pytest.fail(lacking, pytrace=False)
    with booted(tmp_path_factory.mktemp("units")) as gateway:
        yield gateway


@pytest.fixture
def gateway(machine: Gateway) -> Iterator[Gateway]:
    """A gateway whose agent is armed; what the test changed is put back."""
    machine.fresh()
    yield machine
    machine.run("rm -rf /run/systemd/system/*.service.d; rm -f /run/edge-agent/hang; systemctl daemon-reload")


def replace(gateway: Gateway, unit: str, command: str, more: str = "") -> None:
    """Has a unit run something else from its next start on."""
    path = DROP_IN.format(unit=unit)
    text = f"[Service]\nExecStart=\nExecStart={command}\n{more}\n"
    gateway.run(f"mkdir -p $(dirname {path}) && cat > {path} && systemctl daemon-reload", stdin=text)


def armed(gateway: Gateway) -> bool:
    return gateway.show("edge-agent", "SubState") == ["running"]


def loud_without_a_break(gateway: Gateway) -> None:
    """The steady lights have stayed on since the last gasp began."""
    found = [edge["on"] for edge in gateway.edges("agent_down") if edge["output"] == "yellow"]
    assert found == [True], gateway.run(
        "journalctl --no-pager -n 80 -o short-monotonic -u edge-agent -u edge-agent-last-gasp"
    ).stdout


def test_every_unit_is_whole_and_little_exposed(machine: Gateway) -> None:
    done = machine.run(f"systemd-analyze verify bedside-edge.target {' '.join(UNITS)} 2>&1", check=False)
    assert (done.returncode, done.stdout) == (0, "")
    for unit in UNITS:
        told = machine.run(f"systemd-analyze security --no-pager {unit}").stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
        assert found, told
        assert float(found[1]) <= EXPOSURE, told


def test_armed_within_its_time(gateway: Gateway) -> None:
    before, after = gateway.show("edge-agent", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    assert 0 < (int(after) - int(before)) / 1e6 <= ARMED_S
    status = gateway.status()
    assert status["beds"]
    assert status["buffer"]
    assert gateway.show("edge-agent-last-gasp", "ActiveState") == ["inactive"]
    assert gateway.show("cloud-sync", "SubState", "Type") == ["running", "notify"]


def test_a_killed_agent_is_back_at_once_and_missed_meanwhile(gateway: Gateway) -> None:
    before = gateway.pid()
    gateway.run(f"kill -9 {before}")
    began = time.monotonic()
    gateway.until(lambda: gateway.edges("agent_down"), "the loud state", LOUD_S)
    gateway.until(lambda: gateway.pid() not in (0, before) and armed(gateway), "the agent", BACK_S)
    assert time.monotonic() - began <= BACK_S
    gateway.until(lambda: not gateway.loud(), "the end of the loud state", 2)
    last = {edge["output"]: edge["on"] for edge in gateway.edges("agent_down")}
    assert last == dict.fromkeys(("buzzer", "red", "yellow", "cyan"), False)
    gateway.until(lambda: gateway.show("edge-agent-last-gasp", "ActiveState") == ["inactive"], "its end", 2)


def stopped(gateway: Gateway) -> None:
    gateway.run(f"kill -STOP {gateway.pid()}")


def hung(module: str, owner: str, function: str) -> object:
    def inside(gateway: Gateway) -> None:
        script = HANG.format(module=module, owner=owner, function=function)
        gateway.run("mkdir -p /opt/probe && cat > /opt/probe/hang.py", stdin=script)
        replace(gateway, "edge-agent", f"{BIN}/python /opt/probe/hang.py run --config {CONFIG}")
        gateway.run("systemctl restart edge-agent && touch /run/edge-agent/hang")

    return inside


@pytest.mark.parametrize(
    "hang",
    [stopped, hung("pipeline", "Pipeline", "tick"), hung("annunciators", "Annunciator", "beat")],
    ids=["process", "pipeline", "annunciator"],
)
def test_an_alarm_loop_that_hangs_is_replaced_in_time(gateway: Gateway, hang: object) -> None:
    hang(gateway)  # type: ignore[operator]
    before = gateway.pid()
    gateway.until(lambda: gateway.edges("agent_down"), "the loud state", WATCHDOG_S + 1 + LOUD_S)
    gateway.until(lambda: gateway.pid() not in (0, before) and armed(gateway), "the agent", BACK_S)
    journal = gateway.run("journalctl -u edge-agent-last-gasp -o cat --no-pager").stdout
    assert "its alarm loop hung" in journal
    assert "Watchdog timeout (limit 5s)" in gateway.run("journalctl -u edge-agent -o cat --no-pager").stdout


def test_a_wrong_configuration_stays_loud_until_it_is_right(gateway: Gateway) -> None:
    gateway.configure(HEAD.replace("[gateway]", "[gateway]\nnonsense = 1"))
    assert gateway.run("systemctl restart edge-agent", check=False).returncode
    gateway.until(gateway.loud, "the loud state", LOUD_S)
    assert gateway.show("edge-agent", "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "78", "0"]
    gateway.until(
        lambda: "its configuration is wrong. NO ALARMS" in gateway.run("journalctl -u edge-agent-last-gasp").stdout,
        "the reason in the journal",
    )
    time.sleep(3)  # long enough for a restart, which must not come
    assert gateway.show("edge-agent", "ActiveState", "NRestarts") == ["failed", "0"]
    loud_without_a_break(gateway)
    gateway.configure()
    gateway.run("systemctl restart edge-agent")
    gateway.until(lambda: not gateway.loud(), "the end of the loud state", 2)
    assert armed(gateway)


def test_an_operator_ends_the_loud_state(gateway: Gateway) -> None:
    gateway.configure("[gateway\n" + HEAD)  # no TOML any more
    assert gateway.run("systemctl restart edge-agent", check=False).returncode
    gateway.until(gateway.loud, "the loud state", LOUD_S)
    gateway.run("systemctl stop edge-agent edge-agent-last-gasp")
    assert not gateway.loud()
    assert gateway.show("edge-agent-last-gasp", "Result", "ActiveState") == ["success", "inactive"]


def test_a_stop_that_somebody_asked_for_is_quiet(gateway: Gateway) -> None:
    gateway.run("systemctl stop edge-agent")
    time.sleep(1)
    assert not gateway.edges("agent_down")
    gateway.run("systemctl start edge-agent && systemctl restart edge-agent && systemctl stop bedside-edge.target")
    for unit in UNITS:  # the target's stop does not wait for them
        gateway.until(lambda unit=unit: gateway.show(unit, "ActiveState") == ["inactive"], f"the end of {unit}")
    assert not gateway.edges("agent_down")


@pytest.mark.parametrize("command", ["/bin/false", "/bin/sleep 60"], ids=["dies", "hangs"])
def test_it_is_loud_without_a_break_while_starts_fail(gateway: Gateway, command: str) -> None:
    replace(gateway, "edge-agent", command, "TimeoutStartSec=2")
    gateway.run(f"kill -9 {gateway.pid()}")
    gateway.until(lambda: int(gateway.show("edge-agent", "NRestarts")[0]) >= 3, "the third attempt", 30)
    assert gateway.loud()
    loud_without_a_break(gateway)
    gateway.run(f"rm {DROP_IN.format(unit='edge-agent')} && systemctl daemon-reload && systemctl restart edge-agent")
    assert armed(gateway)
    assert not gateway.loud()


def test_a_key_of_another_machine_is_loud_and_tried_again(gateway: Gateway) -> None:
    key = "/etc/credstore.encrypted/edge-agent.kek"
    gateway.run(f"cp -a {key} /root/kek && head -c 200 /dev/urandom | base64 > {key}")
    try:
        gateway.run("systemctl restart edge-agent", check=False)
        gateway.until(gateway.loud, "the loud state", LOUD_S)
        gateway.until(
            lambda: "cannot be decrypted on this machine" in gateway.run("journalctl -u edge-agent-last-gasp").stdout,
            "the reason in the journal",
        )
    finally:
        gateway.run(f"mv /root/kek {key}")
    gateway.until(lambda: armed(gateway) and not gateway.loud(), "the agent", 10)  # nobody had to start it


BOMB = """\
held, size = [], 0
try:
    while True:
        held.append(bytearray(32 << 20))
        size += 32
except MemoryError:
    print(f"stopped at {size} MB", flush=True)
    raise
"""


def test_a_forwarder_that_dies_or_eats_memory_does_not_touch_the_agent(gateway: Gateway) -> None:
    before = gateway.pid(), gateway.show("edge-agent", "NRestarts")
    forwarder = gateway.pid("cloud-sync")
    gateway.run(f"kill -9 {forwarder}")
    gateway.until(lambda: gateway.pid("cloud-sync") not in (0, forwarder), "the forwarder", 15)
    gateway.run("mkdir -p /opt/probe && cat > /opt/probe/bomb.py", stdin=BOMB)
    replace(gateway, "cloud-sync", f"{BIN}/python /opt/probe/bomb.py")
    gateway.run("systemctl restart cloud-sync", check=False)
    journal = gateway.run("journalctl -u cloud-sync -o cat --no-pager").stdout
    found = re.search(r"stopped at (\d+) MB", journal)
    assert found, journal  # LimitDATA; MemoryMax is held in the emulated machine, because containers have none here
    assert 400 <= int(found[1]) <= 768
    assert (gateway.pid(), gateway.show("edge-agent", "NRestarts")) == before
    assert gateway.status()["beds"]
    assert not gateway.edges("agent_down")


def test_a_boot_without_network_reaches_armed(machine: Gateway) -> None:
    """The network comes late on purpose: by then the agent has long been armed."""
    late = "/etc/systemd/system/systemd-networkd.service.d/late.conf"
    machine.fresh()
    machine.run(f"mkdir -p $(dirname {late}) && printf '[Service]\\nExecStartPre=sleep 6\\n' > {late} && rm -f {EDGES}")
    machine.run("sync")
    machine.machine.kill()
    machine.machine.boot()
    try:
        (network,) = machine.show("systemd-networkd", "ActiveEnterTimestampMonotonic")
        active, state = machine.show("edge-agent", "ActiveEnterTimestampMonotonic", "SubState")
        (userspace,) = machine.run("systemctl show -P UserspaceTimestampMonotonic").stdout.split()
        assert state == "running"
        assert int(active) < int(network), "the agent waited for the network"
        assert (int(active) - int(userspace)) / 1e6 <= 5.0, "from the start of systemd to armed"
        assert machine.show("cloud-sync", "SubState") == ["running"]
        assert not machine.edges("agent_down")
    finally:
        machine.run(f"rm {late}; systemctl daemon-reload")
