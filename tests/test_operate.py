"""The operator's commands against a running agent, and the view that comes back when the agent does."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_agent import Bedside, dial, running, until

from bench.messages import frame
from edge_agent.__main__ import main, parser
from edge_agent.agent import Agent
from edge_agent.commands import operate
from edge_agent.control import ControlClient
from edge_agent.view import Lost

LOW, NORMAL = 80.0, 97.0


@pytest.fixture
def bedside(tmp_path: Path) -> Bedside:
    return Bedside(tmp_path)


@pytest.fixture
def run(bedside: Bedside, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command against the agent of `bedside`, as a person does: exit code, output, error output."""

    async def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        command, *rest = words
        code = await asyncio.to_thread(main, [command, "--socket", str(bedside.folder / "control.sock"), *rest])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def squeezed(text: str) -> str:
    return " ".join(text.split())


async def low_spo2(bedside: Bedside, agent: Agent) -> None:
    """ICU-3 desaturates."""
    monitor = await dial(bedside.port)
    monitor.send(frame(1, 3, LOW))
    await monitor.reply()
    await until(lambda: agent.pipeline.alarms.signal("ICU-3").priority != "none", "the alarm")
    monitor.close()


async def test_watch_once_shows_what_the_agent_has(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()) as agent:
        await low_spo2(bedside, agent)
        for size in ("80x24", "40x15", "120x40"):
            for words in ((), ("--bed", "ICU-3")):
                code, out, err = await run("watch", "--once", "--size", size, *words)
                assert (code, err) == (0, "")
                width, height = map(int, size.split("x"))
                lines = out.splitlines()
                assert max(map(len, lines)) <= width and len(lines) <= height
                assert any(squeezed(line).startswith("SpO2 80↓ ≥90") for line in lines)
                assert "ICU-3" in out and "HIGH" in out and "Not a medical device" in squeezed(out)
        assert "≥90" in (await run("watch", "--once", "--size", "120x40"))[1]
        code, out, err = await run("watch", "--once", "--bed", "ICU-9")
        assert (code, out) == (1, "") and "no bed 'ICU-9'; known: ICU-3, ICU-4" in err


async def test_watch_writes_an_image(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()):
        image = bedside.folder / "watch.svg"
        assert await run("watch", "--svg", str(image), "--size", "80x24") == (0, "", "")
        assert image.read_text().startswith("<svg") and "ICU-3" in image.read_text()
        code, _, err = await run("watch", "--svg", str(bedside.folder / "absent" / "x.svg"))
        assert code == 1 and "cannot be written: No such file" in err


