"""Power cuts at any moment, simulated over the production code: no promise is broken, and the controls break theirs.

How it works and what it does not show: docs/power-cut.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import power_cut_check
import power_cut_replay
import pytest
from power_cut_replay import Disk, Line

HERE = Path(__file__).parent
STATES = 1500
SEED = 4
_PROCESSES = 4  # a check waits for commits as long as it computes
_DRAWN = 270  # places by lot; with those around every change of names they give some 1,700 states
_CONTROL_SHARE = 10  # of the states of a control
_PATIENCE_S = 280


class Site(NamedTuple):
    """Where the victim ran and what was recorded."""

    room: Path
    below: Path
    log: Path


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded layer, compiled."""
    library = tmp_path_factory.mktemp("power-cut") / "record.so"
    source = HERE / "power_cut_record.c"
    try:
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    except FileNotFoundError:
        why = "power cuts are recorded by a layer in C: apt install gcc libc6-dev"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return library


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder in memory where there is room, so that no disk is worn by thousands of states."""
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 256 << 20
    folder = Path(tempfile.mkdtemp(prefix="power-cut-", dir=memory if in_memory else None))
    yield folder
    shutil.rmtree(folder)


def record(recorder: Path, room: Path, level: str) -> Site:
    """Runs the victim to its end and writes down what it does to its disk."""
    site = Site(room, room / "disk", room / "log")
    site.below.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, str(HERE / "power_cut_victim.py"), str(site.below), level],
        env={**_environment(), "POWER_CUT_BELOW": str(site.below), "POWER_CUT_LOG": str(site.log),
             "LD_PRELOAD": str(recorder)},
        stderr=subprocess.PIPE, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return site


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}


def check(site: Site, drawn: int, share: int = 1) -> tuple[dict[str, Counter[str]], list[str]]:
    """By model how many states were checked and how many had what wrong, and some examples."""
    states = power_cut_check.plan(site.log, str(site.below), drawn, SEED)[::share]
    plan = site.room / "plan"
    plan.write_text(json.dumps([SEED, states]))
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "power_cut_check.py"), str(site.log), str(site.below), str(plan), str(shard),
             str(_PROCESSES), str(site.room / f"after-{shard}")],
            env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for shard in range(_PROCESSES)
    ]  # fmt: skip
    counts = {model: Counter[str]() for model in power_cut_replay.MODELS}
    examples: list[str] = []
    try:
        for process in running:
            out, _ = process.communicate(timeout=_PATIENCE_S)
            assert process.returncode == 0
            found = json.loads(out)
            for model, count in found["counts"].items():
                counts[model].update(count)
            examples += found["examples"]
    finally:
        for process in running:
            process.kill()
            process.wait()
    total = sum(count["states"] for count in counts.values())
    assert total == len(states)
    print(f"{total} states; { ({model: dict(count) for model, count in counts.items()}) }")
    return counts, examples


def _broken(counts: dict[str, Counter[str]]) -> Counter[str]:
    """How many states had what wrong, over all models."""
    whole = sum(counts.values(), Counter[str]())
    del whole["states"]
    return +whole


def test_no_power_cut_breaks_a_promise(recorder: Path, room: Path) -> None:
    site = record(recorder, room, "full")
    _nothing_was_overlooked(site)
    counts, examples = check(site, _DRAWN)
    assert not _broken(counts), "\n".join(examples)
    assert sum(count["states"] for count in counts.values()) >= STATES
    assert all(count["states"] >= STATES // 20 for count in counts.values())


def _nothing_was_overlooked(site: Site) -> None:
    """The whole log, replayed, is the disk as the victim has left it, byte for byte."""
    lines = power_cut_replay.read_log(site.log)
    assert {line.op for line in lines} >= set("CKWTSURLN")
    disk = Disk(str(site.below))
    for line in lines:
        disk.apply(line)
    again = site.room / "again"
    again.mkdir()
    disk.materialise(again, "kept", random.Random(0))
    assert _content(again) == _content(site.below)
    shutil.rmtree(again)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }


@pytest.mark.parametrize(
    ("level", "what", "models"),
    [
        ("normal", "lost", ("dropped", "torn", "random")),
        ("folders", "mark", ("dropped", "random")),
        ("key", "key", ("dropped", "names", "torn", "random")),
    ],
)
def test_the_control_breaks_its_promise(
    recorder: Path, room: Path, level: str, what: str, models: tuple[str, ...]
) -> None:
    """With SQLite's commits not synced, with no folder synced, with a key file not synced, the same check must fail."""
    counts, examples = check(record(recorder, room, level), _DRAWN, _CONTROL_SHARE)
    assert not _broken({"kept": counts["kept"]}), "\n".join(examples)
    for model in models:
        assert counts[model][what] >= counts[model]["states"] // 10, f"{model}: {counts}"
    if level == "normal":
        assert _broken(counts)["records"] > 100  # records that were acknowledged and are nowhere


def _disk(*lines: tuple[str, int, int, str, str, bytes]) -> Disk:
    disk = Disk("/d")
    for line in lines:
        disk.apply(Line(*line))
    return disk


def _left(disk: Disk, model: str, seed: int = 0) -> dict[str, bytes]:
    state = disk.state(model, random.Random(seed))
    return {
        str(path): bytes(content) for path, node, content in state if not (node.folder or isinstance(content, Path))
    }


def test_a_name_is_durable_once_its_folder_is_synced() -> None:
    written = [("C", 1, 0o600, "/d/a", "", b""), ("W", 1, 0, "/d/a", "", b"x"), ("S", 1, 0, "/d/a", "", b"")]
    renamed = [*written, ("S", 9, 0, "/d", "", b""), ("R", 1, 0, "/d/a", "/d/b", b"")]
    assert _left(_disk(*written), "dropped") == {}
    assert _left(_disk(*renamed), "dropped") == {"a": b"x"}
    assert _left(_disk(*renamed, ("U", 0, 0, "/d/b", "", b"")), "dropped") == {"a": b"x"}
    assert _left(_disk(*renamed, ("S", 9, 0, "/d", "", b"")), "dropped") == {"b": b"x"}
    assert _left(_disk(*renamed), "names") == {"b": b"x"}


def test_unsynced_content_goes_wholly_or_in_sectors() -> None:
    lines = [
        ("C", 1, 0o600, "/d/a", "", b""),
        ("S", 9, 0, "/d", "", b""),
        ("W", 1, 0, "/d/a", "", b"1" * 2048),
        ("S", 1, 0, "/d/a", "", b""),
        ("W", 1, 100, "/d/a", "", b"2" * 1000),
        ("T", 1, 1500, "/d/a", "", b""),
    ]
    disk = _disk(*lines)
    assert _left(disk, "dropped") == _left(disk, "names") == {"a": b"1" * 2048}
    assert _left(disk, "kept") == {"a": b"1" * 100 + b"2" * 1000 + b"1" * 400}
    torn = {_left(disk, "torn", seed)["a"] for seed in range(60)}
    assert b"1" * 512 + b"2" * 512 + b"1" * 1024 in torn, "a sector in the middle alone"
    assert b"1" * 100 + b"2" * 412 + b"1" * 1536 in torn, "cut after the first sector"
    assert {_left(disk, "random", seed)["a"] for seed in range(60)} == {
        b"1" * 2048, b"1" * 1500, b"1" * 100 + b"2" * 1000 + b"1" * 948, b"1" * 100 + b"2" * 1000 + b"1" * 400
    }  # fmt: skip
