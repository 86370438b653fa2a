"""What the monitor's data messages say, taken apart strictly: every count and every length must fit, to the last octet.

A message is a remote operation: an invocation (the MDS Create event, the connect indication), a result, a linked result
(one of several that answer one request), or an error. A result of a poll holds a list of contexts, each a list of
objects, each a list of attributes. Nothing of a message is used before all of it has been found to fit: a length that
is wrong by one would make other octets the number.

Source: Philips IntelliVue Data Export Interface Programming Guide, protocol commands: ROapdus, EventReportArgument,
ActionResult, PollMdibDataReply, PollMdibDataReplyExt, AttributeList.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

INVOKE, RESULT, ERROR, LINKED = 1, 2, 3, 5
EVENT, CONFIRMED_EVENT, GET, CONFIRMED_SET, CONFIRMED_ACTION = 0, 1, 3, 5, 7
POLL, EXTENDED_POLL = 0x0C16, 0xF13B
MDS_CREATE, CONNECT_INDICATION = 0x0D06, 0x0D17
NUMERIC, WAVE, PATIENT, ALERTS, MDS = 0x0006, 0x0009, 0x002A, 0x0036, 0x0021
_OBJECTS = 1  # partition of the object classes

Attributes = dict[int, bytes]

_HEAD = struct.Struct(">HH")
_OBJECT = struct.Struct(">HHH")
_EVENT = struct.Struct(">HHHIHH")
_CALL = struct.Struct(">HHH")
_LINKED = struct.Struct(">BBHHH")
_ACTION = struct.Struct(">HHHHH")
_REPLY = struct.Struct(">HI8sHHH")
_REPLY_EXTENDED = struct.Struct(">HHI8sHHH")


class Malformed(ValueError):
    """A message whose counts and lengths do not fit; the text says which."""


class Event(NamedTuple):
    """An event that the monitor reports."""

    kind: int
    invoke: int
    confirmed: bool
    object: tuple[int, int, int]  # class, context, handle
    relative: int  # time of the event, in eighths of a millisecond
    attributes: Attributes


class Poll(NamedTuple):
    """One result of a poll."""

    number: int
    sequence: int | None  # of an extended poll
    link: int  # state and count of a linked result, 0 for the last or only one
    relative: int  # in eighths of a millisecond
    absolute: bytes
    polled: int  # class
    objects: list[tuple[int, int, Attributes]]  # context, handle, attributes


class Failure(NamedTuple):
    """A request that the monitor could not serve."""

    invoke: int
    error: int


class Other(NamedTuple):
    """A result that needs no more than having come."""

    invoke: int


def _exactly(left: int, stated: int, what: str) -> None:
    if left != stated:
        raise Malformed(f"{what}: length {stated} of {left}")


def attributes(data: bytes, at: int, end: int) -> tuple[Attributes, int]:
    """The attribute list at `at`, and where it ends. Raises: Malformed."""
    if end - at < 4:
        raise Malformed("attributes: cut")
    count, length = _HEAD.unpack_from(data, at)
    at += 4
    stop = at + length
    if stop > end:
        raise Malformed("attributes: longer than the message")
    out: Attributes = {}
    for _ in range(count):
        if stop - at < 4:
            raise Malformed("attributes: fewer than counted")
        name, size = _HEAD.unpack_from(data, at)
        at += 4
        if size > stop - at:
            raise Malformed("attribute: longer than its list")
        value = data[at : at + size]
        out[name] = value if out.get(name, value) == value else b""  # two that differ are none
        at += size
    _exactly(stop - at, 0, "attributes")
    return out, stop


def parse(message: bytes) -> Event | Poll | Failure | Other:
    """What a data message, or a connect indication, says. Raises: Malformed."""
    try:
        operation, length = _HEAD.unpack_from(message, 4)
        _exactly(len(message) - 8, length, "message")
        if operation == INVOKE:
            return _event(message)
        if operation == ERROR:
            invoke, error, length = _CALL.unpack_from(message, 8)
            _exactly(len(message) - 14, length, "error")
            return Failure(invoke, error)
        if operation == RESULT:
            invoke, command, length = _CALL.unpack_from(message, 8)
            at, link = 14, 0
        elif operation == LINKED:
            state, count, invoke, command, length = _LINKED.unpack_from(message, 8)
            at, link = 16, state << 8 | count
        else:
            raise Malformed("operation unknown")
        _exactly(len(message) - at, length, "result")
        return _poll(message, at, link) if command == CONFIRMED_ACTION else Other(invoke)
    except struct.error:
        raise Malformed("message: cut") from None


def _event(message: bytes) -> Event:
    invoke, command, length = _CALL.unpack_from(message, 8)
    _exactly(len(message) - 14, length, "invocation")
    if command not in (EVENT, CONFIRMED_EVENT):
        raise Malformed("a request, not an answer")
    kind, context, handle, relative, event, length = _EVENT.unpack_from(message, 14)
    at = 14 + _EVENT.size
    _exactly(len(message) - at, length, "event")
    if event == MDS_CREATE:
        _OBJECT.unpack_from(message, at)
        at += _OBJECT.size
    elif event != CONNECT_INDICATION:
        raise Malformed("event unknown")
    try:
        found, at = attributes(message, at, len(message))
        _exactly(len(message), at, "event")
    except Malformed:  # what it tells besides can be asked for later; unanswered, the monitor would give up
        found = {}
    return Event(event, invoke, command == CONFIRMED_EVENT, (kind, context, handle), relative, found)


def _poll(message: bytes, at: int, link: int) -> Poll:
    *_, action, length = _ACTION.unpack_from(message, at)
    at += _ACTION.size
    _exactly(len(message) - at, length, "action")
    sequence: int | None = None
    if action == EXTENDED_POLL:
        number, sequence, relative, absolute, partition, polled, _ = _REPLY_EXTENDED.unpack_from(message, at)
        at += _REPLY_EXTENDED.size
    elif action == POLL:
        number, relative, absolute, partition, polled, _ = _REPLY.unpack_from(message, at)
        at += _REPLY.size
    else:
        raise Malformed("action unknown")
    if partition != _OBJECTS:
        raise Malformed("poll: class of another partition")
    contexts, length = _HEAD.unpack_from(message, at)
    at += 4
    _exactly(len(message) - at, length, "poll")
    objects: list[tuple[int, int, Attributes]] = []
    for _ in range(contexts):
        context, count, length = _CALL.unpack_from(message, at)
        at += 6
        stop = at + length
        if stop > len(message):
            raise Malformed("context: longer than the message")
        for _ in range(count):
            if stop - at < 2:
                raise Malformed("context: fewer objects than counted")
            handle = int.from_bytes(message[at : at + 2], "big")
            found, at = attributes(message, at + 2, stop)
            objects.append((context, handle, found))
        _exactly(stop, at, "context")
    _exactly(len(message), at, "poll")
    return Poll(number, sequence, link, relative, absolute, polled, objects)


def entries(data: bytes, what: str) -> tuple[int, bytes]:
    """Count and content of a list that is a whole attribute. Raises: Malformed."""
    if len(data) < 4:
        raise Malformed(f"{what}: cut")
    count, length = _HEAD.unpack_from(data)
    _exactly(len(data) - 4, length, what)
    return count, data[4:]
