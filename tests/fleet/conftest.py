"""The emulated machine, one for the session: its boot and the agent's starts are what these tests cost."""

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
