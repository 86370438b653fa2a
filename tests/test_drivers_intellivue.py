"""IntelliVue: the conversation, what is new and what is late, alarms, waves, and damage, without a network."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterable
from datetime import datetime

import pytest

from drivers.intellivue import IntelliVue, association, nomenclature, replies, requests, wire
from drivers.sim import intellivue_monitor as sim
from drivers.sim.intellivue_monitor import INOP, RED, YELLOW, Alert, Monitor, Wave
from edge_agent.records import (
    Chunk,
    DeviceAlarm,
    DeviceStatus,
    Item,
    Observation,
    PatientEvent,
    Reject,
    Reply,
    Waveform,
)

CHANNEL = "192.0.2.10:24105"
OTHER = "192.0.2.66:24105"
START = datetime(2026, 3, 1, 6, 30)


class Bedside:
    """A monitor and a decoder that answer each other; `lost` says which of the decoder's replies do not arrive."""

    def __init__(self, device: Monitor | None = None, **options: object) -> None:
        self.monitor = device or Monitor(started=START, waves=())
        self.decoder = IntelliVue(link="udp", **options)  # type: ignore[arg-type]
        self.items: list[Item] = []
        self.sent: list[bytes] = []
        self.at_s = 0.0
        self.deaf = False

    def hear(self, messages: Iterable[bytes], channel: str = CHANNEL) -> list[Item]:
        out: list[Item] = []
        for message in messages:
            out += self.take(self.decoder.feed(Chunk(int(self.at_s * 1e9), message, channel)))
        return out

    def take(self, items: Iterable[Item]) -> list[Item]:
        out = list(items)
        self.items += out
        for item in list(out):
            if isinstance(item, Reply):
                self.sent.append(item.data)
                if not self.deaf:
                    out += self.hear(self.monitor.receive(item.data, self.at_s))
        return out

    def run(self, seconds: float) -> list[Item]:
        """Let time pass in steps of 128 ms, a tick each second."""
        before = len(self.items)
        end = self.at_s + seconds
        while self.at_s < end - 1e-9:
            ticked = int(self.at_s)
            self.at_s = round(self.at_s + 0.128, 3)
            if not self.deaf:
                self.hear(self.monitor.advance(self.at_s))
            if int(self.at_s) != ticked:
                self.take(self.decoder.tick(int(self.at_s * 1e9)))
        return self.items[before:]


def associated(device: Monitor | None = None, **options: object) -> Bedside:
    bedside = Bedside(device, **options)
    bedside.monitor.measure({"heart_rate": 70}, 0.0)
    bedside.run(4)
    assert bedside.monitor.state == "serving"
    return bedside


def of(items: Iterable[Item], kind: type) -> list[Item]:
    return [item for item in items if isinstance(item, kind)]


def values(items: Iterable[Item], term: str) -> list[float | None]:
    return [item.value for item in items if isinstance(item, Observation) and item.term == term]


def reasons(items: Iterable[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Reject)]


def numerics(invoke: int, ticks: int, objects: list[bytes], *, number: int = 1, sequence: int = 5) -> bytes:
    """A result of the extended poll of numerics, put together here."""
    listed = struct.pack(">HH", len(objects), sum(map(len, objects))) + b"".join(objects)
    context = struct.pack(">H", 0) + listed
    body = struct.pack(">HHI", number, sequence, ticks) + b"\xff" * 8 + struct.pack(">HHH", 1, 6, 0)
    body += struct.pack(">HH", 1, len(context)) + context
    body = struct.pack(">HHHHH", 0x21, 0, 0, 0xF13B, len(body)) + body
    body = struct.pack(">HHH", invoke, 7, len(body)) + body
    return b"\xe1\x00\x00\x02" + struct.pack(">HH", 2, len(body)) + body


def one(code: int, state: int, unit: int, word: int, *more: tuple[int, bytes]) -> bytes:
    """An object with one numeric."""
    pairs = [(0x0950, struct.pack(">HHHI", code, state, unit, word)), *more]
    inner = b"".join(struct.pack(">HH", name, len(value)) + value for name, value in pairs)
    return struct.pack(">HHH", 0x20, len(pairs), len(inner)) + inner


# -- what is sent -------------------------------------------------------------------------------------------------


