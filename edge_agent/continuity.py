"""What a restart keeps: active alarms under their identifiers, pauses, patients, changed limits, beds of sources.

Theory of operation: the alarm log holds the last event of every alarm that is not over and of every pause, written in
the same transaction as the log's entry, and small settings beside them. At start they are put back before a link is
opened. CLOCK_MONOTONIC goes on over a restart of the process; after a restart of the machine the times are moved by
how long ago, in UTC, each event was. Where UTC has gone backwards meanwhile, the event counts as having just happened:
a pause then lasts at most as long as it was granted for.

What was restored holds until data, or the lack of it, says otherwise; the watch sees to that.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import structs

from edge_agent.alarm_log import Active, AlarmLog, now_in
from edge_agent.buffer.clock import Clock
from edge_agent.pipeline import GATEWAY, Feed, Pipeline
from edge_agent.records import AlarmEvent

PATIENTS, LIMITS, BEDS_OF_SOURCES = "patients", "limits", "beds of sources"

# built at import: msgspec prepares a struct at its first decoder, which two threads must not do at once
_PATIENTS = msgspec.json.Decoder(dict[str, tuple[str, str]]).decode
_BEDS = msgspec.json.Decoder(dict[str, list[str]]).decode


class Continuity:
    """Keeps patients and beds of sources in the log's settings, and puts everything back at start."""

    def __init__(self, log: AlarmLog, pipeline: Pipeline, feeds: Mapping[str, Feed]) -> None:
        self._log, self._pipeline, self._feeds = log, pipeline, feeds
        self._version = pipeline.beds.version
        self._beds = 0

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

    def restore(self, clock: Clock) -> list[str]:
        """Put everything back; what could not be, in words, for a technical alarm."""
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
        self._version = self._pipeline.beds.version
        return lost
