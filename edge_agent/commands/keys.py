"""`edge-agent keys init|rotate|status`: the key-encryption key and the data keys that it wraps; docs/keys.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_agent.config import Loaded, load

_CONFIG = Path("/etc/edge-agent/edge-agent.toml")
_CREDENTIALS = "/etc/credstore.encrypted"  # where systemd looks for LoadCredentialEncrypted= without a path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` with its three commands."""
    commands = subparsers.add_parser("keys", help="make, change and look at the buffer's keys").add_subparsers(
        metavar="COMMAND", required=True
    )
    init = commands.add_parser("init", help="make a new key file, or say how to make the credential")
    init.add_argument("--key", metavar="SPEC", help="file:, credential: or tpm:; buffer.key of the configuration")
    init.add_argument("--copy", type=Path, metavar="FILE", help="with tpm: the key itself, to be kept elsewhere")
    init.add_argument("--anew", action="store_true", help="also when what is stored was sealed under another key")
    rotate = commands.add_parser("rotate", help="wrap all data keys with a new key, while the agent is stopped")
    rotate.add_argument(
        "--new", metavar="SPEC", required=True, help="file:PATH, credential:NAME or tpm:PATH, the new key"
    )
    status = commands.add_parser("status", help="fingerprints and data keys; exit 1 when a key does not fit")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    for each, func in ((init, run_init), (rotate, run_rotate), (status, run_status)):
        each.add_argument("--config", type=Path, default=_CONFIG, metavar="FILE")
        each.set_defaults(func=func)


def run_init(arguments: argparse.Namespace) -> int:
    """Make the key that the configuration names, whole or not at all, never over an existing one."""
    from edge_agent.buffer import KeyProblem, create_key_file, load_kek
    from edge_agent.buffer.keys import create_tpm_file, fingerprint

    loaded = load(arguments.config)
    spec = _resolved(arguments.key) if arguments.key else loaded.buffer_key
    provider, _, name = spec.partition(":")
    try:
        if spec == loaded.buffer_key and not arguments.anew:
            _refuse_to_orphan(_data_dir(loaded))
        if provider == "credential":
            print(_credential_advice(name))
            return 0
        if provider not in ("file", "tpm"):
            load_kek(spec)  # which says what is wrong with it
        if provider == "tpm":
            create_tpm_file(Path(name), arguments.copy)
        else:
            create_key_file(Path(name))
        made = fingerprint(load_kek(spec)).hex()
    except (KeyProblem, OSError) as error:
        return _sorry(error)
    print(f"{name}: new key {made}, mode 0400")
    if provider == "tpm":
        print(f"It opens on this board only; the key itself: {_kept(arguments.copy)}")
    else:
        print("Copy it now to a place that is not this card: without it nothing that is buffered can be read.")
    return 0


def _kept(copy: Path | None) -> str:
    if copy is None:
        return "nowhere else. A dead board takes what it has not delivered with it."
    return f"{copy}, in the clear. Keep it where a dead board cannot take it along, and not on this card."


def run_rotate(arguments: argparse.Namespace) -> int:
    """Wrap every data key of the buffer and the alarm log with the new key; says what to do next."""
    from edge_agent.buffer import KeyProblem, load_kek, rewrap
    from edge_agent.buffer.keys import fingerprint

    loaded = load(arguments.config)
    try:
        new_spec = _resolved(arguments.new)
        new = load_kek(new_spec)
        present = load_kek(loaded.buffer_key)
        changed = rewrap.rotate(_data_dir(loaded), present, new)
    except (KeyProblem, OSError) as error:
        return _sorry(error)
    for name, count in changed.items():
        print(f"{name}: {count} keys wrapped anew")
    print(f"All data keys are under {fingerprint(new).hex()} now.")
    if loaded.buffer_key != new_spec:
        print(f'Before the agent starts, set in {arguments.config}:\n  [buffer]\n  key = "{arguments.new}"')
    print("Start the agent and cloud-sync again. Keep the old key as long as `keys status` shows files under it.")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Print the key's fingerprint, the data keys of each file, and how many drained ones were erased."""
    from edge_agent.buffer import KeyProblem, admin, load_kek
    from edge_agent.buffer.keys import fingerprint

    loaded = load(arguments.config)
    found: dict[str, Any] = {"key": loaded.buffer_key, "kek": None, "problem": ""}
    try:
        found["kek"] = fingerprint(load_kek(loaded.buffer_key)).hex()
    except KeyProblem as error:
        found["problem"] = str(error)
    found |= admin.key_report(_data_dir(loaded))
    bad = not found["kek"] or found["rotation"] is not None
    bad = bad or any(file["fault"] or set(file["keks"]) - {found["kek"]} for file in found["files"])
    if arguments.json:
        print(json.dumps(found | {"ok": not bad}, indent=2))
    else:
        _print_status(found)
    return int(bad)


