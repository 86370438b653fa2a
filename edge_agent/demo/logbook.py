"""The demo's look into the alarm log: its last entries in words, and whether its chain holds."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.alarm_log import FILE, chain, reader
from edge_agent.buffer import load_kek


def last_entries(data_dir: Path, key_file: Path, count: int) -> tuple[list[str], str]:
    """The last `count` entries as lines, and what is wrong with the log; empty when it is whole and chained."""
    kept: deque[chain.Entry] = deque(maxlen=count)
    entries = 0
    try:
        with reader.snapshot(data_dir / FILE, load_kek(f"file:{key_file}")) as found:
            for entry, _ in found.entries():
                entries += 1
                kept.append(entry)
    except (reader.Unreadable, chain.Broken) as error:
        return [], str(error)
    lines = [f"alarm log        {entries} entries, chain holds; the last {len(kept)}:"]
    return lines + [f"  {_line(entry)}" for entry in kept], "" if entries else "it is empty"


def _line(entry: chain.Entry) -> str:
    at = datetime.fromtimestamp(entry.utc_ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]
    alarm = entry.alarm
    if alarm is None:
        mark = entry.mark
        return f"{at}  mark {mark.kind if mark else ''}"
    value = "" if alarm.value is None or not alarm.alert_id else f" at {alarm.value:g} ({alarm.limit})"
    state = f" {alarm.state}" if alarm.alert_id else ""
    by = f" by {alarm.operator}" if alarm.operator else ""
    words = alarm.text or alarm.detail
    return f"{at}  {entry.bed or 'gateway':8} {alarm.priority:6} {alarm.event:12} {words}{value}{state}{by}".rstrip()
