"""The MQTT 5 sink against a real mosquitto."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mosquitto
import pytest
from cloud_site import until
from kafka_broker import Authority
from mosquitto import PASSWORD, STRANGER, USER, Mosquitto, Subscriber

from cloud_sync.sinks import Fatal, Message, Retry, Settled
from cloud_sync.sinks.mqtt import ERROR_TRIES, MqttSink, settings
from edge_agent import config

Open = Callable[..., MqttSink]
BEDS = ("ICU-1", "ICU-2", "ICU-3")


def loaded(folder: Path, text: str) -> config.Loaded:
    path = folder / "site.toml"
    path.write_text(f'[gateway]\nid = "gw-1"\ndata_dir = "data"\n[[bed]]\nid = "ICU-1"\n[cloud.mqtt]\n{text}\n')
    return config.load(path)


def message(number: int, bed: str = "ICU-1", topic: str = "observations", filling: str = "") -> Message:
    value = json.dumps({"number": number, "filling": filling}).encode()
    about = (("schema", b"observation"), ("schema-version", b"1"))
    return Message(topic, bed, value, f"gw-1/i/{number}".encode(), about)


def numbers(found: list[mosquitto.Arrival]) -> list[int]:
    return [json.loads(arrival.value)["number"] for arrival in found]


def verdicts(sink: MqttSink, count: int) -> list[Settled]:
    found: list[Settled] = []
    until(lambda: len(found) >= count, lambda: found.extend(sink.settle(0.1)))
    return found


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[Subscriber]:
    made = Subscriber(broker.port, "#")
    yield made
    made.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    sinks: list[MqttSink] = []

    def open_(text: str, stream: str = "data") -> MqttSink:
        sinks.append(MqttSink(settings(loaded(tmp_path, text)), stream))
        return sinks[-1]

    yield open_
    for sink in sinks:
        sink.reset()


def plain(broker: Mosquitto, more: str = "") -> str:
    return f'broker = "127.0.0.1:{broker.port}"\nsecurity = "plaintext"\n{more}'


def test_each_bed_has_topics_and_its_order_and_the_headers_come_along(
    broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    sink = opened(plain(broker))
    batches = {token: [message(n, BEDS[n % 3]) for n in range(token * 50, token * 50 + 50)] for token in range(4)}
    for token, batch in batches.items():
        sink.begin(token, batch)
    sink.begin("nothing", [])
    found = verdicts(sink, 5)
    assert {verdict.token: verdict.accepted for verdict in found} == {0: 50, 1: 50, 2: 50, 3: 50, "nothing": 0}
    assert sink.state() == ("connected", "")
    subscriber.wait(lambda: len(subscriber.arrivals) >= 200)
    for place, bed in enumerate(BEDS):
        came = subscriber.on(f"bedside/gw-1/{bed}/observations")
        assert numbers(came) == list(range(place, 200, 3))
        assert came[0].headers == {"dedup": f"gw-1/i/{place}", "schema": "observation", "schema-version": "1"}
        assert (came[0].content_type, came[0].retained) == ("application/json", False)


def test_signs_of_mqtt_in_a_bed_and_the_gateway_itself(broker: Mosquitto, subscriber: Subscriber, opened: Open) -> None:
    sink = opened(plain(broker, 'topic_prefix = "ward/north"'))
    sink.begin("a", [message(1, "ICU/4 #2+"), message(2, "gw-1", "status")])
    assert verdicts(sink, 1) == [Settled("a", 2)]
    subscriber.wait(lambda: len(subscriber.arrivals) >= 2)
    topics = {arrival.topic for arrival in subscriber.arrivals}
    assert topics == {"ward/north/gw-1/ICU%2F4 %232%2B/observations", "ward/north/gw-1/status"}


@pytest.mark.parametrize(("allowed", "window"), [(3, 3), (50, 7)], ids=["the broker's", "our own"])
def test_no_more_is_under_way_than_the_windows_allow(
    allowed: int, window: int, broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    broker.stop()
    broker.settings["max_inflight_messages"] = str(allowed)
    broker.start()
    sink = opened(plain(broker, "bed_window = 7"))
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    sink.begin("a", [message(n) for n in range(40)])
    assert len(sink._flight) == window, "nothing has been listened to since"
    assert verdicts(sink, 1) == [Settled("a", 40)]
    subscriber.wait(lambda: len(subscriber.arrivals) >= 40)
    assert numbers(subscriber.arrivals) == list(range(40))


def test_alerts_go_one_by_one_for_each_bed(broker: Mosquitto, subscriber: Subscriber, opened: Open) -> None:
    sink = opened(plain(broker), "alerts")
    until(lambda: sink.state()[0] == "connected" and not sink._own, lambda: sink.settle(0.05))
    sink.begin("a", [message(n, BEDS[n % 3], "alerts") for n in range(30)])
    assert sorted(waiting[1].key for waiting in sink._flight.values()) == list(BEDS)
    assert verdicts(sink, 1) == [Settled("a", 30)]


@pytest.mark.parametrize("way", ["tls", "mtls"])
def test_secured_listeners(way: str, broker: Mosquitto, subscriber: Subscriber, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    ca = f'ca = "{broker.authority.path}"\n'
    text = {
        "tls": f'broker = "127.0.0.1:{broker.tls_port}"\n{ca}username = "{USER}"\npassword = "file:password"',
        "mtls": f'broker = "127.0.0.1:{broker.mtls_port}"\nsecurity = "mtls"\n{ca}'
        f'certificate = "{broker.client.certificate}"\nprivate_key = "{broker.client.private_key}"',
    }[way]
    sink = opened(text)
    sink.begin("a", [message(n) for n in range(20)])
    assert verdicts(sink, 1) == [Settled("a", 20)]


def test_a_broker_of_another_authority_is_not_trusted(broker: Mosquitto, opened: Open, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "somebody else")
    sink = opened(f'broker = "127.0.0.1:{broker.tls_port}"\nca = "{other.path}"')
    sink.begin("a", [message(1)])
    with pytest.raises(Fatal, match="certificate verify failed"):
        verdicts(sink, 1)


@pytest.mark.parametrize("way", ["wrong password", "no certificate"])
def test_a_refused_login_is_told(way: str, broker: Mosquitto, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("guess")
    ca = f'ca = "{broker.authority.path}"\n'
    text, words = {
        "wrong password": (
            f'broker = "127.0.0.1:{broker.tls_port}"\n{ca}username = "{USER}"\npassword = "file:password"',
            "Not authorized",
        ),
        "no certificate": (f'broker = "127.0.0.1:{broker.mtls_port}"\n{ca}', "accept the gateway's certificate"),
    }[way]
    sink = opened(text)
    sink.begin("a", [message(1)])
    with pytest.raises(Fatal if way == "wrong password" else (Fatal, Retry), match=words):
        verdicts(sink, 1)
    assert "guess" not in sink.state()[1]


def test_a_missing_right_keeps_everything_until_it_is_granted(
    broker: Mosquitto, subscriber: Subscriber, opened: Open, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    text = (
        f'broker = "127.0.0.1:{broker.tls_port}"\nca = "{broker.authority.path}"\n'
        f'username = "{STRANGER}"\npassword = "file:password"'
    )
    sink = opened(text)
    sink.begin("a", [message(1)])
    (verdict,) = verdicts(sink, 1)
    assert verdict.accepted == 0
    assert isinstance(verdict.keep, Fatal)
    assert "bedside/gw-1/ICU-1/observations: Not authorized" in str(verdict.keep)
    broker.allow(STRANGER)

    def settled() -> bool:
        sink.reset()
        sink.begin("a", [message(1)])
        return verdicts(sink, 1) == [Settled("a", 1)]

    until(settled, lambda: time.sleep(0.05))
    subscriber.wait(lambda: numbers(subscriber.arrivals) == [1])


def test_a_message_that_the_broker_always_refuses_is_dropped_alone_after_some_tries(
    broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    """mosquitto answers an oversized payload with a code that no acknowledgement may have, or an unspecific one."""
    broker.stop()
    broker.settings["message_size_limit"] = "2000"
    broker.start()
    sink = opened(plain(broker))
    batch = [message(0), message(1, filling="x" * 3000), message(2)]
    tries = 0
    while True:
        tries += 1
        sink.begin("a", batch)
        with suppress(Retry):
            (verdict,) = verdicts(sink, 1)
            if verdict.keep is None:
                break
            assert isinstance(verdict.keep, Retry)
        assert tries <= ERROR_TRIES
        sink.reset()
    assert tries >= ERROR_TRIES
    assert verdict.accepted == 2
    assert [rejected.dedup for rejected in verdict.rejected] == ["gw-1/i/1"]
    subscriber.wait(lambda: set(numbers(subscriber.arrivals)) == {0, 2})


def test_a_packet_larger_than_the_broker_says_it_takes_never_leaves(
    broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    broker.stop()
    broker.settings["max_packet_size"] = "2000"
    broker.start()
    sink = opened(plain(broker))
    sink.begin("a", [message(0), message(1, filling="x" * 3000), message(2)])
    (verdict,) = verdicts(sink, 1)
    assert (verdict.accepted, [one.dedup for one in verdict.rejected]) == (2, ["gw-1/i/1"])
    assert "larger than the 2000 bytes" in verdict.rejected[0].reason


def test_a_topic_without_a_subscriber_is_told(broker: Mosquitto, opened: Open) -> None:
    sink = opened(plain(broker))
    sink.begin("a", [message(0)])
    assert verdicts(sink, 1) == [Settled("a", 1)]
    assert sink.state()[0] == "connected"
    assert "nobody subscribes" in sink.state()[1]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_comes_back_gets_everything_in_order(
    how: str, broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    sink = opened(plain(broker))
    sink.begin(0, [message(n) for n in range(100)])
    assert verdicts(sink, 1) == [Settled(0, 100)]
    subscriber.wait(lambda: len(subscriber.arrivals) >= 100)
    getattr(broker, how)()
    sink.begin(1, [message(n) for n in range(100, 200)])
    with pytest.raises(Retry):
        verdicts(sink, 1)
    assert sink.state()[0] == "waiting"
    sink.reset()
    sink.begin(1, [message(n) for n in range(100, 200)])
    with pytest.raises(Retry, match="Connection refused"):
        verdicts(sink, 1)
    broker.start()
    until(lambda: "Sending SUBACK to subscriber" in broker.log().rpartition("starting")[2])
    sink.reset()
    sink.begin(1, [message(n) for n in range(100, 200)])
    assert verdicts(sink, 1) == [Settled(1, 100)]
    subscriber.wait(lambda: {*range(200)} <= set(numbers(subscriber.arrivals)))
    first_seen = list(dict.fromkeys(numbers(subscriber.arrivals)))
    assert first_seen == list(range(200))


def test_the_session_at_the_broker_outlives_the_connection(broker: Mosquitto, opened: Open) -> None:
    sink = opened(plain(broker))
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    sink.reset()
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    until(lambda: "Sending CONNACK to gw-1-data (1, 0)" in broker.log())  # 1: session present
    assert "Sending CONNACK to gw-1-data (0, 0)" in broker.log()


def states(subscriber: Subscriber) -> list[bytes]:
    return [arrival.value for arrival in subscriber.on("bedside/gw-1/state")]


def test_the_gateway_is_online_and_says_when_it_leaves(broker: Mosquitto, subscriber: Subscriber, opened: Open) -> None:
    sink = opened(plain(broker), "alerts")
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    assert sink.close(5.0) == []
    subscriber.wait(lambda: len(states(subscriber)) >= 2)
    assert states(subscriber) == [b"online", b"offline"]
    assert all(arrival.retained for arrival in subscriber.on("/state"))
    late = Subscriber(broker.port, "bedside/+/state", "late")
    late.wait(lambda: states(late) == [b"offline"])
    late.close()


def test_the_last_will_waits_for_a_short_break_and_then_speaks(
    broker: Mosquitto, subscriber: Subscriber, opened: Open
) -> None:
    text = plain(broker, "will_delay_s = 2")
    sink = opened(text, "alerts")
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    sink.reset()  # a connection that is lost: no DISCONNECT
    until(lambda: sink.state()[0] == "connected", lambda: sink.settle(0.05))
    sink.begin("a", [message(1, topic="alerts")])
    assert verdicts(sink, 1) == [Settled("a", 1)]
    subscriber.wait(lambda: len(states(subscriber)) >= 2)
    assert states(subscriber) == [b"online", b"online"]
    lost_at = time.monotonic()
    sink.reset()
    subscriber.wait(lambda: len(states(subscriber)) >= 3)
    assert states(subscriber)[2] == b"offline"
    assert time.monotonic() - lost_at > 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('broker = "b:1"', 'security "tls" needs ca'),
        ('broker = "b:1"\nsecurity = "mtls"\nca = "x"', 'security "mtls" needs'),
        ('broker = "b:1"\nsecurity = "plaintext"\npassword = "file:x"', "password needs username"),
        ('broker = "b:1"\nsecurity = "plaintext"\nusername = "u"\npassword = "geheim"', "credential:NAME or file:PATH"),
        ('broker = "b:1"\nsecurity = "plaintext"\nusername = "u"\npassword = "file:none"', "cannot be read"),
        ('broker = "b:1"\nca = "none.pem"', "none.pem cannot be used"),
        ('broker = "b:70000"\nsecurity = "plaintext"', "70000 is no port"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_key(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"cloud\.mqtt") as found:
        settings(loaded(tmp_path, text))
    assert words in str(found.value)
    assert "geheim" not in str(found.value)
