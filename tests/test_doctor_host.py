"""What the doctor says of clock, card, heat, power and hardware watchdog, on a machine made up below a folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from running_agent import Bedside

from edge_agent.commands import doctor_host
from edge_agent.commands.doctor_host import check_clock, check_disk, check_hardware_watchdog, check_heat_and_power
from edge_agent.commands.finding import Finding
from edge_agent.config import Loaded, load


class Board:
    """Files of /sys, /proc and /run below a folder."""

    def __init__(self, root: Path, loaded: Loaded) -> None:
        self.root, self.loaded = root, loaded
        root.mkdir()

    def put(self, name: str, text: str = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if text else "")
        return path


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "root", load(Bedside(tmp_path).write()))


def wrong(found: Iterator[Finding]) -> list[Finding]:
    told = list(found)
    assert told and all(each.remedy for each in told if each.state != "ok")
    return [each for each in told if each.state != "ok"]


def only(found: Iterator[Finding]) -> Finding:
    (one,) = wrong(found)
    return one


# -- clock --------------------------------------------------------------------------------------------------------


def test_a_clock_that_nobody_keeps(board: Board) -> None:
    found = only(check_clock(board.loaded, board.root))
    assert found.state == "warn" and "no time service" in found.detail and "timedatectl" in found.remedy
    board.put("run/systemd/timesync/synchronized")
    assert not wrong(check_clock(board.loaded, board.root))


def test_a_clock_that_was_never_set(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_host, "time", SimpleNamespace(time=lambda: 86_400.0 * 365))
    found = only(check_clock(board.loaded, board.root))
    assert found.state == "FAIL" and "not set" in found.detail and found.remedy == "timedatectl set-ntp true"


def test_a_real_time_clock_is_told(board: Board) -> None:
    assert any("no real-time clock" in each.detail for each in check_clock(board.loaded, board.root))
    board.put("sys/class/rtc/rtc0/name", "rtc-ds1307 1-0068")
    assert any("rtc0 keeps time" in each.detail and "ds1307" in each.detail
               for each in check_clock(board.loaded, board.root))  # fmt: skip


# -- disk and card ------------------------------------------------------------------------------------------------


def test_a_data_folder_without_a_place(board: Board, tmp_path: Path) -> None:
    text = board.loaded.path.read_text().replace(str(tmp_path / "data"), "/no/such/place/data")
    board.loaded.path.write_text(text)
    found = only(check_disk(load(board.loaded.path), board.root))
    assert found.state == "FAIL" and found.remedy == "mkdir -p /no/such/place/data"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_card_that_has_become_read_only(board: Board, tmp_path: Path) -> None:
    """A real mount, without room and without inodes, then read-only as ext4 makes itself after errors."""
    data = tmp_path / "data"
    data.mkdir()
    options = "size=64k,nr_inodes=20"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(data)], check=True)
    try:
        for number in range(19):
            (data / f"x{number}").touch()
        told = wrong(check_disk(board.loaded, board.root))
        assert any("MB free" in each.detail and "quota_mb" in each.remedy for each in told)
        assert any("inodes are left" in each.detail and "du --inodes" in each.remedy for each in told)
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        found = next(each for each in wrong(check_disk(board.loaded, board.root)) if each.state == "FAIL")
        assert "read-only" in found.detail and "dmesg" in found.remedy
    finally:
        subprocess.run(["umount", str(data)], check=True)


def test_a_folder_that_the_agent_may_not_write(board: Board, tmp_path: Path) -> None:
    board.put("etc/systemd/system/edge-agent.service")
    board.put("etc/passwd", "edge-agent:x:4711:4711::/:")
    board.put("etc/group", "edge-agent:x:4711:")
    (tmp_path / "data").mkdir(mode=0o755)
    found = only(check_disk(board.loaded, board.root))
    assert found.state == "FAIL" and "not writable for edge-agent" in found.detail and "chown" in found.remedy
    (tmp_path / "data").chmod(0o777)
    assert not wrong(check_disk(board.loaded, board.root))


def test_errors_that_the_file_system_has_counted(board: Board, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    device = (tmp_path / "data").stat().st_dev
    board.put("sys/devices/mmcblk0p2/uevent")
    link = board.root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(board.root / "sys/devices/mmcblk0p2")
    board.put("sys/fs/ext4/mmcblk0p2/errors_count", "0")
    assert not wrong(check_disk(board.loaded, board.root))
    board.put("sys/fs/ext4/mmcblk0p2/errors_count", "7")
    found = only(check_disk(board.loaded, board.root))
    assert found.state == "FAIL" and "7 errors" in found.detail and "replace the card" in found.remedy


@pytest.mark.parametrize(
    ("files", "state", "words"),
    [
        ({"life_time": "0x01 0x02", "pre_eol_info": "0x01"}, "ok", "at most 20 %"),
        ({"life_time": "0x09 0x01", "pre_eol_info": "0x01"}, "warn", "80 to 90 %"),
        ({"life_time": "0x0b 0x0b", "pre_eol_info": "0x01"}, "warn", "90 to 100 %"),
        ({"life_time": "0x04 0x04", "pre_eol_info": "0x02"}, "warn", "spare blocks"),
        ({"life_time": "0x04 0x04", "pre_eol_info": "0x03"}, "FAIL", "spare blocks"),
        ({"type": "SD", "name": "SC32G", "date": "06/2024"}, "ok", "SD SC32G 06/2024) tells nothing of its wear"),
    ],
)
def test_what_a_card_says_of_its_wear(
    board: Board, tmp_path: Path, files: dict[str, str], state: str, words: str
) -> None:
    (tmp_path / "data").mkdir()
    for name, text in files.items():
        board.put(f"sys/block/mmcblk0/device/{name}", text)
    (found,) = [each for each in check_disk(board.loaded, board.root) if each.part == "card"]
    assert found.state == state and words in found.detail and (state == "ok" or "make a new card" in found.remedy)


# -- heat, power, watchdog ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("milli", "state"), [("61000", "ok"), ("76000", "warn"), ("85500", "FAIL")])
def test_heat(board: Board, milli: str, state: str) -> None:
    board.put("sys/class/thermal/thermal_zone0/temp", milli)
    board.put("sys/class/thermal/thermal_zone1/temp", "40000")
    (found,) = check_heat_and_power(board.loaded, board.root)
    assert found.state == state and f"{int(milli) / 1000:.0f} degrees" in found.detail


@pytest.mark.parametrize(
    ("bits", "states", "words"),
    [
        ("0", ["ok"], "no throttling"), ("50005", ["FAIL", "warn"], "too little voltage"), ("4", ["warn"], "throttled"),
        ("50000", ["warn", "warn"], "since the start"), ("8", ["warn"], "heat limit"),
    ],
)  # fmt: skip
def test_what_a_pi_says_of_its_supply(board: Board, bits: str, states: list[str], words: str) -> None:
    board.put("sys/devices/platform/soc/soc:firmware/get_throttled", bits)
    found = list(check_heat_and_power(board.loaded, board.root))
    assert [each.state for each in found] == states and words in found[0].detail
    assert all("power supply" in each.remedy for each in found if each.state != "ok")


def test_a_low_voltage_that_only_the_sensor_tells(board: Board) -> None:
    board.put("sys/class/hwmon/hwmon1/name", "rpi_volt")
    board.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0")
    assert not wrong(check_heat_and_power(board.loaded, board.root))
    board.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    assert "too little voltage" in only(check_heat_and_power(board.loaded, board.root)).detail


def test_a_hardware_watchdog_that_nobody_feeds(board: Board) -> None:
    assert not wrong(check_hardware_watchdog(board.loaded, board.root))
    board.put("sys/class/watchdog/watchdog0/identity", "Broadcom BCM2835 Watchdog timer")
    board.put("sys/class/watchdog/watchdog0/state", "inactive")
    found = only(check_hardware_watchdog(board.loaded, board.root))
    assert found.state == "warn" and "BCM2835" in found.detail and "RuntimeWatchdogSec=15" in found.remedy
    board.put("sys/class/watchdog/watchdog0/state", "active")
    assert not wrong(check_hardware_watchdog(board.loaded, board.root))
