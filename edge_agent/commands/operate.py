"""The operator's commands, all clients of the control socket."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent import NOTICE
from edge_agent.config import Control, load
from edge_agent.control import ControlClient, Refused


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the operator's commands."""
    status = _client(subparsers, "status", "what the agent sees, and which alarms are active", run_status)
    status.add_argument("--json", action="store_true")
    _client(subparsers, "metrics", "counters in Prometheus text format", run_metrics)

    acknowledge = _client(subparsers, "acknowledge", "acknowledge active alarms", run_acknowledge)
    acknowledge.add_argument("--bed", metavar="BED", help="only this bed's alarms")
    acknowledge.add_argument("--alert", metavar="ID", help="only this alarm")

    pause = _client(subparsers, "pause", "audio paused: stop sound, not light, for a limited time", run_pause)
    pause.add_argument("--bed", metavar="BED")
    pause.add_argument("--seconds", type=int, metavar="N", help="at most what the configuration allows")

    for name, text in (("resume", "end a pause"), ("reset", "end latched alarms whose condition has gone")):
        each = _client(subparsers, name, text, run_simple)
        each.add_argument("--bed", metavar="BED")
        each.set_defaults(op=name)

    admit = _client(subparsers, "admit", "put a patient into a bed", run_admit)
    admit.add_argument("--bed", required=True, metavar="BED")
    admit.add_argument("--patient", required=True, metavar="ID")
    discharge = _client(subparsers, "discharge", "take the patient out of a bed", run_discharge)
    discharge.add_argument("--bed", required=True, metavar="BED")

    watch = _client(subparsers, "watch", "live view of beds and alarms", run_watch)
    watch.add_argument("--interval", type=float, default=1.0, metavar="S")


def _client(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, func: Any
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text)
    parser.add_argument("--config", type=Path, metavar="FILE", help="take the socket from this configuration")
    parser.add_argument("--socket", type=Path, metavar="PATH", help=f"control socket, by default {Control().socket}")
    parser.set_defaults(func=lambda arguments: _guarded(func, arguments))
    return parser


def _guarded(func: Any, arguments: argparse.Namespace) -> int:
    try:
        with ControlClient(socket_path(arguments)) as client:
            return int(func(client, arguments))
    except (ConnectionError, Refused) as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 1


def socket_path(arguments: argparse.Namespace) -> Path:
    """The control socket that --socket, else --config, else the default names."""
    if arguments.socket is not None:
        return Path(arguments.socket)
    if arguments.config is not None:
        loaded = load(arguments.config)
        return loaded.resolve(loaded.config.control.socket)
    return Control().socket


def run_status(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Print the status, as text or as one JSON object."""
    status = client.call("status")["status"]
    if arguments.json:
        print(json.dumps(status, indent=2, ensure_ascii=False))
    else:
        print(text_of(status))
    return 0


def text_of(status: Mapping[str, Any]) -> str:
    """The status as lines of text, without colour, for scripts, logs and narrow terminals."""
    lines = [NOTICE, f"gateway {status['gateway']}, up {status['uptime_s']:.0f} s, version {status['version']}"]
    for bed in status["beds"]:
        alarm = bed["alarm"]
        paused = f", {alarm['inactivation']['state']}" if alarm["inactivation"] else ""
        lines.append(f"bed {bed['id']} (preset {bed['preset']}): priority {alarm['priority']}{paused}")
        lines += [
            f"  {term:20} {'---' if item['value'] is None else format(item['value'], 'g'):>8} {item['unit']:7}"
            f" {item['validity']}, {item['age_s']:g} s ago"
            for term, item in sorted(bed["values"].items())
        ]
        lines += [_alarm_line(item) for item in bed["alarms"]]
    lines += [_alarm_line(item) for item in status["gateway_alarms"]]
    lines += [
        f"source {item['name']}: {item['state']}{', ' + item['detail'] if item['detail'] else ''}; "
        f"{item['items']} items, {item['rejects']} rejects"
        for item in status["sources"]
    ]
    stored = status["buffer"]
    lines.append(f"buffer: {stored['stored']} records, {stored['pending']} pending, {stored['bytes']} bytes")
    if stored["fault"]:
        lines.append(f"  FAULT {stored['fault']}")
    cloud = status["cloud"]
    lines.append("cloud-sync: never seen" if cloud is None else f"cloud-sync: {cloud['state']} {cloud['detail']}")
    lines += [f"annunciator {item['kind']}: {item['fault'] or 'well'}" for item in status["annunciators"]]
    return "\n".join(lines)


def _alarm_line(alarm: Mapping[str, Any]) -> str:
    value = "" if alarm["value"] is None else f" value {alarm['value']:g}"
    limit = f" limit {alarm['limit']}" if alarm["limit"] else ""
    return (
        f"  ALARM {alarm['priority'].upper()} {alarm['text']} [{alarm['condition']}] {alarm['state']}{value}{limit}"
        f" since {alarm['since_s']:g} s, id {alarm['alert_id']}"
    )


def run_metrics(client: ControlClient, _arguments: argparse.Namespace) -> int:
    """Print the counters."""
    print(client.call("metrics")["text"], end="")
    return 0


def run_acknowledge(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Acknowledge; prints how many alarms were."""
    reply = client.call("acknowledge", bed=arguments.bed, alert_id=arguments.alert)
    print(f"acknowledged {reply['acknowledged']}")
    return 0


def run_pause(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Pause audio; prints for how long."""
    reply = client.call("pause_audio", bed=arguments.bed, seconds=arguments.seconds)
    print(f"audio paused for {reply['seconds']} s; light and status go on")
    return 0


def run_simple(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Resume or reset; prints the beds."""
    reply = client.call(arguments.op, bed=arguments.bed)
    print(f"{arguments.op}: {', '.join(reply['beds'])}")
    return 0


def run_admit(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Admit; the bed starts with its preset."""
    print(f"admitted to {client.call('admit', bed=arguments.bed, patient_id=arguments.patient)['bed']}")
    return 0


def run_discharge(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Discharge; the bed starts with its preset."""
    print(f"discharged from {client.call('discharge', bed=arguments.bed)['bed']}")
    return 0


def run_watch(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Show the live view until Ctrl-C."""
    from edge_agent.view import live  # rich is the heaviest import of the command line

    first = client.subscribe(arguments.interval)["status"]

    def statuses() -> Any:
        yield first
        while True:
            yield client.next()["status"]

    live(statuses())
    return 0
