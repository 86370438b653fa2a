"""The support bundle: everything that helps, and of marked patients and secrets nothing, in no coding."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, running
from test_privacy_path import SAID, Gateway, play, spoken_alarm, tells

from edge_agent.__main__ import main
from edge_agent.commands.support_bundle import REMOVED, scrubbed, without_secrets

PASSWORD = "Sesame-4711-open"
PARTS = {
    "MANIFEST.json", "versions.json", "host.json", "units.txt", "journal.jsonl", "configuration.json", "doctor.json",
    "status.json", "metrics.txt", "buffer.json", "keys.json", "files.txt",
}  # fmt: skip


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {Path(each.name).name: archive.extractfile(each).read() for each in archive.getmembers()}  # type: ignore[union-attr]


def codings(word: str) -> set[bytes]:
    """A word as it might hide: as it is, in hex, and in base64 at each of the three places it can begin."""
    found = set()
    for data in (word.encode(), word.encode("utf-16-le"), word.encode("latin-1", "replace")):
        found |= {data, data.hex().encode(), data.hex().upper().encode()}
        for offset in range(3):
            text = base64.b64encode(b"\0" * offset + data + b"\0" * 2)
            found.add(text[offset + (offset > 0) : -4])
    return {each for each in found if len(each) >= 6}


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `journalctl` that gives the lines of a file."""
    lines = tmp_path / "journal"
    lines.write_text("")
    program = tmp_path / "bin/journalctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lines


def entry(message: str, **more: Any) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": "1767225600000000", "MESSAGE": message, "_UID": "0", **more}) + "\n"


def made(config: Path, out: Path) -> dict[str, bytes]:
    assert main(["support-bundle", "--config", str(config), "--out", str(out)]) == 0
    return unpacked(out)


