"""The trace from requirements to tests: it holds for this tree, and fails for each way in which it may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requirements

EVERY = ", ".join(f'"{requirement}"' for requirement in requirements.REQUIREMENTS)
WHOLE = f"import pytest\n\n@pytest.mark.alm({EVERY})\ndef test_all() -> None: ...\n"


def tree(tmp_path: Path, **files: str) -> Path:
    """A checkout with one test for all requirements, further test files and a table that is up to date."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    for name, text in {"test_whole": WHOLE, **files}.items():
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    page = tmp_path / "docs" / "alarms.md"
    page.write_text(f"# Alarms\n\nbefore\n\n{requirements.BEGIN}\n{requirements.END}\n\nafter\n")
    requirements.check(tmp_path, write=True)
    return tmp_path


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.requirements", "--root", str(root), *arguments]
    return subprocess.run(command, cwd=requirements.ROOT, capture_output=True, text=True, check=False)


def mark(*ids: str, on: str = "def test_more() -> None: ...", also: str = "") -> str:
    return f"import pytest\n\n{also}@pytest.mark.alm({', '.join(map(repr, ids))})\n{on}\n"


def test_a_tree_in_order_passes_and_its_table_names_each_test(tmp_path: Path) -> None:
    root = tree(tmp_path, test_more=mark("ALM-07"))
    done = run(root)
    assert (done.returncode, done.stderr) == (0, "")
    page = (root / "docs" / "alarms.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| ALM-07 |"))
    assert row.endswith("| `test_more.py::test_more`<br>`test_whole.py::test_all` |")
    assert page.startswith("# Alarms\n\nbefore\n\n") and page.endswith(f"{requirements.END}\n\nafter\n")
    for later in requirements.LATER:
        assert f"- {later}: " in page


def test_a_requirement_without_a_test_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, test_whole=WHOLE.replace(', "ALM-13"', ""))
    done = run(root)
    assert done.returncode == 1
    assert done.stderr == f"ALM-13 has no test: {requirements.REQUIREMENTS['ALM-13']}\n"


def test_a_test_that_names_what_is_not_required_is_named_with_its_line(tmp_path: Path) -> None:
    done = run(tree(tmp_path, test_more=mark("ALM-07", "ALM-70"), test_next=mark("ALM-25")))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "tests/test_more.py:3: there is no requirement ALM-70",
        "tests/test_next.py:3: ALM-25 is listed as later work: move it into REQUIREMENTS",
    ]


def test_a_table_out_of_date_is_named_and_renewed(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "tests" / "test_more.py").write_text(mark("ALM-07"))
    done = run(root)
    assert done.returncode == 1 and "docs/alarms.md: its table is out of date" in done.stderr
    assert run(root, "--write").returncode == 0
    assert run(root).returncode == 0


def test_a_page_without_the_markers_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "docs" / "alarms.md").write_text("# Alarms\n")
    done = run(root, "--write")
    assert done.returncode == 1 and requirements.BEGIN in done.stderr
    assert (root / "docs" / "alarms.md").read_text() == "# Alarms\n"


@pytest.mark.parametrize(
    ("text", "test"),
    [
        (mark("ALM-07", on="async def test_more() -> None: ..."), "test_more"),
        (mark("ALM-07", on="@pytest.mark.parametrize('n', [1, 2])\ndef test_more(n: int) -> None: ..."), "test_more"),
        (mark("ALM-07", on="class TestMore:\n    def test_one(self) -> None: ..."), "TestMore::test_one"),
        ("import pytest\npytestmark = pytest.mark.alm('ALM-07')\ndef test_more() -> None: ...\n", "test_more"),
        ("from pytest import mark\npytestmark = [mark.alm('ALM-07')]\ndef test_more() -> None: ...\n", "test_more"),
        (
            "import pytest\nclass TestMore:\n    pytestmark = pytest.mark.alm('ALM-07')\n    def test_one(self): ...\n",
            "TestMore::test_one",
        ),
        (
            "import pytest\n@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.alm('ALM-07'))])\n"
            "def test_more(n: int) -> None: ...\n",
            "test_more",
        ),
    ],
)
def test_every_way_to_mark_is_read(tmp_path: Path, text: str, test: str) -> None:
    found = requirements.trace(tree(tmp_path, test_more=text))
    assert found.problems == []
    assert found.tests["ALM-07"] == [f"tests/test_more.py::{test}", "tests/test_whole.py::test_all"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (mark("ALM-07", also="@pytest.mark.skip\n"), "tests/test_more.py::test_more: it holds ALM-07 and carries skip"),
        (mark("ALM-07", also="@pytest.mark.xfail(reason='x')\n"), "carries xfail"),
        ("import pytest\npytestmark = pytest.mark.skip(reason='x')\n" + mark("ALM-07"), "carries skip"),
        (mark("ALM-07", on="def helper() -> None: ..."), "tests/test_more.py:3: this mark is on no test"),
        ("import pytest\nhold = pytest.mark.alm\n\n@hold('ALM-07')\ndef test_more(): ...\n", "is on no test"),
        ("import pytest\nA = 'ALM-07'\n\n@pytest.mark.alm(A)\ndef test_more(): ...\n", "by a plain string"),
        (mark(), "a mark names its requirements"),
    ],
)
def test_a_mark_that_holds_nothing_is_named(tmp_path: Path, text: str, problem: str) -> None:
    problems = requirements.check(tree(tmp_path, test_more=text))
    assert any(problem in one for one in problems), problems


def results(root: Path, *arguments: str) -> Path:
    path = root / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={path}", *arguments]
    subprocess.run(command, cwd=root, capture_output=True, check=False)
    return path


@pytest.mark.alm("ALM-34")
def test_a_test_that_did_not_pass_holds_nothing(tmp_path: Path) -> None:
    marked = "@pytest.mark.alm('ALM-07')\n"
    root = tree(
        tmp_path,
        test_whole=WHOLE.replace(', "ALM-07"', "").replace(', "ALM-08"', ""),
        test_more=f"import pytest\n{marked}def test_skips(): pytest.skip('no such part')\n"
        f"{marked}def test_fails(): 1 / 0\n"
        "class TestCases:\n    @pytest.mark.alm('ALM-08')\n    @pytest.mark.parametrize('n', ['a[b', 'c'])\n"
        "    def test_passes(self, n): assert n == 'c' or pytest.skip('one case')\n",
    )
    (root / "pytest.ini").write_text("[pytest]\nmarkers = alm: x\n")
    assert requirements.check(root) == []
    done = run(root, "--results", str(results(root)))
    assert done.returncode == 1
    assert done.stderr.startswith("ALM-07 has tests and none of them passed") and done.stderr.count("\n") == 1
    (root / "tests" / "test_more.py").write_text(
        (root / "tests" / "test_more.py").read_text().replace("1 / 0", "1 / 1")
    )
    assert run(root, "--results", str(results(root))).returncode == 0


@pytest.mark.alm("ALM-34")
def test_every_requirement_has_its_test_and_the_table_says_which() -> None:
    assert requirements.check() == []
