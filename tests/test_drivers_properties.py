"""What holds for every driver whatever bytes come: items and no exception, no difference by cutting, no wrong number.

PROPERTY_EXAMPLES sets the number of examples for each driver; the long run has 100,000. Besides plain noise the bytes
are captures that were damaged: pieces cut out, doubled, moved, bits turned, noise put in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import capture_player as player
import pytest
from hypothesis import given
from hypothesis import strategies as st

import drivers
from drivers.contract import Driver
from edge_agent import terms
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject, Waveform, shape

pytestmark = pytest.mark.property

CHUNKS: dict[str, list[Chunk]] = {}
for _path in player.paths():
    _driver, _capture = player.driver_of(_path)
    CHUNKS.setdefault(_driver.name, []).extend(_capture.received())
STREAMS = [name for name in drivers.BUILT_IN if not drivers.load(name).message_oriented]
MESSAGES = [name for name in drivers.BUILT_IN if drivers.load(name).message_oriented]
# A monitor's own number is handed on as it states it, and the watch room judges whether it can be.
HANDED_ON = {"hl7"}


class Tape:
    """Decisions read off bytes that hypothesis draws: one draw for many decisions keeps 100,000 examples in minutes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, end: int) -> int:
        value = int.from_bytes(self._data[self._at : self._at + 2], "big")
        self._at += 2
        return value % max(end, 1)

    def left(self) -> bool:
        return self._at < len(self._data)


def damage(whole: bytes, tape: bytes, noise: bytes) -> bytes:
    """A stretch of `whole` after as many accidents as the tape tells; with an empty tape, the noise alone."""
    if not tape:
        return noise
    told = Tape(tape)
    start = told.below(len(whole))
    data = bytearray(whole[start : start + 1 + told.below(600)])
    while told.left():
        accident, at, size = told.below(6), told.below(len(data) + 1), 1 + told.below(40)
        piece = data[at : at + size]
        if accident == 0:
            del data[at : at + size]
        elif accident == 1:
            data[at:at] = piece
        elif accident == 2:
            data[at:at] = noise[:size]
        elif accident == 3:
            data = data[:at] + data[at + size :] + piece
        elif at < len(data):
            data[at] = data[at] ^ 1 << size % 8 if accident == 4 else size
    return bytes(data)


def streams(whole: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(damage, st.just(whole or b"\x00"), st.binary(max_size=34), st.binary(max_size=200))


def cut(data: bytes, tape: bytes) -> list[Chunk]:
    told = Tape(tape)
    places = [0]
    while told.left():
        places.append(told.below(len(data) + 1))
    places = [*sorted(places), len(data)]
    return [Chunk(0, data[a:b]) for a, b in itertools.pairwise(places)]


def bytes_of(name: str) -> bytes:
    return b"".join(chunk.data for chunk in CHUNKS.get(name, ()))


def hold(driver: Driver, items: list[Item], size: int) -> None:
    """What no item may break."""
    for item in items:
        shape(item)
        if isinstance(item, Observation):
            assert item.term in driver.emits
            assert (item.value is None) == (item.validity in ("invalid", "not_available"))
            if item.value is not None:
                term = terms.BY_NAME[item.term]
                assert math.isfinite(item.value)
                if item.validity == "valid" and driver.name not in HANDED_ON:
                    assert term.plausible_min is None or item.value >= term.plausible_min
                    assert term.plausible_max is None or item.value <= term.plausible_max
        elif isinstance(item, Waveform):
            assert item.term in driver.emits
            assert len(item.samples) % 2 == 0
        elif isinstance(item, Reject):
            assert 0 <= item.size <= size
            assert item.reason


def stateless(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if not isinstance(item, DeviceStatus)]


@pytest.mark.parametrize("name", STREAMS)
def test_any_bytes_give_the_same_items_however_they_are_cut(name: str) -> None:
    driver = drivers.load(name)

    @given(streams(bytes_of(name)), st.binary(max_size=16))
    def holds(stream: bytes, places: bytes) -> None:
        whole = player.play(driver, [Chunk(0, stream)])
        hold(driver, whole, len(stream))
        for pieces in (cut(stream, places), player.byte_by_byte([Chunk(0, stream)])):
            assert player.shapes(player.play(driver, pieces)) == player.shapes(whole)

    holds()


@pytest.mark.parametrize("name", STREAMS)
def test_any_bytes_at_any_time_give_items(name: str) -> None:
    driver = drivers.load(name)
    pauses = (0, 10**6, 10**9, 4 * 10**9, 10**12)

    @given(streams(bytes_of(name)), st.binary(max_size=16), st.binary(min_size=1, max_size=12))
    def holds(stream: bytes, places: bytes, times: bytes) -> None:
        decoder = driver.decoder()
        at_ns = 0
        for number, chunk in enumerate(cut(stream, places)):
            hold(driver, list(decoder.feed(Chunk(at_ns, chunk.data))), len(stream))
            told = times[number % len(times)]
            at_ns += pauses[told % len(pauses)]
            if told & 0x80:
                hold(driver, list(decoder.tick(at_ns)), len(stream))

    holds()


@pytest.mark.parametrize("name", MESSAGES)
def test_any_messages_give_items(name: str) -> None:
    driver = drivers.load(name)
    samples, channels = st.sampled_from(CHUNKS[name]), st.sampled_from((*driver.channels, "", "2a18"))
    message = st.tuples(samples, channels, st.booleans(), st.binary(max_size=18), st.binary(max_size=30))

    @given(st.lists(message, min_size=1, max_size=3))
    def holds(sent: list[tuple[Chunk, str, bool, bytes, bytes]]) -> None:
        decoder = driver.decoder()
        for sample, other, own, tape, noise in sent:
            for payload in (damage(sample.data, tape, noise), sample.data):
                chunk = Chunk(0, payload, sample.channel if own else other)
                items = list(decoder.feed(chunk))
                hold(driver, items, len(payload))
                alone = driver.decoder().feed(chunk)
                assert stateless(items) == stateless(alone), "a message means the same whatever came before it"
        hold(driver, list(decoder.tick(10**12)), 0)

    holds()
