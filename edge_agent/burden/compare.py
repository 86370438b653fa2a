"""What a change of presets does to the alarms: which are new, which are lost, which are shorter, longer, later.

Theory of operation: alarms of one condition on one bed that overlap in time, before and after, are one event; an event
may hold several of either, because a deadband joins and a delay splits. Before without after is *lost*, after without
before is *raised*, whatever else rang at that moment. For an event with both, its time is the sum of its alarms, and
its onset is that of the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from edge_agent import terms
from edge_agent.burden.recorded import NS, moment_text
from edge_agent.burden.replay import Episode, Replayed
from edge_agent.presets import PRIORITIES, RANK

TECHNICAL = "technical"
_SAME_S = 0.001  # two clocks of one replay agree to the nanosecond; less than this is nothing to tell


@dataclass(slots=True)
class Line:
    """One condition at one priority: durations in s, before and after, and what became of each event."""

    condition: str
    priority: str
    kind: str
    before_s: list[float] = field(default_factory=list)
    after_s: list[float] = field(default_factory=list)
    lost: int = 0
    raised: int = 0
    shortened_s: list[float] = field(default_factory=list)  # by how much, for each event
    lengthened_s: list[float] = field(default_factory=list)
    later_s: list[float] = field(default_factory=list)
    earlier_s: list[float] = field(default_factory=list)

    def shape(self, bed_days: float) -> dict[str, Any]:
        """The JSON object of the line."""
        return {
            "condition": self.condition,
            "priority": self.priority,
            "kind": self.kind,
            "before": _side(self.before_s, bed_days),
            "after": _side(self.after_s, bed_days),
            "lost": self.lost,
            "raised": self.raised,
            **{
                name: {"events": len(times), "total_s": round(sum(times), 3), "median_s": _median(times)}
                for name, times in (
                    ("shortened", self.shortened_s),
                    ("lengthened", self.lengthened_s),
                    ("later", self.later_s),
                    ("earlier", self.earlier_s),
                )
            },
        }


@dataclass(frozen=True, slots=True)
class HighLost:
    """A HIGH alarm of before that has no HIGH alarm of its condition after: what a safety review looks at."""

    episode: Episode
    becomes: str  # "lost", or the lower priority it has after
    covered_by: tuple[tuple[str, str], ...]  # condition and priority of what rings after at that time for that vital

    def shape(self) -> dict[str, Any]:
        """The JSON object of the alarm."""
        episode = self.episode
        return {
            "bed": episode.bed,
            "at": moment_text(episode.start_ns),
            "at_s": round(episode.start_ns / NS, 3),
            "condition": episode.condition,
            "text": episode.text,
            "worst": episode.worst,
            "unit": unit(episode.vital),
            "duration_s": round(episode.seconds, 3),
            "becomes": self.becomes,
            "covered_by": [{"condition": condition, "priority": priority} for condition, priority in self.covered_by],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole report; `top_before` and `top_after` are the shares of alarms that the busiest tenth of beds has."""

    lines: tuple[Line, ...]
    high_lost: tuple[HighLost, ...]
    beds: int
    bed_days: float
    observations: int
    top_before: float | None
    top_after: float | None

    def shape(self, names: tuple[str, str]) -> dict[str, Any]:
        """The JSON object of the report; `names` are the presets'."""
        return {
            "baseline": names[0],
            "preset": names[1],
            "beds": self.beds,
            "bed_days": round(self.bed_days, 6),
            "observations": self.observations,
            "busiest_tenth_share": {"before": self.top_before, "after": self.top_after},
            "conditions": [line.shape(self.bed_days) for line in self.lines],
            "high_lost": [lost.shape() for lost in self.high_lost],
        }


def compare(replayed: Replayed) -> Comparison:
    """The report on a replay."""
    lines: dict[tuple[str, str], Line] = {}
    high: list[HighLost] = []
    by_bed: dict[str, list[Episode]] = defaultdict(list)
    for episode in replayed.after:
        by_bed[episode.bed].append(episode)

    def line(episode: Episode) -> Line:
        key = (episode.row, episode.priority)
        if key not in lines:
            lines[key] = Line(episode.row, episode.priority, episode.kind)
        return lines[key]

    for before, after in _events(replayed.before, replayed.after):
        for episode in before:
            line(episode).before_s.append(episode.seconds)
            line(episode).lost += not after
            if episode.priority == "high":
                high.extend(_high_lost(episode, after, by_bed[episode.bed]))
        for episode in after:
            line(episode).after_s.append(episode.seconds)
            line(episode).raised += not before
        if before and after:
            _shifts(line(before[0]), before, after)
    order = sorted(lines.values(), key=lambda each: (each.kind == TECHNICAL, -RANK[each.priority], each.condition))
    return Comparison(
        tuple(order),
        tuple(sorted(high, key=lambda each: (each.episode.bed, each.episode.start_ns, each.episode.condition))),
        len(replayed.observed_s), replayed.bed_days, replayed.observations,
        _busiest(replayed, replayed.before), _busiest(replayed, replayed.after),
    )  # fmt: skip


