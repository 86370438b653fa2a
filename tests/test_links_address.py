"""Link URLs: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_agent.links import LinkError, link_kind, open_link
from edge_agent.links.address import parse
from edge_agent.links.backoff import CAP_S, FIRST_S, Backoff


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("serial:///dev/ttyUSB0?baud=9600&parity=N&bits=8&stop=1&rtscts=0", "serial"),
        ("rfc2217://terminal.ward:7001?baud=19200", "serial"),
        ("socket://10.0.0.9:4001", "serial"),
        ("tcp://10.0.0.9:5000", "tcp"),
        ("tcp-listen://0.0.0.0:5000?max=8", "tcp"),
        ("mllp://monitor:6661", "mllp"),
        ("mllp-listen://0.0.0.0", "mllp"),
        ("udp://0.0.0.0:24105", "udp"),
        ("ble://AA:BB:CC:DD:EE:FF?adapter=hci1", "ble"),
        ("ble://name/HRM-SIM?hci=tcp-client:127.0.0.1:9001", "ble"),
        ("file:///var/lib/a.cap?speed=max", "file"),
        ("sim://", "none"),
    ],
)
def test_kinds(url: str, kind: str) -> None:
    assert link_kind(url) == kind


def test_parts() -> None:
    assert parse("mllp-listen://0.0.0.0").port == 2575
    assert (parse("tcp-listen://[::1]:0").host, parse("tcp-listen://[::1]:0").port) == ("::1", 0)
    assert parse("serial:///dev/ttyS0?baud=115200&stop=1.5&rtscts=1").options == {
        "baud": 115200,
        "stop": 1.5,
        "rtscts": True,
    }
    assert parse("ble://aa:bb:cc:dd:ee:0f").host == "AA:BB:CC:DD:EE:0F"
    assert parse("ble://name/Polar%20H10%201234").path == "Polar H10 1234"
    assert parse("ble://HRM-SIM").path == "HRM-SIM"
    assert parse("file:///a%20b.cap?speed=0.5").path == "/a b.cap"


@pytest.mark.parametrize(
    ("url", "reason", "remedy"),
    [
        ("", "not a link", "serial://"),
        ("/dev/ttyUSB0", "not a link", "serial://"),
        ("http://x:80", "not a link", "tcp-listen://"),
        ("tcp://[::1:5000", "not a link", "brackets"),
        ("serial://dev/ttyUSB0", "names no path", "serial:///path"),
        ("serial:///", "names no path", "serial:///path"),
        ("serial:///dev/ttyUSB0?baudrate=9600", "unknown key 'baudrate'", "baud"),
        ("serial:///dev/ttyUSB0?baud=fast", "baud=fast", "whole number from 50"),
        ("serial:///dev/ttyUSB0?baud=²", "baud=", "whole number from 50"),
        ("serial:///dev/ttyUSB0?baud=9600&baud=19200", "stands twice", "one out"),
        ("serial:///dev/ttyUSB0?parity=none", "parity=none", "one of N"),
        ("serial:///dev/ttyUSB0?bits=9", "bits=9", "5 to 8"),
        ("serial:///dev/ttyUSB0?stop=3", "stop=3", "1.5"),
        ("serial:///dev/ttyUSB0?rtscts=yes", "rtscts=yes", "0 or 1"),
        ("socket://host:1?baud=9600", "unknown key 'baud'", "none"),
        ("tcp://host", "names no port", "tcp://host:PORT"),
        ("tcp://host:0", "names no port", "PORT"),
        ("tcp://host:70000", "not a number", "correct"),
        ("tcp://host:80/path", "has a path", "tcp://host:port"),
        ("tcp://user@host:80", "cannot have", "user names"),
        ("tcp-listen://:5000", "names no host", "0.0.0.0"),
        ("tcp-listen://0.0.0.0:5000?max=0", "max=0", "1 to 4096"),
        ("ble://", "no Bluetooth device", "AA:BB"),
        ("ble://AA:BB:CC:DD:EE", "no Bluetooth device", "AA:BB"),
        ("ble://name/", "no Bluetooth device", "name/NAME"),
        ("ble://name/X?hci=usb:0", "hci=usb:0", "tcp-client"),
        ("ble://name/X?hci=tcp-client:h:1&adapter=hci0", "exclude", "leave one out"),
        ("file:///a.cap?speed=0", "speed=0", "max or a number"),
        ("file:///a.cap?speed=nan", "speed=nan", "max or a number"),
    ],
)
def test_a_bad_url_says_what_is_wrong_and_what_to_write(url: str, reason: str, remedy: str) -> None:
    with pytest.raises(LinkError) as caught:
        link_kind(url)
    assert reason in caught.value.reason and remedy in caught.value.remedy
    with pytest.raises(LinkError):
        open_link(url, silence_s=1)


def test_packages_are_loaded_only_by_the_links_that_need_them() -> None:
    code = (
        "import sys; from edge_agent.links import open_link\n"
        "for url in ('tcp://h:1', 'udp://0.0.0.0:1', 'file:///a', 'sim://'): open_link(url, silence_s=1)\n"
        "assert not {'serial', 'bleak', 'bumble'} & set(sys.modules), sorted(sys.modules)\n"
        "open_link('serial:///dev/x', silence_s=1); open_link('ble://X', silence_s=1)\n"
        "assert {'serial', 'bleak'} <= set(sys.modules) and 'bumble' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['bumble'] = None\n"
        "from edge_agent.links import LinkError, open_link\n"
        "try: open_link('ble://X?hci=tcp-client:h:1', silence_s=1)\n"
        "except LinkError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "bumble" in done.stdout and "bedside-edge[demo]" in done.stdout


def test_back_off_doubles_is_capped_spread_and_starts_again() -> None:
    high = Backoff(uniform=lambda _low, high: high)
    assert [high.next() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    high.reset()
    assert high.next() == 0.5
    low = Backoff(uniform=lambda low, _high: low)
    assert [low.next() for _ in range(8)] == [0.5, 0.5, 1, 2, 4, 8, 15, 15]
    waits = Backoff()
    spread = [waits.next() for _ in range(200)]
    assert all(FIRST_S <= wait <= CAP_S for wait in spread) and len(set(spread[20:])) > 100