def test_requests_have_the_published_octets() -> None:
    assert requests.poll(0, 1, replies.NUMERIC, 0) == bytes.fromhex(
        "e1000002 0001001c 000000070016 002100000000 00000000 0c160008 0001 0001 0006 0000"
    )
    event = replies.Event(replies.MDS_CREATE, 1, True, (0x21, 0, 0), 0x000ABD00, {})
    assert requests.created(event).hex() == "e10000020002001400010001000e002100000000000abd000d060000"
    extended = requests.extended_poll(1, 2, replies.WAVE, 0, 30)
    assert extended == bytes.fromhex(
        "e1000002 00010028 000100070022 002100000000 00000000 f13b0014 0002 0001 0009 0000 00010008 f13e0004 0003a980"
    )
    waves = requests.set_waves(7, (0x4BB4,))
    assert waves == bytes.fromhex(
        "e1000002 00010022 00070005001c 002100000000 00000000 0001000e 0000 f23a0008 00010004 00024bb4"
    ), "replace the list by these labels"
    for message in (requests.RELEASE, requests.RELEASED, requests.ABORT, requests.association(True), extended):
        assert wire.whole(message)
    long = requests.association(True)
    assert long[:4] == bytes((0x0D, 0xFF, 0x01, 0x1F)) and long.endswith(bytes(16))
    assert bytes.fromhex("f0010008 88000000 00000000") in long, "a second's numerics and waves are announced"


def test_nothing_is_sent_that_changes_the_monitor() -> None:
    bedside = associated(Monitor(started=START), waves="ecg_ii,pleth")
    bedside.run(30)
    invoked = [each for each in bedside.sent if each[:6] == b"\xe1\0\0\2\0\1"]
    changes = [each for each in invoked if each[10:12] != b"\0\7"]
    assert len(changes) == 1 and changes[0] == requests.set_waves(1, (0x0102, 0x4BB4))
    assert bedside.monitor._chosen == [0x0102, 0x4BB4]


# -- frames -------------------------------------------------------------------------------------------------------


def test_the_check_sequence_is_that_of_ppp() -> None:
    assert wire.check_sequence(b"123456789") == 0x906E  # the published check of CRC-16/X-25
    message = requests.poll(0xC0C1, 0x7D7D, replies.NUMERIC, 0)
    framed = wire.frame(message)
    assert framed == sim.rs232(message) and framed.count(b"\xc0") == 1 and framed.count(b"\xc1") == 1
    assert wire.unframe(framed[1:-1]) == message


def test_a_frame_counts_only_whole_and_right() -> None:
    good = sim.rs232(b"\xe1\x00\x00\x02" + bytes(40))
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x04
        stream = wire.Stream()
        found = stream.feed(bytes(damaged) + good, True) + stream.quiet()
        assert [each for each in found if isinstance(each, bytes)] == [b"\xe1\x00\x00\x02" + bytes(40)], at
        assert sum(each for each in found if isinstance(each, int)) == len(good), "every octet given up is counted"
    message = b"\xe1\x00\x00\x02" + bytes(40)
    assert wire.Stream().feed(good[:-1] + b"\x7d\xc1" + good, True) == [len(good) + 1, message], "given up"
    inner = b"\x11\x01\x00\x2d" + message
    inner += wire.check_sequence(inner).to_bytes(2, "little")
    assert wire.unframe(inner) is None, "a length that is wrong under a check sequence that is right"


def test_a_live_line_takes_nothing_without_a_frame() -> None:
    message = numerics(3, 1000, [one(0x4182, 0, 2720, 72)])
    decoder = IntelliVue()
    assert values([*decoder.feed(Chunk(0, message)), *decoder.tick(10**10)], "heart_rate") == [72]
    live = IntelliVue(link="serial")
    assert not of([*live.feed(Chunk(0, message)), *live.tick(10**10)], Observation)
    ticked = IntelliVue()
    ticked.tick(0)
    assert not of([*ticked.feed(Chunk(0, message)), *ticked.tick(10**10)], Observation)


def test_a_file_of_messages_that_was_cut_gives_those_that_are_whole() -> None:
    first = numerics(3, 1000, [one(0x4182, 0, 2720, 72)])
    second = numerics(3, 9000, [one(0x4182, 0, 2720, 73)])
    for cut in range(1, len(first) - 4):  # of its session at least there must be something
        for step in (1, 7, 10_000):
            decoder = IntelliVue()
            data = first[:-cut] + second
            chunks = [Chunk(0, data[at : at + step]) for at in range(0, len(data), step)]
            items = [item for chunk in chunks for item in decoder.feed(chunk)] + list(decoder.tick(10**10))
            assert values(items, "heart_rate") == [73], cut
    assert wire.Stream().feed(first, True) == [], "nor anything on a live line"
    assert wire.Stream().feed(first + second, False) == [first]


def test_memory_is_bounded() -> None:
    stream = wire.Stream()
    stream.feed(b"\xc0", True)
    for _ in range(200):
        stream.feed(bytes(1000), True)
        assert len(stream._buffer) <= 10_000
    decoder = IntelliVue()
    for handle in range(3000):
        found = one(0x4182, 0, 2720, 60, (0x0990, bytes.fromhex("2026030106300000")), (0x0927, b"\0\4\0H\0R"))
        decoder.feed(Chunk(0, numerics(3, handle, [struct.pack(">H", handle) + found[2:]]), CHANNEL))
    assert len(decoder._numerics._told) <= 512 and len(decoder._numerics._labels) <= 512


