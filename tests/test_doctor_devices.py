"""What the doctor says of serial ports and their names, Bluetooth and sound, on a machine made up below a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from running_agent import Bedside

from edge_agent.commands.doctor_devices import check_ports, check_sound
from edge_agent.commands.finding import Finding
from edge_agent.config import load

CARDS = """ 0 [Headphones     ]: bcm2835_headpho - bcm2835 Headphones
                      bcm2835 Headphones
 1 [UACDemoV10     ]: USB-Audio - UACDemoV1.0
"""


class Desk:
    """A root with devices, and a configuration with one source more."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bedside = folder / "root", Bedside(folder)
        (self.root / "dev").mkdir(parents=True)

    def put(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tty(self, name: str, *links: str) -> None:
        """A serial port: a node that is a terminal's, which is all that the doctor looks at."""
        os.symlink("/dev/ptmx", self.root / "dev" / name)
        for link in links:
            path = self.root / "dev" / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(self.root / "dev" / name)

    def ports(self, link: str) -> list[Finding]:
        driver = "gatt" if link.startswith("ble") else "nonin"
        table = f'[[source]]\nname = "cable"\ndriver = "{driver}"\nlink = "{link}"\nbed = "ICU-3"'
        found = list(check_ports(load(self.bedside.write(table)), self.root))
        assert all(each.remedy for each in found if each.state != "ok")
        return [each for each in found if each.part in ("serial", "udev", "bluetooth")]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_port_that_is_not_there(desk: Desk) -> None:
    (found,) = desk.ports("serial:///dev/bedside/by-port/x?baud=9600")
    assert found.state == "FAIL" and "does not exist" in found.detail and "plugged in" in found.remedy


def test_a_port_that_is_no_port(desk: Desk) -> None:
    desk.put("dev/ttyAMA0", "text")
    (found,) = desk.ports("serial:///dev/ttyAMA0")
    assert found.state == "FAIL" and "not a serial device" in found.detail and "link" in found.remedy


def test_a_name_that_the_next_plugging_changes(desk: Desk) -> None:
    desk.tty("ttyUSB0")
    warned, present = desk.ports("serial:///dev/ttyUSB0?baud=9600")
    assert (warned.state, present.state) == ("warn", "ok") and "another monitor" in warned.detail
    assert "edge-agent detect" in warned.remedy
    (desk.root / "dev/ttyUSB0").unlink()
    desk.tty("ttyUSB0", "serial/by-id/usb-FTDI-if00", "bedside/by-port/pci-usb-1")
    warned, _ = desk.ports("serial:///dev/ttyUSB0?baud=9600")
    assert "by-port/pci-usb-1" in warned.remedy, "the best of its names"
    (present,) = desk.ports("serial:///dev/bedside/by-port/pci-usb-1")
    assert present.state == "ok"


def test_a_port_of_another_group(desk: Desk) -> None:
    desk.put("etc/systemd/system/edge-agent.service")
    desk.put("etc/passwd", "edge-agent:x:4711:4711::/:\n")
    desk.put("etc/udev/rules.d/70-bedside-edge.rules")
    os.symlink("/dev/mem" if Path("/dev/mem").exists() else "/dev/kmsg", desk.root / "dev/ttyAMA0")
    found = desk.ports("serial:///dev/ttyAMA0")[0]
    assert found.state == "FAIL" and "no permission for edge-agent" in found.detail
    assert "usermod -aG dialout edge-agent" in found.remedy


def test_rules_that_are_missing(desk: Desk) -> None:
    desk.tty("ttyAMA0")
    desk.put("etc/systemd/system/edge-agent.service")
    desk.put("etc/passwd", "edge-agent:x:0:0::/:\n")
    found = desk.ports("serial:///dev/ttyAMA0")[-1]
    assert (found.part, found.state) == ("udev", "FAIL") and "udevadm control --reload" in found.remedy
    desk.put("etc/udev/rules.d/70-bedside-edge.rules")
    assert desk.ports("serial:///dev/ttyAMA0")[-1].state == "ok"


def test_a_port_that_somebody_else_holds(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", bedside.port))
        other.listen()
        (found,) = [each for each in check_ports(load(bedside.write()), tmp_path) if each.part == "port"]
    assert found.state == "FAIL" and "cannot listen" in found.detail and f":{bedside.port}" in found.remedy


def test_bluetooth(desk: Desk) -> None:
    link = "ble://AA:BB:CC:DD:EE:FF"

    def found() -> Finding:
        (one,) = desk.ports(link)
        return one

    assert found().state == "FAIL" and "no Bluetooth adapter" in found().detail
    desk.put("sys/class/bluetooth/hci0/uevent")
    assert "bluetoothd does not run" in found().detail and "systemctl enable --now bluetooth" in found().remedy
    desk.put("proc/77/comm", "bluetoothd\n")
    assert found().state == "ok"
    desk.put("sys/class/rfkill/rfkill0/type", "bluetooth\n")
    desk.put("sys/class/rfkill/rfkill0/soft", "1\n")
    assert found().state == "FAIL" and found().remedy == "rfkill unblock bluetooth"
    desk.put("sys/class/rfkill/rfkill0/soft", "0\n")
    desk.put("sys/class/rfkill/rfkill0/hard", "0\n")
    assert found().state == "ok"


@pytest.mark.parametrize(
    ("cards", "device", "state", "words"),
    [
        ("--- no soundcards ---\n", "default", "FAIL", "no sound card"), ("", "default", "FAIL", "no sound card"),
        (CARDS, "default", "ok", "Headphones, UACDemoV10"), (CARDS, "plughw:CARD=UACDemoV10,DEV=0", "ok", "UACDemo"),
        (CARDS, "hw:1,0", "ok", "UACDemo"), (CARDS, "hw:2", "FAIL", "no card '2'"),
        (CARDS, "sysdefault:CARD=Device", "FAIL", "no card 'Device'"),
    ],
)  # fmt: skip
def test_sound(desk: Desk, cards: str, device: str, state: str, words: str) -> None:
    desk.put("proc/asound/cards", cards)
    loaded = load(desk.bedside.write(f'[[annunciator]]\nkind = "sound"\ndevice = "{device}"'))
    (found,) = check_sound(loaded, desk.root)
    assert found.state == state and words in found.detail and (state == "ok" or found.remedy)
    assert not list(check_sound(load(desk.bedside.write()), desk.root))
