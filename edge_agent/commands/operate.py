"""The operator's commands, all clients of the control socket."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent import NOTICE, view_scores
from edge_agent.config import Control, load
from edge_agent.control import ControlClient, Refused
from edge_agent.scoring import UNKNOWN

if TYPE_CHECKING:
    from edge_agent.view import Lost

SELF_TEST_S = 30.0  # three lamps and three bursts take about ten seconds


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the operator's commands."""
    status = _client(subparsers, "status", "what the agent sees, and which alarms are active", run_status)
    status.add_argument("--json", action="store_true")
    _client(subparsers, "metrics", "counters in Prometheus text format", run_metrics)

    acknowledge = _client(subparsers, "acknowledge", "acknowledge active alarms", run_acknowledge)
    acknowledge.add_argument("--bed", metavar="BED", help="only this bed's alarms")
    acknowledge.add_argument("--alert", metavar="ID", help="only this alarm: its id or the end of it")

    pause = _client(subparsers, "pause", "audio paused: stop sound, not light, for a limited time", run_pause)
    pause.add_argument("--bed", metavar="BED")
    pause.add_argument("--seconds", type=int, metavar="N", help="at most what the configuration allows")
    pause.add_argument("--alarm", action="store_true", help="alarm paused: stop light too")
    for name, text in (
        ("audio-off", "stop sound until resume or a new patient; where the configuration allows it"),
        ("alarm-off", "stop sound and light until resume or a new patient; where the configuration allows it"),
    ):
        off = _client(subparsers, name, text, run_off)
        off.add_argument("--bed", required=True, metavar="BED")

    for name, text in (("resume", "end a pause"), ("reset", "end latched alarms whose condition has gone")):
        each = _client(subparsers, name, text, run_simple)
        each.add_argument("--bed", metavar="BED")
        each.set_defaults(op=name)

    observe = _client(subparsers, "observe", "enter what no device knows, for the scores", run_observe)
    observe.add_argument("--bed", required=True, metavar="BED")
    observe.add_argument(
        "--consciousness", type=_level, metavar="LEVEL",
        help="A alert, C new confusion, V responds to voice, P to pain, U unresponsive, or unknown",
    )  # fmt: skip
    observe.add_argument("--oxygen", choices=tuple(_OXYGEN), help="whether the patient gets any; unknown takes it back")
    observe.add_argument("--fio2", type=float, metavar="PERCENT", help="21 to 100; says that the patient gets oxygen")
    observe.add_argument("--scale", type=int, choices=(1, 2), help="SpO2 scale of NEWS2: 2 only where prescribed")

    admit = _client(subparsers, "admit", "put a patient into a bed", run_admit)
    admit.add_argument("--bed", required=True, metavar="BED")
    admit.add_argument("--patient", required=True, metavar="ID")
    admit.add_argument("--age", type=float, metavar="YEARS", help="for the risk model; stays on the gateway")
    admit.add_argument("--sex", choices=("female", "male"), default="", help="likewise")
    discharge = _client(subparsers, "discharge", "take the patient out of a bed", run_discharge)
    discharge.add_argument("--bed", required=True, metavar="BED")

    _add_settings(subparsers)

    watch = _client(subparsers, "watch", "live view of beds, trends, limits and alarms", run_watch)
    watch.add_argument("--interval", type=_interval, default=1.0, metavar="S", help="between two looks, in seconds")
    watch.add_argument("--bed", metavar="BED", help="only this bed, large")
    watch.add_argument("--once", action="store_true", help="print one frame and end")
    watch.add_argument("--ascii", action="store_true", help="for a screen without block characters")
    watch.add_argument(
        "--size", type=_size, metavar="COLUMNSxLINES", help="of the one frame, by default the terminal's"
    )
    watch.add_argument("--svg", type=Path, metavar="FILE", help="write the one frame as an image, printing nothing")


