"""Finding rate and protocol by listening: captures, noise, wrong rates, and a port that gets not one byte."""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import pty
import random
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import capture_player as player
import pytest

import drivers
from drivers.contract import Driver, Line
from drivers.sim import oximeter
from edge_agent.__main__ import main
from edge_agent.links.address import parse
from edge_agent.provisioning import detect
from edge_agent.provisioning.detect import Detection, Search, serial_drivers
from edge_agent.provisioning.listener import ListenError, SerialPort, TcpPort, open_listener
from edge_agent.records import Chunk, Item, Observation, Reject, Reply

NS = 1_000_000_000
USUAL = Line(9600)
Sent = list[tuple[float, bytes]]  # seconds, bytes


@functools.cache
def heard(data: bytes, sent: Line, at: Line) -> tuple[bytes, int]:
    """What a receiver set to `at` makes of bytes sent with `sent`, and how many framing errors it counts.

    Bits on a wire in units of the sender's: a receiver waits for a falling edge, looks in the middle of the start bit
    and of every following one, and hands a byte whose stop bit is not there over as 0, as the kernel does.
    """
    wire: list[int] = []
    for byte in data:
        bits = [byte >> bit & 1 for bit in range(sent.bits)]
        parity = {"N": [], "E": [sum(bits) & 1], "O": [1 - (sum(bits) & 1)]}[sent.parity]
        wire += [0, *bits, *parity, *[1] * sent.stop]
    ratio = sent.baud / at.baud

    def level(place: float) -> int:
        return wire[int(place)] if 0 <= place < len(wire) else 1

    out, errors, place = bytearray(), 0, 0.0
    length = len(wire)
    while place < length:
        if level(place):
            following = next((n for n in range(int(place) + 1, length) if not wire[n]), length)
            place = float(following)
            continue
        if level(place + 0.5 * ratio):
            place = int(place) + 1.0
            continue
        bits = [level(place + (1.5 + n) * ratio) for n in range(at.bits)]
        extra = 0 if at.parity == "N" else 1
        good = level(place + (1.5 + at.bits + extra) * ratio)
        if extra:
            wanted = sum(bits) & 1 if at.parity == "E" else 1 - (sum(bits) & 1)
            good = good and level(place + (1.5 + at.bits) * ratio) == wanted
        out.append(sum(bit << n for n, bit in enumerate(bits)) if good else 0)
        errors += not good
        place += (1.5 + at.bits + extra) * ratio
        while not level(place) and place < length:
            place += 0.25
    return bytes(out), errors


class Wire:
    """A listener in simulated time: what a device sends, as it is heard at the rate that is set."""

    def __init__(
        self, sent: Sent, line: Line = USUAL, *, counts: bool = True, fixed: bool = False, cut: int = 0
    ) -> None:
        self.now_ns, self.fixed = 7 * NS, fixed
        self._sent, self._line, self._counts, self._cut = sent, line, counts, cut
        self._start_ns = self.now_ns
        self._at, self._errors = line, 0
        self._queue: list[bytes] = []
        self._position = 0
        self.tuned: list[Line] = []

    def tune(self, line: Line) -> None:
        self.tuned.append(line)
        self._at, self._errors = (self._line if self.fixed else line), 0
        self._queue.clear()
        self._skip()

    def _skip(self) -> None:
        while self._position < len(self._sent) and self._due(self._position) < self.now_ns:
            self._position += 1

    def _due(self, position: int) -> int:
        return self._start_ns + round(self._sent[position][0] * NS)

    def read(self, wait_s: float) -> bytes:
        if self._queue:
            return self._queue.pop(0)
        end_ns = self.now_ns + round(wait_s * NS)
        if self._position >= len(self._sent) or self._due(self._position) > end_ns:
            self.now_ns = end_ns
            return b""
        self.now_ns = max(self.now_ns, self._due(self._position))
        data, errors = heard(self._sent[self._position][1], self._line, self._at)
        self._position += 1
        self._errors += errors if self._counts else 0
        if self._cut and data:
            self._queue = [data[start : start + self._cut] for start in range(0, len(data), self._cut)]
            return self._queue.pop(0)
        return data

    def errors(self) -> int:
        return self._errors


def search(wire: Wire, **more: Any) -> Detection:
    candidates: list[Driver] = more.pop("candidates", serial_drivers())
    return Search(wire, candidates, now_ns=lambda: wire.now_ns, **more).run()


