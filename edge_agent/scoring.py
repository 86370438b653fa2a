"""The bedside scores of every bed, fed live: NEWS2, MEWS, qSOFA, SIRS, shock index, and ROX on oxygen.

Theory of operation: every EVERY_S seconds, beds in turn, the newest observations of a bed become the inputs of
`edge_agent.watch.scores`. An observation is an input while it is valid, plausible and younger than its vital's age:
that of the preset's `silent` row, at most AGE_S. All else is missing, and a score with a missing input is partial:
nothing is carried over, filled in or taken for normal. Zero is an input only after a value that shows that somebody is
connected. What no device knows (consciousness, oxygen, the SpO2 scale) an operator enters; it counts for a stated time
and goes with the patient.

A result is recorded when it changes, and once in RECORD_S seconds. The watch is told of it only where the preset has a
limit on it, and of a partial one only where its sum, which what is missing can only raise, does not take back a limit
that an earlier result was over. So a sensor that falls off ends no condition.

Only beds whose preset is for adults are scored: `population` begins with "adult".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec

from edge_agent import terms
from edge_agent.presets import Preset
from edge_agent.records import Observation, Score
from edge_agent.watch import plausible, scores
from edge_agent.watch.scores import Result

NS = 1_000_000_000
EVERY_S = 5.0  # a bed is looked at no more often: no band of any score asks for an answer within seconds
RECORD_S = 60.0
_EVERY_NS, _RECORD_NS = round(EVERY_S * NS), round(RECORD_S * NS)
# Greatest age of an input in s, when the preset's own is not shorter: a cuff measures every hour at most, and five
# minutes more for it to be sent; a temperature that is read by hand counts for an hour.
AGE_S: dict[str, float] = {"nibp_sys": 3900.0, "temp": 3600.0}
_AGE_S = 60.0  # of everything that is measured continuously
# Input, and the terms it is taken from: the first that has a usable value. Skin temperature is no body temperature.
_INPUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pulse", ("heart_rate", "pulse_rate", "abp_pulse_rate", "pulse_rate_other", "nibp_pulse_rate")),
    ("spo2", ("spo2",)),
    ("resp_rate", ("resp_rate", "resp_rate_co2", "resp_rate_impedance", "resp_rate_pleth")),
    ("systolic", ("abp_sys", "art_sys", "nibp_sys")),
    ("temperature", ("temp_core", "temp", "temp_axillary")),
    ("fio2", ("fio2",)),
)
_NAMES = tuple(name for name, _ in _INPUTS)
_CONNECTED = {"pulse": 1.0, "spo2": 1.0, "resp_rate": 3.0}  # least first value, as the limits of the presets arm
_AIR_PERCENT = 21.0
LABELS = {
    "news2": "NEWS2", "mews": "MEWS", "qsofa": "qSOFA", "sirs": "SIRS", "shock_index": "SI", "rox": "ROX",
}  # fmt: skip
VERSIONS = {
    "news2": "RCP 2017", "mews": "Subbe 2001", "qsofa": "Sepsis-3 2016", "sirs": "ACCP/SCCM 1992", "shock_index": "",
    "rox": "Roca 2019",
}  # fmt: skip
_RATIOS = ("shock_index", "rox")  # change with every beat: recorded when the band changes, else once in RECORD_S
_ALTERED_GCS = 14  # stands for any level below alert, of which qSOFA asks only whether the sum is under 15
UNKNOWN = "unknown"
ENTRIES = ("consciousness", "oxygen", "fio2", "scale")


class Entered(msgspec.Struct):
    """What an operator entered on a bed; times of CLOCK_MONOTONIC."""

    consciousness: str | None = None
    consciousness_ns: int = 0
    oxygen: bool | None = None
    fio2: float | None = None  # %
    oxygen_ns: int = 0
    scale: int = 1  # of SpO2; 2 is prescribed, and stays until it is taken back or the patient goes


_DECODE = msgspec.json.Decoder(dict[str, Entered]).decode


class Scored(NamedTuple):
    """A score of a bed, whether it is to be kept as a record, and whether the watch is to judge it."""

    bed: str
    score: Score
    record: bool
    tell: bool


class _Plan(NamedTuple):
    """What a preset says about scores."""

    preset: Preset
    adult: bool
    inputs: tuple[tuple[str, tuple[tuple[terms.Term, int], ...]], ...]  # input; term and its greatest age in ns
    limits: dict[str, tuple[float, ...]]  # by score


class _Bed:
    __slots__ = (
        "armed", "due_ns", "entered", "inputs", "phase_ns", "plan", "recorded", "recorded_ns", "results", "seen_ns",
        "told",
    )  # fmt: skip

    def __init__(self) -> None:
        self.plan: _Plan | None = None
        self.entered = Entered()
        self.due_ns = self.phase_ns = 0
        self.forget()

    def forget(self) -> None:
        """Begin anew: another patient, or none."""
        self.entered = Entered()
        self.armed: set[str] = set()
        self.inputs: tuple[Any, ...] = ()
        self.results: dict[str, Result] = {}
        self.recorded: dict[str, tuple[Any, ...]] = {}
        self.recorded_ns = 0
        self.seen_ns = 0
        self.told: dict[str, float] = {}  # what the watch last judged, by score


class Scoring:
    """Scores of all beds; every method is called in the alarm loop and never waits."""

    def __init__(self, beds: Sequence[str], preset: Callable[[str], Preset], *, entry_h: float = 4.0) -> None:
        """`preset` gives what is in force on a bed; what an operator entered counts for `entry_h` hours."""
        self._preset = preset
        self._entry_ns = round(entry_h * 3600 * NS)
        self._beds = {bed: _Bed() for bed in beds}
        self._begun = False
        self.due_ns = 0  # when `evaluate` next has something to do
        self.version = 0  # counts every change of what is to outlive a restart

    # -- what an operator enters ----------------------------------------------------------------------------------

    def enter(self, bed: str, given: Mapping[str, Any], at_ns: int) -> dict[str, str]:
        """Take over what an operator entered; in words what is in force now, by what was given.

        `given` has one or more of ENTRIES: a level of ACVPU, oxygen true or false, FiO2 in %, SpO2 scale 1 or 2;
        "unknown" takes a level or the oxygen back.

        Raises: ValueError with what is wrong.
        """
        preset = self._preset(bed)
        if not _adult(preset):
            raise ValueError(f"the scores are for adults, and preset {preset.name!r} of this bed is not")
        if not given:
            raise ValueError(f"nothing to enter: give one of {', '.join(ENTRIES)}")
        state = self._beds[bed]
        now = msgspec.structs.replace(state.entered)
        if "consciousness" in given:
            now.consciousness, now.consciousness_ns = _level(given["consciousness"]), at_ns
        if "oxygen" in given or "fio2" in given:
            now.oxygen, now.fio2 = _oxygen(given.get("oxygen"), given.get("fio2"))
            now.oxygen_ns = at_ns
        if "scale" in given:
            if given["scale"] not in (1, 2) or isinstance(given["scale"], bool | float):
                raise ValueError(f"the SpO2 scale is 1, or 2 where 88 to 92 % is prescribed, not {given['scale']!r}")
            now.scale = given["scale"]
        state.entered = now
        self.version += 1
        state.due_ns = self.due_ns = at_ns  # looked at now
        said = {
            "consciousness": now.consciousness or UNKNOWN, "oxygen": _words(now.oxygen),
            "fio2": UNKNOWN if now.fio2 is None else f"{now.fio2:g} %", "scale": str(now.scale),
        }  # fmt: skip
        return {name: said[name] for name in ENTRIES if name in given}

    def entered(self, bed: str, at_ns: int) -> dict[str, Any]:
        """What is entered and counts, with its age and the time that it still counts, in s; and the SpO2 scale."""
        it = self._beds[bed].entered
        level, oxygen, fio2 = self._current(it, at_ns)

        def since(then_ns: int) -> dict[str, float]:
            age_ns = at_ns - then_ns
            return {"age_s": round(age_ns / NS, 1), "left_s": round((self._entry_ns - age_ns) / NS, 1)}

        out: dict[str, Any] = {"scale": it.scale}
        if level is not None:
            out["consciousness"] = {"value": level, **since(it.consciousness_ns)}
        if oxygen is not None:
            out["oxygen"] = {"value": oxygen, "fio2": fio2, **since(it.oxygen_ns)}
        return out

    def _current(self, it: Entered, at_ns: int) -> tuple[str | None, bool | None, float | None]:
        level = it.consciousness if at_ns - it.consciousness_ns < self._entry_ns else None
        return (level, it.oxygen, it.fio2) if at_ns - it.oxygen_ns < self._entry_ns else (level, None, None)

    def new_patient(self, bed: str) -> None:
        """Forget what was entered and scored on a bed."""
        state = self._beds[bed]
        if state.entered != Entered():
            self.version += 1
        state.forget()

    def saved(self) -> bytes:
        """What `restore` takes: the entries of all beds."""
        return msgspec.json.encode({bed: each.entered for bed, each in self._beds.items() if each.entered != Entered()})

    def restore(self, saved: bytes, moved_ns: int | None) -> None:
        """Put back what was entered, its times moved by `moved_ns`; None: its age cannot be known, so only the scale.

        Raises: msgspec.DecodeError.
        """
        for bed, it in _DECODE(saved).items():
            if bed not in self._beds:
                continue
            if moved_ns is None:
                it.consciousness = it.oxygen = it.fio2 = None
            else:
                it.consciousness_ns += moved_ns
                it.oxygen_ns += moved_ns
            self._beds[bed].entered = it

    def held(self, bed: str, condition: str) -> None:
        """Take note that a limit on a score was present before a restart: no partial score may end it."""
        row = self._preset(bed).row(condition) if bed in self._beds else None
        if row is not None and row.verb == "score_above":
            self._beds[bed].told[row.vital] = math.inf

    # -- scores -----------------------------------------------------------------------------------------------------

    def evaluate(self, latest: Mapping[str, Mapping[str, Observation]], at_ns: int) -> Iterator[Scored]:
        """Scores of the beds whose turn it is, those that somebody is to hear of; `latest` is by bed and term."""
        if not self._begun:  # beds in turn, so that no moment has the work of all
            self._begun = True
            for number, state in enumerate(self._beds.values()):
                state.phase_ns = at_ns + number * _EVERY_NS // len(self._beds)
                state.due_ns = state.due_ns or state.phase_ns
        for bed, state in self._beds.items():
            if state.due_ns <= at_ns:
                # its own next turn, however late this one is: or a stall of the loop would bring beds together for good
                state.due_ns = at_ns + _EVERY_NS - (at_ns - state.phase_ns) % _EVERY_NS
                yield from self._bed(bed, state, latest[bed], at_ns)
        self.due_ns = min(state.due_ns for state in self._beds.values())

    def view(self, bed: str, at_ns: int) -> dict[str, dict[str, Any]]:
        """The scores of a bed for a person: value, inputs present and needed, band, what gave points or is missing."""
        state = self._beds[bed]
        out: dict[str, dict[str, Any]] = {}
        for name, result in state.results.items():
            out[name] = {
                "label": LABELS[name],
                "value": None if result.value is None else round(result.value, 2),
                "present": result.present,
                "needed": result.needed,
                "band": result.band,
                "at_least": _at_least(result),
                "detail": _detail(name, result, state.entered.scale),
                "age_s": round((at_ns - state.seen_ns) / NS, 1),
            }
            if name == "news2" and result.band is not None:
                out[name]["response"] = scores.NEWS2_RESPONSE[result.band]
        return out

    def _bed(self, bed: str, state: _Bed, latest: Mapping[str, Observation], at_ns: int) -> Iterator[Scored]:
        preset = self._preset(bed)
        plan = state.plan
        if plan is None or plan.preset is not preset:
            plan = state.plan = _plan(preset)
        if not plan.adult:
            state.results, state.inputs = {}, ()
            return
        measured, current = _measured(plan, state.armed, latest, at_ns), self._current(state.entered, at_ns)
        inputs = (measured, current, state.entered.scale)
        state.seen_ns = at_ns
        if inputs != state.inputs:
            state.inputs = inputs
            state.results = _results(dict(zip(_NAMES, measured, strict=True)), *current, state.entered.scale)
        minute = at_ns - state.recorded_ns >= _RECORD_NS
        if minute:
            state.recorded_ns = at_ns
        for name, result in state.results.items():
            record = self._to_record(state, name, result, minute=minute)
            tell = name in plan.limits and _may_tell(result, plan.limits[name], state.told.get(name))
            if record or tell:
                detail = _detail(name, result, state.entered.scale)
                band = f"{'at least ' if _at_least(result) else ''}{result.band}" if result.band else ""
                score = Score(
                    name, result.value, at_ns, result.present / result.needed, VERSIONS[name],
                    "; ".join(filter(None, (band, detail))),
                )  # fmt: skip
                if tell and result.value is not None:
                    state.told[name] = result.value
                yield Scored(bed, score, record, tell)

    def _to_record(self, state: _Bed, name: str, result: Result, *, minute: bool) -> bool:
        value = None if name in _RATIOS else result.value
        key = (value, result.present, result.band)
        before = state.recorded.get(name)
        if key == before and not (minute and result.value is not None):
            return False
        if before is None and not result.present:
            return False  # a bed without a device has nothing to say
        state.recorded[name] = key
        return True


def _adult(preset: Preset) -> bool:
    return preset.population.lower().startswith("adult")


def _plan(preset: Preset) -> _Plan:
    ages = {row.vital: row.silence_s for row in preset.conditions if row.verb == "silent" and row.silence_s}
    limits: dict[str, tuple[float, ...]] = {}
    for row in preset.conditions:
        if row.verb == "score_above" and row.high is not None and row.vital in LABELS:
            limits[row.vital] = (*limits.get(row.vital, ()), row.high)

    def age_ns(term: terms.Term) -> int:
        most = AGE_S.get(term.vital, _AGE_S)
        return round(min(most, ages.get(term.vital, most)) * NS)

    inputs = tuple(
        (name, tuple((terms.BY_NAME[term], age_ns(terms.BY_NAME[term])) for term in of)) for name, of in _INPUTS
    )
    return _Plan(preset, _adult(preset), inputs, limits)


def _measured(plan: _Plan, armed: set[str], latest: Mapping[str, Observation], at_ns: int) -> tuple[float | None, ...]:
    """The inputs that devices give, in the order of _INPUTS."""
    found: list[float | None] = []
    for name, candidates in plan.inputs:
        value = None
        for term, age_ns in candidates:
            it = latest.get(term.name)
            if it is None or it.value is None or it.validity != "valid" or at_ns - it.at_ns >= age_ns:
                continue
            if plausible.reason(term, it.value) or _crossed(it, latest):
                continue
            if name not in armed and name in _CONNECTED:
                if it.value < _CONNECTED[name]:
                    continue
                armed.add(name)
            value = it.value
            break
        found.append(value)
    return tuple(found)


def _crossed(it: Observation, latest: Mapping[str, Observation]) -> bool:
    """Whether a systolic pressure does not lie above the diastolic of the same measurement."""
    pair = plausible.PAIR_OF.get(it.term)
    other = latest.get(pair[1]) if pair else None
    if other is None or other.value is None or it.value is None:
        return False
    same = other.at_ns == it.at_ns or (other.device_time is not None and other.device_time == it.device_time)
    return same and other.value >= it.value


def _results(
    measured: Mapping[str, float | None], level: str | None, oxygen: bool | None, fio2: float | None, scale: int
) -> dict[str, Result]:
    pulse, spo2, resp_rate = measured["pulse"], measured["spo2"], measured["resp_rate"]
    systolic, temperature = measured["systolic"], measured["temperature"]
    consciousness = cast("scores.Consciousness | None", level)
    out = {
        "news2": scores.news2(
            resp_rate=resp_rate, spo2=spo2, oxygen=oxygen, systolic=systolic, pulse=pulse,
            consciousness=consciousness, temperature=temperature, scale=cast("Literal[1, 2]", scale),
        ),
        "mews": scores.mews(
            systolic=systolic, heart_rate=pulse, resp_rate=resp_rate, temperature=temperature,
            avpu=None if consciousness == "C" else consciousness,  # new confusion is no level of AVPU
        ),
        "qsofa": scores.qsofa(
            resp_rate=resp_rate, systolic=systolic,
            gcs=None if level is None else 15 if level == "A" else _ALTERED_GCS,
        ),
        "sirs": scores.sirs(temperature=temperature, heart_rate=pulse, resp_rate=resp_rate),
        "shock_index": scores.shock_index(heart_rate=pulse, systolic=systolic),
    }  # fmt: skip
    if oxygen:
        percent = fio2 if fio2 is not None else measured["fio2"]
        fraction = percent / 100 if percent is not None and _AIR_PERCENT <= percent <= 100 else None
        out["rox"] = scores.rox(spo2=spo2, fio2=fraction, resp_rate=resp_rate)
    return out


def _may_tell(result: Result, limits: tuple[float, ...], told: float | None) -> bool:
    """Whether the watch may judge a result: a whole one always; a part unless it took back what was over a limit."""
    value = result.value
    if value is None:
        return False
    if not result.partial or told is None:
        return True
    return not any(value <= limit < told for limit in limits)


def _at_least(result: Result) -> bool:
    """Whether what is missing could still raise the band; no other score than NEWS2 has more than two."""
    return result.partial and result.band in ("low-medium", "medium")


def _detail(name: str, result: Result, scale: int) -> str:
    given = [f"{each} {points}" for each, points in result.points.items() if points]
    missing = [each for each, points in result.points.items() if points is None]
    parts = [", ".join(given)] if given else []
    parts += [f"missing {', '.join(missing)}"] if missing else []
    parts += ["SpO2 scale 2"] if name == "news2" and scale == 2 else []
    return "; ".join(parts).replace("_", " ")


def _level(given: Any) -> str | None:
    level = given.upper() if isinstance(given, str) else given
    if level == UNKNOWN.upper():
        return None
    if not isinstance(level, str) or level not in ("A", "C", "V", "P", "U"):
        raise ValueError(
            "consciousness is A (alert), C (new confusion), V (responds to voice), P (to pain), U (unresponsive) or "
            f"unknown, not {given!r}"
        )
    return level


def _oxygen(given: Any, fio2: Any) -> tuple[bool | None, float | None]:
    if given is not None and given != UNKNOWN and not isinstance(given, bool):
        raise ValueError(f"oxygen is true, false or unknown, not {given!r}")
    if fio2 is None:
        return (None if given == UNKNOWN else given), None
    if isinstance(fio2, bool) or not isinstance(fio2, int | float) or not _AIR_PERCENT <= fio2 <= 100:
        raise ValueError(f"FiO2 is in %, 21 to 100 (40, not 0.4), not {fio2!r}")
    if given is not None and given is not True:
        raise ValueError("an FiO2 is entered for a patient on oxygen only")
    return fio2 > _AIR_PERCENT, float(fio2)


def _words(oxygen: bool | None) -> str:
    return UNKNOWN if oxygen is None else "yes" if oxygen else "no"
