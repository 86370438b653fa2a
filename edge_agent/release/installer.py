"""Installs a signed release of bedside-edge on a gateway, and goes back to the one before when it is not well.

Theory of operation: what can be refused is refused before anything is written: signature, version, machine, Python,
room. The release is then built beside the others under a name that nothing uses, tried with the configuration in force,
and renamed. Only the switch touches what runs. Before it, a note of what is being done (`update.json`) and a unit that
undoes it at the next boot are written; then the units and the link `current`; both go when the new agent has proved
well. So a power cut at any point boots the old release, and a second run completes. docs/updates.md has the exit codes.

It runs from one file on a bare machine (`python3 installer.pyz install BUNDLE`, see `archive`) as from an installed
release (`edge-agent release install BUNDLE`).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.release.bundle import BUNDLE, BUSY, CONFIG, MACHINE, UNHEALTHY, WENT_BACK, Stop, order, unpack, verify
from edge_agent.release.gateway import (
    AGENT,
    FORWARDER,
    TARGET,
    Folders,
    Refused,
    Services,
    ask,
    health,
    link,
    own_faults,
    sync,
    write,
)
from edge_agent.release.lean import thin
from edge_agent.release.machine import Python, check_machine, check_room, find_python, wheels_for

MODULES = ("edge_agent", "edge_agent.release", *(f"edge_agent.release.{name}" for name in (
    "bundle", "machine", "gateway", "lean", "installer", "command"
)))  # fmt: skip
RECOVER = "bedside-edge-recover.service"
HEALTH_S = 30.0
GENTLY = ("nice", "-n", "10")  # the agent goes on beside the minute that a release takes to build
RECOVER_UNIT = """# Written by the installer for the minute of an update, and taken away when the new release is well.
[Unit]
Description=bedside-edge: back to the release before an update that was cut off
ConditionPathExists={note}
RequiresMountsFor={base}
Before={agent} {forwarder}