async def test_nothing_of_a_patient_is_in_it(
    tmp_path: Path, journal: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent that has been told of marked patients, its whole log as the journal, its bundle made while it runs."""
    caplog.set_level(logging.DEBUG)
    gateway, out = Gateway(tmp_path), tmp_path / "b.tar.gz"
    config = gateway.write()
    await play(gateway, config, spoken_alarm(), commands=False)
    async with running(config):
        log = "".join(entry(record.getMessage()) for record in caplog.records)
        await asyncio.to_thread(journal.write_text, log)
        command = ("support-bundle", "--config", str(config), "--out", str(out))
        said = await asyncio.to_thread(gateway.command, "edge_agent", *command)
    assert log.count("ready gateway=") == 2
    found = unpacked(out)
    assert found.keys() == PARTS
    status = json.loads(found["status.json"])
    assert status["gateway"] == "gw" and status["beds"][0]["id"] == "ICU-3", "it was the running agent that was asked"
    assert status["sources"][0]["name"] == "monitor" and "values" not in found["status.json"].decode()
    tells("the command", said)
    whole = b"\n".join(found.values())
    tells("the bundle", whole.decode())
    low = whole.lower()
    for number, word in enumerate(SAID):
        assert not [each for each in codings(word) if each.lower() in low], f"marked word {number}"
    assert b"edge_agent_build_info" in found["metrics.txt"] and b'bed="' not in found["metrics.txt"]
    for value in (b"80.0", b"81.0", b"79.0"):
        assert value not in found["status.json"] + found["metrics.txt"] + found["journal.jsonl"]


def test_secrets_of_the_configuration_stay(tmp_path: Path, journal: Path) -> None:
    bedside, out = Bedside(tmp_path), tmp_path / "b.tar.gz"
    secret = tmp_path / "mqtt"
    secret.write_text(PASSWORD)
    secret.chmod(0o400)
    config = bedside.write(
        '[cloud.kafka]\nbootstrap = "127.0.0.1:1"\nsecurity = "plaintext"\n'
        f'options = {{"ssl.key.password" = "{PASSWORD}", "client.rack" = "r1", "sasl.jaas.config" = "x"}}',
        f'[cloud.mqtt]\nbroker = "127.0.0.1:1"\nsecurity = "plaintext"\nusername = "u"\npassword = "file:{secret}"',
        f'[cloud.rest]\nurl = "http://rest:{PASSWORD}@127.0.0.1:1/x"\ncluster = "c"  # {PASSWORD}',
    )
    found = made(config, out)
    whole = b"\n".join(found.values())
    for coding in codings(PASSWORD):
        assert coding not in whole
    kek = bedside.key.read_bytes()
    for key in (kek, kek.hex().encode(), base64.b64encode(kek)):
        assert key not in whole
    told = json.loads(found["configuration.json"])
    assert told["cloud"]["kafka"]["options"] == {
        "ssl.key.password": REMOVED, "client.rack": "r1", "sasl.jaas.config": "x",
    }  # fmt: skip
    assert told["cloud"]["mqtt"]["password"] == f"file:{secret}" and told["buffer"]["key"] == "file:kek"
    assert f"http://{REMOVED}@127.0.0.1:1/x" in told["cloud"]["rest"]["url"]
    assert told["bed"][0]["location"] == "ICU^^3", "what was configured is wanted as it is"


def test_the_file_is_whole_and_closed_to_others(tmp_path: Path, journal: Path) -> None:
    config, out = Bedside(tmp_path).write(), tmp_path / "b.tar.gz"
    out.write_text("an older one")
    out.chmod(0o644)
    found = made(config, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600 and not list(tmp_path.glob(".*partial"))
    manifest = json.loads(found["MANIFEST.json"])
    assert manifest["contents"].keys() == PARTS - {"MANIFEST.json"} and "patients" in manifest["left_out"][0]
    assert all(manifest["contents"][name]["bytes"] == len(found[name]) for name in manifest["contents"])
    assert {each["part"] for each in json.loads(found["doctor.json"])} >= {"agent", "key", "clock", "disk"}
    assert "edge.toml" in found["files.txt"].decode() and b"edge_agent_up 0" in found["metrics.txt"]


def test_what_cannot_be_made_is_told(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bedside, out = Bedside(tmp_path), tmp_path / "b.tar.gz"
    config = bedside.write()
    config.write_text(config.read_text() + 'unknown = "x"\n')
    found = made(config, out)
    assert b"unknown" in found["configuration-error.txt"] and "journal.jsonl" in found, "a wrong configuration, too"
    config = bedside.write()
    bedside.key.unlink()
    assert b"is missing" in made(config, out)["buffer.json"]
    monkeypatch.setattr("edge_agent.commands.support_bundle.host", lambda: 1 / 0)
    assert made(config, out)["host.json"].startswith(b"could not be made: ZeroDivisionError")
    assert main(["support-bundle", "--config", str(config), "--out", str(tmp_path / "none/b.tar.gz")]) == 1
    assert "--out FILE" in capsys.readouterr().err


def test_the_journal_is_scrubbed_and_keeps_its_fields(tmp_path: Path, journal: Path) -> None:
    """The log holds no patient; should it ever, these forms go all the same."""
    journal.write_text(
        entry("fault condition=disk_fault", CONDITION="disk_fault", PRIORITY="4", _CMDLINE="edge-agent --secret")
        + entry("cut PID|1||7ZQ41^^^H||Zuckerkandl^Ottilie rest\nnext") + entry("item patient_id='7ZQ41 b' bed=ICU-3")
        + json.dumps({"MESSAGE": [80, 73, 68, 255]}) + "\n" + "no json 7^Hieronymus\n"
    )  # fmt: skip
    lines = [json.loads(line) for line in made(Bedside(tmp_path).write(), tmp_path / "b")["journal.jsonl"].splitlines()]
    assert lines[0] == {
        "utc": "2026-01-01T00:00:00Z", "MESSAGE": "fault condition=disk_fault", "PRIORITY": "4",
        "CONDITION": "disk_fault",
    }  # fmt: skip
    assert lines[1]["MESSAGE"] == f"cut {REMOVED}\nnext" and lines[2]["MESSAGE"] == f"item {REMOVED} bed=ICU-3"
    assert lines[3]["MESSAGE"] == REMOVED and len(lines) == 5


def test_scrubbing() -> None:
    assert scrubbed("https://u:p@h/x?token=abc&y=1") == f"https://{REMOVED}@h/x?token={REMOVED}&y=1"
    assert scrubbed("MRN: 7ZQ41, ok") == f"{REMOVED} ok" and scrubbed("key " + "ab12" * 16) == f"key {REMOVED}"
    for kept in ("fault condition=disk_fault kind=buffer", "link url=mllp-listen://0.0.0.0:2575", "spo2 below 90"):
        assert scrubbed(kept) == kept


def test_keys_that_sound_like_secrets() -> None:
    given: dict[str, Any] = {
        "password": "x", "sasl.password": "x", "token": 5, "key": "abc", "api_key": ["a", "b"], "auth": {"user": "u"},
        "keepalive_s": 30, "token_url": "http://t", "private_key": "/etc/x.key", "register_schemas": True,
    }  # fmt: skip
    found = without_secrets(given)
    for key in ("password", "sasl.password", "token", "key"):
        assert found[key] == REMOVED
    assert found["api_key"] == [REMOVED, REMOVED] and found["keepalive_s"] == 30 and found["register_schemas"] is True
    assert found["private_key"] == "/etc/x.key"
