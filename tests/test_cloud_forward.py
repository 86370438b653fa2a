"""From the sealed buffer to a real Kafka, through the forwarder as its own process."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cloud_site import GATEWAY, Site, alarm, consume, count, identities, observation, on_topic, until
from jsonschema import Draft202012Validator
from kafka_broker import Authority, Broker

from cloud_sync import encode
from cloud_sync.embedded import Arrivals
from edge_agent import records

MakeSite = Callable[..., Site]
TOTAL = 3_000  # records of an ordinary test: a dozen blocks


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    sites: list[Site] = []

    def make(kafka: str, prefix: str = "site") -> Site:
        folder = tmp_path / f"site-{len(sites)}"
        folder.mkdir()
        sites.append(Site(folder, kafka, prefix))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"t{random.SystemRandom().randrange(1 << 32):08x}"


def plain(broker: Broker) -> str:
    return f'bootstrap = "{broker.bootstrap}"\nsecurity = "plaintext"'


def batches(total: int, beds: int = 4, size: int = 50) -> Iterator[list[records.Entry]]:
    for start in range(0, total, size):
        yield [observation(number, f"ICU-{number % beds}") for number in range(start, min(start + size, total))]


def numbers(messages: list[dict[str, object]]) -> list[int]:
    return [message["at_ns"] // 1_000 for message in messages]  # type: ignore[operator]


def in_order_per_bed(messages: list[dict[str, object]]) -> bool:
    """Whether the first appearances keep the order of each bed, copies aside."""
    last: dict[object, int] = {}
    seen: set[int] = set()
    for message, number in zip(messages, numbers(messages), strict=True):
        if number in seen:
            continue
        seen.add(number)
        if number < last.get(message["bed"], -1):
            return False
        last[message["bed"]] = number
    return True


@pytest.mark.kafka
def test_what_was_sealed_arrives_value_by_value(kafka: Broker, prefix: str, make_site: MakeSite) -> None:
    site = make_site(plain(kafka), prefix)
    wave = records.Waveform("pleth", 75.0, b"\x01\x00\x02\x00\x00\x80", 0.5, 1.0, 7_000)
    others = [
        records.Entry("ICU-1", "serial", "", wave),
        records.Entry("", "", "", records.DeviceStatus("link", "lost", 9_000)),
        records.Entry("ICU-2", "adt", "MRN-1", records.PatientEvent("A01", "MRN-1", "ICU^^2", 9_500)),
        alarm(1),
    ]
    sent = [entry for batch in batches(TOTAL) for entry in batch]
    site.store([*batches(TOTAL), others])
    child = site.run()
    found = consume(
        kafka.bootstrap,
        prefix,
        lambda found: (
            count(found, "observations") >= TOTAL
            and count(found, "alerts") == 2
            and count(found, "waveforms") == 1
            and count(found, "status") >= 2
        ),
    )
    observed = on_topic(found, "observations")
    assert len(observed) == TOTAL, "no copies without trouble"
    assert in_order_per_bed(observed)
    by_number = {message["at_ns"] // 1_000: message for message in observed}
    for number, entry in enumerate(sent):
        message = by_number[number]
        assert message["record"] == records.shape(entry.record)
        assert (message["bed"], message["source"], message["gateway"]) == (entry.bed, entry.source, GATEWAY)
        assert (message["record"]["value"] is None) == (number % 7 == 0)
    (waveform,) = on_topic(found, "waveforms")
    assert waveform["record"]["samples"] == "AQACAACA"
    patient = next(m for m in on_topic(found, "alerts") if m["record"]["item"] == "patient")
    assert patient["patient"] == "MRN-1"
    assert all("patient" not in message for message in observed)
    partitions: dict[str, set[int]] = {}
    for arrival in found:
        message = json.loads(arrival.value)
        identity = f"{message['gateway']}/{message['instance']}/{message['sequence']}"
        assert arrival.headers["dedup"] == identity
        assert arrival.headers["schema-version"] == "1"
        assert arrival.headers["schema"] == message["record"]["item"]
        assert arrival.key == (message["bed"] or GATEWAY)
        Draft202012Validator(encode.schema(arrival.headers["schema"])).validate(message)
        partitions.setdefault(f"{arrival.topic} {arrival.key}", set()).add(arrival.partition)
    assert all(len(used) == 1 for used in partitions.values())
    assert "gateway_status" in {message["record"]["item"] for message in on_topic(found, "status")}
    until(lambda: site.status()["backlog_records"] == 0 and site.status()["state"] == "connected")
    assert site.command("status").returncode == 0
    assert site.end(child) == 0
    stopped = site.status()
    assert (stopped["state"], stopped["forwarded"]) == ("stopped", {"alerts": 2, "data": TOTAL + 2})
    again = site.run()
    until(lambda: site.status().get("pid") == again.pid and site.status()["state"] == "connected")
    assert site.end(again) == 0
    assert site.status()["forwarded"] == {"alerts": 0, "data": 0}, "the marks were kept"
    words = site.log()
    assert "Not a medical device" in words
    assert "MRN-1" not in words


@pytest.mark.kafka
def test_alerts_overtake_a_backlog_of_data(kafka: Broker, prefix: str, make_site: MakeSite) -> None:
    total = 60_000
    for name in encode.TOPICS:
        kafka.create(f"{prefix}.{name}", message_timestamp_type="LogAppendTime")
    site = make_site(plain(kafka), prefix)
    site.store([*batches(total, size=500), [alarm(n) for n in range(20)]])  # the alerts are the newest of all
    child = site.run()
    found = consume(
        kafka.bootstrap,
        prefix,
        lambda found: count(found, "observations") >= total and count(found, "alerts") >= 20,
    )
    assert site.end(child) == 0
    alerts_at = max(arrival.timestamp_ms for arrival in found if arrival.topic == f"{prefix}.alerts")
    ahead = sum(arrival.timestamp_ms <= alerts_at for arrival in found if arrival.topic == f"{prefix}.observations")
    assert ahead < total / 2


@pytest.mark.kafka
def test_a_broker_that_comes_later_gets_everything(own_kafka: Broker, make_site: MakeSite) -> None:
    site = make_site(plain(own_kafka))
    site.store([*batches(TOTAL), [alarm(1)]])
    child = site.run()
    until(lambda: site.status().get("state") == "waiting" and "refused" in site.status()["detail"])
    assert site.status()["backlog_records"] == TOTAL + 1
    assert site.status()["backlog_oldest_s"] >= 0
    shown = site.command("status")
    assert shown.returncode == 1
    assert "waiting" in shown.stdout
    own_kafka.start()
    found = consume(
        own_kafka.bootstrap,
        "site",
        lambda found: count(found, "observations") >= TOTAL and count(found, "alerts") >= 1,
    )
    assert sorted(numbers(on_topic(found, "observations"))) == list(range(TOTAL))
    until(lambda: site.status()["state"] == "connected" and site.status()["backlog_records"] == 0)
    assert site.end(child) == 0


@pytest.mark.kafka
def test_a_broker_killed_on_the_way_loses_nothing(own_kafka: Broker, make_site: MakeSite) -> None:
    total = 40_000
    own_kafka.start()
    site = make_site(plain(own_kafka))
    site.store(batches(total, size=500))
    child = site.run()
    until(lambda: site.status().get("forwarded", {"data": 0})["data"] > 0)
    own_kafka.kill()
    site.store([observation(number) for number in range(start, start + 500)] for start in (total, total + 500))
    until(lambda: site.status()["state"] == "waiting")
    own_kafka.start()
    total += 1_000
    found = consume(own_kafka.bootstrap, "site", lambda found: len(identities(found, "observations")) >= total)
    observed = on_topic(found, "observations")
    assert set(numbers(observed)) == set(range(total))
    assert in_order_per_bed(observed)
    assert site.end(child) == 0


@pytest.mark.kafka
def test_a_forwarder_killed_again_and_again_loses_nothing(kafka: Broker, prefix: str, make_site: MakeSite) -> None:
    total = 60_000
    site = make_site(plain(kafka), prefix)
    site.store([*batches(total, size=500), *([alarm(n)] for n in range(50))])
    chance = random.Random(11)
    arrivals = Arrivals(kafka.bootstrap, prefix)
    so_far: set[str] = set()
    for kill in range(1, 7):  # each falls into the middle of the work, whatever the machine's speed
        child = site.run()
        wanted = total * (kill - chance.random()) / 7
        until(
            lambda wanted=wanted: len(so_far) >= wanted,
            lambda: so_far.update(arrival.headers["dedup"] for arrival in arrivals.poll(0.05)),
        )
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    arrivals.close()
    child = site.run()
    found = consume(
        kafka.bootstrap,
        prefix,
        lambda found: len(identities(found, "observations")) >= total and len(identities(found, "alerts")) >= 50,
    )
    observed = on_topic(found, "observations")
    assert set(numbers(observed)) == set(range(total))
    assert len(identities(found, "observations")) == total, "one identity a record, however often it was sent"
    assert in_order_per_bed(observed)
    assert {message["record"]["alert_id"] for message in on_topic(found, "alerts")} == {f"alert-{n}" for n in range(50)}
    until(lambda: site.status().get("backlog_records") == 0)
    assert site.end(child) == 0


@pytest.mark.kafka
def test_a_forwarder_killed_before_a_silent_broker_loses_nothing(own_kafka: Broker, make_site: MakeSite) -> None:
    """The broker takes bytes and answers nothing: what was handed over then must not count as delivered."""
    total = 40_000
    own_kafka.start()
    site = make_site(plain(own_kafka))
    site.store(batches(1_000, size=500))
    child = site.run()
    until(lambda: site.status().get("forwarded", {"data": 0})["data"] == 1_000)
    own_kafka.pause()
    site.store([observation(n) for n in range(start, start + 500)] for start in range(1_000, total, 500))
    site.store([[alarm(n)] for n in range(20)])
    written = {site.status()["utc"]}
    until(lambda: written.add(site.status()["utc"]) or len(written) > 3)  # longer than any pace of marking
    delivered = site.status()["forwarded"]
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    own_kafka.kill()
    own_kafka.start()
    child = site.run()
    found = consume(
        own_kafka.bootstrap,
        "site",
        lambda found: len(identities(found, "observations")) >= total and len(identities(found, "alerts")) >= 20,
    )
    assert delivered == {"alerts": 0, "data": 1_000}, "the broker was silent: the test does not test"
    assert set(numbers(on_topic(found, "observations"))) == set(range(total))
    assert in_order_per_bed(on_topic(found, "observations"))
    assert site.end(child) == 0


@pytest.mark.kafka
def test_mutual_tls_and_a_broker_of_another_authority(
    kafka: Broker, prefix: str, tmp_path: Path, make_site: MakeSite
) -> None:
    other = Authority(tmp_path / "other", "somebody else")
    secure = (
        f'bootstrap = "{kafka.mtls}"\nsecurity = "mtls"\ncertificate = "{kafka.client.certificate}"\n'
        f'private_key = "{kafka.client.private_key}"\nca = '
    )
    site = make_site(f'{secure}"{other.path}"', prefix)
    site.store(batches(200))
    child = site.run()
    until(lambda: site.status().get("state") == "fatal")
    shown = site.command("status")
    assert shown.returncode == 1
    assert "certificate verify failed" in shown.stdout
    assert site.end(child) == 0
    site.write(f'{secure}"{kafka.authority.path}"')
    child = site.run()
    found = consume(kafka.bootstrap, prefix, lambda found: count(found, "observations") >= 200)
    assert sorted(numbers(on_topic(found, "observations"))) == list(range(200))
    assert site.end(child) == 0


@pytest.mark.kafka
def test_a_record_that_no_broker_takes_is_dropped_and_named(kafka: Broker, prefix: str, make_site: MakeSite) -> None:
    noise = random.Random(3).randbytes(2 << 20)
    huge = records.Entry("ICU-1", "serial", "", records.Waveform("ecg_ii", 500.0, noise, 1.0, 0.0, 1_000))
    site = make_site(plain(kafka), prefix)
    site.store([[observation(1)], [huge], [observation(2)]])
    child = site.run()
    until(lambda: site.status().get("backlog_records") == 0 and site.status()["forwarded"]["data"] == 2)
    until(lambda: site.status()["state"] == "connected")  # the stream of alerts may still be asking its broker
    status = site.status()
    assert status["dropped"] == {"alerts": 0, "data": 1}
    assert status["last_drop"].startswith(f"{GATEWAY}/")
    assert "size too large" in status["last_drop"].lower()
    assert site.end(child) == 0
    assert f"event=dropped record={status['last_drop'].partition(':')[0]}" in site.log()
    found = consume(kafka.bootstrap, prefix, lambda found: count(found, "observations") >= 2)
    assert numbers(on_topic(found, "observations")) == [1, 2]


def test_memory_does_not_follow_the_backlog(make_site: MakeSite) -> None:
    """Nobody answers, and ten times the backlog must not cost more than what is under way at most."""
    sizes = {}
    for total in (20_000, 200_000):
        site = make_site('bootstrap = "127.0.0.1:9"\nsecurity = "plaintext"')  # the discard port: nobody listens
        site.store(batches(total, size=1_000))
        child = site.run()
        until(lambda site=site, total=total: site.status().get("backlog_records") == total)
        written = {site.status()["utc"]}
        until(lambda site=site, written=written: written.add(site.status()["utc"]) or len(written) > 3)
        sizes[total] = psutil.Process(child.pid).memory_info().rss
        assert site.end(child) == 0
    # in memory, 180,000 more records of 0.4 kB would be 72 MB; what is under way and the allocator's arenas vary by 10
    assert sizes[200_000] - sizes[20_000] < 24 << 20, sizes
    assert sizes[200_000] < 120 << 20, sizes


def test_one_forwarder_for_a_data_folder(make_site: MakeSite) -> None:
    site = make_site('bootstrap = "127.0.0.1:9"\nsecurity = "plaintext"')
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid)
    second = site.command("run")
    assert second.returncode == 75
    assert "held by another cloud-sync" in second.stderr
    assert site.end(child) == 0


def test_a_key_that_is_missing_is_told_and_waited_for(make_site: MakeSite) -> None:
    site = make_site('bootstrap = "127.0.0.1:9"\nsecurity = "plaintext"')
    key = site.key.read_bytes()
    site.key.unlink()
    child = site.run()
    until(lambda: site.status().get("state") == "fatal")
    assert str(site.key) in site.status()["detail"]
    assert site.status()["backlog_records"] is None
    site.key.write_bytes(key)
    site.key.chmod(0o400)
    until(lambda: site.status()["state"] == "waiting")
    assert site.end(child) == 0


@pytest.mark.parametrize(
    ("kafka", "words"),
    [
        ("", "cloud.kafka.bootstrap: missing"),
        (
            'bootstrap = "b:1"\nsecurity = "plaintext"\noptions = {"no.such" = 1}',
            "cloud.kafka.options.no.such: No such",
        ),
        ('bootstrap = "b:1"\nsecurity = "tls"\nca = "absent.pem"', "cloud.kafka.ca: "),
    ],
)
def test_a_wrong_configuration_ends_with_78(kafka: str, words: str, make_site: MakeSite) -> None:
    done = make_site(kafka).command("run")
    assert done.returncode == 78
    assert words in done.stderr


def test_a_configuration_without_a_cloud_ends_with_78(make_site: MakeSite) -> None:
    site = make_site("")
    site.path.write_text(site.path.read_text().partition("[cloud.kafka]")[0])
    done = site.command("run")
    assert done.returncode == 78
    assert "cloud.kafka: missing" in done.stderr


def test_status_tells_a_forwarder_that_died(make_site: MakeSite) -> None:
    site = make_site('bootstrap = "127.0.0.1:9"\nsecurity = "plaintext"')
    never = site.command("status")
    assert (never.returncode, never.stdout) == (1, "")
    assert "has not run here" in never.stderr
    child = site.run()
    until(lambda: site.status().get("pid") == child.pid)
    child.kill()
    child.wait(30)
    dead = site.command("status", "--json")
    assert dead.returncode == 1
    assert json.loads(dead.stdout)["state"] == "dead"
