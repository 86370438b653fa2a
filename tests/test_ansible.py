"""The role's form, and what its programs do with files, keys and certificates; booted machines are in tests/fleet."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).resolve().parents[1] / "ansible"
ROLE = ANSIBLE / "roles" / "edge_gateway"
SECRET = ("edge_gateway_ca_passphrase", "edge_gateway_secrets", "edge_gateway_credentials['")
WORDS = {"name", "register", "changed_when", "failed_when", "check_mode", "become", "delegate_to", "when", "vars",
         "loop", "loop_control", "environment", "no_log", "throttle", "run_once"}  # fmt: skip


def tasks() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for file in sorted((ROLE / "tasks").glob("*.yml")):
        found += [(file.name, task) for task in yaml.safe_load(file.read_text())]
    return found


def test_modules_are_those_that_come_with_ansible() -> None:
    modules = {key for _, task in tasks() for key in task if key not in WORDS}
    assert len(tasks()) > 20
    assert modules and all(module.startswith("ansible.builtin.") for module in modules), modules


def test_a_task_that_handles_a_secret_logs_nothing() -> None:
    telling = [
        f"{file}: {task['name']}"
        for file, task in tasks()
        if any(word in json.dumps(task) for word in SECRET)
        and not task.get("no_log")
        and "ansible.builtin.assert" not in task
    ]
    assert not telling


def test_every_variable_is_specified_and_described() -> None:
    defaults = set(yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()))
    specified = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    assert set(specified) == {"main", "upgrade", "rollback", "rotate", "decommission", "lost"}
    for entry in specified.values():
        assert set(entry["options"]) == defaults
    text = (ROLE / "README.md").read_text()
    described = set(re.findall(r"^\| `(\w+)` \| `", text.partition("## Variables")[2], re.MULTILINE))
    assert {f"edge_gateway_{name}" for name in described} == defaults


def test_the_example_sets_known_variables() -> None:
    defaults = set(yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()))
    for file in (ANSIBLE / "inventory.example").rglob("*.yml"):
        names = set(yaml.safe_load(file.read_text()) or {})
        assert {name for name in names if name.startswith("edge_gateway_")} <= defaults, file


def test_playbooks_go_gateway_by_gateway_and_stop_at_the_first_failure() -> None:
    for name in ("site", "upgrade", "rollback", "rotate-keys"):
        (play,) = yaml.safe_load((ANSIBLE / "playbooks" / f"{name}.yml").read_text())
        assert "default([1, '25%'])" in play["serial"], name
        assert "default(0)" in play["max_fail_percentage"], name
    (play,) = yaml.safe_load((ANSIBLE / "playbooks" / "decommission.yml").read_text())
    assert play["serial"] == 1 and play["any_errors_fatal"] is True


@pytest.mark.parametrize("name", ["gateway.py", "decommission.py"])
def test_programs_run_on_the_oldest_python_and_need_nothing(name: str) -> None:
    tree = ast.parse((ROLE / "files" / name).read_text(), feature_version=(3, 10))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names) - {"tomllib"}  # which came with 3.11
    assert len((ROLE / "files" / name).read_bytes()) < 120_000, "one argument of a command holds 128 KiB"


# -- what the programs do ------------------------------------------------------------------------------------------


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """gateway.py, with folders of its own and all files owned by whoever runs the test."""
    module = _load("gateway")
    me = os.environ.get("USER") or "root"
    for name in ("ETC", "PKI", "STORE", "PLAIN", "UNITS", "OPT"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(module, name, folder)
    place = module.place
    monkeypatch.setattr(module, "place", lambda path, data, mode, *_: place(path, data, mode, me, me))
    return module


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ansible_{name}", ROLE / "files" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Authority:
    """An authority of openssl, with the role's own ca.cnf."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "issued").mkdir(parents=True)
        (folder / "index.txt").touch()
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                      "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"))  # fmt: skip
        self.pem = (folder / "ca.pem").read_text()

    def sign(self, csr: str, name: str, days: int = 300) -> str:
        request, out = self.folder / "a.csr", self.folder / "a.pem"
        request.write_text(csr)
        self._openssl("ca", "-batch", "-notext", "-days", str(days), "-subj", f"/CN={name}", "-in", str(request),
                      "-out", str(out))  # fmt: skip
        return out.read_text()

    def _openssl(self, command: str, *words: str) -> None:
        full = ["openssl", command, "-config", str(ROLE / "files" / "ca.cnf"), *words]
        environment = {**os.environ, "EDGE_CA_DIR": str(self.folder)}
        done = subprocess.run(full, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr


def test_a_certificate_is_asked_for_accepted_and_renewed(gateway: ModuleType, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    wanted = {"name": "gw-1", "user": "root", "renew_days": 30, "ca": authority.pem}
    assert gateway._certificate(wanted)["due"] == "there is none"
    asked = gateway.request(wanted)
    assert asked["changed"] and "PRIVATE" not in asked["csr"]
    assert gateway.request(wanted) == {"changed": False, "csr": asked["csr"]}, "an interrupted run goes on with its key"
    short = authority.sign(asked["csr"], "gw-1", days=20)
    gateway.accept(wanted | {"certificate": short})
    key = gateway.PKI / "client.key"
    first = key.read_bytes()
    assert key.resolve().stat().st_mode & 0o777 == 0o600
    assert gateway._certificate(wanted)["due"] == "it ends within 30 days"
    gateway.accept(wanted | {"certificate": authority.sign(gateway.request(wanted)["csr"], "gw-1")})
    assert gateway._certificate(wanted)["due"] == ""
    assert key.read_bytes() != first, "with every certificate a new key"
    assert len([path for path in gateway.PKI.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
    assert gateway._certificate(wanted | {"name": "gw-2"})["due"] == "it names gw-1, not gw-2"
    other = Authority(tmp_path / "other")
    assert gateway._certificate(wanted | {"ca": other.pem})["due"] == "another authority has signed it"


def test_a_certificate_that_does_not_fit_changes_nothing(gateway: ModuleType, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    wanted = {"name": "gw-1", "user": "root", "renew_days": 30, "ca": authority.pem}
    gateway.accept(wanted | {"certificate": authority.sign(gateway.request(wanted)["csr"], "gw-1")})
    before = (gateway.PKI / "client.pem").read_text()
    csr = gateway.request(wanted)["csr"]
    for certificate, reason in (
        (before, "is for another key"),
        (other.sign(csr, "gw-1"), "not one for clients, of the authority"),
        (authority.sign(csr, "gw-2"), "names gw-2, not gw-1"),
    ):
        with pytest.raises(gateway.Problem, match=reason):
            gateway.accept(wanted | {"certificate": certificate})
        assert (gateway.PKI / "client.pem").read_text() == before


def test_secrets_without_systemd_creds_are_files_for_root(gateway: ModuleType) -> None:
    wanted = {"kek": True, "values": {"mqtt": "pass word"}, "seal": False, "check": True}
    assert gateway.credentials(wanted)["changed"]
    assert not list(gateway.PLAIN.iterdir()) and not list(gateway.UNITS.iterdir()), "check mode writes nothing"
    wanted["check"] = False
    assert gateway.credentials(wanted)["changed"]
    kek = gateway.PLAIN / "edge-agent.kek"
    made = kek.read_bytes()
    assert len(made) == 32 and kek.stat().st_mode & 0o777 == 0o600
    agent = (gateway.UNITS / "edge-agent.service.d" / "50-credentials.conf").read_text()
    forwarder = (gateway.UNITS / "cloud-sync.service.d" / "50-credentials.conf").read_text()
    assert agent == f"[Service]\nLoadCredentialEncrypted=\nLoadCredential=edge-agent.kek:{kek}\n"
    assert f"LoadCredential=mqtt:{gateway.PLAIN / 'mqtt'}\n" in forwarder, (
        "secrets of receivers are the forwarder's alone"
    )
    assert not gateway.credentials(wanted)["changed"]
    wanted["values"] = {"mqtt": "another", "edge-agent.kek": "00" * 32}
    assert gateway.credentials(wanted)["did"] == ["sealed mqtt"], "the buffer's key is not changed in passing"
    assert kek.read_bytes() == made


def test_a_key_from_the_vault_is_taken_as_it_is(gateway: ModuleType) -> None:
    wanted = {"kek": True, "values": {"edge-agent.kek": "ab" * 32}, "seal": False, "check": False}
    gateway.credentials(wanted)
    assert (gateway.PLAIN / "edge-agent.kek").read_bytes() == b"\xab" * 32
    with pytest.raises(gateway.Problem, match="not 64 hexadecimal digits"):
        gateway.credentials(wanted | {"values": {"edge-agent.kek": "a word"}})
    with pytest.raises(gateway.Problem, match="cannot be the name of a credential"):
        gateway.credentials(wanted | {"values": {"../x": "y"}})


def test_the_key_before_is_destroyed_only_when_nothing_needs_it(
    gateway: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "DATA", tmp_path / "data")
    present, old = gateway.STORE / "edge-agent.kek", gateway.STORE / "edge-agent.kek.old"
    present.write_bytes(b"the key in force")
    os.link(present, old)
    gateway._forget(old, present)
    assert present.read_bytes() == b"the key in force" and not old.exists(), "a turn that never came to its end"
    old.write_bytes(b"the key before")
    (tmp_path / "data" / "quarantine" / "2026-11-23").mkdir(parents=True)
    assert "quarantine" in gateway._forget(old, present)
    assert old.read_bytes() == b"the key before"
    (tmp_path / "data" / "quarantine" / "2026-11-23").rmdir()
    assert gateway._forget(old, present) == ""
    assert not old.exists()


@pytest.mark.parametrize("name", ["gateway", "decommission"])
def test_a_destroyed_file_is_overwritten_where_it_lay(name: str, tmp_path: Path) -> None:
    module = _load(name)
    file, seen = tmp_path / "key", tmp_path / "another name of the same file"
    file.write_bytes(b"secret" * 10)
    os.link(file, seen)
    assert module.destroy(file)
    assert not file.exists()
    assert b"secret" not in seen.read_bytes() and len(seen.read_bytes()) == 60
    assert not module.destroy(file)
