"""Alarm burden from the alarm log: how many alarms, how long, who answered, and whom they come from.

Theory of operation: entries are taken in order. An alarm is one alert id, counted when its `start` is seen, under the
bed, condition and priority of that start. It lasts until its state is Off. It counts as acknowledged when an operator
acknowledged it, which for a latched alarm also is its end. It counts as audible when it sounded at least once: at its
start (or a return or escalation) while nothing on the bed was paused or off, a HIGH also through AUDIO PAUSED, AUDIO
OFF and ALARM PAUSED; or when the sound came back while it was neither acknowledged nor over.

A bed is observed from the boot mark of each run that names it (a run that names none: every bed of the log) until the
last entry of that run. Time in which the agent did not run is not observed. Times within a run are those of the
monotonic clock, so a step of the wall clock changes no duration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from edge_agent.alarm_log.chain import Entry
from edge_agent.records import AlarmEvent

DAY_S = 86_400.0
NS = 1_000_000_000
TOP_PATIENTS = 10
TOP_SHARE = 10  # per cent of the patients, as Lansdowne et al. 2016 report it

_ONSETS = frozenset({"start", "return", "escalate"})
_URGENCY = {"high": -3, "medium": -2, "low": -1}  # priorities stand in this order, conditions by count
_BREAKABLE = frozenset({"audio_paused", "audio_off", "alarm_paused"})  # a new HIGH sounds through these
_RESUMES = frozenset({"audio_resume", "alarm_resume"})


@dataclass(slots=True)
class _Alarm:
    bed: str
    condition: str
    priority: str
    patient: str
    at: tuple[str, int, int]  # boot, CLOCK_MONOTONIC, UTC of the start
    state: str = "On"
    now: str = ""  # priority now
    audible: bool = False
    duration_s: float | None = None
    acknowledged_s: float | None = None


@dataclass(slots=True)
class _Run:
    beds: list[str]
    boot: str
    start_ns: int
    end_ns: int
    utc_ns: int  # at the start


@dataclass(slots=True)
class Burden:
    """Takes the entries of a log in order and sums them up."""

    since_utc_ns: int = 0  # only alarms that start, and time that is observed, from here on
    _alarms: dict[str, _Alarm] = field(default_factory=dict)
    _open: dict[str, dict[str, _Alarm]] = field(default_factory=dict)  # by bed
    _runs: dict[str, _Run] = field(default_factory=dict)
    _beds: set[str] = field(default_factory=set)

    def take(self, entry: Entry) -> None:
        """Count one entry."""
        run = self._runs.get(entry.run)
        mark = entry.mark
        if run is None or (mark is not None and mark.kind == "boot"):
            beds = list(mark.detail.get("beds", ())) if mark is not None else []
            name = entry.run if run is None else f"{entry.run}#{entry.number}"
            if run is not None:  # a log that was replaced while its run went on
                self._runs[name] = run
            run = self._runs[entry.run] = _Run(beds, entry.boot, entry.at_ns, entry.at_ns, entry.utc_ns)
        run.end_ns = max(run.end_ns, entry.at_ns)
        if entry.bed:
            self._beds.add(entry.bed)
        if entry.alarm is not None:
            self._event(entry, entry.alarm)

    def _event(self, entry: Entry, event: AlarmEvent) -> None:
        if not event.alert_id:
            if event.event in _RESUMES:
                for held in self._open.get(entry.bed, {}).values():
                    held.audible = held.audible or _sounds(held.state, held.now, event.inactivation)
            return
        alarm = self._alarms.get(event.alert_id)
        if alarm is None:
            if event.event != "start" or entry.utc_ns < self.since_utc_ns:
                return
            alarm = _Alarm(
                entry.bed, event.condition, event.priority, entry.patient, (entry.boot, event.at_ns, entry.utc_ns)
            )
            self._alarms[event.alert_id] = self._open.setdefault(entry.bed, {})[event.alert_id] = alarm
        alarm.state, alarm.now = event.state, event.priority
        if event.event in _ONSETS:
            alarm.audible = alarm.audible or _sounds(event.state, event.priority, event.inactivation)
        acknowledges = event.event == "acknowledge" or (event.event == "end" and event.operator != "")
        if acknowledges and alarm.acknowledged_s is None:
            alarm.acknowledged_s = _apart(alarm.at, entry, event.at_ns)
        if event.state == "Off":
            alarm.duration_s = _apart(alarm.at, entry, event.at_ns)
            self._open.get(entry.bed, {}).pop(event.alert_id, None)

    def observed_s(self) -> dict[str, float]:
        """Seconds for which each bed was observed."""
        total: dict[str, float] = dict.fromkeys(self._beds, 0.0)
        for run in self._runs.values():
            length = run.end_ns - run.start_ns
            cut = max(0, self.since_utc_ns - run.utc_ns)
            for bed in run.beds or self._beds:
                total[bed] = total.get(bed, 0.0) + max(0, length - cut) / NS
        return total

    def result(self) -> dict[str, Any]:
        """The whole report as JSON: rows by bed, condition and priority, sums, and the patients' shares."""
        observed = self.observed_s()
        alarms = list(self._alarms.values())
        groups: dict[tuple[str, str, str], list[_Alarm]] = {}
        for alarm in alarms:
            groups.setdefault((alarm.bed, alarm.condition, alarm.priority), []).append(alarm)
        rows = [
            {"bed": key[0], "condition": key[1], "priority": key[2], **_figures(groups[key], observed.get(key[0], 0.0))}
            for key in sorted(groups, key=lambda key: (key[0], -len(groups[key]), key))
        ]
        at_beds = [alarm for alarm in alarms if alarm.bed]
        named = {bed: seconds for bed, seconds in observed.items() if bed}
        return {
            "bed_days": round(sum(named.values()) / DAY_S, 6),
            "rows": rows,
            "beds": [
                {"bed": bed, "bed_days": round(observed[bed] / DAY_S, 6), **_figures(own, observed[bed])}
                for bed in sorted(named)
                for own in [[alarm for alarm in alarms if alarm.bed == bed]]
            ],
            "conditions": _summed(at_beds, "condition", sum(named.values())),
            "priorities": _summed(at_beds, "priority", sum(named.values())),
            "all": _figures(at_beds, sum(named.values())),
            "patients": _patients(alarms),
        }


