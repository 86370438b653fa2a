"""A booted machine for tests: systemd as process 1 in a container on an overlay of the Debian root, reached by SSH.

`Machine` costs some seconds to start. It has its own network device with two addresses, one for it and one for the
test, and no way out. What it wrote goes with it. GPIO, Bluetooth, USB, power cuts and memory limits need a kernel of
the machine's own: see the emulated machine in vm.py.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fleet import image

_NETWORKS = 200  # 10.213.N.0/30 for N below it: more machines than anyone runs at once


class Machine:
    """One booted container; `with Machine(folder) as machine: machine.run("systemctl status")`."""

    def __init__(self, folder: Path, over: tuple[Path, ...] = ()) -> None:
        """`over`: folders that lie over the Debian root, uppermost first, and stay as they are."""
        self.folder = folder
        self._over = over
        self.key = folder / "id_ed25519"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: Path | None = None
        self._root = folder / "root"
        self.address = self.host_address = ""

    def __enter__(self) -> Machine:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Machine:
        """Mounts the overlay, boots, and waits until SSH answers and systemd has settled."""
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        lower = ":".join(str(layer) for layer in (*self._over, image.root()))
        layers = f"lowerdir={lower},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self._root)], check=True)
        number = self._claim_network()
        self.host_address, self.address = f"10.213.{number}.1", f"10.213.{number}.2"
        self.name = f"bed{number}"
        self._prepare()
        self.boot()
        return self

    def boot(self) -> None:
        """Boots, or boots again after `kill`, with what the disk holds by then."""
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        log = (self.folder / "console.log").open("ab")
        into_group = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(self._own_group())]
        self._process = subprocess.Popen(
            [*into_group, "systemd-nspawn", "--register=no", "--keep-unit", "--boot", f"--directory={self._root}",
             "--network-veth", f"--machine={self.name}", "--console=pipe", "--quiet", "--kill-signal=SIGRTMIN+4"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
        log.close()
        device = f"ve-{self.name}"
        self._until(lambda: Path(f"/sys/class/net/{device}").exists(), "its network device", 30)
        subprocess.run(["ip", "address", "replace", f"{self.host_address}/30", "dev", device], check=True)
        subprocess.run(["ip", "link", "set", device, "up"], check=True)
        self._until(lambda: self.run("true", check=False, timeout=10).returncode == 0, "SSH", 60)
        self.run("systemctl is-system-running --wait", check=False, timeout=120)

    def run(
        self, command: str, *, check: bool = True, timeout: float = 120, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What a shell command gave on the machine, as root; output and errors as text."""
        done = subprocess.run(
            [*self.ssh_command(), f"root@{self.address}", command],
            capture_output=True, text=True, timeout=timeout, input=stdin or "",
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{command!r} exited with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def ssh_command(self) -> list[str]:
        """The ssh command with this machine's key and a shared connection, without the host."""
        return [
            "ssh", "-q", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "ConnectTimeout=5", "-o", "BatchMode=yes",
        ]  # fmt: skip

    def wait(self, command: str, seconds: float = 30) -> None:
        """Returns when a shell command succeeds; AssertionError with the journal's end when it never does."""
        try:
            self._until(lambda: self.run(command, check=False).returncode == 0, repr(command), seconds)
        except AssertionError as error:
            journal = self.run("journalctl --no-pager -n 60", check=False).stdout
            raise AssertionError(f"{error}\n{journal}") from None

    def path(self, inside: str) -> Path:
        """Where a file of the machine is seen from here: for putting files in and reading them out."""
        return self._root / inside.lstrip("/")

    def put(self, source: Path, inside: str) -> None:
        """Copies a file or folder into the machine."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
        else:
            shutil.copy2(source, target)

    def kill(self) -> None:
        """Ends the machine at once, as a power cut would, but for what is in the page cache; `boot` starts it again."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Shuts the machine down and takes its mount and network device away."""
        self._end(signal.SIGTERM)
        self._leave_group()
        subprocess.run(["umount", "--lazy", str(self._root)], check=False, capture_output=True)
        if self._lock is not None:
            self._lock.rmdir()
            self._lock = None

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            for child in _children(process.pid):  # the machine's own process 1, which takes all others with it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        else:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            for child in _children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait(10)

    def _own_group(self) -> Path:
        """A control group of the machine's own: two that share one would end each other's services."""
        tree = self.folder / "cgroup"
        tree.mkdir(exist_ok=True)
        if not tree.is_mount():
            subprocess.run(["mount", "-t", "cgroup2", "none", str(tree)], check=True)
        group = tree / self.name
        group.mkdir(exist_ok=True)
        return group

    def _leave_group(self) -> None:
        tree = self.folder / "cgroup"
        if not tree.is_mount():
            return
        for group in sorted((tree / self.name).rglob("*"), reverse=True):  # the innermost first
            if group.is_dir():
                with contextlib.suppress(
                    OSError
                ):  # a process that is just ending holds it; it is empty and does no harm
                    group.rmdir()
        with contextlib.suppress(OSError):
            (tree / self.name).rmdir()
        subprocess.run(["umount", "--lazy", str(tree)], check=False, capture_output=True)

    def _prepare(self) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        keys = self.path("/root/.ssh/authorized_keys")
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_bytes(self.key.with_suffix(".pub").read_bytes())
        self.path("/etc/systemd/network/10-test.network").write_text(
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/30\nLinkLocalAddressing=no\n"
        )
        wants = self.path("/etc/systemd/system/multi-user.target.wants")
        wants.mkdir(exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        self.path("/etc/hostname").write_text(f"{self.name}\n")

    def _claim_network(self) -> int:
        claims = image.CACHE / "networks"
        claims.mkdir(parents=True, exist_ok=True)
        for number in range(1, _NETWORKS):
            lock = claims / str(number)
            if Path(f"/sys/class/net/ve-bed{number}").exists():
                continue
            try:
                lock.mkdir()
            except FileExistsError:
                if time.time() - lock.stat().st_mtime < 4 * 3600:  # another run's, unless it was left by a dead one
                    continue
                os.utime(lock)
            self._lock = lock
            return number
        raise RuntimeError(f"no free network: remove what dead runs left in {claims}")

    def _until(self, condition: object, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            if self._process is not None and self._process.poll() is not None:
                console = (self.folder / "console.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"the machine ended while the test waited for {what}:\n{console}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {seconds:.0f} s")
            time.sleep(0.1)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A machine that is up, and gone afterwards."""
    with Machine(folder) as machine:
        yield machine


def shell(*words: str) -> str:
    """A command line with every word quoted."""
    return shlex.join(words)
