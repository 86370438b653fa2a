"""Runs in the guest: a Bluetooth controller for its kernel, and a chest strap within reach of it.

The kernel's hci_vhci gives BlueZ an adapter whose controller is in this process; the strap is the demo's wearable. Each
line of input is a command: a number is the heart rate to notify once a second from then on, `vanish` is out of reach,
`appear` is back, and the input's end is the end. `ready` and `subscribed` are printed.
"""

from __future__ import annotations

import asyncio
import sys

from bumble.controller import Controller
from bumble.core import PhysicalTransport
from bumble.hci import Address, LeFeatureMask
from bumble.link import LocalLink
from bumble.transport import open_transport

from edge_agent.demo.radio import VirtualRadio, Wearable


class Link(LocalLink):
    """Data between two controllers under the addresses by which they connected.

    bumble names the sender's random address always; BlueZ connects with its public one.
    """

    def send_acl_data(
        self, sender_controller: Controller, destination_address: Address, transport: PhysicalTransport, data: bytes
    ) -> None:
        receiver = self.find_le_controller(destination_address)
        connection = sender_controller.le_connections.get(destination_address)
        if receiver is not None and connection is not None:
            source = connection.self_address
            asyncio.get_running_loop().call_soon(lambda: receiver.on_link_acl_data(source, transport, data))


async def main() -> None:
    radio = VirtualRadio()
    radio.link = Link()
    hci = await open_transport("vhci")
    adapter = Controller("adapter", hci.source, hci.sink, radio.link, public_address="00:00:5E:00:53:01")
    # Linux would use what bumble only half has, and wait for an event that never comes
    adapter.le_features &= ~(LeFeatureMask.LL_PRIVACY | LeFeatureMask.LE_EXTENDED_ADVERTISING)
    strap = Wearable(radio)
    await strap.appear()
    print("ready", flush=True)
    rate = 0

    async def beat() -> None:
        while True:
            await strap.wait_subscribed()
            print("subscribed", flush=True)
            while strap.connected:
                await strap.notify_heart_rate(rate)
                await asyncio.sleep(1)

    beating = asyncio.create_task(beat())
    while line := await asyncio.to_thread(sys.stdin.readline):
        word = line.strip()
        if word == "vanish":
            await strap.vanish()
        elif word == "appear":
            await strap.appear()
        else:
            rate = int(word)
    beating.cancel()
    await hci.close()


asyncio.run(main())
