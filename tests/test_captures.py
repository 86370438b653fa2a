"""Plays tests/captures/*.cap: as they came, whole, one byte at a time, and with noise in front.

The `.expect` beside a capture is what `edge-agent decode --driver NAME CAPTURE` prints, read and judged by a person.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import capture_player as player
import pytest

import drivers
from edge_agent.records import Chunk

every_capture = pytest.mark.parametrize("path", player.paths(), ids=lambda path: path.stem)


def expected(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_suffix(".expect").read_text(encoding="utf-8").splitlines()]


def understood(shapes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [shape for shape in shapes if shape["item"] != "reject"]


@every_capture
def test_capture_gives_what_is_expected(path: Path) -> None:
    driver, capture = player.driver_of(path)
    assert player.shapes(player.play(driver, capture.received(), **player.options(capture))) == expected(path)


@every_capture
def test_capture_says_the_same_whole_and_byte_by_byte(path: Path) -> None:
    driver, capture = player.driver_of(path)
    if player.of_messages(driver, capture):
        assert all(chunk.channel for chunk in capture.received()), "a message names its channel"
        return
    for cut in (player.whole, player.byte_by_byte):
        items = player.play(driver, cut(capture.received()), **player.options(capture))
        assert player.shapes(items) == expected(path), cut.__name__


@every_capture
@pytest.mark.parametrize("seed", range(8))
def test_noise_in_front_changes_nothing_behind_it(path: Path, seed: int) -> None:
    driver, capture = player.driver_of(path)
    chunks = capture.received()
    numbers = random.Random(seed)
    if driver.message_oriented:  # a message of noise is a message: noise is what no characteristic can be
        noise = [Chunk(0, numbers.randbytes(20), "ffff"), Chunk(0, b"", chunks[0].channel)]
    else:
        noise = [Chunk(chunks[0].at_ns, numbers.randbytes(40 + seed) + b"\r\n", chunks[0].channel)]
    items = player.shapes(player.play(driver, noise + chunks, **player.options(capture)))
    assert understood(items) == understood(expected(path))


def test_every_driver_owns_a_capture_and_every_capture_an_expectation() -> None:
    owners = {player.driver_of(path)[0].name for path in player.paths()}
    assert set(drivers.BUILT_IN) <= owners
    for path in player.paths():
        assert path.name.split(".")[0] == player.driver_of(path)[0].name, f"{path.name}: named after another driver"
        assert expected(path), f"{path.name}: expects nothing"
