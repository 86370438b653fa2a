"""What the gateway says to the monitor: association, the answer to its MDS Create, polls, release and abort.

Source: Philips IntelliVue Data Export Interface Programming Guide, association control protocol (MDSEUserInfoStd,
PollProfileSupport and the presentation octets, which carry no choice) and protocol commands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from drivers.intellivue import replies
from drivers.intellivue.wire import ACCEPT, CONNECT, DATA

_SESSION = bytes.fromhex("0508 1301 0016 0102 8000 1402 0002")
_PRESENTATION = bytes.fromhex(
    "3180 a080 8001 0100 00a2 80a0 0300 0001 a480 3080 0201 0106 0452 0100 0130 8006"
    "0251 0100 0000 0030 8002 0102 060c 2a86 48ce 1402 0100 0000 0101 3080 060c 2a86"
    "48ce 1402 0100 0000 0201 0000 0000 0000 6180 3080 0201 01a0 8060 80a1 8006 0c2a"
    "8648 ce14 0201 0000 0003 0100 00be 8028 8006 0c2a 8648 ce14 0201 0000 0001 0101"
    "0201 0281"
)
_TRAILER = bytes(16)
# Nothing in these varies.
RELEASE = bytes.fromhex("0918 c116 6180 3080 0201 01a0 8062 8080 0100 0000 0000 0000 0000")
RELEASED = bytes.fromhex("0a18 c116 6180 3080 0201 01a0 8063 8080 0100 0000 0000 0000 0000")
ABORT = bytes.fromhex(
    "192e 1101 03c1 29a0 80a0 8030 8002 0101 0602 5101 0000 0000 6180 3080 0201 01a0"
    "8064 8080 0101 0000 0000 0000 0000 0000"
)

_PROTOCOL_1, _NOMENCLATURE_1, _CLIENT, _COLD_START = 0x80000000, 0x40000000, 0x80000000, 0x20000000
_PROFILE, _EXTENDED_PROFILE, _OBJECT_SUPPORT = 0x0001, 0xF001, 0x0102
_DYNAMIC_OBJECTS = 0x60000000
_SECOND_NUMERICS, _WAVES = 0x80000000, 0x08000000
_PERIOD = 8000  # eighths of a millisecond: a second; the association then ends after 10 s without a request
_MTU = 1364  # octets, the most that is negotiated on the network
_ACTIVE_PERIOD, _WAVE_PRIORITIES = 0xF13E, 0xF23A
_LABELS = 2 << 16  # a wave's label is its code in the partition of the metrics
# (class, how many the gateway copes with) of what is polled
_SUPPORTED = ((replies.MDS, 1), (replies.NUMERIC, 201), (replies.WAVE, 60), (replies.PATIENT, 1), (replies.ALERTS, 1))


def _attribute(name: int, value: bytes) -> bytes:
    return struct.pack(">HH", name, len(value)) + value


def _list(parts: Sequence[bytes]) -> bytes:
    inner = b"".join(parts)
    return struct.pack(">HH", len(parts), len(inner)) + inner


def _long(length: int) -> bytes:
    """A length of session or presentation: an octet, or FF and two."""
    return bytes((length,)) if length < 0xFF else b"\xff" + length.to_bytes(2, "big")


def association(waves: bool) -> bytes:
    """The association request; `waves`: the monitor is told that waves will be asked for."""
    options = _SECOND_NUMERICS | (_WAVES if waves else 0)
    extension = _attribute(_EXTENDED_PROFILE, struct.pack(">I", options) + _list(()))
    profile = struct.pack(">6I", 0x80000000, _PERIOD, _MTU, _MTU, 0xFFFFFFFF, _DYNAMIC_OBJECTS) + _list((extension,))
    support = _list([struct.pack(">HHI", 1, each, count) for each, count in _SUPPORTED])
    user = struct.pack(">5I", _PROTOCOL_1, _NOMENCLATURE_1, 0, _CLIENT, _COLD_START) + _list(())
    user += _list((_attribute(_PROFILE, profile), _attribute(_OBJECT_SUPPORT, support)))
    size = bytes((len(user),)) if len(user) < 0x80 else b"\x82" + len(user).to_bytes(2, "big")
    shown = _PRESENTATION + size + user + _TRAILER
    body = _SESSION + b"\xc1" + _long(len(shown)) + shown
    return bytes((CONNECT,)) + _long(len(body)) + body


def _message(operation: int, invoke: int, command: int, body: bytes) -> bytes:
    call = struct.pack(">HHH", invoke, command, len(body)) + body
    return DATA + struct.pack(">HH", operation, len(call)) + call


def created(event: replies.Event) -> bytes:
    """The answer to an MDS Create, which the monitor awaits before it answers a poll."""
    body = struct.pack(">HHHIHH", *event.object, event.relative, replies.MDS_CREATE, 0)
    return _message(replies.RESULT, event.invoke, replies.CONFIRMED_EVENT, body)


def _action(invoke: int, action: int, body: bytes) -> bytes:
    head = struct.pack(">HHHIHH", replies.MDS, 0, 0, 0, action, len(body))
    return _message(replies.INVOKE, invoke, replies.CONFIRMED_ACTION, head + body)


def poll(invoke: int, number: int, polled: int, group: int) -> bytes:
    """A request for one result: `polled` is the class, `group` the attributes, 0 for all."""
    return _action(invoke, replies.POLL, struct.pack(">4H", number, 1, polled, group))


def extended_poll(invoke: int, number: int, polled: int, group: int, active_s: int) -> bytes:
    """A request for results over the next `active_s` seconds, in the monitor's own rhythm."""
    period = _attribute(_ACTIVE_PERIOD, struct.pack(">I", active_s * 8000))
    return _action(invoke, replies.EXTENDED_POLL, struct.pack(">4H", number, 1, polled, group) + _list((period,)))


def set_waves(invoke: int, codes: Sequence[int]) -> bytes:
    """A request to send these waves and no others; the monitor passes over those it has not."""
    labels = _list([struct.pack(">I", _LABELS | code) for code in codes])
    change = _list((struct.pack(">H", 0) + _attribute(_WAVE_PRIORITIES, labels),))  # 0: replace
    body = struct.pack(">HHHI", replies.MDS, 0, 0, 0) + change
    return _message(replies.INVOKE, invoke, replies.CONFIRMED_SET, body)


__all__ = [
    "ABORT",
    "ACCEPT",
    "RELEASE",
    "RELEASED",
    "association",
    "created",
    "extended_poll",
    "poll",
    "set_waves",
]
