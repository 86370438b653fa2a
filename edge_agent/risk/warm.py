"""Native libraries into the page cache, before they are imported.

Theory of operation: while Python loads a native library it holds the interpreter, and with it the alarm loop, for as
long as the card takes to give the library's pages: seconds for the runtime on a slow one. Reading a file lets other
threads run. So what will be mapped is read first, and the import finds it in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path

_FOLDERS = ("", "core", "_core", "linalg")  # of a package, where the libraries are that an inference needs
_CHUNK = 1 << 20
_NEEDLESS = "Accelerator"  # LiteRT's for a GPU is as large as all the others, and not loaded


def libraries(packages: Iterable[str]) -> list[Path]:
    """The native libraries of installed packages, and of the folder `<package>.libs` beside each; none is imported."""
    found: list[Path] = []
    for package in packages:
        spec = PathFinder.find_spec(package)
        for place in (spec.submodule_search_locations if spec is not None else None) or ():
            root = Path(place)
            folders = [root / folder for folder in _FOLDERS] + [root.with_name(f"{package}.libs")]
            found += [path for folder in folders for path in sorted(folder.glob("*.so*")) if _NEEDLESS not in path.name]
    return found


def warm(packages: Iterable[str]) -> int:
    """Read the libraries of these packages once; how many bytes there were."""
    total, chunk = 0, bytearray(_CHUNK)
    for path in libraries(packages):
        with suppress(OSError), path.open("rb", buffering=0) as file:  # what cannot be read, the import will name
            while count := file.readinto(chunk):
                total += count
    return total
