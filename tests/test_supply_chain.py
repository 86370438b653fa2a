"""What a gateway is made of: lock, licences, foreign software and hazards say what is so, and say when it is not.

What needs pip-audit and cyclonedx-py is in tests/fleet/test_supply.py, in whose environment they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requirements

from supply import audit, licences, lock, sbom, soup

ROOT = Path(__file__).parent.parent
NAMED_TEST = re.compile(r"`((?:fleet/)?test_\w+\.py)::(\w+)`")
HAZARD = re.compile(r"^\| (H\d+) \|(.*)\|$", re.MULTILINE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout of what the generators read."""
    for name in ("requirements.lock", "pyproject.toml", "supply/parts.toml", *(f"docs/{page}.md" for page in PAGES)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


PAGES = ("licences", "hazards", "soup")


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_the_lock_is_read_for_a_gateway_and_its_python() -> None:
    of_311, of_313 = ({pin.name: pin for pin in lock.pins(python=python)} for python in ("3.11", "3.13"))
    assert of_311.keys() == of_313.keys() and "colorama" not in of_311  # Windows only
    assert of_311["numpy"].version != of_313["numpy"].version and of_311["numpy"].version > "2.0"
    assert of_311["httpcore"].via == ("httpx",) and "bedside-edge" in of_311["httpx"].via
    assert set(lock.doors()) == {name for name, pin in of_311.items() if "bedside-edge" in pin.via}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    --hash=sha256:", "    --hash=md5:", "not understood"),
        ("anyio==", "anyio>=", "not understood"),
        ("anyio==4", "added==1.0 \\\n    # via httpx\nanyio==4", "added has no hash"),
    ],
)
def test_a_lock_that_holds_nothing_fast_is_refused(tree: Path, old: str, new: str, says: str) -> None:
    change(tree / "requirements.lock", old, new)
    with pytest.raises(lock.LockError, match=says):
        lock.pins(tree)


def test_a_dependency_without_its_door_is_refused(tree: Path) -> None:
    change(tree / "pyproject.toml", "# drivers/hl7\n", "\n")
    with pytest.raises(lock.LockError, match="hl7: no comment says where"):
        lock.doors(tree)


# -- licences ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("AGPL-3.0-or-later OR BSD-3-Clause", True),
        ("MIT AND GPL-2.0-only", False),
        ("MIT AND (GPL-2.0-only OR Apache-2.0)", True),
        ("MIT OR GPL-2.0-only AND AGPL-3.0-only", True),
        ("(MIT OR Apache-2.0) AND GPL-2.0-only", False),
        ("LicenseRef-unknown", False),
    ],
)
def test_an_expression_is_allowed_when_allowed_licences_meet_it(expression: str, fine: bool) -> None:
    assert licences.allowed(expression) is fine


