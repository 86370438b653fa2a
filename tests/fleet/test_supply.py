"""Bill of materials, licences and known holes, with the real tools from the environment of `make sbom`.

The advisories come from a stand-in for their server on a port of this machine; whether the real one can be reached is
no test's business: `make audit` tells.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from supply import lock
from tests.fleet import image

PYTHON = image.REPOSITORY / ".venv-fleet" / "bin" / "python"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    assert PYTHON.exists(), "the tools are missing: run make test-fleet, which installs them"
    return subprocess.run(
        [PYTHON, *words], cwd=image.REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip


def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", module, *arguments)


# -- bill of materials, licences ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bill") / "bill.cdx.json"
    done = call("supply.sbom", "--out", str(target))
    assert done.returncode == 0, done.stderr
    return target


def test_the_page_of_licences_is_what_comes_out_of_the_locked_packages() -> None:
    done = call("supply.licences")
    assert done.returncode == 0, done.stderr


def test_the_bill_has_every_package_with_licence_hashes_and_what_it_needs(bill: Path) -> None:
    found = json.loads(bill.read_text())
    parts = {each["bom-ref"]: each for each in found["components"]}
    needs = {each["ref"]: set(each["dependsOn"]) for each in found["dependencies"]}
    locked = {pin.name: pin for pin in lock.pins()}
    for name, pin in locked.items():
        part = parts[name]
        assert (part["version"], part["purl"]) == (pin.version, f"pkg:pypi/{name}@{pin.version}")
        assert part["licenses"][0]["expression"]
        hashes = {each["content"] for link in part["externalReferences"] for each in link.get("hashes", [])}
        assert hashes == set(pin.hashes)
        for asked in pin.via:
            if asked == "bedside-edge" or asked in locked:
                assert name in needs[asked], f"{asked} needs {name}"
    inside = {part["bom-ref"]: part for each in parts.values() for part in each.get("components", [])}
    assert inside["cryptography/openssl"]["version"] > "3" and "confluent-kafka/librdkafka" in inside
    assert {"sepsis-lstm-1.0.0", "deb/python3"} <= parts.keys()
    strange = parts.keys() - locked.keys() - {each for each in parts if each.startswith(("deb/", "sepsis-"))}
    assert not strange, "tools are no part of a gateway"
    assert "timestamp" not in found["metadata"] and str(image.REPOSITORY) not in bill.read_text()


def test_the_bill_is_the_same_again_but_for_the_time_that_was_asked_for(bill: Path) -> None:
    code = "import json; from supply.sbom import made; print(json.dumps(made()))"
    done = run("-c", code, SOURCE_DATE_EPOCH="1767225600", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["metadata"].pop("timestamp") == "2026-01-01T00:00:00Z"
    assert again == json.loads(bill.read_text())


def test_a_bill_that_is_not_valid_is_noticed(bill: Path, tmp_path: Path) -> None:
    found = json.loads(bill.read_text())
    found["components"][0]["licenses"] = [{"expression": 7}]
    (tmp_path / "bad.json").write_text(json.dumps(found))
    code = "import sys; from supply.sbom import wrong; print(wrong(open(sys.argv[1]).read()))"
    done = run("-c", code, str(tmp_path / "bad.json"))
    assert "is not valid" in done.stdout and "expression" in done.stdout, done.stderr


# -- known holes -------------------------------------------------------------------------------------------------------


class Advisories(ThreadingHTTPServer):
    """Answers as the database of advisories does: nothing is known of a package, or what `holes` has of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.holes: dict[str, str] = {}
        self.asked: set[str] = set()
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class _Answer(BaseHTTPRequestHandler):
    server: Advisories

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = question["package"]["name"]
        self.server.asked.add(lock.canonical(name))
        vulnerabilities = [
            {"id": hole, "summary": "a hole", "modified": "2026-01-01T00:00:00Z", "affected": [
                {"package": {"ecosystem": "PyPI", "name": name},
                 "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]}]}
            for package, hole in self.server.holes.items() if package == name
        ]  # fmt: skip
        body = json.dumps({"vulns": vulnerabilities} if vulnerabilities else {}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def audited(url: str, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(
        "supply.audit", *arguments, "--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(cache),
        "--timeout", "5",
    )  # fmt: skip


def test_no_known_hole_passes_and_every_package_was_asked_for(advisories: Advisories, tmp_path: Path) -> None:
    done = audited(advisories.url, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    count = len(lock.pins())
    assert f"{count} of {count} packages looked up, 0 known holes" in done.stdout
    assert advisories.asked >= {pin.name for pin in lock.pins()}


def test_a_known_hole_fails_with_what_mends_it(advisories: Advisories, tmp_path: Path) -> None:
    advisories.holes["httpx"] = "PYSEC-2026-1"
    for arguments in ((), ("--tell",)):
        done = audited(advisories.url, tmp_path, *arguments)
        assert done.returncode == 1
        assert "audit: httpx 0." in done.stdout and "PYSEC-2026-1, mended in 99.0" in done.stdout


def test_advisories_that_cannot_be_had_are_told_and_never_pass_for_none(advisories: Advisories, tmp_path: Path) -> None:
    advisories.shutdown()
    advisories.server_close()
    done = audited(advisories.url, tmp_path)
    assert done.returncode == 3 and "NOTHING IS KNOWN" in done.stdout
    told = audited(advisories.url, tmp_path, "--tell")
    assert told.returncode == 0 and "NOTHING IS KNOWN" in told.stdout


def test_a_server_that_is_broken_does_not_pass(advisories: Advisories, tmp_path: Path) -> None:
    advisories.status = 500
    done = audited(advisories.url, tmp_path)
    assert done.returncode in (1, 3) and "0 known holes" not in done.stdout


def test_a_lock_without_hashes_is_not_audited_in_their_place(advisories: Advisories, tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(image.REPOSITORY / name, tmp_path)
    path = tmp_path / "requirements.lock"
    path.write_text("\n".join(line.rstrip(" \\") for line in path.read_text().splitlines() if "--hash" not in line))
    done = audited(advisories.url, tmp_path / "cache", "--root", str(tmp_path))
    assert done.returncode == 1 and "hash" in done.stderr
