"""What the doctor says of installed releases, on a gateway made up below a folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from running_agent import Bedside, running

from edge_agent import __version__
from edge_agent.commands import doctor_release
from edge_agent.commands.doctor_release import check_release
from edge_agent.commands.finding import Finding
from edge_agent.config import load


class Gateway:
    """Two releases, the newer one in force, its units in place."""

    def __init__(self, folder: Path) -> None:
        self.root, self.base = folder / "root", folder / "root/opt/bedside-edge"
        self.loaded = load(Bedside(folder).write())
        for version in ("0.0.9", __version__):
            self.release(version)
        self.current = self.base / "releases" / __version__
        (self.base / "current").symlink_to(f"releases/{__version__}")
        (self.base / "previous").symlink_to("releases/0.0.9")
        shipped = Path(__file__).parent.parent / "systemd"
        shutil.copytree(shipped, self.current / "systemd")
        etc = self.root / "etc"
        shutil.copytree(shipped, etc / "systemd/system", ignore=shutil.ignore_patterns("*.d", "udev"))
        for name in ("sysusers.d", "tmpfiles.d", "modules-load.d"):
            shutil.copytree(shipped / name, etc / name)
        shutil.copytree(shipped / "udev", etc / "udev/rules.d")

    def release(self, version: str) -> None:
        folder = self.base / "releases" / version
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/edge-agent").write_text("#!/bin/sh\n")
        (folder / "manifest.json").write_text(json.dumps({"version": version}))

    def wrong(self) -> list[Finding]:
        found = list(check_release(self.loaded, self.root))
        assert found and all(each.remedy for each in found if each.state != "ok")
        return [each for each in found if each.state != "ok"]

    def only(self) -> Finding:
        (one,) = self.wrong()
        return one


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def test_a_gateway_that_is_well(gateway: Gateway, tmp_path: Path) -> None:
    assert not gateway.wrong()
    assert any(
        f"{__version__} is in force, 2 on" in each.detail for each in check_release(gateway.loaded, gateway.root)
    )
    assert not list(check_release(gateway.loaded, tmp_path / "a-desk"))


def relink(gateway: Gateway, name: str, target: str) -> None:
    (gateway.base / name).unlink()
    (gateway.base / name).symlink_to(target)


@pytest.mark.parametrize(
    ("harm", "state", "words", "remedy"),
    [
        (lambda g: relink(g, "current", "releases/9.9"), "FAIL", "leads to no release", "edge-agent release rollback"),
        (lambda g: (g.base / "current").unlink(), "FAIL", "leads to no release", "edge-agent release install"),
        (lambda g: (g.current / "manifest.json").write_text("{"), "FAIL", "cannot be read", "release install"),
        (lambda g: (g.current / "manifest.json").write_text("[]"), "FAIL", "cannot be read", "release install"),
        (lambda g: (g.current / "manifest.json").write_text('{"version": "7"}'), "FAIL", "holds version 7", "rollback"),
        (lambda g: (g.current / ".venv/bin/edge-agent").unlink(), "FAIL", "edge-agent is missing", "rollback"),
        (lambda g: relink(g, "previous", "releases/0.0.1"), "warn", "no way back", "edge-agent release install"),
        (lambda g: (g.base / "releases/0.2.0.partial").mkdir(), "warn", "cut off; it is never used", "rm -r"),
        (lambda g: (g.base / "update.json").write_text("{}"), "warn", "update is under way", "release status"),
        (lambda g: (g.root / "etc/udev/rules.d/70-bedside-edge.rules").unlink(), "FAIL", "not there", "release status"),
        (lambda g: (g.root / "etc/systemd/system/edge-agent.service").write_text("x"), "warn", "not as the release",
         "systemctl edit"),
    ],
)  # fmt: skip
def test_what_is_broken_is_told(
    gateway: Gateway, harm: Callable[[Gateway], object], state: str, words: str, remedy: str
) -> None:
    harm(gateway)
    found = gateway.only()
    assert found.state == state and words in found.detail and remedy in found.remedy


def test_without_an_older_release_there_is_no_way_back(gateway: Gateway) -> None:
    (gateway.base / "previous").unlink()
    assert not gateway.wrong()
    assert any("nothing to go back to" in each.detail for each in check_release(gateway.loaded, gateway.root))


def test_no_room_for_the_next(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    (gateway.current / ".venv/large").write_bytes(b"x" * 1_000_000)
    free = {"bytes": 1_100_000}
    monkeypatch.setattr(
        doctor_release, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=free["bytes"]))
    )
    assert gateway.only().state == "warn" and "no room for the next" in gateway.only().detail
    free["bytes"] = 2_000_000
    assert not gateway.wrong()


async def test_an_agent_that_was_not_restarted(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(gateway.loaded.path):
        assert not await asyncio.to_thread(gateway.wrong)
        os.rename(gateway.current, gateway.base / "releases/0.2.0")
        (gateway.base / "releases/0.2.0/manifest.json").write_text('{"version": "0.2.0"}')
        relink(gateway, "current", "releases/0.2.0")
        found = await asyncio.to_thread(gateway.only)
    assert found.state == "FAIL" and f"the agent that runs is {__version__}, in force is 0.2.0" in found.detail
