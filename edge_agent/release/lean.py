"""What a release leaves out of the packages that it installs: parts that no gateway runs, a sixth of the whole.

Only files of which nothing here is ever loaded; the packages stay as they came otherwise.
"""

from __future__ import annotations

from pathlib import Path

# pattern in site-packages: why no gateway needs it
UNUSED = {
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so": "graphics processors; the model runs on the processor",
    "ai_edge_litert/tools/apply_plugin_main": "a compiler for special processors",
    "zstandard/_cffi*.so": "its second way to C, for other Pythons than CPython",
    "**/tests/**/test_*.py": "tests of numpy and others; what else lies beside them may be imported",
}


def thin(packages: Path) -> int:
    """Remove the unused parts below a site-packages folder; give the bytes that they had."""
    freed = 0
    for pattern in UNUSED:
        for path in packages.glob(pattern):
            if path.is_file() and not path.is_symlink():
                freed += path.stat().st_size
                path.unlink()
    return freed