@pytest.mark.parametrize("size", ["80", "80x", "x24", "19x24", "80x4", "ax b"])
def test_a_size_is_columns_and_lines(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--size", size])
    assert ended.value.code == 2 and "for example 80x24" in capsys.readouterr().err


async def test_a_trend_reaches_the_screen(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()) as agent:
        await low_spo2(bedside, agent)
        term = agent.pipeline.latest["ICU-3"]
        at_ns = next(iter(term.values())).at_ns
        agent.trends.sample({"ICU-3": term}, at_ns)
        agent.trends.sample({"ICU-3": term}, at_ns + 5_000_000_000)
        _, out, _ = await run("watch", "--once", "--size", "80x24", "--bed", "ICU-3")
        assert "last 10 min" in out and any(sign in out for sign in "▁▂▃▄▅▆▇█")
        _, out, _ = await run("watch", "--once", "--ascii", "--size", "80x24", "--bed", "ICU-3")
        assert out.isascii() and "80<" in out


async def test_pauses_and_resume(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()) as agent:
        signal = agent.pipeline.alarms.signal
        code, out, _ = await run("pause", "--bed", "ICU-3", "--seconds", "30")
        assert (code, out) == (0, "audio paused for 30 s; light and status go on\n")
        assert (signal("ICU-3").inactivation, signal("ICU-4").inactivation) == ("audio_paused", "")
        code, out, _ = await run("pause", "--bed", "ICU-3", "--alarm")
        assert (code, out) == (0, "alarm paused for 120 s; status goes on\n")
        assert signal("ICU-3").inactivation == "alarm_paused"
        _, out, _ = await run("watch", "--once", "--size", "80x24")
        assert "ALARM PAUSED 1:" in out or "ALARM PAUSED 2:00" in out
        assert (await run("resume", "--bed", "ICU-3"))[0] == 0
        assert signal("ICU-3").inactivation == ""
        code, _, err = await run("pause", "--bed", "ICU-3", "--seconds", "181")
        assert code == 1 and err.startswith("edge-agent: ") and "18" in err


async def test_off_only_where_the_organisation_allows_it(bedside: Bedside, run: Callable[..., Any]) -> None:
    config = bedside.write()
    config.write_text(config.read_text().replace("[alarms]", "[alarms]\naudio_off = true"))
    async with running(config) as agent:
        code, out, _ = await run("audio-off", "--bed", "ICU-3")
        assert code == 0 and out.startswith("AUDIO OFF on ICU-3, until `edge-agent resume --bed ICU-3`")
        assert agent.pipeline.alarms.signal("ICU-3").inactivation == "audio_off"
        code, out, err = await run("alarm-off", "--bed", "ICU-3")
        assert (code, out) == (1, "") and "not allowed" in err
        assert agent.pipeline.alarms.signal("ICU-3").inactivation == "audio_off"
        assert "AUDIO OFF" in (await run("watch", "--once", "--size", "40x15"))[1]


@pytest.mark.alm("ALM-20")
async def test_limits_are_shown_changed_and_refused(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()):
        code, before, _ = await run("limits", "--bed", "ICU-3")
        rows = {line.split()[0]: squeezed(line) for line in before.splitlines()[2:]}
        assert code == 0 and before.startswith("bed ICU-3, preset immediate\n")
        assert rows["spo2_low"].startswith("spo2_low below 90 ") and "changed" not in before
        code, out, _ = await run("limit", "--bed", "ICU-3", "spo2_low", "below 85", "--delay", "5")
        assert (code, out) == (0, "ICU-3 spo2_low: below 85, delay 5 s, until the next patient\n")
        _, after, _ = await run("limits", "--bed", "ICU-3")
        assert any(
            line.startswith("spo2_low") and "below 85" in line and "5 s" in line and line.endswith("changed")
            for line in after.splitlines()
        )
        found = json.loads((await run("limits", "--bed", "ICU-3", "--json"))[1])
        row = next(each for each in found["limits"] if each["condition"] == "spo2_low")
        assert (row["present"], row["delay_s"], row["changed"]) == ("below 85", 5, True)
        assert "below 90" in (await run("limits", "--bed", "ICU-4"))[1], "of the other bed nothing changes"
        for words in (("no_such", "below 85"), ("spo2_low", "below 500"), ("spo2_low", "under 85")):
            code, out, err = await run("limit", "--bed", "ICU-3", *words)
            assert (code, out) == (1, "") and len(err) > 30, words
        _, out, _ = await run("limits", "--bed", "ICU-3")
        assert out == after, "what was refused changed nothing"
        assert (await run("preset", "--bed", "ICU-3", "adult"))[:2] == (
            0,
            "ICU-3: preset adult, until the next patient\n",
        )
        assert "preset adult" in (await run("watch", "--once", "--size", "80x24"))[1]
        code, _, err = await run("preset", "--bed", "ICU-3", "no-such")
        assert code == 1 and "no preset 'no-such'" in err


async def test_acknowledge_takes_the_end_of_an_id_as_the_screen_shows_it(
    bedside: Bedside, run: Callable[..., Any]
) -> None:
    async with running(bedside.write()) as agent:
        await low_spo2(bedside, agent)
        _, out, _ = await run("watch", "--once", "--size", "120x40")
        shown = next(line for line in out.splitlines() if " id " in line).split(" id ")[1].strip()
        assert len(shown) < 12
        code, _, err = await run("acknowledge", "--alert", "zz" + shown)
        assert code == 1 and "no active alarm has the id" in err
        assert (await run("acknowledge", "--alert", shown))[:2] == (0, "acknowledged 1\n")
        assert "acknowledged" in (await run("watch", "--once", "--size", "120x40"))[1]
        (alarm,) = (each for each in agent.pipeline.alarms.view("ICU-3", 0)["alarms"] if each["state"] == "Ack")
        assert alarm["alert_id"].endswith(shown)


def test_an_end_that_fits_two_alarms_is_refused() -> None:
    class Two:
        def call(self, op: str, **_request: Any) -> dict[str, Any]:
            alarms = [{"alert_id": "run-1"}, {"alert_id": "run-11"}]
            return {"status": {"beds": [{"alarms": alarms}], "gateway_alarms": []}}

    two: Any = Two()
    assert operate._whole_id(two, "-1") == "run-1"
    assert operate._whole_id(two, "run-1") == "run-1"
    with pytest.raises(operate.Refused, match="2 active alarms"):
        operate._whole_id(two, "1")


async def test_self_test_tells_every_part_and_fails_with_one(bedside: Bedside, run: Callable[..., Any]) -> None:
    async with running(bedside.write()) as agent:
        code, out, _ = await run("self-test")
        assert "annunciator record:" in out and "source monitor: " in out
        assert (code == 0) == ("source monitor: well" in out and not agent.faults)
        monitor = await dial(bedside.port)

        async def well() -> None:  # an alarm, of a silent monitor too, would cut the test
            for number in itertools.count(1):
                monitor.send(frame(number, 3 + number % 2, NORMAL))
                await monitor.reply()
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(well())
        await until(lambda: agent.feeds["monitor"].state == "connected", "the monitor")
        code, out, _ = await run("self-test", "--annunciators")
        sending.cancel()
        monitor.close()
        told = out.replace(str(bedside.folder) + "/", "").splitlines()
        assert told[0].startswith("lamps and sounds are being tried")
        assert code == 0 and told[1].startswith("annunciator record:edges.jsonl: test passed")
        assert told[2:] == ["source monitor: well"]
        outputs = {line["output"] for line in bedside.edge_lines()}
        assert {"red", "yellow", "cyan", "buzzer"} <= outputs, "the lamps and the buzzer were really tried"


async def test_the_view_is_loud_without_an_agent_and_comes_back_with_it(bedside: Bedside) -> None:
    config = bedside.write()
    socket = bedside.folder / "control.sock"
    async with running(config):
        client = await asyncio.to_thread(ControlClient, socket)
        statuses = operate.follow(client, socket, 0.0, Lost, sleep=lambda _seconds: None)
        first = await asyncio.to_thread(next, statuses)
        assert isinstance(first, dict) and [bed["id"] for bed in first["beds"]] == ["ICU-3", "ICU-4"]
    gone = await asyncio.to_thread(next, statuses)
    assert isinstance(gone, Lost) and gone.since_s < 1.0
    still = await asyncio.to_thread(next, statuses)
    assert isinstance(still, Lost) and still.since_s > gone.since_s and "no agent answers" in still.detail
    async with running(config):
        back = await asyncio.to_thread(next, statuses)
        assert isinstance(back, dict) and back["instance"] != first["instance"]
        statuses.close()


async def test_without_an_agent_a_command_says_what_to_do(run: Callable[..., Any]) -> None:
    for words in (("watch", "--once"), ("limits", "--bed", "ICU-3"), ("self-test",)):
        code, out, err = await run(*words)
        assert (code, out) == (1, "") and "Is edge-agent running" in err


def test_every_command_of_the_nurses_page_is_one() -> None:
    page = (Path(__file__).parent.parent / "docs" / "nurse.md").read_text()
    commands = re.findall(r"`edge-agent ([^`]+)`", page) + re.findall(r"^    edge-agent (.+)$", page, re.MULTILINE)
    assert len(commands) > 12
    for command in commands:
        words = shlex.split(command, comments=True)
        assert callable(parser(words[0]).parse_args([*words, *_needed(words)]).func), command


def _needed(words: list[str]) -> list[str]:
    """What a sentence that only mentions a command leaves out."""
    return (
        {"admit": ["--bed", "B", "--patient", "P"], "limits": ["--bed", "B"]}.get(words[0], [])
        if len(words) == 1
        else []
    )
