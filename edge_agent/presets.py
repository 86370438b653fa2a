"""What an alarm *is*: rows of a preset, read from TOML and checked whole before anything starts.

A preset file holds `name`, `population`, optionally `extends`, and [[condition]] rows. A file that extends another
preset states only what differs: a row with a known `id` replaces the keys it names, a row with a new `id` is added,
`enabled = false` takes a row out. `present` is one of a closed set of verbs with numbers, no expression language.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast

from edge_agent import terms
from edge_agent.config import ConfigError, Key, key_lines, nearest_line
from edge_agent.records import Priority

Kind = Literal["physiological", "technical", "advisory"]

BUILT_IN = Path(__file__).parent / "alarms" / "presets"
DELAY_CEILING_S: dict[str, float] = {"high": 10.0, "medium": 30.0, "low": 30.0}  # engineering ceilings, docs/alarms.md
OFF_DELAY_S = 5.0  # of a limit whose row does not say otherwise
LONGEST_SILENCE_S = 86400.0  # a vital that may be a day old is not watched
EXPIRES_S = (
    90.0  # of a device's alarm that only repetition keeps up: a monitor that exports once a minute, and half of it
)
LONGEST_COOL_DOWN_S = 86400.0  # who was alerted yesterday is alerted again today
LONGEST_EXPIRY_S = 3600.0  # an alarm that is an hour older than its last word says nothing of the patient
PRIORITIES: tuple[Priority, ...] = ("high", "medium", "low")
RANK: dict[str, int] = {"none": 0, "low": 1, "medium": 2, "high": 3}
LIMIT_VERBS = frozenset({"below", "above", "outside", "score_above"})
_STATUS_VITALS = frozenset(term.vital for term in terms.TERMS if term.kind == "status")
_NUMERIC_VITALS = frozenset(term.vital for term in terms.TERMS if term.kind != "waveform")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_HELP = "docs/alarms.md explains the rows of a preset"


@dataclass(frozen=True, slots=True)
class Condition:
    """One alarm condition: when it is present, what it is worth, and how it ends."""

    id: str
    kind: Kind
    priority: Priority
    present: str  # as written, for example "below 90"
    text: str
    source: str  # where the figures come from
    verb: str
    vital: str = ""
    low: float | None = None  # a value under it is out of limits, in the unit of the vital
    high: float | None = None  # a value over it is out of limits
    silence_s: float | None = None  # of the verb `silent`: the greatest age of the vital's last valid value
    grade: Priority | None = None  # of the verb `device_alarm`: the lowest priority that is taken over
    deadband: float = 0.0  # how far inside the limit a value must be to end the condition
    delay_s: float = 0.0
    off_delay_s: float = 0.0
    severity: float = 0.0  # deficit x seconds beyond the limit that end the delay early; 0: never
    cool_down_s: float = 0.0  # of the verb `score_above`: once it has ended, the time before it may come again
    expires_s: float = 0.0  # of the verb `device_alarm`: greatest age of an alarm that only repetition keeps up
    latching: bool = False
    arming: str = "first"  # first | at_least | measured
    arming_amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of conditions for one population of patients, or for the gateway itself."""

    name: str
    population: str
    conditions: tuple[Condition, ...]
    disabled: tuple[str, ...] = ()  # ids of rows that the preset takes out, so that status can show them as off
    by_id: Mapping[str, Condition] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {condition.id: condition for condition in self.conditions})

    def row(self, condition: str) -> Condition | None:
        """The row of a condition id; what follows a colon only tells several of one row apart."""
        return self.by_id.get(condition.partition(":")[0])

    def with_latching(self, latching: bool) -> Preset:
        """The same preset with every physiological condition latching, or none."""
        return replace(
            self,
            conditions=tuple(
                replace(condition, latching=latching) if condition.kind == "physiological" else condition
                for condition in self.conditions
            ),
        )

    def with_row(self, condition: str, present: str, delay_s: float | None = None) -> Preset:
        """The same preset with another figure, and delay in s, in one limit row; checked like a row of a file.

        Raises: ValueError with the words that the check of a file would use.
        """
        old = self.by_id.get(condition)
        if old is None:
            off = " (it is taken out)" if condition in self.disabled else ""
            raise ValueError(f"preset {self.name!r} has no condition {condition!r}{off}")
        if old.verb not in LIMIT_VERBS:
            raise ValueError(f"{condition!r} is not a limit: its row is `{old.present}`")
        words = present.split()
        if words[:1] != [old.verb]:
            raise ValueError(f"a limit keeps its verb: write `{old.verb}` and the figure, not {present!r}")
        place = Path(self.name)
        row = {key: _Cell(value, place, None, key) for key, value in _written(old).items()}
        row["present"] = _Cell(" ".join(words), place, None, "present")
        if delay_s is not None:
            row["delay_s"] = _Cell(delay_s, place, None, "delay_s")
        row[""] = _Cell(None, place, None, condition)
        try:
            new = _condition(condition, row)
            rows = tuple(new if each is old else each for each in self.conditions)
            _check_order(rows, lambda _urgent, _other: row["present"])
        except ConfigError as error:
            raise ValueError(f"{error.key}: {error.reason}" + (f"; {error.remedy}" if error.remedy else "")) from None
        return replace(self, conditions=rows)


