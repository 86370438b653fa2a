"""Answers from a file, for provisioning without a keyboard: TOML or JSON, checked whole before a step begins.

bed = "ICU-3"
simulator = true                   # the monitor shows a simulator, never a patient
port = "/dev/bedside/monitor"      # leave out: the sources that the configuration has
driver = "nonin"                   # leave out: whatever is found
bluetooth = "AA:BB:CC:DD:EE:FF"    # address or name; leave out: none is taken
location = "ICU^^3"                # of a bed that is new to the configuration, and its preset
preset = "adult"
button = true                      # somebody will press it when it is asked for
[engineer]
name = "A. Engineer"
id = "bme-17"
[values]                           # what the monitor's screen shows; "not shown" when it does not show it
spo2 = 97
pulse_rate = 72
[signals]                          # whether each is seen and heard
high = true
medium = true
low = true
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent import terms
from edge_agent.config import ConfigError, Key, dotted, key_lines, nearest_line

NOT_SHOWN = "not shown"
PRIORITIES = ("high", "medium", "low")
_TEXT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}")


def usable(text: str) -> bool:
    """Whether a text can stand in a record: 1 to 128 characters, none of them a control character."""
    return _TEXT.fullmatch(text) is not None


def _text(value: object) -> str:
    return "" if isinstance(value, str) and usable(value) else "text of 1 to 128 characters"


def _switch(value: object) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _number(value: object) -> str:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "" if fits or value == NOT_SHOWN else f'a number in the unit of the gateway, or "{NOT_SHOWN}"'


# Key -> what a value must be, told in words when it is not. Whatever is not here is unknown.
_KEYS: dict[Key, Callable[[object], str]] = {
    ("bed",): _text,
    ("simulator",): _switch,
    ("port",): _text,
    ("driver",): _text,
    ("bluetooth",): _text,
    ("location",): _text,
    ("preset",): _text,
    ("gateway",): _text,
    ("button",): _switch,
    ("engineer", "name"): _text,
    ("engineer", "id"): _text,
    **{("signals", priority): _switch for priority in PRIORITIES},
    **{("values", term.name): _number for term in terms.TERMS if term.kind == "numeric"},
}
_TABLES = frozenset(key[0] for key in _KEYS if len(key) == 2)
_ALWAYS: tuple[Key, ...] = (("engineer", "name"), ("engineer", "id"), ("bed",), ("simulator",))


@dataclass(frozen=True, slots=True)
class Answers:
    """What a file of answers says."""

    path: Path
    given: Mapping[Key, Any]
    values: Mapping[str, float | str] = field(default_factory=dict)

    def get(self, *key: str) -> Any:
        """The answer to `key`, None when there is none."""
        return self.given.get(key)


def read_answers(path: Path, steps: Collection[str]) -> Answers:
    """The answers in `path`, all there that `steps` will ask for.

    Raises: ConfigError with file, line and key, for what is unknown, wrong or missing.
    """
    data, lines = _read(path)
    given: dict[Key, Any] = {}
    for name, value in data.items():
        if name not in _TABLES:
            _take(path, lines, given, (name,), value)
        elif isinstance(value, dict):
            for inner, each in value.items():
                _take(path, lines, given, (name, inner), each)
        else:
            raise ConfigError(path, nearest_line(lines, (name,)), name, "is no table", f"write [{name}] and its keys")
    for key in _needed(steps):
        if key not in given:
            raise ConfigError(
                path, nearest_line(lines, key), dotted(key), "missing", "docs/biomed.md lists the answers"
            )
    values = {key[1]: value for key, value in given.items() if key[0] == "values"}
    if "values" in steps and not any(value != NOT_SHOWN for value in values.values()):
        raise ConfigError(
            path, nearest_line(lines, ("values",)), "values", "missing",
            "write what the monitor shows, for example spo2 = 97, one line for each vital sign",
        )  # fmt: skip
    return Answers(path, given, {str(name): value for name, value in values.items()})


def _needed(steps: Collection[str]) -> list[Key]:
    needed = list(_ALWAYS)
    if "signals" in steps:
        needed += [("signals", priority) for priority in PRIORITIES]
    if "button" in steps:
        needed.append(("button",))
    return needed


def _take(path: Path, lines: dict[Key, int], given: dict[Key, Any], key: Key, value: object) -> None:
    check = _KEYS.get(key)
    line = nearest_line(lines, key)
    if check is None:
        level = len(key) - 1
        beside = ", ".join(dict.fromkeys(str(known[level]) for known in _KEYS if known[:level] == key[:level]))
        known = "names of terms, as `edge-agent drivers` prints them" if key[0] == "values" else beside
        raise ConfigError(path, line, dotted(key), "unknown key", f"known here: {known}")
    wrong = check(value)
    if wrong:
        raise ConfigError(
            path, line, dotted(key), f"{json.dumps(value, default=str)} is not possible", f"write {wrong}"
        )
    given[key] = value


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, None, "", f"cannot be read: {error}", "give the path of a TOML or JSON file") from error
    if path.suffix.lower() == ".json":
        return _read_json(path, text)
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(path, int(found[1]) if found else None, "", f"not valid TOML: {error}") from error


def _read_json(path: Path, text: str) -> tuple[dict[str, Any], dict[Key, int]]:
    lines: dict[Key, int] = {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(path, None, twice, "stands twice", "leave one out")
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(path, error.lineno, "", f"not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(path, None, "", "nested too deeply", "write one object") from error
    if not isinstance(data, dict):
        raise ConfigError(path, 1, "", "is no object", 'write { "bed": "...", ... }')
    stack: list[str] = []
    name = ""
    for token in re.finditer(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}]', text):
        if token[2]:
            name = token[1]
            lines.setdefault((*stack[1:], name), text.count("\n", 0, token.start()) + 1)
        elif token[0] == "{":
            stack.append(name)
        elif token[0] == "}" and stack:
            stack.pop()
    return data, lines
