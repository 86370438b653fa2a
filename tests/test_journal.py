"""The log as the journal gets it: fields over a real socket, long entries as a sealed file, else standard error."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import __version__, journal


class Journal:
    """A datagram socket that reads entries as systemd-journald does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seals: int | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        data, rights, _flags, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _level, _kind, descriptors in rights:
            descriptor = int.from_bytes(descriptors[:4], sys.byteorder)
            self.seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            with os.fdopen(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
        found: dict[str, str] = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                length = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + length], data[8 + length + 1 :]
            found[name.decode()] = value.decode()
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "socket")
    yield made
    made.close()


@pytest.fixture
def log(systemd: Journal) -> Iterator[logging.Logger]:
    """A logger of the test's own that writes to the journal's socket."""
    handler = journal.JournalHandler("edge-agent", systemd.path, io.StringIO())
    made = logging.Logger("edge_agent.test")
    made.addHandler(handler)
    yield made
    handler.close()


def test_a_line_becomes_fields(systemd: Journal, log: logging.Logger) -> None:
    log.warning("fault condition=%s kind=%s detail=%r", "disk_fault", "buffer disk", "no\nspace")
    entry = systemd.entry()
    assert entry == {
        "MESSAGE": "fault condition=disk_fault kind=buffer disk detail='no\\nspace'", "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "edge-agent", "LOGGER": "edge_agent.test", "RELEASE": __version__,
        "EVENT": "fault", "CONDITION": "disk_fault", "KIND": "buffer disk", "DETAIL": "no\nspace",
    }  # fmt: skip


def test_fields_follow_the_template_and_never_the_text() -> None:
    assert journal.fields("clock stepped by_s=%.1f", (2.5,)) == {"EVENT": "clock stepped", "BY_S": "2.5"}
    assert journal.fields("fault bed=%s text=%r", ("a bed=b", "x=%s")) == {
        "EVENT": "fault", "BED": "a bed=b", "TEXT": "x=%s",
    }  # fmt: skip
    assert journal.fields("buffer=%s event=quarantine share=%d%%", ("data", 5)) == {
        "BUFFER": "data", "EVENT": "quarantine", "SHARE": "5",
    }  # fmt: skip
    assert journal.fields("unit=%s message=%s code_line=%d", ("a", "b", 1)) == {
        "EDGE_UNIT": "a", "EDGE_MESSAGE": "b", "EDGE_CODE_LINE": "1",
    }  # fmt: skip
    assert journal.fields("%s: %s", ("a", "b")) == {} and journal.fields("stopped", ()) == {"EVENT": "stopped"}
    assert journal.fields("few a=%s b=%s", ("x",)) == {"EVENT": "few", "A": "x"}


def test_severities_are_syslogs(systemd: Journal, log: logging.Logger) -> None:
    for level, severity in ((10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2")):
        log.log(level, "event")
        assert systemd.entry()["PRIORITY"] == severity


def test_an_exception_goes_with_its_lines(systemd: Journal, log: logging.Logger) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("model failed")
    entry = systemd.entry()
    assert entry["EVENT"] == "model failed" and entry["MESSAGE"].endswith("ValueError: broken")
    assert entry["MESSAGE"].count("\n") >= 3


def test_a_long_entry_goes_as_a_sealed_file(systemd: Journal, log: logging.Logger) -> None:
    text = "x" * 4_000_000 + "\ny"
    log.error("long text=%s", text)
    entry = systemd.entry()
    assert entry["TEXT"] == text and entry["MESSAGE"] == f"long text={text}"
    assert systemd.seals is not None and systemd.seals & fcntl.F_SEAL_WRITE and systemd.seals & fcntl.F_SEAL_SHRINK


def test_without_a_journal_the_line_goes_to_standard_error(tmp_path: Path) -> None:
    lines = io.StringIO()
    handler = journal.JournalHandler("edge-agent", tmp_path / "nobody", lines)
    made = logging.Logger("edge_agent")
    made.addHandler(handler)
    made.warning("fault condition=%s", "disk_fault")
    handler.close()
    assert lines.getvalue() == "WARNING edge_agent fault condition=disk_fault\n"


def test_a_journal_that_takes_nothing_is_not_waited_for(systemd: Journal, log: logging.Logger) -> None:
    """More than its queue holds: every line ends somewhere, and only the first one costs a wait."""
    (handler,) = log.handlers
    assert isinstance(handler, journal.JournalHandler)
    lines = io.StringIO()
    handler._fallback.setStream(lines)
    done = threading.Event()

    def write() -> None:
        for number in range(2000):
            log.info("event number=%d", number)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(20)
    assert lines.getvalue().splitlines()[-1] == "INFO edge_agent.test event number=1999"
    while systemd.entry()["NUMBER"] != str(1999 - len(lines.getvalue().splitlines())):
        pass  # the journal is back and reads what it has
    log.info("event number=%d", 2000)
    assert systemd.entry()["NUMBER"] == "2000"


def test_the_journal_is_used_only_where_systemd_has_connected_it(
    systemd: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert isinstance(journal.handler("edge-agent", path=systemd.path), logging.StreamHandler)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")  # somebody has redirected it since
        assert isinstance(journal.handler("edge-agent", path=systemd.path), logging.StreamHandler)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        made = journal.handler("edge-agent", path=systemd.path)
        assert isinstance(made, journal.JournalHandler)
        made.close()
        assert isinstance(journal.handler("edge-agent", path=tmp_path / "none"), logging.StreamHandler)


def test_fields_come_through_the_queue_of_the_agents_log(systemd: Journal) -> None:
    """In a process of its own, because the root logger changes: the template is gone by then, the fields are not."""
    code = (
        "import logging, os, sys; from pathlib import Path; from edge_agent import journal\n"
        "found = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}'\n"
        f"journal.SOCKET = Path({str(systemd.path)!r}); journal.handler.__defaults__ = (journal.LINE, journal.SOCKET)\n"
        "listener = journal.start('edge-agent', 'INFO')\n"
        "logging.getLogger('edge_agent').info('ready gateway=%s beds=%d', 'gw', 2)\n"
        "logging.getLogger('edge_agent').info('%s', 'event=fault condition=disk_fault')\n"
        "listener.stop()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    entry = systemd.entry()
    assert (entry["EVENT"], entry["GATEWAY"], entry["BEDS"]) == ("ready", "gw", "2")
    assert entry["MESSAGE"] == "ready gateway=gw beds=2" and entry["PRIORITY"] == "6"
    entry = systemd.entry()
    assert entry["MESSAGE"] == "event=fault condition=disk_fault" and "CONDITION" not in entry, "text is nobody's field"
