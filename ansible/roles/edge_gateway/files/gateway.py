"""What the role asks of a gateway: `look` tells all it needs to know in one call, each other call changes one thing.

Standard library and openssl alone, for the Python that the system brings (3.10 and newer). Parameters come as JSON on
standard input, so that no secret is ever an argument; the answer is one JSON object with `changed` and `did`; what goes
wrong is said on standard error, with exit code 1. Whatever is written appears under its name by a rename when it is
whole: cut off anywhere, by a dead connection or a power cut, the next call completes it. Nothing secret is printed.
"""

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

OPT = Path("/opt/bedside-edge")
ETC = Path("/etc/edge-agent")
CONFIG = ETC / "edge-agent.toml"
GOOD = ETC / "edge-agent.toml.good"  # the last configuration that an agent came up with
PKI = ETC / "pki"
STORE, PLAIN = Path("/etc/credstore.encrypted"), Path("/etc/credstore")
DATA = Path("/var/lib/edge-agent")
UNITS = Path("/etc/systemd/system")
SETTLED = ETC / ".settled"  # what the running services were started with
AGENT, FORWARDER, TARGET = "edge-agent.service", "cloud-sync.service", "bedside-edge.target"
KEK, NEXT = "edge-agent.kek", "edge-agent.kek-next"
TURN = UNITS / "edge-agent-rotate.service"
ARMED_S = 60  # a loaded Raspberry Pi needs some seconds, an emulated machine half a minute

Answer = dict[str, object]


class Problem(Exception):
    """What went wrong, where, and what to do."""


def run(*words: str, stdin: bytes = b"", check: bool = True, **more: object) -> subprocess.CompletedProcess:
    """What a program gave, as bytes."""
    done = subprocess.run(words, input=stdin, capture_output=True, check=False, **more)
    if check and done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Problem(f"{' '.join(words[:4])} failed ({done.returncode}): {said}")
    return done


