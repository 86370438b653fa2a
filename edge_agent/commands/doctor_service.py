"""What `edge-agent doctor` looks at of the services: units, users, modes of files, credentials."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.commands.finding import AGENT, FORWARDER, SHARED, SYSTEM, Finding, groups, installed, user
from edge_agent.config import Loaded

TARGET, CLOCK, GASP = "bedside-edge.target", "bedside-edge-clock.service", "edge-agent-last-gasp.service"
UNITS = (TARGET, "edge-agent.service", "cloud-sync.service", GASP, CLOCK)
PROGRAM = "/opt/bedside-edge/current/.venv/bin/"
AGAIN = "edge-agent release status; then edge-agent release install BUNDLE puts units, users and folders right"
LOOK_AS_ROOT = "sudo edge-agent doctor"
DATA_DIR = Path("/var/lib/edge-agent")
# folder below the data folder -> mode and owner, as tmpfiles.d/bedside-edge.conf makes them; the group is bedside-edge
FOLDERS = {
    "": (0o710, AGENT), "buffer": (0o2750, AGENT), "marks": (0o2750, FORWARDER), "cloud-sync": (0o2750, FORWARDER),
}  # fmt: skip
_WANTED = (
    "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "NRestarts", "WatchdogUSec", "OnFailure",
    "NeedDaemonReload", "ExecStart",
)  # fmt: skip
_CREDENTIAL = re.compile(r"^credential:(.+)$")

Show = Callable[[str], dict[str, str]]


def show(unit: str) -> dict[str, str]:
    """What systemd says of a unit."""
    command = ["systemctl", "show", unit, f"--property={','.join(_WANTED)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def has_systemd(root: Path = SYSTEM) -> bool:
    """Whether systemd runs there."""
    return (root / "run/systemd/system").is_dir()


def receivers(loaded: Loaded) -> bool:
    """Whether anything is to be forwarded."""
    cloud = loaded.config.cloud
    return any((cloud.kafka, cloud.mqtt, cloud.rest, cloud.alert_manager))


def check_units(loaded: Loaded, root: Path = SYSTEM, show: Show = show) -> Iterator[Finding]:
    """Whether systemd starts, watches and replaces the agent."""
    if not installed(root):
        yield Finding("units", "ok", "not installed as a service here; units, users and releases were not looked at")
        return
    if not has_systemd(root):
        yield Finding("units", "FAIL", "systemd does not run here: nothing starts the agent again", "boot with systemd")
        return
    try:
        found = {unit: show(unit) for unit in UNITS}
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("units", "FAIL", f"systemctl does not answer: {error}", "systemctl status")
        return
    for unit in UNITS:
        yield from _unit(unit, found[unit], loaded)
    yield from _agent_unit(found["edge-agent.service"])


def _unit(unit: str, told: dict[str, str], loaded: Loaded) -> Iterator[Finding]:
    load, active = told.get("LoadState", ""), told.get("ActiveState", "")
    if load == "masked":
        yield Finding("units", "FAIL", f"{unit} is masked: it can never start", f"systemctl unmask {unit}")
        return
    if load != "loaded":
        yield Finding("units", "FAIL", f"{unit} is not installed ({load or 'unknown'})", AGAIN)
        return
    if told.get("NeedDaemonReload") == "yes":
        yield Finding("units", "warn", f"{unit} has changed and systemd has not read it", "systemctl daemon-reload")
    if unit == TARGET and told.get("UnitFileState") != "enabled":
        remedy = f"systemctl enable --now {unit}"
        yield Finding("units", "FAIL", f"{unit} is not enabled: nothing starts at the next boot", remedy)
    elif unit == GASP:
        if active == "active":
            remedy = "journalctl -u edge-agent -n 50 says why; edge-agent check CONFIG; systemctl restart edge-agent"
            yield Finding("units", "FAIL", "the last gasp is on: the agent does not run, alarms are not given", remedy)
        else:
            yield Finding("units", "ok", f"{unit} is installed and quiet")
    elif unit == "cloud-sync.service" and active != "active" and not receivers(loaded):
        yield Finding("units", "ok", f"{unit} does not run: no receiver is configured")
    elif active == "active":
        yield Finding("units", "ok", f"{unit} is active")
    elif active == "failed":
        remedy = f"journalctl -u {unit} -n 50; then systemctl restart {unit}"
        yield Finding("units", "FAIL", f"{unit} has failed ({told.get('Result')})", remedy)
    elif told.get("SubState", "").startswith("auto-restart"):
        remedy = f"journalctl -u {unit} -n 50"
        yield Finding(
            "units", "FAIL", f"{unit} ends and is started again, {told.get('NRestarts')} times so far", remedy
        )
    else:
        state = "warn" if unit == CLOCK else "FAIL"
        yield Finding("units", state, f"{unit} is {active or 'unknown'}", f"systemctl start {unit}")


def _agent_unit(told: dict[str, str]) -> Iterator[Finding]:
    if told.get("LoadState") != "loaded":
        return
    unit, edit = "edge-agent.service", "systemctl cat edge-agent shows the drop-in that changes it; systemctl revert"
    if told.get("WatchdogUSec", "0") in ("0", "infinity", ""):
        yield Finding("watchdog", "FAIL", f"{unit} has no WatchdogSec: a hung alarm loop stays", f"{edit} edge-agent")
    else:
        yield Finding("watchdog", "ok", f"systemd restarts an agent that is silent for {told['WatchdogUSec']}")
    if GASP not in told.get("OnFailure", ""):
        yield Finding("units", "FAIL", f"{unit} has no OnFailure={GASP}", f"{edit} edge-agent")
    if PROGRAM not in told.get("ExecStart", ""):
        yield Finding("units", "warn", f"{unit} does not start {PROGRAM}edge-agent", f"{edit} edge-agent")
    restarts = told.get("NRestarts", "0")
    if restarts.isdigit() and int(restarts):
        remedy = "journalctl -u edge-agent -p warning; systemctl reset-failed edge-agent sets the count back"
        yield Finding("units", "warn", f"systemd has restarted the agent {restarts} times", remedy)


def check_users(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Users, the group of both, and the groups that own the devices in use."""
    if not installed(root):
        return
    known, remedy = groups(root), "systemd-sysusers; then systemctl restart edge-agent cloud-sync"
    wrong = False
    for name in (AGENT, FORWARDER):
        found = user(name, root)
        if found is None:
            yield Finding("users", "FAIL", f"there is no user {name}", remedy)
            wrong = True
        elif SHARED not in known or known[SHARED][0] not in found.gids:
            yield Finding("users", "FAIL", f"{name} is not in the group {SHARED}", remedy)
            wrong = True
    agent = user(AGENT, root)
    for group, why in _device_groups(loaded).items():
        if agent is not None and (group not in known or known[group][0] not in agent.gids):
            yield Finding("users", "FAIL", f"{AGENT} is not in the group {group}, which owns {why}", remedy)
            wrong = True
    if not wrong:
        yield Finding("users", "ok", f"{AGENT} and {FORWARDER} have their groups")


