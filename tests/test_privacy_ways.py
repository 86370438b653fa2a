"""Marked patients by MQTT and REST, as JSON and as Avro, and every file that the gateway leaves behind.

The same records go out twice, first as JSON, then as Avro with a schema registry: each receiver gets each record once
under its identity, and what an Avro decoder makes of it is what the JSON said.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cloud_site import until as wait_until
from mosquitto import Mosquitto, Subscriber
from rest_proxy import CLUSTER, RestProxy
from schema_registry import Registry as Served
from test_privacy_path import ESCAPED, KEYS, UMLAUT, Gateway, play, spoken_alarm, tells

from cloud_sync.pseudonym import SiteKey

Messages = dict[str, dict[str, Any]]  # by dedup


@pytest.fixture
def bedside(tmp_path: Path) -> Gateway:
    (tmp_path / "bedside").mkdir()
    return Gateway(tmp_path / "bedside")


class Receivers:
    """A subscriber and a proxy, and what has come to them since they were last asked."""

    def __init__(self, broker: Mosquitto) -> None:
        self.subscriber, self.proxy = Subscriber(broker.port, "#"), RestProxy()
        self.tables = (
            f'[cloud.mqtt]\nbroker = "127.0.0.1:{broker.port}"\nsecurity = "plaintext"\n\n'
            f'[cloud.rest]\nurl = "{self.proxy.url}"\ncluster = "{CLUSTER}"'
        )

    def take(self, decode: Any) -> tuple[dict[str, Messages], list[str]]:
        """Messages by receiver, and every word around them: topics, keys, headers."""
        arrivals, records = list(self.subscriber.arrivals), list(self.proxy.records)
        self.subscriber.arrivals.clear()
        self.proxy.records.clear()
        words = [word for each in arrivals for word in (each.topic, *each.headers, *each.headers.values())]
        words += [word for each in records for word in (each.topic, each.key, *each.headers, *each.headers.values())]
        found: dict[str, Messages] = {"mqtt": {}, "rest": {}}
        for name, some in (("mqtt", arrivals), ("rest", records)):
            for each in some:
                if "dedup" in each.headers and each.headers["schema"] != "gateway_status":
                    assert each.headers["dedup"] not in found[name], "twice"
                    found[name][each.headers["dedup"]] = decode(each.value)
        return found, words

    def close(self) -> None:
        self.subscriber.close()
        self.proxy.close()


def delivered(gateway: Gateway) -> bool:
    try:
        status = json.loads((gateway.data_dir / "cloud-sync" / "status.json").read_bytes())
    except FileNotFoundError:
        return False
    return all(
        status[way]["state"] == "connected" and status[way]["backlog_records"] == 0
        and min(status[way]["forwarded"].values()) > 0 for way in ("mqtt", "rest")
    )  # fmt: skip


def forward(gateway: Gateway, config: Path) -> str:
    with gateway.forwarding(config) as log:
        wait_until(lambda: delivered(gateway), deadline_s=45)
        said = gateway.command("cloud_sync", "status", "--config", str(config))
        said += gateway.command("edge_agent", "doctor", "--config", str(config))
    return said + log.read_text()


async def test_no_identifier_leaves_by_mqtt_or_rest_in_either_encoding_or_lies_in_a_file(
    bedside: Gateway, broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bedside.set_key("p1")
    receivers = Receivers(broker)
    privacy = '[privacy]\nkey = "file:site-key"'
    try:
        config = bedside.write(privacy, receivers.tables)
        tells("the control socket", await play(bedside, config, spoken_alarm(), commands=False))
        exported = bedside.command("edge_agent", "buffer", "export", "--config", str(config))
        said = await asyncio.to_thread(forward, bedside, config)
        found, words = receivers.take(json.loads)
        for folder in ("cloud-sync", "marks"):
            shutil.rmtree(bedside.data_dir / folder)
        with Served() as served:
            avro = f'[cloud.encoding]\nformat = "avro"\nregistry = "{served.url}"'
            config = bedside.write(privacy, avro, receivers.tables)
            said += await asyncio.to_thread(forward, bedside, config)
            again, more = receivers.take(served.decode)
    finally:
        receivers.close()
    names = {SiteKey("p1", KEYS["p1"]).pseudonym(each) for each in (UMLAUT, ESCAPED)}
    for way in ("mqtt", "rest"):
        assert names <= {message.get("patient") for message in found[way].values()}, "patients come as pseudonyms"
        assert len(found[way]) > 60 and found[way] == found["rest"]
        assert again[way].keys() == found[way].keys(), "the same records under the same identities"
        for dedup, message in found[way].items():
            _agrees(again[way][dedup], message)
    tells("a message", json.dumps([found, again], ensure_ascii=False, default=str))
    tells("a topic, key or header", "\n".join(words + more))
    tells("the forwarder or the doctor", said)
    tells("the agent's log", "\n".join(record.getMessage() for record in caplog.records))
    assert exported.count("\n") > 60
    tells("an export of the buffer", exported)
    looked = 0
    for path in bedside.folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            tells(f"the file {path.name}", path.read_bytes().decode("utf-8", "replace"))
            looked += 1
    assert looked > 8


def _agrees(avro: dict[str, Any], said: dict[str, Any]) -> None:
    """Everything the JSON says the Avro says, too; Avro gives what JSON leaves out as null or as its default."""
    for key, value in said.items():
        if key == "item":  # in Avro the name of the union's branch
            continue
        if isinstance(value, dict):
            _agrees(avro[key], value)
        elif isinstance(avro[key], datetime):
            assert avro[key].isoformat(timespec="milliseconds").replace("+00:00", "Z") == value, key
        elif isinstance(value, float):
            assert avro[key] == pytest.approx(value), key
        else:
            assert avro[key] == value, key
