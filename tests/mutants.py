"""How many small faults in the alarm and the watch room the tests would notice: `make mutants`, or this with options.

Theory of operation: everything happens in a copy, `.cache/mutants`. mutmut changes what stands inside functions, one
change at a time, and runs the quick tests that touch the function; what mypy refuses is set aside, since `make test`
would not get that far. What stands outside functions, above all the rows of the state tables, mutmut leaves alone: each
row, constant and default is changed here, in a fresh process. Tests that take long (the walks) run only against what
has survived the quick ones. Changes that make no difference stand in mutants.toml with the reason and are not counted.

A second run goes on where the first ended: what was killed stays so until its function changes, what survived is tried
again. `--fresh` begins anew. Exit status 1 when fewer than `--least` percent were killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".cache" / "mutants"
ALLOWED = Path(__file__).parent / "mutants.toml"
ROOMS = ("edge_agent/alarms", "edge_agent/watch")
COPIED = ("edge_agent", "drivers", "cloud_sync", "models_tflite", "docs", "pyproject.toml", "README.md")
TESTS = ("test_alarms_*.py", "test_watch_*.py", "test_scores.py", "test_presets.py", "test_model_windows.py")
SLOW_S = 0.4  # a test that takes longer is kept for the survivors of the quick ones
ROW_TIMEOUT_S = 60
NO_TESTS = int(pytest.ExitCode.NO_TESTS_COLLECTED)
SKIPPED_NAMES = {"__slots__", "__all__"}
STATUS = {0: "survived", 1: "killed", 3: "killed", 5: "survived", 33: "survived", 37: "refused"}  # else: timeout
SWAPPED: dict[type[ast.AST], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
}  # fmt: skip

# codes that mutmut's copies of a function side by side bring about by themselves
_ARTEFACTS = ("no-redef", "has-type", "no-untyped-def", "no-any-return", "misc", "var-annotated")
CHECK = [
    "mypy",
    "--output",
    "json",
    "--no-warn-unused-ignores",
    *(f"--disable-error-code={c}" for c in _ARTEFACTS),
    *ROOMS,
]
SETTINGS = """
[tool.mutmut]
source_paths = {rooms}
also_copy = {copied}
pytest_add_cli_args_test_selection = ["tests"]
timeout_multiplier = 4.0
timeout_constant = 2.0
use_git_change_detection = false
track_dependencies = false
"""
CONFTEST = """

import json
from pathlib import Path

settings.register_profile("mutants", settings.get_profile("bedside"), derandomize=True, database=None)
settings.load_profile("mutants")


def pytest_collection_modifyitems(config, items):
    kept = Path(__file__).parent / "slow.json"
    slow = set(json.loads(kept.read_text())) if kept.exists() else set()
    if not os.environ.get("MUTANTS_ALL"):
        items[:] = [item for item in items if item.nodeid not in slow]
"""
# mutmut's own words for what it changed; it looks for its files in the working folder
DIFFS = """
import json, sys
from mutmut.configuration import Config
with __import__("contextlib").suppress(AttributeError): Config.ensure_loaded()
from mutmut.mutation.diff_apply import get_diff_for_mutant
print(json.dumps({name: get_diff_for_mutant(name, path=path) for name, path in json.load(sys.stdin)}))
"""


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, what stood there, what stands there now, and what became of it."""

    file: str
    line: int
    was: str
    now: str
    status: str
    name: str = ""  # mutmut's

    def key(self) -> tuple[str, str, str]:
        return self.file, self.was, self.now


