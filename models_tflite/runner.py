"""Windows of many beds to risks, or to the reason why there is none.

Theory of operation. Each window passes the gate first: its shape, numbers that are not finite, values that no patient
can have (mostly a mistaken unit; a single stray one counts as not measured), too little measured. What passes becomes
inputs (`features.inputs`), and a window with an input beyond the least and most that training saw is unfamiliar: the
model abstains rather than guess. The rest is normalised and goes through the network in one batch, every bed in its own
row with a state of its own that begins at zero. What comes out must be finite and within 0 to 1; it is calibrated then.
A contribution is what the risk loses when one vital sign is taken out of the window as if it had never been measured.

A runner is opened only when the bundle's goldens come out right, on this machine, in the runtime that will be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models_tflite import features
from models_tflite.bundle import MODEL, Bundle, BundleRefused
from models_tflite.description import Calibration, Description, Goldens, GoldenSteps, GoldenWindow
from models_tflite.lean import Pages
from models_tflite.runtime import INPUT, OUTPUT, Engine, NoRuntime, open_engine

Status = Literal["scored", "abstained", "error"]
Floats = NDArray[np.float64]
NEVER = float("inf")
ROWS = 64  # of a batch through the network; more would only take memory
_STRAY = 0.25  # of a vital sign's values; more that no patient can have are no accident
_KEPT = 1 << 20  # bytes; the arrays of 32 windows and their inputs
_SLACK = 1e-3  # of a deviation: inputs are 32-bit numbers, the limits of training are not
_ANEW = (
    "Have the bundle issued anew by those who trained it, or install the version of this program that it was made for"
)


@dataclass(frozen=True, slots=True)
class Window:
    """One bed's vital signs: hourly rows (T, 7), oldest first, the newest hour last, NaN where none was measured."""

    bed: str
    vitals: ArrayLike
    age: float = float("nan")  # years
    sex: float = float("nan")  # 1 male, 0 female


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one window: a risk of 0 to 1, or none and why."""

    bed: str
    status: Status
    risk: float | None
    reason: str = ""  # shape, not_finite, implausible, coverage, unfamiliar; output or runtime for an error
    text: str = ""  # the reason as a sentence
    coverage: float = 0.0  # share of vital signs x hours that were measured within the recent hours, 0 to 1
    contributions: tuple[tuple[str, float], ...] = ()  # vital sign and what it adds to the risk, the largest first


class Runner:
    """Scores windows with one bundle; for one thread."""

    def __init__(self, bundle: Bundle, prefer: str | None = None, prove: bool = True) -> None:
        """Raises: BundleRefused when no runtime carries the model or a golden comes out wrong.

        Without `prove` no golden is looked at, which is for making them (`goldens`) and for nothing else.
        """
        about = bundle.description
        self.bundle = bundle
        self._check_inputs()
        try:
            self._engine = open_engine(bundle.model, prefer, about.runtime)
        except NoRuntime as error:
            remedy = "Install one of the runtimes that the bundle allows"
            raise BundleRefused(bundle.folder / MODEL, f"runs in no runtime ({error})", remedy) from error
        self.runtime = f"{self._engine.package} {self._engine.version}"
        self._names = tuple(vital.name for vital in about.vitals)
        self._least = np.array([vital.low for vital in about.vitals])
        self._most = np.array([vital.high for vital in about.vitals])
        all_inputs = about.features.names == features.NAMES
        self._columns = None if all_inputs else [features.NAMES.index(name) for name in about.features.names]
        self._mean = np.array(about.features.mean, np.float32)
        self._scale = (1.0 / np.array(about.features.std)).astype(np.float32)
        slack = np.array(about.features.std) * _SLACK
        self._low = (np.array(about.features.low) - slack).astype(np.float32)
        self._high = (np.array(about.features.high) + slack).astype(np.float32)
        _prove_tensors(bundle, self._engine)
        if prove:
            _prove_steps(bundle, self._engine)
            self._prove_windows()
        # glibc keeps freed memory up to twice the largest block that it saw freed: without this one, the arrays of each
        # evaluation would be taken from the kernel anew, which doubles the time that inputs take
        np.empty(_KEPT, np.int8)
        self._pages = Pages()
        self.rest()

    def score(self, windows: Sequence[Window], explain_from: float = NEVER) -> list[Scored]:
        """One result per window, in order; contributions for risks of at least `explain_from`. Input never raises."""
        if not windows:
            return []
        rows, refused = self._stacked(windows)
        coverage = self._gate(rows, refused)
        who = [index for index in range(len(windows)) if index not in refused]
        if refused:
            rows = rows[who]
        age = np.array([windows[index].age for index in who], np.float64)
        sex = np.array([windows[index].sex for index in who], np.float64)
        risks: dict[int, float] = {}
        faults: dict[int, str] = {}
        if who:
            x = self._inputs(rows, age, sex)
            refused |= {who[at]: ("unfamiliar", text) for at, text in self._unfamiliar(x).items()}
            risks, faults = self._named(who, x)
        out = []
        for index, window in enumerate(windows):
            share = coverage[index]
            if index in refused:
                out.append(Scored(window.bed, "abstained", None, *refused[index], share))
            elif index in risks:
                out.append(Scored(window.bed, "scored", risks[index], "", "", share))
            else:
                reason, _, text = faults[index].partition(":")
                out.append(Scored(window.bed, "error", None, reason, text, share))
        picked = [at for at, index in enumerate(who) if (out[index].risk is not None and risks[index] >= explain_from)]
        if picked:
            self._explain(out, picked, who, rows, age, sex)
        return out

    def rest(self) -> None:
        """Gives back memory that only scoring needs; for the minute until the next batch, which costs that a little."""
        self._pages.give_back()

    def _named(self, who: list[int], x: NDArray[np.float32]) -> tuple[dict[int, float], dict[int, str]]:
        """The risks by window, and `reason:text` of those that have none."""
        try:
            risk, fault = self._risks(x)
        except (RuntimeError, ValueError) as error:
            text = f"runtime:the runtime failed: {error}".splitlines()[0]
            return {}, dict.fromkeys(who, text)
        found = dict(zip(who, risk.tolist(), strict=True))
        for at in fault:
            del found[who[at]]
        return found, {who[at]: f"output:{text}" for at, text in fault.items()}

    def normalised(self, window: Window) -> NDArray[np.float32]:
        """The network's inputs of one window, (steps, width), as the network gets them.

        Raises: ValueError for a window of another shape.
        """
        rows, refused = self._stacked([window])
        if refused:
            raise ValueError(refused[0][1])
        x = self._inputs(rows, np.array([window.age]), np.array([window.sex]))[0]
        return np.asarray((x - self._mean) * self._scale)

    def raw(self, x: NDArray[np.float32]) -> float:
        """The network's output after normalised inputs (T, width), before calibration."""
        return float(self._engine.roll(np.ascontiguousarray(x[:, None, :]))[0][0])

    def _stacked(self, windows: Sequence[Window]) -> tuple[Floats, dict[int, tuple[str, str]]]:
        """All windows as (B, steps, vitals), NaN before a window's first row; and those that have another shape."""
        steps, width = self.bundle.description.window.steps, len(self._names)
        out = np.full((len(windows), steps, width), np.nan)
        refused: dict[int, tuple[str, str]] = {}
        for index, window in enumerate(windows):
            try:
                rows = np.asarray(window.vitals, dtype=np.float64)
            except (ValueError, TypeError) as error:
                refused[index] = ("shape", f"the window holds no numbers: {error}")
                continue
            if rows.ndim != 2 or rows.shape[1] != width or not 0 < rows.shape[0] <= steps:
                refused[index] = (
                    "shape",
                    f"the window has shape {rows.shape}, not up to {steps} rows of {width} vitals",
                )
                continue
            out[index, steps - rows.shape[0] :] = rows
        return out, refused

    def _gate(self, rows: Floats, refused: dict[int, tuple[str, str]]) -> list[float]:
        """Adds to `refused` what may not be scored; returns the coverage of each window.

        A stray value that no patient can have counts as not measured, and is blanked in `rows`. When the newest value
        of a vital sign is such, or many are, it is no stray but a unit or a sensor.
        """
        quality = self.bundle.description.quality
        measured = ~np.isnan(rows)
        with np.errstate(invalid="ignore"):
            wrong = (rows < self._least) | (rows > self._most)
        if wrong.any():
            newest = rows.shape[1] - 1 - measured[:, ::-1].argmax(axis=1, keepdims=True)
            fault = np.take_along_axis(wrong, newest, axis=1)[:, 0] | np.isinf(rows).any(axis=1)
            fault |= wrong.sum(axis=1) > _STRAY * measured.sum(axis=1)
            for index in np.flatnonzero(fault.any(axis=1)).tolist():
                refused.setdefault(index, self._implausible(rows[index], wrong[index] & fault[index]))
            rows[wrong] = np.nan
            measured &= ~wrong
        recent = measured[:, -quality.recent_steps :]
        coverage: list[float] = recent.mean(axis=(1, 2)).tolist()
        vitals = recent.any(axis=1).sum(axis=1)
        if (vitals < quality.least_vitals).any():
            for index in np.flatnonzero(vitals < quality.least_vitals).tolist():
                text = (
                    f"{vitals[index]} of {len(self._names)} vital signs within the last {quality.recent_steps} "
                    f"hours, at least {quality.least_vitals} are needed"
                )
                refused.setdefault(index, ("coverage", text))
        return coverage

    def _implausible(self, rows: Floats, wrong: NDArray[np.bool_]) -> tuple[str, str]:
        infinite = wrong & np.isinf(rows)
        step, vital = np.argwhere(infinite if infinite.any() else wrong)[-1].tolist()  # the newest tells best
        value, about = float(rows[step, vital]), self.bundle.description.vitals[vital]
        hours = len(rows) - 1 - step
        when = f"{hours} h ago" if hours else "of this hour"
        if infinite.any():
            return "not_finite", f"{about.name} {when} is {value}, which is no number"
        text = f"{about.name} {value:g} {when} is outside {about.low:g} to {about.high:g} {about.unit}"
        return "implausible", text + _likely_unit(about.unit, value)

    def _inputs(self, rows: Floats, age: Floats, sex: Floats) -> NDArray[np.float32]:
        x = features.inputs(rows, age, sex)
        return x if self._columns is None else x[..., self._columns]

    def _unfamiliar(self, x: NDArray[np.float32]) -> dict[int, str]:
        beyond = (x < self._low) | (x > self._high)
        found: dict[int, str] = {}
        if not beyond.any():
            return found
        about = self.bundle.description.features
        for index in np.flatnonzero(beyond.any(axis=(1, 2))).tolist():
            step, column = np.argwhere(beyond[index])[-1].tolist()
            value, low, high = float(x[index, step, column]), about.low[column], about.high[column]
            found[index] = f"{about.names[column]} is {value:.4g}; training saw {low:.4g} to {high:.4g}"
        return found

    def _risks(self, x: NDArray[np.float32]) -> tuple[Floats, dict[int, str]]:
        """The calibrated risks of inputs (B, steps, width), and what is wrong with those that are none."""
        ready = np.empty((x.shape[1], len(x), x.shape[2]), np.float32)
        np.multiply(x.transpose(1, 0, 2) - self._mean, self._scale, out=ready)
        raw, finite = np.empty(len(x), np.float64), np.empty(len(x), np.bool_)
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            raw[part], finite[part] = self._engine.roll(np.ascontiguousarray(ready[:, part]))
        good = finite & (raw >= 0.0) & (raw <= 1.0)
        fault = {}
        if not good.all():
            for index in np.flatnonzero(~good).tolist():
                what = f"{raw[index]:g} is no risk of 0 to 1" if finite[index] else "its result or state is not finite"
                fault[index] = f"the model failed: {what}"
            raw = np.where(good, raw, 0.0)
        return _calibrated(self.bundle.description.calibration, raw), fault

    def _explain(
        self, out: list[Scored], picked: list[int], who: list[int], rows: Floats, age: Floats, sex: Floats
    ) -> None:
        """Adds the contributions to the results of the rows `picked`."""
        count = len(self._names)
        without = np.repeat(rows[picked], count, axis=0)
        for vital in range(count):
            without[vital::count, :, vital] = np.nan
        x = self._inputs(without, np.repeat(age[picked], count), np.repeat(sex[picked], count))
        try:
            risk, fault = self._risks(x)
        except (RuntimeError, ValueError):
            return  # the risk stands; only its explanation is missing
        for number, at in enumerate(picked):
            index = who[at]
            parts = [
                (name, (out[index].risk or 0.0) - float(risk[number * count + vital]))
                for vital, name in enumerate(self._names)
                if number * count + vital not in fault and not np.isnan(rows[at, :, vital]).all()
            ]
            parts.sort(key=lambda part: -part[1])
            out[index] = replace(out[index], contributions=tuple(parts))

    def _check_inputs(self) -> None:
        about = self.bundle.description
        where = self.bundle.folder
        if tuple(vital.name for vital in about.vitals) != features.VITALS:
            raise BundleRefused(where, f"its vitals are not {', '.join(features.VITALS)}", _ANEW)
        if tuple(vital.unit for vital in about.vitals) != features.UNITS:
            raise BundleRefused(where, f"its units are not {', '.join(features.UNITS)}", _ANEW)
        unknown = [name for name in about.features.names if name not in features.NAMES]
        if unknown:
            raise BundleRefused(where, f"this version computes no input {unknown[0]!r}", _ANEW)
        if about.window.steps != features.WINDOW or about.window.step_s != 3600:
            what = (
                f"a window of {about.window.steps} rows every {about.window.step_s:g} s, here {features.WINDOW} hours"
            )
            raise BundleRefused(where, what, _ANEW)

    def _prove_windows(self) -> None:
        goldens = self.bundle.description.goldens
        for number, (case, found) in enumerate(
            zip(goldens.windows, self.score([_window(case) for case in goldens.windows]), strict=True)
        ):
            if found.risk is None:
                what = f"golden window {number} gives no risk: {found.text}"
                raise BundleRefused(self.bundle.folder, what, _ANEW)
            if abs(found.risk - case.risk) > goldens.tolerance:
                what = (
                    f"golden window {number} gives risk {found.risk:.6f} instead of {case.risk:.6f} in {self.runtime}"
                )
                raise BundleRefused(self.bundle.folder, what, _ANEW)


