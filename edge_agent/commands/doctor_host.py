"""What `edge-agent doctor` looks at of the machine: clock, card, heat, power supply, hardware watchdog."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.buffer.clock import SYNCHRONIZED, Clock
from edge_agent.commands.finding import SYSTEM, Finding, agent_user, text
from edge_agent.config import Loaded

BUILT = 1_700_000_000  # November 2023: no gateway was built before
FREE_SPARE = 1.2  # the quota should fit with a fifth to spare for the write-ahead log
LEAST_FREE = 200 << 20  # bytes: below it the next log or update finds a full disk
FEW_INODES = 0.05  # of all
WARM_C, HOT_C = 75, 85  # a Pi slows down from 80 degrees on, and hard at 85
_SERVICES = ("run/systemd/timesync/synchronized", "run/chrony", "run/ntpd.pid", "run/ntpsec.pid")
# bits of the Pi's firmware, source: vcgencmd get_throttled, raspberrypi documentation
_NOW = {0: "too little voltage", 1: "the processor is held back", 2: "it is throttled", 3: "it is near its heat limit"}
_SINCE = {16: "too little voltage", 18: "throttling"}
_THROTTLED = ("sys/devices/platform/soc/soc:firmware/get_throttled",
              "sys/devices/platform/soc@0/soc@0:firmware/get_throttled",
              "sys/class/hwmon/hwmon0/device/get_throttled")  # fmt: skip
_SUPPLY = "use the board's own power supply and a short, thick cable"


def check_clock(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:  # noqa: ARG001
    """Whether the wall clock is set, kept by a time service, and outlives a power cut."""
    served = any((root / name).exists() for name in _SERVICES)
    synchronized = Clock().quality() == SYNCHRONIZED if root == SYSTEM else served
    if time.time() < BUILT:
        yield Finding("clock", "FAIL", "the wall clock is not set", "timedatectl set-ntp true")
    elif synchronized:
        by = "kept by a time service" if served else "synchronized, as the kernel says"
        yield Finding("clock", "ok", by)
    elif served:
        remedy = "timedatectl timesync-status; or chronyc sources: is the time server reachable?"
        yield Finding("clock", "warn", "a time service runs and has not synchronized it", remedy)
    else:
        detail = "no time service seen; records are marked unsynchronized"
        yield Finding("clock", "warn", detail, "apt install systemd-timesyncd; timedatectl set-ntp true")
    clocks = sorted((root / "sys/class/rtc").glob("rtc*"))
    if clocks:
        yield Finding("clock", "ok", f"{clocks[0].name} keeps time without power: {text(clocks[0] / 'name')}")
    else:
        yield Finding("clock", "ok", "no real-time clock: after a power cut time is unknown until the network gives it")


def check_disk(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Room, rights and health of where records are kept."""
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    present = data_dir if data_dir.exists() else data_dir.parent
    if not present.exists():
        yield Finding("disk", "FAIL", f"{data_dir}: its folder does not exist", f"mkdir -p {data_dir}")
        return
    about = os.statvfs(present)
    if about.f_flag & os.ST_RDONLY:
        remedy = "dmesg | grep -i -e mmc -e ext4 says why; replace the card when it does so again; reboot"
        yield Finding("disk", "FAIL", f"{present}: the file system is read-only", remedy)
    elif not agent_user(root).may(present.stat(), 2):
        who = agent_user(root).name or "this user"
        yield Finding("disk", "FAIL", f"{present}: not writable for {who}", f"chown {who} {present}")
    free = shutil.disk_usage(present).free
    wanted = loaded.config.buffer.quota_mb << 20
    detail = f"{present}: {free >> 20} MB free, quota {loaded.config.buffer.quota_mb} MB"
    enough = free >= LEAST_FREE and (free > wanted * FREE_SPARE or data_dir.exists())
    yield Finding("disk", "ok" if enough else "warn", detail, "lower [buffer] quota_mb or free space")
    if about.f_files and about.f_favail < about.f_files * FEW_INODES:
        detail = f"{present}: {about.f_favail} of {about.f_files} inodes are left"
        yield Finding("disk", "warn", detail, f"du --inodes -x -d2 {present} | sort -n names where the files are")
    yield from _card(present, root)


def _card(present: Path, root: Path) -> Iterator[Finding]:
    """What the kernel knows of the card's health, as far as it tells."""
    device = present.stat().st_dev
    block = root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    name = block.resolve().name
    errors = text(root / f"sys/fs/ext4/{name}/errors_count")
    if errors.isdigit() and int(errors):
        remedy = f"back up, then fsck at boot: touch /forcefsck; reboot. Again errors: replace the card ({name})"
        yield Finding("card", "FAIL", f"the file system on {name} has counted {errors} errors", remedy)
    for disk in sorted((root / "sys/block").glob("mmcblk[0-9]*")):
        yield from _wear(disk)


