"""The mutation run: it changes every row of a table, keeps apart what it must, and asks a reason for an exception."""

from __future__ import annotations

import ast
from pathlib import Path

import mutants
import pytest

SOURCE = '''\
"""A table."""
from typing import Literal, NamedTuple

State = Literal["Off", "On", "Ack"]
__all__ = ["TABLE"]
LONGEST = 180


class Step(NamedTuple):
    state: State
    record: str = ""


TABLE: dict[str, Step] = {
    "start": Step("On", "start"),  # a comment
    "end": Step("Off", ""),
}
KEPT = frozenset({"On"})


def inside(at: int = 3) -> int:
    return at + LONGEST


class Room:
    @property
    def loud(self) -> bool:
        return not self.quiet and LONGEST > 3
'''


def changes() -> dict[tuple[str, str], str]:
    words = mutants.literal_words([SOURCE])
    return {(was, now): new for _, was, now, new in mutants.Outside(SOURCE, words).run()}


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ('"start": Step("On", "start"),  # a comment', '"start": Step(\'Off\', "start"),  # a comment'),
        ('"start": Step("On", "start"),  # a comment', '"start": Step(\'Ack\', "start"),  # a comment'),
        ('"start": Step("On", "start"),  # a comment', '"start": Step("On", \'startX\'),  # a comment'),
        ('"end": Step("Off", ""),', '"end": Step("Off", \'X\'),'),
        ("'start'", "taken out"),
        ("'end'", "taken out"),
        ("'On'", "taken out"),
        ("LONGEST = 180", "LONGEST = 181"),
        ("def inside(at: int = 3) -> int:", "def inside(at: int = 4) -> int:"),
        ("return not self.quiet and LONGEST > 3", "return not self.quiet and (LONGEST >= 3)"),
        ("return not self.quiet and LONGEST > 3", "return ((not self.quiet) or (LONGEST > 3))"),
    ],
)
def test_what_stands_outside_functions_is_changed(was: str, now: str) -> None:
    assert (was, now) in changes()


def test_what_is_mutmuts_and_what_is_a_name_or_a_type_stays() -> None:
    for (was, _), new in changes().items():
        tree = ast.parse(new)
        assert ast.dump(tree) != ast.dump(ast.parse(SOURCE)), was
        assert 'State = Literal["Off", "On", "Ack"]' in new
        assert '__all__ = ["TABLE"]' in new and "return at + LONGEST" in new and '"""A table."""' in new


def test_every_row_of_the_state_tables_is_taken_out_once_and_led_elsewhere() -> None:
    source = (Path(mutants.ROOT) / "edge_agent/alarms/table.py").read_text()
    found = [(line, was, now) for line, was, now, _ in mutants.Outside(source, mutants.literal_words([source])).run()]
    rows = [
        number for number, line in enumerate(source.splitlines(), 1) if "Step(" in line and line.startswith("    (")
    ]
    assert len(rows) >= 25
    for row in rows:
        here = [(was, now) for line, was, now in found if line == row]
        assert [now for _, now in here].count("taken out") == 1
        assert sum(now != "taken out" and "Step(" in now for _, now in here) >= 4  # three other states, another record


def test_each_exception_has_a_reason_and_a_place() -> None:
    for (file, was, now), reason in mutants.allowed().items():
        assert (mutants.ROOT / file).is_file() and was != now and len(reason) > 15, (file, was)


def test_the_report_counts_what_is_equal_and_refused_for_nobody() -> None:
    def one(status: str, now: str = "b") -> mutants.Mutant:
        return mutants.Mutant("edge_agent/watch/room.py", 7, "a", now, status)

    found = [one("killed"), one("timeout"), one("survived"), one("survived", "c"), one("refused")]
    result, text = mutants.report(found, {("edge_agent/watch/room.py", "a", "c"): "the same"})
    together = result["files"]["together"]
    assert together == {"killed": 1, "timeout": 1, "survived": 1, "equal": 1, "refused": 1, "percent": 66.7}
    assert text.startswith("edge_agent/watch/room.py:7: a\n    -> b\n")
    assert [survivor["now"] for survivor in result["survivors"]] == ["b"]
