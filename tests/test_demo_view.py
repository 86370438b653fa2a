"""The terminal view: what a person reads for a given status."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from edge_agent import NOTICE, view


def value(number: float | None, unit: str, validity: str = "valid", age_s: float = 0.5) -> dict[str, Any]:
    return {"value": number, "unit": unit, "validity": validity, "age_s": age_s}


def alarm(priority: str, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "alert_id": "1-1",
        "condition": "c",
        "kind": "physiological",
        "priority": priority,
        "state": "On",
        "text": text,
        "value": None,
        "limit": "",
        "since_s": 3.0,
        **fields,
    }


def bed(name: str, **fields: Any) -> dict[str, Any]:
    quiet = {"priority": "none", "visual": False, "audio": False, "inactivation": None}
    return {"id": name, "preset": "adult", "patient": True, "values": {}, "alarm": quiet, "alarms": [], **fields}


STATUS: dict[str, Any] = {
    "gateway": "icu-gw-1",
    "version": "0.1.0",
    "instance": "i",
    "uptime_s": 3675,
    "notice": NOTICE,
    "beds": [
        bed(
            "ICU-1",
            values={
                "heart_rate": value(72.0, "/min"),
                "spo2": value(97.0, "%"),
                "nibp_sys": value(121.0, "mm[Hg]", age_s=300.0),
                "nibp_dia": value(78.0, "mm[Hg]", age_s=300.0),
                "temp": value(36.64, "Cel", "questionable"),
                "perfusion_index": value(1.4, "%"),
            },
        ),
        bed(
            "ICU-2",
            patient=False,
            values={"spo2": value(None, "%", "not_available"), "heart_rate": value(55.0, "/min", "invalid")},
            alarm={
                "priority": "high",
                "visual": True,
                "audio": False,
                "inactivation": {"state": "audio-paused", "remaining_s": 96.0},
            },
            alarms=[
                alarm("low", "Source silent", kind="technical", source="oximeter"),
                alarm("high", "Desaturation", value=78.0, limit="below 80", state="Ack", since_s=12.0),
            ],
        ),
    ],
    "gateway_alarms": [],
    "sources": [
        {
            "name": "hl7@mllp-listen://127.0.0.1:2575",
            "driver": "hl7",
            "link": "mllp-listen://127.0.0.1:2575",
            "beds": ["ICU-1", "ICU-2", "ICU-3"],
            "state": "connected",
            "detail": "1 peer",
            "items": 212,
            "rejects": 0,
        },
        {
            "name": "nonin@serial:///tmp/oximeter",
            "driver": "nonin",
            "link": "serial:///tmp/oximeter",
            "beds": ["ICU-1"],
            "state": "lost",
            "detail": "no such file",
            "items": 90,
            "rejects": 2,
        },
    ],
    "latency": {"p50_us": 210, "p99_us": 900, "count": 200},
    "buffer": {"stored": 3000, "pending": 1, "bytes": 1_234_567, "oldest_s": 3.0, "fault": ""},
    "cloud": {
        "state": "connected",
        "forwarded": {"alerts": 3, "data": 400},
        "backlog_records": 2,
        "detail": "",
    },
    "annunciators": [{"kind": "record", "fault": ""}],
}


def drawn(status: dict[str, Any], width: int = 130, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view.render(status, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def line_with(lines: list[str], text: str) -> str:
    found = [line for line in lines if text in line]
    assert len(found) == 1, (text, lines)
    return found[0]


def squeezed(line: str) -> str:
    return " ".join(line.split())


def test_a_whole_screen_reads_as_expected() -> None:
    lines = drawn(STATUS, width=170)
    assert lines[0] == "icu-gw-1  bedside-edge 0.1.0  up 1:01:15"
    assert squeezed(lines[1]) == "bed alarm HR /min SpO2 % NIBP mm[Hg] Temp Cel other"
    assert squeezed(lines[2]) == "ICU-1 none 72 97 121/78 (5 min ago) 36.6? perfusion_index 1.4 %"
    assert line_with(lines, "ICU-2").startswith("ICU-2 (no patient)   !!! HIGH  Desaturation 78 (below 80)")
    assert "! LOW  Source silent [oximeter] technical, 3 s" in line_with(lines, "Source silent")
    assert "audio paused, 96 s left" in line_with(lines, "audio paused")
    assert squeezed(line_with(lines, "nonin@")) == "nonin@serial:///tmp/oximeter ICU-1 lost no such file 90 2"
    assert "3 beds" in line_with(lines, "hl7@")
    assert line_with(lines, "alarm path") == "alarm path  p50 0.21 ms p99 0.90 ms (receipt to signal, 200 chunks)"
    assert "3000 records, 1 on their way to the disk, 1.2 MB, oldest 3 s" in line_with(lines, "buffer")
    assert line_with(lines, "cloud") == "cloud       connected, forwarded 3 alerts and 400 data records, backlog 2"
    assert "Not a medical device" in " ".join(lines)


@pytest.mark.parametrize("validity", ["invalid", "not_available"])
def test_a_value_that_is_not_valid_shows_no_number(validity: str) -> None:
    status = {**STATUS, "beds": [bed("B", values={"spo2": value(83.0, "%", validity)})]}
    row = line_with(drawn(status), "B ")
    assert "---" in row
    assert "83" not in row


def test_text_from_a_device_cannot_steer_the_terminal() -> None:
    status = {**STATUS, "beds": [bed("B\x1b[2J", alarms=[alarm("medium", "x\x07\x9b2K[red]y")])]}
    console = Console(width=120, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(view.render(status, 120, 40))
    text = capture.get()
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert "x??2K[red]y" in text
    assert "\x1b" not in view.plain_line(status)


@pytest.mark.parametrize(
    ("priority", "pattern", "colour"),
    [("high", "!!! HIGH", "41"), ("medium", "!! MEDIUM", "43"), ("low", "! LOW", "46")],
)
def test_priority_has_pattern_word_and_colour(priority: str, pattern: str, colour: str) -> None:
    console = Console(width=120, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(view.render({**STATUS, "beds": [bed("B", alarms=[alarm(priority, "t")])]}, 120, 40))
    assert f"{colour}m {pattern} " in capture.get()


def test_beds_with_alarms_stay_visible_when_lines_are_few() -> None:
    beds = [bed(f"ICU-{number}", values={"spo2": value(97.0, "%")}) for number in range(20)]
    beds[17]["alarms"] = [alarm("high", "Asystole"), alarm("low", "Battery")]
    lines = drawn({**STATUS, "beds": beds}, height=20)
    assert len(lines) <= 20
    assert "Asystole" in line_with(lines, "ICU-17")
    shown = [line.split()[0] for line in lines if line.startswith("ICU-")]
    assert shown == sorted(shown, key=lambda name: int(name.removeprefix("ICU-")))
    assert f"{20 - len(shown)} more beds are not shown" in line_with(lines, "not shown")
    assert "highest alarm among them: none" in line_with(lines, "not shown")


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
@pytest.mark.parametrize("height", [12, 24, 50])
def test_no_line_wraps_and_the_notice_stays_on_the_screen(width: int, height: int) -> None:
    status = copy.deepcopy(STATUS)
    status["beds"] = [copy.deepcopy(status["beds"][index % 2]) for index in range(8)]
    status["notice"] = "Not a medical device."
    lines = drawn(status, width, height)
    assert max(map(len, lines)) <= width
    assert lines[-1].endswith("Not a medical device.")
    if height >= 24:
        assert len(lines) <= height, lines


def test_faults_are_told() -> None:
    status = copy.deepcopy(STATUS)
    status["buffer"]["fault"] = "disk full"
    status["cloud"] = None
    status["annunciators"] = [{"kind": "gpio", "fault": "no chip labelled x"}]
    status["gateway_alarms"] = [alarm("medium", "Buffer fault", kind="technical")]
    status["latency"] = {"p50_us": 0, "p99_us": 0, "count": 0}
    lines = drawn(status)
    assert "fault: disk full" in line_with(lines, "buffer      ")
    assert line_with(lines, "cloud ") == "cloud       no state from cloud-sync"
    assert line_with(lines, "annunciator") == "annunciator fault: gpio: no chip labelled x"
    assert "!! MEDIUM  Buffer fault technical, 3 s" in line_with(lines, "Buffer fault")
    assert "not measured yet" in line_with(lines, "alarm path")


def test_plain_line() -> None:
    assert view.plain_line(STATUS) == (
        "beds 2 | alarms: ICU-2 HIGH Desaturation (physiological, Ack); "
        "ICU-2 LOW Source silent [oximeter] (technical, On) | "
        "hl7@mllp-listen://127.0.0.1:2575=connected nonin@serial:///tmp/oximeter=lost | "
        "latency p50 0.21 ms p99 0.90 ms | buffered 3000 pending 1 | cloud connected forwarded 403"
    )


def test_live_draws_every_status_and_leaves_the_screen() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, height=40, force_terminal=True)

    def statuses() -> Iterator[dict[str, Any]]:
        yield STATUS
        yield {**STATUS, "gateway": "second-status"}
        raise KeyboardInterrupt

    view.live(statuses(), console)
    text = stream.getvalue()
    assert text.index("icu-gw-1") < text.index("second-status")
    assert text.rindex("\x1b[?1049l") > text.index("second-status")  # back to the normal screen
