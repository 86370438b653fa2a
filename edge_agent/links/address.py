"""Link URLs: which there are, what they may say, and what is wrong with one that cannot be used.

serial:///dev/ttyUSB0?baud=9600&parity=N&bits=8&stop=1&rtscts=0     kind serial
rfc2217://host:port?baud=9600   socket://host:port                  kind serial (terminal servers)
tcp://host:port   tcp-listen://host:port?max=64                     kind tcp
mllp://host:port  mllp-listen://host:port?max=64                    kind mllp (port 2575 when left out)
udp://host:port?max=64&reply=24105   udp-dial://host:port           kind udp
ble://AA:BB:CC:DD:EE:FF   ble://name/HRM-SIM?adapter=hci0&pair=0    kind ble
ble://name/HRM-SIM?hci=tcp-client:127.0.0.1:9001                    kind ble, over an HCI socket, for the demo
file:///path/capture.cap?speed=1                                    kind file (speed N times or max)
sim://                                                              kind none
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from edge_agent.links.contract import LinkError

MLLP_PORT = 2575  # assigned to HL7 by IANA
Value = str | int | float | bool

_BLE_ADDRESS = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_HCI = re.compile(r"tcp-client:[^\s:]+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """A link URL taken apart and checked."""

    url: str
    scheme: str
    kind: str  # serial, tcp, mllp, udp, ble, file, none
    host: str = ""
    port: int = 0
    path: str = ""  # device file, capture file, or BLE device name
    options: dict[str, Value] = field(default_factory=dict)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _stop_bits(text: str) -> float:
    if text not in ("1", "1.5", "2"):
        raise ValueError("one of 1, 1.5, 2")
    return float(text)


def _speed(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.01 <= speed <= 1000:
        raise ValueError("max or a number from 0.01 to 1000")
    return speed


def _hci(text: str) -> str:
    if not _HCI.fullmatch(text):
        raise ValueError("tcp-client:HOST:PORT")
    return text


_LINE: dict[str, Callable[[str], Value]] = {
    "baud": _whole(50, 4_000_000),
    "parity": _one_of("N", "E", "O", "M", "S"),
    "bits": _whole(5, 8),
    "stop": _stop_bits,
    "rtscts": _switch,
    "xonxoff": _switch,
}
_PEERS: dict[str, Callable[[str], Value]] = {"max": _whole(1, 4096)}
_SENDERS: dict[str, Callable[[str], Value]] = {**_PEERS, "reply": _whole(1, 65535)}
_BLE: dict[str, Callable[[str], Value]] = {
    "adapter": lambda text: text,
    "hci": _hci,
    "pair": _switch,
}
_SCHEMES: dict[str, tuple[str, dict[str, Callable[[str], Value]]]] = {
    "serial": ("serial", _LINE),
    "rfc2217": ("serial", _LINE),
    "socket": ("serial", {}),
    "tcp": ("tcp", {}),
    "tcp-listen": ("tcp", _PEERS),
    "mllp": ("mllp", {}),
    "mllp-listen": ("mllp", _PEERS),
    "udp": ("udp", _SENDERS),
    "udp-dial": ("udp", {}),
    "ble": ("ble", _BLE),
    "file": ("file", {"speed": _speed}),
    "sim": ("none", {}),
}
_LISTENS = ("tcp-listen", "mllp-listen", "udp")


def parse(url: str) -> Address:
    """The parts of a link URL. Raises: LinkError saying what is wrong and what to write."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise LinkError(f"{url!r} is not a link", f"begin it with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise LinkError(f"{url!r} is not a link: {error}", "put an IPv6 address in brackets, as in [::1]") from error
    if "@" in parts.netloc or parts.fragment:
        raise LinkError(f"{url!r} has parts that a link cannot have", "leave out user names and anything behind #")
    kind, allowed = _SCHEMES[scheme]
    options = _options(parts.query, allowed, scheme)
    path = unquote(parts.path)
    if scheme in ("serial", "file"):
        if parts.netloc or len(path) < 2:
            raise LinkError(
                f"{url!r} names no path", f"write three slashes and an absolute path, as in {scheme}:///path"
            )
        return Address(url, scheme, kind, path=path, options=options)
    if scheme == "ble":
        return _ble(url, unquote(parts.netloc), path, options)
    if scheme == "sim":
        return Address(url, scheme, kind, path=parts.netloc + path)
    if path not in ("", "/"):
        raise LinkError(f"{url!r} has a path, {path!r}", f"write {scheme}://host:port")
    host, port = _host_port(url, scheme)
    return Address(url, scheme, kind, host, port, options=options)


def _options(query: str, allowed: dict[str, Callable[[str], Value]], scheme: str) -> dict[str, Value]:
    options: dict[str, Value] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in allowed:
            known = f"{scheme}:// knows {', '.join(allowed)}" if allowed else f"{scheme}:// takes none"
            raise LinkError(f"unknown key {key!r} behind the question mark", known)
        if key in options:
            raise LinkError(f"key {key!r} stands twice", "leave one out")
        try:
            options[key] = allowed[key](text)
        except ValueError as error:
            raise LinkError(f"{key}={text} is not possible", f"{key} is {error}") from error
    return options


def _host_port(url: str, scheme: str) -> tuple[str, int]:
    parts = urlsplit(url)
    default = MLLP_PORT if scheme.startswith("mllp") else None
    try:
        port = parts.port if parts.port is not None else default
    except ValueError as error:
        raise LinkError(f"the port in {url!r} is not a number from 1 to 65535", "correct it") from error
    if not parts.hostname:
        remedy = "write 0.0.0.0 to listen on every address" if scheme in _LISTENS else f"write {scheme}://host:port"
        raise LinkError(f"{url!r} names no host", remedy)
    if port is None or (port == 0 and scheme not in _LISTENS):  # 0 lets the system choose, for tests
        raise LinkError(f"{url!r} names no port", f"write {scheme}://{parts.hostname}:PORT")
    return parts.hostname, port


def _ble(url: str, host: str, path: str, options: dict[str, Value]) -> Address:
    remedy = "write ble://AA:BB:CC:DD:EE:FF or ble://name/NAME"
    if "hci" in options and "adapter" in options:
        raise LinkError("adapter and hci exclude each other", "leave one out")
    if _BLE_ADDRESS.fullmatch(host) and path in ("", "/"):
        return Address(url, "ble", "ble", host=host.upper(), options=options)
    name = path[1:] if host == "name" else host
    if not name or ":" in host or (host != "name" and path not in ("", "/")):
        raise LinkError(f"{url!r} names no Bluetooth device", remedy)
    return Address(url, "ble", "ble", path=name, options=options)
