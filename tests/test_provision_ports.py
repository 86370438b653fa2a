"""Serial ports by the names that stay, from a copy of what udev and sysfs show."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.provisioning import ports as module
from edge_agent.provisioning.ports import describe, ports


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board with one port of its own, one that it does not have, and two USB adapters, one of them behind a hub."""
    devices, ttys, usb = tmp_path / "dev", tmp_path / "class", tmp_path / "usb"
    for kernel, hub, number in (("ttyUSB0", "1-1", "AB12"), ("ttyUSB1", "1-2/1-2.4", "")):
        interface = usb / hub / f"{hub[-3:]}:1.0"
        port = interface / kernel
        port.mkdir(parents=True)
        for name, text in (("idVendor", "0403"), ("idProduct", "6001"), ("manufacturer", "FTDI"), ("serial", number)):
            (usb / hub / name).write_text(f"{text}\n")
        (usb / hub / "product").write_text("FT232R \x1b[31mUART\n")
        (ttys / kernel).mkdir(parents=True)
        (ttys / kernel / "device").symlink_to(port)
    for kernel, kind in (("ttyS0", "4"), ("ttyS1", "0")):
        (ttys / kernel).mkdir()
        (ttys / kernel / "type").write_text(kind)
        (ttys / kernel / "device").mkdir()
    (ttys / "tty1").mkdir()  # a console has nothing behind it
    devices.mkdir()
    for kernel in ("ttyUSB0", "ttyUSB1", "ttyS0", "ttyS1"):
        (devices / kernel).touch()
    for folder, name, kernel in (
        ("serial/by-id", "usb-FTDI_AB12-if00-port0", "ttyUSB0"),
        ("serial/by-path", "platform-usb-0:1", "ttyUSB0"),
        ("bedside/by-id", "FTDI_AB12-if00", "ttyUSB0"),
    ):
        (devices / folder).mkdir(parents=True, exist_ok=True)
        (devices / folder / name).symlink_to(devices / kernel)
    monkeypatch.setattr(module, "DEVICES", devices)
    monkeypatch.setattr(module, "TTYS", ttys)
    return devices


def test_each_port_stands_once_under_its_best_name(machine: Path) -> None:
    found = ports(module.DEVICES, module.TTYS)
    assert [port.kernel for port in found] == ["ttyUSB0", "ttyS0", "ttyUSB1"]
    first = found[0]
    assert first.path == f"{machine}/bedside/by-id/FTDI_AB12-if00" and len(first.names) == 3
    assert (first.vendor, first.product, first.serial, first.stable) == ("0403", "6001", "AB12", True)
    assert first.adapter == "FTDI FT232R ?[31mUART", "an adapter's name cannot talk to the terminal"
    assert found[1].adapter == "on board" and found[1].stable


def test_a_name_that_may_change_is_told(machine: Path) -> None:
    (port,) = [port for port in ports(module.DEVICES, module.TTYS) if port.kernel == "ttyUSB1"]
    assert not port.stable and port.serial == "" and port.vendor == "0403", "found through its hub"
    assert "may change" in port.said()


def test_any_name_leads_to_the_port(machine: Path) -> None:
    for name in ("ttyUSB0", "serial/by-path/platform-usb-0:1", "bedside/by-id/FTDI_AB12-if00"):
        assert describe(f"{machine}/{name}", module.DEVICES, module.TTYS).serial == "AB12"
    assert describe("/dev/pts/99", module.DEVICES, module.TTYS).adapter == "unknown"


def test_ports_are_listed_without_anybody_being_asked(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--only", "ports", "--config", "/no/such/file"]) == 0
    told = capsys.readouterr().out
    assert "PASSED: 3 found, without a name that stays" in told and "bedside/by-id/FTDI_AB12-if00 -> ttyUSB0" in told


def test_a_gateway_without_ports_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TTYS", tmp_path)
    assert ports(tmp_path, tmp_path) == []
    assert main(["provision", "--only", "ports", "--config", "/no/such/file"]) == 0
