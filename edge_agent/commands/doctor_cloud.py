"""What `edge-agent doctor` looks at beyond the gateway: Kafka, MQTT, REST, alert manager, schema registry, privacy.

Each receiver is asked as cloud-sync asks it, with the same settings, certificates and secrets, under a name of its own,
and nothing is sent. What a shell outside the service cannot read, a systemd credential, is a warning, not a failure.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edge_agent.commands.finding import Finding
from edge_agent.config import ConfigError, Loaded

if TYPE_CHECKING:
    from cloud_sync.sinks import Sink

REACH_S = 3.0  # to open a connection
ANSWER_S = 10.0  # until a receiver has said yes or no
_NAME = "doctor"  # in place of a stream: the forwarder's own connections are not disturbed


def check_kafka(loaded: Loaded) -> Iterator[Finding]:
    """Whether files and secrets can be used and each bootstrap broker accepts a connection."""
    cloud = loaded.config.cloud
    if cloud.kafka is None:
        if not (cloud.mqtt or cloud.rest or cloud.alert_manager):
            remedy = "add [cloud.kafka], [cloud.mqtt], [cloud.rest] or [cloud.alert_manager] when central is ready"
            yield Finding("broker", "warn", "no receiver is configured; records stay in the buffer", remedy)
        return
    from cloud_sync.sinks.kafka_properties import properties

    yield from _settings("broker", cloud.kafka.sasl_password, lambda: properties(loaded))
    for broker in cloud.kafka.bootstrap.split(","):
        host, _, port = broker.strip().rpartition(":")
        yield _reach("broker", broker, host, port, "is the network up, and bootstrap host:port right?")


def check_mqtt(loaded: Loaded) -> Iterator[Finding]:
    """Whether the MQTT broker takes the gateway's log-in."""
    mqtt = loaded.config.cloud.mqtt
    if mqtt is None:
        return
    from cloud_sync.sinks.mqtt import MqttSink, settings

    wrong = list(_settings("mqtt", mqtt.password, lambda: settings(loaded)))
    yield from wrong
    if not wrong:
        given = settings(loaded)
        given = given._replace(table=mqtt.model_copy(update={"session_expiry_s": 0}))  # leaves no session behind
        remedy = "is the network up, are broker, user, password and certificates right? docs/forwarding.md, MQTT"
        yield _ask("mqtt", mqtt.broker, lambda: MqttSink(given, _NAME), remedy)


def check_rest(loaded: Loaded) -> Iterator[Finding]:
    """Whether the REST proxy knows the cluster and takes the gateway's token."""
    rest = loaded.config.cloud.rest
    if rest is None:
        return
    from cloud_sync.sinks.rest import RestSink, settings

    wrong = list(_settings("rest", rest.client_secret, lambda: settings(loaded)))
    yield from wrong
    if not wrong:
        remedy = (
            "are url, cluster, token_url and client_id right? docs/forwarding.md, REST, says what each answer means"
        )
        yield _ask("rest", rest.url, lambda: RestSink(settings(loaded), _NAME), remedy)


def check_alert_manager(loaded: Loaded) -> Iterator[Finding]:
    """Whether the alert manager accepts a connection; nothing is sent, because any message would be an alarm."""
    manager = loaded.config.cloud.alert_manager
    if manager is None:
        return
    host, _, port = manager.link.removeprefix("mllp://").rpartition(":")
    yield _reach("alert manager", manager.link, host, port, "is the network up, and cloud.alert_manager.link right?")


