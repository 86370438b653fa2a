"""A controller with an inventory, a vault, an authority and signed releases, that runs Ansible against booted machines.

It works as docs/it.md tells, in `ansible/` of a checkout of its own; the vault's password is named in the environment.
Every command line is noted, so that a test can hold the document against what was really run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
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
        self.checkout = folder / "checkout"
        self.inventory = self.checkout / "ansible" / "inventory"
        self.ran: list[str] = []
        home = folder / "home"
        home.mkdir(mode=0o700, parents=True)
        (folder / "vault-password").write_text(VAULT_PASSWORD)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{REPOSITORY}/.venv/bin:{os.environ['PATH']}:/usr/sbin",
            "HOME": str(home),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(folder / "vault-password"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",  # the machines are as old as this test
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
            "ANSIBLE_HOME": str(folder / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/edge-cp-{os.getpid()}",  # a socket's path is short
        }
        self.environment.pop("ANSIBLE_CONFIG", None)

    def set_up(self) -> None:
        """A checkout, an inventory from the example, a vault and an authority: section 2 of the document."""
        hidden = shutil.ignore_patterns("__pycache__", "inventory")
        for part in (*PARTS, "ansible"):
            shutil.copytree(REPOSITORY / part, self.checkout / part, ignore=hidden)
        for name in FILES:
            shutil.copy(REPOSITORY / name, self.checkout / name)
        (self.checkout / ".gitignore").write_text("inventory/\nwheels\n*.pem\n*.egg-info\nbuild\n")
        self._commit()
        self.run("cp -r inventory.example inventory")
        (self.inventory / "group_vars" / "all" / "tests.yml").write_text(ALL)
        (self.inventory / "group_vars" / "ward_icu.yml").write_text(WARD)
        (self.checkout / "ansible" / "wheels").symlink_to(image.wheels())
        self.run("openssl genpkey -algorithm ed25519 -out release-signing.pem")
        self.run("openssl pkey -in release-signing.pem -pubout -out inventory/release-signing.pub")
        self.vault()
        self.run("ansible-playbook playbooks/site-ca.yml")

    def release(self, version: str, *, edits: dict[str, tuple[str, str]] | None = None) -> None:
        """Build a signed release, with something replaced in some files of the checkout."""
        for name, (old, new) in (edits or {}).items():
            text = (self.checkout / name).read_text()
            assert old in text, f"{name} has changed: the test replaces {old!r} there"
            (self.checkout / name).write_text(text.replace(old, new))
        self._commit()
        self.run(
            f"edge-agent release build --source .. --version {version} --out inventory/releases"
            " --sign-key release-signing.pem --wheels wheels"
        )

    def _commit(self) -> None:
        git = ["git", "-C", str(self.checkout), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--allow-empty", "-m", "a release"]):
            subprocess.run([*git, *words], check=True, capture_output=True)

    def vault(self) -> None:
        """Fill in the vault as the document says, and encrypt it."""
        plain = self.inventory / "group_vars" / "all" / "vault.yml"
        plain.write_text(f"---\nvault_ca_passphrase: {PASSPHRASE}\nvault_site_key: |\n  {SITE_KEY}\n")
        self.run("ansible-vault encrypt inventory/group_vars/all/vault.yml")

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
        """A command that was started in `ansible/` of the checkout and not waited for."""
        self.ran.append(re.sub(r"\s+", " ", command))
        return subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=self.checkout / "ansible", env=self.environment, text=True,
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
