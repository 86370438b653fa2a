"""A controller with an inventory, a vault, an authority and signed releases, that runs Ansible against booted machines.

It works as docs/it.md tells: from `ansible/`, with the inventory and the vault's password named in the environment.
Every command line is noted, so that a test can hold the document against what was really run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from edge_agent.release.build import FILES, PARTS
from tests.fleet import image
from tests.fleet.machine import Machine

REPOSITORY = image.REPOSITORY
BIN = REPOSITORY / ".venv-fleet" / "bin"
PASSPHRASE, VAULT_PASSWORD = "correct-horse-battery", "vault-password-of-the-tests"
SITE_KEY = "p1 9f64d1c0a2b7e83516fd0c9b4a7e2d8351c6f0ab94e7d2385b61fc0a9d4e7b23"
# The example's inventory drives a Raspberry Pi's lines; a container has none.
WARD = """---
edge_gateway_annunciators: [{kind: record, path: /var/lib/edge-agent/edges.jsonl}]
edge_gateway_nurses: [nina]
edge_gateway_biomeds: [bert]
"""
ALL = """---
edge_gateway_bundle: "{{ inventory_dir }}/releases/bedside-edge-1.0.0.tar"
ansible_user: root
"""


class Controller:
    """IT's machine: `run("ansible-playbook playbooks/site.yml")` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.ran: list[str] = []
        shutil.copytree(REPOSITORY / "ansible" / "inventory.example", self.inventory)
        (self.inventory / "group_vars" / "all" / "tests.yml").write_text(ALL)
        (self.inventory / "group_vars" / "ward_icu.yml").write_text(WARD)
        (folder / "vault-password").write_text(VAULT_PASSWORD)
        home = folder / "home"
        home.mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin",
            "HOME": str(home),
            "ANSIBLE_INVENTORY": str(self.inventory / "hosts.yml"),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(folder / "vault-password"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",  # the machines are as old as this test
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
            "ANSIBLE_HOME": str(folder / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/edge-cp-{os.getpid()}",  # a socket's path is short
        }
        self.environment.pop("ANSIBLE_CONFIG", None)

    def vault(self) -> None:
        """Fill in the vault as the document says, and encrypt it."""
        plain = self.inventory / "group_vars" / "all" / "vault.yml"
        plain.write_text(f"---\nvault_ca_passphrase: {PASSPHRASE}\nvault_site_key: |\n  {SITE_KEY}\n")
        self.run(f"ansible-vault encrypt {plain}")

    def host(self, name: str, machine: Machine, beds: list[dict[str, str]]) -> None:
        """Make a machine the gateway of that name, with these beds."""
        sources = [{"driver": "sim", "link": "sim://", "bed": bed["id"]} for bed in beds]
        self.describe(
            name, ansible_host=machine.address, ansible_ssh_private_key_file=str(machine.key),
            edge_gateway_beds=beds, edge_gateway_sources=sources,
        )  # fmt: skip

    def describe(self, name: str, **values: object) -> None:
        """Set variables of a gateway beside those that it has; JSON is YAML, too."""
        file = self.inventory / "host_vars" / f"{name}.yml"
        known = json.loads(file.read_text()) if file.exists() and file.read_text().startswith("{") else {}
        file.write_text(json.dumps(known | values))

    def start(self, command: str) -> subprocess.Popen[str]:
        """A command that was started in `ansible/` and not waited for."""
        self.ran.append(re.sub(r"\s+", " ", command))
        return subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=REPOSITORY / "ansible", env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def kill(self, process: subprocess.Popen[str]) -> None:
        """End a command at once, with the workers that Ansible puts into sessions of their own."""
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()

    def run(self, command: str, *, fails: bool = False, timeout: float = 600) -> Outcome:
        """What a command said; AssertionError when it did not end as it should."""
        began = time.monotonic()
        process = self.start(command)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        outcome = Outcome(command, process.returncode, said, time.monotonic() - began)
        with (self.folder / "ansible.log").open("a") as log:
            log.write(f"$ {command}   ({outcome.seconds:.1f} s, exit {process.returncode})\n{said}\n")
        if (process.returncode != 0) is not fails:
            raise AssertionError(f"{command} exited with {process.returncode}:\n{said[-6000:]}")
        return outcome

    def close(self) -> None:
        """End the shared connections."""
        folder = Path(self.environment["ANSIBLE_SSH_CONTROL_PATH_DIR"])
        for socket in folder.glob("*") if folder.exists() else []:
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "x"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


class Outcome:
    """How a run of Ansible ended: `changed` and `failed` count tasks of a host."""

    def __init__(self, command: str, code: int, text: str, seconds: float) -> None:
        self.command, self.code, self.text, self.seconds = command, code, text, seconds

    def counts(self, host: str) -> dict[str, int]:
        """The numbers of the recap's line of a host."""
        line = re.search(rf"^{re.escape(host)}\s+: (.*)$", self.text, re.MULTILINE)
        assert line, f"{host} is not in the recap:\n{self.text[-3000:]}"
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line[1])}

    def changed(self, host: str) -> int:
        """How many tasks changed something there."""
        return self.counts(host)["changed"]

    @property
    def flat(self) -> str:
        """The text with all space as single blanks, for messages that were folded into lines."""
        return re.sub(r"\s+", " ", self.text)


def signing_key(folder: Path) -> Path:
    """A release-signing key; its public half is `release-signing.pub` beside it."""
    key = folder / "release-signing.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, capture_output=True)
    public = folder / "release-signing.pub"
    subprocess.run(
        ["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    return key


def release(folder: Path, key: Path, version: str, *, edits: dict[str, tuple[str, str]] | None = None) -> Path:
    """A signed release of this checkout, of another version, with something replaced in some files."""
    source = folder / f"source-{version}"
    for part in (*PARTS, *FILES):
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(REPOSITORY / part, source / part)
    for name, (old, new) in (edits or {}).items():
        text = (source / name).read_text()
        assert old in text, f"{name} has changed: the test replaces {old!r} there"
        (source / name).write_text(text.replace(old, new))
    git = ["git", "-C", str(source), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-f", "."], ["commit", "-q", "-m", "a release"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    command = [
        sys.executable, "-m", "edge_agent", "release", "build", "--source", str(source), "--version", version,
        "--out", str(folder), "--sign-key", str(key), "--wheels", str(image.wheels()),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return folder / f"bedside-edge-{version}.tar"
