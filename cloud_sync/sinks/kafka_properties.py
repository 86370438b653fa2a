"""librdkafka's properties: those of the configuration, tried out before use, and those that the promises rest on.

Source: librdkafka CONFIGURATION.md.
"""

from __future__ import annotations

from confluent_kafka import KafkaException, Producer

from edge_agent import config

Properties = dict[str, str | int | bool]

# What every producer of the forwarder begins with; the configuration's options come on top.
DEFAULTS: Properties = {
    "compression.type": "zstd",
    "partitioner": "murmur2_random",  # the same partition for a bed as Java producers choose
    "queue.buffering.max.messages": 50_000,
    "queue.buffering.max.kbytes": 32 * 1024,
    "reconnect.backoff.ms": 1_000,  # a broker that refuses after connecting is asked at this rate
    "reconnect.backoff.max.ms": 5_000,
    "socket.connection.setup.timeout.ms": 10_000,
    "socket.timeout.ms": 30_000,
    "socket.keepalive.enable": True,
    "log_level": 2,  # changes of state are logged by the forwarder, once
}

# Properties that the configuration states by its own keys, or that the guarantees rest on.
_OWNED: dict[str, str] = {
    "bootstrap.servers": "set cloud.kafka.bootstrap",
    "metadata.broker.list": "set cloud.kafka.bootstrap",
    "security.protocol": "set cloud.kafka.security",
    "ssl.ca.location": "set cloud.kafka.ca",
    "ssl.certificate.location": "set cloud.kafka.certificate",
    "ssl.key.location": "set cloud.kafka.private_key",
    "sasl.mechanism": "set cloud.kafka.sasl_mechanism",
    "sasl.mechanisms": "set cloud.kafka.sasl_mechanism",
    "sasl.username": "set cloud.kafka.sasl_username",
    "sasl.password": "set cloud.kafka.sasl_password to credential:NAME or file:PATH",
    **dict.fromkeys(
        ("ssl.key.password", "ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.client.secret"),
        "remove it: a secret never stands in the configuration",
    ),
    **dict.fromkeys(
        (
            "enable.idempotence",
            "enable.gapless.guarantee",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "acks",
            "request.required.acks",
            "message.timeout.ms",
            "delivery.timeout.ms",
            "message.send.max.retries",
            "retries",
            "delivery.report.only.error",
            "transactional.id",
            "transaction.timeout.ms",
            "statistics.interval.ms",
            "log.queue",
            "test.mock.num.brokers",
        ),
        "remove it: nothing-is-lost rests on the forwarder's own value",
    ),
}
_SECURITY = {
    "plaintext": "PLAINTEXT",
    "tls": "SSL",
    "mtls": "SSL",
    "sasl_tls": "SASL_SSL",
    "sasl_plaintext": "SASL_PLAINTEXT",
}


def properties(loaded: config.Loaded) -> Properties:
    """librdkafka's properties for `[cloud.kafka]`, tried out on a producer that connects to nothing.

    Raises: config.ConfigError naming the key that is missing, unknown, reserved or wrong.
    """
    kafka = loaded.config.cloud.kafka
    if kafka is None:
        raise loaded.error(("cloud", "kafka"), "missing", "add a [cloud.kafka] table with bootstrap and security")
    out: Properties = {"bootstrap.servers": kafka.bootstrap, "security.protocol": _SECURITY[kafka.security]}
    for key, name in (
        ("ca", "ssl.ca.location"),
        ("certificate", "ssl.certificate.location"),
        ("private_key", "ssl.key.location"),
    ):
        path = getattr(kafka, key)
        if path is None or "plaintext" in kafka.security:
            continue
        path = loaded.resolve(path)
        try:
            path.read_bytes()
        except OSError as error:
            raise _wrong(loaded, key, f"{path} cannot be read: {error.strerror}", "give a PEM file") from error
        out[name] = str(path)
        _try(loaded, key, {"security.protocol": "SSL", **_tls(out)})
    if kafka.security.startswith("sasl"):
        out["sasl.mechanisms"] = kafka.sasl_mechanism
        out["sasl.username"] = kafka.sasl_username
        try:
            out["sasl.password"] = config.secret(loaded, kafka.sasl_password)
        except OSError as error:
            raise _wrong(loaded, "sasl_password", str(error), "the secret must exist and be readable") from error
    for name, value in kafka.options.items():
        if name in _OWNED:
            raise _wrong(loaded, f"options.{name}", "not an option", _OWNED[name])
        _try(loaded, f"options.{name}", {name: value})
    out.update(kafka.options)
    _try(loaded, "options", out)
    return out


def _tls(known: Properties) -> Properties:
    return {name: value for name, value in known.items() if name.startswith("ssl.")}


def _wrong(loaded: config.Loaded, key: str, reason: str, remedy: str) -> config.ConfigError:
    return loaded.error(("cloud", "kafka", *key.split(".")), reason, remedy)


def _try(loaded: config.Loaded, key: str, some: Properties) -> None:
    try:
        Producer({"log_level": 0, "enable.idempotence": True, **some})
    except KafkaException as error:
        remedy = "librdkafka's CONFIGURATION.md lists the properties of a producer"
        raise _wrong(loaded, key, error.args[0].str(), remedy) from error
