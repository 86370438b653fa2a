"""BLE links over the virtual radio: bleak at one end, a real GATT server at the other, and packets between them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from link_sink import DEADLINE_S, RecordingSink, running

from edge_agent.demo.radio import VirtualRadio, Wearable, wearable_on_air
from edge_agent.links import Link, ble, ble_hci, open_link
from edge_agent.links.backoff import Backoff
from edge_agent.links.ble import Radio, channel_name
from edge_agent.links.capture import read_capture

CHANNELS = ("2a37", "2a19", "2a5f")


def link_to(radio: VirtualRadio, who: str = "name/HRM-SIM", **more: object) -> Link:
    return open_link(
        f"ble://{who}?hci={radio.hci}",
        silence_s=30,
        backoff=Backoff(0.01, 0.05),
        **{"channels": CHANNELS, **more},  # type: ignore[arg-type]
    )


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
async def air() -> AsyncIterator[tuple[VirtualRadio, Wearable]]:
    async with wearable_on_air() as (radio, wearable):
        yield radio, wearable


@pytest.mark.parametrize("who", ["name/HRM-SIM", "HRM-SIM", "f0:f1:f2:f3:f4:f5"])
async def test_a_wearable_is_found_subscribed_to_and_read(
    air: tuple[VirtualRadio, Wearable], who: str, tmp_path: Path
) -> None:
    radio, wearable = air
    async with running(link_to(radio, who, tee=tmp_path / "hr.cap", driver="gatt")) as sink:
        await sink.until_state("connected")
        await sink.until(lambda: bool(sink.chunks))
        assert [(chunk.channel, chunk.data) for chunk in sink.chunks] == [("2a19", bytes([87]))]
        for rate in (60, 72, 300):
            await wearable.notify_heart_rate(rate)
        await sink.until(lambda: len(sink.chunks) == 4)
        assert [chunk.data.hex() for chunk in sink.chunks[1:]] == ["063c", "0648", "072c01"]
        assert {chunk.channel for chunk in sink.chunks[1:]} == {"2a37"}
    await until(lambda: not wearable.connected)
    captured = read_capture(tmp_path / "hr.cap")
    assert [(chunk.channel, chunk.data) for chunk in captured.received()] == [(c.channel, c.data) for c in sink.chunks]


async def test_a_wearable_that_drops_and_returns(air: tuple[VirtualRadio, Wearable]) -> None:
    radio, wearable = air
    async with running(link_to(radio)) as sink:
        for rate in (61, 62, 63):
            await sink.until_state("connected")
            await wearable.notify_heart_rate(rate)
            await sink.until(lambda rate=rate: sink.data.endswith(bytes([0x06, rate])))
            await wearable.vanish()
            await sink.until_state("lost", "disconnected")
            await wearable.notify_heart_rate(99)  # to nobody
            await wearable.appear()
        assert b"\x06\x63" not in sink.data
        assert sink.names[0] == "lost" and sink.names.count("connected") >= 3


async def test_a_radio_that_is_switched_off_and_on_again() -> None:
    async with wearable_on_air() as (radio, wearable):
        port = radio.port
        link = link_to(radio)
        async with running(link) as sink:
            await sink.until_state("connected")
            for socket in list(radio.sockets):  # the HCI socket breaks: a Bluetooth stick that was pulled out
                socket.close()
            await sink.until_state("lost")
            await sink.until_state("connected")
            await wearable.notify_heart_rate(70)
            await sink.until(lambda: sink.data.endswith(b"\x06\x46"))
            await radio.__aexit__(None, None, None)
            await sink.until_state("lost", "no connection to HRM-SIM")
            async with wearable_on_air(port=port) as (_, wearable):
                await sink.until_state("connected")
                await wearable.notify_heart_rate(71)
                await sink.until(lambda: sink.data.endswith(b"\x06\x47"))


async def test_a_wearable_that_is_not_there_yet() -> None:
    async with VirtualRadio() as radio:
        stranger = Wearable(radio, "OTHER", "F0:00:00:00:00:01")
        await stranger.appear()
        async with running(link_to(radio)) as sink:
            await sink.until_state("lost", "looking for HRM-SIM")
            await until(lambda: bool(radio.sockets))
            wearable = Wearable(radio)
            await wearable.appear()
            await sink.until_state("connected")
            assert wearable.connected and not stranger.connected


async def test_two_links_and_two_wearables_on_one_radio() -> None:
    async with VirtualRadio() as radio:
        wearables = [Wearable(radio, f"HRM-{n}", f"F0:00:00:00:00:0{n}") for n in (1, 2)]
        async with running(link_to(radio, "HRM-1")) as one, running(link_to(radio, "HRM-2")) as two:
            for wearable in wearables:
                await wearable.appear()
            await one.until_state("connected")
            await two.until_state("connected")
            await wearables[0].notify_heart_rate(51)
            await wearables[1].notify_heart_rate(52)
            await one.until(lambda: b"\x06\x33" in one.data)
            await two.until(lambda: b"\x06\x34" in two.data)
            assert b"\x06\x34" not in one.data and b"\x06\x33" not in two.data


async def test_links_that_share_a_radio_share_its_scan_and_connect_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ble, "RESCAN_S", 0.05)
    scans: list[str] = []
    start, stop, connect = ble_hci._Scanner.start, ble_hci._Scanner.stop, ble_hci._Client.connect

    async def noted_start(self: ble_hci._Scanner) -> None:
        scans.append("start")
        await start(self)

    async def noted_stop(self: ble_hci._Scanner) -> None:
        await stop(self)
        scans.append("stop")

    async def noted_connect(self: ble_hci._Client, pair: bool, **kwargs: object) -> None:
        scans.append("connect")
        await connect(self, pair, **kwargs)
        scans.append("connected")

    monkeypatch.setattr(ble_hci._Scanner, "start", noted_start)
    monkeypatch.setattr(ble_hci._Scanner, "stop", noted_stop)
    monkeypatch.setattr(ble_hci._Client, "connect", noted_connect)
    async with VirtualRadio() as radio:
        wearables = [Wearable(radio, f"HRM-{n}", f"F0:00:00:00:00:0{n}") for n in (1, 2)]
        shared = ble_hci.hci_radio(radio.hci)
        links = [link_to(radio, f"HRM-{n}", ble_radio=shared) for n in (1, 2)]
        async with running(links[0]) as one, running(links[1]) as two:
            await until(lambda: scans.count("start") >= 3)  # a scan that finds nothing is started anew
            for wearable in wearables:
                await wearable.appear()
            await one.until_state("connected")
            await two.until_state("connected")
    scanning = connecting = 0
    for what in scans:
        scanning += (what == "start") - (what == "stop")
        connecting += (what == "connect") - (what == "connected")
        assert 0 <= scanning <= 1 and 0 <= connecting <= 1 and scanning + connecting <= 1, scans


async def test_a_notification_from_a_connection_that_has_ended_is_dropped(
    air: tuple[VirtualRadio, Wearable], monkeypatch: pytest.MonkeyPatch
) -> None:
    radio, wearable = air
    callbacks: list[Callable[[bytearray], None]] = []
    start_notify = ble_hci._Client.start_notify

    async def kept(
        self: ble_hci._Client, characteristic: object, callback: Callable[[bytearray], None], **kwargs: object
    ) -> None:
        callbacks.append(callback)
        await start_notify(self, characteristic, callback, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ble_hci._Client, "start_notify", kept)
    async with running(link_to(radio)) as sink:
        await sink.until_state("connected")
        callbacks[0](bytearray(b"in time"))
        assert sink.data.endswith(b"in time")
        await wearable.vanish()
        await sink.until_state("lost", "disconnected")
        callbacks[0](bytearray(b"too late"))
        assert b"too late" not in sink.data and sink.names[-1] == "lost"


async def test_a_device_without_what_the_driver_wants_is_told(air: tuple[VirtualRadio, Wearable]) -> None:
    radio, _ = air
    async with running(link_to(radio, channels=("2a5f", "2a35"))) as sink:
        assert "2a35, 2a5f" in await sink.until_state("lost", "no characteristic that the driver knows")
        assert "connected" not in sink.names


async def test_without_channels_all_that_notify_are_heard(air: tuple[VirtualRadio, Wearable]) -> None:
    radio, wearable = air
    async with running(link_to(radio, channels=())) as sink:
        await sink.until_state("connected")
        await wearable.notify_heart_rate(80)
        await sink.until(lambda: bool(sink.chunks))
        assert [(chunk.channel, chunk.data) for chunk in sink.chunks] == [("2a37", b"\x06\x50")]


async def test_what_is_only_readable_is_read_again(
    air: tuple[VirtualRadio, Wearable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ble, "READ_EVERY_S", 0.05)
    radio, wearable = air
    async with running(link_to(radio)) as sink:
        await sink.until(lambda: sink.data == bytes([87]))
        wearable.battery_percent = 86
        await sink.until(lambda: sink.data.endswith(bytes([86, 86])))


async def test_output_is_bounded_and_goes_to_the_device(air: tuple[VirtualRadio, Wearable]) -> None:
    radio, wearable = air
    link = link_to(radio)
    assert not link.send(b"x", "2a39")
    async with running(link) as sink:
        await sink.until_state("connected")
        assert link.send(b"\x01", "2a39") and not link.send(b"\x01")
        await until(lambda: wearable.control_point == [b"\x01"])
        taken = 0
        while link.send(b"\x01", "2a39"):  # without a pause in which the device could take any
            taken += 1
        assert taken == ble.OUTPUT_LIMIT
        await until(lambda: len(wearable.control_point) == 1 + taken)


@pytest.mark.parametrize("call", ["connect", "start_notify", "read_gatt_char", "write_gatt_char"])
async def test_a_link_ends_though_a_library_swallows_its_cancellation(
    air: tuple[VirtualRadio, Wearable], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    within = asyncio.Event()
    real = getattr(ble_hci._Client, call)

    async def deaf(self: ble_hci._Client, *args: object, **kwargs: object) -> object:
        """As wait_for of Python 3.11 does when the result has just come."""
        result = await real(self, *args, **kwargs)
        within.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return result

    monkeypatch.setattr(ble_hci._Client, call, deaf)
    radio, _ = air
    link, sink = link_to(radio), RecordingSink()
    task = asyncio.create_task(link.run(sink))
    if call == "write_gatt_char":
        await sink.until_state("connected")
        assert link.send(b"\x01", "2a39")
    async with asyncio.timeout(DEADLINE_S):
        await within.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=DEADLINE_S)
    assert task.cancelled()


async def test_the_wearable_may_live_in_another_process() -> None:
    code = (
        "import asyncio\n"
        "from edge_agent.demo.radio import wearable_on_air\n"
        "async def main():\n"
        "    async with wearable_on_air('FAR') as (radio, wearable):\n"
        "        print(radio.hci, flush=True)\n"
        "        while True:\n"
        "            await asyncio.sleep(0.05)\n"
        "            await wearable.notify_heart_rate(77)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        hci = (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode().strip()
        link = open_link(f"ble://FAR?hci={hci}", silence_s=30, channels=CHANNELS, backoff=Backoff(0.01, 0.05))
        async with running(link) as sink:
            await sink.until(lambda: b"\x06\x4d" in sink.data)
            process.kill()
            await sink.until_state("lost")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_machine_without_bluetooth_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    link = open_link("ble://AA:BB:CC:DD:EE:FF", silence_s=1, backoff=Backoff(0.01, 0.02))
    async with running(link) as sink:
        assert "bluez" in await sink.until_state("lost", "Bluetooth cannot be used")


def test_channel_names() -> None:
    assert channel_name("00002A37-0000-1000-8000-00805F9B34FB") == "2a37"
    assert channel_name("FB005C82-02E7-F387-1CAD-8ACD2D8DF0C8") == "fb005c82-02e7-f387-1cad-8acd2d8df0c8"
    assert channel_name("12342a37-0000-1000-8000-00805f9b34fb") == "12342a37-0000-1000-8000-00805f9b34fb"


def test_a_radio_of_ones_own_can_be_given() -> None:
    radio = Radio(key="mine")
    link = open_link("ble://HRM", silence_s=1, ble_radio=radio)
    assert link._radio is radio  # type: ignore[attr-defined]