def forever(chunks: list[Chunk], gap_s: float = 1.0) -> Sent:
    """A capture again and again for a minute, with no pause longer than `gap_s`."""
    out: Sent = []
    at = 0.05
    for chunk, following in itertools.cycle(list(itertools.pairwise([*chunks, chunks[0]]))):
        out.append((at, chunk.data))
        at += min(max((following.at_ns - chunk.at_ns) / NS, 0.001), gap_s) if following is not chunks[0] else gap_s
        if at > 60:
            return out
    return out


def captures() -> list[Path]:
    names = {driver.name for driver in serial_drivers()}
    return [path for path in player.paths() if player.driver_of(path)[0].name in names]


def asks(driver: Driver) -> bool:
    """Whether it is the gateway that begins: such a device says nothing by itself, and a listener cannot name it."""
    decoder = driver.decoder()
    return any(isinstance(item, Reply) for second in range(1, 4) for item in decoder.tick(second * NS))


def usual(driver: Driver) -> Line:
    return (driver.lines or (USUAL,))[0]


LISTENERS = ("hl7", "masimo", "nonin")  # drivers of devices that speak by themselves
every_capture = pytest.mark.parametrize("path", captures(), ids=lambda path: path.stem)
# What these hold is damage on purpose; to name nobody is right, to name somebody else is not.
WRONG = (Line(2400), Line(14400), Line(9600, "E", 7))  # what no driver names; the first is four times too slow
DAMAGED = ("hl7.damaged", "hl7.unframed", "nonin.ascii", "masimo.trend", "nonin.format8")


@every_capture
def test_a_capture_is_named_after_its_driver_or_not_at_all(path: Path) -> None:
    driver, capture = player.driver_of(path)
    found = search(Wire(forever(capture.received()), usual(driver)))
    assert found.state == "found" or path.stem in DAMAGED or asks(driver), (found.reason, found.tried)
    assert found.state in ("found", "unknown", "doubtful")
    if found.state == "found":
        assert found.drivers == (driver.name,) and found.line == usual(driver)
    assert found.seconds <= 10.5


@every_capture
def test_how_the_bytes_are_cut_does_not_matter(path: Path) -> None:
    driver, capture = player.driver_of(path)
    for cut in (1, 7):
        found = search(Wire(forever(capture.received()), usual(driver), cut=cut))
        assert found.state != "found" or found.drivers == (driver.name,)
        assert found.state == "found" or path.stem in DAMAGED or asks(driver)


@every_capture
@pytest.mark.parametrize("counts", [True, False], ids=["counted", "uncounted"])
def test_a_wrong_rate_names_nobody(path: Path, counts: bool) -> None:
    _, capture = player.driver_of(path)
    sent = forever(capture.received())[:15]
    for real in WRONG[:1] if counts else WRONG:
        found = search(Wire(sent, real, counts=counts))
        assert found.state in ("unknown", "silent"), (real, found.reason)


@pytest.mark.parametrize("baud", [19200, 57600, 115200])
def test_another_rate_is_found_within_ten_seconds(baud: int) -> None:
    _, capture = player.driver_of(player.CAPTURES / "masimo.ascii1.cap")
    line = capture.received()[0].data
    found = search(Wire([(0.3 + second, line) for second in range(30)], Line(baud)))
    assert (found.state, found.drivers, found.line) == ("found", ("masimo",), Line(baud)), found.reason
    assert found.seconds <= 10


@pytest.mark.parametrize("counts", [True, False], ids=["counted", "uncounted"])
@pytest.mark.parametrize("name", ["2", "7", "8", "ascii"])
def test_the_simulated_oximeter_in_each_format(name: str, counts: bool) -> None:
    found = search(Wire(oximeter_sends(name), counts=counts))
    assert (found.state, found.drivers, found.line) == ("found", ("nonin",), Line(9600)), found.reason


def oximeter_sends(name: str) -> Sent:
    packet: dict[str, Callable[[], bytes]] = {
        "2": lambda: oximeter.packet_2(97, 72) * 3,
        "7": lambda: oximeter.packet_7(97, 72) * 3,
        "8": lambda: oximeter.packet_8(97, 72),
        "ascii": lambda: oximeter.line(97, 72),
    }
    return [(0.4 + second, packet[name]()) for second in range(40)]


@pytest.mark.parametrize("seed", range(3))
def test_noise_names_nobody(seed: int) -> None:
    numbers = random.Random(seed)
    sizes = itertools.cycle((960, 40, 3, 200))
    sent = [(n * 0.1, numbers.randbytes(next(sizes))) for n in range(60)]
    for counts in (True, False):
        found = search(Wire(sent, Line(9600), fixed=True, counts=counts))
        assert found.state == "unknown", found.reason


