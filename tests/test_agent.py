"""The whole agent with real links, buffer and annunciators: what goes right, and what each fault becomes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, dial, running, until

from bench.messages import frame
from drivers.contract import Outlet
from edge_agent.buffer import Reader, load_kek, store
from edge_agent.control import ControlClient
from edge_agent.records import AlarmEvent, Chunk, Observation, PatientEvent, Signal

LOW, NORMAL = 80.0, 97.0


@pytest.fixture
def bedside(tmp_path: Path) -> Bedside:
    return Bedside(tmp_path)


def bed_frame(number: int, spo2: float = NORMAL, bed: int = 3) -> bytes:
    return frame(number, bed, spo2)


def adt(event: str, patient: str, location: str) -> bytes:
    text = (
        f"MSH|^~\\&|ADT|H|||20260101||ADT^{event}|A{event}{patient}|P|2.6\rEVN|{event}|20260101\r"
        f"PID|||{patient}\rPV1||I|{location}\r"
    )
    return b"\x0b" + text.encode() + b"\x1c\r"


async def status(bedside: Bedside) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with ControlClient(bedside.folder / "control.sock") as client:
            found: dict[str, Any] = client.call("status")["status"]
            return found

    return await asyncio.to_thread(ask)


async def conditions(bedside: Bedside, bed: str = "") -> set[str]:
    found = await status(bedside)
    alarms = found["gateway_alarms"] if not bed else next(each for each in found["beds"] if each["id"] == bed)["alarms"]
    return {alarm["condition"].split(":")[0] for alarm in alarms}


async def shows(
    bedside: Bedside,
    condition: str,
    bed: str = "",
    *,
    present: bool = True,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Return when the status shows, or no longer shows, the condition; `meanwhile` is called between looks."""
    end = time.monotonic() + 20
    while (condition in await conditions(bedside, bed)) != present:
        assert time.monotonic() < end, f"{condition}: not {'shown' if present else 'ended'}"
        meanwhile()
        await asyncio.sleep(0.02)


def stored(bedside: Bedside) -> list[Any]:
    reader = Reader(bedside.data_dir, load_kek(f"file:{bedside.key}"))
    try:
        return [
            entry
            for stream in ("alerts", "data")
            for block in reader.read(stream, None, 10_000)
            for entry in block.entries
        ]
    finally:
        reader.close()


async def test_a_low_value_lights_sounds_and_is_kept(bedside: Bedside) -> None:
    async with running(bedside.write()) as agent:
        await shows(bedside, "source_lost")  # a signal that no chunk has caused
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(0))
        await monitor.reply()
        assert agent.latency.count == 0
        monitor.send(bed_frame(1, LOW))
        assert "MSA|AA|M3-1" in await monitor.reply()
        assert agent.latency.count == 1
        assert 0 < (agent.latency.view()["p50_us"] or 0) < 5e6
        await until(lambda: bedside.lit("spo2_low"), "the light")
        first = next(line for line in bedside.edge_lines() if line["condition"] == "spo2_low")
        assert (first["bed"], first["output"], first["on"], first["priority"]) == ("ICU-3", "red", True, "high")
        monitor.send(bed_frame(2, NORMAL))
        await shows(bedside, "spo2_low", "ICU-3", present=False)
        monitor.close()
    entries = stored(bedside)
    values = [each.record for each in entries if isinstance(each.record, Observation) and each.record.term == "spo2"]
    assert [value.value for value in values] == [NORMAL, LOW, NORMAL]
    alarm = [
        each.record for each in entries if isinstance(each.record, AlarmEvent) and each.record.condition == "spo2_low"
    ]
    assert alarm[0].event == "start" and alarm[-1].state == "Off"
    assert len({event.alert_id for event in alarm}) == 1


async def test_a_central_link_that_is_not_there_is_told_after_its_time(bedside: Bedside) -> None:
    config = bedside.write('[cloud.kafka]\nbootstrap = "127.0.0.1:9"\nsecurity = "plaintext"')
    config.write_text(config.read_text().replace("self_test = false", "self_test = false\ncentral_link_s = 5", 1))
    async with running(config):
        await shows(bedside, "central_link_lost")
        folder = bedside.data_dir / "cloud-sync"
        folder.mkdir()
        numbers = itertools.count()

        def report() -> None:  # as cloud-sync does every second
            status = {"state": "connected", "detail": "", "pid": 1, "utc": str(next(numbers)), "forwarded": {}}
            fresh = folder / "status.new"
            fresh.write_text(json.dumps(status))
            fresh.replace(folder / "status.json")

        await shows(bedside, "central_link_lost", present=False, meanwhile=report)