def unit(vital: str) -> str:
    """The UCUM unit of a vital, empty when it has none."""
    return next((term.ucum for term in terms.TERMS if term.vital == vital), "")


def _events(before: Iterable[Episode], after: Iterable[Episode]) -> Iterator[tuple[list[Episode], list[Episode]]]:
    """Alarms of one condition and bed that overlap, directly or through each other."""
    groups: dict[tuple[str, str], list[tuple[Episode, int]]] = defaultdict(list)
    for side, episodes in enumerate((before, after)):
        for episode in episodes:
            groups[episode.bed, episode.condition].append((episode, side))
    for key in sorted(groups):
        event: tuple[list[Episode], list[Episode]] = ([], [])
        end_ns = -1
        for episode, side in sorted(groups[key], key=lambda each: (each[0].start_ns, each[1])):
            if episode.start_ns > end_ns and (event[0] or event[1]):
                yield event
                event = ([], [])
            event[side].append(episode)
            end_ns = max(end_ns, episode.end_ns)
        yield event


def _shifts(line: Line, before: list[Episode], after: list[Episode]) -> None:
    longer = sum(each.seconds for each in after) - sum(each.seconds for each in before)
    if abs(longer) >= _SAME_S:
        (line.lengthened_s if longer > 0 else line.shortened_s).append(abs(longer))
    later = (after[0].start_ns - before[0].start_ns) / NS
    if abs(later) >= _SAME_S:
        (line.later_s if later > 0 else line.earlier_s).append(abs(later))


def _high_lost(episode: Episode, after: list[Episode], bed: list[Episode]) -> Iterator[HighLost]:
    overlapping = [each for each in after if each.start_ns <= episode.end_ns and each.end_ns >= episode.start_ns]
    best = max((each.priority for each in overlapping), key=lambda priority: RANK[priority], default="lost")
    if best == "high":
        return
    covers = {
        (each.condition, each.priority)
        for each in bed
        if each.vital == episode.vital
        and each.vital
        and each.condition != episode.condition
        and each.start_ns <= episode.end_ns
        and each.end_ns >= episode.start_ns
    }
    yield HighLost(episode, best, tuple(sorted(covers, key=lambda cover: (-RANK[cover[1]], cover[0]))))


def _busiest(replayed: Replayed, episodes: list[Episode]) -> float | None:
    """Share of the physiological alarms on the busiest tenth of beds; None when there are none, or under ten beds."""
    counts = dict.fromkeys(replayed.observed_s, 0)
    for episode in episodes:
        if episode.kind != TECHNICAL:
            counts[episode.bed] += 1
    total = sum(counts.values())
    if not total or len(counts) < 10:
        return None
    return round(sum(sorted(counts.values(), reverse=True)[: max(1, len(counts) // 10)]) / total, 4)


def totals(lines: Iterable[Line], technical: bool) -> list[Line]:
    """One line for each priority that occurs, over all conditions that are technical, or that are not."""
    chosen = [each for each in lines if (each.kind == TECHNICAL) == technical]
    out = []
    for priority in PRIORITIES:
        total = Line("all", priority, TECHNICAL if technical else "physiological")
        for each in (each for each in chosen if each.priority == priority):
            total.lost += each.lost
            total.raised += each.raised
            for name in ("before_s", "after_s", "shortened_s", "lengthened_s", "later_s", "earlier_s"):
                getattr(total, name).extend(getattr(each, name))
        if total.before_s or total.after_s:
            out.append(total)
    return out


def _median(times: list[float]) -> float | None:
    return round(median(times), 3) if times else None


def _side(times: list[float], bed_days: float) -> dict[str, Any]:
    return {
        "alarms": len(times),
        "per_bed_day": round(len(times) / bed_days, 3) if bed_days else None,
        "total_s": round(sum(times), 3),
        "median_s": _median(times),
    }
