"""Which driver understands a serial line, and at which rate: found by listening, never by asking.

Theory of operation. The settings that the drivers name (`Driver.lines`) are tried one after the other, the one that
most drivers name first. At each of them every driver's own decoder is fed with what comes; what a decoder wants to
send is thrown away. A setting is left early when it cannot be right: the port counts framing errors, or many bytes have
come and nobody understands a single one. It is kept while somebody does. What is left of the time is spent on the
settings that were left for want of time.

A line that says nothing at one rate says nothing at any: a receiver at the wrong rate sees the edges all the same. So a
silent line gets most of the time at the first setting and a short look at the others.

When a driver is named, what it understood must be
  enough       at least ENOUGH values it is sure of, from MOMENTS messages at different times or from LONG bytes; where
               the device has no value to give, its sensor being off, twice as many items of twice as many messages;
  nearly all   no more than half of the bytes were rejects: noise has the form of something now and then, and of nothing
               most of the time. To know, everything heard is played once more into a new decoder and ended by silence,
               because decoders tell of rejects late. Messages that were cut by the listening count as rejects;
  alone        no other driver understood nearly as much: text that two drivers read is told as doubtful, not guessed.

What is left to chance is garbage that repeats (a short packet without a checksum, read at a wrong rate) and happens to
have a form; a port that counts framing errors does not let it pass. The engineer compares values with the screen in
any case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import drivers
from drivers.contract import Decoder, Driver, Line
from edge_agent.links.address import Address
from edge_agent.provisioning.listener import Listener
from edge_agent.records import (
    Chunk,
    DeviceAlarm,
    DeviceStatus,
    Item,
    Observation,
    PatientEvent,
    Reject,
    Reply,
    Waveform,
)

BUDGET_S = 10.0  # the whole search on a line that sends at least once a second
SILENCE_S = 5.0  # at the first setting, before a line counts as silent; half of the monitors' slowest usual period
LOOK_S = 1.2  # for the first byte at a further setting: devices that send by themselves do so once a second
HOLD_S = 5.0  # with a driver that begins to understand: format 8 of Nonin needs three packets, one each second
READ_S = 0.1
MOMENTS = 2  # messages at different times
ENOUGH = 4  # values: two numbers of two messages
LONG = 200  # bytes: one HL7 message is enough, of monitors that send one in ten seconds; lines and packets are shorter
MUCH = 600  # bytes that nobody understands: longer than the longest line or packet of the serial drivers
ERRORS = 4  # framing errors that end a setting, where they are more than a tenth of the bytes
GROWN = 1.2  # judged again when so much more was heard: playing all of it again costs time, and the line does not wait
NEARLY_ALL = 0.5
ALONE = 0.5  # the runner-up may have understood at most so much of what the first has
TICK_NS = 250_000_000
SILENT_NS = 60_000_000_000  # behind what was heard: every decoder has given up on what was not finished


@dataclass(slots=True)
class Hearing:
    """What one driver's decoder made of a line at one setting."""

    driver: str
    make: Callable[[], Decoder]
    items: int = 0  # values and states
    sure: int = 0  # of them values the decoder calls valid
    moments: int = 0
    rejected: int = 0  # bytes
    asks: bool = False  # it wants to send something by itself
    broken: str = ""
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        """Begin with a new decoder."""
        self.decoder = self.make()

    def feed(self, chunk: Chunk) -> None:
        """Let the decoder have bytes."""
        self._take(lambda: self.decoder.feed(chunk))

    def tick(self, at_ns: int) -> None:
        """Let time pass; a decoder that polls is noted, and not answered."""
        self._take(lambda: self.decoder.tick(at_ns), asking=True)

    def _take(self, call: Callable[[], Iterable[Item]], *, asking: bool = False) -> None:
        if self.broken:
            return
        try:
            items = list(call())
        except Exception as error:  # a decoder that raises, against its promise, has not understood
            self.broken = f"{type(error).__name__}: {error}"
            return
        before = self.items
        for item in items:
            if isinstance(item, Reject):
                self.rejected += item.size
            elif isinstance(item, Reply):
                self.asks = self.asks or (asking and not item.after_commit)
            elif isinstance(item, Observation | Waveform | DeviceAlarm | PatientEvent | DeviceStatus):
                self.items += 1
                self.sure += isinstance(item, Waveform | DeviceAlarm | PatientEvent) or (
                    isinstance(item, Observation) and item.validity == "valid"
                )
        self.moments += self.items > before

    def enough(self, heard: int) -> bool:
        """Whether so much was understood, of `heard` bytes, that it is hardly chance."""
        if self.broken or self.rejected > heard * NEARLY_ALL:
            return False
        if self.sure >= ENOUGH:
            return self.moments >= MOMENTS or heard - self.rejected >= LONG
        return self.items >= 2 * ENOUGH and self.moments >= 2 * MOMENTS

    def weight(self) -> float:
        """How much was understood: what the decoder is sure of counts in full, anything else a quarter."""
        return self.sure + (self.items - self.sure) / 4