async def test_metrics_are_prometheus_text_with_alarms_by_bed_and_priority(bedside: Bedside) -> None:
    async with running(bedside.write()) as agent:
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await monitor.reply()
        agent.cloud = {"state": "connected", "forwarded": {"alerts": 3, "data": 9}, "backlog_records": 2}
        text = agent.operations.metrics()
        monitor.close()
    assert 'edge_agent_alarms{bed="ICU-3",priority="high"} 1' in text
    assert 'edge_agent_alarms{bed="ICU-4",priority="high"} 0' in text
    assert 'cloud_sync_forwarded_total{receiver="kafka",stream="alerts"} 3' in text
    assert "cloud_sync_backlog_records 2" in text
    assert "cloud_sync_connected 1" in text
    names: list[str] = []
    for line in text.splitlines():
        name = line.split()[2] if line.startswith("#") else line.partition("{")[0].partition(" ")[0]
        if not names or names[-1] != name:
            names.append(name)
        if not line.startswith("#"):
            float(line.rpartition(" ")[2])
    assert len(names) == len(set(names)), "lines of one metric stand together"


async def test_acknowledge_and_pause_reach_the_alarm_and_are_audited(bedside: Bedside) -> None:
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await monitor.reply()

        def operate() -> tuple[Any, ...]:
            with ControlClient(bedside.folder / "control.sock") as client:
                return (
                    client.call("pause_audio", bed="ICU-3", seconds=60)["seconds"],
                    client.call("acknowledge", bed="ICU-3")["acknowledged"],
                )

        assert await asyncio.to_thread(operate) == (60, 1)
        bed = (await status(bedside))["beds"][0]
        assert bed["alarm"]["inactivation"]["state"] == "audio_paused"
        assert bed["alarms"][0]["state"] == "Ack"
    states = [each.record for each in stored(bedside) if getattr(each.record, "kind", "") == "operator"]
    assert [each.state for each in states] == ["pause_audio", "acknowledge"]
    assert all(f"uid={os.getuid()}" in each.detail for each in states)


async def test_silence_of_a_source_is_an_alarm_and_data_ends_it(bedside: Bedside) -> None:
    async with running(bedside.write(driver_options="silence_s = 0.5")):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1))
        await monitor.reply()
        await shows(bedside, "source_silent", "ICU-3")
        numbers = itertools.count(2)
        await shows(
            bedside,
            "source_silent",
            "ICU-3",
            present=False,
            meanwhile=lambda: monitor.send(bed_frame(next(numbers))),
        )
        monitor.close()
        await shows(bedside, "source_lost", "ICU-3")


async def test_a_sender_that_dials_for_every_message_raises_nothing(bedside: Bedside) -> None:
    async with running(bedside.write()) as agent:
        for number in range(20):
            monitor = await dial(bedside.port)
            monitor.send(bed_frame(number))
            assert f"M3-{number}" in await monitor.reply()
            monitor.close()
            await until(lambda: agent.feeds["monitor"].link_state == "lost", "the end of the connection")
        assert await conditions(bedside, "ICU-3") == set()