def burden(entries: Iterable[Entry], since_utc_ns: int = 0) -> dict[str, Any]:
    """The report on these entries, oldest first."""
    counted = Burden(since_utc_ns)
    for entry in entries:
        counted.take(entry)
    return counted.result()


def _sounds(state: str, priority: str, inactivation: str) -> bool:
    if state not in ("On", "Latch") or priority == "none":
        return False
    return not inactivation or (priority == "high" and inactivation in _BREAKABLE)


def _apart(start: tuple[str, int, int], entry: Entry, at_ns: int) -> float:
    """Seconds from a start to an event; by the wall clock when the machine booted in between."""
    boot, start_ns, start_utc_ns = start
    return max(0, at_ns - start_ns if entry.boot == boot else entry.utc_ns - start_utc_ns) / NS


def _figures(alarms: list[_Alarm], observed_s: float) -> dict[str, Any]:
    durations = [alarm.duration_s for alarm in alarms if alarm.duration_s is not None]
    answers = [alarm.acknowledged_s for alarm in alarms if alarm.acknowledged_s is not None]
    audible = sum(alarm.audible for alarm in alarms)
    days = observed_s / DAY_S
    return {
        "count": len(alarms),
        "per_bed_day": round(len(alarms) / days, 2) if days else None,
        "audible": audible,
        "audible_per_bed_day": round(audible / days, 2) if days else None,
        "median_duration_s": round(median(durations), 3) if durations else None,
        "open": len(alarms) - len(durations),
        "acknowledged_share": round(len(answers) / len(alarms), 4) if alarms else None,
        "median_to_acknowledge_s": round(median(answers), 3) if answers else None,
    }


def _summed(alarms: list[_Alarm], by: str, observed_s: float) -> list[dict[str, Any]]:
    groups: dict[str, list[_Alarm]] = {}
    for alarm in alarms:
        groups.setdefault(getattr(alarm, by), []).append(alarm)
    order = sorted(groups, key=lambda name: (_URGENCY.get(name, 0), -len(groups[name]), name))
    return [{by: name, **_figures(groups[name], observed_s)} for name in order]


def _patients(alarms: list[_Alarm]) -> dict[str, Any]:
    """Shares of the alarms that have a patient, from the ten patients and the tenth of the patients with the most."""
    counts: dict[str, int] = {}
    for alarm in alarms:
        if alarm.patient:
            counts[alarm.patient] = counts.get(alarm.patient, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = sum(counts.values())
    tenth = -(-len(ranked) * TOP_SHARE // 100)

    def share(number: int) -> float | None:
        return round(sum(count for _, count in ranked[:number]) / total, 4) if total else None

    return {
        "patients": len(ranked),
        "alarms": total,
        "without_patient": len(alarms) - total,
        "top_10_share": share(TOP_PATIENTS),
        "top_10_percent": tenth,
        "top_10_percent_share": share(tenth),
        "top": [{"patient": name, "count": count} for name, count in ranked[:TOP_PATIENTS]],
    }
