"""An oximeter on a USB serial adapter that is pulled out and plugged in again, through udev's stable name for it."""

from __future__ import annotations

from typing import Any

from tests.fleet.emulated_gateway import Gateway
from tests.fleet.senders import Oximeter
from tests.fleet.waiting import until

PORT = "/dev/bedside/by-id/QEMU_QEMU_USB_SERIAL_OXI1-if00"
TABLES = (
    '[[bed]]\nid = "ICU-2"\npreset = "adult"',
    f'[[source]]\nname = "oximeter"\ndriver = "nonin"\nbed = "ICU-2"\nlink = "serial://{PORT}?baud=9600"',
    '[[annunciator]]\nkind = "record"\npath = "/var/lib/edge-agent/edges.jsonl"',
)


def bed(gateway: Gateway) -> dict[str, Any]:
    return dict(gateway.status()["beds"][0])


def reads(gateway: Gateway, spo2: int) -> bool:
    """Whether the agent shows this value, and no alarm that the oximeter is lost."""
    now = bed(gateway)
    value = now["values"].get("spo2", {})
    return value.get("value") == spo2 and value["validity"] == "valid" and not lost(gateway)


def lost(gateway: Gateway) -> bool:
    return any(each["condition"] == "source_lost:oximeter" for each in bed(gateway)["alarms"])


def device(gateway: Gateway) -> str:
    """Which port the stable name leads to, such as ttyUSB0."""
    return gateway.machine.run(f"basename $(readlink {PORT})").stdout.strip()


def test_an_adapter_that_is_pulled_out_alarms_and_is_read_again_when_it_is_back(emulated: Gateway) -> None:
    emulated.configure(*TABLES)
    until(lambda: lost(emulated), "the alarm while nothing is plugged in")
    with Oximeter(emulated.machine.serial()) as oximeter:
        try:
            emulated.machine.plug("OXI1", 1)
            until(lambda: reads(emulated, 96), "the first values")
            before, first = emulated.status()["instance"], device(emulated)
            emulated.machine.unplug("OXI1")
            until(lambda: lost(emulated), "the alarm of a lost adapter")
            # another adapter takes its number meanwhile, and it comes back in another socket
            emulated.machine.plug("OTHER", 1, wired=False)
            emulated.machine.wait(f"test -e /dev/{first}")
            oximeter.spo2 = 93
            emulated.machine.plug("OXI1", 2)
            until(lambda: reads(emulated, 93), "values through the adapter that is back")
            assert device(emulated) != first, "the stable name follows it"
        finally:
            for name in ("OXI1", "OTHER"):
                emulated.machine.unplug(name)
    assert emulated.status()["instance"] == before, "the agent did this without a restart"
