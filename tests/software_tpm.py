"""A TPM 2.0 in software (swtpm) for the tests: a process of its own with a state of its own, that is, another board."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

DEADLINE_S = 20.0


def missing() -> str:
    """What this machine lacks, in words for a skip; empty when nothing."""
    lacks = [name for name in ("swtpm", "tpm2_unseal") if shutil.which(name) is None]
    return f"not installed: {', '.join(lacks)} (packages swtpm, tpm2-tools)" if lacks else ""


def required() -> bool:
    """Whether a missing one is a failure."""
    return bool(os.environ.get("CI"))


class SoftwareTpm:
    """One board's TPM; `tcti` is what TPM2TOOLS_TCTI needs to reach it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._socket = folder / "tpm.sock"
        self.tcti = f"swtpm:path={self._socket}"
        command = [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server", f"type=unixio,path={self._socket}",
            "--ctrl", f"type=unixio,path={self._socket}.ctrl", "--flags", "not-need-init,startup-clear",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE_S
        while not self._socket.exists():
            assert self._process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "swtpm does not listen"
            time.sleep(0.01)

    def hang(self) -> None:
        """It answers no more, as a bus that is stuck."""
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)
