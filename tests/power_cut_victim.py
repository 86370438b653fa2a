"""The program whose power is cut: every durable file of the gateway, written by the production code, step by step.

Started with tests/power_cut_record.c preloaded. It notes in the log what it hands over, what it was told is durable,
what a forwarder has read, and what it damages on purpose. Usage: power_cut_victim.py FOLDER LEVEL, where LEVEL is
`full`; or, for the controls that must lose something, `normal` (SQLite syncs no commit), `folders` (no folder is
synced) or `key` (a key file is not synced).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from alarm_log_rig import event
from buffer_rig import FakeClock, alert, numeric

from edge_agent import buffer, config
from edge_agent.alarm_log import FILE, AlarmLog, reader
from edge_agent.alarm_log import store as log_store
from edge_agent.buffer import files, keys, rewrap, store, writer
from edge_agent.buffer.store import DAY_NS
from edge_agent.records import Entry, Gap, Waveform

DEADLINE_S = 60.0
QUOTA_MB = 1
WAVE_BYTES = 6_000
LOG_MB = 1
LONG_TEXT = 18_000  # so that a log of 1 MB is full after some sixty entries

_library = ctypes.CDLL(None)
_real_sync_folder = files.sync_folder


def note(**what: Any) -> None:
    """A word in the recorder's log, at this place of it."""
    text = json.dumps(what).encode()
    _library.power_cut_note(text, ctypes.c_size_t(len(text)))


