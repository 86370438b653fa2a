"""`edge-agent support-bundle`: what somebody far away needs to help, in one file without patients.

Each part is made by its own function, and one that fails leaves its reason in place of itself. What goes in is chosen,
not what stays out: of the status only named members, of the configuration every value but secrets, of the journal only
messages and our own fields. Whatever text comes from elsewhere is scrubbed of HL7 segments and of what is named as a
patient's besides, though the log holds no patient. MANIFEST.json says what is in the file and what was left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent import NOTICE, __version__
from edge_agent.buffer import KeyProblem, admin, load_kek
from edge_agent.commands import doctor
from edge_agent.commands.doctor_agent import live
from edge_agent.commands.doctor_service import UNITS
from edge_agent.commands.finding import as_service, text
from edge_agent.config import ConfigError, Loaded, load
from edge_agent.control import ControlClient, Refused
from edge_agent.exposition import family

LINES = 2000  # of the journal: some days of a gateway that is well, some hours of one that is not
MOST_FILES = 2000  # in the list of files
REMOVED = "[removed]"
LEFT_OUT = (
    "patients: names, identifiers, locations as monitors send them, and whether a bed has one",
    "everything measured: values, waveforms, scores, risks, trends, limits set for a patient",
    "which alarm of a patient is active; only counts",
    "keys, passwords, tokens, credentials, private keys, certificates",
    "records of the buffer, alarm logs, captures: only their sizes",
)
_SECRET = re.compile(r"pass|secret|token|auth|credential|apikey|api_key|private|community|(^|[._-])(key|pin|pw)$", re.I)
_REFERENCE = re.compile(r"^(credential|file|tpm):[^\n]*$")
_LOGIN = re.compile(r"//[^/@\s]+@")
_QUERY_SECRET = re.compile(r"([?&](?:[^=&\s]*(?:pass|secret|token|key|auth)[^=&\s]*)=)[^&\s\"']+", re.I)
# a segment of HL7, a name or identifier in components, what is said to be a patient's, long blocks of hex or base64
_SCRUB = (
    re.compile(r"\b(?:MSH|PID|PV1|PD1|NK1|MRG|OBX|OBR|EVN|IN1|GT1|ORC|PRT|NTE|ZPI)\|[^\n\"]*"),
    re.compile(r"\b[^\s\"'|=]*\^[^\s\"'|]*"),
    re.compile(r"(?i)\b(?:patient|pat_?id|mrn|name_?of_?patient|birth|dob)[\w-]*\s*[=:]\s*(?:'[^']*'|\"[^\"]*\"|\S+)"),
    re.compile(r"(?<![\w/.-])(?=[0-9A-Za-z+/]*[0-9])[0-9A-Za-z+/]{40,}={0,2}(?![\w/-])"),
)
_STATUS = ("gateway", "version", "instance", "uptime_s", "latency", "buffer", "log", "annunciators", "buttons")
_CLOUD = ("state", "detail", "utc", "uptime_s", "backlog_records", "backlog_oldest_s", "forwarded", "dropped",
          "guarantee", "identifiers", "error", "last_delivery_utc")  # fmt: skip
_JOURNAL = (
    "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "_SYSTEMD_UNIT", "UNIT", "EVENT", "CONDITION", "KIND", "DETAIL",
    "STREAM", "STATE", "REASON", "RELEASE", "LOGGER", "BUFFER", "JOB_RESULT", "UNIT_RESULT", "_PID",
)  # fmt: skip

Part = Callable[[Loaded], object]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `support-bundle`."""
    bundle = subparsers.add_parser("support-bundle", help="one file for a support case, without patients and secrets")
    bundle.add_argument("--config", type=Path, default=Path("/etc/edge-agent/edge-agent.toml"), metavar="FILE")
    bundle.add_argument(
        "--out", type=Path, metavar="FILE", help="by default edge-agent-support-GATEWAY-TIME.tar.gz here"
    )
    bundle.add_argument("--lines", type=int, default=LINES, metavar="N", help="of the journal, at most")
    bundle.set_defaults(func=run_bundle)


