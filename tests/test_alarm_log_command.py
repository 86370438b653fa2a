"""`edge-agent alarms` from its command line: what it prints, its exit codes, and that it never names a patient."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from alarm_log_rig import KEK, FakeClock, Rig, event, of_bed, run_sql

from edge_agent.__main__ import main

CONFIG = """
[gateway]
id = "gw-1"
data_dir = "data"
[buffer]
key = "file:kek"
[[bed]]
id = "ICU-3"
preset = "adult"
[[source]]
driver = "nonin"
link = "serial:///dev/ttyUSB0?baud=9600"
bed = "ICU-3"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A gateway's folder with a log of two runs, the first one killed."""
    (tmp_path / "site.toml").write_text(CONFIG)
    (tmp_path / "kek").write_bytes(KEK)
    (tmp_path / "kek").chmod(0o400)
    clock = FakeClock()
    clock.utc = time.time_ns() - 10 * 3_600_000_000_000
    rig = Rig(tmp_path / "data", clock=clock)
    rig.write(event("a", at_ns=clock.mono), patient="MRN-4711")
    clock.pass_s(20)
    acknowledge = event("a", "acknowledge", "Ack", at_ns=clock.mono, operator="nurse.kim")
    rig.write(acknowledge, patient="MRN-4711")
    clock.pass_s(20)
    rig.write(event("a", "end", "Off", at_ns=clock.mono), patient="MRN-4711")
    rig.close()
    clock.pass_s(8 * 3600)
    rig = Rig(tmp_path / "data", clock=clock, run_id="run-2")
    red = event("b", at_ns=clock.mono, condition="asystole", priority="high", text="Asystole\x1b[2J", value=None)
    rig.write(red, bed="ICU-4", patient="MRN-0815")
    rig.write(of_bed("audio_pause", at_ns=clock.mono, operator="nurse.kim", detail="120 s"))
    rig.close()
    return tmp_path


def run(site: Path, capsys: pytest.CaptureFixture[str], command: str, *words: str) -> tuple[int, str, str]:
    code = main(["alarms", command, "--config", str(site / "site.toml"), *words])
    out, error = capsys.readouterr()
    assert "MRN" not in out + error
    return code, out, error


def test_log_prints_a_table_oldest_first(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(site, capsys, "log")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        "utc", "bed", "priority", "event", "condition", "text", "value", "limit", "state", "operator",
    ]  # fmt: skip
    assert [line.split()[1] for line in lines[1:]] == [
        "boot", "ICU-3", "ICU-3", "ICU-3", "power_down", "boot", "ICU-4", "ICU-3", "power_down",
    ]  # fmt: skip
    assert " ".join(lines[3].split()[1:]) == "ICU-3 medium acknowledge spo2_low SpO2 low 87 below 90 Ack nurse.kim"
    assert "\x1b" not in out
    assert "Asystole?[2J" in lines[7]


@pytest.mark.parametrize(
    ("words", "alerts"),
    [
        (["--bed", "ICU-4"], ["b"]),
        (["--priority", "medium"], ["a", "a", "a"]),
        (["--since", "3h"], [None, "b", "", None]),
        (["--limit", "2"], ["", None]),
        (["--bed", "ICU-3", "--limit", "2"], ["a", ""]),
        (["--bed", "nowhere"], []),
    ],
)
def test_log_filters(
    site: Path, capsys: pytest.CaptureFixture[str], words: list[str], alerts: list[str | None]
) -> None:
    code, out, _ = run(site, capsys, "log", "--json", *words)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["alarm"]["alert_id"] if "alarm" in each else None for each in found] == alerts


