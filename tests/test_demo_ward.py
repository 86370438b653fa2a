"""The demo's patients and the devices that report them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import drivers
from drivers.sim.patient import Patient
from edge_agent.demo.monitor import END, START, control_id
from edge_agent.demo.ward import LOWEST_SPO2, Patients, Script, Ward, bed_names
from edge_agent.records import Chunk, Observation

BEDS = bed_names(3)


def course(script: Script, seconds: int) -> list[float | None]:
    patients = Patients(BEDS, script)
    return [patients.step(second)["ICU-1"]["spo2"] for second in range(seconds)]


def test_spo2_falls_under_every_desaturation_limit_and_recovers() -> None:
    values = course(Script(falls_s=15, recovers_s=75), 120)
    own = Patient(1, nibp_interval_s=60)
    healthy = [own.step()["spo2"] for _ in range(120)]
    assert values[:16] == healthy[:16]
    assert min(value for value in values[:16] if value is not None) > 90
    assert values[25] == values[70] == LOWEST_SPO2
    assert values[85:] == healthy[85:]


def test_the_same_demo_every_time() -> None:
    assert course(Script(), 60) == course(Script(), 60)


async def test_devices_send_what_the_patients_have(tmp_path: Path) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                frame = await reader.readuntil(END)
                received.put_nowait(frame)
                about = control_id(frame[1:-2]).decode()
                writer.write(START + f"MSH|^~\\&|G\rMSA|AA|{about}\r".encode() + END)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told: list[str] = []
    script = Script(falls_s=0, pulled_s=0, plugged_s=1)
    async with Ward(BEDS, port, tmp_path / "oximeter", script, told.append) as ward:
        assert (tmp_path / "oximeter").is_symlink()
        task = asyncio.create_task(ward.run())
        async with asyncio.timeout(20):
            frames = [await received.get() for _ in range(4)]  # two seconds of two beds
        assert (tmp_path / "oximeter").is_symlink()  # pulled in second 0, put back in second 1
        assert ward.pulled_ns is not None
        assert ward.plugged_ns is not None
        assert ward.plugged_ns > ward.pulled_ns
        task.cancel()
        async with asyncio.timeout(10):  # ending must not hang while an acknowledgement comes in
            await asyncio.gather(task, return_exceptions=True)
    assert not (tmp_path / "oximeter").exists()
    server.close()
    expected = Patients(BEDS, script)
    seconds = [expected.step(0), expected.step(1)]
    decoder = drivers.load("hl7").decoder()
    for number, frame in enumerate(frames):
        second, bed = divmod(number, 2)
        items = [item for item in decoder.feed(Chunk(0, frame)) if isinstance(item, Observation)]
        assert {item.location for item in items} == {f"SIM^^{BEDS[bed]}"}
        assert {item.term: item.value for item in items} == seconds[second][BEDS[bed]]
    assert told == [
        "ICU-1: SpO2 begins to fall",
        "ICU-3: the oximeter's cable is pulled",
        "ICU-3: the oximeter's cable is put back",
    ]