# -- association --------------------------------------------------------------------------------------------------


def test_every_state_has_an_end() -> None:
    states = {state for state, _ in association.TABLE} | {step.state for step in association.TABLE.values()}
    for state in states:
        assert (state, "due") in association.TABLE, state
        assert any(step.state == state for step in association.TABLE.values()) or state == association.LISTENING


def test_from_silence_to_values() -> None:
    bedside = Bedside(Monitor(bed_label="ICU 3", patient_id="P-1", started=START, waves=()))
    bedside.monitor.measure({"heart_rate": 70, "nibp_sys": 120, "nibp_dia": 80, "nibp_mean": 93}, 0.0)
    bedside.run(30)
    assert [each[0] for each in bedside.sent[:1]] == [wire.CONNECT]
    assert 24 <= len(values(bedside.items, "heart_rate")) <= 29, "one a second"
    assert values(bedside.items, "nibp_sys") == [120], "one measurement is one value"
    assert {item.subject for item in of(bedside.items, Observation)} == {"P-1"}
    bedside.monitor.measure({"nibp_sys": 120, "nibp_dia": 80, "nibp_mean": 93}, bedside.at_s)
    assert values(bedside.run(2), "nibp_sys") == [120], "the same pressure measured again is another value"
    assert not reasons(bedside.items)


def test_an_announcement_brings_an_association() -> None:
    bedside = Bedside()
    bedside.monitor.measure({"heart_rate": 70}, 0.0)
    bedside.hear([bedside.monitor.indication(0.0)])
    assert bedside.monitor.state == "serving"
    sent = len(bedside.sent)
    bedside.hear([bedside.monitor.indication(0.0)])
    assert len(bedside.sent) == sent, "one that gives results is not asked again"


@pytest.mark.parametrize("how", ["abort", "restart", "silence", "release"])
def test_it_comes_back(how: str) -> None:
    bedside = associated()
    if how == "abort":
        bedside.hear([bedside.monitor.abort()])
    elif how == "restart":
        bedside.monitor.restart()
    elif how == "release":
        bedside.monitor._free()
        bedside.hear([requests.RELEASE])
        assert bedside.sent[-1] == requests.RELEASED
    else:
        bedside.deaf = True
        assert not of(bedside.run(15), Observation)
        assert requests.ABORT in bedside.sent
        bedside.deaf = False
    items = bedside.run(20)
    assert bedside.monitor.state == "serving"
    assert values(bedside.run(3), "heart_rate") == [70, 70, 70] or values(items, "heart_rate")[-3:] == [70, 70, 70]
    assert [item.state for item in of(bedside.items, DeviceStatus)] == ["associated", "unassociated", "associated"]


def test_a_restarted_monitor_that_announces_itself_is_back_soon() -> None:
    bedside = associated()
    bedside.monitor.restart()
    for _ in range(4):
        bedside.run(1)
        bedside.hear([bedside.monitor.indication(bedside.at_s)])
    assert bedside.monitor.state == "serving", "before the ten seconds of an association's end are over"


def test_a_lost_accept_is_no_loss() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.run(2)
    _, create = bedside.monitor._associate(bedside.sent[-1], bedside.at_s)
    bedside.deaf = False
    bedside.hear([create])
    assert bedside.monitor.state == "serving"
    bedside.monitor.measure({"heart_rate": 70}, 0.0)
    assert values(bedside.run(3), "heart_rate")


def test_results_while_an_association_is_asked_for_end_the_one_they_belong_to() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.run(2)
    assert bedside.sent[-1][0] == wire.CONNECT
    stale = numerics(3, bedside.monitor._ticks(0.0), [one(0x4182, 0, 2720, 88)])
    assert reasons(bedside.hear([stale])) == ["result outside of an association"]
    assert bedside.sent[-1] == requests.ABORT
    bedside.run(4)
    assert bedside.sent[-1][0] == wire.CONNECT


def test_what_was_known_of_a_monitor_ends_with_the_association() -> None:
    bedside = associated(_Forgetful(started=START, patient_id="P-1", waves=(sim.WAVES[1],)))
    bedside.run(4)
    assert of(bedside.items, Waveform) and bedside.decoder._subject == "P-1"
    bedside.hear([bedside.monitor.abort()])
    first = len(bedside.items)
    bedside.monitor._turn = 1  # its next context comes three blocks later
    bedside.monitor.silent = True  # type: ignore[attr-defined]
    bedside.run(8)
    later = bedside.items[first:]
    assert {item.subject for item in of(later, Observation)} == {""}, "nobody is who he was before"
    kinds = [type(item) for item in later if isinstance(item, Waveform) or "waveform" in getattr(item, "reason", "")]
    assert kinds[:3] == [Reject] * 3 and kinds[-1] is Waveform


