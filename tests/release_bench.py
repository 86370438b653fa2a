"""Small releases for tests of the installer: real signatures, archives and files, an environment that takes no time.

The environment is a shell script in the place of Python that answers what the installer asks of a new release. That a
real one is made, by real pip, has tests of its own; that systemd does what it is told is tested on a booted machine.
Run as a program it reads orders and has a child carry out each of them, which dies by SIGKILL at the step whose number
it was given.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.release import installer
from edge_agent.release.build import pack
from edge_agent.release.gateway import AGENT, FORWARDER, Folders, NoServices, Services
from edge_agent.release.installer import Installer
from edge_agent.release.machine import Python, find_python

UNITS = ("edge-agent.service", "cloud-sync.service", "bedside-edge.target", "tmpfiles.d/bedside-edge.conf",
         "udev/70-bedside-edge.rules")  # fmt: skip


def make_key(folder: Path, name: str = "key") -> Path:
    """An Ed25519 key; its public half lies in folder/trusted."""
    key, trusted = folder / f"{name}.pem", folder / "trusted"
    trusted.mkdir(exist_ok=True)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    public = ["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(trusted / f"{name}.pub")]
    subprocess.run(public, check=True)
    return key


def make_wheel(folder: Path, version: str) -> Path:
    """A wheel of an `edge_agent` that can say its version and check a configuration."""
    path = folder / f"bedside_edge-{version}-py3-none-any.whl"
    main = (
        "import sys\n"
        "def main():\n"
        f"    print('edge-agent {version}' if sys.argv[1:] == ['--version'] else 'valid')\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    info = f"bedside_edge-{version}.dist-info"
    files = {
        "edge_agent/__init__.py": "", "edge_agent/__main__.py": main, "edge_agent/tests/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: bedside-edge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedge-agent = edge_agent.__main__:main\n",
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))
    return path


def make_bundle(
    folder: Path, version: str, key: Path, *, units: tuple[str, ...] = UNITS, wheels: tuple[str, ...] = (),
    change: Callable[[dict[str, Path]], None] | None = None, python: str = ">=3.11,<3.14",
    data: int = 1,
) -> Path:  # fmt: skip
    """A signed bundle whose units tell their version."""
    source = folder / f"source-{version}"
    files = {}
    for unit in units:
        path = source / "systemd" / unit
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {unit} of {version}\n")
        files[f"systemd/{unit}"] = path
    (source / "requirements.lock").write_text("")
    files["requirements.lock"] = source / "requirements.lock"
    wheel = make_wheel(source, version)
    files[wheel.name] = wheel
    for name in wheels:
        with zipfile.ZipFile(source / name, "w") as other:
            other.writestr(zipfile.ZipInfo("x.py"), "")
        files[f"wheels/{name}"] = source / name
    if change is not None:
        change(files)
    return pack(files, wheel.name, version, python, "0" * 40, folder / "out", key, {"buffer": data})


def quick(folder: Path, final: Path, wheel: str, python: Any) -> None:
    """In the place of a virtual environment: answers `--version` and `check`."""
    path = folder / ".venv/bin/python"
    path.parent.mkdir(parents=True)
    version = wheel.split("-")[1]
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n  *--version) echo "edge-agent {version}";;\n'
        f'  *) grep -q \'not for {version}\' "$6" && {{ echo "$6:3: no such key" >&2; exit 78; }}; echo valid;;\nesac\n'
    )
    path.chmod(0o755)


class Ward(Services):
    """In the place of systemd: an agent that answers on its socket from `restart` on, as its release would."""

    def __init__(self, folders: Folders, socket: Path) -> None:
        self.folders, self.socket = folders, socket
        self.version = self.high = ""
        self.says: list[str] = []
        self.faults: dict[str, list[str]] = {}
        self.dying: set[str] = set()
        self.without_forwarder: set[str] = set()
        self.forwarding = False
        outer = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                reply = outer.answer(json.loads(self.rfile.readline()))
                if reply is not None:
                    self.wfile.write(json.dumps(reply).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(socket), Answer)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Ends the agent."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What the agent says; nothing when none runs."""
        if not self.version or self.version in self.dying:
            return None
        if request["op"] == "announce":
            if self.high and not request["now"]:
                return {"ok": False, "error": f"a HIGH alarm is active on {self.high}"}
            self.says.append(request["version"])
            return {"ok": True}
        faults = [{"condition": name} for name in self.faults.get(self.version, ())]
        return {"ok": True, "status": {"version": self.version, "gateway_alarms": faults}}

    def reload(self) -> None:
        """What was written is what runs at the next restart."""

    def enable(self) -> None:
        """Nothing boots here."""

    def restart(self, *, first: bool) -> None:
        """The release in force takes the place of the one that ran."""
        self.version = self.folders.version(self.folders.current)
        self.forwarding = self.forwarding and self.version not in self.without_forwarder

    def show(self, unit: str) -> dict[str, str]:
        """As systemd tells."""
        if unit == FORWARDER:
            return {"ActiveState": "active" if self.forwarding else "inactive"}
        died = unit == AGENT and self.version in self.dying
        return {"ActiveState": "active" if self.version and not died else "failed" if died else "inactive",
                "NRestarts": "1" if died else "0", "Result": "exit-code" if died else "success",
                "ActiveExitTimestampMonotonic": "1000000", "ActiveEnterTimestampMonotonic": "1500000"}  # fmt: skip


def gateway(root: Path, trusted: Path) -> Folders:
    """The folders of a Debian 12 below `root`."""
    folders = Folders(root)
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n')
    folders.trusted = trusted
    return folders


def units(folders: Folders) -> dict[str, str]:
    """What is where systemd and its kin look for it, without the unit of an update."""
    places = [folders.etc / name for name in ("systemd", "udev", "tmpfiles.d")]
    found = [path for place in places if place.exists() for path in place.rglob("*") if path.is_file()]
    return {path.name: path.read_text() for path in found if not path.name.startswith("bedside-edge-recover")}


def digest(folder: Path) -> str:
    """Of everything below a folder: names, links, contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name != ".lock":
            what = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
            found.update(f"{path.relative_to(folder)}={what}\n".encode())
    return found.hexdigest()


@functools.cache
def known_python(wanted: str, named: str = "") -> Python:
    """This interpreter, asked once."""
    return find_python(wanted, named)


class Victims:
    """Installations that are killed."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "tests.release_bench"]
        self._process = subprocess.Popen(
            words, cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """No more of them."""
        self._process.communicate(timeout=10)

    def killed(self, folders: Folders, what: str, at: int) -> bool:
        """Installs the bundle `what` (or `recover`, `rollback`) until a step; whether it came that far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folders.root), str(folders.trusted), what, at]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL), code
        return code != 0


def _victim(root: str, trusted: str, what: str, die_at: int) -> None:
    left = [die_at]

    def step(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    installer.environment, installer.find_python = quick, known_python
    run = Installer(
        gateway(Path(root), Path(trusted)), NoServices(), say=lambda _text: None, socket=Path("/nowhere"), step=step
    )
    if what == "recover":
        run.recover()
    elif what == "rollback":
        run.rollback()
    else:
        run.install(Path(what))


def _serve() -> None:
    known_python(">=3.11,<3.14")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _victim(*json.loads(line))
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
