"""Wearables over Bluetooth Low Energy, through bleak.

A link goes round: look for the device's advertisement, connect, discover its services, subscribe to the wanted
characteristics that notify or indicate, read those that can only be read once a minute, until it disconnects.

Each round begins with a scan, because BlueZ forgets devices with a random address when a scan ends, and then cannot
connect to them by address alone. The links of one radio share one scan, which rests while one of them connects: BlueZ
connects to one device at a time and refuses more. A scan that has found nothing for a while is started anew,
since a bluetoothd that was restarted scans for nobody. A notification that comes after its connection has ended is
dropped.

Deadlines are `asyncio.timeout`, never `wait_for`, which in Python 3.11 swallows a cancellation that
meets its result; a link that has been told to end would go on. The Bluetooth libraries do use it, so every call of
theirs goes through `_unless_ended`.

A `Radio` is what a link speaks through: the system's Bluetooth (BlueZ), or other backends for bleak, as the
demo and the tests use (links.ble_hci).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bleak import BleakClient, BleakScanner
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.exc import BleakBluetoothNotAvailableError, BleakError

from edge_agent.links.address import Address
from edge_agent.links.backoff import Backoff
from edge_agent.links.contract import LinkError, Sink
from edge_agent.links.report import Report
from edge_agent.links.tee import Reporting

CONNECT_S = 30.0  # bleak's own default: a device may advertise only every 10 s
DISCONNECT_S = 5.0
READ_EVERY_S = 60.0  # battery level and the like
READ_S = 10.0
RESCAN_S = 60.0
SCAN_START_S = 15.0  # for a scan to begin, beside its own length
OUTPUT_LIMIT = 32  # writes that wait; a wearable takes about one each connection interval

T = TypeVar("T")
_BASE_UUID = "-0000-1000-8000-00805f9b34fb"  # Bluetooth core specification, volume 3, part B, 2.5.1


def channel_name(uuid: str) -> str:
    """A characteristic as a channel: 4 hex digits for a 16-bit UUID, else the full UUID, lower case."""
    lower = uuid.lower()
    return lower[4:8] if lower.startswith("0000") and lower.endswith(_BASE_UUID) else lower


async def _unless_ended(call: Awaitable[T]) -> T:
    """What `call` gives. Raises: CancelledError also where `call` has swallowed the cancellation of its task."""
    result = await call
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return result


@dataclass(slots=True)
class Radio:
    """Backends for bleak and the keywords they take; links whose radios share a key take turns."""

    key: str = ""
    scanner: type[BaseBleakScanner] | None = None
    client: type[BaseBleakClient] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


class _Air:
    """One radio's scan, shared by the links that look for a device; it rests while one of them connects."""

    def __init__(self, radio: Radio) -> None:
        self._radio = radio
        self._turn = asyncio.Lock()
        self._scanner: BleakScanner | None = None
        self._wanted: dict[asyncio.Future[BLEDevice], Callable[[BLEDevice, AdvertisementData], bool]] = {}

    async def find(self, matches: Callable[[BLEDevice, AdvertisementData], bool]) -> BLEDevice:
        """The first device that matches, however long it takes. Raises: what bleak does when it cannot scan."""
        found: asyncio.Future[BLEDevice] = asyncio.get_running_loop().create_future()
        self._wanted[found] = matches
        try:
            while True:
                async with self._turn:
                    await self._start()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RESCAN_S):
                        return await asyncio.shield(found)
                async with self._turn:
                    await self._stop()
        except BaseException:
            found.cancel()
            del self._wanted[found]
            if not self._wanted:
                async with self._turn:
                    await self._stop()
            raise
        finally:
            self._wanted.pop(found, None)

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """The radio without a scan, for one link at a time."""
        async with self._turn:
            await self._stop()
            try:
                yield
            finally:
                if self._wanted:
                    try:
                        await self._start()
                    except Exception as error:
                        for found in self._wanted:
                            if not found.done():
                                found.set_exception(error)

    async def _start(self) -> None:
        if self._scanner is None:
            radio = self._radio
            scanner = BleakScanner(self._seen, backend=radio.scanner, **radio.options)
            await scanner.start()
            self._scanner = scanner

    async def _stop(self) -> None:
        scanner, self._scanner = self._scanner, None
        if scanner is not None:
            with contextlib.suppress(Exception):  # a scan that cannot be stopped has ended by itself
                await scanner.stop()

    def _seen(self, device: BLEDevice, advertisement: AdvertisementData) -> None:
        for found, matches in self._wanted.items():
            if not found.done() and matches(device, advertisement):
                found.set_result(device)


