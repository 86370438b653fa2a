"""What else can fail, on a virtual clock: loop, outputs, clock and link, each raised late and ended for sure."""

from __future__ import annotations

from typing import Any

from edge_agent.supervision import CLOCK_NS, LATE_NS, NS, PUNCTUAL_NS, SILENT_NS, STUCK_NS, Supervision

LINK_S = 60


class Bench:
    """A supervision with its faults written down."""

    def __init__(self, *, central: bool = True) -> None:
        self.faults: dict[tuple[str, str], str] = {}
        self.calls = 0
        self.supervision = Supervision(self.fault, central=central, central_link_s=LINK_S, started_ns=0)

    def fault(self, condition: str, kind: str, detail: str) -> None:
        self.calls += 1
        if detail:
            self.faults[condition, kind] = detail
        else:
            del self.faults[condition, kind]  # a fault that was not raised is not ended

    def look(
        self, at_ns: int, cloud: dict[str, Any] | None = None, *, stuck_ns: int = 0, sync: bool = True
    ) -> set[str]:
        self.supervision.look(at_ns, [Output(stuck_ns)], sync, cloud)
        return {condition for condition, _ in self.faults}


class Output:
    name = "gpio:chip"

    def __init__(self, stuck_ns: int) -> None:
        self._stuck_ns = stuck_ns

    def stuck_ns(self, at_ns: int) -> int:
        return self._stuck_ns


def cloud(second: float, state: str = "connected", detail: str = "") -> dict[str, Any]:
    return {"state": state, "detail": detail, "pid": 7, "utc": f"{second}", "uptime_s": second}


def test_a_late_turn_is_told_at_once_and_ends_after_punctual_ones() -> None:
    bench = Bench()
    bench.supervision.turn(0, LATE_NS)
    assert not bench.faults
    bench.supervision.turn(0, LATE_NS + 1)
    assert ("alarm_loop_late", "alarm loop") in bench.faults
    ends = LATE_NS + 1 + PUNCTUAL_NS
    bench.supervision.turn(ends - 1, ends - 1)
    assert bench.faults
    bench.supervision.turn(ends, ends)
    assert not bench.faults


def test_a_second_late_turn_prolongs_it() -> None:
    bench = Bench()
    bench.supervision.turn(0, 2 * LATE_NS)
    again = PUNCTUAL_NS
    bench.supervision.turn(again - 2 * LATE_NS, again)
    bench.supervision.turn(2 * LATE_NS + PUNCTUAL_NS, 2 * LATE_NS + PUNCTUAL_NS)
    assert bench.faults


def test_an_output_that_hangs_is_named() -> None:
    bench = Bench()
    assert bench.look(1, stuck_ns=STUCK_NS - 1) == set()
    assert bench.look(2, stuck_ns=STUCK_NS) == {"annunciator_fault"}
    assert "gpio:chip" in next(iter(bench.faults.values()))
    assert bench.look(3) == set()


def test_an_unsynchronised_clock_has_some_minutes() -> None:
    bench = Bench(central=False)
    assert bench.look(CLOCK_NS - 1, sync=False) == set()
    assert bench.look(CLOCK_NS, sync=False) == {"clock_unsynchronised"}
    assert bench.look(CLOCK_NS + NS) == set()
    assert bench.look(2 * CLOCK_NS, sync=False) == set()
    assert bench.look(2 * CLOCK_NS + NS, sync=False) == {"clock_unsynchronised"}


def test_a_central_link_is_missed_after_its_seconds_and_not_before() -> None:
    bench = Bench()
    assert bench.look(LINK_S * NS - 1) == set()
    assert bench.look(LINK_S * NS) == {"central_link_lost"}
    assert "cloud-sync does not run" in bench.faults["central_link_lost", "central link"]
    assert bench.look(LINK_S * NS + 1, cloud(1)) == set()


def test_a_forwarder_that_was_refused_for_good_is_told_at_once() -> None:
    bench = Bench()
    bench.look(NS, cloud(1))
    assert bench.look(2 * NS, cloud(2, "fatal", "fenced: another gateway has this identity")) == {"central_link_lost"}
    assert "fenced" in bench.faults["central_link_lost", "central link"]
    assert bench.look(3 * NS, cloud(3)) == set()
    assert bench.look(4 * NS, cloud(4, "fatal", "fenced")) == {"central_link_lost"}
    assert bench.look(5 * NS, cloud(5, "waiting")) == {"central_link_lost"}, "starting anew is not yet a link"
    assert bench.look(5 * NS + SILENT_NS + NS, cloud(5, "waiting")) == {"central_link_lost"}
    assert "does not run" in bench.faults["central_link_lost", "central link"]


def test_a_forwarder_without_its_broker_is_no_link() -> None:
    state = "waiting"
    bench = Bench()
    bench.look(NS, cloud(1))
    for second in range(2, LINK_S + 1):
        assert bench.look(second * NS, cloud(second, state, "broker down")) == set()
    assert bench.look((LINK_S + 1) * NS, cloud(LINK_S + 1, state, "broker down")) == {"central_link_lost"}
    assert bench.faults["central_link_lost", "central link"] == "broker down"
    assert bench.look((LINK_S + 2) * NS, cloud(LINK_S + 2)) == set()


def test_a_status_that_stands_still_is_a_dead_forwarder() -> None:
    bench = Bench()
    old = cloud(1)
    bench.look(NS, old)
    bench.look(NS + SILENT_NS, old)  # still fresh enough: the link counts up to here
    last = NS + SILENT_NS + LINK_S * NS
    assert bench.look(last - 1, old) == set()
    assert bench.look(last, old) == {"central_link_lost"}
    assert "cloud-sync does not run" in bench.faults["central_link_lost", "central link"]


def test_without_a_receiver_there_is_no_link_to_lose() -> None:
    assert Bench(central=False).look(10 * LINK_S * NS) == set()


def test_a_fault_that_goes_on_is_told_again_with_its_newest_words_only() -> None:
    bench = Bench()
    for second in range(100):
        bench.look(second * NS, cloud(second))
    assert bench.calls == 0
