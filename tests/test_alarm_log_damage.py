"""Random damage of every kind to the alarm log, opened by the agent's own code: it starts, and tells nothing wrong.

What may come out is the entry that went in, or a word that something is missing: the file was put aside, or `alarms
verify` names the first bad entry. An older picture of the whole file is a whole log; from inside nobody can tell it.
"""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from alarm_log_rig import DEADLINE_S, KEK, FakeClock, Rig, break_at, event
from test_buffer_damage import (
    Damage,
    a_log_of_another_time,
    bit_flips,
    gone,
    gone_log,
    noise,
    pages_of_an_older_picture,
    swapped_pages,
    the_whole_older_file_under_the_newer_log,
    truncation,
    zeros,
)  # fmt: skip

from edge_agent.alarm_log import FILE, chain, reader
from edge_agent.buffer import files
from edge_agent.records import AlarmEvent

TURNS = 4  # of each damage to each way of ending
PAGE = 4096


class Origin(NamedTuple):
    """A folder as it was left, an older picture and another gateway's log, and what each alarm's entries were."""

    closed: Path
    killed: Path
    older: Path
    strange: Path
    held: dict[str, list[chain.Entry]]  # by alert id, in order


def readable(path: Path) -> list[chain.Entry]:
    """Every entry that opens, whatever the chain says, oldest first; beyond a page that SQLite cannot read, none."""
    found: list[chain.Entry] = []
    with suppress(reader.Unreadable), reader.snapshot(path, KEK) as log:
        for entry in log.newest():
            found.append(entry)
    return found[::-1]


def by_alert(found: list[chain.Entry]) -> dict[str, list[chain.Entry]]:
    out: dict[str, list[chain.Entry]] = {}
    for entry in found:
        if entry.alarm is not None:
            out.setdefault(entry.alarm.alert_id, []).append(entry)
    return out


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    root = tmp_path_factory.mktemp("alarm-log")
    clock = FakeClock()

    def fill(rig: Rig, start: int, end: int) -> None:
        for number in range(start, end):
            clock.pass_s(1)
            rig.log.append("ICU-3", f"MRN-{number % 5}", event(f"a{number}", at_ns=clock.mono))
            if number % 3:
                rig.log.append("ICU-3", "", event(f"a{number}", "end", "Off", at_ns=clock.mono + 1))
            if number % 10 == 0:  # a commit takes its time by design
                assert rig.log.flush(DEADLINE_S)
        rig.log.put("limits", b"value %d" % end)

    rig = Rig(root / "live", clock=clock)
    fill(rig, 0, 60)
    rig.close()
    shutil.copytree(root / "live", root / "older")
    rig = Rig(root / "live", clock=clock, run_id="run-2")
    fill(rig, 60, 130)
    assert rig.log.flush(DEADLINE_S)
    shutil.copytree(root / "live", root / "killed")
    rig.close()
    assert (root / "killed" / f"{FILE}-wal").stat().st_size > 50 * PAGE
    other = Rig(root / "strange", clock=clock)
    fill(other, 500, 530)
    other.close()
    return Origin(
        root / "live", root / "killed", root / "older", root / "strange", by_alert(readable(root / "live" / FILE))
    )


def another_gateways_log(path: Path, older: Path, _chance: random.Random) -> None:
    for suffix in ("-wal", "-shm"):
        files.beside(path, suffix).unlink(missing_ok=True)
    shutil.copy(older.parent.with_name("strange") / FILE, path)


DAMAGES = [
    bit_flips, truncation, swapped_pages, pages_of_an_older_picture, the_whole_older_file_under_the_newer_log,
    a_log_of_another_time, zeros, noise, another_gateways_log, gone, gone_log,
]  # fmt: skip
# These may leave a whole log that is only older, another one, or none.
UNTOLD = {
    pages_of_an_older_picture, the_whole_older_file_under_the_newer_log, a_log_of_another_time, another_gateways_log,
    gone, gone_log,
}  # fmt: skip


@pytest.mark.parametrize("left", ["closed", "killed"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_damage_is_survived_and_no_entry_is_ever_wrong(
    tmp_path: Path, origin: Origin, left: str, damage: Damage
) -> None:
    chance = random.Random(f"{damage.__name__} {left}")
    strange = by_alert(readable(origin.strange / FILE)) if damage is another_gateways_log else {}
    known = origin.held | strange
    for turn in range(TURNS):
        here = tmp_path / str(turn)
        shutil.copytree(origin.closed if left == "closed" else origin.killed, here)
        damage(here / FILE, origin.older / FILE, chance)
        found = {path.name: path.read_bytes() for path in here.glob(f"{FILE}*") if not path.name.endswith("-shm")}
        rig = Rig(here, run_id="run-3")
        assert rig.log.wait_ready(DEADLINE_S)
        told = [item.event for item in rig.log.active()]
        rig.write(event("new"))
        rig.close()
        _nothing_is_wrong(here, known, told, turn)
        _loss_is_told(rig, here, origin, found, left, damage)
        again = Rig(here, run_id="run-4")
        assert again.log.wait_ready(DEADLINE_S)
        again.close()
        assert not again.fault("log corrupt"), turn  # what was put aside stays there
        assert "new" in by_alert(readable(here / FILE))
        shutil.rmtree(here)


def _nothing_is_wrong(here: Path, known: dict[str, list[chain.Entry]], told: list[AlarmEvent], turn: int) -> None:
    stored = by_alert(readable(here / FILE))
    assert len(stored.pop("new")) == 1
    for alert, entries in stored.items():
        assert all(entry in known[alert] for entry in entries), (turn, alert)
    numbers = [entry.number for entry in readable(here / FILE)]
    assert numbers == sorted(set(numbers)) or break_at(here / FILE) != (-1, ""), (turn, "out of order without a word")
    for alarm in told:
        assert alarm in [entry.alarm for entry in known[alarm.alert_id]], (turn, alarm.alert_id)


def _loss_is_told(rig: Rig, here: Path, origin: Origin, found: dict[str, bytes], left: str, damage: Damage) -> None:
    aside = list((here / "quarantine").glob("*")) if (here / "quarantine").exists() else []
    if rig.log.previous.ended == "put_aside":
        assert "was put aside" in rig.fault("log corrupt") or "another key" in rig.fault("log key")
        (folder,) = aside
        assert (folder / FILE).read_bytes() == found[FILE], "as it was found"
        return
    assert not aside
    stored = by_alert(readable(here / FILE))
    missing = [alert for alert, entries in origin.held.items() if len(stored.get(alert, ())) < len(entries)]
    if missing and left == "closed" and damage not in UNTOLD:
        assert break_at(here / FILE) != (-1, ""), "`alarms verify` names the first bad entry"
