"""A Bluetooth radio that is not there: wearables with GATT services, and sockets for the gateways that listen to them.

All controllers hang on one bumble link, which carries advertisements and packets between them without hardware, BlueZ
or root. A wearable is a bumble device in this process. A gateway is in another process or in this one: each
connection to the radio's TCP port becomes a controller of its own, whose host is at the other end of the socket, so
that a source with the link `ble://name/HRM-SIM?hci=tcp-client:127.0.0.1:PORT` finds the wearable on the air.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, cast

from bumble import ll
from bumble.controller import Controller
from bumble.core import UUID, AdvertisingData
from bumble.device import Connection, Device
from bumble.gatt import Characteristic, CharacteristicValue, Service
from bumble.hci import HCI_CONNECTION_TIMEOUT_ERROR, Address
from bumble.host import Host
from bumble.link import LocalLink
from bumble.transport.common import AsyncPipeSink, ParserSource

HEART_RATE_SERVICE, HEART_RATE_MEASUREMENT, BODY_SENSOR_LOCATION = 0x180D, 0x2A37, 0x2A38
HEART_RATE_CONTROL_POINT = 0x2A39
BATTERY_SERVICE, BATTERY_LEVEL = 0x180F, 0x2A19
ADVERTISING_MS = 100  # quick, as a wearable is in the first half-minute after it was put on
CHEST = 1  # body sensor location, GATT specification supplement 3.35


class _GatewaySocket(asyncio.Protocol):
    """One host at the far end of a socket, and its controller on the air."""

    def __init__(self, radio: VirtualRadio, number: int) -> None:
        self._radio, self._number = radio, number
        self._transport: asyncio.Transport | None = None
        self._source: ParserSource | None = None
        self.controller: Controller | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._source = ParserSource()
        self.controller = Controller(
            f"gateway-{self._number}",
            host_source=self._source,
            host_sink=self,
            link=self._radio.link,
            public_address=f"00:00:00:00:{self._number >> 8 & 255:02X}:{self._number & 255:02X}",
        )
        self._radio.sockets.add(self)

    def on_packet(self, packet: bytes) -> None:
        """A packet of the controller for its host."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packet)

    def data_received(self, data: bytes) -> None:
        assert self._source is not None and self._transport is not None
        try:
            self._source.parser.feed_data(data)
        except ValueError:  # bumble's InvalidPacketError: whoever this is, it does not speak HCI
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._radio.sockets.discard(self)
        if self.controller is not None:
            drop_connections(self.controller)
            self._radio.link.remove_controller(self.controller)

    def close(self) -> None:
        """Cut the socket, as when the radio is switched off."""
        if self._transport is not None:
            self._transport.abort()


def drop_connections(controller: Controller) -> None:
    """End a controller's connections as when it is out of reach: the other side hears of a timeout."""
    for connection in list(controller.le_connections.values()):
        with contextlib.suppress(ValueError):  # the other side may have gone first
            connection.send_ll_control_pdu(ll.TerminateInd(HCI_CONNECTION_TIMEOUT_ERROR))
        controller.on_le_disconnected(connection, HCI_CONNECTION_TIMEOUT_ERROR)


class VirtualRadio:
    """The air of one demo or test; an async context manager that has its HCI port open inside."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.link: LocalLink = LocalLink()  # type: ignore[no-untyped-call]
        self.sockets: set[_GatewaySocket] = set()
        self._host, self._wanted_port = host, port
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _GatewaySocket(self, next(self._numbers)), self._host, self._wanted_port
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for socket in list(self.sockets):
            socket.close()

    @property
    def port(self) -> int:
        """The TCP port of the radio's HCI sockets."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def hci(self) -> str:
        """What a link's URL says behind `hci=` to use this radio."""
        return f"tcp-client:{self._host}:{self.port}"


