"""The gateway's live values beside the monitor's screen: wait for them, ask for each, judge the difference."""

from __future__ import annotations

import time
from typing import Any

from edge_agent import terms
from edge_agent.provisioning.answers import NOT_SHOWN
from edge_agent.provisioning.readings import WINDOW_S, Reading, shown
from edge_agent.provisioning.steps import Result, failed, passed
from edge_agent.provisioning.talk import MATCH, UNDECLARED, Talk
from edge_agent.provisioning.tolerance import Comparison, compare

SHOW_S = 4.0  # in which a person's monitor has sent everything that it sends, before the first question
LOOK_S = 0.1
NO_VALUE = "no value"


def beside_the_screen(reading: Reading, talk: Talk, limit_s: float, with_values: bool) -> Result:
    """The step's result; `limit_s` is for the first values, `with_values` puts numbers into its details."""
    if not wait_for_values(reading, talk, limit_s):
        reason = reading.trouble() or "the sources give no value"
        return failed("values", reason, "is the simulator on, and its sensor on the monitor? edge-agent detect LINK")
    compared = _ask(reading, talk)
    vitals = [_row(each, reading, with_values) for each in compared]
    for each in compared:
        told = f": {each.deviation:+g} {each.unit}, allowed {each.tolerance:g}" if each.deviation is not None else ""
        talk.say(f"   {each.term}: {each.outcome}{told}")
    lost = reading.lost()
    if lost:
        return failed("values", lost, "every source of this bed has to send while it is accepted")
    wrong = [f"{each.term} {each.outcome}" for each in compared if not each.good]
    matching = [each.term for each in compared if each.outcome == "match"]
    if wrong or not matching:
        return failed(
            "values", ", ".join(wrong) or "nothing was compared",
            "is the right bed's monitor connected? docs/biomed.md, When something fails", details={"vitals": vitals},
        )  # fmt: skip
    return passed("values", f"as on the screen: {', '.join(matching)}", details={"vitals": vitals})


def wait_for_values(reading: Reading, talk: Talk, limit_s: float) -> bool:
    """Until every vital that is asked for is there, or the time is over; whether any value came."""
    wished = talk.expected()
    end = time.monotonic() + limit_s
    first = 0.0
    while time.monotonic() < end:
        seen = {term for term, each in reading.seen().items() if each.values}
        if seen and not first:
            first = time.monotonic()
        if talk.scripted and wished <= seen:
            break
        if not talk.scripted and first and time.monotonic() - first >= SHOW_S:
            break
        time.sleep(LOOK_S)
    return any(each.values for each in reading.seen().values())


def _ask(reading: Reading, talk: Talk) -> list[Comparison]:
    compared = []
    known = {term for term, each in reading.seen().items() if each.values or each.without}
    for term in sorted(known | talk.expected()):
        asked_s = time.monotonic() - WINDOW_S
        newest = reading.seen().get(term)
        latest = newest.since(asked_s) if newest is not None else []
        if not latest:
            talk.say(f"   {term}: no value")
        answer = talk.value(term, shown(term, latest[-1])) if latest else _unseen(term, talk)
        if answer in (NOT_SHOWN, UNDECLARED, NO_VALUE):
            compared.append(Comparison(term, terms.BY_NAME[term].ucum, str(answer), None, 0.0))
            continue
        later = reading.seen()[term].since(asked_s)
        compared.append(compare(term, later, later[-1] if answer == MATCH else float(answer)))
    return compared


def _unseen(term: str, talk: Talk) -> str:
    """A vital that the gateway has no number for: bad when the screen shows one."""
    if talk.scripted:
        return NO_VALUE if term in talk.expected() else NOT_SHOWN
    return NO_VALUE if talk.yes(f"   Does the monitor show a number for {term}?") else NOT_SHOWN


def _row(each: Comparison, reading: Reading, with_values: bool) -> dict[str, Any]:
    row: dict[str, Any] = dict(each._asdict())
    newest = reading.seen().get(each.term)
    if with_values and newest is not None and newest.values:
        row["gateway"] = newest.values[-1][1]
    return row
