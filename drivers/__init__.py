"""The registry of drivers: a row a device family, loaded when it is first asked for.

Adding one is four steps, told in docs/adding-a-driver.md: capture, expectation, decoder, a row here. Packages from
outside register through the entry-point group `edge_agent.drivers`, each entry naming a `Driver`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from drivers.contract import Driver

BUILT_IN: dict[str, str] = {
    "hl7": "drivers.hl7",
    "intellivue": "drivers.intellivue",
    "nonin": "drivers.nonin",
    "masimo": "drivers.masimo",
    "gatt": "drivers.gatt",
    "sim": "drivers.sim",
}


def names() -> list[str]:
    """Names of all drivers, built-in and registered by outside packages, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="edge_agent.drivers"))})


def load(name: str) -> Driver:
    """The driver of that name.

    Raises: KeyError when no driver has it; ImportError or TypeError when an outside package's entry is not a driver.
    """
    if name in BUILT_IN:
        driver = import_module(BUILT_IN[name]).DRIVER
    else:
        found = [point for point in entry_points(group="edge_agent.drivers") if point.name == name]
        if not found:
            raise KeyError(name)
        driver = found[0].load()
    if not isinstance(driver, Driver):
        raise TypeError(f"driver {name!r}: the entry is a {type(driver).__name__}, not a drivers.contract.Driver")
    return driver