def check_registry(loaded: Loaded) -> Iterator[Finding]:
    """Whether the schema registry answers and takes the log-in."""
    encoding = loaded.config.cloud.encoding
    if encoding.format != "avro":
        return
    cloud = loaded.config.cloud
    if not (cloud.kafka or cloud.mqtt or cloud.rest):
        remedy = "remove [cloud.encoding], or add [cloud.kafka], [cloud.mqtt] or [cloud.rest]"
        yield Finding("encoding", "warn", "avro is set and no receiver gets it; an alert manager gets HL7", remedy)
    from cloud_sync.registry import registry
    from cloud_sync.sinks import Fatal, Retry

    wrong = list(_settings("registry", encoding.registry_password, lambda: registry(loaded).close()))
    yield from wrong
    if wrong:
        return
    served = registry(loaded)
    try:
        served.probe()
    except (Retry, Fatal) as trouble:
        remedy = "nothing leaves before it answers: are registry, registry_ca and registry_password right?"
        yield Finding("registry", "FAIL", str(trouble), remedy)
    else:
        yield Finding("registry", "ok", f"{encoding.registry}: answers")
    finally:
        served.close()


def check_privacy(loaded: Loaded) -> Iterator[Finding]:
    """What becomes of patients' identifiers when records leave."""
    from cloud_sync.pseudonym import identities

    privacy = loaded.config.privacy
    wrong = list(_settings("privacy", privacy.key, lambda: identities(loaded)))
    yield from wrong
    if wrong:
        return
    told = identities(loaded).told
    if privacy.identifiers == "clear":
        remedy = 'set [privacy] identifiers = "pseudonym", unless the hospital has decided so and guards every receiver'
        yield Finding("privacy", "warn", f"patients' identifiers leave {told}", remedy)
    elif privacy.identifiers == "pseudonym" and not privacy.key:
        remedy = 'set [privacy] key, docs/privacy.md says how to make one; or identifiers = "none" if that is wanted'
        yield Finding("privacy", "warn", f"patients' identifiers are {told}", remedy)
    else:
        way = "are" if privacy.identifiers == "none" else "leave as"
        yield Finding("privacy", "ok", f"patients' identifiers {way} {told}")


def _settings(part: str, secret: str, use: Callable[[], object]) -> Iterator[Finding]:
    """A finding when files or secrets that the configuration names cannot be used."""
    try:
        use()
    except ConfigError as error:
        if secret.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in os.environ and secret in error.reason:
            name = secret.partition(":")[2]
            remedy = (
                f"look from inside: systemd-run --pipe --wait -p LoadCredentialEncrypted={name} edge-agent doctor ..."
            )
            yield Finding(part, "warn", f"{secret}: only the service can read it, so nothing was tried", remedy)
        else:
            place = f"{error.path}:{error.line}: {error.key}: {error.reason}"
            yield Finding(part, "FAIL", place, error.remedy or "docs/configuration.md says what it means")


def _reach(part: str, name: str, host: str, port: str, remedy: str) -> Finding:
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return Finding(part, "FAIL", f"{name}: {error}", remedy)
    return Finding(part, "ok", f"{name}: accepts connections; cloud-sync status shows delivery")


def _ask(part: str, name: str, open_sink: Callable[[], Sink], remedy: str) -> Finding:
    """What a sink says of its receiver once it has said anything."""
    from cloud_sync.sinks import CONNECTING, Fatal, Retry

    sink = open_sink()
    end = time.monotonic() + ANSWER_S
    state, detail = sink.state()
    try:
        while (state, detail) == ("waiting", CONNECTING) and time.monotonic() < end:
            sink.settle(0.1)
            state, detail = sink.state()
    except (Retry, Fatal) as trouble:
        state, detail = "waiting", str(trouble)
    finally:
        sink.close(0.0)
    if state == "connected" and detail:
        return Finding(part, "FAIL", f"{name}: takes the log-in, but {detail}", remedy)
    if state == "connected":
        return Finding(part, "ok", f"{name}: takes the log-in; cloud-sync status shows delivery")
    told = f"no answer within {ANSWER_S:.0f} s" if detail == CONNECTING else detail
    return Finding(part, "FAIL", told if name in told else f"{name}: {told}", remedy)


CHECKS: tuple[Callable[[Loaded], Iterator[Finding]], ...] = (
    check_kafka, check_mqtt, check_rest, check_alert_manager, check_registry, check_privacy,
)  # fmt: skip
