"""One annunciator: a player on a thread of its own, fed by the alarm loop without waiting for an output.

Theory of operation: `drive` puts a signal into a queue and wakes the thread through an eventfd. The thread steps the
player at the absolute times that the player names. A disk, terminal or line that blocks, blocks this thread alone.

The interpreter runs one thread at a time, so a thread that wakes still waits until the alarm loop pauses: measured
0.15 ms behind a message whose handling goes on for 0.1 ms. `drive` therefore lends the interpreter, for LEND_S at
most, until the first edges of a new alarm are out. It does so only while the thread is idle and at most every
LEND_EVERY_S, so that neither a blocked output nor a storm of alarms takes more than that share of the alarm loop.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.player import Edge, Player
from edge_agent.records import Signal

LEND_S = 0.0002
LEND_EVERY_S = 0.005
RETRY_S = 5.0  # between attempts to open an output that failed
QUEUE = 1024  # signals that may wait; beyond it only the newest of each bed counts
REALTIME_PRIORITY = 10  # SCHED_FIFO above all ordinary threads, below the kernel's interrupt threads (50)
NS = 1_000_000_000


class Annunciator:
    """Plays the signals of one bed, or of all, on one output.

    `on_fault(name, detail)` is called from the player's thread when the output fails, and with an empty detail when
    it works again.
    """

    def __init__(self, output: Output, *, bed: str = "", on_fault: Callable[[str, str], None]) -> None:
        self.name = output.name
        self._output, self._bed, self._on_fault = output, bed, on_fault
        self._player = Player(output.outputs)
        self._queue: deque[Signal] = deque(maxlen=QUEUE)
        self._latest: dict[str, Signal] = {}
        self._overflow = False
        self._fault = ""
        self._open = False
        self._retry_ns = 0
        self._closing = False
        self._busy_ns: int | None = time.monotonic_ns()  # since when the thread is at work; None: it waits
        self._lent_ns = 0
        self._served = threading.Lock()
        self._served.acquire()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"annunciator {output.name}", daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """What is wrong with the output and what to do; empty while it works."""
        return self._fault

    def stuck_ns(self, at_ns: int) -> int:
        """How long the output has been working on one thing, in ns: more than a second means that it hangs."""
        if not self._thread.is_alive():
            return at_ns
        since = self._busy_ns
        return 0 if since is None else max(0, at_ns - since)

    def drive(self, signal: Signal) -> None:
        """Hand a signal over; called in the alarm loop."""
        if self._closing or (self._bed and signal.bed and signal.bed != self._bed):
            return
        idle = self._busy_ns is None
        if len(self._queue) == QUEUE:
            self._overflow = True
        self._latest[signal.bed] = signal  # first: a thread that empties the queue for a dead output finds it here
        self._queue.append(signal)
        if not idle or signal.priority == "none":
            os.eventfd_write(self._wake, 1)
            return
        now_ns = time.monotonic_ns()
        lend = now_ns - self._lent_ns >= LEND_EVERY_S * NS
        if lend:
            self._lent_ns = now_ns
            self._served.acquire(blocking=False)  # left over from a signal that nobody waited for
        os.eventfd_write(self._wake, 1)
        if lend:
            self._served.acquire(timeout=LEND_S)

    def close(self) -> None:
        """Put everything off, give the output back and end the thread."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():  # a thread that hangs in its output keeps its descriptor
            os.close(self._wake)

    def _run(self) -> None:
        try:
            self._play()
        except Exception as error:
            self._failed(error)
            raise

    def _play(self) -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
        except OSError:
            pass  # not allowed: the thread competes with all others, as docs/alarms.md says
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        next_ns = self._serve()
        while not self._closing:
            self._busy_ns = None
            if self._queue:  # came while the thread was still at work
                poll.poll(0)
            else:
                poll.poll(None if next_ns is None else max(0.0, (next_ns - time.monotonic_ns()) / 1_000_000))
            self._busy_ns = time.monotonic_ns()
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
            next_ns = self._serve()
            self._release()
        if self._open:
            self._emit(self._player.off())
        self._output.close()

    def _serve(self) -> int | None:
        """Show what is in the queue and put the outputs right; when to come again, in ns of CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns()
        if not self._open:
            self._queue.clear()
            if now_ns < self._retry_ns:
                return self._retry_ns
            if not self._reopen():
                return self._retry_ns
        while self._queue:
            edges: list[Edge] = []
            self._player.show(self._queue.popleft())
            self._player.light(now_ns, edges)
            if edges:
                self._emit(edges)  # the first thing to be seen of a new alarm waits for nothing else
                edges = []
            self._release()
            self._player.sound(now_ns, edges)
            self._emit(edges)
        if self._overflow:
            self._overflow = False
            for signal in list(self._latest.values()):
                self._player.show(signal)
        edges, next_ns = self._player.step(time.monotonic_ns())
        self._emit(edges)
        return next_ns if self._open else self._retry_ns

    def _release(self) -> None:
        """Let `drive` go on, if it waits."""
        try:
            self._served.release()
        except RuntimeError:
            pass  # nobody waits

    def _reopen(self) -> bool:
        """Open the output and begin with what is active now."""
        try:
            self._output.open()
        except Exception as error:  # whatever an output does, its annunciator lives on and says so
            self._failed(error)
            return False
        self._open = True
        self._player = Player(self._output.outputs)
        for signal in list(self._latest.values()):
            self._player.show(signal)
        if self._fault:
            self._fault = ""
            self._on_fault(self.name, "")
        return True

    def _emit(self, edges: list[Edge]) -> None:
        if not edges or not self._open:
            return
        try:
            self._output.switch(edges)
        except Exception as error:  # whatever an output does, its annunciator lives on and says so
            self._output.close()
            self._open = False
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._retry_ns = time.monotonic_ns() + round(RETRY_S * NS)
        detail = str(error) if isinstance(error, FaultError) else f"{self.name}: {type(error).__name__}: {error}"
        if detail != self._fault:
            self._fault = detail
            self._on_fault(self.name, detail)
