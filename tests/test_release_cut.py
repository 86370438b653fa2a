"""Killed at any step, an installation leaves a release that boots, and a second run completes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from release_bench import Victims, gateway, known_python, make_bundle, make_key, quick, units

from edge_agent.release import installer as installers
from edge_agent.release.gateway import Folders, NoServices
from edge_agent.release.installer import RECOVER, Installer

OTHER = ("edge-agent.service", "bedside-edge.target", "edge-agent.service.d/extra.conf")


Prepared = tuple[Path, Path]  # a folder with a gateway in `root`, and the bundle of its next release


def installer(folders: Folders, steps: list[str] | None = None) -> Installer:
    step = (lambda _name: None) if steps is None else steps.append
    return Installer(folders, NoServices(), say=lambda _text: None, socket=Path("/nowhere"), step=step)


def whole(folders: Folders) -> str:
    """The release in force, which must be one that can run, with nothing but its own units when it is not mid-way."""
    version = folders.version(folders.current)
    assert version and (folders.releases / version / ".venv/bin/python").exists()
    return version


def consistent(folders: Folders) -> str:
    """The same, when no update is under way: every unit is the one of the release in force."""
    version = whole(folders)
    assert not folders.note.exists()
    assert all(text.endswith(f" of {version}\n") for text in units(folders).values())
    return version


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A gateway with 0.9.0 and 1.0.0, and the bundle of 1.1.0, which has other units."""
    folder = tmp_path_factory.mktemp("cut")
    key = make_key(folder)
    folders = gateway(folder / "root", folder / "trusted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installers, "environment", quick)
        for version in ("0.9.0", "1.0.0"):
            installer(folders).install(make_bundle(folder, version, key))
    return folder, make_bundle(folder, "1.1.0", key, units=OTHER)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installers, "environment", quick)
    monkeypatch.setattr(installers, "find_python", known_python)


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    made = Victims()
    yield made
    made.close()


def fresh(prepared: Prepared, tmp_path: Path, name: str) -> Folders:
    shutil.copytree(prepared[0] / "root", tmp_path / name, symlinks=True)
    return gateway(tmp_path / name, prepared[0] / "trusted")


def steps_of(prepared: Prepared, tmp_path: Path) -> list[str]:
    steps: list[str] = []
    installer(fresh(prepared, tmp_path, "counted"), steps).install(prepared[1])
    return steps


def test_the_steps_are_many_enough_to_mean_something(prepared: Prepared, tmp_path: Path) -> None:
    steps = steps_of(prepared, tmp_path)
    for name in ("unpack", "environment", "synced", "built", "note", "previous", "units", "current", "pointed",
                 "settled", "clean"):  # fmt: skip
        assert name in steps
    assert len(steps) >= 14


def test_killed_at_any_step_it_boots_and_completes(prepared: Prepared, tmp_path: Path, victims: Victims) -> None:
    steps = steps_of(prepared, tmp_path)
    for at, name in enumerate(steps):
        folders = fresh(prepared, tmp_path, f"boot-{at}")
        assert victims.killed(folders, str(prepared[1]), at), name
        whole(folders)
        noted = folders.note.exists()
        wanted = folders.etc / "systemd/system/multi-user.target.wants" / RECOVER
        assert not noted or (wanted.exists() and folders.installer.exists()), f"{name}: nobody would undo it at boot"
        installer(folders).recover()  # what the unit does at the boot; without a note it is not started
        booted = consistent(folders)
        assert booted == ("1.1.0" if name in ("settled", "clean") else "1.0.0"), name
        if booted == "1.0.0":
            assert folders.version(folders.previous) == "0.9.0", name
        installer(folders).install(prepared[1])
        assert consistent(folders) == "1.1.0" and folders.version(folders.previous) == "1.0.0", name
        assert not list(folders.releases.glob("*.partial")) and not wanted.exists(), name
        shutil.rmtree(folders.root)


def test_killed_at_any_step_the_next_run_completes_without_a_boot(
    prepared: Prepared, tmp_path: Path, victims: Victims
) -> None:
    for at, name in enumerate(steps_of(prepared, tmp_path)):
        folders = fresh(prepared, tmp_path, f"run-{at}")
        assert victims.killed(folders, str(prepared[1]), at)
        installer(folders).install(prepared[1])
        assert consistent(folders) == "1.1.0" and folders.version(folders.previous) == "1.0.0", name
        shutil.rmtree(folders.root)


def test_killed_while_it_undoes_it_is_undone_in_the_end(prepared: Prepared, tmp_path: Path, victims: Victims) -> None:
    steps = steps_of(prepared, tmp_path)
    reached = 0
    for at in range(20):
        folders = fresh(prepared, tmp_path, f"undo-{at}")
        assert victims.killed(folders, str(prepared[1]), steps.index("pointed"))
        if not victims.killed(folders, "recover", at):
            break
        reached += 1
        whole(folders)
        installer(folders).recover()
        assert consistent(folders) == "1.0.0" and folders.version(folders.previous) == "0.9.0"
    assert reached >= 6


def test_a_rollback_killed_at_any_step(prepared: Prepared, tmp_path: Path, victims: Victims) -> None:
    reached = 0
    for at in range(30):
        folders = fresh(prepared, tmp_path, f"back-{at}")
        if not victims.killed(folders, "rollback", at):
            break
        reached += 1
        whole(folders)
        installer(folders).recover()
        assert consistent(folders) in ("1.0.0", "0.9.0")
        if consistent(folders) == "1.0.0":
            installer(folders).rollback()
        assert consistent(folders) == "0.9.0" and folders.version(folders.previous) == "1.0.0"
    assert reached >= 8


def test_the_first_installation_killed_at_any_step(prepared: Prepared, tmp_path: Path, victims: Victims) -> None:
    for at in range(30):
        folders = gateway(tmp_path / f"first-{at}", prepared[0] / "trusted")
        if not victims.killed(folders, str(prepared[1]), at):
            break
        installer(folders).recover()
        installer(folders).install(prepared[1])
        assert consistent(folders) == "1.1.0" and folders.version(folders.previous) == ""
    assert at >= 12


def test_a_note_that_cannot_be_read_leaves_what_is_in_force(prepared: Prepared, tmp_path: Path) -> None:
    folders = fresh(prepared, tmp_path, "torn")
    folders.note.write_bytes(b'{"from": "0.9')
    installer(folders).recover()
    assert consistent(folders) == "1.0.0"
    installer(folders).install(prepared[1])
    assert consistent(folders) == "1.1.0"