def text(path: Path) -> str:
    """What a file holds, nothing when there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def place(path: Path, data: bytes, mode: int, user: str = "root", group: str = "root") -> None:
    """Put a file under its name when it is whole and on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fchown(file.fileno(), pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    flush(path.parent)


def flush(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def destroy(path: Path) -> bool:
    """Overwrite a file where it lies and remove it; whether there was one. A flash card may keep an older copy."""
    if path.is_symlink():
        path.unlink()
        return True
    if not path.is_file():
        return False
    with path.open("r+b") as file:
        file.write(secrets.token_bytes(max(path.stat().st_size, 1)))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    flush(path.parent)
    return True


def look(wanted: Answer) -> Answer:
    """System, room on the disk, missing packages, users, releases, certificate."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text(Path("/etc/os-release")), re.MULTILINE))
    system = f"{release.get('ID', 'unknown')}-{release.get('VERSION_ID', '?')}"
    packages = wanted["packages"].get(system, [])
    numbers = re.search(r"systemd (\d+)", run("systemctl", "--version", check=False).stdout.decode())
    disk = os.statvfs("/opt")
    return {
        "changed": False,
        "system": system,
        "system_name": release.get("PRETTY_NAME", system),
        "architecture": run("dpkg", "--print-architecture", check=False).stdout.decode().strip() or os.uname().machine,
        "systemd": int(numbers[1]) if numbers and text(Path("/proc/1/comm")).strip() == "systemd" else 0,
        "free_mb": disk.f_bavail * disk.f_frsize // 2**20,
        "missing": _missing(packages),
        "trusted": sorted(path.name for path in (ETC / "trusted").glob("*.pub")),
        "users": all(
            run("getent", "passwd", user, check=False).returncode == 0 for user in ("edge-agent", "cloud-sync")
        ),
        "current": _version(OPT / "current"),
        "previous": _version(OPT / "previous"),
        "manifest": text(OPT / "current" / "manifest.json"),
        "interrupted": (OPT / "update.json").exists(),
        "certificate": _certificate(wanted),
    }


def _missing(packages: list[str]) -> list[str]:
    if not packages:
        return []
    lines = run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages, check=False).stdout.decode()
    here = {line.split()[0] for line in lines.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in here]


def _version(link: Path) -> str:
    return os.path.basename(os.readlink(link)) if link.is_symlink() and link.exists() else ""


def _certificate(wanted: Answer) -> Answer:
    """Whether a new client certificate is due, and why; `serial` of the present one."""
    pem, key = PKI / "client.pem", PKI / "client.key"
    if not pem.exists() or not key.exists():
        return {"due": "there is none", "serial": ""}
    if run("openssl", "x509", "-in", str(pem), "-noout", check=False).returncode:
        return {"due": f"{pem} cannot be read", "serial": ""}
    serial = run("openssl", "x509", "-in", str(pem), "-noout", "-serial").stdout.decode().strip().partition("=")[2]
    soon = str(int(wanted["renew_days"]) * 86400)
    if _name(pem) != wanted["name"]:
        due = f"it names {_name(pem)}, not {wanted['name']}"
    elif run("openssl", "x509", "-in", str(pem), "-noout", "-checkend", soon, check=False).returncode:
        due = f"it ends within {wanted['renew_days']} days"
    elif _public(key, "pkey") != _public(pem, "x509"):
        due = "it does not belong to the key"
    elif wanted.get("ca") and not _signed_by(pem, str(wanted["ca"])):
        due = "another authority has signed it"
    else:
        due = ""
    return {"due": due, "serial": serial}


def _name(path: Path, kind: str = "x509") -> str:
    done = run("openssl", kind, "-in", str(path), "-noout", "-subject", "-nameopt", "multiline", check=False)
    found = re.search(r"commonName\s*=\s*(.*)", done.stdout.decode())
    return found[1].strip() if found else ""


def _public(path: Path, kind: str) -> bytes:
    option = {"pkey": "-pubout", "x509": "-pubkey", "req": "-pubkey"}[kind]
    extra = [] if kind == "pkey" else ["-noout"]
    return run("openssl", kind, "-in", str(path), option, *extra).stdout.strip()


def _signed_by(pem: Path, authority: str) -> bool:
    """Whether an authority, given as text, has signed it for use as a client, whatever the date."""
    reading, writing = os.pipe()
    os.write(writing, authority.encode())  # some kilobytes: a pipe holds 64
    os.close(writing)
    words = ["openssl", "verify", "-no_check_time", "-purpose", "sslclient", "-CAfile", f"/dev/fd/{reading}", str(pem)]
    try:
        return run(*words, check=False, pass_fds=(reading,)).returncode == 0
    finally:
        os.close(reading)


def request(wanted: Answer) -> Answer:
    """The signing request of a new key, or of the one that an interrupted run has left."""
    folder = PKI / "next"
    key, csr, user, changed = folder / "client.key", folder / "client.csr", str(wanted["user"]), False
    if not (key.exists() and csr.exists() and _name(csr, "req") == wanted["name"]):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)  # whatever the umask was
        made = run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256").stdout
        place(key, made, 0o600, user, user)
        place(csr, run("openssl", "req", "-new", "-key", str(key), "-subj", f"/CN={wanted['name']}").stdout, 0o644)
        changed = True
    return {"changed": changed, "csr": csr.read_text()}


def accept(wanted: Answer) -> Answer:
    """Put the signed certificate and its key into place together, and destroy the key before."""
    folder = PKI / "next"
    place(folder / "client.pem", str(wanted["certificate"]).encode(), 0o644)
    pem, key = folder / "client.pem", folder / "client.key"
    if _public(pem, "x509") != _public(key, "pkey"):
        raise Problem("the authority's certificate is for another key: nothing was changed; look at its sign command")
    if not _signed_by(pem, str(wanted["ca"])):
        raise Problem(
            "the certificate is not one for clients, of the authority in edge_gateway_ca_pem: nothing was changed"
        )
    if _name(pem) != wanted["name"]:
        raise Problem(f"the certificate names {_name(pem)}, not {wanted['name']}: nothing was changed")
    serial = run("openssl", "x509", "-in", str(pem), "-noout", "-serial").stdout.decode().strip().partition("=")[2]
    home = PKI / serial
    folder.rename(home)
    for name in ("client.key", "client.csr", "client.pem"):
        _link(PKI / name, f"pair/{name}")
    _link(PKI / "pair", serial)  # from here on both are the new ones
    for old in [path for path in PKI.iterdir() if path.is_dir() and not path.is_symlink() and path != home]:
        destroy(old / "client.key")
        shutil.rmtree(old)
    return {"changed": True, "serial": serial}


def _link(path: Path, target: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(path)
    flush(path.parent)


def credentials(wanted: Answer) -> Answer:
    """Have each secret as a credential, and the drop-ins that load them; a buffer's key that is not given is made.

    Sealed by systemd-creds; before systemd 250 there is none, and a file that only root may read takes its place.
    """
    did, values = [], dict(wanted["values"])
    if wanted["kek"]:
        held = values.pop(KEK, None)
        if held is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", held):
            raise Problem(f"edge_gateway_credentials: {KEK} is not 64 hexadecimal digits")
        if not _stored(KEK, wanted["seal"]).exists():  # changing it here would orphan the buffer: rotate-keys.yml does
            other = _stored(KEK, not wanted["seal"])  # there after a change of the system, or of edge_gateway_seal
            moved = _opened(KEK, not wanted["seal"])
            if other.exists() and not moved:
                raise Problem(f"{other}: cannot be opened, and it is the key of the buffer: nothing was changed")
            did.append(f"moved {KEK}" if moved else f"made {KEK}")
            if not wanted["check"]:
                key = moved or (bytes.fromhex(held) if held else secrets.token_bytes(32))
                _seal(KEK, key, seal=wanted["seal"])
                destroy(other)
    for name, value in sorted(values.items()):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise Problem(f"edge_gateway_credentials: {name!r} cannot be the name of a credential")
        if _opened(name, wanted["seal"]) != value.encode():
            did.append(f"sealed {name}")
            if not wanted["check"]:
                _seal(name, value.encode(), seal=wanted["seal"])
    kek = [] if wanted["seal"] or not wanted["kek"] else [KEK]
    for unit, names in ((AGENT, kek), (FORWARDER, [*kek, *sorted(values)])):
        drop = UNITS / f"{unit}.d" / "50-credentials.conf"
        lines = [_load_line(name, wanted["seal"]) for name in names]
        if not wanted["kek"] or not wanted["seal"]:
            lines.insert(0, "LoadCredentialEncrypted=")  # takes the unit's own line for the buffer's key out
        wish = "".join(f"{line}\n" for line in ["[Service]", *lines]) if lines else ""
        if text(drop) != wish:
            did.append(str(drop))
            if not wanted["check"]:
                drop.parent.mkdir(exist_ok=True)
                place(drop, wish.encode(), 0o644) if wish else drop.unlink()
    return {"changed": bool(did), "did": did}


def _stored(name: str, seal: bool) -> Path:
    return (STORE if seal else PLAIN) / name


def _load_line(name: str, seal: bool) -> str:
    return f"LoadCredentialEncrypted={name}" if seal else f"LoadCredential={name}:{PLAIN / name}"


def _opened(name: str, seal: bool) -> bytes | None:
    path = _stored(name, seal)
    if not path.exists():
        return None
    if not seal:
        return path.read_bytes()
    done = run("systemd-creds", "decrypt", f"--name={name}", str(path), "-", check=False)
    return None if done.returncode else done.stdout


def _seal(name: str, data: bytes, file: str = "", *, seal: bool = True) -> None:
    folder = _stored(name, seal).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    if seal:
        data = run("systemd-creds", "encrypt", f"--name={name}", "--with-key=auto", "-", "-", stdin=data).stdout
    place(folder / (file or name), data, 0o600)


def settle(wanted: Answer) -> Answer:
    """Restart what runs with other files than there are now; back to the old configuration when that fails.

    With `adopt` the agent was started by the installer a moment ago, with these files.
    """
    if not _version(OPT / "current"):
        return {"changed": False, "did": []}
    now, before, did = _digests(), _settled(), []
    old = GOOD.read_bytes() if GOOD.exists() else None
    up = _state(AGENT) == "active"
    if not up or (before.get("agent") != now["agent"] and not wanted["adopt"]):
        did.append("restarted the agent" if up else "started the agent")
        if not wanted["check"]:
            _restart_agent(old, announce=up, at_once=bool(wanted["at_once"]))
    if before.get("forwarder") != now["forwarder"] or _state(FORWARDER) in ("inactive", "failed"):
        did.append("restarted the forwarder")
        if not wanted["check"]:
            run("systemctl", "reset-failed", FORWARDER, check=False)
            run("systemctl", "restart", "--no-block", FORWARDER)  # it may wait for its broker for days
    if _state(TARGET) != "active" and not _state(TARGET, "Job"):
        did.append(f"started {TARGET}")
        if not wanted["check"]:
            run("systemctl", "start", "--no-block", TARGET)
    if (did or before != now) and not wanted["check"]:
        place(GOOD, CONFIG.read_bytes(), 0o640, "root", "bedside-edge")
        place(SETTLED, json.dumps(now).encode(), 0o600)
    return {"changed": bool(did), "did": did}


def _restart_agent(old: bytes | None, *, announce: bool, at_once: bool) -> None:
    run("systemctl", "daemon-reload")
    if announce:
        _announce(at_once)
    if (why := _start(restart=True)) is None:
        return
    refused = CONFIG.read_bytes()
    if old is None or old == refused:
        raise Problem(
            f"{why}\n  journalctl -u edge-agent says more; `edge-agent doctor` on the gateway says what to do"
        )
    place(CONFIG.with_name("edge-agent.toml.refused"), refused, 0o640, "root", "bedside-edge")
    place(CONFIG, old, 0o640, "root", "bedside-edge")
    again = _start(restart=True)
    then = "the configuration before is back and alarms are armed" if again is None else f"with the one before: {again}"
    raise Problem(f"with the new configuration (kept as edge-agent.toml.refused) {why}\n  {then}")


def _announce(at_once: bool) -> None:
    """Let the agent say at the bedside that it goes for a moment; Problem when it must not go now."""
    asked = {"op": "announce", "reason": "configuration", "version": _version(OPT / "current"), "now": at_once}
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect("/run/edge-agent/control.sock")
        connection.sendall(json.dumps(asked).encode() + b"\n")
        with connection.makefile("rb") as lines:
            reply = json.loads(lines.readline())
        if not reply.get("ok") and "unknown op" not in str(reply.get("error")):
            raise Problem(
                f"not now: {reply.get('error')}\n  run the playbook again later, or with -e edge_gateway_now=true"
            )


def _start(*, restart: bool) -> str | None:
    """Start or restart the agent and wait until it answers; why it does not, or None."""
    run("systemctl", "reset-failed", AGENT, check=False)
    done = run("systemctl", "restart" if restart else "start", AGENT, check=False)
    deadline = time.monotonic() + ARMED_S
    while done.returncode == 0 and time.monotonic() < deadline:
        if run(str(OPT / "current/.venv/bin/edge-agent"), "status", "--json", check=False).returncode == 0:
            return None
        time.sleep(0.2)
    last = run("journalctl", "-u", AGENT, "-n", "4", "--no-pager", "-o", "cat", check=False).stdout.decode(
        errors="replace"
    )
    return f"the agent did not come up: {last.strip()}"


def _state(unit: str, of: str = "ActiveState") -> str:
    return run("systemctl", "show", "--value", f"--property={of}", unit, check=False).stdout.decode().strip()


def _settled() -> dict[str, str]:
    try:
        return dict(json.loads(text(SETTLED)))
    except ValueError:
        return {}


def _digests() -> dict[str, str]:
    """Of the files that each service reads when it starts; hashes of secrets only within one that holds them all."""
    both = [CONFIG, *sorted(ETC.glob("*.toml")), *_files(STORE), *_files(PLAIN)]
    agent = [*both, *sorted(UNITS.glob(f"{AGENT}.d/*.conf"))]
    forwarder = [*both, *sorted(UNITS.glob(f"{FORWARDER}.d/*.conf")), PKI / "client.pem", PKI / "ca.pem"]
    return {"agent": _digest(agent), "forwarder": _digest(forwarder)}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and file.name not in (NEXT, f"{KEK}.new", f"{KEK}.old"):
            digest.update(f"{file}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def rotate(wanted: Answer) -> Answer:
    """Wrap the buffer's data keys with a new key, the agent being stopped meanwhile; `down_s` says for how long.

    A unit of its own does it, ordered before the agent: should the power go in the middle, it runs at the next boot,
    before an agent could start with a key that is no longer the right one. Last, it moves the new key to its place.
    """
    seal = bool(wanted["seal"])
    present, following = _stored(KEK, seal), _stored(NEXT, seal)
    fresh, old = present.with_name(f"{KEK}.new"), present.with_name(f"{KEK}.old")
    if not present.exists():
        raise Problem(f"{present}: there is none; a key in a file or a TPM is changed by hand, see docs/keys.md")
    if not (fresh.exists() and following.exists()):
        fresh.unlink(missing_ok=True)
        _forget(old, present)
        key = secrets.token_bytes(32) if not wanted.get("value") else bytes.fromhex(str(wanted["value"]))
        _seal(NEXT, key, seal=seal)
        _seal(KEK, key, f"{KEK}.new", seal=seal)
    if not old.exists():
        os.link(present, old)  # to be overwritten where it lies once nothing needs it
    place(TURN, _turn_unit(present, seal).encode(), 0o644)
    wants = UNITS / f"{AGENT}.wants"
    wants.mkdir(exist_ok=True)
    _link(wants / TURN.name, str(TURN))
    run("systemctl", "daemon-reload")
    _announce(bool(wanted["at_once"]))
    began = time.monotonic()
    run("systemctl", "stop", AGENT)
    turned = run("systemctl", "start", TURN.name, check=False)
    why, down = _start(restart=False), time.monotonic() - began
    run("systemctl", "restart", "--no-block", FORWARDER)
    if turned.returncode or fresh.exists():
        said = run("journalctl", "-u", TURN.name, "-n", "5", "--no-pager", "-o", "cat", check=False).stdout.decode()
        raise Problem(f"not all keys were changed: {said.strip()}\n  the agent runs; run the playbook again")
    if why:
        raise Problem(why)
    destroy(following)
    kept = _forget(old, present)
    (wants / TURN.name).unlink(missing_ok=True)
    TURN.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    place(SETTLED, json.dumps(_digests()).encode(), 0o600)
    return {"changed": True, "down_s": round(down, 1), "old_key": kept or "destroyed"}


def _forget(old: Path, present: Path) -> str:
    """Destroy the key before, unless it is still the present one or opens files in quarantine; then why it was kept."""
    if old.exists() and old.samefile(present):
        old.unlink()
    if any(path.is_dir() for path in DATA.glob("quarantine/*")):
        return f"kept as {old}, for what lies in {DATA}/quarantine"
    destroy(old)
    return ""


def _turn_unit(present: Path, seal: bool) -> str:
    agent = OPT / "current/.venv/bin/edge-agent"
    return f"""[Unit]
Description=change the key of bedside-edge's buffer, before an agent starts
Before={AGENT} {FORWARDER}
ConditionPathExists={present}.new

[Service]
Type=oneshot
User=edge-agent
Group=edge-agent
UMask=0077
{_load_line(KEK, seal)}
{_load_line(NEXT, seal)}
ExecStart={agent} keys rotate --new credential:{NEXT} --config {CONFIG}
ExecStartPost=+/bin/mv -f {present}.new {present}
ExecStartPost=+/bin/sync -f {present.parent}
# stopped half-way by a fault: the new key opens all of it, the old one does not
ExecStopPost=+/bin/sh -c 'test ! -e {DATA}/key-rotation.json -o ! -e {present}.new || mv -f {present}.new {present}'
"""


WAYS = {way.__name__: way for way in (look, request, accept, credentials, settle, rotate)}


def main() -> int:
    """Exit code of one call."""
    try:
        sys.stdout.write(json.dumps(WAYS[sys.argv[1]](json.load(sys.stdin))))
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