_airs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Air]] = weakref.WeakKeyDictionary()


def _air(radio: Radio) -> _Air:
    """The air that this radio's links share within the running event loop."""
    airs = _airs.setdefault(asyncio.get_running_loop(), {})
    if radio.key not in airs:
        airs[radio.key] = _Air(radio)
    return airs[radio.key]


@dataclass(frozen=True, slots=True)
class Advertised:
    """A device that was heard of: address, name, services (named as channels are), and the best strength in dBm."""

    address: str
    name: str
    services: tuple[str, ...]
    rssi: int


async def scan(seconds: float, *, adapter: str = "", hci: str = "") -> list[Advertised]:
    """Everything that advertises within `seconds`, the strongest first; nothing is connected to.

    `adapter` is one of the system's, `hci` a controller behind a socket, as a link's URL names them.
    Raises: LinkError when Bluetooth cannot be used.
    """
    options: dict[str, str | int | float | bool] = {"hci": hci} if hci else {"adapter": adapter} if adapter else {}
    radio = _radio(Address("ble://", "ble", "ble", options=options))
    heard: dict[str, Advertised] = {}

    def seen(device: BLEDevice, told: AdvertisementData) -> None:
        before = heard.get(device.address)
        name = told.local_name or (before.name if before else "") or device.name or ""
        services = {channel_name(uuid) for uuid in told.service_uuids} | set(before.services if before else ())
        rssi = max(told.rssi, before.rssi if before else -128)
        heard[device.address] = Advertised(device.address, name, tuple(sorted(services)), rssi)

    scanner = BleakScanner(seen, backend=radio.scanner, **radio.options)
    try:
        async with asyncio.timeout(seconds + SCAN_START_S):
            await _unless_ended(scanner.start())
            await asyncio.sleep(seconds)
    except Exception as error:
        reason = explain(error, radio) or f"the scan ended: {str(error) or type(error).__name__}"
        raise LinkError(reason, "`rfkill list` and `bluetoothctl show` tell the state of the adapter") from error
    finally:
        with contextlib.suppress(Exception):  # one that was never started cannot be stopped
            async with asyncio.timeout(DISCONNECT_S):
                await scanner.stop()
        radio.close()
    return sorted(heard.values(), key=lambda each: -each.rssi)


def explain(error: Exception, radio: Radio) -> str:
    """What is wrong with Bluetooth as a whole, empty when the error is of another kind."""
    if isinstance(error, BleakBluetoothNotAvailableError):
        return f"Bluetooth cannot be used: {error.args[0]}; `rfkill list` and `bluetoothctl show` tell why"
    if isinstance(error, FileNotFoundError | ConnectionRefusedError) and not radio.key.startswith("tcp"):
        return "Bluetooth cannot be used: no D-Bus; install and start bluez"
    return ""


