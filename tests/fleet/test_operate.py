"""Operating a gateway on a booted container: the doctor names what is broken; IT gets numbers, fields and a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import __version__
from tests.fleet import image
from tests.fleet.container_gateway import BIN, CONFIG, HEAD, Gateway, booted

PORT = 9464
PLAIN = HEAD.partition("[cloud.kafka]")[0] + f'[metrics]\nlisten = "127.0.0.1:{PORT}"\n[alarms]\nself_test = false\n'
KAFKA = '[cloud.kafka]\nbootstrap = "127.0.0.1:1"\n'
PKI = "/etc/edge-agent/pki"
CREDENTIAL = "/etc/credstore.encrypted/edge-agent.kek"
UNIT = "/etc/systemd/system/edge-agent.service.d/test.conf"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An installed gateway that runs, its answers waited for."""
    lacking = image.missing()
    if lacking:
        pytest.fail(lacking, pytrace=False)
    with booted(tmp_path_factory.mktemp("operate")) as made:
        manifest = made.machine.path(f"/opt/bedside-edge/releases/{__version__}/manifest.json")
        if not manifest.exists():
            manifest.write_text(json.dumps({"version": __version__}))
        made.fresh(PLAIN)
        made.until(lambda: made.run(f"{BIN}/edge-agent status", check=False).returncode == 0, "the agent")
        yield made


