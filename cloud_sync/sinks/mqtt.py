"""MQTT 5: QoS 1 over one connection, a topic for each bed, and a last will that tells of the gateway.

Theory of operation. Messages wait in one queue for each key (a bed, or the gateway). They leave in order, at most
`bed_window` of a key and, over all keys, as many as the broker takes before it has acknowledged one (receive maximum).
The acknowledgement decides:

    success, also without a subscriber         accepted
    quota, identifier in use, any other        kept, to be sent again after a while
    implementation specific, unspecified, or   kept; refused the fifth time it is dropped, because brokers also say so
    one that cannot be read                    of a message that is too large
    payload format, packet too large           dropped, also before sending when the broker has told its limit
    not authorised, topic name                 kept until a person has changed something

A lost connection keeps everything unsettled. What is kept is read again from the buffer and sent as new messages with
the same `dedup`: the buffer is the client's side of the session, so the library's own queue never holds anything that
is not under way, and nothing depends on its order of resending. The session at the broker persists, so that the last
will waits for `will_delay_s` and a short break does not tell the ward that the gateway is gone.

Source: MQTT 5.0 (OASIS), 3.1.2.11, 3.1.3.2, 3.2.2.3, 3.4.2.1, 3.14.2.1, 4.6, 4.9.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud_sync.sinks import CONNECTING, Fatal, Message, Rejected, Retry, Settled, State, Tally, login
from edge_agent import config, config_cloud

ERROR_TRIES = 5  # times that a message with an unspecific refusal is sent before it is dropped
_CONNECT_S = 5.0  # for the connection, for the handshake and for the broker's CONNACK, each
_FAREWELL_S = 1.0  # for the acknowledgement of the last "offline"
_FIXED = 1 + 4 + 2 + 2 + 4  # bytes of a PUBLISH beside topic, properties and payload, at most
_REFUSED_KEPT = 1000  # of which a batch that is sent again may still hold some
_NO_SUBSCRIBERS = 0x10
_PROTOCOL_ERROR = 0x82
_FAILURE = 0x80  # reason codes from here on are refusals
_UNSPECIFIC = frozenset({0x80, 0x83})  # unspecified, implementation specific
_DROP = frozenset({0x95, 0x99})  # packet too large, payload format invalid
_PERSON = {
    0x82: "protocol error: the broker does not speak MQTT 5 as specified",
    0x84: "the broker does not speak MQTT 5",
    0x85: "the broker does not take the client identifier; it is <gateway id>-<stream>",
    0x86: "user or password is wrong",
    0x87: "allow this user to connect, and to write below topic_prefix/<gateway id>",
    0x8A: "the broker has banned this client",
    0x8C: "the broker wants another way to log in",
    0x8E: "another client has the same identifier: give every gateway an id of its own",
    0x90: "the broker does not take the topic",
    0x9A: "the broker does not retain messages, and the gateway's state needs that",
    0x9B: "the broker does not take QoS 1",
    0x9C: "the broker asks for another server: set cloud.mqtt.broker",
    0x9D: "the broker has moved: set cloud.mqtt.broker",
}
_LEVEL = str.maketrans({"%": "%25", "/": "%2F", "+": "%2B", "#": "%23", "\0": "%00"})  # MQTT's own signs in a bed's id
_JSON, _BINARY = "application/json", "application/octet-stream"  # what is no JSON is Confluent's wire format


class Settings(NamedTuple):
    """What `[cloud.mqtt]` says, checked; the sink adds only the stream."""

    host: str
    port: int
    gateway: str
    table: config_cloud.Mqtt
    context: ssl.SSLContext | None
    password: str


def settings(loaded: config.Loaded) -> Settings:
    """The settings of `[cloud.mqtt]` with its files and secrets read.

    Raises: config.ConfigError naming the key that is missing or wrong.
    """
    mqtt = loaded.config.cloud.mqtt
    if mqtt is None:
        raise loaded.error(("cloud", "mqtt"), "missing", "add a [cloud.mqtt] table with broker and security")
    host, _, port = mqtt.broker.rpartition(":")
    if not 1 <= int(port) <= 65535:
        raise loaded.error(("cloud", "mqtt", "broker"), f"{port} is no port", "a port is 1 to 65535")
    context = None
    if mqtt.security != "plaintext":
        own = (mqtt.certificate, mqtt.private_key) if mqtt.security == "mtls" else (None, None)
        context = login.tls(loaded, "mqtt", mqtt.ca, *own)
    password = login.secret(loaded, "mqtt", "password", mqtt.password) if mqtt.password else ""
    return Settings(host.strip("[]"), int(port), loaded.config.gateway.id, mqtt, context, password)


class _Words(logging.Handler):
    """The library's first complaint about a connection: it tells why that was lost only in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


