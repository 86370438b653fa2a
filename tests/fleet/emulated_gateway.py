"""The product on the emulated machine's disk, its configuration, and what the tests look at and wait for in it.

The environment is made by the guest's own Python in a chroot of the Debian root, at the path it has on a gateway, from
the locked wheels; that part is cached. The project's wheel is built from this tree and installed anew each time.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.control import ControlClient
from tests.fleet import image
from tests.fleet.vm import Emulated, overlay

UNITS = image.REPOSITORY / "systemd"
RELEASE = f"opt/bedside-edge/releases/{__version__}"
BIN = "/opt/bedside-edge/current/.venv/bin"
PERIPHERAL = "opt/peripheral"  # what the virtual wearable needs beside the product
CONFIG = "/etc/edge-agent/edge-agent.toml"
DATA = "/var/lib/edge-agent"
SOCKET = "/run/edge-agent/control.sock"
MLLP_PORT = 2575
# The forwarder runs where this exists: without a receiver it only says so at each boot, in 15 s of this processor.
FORWARDS = "/run/forwards"
START_S = 180.0  # an agent's start in the guest; about 20 s are usual
_WEARABLE_PACKAGES = ("bumble", "pyee")  # its other requirements are the product's, too
# Everything is confirmed at once, so that a test waits for what it tests and not for delays, which other tests hold.
PRESET = """\
name = "immediate"
population = "none: tests only"
extends = "bedside"

[[condition]]
id = "spo2_low"
kind = "physiological"
vital = "spo2"
present = "below 90"
deadband = 0
delay_s = 0
off_delay_s = 0
priority = "high"
latching = false
text = "SpO2 low"
source = "tests: every message acts at once"
"""

# The chip that a Raspberry Pi has: its label and its number of lines; made before the agent starts, as on a board.
CHIP, LINES = "pinctrl-bcm2711", 28
BOARD = f"""\
[Unit]
DefaultDependencies=no
After=systemd-modules-load.service local-fs.target
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=modprobe gpio-sim
ExecStart=sh -c 'mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config; \\
 cd /sys/kernel/config/gpio-sim && mkdir -p board/bank && echo {LINES} > board/bank/num_lines && \\
 echo {CHIP} > board/bank/label && echo 1 > board/live && \\
 ln -sfn /sys/devices/platform/$$(cat board/dev_name)/$$(cat board/bank/chip_name) /run/board'
[Install]
WantedBy=sysinit.target
"""
BOARD_LINES = "/run/board"  # folder of the chip in sysfs


class Gateway:
    """The product in an emulated machine."""

    def __init__(self, machine: Emulated) -> None:
        self.machine = machine

    def configure(self, *tables: str, start: bool = True) -> None:
        """Gives the agent this configuration beside gateway, key and control socket, and restarts it."""
        head = (
            f'[gateway]\nid = "gw"\ndata_dir = "{DATA}"\npresets = ["immediate.toml"]',
            f'[control]\nsocket = "{SOCKET}"',
            '[buffer]\nkey = "credential:edge-agent.kek"',
        )
        self.machine.run(f"cat > {CONFIG}", stdin="\n\n".join((*head, *tables)) + "\n")
        self.machine.run("systemctl stop edge-agent; systemctl reset-failed edge-agent", check=False)
        if start:
            self.machine.run("systemctl start edge-agent", timeout=START_S)

    def keyed(self, words: str) -> str:
        """What an `edge-agent` command with the agent's key and configuration printed; it must succeed."""
        command = f"{BIN}/edge-agent {words} --config {CONFIG}"
        return self.machine.run(
            f"systemd-run --quiet --pipe --wait -p LoadCredentialEncrypted=edge-agent.kek {command}", timeout=600
        ).stdout

    def control(self) -> ControlClient:
        """A connection to the running agent's control socket, as root; its Python is ours, which is quicker."""
        return ControlClient(self.machine.socket(SOCKET))

    def status(self) -> dict[str, Any]:
        """The running agent's status."""
        with self.control() as client:
            return dict(client.call("status")["status"])

    def journal(self) -> str:
        """What the agent has told since the machine's start."""
        return self.machine.run("journalctl --no-pager -b -u edge-agent -o cat").stdout