def _wear(disk: Path) -> Iterator[Finding]:
    """An eMMC tells tenths of its life; most SD cards tell nothing but who made them and when."""
    folder, replace = disk / "device", "make a new card in the next days: docs/it.md, sections 1 and 3"
    ends = text(folder / "pre_eol_info")
    tenths = [int(word, 16) for word in text(folder / "life_time").split() if word.startswith("0x")]
    about = " ".join(word for word in (text(folder / "type"), text(folder / "name"), text(folder / "date")) if word)
    if ends in ("0x02", "0x03"):
        state = "FAIL" if ends == "0x03" else "warn"
        yield Finding("card", state, f"{disk.name} ({about}) says that its spare blocks run out", replace)
    elif tenths and max(tenths) >= 9:  # 0x09: 80 to 90 % of its life
        used = min(max(tenths), 10) * 10
        yield Finding("card", "warn", f"{disk.name} ({about}) has used {used - 10} to {used} % of its life", replace)
    elif tenths:
        yield Finding("card", "ok", f"{disk.name} ({about}) has used at most {max(tenths) * 10} % of its life")
    else:
        yield Finding("card", "ok", f"{disk.name} ({about or 'unnamed'}) tells nothing of its wear")


def check_heat_and_power(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:  # noqa: ARG001
    """Whether heat or a weak supply slows the processor down: alarms would come late."""
    told = False
    degrees = [int(value) / 1000 for zone in (root / "sys/class/thermal").glob("thermal_zone*")
               if (value := text(zone / "temp")).lstrip("-").isdigit()]  # fmt: skip
    if degrees and max(degrees) >= WARM_C:
        state = "FAIL" if max(degrees) >= HOT_C else "warn"
        remedy = "give it air or a heat sink, take it off the monitor's exhaust; top shows what is busy"
        yield Finding("heat", state, f"{max(degrees):.0f} degrees Celsius; the processor slows down at 80", remedy)
        told = True
    bits = next((int(value, 16) for name in _THROTTLED if (value := _hex(root / name))), 0)
    for bit, what in _NOW.items():
        if bits >> bit & 1:
            yield Finding("power", "FAIL" if bit == 0 else "warn", f"at this moment: {what}", _SUPPLY)
            told = True
    for bit, what in _SINCE.items():
        if bits >> bit & 1 and not bits & 0b1111:
            yield Finding("power", "warn", f"since the start there was: {what}", _SUPPLY)
            told = True
    for folder in (root / "sys/class/hwmon").glob("hwmon*"):
        if text(folder / "name") == "rpi_volt" and text(folder / "in0_lcrit_alarm") == "1" and not told:
            yield Finding("power", "FAIL", "the board has seen too little voltage", _SUPPLY)
            told = True
    if not told:
        seen = f"{max(degrees):.0f} degrees Celsius" if degrees else "no sensor"
        yield Finding("heat", "ok", f"{seen}; no throttling or low voltage told")


def _hex(path: Path) -> str:
    value = text(path).removeprefix("0x")
    return value if value and all(sign in "0123456789abcdefABCDEF" for sign in value) else ""


def check_hardware_watchdog(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:  # noqa: ARG001
    """Whether the board resets itself when Linux hangs."""
    device = root / "sys/class/watchdog/watchdog0"
    if not device.exists() and not (root / "dev/watchdog0").exists():
        yield Finding(
            "hw watchdog", "ok", "this board shows none: a kernel that hangs stays so until it is switched off"
        )
        return
    name = text(device / "identity") or "a hardware watchdog"
    if text(device / "state") == "active" or _runtime_watchdog(root):
        yield Finding("hw watchdog", "ok", f"{name} is fed by systemd: a kernel that hangs is reset")
    else:
        remedy = (
            "mkdir -p /etc/systemd/system.conf.d; printf '[Manager]\\nRuntimeWatchdogSec=15\\n'"
            " > /etc/systemd/system.conf.d/watchdog.conf; systemctl daemon-reexec"
        )
        yield Finding(
            "hw watchdog", "warn", f"{name} is there and nobody feeds it: a kernel that hangs stays so", remedy
        )


def _runtime_watchdog(root: Path) -> bool:
    if root != SYSTEM or not shutil.which("systemctl"):
        return False
    command = ["systemctl", "show", "--property=RuntimeWatchdogUSec", "--value"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode == 0 and done.stdout.strip() not in ("", "0", "off", "infinity")
