"""Gradient-boosted trees as plain arrays: stored small, evaluated by numpy, no xgboost needed.

Theory. Each tree is filled up to a complete binary tree of the same depth: node i has the children 2i + 1 (value below
the threshold) and 2i + 2, and a leaf that lies higher is repeated down to the last level. So a row needs one look-up
per level and no test for the end, and rows walk down together. Comparisons are made in single precision, as xgboost
makes them, so that every row ends in the same leaf; leaves are added in double precision.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 14  # rows at a time: their indices and values stay within the processor's cache


@dataclass(frozen=True, slots=True)
class Trees:
    """T trees of one depth D over F inputs; the output is the logit `base` plus a leaf of each."""

    feature: NDArray[np.uint8]  # (T, 2**D - 1)
    threshold: NDArray[np.float32]  # (T, 2**D - 1); to the left below it
    leaf: NDArray[np.float32]  # (T, 2**D)
    base: float

    def logit(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum of leaves and base of every row, shape (N,); inputs of shape (N, F) without NaN."""
        rows = np.ascontiguousarray(inputs, dtype=np.float32)
        if np.isnan(rows).any():
            raise ValueError("trees are grown without missing values and take none")
        out = np.empty(len(rows))
        for begin in range(0, len(rows), _CHUNK):
            out[begin : begin + _CHUNK] = self._walk(rows[begin : begin + _CHUNK])
        return out + self.base

    def _walk(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        inner = self.feature.shape[1]
        depth = inner.bit_length()
        flat, start = rows.ravel(), np.arange(len(rows)) * rows.shape[1]
        total = np.zeros(len(rows))
        for feature, threshold, leaf in zip(self.feature, self.threshold, self.leaf, strict=True):
            node = np.zeros(len(rows), dtype=np.intp)
            for _ in range(depth):
                right = flat[start + feature[node]] >= threshold[node]
                node += node
                node += 1
                node += right
            total += leaf[node - inner]
        return total

    def save(self, path: Path) -> None:
        """Write the arrays to an .npz file."""
        np.savez_compressed(path, feature=self.feature, threshold=self.threshold, leaf=self.leaf, base=self.base)


def load(path: Path) -> Trees:
    """The trees of an .npz file. Raises: ValueError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            trees = Trees(held["feature"], held["threshold"], held["leaf"], float(held["base"]))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: is no file of trees ({error})") from error
    inner = trees.feature.shape[1]
    if trees.threshold.shape != trees.feature.shape or trees.leaf.shape != (len(trees.feature), inner + 1):
        raise ValueError(f"{path}: the arrays of the trees do not fit each other")
    return trees


def from_xgboost(dump: list[str], base: float) -> Trees:
    """The trees of `Booster.get_dump(dump_format="json")` with inputs named f0, f1, ..., and the logit of the base."""
    parsed = [json.loads(tree) for tree in dump]
    depth = max(1, *map(_depth, parsed))
    inner = (1 << depth) - 1
    feature = np.zeros((len(parsed), inner), dtype=np.uint8)
    threshold = np.zeros((len(parsed), inner), dtype=np.float32)
    leaf = np.zeros((len(parsed), inner + 1), dtype=np.float32)
    for index, tree in enumerate(parsed):
        _fill(tree, 0, inner, feature[index], threshold[index], leaf[index])
    return Trees(feature, threshold, leaf, base)


def _depth(node: dict[str, Any]) -> int:
    return 0 if "leaf" in node else 1 + max(map(_depth, node["children"]))


def _fill(
    node: dict[str, Any],
    at: int,
    inner: int,
    feature: NDArray[np.uint8],
    threshold: NDArray[np.float32],
    leaf: NDArray[np.float32],
) -> None:
    if at >= inner:
        leaf[at - inner] = node["leaf"]
        return
    if "leaf" in node:  # both ways lead to it
        children = {False: node, True: node}
    else:
        feature[at], threshold[at] = int(node["split"].removeprefix("f")), node["split_condition"]
        named = {child["nodeid"]: child for child in node["children"]}
        children = {False: named[node["yes"]], True: named[node["no"]]}
    _fill(children[False], 2 * at + 1, inner, feature, threshold, leaf)
    _fill(children[True], 2 * at + 2, inner, feature, threshold, leaf)
