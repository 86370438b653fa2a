"""A numpy and a runtime that take a third of the memory which they take by themselves.

Theory of operation. Importing numpy 1.26 loads random numbers, Fourier transforms, polynomials and masked arrays,
which no bedside inference needs: `import_numpy` lets Python's own LazyLoader put them off until somebody asks. The
libraries touch megabytes of program text when they start, and some whenever they compute, which is once a minute:
`Pages.give_back` tells the kernel that it may drop the resident pages of those libraries that are unchanged copies of
their files; what is needed again is mapped in again, from the page cache, within half a millisecond.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PUT_OFF = frozenset(f"numpy.{part}" for part in ("ctypeslib", "fft", "ma", "polynomial", "random"))
_LIBRARIES = ("/numpy/", "/numpy.libs/", "/ai_edge_litert/", "/tflite_runtime/", "/libstdc++.so")
_MADV_DONTNEED = 4  # of <sys/mman.h>


class _Later:
    """Finds the modules of `_PUT_OFF` and loads them at their first use."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's spec with a loader that waits, None for any other module."""
        spec = PathFinder.find_spec(name, path, target) if name in _PUT_OFF else None
        if spec is None or spec.loader is None:
            return None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def import_numpy() -> None:
    """Import numpy without what the inputs of a network do not need; does nothing when numpy is there already."""
    if "numpy" in sys.modules:
        return
    # an OpenBLAS thread for each core would cost a stack and a buffer each; our matrices are multiplied by the runtime
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    later = _Later()
    sys.meta_path.insert(0, later)
    try:
        importlib.import_module("numpy")
    finally:
        sys.meta_path.remove(later)


class Pages:
    """The pages of numpy's and the runtime's libraries that are unchanged copies of their files.

    Only mappings that cannot be written and hold no page of their own, so that nothing is lost. To be made when all
    libraries are loaded and have been used once.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        if not sys.platform.startswith("linux"):
            return
        try:
            with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
                self._spans = _unchanged(file.read().splitlines())
        except OSError:  # a kernel without it: the pages stay
            return
        self._madvise = ctypes.CDLL(None).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def give_back(self) -> int:
        """Let the kernel drop them; returns how many bytes are mapped of what it took."""
        return sum(end - start for start, end in self._spans if self._madvise(start, end - start, _MADV_DONTNEED) == 0)


def _unchanged(lines: Sequence[str]) -> list[tuple[int, int]]:
    """The spans, none where the counts are not true: an emulator of another processor makes them up.

    What a library may write it has written, at least when it was linked; where even that has no page of its own, what
    was linked and then closed to writing would be dropped with the rest.
    """
    spans: list[tuple[int, int]] = []
    span: tuple[int, int] | None = None
    writable = true = False
    for line in lines:
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            wanted = len(fields) > 5 and any(part in fields[5] for part in _LIBRARIES)
            start, _, end = fields[0].partition("-")
            span = (int(start, 16), int(end, 16)) if wanted else None
            writable = "w" in fields[1]
        elif fields[0] == "Anonymous:" and span is not None:
            if writable:
                true = true or fields[1] != "0"
            elif fields[1] == "0":
                spans.append(span)
    return spans if true else []
