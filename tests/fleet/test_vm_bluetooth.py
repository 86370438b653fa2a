"""A heart-rate strap through BlueZ and the kernel: a virtual controller and a virtual strap in the guest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fleet.emulated_gateway import BIN, PERIPHERAL, Gateway
from tests.fleet.waiting import until

CONNECT_S = (
    180.0  # scanning, connecting and the discovery of services, each with many turns between BlueZ and the strap
)
TABLES = (
    '[[bed]]\nid = "ICU-4"\npreset = "adult"',
    '[[source]]\nname = "strap"\ndriver = "gatt"\nbed = "ICU-4"\nlink = "ble://name/HRM-SIM"',
    '[[annunciator]]\nkind = "record"\npath = "/var/lib/edge-agent/edges.jsonl"',
)


class Strap:
    """The strap's commands."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def tell(self, command: object) -> None:
        """A heart rate, `vanish` or `appear`."""
        self._commands.write(f"{command}\n")
        self._commands.flush()


@contextmanager
def strap_on_air(gateway: Gateway) -> Iterator[Strap]:
    """An adapter for BlueZ, and a strap that advertises."""
    gateway.machine.run("modprobe hci_vhci")
    command = f"PYTHONPATH=/{PERIPHERAL} exec {BIN}/python /{PERIPHERAL}/virtual_heart_rate.py"
    with gateway.machine.stream(command) as (commands, output):
        assert output.readline().strip() == "ready"
        yield Strap(commands)


def heart_rate(gateway: Gateway) -> object:
    """The bed's heart rate while it is valid."""
    value = gateway.status()["beds"][0]["values"].get("heart_rate", {})
    return value.get("value") if value.get("validity") == "valid" else None


def lost(gateway: Gateway) -> bool:
    return any(each["condition"] == "source_lost:strap" for each in gateway.status()["beds"][0]["alarms"])


def test_bluez_brings_the_heart_rate_and_a_strap_out_of_reach_alarms_until_it_is_back(emulated: Gateway) -> None:
    emulated.configure(*TABLES)
    until(lambda: lost(emulated), "the alarm while there is no strap")
    with strap_on_air(emulated) as strap:
        strap.tell(72)
        until(lambda: heart_rate(emulated) == 72 and not lost(emulated), "the heart rate", CONNECT_S)
        first = emulated.status()["instance"]
        strap.tell(131)
        until(lambda: heart_rate(emulated) == 131, "another heart rate")
        strap.tell("vanish")
        until(lambda: lost(emulated), "the alarm of a strap out of reach")
        strap.tell(88)
        strap.tell("appear")
        until(lambda: heart_rate(emulated) == 88 and not lost(emulated), "the strap that is back", CONNECT_S)
    assert emulated.status()["instance"] == first, "the agent did this without a restart"
