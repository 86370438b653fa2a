"""REST: records through a Confluent REST Proxy (v3), several in a request, one request at a time.

Theory of operation. A thread of the sink's own takes what waits for one topic, up to so many records and bytes, and
posts it as concatenated JSON objects; the proxy answers with one report for each, in the same order. Key, value and
headers travel as base64 (`BINARY`), so that the topic holds the same bytes as by way of Kafka. The next request leaves
when the last is judged, so that order holds within a topic. What the answer says decides:

    report 2xx                                 accepted
    report 401, 403, 404                       kept until a person has changed something
    report 408, 429, 5xx, none for this record kept, to be sent again after a while
    any other report 4xx                       this record is dropped

    HTTP 400, 413, 422                         the request is halved and sent again, so that only the record at fault is
                                               dropped; and none as long as the proxy has never taken one
    HTTP 401                                   once again with a new token, then kept until a person has changed
                                               something
    HTTP 408, 429, 5xx, silence                kept; `Retry-After` is honoured
    any other                                  kept until a person has changed something

Where a token is wanted it is fetched with client credentials and renewed before it expires. Without anything to send
the proxy is asked for its cluster from time to time, so that `state` is true. The words of an answer are never told,
because they may repeat a record; codes are.

Source: Confluent REST Proxy API v3, "Produce records"; RFC 6749 sections 2.3.1, 4.4 and 5; RFC 9110 section 10.2.3.
"""

from __future__ import annotations

import base64
import email.utils
import json
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import httpx
import msgspec

from cloud_sync.sinks import CONNECTING, Fatal, Message, Rejected, Retry, Settled, State, Tally, login
from cloud_sync.sinks.rest_answer import AGAIN, PERSON, Answer, Fate, Refused, codes, fate_of
from edge_agent import config, config_cloud

_CONNECT_S = 5.0  # a hospital's own network answers in milliseconds; a firewall that drops packets never does
_WAIT_LONGEST_S = 300.0  # that a Retry-After is believed
_PROBE_S = (5.0, 30.0)  # between two questions to an idle proxy: while it does not answer, while it does
_EARLY = 0.2  # of a token's lifetime is left when it is renewed,
_EARLY_S = 60.0  # or so many seconds, whichever is less
_REPORT_BYTES = 4096  # that a report may take; the proxy's own have some 300
_HALVE = frozenset({400, 413, 422})
_OAUTH_ERRORS = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
     "invalid_scope"}
)  # fmt: skip
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TROUBLE = (httpx.HTTPError, httpx.InvalidURL, OSError)


class Settings(NamedTuple):
    """What `[cloud.rest]` says, with its files and secrets read."""

    table: config_cloud.Rest
    context: ssl.SSLContext
    secret: str


def settings(loaded: config.Loaded) -> Settings:
    """The settings of `[cloud.rest]`.

    Raises: config.ConfigError naming the key that is missing or wrong.
    """
    rest = loaded.config.cloud.rest
    if rest is None:
        raise loaded.error(("cloud", "rest"), "missing", "add a [cloud.rest] table with url and cluster")
    context = login.tls(loaded, "rest", rest.ca, rest.certificate, rest.private_key)
    secret = ""
    if rest.token_url:
        found = httpx.URL(rest.token_url)
        if found.scheme != "https" and found.host not in _LOOPBACK:
            remedy = "use https, or anybody on the way can read the secret"
            raise loaded.error(("cloud", "rest", "token_url"), "not encrypted", remedy)
        secret = login.secret(loaded, "rest", "client_secret", rest.client_secret)
    return Settings(rest, context, secret)


