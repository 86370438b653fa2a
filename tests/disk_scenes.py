"""Scenes on disks that misbehave, each in a process of its own: `python disk_scenes.py SCENE FOLDER`.

The process may have a mount namespace (`unshare -m`) or a preloaded disk around it; it ends with an AssertionError when
the buffer does not do what it promises.
"""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from alarm_log_rig import entries
from buffer_rig import Rig, alert, gaps, numeric, read_all, values
from running_agent import Bedside, dial, running, until
from test_buffer_quota import bulky

from bench.messages import frame
from edge_agent.agent import Agent
from edge_agent.alarm_log import FILE
from edge_agent.buffer import load_kek
from edge_agent.records import AlarmEvent, Gap, Observation

LOW, NORMAL = 80.0, 97.0


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def intact(folder: Path, numbers: int, alerts: int) -> None:
    """Everything is there once, in order, and no loss was told."""
    assert values(read_all(folder, "data")) == [float(number) for number in range(numbers)]
    stored = [entry.record for block in read_all(folder, "alerts") for entry in block.entries]
    assert [record.alert_id for record in stored if isinstance(record, AlarmEvent)] == [
        f"a{number}" for number in range(alerts)
    ]
    assert gaps(folder) == []
    assert len({block.instance for block in read_all(folder, "data")}) == 1


def full(folder: Path) -> None:
    """A file system of 1.5 MB fills, far below the quota, and is given more room."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1500k", "edge-full", folder)
    rig = Rig(folder, pending_mb=64)
    rig.commit(bulky(0), alert(0))
    last = 0
    for number in range(1, 1500):  # 2.3 MB
        last = rig.append(bulky(number), soon=True)
    rig.wait(lambda: "is full; make room" in rig.current_fault("buffer disk"))
    assert rig.committed[-1] < last
    rig.append(alert(1))
    mount("-o", "remount,size=64m", folder)
    rig.wait(lambda: rig.committed[-1] == last + 1)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    assert not rig.shed
    rig.close()
    intact(folder, 1500, 2)


def read_only(folder: Path) -> None:
    """The file system is read-only when the agent starts, as after an error of the card, and is repaired later."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "edge-ro", folder)
    rig = Rig(folder)
    rig.commit(numeric(0), alert(0))
    rig.close()
    mount("-o", "remount,ro", folder)
    rig = Rig(folder)
    last = rig.append(numeric(1), alert(1))
    rig.wait(lambda: "cannot be written to; check mount" in rig.current_fault("buffer disk"))
    assert rig.committed == []
    mount("-o", "remount,rw", folder)
    rig.wait(lambda: rig.committed and rig.committed[-1] == last)
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()
    intact(folder, 2, 2)


def stalls(folder: Path) -> None:
    """Every sync takes five seconds: nobody waits for it, and when it is over everything is there."""
    flag = folder.with_suffix(".flag")
    rig = Rig(folder)
    before = rig.commit(numeric(0), alert(0))
    flag.touch()
    times = []
    for number in range(1, 400):
        started = time.perf_counter()
        last = rig.append(numeric(number), soon=True)
        times.append(time.perf_counter() - started)
        time.sleep(0.001)
    last = rig.append(alert(1))
    assert sorted(times)[380] < 0.005, sorted(times)[-20:]
    assert rig.committed[-1] == before
    began = time.monotonic()
    rig.wait(lambda: "has not answered" in rig.current_fault("buffer disk"))
    flag.unlink()
    rig.wait(lambda: rig.committed[-1] == last)
    assert time.monotonic() - began > 1.0  # the disk really stood still
    rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.commit(numeric(400))
    rig.close()
    intact(folder, 401, 2)


def refuses(folder: Path) -> None:
    """Writes fail in the middle of the work with every error a card has shown; nothing is lost or stored twice."""
    flag = folder.with_suffix(".flag")
    rig = Rig(folder)
    number = 0
    rig.commit(numeric(number), alert(0))
    for turn, error in enumerate((errno.EROFS, errno.EIO, errno.ENOSPC), 1):
        flag.write_text(str(error))
        started = rig.committed[-1]
        for _ in range(50):
            number += 1
            last = rig.append(numeric(number), soon=True)
        last = rig.append(alert(turn))
        rig.wait(lambda: rig.current_fault("buffer disk"))
        assert "nothing is acknowledged" in rig.current_fault("buffer disk")
        assert rig.committed[-1] == started
        flag.unlink()
        rig.wait(lambda last=last: rig.committed[-1] == last)
        rig.wait(lambda: not rig.current_fault("buffer disk"))
    rig.close()
    intact(folder, number + 1, 4)


