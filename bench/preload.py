"""A C file of this folder, compiled to be loaded with LD_PRELOAD."""

from __future__ import annotations

import subprocess
from pathlib import Path


def library(name: str, folder: Path) -> Path:
    """`name`.c, compiled into `folder`. Raises: RuntimeError when there is no C compiler."""
    made = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    try:
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{source.name} needs a C compiler (apt install gcc libc6-dev): {error}") from error
    return made
