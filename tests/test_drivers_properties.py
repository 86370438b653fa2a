"""What holds for every driver whatever bytes come: items and no exception, no difference by cutting, no wrong number.

PROPERTY_EXAMPLES sets the number of examples for each driver; the long run has 100,000. Besides plain noise the bytes
are captures that were damaged: pieces cut out, doubled, moved, bits turned, noise put in.
"""

from __future__ import annotations

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
CAP = 20_000  # bytes of one example


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A stretch of `whole` after some accidents."""
    start = draw(st.integers(0, max(len(whole) - 1, 0)))
    data = bytearray(whole[start : start + draw(st.integers(1, 600))])
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        accident = draw(st.sampled_from(("cut", "double", "noise", "bit", "byte", "move")))
        size = draw(st.integers(1, 40))
        if accident == "cut":
            del data[at : at + size]
        elif accident == "double":
            data[at:at] = data[at : at + size]
        elif accident == "noise":
            data[at:at] = draw(st.binary(max_size=40))
        elif accident == "move":
            piece = data[at : at + size]
            del data[at : at + size]
            data += piece
        elif at < len(data):
            data[at] = data[at] ^ 1 << draw(st.integers(0, 7)) if accident == "bit" else draw(st.integers(0, 255))
    return bytes(data[:CAP])


@st.composite
def streams(draw: st.DrawFn, name: str) -> bytes:
    whole = b"".join(chunk.data for chunk in CHUNKS.get(name, ())) or b"\x00"
    return draw(st.one_of(st.binary(max_size=400), damaged(whole), damaged(whole)))


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


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
                if item.validity == "valid":
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

    @given(st.data())
    def holds(data: st.DataObject) -> None:
        stream = data.draw(streams(name))
        whole = player.play(driver, [Chunk(0, stream)])
        hold(driver, whole, len(stream))
        pieces = [Chunk(0, piece) for piece in data.draw(cuts(stream))]
        assert player.shapes(player.play(driver, pieces)) == player.shapes(whole)
        single = player.byte_by_byte([Chunk(0, stream)])
        assert player.shapes(player.play(driver, single)) == player.shapes(whole)

    holds()


@pytest.mark.parametrize("name", STREAMS)
def test_any_bytes_at_any_time_give_items(name: str) -> None:
    driver = drivers.load(name)

    @given(st.data())
    def holds(data: st.DataObject) -> None:
        decoder = driver.decoder()
        at_ns, size = 0, 0
        for _ in range(data.draw(st.integers(1, 6))):
            piece = data.draw(streams(name))
            size += len(piece)
            hold(driver, list(decoder.feed(Chunk(at_ns, piece))), size)
            at_ns += data.draw(st.sampled_from((0, 10**6, 10**9, 4 * 10**9, 10**12)))
            if data.draw(st.booleans()):
                hold(driver, list(decoder.tick(at_ns)), size)

    holds()


@pytest.mark.parametrize("name", MESSAGES)
def test_any_messages_give_items(name: str) -> None:
    driver = drivers.load(name)
    known = CHUNKS[name]

    @given(st.data())
    def holds(data: st.DataObject) -> None:
        decoder = driver.decoder()
        for _ in range(data.draw(st.integers(1, 6))):
            sample = data.draw(st.sampled_from(known))
            payload = data.draw(st.one_of(st.binary(max_size=30), damaged(sample.data)))
            channel = data.draw(st.sampled_from((sample.channel, *driver.channels, "", "2a18")))
            items = list(decoder.feed(Chunk(0, payload, channel)))
            hold(driver, items, len(payload))
            alone = driver.decoder().feed(Chunk(0, payload, channel))
            assert stateless(items) == stateless(alone), "a message means the same whatever came before it"
        hold(driver, list(decoder.tick(10**12)), 0)

    holds()
