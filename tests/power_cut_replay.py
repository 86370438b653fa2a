"""What a disk may hold after a power cut, out of the log that tests/power_cut_record.c has written.

A file's content and a folder's names are each a durable state and the changes that no sync has covered yet. A sync of a
file covers its content and size; only a sync of the folder covers what was created, linked, renamed or unlinked in it.
At any place of the log `materialise` lays down what a model says has survived:

    kept      everything that was issued
    dropped   nothing but what was synced
    names     every name, and of the contents only what was synced: names that have overtaken the data
    torn      every name; the contents end inside an unsynced write, or hold any of its sectors of 512 bytes
    random    any of the unsynced writes and names, each by itself
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MODELS = ("kept", "dropped", "names", "torn", "random")
SECTOR = 512
_HEAD = struct.Struct("<cQQIII")


class Line(NamedTuple):
    """One line of the log."""

    op: str
    inode: int
    number: int
    path: str
    second: str
    data: bytes


class Change(NamedTuple):
    """Content that is not durable yet: bytes at a place, or, with `data` None, a new length."""

    serial: int
    at: int
    data: bytes | None


class Naming(NamedTuple):
    """Names that are not durable yet: what goes and what comes, both or neither."""

    serial: int
    gone: str
    come: str
    node: Node | None


@dataclass(eq=False, slots=True)
class Node:
    """A file or a folder."""

    folder: bool
    mode: int
    serial: int
    content: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    names: dict[str, Node] = field(default_factory=dict)
    namings: list[Naming] = field(default_factory=list)
    now: dict[str, Node] = field(default_factory=dict)  # names as the running program sees them
    synced: int = 0  # serial of the last sync


def read_log(path: Path) -> list[Line]:
    """Every line of a log."""
    data, place, lines = path.read_bytes(), 0, []
    while place < len(data):
        op, inode, number, first, second, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        texts = data[place : place + first].decode(), data[place + first : place + first + second].decode()
        place += first + second
        lines.append(Line(op.decode(), inode, number, *texts, data[place : place + length]))
        place += length
    return lines


class Disk:
    """The disk below one folder while the log is gone through."""

    def __init__(self, below: str) -> None:
        self._below = below
        self._root = Node(True, 0o700, 0)
        self._nodes: dict[int, Node] = {}
        self._serial = 0

    def apply(self, line: Line) -> None:
        """Goes one line further."""
        self._serial += 1
        if line.op in "CK":
            node = Node(line.op == "K", line.number, self._serial)
            self._nodes[line.inode] = node
            self._name("", line.path, node)
        elif line.op in "WT":
            self._node(line).changes.append(Change(self._serial, line.number, line.data if line.op == "W" else None))
        elif line.op == "S":
            self._sync(self._node(line))
        elif line.op == "U":
            self._name(line.path, "", None)
        elif line.op == "R":
            self._name(line.path, line.second, self._at(line.path))
        elif line.op == "L":
            self._name("", line.second, self._at(line.path))
        elif line.op == "M":
            self._node(line).mode = line.number  # not followed: what recovery needs of it is set at creation
        elif line.op != "N":
            raise NotImplementedError(f"{line.path}: {line.data!r} is not described by the log")

    def _node(self, line: Line) -> Node:
        return self._root if line.path == self._below else self._nodes[line.inode]

    def _at(self, path: str) -> Node:
        node = self._root
        for part in Path(path).relative_to(self._below).parts:
            node = node.now[part]
        return node

    def _name(self, gone: str, come: str, node: Node | None) -> None:
        folders = {os.path.dirname(path) for path in (gone, come) if path}
        if len(folders) != 1:
            raise NotImplementedError(f"{gone} goes to another folder")
        folder = self._at(folders.pop())
        naming = Naming(self._serial, os.path.basename(gone), os.path.basename(come), node)
        folder.namings.append(naming)
        _rename(folder.now, naming)

    def _sync(self, node: Node) -> None:
        if node.folder:
            for naming in node.namings:
                _rename(node.names, naming)
            node.namings.clear()
        else:
            for change in node.changes:
                _alter(node.content, change.at, change.data)
            node.changes.clear()
        node.synced = self._serial

    # What has survived

    def materialise(self, folder: Path, model: str, chance: random.Random) -> None:
        """Lays down, in an empty folder, one state that the model allows at this place of the log."""
        for path, node, content in self.state(model, chance):
            target = folder / path
            if isinstance(content, Path):
                os.link(folder / content, target)
            elif node.folder:
                target.mkdir(mode=0o700)
            else:
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, node.mode)
                if content:
                    os.write(descriptor, content)
                os.close(descriptor)

    def state(self, model: str, chance: random.Random) -> Iterator[tuple[Path, Node, bytes | bytearray | Path]]:
        """Path, node and content of everything that has survived, folders first; a second name gives the first one."""
        laid: dict[int, Path] = {}
        share = chance.choice((0.25, 0.5, 0.75, 0.9))
        waiting = [(Path(), self._root)]
        while waiting:
            path, folder = waiting.pop()
            names = dict(folder.names)
            for naming in folder.namings:
                if model in ("kept", "names", "torn") or (model == "random" and chance.random() < share):
                    _rename(names, naming)
            for name, node in sorted(names.items()):
                if id(node) in laid:
                    yield path / name, node, laid[id(node)]
                    continue
                laid[id(node)] = path / name
                if node.folder:
                    waiting.append((path / name, node))
                    yield path / name, node, b""
                else:
                    yield path / name, node, _content(node, model, chance, share)

    def choice(self, model: str, chance: random.Random) -> tuple[object, ...]:
        """What tells the state that `state` would give with the same chance from others, without its bytes."""
        found = []
        for path, node, content in self.state(model, chance):
            where = content if isinstance(content, Path) else hash(bytes(content)) if node.changes else 0
            found.append((str(path), node.serial, node.synced, where))
        return tuple(found)


def _rename(names: dict[str, Node], naming: Naming) -> None:
    if naming.gone:
        names.pop(naming.gone, None)
    if naming.come and naming.node is not None:
        names[naming.come] = naming.node


def _alter(content: bytearray, at: int, data: bytes | None) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))  # a hole reads as zeros
    if data is None:
        del content[at:]
    else:
        content[at : at + len(data)] = data


def _content(node: Node, model: str, chance: random.Random, share: float) -> bytearray:
    changes = node.changes
    if not changes or model in ("dropped", "names"):
        return node.content
    content = node.content[:]
    if model == "torn" and chance.random() < 0.5:  # the writes end in the middle of one
        last = chance.randrange(len(changes))
        for change in changes[:last]:
            _alter(content, change.at, change.data)
        sectors = list(_sectors(changes[last]))
        for at, data in sectors[: chance.randrange(len(sectors) + 1)]:
            _alter(content, at, data)
        return content
    for change in changes:
        if model == "torn" and change.data:  # sectors that came in any order
            for at, data in _sectors(change):
                if chance.random() < share:
                    _alter(content, at, data)
        elif model == "kept" or chance.random() < share:
            _alter(content, change.at, change.data)
    return content


def _sectors(change: Change) -> Iterator[tuple[int, bytes | None]]:
    """The change in pieces that a disk writes whole or not at all."""
    _, at, data = change
    if data is None:
        yield at, None
        return
    start = 0
    while start < len(data):
        end = start + SECTOR - (at + start) % SECTOR
        yield at + start, data[start:end]
        start = end
