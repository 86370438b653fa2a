"""A schema registry for tests: the Confluent REST interface over real HTTP, with its rule of compatibility FULL."""

from __future__ import annotations

import base64
import io
import json
import ssl
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import fastavro
from fastavro.utils import generate_many


def breaks(old: Any, new: Any) -> str:
    """Why readers of one cannot read what was written with the other, both ways; empty when they can."""
    for writer, reader, who in ((old, new, "new readers, old data"), (new, old, "old readers, new data")):
        for value in generate_many(writer, 30):
            data = io.BytesIO()
            fastavro.schemaless_writer(data, fastavro.parse_schema(writer), value)
            data.seek(0)
            try:
                fastavro.schemaless_reader(data, fastavro.parse_schema(writer), fastavro.parse_schema(reader))
            except Exception as error:  # a resolution fails in several ways
                return f"{who}: {type(error).__name__}: {error}"
    return ""


class Registry:
    """A context manager; `trouble` makes it answer with that status instead."""

    def __init__(self, tls: ssl.SSLContext | None = None, login: str = "", port: int = 0) -> None:
        """`login`: user:password that is demanded."""
        self.subjects: dict[str, list[int]] = {}
        self.schemas: dict[int, str] = {}
        self.calls: list[str] = []
        self.trouble = 0
        self._login = login
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # one segment an answer: two would wait for each other's acknowledgement
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer("GET", {})

            def do_POST(self) -> None:
                self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, method: str, body: dict[str, Any]) -> None:
                path = unquote(urlsplit(self.path).path)
                outer.calls.append(f"{method} {path}")
                status, found = outer.answer(method, path, body, self.headers.get("Authorization", ""))
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Registry:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        with suppress(OSError):
            self._server.server_close()

    def answer(self, method: str, path: str, body: dict[str, Any], login: str) -> tuple[int, Any]:
        """Status and body."""
        if self.trouble:
            return self.trouble, {"error_code": self.trouble * 100, "message": "trouble"}
        if self._login and login != f"Basic {base64.b64encode(self._login.encode()).decode()}":
            return 401, {"error_code": 401, "message": "Unauthorized"}
        parts = path.strip("/").split("/")
        if method == "GET" and parts == ["subjects"]:
            return 200, sorted(self.subjects)
        if method == "GET" and parts[:2] == ["schemas", "ids"]:
            known = self.schemas.get(int(parts[2]))
            return (200, {"schema": known}) if known else (404, {"error_code": 40403, "message": "Schema not found"})
        if method == "POST" and parts[0] == "compatibility":
            return self._compatible(parts[2], body["schema"])
        if method == "POST" and parts[0] == "subjects" and len(parts) == 2:
            return self._look_up(parts[1], body["schema"])
        if method == "POST" and parts[0] == "subjects" and parts[2] == "versions":
            status, found = self._compatible(parts[1], body["schema"])
            if status == 200 and not found["is_compatible"]:
                return 409, {"error_code": 409, "message": "; ".join(found["messages"])}
            return 200, {"id": self._register(parts[1], body["schema"])}
        return 404, {"error_code": 404, "message": f"no such resource {path}"}

    def _compatible(self, subject: str, schema: str) -> tuple[int, dict[str, Any]]:
        versions = self.subjects.get(subject)
        if not versions:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        why = breaks(json.loads(self.schemas[versions[-1]]), json.loads(schema))
        return 200, {"is_compatible": not why, "messages": [why] if why else []}

    def _look_up(self, subject: str, schema: str) -> tuple[int, dict[str, Any]]:
        versions = self.subjects.get(subject)
        if not versions:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        for number, each in enumerate(versions, 1):
            if json.loads(self.schemas[each]) == json.loads(schema):
                return 200, {"subject": subject, "id": each, "version": number, "schema": schema}
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _register(self, subject: str, schema: str) -> int:
        versions = self.subjects.setdefault(subject, [])
        known = next((each for each, text in self.schemas.items() if text == schema), 0)
        schema_id = known or len(self.schemas) + 70_001  # needs more than two of the four bytes
        self.schemas[schema_id] = schema
        if schema_id not in versions:
            versions.append(schema_id)
        return schema_id

    def decode(self, value: bytes) -> dict[str, Any]:
        """A message in the wire format, read by the schema that its id names."""
        assert value[0] == 0
        schema_id = int.from_bytes(value[1:5], "big")
        schema = fastavro.parse_schema(json.loads(self.schemas[schema_id]))
        data = io.BytesIO(value[5:])
        found = fastavro.schemaless_reader(data, schema, None)
        assert not data.read(), "bytes behind the record"
        assert isinstance(found, dict)
        return found
