"""Which test holds which requirement of the alarm system: `python -m tests.requirements [--write] [--results XML]`.

Tests name what they hold with `@pytest.mark.alm("ALM-07")`: on a function, a class, a case (`marks=` of `pytest.param`)
or, as `pytestmark`, on a module. The marks are read from the source, so that a test that cannot be imported is missed
by its requirement too. The table stands in docs/alarms.md; `--write` renews it. Exit status 1, with a line for each,
when a requirement has no test, a mark names an unknown requirement or holds nothing, or the table is out of date. With
`--results`, the JUnit file of a whole run, every requirement also needs a test in it that has passed.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- requirements: begin; written by `python -m tests.requirements --write` -->"
END = "<!-- requirements: end -->"

REQUIREMENTS = {
    "ALM-01": "A condition has one priority and no second, wherever it is defined.",
    "ALM-02": "HIGH, MEDIUM and LOW sound with the pulses, lengths and pauses of the burst table.",
    "ALM-03": "Lights have the colour, the rate and the share of on-time of their priority.",
    "ALM-04": "Synthesised pulses have the fundamental, the harmonics, the rise and the fall of the burst table.",
    "ALM-05": "The end of an alarm does not cut its burst: half of a HIGH, all of any other still sounds.",
    "ALM-06": "Whatever else is active, light and sound belong to the most urgent alarm.",
    "ALM-07": "A limit alarm comes when its condition delay is over: not before, not later.",
    "ALM-08": "A value that wavers about its limit gives one alarm.",
    "ALM-09": "A delay beyond the ceiling of its priority is refused before anything starts.",
    "ALM-10": "A latching HIGH that is over stays until it is acknowledged; faults of devices and gateway never latch.",
    "ALM-11": "Acknowledging quiets what is active at that moment and nothing that comes later.",
    "ALM-12": "A pause of the sound is over at its time, and cannot be had for longer than the maximum.",
    "ALM-13": "A HIGH that begins while sound is paused is heard.",
    "ALM-14": "Whoever has silenced something is reminded of it at the set interval.",
    "ALM-15": "That something is paused or off is told by the status and by the light.",
    "ALM-16": "A vital whose data stops is a technical alarm before its age is over.",
    "ALM-17": "What has never been there is not missing: no asystole and no lead alarm before arming.",
    "ALM-18": "A value that cannot be, or that is in another unit, is a technical alarm and feeds no limit.",
    "ALM-19": "Settings outlast a short outage; a new patient begins with the preset and without pauses.",
    "ALM-20": "Limits and presets are changed by those who may, and the log says who did.",
    "ALM-21": "The log stays in order and in one hash chain through a kill, and shows that power went.",
    "ALM-22": "No timer follows the wall clock.",
    "ALM-24": "An alert has one id from its start to its end, also across a restart, which raises it again.",
    "ALM-28": "However many alarms there are, a HIGH gets through.",
    "ALM-29": "A model holds no alarm back; one that hangs or answers with no number is a technical alarm.",
    "ALM-30": "The self-test finds an output that is open and one that is stuck.",
    "ALM-31": "When the alarm loop hangs, its heartbeat is gone within 2 s.",
    "ALM-32": "NEWS2 and MEWS turn at the right values; with an input missing the score is partial, not normal.",
    "ALM-33": "An ORU^R40 that is built and parsed again says the same.",
    "ALM-34": "Each of these requirements has a test, and it passes.",
}
LATER = {
    "ALM-23": "what the gateway does when a central station does not confirm an alarm: with the central services",
    "ALM-25": "one page for one alert, however often it is delivered: with the central services",
    "ALM-26": "the chain of escalation and its times: with the central services",
    "ALM-27": "going on along the chain when a delivery fails: with the central services",
}
NEVER_COUNT = ("skip", "xfail")  # `skipif` may run; whether it did is in the results


@dataclass
class Trace:
    """What the marks say: tests of each requirement, and what is wrong with the marks."""

    tests: dict[str, list[str]] = field(default_factory=dict)  # as tests/test_x.py::test_y, by requirement
    problems: list[str] = field(default_factory=list)


def _mark(node: ast.AST) -> str:
    """The name of a mark when `node` is `pytest.mark.NAME`, or `mark.NAME`."""
    if not isinstance(node, ast.Attribute):
        return ""
    owner = node.value
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return node.attr if name == "mark" else ""


class _Reader:
    """Reads the marks of one file."""

    def __init__(self, path: Path, root: Path, trace: Trace) -> None:
        self.trace, self.name = trace, path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(), str(path))
        self.read: set[int] = set()  # the `alm` marks that were found on a test

    def run(self) -> None:
        self._body(self.tree.body, "", [])
        for node in ast.walk(self.tree):
            if _mark(node) == "alm" and id(node) not in self.read:
                self._problem(node, "this mark is on no test: put it on a test, a class of tests or `pytestmark`")

    def _body(self, body: list[ast.stmt], prefix: str, above: list[ast.expr]) -> None:
        above = above + [
            node.value
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and node.value is not None
            and any(isinstance(name, ast.Name) and name.id == "pytestmark" for name in _targets(node))
        ]
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                self._body(node.body, f"{prefix}{node.name}::", above + node.decorator_list)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                self._test(f"{self.name}::{prefix}{node.name}", above + node.decorator_list)

    def _test(self, test: str, marks: list[ast.expr]) -> None:
        nodes = [node for mark in marks for node in ast.walk(mark)]
        ids: dict[str, None] = {}
        for node in nodes:
            if isinstance(node, ast.Call) and _mark(node.func) == "alm":
                self.read.add(id(node.func))
                ids.update(dict.fromkeys(self._ids(node)))
        never = [name for mark in marks if (name := _mark(mark.func if isinstance(mark, ast.Call) else mark))
                 in NEVER_COUNT]  # fmt: skip
        if ids and never:
            self.trace.problems.append(f"{test}: it holds {', '.join(ids)} and carries {never[0]}: that holds nothing")
            return
        for requirement in ids:
            self.trace.tests.setdefault(requirement, []).append(test)

    def _ids(self, call: ast.Call) -> Iterator[str]:
        if not call.args or call.keywords:
            self._problem(call, 'a mark names its requirements, like @pytest.mark.alm("ALM-07")')
        for argument in call.args:
            value = argument.value if isinstance(argument, ast.Constant) else None
            if not isinstance(value, str):
                self._problem(argument, "a requirement is named by a plain string, so that it can be read from here")
            elif value in LATER:
                self._problem(argument, f"{value} is listed as later work: move it into REQUIREMENTS")
            elif value not in REQUIREMENTS:
                self._problem(argument, f"there is no requirement {value}")
            else:
                yield value

    def _problem(self, node: ast.AST, text: str) -> None:
        problem = f"{self.name}:{getattr(node, 'lineno', 1)}: {text}"
        if problem not in self.trace.problems:
            self.trace.problems.append(problem)


def _targets(node: ast.Assign | ast.AnnAssign) -> Sequence[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def trace(root: Path = ROOT) -> Trace:
    """The marks of every test file under `root`/tests."""
    found = Trace()
    for path in sorted((root / "tests").rglob("test_*.py")):
        _Reader(path, root, found).run()
    missing = [requirement for requirement in REQUIREMENTS if requirement not in found.tests]
    found.problems += [f"{requirement} has no test: {REQUIREMENTS[requirement]}" for requirement in missing]
    return found


def section(found: Trace) -> str:
    """The text between the markers: requirement, words, tests; then what is later work."""
    lines = [BEGIN, "", "| id | requirement | held by, in `tests/` |", "|---|---|---|"]
    for requirement, words in REQUIREMENTS.items():
        tests = (f"`{test.removeprefix('tests/')}`" for test in found.tests.get(requirement, ()))
        lines.append(f"| {requirement} | {words} | {'<br>'.join(tests) or '**none**'} |")
    lines += ["", "Later work, without a test here:", ""]
    lines += [f"- {requirement}: {words}." for requirement, words in LATER.items()]
    return "\n".join([*lines, "", END])


def renewed(text: str, found: Trace) -> str:
    """The document with the section written anew. Raises: ValueError when it lacks the two markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"it needs the line {BEGIN} and below it {END}, each once")
    before, _, rest = text.partition(BEGIN)
    return before + section(found) + rest.partition(END)[2]


