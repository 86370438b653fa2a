"""`edge-agent keys`, the doctor's look at keys and buffer, and the buffer's commands, as a user meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from buffer_rig import KEK, FakeClock, Rig, alert, numeric, wave
from running_agent import Bedside

from edge_agent import buffer
from edge_agent.__main__ import main
from edge_agent.buffer import files, keys, rewrap
from edge_agent.records import Entry, PatientEvent


class Desk:
    """A configuration, its gateway's files, and what a command prints."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bedside, self._capsys = Bedside(folder), capsys
        self.config = self.bedside.write()
        self.data_dir = self.bedside.data_dir

    def run(self, *words: str) -> tuple[int, str]:
        code = main([*words, "--config", str(self.config)])
        out = self._capsys.readouterr()
        return code, out.out + out.err

    def kek(self) -> bytes:
        return buffer.load_kek(f"file:{self.bedside.key}")

    def fill(self, *entries: Entry) -> None:
        rig = Rig(self.data_dir, kek=self.kek())
        rig.commit(*(entries or (numeric(1), wave(1), alert(1))))
        rig.close()


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_init_makes_the_key_that_is_configured_and_never_touches_one_that_is_there(desk: Desk) -> None:
    before = desk.kek()
    code, told = desk.run("keys", "init")
    assert code == 1 and "exists already; a key is never overwritten" in told
    assert desk.kek() == before
    desk.bedside.key.unlink()
    code, told = desk.run("keys", "init")
    assert code == 0 and keys.fingerprint(desk.kek()).hex() in told and "not this card" in told
    assert desk.bedside.key.stat().st_mode & 0o777 == 0o400
    assert desk.kek() != before
    assert desk.kek().hex() not in told


@pytest.mark.parametrize("left", [b"", b"\x00" * 32, b"half"])
def test_init_does_not_overwrite_a_half_written_key(desk: Desk, left: bytes) -> None:
    desk.bedside.key.unlink()
    desk.bedside.key.write_bytes(left)
    code, told = desk.run("keys", "init")
    assert code == 1 and "never overwritten" in told
    assert desk.bedside.key.read_bytes() == left


def test_init_makes_no_key_that_would_orphan_what_is_stored(desk: Desk) -> None:
    desk.fill()
    lost = keys.fingerprint(desk.kek()).hex()
    desk.bedside.key.unlink()
    code, told = desk.run("keys", "init")
    assert code == 1 and lost in told and "--anew" in told
    assert not desk.bedside.key.exists()
    code, _ = desk.run("keys", "init", "--anew")
    assert code == 0 and desk.bedside.key.exists()


def test_init_says_where_a_key_cannot_be_written(desk: Desk) -> None:
    code, told = desk.run("keys", "init", "--key", f"file:{desk.bedside.folder}/none/kek")
    assert code == 1 and "none/kek: the key file cannot be written" in told
    code, told = desk.run("keys", "init", "--key", "vault:0")
    assert code == 1 and "no such provider" in told and "credential:NAME" in told


def test_init_tells_the_command_that_makes_a_credential(desk: Desk) -> None:
    code, told = desk.run("keys", "init", "--key", "credential:edge-agent.kek")
    assert code == 0
    assert "systemd-creds encrypt --name=edge-agent.kek --with-key=auto" in told and "test ! -e" in told
    assert "tpm2" in told


@pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="systemd-creds is not installed")
def test_the_command_it_tells_makes_a_credential_that_opens_again_and_is_not_overwritten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told = desk.run("keys", "init", "--key", "credential:edge-agent.kek")
    command = "\n".join(line for line in told.splitlines() if line.startswith("  "))
    command = command.replace("/etc/credstore.encrypted", str(desk.bedside.folder / "store"))
    command = command.replace("--with-key=auto", "--with-key=tpm2-absent")  # needs neither a TPM nor this host's key
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    sealed = desk.bedside.folder / "store" / "edge-agent.kek"
    if done.returncode and "tpm2-absent" in done.stderr:
        pytest.skip("this systemd-creds knows no key for tests")
    assert done.returncode == 0, done.stderr
    before = sealed.read_bytes()
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode != 0
    assert sealed.read_bytes() == before
    loaded = desk.bedside.folder / "loaded"
    loaded.mkdir()
    decrypt = ["systemd-creds", "decrypt", "--name=edge-agent.kek", sealed, loaded / "edge-agent.kek"]
    subprocess.run(decrypt, check=True, capture_output=True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(loaded))
    key = buffer.load_kek("credential:edge-agent.kek")
    assert len(key) == 32 and key not in before