def _written(row: Condition) -> dict[str, Any]:
    """The keys of a row as a file would state them."""
    keys = ("kind", "priority", "present", "text", "source", "deadband", "delay_s", "off_delay_s", "latching")
    written = {key: getattr(row, key) for key in keys}
    written["arming"] = row.arming if row.arming == "first" else f"{row.arming} {row.arming_amount!r}"
    more = ("vital", "severity", "expires_s", "cool_down_s")
    return written | {key: getattr(row, key) for key in more if getattr(row, key)}


class _Cell(NamedTuple):
    """A value with the place that states it: rows of several files are merged key by key."""

    value: Any
    path: Path
    line: int | None
    key: str

    def fail(self, reason: str, remedy: str = _HELP) -> NoReturn:
        raise ConfigError(self.path, self.line, self.key, reason, remedy)


_Row = dict[str, _Cell]


@dataclass(slots=True)
class _File:
    path: Path
    name: str
    population: str
    extends: _Cell | None
    rows: dict[str, _Row]  # by id, in the order of the file
    disabled: set[str] = field(default_factory=set)


def load_presets(paths: Iterable[Path] = ()) -> dict[str, Preset]:
    """The built-in presets and those of the files in `paths`, by name.

    Raises: ConfigError with file, line and key for anything that is not a usable preset.
    """
    files: dict[str, _File] = {}
    for path in (*sorted(BUILT_IN.glob("*.toml")), *paths):
        read = _read(path)
        if read.name in files:
            raise ConfigError(
                path, 1, "name", f"a preset {read.name!r} already exists in {files[read.name].path}",
                'give it a name of its own; `extends = "adult"` takes over the rows of another preset',
            )  # fmt: skip
        files[read.name] = read
    merged: dict[str, _File] = {}
    return {name: _check(_merge(read, files, merged, ())) for name, read in files.items()}


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, None, "", f"cannot be read: {error}", "give the path of a preset file") from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(path, int(found[1]) if found else None, "", f"not valid TOML: {error}") from error
    lines = key_lines(text)
    top = {key: _Cell(value, path, nearest_line(lines, (key,)), key) for key, value in data.items()}
    for key, cell in top.items():
        if key not in ("name", "population", "extends", "condition"):
            cell.fail("unknown key", "a preset has name, population, extends and [[condition]] rows")
        if key != "condition" and not isinstance(cell.value, str):
            cell.fail("must be text")
    name = top["name"].value if "name" in top else path.stem
    if not _NAME.fullmatch(name):
        where = top.get("name", _Cell(name, path, None, "name"))
        where.fail(f"{name!r} is not a name", "use lower-case letters, digits, dot, dash and underscore")
    population = top["population"].value if "population" in top else ""
    read = _File(path, name, population, top.get("extends"), {})
    conditions = data.get("condition", [])
    if not isinstance(conditions, list) or not all(isinstance(row, dict) for row in conditions):
        top["condition"].fail("must be rows", "write each condition as a table under [[condition]]")
    for index, raw in enumerate(conditions):
        _read_row(read, index, raw, lines)
    return read


def _read_row(read: _File, index: int, raw: dict[str, Any], lines: dict[Key, int]) -> None:
    row: _Row = {
        key: _Cell(value, read.path, nearest_line(lines, ("condition", index, key)), f"condition[{index}].{key}")
        for key, value in raw.items()
    }
    here = _Cell(None, read.path, nearest_line(lines, ("condition", index)), f"condition[{index}]")
    for key, cell in row.items():
        if key not in ROW_KEYS:
            close = difflib.get_close_matches(key, ROW_KEYS, n=1)
            cell.fail("unknown key", f"did you mean {close[0]}?" if close else f"known keys: {', '.join(ROW_KEYS)}")
    if "id" not in row:
        here._replace(key=here.key + ".id").fail("missing", "give the condition an id of its own")
    condition = row["id"].value
    if not isinstance(condition, str) or not _NAME.fullmatch(condition):
        row["id"].fail("is not an id", "use lower-case letters, digits, dot, dash and underscore")
    if condition in read.rows:
        row["id"].fail(f"condition {condition!r} stands twice in this preset", "one id names one condition")
    row[""] = here
    read.rows[condition] = row


