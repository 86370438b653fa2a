"""The MLLP sink against a real server: order, every kind of answer, silence, and peers that mean no good."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from alert_manager import GONE, AlertManager, Answer, control, framed, reply

from cloud_sync.sinks import Message, Retry, Settled, mllp
from cloud_sync.sinks.mllp import MllpSink

CONTROL = "control-id"
MakeManager = Callable[..., AlertManager]
MakeSink = Callable[..., MllpSink]


@pytest.fixture
def make_manager() -> Iterator[MakeManager]:
    made: list[AlertManager] = []

    def make(answer: Answer = reply, port: int = 0) -> AlertManager:
        made.append(AlertManager(answer, port))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def make_sink() -> Iterator[MakeSink]:
    made: list[MllpSink] = []

    def make(manager: AlertManager, reply_s: float = 30.0, host: str = "127.0.0.1") -> MllpSink:
        made.append(MllpSink(host, manager.port, reply_s, CONTROL))
        return made[-1]

    yield make
    for sink in made:
        sink.reset()


def message(number: int, size: int = 100) -> Message:
    head = f"MSH|^~\\&|||||20260101||ORU^R40^ORU_R40|C{number}|P|2.6\r"
    value = head.encode() + b"OBX|" + b"x" * size + b"\r"
    return Message("alert_manager", "ICU-1", value, f"g/i/{number}".encode(), ((CONTROL, f"C{number}".encode()),))


def settle(sink: MllpSink, count: int) -> list[Settled]:
    end = time.monotonic() + 60
    found: list[Settled] = []
    while len(found) < count:
        assert time.monotonic() < end
        found += sink.settle(0.05)
    return found


def test_messages_leave_one_by_one_in_order(make_manager: MakeManager, make_sink: MakeSink) -> None:
    manager = make_manager()
    sink = make_sink(manager)
    for start in (0, 3, 6):
        sink.begin(start, [message(n, 200_000) for n in range(start, start + 3)])
    sink.begin("nothing in it", [])
    verdicts = settle(sink, 4)
    assert [(verdict.token, verdict.accepted) for verdict in verdicts] == [(0, 3), (3, 3), (6, 3), ("nothing in it", 0)]
    assert manager.controls == [f"C{n}" for n in range(9)]
    assert [len(sent) for sent in manager.messages] == [len(message(n, 200_000).value) for n in range(9)]
    assert manager.connections == 1
    assert sink.state() == ("connected", "")


def test_a_batch_without_messages_needs_no_connection(make_manager: MakeManager, make_sink: MakeSink) -> None:
    manager = make_manager()
    sink = make_sink(manager)
    sink.begin("a", [])
    assert sink.settle(0.0) == [Settled("a", 0)]
    assert manager.connections == 0


def test_a_message_is_held_back_until_the_one_before_it_is_acknowledged(
    make_manager: MakeManager, make_sink: MakeSink
) -> None:
    manager = make_manager(lambda _: None)
    sink = make_sink(manager)
    sink.begin("a", [message(1), message(2)])
    while not manager.messages:
        assert sink.settle(0.01) == []
    for _ in range(20):
        assert sink.settle(0.01) == []
    assert manager.controls == ["C1"]


@pytest.mark.parametrize("code", ["AA", "CA"])
def test_both_ways_of_accepting_count(code: str, make_manager: MakeManager, make_sink: MakeSink) -> None:
    sink = make_sink(make_manager(lambda sent: reply(sent, code)))
    sink.begin("a", [message(1)])
    assert settle(sink, 1) == [Settled("a", 1)]


@pytest.mark.parametrize("code", ["AR", "CR"])
def test_a_refusal_drops_this_message_alone(code: str, make_manager: MakeManager, make_sink: MakeSink) -> None:
    manager = make_manager(lambda sent: reply(sent, code if control(sent) == "C2" else "AA"))
    sink = make_sink(manager)
    sink.begin("a", [message(1), message(2), message(3)])
    (verdict,) = settle(sink, 1)
    assert verdict.accepted == 2
    ((dedup, reason),) = verdict.rejected
    assert dedup == "g/i/2"
    assert code in reason
    assert "Example" not in reason, "the peer's words may repeat the message"
    assert manager.controls == ["C1", "C2", "C3"]


@pytest.mark.parametrize("code", ["AE", "CE"])
def test_an_error_is_tried_again_some_times_and_then_dropped(
    code: str, make_manager: MakeManager, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mllp, "_ERROR_WAIT_S", (0.1, 0.2))
    came: list[float] = []

    def answer(sent: bytes) -> bytes:
        came.append(time.monotonic())
        return reply(sent, code if control(sent) == "C1" else "AA")

    manager = make_manager(answer)
    sink = make_sink(manager)
    sink.begin("a", [message(1), message(2)])
    states = set()
    while not (found := sink.settle(0.01)):
        states.add(sink.state())
        assert len(manager.messages) <= mllp.ERROR_TRIES + 1
    assert found[0].accepted == 1
    assert [rejected.dedup for rejected in found[0].rejected] == ["g/i/1"]
    assert manager.controls == ["C1"] * mllp.ERROR_TRIES + ["C2"]
    waits = [later - earlier for earlier, later in itertools.pairwise(came)][: mllp.ERROR_TRIES - 1]
    assert [wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.2, 0.2), strict=True)] == [True] * 4, waits
    assert any(state == "waiting" and "answered a message with an error" in detail for state, detail in states)
    assert sink.state() == ("connected", "")


def test_errors_count_on_over_lost_connections(
    make_manager: MakeManager, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that hangs up behind each error must not hold the stream for ever."""
    monkeypatch.setattr(mllp, "_ERROR_WAIT_S", (0.01, 0.01))
    manager = make_manager()

    def answer(sent: bytes) -> bytes:
        if control(sent) != "C1":
            return reply(sent)
        manager._peers[-1].sendall(reply(sent, "AE"))
        return GONE

    manager.answer = answer
    sink = make_sink(manager)
    found: list[Settled] = []
    for _ in range(50):
        sink.begin("a", [message(1), message(2)])
        try:
            found = settle(sink, 1)
            break
        except Retry:
            sink.reset()
    assert [rejected.dedup for rejected in found[0].rejected] == ["g/i/1"]
    assert manager.controls == ["C1"] * mllp.ERROR_TRIES + ["C2"]


