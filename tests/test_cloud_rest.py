"""The REST sink against a real HTTP server that answers as a Confluent REST Proxy does."""

from __future__ import annotations

import email.utils
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud_site import DEADLINE_S, until
from kafka_broker import Authority
from rest_proxy import CLIENT, CLUSTER, SECRET, Record, RestProxy, Whole

from cloud_sync.sinks import Fatal, Message, Retry, Settled
from cloud_sync.sinks.rest import RestSink, settings
from edge_agent import config

Open = Callable[..., RestSink]


def loaded(folder: Path, text: str) -> config.Loaded:
    path = folder / "site.toml"
    path.write_text(f'[gateway]\nid = "gw-1"\ndata_dir = "data"\n[[bed]]\nid = "ICU-1"\n[cloud.rest]\n{text}\n')
    return config.load(path)


def message(number: int, bed: str = "ICU-1", topic: str = "observations", filling: str = "") -> Message:
    value = json.dumps({"number": number, "filling": filling}).encode()
    return Message(topic, bed, value, f"gw-1/i/{number}".encode(), (("schema", b"observation"),))


def number(record: Record) -> int:
    return int(json.loads(record.value)["number"])


def numbers(records: list[Record]) -> list[int]:
    return [number(record) for record in records]


def verdicts(sink: RestSink, count: int) -> list[Settled]:
    found: list[Settled] = []
    until(lambda: len(found) >= count, lambda: found.extend(sink.settle(0.1)))
    return found


def kept(sink: RestSink, count: int = 3) -> Retry | Fatal:
    """Why a batch of so many records is kept."""
    sink.begin("a", [message(n) for n in range(count)])
    (verdict,) = verdicts(sink, 1)
    assert verdict.accepted == 0
    assert verdict.keep is not None
    return verdict.keep


@pytest.fixture
def proxy() -> Iterator[RestProxy]:
    made = RestProxy()
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    sinks: list[RestSink] = []

    def open_(proxy: RestProxy, more: str = "") -> RestSink:
        text = f'url = "{proxy.url}"\ncluster = "{CLUSTER}"\n{more}'
        sinks.append(RestSink(settings(loaded(tmp_path, text)), "data"))
        return sinks[-1]

    yield open_
    for sink in sinks:
        sink.close(0.0)


def test_records_arrive_in_order_with_key_value_and_headers_over_one_connection(proxy: RestProxy, opened: Open) -> None:
    sink = opened(proxy, 'batch_records = 30\ntopic_prefix = "ward"')
    for token in range(4):
        sink.begin(token, [message(n, f"ICU-{n % 3}") for n in range(token * 50, token * 50 + 50)])
    sink.begin("other", [message(1000, "gw-1", "status")])
    sink.begin("nothing", [])
    found = {verdict.token: verdict.accepted for verdict in verdicts(sink, 6)}
    assert found == {0: 50, 1: 50, 2: 50, 3: 50, "other": 1, "nothing": 0}
    assert numbers(proxy.on("observations")) == list(range(200))
    first = proxy.on("observations")[0]
    assert first == Record(
        "ward.observations", "ICU-0", message(0).value, {"dedup": "gw-1/i/0", "schema": "observation"}
    )
    assert numbers(proxy.on("status")) == [1000]
    assert max(map(len, proxy.requests)) == 30
    assert proxy.connections == 1
    assert sink.state() == ("connected", "")


def test_a_request_is_bounded_by_bytes_and_a_larger_record_goes_alone(proxy: RestProxy, opened: Open) -> None:
    sink = opened(proxy, "batch_kb = 16")
    sink.begin("a", [message(n, filling="x" * (20_000 if n == 5 else 2_000)) for n in range(12)])
    assert verdicts(sink, 1) == [Settled("a", 12)]
    assert numbers(proxy.records) == list(range(12))
    assert [numbers(request) for request in proxy.requests if 5 in numbers(request)] == [[5]]
    assert max(sum(len(record.value) for record in request) for request in proxy.requests) < 21_000
    assert len(proxy.requests) < 6


def test_an_idle_proxy_is_asked_so_that_state_is_true(proxy: RestProxy, opened: Open) -> None:
    sink = opened(proxy)
    until(lambda: sink.state() == ("connected", ""))
    assert (proxy.asked, proxy.requests) == (1, [])