def _print_status(found: dict[str, Any]) -> None:
    print(f"key: {found['key']}  fingerprint {found['kek'] or 'unknown'}")
    if found["problem"]:
        print(found["problem"])
    if found["rotation"]:
        old, new = found["rotation"]["old"], found["rotation"]["new"]
        print(f"a rotation from {old} to {new} was interrupted: run `edge-agent keys rotate` with the new key again")
    for file in found["files"]:
        others = [kek for kek in file["keks"] if kek != found["kek"]]
        print(f"{file['file']}: {len(file['keys'])} data keys, {file['erased']} drained ones erased")
        for key in file["keys"]:
            boot = f"  boot {key['boot']}  {key['day']}" if "boot" in key else ""
            age = "" if key["age_s"] is None else f"  {key['age_s'] / 3600:.1f} h old"
            print(f"  {key['id']}  under {key['kek']}{boot}{age}")
        if file["fault"]:
            print(f"  {file['fault']}")
        if others and found["kek"]:
            print(f"  under another key: {', '.join(others)}; the agent would put this file aside")
    for folder in found["quarantine"]:
        print(f"quarantine {folder['folder']}: under {', '.join(folder['keks']) or 'no key that can be read'}")


def _refuse_to_orphan(data_dir: Path) -> None:
    """A new key under the configured name would make what is stored unreadable."""
    from edge_agent.buffer import KeyProblem, admin

    keks = {kek for file in admin.key_report(data_dir)["files"] for kek in file["keks"]}
    if keks:
        raise KeyProblem(
            f"{data_dir}: what is stored there was sealed under {', '.join(sorted(keks))}; with a new key the agent"
            " would put it aside\n  give back that key; or make the new one under another name (--key) and change over"
            " with `keys rotate`; or, if the old one is lost, `keys init --anew`"
        )


def _credential_advice(name: str) -> str:
    path = f"{_CREDENTIALS}/{name}"
    return (
        "Make the credential as root; nothing of it touches the card in the clear:\n\n"
        f"  mkdir -p -m 0700 {_CREDENTIALS}\n"
        f"  test ! -e {path} && head -c 32 /dev/urandom |\n"
        f"    systemd-creds encrypt --name={name} --with-key=auto - {path}\n\n"
        "--with-key=auto takes the TPM when there is one, and the host key otherwise; tpm2 or host+tpm2 insist on\n"
        f"the TPM. The service loads it with LoadCredentialEncrypted={name}. With a TPM the file opens on no other\n"
        "board: keep a copy of the 32 bytes in the hospital's key store, or accept that a dead board takes what it\n"
        "has not delivered with it."
    )


def _resolved(spec: str) -> str:
    provider, _, rest = spec.partition(":")
    return f"{provider}:{Path(rest).absolute()}" if provider in ("file", "tpm") and rest else spec


def _data_dir(loaded: Loaded) -> Path:
    return loaded.resolve(loaded.config.gateway.data_dir)


def _sorry(error: Exception) -> int:
    print(f"edge-agent keys: {error}", file=sys.stderr)
    return 1
