"""A REST proxy of the tests' own: a real HTTP/1.1 server that answers as the v3 API does, with a token endpoint.

Records that were accepted are in `records`, in the order in which they came. `answer` may be replaced: it gets each
record and returns its error code. `whole` gets a request and may answer it as a whole. It stands for a proxy's answers
only: what a real proxy does between request and Kafka is not in it.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote_plus

CLUSTER = "cluster-1"
CLIENT, SECRET = "gateway", "s&cret:with signs"
DEADLINE_S = 60.0


class Record(NamedTuple):
    """A record as Kafka would hold it."""

    topic: str
    key: str
    value: bytes
    headers: dict[str, str]


class Whole(NamedTuple):
    """An answer to a request as a whole; `cut` hangs up behind so many bytes of it, `drip_s` lies between two bytes."""

    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""
    cut: int | None = None
    drip_s: float = 0.0


class RestProxy:
    """Listens until `close`; `port` may be given to come back at the same place."""

    def __init__(
        self,
        port: int = 0,
        context: ssl.SSLContext | None = None,
        tokens: bool = False,
        records: list[Record] | None = None,
    ) -> None:
        self.records: list[Record] = [] if records is None else records  # given: what an earlier one has accepted
        self.requests: list[list[Record]] = []  # of every request, accepted or not
        self.connections = 0
        self.asked = 0  # for the cluster
        self.moved = threading.Condition()
        self.answer: Callable[[Record], int] = lambda record: 200
        self.whole: Callable[[list[Record]], Whole | None] = lambda records: None
        self.delivered: Callable[[], None] = lambda: None  # called when records are in, before the answer leaves
        self.released = threading.Event()  # set by `close`: what hangs may go
        self.tokens = tokens
        self.token_answer: Callable[[dict[str, str]], Whole | None] = lambda form: None
        self.given: list[str] = []  # tokens
        self.given_at: list[float] = []  # monotonic
        self.valid: set[str] = set()
        self.expires_in: float | None = 3600
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A peer that hung up."""

        self._server = Server(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="proxy")
        self._thread.start()
        self._sockets: set[Any] = set()

    def wait(self, done: Callable[[], Any]) -> None:
        with self.moved:
            assert self.moved.wait_for(done, DEADLINE_S), f"{len(self.records)} records came"

    def hang(self) -> None:
        """Holds the handler until the proxy is closed."""
        self.released.wait(DEADLINE_S)

    def on(self, topic: str) -> list[Record]:
        return [record for record in self.records if record.topic.endswith(f".{topic}")]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for found in list(self._sockets):
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)  # its thread still holds it


class _Handler(BaseHTTPRequestHandler):
    owner: RestProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner.connections += 1
        self.owner._sockets.add(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what came."""

    def do_GET(self) -> None:
        self.owner.asked += 1
        if not self._known():
            return
        if self.path.endswith(f"/v3/clusters/{CLUSTER}"):
            self._send(Whole(200, {}, json.dumps({"kind": "KafkaCluster", "cluster_id": CLUSTER}).encode()))
        else:
            self._send(Whole(404, {}, json.dumps({"error_code": 404, "message": "HTTP 404 Not Found"}).encode()))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            self._token(body.decode())
        elif self._known():
            self._produce(body)

    def _token(self, body: str) -> None:
        owner = self.owner
        form = {key: value[0] for key, value in parse_qs(body).items()}
        special = owner.token_answer(form)
        if special is not None:
            self._send(special)
            return
        login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        client, _, secret = login.partition(":")
        if (unquote_plus(client), unquote_plus(secret)) != (CLIENT, SECRET):
            self._send(Whole(401, {}, b'{"error": "invalid_client", "error_description": "words of a stranger"}'))
            return
        assert form["grant_type"] == "client_credentials"
        token = f"token-{len(owner.given)}"
        owner.given.append(token)
        owner.given_at.append(time.monotonic())
        owner.valid.add(token)
        told: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        if owner.expires_in is not None:
            told["expires_in"] = owner.expires_in
        self._send(Whole(200, {}, json.dumps(told).encode()))

    def _known(self) -> bool:
        if not self.owner.tokens:
            return True
        if self.headers.get("Authorization", "").removeprefix("Bearer ") in self.owner.valid:
            return True
        self._send(Whole(401, {}, b'{"error_code": 40101, "message": "Authentication failed"}'))
        return False

    def _produce(self, body: bytes) -> None:
        owner = self.owner
        parts = self.path.split("/")
        assert parts[-5:-2] == ["clusters", CLUSTER, "topics"]
        assert parts[-1] == "records"
        records = [_record(parts[-2], line) for line in body.splitlines()]
        with owner.moved:
            owner.requests.append(records)
            owner.moved.notify_all()
        special = owner.whole(records)
        if special is not None and special.cut is None:
            self._send(special)
            return
        reports = []
        for record in records:
            code = owner.answer(record)
            if code == 200:
                with owner.moved:
                    owner.records.append(record)
            reports.append(json.dumps({"error_code": code, "cluster_id": CLUSTER, "topic_name": record.topic}))
        with owner.moved:
            owner.moved.notify_all()
        owner.delivered()
        self._send(Whole(200, {}, "\r\n".join(reports).encode(), special.cut if special else None))

    def _send(self, what: Whole) -> None:
        self.send_response(what.status)
        self.send_header("Content-Type", "application/json")
        for name, value in what.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(what.body)))
        self.end_headers()
        if what.drip_s:
            for byte in what.body:
                if self.owner.released.wait(what.drip_s):
                    break
                self.wfile.write(bytes([byte]))
            return
        self.wfile.write(what.body[: what.cut])
        if what.cut is not None:
            self.close_connection = True


def _record(topic: str, line: bytes) -> Record:
    shape = json.loads(line)
    assert (shape["key"]["type"], shape["value"]["type"]) == ("BINARY", "BINARY")
    headers = {header["name"]: base64.b64decode(header["value"]).decode() for header in shape["headers"]}
    key, value = (base64.b64decode(shape[part]["data"]) for part in ("key", "value"))
    return Record(topic, key.decode(), value, headers)
