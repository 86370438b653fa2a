"""What `edge-agent doctor` says of one thing that it has looked at."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was looked at: state is ok, warn or FAIL, `remedy` says what to do."""

    part: str
    state: str
    detail: str
    remedy: str = ""