class _Forgetful(Monitor):
    """A monitor that does not tell its patient any more once it is `silent`."""

    silent = False

    def _objects(self, polled: int, at_s: float) -> list[bytes]:
        return [] if polled == replies.PATIENT and self.silent else super()._objects(polled, at_s)


def test_a_refusal_is_tried_again_later() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.run(3)
    asked = len(bedside.sent)
    bedside.hear([b"\x0c\x03\x32\x01\x00"])
    bedside.run(3)
    assert len(bedside.sent) == asked
    bedside.run(2)
    assert len(bedside.sent) == asked + 1


def test_an_accept_without_mds_create_is_released() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.run(3)
    bedside.hear([bedside.monitor.receive(bedside.sent[-1], 0.0)[0]])
    bedside.run(11)
    assert bedside.sent[-1] == requests.RELEASE
    bedside.run(10)
    assert requests.ABORT in bedside.sent and bedside.sent[-1][0] == wire.CONNECT


def test_a_repeated_mds_create_is_answered_again_and_starts_nothing() -> None:
    bedside = associated()
    create = bedside.monitor._create(bedside.at_s)
    sent = len(bedside.sent)
    bedside.hear([create])
    assert len(bedside.sent) == sent + 1 and bedside.sent[-1][:6] == b"\xe1\x00\x00\x02\x00\x02"


def test_lost_requests_are_repeated() -> None:
    bedside = associated()
    bedside.monitor._active.clear()
    assert values(bedside.run(7), "heart_rate"), "an extended poll that brings nothing is asked for again"


def test_a_monitor_without_extended_polls_is_asked_every_second() -> None:
    bedside = associated(Monitor(started=START, extended=False))
    items = bedside.run(10)
    assert 8 <= len(values(items, "heart_rate")) <= 11
    assert not of(items, Waveform) and not reasons(items)


