"""A simulated day of eight beds through the real alarm path on a virtual clock: its alarm log, and how long it takes.

Values once a second, four turns of the clock a second, 86,400 seconds, no real time; the path is the one that the agent
builds from a configuration (association, watch, alarms, limits). Over the day come what the script and a seeded chance
bring: desaturations, tachycardia, slow breathing, dips, sensors off, cables pulled, silent devices, alarms of the
monitor, patients who come and go, acknowledgements, pauses, a changed limit, a restart of the agent. Every alarm event
is one line of JSON. `python -m bench.day OUT.jsonl [HOURS]` writes the log; tests/test_golden_day.py holds it against
tests/golden/day.jsonl.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge_agent.alarms.inactivation import BEGINS, ENDS
from edge_agent.config import load
from edge_agent.parts import Parts, build_pipeline
from edge_agent.pipeline import GATEWAY, Feed
from edge_agent.presets import PRIORITIES
from edge_agent.records import (
    AlarmEvent,
    DeviceAlarm,
    Entry,
    Inactivation,
    Item,
    Observation,
    PatientEvent,
    Priority,
    Signal,
    shape,
)

NS = 1_000_000_000
DAY_S = 86_400
START_NS = 1000 * NS  # of the virtual monotonic clock: a machine that has just booted
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "day.jsonl"
RESTART_S = 6000  # the agent is started anew, within the two hours that the tests always run

CONFIG = (
    """\
