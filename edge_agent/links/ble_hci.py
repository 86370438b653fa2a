"""Bluetooth Low Energy without BlueZ: bleak backends over bumble, which speaks HCI through a TCP socket.

At the other end of the socket is a Bluetooth controller, in practice the demo's virtual radio (edge_agent.demo.radio)
in another process. It is here and not in the demo because a link may not import the demo, so bumble has two
doors: this module for the gateway's side, the demo's radio for the wearable's side. Without the package bumble (the
extra `demo`) everything but `ble://...?hci=` works.

A `_Central` is one host on one HCI socket. It is opened when first needed and again after the socket was lost. bumble
ends the connections of a lost socket, and tells waiting calls of it by a CancelledError of its own making;
`unless_lost` makes an ordinary error of that, so that it is not taken for the end of the link's task.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bleak.args import SizedBuffer
from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, AdvertisementDataCallback, BaseBleakScanner
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import BleakError
from bleak.uuids import normalize_uuid_str
from bumble.core import UUID, AdvertisingData, BaseBumbleError
from bumble.device import Advertisement, Connection, Device, Peer
from bumble.gatt import Characteristic
from bumble.hci import Address
from bumble.transport import open_transport

from edge_agent.links.ble import Radio

OPEN_S = 10.0
MTU = 247  # what fits into one packet with data length extension
T = TypeVar("T")
_numbers = itertools.count(1)


def hci_radio(spec: str) -> Radio:
    """A radio on the HCI socket `tcp-client:HOST:PORT`; every call gives one with a connection of its own."""
    central = _Central(spec)
    return Radio(
        key=f"{spec}#{next(_numbers)}",
        scanner=_Scanner,
        client=_Client,
        options={"central": central},
        close=central.close,
    )


class _Central:
    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.device: Device | None = None
        self._transport: Any = None

    async def open(self) -> Device:
        """The host, with its controller reset and ready. Raises: OSError, BleakError, TimeoutError."""
        if self.device is None:
            transport = await open_transport(self.spec)
            self._transport = transport
            transport.source.terminated.add_done_callback(lambda _: self._lost(transport))
            address = Address("C0:" + ":".join(f"{byte:02X}" for byte in secrets.token_bytes(5)))  # a static random one
            device = Device.with_hci("gateway", address, transport.source, transport.sink)
            try:
                async with asyncio.timeout(OPEN_S):
                    await self.unless_lost(device.power_on())
            except BaseException:
                self.close()
                raise
            self.device = device
        return self.device

    async def unless_lost(self, call: Awaitable[T]) -> T:
        """What `call` gives. Raises: BleakError when the radio failed it or was lost meanwhile."""
        task = asyncio.current_task()
        try:
            return await call
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise BleakError("the radio was lost") from None
        except BaseBumbleError as error:
            raise BleakError(str(error) or type(error).__name__) from error

    def _lost(self, transport: Any) -> None:
        if transport is self._transport:
            self.close()

    def close(self) -> None:
        """End the socket; the next use opens another."""
        transport, self._transport, self.device = self._transport, None, None
        if transport is not None:
            transport.sink.close()


def _uuid(uuid: UUID) -> str:
    return normalize_uuid_str(uuid.to_hex_str("-").lower())


class _Scanner(BaseBleakScanner):
    def __init__(
        self,
        detection_callback: AdvertisementDataCallback | None,
        service_uuids: list[str] | None,
        _scanning_mode: str,
        *,
        central: _Central,
        **_: Any,
    ) -> None:
        super().__init__(detection_callback, service_uuids)
        self._central = central
        self._device: Device | None = None

    async def start(self) -> None:
        self.seen_devices = {}
        device = await self._central.open()
        device.on(Device.EVENT_ADVERTISEMENT, self._advertisement)
        self._device = device
        await self._central.unless_lost(device.start_scanning(active=True, filter_duplicates=False))

    async def stop(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.remove_listener(Device.EVENT_ADVERTISEMENT, self._advertisement)
            if device is self._central.device:
                await self._central.unless_lost(device.stop_scanning())

    def _advertisement(self, advertisement: Advertisement) -> None:
        data = advertisement.data
        name = data.get(AdvertisingData.COMPLETE_LOCAL_NAME)
        services = [
            _uuid(uuid)
            for kind in (
                AdvertisingData.COMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
                AdvertisingData.INCOMPLETE_LIST_OF_16_BIT_SERVICE_CLASS_UUIDS,
                AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS,
            )
            for uuids in data.get_all(kind)
            for uuid in uuids
        ]
        if not self.is_allowed_uuid(services):
            return
        address = advertisement.address.to_string(False)
        seen = AdvertisementData(
            local_name=name,
            manufacturer_data={},
            service_data={},
            service_uuids=services,
            tx_power=None,
            rssi=advertisement.rssi,
            platform_data=(advertisement,),
        )
        device = self.create_or_update_device(address, address, name, advertisement.address, seen)
        self.call_detection_callbacks(device, seen)


class _Client(BaseBleakClient):
    def __init__(
        self,
        address_or_ble_device: BLEDevice | str,
        services: set[str] | None = None,
        *,
        central: _Central,
        disconnected_callback: Callable[[], None] | None,
        timeout: float,
        **_: Any,
    ) -> None:
        super().__init__(address_or_ble_device, disconnected_callback=disconnected_callback, timeout=timeout)
        del services
        if not isinstance(address_or_ble_device, BLEDevice):
            raise BleakError("over an HCI socket a device is connected to from a scan, not by its address alone")
        self._peer_address: Address = address_or_ble_device.details
        self._central = central
        self._connection: Connection | None = None
        self._subscribed: dict[int, Callable[[bytes], None]] = {}

    @property
    def name(self) -> str:
        return self.address

    @property
    def mtu_size(self) -> int:
        return self._connection.att_mtu if self._connection is not None else 23

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def connect(self, pair: bool, **kwargs: Any) -> None:
        del kwargs
        unless_lost = self._central.unless_lost
        device = await self._central.open()
        connection = await unless_lost(device.connect(self._peer_address, timeout=self._timeout))
        self._connection = connection
        connection.on(Connection.EVENT_DISCONNECTION, self._disconnected)
        try:
            if pair:
                await unless_lost(connection.pair())
            peer = Peer(connection)
            # a peripheral that never answers would be waited for without end
            async with asyncio.timeout(self._timeout):
                await unless_lost(peer.request_mtu(MTU))
                await unless_lost(peer.discover_all())  # type: ignore[no-untyped-call]
        except BaseException:
            with contextlib.suppress(Exception):
                await self.disconnect()
            raise
        self.services = self._collect(peer)

    def _collect(self, peer: Peer) -> BleakGATTServiceCollection:
        collection = BleakGATTServiceCollection()
        for service in peer.services:
            bleak_service = BleakGATTService(service, service.handle, _uuid(service.uuid))
            collection.add_service(bleak_service)
            for item in service.characteristics:
                properties: Any = [
                    flag.name.lower().replace("_", "-")
                    for flag in Characteristic.Properties
                    if flag.name and flag & item.properties
                ]
                characteristic = BleakGATTCharacteristic(
                    item, item.handle, _uuid(item.uuid), properties, lambda: self.mtu_size - 3, bleak_service
                )
                collection.add_characteristic(characteristic)
                for descriptor in item.descriptors:
                    collection.add_descriptor(
                        BleakGATTDescriptor(descriptor, descriptor.handle, _uuid(descriptor.type), characteristic)
                    )
        return collection

    def _disconnected(self, _reason: int) -> None:
        if self._connection is None:
            return
        self._connection = None
        if self._disconnected_callback is not None:
            self._disconnected_callback()

    async def disconnect(self) -> None:
        if self._connection is not None:
            await self._central.unless_lost(self._connection.disconnect())

    async def pair(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        await self._central.unless_lost(self._alive().pair())

    async def unpair(self) -> None:
        raise BleakError("the HCI radio keeps no pairing")

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        del use_cached, kwargs
        self._alive()
        return bytearray(await self._central.unless_lost(characteristic.obj.read_value()))

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, *, use_cached: bool = False, **kwargs: Any
    ) -> bytearray:
        del use_cached, kwargs
        self._alive()
        return bytearray(await self._central.unless_lost(descriptor.obj.read_value()))

    async def write_gatt_char(self, characteristic: BleakGATTCharacteristic, data: SizedBuffer, response: bool) -> None:
        self._alive()
        await self._central.unless_lost(characteristic.obj.write_value(bytes(data), with_response=response))

    async def write_gatt_descriptor(self, descriptor: BleakGATTDescriptor, data: SizedBuffer) -> None:
        self._alive()
        await self._central.unless_lost(descriptor.obj.write_value(bytes(data), with_response=True))

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **kwargs: Any
    ) -> None:
        del kwargs
        self._alive()

        def subscriber(value: bytes) -> None:
            callback(bytearray(value))

        self._subscribed[characteristic.handle] = subscriber
        prefer_notify = "notify" in characteristic.properties
        await self._central.unless_lost(characteristic.obj.subscribe(subscriber, prefer_notify=prefer_notify))

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        self._alive()
        subscriber = self._subscribed.pop(characteristic.handle, None)
        await self._central.unless_lost(characteristic.obj.unsubscribe(subscriber))

    def _alive(self) -> Connection:
        if self._connection is None:
            raise BleakError("the device is not connected")
        return self._connection
