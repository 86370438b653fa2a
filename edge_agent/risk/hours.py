"""From a copied window to the rows that the model takes, and to bytes that a restart reads back."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from models_tflite.lean import import_numpy

import_numpy()  # before the next line would import it whole, with a third more memory

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from edge_agent.watch.windows import BINS, HOURS, SLOTS, SOURCES, Copy, Ring, median  # noqa: E402

Rows = NDArray[np.float64]
_RANKS = max(len(groups) for _, groups in SOURCES)


def rows(window: Copy) -> Rows:
    """The hours of a window by vital, shape (HOURS, 7), oldest first, NaN where nothing was measured."""
    out = np.full((HOURS, len(SOURCES)), np.nan)
    for rank in range(_RANKS):
        for ring in window.rings:
            if ring.rank == rank:
                mine = out[:, ring.vital]
                np.copyto(mine, _medians(_unrolled(ring, window.number)), where=np.isnan(mine))
    return out


def age_bins(window: Copy) -> int:
    """How many bins ago the newest value came, 0 for the bin that runs; SLOTS when there is none."""
    ages = [SLOTS]
    for ring in window.rings:
        there = np.flatnonzero(~np.isnan(_unrolled(ring, window.number)))
        if there.size:
            ages.append(SLOTS - 1 - int(there[-1]))
    return min(ages)


def _unrolled(ring: Ring, number: int) -> Rows:
    """The bins, oldest first, the one that runs last."""
    bins = np.roll(np.frombuffer(ring.bins), -(number % SLOTS) - 1)
    bins[-1] = median(ring.values)
    return bins


def _medians(bins: Rows) -> Rows:
    """The median of each hour, NaN of an empty one."""
    hours = np.sort(bins.reshape(HOURS, BINS), axis=1)  # NaN last
    count = BINS - np.isnan(hours).sum(axis=1)
    at = np.arange(HOURS)
    low, high = hours[at, np.maximum(count - 1, 0) // 2], hours[at, np.maximum(count, 1) // 2]
    return np.where(count > 0, (low + high) / 2, np.nan)


_PACK, _UNPACK = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[tuple[int, int, bytes]]).decode


def pack(window: Copy) -> bytes:
    """The bins of a window, oldest first, in few bytes."""
    found = [(ring.vital, ring.rank, _unrolled(ring, window.number).tobytes()) for ring in window.rings]
    return zlib.compress(_PACK(found), 1)


def unpack(packed: bytes, number: int) -> Sequence[Ring]:
    """The rings of a window that was packed, as if its newest bin were `number`.

    Raises: ValueError when these are no such bytes.
    """
    try:
        found = _UNPACK(zlib.decompress(packed))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"no window: {error}") from error
    rings = []
    for vital, rank, bins in found:
        if len(bins) != 8 * SLOTS or not 0 <= vital < len(SOURCES) or not 0 <= rank < len(SOURCES[vital][1]):
            raise ValueError("no window: another version's")
        rings.append(Ring(vital, rank, np.roll(np.frombuffer(bins), number % SLOTS + 1).tobytes(), ()))
    return rings
