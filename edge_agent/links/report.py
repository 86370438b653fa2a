"""What a link tells its sink: chunks as they come, and the state of the link on changes only.

A link is `connected` when bytes can come, `silent` when it is connected and nothing has come for `silence_s`, and
`lost` otherwise. A chunk ends silence at once. One timer watches: it is set again for what is left of the silence
when it fires, so that a chunk costs no timer. After `stop` nothing reaches the sink any more.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns

from edge_agent.links.capture import RECEIVED, SENT, CaptureWriter
from edge_agent.links.contract import LinkState, Sink
from edge_agent.records import Chunk


class Report:
    """One run of one link, as its sink sees it; belongs to the event loop's thread."""

    def __init__(self, sink: Sink, silence_s: float | None, tee: CaptureWriter | None) -> None:
        self._sink, self._tee = sink, tee
        self._silence_ns = None if silence_s is None else int(silence_s * 1e9)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._state: LinkState | None = None
        self._detail = ""
        self._last_ns = 0
        self._stopped = False

    def received(self, data: bytes, channel: str = "", at_ns: int = 0) -> None:
        """Hand on bytes that came in at `at_ns`, or just now."""
        if self._stopped:
            return
        at_ns = at_ns or monotonic_ns()
        self._last_ns = at_ns
        if self._state == "silent":
            self._set("connected", at_ns, self._detail)
        chunk = Chunk(at_ns, data, channel)
        if self._tee is not None:
            self._tee.append(RECEIVED, chunk)
        self._sink.chunk(chunk)

    def sent(self, data: bytes, channel: str = "") -> None:
        """Note bytes that went out."""
        if self._tee is not None:
            self._tee.append(SENT, Chunk(monotonic_ns(), data, channel))

    def connected(self, detail: str, at_ns: int = 0) -> None:
        """Bytes can come now."""
        if self._stopped or self._state in ("connected", "silent"):
            return
        self._last_ns = at_ns or monotonic_ns()
        self._detail = detail
        self._set("connected", self._last_ns, detail)
        if self._silence_ns is not None and self._timer is None:
            self._watch(self._silence_ns)

    def lost(self, detail: str, at_ns: int = 0) -> None:
        """Bytes cannot come, for the reason in `detail`."""
        if self._stopped or (self._state == "lost" and self._detail == detail):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._detail = detail
        self._set("lost", at_ns or monotonic_ns(), detail)

    def closed(self, channel: str) -> None:
        """A network peer has gone."""
        if not self._stopped:
            self._sink.closed(channel, monotonic_ns())

    def stop(self) -> None:
        """End: what still comes is nobody's any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, state: LinkState, at_ns: int, detail: str) -> None:
        self._state = state
        self._sink.state(state, at_ns, detail)

    def _watch(self, left_ns: int) -> None:
        self._timer = self._loop.call_later(left_ns / 1e9, self._look)

    def _look(self) -> None:
        assert self._silence_ns is not None
        now = monotonic_ns()
        left_ns = self._last_ns + self._silence_ns - now
        if left_ns > 0:
            self._watch(left_ns)
            return
        if self._state == "connected":
            self._set("silent", now, f"nothing received for {self._silence_ns / 1e9:g} s")
        self._watch(self._silence_ns)
