"""The push button at the bedside: edges of a GPIO line become short and long presses.

Theory of operation: a contact bounces for some milliseconds whenever it closes or opens. `Presses` therefore takes a
level for real only when it has stood for the debounce time, and dates it back to the edge that began it. A hold that
ends before `long_ns` is a short press, told at its release; one that lasts so long is a long press, told at once and
only once. A hold of 30 s is no hand but a jammed button or a shorted cable: it is told as stuck, and as free when it
ends. A hold that began before anybody looked, at start or while edges were lost, says nothing but that: it must not
silence anything.

    up ──level down for debounce──▶ down ──long_ns──▶ "long" ──30 s──▶ "stuck"
    up ◀──"short"── release before long_ns              up ◀── release      up ◀──"free"── release

`Button` feeds it from the kernel, which stamps each edge with CLOCK_MONOTONIC, in a thread of its own; the alarm loop
never waits for it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from edge_agent import config, gpio_chips

Press = Literal["short", "long", "stuck", "free"]

STUCK_S = 30.0  # nobody holds a button so long to pause an alarm
RETRY_S = 5.0  # a chip that was plugged in again is in use within this time
EDGES_KEPT = 64  # in the kernel while the thread is not running: over a second of presses at the debounce time
NS = 1_000_000_000


class Presses:
    """Short and long presses out of edges and time; `held` tells that the button is down already at the start."""

    def __init__(self, debounce_ns: int, long_ns: int, *, held: bool = False, at_ns: int = 0) -> None:
        self._debounce_ns, self._long_ns, self._stuck_ns = debounce_ns, long_ns, round(STUCK_S * NS)
        self._down = self._level = held  # the level that stood long enough, and the last one seen
        self._since_ns = self._pressed_ns = at_ns  # of the last level seen, and of the hold
        self._told = held  # that this hold is a long one, or that nothing is to be told of it
        self._stuck = False

    def edge(self, pressed: bool, at_ns: int) -> list[Press]:
        """What has happened by the time of this edge, the edge included; `at_ns` in ns of CLOCK_MONOTONIC."""
        out: list[Press] = []
        self._settle(at_ns, out)
        if pressed != self._level:
            self._level, self._since_ns = pressed, at_ns
            self._settle(at_ns, out)  # without a debounce time the level is real at once
        return out

    def tick(self, at_ns: int) -> list[Press]:
        """What has happened by `at_ns` in ns of CLOCK_MONOTONIC; to be called at `due_ns`."""
        out: list[Press] = []
        self._settle(at_ns, out)
        return out

    def due_ns(self) -> int | None:
        """When `tick` can next have something to tell; None: not before an edge."""
        if self._level != self._down:
            return self._since_ns + self._debounce_ns
        if not self._down or self._stuck:
            return None
        return self._pressed_ns + (self._stuck_ns if self._told else self._long_ns)

    def _settle(self, at_ns: int, out: list[Press]) -> None:
        if self._level != self._down:
            if at_ns - self._since_ns < self._debounce_ns:
                return  # may yet be a bounce, of a press as of a release
            self._down = self._level
            if self._down:
                self._pressed_ns, self._told = self._since_ns, False
            else:
                self._released(out)
        if self._down:
            self._holding(at_ns - self._pressed_ns, out)

    def _released(self, out: list[Press]) -> None:
        held_ns = self._since_ns - self._pressed_ns
        if not self._told:
            out.append("long" if held_ns >= self._long_ns else "short")
        if self._stuck:
            self._stuck = False
            out.append("free")

    def _holding(self, held_ns: int, out: list[Press]) -> None:
        if not self._told and held_ns >= self._long_ns:
            self._told = True
            out.append("long")
        if not self._stuck and held_ns >= self._stuck_ns:
            self._stuck = True
            out.append("stuck")


class Button:
    """One button and the thread that listens to it.

    `on_press(bed, "short" | "long")` and `on_fault(name, detail)`, an empty detail ending the fault, are called in that
    thread.
    """

    def __init__(
        self,
        settings: config.Button,
        on_press: Callable[[str, str], None],
        on_fault: Callable[[str, str], None],
    ) -> None:
        self.name = f"button:{settings.chip}:{settings.line}"
        self.bed = settings.bed
        self._settings, self._on_press, self._on_fault = settings, on_press, on_fault
        self._fault = ""
        self.presses = 0  # short ones since the start, for whoever tests the button
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """What is wrong with the button and what to do; empty while it works."""
        return self._fault

    def close(self) -> None:
        """Give the line back and end the thread."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():  # a thread that hangs in the kernel keeps its descriptor
            os.close(self._wake)

    def _run(self) -> None:
        pause = select.poll()
        pause.register(self._wake, select.POLLIN)
        while not self._closing:
            try:
                self._serve()
            except gpio_chips.ChipError as error:
                self._tell(str(error))
            except Exception as error:  # whatever a chip does, its button is tried again and the nurse is told
                self._tell(f"{self.name}: {type(error).__name__}: {error}; `gpioinfo` shows the line")
            pause.poll(RETRY_S * 1000)

    def _serve(self) -> None:
        """Listen until `close`. Raises: ChipError, OSError and gpiod's own when the line cannot be had or is lost."""
        request = self._request()
        try:
            from gpiod.line import Value

            down = request.get_value(self._settings.line) == Value.ACTIVE
            presses = self._presses(down)
            self._tell("")
            self._listen(request, presses)
        finally:
            request.release()

    def _presses(self, held: bool) -> Presses:
        settings = self._settings
        return Presses(
            settings.debounce_ms * 1_000_000, round(settings.long_press_s * NS), held=held, at_ns=time.monotonic_ns()
        )

    def _request(self) -> Any:
        """The line, requested as an input with edges."""
        settings = self._settings
        gpiod = gpio_chips.load()
        chip = gpio_chips.open_chip(settings.chip, [settings.line])
        from gpiod.line import Bias, Clock, Direction, Edge

        line = gpiod.LineSettings(
            direction=Direction.INPUT,
            edge_detection=Edge.BOTH,
            bias=Bias.PULL_UP if settings.active_low else Bias.PULL_DOWN,  # an open contact reads as not pressed
            active_low=settings.active_low,
            debounce_period=timedelta(milliseconds=settings.debounce_ms),
            event_clock=Clock.MONOTONIC,
        )
        try:
            return chip.request_lines(
                config={settings.line: line}, consumer=gpio_chips.CONSUMER, event_buffer_size=EDGES_KEPT
            )
        except (OSError, ValueError) as error:
            raise gpio_chips.ChipError(
                f"{self.name}: the line cannot be used as an input with edges: {error}; `gpioinfo` shows it"
            ) from error
        finally:
            chip.close()

    def _listen(self, request: Any, presses: Presses) -> None:
        from gpiod import EdgeEvent
        from gpiod.line import Value

        poll = select.poll()
        poll.register(request.fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        number = 0  # of the last edge: the kernel counts them from 1
        while not self._closing:
            due_ns = presses.due_ns()
            wait_ms = None if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / 1_000_000)
            ready = dict(poll.poll(wait_ms))
            if ready.get(request.fd, 0) & ~select.POLLIN:
                raise OSError("the chip has gone")
            if request.fd in ready:
                for event in request.read_edge_events():
                    if event.line_seqno != number + 1:  # edges were lost: nobody knows how long the button was held
                        presses = self._presses(request.get_value(self._settings.line) == Value.ACTIVE)
                    else:
                        self._hand(presses.edge(event.event_type is EdgeEvent.Type.RISING_EDGE, event.timestamp_ns))
                    number = event.line_seqno
            self._hand(presses.tick(time.monotonic_ns()))

    def _hand(self, happened: list[Press]) -> None:
        for press in happened:
            if press == "stuck":
                self._tell(
                    f"{self.name}: held for {STUCK_S:.0f} s; it is jammed or its cable is shorted: free or replace it"
                )
            elif press == "free":
                self._tell("")
            else:
                self.presses += press == "short"
                self._on_press(self.bed, press)

    def _tell(self, detail: str) -> None:
        if detail != self._fault:
            self._fault = detail
            self._on_fault(self.name, detail)