[gateway]
id = "golden-day"
data_dir = "data"
[alarms]
reminder_s = 600
audio_off = true
"""
    + "".join(
        f'[[bed]]\nid = "ICU-{bed}"\npreset = "{"paediatric" if bed == 6 else "adult"}"\n'
        + (f'location = "ICU^^{bed}"\n' if bed <= 4 else "")
        for bed in range(1, 9)
    )
    + "".join(
        f'[[source]]\nname = "{name}"\ndriver = "{driver}"\nlink = "{link}"\n' + (f'bed = "ICU-{bed}"\n' if bed else "")
        for name, driver, link, bed in (
            ("central", "hl7", "mllp-listen://127.0.0.1:2575", 0),
            ("monitor-5", "hl7", "mllp-listen://127.0.0.1:2576", 5),
            ("monitor-6", "hl7", "mllp-listen://127.0.0.1:2577", 6),
            ("oximeter-7", "nonin", "serial:///dev/ttyUSB7", 7),
            ("oximeter-8", "nonin", "serial:///dev/ttyUSB8", 8),
        )
    )
)
SOURCES = {bed: "central" if bed <= 4 else f"monitor-{bed}" if bed <= 6 else f"oximeter-{bed}" for bed in range(1, 9)}
MONITOR_TERMS, OXIMETER_TERMS = ("heart_rate", "pulse_rate", "spo2", "resp_rate"), ("pulse_rate", "spo2")
_NIBP_S, _TEMP_S = 300, 60
_TABLE = 4096  # seconds of wandering that are drawn for each vital; a power of two, so that a mask picks one
_CENTRES = {"heart_rate": (62.0, 96.0), "pulse_rate": (62.0, 96.0), "spo2": (95.0, 98.0), "resp_rate": (12.0, 20.0)}
_OFFSET_NS = 120_000_000  # between the messages of two beds, so that they fall between different turns


FRACTION = math.inf  # in place of a change: the saturation is sent as a fraction, which is implausible


class Overlay:
    """A change that lies over a vital of one bed for a time; `by` None: the device has no value."""

    __slots__ = ("begin_s", "by", "end_s", "terms")

    def __init__(self, begin_s: int, seconds: int, terms: tuple[str, ...], by: float | None) -> None:
        self.begin_s, self.end_s, self.terms, self.by = begin_s, begin_s + seconds, terms, by

    def apply(self, values: dict[str, float | None], second: int) -> None:
        """Lay the change over the values of a second; it takes five seconds to grow."""
        for term in self.terms:
            value = values.get(term)
            if value is None or self.by is None:
                values[term] = None
            elif self.by == FRACTION:
                values[term] = value / 100
            else:
                moved = value + round(self.by * min(1.0, (second - self.begin_s + 1) / 5))
                values[term] = min(max(moved, 0.0), 100.0) if term == "spo2" else max(moved, 0.0)


class Vitals:
    """Values of one bed: a drawn walk around set points, with overlays."""

    def __init__(self, bed: int) -> None:
        chance = random.Random(7000 + bed)
        self.terms = MONITOR_TERMS if bed <= 6 else OXIMETER_TERMS
        self._walks: dict[str, tuple[float, ...]] = {}
        for term in self.terms:
            low, high = _CENTRES[term]
            if bed == 6 and term in ("heart_rate", "pulse_rate"):
                low, high = 95.0, 125.0  # a child
            centre = low + (high - low) * chance.random()
            away, walk = 0.0, []
            for _ in range(_TABLE):
                away = 0.97 * away + 0.5 * (chance.random() - 0.5)
                walk.append(float(round(min(centre + away, 100.0 if term == "spo2" else 300.0))))
            self._walks[term] = tuple(walk)
        self._monitor = bed <= 6
        self._sys, self._dia = (98.0, 58.0) if bed == 6 else (118.0, 72.0)
        self.overlays: list[Overlay] = []  # in the order of their begins
        self._running: list[Overlay] = []
        self._next = 0

    def at(self, second: int) -> dict[str, float | None]:
        """The values of a second by term."""
        index = second & (_TABLE - 1)
        values: dict[str, float | None] = {term: walk[index] for term, walk in self._walks.items()}
        if self._monitor:
            if second % _NIBP_S == 30:
                values["nibp_sys"], values["nibp_dia"] = self._sys + index % 9, self._dia + index % 5
            if second % _TEMP_S == 10:
                values["temp"] = 36.6 + index % 7 / 10
        overlays = self.overlays
        while self._next < len(overlays) and overlays[self._next].begin_s <= second:
            self._running.append(overlays[self._next])
            self._next += 1
        if self._running:
            self._running = [each for each in self._running if second < each.end_s]
            for each in self._running:
                each.apply(values, second)
        return values


class Day:
    """The whole: beds, script and path; `run` gives the lines of the alarm log."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._numbers = 0
        self._limits = b""  # as the agent keeps them for its next start
        self._inactivations: list[tuple[str, AlarmEvent]] = []
        self._lines: list[str] = []
        self.records = 0
        self.vitals = {bed: Vitals(bed) for bed in range(1, 9)}
        self.patients = {bed: f"P{bed}01" for bed in range(1, 9)}
        self.quiet: set[str] = set()  # sources that send nothing
        self.script: list[tuple[int, int, Callable[[int], None]]] = []  # second, order, what happens
        self._write_script()
        for each in self.vitals.values():
            each.overlays.sort(key=lambda overlay: overlay.begin_s)
        self.script.sort(key=lambda step: step[:2])
        self._compose()

    # -- the path ---------------------------------------------------------------------------------------------

    def _compose(self) -> None:
        self.pipeline = build_pipeline(
            self._parts,
            self._append,
            _unheard,
            self._new_id,
            keep_limits=lambda limits: setattr(self, "_limits", limits),
        )
        self.feeds: dict[str, Feed] = {}
        for index, source in enumerate(self._parts.loaded.config.source):
            driver = self._parts.drivers[index]
            self.feeds[source.name] = Feed(
                name=source.name, driver=driver, make=self._parts.maker(index), send=lambda _data, _channel: True,
                bed=source.bed, silence_s=driver.silence_s, link=source.link,
            )  # fmt: skip

    def _new_id(self) -> str:
        self._numbers += 1
        return f"alert-{self._numbers}"

    def _append(self, entries: Sequence[Entry], *, wanted_soon: bool = False) -> int:  # noqa: ARG002
        self.records += len(entries)
        for entry in entries:
            record = entry.record
            if isinstance(record, AlarmEvent):
                if record.event in BEGINS or record.event in ENDS:
                    self._inactivations.append((entry.bed, record))
                at_s = (record.at_ns - START_NS) / NS
                line = {"at_s": at_s, "bed": entry.bed, "patient": entry.patient, **shape(record)}
                self._lines.append(json.dumps(line, sort_keys=True, separators=(",", ":")))
        return 0

    def run(self, hours: float = 24.0) -> Iterator[str]:
        """Lines of the log, in order, of the first hours of the day."""
        steps, turn = iter(self.script), NS // 4
        step = next(steps, None)
        for feed in self.feeds.values():
            feed.last_item_ns = START_NS
        for second in range(round(hours * 3600)):
            now = START_NS + second * NS
            while step is not None and step[0] <= second:
                step[2](now)
                step = next(steps, None)
            pipeline, feeds = self.pipeline, self.feeds
            turns = 0
            for bed, vitals in self.vitals.items():
                at_ns = now + (bed - 1) * _OFFSET_NS
                while now + turns * turn <= at_ns:
                    pipeline.tick(feeds, now + turns * turn)
                    turns += 1
                values = vitals.at(second)
                feed = feeds[SOURCES[bed]]
                if feed.name not in self.quiet:
                    pipeline.handle(feed, self._items(bed, values, at_ns), at_ns)
            while turns < 4:
                pipeline.tick(feeds, now + turns * turn)
                turns += 1
            if self._lines:
                yield from self._lines
                self._lines = []

    def _items(self, bed: int, values: dict[str, float | None], at_ns: int) -> list[Item]:
        location = f"ICU^^{bed}" if bed <= 4 else ""
        subject = self.patients[bed] if bed <= 6 else ""
        return [
            Observation(term, value, "valid" if value is not None else "not_available", at_ns, None, location, subject)
            for term, value in values.items()
        ]

    # -- what happens -----------------------------------------------------------------------------------------

    def _at(self, second: int, act: Callable[[int], None]) -> None:
        self.script.append((second, len(self.script), act))

    def _over(self, bed: int, second: int, seconds: int, terms: str, by: float | None) -> None:
        self.vitals[bed].overlays.append(Overlay(second, seconds, tuple(terms.split()), by))

    def _pull_cable(self, source: str, second: int, seconds: int) -> None:
        def lost(now: int) -> None:
            feed = self.feeds[source]
            self.quiet.add(source)
            feed.link_state, feed.link_since_ns = "lost", now
            self.pipeline.source_state(feed, "lost", now, "the line has gone")

        def back(now: int) -> None:
            feed = self.feeds[source]
            self.quiet.discard(source)
            feed.link_state, feed.link_since_ns, feed.last_item_ns = "connected", now, now
            feed.state, feed.detail = "starting", ""

        self._at(second, lost)
        self._at(second + seconds, back)

    def _silence(self, source: str, second: int, seconds: int) -> None:
        self._at(second, lambda _now: self.quiet.add(source))
        self._at(second + seconds, lambda _now: self.quiet.discard(source))

    def _device_alarm(self, bed: int, second: int, seconds: int, text: str, priority: Priority, number: int) -> None:
        self._alarm_at(bed, second, priority, "start", text, number)
        self._alarm_at(bed, second + seconds, priority, "end", text, number)

    def _alarm_at(self, bed: int, second: int, priority: Priority, phase: str, text: str, number: int) -> None:
        location = f"ICU^^{bed}" if bed <= 4 else ""

        def sent(now: int) -> None:
            alarm = DeviceAlarm(
                priority, phase, text, now, event="MDC_EVT_ECG_V_TACHY", type="SP", alert_id=f"d{number}",
                location=location,
            )  # fmt: skip
            self._send(bed, [alarm], now)

        self._at(second, sent)

    def _send(self, bed: int, items: list[Item], now: int) -> None:
        self.pipeline.handle(self.feeds[SOURCES[bed]], items, now)

    def _adt(self, bed: int, second: int, event: str, patient: str) -> None:
        def said(now: int) -> None:
            self.patients[bed] = patient
            self._send(bed, [PatientEvent(event, patient, f"ICU^^{bed}", now)], now)

        self._at(second, said)

    def _acknowledge(self, bed: int, second: int) -> None:
        self._at(
            second,
            lambda now: self._ask(lambda: self.pipeline.alarms.acknowledge(f"ICU-{bed}", None, "nurse", now), now),
        )

    def _inactivate(self, bed: int, second: int, state: Inactivation, seconds: int | None) -> None:
        self._at(
            second,
            lambda now: self._ask(
                lambda: self.pipeline.alarms.inactivate(f"ICU-{bed}", state, seconds, "nurse", now),
                now,
            ),
        )

    def _resume(self, bed: int, second: int) -> None:
        self._at(second, lambda now: self._ask(lambda: self.pipeline.alarms.resume(f"ICU-{bed}", "nurse", now), now))

    def _reset(self, bed: int, second: int) -> None:
        self._at(second, lambda now: self._ask(lambda: self.pipeline.alarms.reset(f"ICU-{bed}", "nurse", now), now))

    def _admit(self, bed: int, second: int, patient: str) -> None:
        def admitted(now: int) -> None:
            self.patients[bed] = patient
            self.pipeline.admit(f"ICU-{bed}", patient, now)

        self._at(second, admitted)

    def _mismatch(self, bed: int, second: int, seconds: int) -> None:
        """An operator admits somebody; the monitor goes on naming the last patient for a time."""
        patient = f"P{bed}02"
        self._at(second, lambda now: self.pipeline.admit(f"ICU-{bed}", patient, now))
        self._at(second + seconds, lambda _now: self.patients.update({bed: patient}))

    def _escalate(self, bed: int, second: int) -> None:
        """An alarm of the monitor that becomes more urgent after it was acknowledged, and less again."""
        phases: tuple[tuple[str, Priority], ...] = (
            ("start", "low"), ("escalate", "high"), ("deescalate", "low"), ("end", "low")
        )  # fmt: skip
        for step, (phase, priority) in enumerate(phases):
            self._alarm_at(bed, second + 20 * step, priority, phase, "Run of PVCs", 3)
        self._acknowledge(bed, second + 10)

    def _fault(self, condition: str, second: int, seconds: int) -> None:
        """A fault that another part of the agent reports for the whole gateway."""

        def told(now: int, present: bool) -> None:
            self.pipeline.apply(self.pipeline.watch.technical(GATEWAY, condition, present, now, "no space left"))

        self._at(second, lambda now: told(now, True))
        self._at(second + seconds, lambda now: told(now, False))

    def _limit(self, bed: int, second: int, condition: str, present: str, delay_s: float) -> None:
        def changed(now: int) -> None:
            limits = self.pipeline.limits
            assert limits is not None
            self.pipeline.apply(limits.set_limit(f"ICU-{bed}", condition, present, delay_s, "biomed", now))
            self.pipeline.flush(now)

        self._at(second, changed)

    def _ask(self, act: Callable[[], object], now: int) -> None:
        act()
        self.pipeline.flush(now)

    def _restart(self, now: int) -> None:
        """The agent is killed and comes back with what it had written down."""
        before = self.pipeline
        self._compose()
        self.pipeline.beds.restore(before.beds.associations())
        limits = self.pipeline.limits
        if self._limits and limits is not None:
            limits.restore(self._limits, now)
        active = [(bed, event, event.at_ns) for bed, event in before.alarms.active()]
        for bed, event, _ in active:
            self.pipeline.watch.restore(bed, event, now)
        self.pipeline.alarms.restore(active, self._inactivations, now)
        for feed in self.feeds.values():
            feed.last_item_ns = now
        self.pipeline.flush(now)

    def _write_script(self) -> None:
        """Two hours in which everything happens once, then a day of chance."""
        self._over(1, 300, 120, "spo2", -12.0)  # under 90: medium
        self._acknowledge(1, 360)
        self._over(1, 900, 90, "spo2", -22.0)  # under 80: high, latching
        self._acknowledge(1, 1020)
        self._over(2, 600, 60, "heart_rate pulse_rate", 70.0)
        self._inactivate(2, 620, "audio_paused", 120)
        self._over(2, 700, 40, "spo2", -25.0)  # breaks through the pause
        self._resume(2, 715)
        self._reset(2, 800)
        self._over(3, 1200, 25, "resp_rate", -30.0)  # apnoea
        self._reset(3, 1300)
        self._over(3, 1500, 200, "spo2 pulse_rate", None)  # sensor off
        self._over(4, 1800, 12, "spo2", -10.0)  # shorter than the delay: nothing
        self._device_alarm(4, 2000, 20, "VT", "high", 1)
        self._device_alarm(5, 2100, 45, "Pair PVCs", "low", 2)
        self._acknowledge(4, 2010)
        self._pull_cable("oximeter-7", 2400, 40)
        self._acknowledge(7, 2410)
        self._silence("monitor-6", 2700, 90)
        self._silence("central", 3000, 60)  # four beds at once
        self._over(2, 3200, 40, "spo2", -25.0)  # latches, until the patient goes
        self._adt(2, 3300, "A03", "")
        self._adt(2, 3360, "A01", "P202")
        self._over(3, 3500, 100, "spo2", -12.0)
        self._admit(3, 3540, "P302")  # another patient while an alarm is present
        self._inactivate(5, 3900, "alarm_paused", 60)
        self._over(5, 3905, 90, "heart_rate pulse_rate", -40.0)
        self._over(8, 4200, 70, "spo2", FRACTION)
        self._limit(7, 4500, "spo2_low", "below 94", 10.0)
        self._over(7, 4600, 60, "spo2", -5.0)
        self._admit(7, 4700, "P702")  # brings the preset back
        self._over(8, 4800, 900, "pulse_rate", 50.0)
        self._acknowledge(8, 4900)  # goes on: a reminder follows
        self._mismatch(1, 5000, 45)
        self._inactivate(4, 5100, "audio_off", None)
        self._over(4, 5110, 30, "spo2", -25.0)
        self._over(4, 5160, 25, "spo2", -25.0)  # returns while it is latched
        self._resume(4, 5200)
        self._reset(4, 5210)
        self._escalate(5, 5300)
        self._fault("disk_fault", 5400, 120)
        self._over(6, 5970, 120, "spo2", -14.0)  # present at the restart
        self._limit(6, 5900, "spo2_low", "below 88", 10.0)  # outlives the restart
        self._inactivate(7, 5950, "audio_paused", 120)
        self._at(RESTART_S, self._restart)
        self._acknowledge(6, 6030)
        self._over(6, 6300, 60, "spo2", -9.0)  # 89: inside the limit that was changed before the restart
        for bed in range(1, 9):
            self._chance(bed)

    def _chance(self, bed: int) -> None:
        """Events by chance after the first two hours, and the nurse who answers most of them."""
        chance = random.Random(9000 + bed)
        busy = 0.4 + 1.6 * chance.random()
        second = 7200.0 + 600 * chance.random()
        number = 100 * bed
        while second < DAY_S - 900:
            at_s, kind, size = int(second), chance.random(), chance.random()
            number += 1
            if kind < 0.40:
                self._over(bed, at_s, int(8 + 90 * size * size), "spo2", -5.0 - 20.0 * chance.random())
            elif kind < 0.55:
                self._over(
                    bed,
                    at_s,
                    int(5 + 80 * size),
                    "heart_rate pulse_rate" if bed <= 6 else "pulse_rate",
                    35.0 + 40.0 * chance.random(),
                )
            elif kind < 0.62:
                self._over(
                    bed,
                    at_s,
                    int(5 + 40 * size),
                    "heart_rate pulse_rate" if bed <= 6 else "pulse_rate",
                    -20.0 - 30.0 * chance.random(),
                )
            elif kind < 0.72 and bed <= 6:
                self._over(bed, at_s, int(10 + 40 * size), "resp_rate", -25.0 if chance.random() < 0.3 else 18.0)
            elif kind < 0.82:
                self._over(bed, at_s, int(10 + 120 * size), "spo2 pulse_rate", None)
            elif kind < 0.90 and bed <= 6:
                priority = PRIORITIES[int(3 * chance.random())]
                self._device_alarm(bed, at_s, int(5 + 40 * size), f"Arrhythmia {number % 7}", priority, number)
            elif kind < 0.95 and bed >= 5:
                self._pull_cable(SOURCES[bed], at_s, int(10 + 100 * size))
            elif kind < 0.97:
                self._admit(bed, at_s, f"P{bed}{number}")
            if chance.random() < 0.7:
                self._acknowledge(bed, at_s + 30 + int(60 * chance.random()))
            elif chance.random() < 0.4:
                self._inactivate(bed, at_s + 25, "audio_paused", 120)
            self._reset(bed, at_s + 400)
            second += 900 + 4500 * chance.random() / busy


