"""Scenes on disks that misbehave, each in a process of its own: `python disk_scenes.py SCENE FOLDER`.

The process may have a mount namespace (`unshare -m`) or a preloaded disk around it; it ends with an AssertionError when
the buffer does not do what it promises.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

from buffer_rig import Rig, alert, gaps, numeric, read_all, values
from test_buffer_quota import bulky

from edge_agent.records import AlarmEvent


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


if __name__ == "__main__":
    {"full": full, "read_only": read_only, "stalls": stalls, "refuses": refuses}[sys.argv[1]](Path(sys.argv[2]))
