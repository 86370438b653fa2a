"""Serial ports by the names that stay: what udev calls them, and which adapter is behind each.

A port is listed once, under the best of its names: the one that this product's udev rules give (/dev/bedside), by the
adapter's serial number (/dev/serial/by-id), by the socket it is plugged into (/dev/serial/by-path), else the kernel's,
which changes with the order of plugging. Nothing is opened: what is behind a port stands in sysfs.

Source: Documentation/ABI/testing/sysfs-bus-usb of the Linux kernel; udev rules 60-serial.rules of systemd.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/dev")
TTYS = Path("/sys/class/tty")
FOLDERS = ("bedside/by-id", "bedside/by-port", "serial/by-id", "serial/by-path")  # best name first
_UP = 6  # from a port to its USB device: tty, port, interface, and hubs between


@dataclass(frozen=True, slots=True)
class Port:
    """A serial port that is there."""

    path: str  # the best of its names
    kernel: str  # ttyUSB0
    names: tuple[str, ...]  # all of its names that stay
    adapter: str  # maker and product as the adapter says, "on board" when it is none
    vendor: str = ""  # USB identifiers, four hexadecimal digits each
    product: str = ""
    serial: str = ""  # of the adapter
    stable: bool = True  # whether `path` stays over restarts and unplugging

    def said(self) -> str:
        """The port in one line for a person."""
        usb = f" [{self.vendor}:{self.product}]" if self.vendor else ""
        number = f" serial {self.serial}" if self.serial else ""
        warning = "" if self.stable else "; this name may change: use another adapter or a udev rule"
        return f"{self.path} -> {self.kernel}: {self.adapter}{usb}{number}{warning}"


def ports(devices: Path | None = None, ttys: Path | None = None) -> list[Port]:
    """Every serial port with hardware behind it, those whose names stay first."""
    devices, ttys = devices or DEVICES, ttys or TTYS
    stable = _names(devices)
    found = [
        _port(folder, stable.get(folder.name, ()), devices)
        for folder in sorted(ttys.glob("tty*"))
        if (folder / "device").exists() and _real(folder)
    ]
    return sorted(found, key=lambda port: (not port.stable, port.path))


def describe(path: str, devices: Path | None = None, ttys: Path | None = None) -> Port:
    """The port behind any of its names; one that sysfs does not know is described by its name alone."""
    kernel = Path(path).resolve().name
    known = next((port for port in ports(devices, ttys) if port.kernel == kernel), None)
    if known is None:
        return Port(path, kernel, (), "unknown", stable=not kernel.startswith("ttyUSB"))
    return known


def _names(devices: Path) -> dict[str, tuple[str, ...]]:
    """Names that stay, best first, by the kernel's name."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in FOLDERS:
        for link in sorted((devices / folder).glob("*")):
            if link.is_symlink():
                kernel = link.resolve().name
                found[kernel] = (*found.get(kernel, ()), str(link))
    return found


def _real(folder: Path) -> bool:
    """Whether hardware is behind it: the kernel lists 8250 ports that a board does not have, as type 0."""
    try:
        return int((folder / "type").read_text()) != 0
    except (OSError, ValueError):
        return True  # USB adapters have no such file


def _port(folder: Path, names: tuple[str, ...], devices: Path) -> Port:
    kernel = folder.name
    # a port on the board never changes its name; one of an adapter does, unless udev names it
    usb = _usb(folder)
    path = names[0] if names else str(devices / kernel)
    if usb is None:
        return Port(path, kernel, names, "on board", stable=True)
    adapter = " ".join(part for part in (_text(usb, "manufacturer"), _text(usb, "product")) if part) or "USB adapter"
    return Port(
        path, kernel, names, adapter, _text(usb, "idVendor"), _text(usb, "idProduct"), _text(usb, "serial"),
        stable=bool(names),
    )  # fmt: skip


def _usb(folder: Path) -> Path | None:
    """The USB device that a port belongs to, None when it is not one."""
    place = (folder / "device").resolve()
    for _ in range(_UP):
        if (place / "idVendor").is_file():
            return place
        place = place.parent
    return None


def _text(folder: Path, name: str) -> str:
    try:
        text = (folder / name).read_text(errors="replace").strip()
    except OSError:
        return ""
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:80]  # an adapter may say anything
