"""The simulator as a driver: a patient that lives by the clock, or a recording that comes in as bytes.

Theory of operation. Without any input, `tick` lets the patient live one second for each second of time that has passed
and gives the vital signs of the last one; seconds that were missed are lived through, but not reported late. Bytes are
taken for a recording (see drivers.sim.recorded): from the first of them on the simulated patient is silent, and the
rows are the observations. A row counts at the moment it comes in; its own time only has to run forwards.
"""

from __future__ import annotations

import struct

from drivers.lines import Lines
from drivers.sim.patient import Patient
from drivers.sim.recorded import RecordedError, parse_header, parse_row
from edge_agent import terms
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Waveform

_SECOND_NS = 1_000_000_000
_CATCH_UP_S = 3600  # a gateway that slept longer finds the patient no older than that
_QUIET_NS = 2 * _SECOND_NS  # a last line without its end is over
_LINE_MAX = 4096  # a header of every term is about 700 bytes
_PLETH_HZ = 75


class Simulator:
    """Decoder of a patient that does not exist.

    `seed`, `profile` (stable, deteriorating, sepsis, noisy), `onset_s` and `nibp_interval_s` are those of the patient;
    with `pleth` a second of pulse wave comes with every second of numbers.
    Raises: ValueError for a profile that does not exist.
    """

    def __init__(
        self,
        seed: int = 1,
        profile: str = "stable",
        onset_s: float = 60.0,
        nibp_interval_s: float = 300.0,
        pleth: bool = False,
    ) -> None:
        self._patient = Patient(seed, profile, onset_s, nibp_interval_s)
        self._pleth = pleth
        self._started_ns: int | None = None
        self._fed = False
        self._last_ns = 0
        self._sensor_on = True
        self._lines = Lines(_LINE_MAX)
        self._columns: tuple[str, ...] = ()
        self._row_s = -1.0

    def feed(self, chunk: Chunk) -> list[Item]:
        out: list[Item] = []
        self._fed = True
        self._last_ns = chunk.at_ns
        for line in self._lines.feed(chunk.data):
            if isinstance(line, int):
                out.append(Reject("line too long", line, chunk.at_ns))
            else:
                self._recorded(line, chunk.at_ns, out)
        return out

    def tick(self, at_ns: int) -> list[Item]:
        if self._fed:
            return self._last_line(at_ns) if len(self._lines) and at_ns - self._last_ns > _QUIET_NS else []
        if self._started_ns is None:
            self._started_ns = at_ns
        age_s = (at_ns - self._started_ns) // _SECOND_NS
        missing = age_s - self._patient.second
        if missing > _CATCH_UP_S:
            self._started_ns += (missing - _CATCH_UP_S) * _SECOND_NS
            missing = _CATCH_UP_S
        values: dict[str, float | None] = {}
        for _ in range(missing):
            values.update(self._patient.step())
        return self._report(values, at_ns) if values else []

    def _report(self, values: dict[str, float | None], at_ns: int) -> list[Item]:
        out: list[Item] = []
        if self._sensor_on != self._patient.sensor_on:
            self._sensor_on = self._patient.sensor_on
            out.append(DeviceStatus("sensor", "ok" if self._sensor_on else "disconnected", at_ns))
        out.extend(_observation(name, value, at_ns) for name, value in values.items())
        if self._pleth:
            samples = self._patient.pleth(values["pulse_rate"], _PLETH_HZ)
            out.append(Waveform("pleth", float(_PLETH_HZ), struct.pack(f"<{len(samples)}h", *samples), 1.0, 0.0, at_ns))
        return out

    def _last_line(self, at_ns: int) -> list[Item]:
        out: list[Item] = []
        line = self._lines.take()
        if isinstance(line, int):
            out.append(Reject("line too long", line, at_ns))
        else:
            self._recorded(line, at_ns, out)
        return out

    def _recorded(self, line: bytes, at_ns: int, out: list[Item]) -> None:
        try:
            text = line.decode()
            if not self._columns:
                self._columns = parse_header(text)
                return
            row = parse_row(self._columns, text, self._row_s)
        except (UnicodeDecodeError, RecordedError) as error:
            told = self._columns and isinstance(error, RecordedError)  # a header that is none may be anything
            reason = str(error) if told else "no header of term names"
            out.append(Reject(f"recording: {reason}", len(line), at_ns))
            return
        self._row_s = row.at_s
        out.extend(_observation(name, value, at_ns) for name, value in row.values.items())


def _observation(name: str, value: float | None, at_ns: int) -> Observation:
    if value is None:
        return Observation(name, None, "not_available", at_ns)
    term = terms.BY_NAME[name]
    low, high = term.plausible_min, term.plausible_max
    if (low is not None and value < low) or (high is not None and value > high):
        return Observation(name, None, "invalid", at_ns)
    return Observation(name, value, "valid", at_ns)
