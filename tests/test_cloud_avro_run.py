"""Avro through cloud-sync as its own process, while its registry comes and goes."""

from __future__ import annotations

import socket
from pathlib import Path

from cloud_site import Site, alarm, consume, count, observation, until
from schema_registry import Registry as Served

from cloud_sync.embedded import EmbeddedKafka
from edge_agent import records


def settings(bootstrap: str, port: int) -> str:
    return (
        f'bootstrap = "{bootstrap}"\nsecurity = "plaintext"\nexactly_once = false\n'
        f'[cloud.encoding]\nformat = "avro"\nregistry = "http://127.0.0.1:{port}"\n'
    )


def test_nothing_is_lost_or_sent_otherwise_while_the_registry_is_away(tmp_path: Path) -> None:
    with EmbeddedKafka() as kafka, socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        site = Site(tmp_path, settings(kafka.bootstrap, port), "avro")
        try:
            held.close()  # nobody answers there now
            sent = [observation(number, patient="MRN-1") for number in range(1, 60)]
            site.store([sent[:30], [alarm(100)], sent[30:]])
            child = site.run()
            until(lambda: "schema registry" in str(site.status().get("streams", {}).get("data", {}).get("detail", "")))
            until(lambda: "schema registry" in site.status()["streams"]["alerts"]["detail"])
            status = site.status()
            assert (status["state"], status["forwarded"]) == ("waiting", {"alerts": 0, "data": 0})
            with Served(port=port) as served:
                until(lambda: site.status()["state"] == "connected" and site.status()["backlog_records"] == 0)
                assert site.end(child) == 0
            again = site.run()  # ids are asked for at the first block, and there is none: away is no trouble
            until(lambda: site.status().get("pid") == again.pid and site.status()["state"] == "connected")
            found = consume(kafka.bootstrap, "avro", lambda found: count(found, "observations") >= 59)
            assert site.end(again) == 0
            assert sum(site.status()["dropped"].values()) == 0
        finally:
            site.close()
        messages = {topic: [served.decode(one.value) for one in found if one.topic == f"avro.{topic}"]
                    for topic in ("observations", "alerts")}  # fmt: skip
        values = {message["at_ns"]: message["record"]["value"] for message in messages["observations"]}
        assert values == {e.record.at_ns: e.record.value for e in sent if isinstance(e.record, records.Observation)}
        assert {message["patient"] for message in messages["observations"]} == {"MRN-1"}
        assert [message["record"]["alert_id"] for message in messages["alerts"]] == ["alert-100"]


def test_settings_that_do_not_work_end_the_start(tmp_path: Path) -> None:
    site = Site(tmp_path, settings("127.0.0.1:9", 9) + 'registry_ca = "nowhere.pem"\n', "avro")
    done = site.command("run")
    assert done.returncode == 78 and "registry_ca" in done.stderr and "site.toml:" in done.stderr
    more = 'registry_username = "gw"\nregistry_password = "file:nowhere"\n'
    site.write(settings("127.0.0.1:9", 9) + more)
    done = site.command("run")
    assert done.returncode == 78 and "registry_password" in done.stderr and "nowhere" in done.stderr
    site.write(settings("127.0.0.1:9", 9).replace("registry =", "# registry ="))
    done = site.command("run")
    assert done.returncode == 78 and 'format "avro" needs registry' in done.stderr
    site.write(settings("127.0.0.1:9", 9).replace("http://", "http://gw:hunter2@"))
    done = site.command("run")
    assert done.returncode == 78 and "registry_username" in done.stderr and "hunter2" not in done.stderr
    site.write(settings("127.0.0.1:9", 9))
    site.path.write_text(site.path.read_text().replace('identifiers = "clear"', 'key = "file:nowhere"'))
    done = site.command("run")
    assert done.returncode == 78 and "privacy.key" in done.stderr and "docs/privacy.md" in done.stderr