@pytest.mark.parametrize(
    "expression", ["", "MIT AND", "(MIT", "MIT)", "MIT Apache-2.0", "GPL-3.0-only WITH x", "OR MIT"]
)
def test_what_is_no_expression_is_not_guessed(expression: str) -> None:
    with pytest.raises(ValueError, match="not an SPDX expression"):
        licences.allowed(expression)


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, *metadata: str) -> lock.Pin:
    """A package with this metadata, installed beside the running Python."""
    (folder / "foreign-1.0.dist-info").mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", "Name: foreign", "Version: 1.0", *metadata, "", ""]
    (folder / "foreign-1.0.dist-info" / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    return lock.Pin("foreign", "1.0", ("0" * 64,), ("bedside-edge",))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (["License-Expression: MPL-2.0 AND MIT"], "MPL-2.0 AND MIT"),
        (["License: Apache-2.0"], "Apache-2.0"),
        (["Classifier: License :: OSI Approved :: Apache Software License"], "Apache-2.0"),
    ],
)
def test_a_licence_is_read_from_what_the_metadata_have(
    metadata: list[str], expected: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, problems = licences.page(tree, [installed(tmp_path / "site", monkeypatch, *metadata)])
    assert (problems, f"| foreign | 1.0 | {expected} |" in text) == ([], True)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (["License-Expression: GPL-3.0-or-later"], "foreign 1.0: GPL-3.0-or-later is not allowed on a gateway"),
        (["License: GPL-2.0-only AND MIT"], "is not allowed"),
        (["License: BSD", "Classifier: License :: OSI Approved :: BSD License"], "names no one licence"),
        (
            ["Classifier: License :: OSI Approved :: MIT License", "Classifier: License :: Other"],
            "names no one licence",
        ),
        ([], "names no one licence"),
        (["License-Expression: MIT WITH nonsense"], "not an SPDX expression"),
    ],
)
def test_a_licence_that_is_unknown_or_not_allowed_fails(
    metadata: list[str], says: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, problems = licences.page(tree, [installed(tmp_path / "site", monkeypatch, *metadata)])
    assert len(problems) == 1 and says in problems[0]


def test_another_version_than_the_lock_s_is_not_described(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", monkeypatch, "License: MIT")
    with pytest.raises(lock.LockError, match=r"installed as 1\.0 and locked at 1\.1"):
        licences.page(tree, [lock.Pin("foreign", "1.1", ("0" * 64,), ())])


def test_the_page_of_licences_has_the_lock_s_packages_and_only_allowed_ones() -> None:
    listed = licences.listed()
    assert listed.keys() == {pin.name for pin in lock.pins()}
    for name, (version, expression) in listed.items():
        assert version in {
            pin.version for python in ("3.11", "3.13") for pin in lock.pins(python=python) if pin.name == name
        }
        assert licences.allowed(expression), name


# -- foreign software --------------------------------------------------------------------------------------------------


def test_the_page_of_foreign_software_is_what_comes_out() -> None:
    text, problems = soup.page()
    assert problems == []
    assert (ROOT / soup.PAGE).read_text() == text, "run make soup"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("requirements.lock", "anyio==4", f"added==1.0 \\\n    --hash=sha256:{'0' * 64}\n    # via httpx\nanyio==4",
         "say of added where it runs"),
        ("requirements.lock", "anyio==4.", "anyio==5.", "docs/licences.md has anyio 4."),
        ("supply/parts.toml", "[anyio]", "[gone]", "gone is not in requirements.lock"),
        ("supply/parts.toml", 'where = "forwarder"', 'where = "somewhere"', "say of"),
        ("supply/parts.toml", '["H9"]', '["H99"]', "there is no H99"),
        ("supply/parts.toml", "where =", 'colour = "red"\nwhere =', "unknown key colour"),
        ("docs/soup.md", "Foreign", "Our", "docs/soup.md is out of date"),
    ],
)  # fmt: skip
def test_a_list_that_is_not_so_any_more_is_told(
    file: str, old: str, new: str, says: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soup.main(["--root", str(tree)]) == 0
    change(tree / file, old, new)
    assert soup.main(["--root", str(tree)]) == 1
    assert says in capsys.readouterr().err


def modules_of(code: str) -> set[str]:
    """Packages of which a Python that runs `code` has loaded a file."""
    tell = """
import importlib.metadata, sys
loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
for each in importlib.metadata.distributions():
    if any(str(each.locate_file(file)) in loaded for file in each.files or () if file.suffix in (".py", ".so")):
        print(each.metadata["Name"])
"""
    done = subprocess.run([sys.executable, "-c", code + tell], cwd=ROOT, capture_output=True, text=True, check=True)
    return {lock.canonical(line) for line in done.stdout.splitlines() if not line.startswith(("/", "model", "sepsis"))}


AGENT = """
import edge_agent.commands.run, drivers, hl7, gpiod
from edge_agent.links import ble, serial
import bleak.backends.bluezdbus.client
for name in drivers.names(): drivers.load(name)
import contextlib, io
from edge_agent.__main__ import main
with contextlib.redirect_stdout(io.StringIO()): main(["model", "verify"])
"""
FORWARDER = """
import cloud_sync.__main__, cloud_sync.forwarder, cloud_sync.avro, cloud_sync.registry, confluent_kafka
import cloud_sync.sinks.kafka, cloud_sync.sinks.mqtt, cloud_sync.sinks.rest, httpx
httpx.Client(); import h11, anyio, certifi
"""
COMMANDS = "import sqlite_utils, edge_agent.view, edge_agent.view_beds"


@pytest.mark.parametrize(
    ("code", "own", "nearer"),
    [
        (AGENT, {"loop", "agent"}, set()),
        (FORWARDER, {"forwarder"}, {"loop", "agent"}),
        (COMMANDS, {"commands"}, {"loop", "agent", "forwarder"}),
    ],
    ids=["agent", "forwarder", "commands"],
)
def test_every_package_runs_where_the_list_says_and_no_nearer_to_the_alarms(
    code: str, own: set[str], nearer: set[str]
) -> None:
    said = {name: each["where"] for name, each in licences.parts().items()}
    loaded = modules_of(code) & said.keys()
    assert {name: said[name] for name in loaded if said[name] not in own | nearer} == {}
    assert {name for name, where in said.items() if where in own} - loaded == set()


def test_the_bill_names_the_packages_that_the_role_installs() -> None:
    text = (ROOT / "ansible" / "roles" / "edge_gateway" / "vars" / "main.yml").read_text()
    match = re.search(r"^  debian-12: \[(.+)\]$", text, re.MULTILINE)
    assert match and {*match[1].split(", "), "systemd"} == sbom.DEBIAN.keys()


# -- known holes -------------------------------------------------------------------------------------------------------


def test_a_report_is_read_package_by_package() -> None:
    hole = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}
    found = audit.judged({"dependencies": [
        {"name": "Good_One", "version": "1.0", "vulns": []},
        {"name": "holed", "version": "1.0", "vulns": [hole, {**hole, "id": "PYSEC-2", "fix_versions": []}]},
        {"name": "dark", "skip_reason": "Dependency not found on PyPI and could not be audited: dark (1.0)"},
    ]})  # fmt: skip
    assert (found.looked_up, found.unknown) == (["good-one", "holed"], ["dark"])
    assert found.holes == ["holed 1.0: PYSEC-1, mended in 1.1", "holed 1.0: PYSEC-2, mended in no version yet"]


