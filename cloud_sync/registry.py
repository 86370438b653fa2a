"""Ids of Avro schemas from a schema registry (the Confluent REST interface, version 1, which others speak too).

Theory of operation. An id is asked for once and kept for the life of the process, because an id never changes its
schema. The look-up comes first; only a schema that the registry does not know is checked against the latest version
of its subject and then registered. A registry that does not answer is no reason to lose a record: `Retry` makes the
forwarder keep everything and come again. What a person has to put right is `Fatal`, and is looked at again slowly.

Source: Confluent Schema Registry API reference, v1.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from cloud_sync.sinks import Fatal, Retry
from edge_agent import config

_TYPE = "application/vnd.schemaregistry.v1+json"
_TIMEOUT = httpx.Timeout(
    5.0, connect=3.0
)  # seconds; a stream stands still meanwhile, and so does its reaction to SIGTERM
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRIES = 2  # the second for a connection that the registry has closed while it was idle

logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request is no news


class Registry:
    """One registry; may be used by several threads."""

    def __init__(
        self, url: str, *, ca: Path | None = None, username: str = "", password: str = "", register: bool = True
    ) -> None:
        """Raises: OSError when `ca` is no readable PEM file."""
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            verify=context,
            auth=(username, password) if username else None,
            timeout=_TIMEOUT,
            headers={"Accept": _TYPE, "Content-Type": _TYPE},
            trust_env=False,  # what is not in the configuration file does not count
        )
        self._url, self._register = url, register
        self._ids: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes idle connections."""
        self._client.close()

    def schema_id(self, subject: str, schema: str) -> int:
        """The id of `schema` under `subject`, registered when it is not known and that is allowed.

        Raises: Retry when the registry does not answer; Fatal when it refuses, or does not know the schema.
        """
        with self._lock:
            known = self._ids.get((subject, schema))
            if known is None:
                known = self._ids[subject, schema] = self._ask(subject, schema)
            return known

    def probe(self) -> None:
        """Returns when the registry answers and takes the log-in. Raises: Retry, Fatal."""
        status, found = self._call("GET", "/subjects", None)
        if status != 200:
            raise Fatal(self._said("its subjects", status, found))

    def schema(self, schema_id: int) -> str:
        """The schema with this id, as the registry keeps it. Raises: Retry; Fatal when there is none."""
        status, found = self._call("GET", f"/schemas/ids/{schema_id}", None)
        if status != 200 or not isinstance(found.get("schema"), str):
            raise Fatal(self._said(f"schema {schema_id}", status, found))
        return str(found["schema"])

    def compatible(self, subject: str, schema: str) -> str:
        """Empty when `schema` may follow the latest version under the registry's rule, else what breaks it.

        Raises: Retry; Fatal when the registry refuses the question.
        """
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        status, found = self._call("POST", path, schema)
        if status == 404:  # the subject is new
            return ""
        if status != 200:
            raise Fatal(self._said(subject, status, found))
        if found.get("is_compatible"):
            return ""
        return "; ".join(str(each) for each in found.get("messages") or ()) or "the registry does not say why"

    def _ask(self, subject: str, schema: str) -> int:
        path = f"/subjects/{quote(subject, safe='')}"
        status, found = self._call("POST", path, schema)
        if status == 404 and self._register:
            broken = self.compatible(subject, schema)
            if broken:
                raise Fatal(f"schema registry {self._url}: {subject} does not follow from its latest version: {broken}")
            status, found = self._call("POST", f"{path}/versions", schema)
        schema_id = found.get("id")
        if status != 200 or not isinstance(schema_id, int):
            hint = (
                "" if self._register else "; register the schemas of cloud_sync/schemas first, or set register_schemas"
            )
            raise Fatal(self._said(subject, status, found) + hint)
        return schema_id

    def _call(self, method: str, path: str, schema: str | None) -> tuple[int, dict[str, Any]]:
        """Status and body of one exchange. Raises: Retry, Fatal."""
        body = None if schema is None else {"schema": schema, "schemaType": "AVRO"}
        trouble: Exception = OSError("no answer")
        for _ in range(_TRIES):
            try:
                answer = self._client.request(method, path, json=body)
                break
            except httpx.TransportError as error:
                trouble = error
                if isinstance(error, httpx.TimeoutException):
                    raise Retry(f"schema registry {self._url} does not answer: {type(error).__name__}") from error
                if _is_certificate(error):
                    raise Fatal(
                        f"schema registry {self._url}: {error}; registry_ca is not the authority of its certificate"
                    ) from error
        else:
            raise Retry(f"schema registry {self._url} cannot be reached: {trouble}") from trouble
        if answer.status_code in _LATER:
            raise Retry(f"schema registry {self._url}: status {answer.status_code}")
        try:
            found = answer.json()
        except ValueError:
            found = {}
        return answer.status_code, found if isinstance(found, dict) else {}

    def _said(self, what: str, status: int, found: dict[str, Any]) -> str:
        return f"schema registry {self._url}: {what}: status {status} {found.get('message', '')}".rstrip()


def _is_certificate(error: BaseException) -> bool:
    """Whether the other side's certificate is at fault, which a wait does not change."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def registry(loaded: config.Loaded) -> Registry:
    """The registry that the configuration names.

    Raises: config.ConfigError when a file or secret that it names cannot be read.
    """
    told = loaded.config.cloud.encoding
    password = ""
    try:
        if told.registry_password:
            password = config.secret(loaded, told.registry_password)
    except OSError as error:
        key = ("cloud", "encoding", "registry_password")
        raise loaded.error(key, str(error), "put the password there; cloud-sync needs it to start") from error
    ca = None if told.registry_ca is None else loaded.resolve(told.registry_ca)
    try:
        return Registry(
            told.registry, ca=ca, username=told.registry_username, password=password, register=told.register_schemas
        )
    except OSError as error:  # SSLError is one
        remedy = "give the PEM file of the authority that signed the registry's certificate"
        raise loaded.error(("cloud", "encoding", "registry_ca"), f"{ca}: {error}", remedy) from error