class RestSink:
    """A sinks.Sink over one HTTP connection of its own."""

    def __init__(self, given: Settings, stream: str) -> None:
        """`stream` gives the thread its name."""
        self._given, self._table = given, given.table
        for library in ("httpx", "httpcore"):  # a line for each request otherwise, with its headers when verbose
            logging.getLogger(library).setLevel(logging.WARNING)
        self._cluster = f"{self._table.url.rstrip('/')}/v3/clusters/{self._table.cluster}"
        self._client = httpx.Client(
            verify=given.context,
            timeout=httpx.Timeout(self._table.timeout_s, connect=min(_CONNECT_S, self._table.timeout_s)),
            limits=httpx.Limits(max_connections=2),
            trust_env=False,
        )
        self._token, self._token_until = "", 0.0  # monotonic; used by the thread alone
        self._taken = False  # the proxy has accepted a record
        self._moved = threading.Condition()  # guards what follows
        self._queues: dict[str, deque[tuple[Tally, Message]]] = {}  # by topic, in the order of their turns
        self._finished: list[Tally] = []
        self._generation = 0  # counts resets: what an earlier one has begun is nobody's
        self._busy = self._stopping = self._halted = False
        self._failure: BaseException | None = None  # what the thread has died of
        self._not_before = 0.0  # monotonic; the proxy has asked for patience
        self._ask_at = 0.0  # for its cluster, when nothing is to be sent
        self._state: tuple[State, str] = ("waiting", CONNECTING)
        self._thread = threading.Thread(
            target=self._run, name=f"rest {stream}", daemon=True
        )  # a hanging proxy must not hold exit
        self._thread.start()

    def begin(self, token: object, messages: Sequence[Message]) -> None:
        """Takes a batch; its verdict comes out of `settle`."""
        batch = Tally(token, len(messages))
        with self._moved:
            for message in messages:
                self._queues.setdefault(message.topic, deque()).append((batch, message))
            if not messages:
                self._finished.append(batch)
            self._moved.notify_all()

    def settle(self, timeout_s: float) -> list[Settled]:
        """Verdicts that are ready, waiting up to `timeout_s` seconds for the first.

        Raises: what the sink's thread has died of.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._finished or self._failure, timeout_s)
            if self._failure is not None:
                raise self._failure
            return self._verdicts()

    def state(self) -> tuple[State, str]:
        """Whether the proxy answers, and the last trouble in words."""
        with self._moved:
            return self._state

    def reset(self) -> None:
        """Forgets every batch without a verdict; a request under way is waited for, but its answer is nobody's."""
        with self._moved:
            self._generation += 1
            self._forget()
            self._halted = False
            self._moved.notify_all()

    def close(self, timeout_s: float) -> list[Settled]:
        """Verdicts of the request under way, when it ends within `timeout_s` seconds."""
        with self._moved:
            self._queues.clear()
            self._stopping = True
            self._moved.notify_all()
            self._moved.wait_for(lambda: not self._busy, timeout_s)
            out = self._verdicts()
            self._forget()
            self._generation += 1
        return out

    def _verdicts(self) -> list[Settled]:
        """What is ready, what is kept last: the caller may stop there."""
        out = [batch.verdict() for batch in sorted(self._finished, key=lambda batch: batch.keep is not None)]
        self._finished.clear()
        return out

    def _forget(self) -> None:
        self._queues.clear()
        self._finished.clear()

    # The thread

    def _run(self) -> None:
        try:
            while True:
                with self._moved:
                    due = self._wait()
                    if self._stopping:
                        return
                    some, generation = self._gather(), self._generation
                    self._busy = bool(some)
                if some:
                    fates = self._deliver([message for _, message in some])
                    with self._moved:
                        self._busy = False
                        if generation == self._generation:
                            self._apply(some, fates)
                        self._moved.notify_all()
                elif due:
                    self._ask()
        except BaseException as error:
            with self._moved:
                self._failure, self._busy = error, False
                self._moved.notify_all()
        finally:
            self._client.close()

    def _wait(self) -> bool:
        """Until there is something to do; whether that is at least to ask an idle proxy."""
        while not self._stopping:
            now = time.monotonic()
            if self._queues and not self._halted and now >= self._not_before:
                return True
            next_at = self._not_before if self._queues and not self._halted else self._ask_at
            if now >= next_at:
                return True
            self._moved.wait(next_at - now)
        return False

    def _gather(self) -> list[tuple[Tally, Message]]:
        """The next records of one topic, within the bounds of a request."""
        if self._halted or not self._queues or time.monotonic() < self._not_before:
            return []
        topic = next(iter(self._queues))
        queue = self._queues.pop(topic)
        out: list[tuple[Tally, Message]] = []
        left = self._table.batch_kb << 10
        while queue and len(out) < self._table.batch_records:
            left -= _size(queue[0][1])
            if left < 0 and out:
                break
            out.append(queue.popleft())
        if queue:
            self._queues[topic] = queue  # behind the others
        return out

    def _apply(self, some: list[tuple[Tally, Message]], fates: list[Fate]) -> None:
        for (batch, message), fate in zip(some, fates, strict=True):
            if isinstance(fate, Retry | Fatal):
                self._halted = True  # nothing may overtake it
                if batch.keep is None:
                    batch.keep = fate
                    self._finished.append(batch)
            elif fate:
                batch.rejected.append(Rejected(message.dedup, fate.reason if isinstance(fate, Refused) else fate))
            else:
                batch.accepted += 1
            batch.open -= 1
            if not batch.open and batch.keep is None:
                self._finished.append(batch)

    def _deliver(self, messages: list[Message]) -> list[Fate]:
        """The fate of each message, of one topic; a record is blamed only by a proxy that has taken another."""
        fates = self._post(messages)
        trouble = next((fate for fate in fates if isinstance(fate, Retry | Fatal)), None)
        self._taken = self._taken or "" in fates
        if trouble is None and not self._taken:
            refused = next((fate for fate in fates if isinstance(fate, Refused)), None)
            if refused is not None:
                trouble = Fatal(f"{refused.reason}, and it has not taken any record yet")
                fates = [trouble if isinstance(fate, Refused) else fate for fate in fates]
        if trouble is None:
            self._show("connected", "")
        else:
            self._show("fatal" if isinstance(trouble, Fatal) else "waiting", str(trouble))
        return fates

    def _show(self, state: State, detail: str) -> None:
        with self._moved:
            self._state = (state, detail)
            self._ask_at = time.monotonic() + _PROBE_S[state == "connected"]

    def _ask(self) -> None:
        """Whether the proxy answers; a user who may only produce is refused this, which is an answer too."""
        try:
            answer = self._request("GET", self._cluster, b"")
        except (Retry, Fatal) as trouble:
            self._show("fatal" if isinstance(trouble, Fatal) else "waiting", str(trouble))
            return
        if answer.status in AGAIN or answer.status >= 500:
            self._show("waiting", answer.words)
        elif answer.status == 401:
            self._show("fatal", f"{answer.words}; {PERSON[401]}")
        else:
            self._show("connected", f"{answer.words}; {PERSON[404]}" if answer.status == 404 else "")

    # Requests

    def _post(self, messages: list[Message]) -> list[Fate]:
        url = f"{self._cluster}/topics/{self._table.topic_prefix}.{messages[0].topic}/records"
        try:
            answer = self._request("POST", url, b"".join(map(_record, messages)))
        except (Retry, Fatal) as trouble:
            return [trouble] * len(messages)
        status = answer.status
        if 200 <= status < 300:
            return self._reports(messages, answer)
        if status in _HALVE and len(messages) == 1:
            return [Refused(answer.words)]
        if status in _HALVE:
            return self._on(messages, self._post(messages[: len(messages) // 2]))
        if status in AGAIN or status >= 500:
            return [Retry(answer.words)] * len(messages)
        return [Fatal(f"{answer.words}; {PERSON.get(status, 'correct cloud.rest.url')}")] * len(messages)

    def _on(self, messages: list[Message], known: list[Fate]) -> list[Fate]:
        """The fates of the first messages and, unless one of these is to be sent again, those of the others."""
        trouble = next((fate for fate in known if isinstance(fate, Retry | Fatal)), None)
        rest = messages[len(known) :]
        if not rest:
            return known
        return known + ([trouble] * len(rest) if trouble is not None else self._post(rest))

    def _reports(self, messages: list[Message], answer: Answer) -> list[Fate]:
        known: list[Fate] = [fate_of(answer.peer, code) for code in codes(answer.body)[: len(messages)]]
        if not known:
            return [Retry(f"{answer.peer}: an answer without a report")] * len(messages)
        return self._on(messages, known)  # it may end at a record that it cannot read

    def _request(self, method: str, url: str, body: bytes) -> Answer:
        """The proxy's answer, after one more try when the log-in or an idle connection had run out.

        Raises: Retry or Fatal when there is none.
        """
        answer = self._send(method, url, {"Content-Type": "application/json", **self._bearer()}, body)
        if answer.status == 401 and self._token:
            self._token = ""
            answer = self._send(method, url, {"Content-Type": "application/json", **self._bearer()}, body)
        return answer

    def _send(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        try:
            try:
                return self._exchange(method, url, headers, body)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                return self._exchange(method, url, headers, body)  # most often an idle connection that was just closed
        except _TROUBLE as error:
            peer, words = httpx.URL(url).netloc.decode(), str(error) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in words or "alert" in words.lower():
                raise Fatal(f"{peer}: {words}") from error
            raise Retry(f"{peer}: {words}") from error

    def _exchange(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request; its time and the size of its answer are bounded as a whole."""
        until = time.monotonic() + self._table.timeout_s
        limit = _REPORT_BYTES * (2 + body.count(b'{"key"'))
        received = bytearray()
        with self._client.stream(method, url, headers=headers, content=body or None) as response:
            for piece in response.iter_bytes():
                received += piece
                if time.monotonic() > until:
                    raise httpx.ReadTimeout(f"no whole answer within {self._table.timeout_s:g} s")
                if len(received) > limit:
                    raise httpx.DecodingError(f"an answer of more than {limit} bytes")
        if response.status_code in AGAIN or response.status_code >= 500:
            self._be_patient(response.headers.get("Retry-After", ""))
        return Answer(httpx.URL(url).netloc.decode(), response.status_code, bytes(received))

    def _be_patient(self, asked: str) -> None:
        seconds = 0.0
        if asked.strip().isdigit():
            seconds = float(asked)
        elif asked:
            with suppress(ValueError, TypeError):
                seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        with self._moved:
            self._not_before = time.monotonic() + min(max(0.0, seconds), _WAIT_LONGEST_S)

    def _bearer(self) -> dict[str, str]:
        """The header that logs in, with a token that still holds. Raises: Retry or Fatal when none is to be had."""
        if not self._table.token_url:
            return {}
        if not self._token or time.monotonic() >= self._token_until:
            self._fetch()
        return {"Authorization": f"Bearer {self._token}"}

    def _fetch(self) -> None:
        self._token = ""
        login = f"{quote_plus(self._table.client_id)}:{quote_plus(self._given.secret)}"
        headers = {
            "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        scope = f"&scope={quote_plus(self._table.scope)}" if self._table.scope else ""
        asked_at = time.monotonic()
        answer = self._send("POST", self._table.token_url, headers, f"grant_type=client_credentials{scope}".encode())
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        found = found if isinstance(found, dict) else {}
        if answer.status in AGAIN or answer.status >= 500:
            raise Retry(f"token: {answer.words}")
        token, lasts_s = found.get("access_token"), found.get("expires_in")
        if answer.status != 200 or not isinstance(token, str) or not token.isascii() or not token.isprintable():
            code = found.get("error")
            raise Fatal(f"token: {answer.words}{f' ({code})' if code in _OAUTH_ERRORS else ''}; {PERSON[401]}")
        self._token = token
        self._token_until = float("inf")  # without a word about it, until it is refused
        if isinstance(lasts_s, int | float):
            self._token_until = asked_at + lasts_s - min(_EARLY_S, _EARLY * lasts_s)


def _size(message: Message) -> int:
    """Bytes of the message's record in a request, about."""
    return 160 + (len(message.value) + sum(len(value) for _, value in message.headers)) * 4 // 3


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _record(message: Message) -> bytes:
    shape: dict[str, Any] = {
        "key": {"type": "BINARY", "data": _base64(message.key.encode())},
        "value": {"type": "BINARY", "data": _base64(message.value)},
        "headers": [{"name": name, "value": _base64(value)} for name, value in message.headers],
    }
    return msgspec.json.encode(shape) + b"\n"