def prepare(root: Path) -> None:
    """Puts the product on the disk as the installer would: release, links, users, units, rules and a key."""
    shutil.copytree(environment() / "opt", root / "opt", symlinks=True, dirs_exist_ok=True)
    wheel = Path(shutil.copy2(image.project_wheel(), root / "var" / "tmp"))
    pip = f"/{RELEASE}/.venv/bin/pip"
    _call("chroot", str(root), pip, "install", "-q", "--no-index", "--no-deps", f"/{wheel.relative_to(root)}")
    wheel.unlink()
    (root / "opt/bedside-edge/current").symlink_to(f"releases/{__version__}")
    for folder, target in (
        (".", "systemd/system"), ("udev", "udev/rules.d"), ("sysusers.d",) * 2, ("tmpfiles.d",) * 2,
        ("modules-load.d",) * 2,
    ):  # fmt: skip
        for file in (UNITS / folder).iterdir():
            if file.is_file():
                (root / "etc" / target).mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, root / "etc" / target)
    (root / "etc/systemd/system/board.service").write_text(BOARD)
    _call("chroot", str(root), "systemctl", "--quiet", "enable", "board.service")
    condition = root / "etc/systemd/system/cloud-sync.service.d/test.conf"
    condition.parent.mkdir()
    condition.write_text(f"[Unit]\nConditionPathExists={FORWARDS}\n")
    _call("chroot", str(root), "systemd-sysusers")
    settings = (root / CONFIG.lstrip("/")).parent
    settings.mkdir(exist_ok=True)
    (settings / "immediate.toml").write_text(PRESET)
    here = Path(__file__).parent
    shutil.copy2(here / "virtual_heart_rate.py", root / PERIPHERAL)
    shutil.copy2(here / "line_watch.py", root / PERIPHERAL)


def make_key(machine: Emulated) -> None:
    """The agent's key as a credential of this machine."""
    machine.run(
        "mkdir -p /etc/credstore.encrypted && head -c 32 /dev/urandom |"
        " systemd-creds encrypt --name=edge-agent.kek - /etc/credstore.encrypted/edge-agent.kek"
    )


@image.one_at_a_time
def environment() -> Path:
    """Folder with /opt as a gateway has it, without the project's own wheel; and the virtual wearable's packages."""
    wheels, lock = image.wheels(), _lock_of(_WEARABLE_PACKAGES)
    digest = hashlib.sha256(f"{image.root()}\n{wheels}\n{lock}\n{RELEASE}".encode()).hexdigest()[:12]
    target = image.CACHE / f"gateway-{digest}"
    if target.exists():
        return target
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "wearable.lock").write_text(lock)
    _call(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
        "--no-deps", "--only-binary=:all:", "-r", str(partial / "wearable.lock"), "-d", str(partial / "wheels"),
    )  # fmt: skip
    with overlay(partial / "overlay", image.root()) as root:
        inside = root / "var" / "tmp" / "wheels"
        shutil.copytree(wheels, inside)
        shutil.copytree(partial / "wheels", inside, dirs_exist_ok=True)
        shutil.copy2(image.REPOSITORY / "requirements.lock", inside)
        venv, here = f"/{RELEASE}/.venv", "/var/tmp/wheels"
        _call("chroot", str(root), "python3", "-m", "venv", venv)
        pip = ("chroot", str(root), f"{venv}/bin/pip", "install", "-q", "--no-index", "--find-links", here)
        _call(*pip, "--require-hashes", "-r", f"{here}/requirements.lock")
        _call(*pip, "--no-deps", "--target", f"/{PERIPHERAL}", *_WEARABLE_PACKAGES)
        shutil.copytree(root / "opt", partial / "opt", symlinks=True)
    shutil.rmtree(partial / "wheels")
    partial.rename(target)
    return target


def _lock_of(packages: tuple[str, ...]) -> str:
    """The entries of these packages in the developers' lock, hashes and all."""
    text = (image.REPOSITORY / "requirements-dev.lock").read_text()
    entries = re.findall(r"^([\w.-]+)(?:\[.*?\])?(==.*(?:\n    .*)*)", text, re.MULTILINE)
    return "".join(f"{name}{rest}\n" for name, rest in entries if name in packages)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
