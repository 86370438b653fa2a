"""What `edge-agent doctor` looks at of devices: serial ports and their names, sockets, Bluetooth, GPIO, sound."""

from __future__ import annotations

import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from edge_agent.commands.finding import BASE, SYSTEM, Finding, agent_user, installed, text
from edge_agent.config import Loaded
from edge_agent.control import answers

RULES = Path("etc/udev/rules.d/70-bedside-edge.rules")
STABLE = ("bedside/by-port", "bedside/by-id", "serial/by-id")
# names that another order of plugging or another adapter changes; those of ports on the board stay
_MOVING = re.compile(r"^/dev/tty(USB|ACM)\d+$")


def check_ports(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Serial devices and listening ports."""
    running = answers(loaded.resolve(loaded.config.control.socket))
    for source in loaded.config.source:
        url = urlsplit(source.link)
        if url.scheme == "serial":
            yield from _serial(source.link, Path(url.path), root)
        elif url.scheme in ("tcp-listen", "mllp-listen") and not running:
            yield _listen(source.link, url.hostname or "0.0.0.0", url.port or 2575)  # noqa: S104
        elif url.scheme == "ble":
            yield from _bluetooth(source.link, root)
        else:
            yield Finding("link", "ok", f"{source.link}: opened by the agent, see edge-agent status")
    if installed(root) and any(source.link.startswith("serial:") for source in loaded.config.source):
        yield from _rules(root)


def _serial(link: str, device: Path, root: Path) -> Iterator[Finding]:
    place = root / device.relative_to("/")
    if _MOVING.match(str(device)):
        links = (each for folder in STABLE for each in sorted((root / "dev" / folder).glob("*")))
        names = [str(each) for each in links if each.resolve() == place.resolve()]
        better = f'link = "serial://{names[0]}..."' if names else "edge-agent detect lists the names that stay"
        detail = f"{link}: the next plugging may give {device} to another monitor"
        yield Finding("serial", "warn", detail, f"name the socket or the adapter: {better}")
    try:
        found = place.stat()
    except OSError:
        remedy = "is the adapter plugged in? ls -l /dev/bedside/by-port/ /dev/serial/by-id/"
        yield Finding("serial", "FAIL", f"{link}: {device} does not exist", remedy)
        return
    if not stat.S_ISCHR(found.st_mode):
        detail = f"{link}: {device} is not a serial device"
        yield Finding("serial", "FAIL", detail, "correct the link of this source")
    elif not agent_user(root).may(found, 6):
        who = agent_user(root).name or "you"
        remedy = f"usermod -aG dialout {who}, then restart the agent"
        yield Finding("serial", "FAIL", f"{link}: no permission for {who}", remedy)
    else:
        yield Finding("serial", "ok", f"{link}: present and accessible")


def _rules(root: Path) -> Iterator[Finding]:
    present, ours = root / RULES, root / BASE / "current/systemd/udev" / RULES.name
    if not present.is_file():
        remedy = f"cp {ours} {present}; udevadm control --reload; udevadm trigger"
        yield Finding("udev", "FAIL", f"{present} is missing: no stable names, no rights for the agent", remedy)
    else:
        yield Finding("udev", "ok", f"{present} names the ports")


def _listen(link: str, host: str, port: int) -> Finding:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"ss -ltnp 'sport = :{port}' names the process that holds it"
            return Finding("port", "FAIL", f"{link}: cannot listen: {error.strerror}", remedy)
    return Finding("port", "ok", f"{link}: free")


def _bluetooth(link: str, root: Path) -> Iterator[Finding]:
    if "hci=" in link:
        yield Finding("bluetooth", "ok", f"{link}: the agent has a controller of its own")
        return
    adapters = sorted((root / "sys/class/bluetooth").glob("hci*"))
    if not adapters:
        remedy = "lsusb; dmesg | grep -i bluetooth; on a Pi: is dtoverlay=disable-bt in /boot/firmware/config.txt?"
        yield Finding("bluetooth", "FAIL", f"{link}: no Bluetooth adapter", remedy)
        return
    blocked = [each for each in (root / "sys/class/rfkill").glob("rfkill*")
               if text(each / "type") == "bluetooth" and "1" in (text(each / "soft"), text(each / "hard"))]  # fmt: skip
    if blocked:
        yield Finding("bluetooth", "FAIL", f"{link}: {adapters[0].name} is switched off", "rfkill unblock bluetooth")
    elif not _bluetoothd(root):
        remedy = "apt install bluez; systemctl enable --now bluetooth"
        yield Finding("bluetooth", "FAIL", f"{link}: bluetoothd does not run", remedy)
    else:
        yield Finding("bluetooth", "ok", f"{link}: {adapters[0].name} is present, bluetoothd runs")


def _bluetoothd(root: Path) -> bool:
    if any(text(each) == "bluetoothd" for each in (root / "proc").glob("[0-9]*/comm")):
        return True
    if root != SYSTEM or not shutil.which("systemctl"):
        return False
    return subprocess.run(["systemctl", "is-active", "--quiet", "bluetooth"], timeout=20, check=False).returncode == 0


def check_gpio(loaded: Loaded) -> Iterator[Finding]:
    """The GPIO chips by label, and the lines of lamps, buzzer and buttons: there, and nobody else's."""
    wanted: dict[str, list[int | str]] = {}
    for item in loaded.config.annunciator:
        if item.kind == "gpio":
            used = (item.buzzer, item.red, item.yellow, item.cyan, item.loopback, item.heartbeat)
            wanted.setdefault(item.chip, []).extend(line for line in used if line is not None)
    for button in loaded.config.button:
        wanted.setdefault(button.chip, []).append(button.line)
    if not wanted:
        yield Finding("gpio", "ok", "no gpio annunciator or button configured")
        return
    from edge_agent.gpio_chips import ChipError, chip_labels

    try:
        labels = chip_labels()
    except ChipError as error:
        yield Finding("gpio", "FAIL", str(error))  # which says what to do
        return
    for chip, lines in sorted(wanted.items()):
        if chip in labels:
            yield from _lines(chip, lines)
        else:
            have = ", ".join(sorted(labels)) or "none"
            yield Finding(
                "gpio", "FAIL", f"no chip with label {chip!r}; present: {have}", "gpiodetect shows labels in brackets"
            )


def _lines(chip: str, lines: list[int | str]) -> Iterator[Finding]:
    from edge_agent.gpio_chips import CONSUMER, ChipError, open_chip

    wrong = False
    for line in lines:
        try:
            open_chip(chip, [line]).close()  # looks at the line and does not ask for it
        except ChipError as error:
            if f"taken by {CONSUMER!r}" not in str(error):
                wrong = True
                yield Finding("gpio", "FAIL", str(error), "gpioinfo shows every line, its name and who holds it")
    if not wrong:
        yield Finding("gpio", "ok", f"chip {chip} present, lines {', '.join(map(str, lines))} are there for the agent")


def check_sound(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """The sound devices that annunciators name, as far as the kernel's list of cards tells."""
    for item in loaded.config.annunciator:
        if item.kind != "sound":
            continue
        cards = dict(re.findall(r"^\s*(\d+) \[(\S+)\s*\]", text(root / "proc/asound/cards"), re.MULTILINE))
        card = _card_of(item.device)
        have = ", ".join(cards.values()) or "none"
        if not cards:
            remedy = "is the loudspeaker plugged in? on a Pi: dtparam=audio=on in /boot/firmware/config.txt; aplay -l"
            yield Finding("sound", "FAIL", f"{item.device}: this machine has no sound card", remedy)
        elif card and card not in cards and card not in cards.values():
            detail = f"{item.device}: no card {card!r}; present: {have}"
            yield Finding("sound", "FAIL", detail, "aplay -L lists the devices; correct [[annunciator]] device")
        else:
            yield Finding("sound", "ok", f"{item.device}: cards {have}; edge-agent self-test --annunciators is heard")


def _card_of(device: str) -> str:
    """The card that an ALSA device names, by number or name; empty when ALSA's configuration chooses."""
    found = re.search(r"CARD=([A-Za-z0-9_]+)", device) or re.match(r"(?:plug)?hw:([A-Za-z0-9_]+)", device)
    return found[1] if found else ""