class Wearable:
    """A chest strap: heart rate by notification, location and battery level to be read, a control point to write to."""

    def __init__(self, radio: VirtualRadio, name: str = "HRM-SIM", address: str = "F0:F1:F2:F3:F4:F5") -> None:
        self.name, self.address = name, address
        self.battery_percent = 87
        self.control_point: list[bytes] = []  # what was written to it; 01 resets the energy expended
        self._controller = Controller(f"{name} controller", link=radio.link)
        host = Host(self._controller, AsyncPipeSink(self._controller))
        self._device = Device(name=name, address=Address(address), host=host)
        properties, readable = Characteristic.Properties, Characteristic.READABLE
        self._heart_rate: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(HEART_RATE_MEASUREMENT), properties.NOTIFY, readable, bytes(2)
        )
        location: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(BODY_SENSOR_LOCATION), properties.READ, readable, bytes([CHEST])
        )
        battery: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(BATTERY_LEVEL),
            properties.READ,
            readable,
            CharacteristicValue(read=lambda _: bytes([self.battery_percent])),
        )
        control: Characteristic[bytes] = Characteristic(
            UUID.from_16_bits(HEART_RATE_CONTROL_POINT),
            properties.WRITE,
            Characteristic.WRITEABLE,
            CharacteristicValue(write=lambda _, value: self.control_point.append(value)),
        )
        self._device.add_services(
            [
                Service(UUID.from_16_bits(HEART_RATE_SERVICE), [self._heart_rate, location, control]),
                Service(UUID.from_16_bits(BATTERY_SERVICE), [battery]),
            ]
        )
        self._device.advertising_data = bytes(
            AdvertisingData(
                [
                    (AdvertisingData.COMPLETE_LOCAL_NAME, name.encode()),
                    (
                        AdvertisingData.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
                        struct.pack("<HH", HEART_RATE_SERVICE, BATTERY_SERVICE),
                    ),
                ]
            )
        )
        self._device.advertising_interval_min = self._device.advertising_interval_max = ADVERTISING_MS
        self._device.on(Device.EVENT_CONNECTION, self._connected)
        self._heart_rate.on(Characteristic.EVENT_SUBSCRIPTION, self._subscription)
        self._subscribed = asyncio.Event()
        self._powered = self._on_air = False
        self._advertising: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a gateway is connected."""
        return bool(self._device.connections)

    async def appear(self) -> None:
        """Be on the air: advertise, accept a connection, and advertise again when it has ended."""
        if not self._powered:
            await self._device.power_on()
            self._powered = True
        self._on_air = True
        await self._device.start_advertising()

    async def vanish(self) -> None:
        """Be out of reach: the connection times out and nothing is advertised, until `appear`."""
        self._on_air = False
        if self._advertising is not None:
            await self._advertising
        await self._device.stop_advertising()
        drop_connections(self._controller)

    def _connected(self, connection: Connection) -> None:
        connection.on(Connection.EVENT_DISCONNECTION, self._disconnected)

    async def wait_subscribed(self) -> None:
        """Wait until a gateway wants heart rate notifications; returns at once while one does."""
        await self._subscribed.wait()

    def _subscription(self, _connection: Connection, notify: bool, _indicate: bool) -> None:
        if notify:
            self._subscribed.set()
        else:
            self._subscribed.clear()

    def _disconnected(self, _reason: int) -> None:
        self._subscribed.clear()
        if self._on_air:
            self._advertising = asyncio.create_task(self._device.start_advertising())

    async def notify_heart_rate(self, beats_per_minute: int, contact: bool = True) -> None:
        """Send one heart rate measurement to whoever has subscribed; 0 to 65535 per minute."""
        flags = (0x06 if contact else 0x04) | (beats_per_minute > 255)
        value = struct.pack("<BH" if flags & 1 else "<BB", flags, beats_per_minute)
        await self._device.notify_subscribers(self._heart_rate, value)


@contextlib.asynccontextmanager
async def wearable_on_air(name: str = "HRM-SIM", port: int = 0) -> AsyncIterator[tuple[VirtualRadio, Wearable]]:
    """A radio with one wearable that advertises; the radio's `hci` goes into the URL of the link."""
    async with VirtualRadio(port=port) as radio:
        wearable = Wearable(radio, name)
        await wearable.appear()
        yield radio, wearable
