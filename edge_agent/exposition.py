"""Prometheus text: families of samples with their help and type, and what cloud-sync has last said of itself.

Source: Prometheus exposition formats, text-based format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_RECEIVERS = ("kafka", "mqtt", "rest")  # each with a stream of alerts and one of data


def family(
    name: str,
    kind: Literal["counter", "gauge", "summary"],
    text: str,
    samples: Iterable[tuple[Mapping[str, str], float]],
) -> list[str]:
    """The lines of one metric: help, type, a line for each sample with its labels; none when there is no sample."""
    lines = []
    for labels, value in samples:
        told = ",".join(f'{key}="{label.translate(_ESCAPES)}"' for key, label in labels.items())
        lines.append(f"{name}{{{told}}} {value}" if told else f"{name} {value}")
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines] if lines else []


def cloud(status: Mapping[str, Any] | None) -> list[str]:
    """What the forwarder counts, by receiver and stream; only that it is not connected when it has said nothing."""
    told = status or {}
    state = int(told.get("state") == "connected")
    lines = family("cloud_sync_connected", "gauge", "Whether every receiver of cloud-sync answers.", [({}, state)])
    parts: dict[str, Mapping[str, Any]] = {"kafka": told}
    parts |= {name: part for name in _RECEIVERS if isinstance(part := told.get(name), Mapping)}
    manager = told.get("alert_manager")
    for name, word, text in (
        ("forwarded", "sent", "Records that a receiver has confirmed since cloud-sync began."),
        ("dropped", "refused", "Records that a receiver has refused for good since cloud-sync began."),
    ):
        samples: list[tuple[Mapping[str, str], float]] = [
            ({"receiver": receiver, "stream": str(stream)}, count)
            for receiver, part in parts.items()
            if isinstance(part.get(name), Mapping)
            for stream, count in part[name].items()
            if isinstance(count, int)
        ]
        if isinstance(manager, Mapping) and isinstance(manager.get(word), int):
            samples.append(({"receiver": "alert_manager", "stream": "alerts"}, manager[word]))
        lines += family(f"cloud_sync_{name}_total", "counter", text, samples)
    for key, name, text in (
        ("backlog_records", "backlog_records", "Records sealed and not yet with every receiver."),
        ("backlog_oldest_s", "backlog_oldest_seconds", "Age of the oldest record that is not yet with every receiver."),
    ):
        value = told.get(key)
        if isinstance(value, int | float):
            lines += family(f"cloud_sync_{name}", "gauge", text, [({}, value)])
    return lines