def test_a_refused_record_is_dropped_alone(proxy: RestProxy, opened: Open) -> None:
    proxy.answer = lambda record: 42206 if number(record) == 3 else 200
    sink = opened(proxy)
    sink.begin("a", [message(n) for n in range(6)])
    (verdict,) = verdicts(sink, 1)
    assert (verdict.accepted, [one.dedup for one in verdict.rejected]) == (5, ["gw-1/i/3"])
    assert "error_code 42206" in verdict.rejected[0].reason
    assert numbers(proxy.records) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(40101, Fatal), (40301, Fatal), (40403, Fatal), (40801, Retry), (42901, Retry), (50003, Retry), (500, Retry)],
)
def test_a_report_that_blames_something_else_keeps_the_batch_and_its_copies_follow_as_a_run(
    code: int, kind: type, proxy: RestProxy, opened: Open
) -> None:
    once = iter([code])
    proxy.answer = lambda record: next(once, 200) if number(record) == 3 else 200
    sink = opened(proxy)
    trouble = kept(sink, 6)
    assert type(trouble) is kind
    assert str(code) in str(trouble)
    assert sink.state()[0] == ("fatal" if kind is Fatal else "waiting")
    sink.begin("late", [message(6)])
    assert sink.settle(0.2) == [], "nothing overtakes it before `reset`"
    sink.reset()
    sink.begin("a", [message(n) for n in range(6)])
    assert verdicts(sink, 1) == [Settled("a", 6)]
    assert numbers(proxy.records) == [0, 1, 2, 4, 5, 0, 1, 2, 3, 4, 5]


def test_a_request_that_is_refused_is_halved_until_one_record_is_to_blame(proxy: RestProxy, opened: Open) -> None:
    def whole(records: list[Record]) -> Whole | None:
        return Whole(413, {}, b'{"error_code": 413}') if 5 in numbers(records) else None

    proxy.whole = whole
    sink = opened(proxy)
    sink.begin("a", [message(n) for n in range(16)])
    (verdict,) = verdicts(sink, 1)
    assert (verdict.accepted, [one.dedup for one in verdict.rejected]) == (15, ["gw-1/i/5"])
    assert numbers(proxy.records) == [n for n in range(16) if n != 5]
    assert len(proxy.requests) <= 9, "by halves, not one by one"


def test_a_proxy_that_refuses_everything_gets_nothing_dropped(proxy: RestProxy, opened: Open) -> None:
    proxy.whole = lambda records: Whole(400, {}, b'{"error_code": 400, "message": "what the record says"}')
    trouble = kept(opened(proxy))
    assert isinstance(trouble, Fatal)
    assert "400 Bad Request, and it has not taken any record yet" in str(trouble)
    assert "what the record says" not in str(trouble)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, Fatal, "log-in was refused"), (403, Fatal, "grant Write"), (404, Fatal, "no such cluster or topic"),
        (302, Fatal, "correct cloud.rest.url"), (408, Retry, "408"), (429, Retry, "429"), (500, Retry, "500"),
        (503, Retry, "503"),
    ],
)  # fmt: skip
def test_what_an_answer_to_the_whole_request_means(
    status: int, kind: type, words: str, proxy: RestProxy, opened: Open
) -> None:
    answers = iter([Whole(status, {}, b'{"error_code": %d}' % status)])
    proxy.whole = lambda records: next(answers, None)
    sink = opened(proxy)
    trouble = kept(sink)
    assert type(trouble) is kind
    assert words in str(trouble)
    sink.reset()
    sink.begin("b", [message(n) for n in range(3)])
    assert verdicts(sink, 1) == [Settled("b", 3)]
    assert sink.state() == ("connected", "")


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_retry_after_is_honoured(how: str, proxy: RestProxy, opened: Open) -> None:
    asked = "2" if how == "seconds" else email.utils.formatdate(time.time() + 3, usegmt=True)
    answers = iter([Whole(429, {"Retry-After": asked}, b'{"error_code": 429}')])
    proxy.whole = lambda records: next(answers, None)
    sink = opened(proxy)
    assert isinstance(kept(sink), Retry)
    asked_at = time.monotonic()
    sink.reset()
    sink.begin("b", [message(0)])
    assert verdicts(sink, 1) == [Settled("b", 1)]
    assert 1.5 < time.monotonic() - asked_at < 10
    assert len(proxy.requests) == 2