def test_rotate_changes_the_key_and_says_what_to_set(desk: Desk) -> None:
    desk.fill()
    new = f"file:{desk.bedside.folder}/kek-2"
    code, told = desk.run("keys", "rotate", "--new", new)
    assert code == 1 and "kek-2: the key is missing" in told
    assert desk.run("keys", "init", "--key", new)[0] == 0
    code, told = desk.run("keys", "rotate", "--new", new)
    assert code == 0 and f'key = "{new}"' in told and "data.db: 1 keys" in told
    code, told = desk.run("keys", "status")
    assert code == 1 and "under another key" in told  # the configuration still names the old one
    code, told = desk.run("doctor")
    assert code == 1 and "[FAIL] key" in told and "sealed under" in told
    desk.config.write_text(desk.config.read_text().replace('key = "file:kek"', 'key = "file:kek-2"'))
    code, told = desk.run("keys", "status")
    assert code == 0, told
    assert desk.run("buffer", "verify")[0] == 0
    code, told = desk.run("keys", "rotate", "--new", new)
    assert code == 1 and "is the present one" in told


def test_rotate_refuses_while_the_agent_runs(desk: Desk) -> None:
    new = f"file:{desk.bedside.folder}/kek-2"
    assert desk.run("keys", "init", "--key", new)[0] == 0
    rig = Rig(desk.data_dir, kek=desk.kek())
    rig.commit(numeric(1))
    code, told = desk.run("keys", "rotate", "--new", new)
    rig.close()
    assert code == 1 and "an agent runs" in told and "systemctl stop edge-agent" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_rotate_makes_no_files_that_lock_the_agent_out(desk: Desk) -> None:
    desk.fill()
    new = f"file:{desk.bedside.folder}/kek-2"
    assert desk.run("keys", "init", "--key", new)[0] == 0
    os.chown(desk.data_dir, 4711, 4711)
    code, told = desk.run("keys", "rotate", "--new", new)
    assert code == 1 and "sudo -u '#4711'" in told
    assert not (desk.data_dir / rewrap.NOTE).exists()


def test_status_tells_keys_ages_and_what_was_erased(desk: Desk) -> None:
    desk.fill()
    code, told = desk.run("keys", "status", "--json")
    found = json.loads(told)
    kek = keys.fingerprint(desk.kek()).hex()
    assert code == 0 and found["ok"] and found["kek"] == kek
    data = next(file for file in found["files"] if file["file"].endswith("data.db"))
    (key,) = data["keys"]
    assert key["kek"] == kek and 0 <= key["age_s"] < 600 and len(key["boot"]) == 8
    assert key["day"] == time.strftime("%Y-%m-%d", time.gmtime(time.time() - key["age_s"]))
    assert data["erased"] == 0
    code, told = desk.run("keys", "status")
    assert code == 0 and kek in told and key["id"] in told and "0 drained ones erased" in told
    assert desk.kek().hex() not in told


def test_status_tells_a_key_that_is_missing_and_an_interrupted_rotation(desk: Desk) -> None:
    desk.fill()
    note = rewrap.Note(b"\x01" * 8, b"\x02" * 8, b"\x03" * 40)
    rewrap._write_note(desk.data_dir, note)
    code, told = desk.run("keys", "status")
    assert code == 1 and "was interrupted" in told and "0202020202020202" in told
    code, told = desk.run("doctor")
    assert code == 1 and "interrupted" in told
    desk.bedside.key.unlink()
    code, told = desk.run("keys", "status")
    assert code == 1 and "the key is missing" in told and "fingerprint unknown" in told


def test_doctor_tells_hours_fullness_and_quarantine(desk: Desk) -> None:
    desk.fill()
    code, told = desk.run("doctor")
    assert code == 0 and "hours of room are known when" in told
    rig = Rig(desk.data_dir, kek=b"another key of 32 bytes for this")
    rig.commit(numeric(1))
    rig.close()
    code, told = desk.run("doctor")
    assert code == 1 and re.search(r"\[warn\] buffer: .*quarantine/data-.* put aside", told)


def test_doctor_tells_how_many_hours_the_quota_holds(desk: Desk) -> None:
    clock = FakeClock()
    rig = Rig(desk.data_dir, kek=desk.kek(), clock=clock)
    for number in range(8):  # two minutes and a half, one record every 20 s
        rig.commit(numeric(number))
        clock.mono_step_ns += 20_000_000_000
        clock.utc_step_ns += 20_000_000_000
    rig.close()
    _, told = desk.run("doctor")
    found = re.search(
        r"\[ok  \] buffer: 0 of 2048 MB used; holds ([\d.e+]+) h at the present rate, room for ([\d.e+]+) h", told
    )
    assert found, told
    stats = json.loads(desk.run("buffer", "stats")[1])["capacity"]
    assert (float(found[1]), float(found[2])) == (
        pytest.approx(stats["capacity_h"], rel=1e-4), pytest.approx(stats["room_h"], rel=1e-4),
    )  # fmt: skip
    assert 1000 < float(found[2]) < float(found[1])


