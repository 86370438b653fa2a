"""Whatever alarms there are, the highest active priority owns light and sound."""

from __future__ import annotations

import pytest
from alarm_room import BED, PRESET, Room
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.presets import RANK

PRIORITIES = st.sampled_from(["high", "medium", "low"])
ALARMS = st.lists(st.tuples(st.integers(0, 11), PRIORITIES, st.sampled_from(["raise", "clear", "acknowledge"])))


@pytest.mark.property
@pytest.mark.alm("ALM-06")
@given(ALARMS, st.sampled_from(["", "audio_paused", "audio_off", "alarm_paused", "alarm_off"]), st.integers(0, 40))
def test_the_highest_active_priority_owns_light_and_sound(
    steps: list[tuple[int, str, str]], state: str, hold_at: int
) -> None:
    room = Room({BED: PRESET.with_latching(True)}, audio_off=True, alarm_off=True)
    active: dict[str, tuple[str, bool, bool]] = {}  # condition: priority, to be acknowledged, came after the state
    held = ""
    for number, (which, priority, action) in enumerate(steps):
        if number == hold_at and state:
            room.hold(held := state)
            active = {name: (its, fresh, False) for name, (its, fresh, _) in active.items()}
        name = f"device_alarm:{which}"
        if action == "raise":
            was, fresh, through = active.get(name, ("none", False, False))
            if RANK[priority] > RANK[was]:
                fresh, through = True, priority == "high" and held not in ("", "alarm_off")
            active[name] = (priority, fresh, through and priority == "high")
            room.put(name, priority=priority)
        elif name in active:
            room.acknowledge(room.shown(name)["alert_id"])
            active[name] = (active[name][0], False, active[name][2])
            if action == "clear":
                room.put(name, False)
                del active[name]
        ranks = [RANK[its] for its, _, _ in active.values()]
        audible = [RANK[its] for its, fresh, through in active.values() if fresh and (through or not held)]
        signal = room.alarms.signal(BED)
        assert RANK[signal.priority] == max(ranks, default=0)
        assert RANK[signal.audio_priority] == max(audible, default=0)
        assert signal.audio is bool(audible)
        lit = any(through for _, _, through in active.values()) if held.startswith("alarm") else bool(active)
        assert signal.visual is lit
        assert not active or active[signal.condition][0] == signal.priority
        assert not audible or active[signal.audio_condition][0] == signal.audio_priority
        assert {alarm["condition"] for alarm in room.view()["alarms"]} == set(active)