def test_silence_is_waited_out_and_no_longer(proxy: RestProxy, opened: Open) -> None:
    hung = iter([True])

    def whole(records: list[Record]) -> Whole | None:
        if next(hung, False):
            proxy.hang()
        return None

    proxy.whole = whole
    sink = opened(proxy, "timeout_s = 0.5")
    began = time.monotonic()
    assert isinstance(kept(sink), Retry)
    assert time.monotonic() - began < 5
    sink.reset()
    sink.begin("b", [message(7)])
    assert verdicts(sink, 1) == [Settled("b", 1)]


def test_an_answer_that_drips_is_not_waited_for(proxy: RestProxy, opened: Open) -> None:
    drips = iter([Whole(200, body=b'{"error_code": 200}' * 30, drip_s=0.1)])
    proxy.whole = lambda records: next(drips, None)
    sink = opened(proxy, "timeout_s = 0.5")
    began = time.monotonic()
    assert "no whole answer within 0.5 s" in str(kept(sink))
    assert time.monotonic() - began < 5


def test_what_was_begun_before_a_reset_is_nobodys(proxy: RestProxy, opened: Open) -> None:
    held = threading.Event()

    def whole(records: list[Record]) -> None:
        held.wait(DEADLINE_S)

    proxy.whole = whole
    sink = opened(proxy)
    sink.begin("old", [message(0)])
    proxy.wait(lambda: proxy.requests)
    sink.reset()
    sink.begin("new", [message(0), message(1)])
    held.set()
    assert verdicts(sink, 1) == [Settled("new", 2)]
    assert sink.settle(0.2) == []
    assert numbers(proxy.records) == [0, 0, 1], "the request under way came first"


def test_a_connection_that_breaks_within_the_answer_brings_the_run_again(proxy: RestProxy, opened: Open) -> None:
    cuts = iter([Whole(200, cut=150)])
    proxy.whole = lambda records: next(cuts, None)
    sink = opened(proxy)
    sink.begin("a", [message(n) for n in range(5)])
    assert verdicts(sink, 1) == [Settled("a", 5)]
    assert numbers(proxy.records) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_an_answer_that_ends_early_is_continued_with_the_next_record(proxy: RestProxy, opened: Open) -> None:
    answers = iter([Whole(200, {}, b'{"error_code": 200}\r\n{"error_code": 400}\r\n{"message": "parse error"}')])
    proxy.whole = lambda records: next(answers, None)
    sink = opened(proxy)
    sink.begin("a", [message(n) for n in range(5)])
    (verdict,) = verdicts(sink, 1)
    assert (verdict.accepted, [one.dedup for one in verdict.rejected]) == (4, ["gw-1/i/1"])
    assert numbers(proxy.records) == [2, 3, 4]


def test_a_proxy_that_is_away_keeps_everything(proxy: RestProxy, opened: Open) -> None:
    sink = opened(proxy)
    proxy.close()
    trouble = kept(sink)
    assert isinstance(trouble, Retry)
    assert str(trouble).startswith(f"127.0.0.1:{proxy.port}: ")
    assert sink.state()[0] == "waiting"


def test_close_does_not_wait_for_a_hanging_proxy(proxy: RestProxy, opened: Open) -> None:
    proxy.whole = lambda records: proxy.hang()
    sink = opened(proxy)
    sink.begin("a", [message(0)])
    proxy.wait(lambda: proxy.requests)
    began = time.monotonic()
    assert sink.close(0.2) == []
    assert time.monotonic() - began < 2


# Tokens


@pytest.fixture
def guarded() -> Iterator[RestProxy]:
    made = RestProxy(tokens=True)
    yield made
    made.close()


def login(proxy: RestProxy, folder: Path, secret: str = SECRET) -> str:
    (folder / "secret").write_text(secret + "\n")
    return f'token_url = "{proxy.url}/token"\nclient_id = "{CLIENT}"\nclient_secret = "file:secret"\nscope = "produce"'


