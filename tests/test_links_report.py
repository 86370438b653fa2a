"""What a sink is told: changes only, the state before the bytes, and nothing after the end."""

from __future__ import annotations

import time

from link_sink import RecordingSink

from edge_agent.links.report import Report


async def test_only_changes_are_told_and_a_new_reason_is_a_change() -> None:
    sink = RecordingSink()
    report = Report(sink, 30, None)
    for _ in range(2):
        report.lost("port in use")
    report.lost("no peer")
    for _ in range(2):
        report.connected("peer a")
    report.connected("peer b")
    report.lost("no peer")
    assert sink.states == [("lost", "port in use"), ("lost", "no peer"), ("connected", "peer a"), ("lost", "no peer")]
    report.stop()


async def test_bytes_keep_their_stamp_and_do_not_bring_a_lost_link_back() -> None:
    sink = RecordingSink()
    report = Report(sink, 30, None)
    report.connected("a")
    report.received(b"x", "peer", 1234)
    before = time.monotonic_ns()
    report.received(b"y")
    assert sink.chunks[0].at_ns == 1234 and sink.chunks[0].channel == "peer"
    assert before <= sink.chunks[1].at_ns <= time.monotonic_ns()
    report.lost("gone")
    report.received(b"late")
    assert sink.names == ["connected", "lost"] and sink.data == b"xylate"
    report.stop()


async def test_silence_comes_only_when_nothing_came_for_so_long_and_once_per_silence() -> None:
    sink = RecordingSink()
    report = Report(sink, 0.1, None)
    report.connected("a")
    begin = time.monotonic()
    await sink.until_state("silent")
    assert time.monotonic() - begin >= 0.1
    report.received(b"x")
    last = time.monotonic()
    await sink.until_state("silent")
    assert time.monotonic() - last >= 0.09
    assert sink.order == ["connected", "silent", "connected", "chunk", "silent"]
    report.lost("b")
    report.connected("c")
    await sink.until_state("silent")  # the watch goes on after a loss
    report.stop()


async def test_nothing_is_told_after_the_end() -> None:
    sink = RecordingSink()
    report = Report(sink, 0.01, None)
    report.connected("a")
    report.stop()
    report.received(b"x")
    report.lost("b")
    report.connected("c")
    report.closed("peer")
    assert sink.order == ["connected"]