_Waiting = tuple[Tally, Message]


class MqttSink:
    """A sinks.Sink over one connection of its own; only the stream `alerts` keeps the gateway's state and last will."""

    def __init__(self, given: Settings, stream: str) -> None:
        self._given, self._stream = given, stream
        self._peer = f"{given.host}:{given.port}"
        self._root = f"{given.table.topic_prefix}/{given.gateway.translate(_LEVEL)}"
        self._bed_window = 1 if stream == "alerts" else given.table.bed_window
        self._client: Client | None = None
        self._up = False
        self._detail = CONNECTING
        self._remark = ""  # what a person should know although messages are taken
        self._lost: Retry | Fatal | None = None  # why the connection has ended
        self._deadline = 0.0  # for CONNACK
        self._window = 1  # messages under way at most: the broker's receive maximum
        self._largest: int | None = None  # bytes of a packet that the broker takes; None: no limit
        self._words = _Words()
        self._queues: dict[str, deque[_Waiting]] = {}
        self._flying: dict[str, int] = {}  # messages under way for each key
        self._ready: dict[str, None] = {}  # keys whose next message may leave, in the order of their turns
        self._flight: dict[int, _Waiting] = {}  # by packet identifier
        self._own: set[int] = set()  # packet identifiers of the gateway's state
        self._finished: list[Tally] = []
        # What the broker has said of single messages survives `reset`, because more than one may be at fault.
        self._errors: dict[str, int] = {}  # unspecific refusals by dedup
        self._refused: dict[str, str] = {}  # why no more tries, by dedup

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its verdict comes out of `settle`."""
        batch = Tally(token, len(messages))
        if not messages:
            self._finished.append(batch)
            return
        for message in messages:
            self._queues.setdefault(message.key, deque()).append((batch, message))
            if self._flying.get(message.key, 0) < self._bed_window:
                self._ready[message.key] = None
        self._pump()

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready; connects, sends and listens for up to `timeout_s` seconds, while connecting longer.

        Raises: Retry or Fatal when the connection is lost; everything without a verdict must be begun again.
        """
        until = time.monotonic() + timeout_s
        while True:
            left = until - time.monotonic()
            if self._lost is None:
                self._work(0.0 if self._finished else max(0.0, left))
            if self._finished:
                out = [batch.verdict() for batch in sorted(self._finished, key=lambda batch: batch.keep is not None)]
                self._finished.clear()
                return out
            if self._lost is not None:
                raise self._lost
            if left <= 0:
                return []

    def state(self) -> tuple[State, str]:
        """Connected, or waiting for what."""
        return ("connected", self._remark) if self._up else ("waiting", self._detail)

    def reset(self) -> None:
        """Forgets every batch and closes the connection."""
        self._drop_connection()
        self._queues.clear()
        self._finished.clear()

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts that come within `timeout_s` seconds; begins no further message and says that the gateway leaves."""
        until = time.monotonic() + timeout_s
        self._queues.clear()
        self._ready.clear()
        with suppress(Retry, Fatal):
            while self._up and self._flight and self._lost is None and time.monotonic() < until:
                self._work(until - time.monotonic())
            self._farewell()
        out = [batch.verdict() for batch in self._finished if batch.keep is None]
        self._finished.clear()
        self._drop_connection()
        return out

    # The connection

    def _work(self, timeout_s: float) -> None:
        if self._client is None:
            self._connect()
        client = self._client
        if client is None:
            return
        self._pump()
        code = client.loop(timeout_s)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._lost is None:
            self._lose(Retry(f"{self._peer}: the connection was lost"))
        elif not self._up and self._lost is None and time.monotonic() >= self._deadline:
            self._lose(Retry(f"{self._peer}: no answer to CONNECT within {_CONNECT_S:g} s"))
        self._pump()

    def _connect(self) -> None:
        table = self._given.table
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{self._given.gateway}-{self._stream}",
            protocol=MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages = 0  # the window is kept here, where the order of the beds is known
        if self._given.context is not None:
            client.tls_set_context(self._given.context)
        if table.username:
            client.username_pw_set(table.username, self._given.password or None)
        self._words.first = ""
        logger = logging.Logger("paho", logging.WARNING)
        logger.addHandler(self._words)
        client.enable_logger(logger)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if self._stream == "alerts":
            will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            will.WillDelayInterval = table.will_delay_s
            client.will_set(f"{self._root}/state", b"offline", qos=1, retain=True, properties=will)
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = table.session_expiry_s
        self._client = client
        self._deadline = time.monotonic() + _CONNECT_S
        host, port = self._given.host, self._given.port
        try:
            client.connect(host, port, table.keepalive_s, clean_start=False, properties=session)
        except ssl.SSLCertVerificationError as error:
            self._lose(Fatal(f"{self._peer}: certificate verify failed: {error.verify_message}"))
        except ssl.SSLError as error:
            self._lose(self._of_tls(str(error)))
        except (OSError, UnicodeError) as error:  # UnicodeError: of a host that no resolver can be asked for
            self._lose(Retry(f"{self._peer}: {getattr(error, 'strerror', None) or error}"))
        self._deadline = max(self._deadline, time.monotonic() + _CONNECT_S)

    def _of_tls(self, words: str) -> Retry | Fatal:
        if "alert" in words.lower():
            return Fatal(f"{self._peer}: the broker does not accept the gateway's certificate ({words})")
        return Retry(f"{self._peer}: {words}")

    def _lose(self, trouble: Retry | Fatal) -> None:
        self._lost, self._up, self._detail = trouble, False, str(trouble)

    def _drop_connection(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.on_connect = client.on_disconnect = client.on_publish = None
            found = client.socket()
            if found is not None:
                with suppress(OSError):
                    found.close()  # without DISCONNECT: whether that is a farewell is the caller's to say
        self._up, self._lost = False, None
        self._flight.clear()
        self._flying.clear()
        self._ready.clear()
        self._own.clear()

    def _on_connect(self, client: Client, _: object, __: object, reason: Any, properties: Any) -> None:
        if reason.value >= _FAILURE:
            self._lose(self._judge(reason, "connection"))
            return
        told: dict[str, Any] = properties.json()
        self._window = min(self._given.table.window, int(told.get("ReceiveMaximum", 65535)))
        self._largest = told.get("MaximumPacketSize")
        if told.get("MaximumQoS", 1) < 1:
            self._lose(Fatal(f"{self._peer}: {_PERSON[0x9B]}"))
            return
        self._up, self._detail, self._remark = True, "", ""
        if self._stream == "alerts" and told.get("RetainAvailable", 1):
            self._own.add(client.publish(f"{self._root}/state", b"online", qos=1, retain=True).mid)

    def _on_disconnect(self, _: Client, __: object, flags: Any, reason: Any, ___: object) -> None:
        if self._lost is not None:
            return
        if reason.value == _PROTOCOL_ERROR and not flags.is_disconnect_packet_from_server and self._flight:
            # Acknowledgements come in the order of the messages, so it is the oldest whose own could not be read;
            # mosquitto 2.0 uses a code there that the specification has not: packet too large.
            oldest = next(iter(self._flight.values()))[1]
            self._count(oldest, "an acknowledgement that is none")
        if flags.is_disconnect_packet_from_server:
            self._lose(self._judge(reason, "connection ended by the broker"))
        elif not self._up and "alert" in self._words.first.lower():
            self._lose(self._of_tls(self._words.first))
        elif not self._up and self._given.context is not None:  # the alert is often lost with the connection
            why = "the broker hung up on CONNECT; it may not accept the gateway's certificate, or want one"
            self._lose(Retry(f"{self._peer}: {why}"))
        else:
            self._lose(Retry(f"{self._peer}: the connection was lost"))

    def _judge(self, reason: Any, what: str) -> Retry | Fatal:
        remedy = _PERSON.get(reason.value)
        words = f"{self._peer}: {what}: {reason}"
        return Retry(words) if remedy is None else Fatal(f"{words}; {remedy}")

    def _farewell(self) -> None:
        client = self._client
        if client is None or not self._up:
            return
        if self._stream == "alerts":
            self._own.add(client.publish(f"{self._root}/state", b"offline", qos=1, retain=True).mid)
            until = time.monotonic() + _FAREWELL_S
            while self._own and self._lost is None and time.monotonic() < until:
                self._work(until - time.monotonic())
        client.disconnect()  # takes the last will back
        with suppress(ValueError):
            while client.want_write() and client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass

    # Messages

    def _pump(self) -> None:
        """Sends what the windows allow, key by key in turns."""
        client = self._client
        while self._up and self._ready and client is not None and len(self._flight) + len(self._own) < self._window:
            key = next(iter(self._ready))
            del self._ready[key]
            queue = self._queues.get(key)
            if not queue:
                continue
            batch, message = queue.popleft()
            topic, properties = self._topic(message), _properties(message)
            if message.dedup in self._refused:
                self._reject(batch, message, self._refused[message.dedup])
            elif self._largest is not None and _size(topic, message) > self._largest:
                self._reject(batch, message, f"larger than the {self._largest} bytes that {self._peer} takes")
            else:
                sent = client.publish(topic, message.value, qos=1, properties=properties)
                self._flight[sent.mid] = (batch, message)
                self._flying[key] = self._flying.get(key, 0) + 1
                if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    self._lose(self._lost or Retry(f"{self._peer}: the connection was lost"))
            if queue and self._flying.get(key, 0) < self._bed_window:
                self._ready[key] = None
            elif not queue:
                del self._queues[key]

    def _topic(self, message: Message) -> str:
        if message.key == self._given.gateway:
            return f"{self._root}/{message.topic}"
        return f"{self._root}/{message.key.translate(_LEVEL)}/{message.topic}"

    def _on_publish(self, _: Client, __: object, mid: int, reason: Any, ___: object) -> None:
        if mid in self._own:
            self._own.discard(mid)
            if reason.value >= _FAILURE:
                self._remark = f"{self._root}/state: {reason}: the gateway's state cannot be told"
            return
        if mid not in self._flight:
            return
        batch, message = self._flight.pop(mid)
        self._flying[message.key] -= 1
        if message.key in self._queues:
            self._ready[message.key] = None
        elif not self._flying[message.key]:
            del self._flying[message.key]
        code = reason.value
        if code < _FAILURE:
            batch.accepted += 1
            nobody = f"{self._topic(message)}: nobody subscribes, the broker may throw messages away"
            self._remark = nobody if code == _NO_SUBSCRIBERS else ""
            self._errors.pop(message.dedup, None)
            self._close(batch)
        elif code in _DROP:
            self._reject(batch, message, f"refused by {self._peer} ({reason})")
        elif code in _UNSPECIFIC and self._count(message, str(reason)):
            self._reject(batch, message, self._refused[message.dedup])
        else:
            self._ready.clear()  # nothing more may overtake it
            self._keep(batch, self._judge(reason, self._topic(message)))

    def _count(self, message: Message, what: str) -> bool:
        """Notes one more unspecific refusal; whether there will be no more tries."""
        tries = self._errors[message.dedup] = self._errors.get(message.dedup, 0) + 1
        if tries < ERROR_TRIES:
            return False
        del self._errors[message.dedup]
        self._refused[message.dedup] = f"refused by {self._peer} ({what}, {tries} times)"
        if len(self._refused) > _REFUSED_KEPT:
            del self._refused[next(iter(self._refused))]
        return True

    def _keep(self, batch: Tally, trouble: Retry | Fatal) -> None:
        if batch.keep is None:
            batch.keep = trouble
            self._finished.append(batch)
        self._lose(trouble)

    def _reject(self, batch: Tally, message: Message, reason: str) -> None:
        self._errors.pop(message.dedup, None)
        batch.rejected.append(Rejected(message.dedup, reason))
        self._close(batch)

    def _close(self, batch: Tally) -> None:
        batch.open -= 1
        if not batch.open and batch.keep is None:
            self._finished.append(batch)


def _properties(message: Message) -> Properties:
    out = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    out.ContentType = _JSON if message.value[:1] == b"{" else _BINARY
    out.UserProperty = [(name, value.decode()) for name, value in message.headers]
    return out


def _size(topic: str, message: Message) -> int:
    """Bytes of the PUBLISH packet, at most."""
    properties = sum(5 + len(name.encode()) + len(value) for name, value in message.headers)
    return _FIXED + len(topic.encode()) + properties + 3 + len(_BINARY) + len(message.value)
