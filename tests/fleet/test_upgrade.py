"""Releases on a booted machine: installed, refused, gone back from, and cut off, while a monitor goes on sending.

The tests share one machine and run in order; each brings it to the release that it begins with.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.release.build import pack
from tests.fleet import image
from tests.fleet.machine import Machine
from tests.fleet.release_rig import BASE, CONFIG, CONFIGURATION, REFUSED, Gateway, Monitor, unwell

DOWN_S = 5.0  # "at most a few seconds"; about half a second on an idle machine
REFUSED_BUNDLE, REFUSED_MACHINE, BUSY, WENT_BACK, REFUSED_CONFIG = 3, 4, 5, 6, 78

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    if lacking := image.missing():
        pytest.fail(lacking, pytrace=False)
    with Machine(tmp_path_factory.mktemp("upgrade")) as machine:
        made = Gateway(machine)
        for version in ("1.0.0", "1.1.0", "1.3.0"):
            made.bring(image.bundle(version))
        made.bring(image.bundle("1.2.0", unwell, "-unwell"))
        yield made


def bundle(version: str) -> str:
    return f"/root/bedside-edge-{version}.tar"


def at(gateway: Gateway, version: str) -> None:
    """The machine runs this release."""
    gateway.configure()
    if gateway.running() != version:
        done = gateway.install(bundle(version), "--now", "--allow-older")
        assert done.returncode == 0, done.stderr
    assert gateway.running() == version


def down_s(said: str) -> float:
    found = re.search(r"the alarm path was down for ([\d.]+) s", said)
    assert found, said
    return float(found[1])


def test_a_bare_machine_with_too_little_room_is_left_as_it_was(gateway: Gateway) -> None:
    gateway.run(f"mkdir -p {BASE}/releases")
    before = gateway.files()
    for options, why in (
        ("size=100m", r"releases: \d+ MB free, \d+ MB needed for 1.0.0"),
        ("size=900m,nr_inodes=900", "No space left on device"),  # it fills while the environment is built
    ):
        gateway.run(f"mount -t tmpfs -o {options} none {BASE}/releases")
        done = gateway.install(bundle("1.0.0"))
        left = gateway.run(f"ls {BASE}/releases").stdout
        gateway.run(f"umount {BASE}/releases")
        assert done.returncode == REFUSED_MACHINE and re.search(why, done.stderr), (done.stdout, done.stderr)
        assert left == "" and gateway.files() == before


def test_first_installation_from_one_file_and_a_bundle(gateway: Gateway) -> None:
    done = gateway.install(bundle("1.0.0"))
    assert done.returncode == 0, done.stderr
    assert "start it with `systemctl start bedside-edge.target`" in done.stdout
    gateway.configure()
    gateway.run("systemctl start bedside-edge.target")
    gateway.machine.wait(f"{BASE}/current/.venv/bin/edge-agent status --json >/dev/null")
    assert gateway.running() == "1.0.0"
    again = gateway.install(bundle("1.0.0"))
    assert (again.returncode, again.stdout) == (0, "1.0.0 is installed already: nothing to do\n")
    state = gateway.state()
    assert (state["current"], state["previous"], state["running"]) == ("1.0.0", "", "1.0.0")
    size = int(gateway.run(f"du -sm {BASE}/releases/1.0.0").stdout.split()[0])
    assert size <= 250, f"a release takes {size} MB"
    # nothing of it can be written by the services, and its first start wrote nothing
    assert not gateway.run(f"find {BASE} ! -type l -perm /022").stdout
    assert not gateway.run(f"find {BASE}/releases/1.0.0 -newer {BASE}/update.json 2>/dev/null", check=False).stdout


def test_an_upgrade_loses_nothing_and_says_for_how_long_it_was_away(gateway: Gateway) -> None:
    at(gateway, "1.0.0")
    with Monitor(gateway.machine.address) as monitor:
        monitor.until(40)
        done = gateway.install(bundle("1.1.0"))
        assert done.returncode == 0, done.stderr
        monitor.until(40)
    assert "announced: the alarm path goes down for a few seconds" in done.stdout
    assert down_s(done.stdout) < DOWN_S
    assert monitor.longest_gap_s < DOWN_S + 2.5  # the monitor dials again within this
    assert gateway.running() == "1.1.0" and gateway.state()["previous"] == "1.0.0"
    assert len(monitor.acknowledged) >= 80
    assert monitor.acknowledged <= gateway.kept()
    assert gateway.run("systemctl is-active cloud-sync bedside-edge-clock").stdout == "active\nactive\n"
    told = gateway.keyed("alarms log --config /etc/edge-agent/edge-agent.toml")
    assert "announce" in told and "version=1.1.0" in told
    assert "bedside-edge-recover" not in gateway.run("find /etc/systemd").stdout


def test_a_high_alarm_holds_it_back(gateway: Gateway) -> None:
    at(gateway, "1.1.0")
    pid = gateway.pid()
    with Monitor(gateway.machine.address, spo2=70.0) as monitor:
        monitor.until(20)
        done = gateway.install(bundle("1.3.0"))
        assert done.returncode == BUSY, (done.stdout, done.stderr)
        assert "a HIGH alarm is active on ICU-3" in done.stderr and "--now" in done.stderr
        assert (gateway.running(), gateway.pid()) == ("1.1.0", pid)
        prepared = gateway.install(bundle("1.3.0"), "--now")
        assert prepared.returncode == 0 and "building" not in prepared.stdout, prepared.stderr
        monitor.until(20)
    assert gateway.running() == "1.3.0"
    alarms = gateway.release("status")
    assert "HIGH" in alarms and "SpO2 low" in alarms  # it is there again after the restart
    done = gateway.run(f"{BASE}/current/.venv/bin/edge-agent release rollback --now", check=False)
    assert done.returncode == 0 and down_s(done.stdout) < DOWN_S, done.stderr
    assert gateway.running() == "1.1.0"


def test_what_is_refused_changes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    at(gateway, "1.1.0")
    before, pid = gateway.files(), gateway.pid()
    for name, command, why in (
        ("tampered", "printf x | dd of=/root/{0}.tar bs=1 seek=5000000 conv=notrunc", "not those that were signed"),
        ("cut", "truncate -s 5M /root/{0}.tar", "bytes long as was signed"),
        ("unsigned", "rm /root/{0}.tar.sig", "No such file"),
        ("stranger", "sed -i 1s/1.3.0/1.4.0/ /root/{0}.tar.sig", "the signature is not trusted"),
    ):
        gateway.run(f"cp {bundle('1.3.0')} /root/{name}.tar && cp {bundle('1.3.0')}.sig /root/{name}.tar.sig")
        gateway.run(command.format(name))
        done = gateway.install(f"/root/{name}.tar")
        gateway.run(f"rm /root/{name}.*")
        assert done.returncode == REFUSED_BUNDLE and why in done.stderr, (name, done.stdout, done.stderr)
    done = gateway.install(bundle("1.0.0"))
    assert done.returncode == REFUSED_MACHINE and "1.0.0 is older than 1.1.0" in done.stderr
    done = gateway.install(foreign(tmp_path, gateway))
    assert done.returncode == REFUSED_MACHINE and "it is for manylinux_2_28_aarch64" in done.stderr, done.stderr
    gateway.run("sed -i.kept s/^ID=.*/ID=alpine/ /etc/os-release")
    done = gateway.install(bundle("1.3.0"))
    gateway.run("mv /etc/os-release.kept /etc/os-release")
    assert done.returncode == REFUSED_MACHINE and "this system is not supported" in done.stderr
    assert gateway.files() == before
    assert (gateway.running(), gateway.pid()) == ("1.1.0", pid)


def foreign(folder: Path, gateway: Gateway) -> str:
    """A bundle for another architecture, signed with the same key."""
    name = "numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl"
    shutil.copy(next(image.wheels().glob("click-*.whl")), folder / name)
    (folder / "lock").write_text("")
    files = {f"wheels/{name}": folder / name, "requirements.lock": folder / "lock", name: folder / name}
    key = image.CACHE / "release-signing.pem"
    made = pack(files, name, "1.5.0", ">=3.11,<3.14", "0" * 40, folder / "out", key, {})
    for path in (made, made.with_name(made.name + ".sig")):
        gateway.machine.put(path, f"/root/{path.name}")
    return bundle("1.5.0")


def test_a_configuration_that_the_new_release_refuses(gateway: Gateway) -> None:
    at(gateway, "1.1.0")
    pid = gateway.pid()
    gateway.configure(CONFIGURATION + REFUSED + "\n")
    done = gateway.install(bundle("1.2.0"))
    assert done.returncode == REFUSED_CONFIG, done.stderr
    assert f"1.2.0 refuses the configuration {CONFIG}" in done.stderr and "this key has gone" in done.stderr
    assert gateway.state()["current"] == "1.1.0" and (gateway.running(), gateway.pid()) == ("1.1.0", pid)


def test_a_release_whose_agent_dies_goes_back_by_itself(gateway: Gateway) -> None:
    at(gateway, "1.1.0")
    before = gateway.state()
    with Monitor(gateway.machine.address) as monitor:
        monitor.until(20)
        done = gateway.install(bundle("1.2.0"))
        assert done.returncode == WENT_BACK, (done.stdout, done.stderr)
        monitor.until(20)
    assert "edge-agent.service ended by itself" in done.stderr and "1.1.0 is in force again and well" in done.stderr
    assert down_s(done.stderr) < 2 * DOWN_S
    state = gateway.state()
    assert (state["current"], state["previous"], state["running"]) == ("1.1.0", before["previous"], "1.1.0")
    assert monitor.acknowledged <= gateway.kept()
    units = gateway.run(f"diff -r {BASE}/current/systemd /etc/systemd/system | grep -v '^Only in'", check=False).stdout
    assert units == ""


STOPPING = """
import os, sys, time
sys.path.insert(0, "/root/installer.pyz")
from pathlib import Path
from edge_agent.release.gateway import Folders, Services
from edge_agent.release.installer import Installer
def step(name):
    if name == sys.argv[2]:
        os.sync()
        open("/run/reached", "w").close()
        time.sleep(600)
