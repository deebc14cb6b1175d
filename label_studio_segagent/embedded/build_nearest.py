"""The nearest concepts of meanings that have none, by hierarchy and text; a step of `build_names`.

What "near" is worth is measured on ImageNet's classes: how alike the rows of a classifier are for two of them, as a
function of how alike their names are and how few meanings are below what they have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .hierarchy import Concept, Placed, place_names, steps_up
from .name_table import NameTable
from .sentences import Sentences

__all__ = ["fit_likeness", "nearest"]

_Floats = npt.NDArray[np.float32]
_SIMILAR = 0.6
"""Similarity of two names as texts from which on it says more."""
_LEAST_LIKENESS = 0.09
"""Cosine of two classes' rows from which one stands for the other. Each left out, 720 of ImageNet's 1,000 classes have
others that are predicted to be so near; for 7 % of these they are not (their sum below 0.08)."""
_LEAST_SIMILARITY = 0.45
"""Where ImageNet has hardly anything, meanings of one kind have too little in common: "window" and "honeycomb"."""
_MOST_TOGETHER = 10_000
"""Names that are alike as texts only are compounds, or taken for something else: "dog" and "dogsled"."""
_WEIGHT_PER_LIKENESS = 2.5
_MOST_WEIGHT = 0.8
_MOST_NEAR = 5
_BATCH = 1000

Likeness = Callable[[_Floats, _Floats], _Floats]
"""(similarity of the names, number of meanings below the nearest common one) -> cosine of the rows, any shape."""


def _features(similarity: _Floats, group: _Floats) -> _Floats:
    log = np.log(group)
    more = np.maximum(similarity - _SIMILAR, 0)
    return np.stack([np.ones_like(log), similarity, more, log, log**2, similarity * log, more * log], -1)


def fit_likeness(rows: _Floats, similarity: _Floats, group: _Floats) -> Likeness:
    """Predict how alike classes are.

    Args:
        rows: (1000, features) of a classifier.
        similarity: (1000, 1000) of the classes' names.
        group: (1000, 1000) number of meanings below the nearest common one.
    """
    rows = rows - rows.mean(0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Most pairs have nothing in common; they would decide the fit.
    pairs = ((similarity > 0.35) | (group < 500)) & ~np.eye(len(rows), dtype=bool)
    features = _features(similarity[pairs], group[pairs])
    coefficients, *_ = np.linalg.lstsq(features, (rows @ rows.T)[pairs], rcond=None)
    return lambda similar, together: np.asarray(_features(similar, together) @ coefficients, np.float32)


def nearest(
    table: NameTable, words: Sequence[Sequence[str]], rows: _Floats, text: Sentences
) -> dict[int, list[tuple[Concept, float]]]:
    """The concepts near to the nodes that are no class of ImageNet and have none below.

    Args:
        table: The hierarchy with classes and anchors.
        words: For each node its words.
        rows: (1000, features) of a classifier of ImageNet.
        text: Embeds words.
    """
    classes = Placed(table, [(i, int(node), 0) for i, node in enumerate(table.class_nodes)])
    anchors = place_names(table, table.anchors)
    names: list[Concept] = [*range(len(table.class_nodes)), *table.anchors]
    name_words = [words[node] for node in table.class_nodes] + [(anchor,) for anchor in table.anchors]
    column = {name: i for i, name in enumerate(names)}
    below = {
        node: [column[c] for placed in (classes, anchors) for c in placed.below.get(node, ())]
        for node in classes.below.keys() | anchors.below.keys()
    }
    above = [steps_up(table, node) for node in range(len(words))]
    counts = Counter(parent for parents in above for parent in parents)

    def groups(nodes: Sequence[int]) -> _Floats:
        """The number of meanings below the nearest common one for each of `nodes` and each of `names`."""
        out = np.full((len(nodes), len(names)), len(words), np.float32)
        for row, node in zip(out, nodes, strict=True):
            for parent in sorted(above[node], key=lambda a: -counts[a]):
                row[below.get(parent, [])] = counts[parent]
        return out

    vectors = {word: i for i, word in enumerate(dict.fromkeys(w for some in (*words, *name_words) for w in some))}
    embedded = text.embed(list(vectors))

    def similarities(some: Sequence[Sequence[str]]) -> _Floats:
        """The greatest of any two words for each of `some` and each of `names`."""
        ends = np.cumsum([0, *(len(of_name) for of_name in name_words)])[:-1]
        columns = embedded[[vectors[w] for of_name in name_words for w in of_name]].T
        return np.stack([
            np.maximum.reduceat((embedded[[vectors[w] for w in of_one]] @ columns).max(0), ends) for of_one in some
        ])  # fmt: skip

    known = slice(len(table.class_nodes))
    likeness = fit_likeness(
        rows, similarities(name_words[known])[:, known], groups(table.class_nodes.tolist())[:, known]
    )
    found: dict[int, list[tuple[Concept, float]]] = {}
    lonely = [node for node, some in enumerate(words) if node not in classes.below and some]
    for start in range(0, len(lonely), _BATCH):
        nodes = lonely[start : start + _BATCH]
        similar, group = similarities([words[node] for node in nodes]), groups(nodes)
        possible = (similar >= _LEAST_SIMILARITY) & (group <= _MOST_TOGETHER)
        alike = np.where(possible, likeness(similar, group), 0)
        for node, row in zip(nodes, alike, strict=True):
            best = [i for i in np.argsort(-row, kind="stable")[:_MOST_NEAR] if row[i] >= _LEAST_LIKENESS]
            if best:
                found[node] = [(names[i], min(_MOST_WEIGHT, _WEIGHT_PER_LIKENESS * float(row[i]))) for i in best]
    return found
