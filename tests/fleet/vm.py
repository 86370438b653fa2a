"""An emulated machine for tests: Debian with its own kernel in QEMU, for what a container on our kernel cannot show.

GPIO lines, Bluetooth controllers, USB adapters, memory limits and power cuts are the kernel's business, so the guest
has one. It is emulated in software: /dev/kvm may exist and not work, and Python in it is about 15 times slower than
outside. So one machine serves all tests of a session.

What `prepare` adds to the Debian root goes into an overlay; the disk is made from the whole in some seconds and started
with the kernel beside it, without a boot loader. The guest reaches nothing outside; the test reaches it by SSH and
through the ports it asks for. The disk honours the guest's flushes, and nothing of the guest survives `kill` but what
it has written to it: a power cut, but for a disk that lies.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tests.fleet import image, kernel_modules

MEMORY_MB = 2048
DISK_GB = 4
SSH_S = 300.0  # from power on; 30 to 100 s are usual
_NETWORK = "[Match]\nName=en*\n[Network]\nAddress=10.0.2.15/24\nLinkLocalAddressing=no\n"  # QEMU's user network
# What Debian starts by timers, and what asks a network that is not there, takes time from an emulated processor.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-timesyncd.service", "e2scrub_reap.service", "man-db.timer", "systemd-networkd-wait-online.service",
    "getty@tty1.service", "ModemManager.service",
)  # fmt: skip
TOOLS = {  # program: Debian package, besides those of image.TOOLS
    "qemu-system-x86_64": "qemu-system-x86", "gcc-12": "gcc-12", "make": "make", "xz": "xz-utils",
    "setpriv": "util-linux",
}  # fmt: skip


def missing() -> str:
    """What this machine lacks to run the emulated machine, with the command that helps; empty when nothing is."""
    lacking = image.missing()
    if lacking:
        return lacking
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = sorted({package for program, package in TOOLS.items() if not shutil.which(program, path=path)})
    try:
        ctypes.CDLL("libelf.so.1")  # for the kernel's objtool, which checks a module that is built
    except OSError:
        packages.append("libelf1")
    return f"the emulated machine needs {', '.join(packages)}: apt install {' '.join(packages)}" if packages else ""


class Emulated:
    """One emulated computer.

    `prepare` changes the disk before the first start: it is given the folder that holds the guest's root. `forwards`
    are the guest's TCP ports that the test can reach on 127.0.0.1 through `ports`.
    """

    def __init__(self, folder: Path, prepare: Callable[[Path], None], forwards: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.key = folder / "id_ed25519"
        self.disk = folder / "disk.raw"
        self.boot_s = 0.0  # of the last boot, until SSH answered
        self.ports: dict[int, int] = dict.fromkeys((22, *forwards), 0)
        self._prepare = prepare
        self._process: subprocess.Popen[bytes] | None = None
        # paths of Unix sockets are short; a folder of pytest's may not be
        self._sockets = Path(tempfile.mkdtemp(prefix="fleet-vm-"))
        self._qmp: socket.socket | None = None
        self._replies: Any = None

    def __enter__(self) -> Emulated:
        try:
            self.make()
            self.boot()
            return self
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def make(self) -> None:
        """Makes the disk: the Debian root, what the machine needs to be reached, and what `prepare` adds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        with overlay(self.folder / "overlay", image.root()) as root:
            self._furnish(root)
            self._prepare(root)
            with self.disk.open("wb") as disk:
                disk.truncate(DISK_GB << 30)
            # no lazy initialisation: the guest would do it, slowly, while it is being tested
            whole = "lazy_itable_init=0,lazy_journal_init=0"
            _call("mkfs.ext4", "-q", "-F", "-E", whole, "-d", str(root), str(self.disk))

    def _furnish(self, root: Path) -> None:
        keys = root / "root" / ".ssh" / "authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_bytes(self.key.with_suffix(".pub").read_bytes())
        system = root / "etc" / "systemd"
        (system / "network" / "10-test.network").write_text(_NETWORK)
        wants = system / "system" / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        for unit in _MASKED:
            (system / "system" / unit).unlink(missing_ok=True)
            (system / "system" / unit).symlink_to("/dev/null")
        (root / "etc" / "fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\n")
        (root / "etc" / "hostname").write_text("emulated\n")
        ssh = root / "etc" / "ssh" / "sshd_config.d" / "test.conf"
        ssh.write_text("UseDNS no\nUsePAM no\nMaxSessions 50\n")
        kernel = kernel_modules.release(root)
        extra = root / "lib" / "modules" / kernel / "extra"
        extra.mkdir(exist_ok=True)
        shutil.copy2(kernel_modules.gpio_sim(image.root()), extra)
        _call("chroot", str(root), "depmod", kernel)

    def boot(self) -> None:
        """Powers on, at first or after `kill`, and waits until SSH answers and systemd has settled."""
        began = time.monotonic()
        kernel = kernel_modules.release(image.root())
        boot = image.root() / "boot"
        forwards = ""
        for guest in self.ports:
            self.ports[guest] = _free_port()
            forwards += f",hostfwd=tcp:127.0.0.1:{self.ports[guest]}-:{guest}"
        command = [
            "setpriv", "--pdeathsig", "KILL", "--",  # it ends with the test run, also with one that is killed
            "qemu-system-x86_64", "-machine", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
            "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(boot / f"vmlinuz-{kernel}"), "-initrd", str(boot / f"initrd.img-{kernel}"),
            "-append", "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr net.ifnames=1 panic=-1",
            "-drive", f"file={self.disk},format=raw,if=virtio,cache=writeback",
            "-netdev", f"user,id=net,restrict=on{forwards}", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-device", "qemu-xhci,id=usb",
            "-chardev", f"socket,id=adapter,path={self._sockets}/serial,server=on,wait=off",
            "-serial", f"file:{self.folder / 'console.log'}",
            "-qmp", f"unix:{self._sockets}/qmp,server=on,wait=off",
        ]  # fmt: skip
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._until((self._sockets / "qmp").exists, "QEMU's control socket", 30)
        self._until(lambda: self.run("true", check=False, timeout=60).returncode == 0, "SSH", SSH_S)
        self.run("systemctl is-system-running --wait", check=False, timeout=SSH_S)
        self.boot_s = time.monotonic() - began

    def run(
        self, command: str, *, check: bool = True, timeout: float = 300, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What a shell command gave in the guest, as root; output and errors as text."""
        done = subprocess.run(
            [*self.ssh_command(), "root@127.0.0.1", command],
            capture_output=True, text=True, timeout=timeout, input=stdin or "",
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{command!r} exited with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def ssh_command(self) -> list[str]:
        """The ssh command with this machine's key and port, without the host; all commands share one connection."""
        return [
            "ssh", "-q", "-i", str(self.key), "-p", str(self.ports[22]), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-o", "BatchMode=yes",
            "-o", "ControlMaster=auto", "-o", f"ControlPath={self._sockets}/ssh", "-o", "ControlPersist=yes",
        ]  # fmt: skip

    def wait(self, command: str, seconds: float = 120) -> str:
        """What a shell command printed when it succeeded at last; AssertionError with the journal's end if never."""
        done = subprocess.CompletedProcess[str]([], 1, "", "")

        def succeeds() -> bool:
            nonlocal done
            done = self.run(command, check=False)
            return done.returncode == 0

        try:
            self._until(succeeds, repr(command), seconds)
        except AssertionError as error:
            journal = self.run("journalctl --no-pager -n 60", check=False).stdout
            raise AssertionError(f"{error}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{journal}") from None
        return done.stdout

    @contextlib.contextmanager
    def stream(self, command: str) -> Iterator[tuple[IO[str], IO[str]]]:
        """Input and output of a shell command in the guest; its input ends with the with-block, and so must it."""
        command_line = [*self.ssh_command(), "root@127.0.0.1", command]
        with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                yield process.stdin, process.stdout
            finally:
                process.stdin.close()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()

    def put(self, text: str, inside: str) -> None:
        """Writes a file in the guest."""
        self.run(f"cat > {inside}", stdin=text)

    def get(self, inside: str) -> bytes:
        """A file of the guest."""
        return subprocess.run(
            [*self.ssh_command(), "root@127.0.0.1", f"cat {inside}"], capture_output=True, check=True, timeout=300
        ).stdout

    def socket(self, inside: str) -> Path:
        """A socket here that leads to one in the guest, through SSH: whoever uses it is root there."""
        here = self._sockets / Path(inside).name
        if not here.exists():
            forward = f"{here}:{inside}"
            subprocess.run(
                [*self.ssh_command(), "-O", "forward", "-L", forward, "root@127.0.0.1"], check=True, capture_output=True
            )
        return here

    def qmp(self, command: str, **arguments: object) -> Any:
        """What QEMU answers to a command of its control protocol. Raises: AssertionError when it refuses."""
        if self._qmp is None:
            self._qmp = socket.socket(socket.AF_UNIX)
            self._qmp.settimeout(60)
            self._qmp.connect(str(self._sockets / "qmp"))
            self._replies = self._qmp.makefile("rb")
            self._replies.readline()  # the greeting
            self.qmp("qmp_capabilities")
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:  # events come between
            reply = json.loads(self._replies.readline())
            if "return" in reply:
                return reply["return"]
            assert "error" not in reply, f"{command}: {reply}"

    def plug(self, name: str, port: int, *, wired: bool = True) -> None:
        """Plugs a USB serial adapter with this serial number into a socket; `wired` to what `serial` gives."""
        chardev = "adapter" if wired else f"open-{name}"
        if not wired:
            self.qmp("chardev-add", id=chardev, backend={"type": "null", "data": {}})
        self.qmp(
            "device_add", driver="usb-serial", id=name, serial=name, chardev=chardev, bus="usb.0", port=str(port),
            **{"always-plugged": True},
        )  # fmt: skip

    def unplug(self, name: str) -> None:
        """Pulls an adapter out of its socket."""
        self.qmp("device_del", id=name)

    def serial(self) -> socket.socket:
        """The far end of the wired adapter's line: what is sent here the guest's serial port receives."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(self._sockets / "serial"))
        return line

    def kill(self) -> None:
        """A power cut; `boot` powers on again with what the disk has."""
        self._forget()
        process, self._process = self._process, None
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
        for path in self._sockets.iterdir():
            path.unlink()

    def close(self) -> None:
        """Powers off, without asking the guest, and removes the disk."""
        self.kill()
        self.disk.unlink(missing_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _forget(self) -> None:
        """Ends the shared SSH connection and the one to QEMU."""
        if (self._sockets / "ssh").exists():
            subprocess.run(
                [*self.ssh_command(), "-O", "exit", "root@127.0.0.1"], check=False, capture_output=True, timeout=30
            )
        if self._qmp is not None:
            self._replies.close()
            self._qmp.close()
            self._qmp = self._replies = None

    def _until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process is None or self._process.poll() is not None:
                told = (self.folder / "qemu.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"the machine ended while the test waited for {what}:\n{told}{self._console()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {seconds:.0f} s; the console:\n{self._console()}")
            time.sleep(0.2)

    def _console(self) -> str:
        console = self.folder / "console.log"
        return console.read_text(errors="replace")[-3000:] if console.exists() else ""


@contextlib.contextmanager
def overlay(folder: Path, *lower: Path) -> Iterator[Path]:
    """A root made of the `lower` folders, the first on top, that takes changes without touching them."""
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    layers = f"lowerdir={':'.join(map(str, lower))},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    _call("mount", "-t", "overlay", "overlay", "-o", layers, str(root))
    try:
        yield root
    finally:
        _call("umount", str(root))
        shutil.rmtree(folder)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
