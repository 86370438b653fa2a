"""Two test runs side by side: one has the emulated machine to itself, the other boots containers, a file at a time.

There is one emulated machine for the session: its boot and the agent's starts are what those tests cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def turn(item: pytest.Item) -> int:
        found = (place for place, name in enumerate(_LONGEST_FIRST) if item.path.name.startswith(name))
        return next(found, len(_LONGEST_FIRST))

    items.sort(key=turn)  # stable: the tests of a file stay in their order


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Deals out whole files, and all that want the emulated machine as if they were one."""
    return _Beds(config, log)


class _Beds(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "emulated" if "/test_vm_" in file else file