def test_stats_tell_marks_capacity_and_keys(desk: Desk) -> None:
    desk.fill()
    reader = buffer.Reader(desk.data_dir, desk.kek())
    place = reader.read("alerts", None)[0].position
    reader.close()
    for name in ("alerts", "alert_manager"):
        buffer.Marks(desk.data_dir).set(name, place)
    (desk.data_dir / "marks" / "data.json").write_text("{")
    code, told = desk.run("buffer", "stats")
    found = json.loads(told)
    assert code == 0
    assert found["marks"]["alerts"] == found["marks"]["alert_manager"] == {"instance": place.instance, "block": 1}
    assert "not a mark" in found["marks"]["data"]["fault"]
    assert found["capacity"]["quota_bytes"] == 2048 << 20 and found["capacity"]["capacity_h"] is None
    assert 0 < found["capacity"]["bytes"] < 1 << 20
    assert len(found["streams"]["data"]["keys"]) == 1 and found["streams"]["data"]["keys_erased"] == 0


def test_verify_names_the_first_bad_block_and_opens_what_was_put_aside(desk: Desk, tmp_path: Path) -> None:
    rig = Rig(desk.data_dir, kek=desk.kek())
    for value in range(9):
        rig.commit(numeric(value))
    rig.close()
    with sqlite3.connect(files.database(desk.data_dir, "data")) as connection:
        for number in (7, 4):
            connection.execute("UPDATE blocks SET utc = utc + 1 WHERE number = ?", (number,))
    connection.close()
    code, told = desk.run("buffer", "verify")
    assert code == 1 and "first bad block of data is 4: tag does not fit" in told
    assert '"first_bad": {\n        "block": 4' in told
    assert desk.run("buffer", "verify", "--stream", "alerts")[0] == 0
    aside = tmp_path / "aside"
    aside.mkdir()
    shutil.copy(files.database(desk.data_dir, "data"), aside)
    code, told = desk.run("buffer", "verify", "--file", str(aside / "data.db"))
    assert code == 1 and str(aside) in told and "is 4" in told
    code, told = desk.run("buffer", "verify", "--file", str(aside / "other.db"))
    assert code == 1 and "name tells the stream" in told


def exported(told: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in told.splitlines()]


def test_export_names_nobody_unless_it_is_told_to(desk: Desk) -> None:
    now = time.monotonic_ns()
    admit = PatientEvent("A01", "MRN-SECRET-1", "ICU^^3", now, prior_patient_id="MRN-SECRET-0")
    value = numeric(5).record
    value = msgspec.structs.replace(value, subject="MRN-SECRET-1")
    desk.fill(
        Entry("ICU-3", "hl7", "MRN-SECRET-1", admit),
        Entry("ICU-3", "hl7", "MRN-SECRET-1", value),
        Entry("ICU-4", "hl7", "MRN-SECRET-2", value),
        Entry("ICU-4", "hl7", "", numeric(6).record),
    )
    code, told = desk.run("buffer", "export")
    assert code == 0 and "SECRET" not in told
    lines = exported(told)
    assert [line["patient"] for line in lines if line["stream"] == "data"] == ["patient-1", "patient-2", ""]
    code, told = desk.run("buffer", "export", "--identifiers")
    assert code == 0 and all(f"MRN-SECRET-{number}" in told for number in range(3))


def test_export_filters(desk: Desk) -> None:
    rig = Rig(desk.data_dir, kek=desk.kek())
    hour_ago = time.monotonic_ns() - 3_600_000_000_000
    rig.commit(numeric(1, at_ns=hour_ago), numeric(2, bed="ICU-4"), numeric(3), wave(1, 3), alert(time.monotonic_ns()))
    rig.close()

    def given(*words: str) -> list[object]:
        code, told = desk.run("buffer", "export", *words)
        assert code == 0
        return [line["record"].get("value") for line in exported(told)]  # type: ignore[attr-defined]

    assert given("--kind", "observation") == [1.0, 2.0, 3.0]
    assert given("--kind", "observation", "--since", "10min") == [2.0, 3.0]
    assert given("--bed", "ICU-4") == [2.0]
    assert given("--kind", "alarm_event", "--kind", "waveform") == [None, None]
    assert given("--stream", "alerts") == [None]
    with pytest.raises(SystemExit):
        desk.run("buffer", "export", "--kind", "nonsense")


def test_every_kind_of_record_can_be_chosen() -> None:
    from edge_agent.commands.buffer import _KINDS
    from edge_agent.records import _ITEM_NAMES

    assert set(_KINDS) == set(_ITEM_NAMES.values()) - {"reply"}


def test_a_key_of_another_gateway_is_told_by_every_command(desk: Desk) -> None:
    desk.fill()
    desk.bedside.key.unlink()
    desk.bedside.key.write_bytes(KEK)
    desk.bedside.key.chmod(0o400)
    for words in (("buffer", "export"), ("buffer", "verify"), ("keys", "status"), ("doctor",)):
        code, told = desk.run(*words)
        assert code == 1 and keys.fingerprint(KEK).hex() in told, words
