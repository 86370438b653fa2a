"""What a release leaves out of the packages that it installs: parts that no gateway runs, a quarter of the whole.

Only what is never loaded here; the packages stay as they came otherwise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

# pattern in site-packages: why no gateway needs it
UNUSED = {
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so": "graphics processors; the model runs on the processor",
    "ai_edge_litert/tools/apply_plugin_main": "a compiler for special processors",
    "zstandard/_cffi*.so": "its second way to C, for other Pythons than CPython",
    "**/tests": "tests of numpy and others",
    "pip": "it could only alter what was signed",
    "pip-*.dist-info": "as pip",
}


def thin(venv: Path) -> None:
    """Take the unused parts out of a virtual environment."""
    for packages in venv.glob("lib/python3*/site-packages"):
        for pattern in UNUSED:
            for path in list(packages.glob(pattern)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    for script in venv.glob("bin/pip*"):
        script.unlink()
