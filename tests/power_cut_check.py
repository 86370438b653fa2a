"""Opens what a power cut has left with the production code, and compares it with what had been promised by then.

Usage: power_cut_check.py LOG BELOW PLAN SHARD SHARDS FOLDER; prints what was found as JSON. `plan` chooses the states.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import power_cut_replay
from alarm_log_rig import event
from buffer_rig import FakeClock, alert, numeric

from edge_agent import buffer, config
from edge_agent.alarm_log import FILE, AlarmLog, chain, reader
from edge_agent.buffer import admin, files, keys, marks, rewrap
from edge_agent.buffer.store import DAY_NS
from edge_agent.records import Gap

PATIENCE_S = 30.0
AFTER_CUT = 10**9  # stamps of records that are written after the cut; the victim's are small
_EXAMPLES = 5
_THROWS = 10  # of the dice, around a change of names: few lines, and much hangs on their order


@dataclass(slots=True)
class Spoilt:
    """A file that the victim damages on purpose."""

    number: int  # of the block or entry that it hits
    digest: str  # of the whole file afterwards
    around: bytes  # what stands there afterwards
    logged: int  # stamp of the newest alarm log entry before
    durable: bool = False
    mended: bool = False


@dataclass(slots=True)
class Place:
    """Where a forwarder has read a record."""

    stream: str
    instance: str
    number: int
    sequence: int
    priority: int


@dataclass(slots=True)
class Promises:
    """What the production code had said up to a place of the log."""

    committed: set[int] = field(default_factory=set)  # stamps of records
    waiting: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # by run and ticket
    read: dict[tuple[str, str], int] = field(default_factory=dict)  # by stream and instance: the highest sequence seen
    gaps: list[tuple[int, list[Any]]] = field(default_factory=list)  # block in the alerts stream, what it tells
    marking: dict[str, int] = field(default_factory=dict)
    marked: dict[str, int] = field(default_factory=dict)
    logging: list[int] = field(default_factory=list)
    logged: int = 0
    putting: dict[str, list[str]] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    spoilt: dict[str, Spoilt] = field(default_factory=dict)
    boot: bytes = b"Z" * 16
    kek: bytes = b""  # the key-encryption key that is configured
    rotating: bytes = b""  # and the one that is to take its place

    def hear(self, word: dict[str, Any]) -> None:
        """Takes in one note of the victim."""
        match word:
            case {"boot": boot}:
                self.boot = bytes.fromhex(boot)
            case {"append": [run, ticket], "stamps": stamps}:
                self.waiting[run, ticket] = stamps
            case {"committed": [run, upto]}:
                for key in [key for key in self.waiting if key[0] == run and key[1] <= upto]:
                    self.committed.update(self.waiting.pop(key))
            case {"block": [stream, instance, number, first, _], "stamps": stamps, "gaps": gaps}:
                self.read[stream, instance] = first + len(stamps) - 1
                self.gaps += [(number, gap) for gap in gaps]
            case {"marking": [stream, number]}:
                self.marking[stream] = number
            case {"marked": [stream, number]}:
                self.marked[stream] = number
            case {"log": stamp}:
                self.logging.append(stamp)
            case {"logged": stamp}:
                self.logged = stamp
            case {"put": [key, value]}:
                self.putting.setdefault(key, []).append(value)
            case {"stored": [key, value]}:
                self.stored[key] = value
            case {"key": [name, content]}:
                self.keys[name] = content
                self.kek = self.kek or bytes.fromhex(content)
            case {"spoiling": [name, number], "digest": digest, "around": around}:
                self.spoilt[name] = Spoilt(number, digest, bytes.fromhex(around), self.logging[-1])
                if name == FILE:  # its settings lie in quarantine with it
                    self.stored.clear()
            case {"rotating": kek}:
                self.rotating = bytes.fromhex(kek)
            case {"rotated": kek}:
                self.kek = bytes.fromhex(kek)
            case {"spoilt": [name]}:
                self.spoilt[name].durable = True
            case {"mended": name}:
                self.spoilt[name].mended = True


@dataclass(slots=True)
class Course:
    """What only the whole log tells."""

    lines: list[power_cut_replay.Line]
    places: dict[int, Place]  # by stamp
    kept_from: int  # the oldest entry that retention has left in the alarm log

    @classmethod
    def of(cls, log: Path) -> Course:
        """Reads a log."""
        lines = power_cut_replay.read_log(log)
        places: dict[int, Place] = {}
        kept_from = 0
        for line in lines:
            if line.op != "N":
                continue
            match json.loads(line.data):
                case {"block": [stream, instance, number, first, priority], "stamps": stamps, "gaps": []}:
                    for sequence, stamp in enumerate(stamps, first):
                        places.setdefault(stamp, Place(stream, instance, number, sequence, priority))
                case {"kept_from": stamp}:
                    kept_from = stamp
        return cls(lines, places, kept_from)


def plan(log: Path, below: str, drawn: int, seed: int) -> list[tuple[int, str, int]]:
    """Different states, each as the line after which the power goes, the model, and which throw of its dice.

    Every change of names is met just before and just after, with several throws; `drawn` other places come by lot.
    """
    lines = power_cut_replay.read_log(log)
    changes = [index for index, line in enumerate(lines) if line.op != "N"]
    named = {index for index in changes if lines[index].op in "CKRUL"}
    chosen = set(random.Random(seed).sample(changes, min(drawn, len(changes))))
    chosen |= named | {index - 1 for index in named if index}
    chosen -= set(_aside(lines))
    disk, seen, promised = power_cut_replay.Disk(below), set(), 0
    out: list[tuple[int, str, int]] = []
    for index, line in enumerate(lines):
        disk.apply(line)
        promised += line.op == "N"
        if index not in chosen:
            continue
        throws = range(_THROWS if named & {index, index + 1} else 1)
        for model, throw in itertools.product(power_cut_replay.MODELS, throws):
            state = (promised, disk.choice(model, chance(seed, index, model, throw)))
            if state not in seen:
                seen.add(state)
                out.append((index, model, throw))
    return out


def _aside(lines: Sequence[power_cut_replay.Line]) -> Iterator[int]:
    """The lines at which the victim does what no production code does."""
    aside = False
    for index, line in enumerate(lines):
        if line.op == "N" and b'"aside"' in line.data:
            aside = json.loads(line.data)["aside"]
        elif aside:
            yield index


def chance(seed: int, index: int, model: str, throw: int) -> random.Random:
    """The dice of one state."""
    return random.Random(f"{seed} {index} {model} {throw}")


class Check:
    """One state after the cut; `wrong` says what does not hold, by kind.

    With `same_boot` the clock names the boot before the cut: no new instance then begins, and no identity may come
    twice all the same.
    """

    def __init__(self, folder: Path, course: Course, promises: Promises, *, same_boot: bool) -> None:
        self.folder, self.course, self.promises = folder, course, promises
        self.wrong: dict[str, list[str]] = {}
        self.lost: list[int] = []
        self._kek, self._again = b"", not same_boot
        self._clock = FakeClock()
        self._clock.utc_step_ns = 3 * DAY_NS
        self._clock.boot_id = promises.boot if same_boot else b"Z" * 16

    def run(self) -> None:
        """Checks everything."""
        self._keys()
        self._marks()
        self._kek = self._rotation()
        self._buffer()
        self._log()
        self._quarantine()

    def _say(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, []).append(what)

    def _keys(self) -> None:
        """A key file that was reported is there, and one that is there is whole."""
        there = {path.name for path in self.folder.iterdir() if path.name.endswith("kek") and path.name[0] != "."}
        for name in there | set(self.promises.keys):
            try:
                kek = keys.load_kek(f"file:{self.folder / name}")
            except keys.KeyProblem as problem:
                self._say("key", str(problem).partition("\n")[0])
                continue
            if kek.hex() != self.promises.keys.get(name, kek.hex()):
                self._say("key", f"{name} holds another key")

    def _marks(self) -> None:
        """A mark is the last one that was reported, or one that was being set."""
        for stream in buffer.STREAMS:
            try:
                found = marks.read_mark(marks.mark_path(self.folder, stream))
            except marks.BadMark as error:
                self._say("mark", str(error))
                continue
            number = -1 if found is None else found.block
            if not self.promises.marked.get(stream, -1) <= number <= self.promises.marking.get(stream, -1):
                self._say("mark", f"{stream}: {number}, reported {self.promises.marked.get(stream)}")

    def _rotation(self) -> bytes:
        """The key to start with: an interrupted rotation is run again, or finished by an agent that has the new key."""
        old, new = self.promises.kek or bytes(range(32)), self.promises.rotating
        if not new or old == new:
            return old
        if self._again:
            rewrap.rotate(self.folder, old, new)
            return new
        begun = rewrap.read_note(self.folder) is not None or rewrap.under(self.folder, keys.fingerprint(new))
        return new if begun else old

    def _expected_fault(self, kind: str) -> bool:
        name = {"buffer corrupt": "data.db", "log corrupt": FILE}.get(kind, "")
        spoilt = self.promises.spoilt.get(name)
        return spoilt is not None and not spoilt.mended

    def _on_fault(self, kind: str, detail: str) -> None:
        if detail and not self._expected_fault(kind):
            self._say("fault", f"{kind}: {detail}")

    # The buffer

    def _buffer(self) -> None:
        settings = config.Buffer(commit_ms=1, quota_mb=64, max_age_h=10**6)
        done = threading.Event()
        held = buffer.Buffer(
            self.folder, self._kek, "gw-1", settings, clock=self._clock, on_fault=self._on_fault,
            on_committed=lambda ticket: done.set() if ticket >= 1 else None,
        )  # fmt: skip
        held.append([numeric(1.0, at_ns=AFTER_CUT), alert(AFTER_CUT + 1)], wanted_soon=True)
        if not held.wait_ready(PATIENCE_S) or not done.wait(PATIENCE_S):
            self._say("start", "the buffer takes no record")
        held.close(PATIENCE_S)
        report = admin.verify(self.folder, self._kek)
        if not report["ok"]:
            self._say("tag", json.dumps(report["streams"]))
        self._compare(list(self._blocks()))

    def _blocks(self) -> Iterator[buffer.Block]:
        reading = buffer.Reader(self.folder, self._kek)
        for stream in buffer.STREAMS:
            place: buffer.Position | None = None
            while blocks := reading.read(stream, place):
                yield from blocks
                place = blocks[-1].position
        if reading.fault:
            self._say("start", reading.fault)
        reading.close()

    def _compare(self, blocks: Sequence[buffer.Block]) -> None:
        found: dict[int, tuple[str, str, int]] = {}
        told = [gap for number, gap in self.promises.gaps if number <= self.promises.marking.get("alerts", -1)]
        for block in blocks:
            for sequence, entry in enumerate(block.entries, block.first):
                record = entry.record
                if isinstance(record, Gap):
                    told.append([record.reason, record.instance, record.first, record.last, record.priority])
                    continue
                if record.at_ns in found:
                    self._say("twice", f"{block.stream} {record.at_ns}")
                found[record.at_ns] = (block.stream, block.instance, sequence)
                after = record.at_ns >= AFTER_CUT
                if after and sequence <= self.promises.read.get((block.stream, block.instance), 0):
                    self._say("identity", f"{block.stream} {sequence} was given before")
        if not {AFTER_CUT, AFTER_CUT + 1} <= found.keys():
            self._say("start", "a record after the cut is not there")
        for stamp in self.promises.committed:
            place = self.course.places[stamp]
            if stamp in found:
                if found[stamp] != (place.stream, place.instance, place.sequence):
                    self._say("identity", f"{stamp} is {found[stamp]}, was {place}")
            elif place.number > self.promises.marking.get(place.stream, -1) and not self._excused(place, told):
                self.lost.append(stamp)
        if self.lost:
            self._say("lost", f"{len(self.lost)} records from {min(self.lost)}")

    def _excused(self, place: Place, told: Sequence[list[Any]]) -> bool:
        """Whether the loss of a record is told: shed for the quota, or destroyed on purpose."""
        spoilt = self.promises.spoilt.get(f"{place.stream}.db")
        hit = spoilt is not None and spoilt.number == place.number
        for reason, instance, first, last, priority in told:
            allowed = (reason == "quota" and priority == place.priority) or (reason == "quarantine" and hit)
            if allowed and instance == place.instance and first <= place.sequence <= last:
                return True
        return False

    # The alarm log

    def _log(self) -> None:
        path = self.folder / FILE
        log = AlarmLog(
            path, self._kek, run_id="after", on_fault=self._on_fault, log_mb=64, clock=self._clock
        )  # fmt: skip
        log.append("ICU-3", "", event("after the cut", at_ns=AFTER_CUT))
        if not log.wait_ready(PATIENCE_S) or not log.flush(PATIENCE_S):
            self._say("start", "the alarm log takes no entry")
        active = {item.event.alert_id: item.event for item in log.active()}
        settings = {key: value.decode() for key, value in log.settings().items()}
        log.close(PATIENCE_S)
        try:
            with reader.snapshot(path, self._kek) as snapshot:
                entries = [entry for entry, _ in snapshot.entries()]
                dropped = snapshot.head.after
        except (chain.Broken, reader.Unreadable) as error:
            self._say("chain", str(error))
            return
        self._compare_log([entry.alarm for entry in entries if entry.alarm is not None], dropped, active)
        for key, value in self.promises.stored.items():
            later = self.promises.putting[key][self.promises.putting[key].index(value) :]
            if settings.get(key) not in later:
                self._say("lost", f"setting {key} is {settings.get(key)}, stored was {value}")

    def _compare_log(self, alarms: Sequence[Any], dropped: int, active: dict[str, Any]) -> None:
        stamps = [alarm.at_ns for alarm in alarms]
        if stamps != sorted(set(stamps)) or stamps[-1] != AFTER_CUT:
            self._say("twice", "the alarm log is not in order")
        there, spoilt = set(stamps), self.promises.spoilt.get(FILE)
        for stamp in self.promises.logging:
            if stamp > self.promises.logged:
                break
            retired = dropped and stamp < min(stamps[0], self.course.kept_from)
            aside = spoilt is not None and stamp <= spoilt.logged  # it is in quarantine, see there
            if stamp not in there and not retired and not aside:
                self._say("lost", f"alarm log entry {stamp}")
        last = {alarm.alert_id: alarm for alarm in alarms[:-1]}
        on = {name: alarm for name, alarm in last.items() if alarm.state != "Off"}
        if on != {name: alarm for name, alarm in active.items() if name in last}:
            self._say("active", f"{sorted(on)} and {sorted(active)}")

    def _quarantine(self) -> None:
        """What was damaged on purpose is kept: the alarm log as it was, data.db with its log, perhaps written back."""
        for name, spoilt in self.promises.spoilt.items():
            root = (self.folder if name == FILE else files.database(self.folder, "data").parent) / "quarantine"
            kept = [path.read_bytes() for path in root.glob(f"*/{name}")]
            same = any(hashlib.sha256(content).hexdigest() == spoilt.digest for content in kept)
            if spoilt.durable and not same and (name == FILE or not any(spoilt.around in each for each in kept)):
                self._say("quarantine", f"{name} is not kept; there are {len(kept)}")


def main(arguments: Sequence[str]) -> None:
    log, below, plan_path, shard, shards, folder = arguments
    seed, states = json.loads(Path(plan_path).read_text())
    mine: dict[int, list[tuple[str, int]]] = {}
    for index, model, throw in states[int(shard) :: int(shards)]:
        mine.setdefault(index, []).append((model, throw))
    course = Course.of(Path(log))
    disk, promises = power_cut_replay.Disk(below), Promises()
    counts: dict[str, Counter[str]] = {model: Counter() for model in power_cut_replay.MODELS}
    examples: list[str] = []
    for index, line in enumerate(course.lines):
        disk.apply(line)
        if line.op == "N":
            promises.hear(json.loads(line.data))
        for model, throw in mine.get(index, ()):
            target = Path(folder)
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            disk.materialise(target, model, chance(seed, index, model, throw))
            check = Check(target, course, promises, same_boot=index % 2 == 0)
            check.run()
            counts[model]["states"] += 1
            counts[model]["records"] += len(check.lost)
            counts[model].update(dict.fromkeys(check.wrong, 1))
            if check.wrong and len(examples) < _EXAMPLES:
                examples.append(f"line {index} ({line.op} {line.path}), {model}: {json.dumps(check.wrong)[:1500]}")
    shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"counts": counts, "examples": examples}))


if __name__ == "__main__":
    main(sys.argv[1:])