@dataclass(slots=True)
class Tried:
    """One setting that was listened at."""

    line: Line
    bytes: int = 0
    errors: int = 0  # framing and parity errors that the port counted
    seconds: float = 0.0
    hearings: list[Hearing] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def said(self) -> str:
        """The setting and what came, in one line for a person."""
        errors = f", {self.errors} framing errors" if self.errors else ""
        return f"{name_of(self.line)}: {self.bytes} bytes in {self.seconds:.1f} s{errors}"


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found: `state` is found, silent, doubtful (`drivers` are those that fit) or unknown."""

    state: str
    drivers: tuple[str, ...]  # found: the one; silent: those to try; doubtful: those that fit
    line: Line | None
    tried: tuple[Tried, ...]
    seconds: float

    @property
    def reason(self) -> str:
        """What a person is told."""
        if self.state == "found":
            assert self.line is not None
            return f"{self.drivers[0]} at {name_of(self.line)}"
        if self.state == "silent":
            names = ", ".join(self.drivers) or "none of the installed drivers asks"
            return f"silent until asked, or not connected; drivers to try: {names}"
        if self.state == "doubtful":
            return f"more than one driver understands this: {', '.join(self.drivers)}; name one in the configuration"
        return "bytes come, and no driver understands them at any of its settings"


def name_of(line: Line) -> str:
    """A setting as people write it: 9600 8N1."""
    return f"{line.baud} {line.bits}{line.parity}{line.stop}"


def link_of(url: str, line: Line) -> str:
    """The link of a source: `url` with the settings behind it that are not usual, and always the rate."""
    parts = [f"baud={line.baud}"]
    usual = Line()
    parts += [f"parity={line.parity}"] if line.parity != usual.parity else []
    parts += [f"bits={line.bits}"] if line.bits != usual.bits else []
    parts += [f"stop={line.stop}"] if line.stop != usual.stop else []
    return f"{url}?{'&'.join(parts)}"


def told_line(address: Address) -> Line | None:
    """The setting that a link already states, None when it states none and all are to be tried."""
    options = address.options
    if not {"baud", "parity", "bits", "stop"} & options.keys():
        return None
    usual = Line()
    parity = str(options.get("parity", usual.parity))
    return Line(
        int(options.get("baud", usual.baud)),
        parity if parity in ("E", "O") else "N",  # type: ignore[arg-type]
        int(options.get("bits", usual.bits)),
        int(options.get("stop", usual.stop)),
    )


def source_link(address: Address, line: Line | None) -> str:
    """The link for the configuration: with its settings where they are set on this side."""
    bare = address.url.partition("?")[0]
    return link_of(bare, line) if address.scheme == "serial" and line is not None else bare


def serial_drivers() -> list[Driver]:
    """Every driver of the registry that speaks over serial lines; one that cannot be loaded is left out."""
    found = []
    for name in drivers.names():
        try:
            driver = drivers.load(name)
        except (ImportError, TypeError, KeyError):
            continue  # `edge-agent drivers` tells of it
        if "serial" in driver.links:
            found.append(driver)
    return found


def settings(candidates: Sequence[Driver]) -> list[Line]:
    """Every setting that the drivers name, once; those that more of them name, and as their usual, first."""
    votes: dict[Line, tuple[int, int]] = {}
    for driver in candidates:
        for rank, line in enumerate(driver.lines or (Line(),)):
            count, best = votes.get(line, (0, rank))
            votes[line] = (count + 1, min(best, rank))
    return sorted(votes, key=lambda line: (-votes[line][0], votes[line][1], line.baud))


class Search:
    """One search on one line; `now_ns` is CLOCK_MONOTONIC, and the listener's `read` is what lets time pass."""

    def __init__(
        self,
        listener: Listener,
        candidates: Sequence[Driver],
        *,
        now_ns: Callable[[], int],
        budget_s: float = BUDGET_S,
        only: Line | None = None,
    ) -> None:
        """With `only`, or a line whose settings are fixed elsewhere, just that is listened at."""
        self._listener, self._candidates, self._now_ns = listener, candidates, now_ns
        self._begin_ns = now_ns()
        self._end_ns = self._begin_ns + round(budget_s * 1e9)
        self._settings = [only or Line()] if only is not None or listener.fixed else settings(candidates)
        self._any_setting = only is not None or listener.fixed
        self._tried: list[Tried] = []

    def run(self) -> Detection:
        """Listen until a driver can be named or the time is over. Raises: ListenError when the line is lost."""
        for number, line in enumerate(self._settings):
            left_s = self._left_s()
            if left_s <= 0:
                break
            more = len(self._settings) - number - 1
            # the others keep time for a look; what the first ones do not need comes back to them
            limit_s = max(LOOK_S, left_s - more * LOOK_S) if more else left_s
            found = self._listen(self._begin(line), min(limit_s, HOLD_S) if more else limit_s)
            if found:
                return found
        for tried in sorted(self._tried, key=lambda each: (each.errors, -_best(each), -each.bytes)):
            if self._left_s() <= 0 or not any(each.bytes for each in self._tried):
                break
            found = self._listen(self._begin(tried.line), self._left_s())
            if found:
                return found
        return self._give_up()

    def _begin(self, line: Line) -> Tried:
        self._listener.tune(line)
        tried = Tried(line)
        for driver in self._candidates:
            if self._any_setting or line in (driver.lines or (Line(),)):
                told = {driver.tells_link: "serial"} if driver.tells_link else {}
                make = functools.partial(driver.decoder, **told)
                tried.hearings.append(Hearing(driver.name, make))
        self._tried.append(tried)
        return tried

    def _listen(self, tried: Tried, limit_s: float) -> Detection | None:
        start_ns = ticked_ns = self._now_ns()
        first = len(self._tried) == 1
        due_bytes = 1  # for the next judgement
        while True:
            data = self._listener.read(READ_S)
            now_ns = self._now_ns()
            tried.seconds = (now_ns - start_ns) / 1e9
            if data:
                tried.bytes += len(data)
                chunk = Chunk(now_ns, data)
                tried.chunks.append(chunk)
                for hearing in tried.hearings:
                    hearing.feed(chunk)
            if now_ns - ticked_ns >= TICK_NS:
                ticked_ns = now_ns
                for hearing in tried.hearings:
                    hearing.tick(now_ns)
            tried.errors = self._listener.errors()
            over = self._left_s() <= 0 or self._hopeless(tried, limit_s, first=first)
            if not over and tried.bytes < due_bytes:
                continue
            winners = judge(tried)
            due_bytes = round(tried.bytes * GROWN)
            if len(winners) == 1:
                return self._detection("found", winners, tried.line)
            if over:
                return self._detection("doubtful", winners, tried.line) if winners else None

    def _hopeless(self, tried: Tried, limit_s: float, *, first: bool) -> bool:
        if not tried.bytes:
            return tried.seconds >= min(limit_s, SILENCE_S if first else LOOK_S)
        if tried.errors >= ERRORS and tried.errors * 10 > tried.bytes:
            return True
        if tried.bytes >= MUCH and not any(_hopes(hearing, tried.bytes) for hearing in tried.hearings):
            return True
        return tried.seconds >= limit_s

    def _left_s(self) -> float:
        return (self._end_ns - self._now_ns()) / 1e9

    def _give_up(self) -> Detection:
        if any(tried.bytes for tried in self._tried):
            return self._detection("unknown", (), None)
        asking = {hearing.driver for tried in self._tried for hearing in tried.hearings if hearing.asks}
        every = [driver.name for driver in self._candidates]
        return self._detection("silent", tuple(sorted(asking) or every), None)

    def _detection(self, state: str, names: tuple[str, ...], line: Line | None) -> Detection:
        return Detection(state, names, line, tuple(self._tried), (self._now_ns() - self._begin_ns) / 1e9)