def agent_read_only(folder: Path) -> None:
    """The card is read-only when a whole agent starts, and is repaired while it runs."""
    bedside = _bedside(folder)
    modes = (lambda: mount("-o", "remount,ro", folder)), (lambda: mount("-o", "remount,rw", folder))
    asyncio.run(_starting(bedside, *modes))
    _kept(bedside)


def agent_full(folder: Path) -> None:
    """Something else fills the card below a whole running agent, to the last page."""
    hog = folder / "somebody-else"

    def fill() -> None:
        with hog.open("wb", 0) as file:
            for size in (65536, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    bedside = _bedside(folder)
    asyncio.run(_running(bedside, fill, hog.unlink))
    _kept(bedside)


def _bedside(folder: Path) -> Bedside:
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "edge-agent", folder)
    place = folder.parent / "bedside"
    place.mkdir()
    bedside = Bedside(place)
    bedside.data_dir = folder
    return bedside


async def _running(bedside: Bedside, spoil: Callable[[], None], repair: Callable[[], None]) -> None:
    """The card fails while the agent works."""
    async with running(bedside.write()) as agent:
        await _normal(bedside)
        spoil()
        await _low(bedside, agent, repair)


async def _starting(bedside: Bedside, spoil: Callable[[], None], repair: Callable[[], None]) -> None:
    """The card has failed before the agent starts; a kernel lets nobody take the right to write from an open file."""
    async with running(bedside.write()):
        await _normal(bedside)
    spoil()
    async with running(bedside.write()) as agent:
        await _low(bedside, agent, repair)


async def _normal(bedside: Bedside) -> None:
    monitor = await dial(bedside.port)
    monitor.send(frame(1, 3, NORMAL))
    assert "|AA|" in await monitor.reply()
    monitor.close()


async def _low(bedside: Bedside, agent: Agent, repair: Callable[[], None]) -> None:
    """An alarm still lights its lamp, nothing is acknowledged, status says why, until the card is repaired."""
    monitor = await dial(bedside.port)
    monitor.send(frame(2, 3, LOW))
    await until(lambda: bedside.lit("spo2_low"), "the lamp")
    await until(lambda: agent.pipeline.alarms.signal("ICU-3").priority == "high", "the alarm")
    both = {"disk_fault", "log_fault"}
    await until(lambda: both <= {fault.partition("/")[0] for fault in agent.faults}, "both faults")
    waiting = asyncio.create_task(monitor.reply())
    assert not (await asyncio.wait([waiting], timeout=0.5))[0], "the sender keeps what it has"
    repair()
    assert "|AA|" in await waiting, "acknowledged once it is on the disk"
    await until(lambda: not both & {fault.partition("/")[0] for fault in agent.faults}, "the end of both faults")
    monitor.close()


def _kept(bedside: Bedside) -> None:
    folder, kek = bedside.data_dir, load_kek(f"file:{bedside.key}")
    stored = [entry.record for block in read_all(folder, "data", kek) for entry in block.entries]
    told = [record.value for record in stored if isinstance(record, Observation) and record.term == "spo2"]
    assert told == [NORMAL, LOW], told
    events = [entry.record for block in read_all(folder, "alerts", kek) for entry in block.entries]
    assert not [record for record in events if isinstance(record, Gap)]
    started = {e.alert_id for e in events if isinstance(e, AlarmEvent) and e.condition == "spo2_low"}
    logged = {entry.alarm.alert_id for entry in entries(folder / FILE, kek) if entry.alarm is not None}
    assert len(started) == 1 and started <= logged, "in the buffer and in the alarm log"


SCENES = {
    "full": full, "read_only": read_only, "stalls": stalls, "refuses": refuses, "agent_read_only": agent_read_only,
    "agent_full": agent_full,
}  # fmt: skip

if __name__ == "__main__":
    SCENES[sys.argv[1]](Path(sys.argv[2]))