def _add_settings(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    limits = _client(subparsers, "limits", "the limits in force on a bed", run_limits)
    limits.add_argument("--bed", required=True, metavar="BED")
    limits.add_argument("--json", action="store_true")
    limit = _client(subparsers, "limit", "change one limit of a bed, until the next patient", run_limit)
    limit.add_argument("--bed", required=True, metavar="BED")
    limit.add_argument("condition", metavar="CONDITION", help="as `limits` names it, for example spo2_low")
    limit.add_argument("present", metavar="LIMIT", help='in quotes, for example "below 88"')
    limit.add_argument("--delay", type=float, metavar="S", help="condition delay in seconds, else as it is")
    preset = _client(subparsers, "preset", "put another preset into force on a bed, until the next patient", run_preset)
    preset.add_argument("--bed", required=True, metavar="BED")
    preset.add_argument("name", metavar="NAME")
    test = _client(subparsers, "self-test", "the state of every part that can fail", run_self_test)
    test.add_argument("--annunciators", action="store_true", help="try lamps and sounds: look and listen")


_OXYGEN: dict[str, bool | str] = {"yes": True, "no": False, UNKNOWN: UNKNOWN}


def _level(text: str) -> str:
    level = text if text == UNKNOWN else text.upper()
    if level not in (*"ACVPU", UNKNOWN):
        raise argparse.ArgumentTypeError(f"one of A, C, V, P, U or {UNKNOWN}")
    return level


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError("0.1 to 60 seconds")
    return seconds


def _size(text: str) -> tuple[int, int]:
    columns, _, lines = text.partition("x")
    try:
        width, height = int(columns), int(lines)
    except ValueError:
        width = height = 0
    if not (20 <= width <= 1000 and 5 <= height <= 1000):
        raise argparse.ArgumentTypeError("columns and lines, from 20x5, for example 80x24")
    return width, height


def _client(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, func: Any
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text)
    parser.add_argument("--config", type=Path, metavar="FILE", help="take the socket from this configuration")
    parser.add_argument("--socket", type=Path, metavar="PATH", help=f"control socket, by default {Control().socket}")
    parser.set_defaults(command_name=name, func=lambda arguments: _guarded(func, arguments))
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
    if status.get("announcement"):
        lines.append(status["announcement"]["text"])
    for bed in status["beds"]:
        alarm = bed["alarm"]
        paused = f", {alarm['inactivation']['state']}" if alarm["inactivation"] else ""
        lines.append(f"bed {bed['id']} (preset {bed['preset']}): priority {alarm['priority']}{paused}")
        lines += [
            f"  {term:20} {'---' if item['value'] is None else format(item['value'], 'g'):>8} {item['unit']:7}"
            f" {item['validity']}, {item['age_s']:g} s ago"
            for term, item in sorted(bed["values"].items())
        ]
        lines += [f"  {line}" for line in view_scores.lines(bed)]
        lines += [_alarm_line(item) for item in bed["alarms"]]
    lines += [_alarm_line(item) for item in status["gateway_alarms"]]
    lines += [
        f"source {item['name']}: {item['state']}{', ' + item['detail'] if item['detail'] else ''}; "
        f"{item['items']} items, {item['rejects']} rejects"
        for item in status["sources"]
    ]
    stored = status["buffer"]
    lines.append(f"buffer: {stored['stored']} records, {stored['pending']} pending, {stored['bytes']} bytes")
    if stored.get("capacity_h") is not None:
        lines.append(f"  at the present rate it holds {stored['capacity_h']:g} h, with room for {stored['room_h']:g} h")
    if stored["fault"]:
        lines.append(f"  FAULT {stored['fault']}")
    cloud = status["cloud"]
    lines.append("cloud-sync: never seen" if cloud is None else f"cloud-sync: {cloud['state']} {cloud['detail']}")
    if cloud is not None:
        lines += [f"  {key}: {cloud[key]}" for key in ("guarantee", "identifiers", "error") if cloud.get(key)]
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
    alert = _whole_id(client, arguments.alert) if arguments.alert else None
    reply = client.call("acknowledge", bed=arguments.bed, alert_id=alert)
    print(f"acknowledged {reply['acknowledged']}")
    return 0


def _whole_id(client: ControlClient, end: str) -> str:
    """The id of the one active alarm whose id ends so; the words as they are when there is none: the agent tells."""
    status = client.call("status")["status"]
    listed = [alarm for bed in status["beds"] for alarm in bed["alarms"]] + status["gateway_alarms"]
    found = {alarm["alert_id"] for alarm in listed if alarm["alert_id"].endswith(end)}
    if end in found or not found:
        return end
    if len(found) > 1:
        raise Refused(f"{len(found)} active alarms have an id that ends in {end!r}; give more of it")
    return str(found.pop())


def run_pause(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Pause audio, or sound and light; prints for how long."""
    op, what, still = (
        ("pause_alarm", "alarm", "status goes on") if arguments.alarm else
        ("pause_audio", "audio", "light and status go on")
    )  # fmt: skip
    reply = client.call(op, bed=arguments.bed, seconds=arguments.seconds)
    print(f"{what} paused for {reply['seconds']} s; {still}")
    return 0


def run_off(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Audio off or alarm off; prints how it ends."""
    op = arguments.command_name.replace("-", "_")
    client.call(op, bed=arguments.bed)
    words = op.replace("_", " ").upper()
    print(f"{words} on {arguments.bed}, until `edge-agent resume --bed {arguments.bed}` or a new patient")
    return 0


def run_limits(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Print the limits of a bed, one line a condition or one JSON object."""
    reply = client.call("limits", bed=arguments.bed)
    if arguments.json:
        print(json.dumps({key: reply[key] for key in ("bed", "preset", "limits")}, indent=2, ensure_ascii=False))
    else:
        print(limits_text(reply))
    return 0


def limits_text(reply: Mapping[str, Any]) -> str:
    """The limits of a bed as a table in plain text."""
    rows = [("condition", "limit", "delay", "deadband", "priority", "", "")]
    for row in reply["limits"]:
        changed = "changed" if row.get("changed") else ""
        if row.get("off"):
            rows.append((row["condition"], "OFF", "", "", "", "", changed))
            continue
        latching = "latching" if row["latching"] else ""
        delay = f"{row['delay_s']:g} s"
        rows.append(
            (row["condition"], row["present"], delay, f"{row['deadband']:g}", row["priority"], latching, changed)
        )
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [f"bed {reply['bed']}, preset {reply['preset']}"]
    lines += ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def run_limit(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Change one limit; prints what is in force now."""
    client.call(
        "set_limit", bed=arguments.bed, condition=arguments.condition, present=arguments.present,
        delay_s=arguments.delay,
    )  # fmt: skip
    rows = client.call("limits", bed=arguments.bed)["limits"]
    row = next((each for each in rows if each["condition"] == arguments.condition), None)
    now = f"{row['present']}, delay {row['delay_s']:g} s" if row and not row.get("off") else arguments.present
    print(f"{arguments.bed} {arguments.condition}: {now}, until the next patient")
    return 0


def run_preset(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Put another preset into force; prints it."""
    client.call("set_preset", bed=arguments.bed, preset=arguments.name)
    print(f"{arguments.bed}: preset {arguments.name}, until the next patient")
    return 0


def run_self_test(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Print the state of every part; 1 when one of them fails."""
    reply = client.call("self_test", **({"annunciators": True} if arguments.annunciators else {}))
    outputs = reply["annunciators"]
    if arguments.annunciators:
        print("lamps and sounds are being tried: every lamp must light and every sound be heard", flush=True)
        end = time.monotonic() + SELF_TEST_S
        while any(map(_in_test, outputs)) and time.monotonic() < end:
            time.sleep(0.2)
            outputs = client.call("status")["status"]["annunciators"]
    parts = [(f"annunciator {item['kind']}", *_judged(item, tried=arguments.annunciators)) for item in outputs]
    parts += [(f"button {item['name']}", *_judged(item, tried=False)) for item in reply.get("buttons", ())]
    parts += [
        (f"source {name}", "well" if state == "connected" else state.upper(), state == "connected")
        for name, state in reply["sources"].items()
    ]
    parts += [(f"fault {name}", detail, False) for name, detail in reply["faults"].items()]
    print("\n".join(f"{name}: {verdict}" for name, verdict, _ in parts))
    return 0 if all(well for _, _, well in parts) else 1


def _in_test(output: Mapping[str, Any]) -> bool:
    return bool((output.get("test") or {}).get("state") == "running")


def _judged(part: Mapping[str, Any], *, tried: bool) -> tuple[str, bool]:
    """What is to be printed of an annunciator or button, and whether it is well."""
    if part["fault"]:
        return str(part["fault"]), False
    test = part.get("test") or {}
    if not tried or not test:
        return "well", True
    detail = f", {test['detail']}" if test.get("detail") else ""
    return f"test {test['state']}{detail}", test["state"] == "passed"


def run_simple(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Resume or reset; prints the beds."""
    reply = client.call(arguments.op, bed=arguments.bed)
    print(f"{arguments.op}: {', '.join(reply['beds'])}")
    return 0


def run_observe(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Enter observations; prints what counts now, and the scores."""
    reply = client.call(
        "observe", bed=arguments.bed, consciousness=arguments.consciousness,
        oxygen=_OXYGEN.get(arguments.oxygen), fio2=arguments.fio2, scale=arguments.scale,
    )  # fmt: skip
    print(f"{reply['bed']}:")
    print("\n".join(f"  {line}" for line in view_scores.lines(reply)))
    return 0


def run_admit(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Admit; the bed starts with its preset."""
    reply = client.call("admit", bed=arguments.bed, patient_id=arguments.patient, age=arguments.age, sex=arguments.sex)
    print(f"admitted to {reply['bed']}")
    return 0


def run_discharge(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Discharge; the bed starts with its preset."""
    print(f"discharged from {client.call('discharge', bed=arguments.bed)['bed']}")
    return 0


def run_watch(client: ControlClient, arguments: argparse.Namespace) -> int:
    """Show the live view until Ctrl-C, or one frame."""
    from edge_agent import view  # rich is the heaviest import of the command line

    try:
        if not arguments.once and arguments.svg is None:
            statuses = follow(client, socket_path(arguments), arguments.interval, view.Lost)
            view.live(statuses, bed=arguments.bed, plain=arguments.ascii)
            return 0
        status = client.call("status", trends=True)["status"]
        title = "edge-agent watch" if arguments.svg else ""
        image = view.once(status, arguments.size, arguments.bed, plain=arguments.ascii, svg=title)
    except view.NoBed as error:
        raise Refused(str(error)) from error
    if arguments.svg:
        try:
            arguments.svg.write_text(image, encoding="utf-8")
        except OSError as error:
            raise Refused(f"{arguments.svg} cannot be written: {error.strerror}") from error
    return 0


def follow(
    client: ControlClient, path: Path, interval_s: float, lost: Callable[[float, str], Lost],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any] | Lost]:  # fmt: skip
    """A status every `interval_s` for as long as it is asked for; what `lost` makes while no agent answers.

    An attached screen must come back by itself when the agent does, and must not go on showing old values until then.
    """
    connection: ControlClient | None = client
    since = None
    while True:
        try:
            if connection is None:
                connection = ControlClient(path)
            status = connection.call("status", trends=True)["status"]
            since = None
        except (ConnectionError, TimeoutError, Refused, msgspec.DecodeError) as error:
            if connection is not None:
                connection.__exit__()
                connection = None
            since = time.monotonic() if since is None else since
            yield lost(time.monotonic() - since, str(error))
        else:
            yield status
        sleep(interval_s)