def judge(tried: Tried) -> tuple[str, ...]:
    """Drivers that understand the line: one when it is clear, more when it is not, none when nobody does."""
    if tried.errors >= ERRORS and tried.errors * 10 > tried.bytes:
        return ()
    fit = [played for each in tried.hearings if each.enough(tried.bytes) and (played := _again(each, tried))]
    if not fit:
        return ()
    fit.sort(key=Hearing.weight, reverse=True)
    return tuple(each.driver for each in fit if each.weight() > fit[0].weight() * ALONE or each is fit[0])


def _again(hearing: Hearing, tried: Tried) -> Hearing | None:
    """What a new decoder makes of everything heard and of silence behind it, None when that is not enough."""
    played = Hearing(hearing.driver, hearing.make)
    for chunk in tried.chunks:
        played.feed(chunk)
    played.tick(tried.chunks[-1].at_ns + SILENT_NS)
    return played if played.enough(tried.bytes) else None


def _hopes(hearing: Hearing, heard: int) -> bool:
    """Whether a decoder may still come to understand: it has, or it holds most of what came for the rest of it."""
    return not hearing.broken and (hearing.items > 0 or hearing.rejected <= heard * NEARLY_ALL)


def _best(tried: Tried) -> float:
    return max((hearing.weight() for hearing in tried.hearings), default=0.0)