def test_an_error_that_passes_is_accepted(
    make_manager: MakeManager, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mllp, "_ERROR_WAIT_S", (0.01, 0.01))
    codes = iter(["AE", "AE", "AA"])
    manager = make_manager(lambda sent: reply(sent, next(codes)))
    sink = make_sink(manager)
    sink.begin("a", [message(1)])
    assert settle(sink, 1) == [Settled("a", 1)]
    assert manager.controls == ["C1"] * 3


NONSENSE: dict[str, Callable[[bytes], bytes | None]] = {
    "silence": lambda _: None,
    "hangs up": lambda _: GONE,
    "no frame": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no message": lambda _: framed(b"OK"),
    "no acknowledgement": lambda _: framed(b"MSH|^~\\&|AM\rPID|1\r"),
    "empty frame": lambda _: framed(b""),
    "unknown code": lambda sent: reply(sent, "OK"),
    "another message's": lambda sent: reply(sent, name="C0"),
    "nobody's": lambda sent: reply(sent, name=""),
    "without end": lambda _: b"\x0b" + b"M" * (mllp.REPLY_LIMIT + 10_000),
    "half": lambda sent: reply(sent)[:-1],
}


WAITED_OUT = {"silence", "another message's", "nobody's", "half"}  # all else is seen at once


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_is_no_answer_keeps_the_message_and_closes(
    kind: str, make_manager: MakeManager, make_sink: MakeSink
) -> None:
    answer = NONSENSE[kind]
    manager = make_manager(lambda sent: answer(sent) if len(manager.messages) == 1 else reply(sent))
    sink = make_sink(manager, reply_s=0.3 if kind in WAITED_OUT else 30.0)
    sink.begin("a", [message(1), message(2)])
    with pytest.raises(Retry, match="no acknowledgement within 0.3 s" if kind in WAITED_OUT else None) as trouble:
        settle(sink, 1)
    assert ("a reply longer than 64 KiB" in str(trouble.value)) == (kind == "without end")
    assert "Example" not in str(trouble.value)
    assert sink.state() == ("waiting", str(trouble.value))
    assert len(sink._received) == 0
    sink.reset()
    sink.begin("a", [message(1), message(2)])
    assert settle(sink, 1) == [Settled("a", 2)]
    assert manager.controls == ["C1", "C1", "C2"]
    assert manager.connections == 2