[Service]
Type=oneshot
ExecStart={python} {installer} recover
TimeoutStartSec=60
"""


def nothing(_name: str) -> None:
    """What is done between two steps, but by a test that cuts the installation off there."""


class Installer:
    """One run: `install`, `rollback`, `recover` and `clean` each hold the lock; all raise Stop."""

    def __init__(
        self, folders: Folders, services: Services, *, say: Callable[[str], None], socket: Path,
        step: Callable[[str], None] = nothing,
    ) -> None:  # fmt: skip
        self.folders, self.services, self.socket = folders, services, socket
        self.say, self.step = say, step

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else installs meanwhile; the kernel lets the lock go when this process ends, however it ends."""
        self.folders.base.mkdir(parents=True, exist_ok=True, mode=0o755)
        with (self.folders.base / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Stop(BUSY, f"{lock.name}: another installation runs", "wait for its end and try again") from None
            yield

    # -- install ------------------------------------------------------------------------------------------------

    def install(
        self, path: Path, *, signature: Path | None = None, python: str = "", allow_older: bool = False,
        any_system: bool = False, new_format: bool = False, now: bool = False, health_s: float = HEALTH_S,
        prepare: bool = False, start: bool = True,
    ) -> None:  # fmt: skip
        """Verify, build and switch to the release of a bundle; done at once when it is the one in force."""
        folders = self.folders
        try:
            bundle = path.open("rb")
        except OSError as error:
            raise Stop(BUNDLE, f"{path}: {error.strerror}", "name the .tar file of the release") from None
        with bundle:
            manifest = verify(bundle, signature or path.with_name(path.name + ".sig"), folders.trusted)
            version, present = str(manifest["version"]), folders.version(folders.current)
            if present == version and self._is_whole(manifest) and not folders.note.exists():
                self.say(f"{version} is installed already: nothing to do")
                return
            if present and order(version) < order(present) and not allow_older:
                raise Stop(
                    MACHINE, f"{version} is older than {present}, which is installed",
                    "`edge-agent release rollback` goes back to the release before; or say --allow-older",
                )  # fmt: skip
            self._same_formats(manifest, present, new_format)
            if not any_system:
                check_machine(manifest, folders.system())
            interpreter = find_python(manifest["requires_python"], python)
            wheels = wheels_for(manifest, interpreter)
            with self.locked():
                if self._undo():
                    self.services.reload()
                if not self._is_whole(manifest):
                    check_room(manifest, wheels, folders.releases)
                    self._build(bundle, manifest, interpreter)
                self._try(version)
                if prepare:
                    self.say(f"{version} is prepared; the same command without --prepare switches to it in seconds")
                    return
                self._switch(version, now=now, health_s=health_s, start=start)
                self._clean()

    def _same_formats(self, manifest: Mapping[str, Any], present: str, new_format: bool) -> None:
        """Return when two releases can read what the other one has kept, or nobody minds. Raises: Stop."""
        if not present or new_format:
            return
        found = json.loads((self.folders.releases / present / "manifest.json").read_bytes()).get("data", {})
        for name, number in manifest.get("data", {}).items():
            if name in found and found[name] != number:
                raise Stop(
                    MACHINE,
                    f"{manifest['version']} keeps the {name} in format {number}, {present} in format {found[name]}: "
                    "the older one of them cannot read what the newer one has written",
                    "wait until everything is forwarded (edge-agent status), keep a copy of the data, say --new-format",
                )

    def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the release is in its folder. Raises: Stop when another one of the same number is."""
        folder = self.folders.releases / manifest["version"]
        try:
            found = json.loads((folder / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return False
        wanted = {key: value for key, value in manifest.items() if key != "sha256"}
        if found != wanted:
            what = f"{folder}: another build of {manifest['version']} is there (commit {found.get('commit', '?')})"
            raise Stop(MACHINE, what, "give the new build a version of its own")
        return bool((folder / ".venv/bin/python").exists())

    def _build(self, bundle: Any, manifest: Mapping[str, Any], python: Python) -> None:
        """Make the release's folder under a name that nothing uses, and give it its own name when it is whole."""
        folders, version = self.folders, manifest["version"]
        partial, final = folders.releases / f"{version}.partial", folders.releases / version
        self.step("begin")
        folders.releases.mkdir(parents=True, exist_ok=True)
        for left in folders.releases.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        self.say(f"building {version} in {partial}")
        try:
            partial.mkdir(mode=0o755)
            self.step("unpack")
            unpack(bundle, manifest, partial)
            self.step("environment")
            environment(partial, "/" / final.relative_to(folders.root), manifest["wheel"], python)
            self.step("written")
            shutil.rmtree(partial / "wheels", ignore_errors=True)
            (partial / manifest["wheel"]).unlink()
            os.sync()  # thousands of files: one flush of the whole disk is quicker than theirs one by one
            self.step("synced")
            old = folders.releases / f"{version}.old.partial"
            if (
                final.exists()
            ):  # whose Python has gone with an upgrade of the system: away for no longer than two renames
                final.rename(old)
            partial.rename(final)
            sync(folders.releases)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            what = f"{error.filename or partial}: {error.strerror or error}"
            raise Stop(MACHINE, f"{version} could not be built: {what}", "see `df -h`, and try again") from None
        except Stop:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.step("built")

    def _try(self, version: str) -> None:
        """Run the new release once, with the configuration in force. Raises: Stop when it will not run with it."""
        python = str(self.folders.releases / version / ".venv/bin/python")
        words = [python, "-I", "-B", "-m", "edge_agent"]
        told = _run([*words, "--version"], MACHINE, f"{version} does not start here")
        if version not in told.split():
            raise Stop(BUNDLE, f"{version} says it is {told.splitlines()[0]!r}", "build the release again")
        if self.services.live and self.folders.config.exists():
            config = str(self.folders.config)
            _run(
                [*words, "check", config], CONFIG, f"{version} refuses the configuration {config}; nothing was changed"
            )

    # -- switch -------------------------------------------------------------------------------------------------

    def _switch(self, version: str, *, now: bool, health_s: float, start: bool = True) -> None:
        """Make `version` the one in force, and the one before it again when it is not well."""
        folders, services = self.folders, self.services
        present = folders.version(folders.current)
        before = self._status()
        forwarder = services.active(FORWARDER)
        running = bool(before) or services.active(AGENT)
        if running:
            self._announce(version, now=now)
        self._point(present, version)
        if not services.live:
            self._settle()
            self.say(f"{version} is in {folders.base}, for the image's first boot")
            return
        services.reload()
        if not present:
            services.enable()
        if not running and (not start or not folders.config.exists()):
            self._settle()
            self.say(f"{version} is installed; start it with `systemctl start {TARGET}`"
                     f"{'' if folders.config.exists() else f' when {folders.config} is there'}")  # fmt: skip
            return
        self.step("restart")
        services.restart(first=not running)
        known = own_faults(before) if before else None
        why = health(services, self.socket, version, known, health_s, forwarder)
        self.step("judged")
        if not why:
            self._settle()
            self.say(f"{version} is in force and well{self._down()}")
            if faults := own_faults(self._status()):
                self.say(
                    f"it reports what was there before: {', '.join(sorted(faults))}; `edge-agent doctor` tells more"
                )
            return
        if not present:
            self._settle()
            raise Stop(UNHEALTHY, f"{version} is installed, and is not well: {why}", "`edge-agent doctor` tells more")
        self.say(f"{version} is not well: {why}\n  going back to {present}")
        self._undo()
        services.reload()
        services.restart(first=False)
        worse = health(services, self.socket, present, known, health_s, forwarder)
        if worse:
            what = f"{version} is not well ({why}), and {present}, now in force again, is not either: {worse}"
            raise Stop(UNHEALTHY, what, "the bedside has no alarms from this gateway: watch the patients, then doctor")
        raise Stop(
            WENT_BACK, f"{version} was not well: {why}. {present} is in force again and well{self._down()}",
            f"keep {folders.releases / version} for whoever looks into it; journalctl -u {AGENT} has its last words",
        )  # fmt: skip

    def _status(self) -> dict[str, Any]:
        if self.services.live:
            with contextlib.suppress(OSError, ValueError, Refused):
                return dict(ask(self.socket, "status")["status"])
        return {}

    def _announce(self, version: str, *, now: bool) -> None:
        """Let the agent say that it goes for a moment. Raises: Stop when it must not go now."""
        self.step("announce")
        try:
            ask(self.socket, "announce", reason="update", version=version, now=now)
        except Refused as error:
            if "unknown op" in str(error):
                self.say(f"the running agent cannot announce its restart ({error})")
                return
            raise Stop(
                BUSY, f"not now: {error}", "try again later (the release stays prepared), or say --now"
            ) from None
        except (OSError, ValueError) as error:
            self.say(f"no agent answers on {self.socket} ({error}): nothing to announce it to")
            return
        self.say(f"announced: the alarm path goes down for a few seconds, for {version}")

    def _point(self, present: str, version: str) -> None:
        """Write what is being done, then units and links, each in one step."""
        folders = self.folders
        note = {"from": present, "to": version, "previous": folders.version(folders.previous)}
        self.step("note")
        write(folders.installer, archive())
        self._recovery()
        write(folders.note, json.dumps(note).encode())
        self.step("previous")
        if present != version and present:
            link(folders.previous, f"releases/{present}")
        self.step("units")
        self._units(version, present)
        self.step("current")
        link(folders.current, f"releases/{version}")
        self.step("pointed")

    def _recovery(self) -> None:
        """The unit that undoes an update at the next boot; without a note it does nothing."""
        folders, units = self.folders, self.folders.etc / "systemd/system"
        inside = {name: "/" / path.relative_to(folders.root) for name, path in
                  (("note", folders.note), ("base", folders.base), ("installer", folders.installer))}  # fmt: skip
        text = RECOVER_UNIT.format(agent=AGENT, forwarder=FORWARDER, python=os.path.realpath(sys.executable), **inside)
        write(units / RECOVER, text.encode())
        wants = units / "multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        link(wants / RECOVER, f"../{RECOVER}")

    def _units(self, version: str, before: str) -> None:
        """Put the units of one release in the place of those of another."""
        wanted, present = self._placed(version), self._placed(before)
        for target, source in wanted.items():
            write(target, source.read_bytes())
            self.step(f"unit {target.name}")
        for target in present.keys() - wanted.keys():
            target.unlink(missing_ok=True)

    def _placed(self, version: str) -> dict[Path, Path]:
        folder = self.folders.releases / version / "systemd"
        sources = sorted(folder.rglob("*")) if version else []
        found = ((self.folders.place(str(path.relative_to(folder))), path) for path in sources if path.is_file())
        return {target: path for target, path in found if target is not None}

    def _settle(self) -> None:
        """The release in force is the one to stay with: nothing is left to undo."""
        self.folders.note.unlink(missing_ok=True)
        sync(self.folders.base)
        self.step("settled")
        self._forget()

    def _forget(self) -> None:
        units = self.folders.etc / "systemd/system"
        for name in (units / "multi-user.target.wants" / RECOVER, units / RECOVER):
            name.unlink(missing_ok=True)

    def _undo(self) -> bool:
        """Back to the release that a note names as the one before: files only; whether there was anything to undo."""
        folders = self.folders
        try:
            note = json.loads(folders.note.read_bytes())
        except FileNotFoundError:
            self._forget()  # a run may have ended right behind its note
            return False
        except (OSError, ValueError) as error:
            self.say(f"{folders.note}: {error}; what is in force stays")
            note = {"from": ""}
        back = note["from"]
        if back and (folders.releases / back).is_dir():
            self.step("undo units")
            self._units(back, note["to"])
            self.step("undo current")
            link(folders.current, f"releases/{back}")
            self.step("undo previous")
            if note["previous"]:
                link(folders.previous, f"releases/{note['previous']}")
            else:
                folders.previous.unlink(missing_ok=True)
        self._settle()
        return True

    def _down(self) -> str:
        """For how long the alarm path was away, in systemd's own words: from the order to stop to READY."""
        state = self.services.show(AGENT)
        left, back = (int(state.get(f"Active{key}TimestampMonotonic") or 0) for key in ("Exit", "Enter"))
        return f"; the alarm path was down for {(back - left) / 1e6:.2f} s" if 0 < left < back else ""

    # -- the other ways -----------------------------------------------------------------------------------------

    def rollback(self, *, now: bool = False, health_s: float = HEALTH_S, new_format: bool = False) -> None:
        """Make the release before the one in force again."""
        with self.locked():
            if self._undo():
                self.services.reload()
            back = self.folders.version(self.folders.previous)
            if not back:
                raise Stop(MACHINE, f"{self.folders.previous}: there is no release before", "install one")
            manifest = json.loads((self.folders.releases / back / "manifest.json").read_bytes())
            self._same_formats(manifest, self.folders.version(self.folders.current), new_format)
            self._try(back)
            self._switch(back, now=now, health_s=health_s)

    def recover(self) -> None:
        """At boot, before the agent: undo an update that was cut off."""
        with self.locked():
            if self._undo():
                self.services.reload()
                self.say(f"an update was cut off: {self.folders.version(self.folders.current)} is in force again")

    def _clean(self) -> None:
        """Remove what is neither in force nor the one before."""
        keep = {self.folders.version(self.folders.current), self.folders.version(self.folders.previous)}
        for folder in self.folders.releases.iterdir():
            if folder.name not in keep:
                self.step("clean")
                shutil.rmtree(folder, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """What is installed: releases, the one in force, the one before, and whether an update was cut off."""
        folders = self.folders
        present = sorted(path.name for path in folders.releases.glob("*")) if folders.releases.is_dir() else []
        return {
            "current": folders.version(folders.current), "previous": folders.version(folders.previous),
            "releases": [name for name in present if not name.endswith(".partial")],
            "unfinished": [name for name in present if name.endswith(".partial")],
            "interrupted": folders.note.exists(), "running": self._status().get("version", ""),
        }  # fmt: skip


# -- the environment -----------------------------------------------------------------------------------------------


def environment(folder: Path, final: Path, wheel: str, python: Python) -> None:
    """A virtual environment in `folder` for the path `final`, where it will lie when it is run. Raises: Stop."""
    venv, cache = folder / ".venv", folder / ".tmp"
    cache.mkdir()
    offline = (folder / "wheels").is_dir()
    pip = [*map(str, (folder / "wheels").glob("pip-*.whl")), *python.pip]
    if not pip:
        raise Stop(MACHINE, f"{python.path} has no pip", f"apt install python3.{python.version[1]}-venv")
    clean = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(cache), "TMPDIR": str(cache), "LANG": "C.UTF-8"}
    if offline:
        clean["PIP_CONFIG_FILE"] = os.devnull
    else:
        clean |= {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.endswith("_proxy")}
    _run([python.path, "-m", "venv", "--without-pip", str(venv)], MACHINE, "no environment could be made", clean)
    own = str(venv / "bin/python")
    call = [own, f"{pip[0]}/pip", "install", "--quiet", "--no-compile", "--no-cache-dir", "--disable-pip-version-check",
            "--root-user-action=ignore", "--only-binary=:all:", "--no-deps"]  # fmt: skip
    source = ["--no-index", f"--find-links={folder / 'wheels'}"] if offline else []
    locked = ["--require-hashes", "-r", str(folder / "requirements.lock")]
    _run([*call, *source, *locked], MACHINE, "the packages could not be installed", clean)
    _run([*call, "--no-index", str(folder / wheel)], MACHINE, "the project could not be installed", clean)
    thin(venv)
    for script in (venv / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(venv), os.fsencode(final / ".venv")))
    config = venv / "pyvenv.cfg"
    config.write_text(config.read_text().replace(str(venv), str(final / ".venv")))
    # compiled now: the services may not write here, and the first start is as quick as any other
    compiling = [
        *GENTLY,
        own,
        "-m",
        "compileall",
        "-q",
        "-j",
        "2",
        "-s",
        str(folder),
        "-p",
        str(final),
        str(venv / "lib"),
    ]
    subprocess.run(compiling, env=clean, capture_output=True, timeout=900, check=False)  # some packages carry templates
    shutil.rmtree(cache)


def _run(words: Sequence[str], code: int, what: str, env: Mapping[str, str] | None = None) -> str:
    """What a command printed. Raises: Stop with its last words when it failed."""
    done = subprocess.run(
        [*GENTLY, *words], capture_output=True, text=True, timeout=1800, check=False, env=env, cwd="/"
    )
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        remedy = "correct the configuration, then again" if code == CONFIG else "what is in force goes on as before"
        raise Stop(code, f"{what}:\n  {last}", remedy)
    return done.stdout


def archive() -> bytes:
    """The installer as one file for a bare machine: a zip of its modules that `python3` runs."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        sources = {"__main__.py": "import sys\nfrom edge_agent.release.command import main\nsys.exit(main())\n"}
        for name in MODULES:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                raise ImportError(name)
            path = name.replace(".", "/") + ("/__init__.py" if spec.submodule_search_locations else ".py")
            sources[path] = spec.loader.get_source(name)  # type: ignore[attr-defined]
        for path, text in sources.items():
            pack.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), text)
    return out.getvalue()
