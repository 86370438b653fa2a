"""Monitors outside the emulated machine, which see its gateway as on a ward's network."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from datetime import UTC, datetime, timedelta

from drivers.sim.oximeter import packet_2

DEADLINE_S = 60.0
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def measured_at(number: int) -> datetime:
    """The device time of a monitor's message of this number, by which it is known again in the records."""
    return _BEGAN + timedelta(seconds=number)


def oru(number: int, location: str, spo2: int) -> bytes:
    """A framed HL7 message with one SpO2 value for the bed at this location, measured at `measured_at(number)`."""
    time = f"{measured_at(number):%Y%m%d%H%M%S}+0000"
    segments = (
        f"MSH|^~\\&|MON|WARD|GATEWAY|HOSPITAL|{time}||ORU^R01^ORU_R01|{number}|P|2.6",
        "PID|||TEST",
        f"PV1||I|{location}",
        f"OBR|1|||V|||{time}",
        f"OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC||{spo2}|262688^MDC_DIM_PERCENT^MDC|||||R",
    )
    return b"\x0b" + "".join(f"{segment}\r" for segment in segments).encode() + b"\x1c\r"


class Monitor:
    """One monitor: sends its SpO2 every `every_s` seconds, each message after the acknowledgement of the one before.

    Messages are numbered from 1; `acknowledged` holds the numbers of those that were answered with AA.
    """

    def __init__(self, port: int, location: str, *, every_s: float = 1.0) -> None:
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self._port, self._location, self._every_s = port, location, every_s
        self._spo2 = 97
        self._changed = threading.Condition()
        self._stopping = False
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name=f"monitor {location}")

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(DEADLINE_S)

    def spo2(self, value: int) -> None:
        """Measures this from now on, and sends it at once."""
        with self._changed:
            self._spo2 = value
            self._changed.notify_all()

    def _run(self) -> None:
        """Until stopped, or until the gateway is no more."""
        while not self._stopping:
            try:
                self._converse()
            except OSError:
                time.sleep(0.2)

    def _converse(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), 5) as line:
            line.settimeout(DEADLINE_S)
            answers = line.makefile("rb")
            while not self._stopping:
                self._sent += 1
                number = self._sent
                line.sendall(oru(number, self._location, self._spo2))
                answer = b""
                while not answer.endswith(b"\x1c\r"):
                    piece = answers.read1(4096)
                    if not piece:
                        raise ConnectionError
                    answer += piece
                text = answer.decode()
                (self.acknowledged if f"MSA|AA|{number}\r" in text else self.refused).append(number)
                if self._every_s:
                    with self._changed:
                        self._changed.wait(self._every_s)


class Oximeter:
    """A Nonin oximeter at the end of a serial line: format 2, three packets a second, whether anybody reads or not."""

    def __init__(self, line: socket.socket) -> None:
        self.spo2, self.pulse_rate = 96, 71
        self._line = line
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oximeter")

    def __enter__(self) -> Oximeter:
        self._line.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        self._line.close()

    def _run(self) -> None:
        while not self._stop.wait(1 / 3):
            with contextlib.suppress(BlockingIOError):  # nothing is plugged in that takes it
                self._line.send(packet_2(self.spo2, self.pulse_rate))