def test_what_was_accepted_before_the_connection_broke_is_not_sent_again(
    make_manager: MakeManager, make_sink: MakeSink
) -> None:
    lost = iter([GONE])
    manager = make_manager(lambda sent: next(lost, reply(sent)) if control(sent) == "C2" else reply(sent))
    sink = make_sink(manager)
    sink.begin("a", [message(1), message(2)])
    with pytest.raises(Retry, match="closed by the peer"):
        settle(sink, 1)
    sink.reset()
    sink.begin("a", [message(1), message(2)])
    assert settle(sink, 1) == [Settled("a", 2)]
    assert manager.controls == ["C1", "C2", "C2"]


def test_a_flood_of_other_acknowledgements_ends_at_the_time_for_the_reply(
    make_manager: MakeManager, make_sink: MakeSink
) -> None:
    manager = make_manager(lambda sent: reply(sent, name="C0") * 5_000)
    sink = make_sink(manager, reply_s=0.3)
    sink.begin("a", [message(1)])
    with pytest.raises(Retry, match="no acknowledgement"):
        settle(sink, 1)


def test_a_reply_in_pieces_and_a_second_one_are_understood(make_manager: MakeManager, make_sink: MakeSink) -> None:
    """CA and AA for one message, as in enhanced mode, the second with other encoding characters and late."""
    manager = make_manager()

    def answer(sent: bytes) -> bytes:
        again = f"\r\nMSH#~^\\&#AM\nMSA#AA#{control(sent)}\n".encode()
        for byte in reply(sent, "CA")[:20]:
            manager._peers[-1].sendall(bytes([byte]))
        return reply(sent, "CA")[20:] + framed(again.lstrip()) + b"\r\n"

    manager.answer = answer
    sink = make_sink(manager)
    sink.begin("a", [message(1), message(2), message(3)])
    assert settle(sink, 1) == [Settled("a", 3)]
    assert manager.controls == ["C1", "C2", "C3"]


def test_an_idle_connection_that_is_closed_is_called_again_without_a_word(
    make_manager: MakeManager, make_sink: MakeSink
) -> None:
    manager = make_manager()
    sink = make_sink(manager)
    manager_saw = lambda: sink.settle(0.01) or manager.connections  # noqa: E731
    while not manager_saw():
        pass
    manager.hang_up()
    while manager.connections < 2:
        assert sink.settle(0.01) == [], "no Retry: nothing was under way"
    sink.begin("a", [message(1)])
    assert settle(sink, 1) == [Settled("a", 1)]


def test_a_peer_that_is_not_there_is_told(make_manager: MakeManager, make_sink: MakeSink) -> None:
    manager = make_manager()
    manager.close()
    sink = make_sink(manager)
    sink.begin("a", [message(1)])
    with pytest.raises(Retry, match=rf"127.0.0.1:{manager.port}: Connection refused"):
        settle(sink, 1)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_name_that_is_none_is_told(host: str, make_manager: MakeManager, make_sink: MakeSink) -> None:
    sink = make_sink(make_manager(), host=host)
    sink.begin("a", [message(1)])
    with pytest.raises(Retry):
        settle(sink, 1)


def test_closing_waits_for_the_answer_that_is_due_and_sends_no_more(
    make_manager: MakeManager, make_sink: MakeSink
) -> None:
    manager = make_manager(lambda _: None)
    sink = make_sink(manager)
    sink.begin("a", [message(1)])
    sink.begin("b", [message(2)])
    while not manager.messages:
        sink.settle(0.01)
    manager._peers[-1].sendall(reply(manager.messages[0]))
    assert sink.close(30.0) == [Settled("a", 1)]
    assert manager.controls == ["C1"]