def _merge(read: _File, files: dict[str, _File], merged: dict[str, _File], seen: tuple[str, ...]) -> _File:
    if read.name in merged:
        return merged[read.name]
    rows: dict[str, _Row] = {}
    out = _File(read.path, read.name, read.population, None, rows)
    if read.extends is not None:
        parent = read.extends.value
        if parent not in files:
            read.extends.fail(f"no preset is named {parent!r}", f"known presets: {', '.join(sorted(files))}")
        if parent == read.name or parent in seen:
            read.extends.fail("presets extend each other in a circle", "one of them must stand alone")
        above = _merge(files[parent], files, merged, (*seen, read.name))
        rows.update({key: dict(row) for key, row in above.rows.items()})
        out.population = out.population or above.population
        out.disabled |= above.disabled
    for key, row in read.rows.items():
        rows[key] = {**rows.get(key, {}), **row}
        out.disabled.discard(key)
    for key in list(rows):
        enabled = rows[key].get("enabled")
        if enabled is None:
            continue
        if not isinstance(enabled.value, bool):
            enabled.fail("must be true or false")
        if not enabled.value:
            if _text(rows[key], "kind") == "technical":
                enabled.fail("a technical condition cannot be taken out", "silence is a fault; change its priority")
            out.disabled.add(key)
    merged[read.name] = out
    return out


def _check(read: _File) -> Preset:
    conditions = {key: _condition(key, row) for key, row in read.rows.items() if key not in read.disabled}
    silences: dict[str, str] = {}
    for key, condition in conditions.items():
        if condition.verb == "silent":
            if condition.vital in silences:
                read.rows[key][""].fail(f"{condition.vital} already has the row {silences[condition.vital]!r}")
            silences[condition.vital] = key
    for key, condition in conditions.items():
        if condition.verb in LIMIT_VERBS and condition.vital not in silences:
            read.rows[key][""].fail(
                f"nothing says how old a value of {condition.vital} may be",
                f'add a technical row with vital = "{condition.vital}" and present = "silent 30", '
                'or extend a preset that has one, such as "bedside"',
            )
        if condition.verb == "silent" and condition.vital not in _NUMERIC_VITALS:
            scores = {other.vital for other in conditions.values() if other.verb == "score_above"}
            if condition.vital not in scores:
                read.rows[key].get("vital", read.rows[key][""]).fail(f"no vital or score is named {condition.vital!r}")

    def place(urgent: Condition, other: Condition) -> _Cell:
        cells = [read.rows[row.id]["present"] for row in (urgent, other)]
        return next((cell for cell in cells if cell.path == read.path), cells[0])

    _check_order(conditions.values(), place)
    return Preset(read.name, read.population, tuple(conditions.values()), tuple(sorted(read.disabled)))


def _check_order(conditions: Iterable[Condition], place: Callable[[Condition, Condition], _Cell]) -> None:
    """A more urgent limit lies at or beyond every less urgent one of the same vital and side."""
    limits = [condition for condition in conditions if condition.verb in ("below", "above", "outside")]
    for urgent in limits:
        for other in limits:
            if urgent.vital != other.vital or RANK[urgent.priority] <= RANK[other.priority]:
                continue
            for side, sign in (("low", 1), ("high", -1)):
                mine, theirs = getattr(urgent, side), getattr(other, side)
                if mine is not None and theirs is not None and mine * sign > theirs * sign:
                    place(urgent, other).fail(
                        f"{side} limit {mine:g} of {urgent.id!r} ({urgent.priority}) lies inside {theirs:g} of "
                        f"{other.id!r} ({other.priority})",
                        "the more urgent limit must lie at or beyond the less urgent one",
                    )