def passed(results: Path) -> set[str]:
    """Tests with a passed case in a JUnit file, as tests/test_x.py::test_y."""
    found = set()
    for case in ElementTree.parse(results).iter("testcase"):  # written by our own pytest a moment ago
        if any(case.find(tag) is not None for tag in ("failure", "error", "skipped")):
            continue
        parts = case.get("classname", "").split(".")
        classes = [part for part in parts if part.startswith("Test")]
        path = "/".join(parts[: len(parts) - len(classes)]) + ".py"
        found.add("::".join([path, *classes, case.get("name", "").partition("[")[0]]))
    return found


def check(root: Path = ROOT, *, write: bool = False, results: Path | None = None) -> list[str]:
    """What is wrong, a line each; with `write`, after renewing the table in docs/alarms.md."""
    found = trace(root)
    problems = found.problems
    page = root / "docs" / "alarms.md"
    text = page.read_text()
    try:
        new = renewed(text, found)
    except ValueError as error:
        return [*problems, f"docs/alarms.md: {error}"]
    if write and new != text:
        page.write_text(new)
    elif new != text:
        problems.append("docs/alarms.md: its table is out of date: run python -m tests.requirements --write")
    if results is not None:
        green = passed(results)
        problems += [
            f"{requirement} has tests and none of them passed in {results}: {', '.join(tests)}"
            for requirement, tests in sorted(found.tests.items())
            if green.isdisjoint(tests)
        ]
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every requirement is held and the table says so, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.requirements", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="renew the table in docs/alarms.md")
    parser.add_argument("--results", type=Path, metavar="XML", help="JUnit file of a whole run: each needs a pass")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    problems = check(options.root, write=options.write, results=options.results)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(REQUIREMENTS)} requirements, each with its tests")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
