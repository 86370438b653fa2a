"""What the agent counts, as Prometheus text; two forms of it.

The control socket, which only this machine's users reach, gives everything. The port, whose numbers end in a
hospital's monitoring, gives no alarm by bed and nothing that is computed from vital signs: on a gateway of one bed a
mean would be a patient's.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_agent import __version__, certificates
from edge_agent.buffer.clock import SYNCHRONIZED, Clock
from edge_agent.config import Loaded
from edge_agent.exposition import cloud, family
from edge_agent.pipeline import GATEWAY
from edge_agent.presets import PRIORITIES
from edge_agent.records import Inactivation

if TYPE_CHECKING:
    from edge_agent.agent import Agent

Samples = list[tuple[Mapping[str, str], float]]

KINDS: tuple[Literal["physiological", "technical", "advisory"], ...] = ("physiological", "technical", "advisory")
INACTIVATIONS: tuple[Inactivation, ...] = ("audio_paused", "alarm_paused", "audio_off", "alarm_off")
_CLOCK = Clock()
_CLINICAL = ("edge_agent_model_drift",)  # families that are computed from vital signs
_CLINICAL_FIGURES = ("mean_risk",)
_NO_BUFFER: Mapping[str, Any] = {"stored": 0, "pending": 0, "bytes": 0}


def text(agent: Agent, *, port: bool = False) -> str:
    """Every metric of the agent and the forwarder; with `port` only what may leave the gateway. Runs in its loop."""
    parts = (_process, _sources, _buffer, _alarms, _technical, _model if not port else _model_apart)
    lines = [line for part in parts for line in part(agent)]
    if not port:
        lines += _alarms_by_bed(agent)
    return "\n".join([*lines, *cloud(agent.cloud)]) + "\n"


def host_text(loaded: Loaded) -> str:
    """What takes a look at the disk: certificates and room. Reads files, so it never runs in the alarm loop."""
    lines = []
    expiries: Samples = []
    for each in certificates.named(loaded):
        try:
            expiries.append(({"receiver": each.receiver}, certificates.read(each.certificate)[0].not_after))
        except certificates.Unreadable:
            continue  # doctor tells why
    lines += family(
        "edge_agent_certificate_expiry_seconds", "gauge", "When the gateway's certificate ends, Unix time.", expiries
    )
    data_dir = loaded.resolve(loaded.config.gateway.data_dir)
    try:
        free: Samples = [({}, shutil.disk_usage(_present(data_dir)).free)]
    except OSError:
        free = []
    lines += family("edge_agent_disk_free_bytes", "gauge", "Free room where the records are kept.", free)
    return "".join(f"{line}\n" for line in lines)


def _present(path: Path) -> Path:
    return path if path.exists() else path.parent


def _process(agent: Agent) -> Iterator[str]:
    build = {"version": __version__, "python": platform.python_version()}
    armed = agent.ready.is_set() and any(not each.fault for each in agent.annunciators)
    for name, words, value in (
        ("build_info", "The release that runs.", [(build, 1)]),
        ("start_time_seconds", "When this agent started, Unix time as it was then.", [({}, agent.started_utc)]),
        ("uptime_seconds", "How long it runs.", [({}, round((time.monotonic_ns() - agent.started_ns) / 1e9, 1))]),
        ("armed", "Whether it watches and at least one annunciator works.", [({}, int(armed))]),
        ("beds", "Beds of this gateway.", [({}, len(agent.config.bed))]),
        ("watchdog_enabled", "Whether systemd restarts an agent whose alarm loop hangs.", [({}, int(agent.watchdog))]),
    ):
        yield from family(f"edge_agent_{name}", "gauge", words, value)
    yield from family(
        "edge_agent_turns_total", "counter", "Full turns of the alarm loop, which feed the watchdog.",
        [({}, agent.turns)],
    )  # fmt: skip


def _sources(agent: Agent) -> Iterator[str]:
    feeds, now = agent.feeds.items(), time.monotonic_ns()
    for figure, words in (
        ("items", "Observations, alarms and other items that a source has given."),
        ("rejects", "Messages or frames of a source that could not be understood."),
        ("strangers", "Items of a source that belong to no bed of this gateway."),
    ):
        samples = [({"source": name}, getattr(feed, figure)) for name, feed in feeds]
        yield from family(f"edge_agent_{figure}_total", "counter", words, samples)
    for name, words, value in (
        ("connected", "Whether a source is connected and speaks.", lambda feed: int(feed.state == "connected")),
        ("silence_seconds", "Since when it has not spoken.", lambda feed: round((now - feed.last_item_ns) / 1e9, 1)),
        ("silence_limit_seconds", "How long it may.", lambda feed: feed.silence_s),
    ):
        samples = [({"source": source}, value(feed)) for source, feed in feeds]
        yield from family(f"edge_agent_source_{name}", "gauge", words, samples)


def _buffer(agent: Agent) -> Iterator[str]:
    stats = _NO_BUFFER if agent.buffer is None else agent.buffer.stats()
    figures = [
        ({"figure": key}, value)
        for key, value in stats.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    yield from family("edge_agent_buffer", "gauge", "Figures of the sealed buffer, as in the status.", figures)
    used = stats["bytes"] / (agent.config.buffer.quota_mb << 20)
    yield from family(
        "edge_agent_buffer_used_ratio", "gauge", "Share of the buffer's quota in use.", [({}, round(used, 4))]
    )


def _alarms(agent: Agent) -> Iterator[str]:
    latency = agent.latency.view()
    quantiles = [
        ({"quantile": quantile}, micros / 1e6)
        for quantile, key in (("0.5", "p50_us"), ("0.99", "p99_us"))
        if (micros := latency[key]) is not None
    ]
    words = "Time from the last byte of a value to the hand-over of its alarm."
    yield from family("edge_agent_alarm_latency_seconds", "summary", words, quantiles)
    counts = Counter((event.kind, event.priority) for _bed, event in agent.pipeline.alarms.active())
    yield from family(
        "edge_agent_alarms_active", "gauge", "Alarms that are not over, of all beds and the gateway.",
        [({"kind": kind, "priority": each}, counts[kind, each]) for kind in KINDS for each in PRIORITIES],
    )  # fmt: skip
    held = Counter(agent.pipeline.alarms.signal(bed).inactivation for bed in agent.pipeline.beds.ids)
    yield from family(
        "edge_agent_beds_inactivated", "gauge", "Beds whose sound, or sound and light, is held back.",
        [({"state": state}, held[state]) for state in INACTIVATIONS],
    )  # fmt: skip
    if agent.log is not None:
        words = "Entries of the alarm log that are not on the disk yet."
        yield from family("edge_agent_alarm_log_waiting", "gauge", words, [({}, agent.log.waiting())])


def _alarms_by_bed(agent: Agent) -> Iterator[str]:
    counts = Counter((bed, event.priority) for bed, event in agent.pipeline.alarms.active())
    beds = (*agent.pipeline.beds.ids, GATEWAY)
    samples = [({"bed": bed, "priority": each}, counts[bed, each]) for bed in beds for each in PRIORITIES]
    yield from family("edge_agent_alarms", "gauge", "Alarms that are not over, by bed and priority.", samples)


def _technical(agent: Agent) -> Iterator[str]:
    yield from family("edge_agent_faults", "gauge", "Technical faults that are present.", [({}, len(agent.faults))])
    present = {key.partition("/")[0] for key in agent.faults}
    known = {row.id for row in agent.parts.presets[GATEWAY].conditions}
    samples = [({"condition": each}, int(each in present)) for each in sorted(known | present)]
    yield from family("edge_agent_fault", "gauge", "Whether a technical condition of the gateway is present.", samples)
    synchronized = int(_CLOCK.quality() == SYNCHRONIZED)
    words = "Whether the kernel holds the wall clock for synchronized."
    yield from family("edge_agent_clock_synchronized", "gauge", words, [({}, synchronized)])


def _model(agent: Agent) -> Iterator[str]:
    if agent.risk is not None:
        for name, kind, words, samples in agent.risk.metrics():
            yield from family(name, kind, words, samples)


def _model_apart(agent: Agent) -> Iterator[str]:
    """What the model says of itself, without what is computed from vital signs."""
    if agent.risk is not None:
        for name, kind, words, samples in agent.risk.metrics():
            if name not in _CLINICAL:
                kept = [sample for sample in samples if sample[0].get("figure") not in _CLINICAL_FIGURES]
                yield from family(name, kind, words, kept)
