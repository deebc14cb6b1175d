"""The table of names: English nouns, what they mean, and which meanings lie above which.

Made from WordNet 3.0 (`WORDNET-LICENSE.txt`) by `build_names`. A *node* is a meaning (WordNet's synset), an *anchor* a
label of the training sets: like the classes of ImageNet what people call things, and near to other meanings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TABLE", "NameTable", "save_table"]

TABLE = Path(__file__).parent / "names.npz"
_FULL = 255
"""A weight of 1 as it is stored."""


class NameTable:
    """Looks up words and meanings.

    Args:
        path: A file that `save_table` wrote.

    Attributes:
        class_names: ImageNet's 1,000 classes in their order.
        class_nodes: (1000,) int, their nodes.
        anchors: The labels of the training sets, normalised.
    """

    def __init__(self, path: Path = TABLE) -> None:
        with np.load(path) as arrays:
            self._words: bytes = arrays["words"].tobytes()
            self._starts = np.concatenate([[0], np.flatnonzero(arrays["words"] == ord("\n")) + 1]).astype(np.int32)
            self._sense_ends = np.cumsum(arrays["sense_counts"], dtype=np.int32)
            self._sense_nodes, self._sense_weights = arrays["sense_nodes"], arrays["sense_weights"]
            self._parent_ends = np.cumsum(arrays["parent_counts"], dtype=np.int32)
            self._parents = arrays["parents"]
            self._near_nodes = arrays["near_nodes"]
            self._near_ends = np.cumsum(arrays["near_counts"], dtype=np.int32)
            self._near_names, self._near_weights = arrays["near_names"], arrays["near_weights"]
            self.class_nodes: npt.NDArray[np.uint16] = arrays["class_nodes"]
            names = arrays["names"].tobytes().decode("utf-8").split("\n")
        self.class_names = tuple(names[: len(self.class_nodes)])
        self.anchors = tuple(names[len(self.class_nodes) :])

    def knows(self, word: str) -> bool:
        """Whether it is an English noun, also one for nothing that can be seen."""
        return self._find(word) is not None

    def senses(self, word: str) -> list[tuple[int, float]]:
        """The nodes that a normalised word means with weights in (0, 1], the likeliest first; empty if unknown."""
        if (place := self._find(word)) is None:
            return []
        span = _span(self._sense_ends, place)
        return [
            (int(n), float(w / _FULL)) for n, w in zip(self._sense_nodes[span], self._sense_weights[span], strict=True)
        ]

    def above(self, node: int) -> list[int]:
        """The nodes directly above one: "dog" is below "canine" and "domestic animal"."""
        return [int(parent) for parent in self._parents[_span(self._parent_ends, node)]]

    def nearest(self, node: int) -> list[tuple[int | str, float]]:
        """What is near to a node that is no class of ImageNet and has none below.

        Returns:
            (class, or anchor, weight in (0, 1)), the nearest first.
        """
        near = int(np.searchsorted(self._near_nodes, node))
        if near == len(self._near_nodes) or self._near_nodes[near] != node:
            return []
        span, classes = _span(self._near_ends, near), len(self.class_nodes)
        return [
            (int(name) if name < classes else self.anchors[name - classes], float(weight / _FULL))
            for name, weight in zip(self._near_names[span], self._near_weights[span], strict=True)
        ]

    def _word(self, place: int) -> bytes:
        end = self._starts[place + 1] - 1 if place + 1 < len(self._starts) else len(self._words)
        return self._words[self._starts[place] : end]

    def _find(self, word: str) -> int | None:
        key = word.encode("utf-8")
        place = bisect_left(range(len(self._starts)), key, key=self._word)
        return place if place < len(self._starts) and self._word(place) == key else None


def _span(ends: npt.NDArray[np.int32], place: int) -> slice:
    return slice(int(ends[place - 1]) if place else 0, int(ends[place]))


def save_table(
    path: Path,
    senses: Mapping[str, Sequence[tuple[int, float]]],
    parents: Sequence[Sequence[int]],
    class_nodes: Sequence[int],
    class_names: Sequence[str],
    anchors: Sequence[str],
    nearest: Mapping[int, Sequence[tuple[int | str, float]]],
) -> None:
    """Write the file that `NameTable` reads.

    Args:
        path: The file.
        senses: Word -> (node, weight in (0, 1]); a word without senses is a word all the same.
        parents: For each node the nodes directly above it.
        class_nodes: The nodes of ImageNet's classes.
        class_names: Their names.
        anchors: The labels of the training sets.
        nearest: Node -> (class, or anchor, weight).
    """
    words = sorted(senses, key=lambda word: word.encode("utf-8"))
    number = {name: len(class_nodes) + i for i, name in enumerate(anchors)}
    entries = [entry for word in words for entry in senses[word]]
    near = [entry for node in sorted(nearest) for entry in nearest[node]]
    arrays: dict[str, npt.NDArray[Any]] = {
        "words": _text(words),
        "sense_counts": np.array([len(senses[word]) for word in words], np.uint8),
        "sense_nodes": np.array([node for node, _ in entries], np.uint16),
        "sense_weights": _weights(entries),
        "parent_counts": np.array([len(above) for above in parents], np.uint8),
        "parents": np.array([node for above in parents for node in above], np.uint16),
        "class_nodes": np.array(class_nodes, np.uint16),
        "names": _text([*class_names, *anchors]),
        "near_nodes": np.array(sorted(nearest), np.uint16),
        "near_counts": np.array([len(nearest[node]) for node in sorted(nearest)], np.uint8),
        "near_names": np.array([n if isinstance(n, int) else number[n] for n, _ in near], np.uint16),
        "near_weights": _weights(near),
    }
    if len(parents) > np.iinfo(np.uint16).max:
        raise ValueError(f"{len(parents)} nodes; the table holds {np.iinfo(np.uint16).max}")
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _text(lines: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\n".join(lines).encode("utf-8"), np.uint8)


def _weights(entries: Sequence[tuple[object, float]]) -> npt.NDArray[np.uint8]:
    return np.array([max(1, round(_FULL * weight)) for _, weight in entries], np.uint8)
