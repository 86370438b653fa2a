"""One annunciator: a player, stepped by the alarm loop for what is new and by a thread of its own for what follows.

Theory of operation: whoever holds the lock may step the player and switch the output. The thread holds it while it
plays the pattern, at the absolute times that the player names, and while it opens an output. `drive` never waits for
it: where the output is prompt (switching it waits for nothing) and nobody holds the lock, the first edges of a new
signal are put out at once, in the alarm loop; in every other case the signal goes into a queue and an eventfd wakes
the thread. An output that blocks, blocks this thread alone.

The first edges do not go through the thread because a thread that has to wake and to be given the interpreter is
later by as much as an alarm takes from the network to here: measured 0.08 to 0.15 ms.

Between edges the output does what it has to: reads a loop back, writes what is left of a sound, toggles a heartbeat. It
says when it wants to be tended, and the thread comes then too. The heartbeat goes on only while the alarm loop calls
`beat`, and only from this thread, so that either of them stopping stops it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from edge_agent.annunciators import pace
from edge_agent.annunciators.edges import Edge
from edge_agent.annunciators.output import FaultError, Output
from edge_agent.annunciators.player import Player
from edge_agent.records import Signal

RETRY_S = 5.0  # between attempts to open an output that failed
QUEUE = 1024  # signals that may wait; beyond it only the newest of each bed counts
NS = 1_000_000_000


class Annunciator:
    """Plays the signals of one bed, or of all, on one output.

    `on_fault(name, detail)` is called when the output fails, or finds something wrong and goes on, and with an empty
    detail when all is well again; from the player's thread, or from `drive`. A sound that nobody answers gets louder
    after `escalate_s`.
    """

    def __init__(
        self, output: Output, *, bed: str = "", on_fault: Callable[[str, str], None], escalate_s: float = 0
    ) -> None:
        self.name = output.name
        self._output, self._bed, self._on_fault = output, bed, on_fault
        self._player = Player(output.outputs, escalate_s=escalate_s)
        self._queue: deque[Signal] = deque(maxlen=QUEUE)
        self._latest: dict[str, Signal] = {}
        self._overflow = False
        self._fault = self._doubt = self._told = ""
        self._test_asked = False
        self._test_doubts: list[str] = []
        self.test_result: dict[str, Any] = {"state": "never", "detail": "", "at_ns": 0}
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
        return self._fault or self._doubt

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

    def beat(self, at_ns: int) -> None:
        """Note that the alarm loop is alive; called in the alarm loop, at least once a second."""
        self._output.beat(at_ns)

    def self_test(self, at_ns: int) -> None:
        """Ask for a test of lamps and sound; `test_result` says how it ends: passed, failed, or cut by an alarm."""
        if self.test_result["state"] != "running" and not self._closing:
            self._test_asked = True  # first, so that the thread cannot take an older test's end for this one's
            self.test_result = {"state": "running", "detail": "", "at_ns": at_ns}
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
        next_ns = _first(light_ns, sound_ns, self._output.due_ns)
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
        pace.prefer_pulses()  # where it is not allowed the thread competes with all others, as docs/alarms.md says
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        next_ns = self._turn()
        while not self._closing:
            self._busy_ns = None
            if not self._queue:  # else a signal came while the thread was still at work
                self._wait(poll, next_ns)
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

    def _wait(self, poll: select.poll, next_ns: int | None) -> None:
        """Until a signal comes or it is `next_ns`: poll counts whole milliseconds, so what is left of one is slept."""
        if next_ns is None:
            poll.poll()
            return
        whole_ms = (next_ns - time.monotonic_ns()) // 1_000_000
        if whole_ms > 0 and poll.poll(whole_ms):
            return
        rest_ns = next_ns - time.monotonic_ns()
        if rest_ns > 0:
            time.sleep(rest_ns / NS)

    def _turn(self) -> int | None:
        with self._lock:
            self._planned_ns = self._serve()
            return self._planned_ns

    def _serve(self) -> int | None:
        """Show what is in the queue and put the outputs right; when to come again, in ns of CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns()
        if not self._open:
            self._queue.clear()
            if now_ns < self._retry_ns or not self._reopen():
                self._judge_test()
                return self._retry_ns
        while self._queue:  # one by one, so that a raise that is over already has been seen
            self._player.show(self._queue.popleft())
            edges, _ = self._player.step(now_ns)
            self._emit(edges)
        if self._overflow:
            self._overflow = False
            for signal in list(self._latest.values()):
                self._player.show(signal)
        if self._test_asked:
            self._test_asked = False
            self._test_doubts = [self._doubt] if self._doubt else []
            self._emit(self._player.begin_test(now_ns))
        edges, next_ns = self._player.step(time.monotonic_ns())
        self._emit(edges)
        self._tend()
        self._judge_test()
        return _first(next_ns, self._output.due_ns) if self._open else self._retry_ns

    def _tend(self) -> None:
        """Let the output do what is due between edges, and take over what it has found."""
        due_ns, now_ns = self._output.due_ns, time.monotonic_ns()
        if not self._open or due_ns is None or now_ns < due_ns:
            return
        try:
            self._output.tend(now_ns)
        except Exception as error:  # whatever an output does, its annunciator lives on and says so
            self._give_up(error)
            return
        self._doubt = self._output.doubt
        if self._doubt and self._doubt not in self._test_doubts:
            self._test_doubts.append(self._doubt)
        self._tell()

    def _judge_test(self) -> None:
        """Say how a self-test has ended."""
        result, progress = self.test_result, self._player.test
        if result["state"] != "running" or (self._test_asked and self._open):
            return
        self._test_asked = False
        if self._fault or not self._open:
            state, detail = "failed", self._fault
        elif progress == "running":
            return
        elif progress == "cut":
            state, detail = "cut", "an alarm is active"
        elif self._test_doubts:
            state, detail = "failed", "; ".join(self._test_doubts)
        else:
            state, detail = "passed", self._output.proof
        self.test_result = {**result, "state": state, "detail": detail}

    def _reopen(self) -> bool:
        """Open the output and begin with what is active now."""
        try:
            self._output.open()
        except Exception as error:  # whatever an output does, its annunciator lives on and says so
            self._failed(error)
            return False
        self._open = True
        self._player.off()  # what was on when it failed is off now
        for signal in list(self._latest.values()):
            self._player.show(signal)
        self._fault, self._doubt = "", self._output.doubt
        self._tell()
        return True

    def _emit(self, edges: list[Edge]) -> None:
        if not edges or not self._open:
            return
        try:
            self._output.switch(edges)
        except Exception as error:  # whatever an output does, its annunciator lives on and says so
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._output.close()
        self._open = False
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._retry_ns = time.monotonic_ns() + round(RETRY_S * NS)
        self._fault = str(error) if isinstance(error, FaultError) else f"{self.name}: {type(error).__name__}: {error}"
        self._doubt = ""
        self._tell()

    def _tell(self) -> None:
        if self.fault != self._told:
            self._told = self.fault
            self._on_fault(self.name, self._told)


def _first(*times: int | None) -> int | None:
    return min((at for at in times if at is not None), default=None)
