"""What the installer refuses, does, undoes and tells; systemd itself is on the booted machine of tests/fleet."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from release_bench import Ward, digest, gateway, known_python, make_bundle, make_key, quick, units

from edge_agent.__main__ import main
from edge_agent.release import gateway as gateways
from edge_agent.release import installer as installers
from edge_agent.release.bundle import BUNDLE, BUSY, CONFIG, MACHINE, UNHEALTHY, WENT_BACK, Stop
from edge_agent.release.gateway import SETTLED_S, Folders, Services, health
from edge_agent.release.installer import Installer
from edge_agent.release.machine import Python

SPARE = ("edge-agent.service", "cloud-sync.service", "bedside-edge.target", "edge-agent.service.d/extra.conf")


class Bench:
    """A gateway below a folder, with an agent that its Ward plays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = make_key(folder)
        self.folders = gateway(folder / "root", folder / "trusted")
        self.folders.config.parent.mkdir(parents=True)
        self.folders.config.write_text("[gateway]\n")
        self.ward = Ward(self.folders, folder / "sock")
        self.told: list[str] = []
        self.installer = Installer(self.folders, self.ward, say=self.told.append, socket=folder / "sock")

    def bundle(self, version: str, **more: object) -> Path:
        return make_bundle(self.folder, version, self.key, **more)  # type: ignore[arg-type]

    def install(self, version: str, **more: object) -> None:
        """Installs, with the least patience."""
        self.told.clear()
        self.installer.install(self.bundle(version), health_s=1, **more)  # type: ignore[arg-type]

    def versions(self) -> tuple[str, str, str]:
        """The release in force, the one before, and the one that answers."""
        return (
            self.folders.version(self.folders.current), self.folders.version(self.folders.previous), self.ward.version
        )  # fmt: skip

    def refuses(self, code: int, match: str, version: str = "1.1.0", **more: object) -> None:
        """Nothing that is on the disk or runs is another one afterwards."""
        before, running = digest(self.folder / "root"), self.ward.version
        path = self.bundle(version)
        with pytest.raises(Stop, match=match) as stop:
            self.installer.install(path, **more)  # type: ignore[arg-type]
        assert stop.value.code == code
        assert digest(self.folder / "root") == before and self.ward.version == running


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(installers, "environment", quick)
    monkeypatch.setattr(installers, "find_python", known_python)
    monkeypatch.setattr(gateways, "SETTLED_S", 0.1)
    made = Bench(tmp_path)
    yield made
    made.ward.close()


def test_first_and_next_and_back(bench: Bench) -> None:
    bench.install("1.0.0")
    assert bench.versions() == ("1.0.0", "", "1.0.0")
    assert os.readlink(bench.folders.current) == "releases/1.0.0"
    assert units(bench.folders)["edge-agent.service"] == "# edge-agent.service of 1.0.0\n"
    assert (bench.folders.etc / "udev/rules.d/70-bedside-edge.rules").exists()
    assert (bench.folders.etc / "tmpfiles.d/bedside-edge.conf").exists()
    assert bench.ward.says == []  # nobody ran who could have announced it
    bench.ward.forwarding = True
    bench.install("1.1.0")
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0") and bench.ward.says == ["1.1.0"]
    assert bench.told[-1] == "1.1.0 is in force and well; the alarm path was down for 0.50 s"
    assert set(units(bench.folders).values()) == {
        f"# {name} of 1.1.0\n"
        for name in ("edge-agent.service", "cloud-sync.service", "bedside-edge.target",
                     "tmpfiles.d/bedside-edge.conf", "udev/70-bedside-edge.rules")
    }  # fmt: skip
    bench.install("1.2.0")
    assert sorted(path.name for path in bench.folders.releases.iterdir()) == ["1.1.0", "1.2.0"]
    bench.installer.rollback(health_s=1)
    assert bench.versions() == ("1.1.0", "1.2.0", "1.1.0")
    assert units(bench.folders)["edge-agent.service"] == "# edge-agent.service of 1.1.0\n"
    bench.installer.rollback(health_s=1)
    assert bench.versions() == ("1.2.0", "1.1.0", "1.2.0")
    left = bench.folders.etc / "systemd/system"
    assert not list(left.rglob("bedside-edge-recover*")) and not bench.folders.note.exists()