@pytest.mark.parametrize("seed", range(10))
def test_text_and_repeated_garbage_name_nobody(seed: int) -> None:
    numbers = random.Random(seed)
    words = [b"OK\r\n", b"SpO2 97 % pulse 72\r\n", b"MSH\r\n", b"$GPGGA,0,0\r\n", b"TEMP=36.9 C\r\n", b"login: "]
    text: Sent = [(n / 3, numbers.choice(words)) for n in range(60)]
    assert search(Wire(text)).state == "unknown"
    again = numbers.randbytes(4 + seed)
    assert search(Wire([(n / 2, again) for n in range(60)])).state == "unknown"


def test_a_line_that_says_nothing_is_silent_until_asked() -> None:
    found = search(Wire([]), candidates=[drivers.load(name) for name in LISTENERS])
    assert found.state == "silent" and "silent until asked" in found.reason
    assert found.drivers == LISTENERS
    assert 5 <= found.seconds <= 10.5
    assert len({tried.line for tried in found.tried}) == len(found.tried) >= 4, "each setting was given its look"


class Asker:
    """A decoder that polls its device and says what it hears."""

    def feed(self, chunk: Chunk) -> list[Item]:
        return [Observation("spo2", float(byte), "valid", chunk.at_ns) for byte in chunk.data]

    def tick(self, at_ns: int) -> list[Item]:
        return [Reply(b"?")]


def test_a_driver_that_asks_is_the_one_to_try() -> None:
    asker = Driver("asker", Asker, frozenset({"serial"}), ("spo2",), 5.0, "a test", lines=(Line(4800, "E", 7),))
    found = search(Wire([]), candidates=[*serial_drivers(), asker])
    asking = {each.name for each in serial_drivers() if asks(each)}
    assert (found.state, set(found.drivers)) == ("silent", {"asker", *asking})
    assert Line(4800, "E", 7) in {tried.line for tried in found.tried}


def test_two_drivers_that_understand_alike_are_told_and_not_chosen() -> None:
    twins = [Driver(name, Asker, frozenset({"serial"}), ("spo2",), 5.0, "a test") for name in ("left", "right")]
    found = search(Wire([(n / 2, b"ab") for n in range(40)]), candidates=twins)
    assert (found.state, sorted(found.drivers)) == ("doubtful", ["left", "right"])
    assert "name one" in found.reason


def test_a_fast_line_is_not_played_again_for_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    judge = detect.judge
    monkeypatch.setattr(detect, "judge", lambda tried: judged.append(tried.bytes) or judge(tried))
    late = Driver("late", Late, frozenset({"serial"}), ("spo2",), 5.0, "a test")
    search(Wire([(n / 100, bytes(110)) for n in range(1000)]), candidates=[late], only=USUAL)
    assert judged[-1] > 100_000 and len(judged) < 60


