"""What the doctor says of units, users, modes and credentials on a gateway that is made up below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from running_agent import Bedside

from edge_agent.commands import doctor_service
from edge_agent.commands.doctor_service import check_credentials, check_modes, check_units, check_users, secrets
from edge_agent.commands.finding import Finding, agent_user, installed, user
from edge_agent.config import Loaded, load

# as systemd 252 tells of a gateway that is well
WELL = {
    "LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "SubState": "running",
    "Result": "success", "NRestarts": "0", "WatchdogUSec": "5s", "OnFailure": "edge-agent-last-gasp.service",
    "NeedDaemonReload": "no",
    "ExecStart": "{ path=/opt/bedside-edge/current/.venv/bin/edge-agent ; argv[]=... ; }",
}  # fmt: skip
QUIET = WELL | {"ActiveState": "inactive", "SubState": "dead", "OnFailure": ""}
RECEIVER = '[cloud.kafka]\nbootstrap = "127.0.0.1:1"\nsecurity = "plaintext"'


class Made:
    """A root with users, groups and units of a gateway."""

    def __init__(self, folder: Path) -> None:
        self.root, own = folder / "root", os.getuid()
        self.bedside = Bedside(folder)
        (self.root / "etc/systemd/system").mkdir(parents=True)
        (self.root / "etc/systemd/system/edge-agent.service").write_text("[Unit]\n")
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.passwd = f"root:x:0:0::/:\nedge-agent:x:{own}:900::/:\ncloud-sync:x:902:902::/:\n"
        self.group = (
            f"bedside-edge:x:{os.getgid()}:edge-agent,cloud-sync\ndialout:x:20:edge-agent\ngpio:x:997:edge-agent\n"
            "audio:x:29:edge-agent\n"
        )
        self.write_users()
        self.told = {unit: dict(WELL) for unit in doctor_service.UNITS} | {doctor_service.GASP: dict(QUIET)}

    def write_users(self) -> None:
        (self.root / "etc/passwd").write_text(self.passwd)
        (self.root / "etc/group").write_text(self.group)

    def loaded(self, *tables: str) -> Loaded:
        return load(self.bedside.write(*tables))

    def units(self, *tables: str) -> list[Finding]:
        return list(check_units(self.loaded(*(tables or (RECEIVER,))), self.root, self.told.__getitem__))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def wrong(found: list[Finding]) -> list[Finding]:
    assert all(each.remedy for each in found if each.state != "ok"), found
    return [each for each in found if each.state != "ok"]


def only(found: list[Finding]) -> Finding:
    (one,) = wrong(found)
    return one


def test_a_gateway_that_is_well_is_told_so(made: Made) -> None:
    assert not wrong(made.units()) and len(made.units()) == 6
    assert not wrong(list(check_users(made.loaded(), made.root)))


@pytest.mark.parametrize(
    ("unit", "change", "state", "words", "remedy"),
    [
        ("bedside-edge.target", {"UnitFileState": "disabled"}, "FAIL", "not enabled", "systemctl enable --now bedside"),
        ("edge-agent.service", {"LoadState": "not-found"}, "FAIL", "not installed", "edge-agent release install"),
        ("edge-agent-last-gasp.service", {"LoadState": "not-found"}, "FAIL", "last-gasp.service is not", "release"),
        ("edge-agent.service", {"LoadState": "masked"}, "FAIL", "masked", "systemctl unmask edge-agent.service"),
        ("edge-agent.service", {"ActiveState": "inactive"}, "FAIL", "inactive", "systemctl start edge-agent"),
        ("edge-agent.service", {"ActiveState": "failed", "Result": "watchdog"}, "FAIL", "(watchdog)", "journalctl -u"),
        ("edge-agent.service", {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "0"}, "FAIL",
         "started again", "journalctl"),
        ("edge-agent.service", {"WatchdogUSec": "0"}, "FAIL", "WatchdogSec", "systemctl cat edge-agent"),
        ("edge-agent.service", {"WatchdogUSec": "infinity"}, "FAIL", "hung alarm loop", "systemctl revert edge-agent"),
        ("edge-agent.service", {"OnFailure": ""}, "FAIL", "OnFailure", "drop-in"),
        ("edge-agent.service", {"NRestarts": "3"}, "warn", "restarted the agent 3 times", "journalctl"),
        ("edge-agent.service", {"NeedDaemonReload": "yes"}, "warn", "has changed", "systemctl daemon-reload"),
        ("edge-agent.service", {"ExecStart": "{ path=/root/try.sh ; }"}, "warn", "does not start", "systemctl cat"),
        ("edge-agent-last-gasp.service", {"ActiveState": "active"}, "FAIL", "alarms are not given", "journalctl"),
        ("bedside-edge-clock.service", {"ActiveState": "inactive"}, "warn", "inactive", "systemctl start bedside-"),
        ("cloud-sync.service", {"ActiveState": "failed"}, "FAIL", "cloud-sync.service has failed", "journalctl"),
    ],
)  # fmt: skip
def test_what_systemd_says_is_told(
    made: Made, unit: str, change: dict[str, str], state: str, words: str, remedy: str
) -> None:
    made.told[unit] |= change
    found = only(made.units())
    assert found.state == state and words in found.detail and remedy in found.remedy


def test_a_forwarder_without_a_receiver_may_rest(made: Made) -> None:
    made.told["cloud-sync.service"] |= {"ActiveState": "failed"}
    manager = '[cloud.alert_manager]\nlink = "mllp://127.0.0.1:9"'
    assert not wrong(made.units("[scores]")) and wrong(made.units(manager))


def test_no_systemd_and_no_gateway(made: Made, tmp_path: Path) -> None:
    (made.root / "run/systemd/system").rmdir()
    assert "systemd does not run" in only(made.units()).detail
    desk = tmp_path / "desk"
    desk.mkdir()
    assert not installed(desk) and not wrong(list(check_units(made.loaded(), desk)))
    assert not list(check_users(made.loaded(), desk)) and agent_user(desk).uid == os.geteuid()


def test_the_real_systemctl_is_asked(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are those of the man page; here a program of that name gives them."""
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "LoadState=loaded\\nActiveState=failed\\nResult=exit-code\\nX=a=b\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert doctor_service.show("edge-agent.service") == {
        "LoadState": "loaded", "ActiveState": "failed", "Result": "exit-code", "X": "a=b",
    }  # fmt: skip
    program.write_text("#!/bin/sh\nexit 1\n")
    assert all("not installed" in each.detail for each in wrong(list(check_units(made.loaded(), made.root))))


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("passwd", "cloud-sync:", "somebody:", "no user cloud-sync"),
        (
            "group",
            "bedside-edge:x:{gid}:edge-agent,cloud-sync",
            "bedside-edge:x:{gid}:edge-agent",
            "cloud-sync is not in",
        ),
        ("group", "dialout:x:20:edge-agent", "dialout:x:20:", "dialout, which owns the serial ports"),
        ("group", "gpio:x:997:edge-agent\n", "", "gpio, which owns the GPIO chips"),
        ("group", "audio:x:29:edge-agent", "audio:x:29:pulse", "audio, which owns the sound"),
    ],
)
def test_users_and_groups(made: Made, file: str, old: str, new: str, words: str) -> None:
    old, new = old.format(gid=os.getgid()), new.format(gid=os.getgid())
    setattr(made, file, getattr(made, file).replace(old, new))
    made.write_users()
    tables = (
        '[[source]]\nname = "cable"\ndriver = "nonin"\nlink = "serial:///dev/ttyAMA0"\nbed = "ICU-3"',
        '[[annunciator]]\nkind = "gpio"\nchip = "c"\nred = 1', '[[annunciator]]\nkind = "sound"',
    )  # fmt: skip
    found = only(list(check_users(made.loaded(*tables), made.root)))
    assert found.state == "FAIL" and words in found.detail and "systemd-sysusers" in found.remedy


