"""How provisioning asks: a person at a plain terminal, or a file of answers. Nothing here is drawn, only printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TextIO

from edge_agent.provisioning.answers import NOT_SHOWN, Answers, usable

MATCH = "match"
UNDECLARED = "undeclared"


class Talk(Protocol):
    """Who is asked. `scripted`: nobody looks at what is shown, so nothing waits for anybody to have looked."""

    scripted: bool

    def say(self, text: str) -> None:
        """Show a line."""

    def yes(self, question: str, *key: str) -> bool:
        """The answer to a question of yes or no."""

    def text(self, question: str, *key: str) -> str:
        """A line of text; empty when none was given."""

    def choose(self, question: str, options: Sequence[str], *key: str) -> str:
        """One of `options`, or a text that was given instead; empty for none."""

    def value(self, term: str, shown: str) -> float | str:
        """What the monitor shows for a term: a number, MATCH, NOT_SHOWN, or UNDECLARED when nobody says."""

    def expected(self) -> frozenset[str]:
        """Terms that the monitor shows, as far as that is known beforehand."""


class Terminal:
    """A person. Raises: KeyboardInterrupt when the input ends, as for Ctrl-C."""

    scripted = False

    def __init__(self, lines: TextIO, out: TextIO) -> None:
        self._lines, self._out = lines, out

    def say(self, text: str) -> None:
        """Print a line."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def _ask(self, prompt: str) -> str:
        self._out.write(prompt)
        self._out.flush()
        try:
            line = self._lines.readline()
        except UnicodeDecodeError:
            return ""  # a key that is no text: asked again
        if not line:
            raise KeyboardInterrupt
        return line.strip()

    def yes(self, question: str, *key: str) -> bool:
        """Ask until it is y or n."""
        del key
        while True:
            answer = self._ask(f"{question} [y/n] ").lower()
            if answer in ("y", "yes", "n", "no"):
                return answer.startswith("y")

    def text(self, question: str, *key: str) -> str:
        """Ask until it can stand in a record."""
        del key
        while True:
            answer = self._ask(f"{question}: ")
            if usable(answer):
                return answer

    def choose(self, question: str, options: Sequence[str], *key: str) -> str:
        """Ask for a number of the list; Enter for none."""
        del key
        for number, option in enumerate(options, 1):
            self.say(f"  {number}  {option}")
        while True:
            answer = self._ask(f"{question} [1-{len(options)}, Enter for none] ")
            if not answer:
                return ""
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(options):
                return options[int(answer) - 1]

    def value(self, term: str, shown: str) -> float | str:
        """Ask until it is Enter (the same), a number, or - (the monitor does not show it)."""
        while True:
            answer = self._ask(f"  {term}: {shown}   screen [Enter = same, number, - = not shown] ").replace(",", ".")
            if not answer:
                return MATCH
            if answer == "-":
                return NOT_SHOWN
            try:
                number = float(answer)
            except ValueError:
                continue
            if math.isfinite(number):
                return number

    def expected(self) -> frozenset[str]:
        """Nothing: the person looks at the screen when asked."""
        return frozenset()


class Scripted:
    """A file of answers."""

    scripted = True

    def __init__(self, answers: Answers, out: TextIO) -> None:
        self._answers, self._out = answers, out

    def say(self, text: str) -> None:
        """Print a line."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def yes(self, question: str, *key: str) -> bool:
        """What the file says, and no when it says nothing."""
        answer = self._answers.get(*key) is True
        self.say(f"{question} {'yes' if answer else 'no'}")
        return answer

    def text(self, question: str, *key: str) -> str:
        """What the file says."""
        del question
        return str(self._answers.get(*key) or "")

    def choose(self, question: str, options: Sequence[str], *key: str) -> str:
        """What the file says, whether it is among the options or not: the step that uses it finds out."""
        del question, options
        return str(self._answers.get(*key) or "")

    def value(self, term: str, shown: str) -> float | str:
        """What the file says."""
        del shown
        return self._answers.values.get(term, UNDECLARED)

    def expected(self) -> frozenset[str]:
        """What the file has a number for."""
        return frozenset(term for term, value in self._answers.values.items() if value != NOT_SHOWN)