@pytest.mark.parametrize("report", [{}, {"dependencies": [{"name": "x", "version": "1"}]}, {"dependencies": None}])
def test_what_is_no_report_does_not_pass_for_a_good_one(report: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="report lacks"):
        audit.judged(report)


# -- hazards and threats -----------------------------------------------------------------------------------------------


def wrong(text: str) -> list[str]:
    """Tests and requirements that a page names and that are not there, and requirements that it leaves out."""
    found = []
    for file, name in NAMED_TEST.findall(text):
        path = ROOT / "tests" / file
        if not path.exists() or not re.search(rf"^ *(?:async )?def {name}\(", path.read_text(), re.MULTILINE):
            found.append(f"{file}::{name}")
    named = set(re.findall(r"ALM-\d+", text))
    return found + sorted(named - requirements.REQUIREMENTS.keys()) + sorted(requirements.REQUIREMENTS.keys() - named)


def test_hazards_name_tests_and_requirements_that_exist() -> None:
    text = (ROOT / "docs" / "hazards.md").read_text()
    assert wrong(text) == []
    rows = HAZARD.findall(text)
    assert len(rows) == len({number for number, _ in rows}) >= 15
    held = {test: ids for ids, tests in requirements.trace().tests.items() for test in tests}
    for number, row in rows:
        *_, needed, tests = (cell.strip() for cell in row.split("|"))
        named = NAMED_TEST.findall(tests)
        assert named and re.fullmatch(r"ALM-\d\d(, ALM-\d\d)*", needed), number
        assert any(f"tests/{file}::{name}" in held for file, name in named), (
            f"{number}: none of its tests holds a requirement"
        )


def test_a_hazard_whose_test_was_renamed_is_told() -> None:
    text = (ROOT / "docs" / "hazards.md").read_text()
    assert wrong(text.replace("test_a_refusal_is_audited", "test_it_was")) == ["test_control.py::test_it_was"]
    assert wrong(text.replace("ALM-31", "ALM-99")) == ["ALM-99", "ALM-31"]


def test_every_threat_names_what_holds_its_control() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    missing = [each for each in wrong(text) if "::" in each]
    assert missing == []
    rows = re.findall(r"^\| (T\d+) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == len({number for number, _ in rows}) >= 20
    for number, row in rows:
        *_, held, stays = (cell.strip() for cell in row.split("|"))
        files = re.findall(r"`([\w./-]+\.(?:py|md|service|toml|rules|yml|yaml))`", held)
        assert NAMED_TEST.search(held) or files, f"{number} names no test and no file"
        assert all((ROOT / file).exists() for file in files), number
        assert stays, f"{number} does not say what stays"
