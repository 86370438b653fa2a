"""`edge-agent simulate`: what the drivers decode at the far end is the recording, value by value."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import serial

import drivers
from drivers.contract import Decoder
from drivers.sim.recorded import RecordedError, Row
from edge_agent.__main__ import main
from edge_agent.demo import frames, wire
from edge_agent.demo.compose import free_port
from edge_agent.demo.monitor import END, START, control_id
from edge_agent.demo.simulate import Report, Settings, TargetError, parse_target, simulate
from edge_agent.links import open_link
from edge_agent.records import Chunk, Observation

START_TIME = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SETTLE_S", 0.1)
    monkeypatch.setattr(wire, "_DIAL_S", 0.01)


def recording(count: int = 300) -> list[Row]:
    """Every second another pair, with gaps in one value, in the other and in both."""
    rows = []
    for second in range(count):
        spo2 = None if second % 7 == 3 or second % 35 == 5 else float(70 + second % 31)
        pulse = None if second % 5 == 2 or second % 35 == 5 else float(30 + second % 221)
        rows.append(Row(float(second), {"spo2": spo2, "pulse_rate": pulse}))
    return rows


def observed(decoder: Decoder, chunks: list[bytes]) -> Iterator[Observation]:
    for number, data in enumerate(chunks):
        for item in decoder.feed(Chunk(number * 1_000_000, data)):
            if isinstance(item, Observation):
                yield item


async def received_by_monitor(rows: list[Row], settings: Settings) -> tuple[list[bytes], Report, int]:
    """Messages in order; the count is how many were still without acknowledgement when a later one came."""
    got: list[bytes] = []
    open_acknowledgements = overtaken = 0

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_acknowledgements, overtaken
        try:
            while True:
                frame = await reader.readuntil(END)
                overtaken += open_acknowledgements
                open_acknowledgements += 1
                got.append(frame)
                await asyncio.sleep(0)
                open_acknowledgements -= 1
                about = control_id(frame[1:-2]).decode()
                writer.write(START + f"MSH|^~\\&|G\rMSA|AA|{about}\r".encode() + END)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    target = parse_target("hl7", f"mllp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    report = Report()
    await asyncio.wait_for(simulate("hl7", rows, target, settings, report), 60)
    server.close()
    return got, report, overtaken


async def test_hl7_carries_every_value_with_its_time_and_place() -> None:
    rows = [
        row._replace(values={**row.values, "temp": 36.6 + index / 10, "abp_sys": -2.5})
        for index, row in enumerate(recording(50))
    ]
    settings = Settings(speed=0.0, location="ICU^^3", patient_id="P-7", start=START_TIME)
    got, report, overtaken = await received_by_monitor(rows, settings)
    assert (report.rows, report.acknowledged, report.resent, report.connects) == (50, 50, 0, 1)
    assert overtaken == 0
    assert len({control_id(frame[1:]) for frame in got}) == 50
    decoder = drivers.load("hl7").decoder()
    for row, frame in zip(rows, got, strict=True):
        items = list(observed(decoder, [frame]))
        assert {item.term: item.value for item in items} == pytest.approx(row.values)
        assert {(item.location, item.subject) for item in items} == {("ICU^^3", "P-7")}
        times = {datetime.fromisoformat(item.device_time) for item in items if item.device_time}
        assert times == {START_TIME + timedelta(seconds=row.at_s)}


def each_row(items: list[Observation], a_row: int) -> list[dict[str, float | None]]:
    """Values by row; formats that send a second in several packets repeat each row."""
    spo2 = [item.value for item in items if item.term == "spo2"]
    pulse = [item.value for item in items if item.term == "pulse_rate"]
    assert len(spo2) == len(pulse) == len(items) // 2
    for values in (spo2, pulse):
        assert all(values[n] == values[n - n % a_row] for n in range(len(values)))
    return [{"spo2": a, "pulse_rate": b} for a, b in zip(spo2[::a_row], pulse[::a_row], strict=True)]


@pytest.mark.parametrize("format_name", frames.OXIMETER_FORMATS)
async def test_oximeter_on_a_pty_carries_every_value(tmp_path: Path, format_name: str) -> None:
    rows, link, report = recording(), tmp_path / "oximeter", Report()
    settings = Settings(speed=0.0, format_name=format_name)
    task = asyncio.create_task(simulate("oximeter", rows, parse_target("oximeter", f"pty://{link}"), settings, report))
    while not link.is_symlink():
        await asyncio.sleep(0)

    def read() -> list[bytes]:
        got = []
        with serial.Serial(str(link), 9600, timeout=10) as port:
            try:
                while data := port.read(max(1, port.in_waiting)):
                    got.append(data)
            except serial.SerialException:
                return got  # the device has hung up
        raise AssertionError("the device stopped without hanging up")

    chunks = await asyncio.wait_for(asyncio.to_thread(read), 60)
    await asyncio.wait_for(task, 10)
    assert report.rows == len(rows)
    items = list(observed(drivers.load("nonin").decoder(), chunks))
    a_row = 3 if format_name in ("2", "7") else 1
    assert each_row(items, a_row) == [row.values for row in rows]


async def test_oximeter_dials_a_tcp_line() -> None:
    rows, report, got = recording(20), Report(), bytearray()
    ended = asyncio.Event()

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read(-1))
        writer.close()
        ended.set()

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    target = parse_target("oximeter", f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await asyncio.wait_for(simulate("oximeter", rows, target, Settings(speed=0.0, format_name="8"), report), 30)
    await asyncio.wait_for(ended.wait(), 10)
    server.close()
    items = list(observed(drivers.load("nonin").decoder(), [bytes(got)]))
    assert each_row(items, 1) == [row.values for row in rows]


class Sink:
    def __init__(self, wanted: int) -> None:
        self.chunks: list[Chunk] = []
        self.complete = asyncio.Event()
        self._wanted = wanted

    def chunk(self, chunk: Chunk) -> None:
        if chunk.channel == "2a37":
            self.chunks.append(chunk)
        if len(self.chunks) == self._wanted:
            self.complete.set()

    def state(self, state: str, at_ns: int, detail: str) -> None:
        pass

    def closed(self, channel: str, at_ns: int) -> None:
        pass


async def test_wearable_is_found_on_the_air_and_carries_every_value() -> None:
    rates = [None if second % 9 == 4 else float(40 + 5 * second) for second in range(50)]
    rows = [Row(float(second), {"heart_rate": rate}) for second, rate in enumerate(rates)]
    port, report, sink = free_port(), Report(), Sink(len(rows))
    task = asyncio.create_task(
        simulate("wearable", rows, parse_target("wearable", f"radio://127.0.0.1:{port}"), Settings(speed=0.0), report)
    )
    url = f"ble://name/HRM-SIM?hci=tcp-client:127.0.0.1:{port}"
    driver = drivers.load("gatt")
    link = asyncio.create_task(open_link(url, silence_s=30, channels=driver.channels).run(sink))
    try:
        async with asyncio.timeout(30):
            await sink.complete.wait()
            await task
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
    assert report.rows == len(rows)
    decoder = driver.decoder()
    got = [
        item.value
        for chunk in sink.chunks
        for item in decoder.feed(chunk)
        if isinstance(item, Observation) and item.term == "heart_rate"
    ]
    assert got == rates


@pytest.mark.parametrize(
    ("device", "url", "says"),
    [
        ("hl7", "tcp://h:1", "mllp://HOST:PORT"),
        ("hl7", "mllp://h", "names no host and port"),
        ("oximeter", "pty://oximeter", "three slashes"),
        ("oximeter", "pty:///", "three slashes"),
        ("oximeter", "tcp://h:99999", "tcp://HOST:PORT"),
        ("wearable", "mllp://h:1", "radio://HOST:PORT"),
    ],
)
def test_a_wrong_target_says_what_to_write(device: str, url: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        parse_target(device, url)


def test_recorded_rows_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "vitals.csv"
    path.write_text("time,spo2\n0,97\n1,\n2,9x\n")
    with pytest.raises(RecordedError, match=r"vitals\.csv: line 4: spo2 is no number"):
        frames.recorded_rows(path)
    path.write_text("time,spo2\n10,97\n11,\n12,95\n")
    assert frames.recorded_rows(path, 2) == [Row(10.0, {"spo2": 97.0}), Row(11.0, {"spo2": None})]
    path.write_text("spo2\n")
    with pytest.raises(RecordedError, match="holds no row"):
        frames.recorded_rows(path)


def test_command_refuses_what_it_cannot_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vitals.csv"
    path.write_text("temp\n36.6\n")
    words = ["simulate", "--as", "oximeter", "--file", str(path), "--to"]
    assert main([*words, f"pty://{tmp_path}/line"]) == 78
    assert "has no column that this device sends; it sends spo2, pulse_rate" in capsys.readouterr().err
    assert main([*words, "mllp://h:1"]) == 2
    assert main([*words[:4], str(tmp_path / "absent.csv"), "--to", f"pty://{tmp_path}/line"]) == 78
    path.write_text("spo2\n97\n")
    (tmp_path / "line").write_text("mine")
    assert main([*words, f"pty://{tmp_path}/line"]) == 1
    assert (tmp_path / "line").read_text() == "mine"


def test_simulated_rows_are_the_patients() -> None:
    rows = list(frames.simulated_rows("stable", 3, 4))
    assert [row.at_s for row in rows] == [0.0, 1.0, 2.0, 3.0]
    assert rows == list(frames.simulated_rows("stable", 3, 4))
    assert rows != list(frames.simulated_rows("stable", 4, 4))


def test_what_a_device_changes_or_leaves_out_is_known() -> None:
    rows = [Row(0.0, {"spo2": 97.4, "pulse_rate": 60.0, "temp": 36.6}), Row(1.0, {"spo2": None, "pulse_rate": 60.5})]
    assert frames.rounded(rows, "oximeter") == 2
    assert frames.rounded(rows, "hl7") == 0
    assert frames.left_out("oximeter", rows[0].values) == (["temp"], True)
    assert frames.left_out("wearable", ["spo2"]) == (["spo2"], False)
    assert frames.left_out("hl7", ["temp"]) == ([], True)