def test_the_same_conversation_in_frames_in_pieces_and_with_noise() -> None:
    numbers = random.Random(2)
    monitor = Monitor(started=START, waves=())
    monitor.measure({"heart_rate": 70}, 0.0)
    decoder = IntelliVue(link="serial", waves="none")
    items: list[Item] = []

    def hear(messages: Iterable[bytes], at_s: float) -> None:
        for message in messages:
            line = bytes(numbers.randrange(256) for _ in range(numbers.randrange(3))) + sim.rs232(message)
            while line:
                size = numbers.randrange(1, 30)
                take(decoder.feed(Chunk(int(at_s * 1e9), line[:size])), at_s)
                line = line[size:]

    def take(given: Iterable[Item], at_s: float) -> None:
        for item in given:
            items.append(item)
            if isinstance(item, Reply):
                assert item.channel == "" and item.data[0] == 0xC0
                message = wire.unframe(item.data[1:-1])
                assert message is not None
                hear(monitor.receive(message, at_s), at_s)

    for quarter in range(120):
        hear(monitor.advance(quarter / 4), quarter / 4)
        if quarter % 4 == 0:
            take(decoder.tick(quarter * 10**9 // 4), quarter / 4)
    assert len(values(items, "heart_rate")) >= 25 and set(values(items, "heart_rate")) == {70}


# -- answers that are not to be used ------------------------------------------------------------------------------


def test_late_double_and_foreign_results_are_rejected() -> None:
    bedside = associated()
    ticks = bedside.monitor._ticks(bedside.at_s) + 8000
    result = numerics(3, ticks, [one(0x4182, 0, 2720, 88)])
    assert values(bedside.hear([result]), "heart_rate") == [88]
    assert reasons(bedside.hear([result])) == ["result twice"]
    assert reasons(bedside.hear([numerics(3, ticks - 8000, [one(0x4182, 0, 2720, 77)])])) == ["result late"]
    other = numerics(3, ticks + 8000, [one(0x4182, 0, 2720, 66)], number=9)
    assert reasons(bedside.hear([other])) == ["result for another poll"]
    assert reasons(bedside.hear([numerics(3, ticks + 8000, [one(0x4182, 0, 2720, 55)], number=3)])) == [
        "result for another poll"
    ], "the number of the alerts"
    assert reasons(bedside.hear([numerics(3, ticks + 8000, [one(0x4182, 0, 2720, 99)])], OTHER)) == [
        "from another monitor"
    ]
    split = numerics(3, ticks, [one(0x4BB8, 0, 544, 97)], sequence=6)
    assert values(bedside.hear([split]), "spo2") == [97], "another part of the same moment"


def test_one_wild_time_does_not_end_the_monitoring() -> None:
    bedside = associated()
    wild = numerics(3, bedside.monitor._ticks(bedside.at_s) + (1 << 30), [one(0x4182, 0, 2720, 88)])
    bedside.hear([wild])
    assert values(bedside.run(8), "heart_rate")[-2:] == [70, 70]


def test_results_of_an_association_that_is_no_more_are_rejected_and_the_monitor_is_freed() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.take(bedside.decoder.tick(0))
    stale = numerics(3, bedside.monitor._ticks(0.0), [one(0x4182, 0, 2720, 88)])
    assert reasons(bedside.hear([stale, stale])) == ["result outside of an association"] * 2
    assert bedside.sent[1:] == [requests.ABORT], "said once"
    bedside.deaf = False
    bedside.monitor.measure({"heart_rate": 70}, 0.0)
    bedside.run(6)
    assert bedside.monitor.state == "serving"
    old = numerics(3, (bedside.monitor._ticks(0.0) - 20_000) % (1 << 32), [one(0x4182, 0, 2720, 88)])
    assert reasons(bedside.hear([old])) == ["result of an earlier association"]


def test_a_recording_that_begins_with_the_answer_to_a_request_is_decoded() -> None:
    live = associated()
    live.monitor._free()
    answers = live.monitor._associate(requests.association(True), 0.0)
    decoder = IntelliVue(link="udp")
    for message in answers:
        decoder.feed(Chunk(0, message, CHANNEL))
    result = numerics(3, live.monitor._ticks(0.0) + 8000, [one(0x4182, 0, 2720, 64)])
    for second in range(1, 4):
        decoder.tick(second * 10**9)
    assert values(decoder.feed(Chunk(4 * 10**9, result, CHANNEL)), "heart_rate") == [64]


@pytest.mark.parametrize("told", [True, False])
def test_a_recording_of_two_associations_is_decoded_to_its_end(told: bool) -> None:
    live = _Recorded()
    live.monitor.measure({"heart_rate": 70}, 0.0)
    live.run(5)
    live.monitor.restart()
    live.monitor.offset += 10_000  # the second counts from a moment shortly before the first
    if told:
        live.hear([sim.ABORT])
    live.run(12)
    decoder = IntelliVue()
    items = [item for message in live.heard for item in decoder.feed(Chunk(0, message, CHANNEL))]
    states = [item.state for item in of(items, DeviceStatus)]
    assert states == ["associated", "unassociated", "associated"] and not reasons(items)
    assert values(items, "heart_rate") == values(live.items, "heart_rate") and len(values(items, "heart_rate")) > 5


class _Recorded(Bedside):
    """A bedside that keeps what the decoder was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    def hear(self, messages: Iterable[bytes], channel: str = CHANNEL) -> list[Item]:
        listed = list(messages)
        out = []
        for message in listed:
            self.heard.append(message)
            out += super().hear([message], channel)
        return out


def test_two_monitors_and_none_named_is_nobodys_bed() -> None:
    bedside = associated()
    items = bedside.hear([Monitor().indication(0.0)], OTHER)
    assert [item.state for item in of(items, DeviceStatus)] == ["several_monitors"]
    assert requests.ABORT in bedside.sent
    assert not of(bedside.run(30), Observation)


def test_a_named_monitor_is_the_only_one() -> None:
    bedside = Bedside(monitor="192.0.2.10")
    assert not bedside.hear([Monitor().indication(0.0)], OTHER)
    bedside.hear([bedside.monitor.indication(0.0)])
    assert bedside.monitor.state == "serving"
    assert reasons(bedside.hear([numerics(3, 1, [one(0x4182, 0, 2720, 88)])], OTHER)) == ["from another monitor"]


def test_listening_sends_nothing() -> None:
    decoder = IntelliVue(listen=True)
    monitor = Monitor(started=START, waves=())
    items = list(decoder.feed(Chunk(0, monitor.indication(0.0), CHANNEL)))
    for second in range(20):
        message = numerics(77, second * 8000, [one(0x4182, 0, 2720, 60 + second)], number=4711)
        items += [*decoder.feed(Chunk(second * 10**9, message, CHANNEL)), *decoder.tick(second * 10**9)]
    assert values(items, "heart_rate") == list(range(60, 80)) and not of(items, Reply)


# -- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "validity"),
    [
        (0x0000, "valid"), (0x00A3, "valid"), (0x8000, "invalid"), (0x4000, "questionable"), (0x2000, "not_available"),
        (0x1000, "invalid"), (0x0800, "invalid"), (0x0400, "invalid"), (0x0040, "questionable"),
        (0x0100, "questionable"), (0x4800, "invalid"), (0x6000, "not_available"),
    ],
)  # fmt: skip
def test_states(state: int, validity: str) -> None:
    (item,) = IntelliVue().feed(Chunk(0, numerics(3, 1, [one(0x4BB8, state, 544, 97)]), CHANNEL))
    assert isinstance(item, Observation) and item.validity == validity
    assert (item.value is None) == (validity in ("invalid", "not_available"))


def test_a_monitor_in_demonstration_mode_has_no_patient() -> None:
    bedside = associated(Monitor(started=START, waves=(sim.WAVES[1],)))
    bedside.monitor.alerts = [Alert("*** ASYSTOLE", RED)]
    assert of(bedside.run(2), DeviceAlarm)
    bedside.monitor.mode = sim.MODE_DEMO
    bedside.run(3)
    items = bedside.run(3)
    assert values(items, "heart_rate") == [None] * 3
    assert {sample for wave in of(items, Waveform) for sample in wave.physical()} == {None}
    assert [item.phase for item in of(bedside.items, DeviceAlarm)] == ["start", "end"]
    bedside.monitor.mode = sim.MODE_MONITORING
    assert values(bedside.run(5), "heart_rate")[-2:] == [70, 70]


def test_a_change_of_patient_in_mid_stream() -> None:
    bedside = associated(Monitor(patient_id="P-1", started=START, waves=()))
    assert of(bedside.run(3), Observation)[-1].subject == "P-1"
    bedside.monitor.patient_id = "P-2"
    bedside.run(3)
    assert of(bedside.run(2), Observation)[-1].subject == "P-2"
    bedside.monitor.patient_id = ""
    bedside.run(3)
    assert of(bedside.run(2), Observation)[-1].subject == ""
    assert [item.patient_id for item in of(bedside.items, PatientEvent)] == ["P-1", "P-2", ""]


def test_a_message_that_does_not_fit_gives_nothing_of_itself() -> None:
    good, bad = one(0x4182, 0, 2720, 72), one(0x4BB8, 0, 544, 97)
    short = bad[:8] + struct.pack(">H", 9) + bad[10:-1]
    short = short[:4] + struct.pack(">H", len(short) - 6) + short[6:]
    items = IntelliVue().feed(Chunk(0, numerics(3, 1, [good, short]), CHANNEL))
    assert reasons(items) == ["numeric: length"] and len(items) == 1


def test_every_count_and_length_must_fit() -> None:
    message = numerics(3, 1, [one(0x4182, 0, 2720, 72), one(0x4BB8, 0, 544, 97)])
    assert isinstance(replies.parse(message), replies.Poll)
    ends = message.index(b"\xff" * 8) + 8 + 6
    #   operation, call and action lengths; contexts, objects, attributes and value with their counts
    for at in (6, 12, 22, ends, ends + 2, ends + 6, ends + 8, ends + 12, ends + 14, ends + 18):
        for step in (-1, 1):
            damaged = bytearray(message)
            damaged[at : at + 2] = struct.pack(">H", (int.from_bytes(message[at : at + 2], "big") + step) % 65536)
            with pytest.raises(replies.Malformed):
                replies.parse(bytes(damaged))


def test_two_values_of_one_object_that_differ_are_none() -> None:
    twice = one(0x4182, 0, 2720, 72, (0x0950, struct.pack(">HHHI", 0x4182, 0, 2720, 73)))
    assert reasons(IntelliVue().feed(Chunk(0, numerics(3, 1, [twice]), CHANNEL))) == ["numeric: length"]


def test_an_mds_create_is_answered_even_if_its_attributes_cannot_be_read() -> None:
    bedside = Bedside()
    bedside.deaf = True
    bedside.run(2)
    create = bytearray(bedside.monitor._create(0.0))
    create[37] ^= 1  # how many attributes follow
    bedside.hear([bedside.monitor._associate(requests.association(True), 0.0)[0], bytes(create)])
    assert any(each[:6] == b"\xe1\0\0\2\0\2" for each in bedside.sent) and not reasons(bedside.items)


def test_a_measurement_is_no_new_one_after_another_association() -> None:
    bedside = associated()
    bedside.monitor.measure({"nibp_sys": 120, "nibp_dia": 80, "nibp_mean": 93}, bedside.at_s)
    assert values(bedside.run(2), "nibp_sys") == [120]
    bedside.hear([bedside.monitor.abort()])
    later = bedside.run(10)
    assert values(later, "heart_rate") and not values(later, "nibp_sys")


def test_dates_follow_the_clock_of_the_present_association() -> None:
    bedside = associated()
    bedside.hear([bedside.monitor.abort()])
    bedside.monitor.offset = 0x70000000  # as after a restart: relative time counts from another moment
    later = of(bedside.run(10), Observation)
    shift = [
        abs((datetime.fromisoformat(item.device_time or "") - START).total_seconds() - item.at_ns / 1e9)
        for item in later
    ]
    assert later and max(shift) < 2


@pytest.mark.parametrize(("word", "value"), [(0xFE000102, 2.58), (0xFFFFFFFB, -0.5), (0x02000007, 700.0)])
def test_floats(word: int, value: float) -> None:
    assert nomenclature.decimal(word) == value
    for special in (0x7FFFFF, 0x800000, 0x800001, 0x7FFFFE, 0x800002):
        assert nomenclature.decimal(word & 0xFF000000 | special) is None


# -- alarms -------------------------------------------------------------------------------------------------------


def test_alerts_begin_change_and_end_once() -> None:
    bedside = associated()
    bedside.monitor.alerts = [Alert("** SpO2 84 < 90", YELLOW, 2), Alert("ECG LEADS OFF", INOP, 22, 0x4182)]
    bedside.run(5)
    bedside.monitor.alerts[0] = Alert("*** SpO2 80 < 85", RED, 2)
    bedside.run(5)
    bedside.hear([bedside.monitor.abort()])
    bedside.monitor.alerts = bedside.monitor.alerts[1:]
    bedside.run(20)
    told = [(item.phase, item.priority, item.type, item.text) for item in of(bedside.items, DeviceAlarm)]
    assert told == [
        ("start", "medium", "SP", "** SpO2 84 < 90"),
        ("start", "medium", "ST", "ECG LEADS OFF"),
        ("update", "high", "SP", "*** SpO2 80 < 85"),
        ("end", "high", "SP", "*** SpO2 80 < 85"),
    ], "an association that ended and came back neither ends nor repeats an alarm"


def test_an_alert_of_a_test_is_none_and_a_latched_one_says_so() -> None:
    bedside = associated()
    bedside.monitor.alerts = [Alert("TEST", RED, 2, state=0x0400), Alert("LATCHED", YELLOW, 4, state=0x3000)]
    (item,) = of(bedside.run(3), DeviceAlarm)
    assert isinstance(item, DeviceAlarm)
    assert (item.text, item.state, item.inactivation) == ("LATCHED", "latched", "audio-off")


# -- waves --------------------------------------------------------------------------------------------------------


def test_waves_come_with_rate_and_scale_and_a_lost_block_stays_lost() -> None:
    bedside = associated(Monitor(started=START))
    bedside.run(4)
    items = of(bedside.run(4), Waveform)
    rates = {item.term: item.rate_hz for item in items}
    assert rates == {"ecg_ii": 500.0, "pleth": 125.0, "abp_wave": 125.0, "resp_wave": 62.5}
    for item in items:
        known = [sample for sample in item.physical() if sample is not None]
        assert len(known) == round(item.rate_hz * 0.256)
        low, high = {"ecg_ii": (-0.5, 1.5), "pleth": (1000, 3500), "abp_wave": (60, 200), "resp_wave": (-1.1, 1.1)}[
            item.term
        ]
        assert low < min(known) and max(known) < high
    times = [datetime.fromisoformat(item.device_time or "") for item in items if item.term == "ecg_ii"]
    assert {round((b - a).total_seconds(), 2) for a, b in itertools.pairwise(times)} <= {0.25, 0.26}
    bedside.monitor.advance(bedside.at_s + 0.5)
    bedside.at_s += 0.5
    again = of(bedside.run(2), Waveform)
    gap = datetime.fromisoformat(again[0].device_time or "") - times[-1]
    assert gap.total_seconds() > 0.5, "what was not received is not made up"


def wave(code: int, state: int, samples: bytes, context: Iterable[tuple[int, bytes]], ticks: int) -> bytes:
    pairs = [(0x096E, struct.pack(">HHH", code, state, len(samples)) + samples), *context]
    inner = b"".join(struct.pack(">HH", name, len(value)) + value for name, value in pairs)
    message = numerics(3, ticks, [struct.pack(">HHH", 0x80, len(pairs), len(inner)) + inner], number=2)
    at = message.index(b"\xff" * 8) + 8
    return message[:at] + struct.pack(">HH", 1, 9) + message[at + 4 :]


def test_marked_and_masked_samples() -> None:
    decoder = IntelliVue()
    context = Wave("ecg_ii", 0x0102, "II", 2, 4274, -8.192, 8.191, 14).context()
    samples = struct.pack(">4H", 8192, 0x8000 | 8192, 0x4000 | 9192, 0)
    (item,) = decoder.feed(Chunk(0, wave(0x0102, 0, samples, context, 1), CHANNEL))
    assert isinstance(item, Waveform)
    assert [None if each is None else round(each, 6) for each in item.physical()] == [0.0, None, 1.0, -8.192]
    (item,) = decoder.feed(Chunk(0, wave(0x0102, 0x2000, samples, (), 2), CHANNEL))
    assert isinstance(item, Waveform) and item.physical() == [None] * 4
    items = decoder.feed(Chunk(0, wave(0x0101, 0, samples, (), 3), CHANNEL))
    assert reasons(items) == ["waveform ecg_i: no sample period that can be"], "another lead of the same object"


@pytest.mark.parametrize("samples", [bytes(3), bytes(258)])
def test_samples_that_do_not_fit_are_no_block(samples: bytes) -> None:
    context = Wave("ecg_ii", 0x0102, "II", 2, 4274, -8.192, 8.191, 14).context()
    items = IntelliVue().feed(Chunk(0, wave(0x0102, 0, samples, context, 1), CHANNEL))
    assert reasons(items) == ["waveform ecg_ii: samples do not fit"]


def test_samples_of_sixteen_and_of_eight_bits() -> None:
    decoder = IntelliVue()
    context = dict(Wave("abp_wave", 0x4A14, "ABP", 8, 3872, -40.0, 520.0, 16).context())
    (item,) = decoder.feed(Chunk(0, wave(0x4A14, 0, struct.pack(">2H", 65535, 1), context.items(), 1), CHANNEL))
    assert isinstance(item, Waveform)
    assert item.physical()[0] is None, "the mask of invalid samples lies within the value here"
    del context[0x0A16]
    decoder = IntelliVue()
    (item,) = decoder.feed(Chunk(0, wave(0x4A14, 0, struct.pack(">2H", 65535, 1), context.items(), 1), CHANNEL))
    assert isinstance(item, Waveform)
    assert [round(each or 0, 3) for each in item.physical()] == [520.0, -39.991]
    context[0x096D] = struct.pack(">HBBH", 32, 8, 8, 0)
    context[0x096F] = context[0x096F][:8] + struct.pack(">HH", 0, 255)
    decoder = IntelliVue()
    (item,) = decoder.feed(Chunk(0, wave(0x4A14, 0, bytes((0, 255)), context.items(), 1), CHANNEL))
    assert isinstance(item, Waveform) and [round(each or 0, 6) for each in item.physical()] == [-40.0, 520.0]


def test_a_scale_that_changes_in_mid_stream_counts_from_its_block_on() -> None:
    decoder = IntelliVue()
    context = Wave("abp_wave", 0x4A14, "ABP", 8, 3872, 0.0, 100.0, 14).context()
    other = Wave("abp_wave", 0x4A14, "ABP", 8, 3872, 0.0, 200.0, 14).context()
    samples = struct.pack(">H", 16383)
    items = [
        decoder.feed(Chunk(0, wave(0x4A14, 0, samples, each, number), CHANNEL))[0]
        for number, each in enumerate((context, (), other, ()))
    ]
    assert [round(item.physical()[0] or 0, 6) for item in items if isinstance(item, Waveform)] == [100, 100, 200, 200]
    (item,) = decoder.feed(Chunk(0, wave(0x4A14, 0, samples, [(0x096F, bytes(12))], 9), CHANNEL))
    assert isinstance(item, Reject), "a scale that is none is not the one before"


# -- damage -------------------------------------------------------------------------------------------------------


def test_damaged_datagrams_at_any_time_give_items() -> None:
    numbers = random.Random(11)
    monitor = Monitor(started=START, patient_id="P-1", alerts=[Alert("** SpO2")])
    bedside = associated(monitor)
    bedside.monitor.measure({"heart_rate": 70, "spo2": 97, "nibp_sys": 120, "nibp_dia": 80, "nibp_mean": 93}, 4.0)
    messages = [m for _ in range(5) for m in monitor.advance(bedside.at_s + 1)] + [monitor.indication(0.0)]
    messages += monitor._associate(requests.association(True), 0.0)
    decoder = IntelliVue()
    at_ns = 0
    for _ in range(20_000):
        data = bytearray(numbers.choice(messages))
        for _ in range(numbers.randrange(4)):
            where = numbers.randrange(len(data) or 1)
            kind = numbers.randrange(4)
            if kind == 0:
                del data[where : where + numbers.randrange(9)]
            elif kind == 1 and data:
                data[where] = numbers.choice((0, 1, 255, data[where] ^ 1 << numbers.randrange(8)))
            elif kind == 2:
                data[where:where] = data[: numbers.randrange(9)]
        at_ns += numbers.choice((0, 10**6, 10**9))
        items = list(decoder.feed(Chunk(at_ns, bytes(data), numbers.choice((CHANNEL, CHANNEL, "")))))
        if not numbers.randrange(20):
            items += decoder.tick(at_ns)
        for item in items:
            if isinstance(item, Observation):
                assert (item.value is None) == (item.validity in ("invalid", "not_available"))
            elif isinstance(item, Waveform):
                assert item.samples and len(item.samples) % 2 == 0 and 20 <= item.rate_hz <= 1000
        if not numbers.randrange(400):
            decoder = IntelliVue()


def test_wrong_waves_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="none of auto, none"):
        IntelliVue(waves="ecg_ii,nothing")
