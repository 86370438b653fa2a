"""Runs in the sandbox of a service and tells, as JSON, what of all that should not work did work.

Standard library only; each probe is one attempt, and an exception is what it should come to.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
DATA = Path("/var/lib/edge-agent")
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x20000, 0x40000000
SYSCALLS = {  # by machine, because libc has no function for them
    "x86_64": {
        "init_module": 175,
        "keyctl": 250,
        "bpf": 321,
        "perf_event_open": 298,
        "kexec_load": 246,
        "settimeofday": 164,
    },
    "aarch64": {
        "init_module": 105,
        "keyctl": 219,
        "bpf": 280,
        "perf_event_open": 241,
        "kexec_load": 104,
        "settimeofday": 170,
    },
}[os.uname().machine]


def call(name: str, *arguments: object) -> None:
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def system_call(name: str, *arguments: object) -> None:
    """Succeeds also when the kernel saw the call and refused its arguments: the filter then let it through."""
    result = LIBC.syscall(SYSCALLS[name], *arguments)
    error = ctypes.get_errno()
    if result == -1 and error in (1, 13, 38):  # EPERM, EACCES, ENOSYS
        raise OSError(error, os.strerror(error))


def read(path: str) -> Callable[[], object]:
    return lambda: Path(path).read_bytes()[:1]


def write(path: str) -> Callable[[], object]:
    def attempt() -> None:
        file = Path(path)
        there = file.exists()
        with file.open("ab") as opened:
            opened.write(b"")
        if not there:
            file.unlink()

    return attempt


def family(number: int, kind: int = socket.SOCK_RAW) -> Callable[[], object]:
    return lambda: socket.socket(number, kind).close()


def in_child(attempt: Callable[[], object]) -> Callable[[], object]:
    """For what would change this process: tried in a child, whose exit code tells."""

    def run() -> None:
        child = os.fork()
        if child == 0:
            try:
                attempt()
                os._exit(0)
            except BaseException:
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise PermissionError

    return run


def trace() -> None:
    """Attaches to a process that stands still, as a debugger does."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        call("ptrace", 16, child, 0, 0)  # PTRACE_ATTACH
        os.waitpid(child, 0)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def set_user_bit() -> None:
    path = Path("/tmp/set-user-bit")
    path.touch()
    path.chmod(0o4755)


def sqlite_write() -> None:
    with contextlib.closing(sqlite3.connect(DATA / "buffer" / "data.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE intruder (x)")
        connection.execute("ROLLBACK")


def other_processes() -> None:
    """Whether the processes of others can be seen."""
    own = os.getuid()
    seen = [
        entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.stat().st_uid not in (own, 65534)
    ]
    if not seen:
        raise PermissionError


def _hostname() -> tuple[bytes, int]:
    """The name it has, so that nothing changes where the call works."""
    name = os.uname().nodename.encode()
    return name, len(name)


def operate() -> None:
    """Whether the control socket obeys more than a viewer's wishes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/edge-agent/control.sock")
        client.sendall(b'{"op": "acknowledge", "bed": "ICU-3"}\n')
        reply = json.loads(client.makefile("rb").readline())
    if not reply["ok"]:
        raise PermissionError(reply["error"])


PROBES: dict[str, Callable[[], object]] = {
    "read /etc/shadow": read("/etc/shadow"),
    "read root's files": read("/root/secret"),
    "read users' files": read("/home/nina/secret"),
    "read encrypted credentials": read("/etc/credstore.encrypted/edge-agent.kek"),
    "read the agent's credential": read("/run/credentials/edge-agent.service/edge-agent.kek"),
    "read the forwarder's credential": read("/run/credentials/cloud-sync.service/edge-agent.kek"),
    "read another service's key file": read("/etc/edge-agent/pki/other.key"),
    "read the configuration": read("/etc/edge-agent/edge-agent.toml"),
    "read the sealed buffer": read(f"{DATA}/buffer/data.db"),
    "read the alarm log": read(f"{DATA}/alarm-log.sqlite"),
    "read a key file of the agent": read(f"{DATA}/kek"),
    "read the marks": read(f"{DATA}/marks/probe.json"),
    "list the data folder": lambda: os.listdir(DATA),
    "see processes of others": other_processes,
    "read process 1's environment": read("/proc/1/environ"),
    "write /etc": write("/etc/probe"),
    "write /usr": write("/usr/bin/probe"),
    "write the release": write("/opt/bedside-edge/current/probe"),
    "write the program": write("/opt/bedside-edge/current/.venv/bin/edge-agent"),
    "write the configuration": write("/etc/edge-agent/edge-agent.toml"),
    "write /var/lib": write("/var/lib/probe"),
    "write /home": write("/home/nina/probe"),
    "write the data folder": write(f"{DATA}/probe"),
    "write the buffer's folder": write(f"{DATA}/buffer/probe"),
    "write the database": write(f"{DATA}/buffer/data.db"),
    "write the database's index": write(f"{DATA}/buffer/data.db-shm"),
    "write through SQLite": sqlite_write,
    "write the marks": write(f"{DATA}/marks/probe"),
    "write the forwarder's folder": write(f"{DATA}/cloud-sync/probe"),
    "write /run": write("/run/probe"),
    "write the kernel's settings": write("/proc/sys/vm/swappiness"),
    "write the control groups": write("/sys/fs/cgroup/cgroup.procs"),
    "take a bed's alarm back": operate,
    "become root": in_child(lambda: os.setuid(0)),
    "change an owner": lambda: os.chown("/tmp", 0, 0),
    "set a set-user bit": set_user_bit,
    "mount": in_child(lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
    "new user namespace": in_child(lambda: call("unshare", CLONE_NEWUSER)),
    "new mount namespace": in_child(lambda: call("unshare", CLONE_NEWNS)),
    "new network namespace": in_child(lambda: call("unshare", CLONE_NEWNET)),
    "trace a process": trace,
    "load a module": lambda: system_call("init_module", None, 0, None),
    "load a kernel": lambda: system_call("kexec_load", 0, 0, None, 0),
    "load a kernel program": lambda: system_call("bpf", 0, None, 0),
    "use keyrings": lambda: system_call("keyctl", 0, -3, 1),
    "watch events": lambda: system_call("perf_event_open", None, 0, -1, -1, 0),
    "set the host's name": in_child(lambda: call("sethostname", *_hostname())),
    "set the clock": lambda: system_call("settimeofday", None, None),
    "write and run memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
    "make a device": lambda: os.mknod("/tmp/device", 0o20600, os.makedev(1, 3)),
    "packets": family(17),
    "netlink": family(16),
    "internet": family(2, socket.SOCK_STREAM),
    "Unix sockets": family(1, socket.SOCK_STREAM),
    "real-time scheduling": in_child(lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))),
    "open a terminal": lambda: os.close(os.open("/dev/tty0", os.O_RDWR | os.O_NOCTTY)),
    "open /dev/null": lambda: os.close(os.open("/dev/null", os.O_RDWR)),
    "write a temporary file": write("/tmp/probe"),
}


def main() -> int:
    """One JSON object: `worked`, `refused` with the reason, `mounts` and what the kernel says of this process."""
    if not Path("/run/systemd/container").exists():
        sys.exit("the probes mount, and write where nobody should: in a container of the tests only")
    worked, refused = [], {}
    for name, attempt in PROBES.items():
        try:
            attempt()
            worked.append(name)
        except BaseException as error:
            refused[name] = f"{type(error).__name__}: {error}"
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    print(json.dumps({"worked": worked, "refused": refused, "status": status}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
