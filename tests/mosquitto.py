"""A real mosquitto for the tests: started on free ports, stopped, killed and started again on the same data."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kafka_broker import Authority, free_port
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

DEADLINE_S = 60.0
USER, PASSWORD = "gateway", "correct horse"
STRANGER = "stranger"  # may log in with the same password, and write nothing
READER = "reader"


def program() -> str | None:
    """Where mosquitto is; it lies outside the search path of ordinary users on Debian."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Mosquitto:
    """Three listeners: anybody in the clear, with password over TLS, with certificate over TLS."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self.tls_port, self.mtls_port = free_port(), free_port(), free_port()
        self.settings: dict[str, str] = {}
        self.authority = Authority(folder / "authority")
        self.client = self.authority.issue("client")
        self._server = self.authority.issue("server")
        self._process: subprocess.Popen[bytes] | None = None
        passwords = folder / "passwords"
        passwords.touch(0o600)
        for user in (USER, STRANGER, READER):
            subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, PASSWORD], check=True, capture_output=True)
        self.allow()

    def allow(self, *users: str) -> None:
        """Who, beside the usual ones, may write below every prefix; mosquitto reads it again at once when it runs."""
        text = "topic readwrite #\n" + "".join(f"user {user}\ntopic readwrite #\n" for user in (USER, READER, *users))
        (self.folder / "rights").write_text(text + f"user {STRANGER}\ntopic read #\n" * (STRANGER not in users))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def start(self) -> Mosquitto:
        tls = (
            f"cafile {self.authority.path}\ncertfile {self._server.certificate}\nkeyfile {self._server.private_key}\n"
            f"acl_file {self.folder}/rights\n"
        )
        more = "".join(f"{key} {value}\n" for key, value in self.settings.items())
        (self.folder / "mosquitto.conf").write_text(
            f"user {getpass.getuser()}\nper_listener_settings true\npersistence true\n"
            f"persistence_location {self.folder}/\nlog_dest stderr\nlog_type all\nautosave_interval 1\n{more}"
            "autosave_on_changes false\nmax_queued_messages 0\n"  # a subscriber that is away misses nothing
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"listener {self.tls_port} 127.0.0.1\nallow_anonymous false\npassword_file {self.folder}/passwords\n{tls}"
            f"listener {self.mtls_port} 127.0.0.1\nallow_anonymous true\nrequire_certificate true\n{tls}"
        )
        command = [program() or "mosquitto", "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE_S
        while not self._listens():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text(errors="replace")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.mtls_port)) == 0


class Arrival(NamedTuple):
    """What a subscriber got."""

    topic: str
    value: bytes
    headers: dict[str, str]
    content_type: str
    retained: bool


class Subscriber:
    """A subscriber with a persistent session, so that it misses nothing while the broker restarts."""

    def __init__(self, port: int, topic: str, name: str = "subscriber") -> None:
        self.arrivals: list[Arrival] = []
        self.moved = threading.Condition()
        self._subscribed = threading.Event()
        self._topic = topic
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._message
        self._client.reconnect_delay_set(1, 1)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, keepalive=20, clean_start=False, properties=session)
        self._client.loop_start()
        assert self._subscribed.wait(DEADLINE_S), "no SUBACK"

    def wait(self, done: Callable[[], Any]) -> None:
        with self.moved:
            assert self.moved.wait_for(done, DEADLINE_S), f"{len(self.arrivals)} messages came"

    def on(self, topic: str) -> list[Arrival]:
        """What came on a topic, given with its last levels."""
        return [arrival for arrival in self.arrivals if arrival.topic.endswith(topic)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: Client, *_: Any) -> None:
        client.subscribe(self._topic, options=SubscribeOptions(qos=1, retainAsPublished=True))

    def _message(self, _: Client, __: Any, message: Any) -> None:
        told = message.properties
        headers = dict(getattr(told, "UserProperty", []))
        with self.moved:
            self.arrivals.append(
                Arrival(message.topic, message.payload, headers, getattr(told, "ContentType", ""), message.retain)
            )
            self.moved.notify_all()


def missing() -> str:
    """Why no broker can be run here; empty when one can."""
    if program() is None or shutil.which("mosquitto_passwd") is None:
        return "mosquitto is not installed (apt-get install mosquitto)"
    return ""


def required() -> bool:
    """Whether its absence is a failure."""
    return bool(os.environ.get("CI"))