async def test_a_message_cut_off_gives_nothing(bedside: Bedside) -> None:
    async with running(bedside.write()) as agent:
        broken = await dial(bedside.port)
        whole = bed_frame(1, LOW)
        broken.send(whole[: len(whole) // 2])
        await until(lambda: agent.feeds["monitor"].decoders, "the first half's arrival")
        broken.close()
        await until(lambda: not agent.feeds["monitor"].decoders, "the end of the connection")
        monitor = await dial(bedside.port)
        monitor.send(whole[len(whole) // 2 :] + bed_frame(2))
        assert "MSA|AA|M3-2" in await monitor.reply()
        assert agent.feeds["monitor"].items == 10  # those of the whole message alone
    assert not bedside.lit("spo2_low")


async def test_a_bed_that_is_not_configured_is_kept_and_shown(bedside: Bedside) -> None:
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW, bed=9))
        await monitor.reply()
        await shows(bedside, "bed_unknown")
    assert {each.bed for each in stored(bedside) if isinstance(each.record, Observation)} == {""}
    assert not bedside.lit("spo2_low")


async def test_admission_starts_anew_and_a_stranger_is_a_mismatch(bedside: Bedside) -> None:
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        for data in (adt("A01", "P3", "ICU^^3"), bed_frame(1, LOW)):
            monitor.send(data)
            assert "MSA|AA" in await monitor.reply()
        assert (await status(bedside))["beds"][0]["patient"]
        assert await conditions(bedside, "ICU-3") == {"spo2_low"}
        monitor.send(adt("A01", "P4", "ICU^^3"))
        await monitor.reply()
        assert await conditions(bedside, "ICU-3") == set()
        monitor.send(bed_frame(2))  # the monitor still says P3
        await monitor.reply()
        assert await conditions(bedside, "ICU-3") == {"patient_mismatch"}
    events = [each.record for each in stored(bedside) if isinstance(each.record, PatientEvent)]
    assert [(each.event, each.patient_id) for each in events] == [("A01", "P3"), ("A01", "P4")]


async def test_a_patient_that_the_monitor_of_one_bed_names_without_a_place_is_of_that_bed(bedside: Bedside) -> None:
    async with running(bedside.write(driver_options='bed = "ICU-4"')):
        monitor = await dial(bedside.port)
        for data in (adt("A08", "P4", ""), adt("A08", "P9", "ICU^^9")):
            monitor.send(data)
            assert "MSA|AA" in await monitor.reply()
    found = [(each.bed, each.record.patient_id) for each in stored(bedside) if isinstance(each.record, PatientEvent)]
    assert found == [("ICU-4", "P4"), ("", "P9")]


async def test_no_acknowledgement_while_nothing_can_be_committed(
    bedside: Bedside, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1))
        await monitor.reply()
        real = store.commit

        def full(_connection: sqlite3.Connection) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(store, "commit", full)
        monitor.send(bed_frame(2, LOW))
        await until(lambda: bedside.lit("spo2_low"), "the alarm, which does not wait for the disk")
        await shows(bedside, "disk_fault")
        with pytest.raises(TimeoutError):
            await monitor.reply(0.3)
        monkeypatch.setattr(store, "commit", real)
        # readuntil kept nothing of the reply that did not come
        assert "MSA|AA|M3-2" in await monitor.reply()
        await shows(bedside, "disk_fault", present=False)


async def test_a_missing_key_is_shown_and_alarms_go_on(bedside: Bedside) -> None:
    config = bedside.write()
    bedside.key.unlink()
    async with running(config):
        await shows(bedside, "key_missing")
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await until(lambda: bedside.lit("spo2_low"), "the alarm")
        with pytest.raises(TimeoutError):
            await monitor.reply(0.3)


async def test_a_corrupt_database_is_put_aside_and_named(bedside: Bedside) -> None:
    config = bedside.write()
    async with running(config):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1))
        await monitor.reply()
    database = bedside.data_dir / "buffer" / "data.db"
    database.write_bytes(b"not a database" * 1000)
    async with running(config):
        await shows(bedside, "buffer_quarantined")
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(2))
        assert "MSA|AA" in await monitor.reply()
    assert any((bedside.data_dir / "buffer" / "quarantine").iterdir())


async def test_a_port_in_use_is_an_alarm_that_ends(bedside: Bedside) -> None:
    holder = socket.create_server(("127.0.0.1", bedside.port))
    try:
        async with running(bedside.write()):
            await shows(bedside, "source_lost")
            (source,) = (await status(bedside))["sources"]
            assert "another program" in source["detail"], source
            holder.close()
            monitor = await dial(bedside.port)
            monitor.send(bed_frame(1))
            assert "MSA|AA" in await monitor.reply()
            await shows(bedside, "source_lost", present=False)
    finally:
        holder.close()


