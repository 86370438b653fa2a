"""`edge-agent doctor`: looks at everything the configuration needs and says what is wrong and what to do.

It only looks: no port is opened that the agent holds, no output is driven. Exit code 0 when nothing is wrong, 1 when
something is, 78 when the configuration itself is.
"""

from __future__ import annotations

import argparse
import grp
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_agent import NOTICE
from edge_agent.commands import doctor_cloud
from edge_agent.commands.finding import Finding
from edge_agent.config import Loaded, load
from edge_agent.control import ControlClient, Refused, answers
from edge_agent.parts import Parts
from edge_agent.risk import model_opener

FREE_SPARE = 1.2  # the quota should fit with a fifth to spare for the write-ahead log
BUFFER_FULL = 0.8  # of the quota: waveforms go at 0.95


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    doctor = subparsers.add_parser("doctor", help="check ports, keys, GPIO, clock, disk, model, receivers and privacy")
    doctor.add_argument("--config", type=Path, default=Path("/etc/edge-agent/edge-agent.toml"), metavar="FILE")
    doctor.set_defaults(func=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print one line a finding, with a remedy below what is wrong."""
    print(NOTICE)
    loaded = load(arguments.config)
    Parts(loaded)
    worst = 0
    for check in CHECKS:
        for finding in check(loaded):
            print(f"[{finding.state:4}] {finding.part}: {finding.detail}")
            if finding.remedy and finding.state != "ok":
                print(f"       do: {finding.remedy}")
            worst = max(worst, finding.state == "FAIL")
    return worst


def check_agent(loaded: Loaded) -> Iterator[Finding]:
    """Whether an agent answers."""
    path = loaded.resolve(loaded.config.control.socket)
    if answers(path):
        yield Finding("agent", "ok", f"answers on {path}")
    else:
        yield Finding(
            "agent", "warn", f"no agent answers on {path}", "systemctl status edge-agent; journalctl -u edge-agent"
        )
    for group in (loaded.config.control.nurse_group, loaded.config.control.biomed_group):
        if group:
            try:
                grp.getgrnam(group)
            except KeyError:
                yield Finding("control", "FAIL", f"group {group!r} does not exist", f"groupadd {group}")


def check_ports(loaded: Loaded) -> Iterator[Finding]:
    """Serial devices and listening ports."""
    running = answers(loaded.resolve(loaded.config.control.socket))
    for source in loaded.config.source:
        url = urlsplit(source.link)
        if url.scheme == "serial":
            yield _serial(source.link, Path(url.path))
        elif url.scheme in ("tcp-listen", "mllp-listen") and not running:
            yield _listen(source.link, url.hostname or "0.0.0.0", url.port or 2575)  # noqa: S104
        elif url.scheme == "ble":
            found = any(Path("/sys/class/bluetooth").glob("hci*"))
            if found or "hci=" in source.link:
                yield Finding("bluetooth", "ok", f"{source.link}: adapter present")
            else:
                yield Finding(
                    "bluetooth",
                    "FAIL",
                    f"{source.link}: no Bluetooth adapter",
                    "rfkill list; hciconfig; is bluez installed?",
                )
        else:
            yield Finding("link", "ok", f"{source.link}: opened by the agent, see edge-agent status")


def _serial(link: str, device: Path) -> Finding:
    try:
        mode = device.stat()
    except OSError:
        return Finding(
            "serial", "FAIL", f"{link}: {device} does not exist", "is the adapter plugged in? ls -l /dev/serial/by-id/"
        )
    if not stat.S_ISCHR(mode.st_mode):
        return Finding("serial", "FAIL", f"{link}: {device} is not a serial device", "correct the link of this source")
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            "serial", "FAIL", f"{link}: no permission", "usermod -aG dialout edge-agent, then restart the agent"
        )
    return Finding("serial", "ok", f"{link}: present and accessible")


def _listen(link: str, host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"ss -ltnp 'sport = :{port}' names the process that holds it"
            return Finding("port", "FAIL", f"{link}: cannot listen: {error.strerror}", remedy)
    return Finding("port", "ok", f"{link}: free")


def check_key(loaded: Loaded) -> Iterator[Finding]:
    """The key that wraps the buffer's keys."""
    from edge_agent.buffer import KeyProblem, load_kek

    spec = loaded.buffer_key
    try:
        kek = load_kek(spec)
    except KeyProblem as error:
        state = "warn" if spec.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in os.environ else "FAIL"
        yield Finding(
            "key", state, str(error), "inside the service systemd passes the credential; see docs/getting-started.md"
        )
        return
    detail = f"{spec}: readable"
    if spec.startswith("file:"):
        yield Finding("key", "warn", detail, "a key file on the same card protects copied files, not a stolen card")
    else:
        yield Finding("key", "ok", detail)
    yield from _fits(loaded, kek)


def _fits(loaded: Loaded, kek: bytes) -> Iterator[Finding]:
    """Whether the key opens what is stored."""
    from edge_agent.buffer import admin
    from edge_agent.buffer.keys import fingerprint

    present = fingerprint(kek).hex()
    report = admin.key_report(loaded.resolve(loaded.config.gateway.data_dir))
    if report["rotation"]:
        yield Finding(
            "key", "FAIL", f"a rotation to {report['rotation']['new']} was interrupted",
            "stop the agent; edge-agent keys rotate --new KEY, again with the same key",
        )  # fmt: skip
    for file in report["files"]:
        others = [kek_id for kek_id in file["keks"] if kek_id != present]
        if others:
            yield Finding(
                "key", "FAIL", f"{file['file']} was sealed under {', '.join(others)}, the key is {present}",
                "set buffer.key to the key that fits before the agent starts, or it puts the file aside",
            )  # fmt: skip


def check_buffer(loaded: Loaded) -> Iterator[Finding]:
    """How full the buffer is, how long an outage it bridges, and what was put aside."""
    from edge_agent.buffer import admin

    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    quota_bytes = loaded.config.buffer.quota_mb << 20
    found = admin.capacity(data_dir, quota_bytes) | _live_buffer(loaded)
    share = found["bytes"] / quota_bytes
    detail = f"{found['bytes'] >> 20} of {loaded.config.buffer.quota_mb} MB used"
    if found.get("capacity_h") is None:
        detail += "; hours of room are known when records have come for a minute"
    else:
        detail += f"; holds {found['capacity_h']:g} h at the present rate, room for {found['room_h']:g} h more"
    full = share > BUFFER_FULL
    yield Finding("buffer", "warn" if full else "ok", detail, "see why cloud-sync does not deliver: cloud-sync status")
    for folder in admin.key_report(data_dir)["quarantine"]:
        yield Finding(
            "buffer", "warn", f"{folder['folder']}: {folder['bytes'] >> 10} KiB were put aside, still sealed",
            "docs/buffer.md says how to forward it; then archive or delete the folder",
        )  # fmt: skip


def _live_buffer(loaded: Loaded) -> dict[str, Any]:
    """The figures of a running agent, whose rate is that of now; none when nobody answers or it has no buffer."""
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            told = client.call("status").get("buffer", {})
    except (ConnectionError, Refused, OSError):
        return {}
    return {key: told[key] for key in ("bytes", "capacity_h", "room_h") if told.get(key) is not None}


def check_disk(loaded: Loaded) -> Iterator[Finding]:
    """Room and permission where records are kept."""
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    present = data_dir if data_dir.exists() else data_dir.parent
    if not present.exists():
        yield Finding("disk", "FAIL", f"{data_dir}: its folder does not exist", f"mkdir -p {data_dir}")
        return
    if not os.access(present, os.W_OK):
        yield Finding(
            "disk", "FAIL", f"{present}: not writable", f"chown edge-agent {present}; is the file system read-only?"
        )
    free = shutil.disk_usage(present).free
    wanted = loaded.config.buffer.quota_mb * 1024 * 1024
    detail = f"{present}: {free // 2**20} MB free, quota {loaded.config.buffer.quota_mb} MB"
    enough = free > wanted * FREE_SPARE or data_dir.exists()
    yield Finding("disk", "ok" if enough else "warn", detail, "lower [buffer] quota_mb or free space")


def check_gpio(loaded: Loaded) -> Iterator[Finding]:
    """The GPIO chips by label."""
    wanted = {item.chip for item in loaded.config.annunciator if item.kind == "gpio"}
    wanted |= {item.chip for item in loaded.config.button}
    if not wanted:
        yield Finding("gpio", "ok", "no gpio annunciator or button configured")
        return
    from edge_agent.gpio_chips import ChipError, chip_labels

    try:
        labels = chip_labels()
    except ChipError as error:
        yield Finding("gpio", "FAIL", str(error))  # which says what to do
        return
    for chip in sorted(wanted):
        if chip in labels:
            yield Finding("gpio", "ok", f"chip {chip} present")
        else:
            have = ", ".join(sorted(labels)) or "none"
            yield Finding(
                "gpio", "FAIL", f"no chip with label {chip!r}; present: {have}", "gpiodetect shows labels in brackets"
            )


def check_clock(_loaded: Loaded) -> Iterator[Finding]:
    """Whether the wall clock is kept by a time service."""
    if time.time() < 1_700_000_000:  # November 2023: no gateway was built before
        yield Finding("clock", "FAIL", "the wall clock is not set", "timedatectl set-ntp true")
    elif Path("/run/systemd/timesync/synchronized").exists() or Path("/run/chrony").exists():
        yield Finding("clock", "ok", "kept by a time service")
    else:
        yield Finding(
            "clock", "warn", "no time service seen; records are marked unsynchronized", "timedatectl set-ntp true"
        )


def check_model(loaded: Loaded) -> Iterator[Finding]:
    """The risk model: its bundle is opened, and proven by its examples, as the agent will do it."""
    if loaded.config.model is None:
        yield Finding("model", "ok", "no model configured; limits work without one")
        return
    try:
        about = model_opener(loaded)().about
    except Exception as error:  # whatever a bundle or runtime does wrong is what is asked for here
        remedy = getattr(error, "remedy", "")
        detail = str(error).removesuffix(remedy).rstrip(" .") if remedy else f"{type(error).__name__}: {error}"
        yield Finding("model", "FAIL", detail, remedy or "docs/model.md says what a model needs")
        return
    yield Finding("model", "ok", f"{about.identity} in {about.runtime}")


CHECKS: tuple[Callable[[Loaded], Iterator[Finding]], ...] = (
    check_agent, check_ports, check_key, check_buffer, check_disk, check_gpio, check_clock, check_model,
    *doctor_cloud.CHECKS,
)  # fmt: skip