@dataclass(frozen=True)
class Sample:
    """Which of many are tried: all, or `share` in a hundred drawn with `seed`."""

    share: int | None
    seed: int

    def of(self, jobs: Sequence[Any]) -> list[Any]:
        if self.share is None:
            return list(jobs)
        count = max(1, len(jobs) * self.share // 100) if jobs else 0
        return [jobs[index] for index in sorted(random.Random(self.seed).sample(range(len(jobs)), count))]


class Progress:
    """A line now and then."""

    def __init__(self) -> None:
        self.last = 0.0

    def say(self, text: str, *, now: bool = False) -> None:
        """Print, at most one line in ten seconds."""
        if now or time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            print(text, file=sys.stderr, flush=True)


# -- the copy -------------------------------------------------------------------------------------------------------


def _put(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@contextlib.contextmanager
def original(revision: str) -> Iterator[Path]:
    """The checkout as it is, or a folder with a commit of it."""
    if not revision:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="bedside-mutants-") as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
        yield Path(folder)


def prepare(root: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Bring the copy in `folder` up to date with `root`; only what differs is written."""
    tests = root / "tests"
    wanted = {path for path in tests.rglob("*") if path.is_file() and not path.name.startswith("test_")}
    wanted |= {path for pattern in patterns for path in tests.glob(pattern)}
    for name in COPIED:
        wanted |= {path for path in (root / name).rglob("*") if path.is_file()} or {root / name}
    wanted = {path for path in wanted if "__pycache__" not in path.parts}
    ours = {folder / path.relative_to(root) for path in wanted}
    for top in (*COPIED, "tests"):
        for path in [path for path in (folder / top).rglob("*.py") if path not in ours]:
            path.unlink()
    for path in wanted:
        data = path.read_bytes()
        if path == tests / "conftest.py":
            data += CONFTEST.encode()
        elif path == root / "pyproject.toml":
            copied = json.dumps([*COPIED, "tests"])
            data += SETTINGS.format(rooms=json.dumps(ROOMS), copied=copied).encode()
        _put(folder / path.relative_to(root), data)


def environment(**more: str) -> dict[str, str]:
    """The environment of a run in the copy: our own tools first, and no byte code of a mutant is kept."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


def baseline(folder: Path, longest_s: float) -> tuple[list[str], list[str]]:
    """The tests that take long, and those that take too long to be run at all, after all of them have passed."""
    report = folder / "baseline.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "tests"]
    env = environment(MUTANTS_ALL="1", PYTHONDONTWRITEBYTECODE="")  # the tests' byte code saves time later
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mutants: the tests have to pass before they are tried:\n{done.stdout[-3000:]}")
    slow, endless = [], []
    for case in ElementTree.parse(report).iter("testcase"):
        parts = case.get("classname", "").split(".")
        classes = [part for part in parts if part.startswith("Test")]
        test = "::".join(["/".join(parts[: len(parts) - len(classes)]) + ".py", *classes, case.get("name", "")])
        took = float(case.get("time", "0"))
        if took > longest_s:
            endless.append(test)
        elif took > SLOW_S:
            slow.append(test)
    return slow, endless


# -- what stands outside functions ------------------------------------------------------------------------------------


class Outside:
    """Finds the changes to what mutmut leaves alone in one module: tables, constants, defaults, decorated functions."""

    def __init__(self, source: str, words: dict[str, tuple[str, ...]]) -> None:
        self.lines = source.encode().split(b"\n")
        self.tree = ast.parse(source)
        self.words = words  # each word of a Literal with all words of it
        self.found: list[tuple[ast.expr, str, ast.expr | None]] = []  # where, new text, row taken out

    def run(self) -> Iterator[tuple[int, str, str, str]]:
        """Line, what stood there, what stands there now, and the whole source with it."""
        self._statements(self.tree.body)
        whole = b"\n".join(self.lines)
        was = whole.decode().splitlines()
        for node, text, row in self.found:
            start, end = (
                self._at(node.lineno, node.col_offset),
                self._at(node.end_lineno or 0, node.end_col_offset or 0),
            )
            new = (whole[:start] + text.encode() + whole[end:]).decode()
            try:
                if ast.dump(ast.parse(new)) == ast.dump(self.tree):
                    continue
            except SyntaxError:
                continue
            if row is not None:
                yield row.lineno, ast.unparse(row), "taken out", new
                continue
            now = new.splitlines()
            at = next(n for n, (one, two) in enumerate(zip(was, now, strict=False)) if one != two)
            yield at + 1, was[at].strip(), now[at].strip(), new

    def _at(self, line: int, column: int) -> int:
        return sum(len(one) + 1 for one in self.lines[: line - 1]) + column

    def _statements(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    self._expression(default)
                if node.decorator_list:
                    self._statements(node.body)
            elif isinstance(node, ast.ClassDef | ast.If | ast.For | ast.With):
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    continue
                self._statements(node.body)
                self._statements(getattr(node, "orelse", []))
                self._expression(getattr(node, "test", None))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if not any(isinstance(one, ast.Name) and one.id in SKIPPED_NAMES for one in targets):
                    self._expression(node.value)
            elif isinstance(node, ast.Return):
                self._expression(node.value)

    def _expression(self, node: ast.AST | None) -> None:
        if node is None or isinstance(node, ast.Subscript | ast.Lambda | ast.JoinedStr):
            return  # an alias of a type; text
        if isinstance(node, ast.Constant):
            self.found += [(node, text, None) for text in self._constants(node.value)]
        elif isinstance(node, ast.Dict):
            self._rows(node)
            for value in node.values:
                self._expression(value)
            return
        elif isinstance(node, ast.Set | ast.Tuple | ast.List):
            self._rows(node)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
            left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
            self.found.append((node, f"({left} {SWAPPED[type(node.ops[0])]} {right})", None))
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
            left, right = ast.unparse(node.left), ast.unparse(node.right)
            self.found.append((node, f"({left} {SWAPPED[type(node.op)]} {right})", None))
        elif isinstance(node, ast.BoolOp):
            word = " or " if isinstance(node.op, ast.And) else " and "
            self.found.append((node, f"({word.join(f'({ast.unparse(value)})' for value in node.values)})", None))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.found.append((node, f"({ast.unparse(node.operand)})", None))
        for child in ast.iter_child_nodes(node):
            self._expression(child)

    def _rows(self, node: ast.Dict | ast.Set | ast.Tuple | ast.List) -> None:
        """One change for each row of a table: without it."""
        for index in range(len(node.values if isinstance(node, ast.Dict) else node.elts)):
            copy = ast.parse(ast.unparse(node), mode="eval").body
            row: ast.expr
            if isinstance(copy, ast.Dict) and isinstance(node, ast.Dict):
                del copy.keys[index], copy.values[index]
                row = node.keys[index] or node.values[index]
            elif isinstance(copy, ast.Set | ast.Tuple | ast.List) and not isinstance(node, ast.Dict):
                del copy.elts[index]
                row = node.elts[index]
            text = "set()" if isinstance(copy, ast.Set) and not copy.elts else ast.unparse(copy)
            self.found.append((node, text, row))

    def _constants(self, value: object) -> list[str]:
        if isinstance(value, bool):
            return [repr(not value)]
        if isinstance(value, int | float):
            return [repr(value + 1)]
        if isinstance(value, str):
            others = [word for word in self.words.get(value, ()) if word != value]
            return [repr(word) for word in others] or [repr(value + "X")]
        return []


def literal_words(sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                group = tuple(str(one.value) for one in elements if isinstance(one, ast.Constant))
                words.update({word: group for word in group if word and word not in words})
    return words


def _load(folder: Path) -> None:
    """Load once what every fork needs: the packages, and the floors below the rooms, from the copy."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    for name in ("hypothesis", "edge_agent.terms", "edge_agent.records", "edge_agent.config", "edge_agent.presets"):
        importlib.import_module(name)
    assert not any(name.startswith(room.replace("/", ".")) for name in sys.modules for room in ROOMS)


def _passes(folder: Path, more: dict[str, str], selection: Sequence[str], timeout_s: int) -> str:
    """Run tests in the copy, in a fork of this process, which has the packages loaded and none of the rooms."""
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            os.chdir(folder)
            os.environ.update(environment(**more))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for one in (0, 1, 2):
                os.dup2(nowhere, one)
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *selection]))
        os._exit(code)
    end = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.01)
    return "survived" if os.waitstatus_to_exitcode(status) in (0, NO_TESTS) else "killed"


def _by_nearness(folder: Path, file: str) -> list[list[str]]:
    """The test files of a module's own room, then the others."""
    room = file.split("/")[1]
    tests = sorted(path.relative_to(folder).as_posix() for path in (folder / "tests").rglob("test_*.py"))
    own = [test for test in tests if test.startswith(f"tests/test_{room}_")]
    return [selection for selection in (own, [test for test in tests if test not in own]) if selection]


def outside(folder: Path, files: Sequence[str], slow: Sequence[str], sample: Sample, told: Progress) -> list[Mutant]:
    """Change what stands outside functions, one by one, and run the tests, the quick ones first."""
    kept_path = folder / "outside.json"
    kept: dict[str, str] = json.loads(kept_path.read_text()) if kept_path.exists() else {}
    sources = {file: (folder / file).read_text() for file in files}
    jobs = [
        (file, line, was, now, new)
        for file, source in sources.items()
        for line, was, now, new in Outside(source, literal_words([source])).run()
    ]
    jobs = sample.of(jobs)
    found = []
    for file, line, was, now, new in jobs:
        digest = hashlib.sha256(new.encode()).hexdigest()
        status = kept.get(digest, "")
        if status not in ("killed", "timeout"):
            (folder / file).write_text(new)
            try:
                for selection in _by_nearness(folder, file):
                    status = _passes(folder, {}, selection, ROW_TIMEOUT_S)
                    if status != "survived":
                        break
                if status == "survived" and slow:
                    status = _passes(folder, {"MUTANTS_ALL": "1"}, slow, ROW_TIMEOUT_S)
            finally:
                (folder / file).write_text(sources[file])
            kept[digest] = status
            kept_path.write_text(json.dumps(kept))
        found.append(Mutant(file, line, was, now, status))
        told.say(f"outside functions: {len(found)} of {len(jobs)}")
    return found


# -- what stands inside: mutmut ---------------------------------------------------------------------------------------


def _metas(folder: Path) -> dict[Path, dict[str, dict[str, object]]]:
    return {
        path: json.loads(path.read_text()) for room in ROOMS for path in (folder / "mutants" / room).rglob("*.meta")
    }


def _again(folder: Path) -> None:
    """Let mutmut try again what was not killed."""
    for path, meta in _metas(folder).items():
        codes = meta["exit_code_by_key"]
        codes.update({name: None for name, code in codes.items() if code not in (1, 3, 37)})
        path.write_text(json.dumps(meta))


def _mutmut(folder: Path, workers: int, names: Sequence[str]) -> None:
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(workers), *names]
    with (folder / "mutmut.log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment(), stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(
            f"mutants: mutmut ended with {done.returncode}:\n{(folder / 'mutmut.log').read_text()[-3000:]}"
        )


def _refuse(folder: Path) -> None:
    """Set aside what mypy would not let pass; mutmut's own way to ask it takes minutes for files of this size."""
    done = subprocess.run(CHECK, cwd=folder / "mutants", env=environment(), capture_output=True, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(f"mutants: mypy did not work:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines: dict[str, set[int]] = {}
    for error in map(json.loads, done.stdout.splitlines()):
        if error["severity"] == "error":
            lines.setdefault(error["file"], set()).add(error["line"])
    for path, meta in _metas(folder).items():
        module = path.relative_to(folder / "mutants").as_posix().removesuffix(".py.meta")
        wrong = lines.get(f"{module}.py", set())
        spans = json.loads(path.with_suffix(".spans").read_text())["spans"] if wrong else {}
        names = {name.rpartition(".")[2]: name for name in meta["exit_code_by_key"]}
        refused = [
            names[key] for key, (begin, end) in spans.items() if key in names and wrong & {*range(begin, end + 1)}
        ]
        meta["exit_code_by_key"].update(dict.fromkeys(refused, 37))
        path.write_text(json.dumps(meta))


def _codes(folder: Path, files: Sequence[str]) -> dict[str, tuple[str, int | None]]:
    """File and exit code of every mutant of mutmut's."""
    found: dict[str, tuple[str, int | None]] = {}
    for path, meta in _metas(folder).items():
        file = path.relative_to(folder / "mutants").as_posix().removesuffix(".meta")
        if file in files:
            found.update({name: (file, code) for name, code in meta["exit_code_by_key"].items()})  # type: ignore[misc]
    return found


def inside(
    folder: Path, files: Sequence[str], slow: Sequence[str], sample: Sample, workers: int, told: Progress
) -> list[Mutant]:
    """Let mutmut change what stands inside functions, then run the slow tests against what survived."""
    _again(folder)
    whole = sample.share is None and set(files) == set(all_files(folder))
    told.say("mutmut is at work; its own figures are in mutmut.log", now=True)
    _mutmut(folder, workers, ["edge_agent.*__mutmut_1"])  # makes all of them, tries one of each function
    _refuse(folder)
    if whole:
        _mutmut(folder, workers, [])
    codes = _codes(folder, files)
    chosen = list(codes) if whole else sample.of(sorted(codes))
    if not whole and (open_ones := [name for name in chosen if codes[name][1] is None]):
        _mutmut(folder, workers, open_ones)
        codes = _codes(folder, files)
    left = [name for name in chosen if STATUS.get(codes[name][1] or 0, "timeout") == "survived"]
    late: dict[str, str] = {}
    for number, name in enumerate(left if slow else [], 1):
        late[name] = _tried(folder, name, codes[name][0], slow)
        told.say(f"slow tests against survivors: {number} of {len(left)}")
    _remember(folder, [name for name, status in late.items() if status == "killed"])
    places = _places(folder, {name: codes[name][0] for name in chosen})
    found = []
    for name in chosen:
        file, code = codes[name]
        status = "survived" if code is None else STATUS.get(code, "timeout")
        found.append(Mutant(file, *places[name], late.get(name, status), name))
    return found


def _tried(folder: Path, name: str, file: str, slow: Sequence[str]) -> str:
    path = folder / file
    source = path.read_text()
    try:
        command = [sys.executable, "-m", "mutmut", "apply", name]
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
        return _passes(folder, {"MUTANTS_ALL": "1"}, slow, 4 * ROW_TIMEOUT_S)
    finally:
        path.write_text(source)


def _remember(folder: Path, killed: Sequence[str]) -> None:
    """Let mutmut know what the slow tests have killed, so that it is not tried again."""
    for path, meta in _metas(folder).items():
        codes = meta["exit_code_by_key"]
        ours = [name for name in killed if name in codes]
        codes.update(dict.fromkeys(ours, 1))
        if ours:
            path.write_text(json.dumps(meta))


def _places(folder: Path, files: dict[str, str]) -> dict[str, tuple[int, str, str]]:
    """Line, what stood there, what stands there now, of mutmut's mutants."""
    command, names = [sys.executable, "-c", DIFFS], json.dumps([*files.items()])
    done = subprocess.run(
        command, cwd=folder, env=environment(), input=names, capture_output=True, text=True, check=True
    )
    sources = {file: (folder / file).read_text().splitlines() for file in set(files.values())}
    found = {}
    for name, diff in json.loads(done.stdout).items():
        lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
        was = [line[1:].strip() for line in lines if line.startswith("-")]
        now = [line[1:].strip() for line in lines if line.startswith("+")]
        found[name] = (_line(sources[files[name]], name, was), " ".join(was), " ".join(now))
    return found


def _line(source: list[str], name: str, was: list[str]) -> int:
    """The line in which the changed text stands, after the line that defines its function."""
    function = name.rpartition(".")[2].partition("__mutmut_")[0].removeprefix("x_").replace("ǁ", " ").split()[-1]
    klass = name.partition("ǁ")[2].partition("ǁ")[0]
    begins = [f"class {klass}"] * bool(klass) + [f"def {function}("]
    at = 0
    for begin in begins:
        at = next((n for n in range(at, len(source)) if source[n].strip().removeprefix("async ").startswith(begin)), at)
    first = was[0] if was else ""
    return next((n for n in range(at, len(source)) if source[n].strip() == first), at) + 1


# -- the report -------------------------------------------------------------------------------------------------------


def all_files(root: Path) -> list[str]:
    """The modules of the rooms."""
    return sorted(path.relative_to(root).as_posix() for room in ROOMS for path in (root / room).glob("*.py"))


def allowed() -> dict[tuple[str, str, str], str]:
    """The changes that make no difference, with the reason: file, what stood there, what stands there now."""
    if not ALLOWED.exists():
        return {}
    rows = tomllib.loads(ALLOWED.read_text()).get("equal", [])
    return {(row["file"], row["was"], row["now"]): row["reason"] for row in rows}


def report(found: Sequence[Mutant], equal: dict[tuple[str, str, str], str]) -> tuple[dict[str, Any], str]:
    """Figures by file, with every survivor: as JSON and as text."""
    files: dict[str, dict[str, Any]] = {}
    survivors = []
    for mutant in found:
        row = files.setdefault(mutant.file, dict.fromkeys(("killed", "timeout", "survived", "equal", "refused"), 0))
        same = mutant.status == "survived" and mutant.key() in equal
        row["equal" if same else mutant.status] += 1
        if mutant.status == "survived" and not same:
            survivors.append(mutant)
    total = {
        name: sum(row[name] for row in files.values()) for name in ("killed", "timeout", "survived", "equal", "refused")
    }
    files["together"] = total
    for row in files.values():
        noticed, counted = row["killed"] + row["timeout"], row["killed"] + row["timeout"] + row["survived"]
        row["percent"] = round(100 * noticed / counted, 1) if counted else 100.0
    lines = [f"{m.file}:{m.line}: {m.was}\n    -> {m.now}" for m in sorted(survivors, key=lambda m: (m.file, m.line))]
    lines += ["", f"{'':44}{'killed':>8}{'timeout':>8}{'survived':>9}{'equal':>7}{'refused':>8}{'percent':>9}"]
    for file, row in sorted(files.items(), key=lambda item: (item[0] == "together", item[0])):
        lines.append(f"{file:44}{row['killed']:8}{row['timeout']:8}{row['survived']:9}{row['equal']:7}{row['refused']:8}"
                     f"{row['percent']:9.1f}")  # fmt: skip
    stale = set(equal) - {mutant.key() for mutant in found if mutant.status == "survived"}
    return {
        "files": files,
        "survivors": [asdict(mutant) for mutant in survivors],
        "equal_not_met": [" | ".join(key) for key in sorted(stale)],
    }, "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when at least `--least` percent of what was tried were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="*", help="modules of the two rooms, such as edge_agent/watch/vital.py; none: all"
    )
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="GLOB", help="test files, within tests/")
    parser.add_argument("--sample", type=int, metavar="PERCENT", help="try only as many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes of mutmut")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs have found")
    parser.add_argument("--revision", default="", help="a commit to be tried in place of the checkout")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the copy and earlier results are")
    parser.add_argument("--only", choices=("inside", "outside"), help="what stands inside functions, or outside them")
    parser.add_argument(
        "--longest", type=float, default=20.0, metavar="SECONDS", help="a test may take, else it is left out"
    )
    parser.add_argument("--no-slow", action="store_true", help="leave the walks out")
    parser.add_argument("--least", type=float, default=90.0, metavar="PERCENT", help="that have to be killed")
    parser.add_argument("--json", type=Path, help="where the result goes; without it into the copy, as result.json")
    options = parser.parse_args(arguments)
    told, begin, folder = Progress(), time.monotonic(), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder.parent / f"{folder.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"mutants: another run is at work in {folder}; wait for it, or give a --folder") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # mutmut ends with this
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    with original(options.revision) as root:
        prepare(root, folder, options.tests)
    unknown = set(options.files) - set(all_files(folder))
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    files = options.files or all_files(folder)
    slow, endless = baseline(folder, options.longest)
    _put(folder / "tests" / "slow.json", json.dumps([*slow, *endless]).encode())
    for test in endless:
        told.say(f"left out, it takes more than {options.longest:g} s: {test}", now=True)
    _load(folder)
    slow = [] if options.no_slow else slow
    sample = Sample(options.sample, options.seed)
    found: list[Mutant] = []
    if options.only != "inside":
        found += outside(folder, files, slow, sample, told)
    if options.only != "outside":
        found += inside(folder, files, slow, sample, options.workers, told)
    result, text = report(found, allowed())
    result["took_s"] = round(time.monotonic() - begin)
    (options.json or folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)
    for key in result["equal_not_met"] if not (options.files or options.sample or options.only) else ():
        print(f"mutants.toml: no survivor is {key}")
    print(f"{len(found)} changes in {result['took_s']} s; written to {options.json or folder / 'result.json'}")
    return 0 if result["files"]["together"]["percent"] >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
