"""The documents held against the tree: links and anchors lead somewhere, named files exist, the promise stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = "tests|docs|bench|systemd|drivers|edge_agent|cloud_sync|models_tflite"
FILE = re.compile(rf"(?<![\w/.*<-])((?:{ROOMS})/[\w./-]+\.\w+)")
NOT_YET = ("newdevice", "bench/results/")  # the device that adding-a-driver.md adds; what `make bench` writes


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made for links."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name}: {link}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in set(FILE.findall(page.read_text())):
        assert any(part in name for part in NOT_YET) or (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_promise_stands_beside_the_last_result_of_the_long_kill_test() -> None:
    page = " ".join((ROOT / "docs" / "durability.md").read_text().replace("**", "").split())
    assert "exactly once for read_committed consumers, absent broker data loss" in page
    results = re.findall(r"<!-- result[^>]*begin[^>]*-->(.*?)<!-- result[^>]*end -->", page)
    assert results
    for result in results:
        assert result.strip().startswith("Passed on "), "the last run of make torture has failed"
        assert (
            "| acknowledged messages missing or incomplete | 0 |" in result and "| records found twice | 0 |" in result
        )