def test_rights_are_those_of_the_services_user(made: Made, tmp_path: Path) -> None:
    """Whoever asks: root may everything, the agent only what modes and groups give it."""
    made.passwd = made.passwd.replace(f"edge-agent:x:{os.getuid()}:", "edge-agent:x:4711:")
    made.write_users()
    agent, file = user("edge-agent", made.root), tmp_path / "file"
    assert agent is not None and agent.gids == {900, os.getgid(), 20, 997, 29}
    file.write_text("x")
    for mode, may in ((0o600, False), (0o640, True), (0o604, False), (0o060, True)):
        file.chmod(mode)
        assert agent.may(file.stat(), 4) is may, oct(mode)
    assert not agent.may(file.stat(), 1)


def test_modes_of_the_configuration(made: Made, tmp_path: Path) -> None:
    loaded = made.loaded()
    desk = tmp_path / "desk"
    desk.mkdir()
    loaded.path.chmod(0o644)
    assert not wrong(list(check_modes(loaded, desk)))
    loaded.path.chmod(0o664)
    found = only(list(check_modes(loaded, desk)))
    assert found.state == "FAIL" and "0664" in found.detail and found.remedy == f"chmod go-w {loaded.path}"
    loaded.path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(loaded.path, 4712, os.getgid())
    assert not [each for each in check_modes(loaded, made.root) if each.state == "FAIL"]
    loaded.path.chmod(0o644)
    assert "every user may read it" in str(wrong(list(check_modes(loaded, made.root))))
    loaded.path.chmod(0o600)
    told = wrong(list(check_modes(loaded, made.root)))
    assert any("cannot be read by cloud-sync" in each.detail and "chmod 0640" in each.remedy for each in told)