Installer(Folders(Path("/")), Services(), say=print, socket=Path("/run/edge-agent/control.sock"), step=step).install(
    Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["environment", "pointed", "judged"])
def test_a_power_cut_boots_the_old_release_and_a_second_run_completes(gateway: Gateway, moment: str) -> None:
    at(gateway, "1.1.0")
    if moment == "environment":
        gateway.run(f"rm -rf {BASE}/releases/1.3.0")
    gateway.run("rm -f /run/reached && cat > /root/stopping.py", stdin=STOPPING)
    gateway.run(f"systemd-run -q python3 /root/stopping.py {bundle('1.3.0')} {moment}")
    gateway.machine.wait("test -e /run/reached", 120)
    assert gateway.running() == ("1.3.0" if moment == "judged" else "1.1.0")
    gateway.machine.kill()
    began = time.monotonic()
    gateway.machine.boot()
    gateway.machine.wait(f"{BASE}/current/.venv/bin/edge-agent status --json >/dev/null", 60)
    assert time.monotonic() - began < 60
    state = gateway.state()
    assert (state["current"], state["running"], state["interrupted"]) == ("1.1.0", "1.1.0", False)
    if moment != "environment":
        journal = gateway.run("journalctl -b -u bedside-edge-recover --no-pager -o cat").stdout
        assert "an update was cut off: 1.1.0 is in force again" in journal
    done = gateway.install(bundle("1.3.0"), "--now")
    assert done.returncode == 0, (done.stdout, done.stderr)
    state = gateway.state()
    assert (state["current"], state["previous"], state["unfinished"]) == ("1.3.0", "1.1.0", [])
    # and back again, by the file that every installation leaves beside the releases
    done = gateway.run(f"python3 {BASE}/installer.pyz rollback --now", check=False)
    assert done.returncode == 0 and gateway.running() == "1.1.0", done.stderr


def test_the_installer_killed_at_work_is_taken_up_by_the_next_run(gateway: Gateway) -> None:
    at(gateway, "1.1.0")
    gateway.run("rm -f /run/reached && cat > /root/stopping.py", stdin=STOPPING)
    gateway.run(f"systemd-run -q --unit=stopping python3 /root/stopping.py {bundle('1.3.0')} pointed")
    gateway.machine.wait("test -e /run/reached", 120)
    done = gateway.install(bundle("1.3.0"), "--now")
    assert done.returncode == BUSY and "another installation runs" in done.stderr
    gateway.run("systemctl kill -s KILL stopping")
    gateway.machine.wait("! systemctl is-active -q stopping")
    assert gateway.running() == "1.1.0"  # the agent has not noticed
    done = gateway.install(bundle("1.3.0"), "--now")
    assert done.returncode == 0 and gateway.running() == "1.3.0", done.stderr