def _condition(condition_id: str, row: _Row) -> Condition:
    kind = _choice(row, "kind", ("physiological", "technical", "advisory"))
    priority = _choice(row, "priority", PRIORITIES)
    present = _text(row, "present", required=True)
    verb, _, rest = present.partition(" ")
    if verb not in _VERBS:
        row["present"].fail(f"unknown verb {verb!r}", f"known verbs: {', '.join(_VERBS)}")
    parsed = _VERBS[verb](row["present"], rest.split())
    vital = _vital(row, verb)
    _check_kind(row, kind, priority, verb, vital)
    _check_bounds(row, verb, vital, parsed.get("low"), parsed.get("high"))
    text = _text(row, "text")
    if not text and priority == "high":
        row.get("text", row[""]).fail("a HIGH condition needs a text", "say in a few words what the nurse should read")
    limit = verb in LIMIT_VERBS
    delay_s = _number(row, "delay_s", 0.0, DELAY_CEILING_S[priority])
    if verb == "silent" and delay_s:
        row["delay_s"].fail("the seconds of `silent` are the delay", "remove delay_s")
    deadband = _number(row, "deadband", 0.0, math.inf)
    low, high = parsed.get("low"), parsed.get("high")
    if deadband and not limit:
        row["deadband"].fail(f"has no meaning for `{verb}`", "remove it")
    if low is not None and high is not None and 2 * deadband >= high - low:
        row["deadband"].fail("leaves no value that would end the condition", "make it smaller")
    severity = _number(row, "severity", 0.0, math.inf)
    if severity and not limit:
        row["severity"].fail(f"has no meaning for `{verb}`", "remove it")
    repeated = verb == "device_alarm"
    expires_s = _number(row, "expires_s", EXPIRES_S if repeated else 0.0, LONGEST_EXPIRY_S, "an hour at most")
    if "expires_s" in row and not repeated:
        row["expires_s"].fail(f"has no meaning for `{verb}`", "remove it")
    if repeated and not expires_s:
        row["expires_s"].fail("0 would end every alarm at once", f"remove it for {EXPIRES_S:g} s")
    cool_down_s = _number(row, "cool_down_s", 0.0, LONGEST_COOL_DOWN_S, "a day at most")
    if cool_down_s and verb != "score_above":
        row["cool_down_s"].fail("only a score may rest", "a limit on a vital sign comes whenever it is passed")
    latching = row["latching"].value if "latching" in row else False
    if not isinstance(latching, bool):
        row["latching"].fail("must be true or false")
    if latching and kind == "technical":
        row["latching"].fail("a technical condition never latches", "remove it")
    arming, amount = _arming(row)
    return Condition(
        id=condition_id, kind=cast(Kind, kind), priority=cast(Priority, priority), present=present,
        text=text or condition_id.replace("_", " "), source=_text(row, "source") or f"site preset {row[''].path.name}",
        verb=verb, vital=vital, deadband=deadband, delay_s=delay_s,
        off_delay_s=_number(row, "off_delay_s", OFF_DELAY_S if limit else 0.0, 30.0),
        severity=severity, cool_down_s=cool_down_s, expires_s=expires_s, latching=latching,
        arming=arming, arming_amount=amount, **parsed,
    )  # fmt: skip


def _check_kind(row: _Row, kind: str, priority: str, verb: str, vital: str) -> None:
    cell = row["kind"]
    if verb in ("silent", "implausible", "reported") and kind != "technical":
        cell.fail(f"`{verb}` is a technical condition", 'write kind = "technical"')
    if verb in ("below", "above", "outside") and vital not in _STATUS_VITALS and kind != "physiological":
        cell.fail(f"a limit on {vital} is a physiological condition", 'write kind = "physiological"')
    if verb == "device_alarm" and kind == "advisory":
        cell.fail("a device's alarm is physiological or technical")
    if (verb == "score_above") != (kind == "advisory"):
        cell.fail("a score is advisory, and nothing else is", 'write kind = "advisory" with score_above only')
    if kind == "advisory" and priority == "high":
        row["priority"].fail("an advisory condition is medium at most", "a model may add an alarm, not command one")


def _vital(row: _Row, verb: str) -> str:
    vital = _text(row, "vital")
    cell = row.get("vital", row[""])
    if verb in ("below", "above", "outside") and vital not in _NUMERIC_VITALS:
        close = difflib.get_close_matches(vital, _NUMERIC_VITALS, n=1)
        cell.fail(
            f"no vital is named {vital!r}" if vital else f"`{verb}` needs a vital",
            f"did you mean {close[0]}?" if close else f"known vitals: {', '.join(sorted(_NUMERIC_VITALS))}",
        )
    if verb in ("silent", "score_above") and not vital:
        cell.fail(f"`{verb}` needs a vital")
    if verb == "score_above" and (vital in terms.VITALS or vital in terms.BY_NAME):
        cell.fail(f"{vital!r} is measured, not scored", "a score has a name of its own, so that it feeds no limit")
    if verb in ("device_alarm", "implausible", "reported") and vital:
        cell.fail(f"`{verb}` has no vital", "remove it")
    return vital