def test_a_data_folder_that_is_open_to_all(made: Made, tmp_path: Path) -> None:
    made.bedside.data_dir.mkdir(mode=0o755)
    found = only(list(check_modes(made.loaded(), tmp_path / "none")))
    assert found.state == "warn" and "every user" in found.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_folders_are_those_of_tmpfiles(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made.loaded().path.read_text().replace(str(made.bedside.data_dir), "/var/lib/edge-agent")
    made.bedside.data_dir.parent.joinpath("edge.toml").write_text(text)
    loaded = load(made.bedside.folder / "edge.toml")
    loaded.path.chmod(0o640)
    os.chown(loaded.path, 4712, os.getgid())
    data = made.root / "var/lib/edge-agent"

    def folders() -> list[Finding]:
        return wrong(list(check_modes(loaded, made.root)))

    assert len(folders()) == 4 and all("systemd-tmpfiles" in each.remedy for each in folders())
    uids = {"edge-agent": os.getuid(), "cloud-sync": 902}
    for name, (mode, owner) in doctor_service.FOLDERS.items():
        (data / name).mkdir(parents=True, exist_ok=True)
        os.chown(data / name, uids[owner], os.getgid())
        (data / name).chmod(mode)
    assert folders() == []
    (data / "buffer").chmod(0o2755)
    assert "mode 2755, it should have 2750" in only(folders()).detail
    (data / "buffer").chmod(0o2750)
    os.chown(data / "marks", 0 if os.getuid() else 4711, os.getgid())
    assert "not to cloud-sync" in only(folders()).detail
    os.chown(data / "marks", 902, 4711)
    assert "not to bedside-edge" in only(folders()).detail


def test_the_modes_are_those_that_the_units_ship() -> None:
    shipped = (Path(__file__).parent.parent / "systemd/tmpfiles.d/bedside-edge.conf").read_text()
    rows = [line.split() for line in shipped.splitlines() if line.startswith("d /var/lib/edge-agent")]
    made = {row[1].removeprefix("/var/lib/edge-agent").lstrip("/"): (int(row[2], 8), row[3]) for row in rows}
    assert made == doctor_service.FOLDERS
    folder = Path(__file__).parent.parent / "systemd"
    assert all((folder / unit).is_file() for unit in doctor_service.UNITS)


def test_every_secret_of_the_configuration_is_known(made: Made) -> None:
    found = secrets(
        made.loaded(
            '[privacy]\nkey = "credential:site"',
            '[cloud.encoding]\nformat = "avro"\nregistry = "http://r"\n'
            'registry_username = "u"\nregistry_password = "credential:registry"',
            '[cloud.kafka]\nbootstrap = "b:1"\nsecurity = "sasl_plaintext"\nsasl_username = "u"\n'
            'sasl_password = "credential:kafka"',
            '[cloud.mqtt]\nbroker = "b:1"\nsecurity = "plaintext"\nusername = "u"\npassword = "credential:mqtt"',
            '[cloud.rest]\nurl = "http://r"\ncluster = "c"\ntoken_url = "http://t"\nclient_id = "i"\n'
            'client_secret = "credential:rest"',
        )
    )
    assert set(found) == {"site", "registry", "kafka", "mqtt", "rest"}


def test_a_credential_is_looked_for(made: Made) -> None:
    loaded = made.loaded(RECEIVER, '[privacy]\nkey = "credential:edge-agent.site-key"')

    def told() -> list[Finding]:
        return wrong(list(check_credentials(loaded, made.root)))

    found = only(told())
    assert "privacy.key" in found.detail and "is missing" in found.detail
    assert "systemd-creds encrypt --name=edge-agent.site-key" in found.remedy
    sealed = made.root / "etc/credstore.encrypted/edge-agent.site-key"
    sealed.parent.mkdir()
    sealed.write_text("sealed")
    sealed.chmod(0o644)
    assert "mode 0644" in only(told()).detail and "chmod 0600" in only(told()).remedy
    sealed.parent.chmod(0o700)
    assert not told(), "nobody else gets to it, as systemd-creds makes it"
    sealed.parent.chmod(0o755)
    sealed.chmod(0o600)
    assert not told()
    plain = made.root / "etc/credstore/edge-agent.site-key"
    plain.parent.mkdir()
    sealed.rename(plain)
    assert only(told()).state == "warn" and "not encrypted" in only(told()).detail


def test_whether_a_unit_passes_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def passed(text: str) -> bool:
        program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\n")
        program.chmod(0o755)
        return doctor_service._passed("cloud-sync.service", "mqtt")

    check: Callable[[str], bool] = passed
    assert check("[Service]\nLoadCredentialEncrypted=mqtt") and check("LoadCredential=mqtt:/path")
    assert not check("#LoadCredentialEncrypted=mqtt") and not check("LoadCredentialEncrypted=mqtt2")