def goldens(model: bytes, about: Description, windows: Sequence[Window], tolerance: float, steps: int = 6) -> Goldens:
    """What this machine's runtime makes of `windows`, as the goldens of a bundle to be written.

    Each window gives a risk; the last `steps` inputs of the first window, from zero state, prove the network alone.
    Choose the windows so that their risks differ. Raises: ValueError when one is not scored.
    """
    runner = Runner(Bundle(Path(about.name), about, model, ""), prove=False)
    cases = []
    for window, found in zip(windows, runner.score(windows), strict=True):
        if found.risk is None:
            raise ValueError(f"golden {window.bed}: {found.text}")
        rows = tuple(tuple(_or_none(value) for value in row) for row in np.asarray(window.vitals, np.float64).tolist())
        cases.append(
            GoldenWindow(vitals=rows, age=_or_none(window.age), sex=_or_none(window.sex), risk=round(found.risk, 9))
        )
    x = np.round(runner.normalised(windows[0])[-steps:].astype(np.float64), 5)  # short numbers in a signed text
    alone = GoldenSteps(x=tuple(map(tuple, x.tolist())), output=round(runner.raw(x.astype(np.float32)), 9))
    return Goldens(tolerance=tolerance, steps=(alone,), windows=tuple(cases))


def _prove_tensors(bundle: Bundle, engine: Engine) -> None:
    """The network's tensors are those of the description, in name, shape and type. Raises: BundleRefused."""
    about = bundle.description
    state = {name: ((-1, width), "float32") for name, width in about.state.items()}
    for what, found, expected in (
        ("inputs", engine.inputs, {**state, INPUT: ((-1, len(about.features.names)), "float32")}),
        ("outputs", engine.outputs, {**state, OUTPUT: ((-1, 1), "float32")}),
    ):
        if found != expected:
            raise BundleRefused(
                bundle.folder / MODEL, f"its {what} are {_told(found)}; the description says {_told(expected)}", _ANEW
            )


