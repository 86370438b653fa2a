"""Whom the processor serves first: pulses, then the alarm loop, then everything else.

A thread that is due needs two things: a processor and the interpreter. Real-time scheduling gives it the processor. The
interpreter may be held by the alarm loop, and if that waits for a processor behind other programs, so does the pulse:
measured beside two endless loops, edges came up to 30 ms late. So the loop is preferred too, below the pulses, and
hands the interpreter over within HAND_OVER_S. The threads that it starts inherit that, because any of them may be the
one that holds the interpreter; among them the processor is shared in turn.
"""

from __future__ import annotations

import os
import sys

PULSES = 10  # above all ordinary threads, below the kernel's interrupt threads (50)
ALARM_LOOP = 5
HAND_OVER_S = 0.0005  # for which a busy thread keeps the interpreter when another is due; 5 ms is Python's own value


def prefer_pulses() -> bool:
    """Put the calling thread before all ordinary ones; False where that is not allowed."""
    return _realtime(os.SCHED_FIFO, PULSES)


def prefer_alarm_loop() -> bool:
    """Put the calling thread, and those it starts from now on, before all but the pulses; False: not allowed.

    systemd allows it with LimitRTPRIO.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), HAND_OVER_S))
    return _realtime(os.SCHED_RR, ALARM_LOOP)


def _realtime(policy: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True
