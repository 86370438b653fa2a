"""The command line as a user meets it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from running_agent import Bedside, dial, running

import drivers
from bench.messages import frame
from edge_agent.__main__ import COMMANDS, main
from edge_agent.config import Config
from edge_agent.config_cloud import Section

BIN = Path(sys.executable).parent
DOCS = Path(__file__).parent.parent / "docs"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_decode_prints_items_and_never_fails_on_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "payload.hex"
    path.write_text("00 48")
    assert main(["decode", "--driver", "gatt", "--channel", "2a37", "--hex", str(path)]) == 0
    (item,) = lines(capsys.readouterr().out)
    assert item == {"item": "observation", "term": "heart_rate", "value": 72.0, "unit": "/min", "validity": "valid"}
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)) * 20)
    for driver in ("hl7", "nonin", "masimo", "gatt"):
        assert main(["decode", "--driver", driver, "--channel", "2a37", str(noise)]) == 0
        assert all(item["item"] != "observation" for item in lines(capsys.readouterr().out))


@pytest.mark.parametrize("chunk", ["0", "1", "7"])
def test_decode_in_pieces_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str], chunk: str) -> None:
    path = tmp_path / "message.bin"
    path.write_bytes(frame(3, 3) + frame(4, 3))
    assert main(["decode", "--driver", "hl7", "--chunk", chunk, str(path)]) == 0
    items = lines(capsys.readouterr().out)
    assert [item["item"] for item in items] == [*["observation"] * 10, "reply"] * 2


def test_decode_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--driver", "none", "x"]) == 2
    assert "known: " in capsys.readouterr().err
    assert main(["decode", "--driver", "nonin", "--option", "format=99", "x"]) == 2
    assert "nonin" in capsys.readouterr().err
    assert main(["decode", "--driver", "nonin", str(tmp_path / "missing")]) == 1
    bad = tmp_path / "bad.hex"
    bad.write_text("zz")
    assert main(["decode", "--driver", "nonin", "--hex", str(bad)]) == 1


def test_drivers_lists_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drivers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == sorted(drivers.BUILT_IN)
    assert all(len(row["evidence"]) > 20 and row["links"] for row in rows)
    assert main(["drivers"]) == 0
    assert "evidence" in capsys.readouterr().out


def test_replay_prints_the_same_alarms_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bedside = Bedside(tmp_path)
    capture = tmp_path / "night.cap"
    values = [97.0] * 5 + [80.0] * 5 + [97.0] * 10
    capture.write_text(
        "# driver: hl7\n"
        + "".join(f"< {second}.0 - {frame(second, 3, value).hex(' ')}\n" for second, value in enumerate(values))
    )
    config = bedside.write()
    printed = []
    for _ in range(2):
        assert main(["replay", "--config", str(config), str(capture)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    events = [
        (item["condition"], item["event"], item["at_s"])
        for item in lines(printed[0])
        if "event" in item and "condition" in item
    ]
    assert ("spo2_low", "start", 5.0) in events
    assert any(condition.startswith("source_silent") for condition, _, _ in events)
    signals = [item for item in lines(printed[0]) if "signal" in item]
    assert signals[0]["signal"] == "high"


def test_replay_says_when_no_source_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = tmp_path / "x.cap"
    capture.write_text("# driver: nonin\n< 0 - 00\n")
    assert main(["replay", "--config", str(Bedside(tmp_path).write()), str(capture)]) == 1
    assert "nonin" in capsys.readouterr().err


def test_doctor_tells_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bedside = Bedside(tmp_path)
    wrong = (
        '[[source]]\nname = "cable"\ndriver = "nonin"\nlink = "serial:///dev/no-such-port"\nbed = "ICU-3"',
        '[[annunciator]]\nkind = "gpio"\nchip = "no-such-chip"\nred = 1',
        '[cloud.kafka]\nbootstrap = "127.0.0.1:1"\nsecurity = "plaintext"',
    )
    config = bedside.write(*wrong)
    assert main(["doctor", "--config", str(config)]) == 1
    told = capsys.readouterr().out
    for part in ("serial", "gpio", "broker"):
        line = next(line for line in told.splitlines() if line.startswith(f"[FAIL] {part}"))
        assert "do: " in told.split(line, 1)[1].splitlines()[1]
    bedside.key.unlink()
    assert main(["doctor", "--config", str(config)]) == 1
    assert "[FAIL] key" in capsys.readouterr().out


def test_doctor_finds_nothing_wrong_with_a_good_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(Bedside(tmp_path).write())]) == 0
    assert "FAIL" not in capsys.readouterr().out


async def test_operators_commands_and_buffer(tmp_path: Path) -> None:
    bedside = Bedside(tmp_path)
    config = bedside.write()

    async def edge_agent(*words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            BIN / "edge-agent", *words, "--config", config,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    async with running(config):
        monitor = await dial(bedside.port)
        monitor.send(frame(1, 3, 80.0))
        await monitor.reply()
        code, text = await edge_agent("status")
        assert code == 0 and "ALARM HIGH SpO2 low" in text and "Not a medical device" in text
        assert (await edge_agent("pause", "--bed", "ICU-3", "--seconds", "60"))[1].startswith("audio paused for 60 s")
        assert (await edge_agent("pause", "--bed", "ICU-3", "--seconds", "181"))[0] == 1
        assert (await edge_agent("resume", "--bed", "ICU-3"))[0] == 0
        assert (await edge_agent("acknowledge", "--bed", "ICU-3"))[1] == "acknowledged 1\n"
        assert "no bed 'ICU-9'" in (await edge_agent("acknowledge", "--bed", "ICU-9"))[1]
        assert (await edge_agent("admit", "--bed", "ICU-3", "--patient", "P1"))[0] == 0
        assert (await edge_agent("discharge", "--bed", "ICU-3"))[0] == 0
        code, text = await edge_agent("metrics")
        assert code == 0 and 'edge_agent_items_total{source="monitor"} 10' in text
        for command in ("stats", "verify"):
            code, text = await edge_agent("buffer", command)
            assert code == 0, text
        code, text = await edge_agent("buffer", "export", "--stream", "data")
        assert '"spo2"' in text
    code, text = await edge_agent("status")
    assert code == 1 and "no agent answers" in text


def test_an_agent_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("[gateway]\nidd = 3\n")
    for program in (["edge-agent", "run"], ["cloud-sync", "run"]):
        done = subprocess.run(
            [BIN / program[0], program[1], "--config", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 78
        assert f"{path}:2: gateway.idd: unknown key" in done.stderr


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out


def test_every_configuration_key_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()
    keys, waiting = set(), [Config]
    while waiting:
        section = waiting.pop()
        for key, field in section.model_fields.items():
            tables = [each for each in _types(field.annotation) if issubclass(each, Section)]
            waiting += tables
            if not tables:
                keys.add(f"{section.__name__}.{key}")
    assert len(keys) > 80
    assert not [key for key in keys if f"`{key.rpartition('.')[2]}`" not in text]


def _types(annotation: object) -> list[type]:
    """The classes that an annotation speaks of."""
    inner = [each for part in typing.get_args(annotation) for each in _types(part)]
    return [*inner, annotation] if isinstance(annotation, type) and not typing.get_args(annotation) else inner