def _prove_steps(bundle: Bundle, engine: Engine) -> None:
    goldens = bundle.description.goldens
    for number, case in enumerate(goldens.steps):
        try:
            raw, finite = engine.roll(np.array(case.x, np.float32)[:, None, :])
        except (RuntimeError, ValueError) as error:
            raise BundleRefused(bundle.folder / MODEL, f"golden {number} does not run ({error})", _ANEW) from error
        # written so that a NaN is a difference
        if not (finite[0] and abs(float(raw[0]) - case.output) <= goldens.tolerance):
            what = (
                f"golden {number} gives {raw[0]:.6f} instead of {case.output:.6f} in {engine.package} {engine.version}"
            )
            raise BundleRefused(bundle.folder / MODEL, what, _ANEW)


def _calibrated(how: Calibration, raw: Floats) -> Floats:
    if how.kind == "platt":
        sure = np.clip(raw, 1e-7, 1 - 1e-7)  # the logit of 0 and 1 is infinite
        logit = np.clip(how.a * np.log(sure / (1.0 - sure)) + how.b, -30.0, 30.0)  # beyond it nothing changes any more
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))
    if how.kind == "points":
        return np.asarray(np.interp(raw, how.x, how.y))
    return raw


def _likely_unit(unit: str, value: float) -> str:
    """A guess at the unit that was taken for another; helps to find the mistake, and changes nothing."""
    if unit == "%" and 0 < value <= 1:
        return ": it looks like a fraction"
    if unit == "Cel" and 77 <= value <= 115:
        return ": it looks like degrees Fahrenheit"
    if unit == "Cel" and 290 <= value <= 320:
        return ": it looks like kelvin"
    if unit == "mm[Hg]" and 0 < value < 40:
        return ": it looks like kPa"
    return ""


def _window(case: GoldenWindow) -> Window:
    rows = [[_number(value) for value in row] for row in case.vitals]
    return Window("golden", rows, _number(case.age), _number(case.sex))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _told(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{name} {list(shape)} {kind}" for name, (shape, kind) in sorted(tensors.items()))
