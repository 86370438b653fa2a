"""Text lines out of chunks, for devices that talk in lines.

CR, LF and CRLF end a line and empty lines vanish. A line longer than the cap is given back as sizes of what was thrown
away, never as text, so that the rest of it cannot pass for a line of its own. The result does not depend on how the
bytes were cut into chunks.
"""

from __future__ import annotations

import re

_END = re.compile(rb"[\r\n]")


class Lines:
    """Splits a stream; holds at most `cap` bytes."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._rest = bytearray()
        self._overlong = False

    def feed(self, data: bytes) -> list[bytes | int]:
        """The lines that `data` completes, in order; an int is the size of a piece thrown away."""
        out: list[bytes | int] = []
        rest = self._rest
        rest += data
        start = 0
        while True:
            end = _END.search(rest, start, start + self._cap + 1)
            if end is None:
                if len(rest) - start <= self._cap:
                    break
                out.append(self._cap)
                self._overlong = True
                start += self._cap
                continue
            line = bytes(rest[start : end.start()])
            start = end.end()
            if self._overlong:
                self._overlong = False
                if line:
                    out.append(len(line))
            elif line:
                out.append(line)
        del rest[:start]
        return out

    def take(self) -> bytes | int:
        """What stands there without an end, which is then forgotten; a size when its beginning was thrown away."""
        rest = bytes(self._rest)
        self._rest.clear()
        overlong, self._overlong = self._overlong, False
        return len(rest) if overlong else rest

    def __len__(self) -> int:
        return len(self._rest)