def findings(gateway: Gateway, *options: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code of the doctor, and what is not ok."""
    done = gateway.run(f"{BIN}/edge-agent doctor --json --quiet {' '.join(options)}", check=False)
    assert done.stdout.startswith("{"), f"{done.stdout}{done.stderr}"
    return done.returncode, list(json.loads(done.stdout)["findings"])


def test_a_gateway_as_installed_is_well(gateway: Gateway) -> None:
    code, found = findings(gateway)
    assert code == 0 and not [each for each in found if each["state"] == "FAIL"], found
    # what a container without a network time, without a receiver and without a person cannot have
    assert {each["part"] for each in found} <= {"clock", "broker", "privacy", "acceptance", "hw watchdog", "release"}, (
        found
    )
    text = gateway.run(f"{BIN}/edge-agent doctor").stdout
    for words in (
        "units: edge-agent.service is active", "edge-agent-last-gasp.service is installed and quiet",
        "watchdog: systemd restarts an agent", "credentials: edge-agent.kek opens",
        "key: credential:edge-agent.kek: readable",
        f"release: {__version__} is in force", f"metrics: 127.0.0.1:{PORT} gives the numbers",
        "users: edge-agent and cloud-sync have their groups", "modes: configuration and data are open to nobody else",
    ):  # fmt: skip
        assert words in text, text
    line = gateway.run(f"{BIN}/edge-agent doctor --nagios", check=False)
    assert line.returncode == 1 and line.stdout.startswith("BEDSIDE WARNING - ") and line.stdout.count("\n") == 1


RESTART = "systemctl daemon-reload; systemctl restart edge-agent"
# how it breaks, how it is mended, the part that tells, what it says, what it tells to do; a round goes together
FIRST = [
    ("systemctl -q disable bedside-edge.target", "systemctl -q enable bedside-edge.target", "units", "not enabled",
     "systemctl enable --now bedside-edge.target"),
    (f"mkdir -p {UNIT.rpartition('/')[0]}; printf '[Service]\\nWatchdogSec=0\\n' > {UNIT}; {RESTART}",
     f"rm {UNIT}; {RESTART}", "watchdog", "hung alarm loop stays", "systemctl revert edge-agent"),
    ("mv /etc/systemd/system/edge-agent-last-gasp.service /root; systemctl daemon-reload",
     "mv /root/edge-agent-last-gasp.service /etc/systemd/system/; systemctl daemon-reload", "units",
     "edge-agent-last-gasp.service is not installed", "edge-agent release install"),
    (f"mv {CREDENTIAL} /root", f"mv /root/edge-agent.kek {CREDENTIAL}", "credentials", "is missing",
     "systemd-creds encrypt --name=edge-agent.kek"),
    (f"chmod 0666 {CONFIG}", f"chmod 0640 {CONFIG}", "modes", "others than its owner may change", "chmod 0640"),
    ("chmod 0755 /var/lib/edge-agent/buffer", "chmod 2750 /var/lib/edge-agent/buffer", "modes", "it should have 2750",
     "systemd-tmpfiles --create"),
    ("cp /etc/group /root; sed -i '/^bedside-edge/s/cloud-sync//' /etc/group", "cp /root/group /etc/group", "users",
     "cloud-sync is not in the group bedside-edge", "systemd-sysusers"),
    ("mkdir /opt/bedside-edge/releases/9.9.9.partial", "rmdir /opt/bedside-edge/releases/9.9.9.partial", "release",
     "9.9.9.partial is left of an installation that was cut off", "rm -r"),
    ("mv /etc/udev/rules.d/70-bedside-edge.rules /root", "mv /root/70-bedside-edge.rules /etc/udev/rules.d/",
     "release", "not there:", "edge-agent release"),
    ("mount --bind /var/lib/edge-agent /var/lib/edge-agent; mount -o remount,bind,ro /var/lib/edge-agent",
     "umount --lazy /var/lib/edge-agent", "disk", "the file system is read-only", "dmesg"),
]  # fmt: skip
SECOND = [  # mended from the end to the beginning
    ("systemctl stop edge-agent", "systemctl start edge-agent", "units", "edge-agent.service is inactive",
     "systemctl start edge-agent.service"),
    (f"cp {CREDENTIAL} /root; echo AAAA > {CREDENTIAL}", f"cp /root/edge-agent.kek {CREDENTIAL}", "credentials",
     "is not opened by this machine", "systemd-creds encrypt"),
    (f"chmod 0600 {CONFIG}", f"chmod 0640 {CONFIG}", "modes", "cannot be read by edge-agent", "chmod 0640"),
    ("mv /opt/bedside-edge/current /opt/bedside-edge/was", "mv /opt/bedside-edge/was /opt/bedside-edge/current",
     "release", "leads to no release", "edge-agent release rollback"),
]  # fmt: skip


@pytest.mark.parametrize("broken", [FIRST, SECOND], ids=["first", "second"])
def test_everything_that_is_broken_is_named(gateway: Gateway, broken: list[tuple[str, ...]]) -> None:
    """All of a round at once, each told with its own remedy; mended, nothing of it is left."""
    doctor = f"/opt/bedside-edge/releases/{__version__}/.venv/bin/edge-agent doctor --json --quiet"
    for harm, *_ in broken:
        gateway.run(harm)
    try:
        done = gateway.run(doctor, check=False)
    finally:
        for _, mend, *_ in reversed(broken):
            gateway.run(mend)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["findings"]
    for _, _, part, words, remedy in broken:
        told = [each for each in found if each["part"] == part and words in each["detail"]]
        assert told and remedy in told[0]["remedy"], (part, words, found)
    code, left = findings(gateway)
    assert code == 0 and not [each for each in left for row in broken if row[3] in each["detail"]], left


def test_a_certificate_that_has_ended(gateway: Gateway) -> None:
    """Made on the gateway, as IT would; ended, ending and of another key."""
    files = (
        f'security = "mtls"\nca = "{PKI}/ca.pem"\ncertificate = "{PKI}/client.pem"\nprivate_key = "{PKI}/client.key"\n'
    )
    make = (
        f"mkdir -p {PKI} && cd {PKI} &&"
        " openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=site -days 3650 -keyout ca.key -out ca.pem &&"
        " openssl req -newkey rsa:2048 -nodes -subj /CN=gw -keyout client.key -out client.csr &&"
        " chmod 0600 client.key && chown cloud-sync client.key && chmod 0755 . && chmod 0644 *.pem"
    )
    sign = (
        f"cd {PKI} && openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out client.pem -days "
    )
    gateway.run(make)
    gateway.configure(PLAIN + KAFKA + files)
    try:
        for days, state, words in (("-1", "FAIL", "has ended on"), ("10", "warn", "ends on"), ("300", "", "")):
            gateway.run(f"{sign}{days}; chmod 0644 client.pem")
            told = [each for each in findings(gateway)[1] if each["part"] == "certificate"]
            assert [each["state"] for each in told] == ([state] if state else []), told
            assert all(words in each["detail"] and "docs/it.md" in each["remedy"] for each in told)
        gateway.run(f"cd {PKI} && openssl genrsa -out client.key 2048")
        told = [each for each in findings(gateway)[1] if each["part"] == "certificate"]
        assert any("is not the key of" in each["detail"] for each in told), told
    finally:
        gateway.configure(PLAIN)


def test_the_numbers_are_for_this_machine_alone(gateway: Gateway) -> None:
    read = f"python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{PORT}/metrics').read().decode())\""
    text = gateway.run(read).stdout
    for line in ("edge_agent_armed 1", "edge_agent_watchdog_enabled 1", 'edge_agent_fault{condition="key_missing"} 0'):
        assert line in text, text
    assert f'version="{__version__}"' in text and "edge_agent_disk_free_bytes" in text and 'bed="' not in text
    outside = read.replace("127.0.0.1", gateway.machine.address)
    done = gateway.run(outside, check=False)
    assert done.returncode and "refused" in done.stderr, "only the loopback listens"


def promtool() -> str:
    """Prometheus' own checker: the installed one, else unpacked from Debian's package without installing a server."""
    installed = shutil.which("promtool")
    if installed:
        return installed
    return str(_promtool() / "usr/bin/promtool")


@image.one_at_a_time
def _promtool() -> Path:
    target = image.CACHE / "promtool"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", "prometheus"], cwd=partial, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"promtool is missing: apt install prometheus\n{done.stderr}", pytrace=False)
        package = next(partial.glob("*.deb"))
        subprocess.run(["dpkg", "-x", str(package), str(partial)], check=True)
        package.unlink()
        partial.rename(target)
    return target


def test_prometheus_takes_the_numbers_and_the_rules(gateway: Gateway) -> None:
    """Its own tool reads the rules, tries them on invented series, and lints what a running agent gives."""
    folder = image.REPOSITORY / "docs/monitoring"
    for command in (
        ["check", "rules", "alert-rules.yml"],
        ["test", "rules", str(Path(__file__).with_name("alert_rules_test.yml"))],
    ):
        done = subprocess.run([promtool(), *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    text = gateway.run(f"{BIN}/edge-agent metrics").stdout
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def entries(gateway: Gateway, *words: str) -> list[dict[str, Any]]:
    text = gateway.run(f"journalctl -o json --no-pager {' '.join(words)}").stdout
    return [json.loads(line) for line in text.splitlines()]


def test_the_journal_has_fields(gateway: Gateway) -> None:
    start = entries(gateway, "-u edge-agent", "EVENT=start")[-1]
    assert start["VERSION"] == start["RELEASE"] == __version__ and start["PRIORITY"] == "6"
    assert start["SYSLOG_IDENTIFIER"] == "edge-agent" and start["_SYSTEMD_UNIT"] == "edge-agent.service"
    ready = entries(gateway, "-u edge-agent", "EVENT=ready")[-1]
    assert (ready["GATEWAY"], ready["BEDS"], ready["SOURCES"]) == ("gw", "1", "1")
    size = 1_000_000  # longer than a datagram: it goes as a file in memory, and the real journal takes it
    code = "import logging; from edge_agent import journal; a = journal.start('edge-agent', 20)\n"
    code += f"logging.info('long detail=%s', 'x' * {size}); a.stop()"
    gateway.run(f'systemd-run --quiet --wait --unit=long {BIN}/python -c "{code}"')
    (entry,) = entries(gateway, "-u long", "EVENT=long", "--all")
    assert entry["DETAIL"] == "x" * size
    wrong = PLAIN.replace("credential:edge-agent.kek", "file:/etc/edge-agent/no-such-key")
    gateway.fresh(wrong + KAFKA + 'security = "plaintext"\n')
    try:
        gateway.until(lambda: entries(gateway, "EVENT=fault", "CONDITION=key_missing"), "the fault in the journal")
        fault = entries(gateway, "EVENT=fault", "CONDITION=key_missing")[-1]
        assert fault["PRIORITY"] == "4" and "no-such-key" in fault["DETAIL"] and fault["KIND"] == "buffer"
        assert not entries(gateway, "EVENT=fault", "CONDITION=disk_fault")
    finally:
        gateway.fresh(PLAIN + KAFKA + 'security = "plaintext"\n')
    gateway.until(lambda: entries(gateway, "-u cloud-sync", "STREAM=alerts", "STATE=waiting"), "the forwarder's state")
    assert entries(gateway, "-u cloud-sync", "STREAM=alerts")[-1]["SYSLOG_IDENTIFIER"] == "cloud-sync"


def test_the_bundle_holds_what_helps(gateway: Gateway) -> None:
    done = gateway.run(f"cd /root && {BIN}/edge-agent support-bundle --out /root/b.tar.gz && stat -c %a /root/b.tar.gz")
    assert done.stdout.splitlines()[-1] == "600"
    with tarfile.open(gateway.machine.path("/root/b.tar.gz")) as archive:
        found = {Path(each.name).name: archive.extractfile(each).read() for each in archive.getmembers()}  # type: ignore[union-attr]
    assert not [name for name, data in found.items() if data.startswith(b"could not be made")], found.keys()
    journal = [json.loads(line) for line in found["journal.jsonl"].splitlines()]
    assert any(each.get("EVENT") == "start" for each in journal)
    assert any(each.get("_SYSTEMD_UNIT") == "cloud-sync.service" for each in journal), "of both services"
    assert b"Id=edge-agent.service" in found["units.txt"] and b"edge_agent_build_info" in found["metrics.txt"]
    assert json.loads(found["status.json"])["gateway"] == "gw" and b"capacity" in found["buffer.json"]
    assert b"edge-agent.kek" in found["files.txt"], "that the credential is there, not what is in it"
    sealed = gateway.machine.path(CREDENTIAL).read_bytes()
    assert sealed[:40] not in b"".join(found.values())
