"""Two test runs side by side: one has the emulated machine to itself, the other boots containers, a file at a time.

There is one emulated machine for the session: its boot and the agent's starts are what those tests cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet import emulated_gateway, vm


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[emulated_gateway.Gateway]:
    """The product on a machine with a kernel of its own. Each test gives it the configuration it wants."""
    lacking = vm.missing()
    if lacking:
        pytest.fail(lacking, pytrace=False)
    folder = tmp_path_factory.mktemp("emulated")
    with vm.Emulated(folder, emulated_gateway.prepare, forwards=(emulated_gateway.MLLP_PORT,)) as machine:
        emulated_gateway.make_key(machine)
        machine.run("systemctl enable --quiet bedside-edge.target edge-agent")
        yield emulated_gateway.Gateway(machine)


_LONGEST_FIRST = ("test_vm_", "test_role", "test_upgrade", "test_units")  # so that both runs end at about the same time


@pytest.hookimpl(tryfirst=True)  # before the groups become part of the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the groups that --dist loadgroup keeps in one process, and begin with what takes longest."""

    def turn(item: pytest.Item) -> int:
        found = (place for place, name in enumerate(_LONGEST_FIRST) if item.path.name.startswith(name))
        return next(found, len(_LONGEST_FIRST))

    items.sort(key=turn)  # stable: the tests of a file stay in their order
    for item in items:
        group = "emulated" if item.path.name.startswith("test_vm_") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
