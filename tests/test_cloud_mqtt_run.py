"""From the sealed buffer to a real mosquitto, through cloud-sync as its own process."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud_site import GATEWAY, ReceiverSite, Site, alarm, observation, sealed, until
from mosquitto import Mosquitto, Subscriber

from edge_agent import config_cloud, records
from edge_agent.buffer import Marks, receivers

MQTT = '[cloud.mqtt]\nbroker = "127.0.0.1:{port}"\nsecurity = "plaintext"\n{more}\n'
KAFKA_AWAY = '[cloud.kafka]\nbootstrap = "127.0.0.1:9"\nsecurity = "plaintext"\n'  # the discard port: nobody listens
BEDS = ("ICU-1", "ICU-2")

MakeSite = Callable[..., Site]


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[Subscriber]:
    made = Subscriber(broker.port, "bedside/#")
    yield made
    made.close()


@pytest.fixture
def make_site(tmp_path: Path, broker: Mosquitto) -> Iterator[MakeSite]:
    sites: list[Site] = []

    def make(more: str = "", tables: str = "") -> Site:
        folder = tmp_path / f"site-{len(sites)}"
        folder.mkdir()
        sites.append(ReceiverSite(folder, MQTT.format(port=broker.port, more=more) + tables, ""))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def arrived(subscriber: Subscriber, bed: str, topic: str) -> list[str]:
    return [arrival.headers["dedup"] for arrival in subscriber.on(f"/{GATEWAY}/{bed}/{topic}")]


def first_seen(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def mixed(count: int, start: int = 0) -> list[list[records.Entry]]:
    """Blocks of both streams and both beds."""
    out: list[list[records.Entry]] = []
    for number in range(start, start + count):
        bed = BEDS[number % 2]
        out.append([observation(4 * number + part, bed) for part in range(4)])
        out.append([alarm(number, bed)])
    return out


def delivered(site: Site) -> bool:
    return site.status().get("mqtt", {}).get("backlog_records") == 0


def test_every_record_arrives_once_in_order_and_status_tells(subscriber: Subscriber, make_site: MakeSite) -> None:
    site = make_site()
    site.store(mixed(30))
    child = site.run()
    until(lambda: delivered(site) and site.status()["state"] == "connected")
    told = site.status()["mqtt"]
    assert told["forwarded"] == {"alerts": 30, "data": 120}
    assert (told["guarantee"], told["dropped"]) == ("at least once", {"alerts": 0, "data": 0})
    shown = site.command("status")
    assert shown.returncode == 0
    assert "MQTT           connected, sent 30 alerts, 120 data records, refused 0, waiting 0 records" in shown.stdout
    subscriber.wait(lambda: subscriber.on(f"bedside/{GATEWAY}/status"))
    report = json.loads(subscriber.on(f"bedside/{GATEWAY}/status")[0].value)
    assert report["record"]["item"] == "gateway_status"
    assert site.end(child) == 0
    for bed in BEDS:
        assert arrived(subscriber, bed, "observations") == sealed(site, "data")[bed]
        assert arrived(subscriber, bed, "alerts") == sealed(site, "alerts")[bed]
    again = site.run()
    until(lambda: site.status().get("pid") == again.pid and site.status()["state"] == "connected")
    assert site.end(again) == 0
    assert len(subscriber.on("/alerts")) == 30, "the mark says that they have arrived"


def test_killed_again_and_again_while_the_broker_comes_and_goes_it_misses_nothing(
    broker: Mosquitto, subscriber: Subscriber, make_site: MakeSite
) -> None:
    """Kills fall at any moment: with the broker there, with the broker away, and on a broker that is left alone.

    The broker ends by SIGTERM and writes down its sessions: what it acknowledged and then lost would be its own loss.
    """
    chance = random.Random(4)
    site = make_site("bed_window = 4")
    site.store(mixed(100))
    stored, kills = 100, 0
    running = site.run()
    scenes = ["forwarder"] * 6 + ["both"] * 3 + ["broker"] * 3
    chance.shuffle(scenes)
    for scene in scenes:
        wanted = len(subscriber.arrivals) + chance.randrange(5, 60)
        subscriber.wait(lambda wanted=wanted: len(subscriber.arrivals) >= wanted)
        if scene != "forwarder":
            broker.stop()
        if scene != "broker":
            running.send_signal(signal.SIGKILL)
            running.wait(30)
            kills += 1
        site.store(mixed(20, stored))
        stored += 20
        if scene == "broker":
            broker.start()
            continue
        running = site.run()
        if scene == "both":
            # it meets a broker that is not there, and is killed before one comes
            until(lambda running=running: site.status().get("pid") == running.pid)
            running.send_signal(signal.SIGKILL)
            running.wait(30)
            kills += 1
            broker.start()
            running = site.run()
    until(lambda: site.status().get("pid") == running.pid and delivered(site))
    assert site.end(running) == 0
    for stream, topic in (("data", "observations"), ("alerts", "alerts")):
        wanted_names = sealed(site, stream)
        assert sum(map(len, wanted_names.values())) == stored * (4 if stream == "data" else 1)
        for bed in BEDS:
            subscriber.wait(lambda bed=bed, topic=topic, names=wanted_names: {*names[bed]} <= {
                *arrived(subscriber, bed, topic)})  # fmt: skip
            assert first_seen(arrived(subscriber, bed, topic)) == wanted_names[bed], f"{bed} {topic}"
    copies = len(subscriber.on("/observations")) + len(subscriber.on("/alerts")) - 5 * stored
    print(f"{kills} kills, {5 * stored} records, {copies} copies, nothing missing")
    assert copies > 0, "no copies: the kills did not fall where they should"


def test_a_killed_gateway_is_told_by_its_last_will(subscriber: Subscriber, make_site: MakeSite) -> None:
    site = make_site("will_delay_s = 1")

    def states() -> list[bytes]:
        return [arrival.value for arrival in subscriber.on(f"bedside/{GATEWAY}/state")]

    child = site.run()
    subscriber.wait(lambda: states() == [b"online"])
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    subscriber.wait(lambda: states() == [b"online", b"offline"])
    child = site.run()
    subscriber.wait(lambda: states()[2:] == [b"online"])
    assert site.end(child) == 0
    subscriber.wait(lambda: states()[3:] == [b"offline"])


def test_kafka_and_mqtt_do_not_wait_for_each_other(subscriber: Subscriber, make_site: MakeSite) -> None:
    site = make_site(tables=KAFKA_AWAY)
    site.store(mixed(3))
    child = site.run()
    until(lambda: delivered(site))
    subscriber.wait(lambda: len(subscriber.on("/observations")) == 12)
    status = site.status()
    assert status["streams"]["alerts"]["state"] == "waiting"
    assert (status["state"], status["backlog_records"]) == ("waiting", 15), "Kafka has none of them yet"
    assert site.end(child) == 0
    marks = Marks(site.data_dir)
    assert [marks.get(name) is None for name in ("mqtt_alerts", "mqtt_data", "alerts", "data")] == [
        False, False, True, True
    ]  # fmt: skip


def test_a_broker_that_is_away_is_told_and_called_again(
    broker: Mosquitto, subscriber: Subscriber, make_site: MakeSite
) -> None:
    site = make_site()
    broker.stop()
    site.store(mixed(2))
    child = site.run()
    until(lambda: "Connection refused" in site.status().get("mqtt", {}).get("detail", ""))
    # between two calls a way says that it is connecting; the whole says the worst of its ways, one look later
    until(lambda: site.status()["detail"].startswith(f"mqtt 127.0.0.1:{broker.port}: "))
    assert site.command("status").returncode == 1
    broker.start()
    until(lambda: delivered(site) and site.status()["state"] == "connected")
    assert site.end(child) == 0
    subscriber.wait(lambda: len(subscriber.on("/observations")) >= 8)


def test_pruning_waits_for_mqtt_and_rest() -> None:
    cloud = config_cloud.Cloud(
        mqtt=config_cloud.Mqtt(broker="b:1", security="plaintext"),
        rest=config_cloud.Rest(url="http://p:1", cluster="c"),
    )
    assert receivers(cloud) == {"alerts": ("mqtt_alerts", "rest_alerts"), "data": ("mqtt_data", "rest_data")}
    both = config_cloud.Cloud(kafka=config_cloud.Kafka(bootstrap="b:1", security="plaintext"), mqtt=cloud.mqtt)
    assert receivers(both) == {"alerts": ("alerts", "mqtt_alerts"), "data": ("data", "mqtt_data")}


def test_a_table_that_cannot_be_used_ends_with_78(make_site: MakeSite) -> None:
    done = make_site('username = "u"\npassword = "file:nothing"').command("run")
    assert done.returncode == 78
    assert "cloud.mqtt.password" in done.stderr
