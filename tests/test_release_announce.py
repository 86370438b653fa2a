"""Before an update restarts the alarm system, it says so; and not while a HIGH alarm needs somebody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, dial, running, until

from bench.messages import frame
from edge_agent.alarm_log import FILE
from edge_agent.alarm_log.reader import snapshot
from edge_agent.announcement import STANDS_NS, Announcement
from edge_agent.buffer import load_kek
from edge_agent.commands.operate import text_of
from edge_agent.control import ControlClient, Refused
from edge_agent.records import DeviceStatus
from edge_agent.view import once, plain_line

LOW, NORMAL = 80.0, 97.0


@pytest.fixture
def bedside(tmp_path: Path) -> Bedside:
    return Bedside(tmp_path)


async def call(bedside: Bedside, op: str, **request: Any) -> dict[str, Any]:
    def asked() -> dict[str, Any]:
        with ControlClient(bedside.folder / "control.sock") as client:
            return client.call(op, **request)

    return await asyncio.to_thread(asked)


async def test_an_announcement_stands_everywhere_and_makes_no_sound(
    bedside: Bedside, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(bedside.write()) as agent:
        kept: list[Any] = []
        append = agent.pipeline._append
        agent.pipeline._append = lambda entries, **more: (kept.extend(entries), append(entries, **more))[1]
        assert (await call(bedside, "status"))["status"]["announcement"] is None
        before = bedside.edge_lines()
        text = (await call(bedside, "announce", reason="update", version="1.4.2"))["text"]
        assert "ALARMS STOP FOR SOME SECONDS" in text and "1.4.2" in text
        status = (await call(bedside, "status"))["status"]
        assert status["announcement"]["text"] == text and status["announcement"]["since_s"] < 5
        assert plain_line(status).startswith(text) and text in text_of(status).splitlines()
        once(status, (80, 24))
        assert text[:60] in capsys.readouterr().out
        assert bedside.edge_lines() == before  # no light and no tone that could be taken for an alarm
        told = [entry.record for entry in kept if isinstance(entry.record, DeviceStatus)]
        assert any((record.kind, record.state) == ("operator", "announce") for record in told)
        assert agent.log is not None
        await until(lambda: agent.log is not None and agent.log.waiting() == 0, "the alarm log")
        with snapshot(bedside.folder / "data" / FILE, load_kek(agent.parts.loaded.buffer_key)) as log:
            mark = next(entry.mark for entry in log.newest() if entry.mark and entry.mark.kind == "operator")
        assert mark.detail["op"] == "announce" and "version=1.4.2" in mark.detail["detail"]


async def test_a_high_alarm_refuses_it_and_names_the_bed(bedside: Bedside) -> None:
    async with running(bedside.write()) as agent:
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, LOW))
        await monitor.reply()
        await until(lambda: agent.pipeline.alarms.signal("ICU-3").priority == "high", "the alarm")
        with pytest.raises(Refused, match="HIGH alarm is active on ICU-3"):
            await call(bedside, "announce", version="1.4.2")
        assert (await call(bedside, "status"))["status"]["announcement"] is None
        assert "ALARMS STOP" in (await call(bedside, "announce", version="1.4.2", now=True))["text"]
        monitor.close()


def test_one_that_no_restart_follows_is_over() -> None:
    announcement = Announcement()
    announcement.make("1.4.2", (), False, 10)
    assert announcement.view(10 + STANDS_NS) == {
        "text": "ALARMS STOP FOR SOME SECONDS: update to version 1.4.2, watch the patients", "since_s": STANDS_NS / 1e9,
    }  # fmt: skip
    assert announcement.view(11 + STANDS_NS) is None


def test_words_of_the_caller_do_not_reach_the_screen() -> None:
    assert "\x1b" not in Announcement().make("1.0\x1b[2J", (), False, 0)