def _check_bounds(row: _Row, verb: str, vital: str, low: float | None, high: float | None) -> None:
    if verb not in ("below", "above", "outside"):
        return
    family = [term for term in terms.TERMS if term.vital == vital]
    lowest = min((term.plausible_min for term in family if term.plausible_min is not None), default=-math.inf)
    highest = max((term.plausible_max for term in family if term.plausible_max is not None), default=math.inf)
    for limit in (low, high):
        if limit is not None and not lowest <= limit <= highest:
            row["present"].fail(
                f"limit {limit:g} lies outside the plausible range of {vital}",
                f"{lowest:g} to {highest:g} {family[0].ucum}",
            )


def _text(row: _Row, key: str, *, required: bool = False) -> str:
    if key not in row:
        if required:
            row[""]._replace(key=f"{row[''].key}.{key}").fail("missing")
        return ""
    value = row[key].value
    if not isinstance(value, str) or (required and not value.strip()):
        row[key].fail("must be text")
    return value.strip()


def _choice(row: _Row, key: str, allowed: tuple[str, ...]) -> str:
    if key not in row:
        row[""]._replace(key=f"{row[''].key}.{key}").fail("missing", f"write one of {', '.join(allowed)}")
    value = row[key].value
    if not isinstance(value, str) or value not in allowed:
        row[key].fail(f"{value!r} is not one of {', '.join(allowed)}", f"a condition has exactly one {key}")
    return value


def _number(
    row: _Row, key: str, default: float, greatest: float, most: str = "HIGH: 10 s at most, others: 30 s at most"
) -> float:
    if key not in row:
        return default
    value = row[key].value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        row[key].fail("must be a number")
    if value < 0:
        row[key].fail(f"{value:g} is negative", "write 0 or more")
    if value > greatest:
        row[key].fail(f"{value:g} is over the ceiling of {greatest:g}", most)
    return float(value)


def _figures(cell: _Cell, words: list[str], count: int) -> list[float]:
    if len(words) != count:
        cell.fail(f"needs {count} number{'s' * (count > 1)}, has {len(words)}")
    try:
        figures = [float(word) for word in words]
    except ValueError:
        cell.fail(f"{' '.join(words)!r} is not a number")
    if not all(math.isfinite(figure) for figure in figures):
        cell.fail("must be a finite number")
    return figures


def _parse_outside(cell: _Cell, words: list[str]) -> dict[str, Any]:
    low, high = _figures(cell, words, 2)
    if low >= high:
        cell.fail("the first limit must be under the second", 'write "outside 36 39"')
    return {"low": low, "high": high}


def _parse_silent(cell: _Cell, words: list[str]) -> dict[str, Any]:
    (seconds,) = _figures(cell, words, 1)
    if not 0 < seconds <= LONGEST_SILENCE_S:
        cell.fail(f"{seconds:g} s is not a usable age", f"more than 0 and at most {LONGEST_SILENCE_S:g} seconds")
    return {"silence_s": seconds}


def _parse_device_alarm(cell: _Cell, words: list[str]) -> dict[str, Any]:
    if len(words) != 1 or words[0] not in PRIORITIES:
        cell.fail("needs a priority", f'write "device_alarm low" for all; one of {", ".join(PRIORITIES)}')
    return {"grade": words[0]}


def _parse_plain(cell: _Cell, words: list[str]) -> dict[str, Any]:
    if words:
        cell.fail(f"{cell.value!r}: this verb stands alone", "remove what follows it")
    return {}


_VERBS: dict[str, Callable[[_Cell, list[str]], dict[str, Any]]] = {
    "below": lambda cell, words: {"low": _figures(cell, words, 1)[0]},
    "above": lambda cell, words: {"high": _figures(cell, words, 1)[0]},
    "outside": _parse_outside,
    "silent": _parse_silent,
    "score_above": lambda cell, words: {"high": _figures(cell, words, 1)[0]},
    "device_alarm": _parse_device_alarm,
    "implausible": _parse_plain,
    "reported": _parse_plain,
}
ROW_KEYS = (*(
    name.name for name in fields(Condition)
    if name.name not in ("verb", "low", "high", "silence_s", "grade", "arming_amount")
), "enabled")  # fmt: skip


def _arming(row: _Row) -> tuple[str, float]:
    word, _, rest = _text(row, "arming").partition(" ")
    if not word or (word == "first" and not rest):
        return "first", 0.0
    if word not in ("at_least", "measured"):
        row["arming"].fail(f"unknown arming {word!r}", 'write "first", "at_least 3" (value) or "measured 30" (seconds)')
    return word, _figures(row["arming"], rest.split(), 1)[0]