async def test_a_wrong_gpio_label_is_an_alarm_and_the_others_go_on(bedside: Bedside) -> None:
    gpio = '[[annunciator]]\nkind = "gpio"\nchip = "no-such-chip"\nbuzzer = 17'
    async with running(bedside.write(gpio)):
        await shows(bedside, "annunciator_fault")
        faults = [each["fault"] for each in (await status(bedside))["annunciators"]]
        assert any("no-such-chip" in fault and "gpiodetect" in fault for fault in faults)
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await until(lambda: bedside.lit("spo2_low"), "the alarm")


async def test_a_driver_that_raises_is_an_alarm_and_not_the_end(
    bedside: Bedside, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivers.hl7 import decoder

    broken = []

    def feed_into(self: decoder.Hl7, chunk: Chunk, out: Outlet) -> None:
        if broken:
            raise ZeroDivisionError
        real(self, chunk, out)

    real = decoder.Hl7.feed_into
    monkeypatch.setattr(decoder.Hl7, "feed_into", feed_into)
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1))
        await monitor.reply()
        broken.append(True)
        monitor.send(bed_frame(2))
        await shows(bedside, "driver_fault", "ICU-3")
        broken.clear()
        numbers = itertools.count(3)
        await shows(
            bedside,
            "driver_fault",
            "ICU-3",
            present=False,
            meanwhile=lambda: monitor.send(bed_frame(next(numbers))),
        )


async def test_a_new_patient_inherits_no_alarm(bedside: Bedside) -> None:
    preset = (bedside.folder / "immediate.toml").read_text()
    (bedside.folder / "immediate.toml").write_text(preset.replace("latching = false", "latching = true"))
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        for data in (adt("A01", "P3", "ICU^^3"), bed_frame(1, LOW), adt("A01", "P4", "ICU^^3")):
            monitor.send(data)
            assert "MSA|AA" in await monitor.reply()
        assert await conditions(bedside, "ICU-3") == set()


async def test_an_alarm_does_not_wait_for_the_rest_of_its_message(bedside: Bedside) -> None:
    seen: list[int] = []
    async with running(bedside.write()) as agent:

        def noting(signal: Signal) -> None:
            if signal.condition == "spo2_low":
                seen.append(sum(isinstance(entry.record, Observation) for entry in agent.pipeline.out))

        for annunciator in agent.annunciators:
            annunciator.drive = noting  # type: ignore[method-assign]
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await monitor.reply()
    assert seen[0] == 2, "SpO2 is the third of ten rows: two stand before it, none behind"


async def test_a_pipelining_sender_gets_every_acknowledgement_in_order(bedside: Bedside) -> None:
    async with running(bedside.write()):
        monitor = await dial(bedside.port)
        monitor.send(b"".join(bed_frame(number) for number in range(200)))
        replies = [await monitor.reply() for _ in range(200)]
    assert [reply.split("MSA|AA|")[1].split("\r")[0] for reply in replies] == [f"M3-{number}" for number in range(200)]


async def test_restart_keeps_what_was_acknowledged(bedside: Bedside) -> None:
    config = bedside.write()
    for start in (0, 100):
        async with running(config):
            monitor = await dial(bedside.port)
            for number in range(start, start + 20):
                monitor.send(bed_frame(number))
                await monitor.reply()
            monitor.close()
    kept = [each.record.device_time for each in stored(bedside) if getattr(each.record, "term", "") == "spo2"]
    assert len(kept) == len(set(kept)) == 40


async def test_the_second_agent_says_who_holds_the_socket(bedside: Bedside) -> None:
    config = bedside.write()
    async with running(config):
        with pytest.raises(OSError, match="another agent"):
            async with running(config):
                pass


async def test_a_control_socket_that_cannot_be_made_leaves_the_alarms_on(bedside: Bedside) -> None:
    config = bedside.write()
    (bedside.folder / "file").write_text("in the way")
    config.write_text(
        config.read_text().replace(f"{bedside.folder}/control.sock", f"{bedside.folder}/file/control.sock")
    )
    async with running(config) as agent:
        assert any("operators cannot be heard" in fault for fault in agent.faults.values())
        monitor = await dial(bedside.port)
        monitor.send(bed_frame(1, LOW))
        await until(lambda: bedside.lit("spo2_low"), "the alarm")