def test_a_token_is_fetched_once_and_renewed_before_it_expires(
    guarded: RestProxy, opened: Open, tmp_path: Path
) -> None:
    forms: list[dict[str, str]] = []
    guarded.token_answer = lambda form: forms.append(form)  # type: ignore[func-returns-value]
    guarded.expires_in = 3
    sink = opened(guarded, login(guarded, tmp_path))
    until(lambda: sink.state()[0] == "connected")
    for token in range(3):
        sink.begin(token, [message(token)])
        verdicts(sink, 1)
    assert (guarded.given, forms[0]["scope"]) == (["token-0"], "produce")

    def renewed() -> bool:
        sink.begin("more", [message(9)])
        assert verdicts(sink, 1) == [Settled("more", 1)]
        return len(guarded.given) == 2

    until(renewed, lambda: time.sleep(0.02))
    assert 2.0 < guarded.given_at[1] - guarded.given_at[0] < 2.9, "before it expires, and not much"


def test_a_token_that_is_refused_is_fetched_anew_once(guarded: RestProxy, opened: Open, tmp_path: Path) -> None:
    guarded.expires_in = None
    sink = opened(guarded, login(guarded, tmp_path))
    sink.begin("a", [message(0)])
    assert verdicts(sink, 1) == [Settled("a", 1)]
    guarded.valid.clear()
    sink.begin("b", [message(1)])
    assert verdicts(sink, 1) == [Settled("b", 1)]
    assert guarded.given == ["token-0", "token-1"]
    guarded.token_answer = lambda form: Whole(200, {}, b'{"access_token": "worthless", "expires_in": 60}')
    guarded.valid.clear()
    trouble = kept(sink)
    assert isinstance(trouble, Fatal)
    assert "401 Unauthorized" in str(trouble)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (None, Fatal, "(invalid_client)"),
        (Whole(503, {"Retry-After": "1"}), Retry, "token: "),
        (Whole(200, {}, b"hello"), Fatal, "token: "),
        (Whole(200, {}, b'{"access_token": "two\\nlines"}'), Fatal, "token: "),
    ],
)
def test_a_token_that_is_not_to_be_had_is_told_without_the_secret(
    answer: Whole | None, kind: type, words: str, guarded: RestProxy, opened: Open, tmp_path: Path
) -> None:
    guarded.token_answer = lambda form: answer
    sink = opened(guarded, login(guarded, tmp_path, "guess" if answer is None else SECRET))
    trouble = kept(sink)
    assert type(trouble) is kind
    assert words in str(trouble)
    assert not any(secret in str(trouble) for secret in ("guess", SECRET, "stranger"))


# TLS


def test_tls_with_an_authority_of_our_own_and_a_client_certificate(opened: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server, client = authority.issue("server"), authority.issue("client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.private_key)
    context.load_verify_locations(authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    proxy = RestProxy(context=context)
    try:
        files = f'certificate = "{client.certificate}"\nprivate_key = "{client.private_key}"'
        sink = opened(proxy, f'ca = "{authority.path}"\n{files}')
        sink.begin("a", [message(n) for n in range(3)])
        assert verdicts(sink, 1) == [Settled("a", 3)]
        other = Authority(tmp_path / "other", "somebody else")
        trouble = kept(opened(proxy, f'ca = "{other.path}"\n{files}'))
        assert isinstance(trouble, Fatal)
        assert "certificate verify failed" in str(trouble)
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('client_id = "c"', "need token_url"),
        ('token_url = "https://t"', "token_url needs client_id and client_secret"),
        ('token_url = "https://t"\nclient_id = "c"\nclient_secret = "geheim"', "credential:NAME or file:PATH"),
        ('token_url = "https://t"\nclient_id = "c"\nclient_secret = "file:none"', "cannot be read"),
        ('token_url = "http://far.example"\nclient_id = "c"\nclient_secret = "file:site.toml"', "not encrypted"),
        ('certificate = "c.pem"', "belong together"),
        ('ca = "none.pem"', "none.pem cannot be used"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_key(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"cloud\.rest") as found:
        settings(loaded(tmp_path, f'url = "https://p"\ncluster = "c"\n{text}'))
    assert words in str(found.value)
    assert "geheim" not in str(found.value)
