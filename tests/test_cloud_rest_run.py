"""From the sealed buffer through a REST proxy, with cloud-sync as its own process."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cloud_site import ReceiverSite, Site, alarm, observation, sealed, until
from rest_proxy import CLIENT, CLUSTER, SECRET, Record, RestProxy, Whole

from edge_agent import records
from edge_agent.buffer import Marks

REST = '[cloud.rest]\nurl = "{url}"\ncluster = "{cluster}"\ntimeout_s = 3\n{more}\n'
BEDS = ("ICU-1", "ICU-2")

MakeSite = Callable[..., Site]


@pytest.fixture
def proxy() -> Iterator[RestProxy]:
    made = RestProxy()
    yield made
    made.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    sites: list[Site] = []

    def make(proxy: RestProxy, more: str = "") -> Site:
        folder = tmp_path / f"site-{len(sites)}"
        folder.mkdir()
        (folder / "secret").write_text(SECRET)
        sites.append(ReceiverSite(folder, REST.format(url=proxy.url, cluster=CLUSTER, more=more), ""))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def arrived(proxy: RestProxy, bed: str, topic: str) -> list[str]:
    return [record.headers["dedup"] for record in proxy.on(topic) if record.key == bed]


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
    return site.status().get("rest", {}).get("backlog_records") == 0


def test_every_record_arrives_once_in_order_and_status_tells(proxy: RestProxy, make_site: MakeSite) -> None:
    site = make_site(proxy)
    site.store(mixed(30))
    child = site.run()
    until(lambda: delivered(site) and site.status()["state"] == "connected")
    told = site.status()["rest"]
    assert told["forwarded"] == {"alerts": 30, "data": 120}
    assert told["guarantee"] == "at least once"
    shown = site.command("status")
    assert shown.returncode == 0
    assert "REST           connected, sent 30 alerts, 120 data records, refused 0, waiting 0 records" in shown.stdout
    proxy.wait(lambda: proxy.on("status"))
    assert site.end(child) == 0
    for bed in BEDS:
        assert arrived(proxy, bed, "observations") == sealed(site, "data")[bed]
        assert arrived(proxy, bed, "alerts") == sealed(site, "alerts")[bed]
    assert Marks(site.data_dir).get("rest_alerts") is not None
    assert "HTTP Request" not in site.log()


@pytest.mark.parametrize("answered", [False, True], ids=["before the answer", "behind it"])
def test_killed_again_and_again_with_a_proxy_in_trouble_it_misses_nothing(
    answered: bool, proxy: RestProxy, make_site: MakeSite
) -> None:
    """A kill falls where records are in Kafka: before cloud-sync has heard of it, or soon after."""
    chance = random.Random(7)
    site = make_site(proxy, "batch_records = 20")
    site.store(mixed(100))
    stored = 100
    running = [site.run()]
    trouble = iter([None, Whole(503), None, Whole(429, {"Retry-After": "1"}), Whole(200, cut=40), None, Whole(500)] * 3)
    due = [0]

    def kill() -> None:
        if due[0] and len(proxy.records) >= due[0]:
            due[0] = 0
            running[-1].send_signal(signal.SIGKILL)
            if not answered:
                running[-1].wait(30)

    proxy.delivered = kill
    for round_ in range(6):
        due[0] = len(proxy.records) + chance.randrange(5, 60)
        if round_ % 2:
            proxy.whole = lambda found: next(trouble, None)
        running[-1].wait(60)
        proxy.whole = lambda found: None
        site.store(mixed(20, stored))
        stored += 20
        running.append(site.run())
    until(lambda: site.status().get("pid") == running[-1].pid and delivered(site))
    assert site.end(running[-1]) == 0
    for stream, topic, each in (("data", "observations", 4), ("alerts", "alerts", 1)):
        names = sealed(site, stream)
        assert sum(map(len, names.values())) == stored * each
        for bed in BEDS:
            assert first_seen(arrived(proxy, bed, topic)) == names[bed], f"{bed} {topic}"
    assert len(proxy.on("observations")) > 4 * stored, "no copies: the kills did not fall where they should"


def test_killed_at_any_moment_while_the_proxy_comes_and_goes_it_misses_nothing(
    proxy: RestProxy, make_site: MakeSite, request: pytest.FixtureRequest
) -> None:
    """Kills by the clock, not by what arrives; the proxy hangs up on requests under way and its port is closed."""
    chance = random.Random(8)
    site = make_site(proxy, "batch_records = 10")
    stored = outages = 0
    running = site.run()
    for kill in range(9):
        site.store(mixed(20, stored))
        stored += 20
        seen = len(proxy.records)
        proxy.wait(lambda proxy=proxy, seen=seen: len(proxy.records) > seen)
        moment = time.monotonic() + chance.uniform(0.0, 0.1)
        until(lambda moment=moment: time.monotonic() >= moment)
        away = kill % 3 == 2
        if away:
            proxy.close()
            outages += 1
        running.send_signal(signal.SIGKILL)
        running.wait(30)
        running = site.run()
        if away:
            until(lambda running=running: site.status().get("pid") == running.pid)
            until(lambda: site.status()["state"] == "waiting" and bool(site.status()["rest"]["detail"]))
            proxy = RestProxy(proxy.port, records=proxy.records)
            request.addfinalizer(proxy.close)
    until(lambda: site.status().get("pid") == running.pid and delivered(site))
    assert site.end(running) == 0
    for stream, topic, each in (("data", "observations", 4), ("alerts", "alerts", 1)):
        names = sealed(site, stream)
        assert sum(map(len, names.values())) == stored * each
        for bed in BEDS:
            assert first_seen(arrived(proxy, bed, topic)) == names[bed], f"{bed} {topic}"
    copies = len(proxy.on("observations")) + len(proxy.on("alerts")) - 5 * stored
    print(f"9 kills, {outages} outages, {5 * stored} records, {copies} copies, nothing missing")
    assert copies > 0, "no copies: the kills did not fall where they should"


def test_a_record_that_is_refused_is_counted_told_by_identity_and_does_not_stop_the_next(
    proxy: RestProxy, make_site: MakeSite
) -> None:
    seen: list[Record] = []

    def answer(record: Record) -> int:
        seen.append(record)
        return 42206 if record.headers["schema"] == "observation" and len(proxy.on("observations")) == 3 else 200

    refused: list[str] = []

    def once(record: Record) -> int:
        if not refused and answer(record) != 200:
            refused.append(record.headers["dedup"])
            return 42206
        return 200

    proxy.answer = once
    site = make_site(proxy)
    site.store([[observation(n, patient="MRN-77")] for n in range(6)])
    child = site.run()
    until(lambda: delivered(site) and site.status()["rest"]["forwarded"]["data"] == 5)
    told = site.status()["rest"]
    assert told["dropped"] == {"alerts": 0, "data": 1}
    assert told["last_drop"].startswith(f"{refused[0]}: ")
    assert site.end(child) == 0
    assert f"event=dropped record={refused[0]}" in site.log()
    assert "MRN-77" not in site.log() + str(told)


def test_tokens_and_a_proxy_that_comes_back(make_site: MakeSite) -> None:
    proxy = RestProxy(tokens=True)
    login = f'token_url = "{proxy.url}/token"\nclient_id = "{CLIENT}"\nclient_secret = "file:secret"'
    site = make_site(proxy, login)
    site.store(mixed(5))
    child = site.run()
    until(lambda: delivered(site) and site.status()["rest"]["forwarded"] == {"alerts": 5, "data": 20})
    proxy.close()
    site.store(mixed(5, 5))
    until(lambda: site.status()["rest"]["state"] == "waiting")
    assert site.status()["detail"].startswith(f"rest 127.0.0.1:{proxy.port}: ")
    back = RestProxy(proxy.port, tokens=True)
    try:
        until(lambda: delivered(site) and site.status()["rest"]["forwarded"] == {"alerts": 10, "data": 40})
        assert len(back.on("observations")) == 20, "with a token of its own"
        assert site.end(child) == 0
    finally:
        back.close()
    assert not any(secret in site.log() for secret in (SECRET, "token-0"))


def test_a_table_that_cannot_be_used_ends_with_78(proxy: RestProxy, make_site: MakeSite) -> None:
    done = make_site(proxy, 'ca = "nothing.pem"').command("run")
    assert done.returncode == 78
    assert "cloud.rest.ca" in done.stderr