def _unheard(_signal: Signal) -> None:
    """There is no annunciator in this day."""


def compose() -> Day:
    """The day before its first second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.toml"
        path.write_text(CONFIG)
        return Day(Parts(load(path)))


def log_lines(hours: float = 24.0) -> Iterator[str]:
    """Lines of the alarm log of the day's first hours, without line ends."""
    return compose().run(hours)


def golden_lines() -> list[str]:
    """Lines of the log that is kept."""
    return GOLDEN.read_text().splitlines()


def write(path: Path, hours: float = 24.0) -> int:
    """Write the log of the first hours; how many lines."""
    lines = list(log_lines(hours))
    path.write_text("".join(f"{line}\n" for line in lines))
    return len(lines)


def run() -> list[dict[str, object]]:
    """Two whole days in processes of their own with other hash seeds: seconds each took, and whether the logs agree."""
    rows: list[dict[str, object]] = []
    golden = GOLDEN.read_bytes()
    for seed in ("1", "4242"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "day.jsonl"
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "bench.day", str(out)], check=True, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
            took = time.perf_counter() - start
            found = out.read_bytes()
        rows.append(
            {
                "beds": 8,
                "simulated_h": 24,
                "hash_seed": seed,
                "took_s": round(took, 1),
                "events": found.count(b"\n"),
                "is_golden": found == golden,
                "aim_s": 60,
            }
        )
    return rows


if __name__ == "__main__":
    count = write(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 24.0)
    print(f"{count} events in {sys.argv[1]}")
