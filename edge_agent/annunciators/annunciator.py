"""One annunciator: a player, stepped by the alarm loop for what is new and by a thread of its own for what follows.

Theory of operation: whoever holds the lock may step the player and switch the output. The thread holds it while it
plays the pattern, at the absolute times that the player names, and while it opens an output. `drive` never waits for
it: where the output is prompt (switching it waits for nothing) and nobody holds the lock, the first edges of a new
signal are put out at once, in the alarm loop; in every other case the signal goes into a queue and an eventfd wakes
the thread. An output that blocks, blocks this thread alone.

The first edges do not go through the thread because a thread that has to wake and to be given the interpreter is
later by as much as an alarm takes from the network to here: measured 0.08 to 0.15 ms.
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
        self._planned_ns: int | None = None  # when the thread comes by itself; None: only when it is woken
        self._lock = threading.Lock()
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
        self._latest[signal.bed] = signal  # first: a thread that empties the queue for a dead output finds it here
        if self._output.prompt and not self._queue and self._lock.acquire(blocking=False):
            try:
                if self._open and not self._queue:
                    self._at_once(signal)
                    return
            finally:
                self._lock.release()
        if len(self._queue) == QUEUE:
            self._overflow = True
        self._queue.append(signal)
        os.eventfd_write(self._wake, 1)

    def _at_once(self, signal: Signal) -> None:
        now_ns = time.monotonic_ns()
        player = self._player
        player.show(signal)
        edges: list[Edge] = []
        light_ns = player.light(now_ns, edges)
        self._emit(edges)  # the first thing to be seen of a new alarm waits for nothing else
        edges = []
        sound_ns = player.sound(now_ns, edges)
        self._emit(edges)
        next_ns = min((at for at in (light_ns, sound_ns) if at is not None), default=None)
        planned_ns = self._planned_ns
        if not self._open or (next_ns is not None and (planned_ns is None or next_ns < planned_ns)):
            os.eventfd_write(self._wake, 1)

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
        next_ns = self._turn()
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
            next_ns = self._turn()
        with self._lock:
            if self._open:
                self._emit(self._player.off())
            self._output.close()
            self._open = False

    def _turn(self) -> int | None:
        with self._lock:
            self._planned_ns = self._serve()
            return self._planned_ns

    def _serve(self) -> int | None:
        """Show what is in the queue and put the outputs right; when to come again, in ns of CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns()
        if not self._open:
            self._queue.clear()
            if now_ns < self._retry_ns:
                return self._retry_ns
            if not self._reopen():
                return self._retry_ns
        while self._queue:  # one by one, so that a raise that is over already has been seen
            self._player.show(self._queue.popleft())
            edges, _ = self._player.step(now_ns)
            self._emit(edges)
        if self._overflow:
            self._overflow = False
            for signal in list(self._latest.values()):
                self._player.show(signal)
        edges, next_ns = self._player.step(time.monotonic_ns())
        self._emit(edges)
        return next_ns if self._open else self._retry_ns

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
