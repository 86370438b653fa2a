"""From the sealed buffer to an alert manager, through cloud-sync as its own process; and what may be pruned."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alert_manager import GONE, AlertManager, reply
from buffer_rig import KEK, FakeClock, Rig
from cloud_site import GATEWAY, Site, observation, until

from cloud_sync.pcd04 import control_id
from drivers.hl7.decoder import Hl7
from edge_agent import config_cloud, records
from edge_agent.buffer import Marks, Position, Reader, load_kek, receivers

MakeSite = Callable[..., Site]
MANAGER = '[cloud.alert_manager]\nlink = "mllp://127.0.0.1:{port}"\nreply_s = {reply_s}\n'
KAFKA_AWAY = '[cloud.kafka]\nbootstrap = "127.0.0.1:9"\nsecurity = "plaintext"\n'  # the discard port: nobody listens


class AlertSite(Site):
    """A site whose receivers are the tables given."""

    def write(self, tables: str) -> None:
        super().write("")
        self.path.write_text(self.path.read_text().partition("[cloud.kafka]")[0] + tables)


@pytest.fixture
def manager() -> Iterator[AlertManager]:
    made = AlertManager()
    yield made
    made.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    sites: list[Site] = []

    def make(port: int, reply_s: float = 30.0, more: str = "") -> Site:
        folder = tmp_path / f"site-{len(sites)}"
        folder.mkdir()
        sites.append(AlertSite(folder, MANAGER.format(port=port, reply_s=reply_s) + more, ""))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def alarm(number: int, **other: object) -> records.Entry:
    """A start that tells its number; it happened just now."""
    fields = {
        "alert_id": f"alert-{number}", "condition": "spo2_low", "kind": "physiological", "priority": "high",
        "event": "start", "state": "On", "at_ns": time.monotonic_ns(), "text": "SpO2 low", "vital": "spo2",
        "value": 82.0, "limit": "below 90",
    }  # fmt: skip
    event = records.AlarmEvent(**{**fields, **other})  # type: ignore[arg-type]
    return records.Entry("ICU-1", "hl7@test", "MRN-77", event)


def read(message: bytes) -> records.DeviceAlarm:
    item = Hl7(acknowledge=False).feed(records.Chunk(1, b"\x0b" + message + b"\x1c\r"))[0]
    assert isinstance(item, records.DeviceAlarm)
    return item


def alerts(manager: AlertManager) -> list[str]:
    return [read(message).alert_id for message in manager.messages]


def expected(*numbers: int) -> list[str]:
    return [f"alert-{number}^{GATEWAY}" for number in numbers]


def without_copies(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def sealed(site: Site) -> list[str]:
    """The control identifier of every record in the alerts file, in order."""
    reader = Reader(site.data_dir, load_kek(f"file:{site.key}"))
    try:
        blocks = reader.read("alerts", None, 10_000)
    finally:
        reader.close()
    return [
        control_id(f"{GATEWAY}/{block.instance}/{sequence}")
        for block in blocks
        for sequence in range(block.first, block.first + block.count)
    ]


def test_alarms_arrive_in_order_with_nothing_but_alarms_and_only_once(
    manager: AlertManager, make_site: MakeSite
) -> None:
    site = make_site(manager.port)
    ended = alarm(1, event="end", state="Off")
    technical = alarm(2, kind="technical", condition="source_lost", vital="", value=None, limit="")
    pause = alarm(3, alert_id="", event="audio_pause", state="Off")
    site.store([[observation(1)], [alarm(0), alarm(1)], [technical], [pause], [ended], [alarm(4)]])
    child = site.run()
    manager.wait(lambda: len(manager.messages) >= 4)
    until(lambda: site.status().get("alert_manager", {}).get("backlog_records") == 0)
    status = site.status()
    told = status["alert_manager"]
    assert (told["state"], told["detail"], told["sent"], told["refused"]) == ("connected", "", 4, 0)
    assert (status["state"], status["forwarded"], status["backlog_records"]) == ("connected", {}, 0)
    shown = site.command("status")
    assert shown.returncode == 0
    assert "alert manager  connected, sent 4 alarm messages, refused 0, waiting 0 records" in shown.stdout
    assert site.end(child) == 0
    again = site.run()
    until(lambda: site.status().get("pid") == again.pid and site.status()["state"] == "connected")
    assert site.end(again) == 0
    found = [read(message) for message in manager.messages]
    assert [(one.alert_id, one.phase) for one in found] == list(
        zip(expected(0, 1, 1, 4), ["start", "start", "end", "start"], strict=True)
    )
    assert {(one.location, one.subject, one.event) for one in found} == {("^^ICU-1", "MRN-77", "MDC_EVT_LO_VAL_LT_LIM")}
    assert manager.controls == [sealed(site)[number] for number in (0, 1, 4, 5)]
    assert "MRN-77" not in site.log()


def test_a_lost_acknowledgement_brings_the_same_control_identifier_again(
    manager: AlertManager, make_site: MakeSite
) -> None:
    lost = iter([GONE])
    manager.answer = lambda sent: next(lost, reply(sent)) if read(sent).alert_id == expected(2)[0] else reply(sent)
    site = make_site(manager.port)
    site.store([[alarm(n)] for n in range(5)])
    child = site.run()
    manager.wait(lambda: len(manager.messages) >= 6)
    until(lambda: site.status()["alert_manager"]["sent"] == 5)
    assert site.end(child) == 0
    assert alerts(manager) == expected(0, 1, 2, 2, 3, 4)
    names = manager.controls
    assert names[2] == names[3]
    assert len(set(names)) == 5


def test_silence_is_waited_out_and_then_sent_again(manager: AlertManager, make_site: MakeSite) -> None:
    silent = iter([None, None])
    manager.answer = lambda sent: next(silent, reply(sent))
    site = make_site(manager.port, reply_s=0.3)
    site.store([[alarm(n)] for n in range(3)])
    child = site.run()
    manager.wait(lambda: len(manager.messages) >= 5)
    assert site.end(child) == 0
    assert alerts(manager) == expected(0, 0, 0, 1, 2)
    assert len(set(manager.controls)) == 3
    assert "no acknowledgement within 0.3 s" in site.log()


def test_a_refused_alarm_is_dropped_told_and_does_not_stop_the_next(manager: AlertManager, make_site: MakeSite) -> None:
    manager.answer = lambda sent: reply(sent, "AR" if read(sent).alert_id == expected(1)[0] else "AA")
    site = make_site(manager.port)
    site.store([[alarm(n)] for n in range(3)])
    child = site.run()
    until(lambda: site.status().get("alert_manager", {}).get("sent") == 2)
    told = site.status()["alert_manager"]
    assert (told["refused"], told["backlog_records"]) == (1, 0)
    assert told["last_refused"].startswith(f"{GATEWAY}/")
    assert "(AR)" in told["last_refused"]
    assert "refused 1, last gw-1/" in site.command("status").stdout
    assert site.end(child) == 0
    assert alerts(manager) == expected(0, 1, 2)
    words = site.log()
    assert f"event=dropped record={told['last_refused'].partition(':')[0]}" in words
    assert not any(secret in words for secret in ("SpO2", "MRN-77", "Example"))


def test_a_manager_that_is_away_and_comes_back_gets_everything(manager: AlertManager, make_site: MakeSite) -> None:
    site = make_site(manager.port)
    site.store([[alarm(0)]])
    child = site.run()
    until(lambda: site.status().get("alert_manager", {}).get("sent") == 1)
    manager.close()
    site.store([[alarm(n)] for n in range(1, 20)])
    until(lambda: site.status()["alert_manager"]["state"] == "waiting")
    until(lambda: "refused" in site.status()["detail"])
    assert site.status()["detail"].startswith(f"alert manager 127.0.0.1:{manager.port}: ")
    assert site.command("status").returncode == 1
    back = AlertManager(port=manager.port)
    try:
        back.wait(lambda: len(back.messages) >= 19)
        until(lambda: site.status()["alert_manager"]["backlog_records"] == 0)
        assert site.end(child) == 0
        assert alerts(back) == expected(*range(1, 20))
    finally:
        back.close()


@pytest.mark.parametrize("answered", [False, True], ids=["before the acknowledgement", "behind it"])
def test_a_forwarder_killed_again_and_again_misses_no_alarm(
    answered: bool, manager: AlertManager, make_site: MakeSite
) -> None:
    total, kills = 120, [7, 30, 31, 64, 100]
    site = make_site(manager.port)
    site.store([[alarm(n), alarm(n, event="escalate")] for n in range(total // 2)])
    running = [site.run()]
    due = list(kills)

    def answer(sent: bytes) -> bytes:
        if due and len(manager.messages) >= due[0]:
            due.pop(0)
            if answered:
                manager._peers[-1].sendall(reply(sent))
            running[-1].send_signal(signal.SIGKILL)
            return GONE
        return reply(sent)

    manager.answer = answer
    for _ in kills:
        running[-1].wait(60)
        running.append(site.run())
    manager.wait(lambda: len(set(manager.controls)) >= total)
    until(lambda: site.status().get("alert_manager", {}).get("backlog_records") == 0)
    assert site.end(running[-1]) == 0
    names = manager.controls
    assert len(names) > total, "no copies: the kills did not fall where they should"
    assert without_copies(names) == sealed(site), "every alarm, first seen in the order of the records"


def test_kafka_and_the_alert_manager_do_not_wait_for_each_other(manager: AlertManager, make_site: MakeSite) -> None:
    site = make_site(manager.port, more=KAFKA_AWAY)
    site.store([[observation(1)], [alarm(0)], [alarm(1)]])
    child = site.run()
    until(lambda: site.status().get("alert_manager", {}).get("sent") == 2)
    until(lambda: site.status()["alert_manager"]["backlog_records"] == 0)
    status = site.status()
    assert status["alert_manager"]["state"] == "connected"
    assert status["streams"]["alerts"]["state"] == "waiting"
    assert (status["state"], status["forwarded"]) == ("waiting", {"alerts": 0, "data": 0})
    assert status["backlog_records"] == 3, "Kafka has none of them yet"
    assert site.end(child) == 0
    marks = Marks(site.data_dir)
    assert marks.get("alert_manager") is not None
    assert marks.get("alerts") is None


def test_kafka_alone_knows_of_no_alert_manager(make_site: MakeSite) -> None:
    site = make_site(1)
    site.write(KAFKA_AWAY)
    site.store([[alarm(0)]])
    child = site.run()
    until(lambda: site.status().get("backlog_records") == 1)
    status = site.status()
    assert "alert_manager" not in status
    assert set(status["streams"]) == {"alerts", "data"}
    assert "alert manager" not in site.command("status").stdout
    assert site.end(child) == 0


def test_a_port_that_is_none_ends_with_78(make_site: MakeSite) -> None:
    done = make_site(70000).command("run")
    assert done.returncode == 78
    assert "cloud.alert_manager.link: 70000 is no port" in done.stderr


@pytest.mark.parametrize("mark", ["never was", "damaged"])
def test_a_new_manager_is_spared_the_past_and_one_whose_mark_is_lost_is_not(
    mark: str, manager: AlertManager, make_site: MakeSite
) -> None:
    site = make_site(manager.port)
    rig = Rig(site.data_dir, load_kek(f"file:{site.key}"), FakeClock())  # its UTC lies years back
    for number in range(3):
        rig.commit(alarm(number))
    rig.close()
    if mark == "damaged":
        folder = site.data_dir / "marks"
        folder.mkdir()
        (folder / "alert_manager.json").write_text("{")
    site.store([[alarm(3)]])
    child = site.run()
    manager.wait(lambda: expected(3)[0] in alerts(manager))
    until(lambda: site.status().get("alert_manager", {}).get("backlog_records") == 0)
    assert site.end(child) == 0
    assert alerts(manager) == (expected(3) if mark == "never was" else expected(0, 1, 2, 3))
    assert [b"\rNTE|1|L|sent " in message for message in manager.messages] == [True] * (len(manager.messages) - 1) + [
        False
    ]


CLOUDS = {
    "nobody": ({}, {"alerts": (), "data": ()}),
    "kafka": ({"kafka"}, {"alerts": ("alerts",), "data": ("data",)}),
    "alert manager": ({"alert_manager"}, {"alerts": ("alert_manager",), "data": ()}),
    "both": ({"kafka", "alert_manager"}, {"alerts": ("alerts", "alert_manager"), "data": ("data",)}),
}


def cloud(names: object) -> config_cloud.Cloud:
    kafka = config_cloud.Kafka(bootstrap="b:1", security="plaintext")
    alert_manager = config_cloud.AlertManager(link="mllp://h:1")
    tables = {"kafka": kafka, "alert_manager": alert_manager}
    return config_cloud.Cloud(**{name: table for name, table in tables.items() if name in names})  # type: ignore[operator, arg-type]


@pytest.mark.parametrize("case", CLOUDS)
def test_the_agent_prunes_what_every_configured_receiver_has(case: str, tmp_path: Path) -> None:
    names, wanted = CLOUDS[case]
    assert receivers(cloud(names)) == wanted
    rig = Rig(tmp_path, receivers=receivers(cloud(names)))
    reader = Reader(tmp_path, KEK)
    marks = Marks(tmp_path)

    def left(stream: str = "alerts") -> list[int]:
        return [block.number for block in reader.read(stream, None)]

    try:
        for number in range(4):
            rig.commit(alarm(number))
        rig.commit(observation(1))
        instance = reader.read("alerts", None)[0].instance
        data = reader.read("data", None)[0].position
        rig.buffer.prune()
        assert left() == [1, 2, 3, 4]
        marks.set("alerts", Position(instance, 3))
        rig.buffer.prune()
        assert left() == ([4] if names == {"kafka"} else [1, 2, 3, 4])
        marks.set("alert_manager", Position(instance, 2))
        marks.set("data", data)
        rig.buffer.prune()
        assert left() == {"nobody": [1, 2, 3, 4], "kafka": [4], "alert manager": [3, 4], "both": [3, 4]}[case]
        assert left("data") == ([] if "kafka" in names else [data.block])
        marks.set("alert_manager", Position(instance, 4))
        rig.buffer.prune()
        assert left() == {"nobody": [1, 2, 3, 4], "kafka": [4], "alert manager": [], "both": [4]}[case]
    finally:
        reader.close()
        rig.close()


def test_the_state_file_is_json_that_names_the_manager(manager: AlertManager, make_site: MakeSite) -> None:
    site = make_site(manager.port)
    child = site.run()
    until(lambda: site.status().get("state") == "connected")
    told = json.loads(site.command("status", "--json").stdout)["alert_manager"]
    assert set(told) == {
        "state", "detail", "sent", "refused", "last_refused", "last_delivery_utc", "backlog_records",
        "backlog_oldest_s",
    }  # fmt: skip
    assert (told["sent"], told["last_delivery_utc"], told["backlog_records"]) == (0, None, 0)
    assert site.end(child) == 0