def _device_groups(loaded: Loaded) -> dict[str, str]:
    config = loaded.config
    found = {}
    if any(source.link.startswith("serial:") for source in config.source):
        found["dialout"] = "the serial ports"
    if config.button or any(each.kind == "gpio" for each in config.annunciator):
        found["gpio"] = "the GPIO chips"
    if any(each.kind == "sound" for each in config.annunciator):
        found["audio"] = "the sound devices"
    if any(source.link.startswith("ble:") for source in config.source):
        found["bluetooth"] = "Bluetooth"
    return found


def check_modes(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Who may read and write the configuration and the data."""
    wrong = list(_config_modes(loaded, root))
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    if installed(root) and data_dir == DATA_DIR:
        wrong += _folder_modes(root)
    elif data_dir.exists() and stat.S_IMODE(data_dir.stat().st_mode) & 0o007:
        remedy = f"chmod o-rwx {data_dir}"
        wrong.append(Finding("modes", "warn", f"{data_dir} is open to every user of this machine", remedy))
    yield from wrong or [Finding("modes", "ok", "configuration and data are open to nobody else")]


def _config_modes(loaded: Loaded, root: Path) -> Iterator[Finding]:
    try:
        found = loaded.path.stat()
    except OSError:
        return
    mode, right = stat.S_IMODE(found.st_mode), f"chown root:{SHARED} {loaded.path}; chmod 0640 {loaded.path}"
    if mode & 0o022:
        detail = f"{loaded.path} has mode {mode:04o}: others than its owner may change what alarms"
        yield Finding("modes", "FAIL", detail, right if installed(root) else f"chmod go-w {loaded.path}")
    if not installed(root):
        return
    if mode & 0o004:
        yield Finding("modes", "warn", f"{loaded.path} has mode {mode:04o}: every user may read it", right)
    for name in (AGENT, FORWARDER):
        service = user(name, root)
        if service is not None and not service.may(found, 4):
            yield Finding("modes", "FAIL", f"{loaded.path} cannot be read by {name}", right)
        if service is not None and service.uid == found.st_uid:
            yield Finding("modes", "warn", f"{loaded.path} belongs to {name}, who could change it", right)


def _folder_modes(root: Path) -> Iterator[Finding]:
    remedy = "systemd-tmpfiles --create --prefix=/var/lib/edge-agent; then systemctl restart edge-agent cloud-sync"
    shared = groups(root).get(SHARED)
    for name, (wanted, owner) in FOLDERS.items():
        place = root / DATA_DIR.relative_to("/") / name
        try:
            found = place.stat()
        except PermissionError:
            yield Finding("modes", "warn", f"{place}: only root may look", LOOK_AS_ROOT)
            continue
        except OSError as error:
            yield Finding("modes", "FAIL", f"{place}: {error.strerror}", remedy)
            continue
        mode, service = stat.S_IMODE(found.st_mode), user(owner, root)
        if mode != wanted:
            state = "FAIL" if mode & 0o007 or mode & wanted != wanted else "warn"
            yield Finding("modes", state, f"{place} has mode {mode:04o}, it should have {wanted:04o}", remedy)
        if service is not None and found.st_uid != service.uid:
            yield Finding("modes", "FAIL", f"{place} belongs to user {found.st_uid}, not to {owner}", remedy)
        if shared is not None and found.st_gid != shared[0]:
            yield Finding("modes", "FAIL", f"{place} belongs to group {found.st_gid}, not to {SHARED}", remedy)


def secrets(loaded: Loaded) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Credentials that the configuration names: the key that names each, and the units that need it."""
    cloud, sync = loaded.config.cloud, ("cloud-sync.service",)
    specs = {
        "buffer.key": (loaded.config.buffer.key, ("edge-agent.service", *sync)),
        "privacy.key": (loaded.config.privacy.key, sync),
        "cloud.encoding.registry_password": (cloud.encoding.registry_password, sync),
        "cloud.kafka.sasl_password": (cloud.kafka.sasl_password if cloud.kafka else "", sync),
        "cloud.mqtt.password": (cloud.mqtt.password if cloud.mqtt else "", sync),
        "cloud.rest.client_secret": (cloud.rest.client_secret if cloud.rest else "", sync),
    }
    return {
        match[1]: (key, units) for key, (spec, units) in specs.items() if (match := _CREDENTIAL.match(spec)) is not None
    }


def check_credentials(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Whether each credential is there, encrypted, passed by its unit, and opened by this machine."""
    if not installed(root):
        return
    for name, (key, units) in secrets(loaded).items():
        make = f"systemd-creds encrypt --name={name} SECRET /etc/credstore.encrypted/{name}; then restart {units[0]}"
        sealed, plain = root / "etc/credstore.encrypted" / name, root / "etc/credstore" / name
        try:
            present = next((each for each in (sealed, plain) if each.is_file()), None)
        except PermissionError:
            yield Finding("credentials", "warn", f"{key}: only root may look into {sealed.parent}", LOOK_AS_ROOT)
            continue
        if present is None:
            yield Finding("credentials", "FAIL", f"{key}: {sealed} is missing", make)
            continue
        mode = stat.S_IMODE(present.stat().st_mode)
        reachable = mode & 0o077 and stat.S_IMODE(present.parent.stat().st_mode) & 0o011
        if reachable:
            state = "FAIL" if present == plain else "warn"  # without the machine's own key the sealed one is of no use
            yield Finding("credentials", state, f"{present} has mode {mode:04o}", f"chmod 0600 {present}")
        if present == plain:
            yield Finding("credentials", "warn", f"{plain} is not encrypted", f"{make}; shred -u {plain}")
        unpassed = [unit for unit in units if root == SYSTEM and not _passed(unit, name)]
        for unit in unpassed:
            edit = f"systemctl edit {unit}, add [Service] and LoadCredentialEncrypted={name}; systemctl restart {unit}"
            yield Finding("credentials", "FAIL", f"{key}: {unit} is not given {name}", edit)
        trouble = _undecryptable(name, sealed) if present == sealed and root == SYSTEM else ""
        if trouble:
            detail = f"{sealed} is not opened by this machine: {trouble}"
            yield Finding("credentials", "FAIL", detail, f"was it made on another machine? {make}")
        elif not (unpassed or reachable or present == plain):
            opened = "opens" if root == SYSTEM and os.geteuid() == 0 else "is present"
            yield Finding("credentials", "ok", f"{name} {opened}, for {' and '.join(units)}")


def _passed(unit: str, name: str) -> bool:
    """Whether the unit or a drop-in of it names the credential; an unreadable unit is told of elsewhere."""
    done = subprocess.run(["systemctl", "cat", unit], capture_output=True, text=True, timeout=20, check=False)
    wanted = re.compile(rf"^\s*LoadCredential(Encrypted)?={re.escape(name)}(:|\s*$)", re.MULTILINE)
    return done.returncode != 0 or bool(wanted.search(done.stdout))


def _undecryptable(name: str, sealed: Path) -> str:
    """Why systemd does not open a credential, empty when it does; nothing of the secret is kept. Only root can ask."""
    if os.geteuid() != 0:
        return ""
    command = ["systemd-creds", "decrypt", f"--name={name}", str(sealed), "-"]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip().splitlines()[-1] if done.returncode and done.stderr else ""
