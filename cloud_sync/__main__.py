"""The command line of the forwarder: run, status, pseudonym, embedded.

Exit codes: 0 done; 1 `status` found no connected forwarder; 75 another forwarder holds the data folder; 78 the
configuration cannot be used.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import NOTICE, config, config_cloud, journal

if TYPE_CHECKING:
    from cloud_sync.encode import Encoder
    from cloud_sync.sinks import Sink
    from cloud_sync.way import Way

EXIT_BUSY = 75  # sysexits.h EX_TEMPFAIL
_STALE_S = 10.0  # a state file is written every second; older than this, its writer hangs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except config.ConfigError as error:
        print(f"cloud-sync: {error}", file=sys.stderr)
        return config.EXIT_CONFIG
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloud-sync", description="Forward what the agent has sealed. " + NOTICE)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="forward until told to stop")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    run.add_argument("--verbose", action="store_true", help="log more than changes of state")
    run.set_defaults(command=_run)
    status = commands.add_parser("status", help="what the forwarder last said about itself")
    status.add_argument("--config", type=Path, required=True, metavar="FILE")
    status.add_argument("--json", action="store_true", help="the state file as it is")
    status.set_defaults(command=_status)
    pseudonym = commands.add_parser("pseudonym", help="pseudonyms of the identifiers on standard input, one a line")
    pseudonym.add_argument("--config", type=Path, required=True, metavar="FILE")
    pseudonym.set_defaults(command=_pseudonym)
    embedded = commands.add_parser("embedded", help="demo-only Kafka in this process")
    embedded.add_argument(
        "--port-file", type=Path, required=True, metavar="FILE", help="gets the address to connect to"
    )
    embedded.add_argument("--count", type=float, metavar="SECONDS", help="print what arrived, every so often")
    embedded.add_argument("--prefix", default="bedside", help="of the topics that are counted")
    embedded.set_defaults(command=_embedded)
    return parser


def _on_signal(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _run(options: argparse.Namespace) -> int:
    from cloud_sync.forwarder import Busy, Forwarder
    from cloud_sync.sinks import Fatal
    from cloud_sync.way import one_line
    from edge_agent.buffer import KeyProblem, Reader, load_kek

    loaded = config.load(options.config)
    gateway, cloud = loaded.config.gateway, loaded.config.cloud
    nobody = cloud.alert_manager is None and cloud.mqtt is None and cloud.rest is None
    open_sink, open_lesser = _kafka(loaded) if cloud.kafka is not None or nobody else (None, None)
    alert_manager = None if cloud.alert_manager is None else _alert_manager(loaded, cloud.alert_manager)
    make_encoder = _encoders(loaded, "bedside" if cloud.kafka is None else cloud.kafka.topic_prefix)
    others = _others(loaded)
    print(NOTICE, file=sys.stderr, flush=True)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, handlers=[journal.handler("cloud-sync", "%(levelname)s %(message)s")])
    data_dir = loaded.resolve(gateway.data_dir)

    def open_reader() -> Reader:
        try:
            return Reader(data_dir, load_kek(loaded.buffer_key))
        except KeyProblem as error:
            raise Fatal(one_line(error)) from error

    try:
        forwarder = Forwarder(
            data_dir,
            gateway.id,
            open_reader,
            open_sink,
            loaded.config.control.socket,
            alert_manager,
            make_encoder,
            others,
            open_lesser,
        )
    except Busy as error:
        print(f"cloud-sync: {error}", file=sys.stderr)
        return EXIT_BUSY
    except OSError as error:
        remedy = "cloud-sync keeps its marks there: create it and give it to the user who runs cloud-sync"
        raise loaded.error(("gateway", "data_dir"), str(error), remedy) from error
    _on_signal(forwarder.stop)
    forwarder.run()
    return 0


def _encoders(loaded: config.Loaded, prefix: str) -> Callable[[], Encoder]:
    """What makes an encoder for one thread, as configured; `prefix`: of its topics."""
    from cloud_sync.encode import Encoder
    from cloud_sync.pseudonym import identities

    gateway = loaded.config.gateway.id
    identities(loaded)  # what is wrong with the key is told now
    if loaded.config.cloud.encoding.format == "json":
        return lambda: Encoder(gateway, identities(loaded))
    from cloud_sync.avro import AvroEncoder
    from cloud_sync.registry import registry

    shared = registry(loaded)
    return lambda: AvroEncoder(gateway, identities(loaded), shared, prefix)


_OpenSink = Callable[[str], "Sink"]  # for a stream


def _kafka(loaded: config.Loaded) -> tuple[_OpenSink, _OpenSink | None]:
    """The sink to use, and the one to use when the cluster refuses it."""
    from cloud_sync.sinks.kafka import KafkaSink
    from cloud_sync.sinks.kafka_properties import properties
    from cloud_sync.sinks.kafka_transactions import TransactionalSink

    given = properties(loaded)
    kafka, gateway = loaded.config.cloud.kafka, loaded.config.gateway.id
    assert kafka is not None, "properties() has refused a configuration without it"
    prefix = kafka.topic_prefix

    def at_least_once(stream: str) -> Sink:
        linger_ms = 5 if stream == "alerts" else 50
        return KafkaSink(given, prefix, f"{gateway}-{stream}", linger_ms)

    def exactly_once(stream: str) -> Sink:
        return TransactionalSink(given, prefix, gateway, stream)

    return (exactly_once, at_least_once) if kafka.exactly_once else (at_least_once, None)


def _alert_manager(loaded: config.Loaded, settings: config_cloud.AlertManager) -> Way:
    from cloud_sync.pcd04 import CONTROL_HEADER, AlertEncoder
    from cloud_sync.pseudonym import identities
    from cloud_sync.sinks.mllp import MllpSink
    from cloud_sync.way import Way
    from edge_agent.buffer import ALERT_MANAGER

    host, _, port = settings.link.removeprefix("mllp://").rpartition(":")
    if not 1 <= int(port) <= 65535:
        raise loaded.error(("cloud", "alert_manager", "link"), f"{port} is no port", "a port is 1 to 65535")
    locations = {bed.id: bed.location for bed in loaded.config.bed if bed.location}
    encoder = AlertEncoder(loaded.config.gateway.id, settings, locations, identities=identities(loaded))

    def open_sink() -> Sink:
        return MllpSink(host.strip("[]"), int(port), settings.reply_s, CONTROL_HEADER)

    return Way(ALERT_MANAGER, "alerts", encoder, open_sink, encoder.begin_at)


def _others(loaded: config.Loaded) -> list[Way]:
    """The ways to MQTT and to REST, as far as they are configured."""
    from cloud_sync.forwarder import STREAMS
    from cloud_sync.way import Way
    from edge_agent.buffer import MQTT, REST, receiver_mark

    cloud = loaded.config.cloud
    found: dict[str, tuple[Callable[[str], Sink], str]] = {}  # how to open it, and the prefix of its topics
    if cloud.mqtt is not None:
        from cloud_sync.sinks import mqtt

        found[MQTT] = partial(mqtt.MqttSink, mqtt.settings(loaded)), cloud.mqtt.topic_prefix
    if cloud.rest is not None:
        from cloud_sync.sinks import rest

        found[REST] = partial(rest.RestSink, rest.settings(loaded)), cloud.rest.topic_prefix
    return [
        Way(receiver_mark(receiver, stream), stream, _encoders(loaded, prefix)(), partial(open_sink, stream))
        for receiver, (open_sink, prefix) in found.items()
        for stream in STREAMS
    ]


def _status(options: argparse.Namespace) -> int:
    loaded = config.load(options.config)
    path = loaded.resolve(loaded.config.gateway.data_dir) / "cloud-sync" / "status.json"
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        print(f"cloud-sync has not run here: {path} does not exist", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"cloud-sync: {path} cannot be read: {error}", file=sys.stderr)
        return 1
    age_s = time.time() - datetime.fromisoformat(status["utc"]).timestamp()
    if status["state"] != "stopped" and not _alive(status["pid"]):
        status["state"], status["detail"] = "dead", f"process {status['pid']} is gone without a word"
    elif status["state"] != "stopped" and age_s > _STALE_S:
        status["state"], status["detail"] = "silent", f"has not written its state for {age_s:.0f} s"
    print(json.dumps(status) if options.json else _lines(status))
    return 0 if status["state"] == "connected" else 1


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lines(status: dict[str, Any]) -> str:
    detail = f": {status['detail']}" if status["detail"] else ""
    backlog = "unknown" if status["backlog_records"] is None else f"{status['backlog_records']} records"
    oldest = "" if status["backlog_oldest_s"] is None else f", oldest {status['backlog_oldest_s']:.0f} s"
    lines = [
        f"gateway        {status['gateway']}",
        f"state          {status['state']}{detail}",
        *(
            f"  {name:12} {item['state']}: {item['detail']}"
            for name, item in status["streams"].items()
            if item["detail"]
        ),
        f"backlog        {backlog}{oldest}",
        *_kafka_lines(status),
        *_alert_manager_lines(status.get("alert_manager")),
        *_receiver_lines("MQTT", status.get("mqtt")),
        *_receiver_lines("REST", status.get("rest")),
        f"last delivery  {status['last_delivery_utc'] or 'never'}",
        f"identifiers    {status.get('identifiers', 'unknown')}",
        *_guarantee_lines(status),
    ]
    return "\n".join(lines)


def _guarantee_lines(status: dict[str, Any]) -> list[str]:
    lines = [f"guarantee      {status['guarantee']}; the dedup header, or MSH-10, tells copies apart"]
    if status.get("guarantee_detail"):
        lines.append(f"  because      {status['guarantee_detail']}")
    if status.get("error"):
        lines.append(f"ERROR          {status['error']}")
    return lines


def _kafka_lines(status: dict[str, Any]) -> list[str]:
    forwarded = status["forwarded"]
    if not forwarded:
        return []
    last = f", last {status['last_drop']}" if status["last_drop"] else ""
    return [
        f"forwarded      {forwarded['alerts']} alerts, {forwarded['data']} data records in {status['uptime_s']:.0f} s",
        f"refused        {sum(status['dropped'].values())}{last}",
    ]


def _alert_manager_lines(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    last = f", last {told['last_refused']}" if told["last_refused"] else ""
    waiting = "unknown" if told["backlog_records"] is None else f"{told['backlog_records']} records"
    return [
        f"alert manager  {told['state']}, sent {told['sent']} alarm messages, refused {told['refused']}{last},"
        f" waiting {waiting}"
    ]


def _receiver_lines(name: str, told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    last = f", last {told['last_drop']}" if told["last_drop"] else ""
    waiting = "unknown" if told["backlog_records"] is None else f"{told['backlog_records']} records"
    sent, refused = told["forwarded"], sum(told["dropped"].values())
    return [
        f"{name:14} {told['state']}, sent {sent['alerts']} alerts, {sent['data']} data records,"
        f" refused {refused}{last}, waiting {waiting}, {told['guarantee']}"
    ]


def _pseudonym(options: argparse.Namespace) -> int:
    """One JSON object a line: the pseudonym under each site key, oldest key first; never the identifier itself."""
    from cloud_sync.pseudonym import identities

    found = identities(config.load(options.config))
    for line in sys.stdin:
        print(json.dumps(found.every(line.rstrip("\r\n"))), flush=True)
    return 0


def _embedded(options: argparse.Namespace) -> int:
    from cloud_sync.embedded import LABEL, Arrivals, EmbeddedKafka

    stop = threading.Event()
    _on_signal(stop)
    with EmbeddedKafka() as kafka:
        fresh = options.port_file.with_name(options.port_file.name + ".new")
        fresh.write_text(kafka.bootstrap + "\n", encoding="utf-8")
        fresh.replace(options.port_file)
        print(f"{kafka.bootstrap}  {LABEL}", flush=True)
        if options.count is None:
            stop.wait()
            return 0
        arrivals = Arrivals(kafka.bootstrap, options.prefix)
        shown_at = time.monotonic()
        while not stop.is_set():
            arrivals.poll(0.2)
            if time.monotonic() - shown_at >= options.count:
                shown_at = time.monotonic()
                print(json.dumps(arrivals.counts, sort_keys=True), flush=True)
        arrivals.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