def test_the_same_again_does_nothing(bench: Bench) -> None:
    bench.install("1.0.0")
    before = digest(bench.folder / "root")
    bench.install("1.0.0")
    assert bench.told == ["1.0.0 is installed already: nothing to do"] and digest(bench.folder / "root") == before


def test_another_build_of_the_same_number_is_refused(bench: Bench) -> None:
    bench.install("1.0.0")
    path = bench.bundle("1.0.0", units=SPARE)
    with pytest.raises(Stop, match=r"another build of 1.0.0 is there"):
        bench.installer.install(path)
    assert bench.versions() == ("1.0.0", "", "1.0.0")


def test_units_that_a_release_no_longer_has_go_and_come_back(bench: Bench) -> None:
    bench.install("1.0.0")
    system = bench.folders.etc / "systemd/system"
    (system / "edge-agent.service.d").mkdir()
    (system / "edge-agent.service.d/site.conf").write_text("ours\n")
    bench.installer.install(bench.bundle("1.1.0", units=SPARE), health_s=1)
    assert not (bench.folders.etc / "udev/rules.d/70-bedside-edge.rules").exists()
    assert (system / "edge-agent.service.d/extra.conf").exists()
    bench.installer.rollback(health_s=1)
    assert (bench.folders.etc / "udev/rules.d/70-bedside-edge.rules").exists()
    assert not (system / "edge-agent.service.d/extra.conf").exists()
    assert (system / "edge-agent.service.d/site.conf").read_text() == "ours\n"  # the hospital's own stay


def test_an_older_one_only_when_told(bench: Bench) -> None:
    bench.install("1.1.0")
    bench.refuses(MACHINE, "1.0.9 is older than 1.1.0", "1.0.9")
    bench.refuses(MACHINE, "1.1.0rc1 is older than 1.1.0", "1.1.0rc1")
    bench.install("1.0.9", allow_older=True)
    assert bench.versions() == ("1.0.9", "1.1.0", "1.0.9")


def test_data_that_the_other_release_cannot_read_wants_a_word(bench: Bench) -> None:
    bench.install("1.0.0")
    path = bench.bundle("2.0.0", data=2)
    before = digest(bench.folder / "root")
    with pytest.raises(Stop, match=r"2.0.0 keeps the buffer in format 2, 1.0.0 in format 1") as stop:
        bench.installer.install(path)
    assert stop.value.code == MACHINE and digest(bench.folder / "root") == before
    bench.installer.install(path, health_s=1, new_format=True)
    with pytest.raises(Stop, match=r"1.0.0 keeps the buffer in format 1, 2.0.0 in format 2"):
        bench.installer.rollback(health_s=1)
    bench.installer.rollback(health_s=1, new_format=True)
    assert bench.versions() == ("1.0.0", "2.0.0", "1.0.0")


def test_what_does_not_fit_the_machine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.install("1.0.0")
    (bench.folder / "root/etc/os-release").write_text('PRETTY_NAME="Alpine"\nID=alpine\nVERSION_ID=3.20\n')
    bench.refuses(MACHINE, r"Alpine: this system is not supported; known: debian 12/13")
    bench.install("1.0.1", any_system=True)
    gateway(bench.folder / "root", bench.folders.trusted)
    path = bench.bundle("1.1.0", wheels=("numpy-2.0-cp311-cp311-manylinux_2_17_m68k.whl",))
    before = digest(bench.folder / "root")
    with pytest.raises(Stop, match=r"no wheel of numpy for Python 3.* it is for manylinux_2_17_m68k") as stop:
        bench.installer.install(path)
    assert stop.value.code == MACHINE and digest(bench.folder / "root") == before
    path = bench.bundle("1.1.1", python=">=4.0,<5.0")
    with pytest.raises(Stop, match=r"(?s)needs Python >=4.0,<5.0; .*apt install python3.11") as stop:
        bench.installer.install(path)
    assert stop.value.code == MACHINE and digest(bench.folder / "root") == before
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((4096, 4096, 9, 9, 9, 9, 9, 9, 0, 255)))
    bench.refuses(MACHINE, r"0 MB free, \d+ MB needed for 1.1.2", "1.1.2")


