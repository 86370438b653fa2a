"""What a restart keeps: active alarms with their ids, pauses, patients, changed limits, entries, beds of sources.

Theory of operation: the alarm log holds the last event of every alarm that is not over and of every pause, written in
the same transaction as the log's entry, and small settings beside them. At start they are put back before a link is
opened. CLOCK_MONOTONIC goes on over a restart of the process; after a restart of the machine the times are moved by
how long ago, in UTC, each event was. Where UTC has gone backwards meanwhile, the event counts as having just happened:
a pause then lasts at most as long as it was granted for. What an operator entered of the patient is not put back after
a restart of the machine whose clock is not synchronized: an old observation must not pass for a new one.

What was restored holds until data, or the lack of it, says otherwise; the watch sees to that.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import structs

from edge_agent.alarm_log import Active, AlarmLog, now_in
from edge_agent.buffer.clock import SYNCHRONIZED, Clock
from edge_agent.pipeline import GATEWAY, Feed, Pipeline
from edge_agent.records import AlarmEvent

PATIENTS, LIMITS, BEDS_OF_SOURCES, ENTERED = "patients", "limits", "beds of sources", "entered"

# built at import: msgspec prepares a struct at its first decoder, which two threads must not do at once
_PATIENTS = msgspec.json.Decoder(dict[str, tuple[str, str]]).decode
_BEDS = msgspec.json.Decoder(dict[str, list[str]]).decode


class _Entered(msgspec.Struct):
    """What operators entered, with the moment at which it was kept."""

    moment: tuple[int, str, int]  # CLOCK_MONOTONIC, boot, UTC
    entries: msgspec.Raw


_ENTERED = msgspec.json.Decoder(_Entered).decode


class Continuity:
    """Keeps patients and beds of sources in the log's settings, and puts everything back at start."""

    def __init__(self, log: AlarmLog, pipeline: Pipeline, feeds: Mapping[str, Feed]) -> None:
        self._log, self._pipeline, self._feeds = log, pipeline, feeds
        self._version = pipeline.beds.version
        self._beds = self._entries = 0
        self._clock = Clock()

    def keep(self) -> None:
        """Hand on what has changed since the last call; never waits. Called about once a second."""
        beds = self._pipeline.beds
        if beds.version != self._version:
            self._version = beds.version
            self._log.put(PATIENTS, msgspec.json.encode(beds.associations()))
        seen = {name: sorted(feed.beds_seen) for name, feed in self._feeds.items() if feed.beds_seen}
        count = sum(map(len, seen.values()))
        if count != self._beds:
            self._beds = count
            self._log.put(BEDS_OF_SOURCES, msgspec.json.encode(seen))
        scores, clock = self._pipeline.scores, self._clock
        if scores is not None and scores.version != self._entries:
            self._entries = scores.version
            moment = (clock.monotonic_ns(), clock.boot().hex(), clock.utc_ns())
            self._log.put(ENTERED, msgspec.json.encode(_Entered(moment, msgspec.Raw(scores.saved()))))

    def restore(self, clock: Clock) -> list[str]:
        """Put everything back; what could not be, in words, for a technical alarm."""
        self._clock = clock
        at_ns, boot = clock.monotonic_ns(), clock.boot().hex()
        lost = self._settings(at_ns)

        def event(kept: Active) -> AlarmEvent:
            moment = (kept.event.at_ns, kept.event_boot_id, kept.event_utc_ns)
            return structs.replace(kept.event, at_ns=now_in(boot, moment, clock))

        known = {*self._pipeline.beds.ids, GATEWAY}
        for each in self._log.active():
            if each.bed not in known:  # or every later restart would be told of it again
                gone = structs.replace(event(each), event="end", state="Off", detail="the bed is no longer configured")
                self._log.append(each.bed, "", structs.replace(gone, at_ns=at_ns))
        alarms = [
            (each.bed, event(each), now_in(boot, (each.since_ns, each.boot_id, each.utc_ns), clock))
            for each in self._log.active()
            if each.bed in known
        ]
        pauses = [(each.bed, event(each)) for each in self._log.inactivations()]
        pipeline = self._pipeline
        for bed, last, _ in alarms:  # first, so that what the watch says of them meets them
            if last.state in ("On", "Ack"):
                pipeline.watch.restore(bed, last, at_ns)
                if pipeline.scores is not None:
                    pipeline.scores.held(bed, last.condition)
            feed = self._feeds.get(last.source)
            if feed is not None and last.condition.partition(":")[0] in ("source_lost", "source_silent"):
                feed.alarmed.add(bed)  # so that "connected" reaches it
        pipeline.alarms.restore(alarms, pauses, at_ns)
        pipeline.flush(at_ns)
        return lost

    def _settings(self, at_ns: int) -> list[str]:
        settings = self._log.settings()
        lost = []
        try:
            self._pipeline.beds.restore(_PATIENTS(settings.get(PATIENTS, b"{}")))
            for name, beds in _BEDS(settings.get(BEDS_OF_SOURCES, b"{}")).items():
                if name in self._feeds:
                    known = set(self._pipeline.beds.ids)
                    self._feeds[name].beds_seen.update(bed for bed in beds if bed in known)
        except msgspec.DecodeError as error:
            lost.append(f"patients are unreadable: {error}")
        if LIMITS in settings and self._pipeline.limits is not None:
            lost += self._pipeline.limits.restore(settings[LIMITS], at_ns)
        if ENTERED in settings and self._pipeline.scores is not None:
            try:
                kept = _ENTERED(settings[ENTERED])
                self._pipeline.scores.restore(bytes(kept.entries), self._moved(kept.moment))
            except msgspec.DecodeError as error:
                lost.append(f"what was entered of the patients is unreadable: {error}")
        self._version = self._pipeline.beds.version
        return lost

    def _moved(self, moment: tuple[int, str, int]) -> int | None:
        """By how much times of that moment's boot lie elsewhere in this one, in ns; None when that cannot be known."""
        at_ns, boot, utc_ns = moment
        if boot == self._clock.boot().hex():
            return 0
        if self._clock.quality() != SYNCHRONIZED or self._clock.utc_ns() < utc_ns:
            return None
        return now_in(self._clock.boot().hex(), moment, self._clock) - at_ns
