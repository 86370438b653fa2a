"""The end of a gateway: `farewell` tells what it holds, `erase` stops it, destroys its keys, and removes the rest.

Standard library alone, as gateway.py beside it: parameters as JSON on standard input, one JSON object as the answer.
Keys go first and are overwritten where they lie: cut off after that, nothing that stays is readable, and the next call
removes it. A flash card may keep old copies of what is overwritten where no program can reach; the sealed key is worth
nothing without the secret of its host, which goes too, and `fstrim` tells the card that the blocks are free.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

OPT, ETC, DATA = Path("/opt/bedside-edge"), Path("/etc/edge-agent"), Path("/var/lib/edge-agent")
CONFIG, PKI = ETC / "edge-agent.toml", ETC / "pki"
PLAIN = Path("/etc/credstore")
STORE, HOST_SECRET = Path("/etc/credstore.encrypted"), Path("/var/lib/systemd/credential.secret")
AGENT, FORWARDER = "edge-agent.service", "cloud-sync.service"

Answer = dict[str, object]


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """What a program gave, as bytes."""
    return subprocess.run(words, input=stdin, capture_output=True, check=False)


def destroy(path: Path) -> bool:
    """Overwrite a file where it lies and remove it; whether there was one."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("r+b") as file:
        file.write(secrets.token_bytes(max(path.stat().st_size, 1)))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    return True


def farewell(_wanted: Answer) -> Answer:
    """What a gateway holds before it is erased: records that nobody has fetched, certificate, release, captures."""
    pem = PKI / "client.pem"
    serial = run("openssl", "x509", "-in", str(pem), "-noout", "-serial").stdout.decode() if pem.exists() else ""
    link = OPT / "current"
    return {
        "changed": False,
        "release": os.path.basename(os.readlink(link)) if link.is_symlink() else "",
        "serial": serial.strip().partition("=")[2],
        "undelivered": _ask_release(_UNDELIVERED, DATA, 0 if not DATA.exists() else "unknown"),
        "captures": _ask_release(_CAPTURES, CONFIG, []),
        "present": any(path.exists() for path in (DATA, ETC, OPT, STORE / "edge-agent.kek")),
    }


# the agent prunes what was delivered, so what is there was not; counting needs no key
_UNDELIVERED = """import json, sys
from pathlib import Path
from edge_agent.buffer import admin
streams = admin.stats(Path(sys.argv[1]), bytes(32))["streams"].values()
print(json.dumps(sum(stream["records"] for stream in streams if stream)))
"""
_CAPTURES = """import json, sys, tomllib
from pathlib import Path
file = Path(sys.argv[1])
rows = tomllib.loads(file.read_text())
found = [row["capture"] for row in rows.get("source", []) if "capture" in row]
found += [row["path"] for row in rows.get("annunciator", []) if "path" in row]
print(json.dumps([str(file.parent / path) for path in found]))
"""


def _ask_release(program: str, path: Path, otherwise: object) -> object:
    python = OPT / "current/.venv/bin/python"
    if not python.exists() or not path.exists():
        return otherwise
    done = run(str(python), "-I", "-c", program, str(path))
    return otherwise if done.returncode else json.loads(done.stdout)


_UNITS = ("bedside-edge*", "edge-agent*.service", "cloud-sync.service")
_FILES = (
    *(f"systemd/system/{unit}" for unit in _UNITS), "systemd/system/*/bedside-edge*",
    "systemd/system/edge-agent*.service.*", "systemd/system/cloud-sync.service.*", "udev/rules.d/70-bedside-edge.rules",
    "tmpfiles.d/*bedside-edge*", "sysusers.d/*bedside-edge*", "modules-load.d/*bedside-edge*",
)  # fmt: skip


def erase(wanted: Answer) -> Answer:
    """Stop everything, destroy the keys, then remove what they opened."""
    units = sorted({path.name for pattern in _UNITS for path in Path("/etc/systemd/system").glob(pattern)})
    if units:
        run("systemctl", "disable", *units)
        run("systemctl", "stop", *units)
    did = [str(path) for path in _keys(wanted["credentials"]) if destroy(path)]
    for capture in wanted["captures"]:
        if destroy(Path(capture)):
            did.append(capture)
    for folder in (DATA, Path("/var/lib/cloud-sync"), PKI, ETC, OPT):
        if folder.exists():
            shutil.rmtree(folder)
            did.append(str(folder))
    for pattern in _FILES:
        for path in sorted(Path("/etc").glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            did.append(str(path))
    for command in ("edge-agent", "cloud-sync"):
        Path("/usr/local/bin", command).unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed")
    for user in ("edge-agent", "cloud-sync"):
        if run("getent", "passwd", user).returncode == 0:
            run("userdel", user)
            did.append(f"user {user}")
    run("groupdel", "bedside-edge")
    run("journalctl", "--rotate")
    trimmed = run("fstrim", "/").returncode == 0  # tells a flash card that the old blocks are free
    return {"changed": bool(did), "did": did, "trimmed": trimmed}


def _keys(names: list[str]) -> list[Path]:
    """Every file that opens something, the most valuable first; the host's secret unless it opens other things, too."""
    stored = [path for folder in (STORE, PLAIN) if folder.is_dir() for path in sorted(folder.glob("*"))]
    own = [path for path in stored if path.name in names or path.name.startswith("edge-agent.")]
    own += [path for path in sorted(ETC.rglob("*")) if path.name == "client.key" or path.name.startswith("kek")]
    return own if {path for path in stored if path.parent == STORE} - set(own) else [*own, HOST_SECRET]


def main() -> int:
    """Exit code of one call."""
    way = {"farewell": farewell, "erase": erase}[sys.argv[1]]
    sys.stdout.write(json.dumps(way(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