class BleLink:
    """A wearable."""

    def __init__(
        self,
        address: Address,
        reporting: Reporting,
        *,
        backoff: Backoff | None = None,
        channels: tuple[str, ...] = (),
        radio: Radio | None = None,
    ) -> None:
        self.url = address.url
        self._address = address
        self._what = address.host or address.path
        self._channels = frozenset(channels)
        self._reporting = reporting
        self._backoff = backoff or Backoff()
        self._radio = radio or _radio(address)
        self._report: Report | None = None
        self._client: BleakClient | None = None
        self._outbox: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue(OUTPUT_LIMIT)
        self._got_data = False

    async def run(self, sink: Sink) -> None:
        """Look for the device and listen to it, again after every loss, until cancelled."""
        async with self._reporting.run(sink, self.url) as report:
            self._report = report
            report.lost(f"looking for {self._what}")
            try:
                while True:
                    self._got_data = False
                    try:
                        await self._round(report)
                    except Exception as error:
                        report.lost(self._why(error))
                    if self._got_data:
                        self._backoff.reset()
                    await asyncio.sleep(self._backoff.next())
            finally:
                self._radio.close()

    def send(self, data: bytes, channel: str = "") -> bool:
        """Whether `data` will be written to the characteristic `channel`."""
        if self._client is None or not channel or self._outbox.full():
            return False
        self._outbox.put_nowait((data, channel))
        return True

    def _matches(self, device: BLEDevice, advertisement: AdvertisementData) -> bool:
        if self._address.host:
            return device.address.upper() == self._address.host
        return self._address.path in (advertisement.local_name, device.name)

    async def _round(self, report: Report) -> None:
        air = _air(self._radio)
        device = await air.find(self._matches)
        gone = asyncio.Event()
        client = BleakClient(
            device,
            disconnected_callback=lambda _: gone.set(),
            timeout=CONNECT_S,
            pair=bool(self._address.options.get("pair", False)),
            backend=self._radio.client,
            **self._radio.options,
        )
        try:
            async with air.quiet(), asyncio.timeout(CONNECT_S + READ_S):
                await _unless_ended(client.connect())
            readable = await self._subscribe(client, gone, report)
            self._client = client
            report.connected(f"connected to {self._what}")
            await self._converse(client, readable, gone, report)
            report.lost(f"{self._what} disconnected")
        finally:
            self._client = None
            while not self._outbox.empty():
                self._outbox.get_nowait()
            gone.set()  # what still comes by the callbacks is not of this time
            with contextlib.suppress(Exception):
                async with asyncio.timeout(DISCONNECT_S):
                    await client.disconnect()

    async def _subscribe(
        self, client: BleakClient, gone: asyncio.Event, report: Report
    ) -> list[tuple[str, BleakGATTCharacteristic]]:
        """The characteristics to read, those that only can be read first time and again, by channel."""
        readable = []
        present = 0
        for characteristic in client.services.characteristics.values():
            channel = channel_name(characteristic.uuid)
            if self._channels and channel not in self._channels:
                continue
            notifies = not {"notify", "indicate"}.isdisjoint(characteristic.properties)
            reads = "read" in characteristic.properties
            if notifies:
                await _unless_ended(
                    client.start_notify(characteristic, functools.partial(self._notified, channel, gone, report))
                )
            if reads and (self._channels or not notifies):
                readable.append((channel, characteristic))
            present += notifies or reads
        if not present:
            wanted = ", ".join(sorted(self._channels)) or "any that notifies"
            raise BleakError(f"the device has no characteristic that the driver knows ({wanted})")
        return readable if self._channels else []

    def _notified(
        self, channel: str, gone: asyncio.Event, report: Report, _: BleakGATTCharacteristic, data: bytearray
    ) -> None:
        if not gone.is_set():
            self._got_data = True
            report.received(bytes(data), channel)

    async def _converse(
        self,
        client: BleakClient,
        readable: list[tuple[str, BleakGATTCharacteristic]],
        gone: asyncio.Event,
        report: Report,
    ) -> None:
        writing = asyncio.create_task(self._write(client, report))
        try:
            while not gone.is_set():
                for channel, characteristic in readable:
                    with contextlib.suppress(BleakError, TimeoutError):  # one that cannot be read is no lost link
                        async with asyncio.timeout(READ_S):
                            data = await _unless_ended(client.read_gatt_char(characteristic))
                        self._notified(channel, gone, report, characteristic, data)
                    if gone.is_set():
                        return
                # one that notifies has been read for its first value; from here on it speaks for itself
                readable = [item for item in readable if {"notify", "indicate"}.isdisjoint(item[1].properties)]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READ_EVERY_S if readable else None):
                        await gone.wait()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, client: BleakClient, report: Report) -> None:
        by_channel = {channel_name(c.uuid): c for c in client.services.characteristics.values()}
        while True:
            data, channel = await self._outbox.get()
            characteristic = by_channel.get(channel)
            if characteristic is not None:
                with contextlib.suppress(BleakError, TimeoutError):  # the decoder asks again when no answer comes
                    answered = "write" in characteristic.properties
                    await _unless_ended(client.write_gatt_char(characteristic, data, response=answered))
                    report.sent(data, channel)

    def _why(self, error: Exception) -> str:
        whole = explain(error, self._radio)
        if whole:
            return whole
        text = str(error) or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)
        return f"no connection to {self._what}: {text}"


def _radio(address: Address) -> Radio:
    options = address.options
    if "hci" in options:
        try:
            from edge_agent.links.ble_hci import hci_radio
        except ImportError as error:
            raise LinkError(
                "hci= needs the package bumble, which is not installed",
                "install the extra: pip install bedside-edge[demo]",
            ) from error
        return hci_radio(str(options["hci"]))
    adapter = str(options.get("adapter", ""))
    return Radio(key=f"bluez:{adapter}", options={"bluez": {"adapter": adapter} if adapter else {}})
