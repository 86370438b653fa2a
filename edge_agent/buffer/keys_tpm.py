"""The key-encryption key sealed by the board's TPM 2.0: a file that opens on no other board.

Theory of operation. The file holds a sealed object, public and private part, made under a storage key that the TPM
derives anew from its own seed each time (owner hierarchy, ECC P-256); nothing is kept inside the TPM. Opening means to
derive that key, to load the object and to unseal it, three commands of tpm2-tools; the key comes back through a pipe
and touches no disk. The object has no password and is bound to no measurement (PCR): it protects a card that was
stolen or copied without its board, not a board that was stolen whole.

Source: tpm2-tools 5 (tpm2_createprimary, tpm2_create, tpm2_load, tpm2_unseal); TCG TPM 2.0 Library, part 1, 27.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

MAGIC = b"bedside-edge tpm 1\n"  # in front of the two parts, each of which begins with its length
DEVICE = "device:/dev/tpmrm0"  # the kernel's resource manager, unless TPM2TOOLS_TCTI names another way
_ALL_S = 10.0  # for all commands together: a TPM needs about one; a hung bus must not hold up the agent's start
_ATTRIBUTES = "fixedtpm|fixedparent|noda|userwithauth"
_TOOLS = ("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal", "tpm2_flushcontext")


class TpmTrouble(Exception):
    """The TPM did not do what was asked; `str` says what and what to do, and holds nothing of the key."""


def seal(key: bytes) -> bytes:
    """The content of a key file that only this board's TPM opens.

    Raises: TpmTrouble.
    """
    with tempfile.TemporaryDirectory(prefix="edge-tpm-") as name:
        run = _Session(Path(name))
        run("tpm2_create", "-Q", "-C", "prim.ctx", "-g", "sha256", "-a", _ATTRIBUTES, "-i", "-", "-u", "pub", "-r",
            "priv", data=key)  # fmt: skip
        return MAGIC + (run.folder / "pub").read_bytes() + (run.folder / "priv").read_bytes()


def unseal(content: bytes) -> bytes:
    """The key that `seal` was given.

    Raises: TpmTrouble when this is no such file, it is damaged, or another board's TPM has sealed it.
    """
    public, private = _parts(content)
    with tempfile.TemporaryDirectory(prefix="edge-tpm-") as name:
        run = _Session(Path(name))
        (run.folder / "pub").write_bytes(public)
        (run.folder / "priv").write_bytes(private)
        run("tpm2_load", "-Q", "-C", "prim.ctx", "-u", "pub", "-r", "priv", "-c", "key.ctx")
        return run("tpm2_unseal", "-c", "key.ctx")


def _parts(content: bytes) -> tuple[bytes, bytes]:
    rest = content.removeprefix(MAGIC)
    cut = 2 + int.from_bytes(rest[:2], "big")
    end = cut + 2 + int.from_bytes(rest[cut : cut + 2], "big")
    if not content.startswith(MAGIC) or len(rest) != end or cut <= 2 or end <= cut + 2:
        raise TpmTrouble(f"holds {len(content)} bytes and no key that a TPM has sealed; it may be half-written")
    return rest[:cut], rest[cut:]


class _Session:
    """Commands in one folder under one deadline, after the storage key has been derived."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end = time.monotonic() + _ALL_S
        self._environment = {"TPM2TOOLS_TCTI": DEVICE, **os.environ}
        missing = next((each for each in _TOOLS if shutil.which(each) is None), None)
        if missing:
            raise TpmTrouble(f"{missing} is not installed: apt install tpm2-tools")
        self("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "prim.ctx")

    def __call__(self, tool: str, *words: str, data: bytes = b"") -> bytes:
        """What the command prints. The TPM is emptied behind it: without a resource manager it holds three objects."""
        out = self._run(tool, *words, data=data)
        self._run("tpm2_flushcontext", "-t")
        return out

    def _run(self, tool: str, *words: str, data: bytes = b"") -> bytes:
        place = self._environment["TPM2TOOLS_TCTI"]
        try:
            done = subprocess.run(
                [tool, *words], cwd=self.folder, env=self._environment, input=data, capture_output=True,
                timeout=max(0.1, self._end - time.monotonic()), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TpmTrouble(f"no answer over {place} for {_ALL_S:.0f} s, in {tool}") from error
        if done.returncode:
            told = [
                line[7:] for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("ERROR: ")
            ]
            raise TpmTrouble(
                f"{tool} over {place} failed: {told[0] if told else f'exit status {done.returncode}'}; another board"
                " has sealed this key, or the file is damaged, or this user may not use the TPM (group tss)"
            )
        return done.stdout