class Late(Asker):
    """Finds a value in every tenth byte, and tells of the rest when the line has been silent."""

    def __init__(self) -> None:
        self._seen = 0
        self._last_ns = 0

    def feed(self, chunk: Chunk) -> list[Item]:
        before, self._seen, self._last_ns = self._seen, self._seen + len(chunk.data), chunk.at_ns
        return [Observation("spo2", 97.0, "valid", chunk.at_ns)] * (self._seen // 10 - before // 10)

    def tick(self, at_ns: int) -> list[Item]:
        return [Reject("noise", self._seen, at_ns)] if at_ns - self._last_ns > 5 * NS else []


def test_rejects_that_a_decoder_tells_late_count() -> None:
    late = Driver("late", Late, frozenset({"serial"}), ("spo2",), 5.0, "a test")
    assert search(Wire([(n / 10, bytes(50)) for n in range(200)]), candidates=[late]).state == "unknown"


class Raiser(Asker):
    def feed(self, chunk: Chunk) -> list[Item]:
        raise ValueError("against the promise")


def test_a_decoder_that_raises_does_not_end_the_search() -> None:
    raiser = Driver("raiser", Raiser, frozenset({"serial"}), ("spo2",), 5.0, "a test")
    found = search(Wire(oximeter_sends("2")), candidates=[raiser, *serial_drivers()])
    assert found.drivers == ("nonin",)


def test_settings_that_more_drivers_name_come_first() -> None:
    order = detect.settings(serial_drivers())
    assert order[0] == Line(9600) and len(set(order)) == len(order)


def test_the_link_says_what_differs() -> None:
    assert detect.link_of("serial:///dev/x", Line(9600)) == "serial:///dev/x?baud=9600"
    link = detect.link_of("serial:///dev/x", Line(19200, "E", 7, 2))
    assert link == "serial:///dev/x?baud=19200&parity=E&bits=7&stop=2" and parse(link).options["bits"] == 7


# -- real descriptors ---------------------------------------------------------------------------------------------


@pytest.fixture
def cooked(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A pseudo-terminal as it comes: it echoes, and turns line ends around."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    assert termios.tcgetattr(slave)[3] & termios.ECHO
    path = tmp_path / "ttyUSB0"
    path.symlink_to(os.ttyname(slave))
    yield master, path
    os.close(slave)
    os.close(master)


def unsaid(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except BlockingIOError:
        return b""


def test_not_one_byte_is_sent(cooked: tuple[int, Path]) -> None:
    master, path = cooked
    port = SerialPort(str(path))
    assert fcntl.fcntl(port.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError):
        os.write(port.fileno(), b"x")
    for line in (Line(9600), Line(19200, "E", 7, 2), Line(115200, "O")):
        port.tune(line)
        flags = termios.tcgetattr(master)
        assert flags[4] == flags[5] == getattr(termios, f"B{line.baud}")
        assert flags[1] == 0 and flags[3] == 0, "no echo, no line ends put in"
        assert not flags[0] & (termios.IXOFF | termios.IXON | termios.IXANY)
        assert not flags[2] & termios.CRTSCTS and flags[2] & termios.CLOCAL
        assert bool(flags[2] & termios.CSTOPB) == (line.stop == 2)
        os.write(master, b"a\r\n\x11\x13\x00\xff")
        port.read(1.0)
    os.write(master, b"z" * 3000)  # nearly the whole of the line's buffer: a line with IXOFF would say stop
    assert unsaid(master) == b""
    assert port.errors() == 0
    port.close()
    assert unsaid(master) == b""


def test_not_one_byte_is_sent_by_a_whole_search(cooked: tuple[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    master, path = cooked
    end = threading.Event()
    said = bytearray()

    def device() -> None:
        while termios.tcgetattr(master)[3] & termios.ECHO and not end.is_set():
            time.sleep(0.001)  # what was sent before anybody listens would be echoed by the test's own terminal
        while not end.is_set():
            os.write(master, oximeter.packet_2(97, 72))
            said.extend(unsaid(master))
            end.wait(0.05)

    thread = threading.Thread(target=device)
    thread.start()
    try:
        assert main(["detect", str(path)]) == 0
    finally:
        end.set()
        thread.join()
    assert not said and unsaid(master) == b""
    told = capsys.readouterr().out
    assert "nonin at 9600 8N1" in told and f'link = "serial://{path}?baud=9600"' in told and 'driver = "nonin"' in told


def test_what_comes_is_heard_byte_for_byte(cooked: tuple[int, Path]) -> None:
    master, path = cooked
    port = SerialPort(str(path))
    everything = bytes(range(256))
    os.write(master, everything)
    got = b""
    while len(got) < 256:
        data = port.read(1.0)
        assert data
        got += data
    assert got == everything
    os.write(master, b"old")
    port.tune(Line(9600))
    assert port.read(0.05) == b"", "what came at another rate is forgotten"
    port.close()


def test_a_port_that_is_read_by_another_program_is_left_alone(cooked: tuple[int, Path]) -> None:
    _, path = cooked
    first = SerialPort(str(path))
    with pytest.raises(ListenError, match="another program reads it"):
        SerialPort(str(path))
    first.close()
    SerialPort(str(path)).close()


def test_a_port_that_is_pulled_out_ends_the_search(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    port = SerialPort(os.ttyname(slave))
    os.close(slave)
    os.close(master)
    with pytest.raises(ListenError, match="lost"):
        for _ in range(3):
            port.read(0.5)
    port.close()


@pytest.mark.parametrize(
    ("link", "what"),
    [
        ("serial:///dev/no-such-port", "it is not there"),
        ("serial:///dev/null", "not a serial line"),
        ("rfc2217://127.0.0.1:1", "negotiation, which is sending"),
        ("mllp://127.0.0.1:1", "no serial line"),
        ("socket://127.0.0.1:1", "cannot be reached"),
    ],
)
def test_what_cannot_be_listened_to_says_why(link: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ListenError, match=what):
        open_listener(parse(link))
    assert main(["detect", link]) == 1
    assert what in capsys.readouterr().err


def test_a_terminal_server_is_listened_to_and_told_nothing() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = TcpPort(*server.getsockname())
        peer, _ = server.accept()
        with peer:

            def device() -> None:
                for _ in range(40):
                    try:
                        peer.sendall(oximeter.packet_2(96, 70))
                    except OSError:
                        return
                    time.sleep(0.02)

            thread = threading.Thread(target=device)
            thread.start()
            found = Search(port, serial_drivers(), now_ns=time.monotonic_ns).run()
            thread.join()
            peer.settimeout(0.0)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
        port.close()
    assert found.drivers == ("nonin",)