def run_bundle(arguments: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    print(NOTICE)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        loaded: Loaded | None = load(arguments.config)
    except ConfigError as error:
        loaded, trouble = None, str(error)
    gateway = "unknown" if loaded is None else loaded.config.gateway.id
    out: Path = arguments.out or Path(f"edge-agent-support-{gateway}-{stamp}.tar.gz")
    parts: dict[str, bytes] = {}
    if loaded is None:
        parts["configuration-error.txt"] = scrubbed(trouble).encode()
    for name, make in _parts(arguments.lines, loaded is not None).items():
        parts[name] = _made(make, loaded)
    try:
        write(out, f"edge-agent-support-{gateway}-{stamp}", parts)
    except OSError as error:
        print(f"edge-agent: {out}: {error.strerror or error}\n  name another place with --out FILE", file=sys.stderr)
        return 1
    print(f"{out}: {out.stat().st_size >> 10} KiB, {len(parts)} parts; MANIFEST.json says what was left out")
    print("Look into it before it leaves the house: tar xzf " + str(out))
    return 0


def _parts(lines: int, configured: bool) -> dict[str, Part]:
    always: dict[str, Part] = {
        "versions.json": lambda _: versions(),
        "host.json": lambda _: host(),
        "units.txt": lambda _: units(),
        "journal.jsonl": lambda _: journal(lines),
    }
    if not configured:
        return always
    return always | {
        "configuration.json": configuration,
        "doctor.json": findings,
        "status.json": status,
        "metrics.txt": numbers,
        "buffer.json": buffer,
        "keys.json": lambda loaded: admin.key_report(_data_dir(loaded)),
        "files.txt": files,
    }


def _made(make: Part, loaded: Loaded | None) -> bytes:
    try:
        found = make(loaded)  # type: ignore[arg-type]
    except Exception as error:  # a broken part is a finding too, and the others are wanted
        found = f"could not be made: {type(error).__name__}: {error}\n"
    told = found if isinstance(found, str) else json.dumps(found, indent=1, default=str, ensure_ascii=False) + "\n"
    return _unlogged(told).encode()


def write(out: Path, folder: str, parts: Mapping[str, bytes]) -> None:
    """Write the file with mode 0600; it appears whole or not at all. Raises: OSError."""
    contents = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()}
    manifest = {
        "made_by": f"edge-agent {__version__}", "notice": NOTICE,
        "made_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "contents": contents, "left_out": LEFT_OUT,
    }  # fmt: skip
    partial = out.with_name(f".{out.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, data in {"MANIFEST.json": json.dumps(manifest, indent=1).encode(), **parts}.items():
                    about = tarfile.TarInfo(f"{folder}/{name}")
                    about.size, about.mode, about.mtime = len(data), 0o600, int(time.time())
                    archive.addfile(about, io.BytesIO(data))
        partial.rename(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def scrubbed(told: str) -> str:
    """Text without HL7 segments, names in components, what is named as a patient's, and long blocks of bytes."""
    for pattern in _SCRUB:
        told = pattern.sub(REMOVED, told)
    return _unlogged(told)


def _unlogged(told: str) -> str:
    """Text without names, passwords and tokens in addresses."""
    return _QUERY_SECRET.sub(rf"\g<1>{REMOVED}", _LOGIN.sub(f"//{REMOVED}@", told))


def _scrubbed_within(value: Any) -> Any:
    """The same of every text in a structure."""
    if isinstance(value, dict):
        return {key: _scrubbed_within(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed_within(each) for each in value]
    return scrubbed(value) if isinstance(value, str) else value


# -- the parts ----------------------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    """Of the software, its packages, and what it runs on."""
    from importlib.metadata import distributions

    release = Path("/opt/bedside-edge/current")
    return {
        "bedside-edge": __version__,
        "release": str(release.resolve()) if release.exists() else None,
        "previous": str(Path("/opt/bedside-edge/previous").resolve())
        if Path("/opt/bedside-edge/previous").exists()
        else None,
        "python": sys.version,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "system": _system(),
        "board": text(Path("/proc/device-tree/model")) or text(Path("/sys/class/dmi/id/product_name")),
        "packages": {each.name: each.version for each in sorted(distributions(), key=lambda each: each.name.lower())},
    }


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def host() -> dict[str, str]:
    """Facts of the machine: memory, disks, clock, load, devices."""
    told = {name: text(Path(path)) for name, path in (
        ("memory", "/proc/meminfo"), ("load", "/proc/loadavg"), ("uptime", "/proc/uptime"),
        ("mounts", "/proc/mounts"), ("sound", "/proc/asound/cards"), ("pressure", "/proc/pressure/io"),
    )}  # fmt: skip
    for name, command in (
        ("disk", ["df", "-h", "-x", "tmpfs"]), ("inodes", ["df", "-i", "-x", "tmpfs"]),
        ("clock", ["timedatectl", "show"]), ("addresses", ["ip", "-br", "link"]),
        ("serial", ["ls", "-l", "/dev/bedside/by-id", "/dev/bedside/by-port"]), ("usb", ["lsusb"]),
    ):  # fmt: skip
        told[name] = _said(*command)
    return told


def units() -> str:
    """What systemd says of our units."""
    wanted = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts,MainPID,MemoryCurrent,CPUUsageNSec,"
    wanted += "ActiveEnterTimestamp,ExecMainStatus,ExecMainCode,WatchdogUSec,DropInPaths"
    return _said("systemctl", "show", *UNITS, f"--property={wanted}")


def journal(lines: int) -> str:
    """The newest lines of our units, one JSON object each, with the members that we know."""
    words = [word for unit in UNITS for word in ("-u", unit)]
    told = []
    for line in _said("journalctl", *words, "-n", str(lines), "-o", "json", "--no-pager").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            told.append(json.dumps({"journalctl": line}))
            continue
        moment = int(found.get("__REALTIME_TIMESTAMP", 0)) / 1e6
        entry = {"utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))}
        entry |= {key: _journal_text(found[key]) for key in _JOURNAL if key in found}
        told.append(json.dumps(entry, ensure_ascii=False))
    return "".join(f"{line}\n" for line in told)


def _journal_text(value: object) -> str:
    """A member as text; journalctl gives what is no UTF-8 as a list of numbers, which is left out."""
    return scrubbed(value) if isinstance(value, str) else REMOVED


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return f"{command[0]} is not here\n"
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=60, check=False, env=environment
    )
    return done.stdout or done.stderr


def configuration(loaded: Loaded) -> Any:
    """The configuration as it was read, without secrets and without comments."""
    import tomllib

    return without_secrets(tomllib.loads(loaded.path.read_text(encoding="utf-8")))


def without_secrets(value: Any, key: str = "") -> Any:
    """A value of the configuration; the text of a key that sounds like a secret goes, the name of a place stays."""
    if isinstance(value, dict):
        return {name: without_secrets(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [without_secrets(each, key) for each in value]
    if _SECRET.search(key) and not isinstance(value, bool):
        place = isinstance(value, str) and (_REFERENCE.match(value) or (value.startswith("/") and key == "private_key"))
        return value if place else REMOVED
    return value


def findings(loaded: Loaded) -> list[dict[str, str]]:
    """What the doctor says."""
    return [_scrubbed_within(each._asdict()) for each in doctor.examine(loaded)]


def status(loaded: Loaded) -> dict[str, Any]:
    """The agent's status as far as it is not a patient's."""
    found = live(loaded)
    if not found:
        return {"agent": "nobody answers"}
    told: dict[str, Any] = {key: found[key] for key in _STATUS if key in found}
    told["sources"] = [
        {key: source[key] for key in ("name", "driver", "link", "state", "detail", "items", "rejects", "strangers")}
        for source in found["sources"]
    ]
    told["gateway_alarms"] = [
        {key: alarm.get(key) for key in ("condition", "priority", "state", "since_s", "detail")}
        for alarm in found["gateway_alarms"]
    ]
    told["beds"] = [{"id": bed["id"], "preset": bed["preset"], "alarms": len(bed["alarms"])} for bed in found["beds"]]
    cloud, model = found.get("cloud"), found.get("model")
    told["cloud"] = {key: cloud[key] for key in _CLOUD if key in cloud} if isinstance(cloud, dict) else None
    if isinstance(model, dict):
        told["model"] = {key: model[key] for key in ("state", "model", "runtime", "detail") if key in model}
    scrubbed_status: dict[str, Any] = _scrubbed_within(told)
    return scrubbed_status


def numbers(loaded: Loaded) -> str:
    """The metrics of the agent without those by bed and those of the model's view of the patients."""
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            told = str(client.call("metrics")["text"])
    except (ConnectionError, Refused, OSError):
        return "\n".join(family("edge_agent_up", "gauge", "Whether an agent answers.", [({}, 0)])) + "\n"
    kept = (
        line for line in told.splitlines() if 'bed="' not in line and "mean_risk" not in line and "_drift" not in line
    )
    return "".join(f"{line}\n" for line in kept)


def buffer(loaded: Loaded) -> Any:
    """Totals of the sealed files; without the key what can be told without it."""
    data_dir, quota = _data_dir(loaded), loaded.config.buffer.quota_mb << 20
    try:
        with as_service("edge-agent.service"):
            key = load_kek(loaded.buffer_key)
        return admin.stats(data_dir, key, quota)
    except KeyProblem as error:
        return {"key": str(error), "capacity": admin.capacity(data_dir, quota)}


def _data_dir(loaded: Loaded) -> Path:
    return loaded.resolve(loaded.config.gateway.data_dir)


def files(loaded: Loaded) -> str:
    """Name, size, mode, owner and age of every file of ours; never what is in it."""
    lines = []
    for folder in (_data_dir(loaded), loaded.path.parent, Path("/etc/credstore.encrypted"), Path("/opt/bedside-edge")):
        lines += list(_listed(folder))
    return "".join(f"{line}\n" for line in lines[:MOST_FILES])


def _listed(folder: Path) -> Iterator[str]:
    deep = 2 if folder == Path("/opt/bedside-edge") else 4  # a release has ten thousand files
    for path in sorted(folder.rglob("*")):
        if len(path.relative_to(folder).parts) > deep:
            continue
        try:
            found = path.lstat()
        except OSError:
            continue
        age_h = (time.time() - found.st_mtime) / 3600
        target = f" -> {os.readlink(path)}" if path.is_symlink() else ""
        yield f"{found.st_mode:07o} {found.st_uid}:{found.st_gid} {found.st_size:>12} {age_h:8.1f} h {path}{target}"
