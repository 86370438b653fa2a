"""What an HTTP answer of a REST proxy says: of the request by its status, of each record by its report."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import NamedTuple

from cloud_sync.sinks import Fatal, Retry

AGAIN = frozenset({408, 425, 429})  # and all from 500
PERSON = {
    401: "log-in was refused: correct client_id, client_secret and scope",
    403: "grant Write on the topics",
    404: "there is no such cluster or topic: correct cloud.rest.url and cluster, or create the topics",
}


class Refused(NamedTuple):
    """The proxy did not take a request that held this record alone."""

    reason: str


Fate = str | Refused | Retry | Fatal  # of one record: "" accepted, other text the reason of its rejection


class Answer(NamedTuple):
    """One answer; `peer` is host and port."""

    peer: str
    status: int
    body: bytes

    @property
    def words(self) -> str:
        """Peer, status and the proxy's own code."""
        code = next(iter(codes(self.body)), 0)
        return f"{self.peer}: {_phrase(self.status)}{f', error_code {code}' if code not in (0, self.status) else ''}"


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def codes(body: bytes) -> list[int]:
    """The `error_code` of each JSON object in a body, up to the first thing that is none."""
    out: list[int] = []
    text, place = body.decode("utf-8", "replace"), 0
    decoder = json.JSONDecoder()
    while True:
        while place < len(text) and text[place] in " \t\r\n":
            place += 1
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return out
        code = found.get("error_code") if isinstance(found, dict) else None
        if not isinstance(code, int):
            return out
        out.append(code)


def fate_of(peer: str, code: int) -> Fate:
    """Of a record by its report's code, which is an HTTP status or one with two digits more."""
    status = code // 100 if code >= 1000 else code
    words = f"{peer}: a record was refused, error_code {code}"
    if 200 <= status < 300:
        return ""
    if status in PERSON:
        return Fatal(f"{words}; {PERSON[status]}")
    if status in AGAIN or not 400 <= status < 500:
        return Retry(words)
    return f"refused by {peer}, error_code {code}"
