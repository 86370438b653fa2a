"""Scores are advisory: they add conditions of their own and touch no other."""

from __future__ import annotations

from pathlib import Path

from watch_rig import BED, NS, Bedside, preset

from edge_agent.records import Score


def test_score_raises_and_abstaining_does_nothing(tmp_path: Path) -> None:
    rows = (
        '[[condition]]\nid = "worse"\nkind = "advisory"\nvital = "risk"\npresent = "score_above 0.5"\n'
        'priority = "low"\noff_delay_s = 0\n'
        '[[condition]]\nid = "risk_stale"\nkind = "technical"\n'
        'vital = "risk"\npresent = "silent 60"\npriority = "low"\n'
    )
    bed = Bedside(preset(tmp_path, rows))
    for at, value in ((0, 0.4), (1, 0.6), (2, None), (3, 0.2)):
        bed.take(bed.watch.score(BED, "model", Score("risk", value, at * NS)))
    assert bed.log == [(1, "worse", True), (3, "worse", False)]
    bed.tick(63)
    assert bed.present == {"risk_stale"}