def test_what_is_not_trusted_changes_nothing(bench: Bench) -> None:
    bench.install("1.0.0")
    for key in bench.folders.trusted.iterdir():
        key.unlink()
    bench.refuses(BUNDLE, "no key is trusted yet")
    with pytest.raises(Stop, match=r"none.tar: No such file"):
        bench.installer.install(bench.folder / "none.tar")


def test_a_configuration_that_the_new_one_refuses(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.folders.config.write_text("[gateway]\n\n# not for 1.1.0\n")
    with pytest.raises(Stop, match=r"(?s)1.1.0 refuses the configuration .*no such key") as stop:
        bench.install("1.1.0")
    assert stop.value.code == CONFIG and bench.versions() == ("1.0.0", "", "1.0.0") and bench.ward.says == []
    bench.folders.config.write_text("[gateway]\n")
    bench.install("1.1.0")
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0")
    assert not any("building" in line for line in bench.told)  # it was prepared already


def test_not_while_a_high_alarm_is_active(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.ward.high = "ICU-3"
    with pytest.raises(Stop, match=r"not now: a HIGH alarm is active on ICU-3\n.*stays prepared") as stop:
        bench.install("1.1.0")
    assert stop.value.code == BUSY and bench.versions() == ("1.0.0", "", "1.0.0")
    bench.install("1.1.0", now=True)
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0")
    with pytest.raises(Stop, match="not now"):
        bench.installer.rollback(health_s=1)
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0")


@pytest.mark.parametrize("illness", ["dies", "fault", "forwarder"])
def test_one_that_is_not_well_goes_back_by_itself(bench: Bench, illness: str) -> None:
    bench.install("0.9.0")
    bench.install("1.0.0")
    bench.ward.forwarding = True
    bench.ward.faults["1.0.0"] = ["key_missing"]  # was there before: nobody's
    if illness == "dies":
        bench.ward.dying.add("1.1.0")
        why = r"edge-agent.service ended by itself \(exit-code\)"
    elif illness == "fault":
        bench.ward.faults["1.1.0"] = ["key_missing", "annunciator_fault", "central_link_lost"]
        why = "a fault that was not there before: annunciator_fault"
    else:
        bench.ward.without_forwarder.add("1.1.0")
        why = "cloud-sync.service does not run"
    with pytest.raises(Stop, match=f"1.1.0 was not well: .*{why}.* 1.0.0 is in force again and well") as stop:
        if illness == "forwarder":
            bench.ward.restart = _both(bench.ward)  # type: ignore[method-assign]
        bench.install("1.1.0")
    assert stop.value.code == WENT_BACK and bench.versions() == ("1.0.0", "0.9.0", "1.0.0")
    assert units(bench.folders)["edge-agent.service"] == "# edge-agent.service of 1.0.0\n"
    assert not bench.folders.note.exists()


def _both(ward: Ward) -> object:
    def restart(*, first: bool) -> None:
        ward.version = ward.folders.version(ward.folders.current)
        ward.forwarding = ward.version not in ward.without_forwarder

    return restart


def test_when_nothing_is_well_it_says_so(bench: Bench) -> None:
    bench.ward.dying.add("1.0.0")
    with pytest.raises(Stop, match=r"1.0.0 is installed, and is not well") as stop:
        bench.install("1.0.0")
    assert stop.value.code == UNHEALTHY
    bench.ward.dying.clear()
    bench.install("1.1.0")
    bench.ward.dying |= {"1.1.0", "1.2.0"}
    with pytest.raises(
        Stop, match=r"1.2.0 is not well .*and 1.1.0, now in force again, is not either.*\n.*watch the"
    ) as stop:
        bench.install("1.2.0")
    assert stop.value.code == UNHEALTHY


def test_a_fault_that_passes_is_no_reason_to_go_back(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.ward.faults["1.1.0"] = ["alarm_loop_late"]
    answer, asked = bench.ward.answer, []

    def later(request: dict[str, object]) -> dict[str, object] | None:
        asked.append(request)
        if len(asked) > 5:
            bench.ward.faults.clear()
        return answer(request)

    bench.ward.answer = later  # type: ignore[method-assign]
    bench.install("1.1.0")
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0") and len(asked) > 5


class Clockwork(Services):
    """A moment that only sleeping moves on, and an agent that says what `at` tells for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: Callable[[float], tuple[str, list[str]]]) -> None:
        self.now, self._at = 0.0, at
        monkeypatch.setattr(gateways, "ask", self._ask_agent)

    def _ask_agent(self, _path: Path, _op: str) -> dict[str, Any]:
        version, faults = self._at(self.now)
        return {"status": {"version": version, "gateway_alarms": [{"condition": name} for name in faults]}}

    def show(self, unit: str) -> dict[str, str]:
        return {"ActiveState": "active", "NRestarts": "0"}

    def judged(self) -> tuple[str, float]:
        """What `health` says of 1.1.0, and when."""
        why = health(
            self, Path("/sock"), "1.1.0", set(), 30, False, clock=lambda: self.now, sleep=self._pass
        )  # fmt: skip
        return why, self.now

    def _pass(self, seconds: float) -> None:
        self.now += seconds


def test_well_means_for_some_seconds_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    why, at = Clockwork(monkeypatch, lambda _now: ("1.1.0", [])).judged()
    assert why == "" and at == pytest.approx(SETTLED_S, abs=0.2)
    why, at = Clockwork(monkeypatch, lambda now: ("1.1.0", ["disk_fault"] if 4 < now < 6 else [])).judged()
    assert why == "" and at == pytest.approx(6 + SETTLED_S, abs=0.3)
    why, at = Clockwork(monkeypatch, lambda now: ("1.1.0", ["disk_fault"] if now % 4 > 3.8 else [])).judged()
    assert "disk_fault" in why and at < 35  # never well for long enough
    why, at = Clockwork(monkeypatch, lambda _now: ("1.0.0", [])).judged()
    assert why == "version 1.0.0 answers" and at == pytest.approx(30, abs=0.2)  # the restart has changed nothing


def test_faults_of_before_are_nobodys_and_are_said(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.ward.version = ""  # the agent has died, so that nobody knows which faults there were
    bench.ward.faults["1.1.0"] = ["key_missing"]
    bench.install("1.1.0")
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0")
    assert "it reports what was there before: key_missing" in bench.told[-1]


def test_a_release_whose_python_has_gone_is_built_again(bench: Bench) -> None:
    bench.install("0.9.0")
    bench.install("1.0.0")
    python = bench.folders.releases / "1.0.0/.venv/bin/python"
    python.unlink()
    bench.install("1.0.0")
    assert python.exists() and bench.versions() == ("1.0.0", "0.9.0", "1.0.0")
    assert sorted(path.name for path in bench.folders.releases.iterdir()) == ["0.9.0", "1.0.0"]


def test_prepared_is_not_switched_to(bench: Bench) -> None:
    bench.install("1.0.0")
    bench.install("1.1.0", prepare=True)
    assert bench.versions() == ("1.0.0", "", "1.0.0") and "is prepared" in bench.told[-1]
    assert bench.installer.state()["releases"] == ["1.0.0", "1.1.0"]
    bench.install("1.1.0")
    assert bench.versions() == ("1.1.0", "1.0.0", "1.1.0")


def test_only_one_at_a_time(bench: Bench) -> None:
    bench.install("1.0.0")
    with (bench.folders.base / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bench.refuses(BUSY, "another installation runs")
        with pytest.raises(Stop, match="another installation runs"):
            bench.installer.rollback()
        with pytest.raises(Stop, match="another installation runs"):
            bench.installer.recover()
    bench.install("1.1.0")


def test_a_gateway_without_a_configuration_is_not_started(bench: Bench) -> None:
    bench.folders.config.unlink()
    bench.install("1.0.0")
    assert bench.versions() == ("1.0.0", "", "") and "start it with" in bench.told[-1]
    assert not bench.folders.note.exists()


def test_there_must_be_one_to_go_back_to(bench: Bench) -> None:
    with pytest.raises(Stop, match="there is no release before"):
        bench.installer.rollback()
    bench.install("1.0.0")
    with pytest.raises(Stop, match="there is no release before"):
        bench.installer.rollback()


def test_a_disk_that_fills_while_it_builds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/opt/x")

    bench.install("1.0.0")
    monkeypatch.setattr(installers, "environment", full)
    bench.refuses(MACHINE, "1.1.0 could not be built: /opt/x: No space left on device")


# -- with a real Python environment ---------------------------------------------------------------------------------


def test_the_one_file_makes_an_environment_that_lies_where_it_will_run(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    path = make_bundle(tmp_path, "1.0.0", key)
    root = tmp_path / "root"
    gateway(root, tmp_path / "trusted")

    def call(file: Path, *words: str) -> str:
        command = [os.path.realpath(sys.executable), "-I", str(file), *words, "--root", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout

    one = path.parent / "installer.pyz"
    call(one, "install", str(path), "--trusted", str(tmp_path / "trusted"))
    release = root / "opt/bedside-edge/releases/1.0.0"
    assert {path.name for path in release.iterdir()} == {".venv", "manifest.json", "requirements.lock", "systemd"}
    script = (release / ".venv/bin/edge-agent").read_text()
    assert "/opt/bedside-edge/releases/1.0.0/.venv/bin/python" in script.partition("import")[0]
    assert "partial" not in script + (release / ".venv/pyvenv.cfg").read_text() and str(root) not in script
    site = next(release.glob(".venv/lib/python3*/site-packages"))
    assert (site / "edge_agent").is_dir() and not (site / "edge_agent/tests").exists() and not (site / "pip").exists()
    compiled = next(site.glob("edge_agent/__pycache__/__main__.*.pyc")).read_bytes()
    assert b"/opt/bedside-edge/releases/1.0.0/.venv/lib" in compiled and b".partial" not in compiled
    python = str(release / ".venv/bin/python")
    done = subprocess.run([python, "-I", "-m", "edge_agent", "--version"], capture_output=True, text=True)
    assert done.stdout == "edge-agent 1.0.0\n"
    for each in (release, *release.rglob("*")):
        assert each.is_symlink() or stat.S_IMODE(each.stat().st_mode) & 0o022 == 0, each
    # what an installation leaves on the gateway is the same file, and knows what is there
    left = Folders(root).installer
    assert left.read_bytes() == one.read_bytes()
    state = json.loads(call(left, "status", "--json"))
    assert (state["current"], state["releases"], state["interrupted"]) == ("1.0.0", ["1.0.0"], False)


def test_the_command_tells_codes_and_who_it_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "rollback", "--root", str(tmp_path)]) == MACHINE
    assert "there is no release before" in capsys.readouterr().err
    assert main(["release", "status", "--root", str(tmp_path)]) == 0
    assert "in force: none" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["release", "install", "x.tar", "--health-s", "0"])
    assert ended.value.code == 2


def test_wheels_and_pythons() -> None:
    python = Python(os.path.realpath(sys.executable))
    python.version, python.machine, python.libc = (3, 11), "x86_64", (2, 36)
    for wheel, fits in {
        "a-1-py3-none-any.whl": True, "a-1-py2.py3-none-any.whl": True, "a-1-py2-none-any.whl": False,
        "a-1-cp311-cp311-manylinux_2_28_x86_64.whl": True, "a-1-cp311-cp311-manylinux_2_38_x86_64.whl": False,
        "a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl": True,
        "a-1-cp312-cp312-manylinux_2_28_x86_64.whl": False, "a-1-cp310-abi3-manylinux2014_x86_64.whl": True,
        "a-1-cp312-abi3-manylinux2014_x86_64.whl": False, "a-1-cp311-cp311-manylinux_2_28_aarch64.whl": False,
        "a-1-cp311-cp311-musllinux_1_2_x86_64.whl": False, "a-1-cp311-none-linux_x86_64.whl": True,
    }.items():  # fmt: skip
        assert python.fits(wheel) == fits, wheel
    assert python.within(">=3.11,<3.14") and not python.within(">=3.12,<3.14") and not python.within(">=3.9,<3.11")