@pytest.mark.parametrize("words", [["--since", "yesterday"], ["--limit", "0"], ["--priority", "red"]])
def test_wrong_filters_are_wrong_use(site: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(site, capsys, "log", *words)
    assert ended.value.code == 2


def test_since_takes_a_moment_in_any_offset(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(site, capsys, "log", "--json", "--since", "2020-01-01T08:00+02:00")[1].count("\n") == 9
    assert run(site, capsys, "log", "--json", "--since", "2999-01-01")[1] == ""


@pytest.mark.alm("ALM-21")
def test_verify_says_what_is_there(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = run(site, capsys, "verify")
    assert (code, error) == (0, "")
    said = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    assert said["entries"] == "9"
    assert said["marks"] == "boot 2  power_down 2"
    assert said["runs"] == "2, 0 without power-down before the next began"
    assert said["chain"].startswith("head        9  ")
    assert out.endswith("ok\n")


@pytest.mark.alm("ALM-21")
def test_verify_names_a_run_that_was_killed_and_the_first_bad_entry(
    site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import shutil

    rig = Rig(site / "data", run_id="run-3")
    rig.write(event("c"))
    shutil.copytree(site / "data", tmp_path / "killed")  # as kill -9 leaves it
    rig.close()
    shutil.rmtree(site / "data")
    (tmp_path / "killed").rename(site / "data")
    rig = Rig(site / "data", run_id="run-4")
    rig.close()
    code, out, _ = run(site, capsys, "verify")
    assert code == 0
    assert "4, 1 without power-down" in out
    assert "no power-down   last entry 11" in out
    run_sql(site / "data" / "alarm-log.sqlite", ("UPDATE entries SET blob = x'00' WHERE number = 6", ()))
    code, out, error = run(site, capsys, "verify")
    assert code == 1
    assert "first bad entry   6" in out
    assert "entries           5" in out
    assert "seal does not open" in error
    assert "ok" not in out.split()


def test_readers_work_while_the_agent_writes(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(site / "data", run_id="run-3")
    rig.write(event("c"))
    assert run(site, capsys, "verify")[0] == 0
    assert '"alert_id":"c"' in run(site, capsys, "log", "--json", "--limit", "1")[1]
    rig.write(event("d"))
    assert run(site, capsys, "verify")[0] == 0
    rig.close()


@pytest.mark.alm("ALM-21")
def test_an_export_verifies_without_key_and_configuration(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = site / "export.jsonl"
    code, printed, said = run(site, capsys, "export", "--out", str(out))
    assert (code, printed) == (0, "")
    assert "9 entries" in said
    assert out.stat().st_mode & 0o777 == 0o600
    (site / "kek").unlink()
    assert main(["alarms", "verify", "--file", str(out)]) == 0
    assert "chain head        9" in capsys.readouterr().out
    text = out.read_bytes()
    out.write_bytes(text.replace(b'"value":87.0', b'"value":97.0', 1))
    assert main(["alarms", "verify", "--file", str(out)]) == 1
    assert "first bad entry   2" in capsys.readouterr().out
    out.write_bytes(text[:-60])
    assert main(["alarms", "verify", "--file", str(out)]) == 1
    out.write_bytes(b"something else\n")
    assert main(["alarms", "verify", "--file", str(out)]) == 1
    assert "not an export" in capsys.readouterr().err


def test_an_export_goes_to_standard_output_and_overwrites_nothing(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(site, capsys, "export")
    assert code == 0
    assert [sorted(json.loads(line)) for line in out.splitlines()] == [
        ["after", "hash"], *[["entry", "hash"]] * 9, ["hash", "through"],
    ]  # fmt: skip
    there = site / "there"
    there.write_text("mine")
    code, _, error = run(site, capsys, "export", "--out", str(there))
    assert (code, there.read_text()) == (1, "mine")
    assert "overwrites nothing" in error


def test_a_log_that_does_not_verify_leaves_no_export(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sql(site / "data" / "alarm-log.sqlite", ("DELETE FROM entries WHERE number = 4", ()))
    code, _, error = run(site, capsys, "export", "--out", str(site / "export.jsonl"))
    assert code == 1
    assert "entry 4 is missing" in error
    assert not list(site.glob("*export*"))


def test_a_table_for_a_spreadsheet(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Rig(site / "data", run_id="run-3")
    rig.write(event("c", text="=HYPERLINK(1)"))
    rig.close()
    code, out, _ = run(site, capsys, "export", "--csv")
    rows: list[dict[str, Any]] = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert [row["number"] for row in rows] == [str(number) for number in range(1, 13)]
    assert (rows[1]["value"], rows[1]["limit"], rows[2]["operator"]) == ("87.0", "below 90", "nurse.kim")
    assert rows[0]["mark"] == "boot"
    assert rows[10]["text"] == "'=HYPERLINK(1)"


def test_report_of_a_log_and_of_its_export_agree(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(site, capsys, "report", "--json")
    result = json.loads(out)
    assert code == 0
    assert [(row["bed"], row["condition"], row["count"]) for row in result["rows"]] == [
        ("ICU-3", "spo2_low", 1), ("ICU-4", "asystole", 1),
    ]  # fmt: skip
    assert result["rows"][0]["median_to_acknowledge_s"] == 20.0
    assert result["rows"][0]["median_duration_s"] == 40.0
    assert result["patients"]["patients"] == 2
    run(site, capsys, "export", "--out", str(site / "export.jsonl"))
    assert main(["alarms", "report", "--file", str(site / "export.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    code, out, _ = run(site, capsys, "report", "--since", "3h")
    assert code == 0
    assert "1 alarms at beds" in out
    assert "top ten patients  100.0%" in out


def test_a_report_of_a_broken_log_counts_what_is_whole_and_says_so(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sql(site / "data" / "alarm-log.sqlite", ("DELETE FROM entries WHERE number = 7", ()))
    code, out, error = run(site, capsys, "report", "--json")
    assert (code, json.loads(out)["all"]["count"]) == (1, 1)
    assert "only up to a break: entry 7 is missing" in error


@pytest.mark.parametrize("command", ["log", "verify", "export", "report"])
def test_what_cannot_be_read_is_told_with_what_to_do(
    site: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    log = site / "data" / "alarm-log.sqlite"
    whole = log.read_bytes()
    (site / "kek").chmod(0o600)
    (site / "kek").write_bytes(bytes(range(2, 34)))
    code, out, error = run(site, capsys, command)
    assert (code, out) == (1, "")
    assert "another key" in error and "give the key back" in error
    (site / "kek").unlink()
    code, _, error = run(site, capsys, command)
    assert code == 1
    assert "key is missing" in error
    (site / "kek").write_bytes(KEK)
    (site / "kek").chmod(0o400)
    log.write_bytes(b"no database at all" * 500)
    code, _, error = run(site, capsys, command)
    assert code == 1
    assert "keep a copy" in error
    log.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert run(site, capsys, command)[0] == 1
    log.unlink()
    code, _, error = run(site, capsys, command)
    assert code == 1
    assert "there is no alarm log" in error