class Victim:
    """One run of the agent after another over the same folder, with a forwarder beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, FakeClock()
        self.chance = random.Random(3)
        self.run = self.stamp = 0
        self.kek = b""
        self.places: dict[str, buffer.Position | None] = dict.fromkeys(buffer.STREAMS)
        self._changed = threading.Condition()

    # The agent

    def start(self, boot: bytes) -> None:
        self.run += 1
        self.clock.boot_id = boot * 16
        self.committed = 0
        note(boot=self.clock.boot_id.hex())
        self.buffer = buffer.Buffer(
            self.folder,
            self.kek,
            "gw-1",
            config.Buffer(commit_ms=2, quota_mb=QUOTA_MB),
            on_committed=self._on_committed,
            on_fault=self._on_fault,
            clock=self.clock,
        )
        self.log = AlarmLog(
            self.folder / FILE, self.kek, run_id=f"run-{self.run}", on_fault=self._on_fault, log_mb=LOG_MB,
            clock=self.clock,
        )  # fmt: skip
        assert self.buffer.wait_ready(DEADLINE_S)
        assert self.log.wait_ready(DEADLINE_S)
        assert self.log.flush(DEADLINE_S)
        self.reader = buffer.Reader(self.folder, self.kek)
        note(started=self.run)

    def stop(self) -> None:
        self.reader.close()
        self.buffer.close(DEADLINE_S)
        assert self.log.close(DEADLINE_S)
        note(stopped=self.run)

    def _on_committed(self, ticket: int) -> None:
        note(committed=[self.run, ticket])
        with self._changed:
            self.committed = ticket
            self._changed.notify_all()

    def _on_fault(self, kind: str, detail: str) -> None:
        note(fault=kind, over=not detail)

    def append(self, *entries: Entry) -> int:
        """Hands over without waiting."""
        stamps = [entry.record.at_ns for entry in entries]
        note(append=[self.run, self.buffer.stats()["issued"] + 1], stamps=stamps)
        return self.buffer.append(entries, wanted_soon=True)

    def wait(self, ticket: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.committed >= ticket, DEADLINE_S)
        self.forward()

    def forward(self) -> None:
        """Reads on like cloud-sync and notes which identity every record has."""
        for stream in buffer.STREAMS:
            while blocks := self.reader.read(stream, self.places[stream]):
                for block in blocks:
                    assert not block.damaged
                    gaps = [entry.record for entry in block.entries if isinstance(entry.record, Gap)]
                    note(
                        block=[stream, block.instance, block.number, block.first, block.priority],
                        stamps=[entry.record.at_ns for entry in block.entries],
                        gaps=[[gap.reason, gap.instance, gap.first, gap.last, gap.priority] for gap in gaps],
                    )
                self.places[stream] = blocks[-1].position

    def mark(self, stream: str) -> None:
        """Says that everything read so far is delivered."""
        place = self.places[stream]
        assert place is not None
        note(marking=[stream, place.block])
        buffer.Marks(self.folder).set(stream, place)
        note(marked=[stream, place.block])

    # What is written

    def next(self) -> int:
        self.stamp += 1
        return self.stamp

    def wave(self) -> Entry:
        samples = self.chance.randbytes(WAVE_BYTES)  # which no compression makes smaller
        return Entry("ICU-3", "hl7@mllp", "MRN-1", Waveform("pleth", 125.0, samples, 1.0, 0.0, self.next()))

    def round(self, number: int) -> None:
        """Some seconds of a ward: tickets that overlap, records of every class, alarms of both files."""
        last = 0
        for part in range(3):
            entries = [numeric(90.0 + part, at_ns=self.next()) for _ in range(2 + number % 3)]
            if part == number % 3:
                entries.append(alert(self.next()))
            if part == 1:
                entries.append(self.wave())
            last = self.append(*entries)
            if part == 0:
                self.wait(last)
        alarm = f"alarm-{number // 2}"
        ended = number % 2
        self.write_log(event(alarm, "end" if ended else "start", "Off" if ended else "On", at_ns=self.next()))
        self.wait(last)

    def write_log(self, record: Any) -> None:
        note(log=record.at_ns)
        ticket = self.log.append("ICU-3", "MRN-1", record)
        assert self.log.wait_durable(ticket, DEADLINE_S)
        note(logged=record.at_ns)

    def put(self, key: str, value: str) -> None:
        note(put=[key, value])
        ticket = self.log.put(key, value.encode())
        assert self.log.wait_durable(ticket, DEADLINE_S)
        note(stored=[key, value])

    def make_key(self, name: str) -> bytes:
        path = self.folder / name
        keys.create_key_file(path)
        kek = keys.load_kek(f"file:{path}")
        note(key=[name, kek.hex()])
        return kek

    def stop_hard(self, path: Path) -> None:
        """Stops, and puts a database and its write-ahead log back as they were before: nobody had closed them.

        The cuts between are left out, as these are no steps of the production code.
        """
        wal = files.beside(path, "-wal")
        held = {name: name.read_bytes() for name in (path, wal)}
        self.stop()
        assert held[wal], "the write-ahead log was meant to be needed"
        assert path.read_bytes() != held[path]
        note(aside=True)
        for name, content in held.items():
            name.write_bytes(content)
            files.sync_file(name)
        _real_sync_folder(path.parent)
        note(aside=False)

    def spoil(self, path: Path, table: str) -> None:
        """Flips sixteen bytes inside a new blob of a table, as a card that forgets would."""
        _real_sync_folder(path.parent)  # it happens later, when no old log can come back and heal it
        wal = files.beside(path, "-wal")
        whole, log = path.read_bytes(), wal.read_bytes() if wal.exists() else b""
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
            rows = connection.execute(f"SELECT number, blob FROM {table} ORDER BY number DESC").fetchall()
        number, wanted = next(
            (number, blob[-60:-20])
            for number, blob in rows[2:]
            if blob[-60:-20] in whole and blob[-60:-20] not in log  # which would heal it
        )
        at = whole.index(wanted)
        flipped = bytes(byte ^ 0xFF for byte in wanted[:16])
        spoilt = whole[:at] + flipped + whole[at + 16 :]
        around = spoilt[at : at + 40].hex()
        note(spoiling=[path.name, number], digest=hashlib.sha256(spoilt).hexdigest(), around=around)
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, flipped, at)
        os.fsync(descriptor)
        os.close(descriptor)
        note(spoilt=[path.name])


def main() -> None:
    folder, level = Path(sys.argv[1]), sys.argv[2]
    _weaken(level)
    writer._CHECKPOINT_PAGES = 120  # a checkpoint every few rounds instead of every few minutes
    victim = Victim(folder)
    victim.kek = victim.make_key("kek")
    victim.start(b"A")
    for number in range(10):
        victim.round(number)
        if number % 3 == 2:
            victim.put("beds", f"round {number}")
            victim.mark("data")
            victim.mark("alerts")
            victim.buffer.prune(DEADLINE_S)
    victim.clock.utc_step_ns += DAY_NS  # midnight: a new data key
    for number in range(10, 16):
        victim.round(number)
    victim.mark("data")
    victim.buffer.prune(DEADLINE_S)  # the key of the day before has nothing left
    victim.round(16)
    victim.stop()
    victim.make_key("second-kek")

    victim.start(b"C")  # the machine was started again: another key, and the quota fills because nobody forwards
    for number in range(18, 26):
        last = victim.append(*[victim.wave() for _ in range(24)], numeric(97.0, at_ns=victim.next()))
        victim.wait(last)
        victim.buffer.prune(DEADLINE_S)
        victim.put("quota", f"round {number}")
    victim.forward()
    assert victim.buffer.stats()["shed"], "the quota was meant to fill"
    victim.mark("alerts")
    victim.buffer.prune(DEADLINE_S)
    for _ in range(70):  # the alarm log fills and drops its oldest
        note(log=victim.next())
        text = victim.chance.randbytes(LONG_TEXT // 2).hex()
        victim.log.append("ICU-4", "", event("long", at_ns=victim.stamp, text=text))
        if victim.stamp % 10 == 0:
            assert victim.log.flush(DEADLINE_S)
            note(logged=victim.stamp)
    for number in range(26, 30):
        victim.round(number)
    data = files.database(folder, "data")
    victim.stop_hard(data)
    with reader.snapshot(folder / FILE, victim.kek) as found:
        assert found.head.after, "the alarm log was meant to fill"
        kept = next(entry.alarm.at_ns for entry, _ in found.entries() if entry.alarm is not None)
    note(kept_from=kept)

    victim.spoil(data, "blocks")
    other = buffer.Reader(folder, victim.kek)  # a forwarder that runs on: SQLite then leaves the write-ahead log there
    assert other.read("data", None, 1)
    victim.start(b"D")  # data.db is put aside and what can be read is saved
    other.close()
    note(mended=data.name)
    for number in range(30, 34):
        victim.round(number)
    victim.mark("data")
    victim.mark("alerts")
    victim.buffer.prune(DEADLINE_S)
    victim.stop()

    log = folder / FILE
    victim.spoil(log, "entries")
    victim.start(b"E")  # the alarm log is put aside and a new one begins
    note(mended=log.name)
    for number in range(34, 42):
        victim.round(number)
        victim.put("beds", f"round {number}")
    victim.mark("data")
    victim.mark("alerts")
    victim.buffer.prune(DEADLINE_S)
    victim.stop()

    new = victim.make_key("third-kek")
    note(rotating=new.hex())
    rewrap.rotate(folder, victim.kek, new)
    note(rotated=new.hex())
    victim.kek = new
    victim.start(b"F")
    for number in range(42, 45):
        victim.round(number)
    victim.mark("data")
    victim.stop()


def _weaken(level: str) -> None:
    """Takes away one of the things that make the files durable: the controls."""
    if level == "normal":
        configure, begin = store.Store._configure, log_store.Store.__init__

        def configured(self: store.Store) -> None:
            configure(self)
            self.connection.execute("PRAGMA synchronous = NORMAL")

        def begun(self: log_store.Store, *arguments: Any) -> None:
            begin(self, *arguments)
            self._connection.execute("PRAGMA synchronous = NORMAL")

        store.Store._configure = configured  # type: ignore[method-assign]
        log_store.Store.__init__ = begun  # type: ignore[method-assign]
    elif level == "folders":
        files.sync_folder = lambda folder: None  # type: ignore[assignment]
    elif level == "key":
        real = os.fsync
        keys.os = _NoSync(real)  # type: ignore[attr-defined]
    else:
        assert level == "full", level


class _NoSync:
    """The module `os` without its fsync."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def fsync(self, descriptor: int) -> None:
        """Says that it has synced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


if __name__ == "__main__":
    main()
