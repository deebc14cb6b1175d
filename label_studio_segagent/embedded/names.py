"""What a label means to the embedded models: weights over the classes of ImageNet and the names that masks have taught.

>>> meaning("beagle", taught=[]).classes
((162, 1.0),)
>>> [name for name, _ in meaning("a red sports car", taught=["person", "car"]).taught]
['car']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeAlias

from .hierarchy import Concept, Placed, steps_up
from .name_table import NameTable
from .words import SALIENT, SYNONYMS, closest_spelling, normalise, phrases, singulars

__all__ = ["Meaning", "class_names", "meaning"]

How: TypeAlias = Literal["name", "synonym", "hierarchy", "nearest", "unknown"]

_PER_STEP_DOWN = 0.97
"""A kind of a kind is a little less it: weight for each meaning between."""
_FIRST_STEP_UP, _PER_STEP_UP = 0.8, 0.95
"""A stallion is a horse, but not every horse is one: weight of a concept above for the first step, and each further."""
_ABOVE_ITS_CLASS = 0.5
"""The same for what has a class of its own: the factor of the concepts above."""
_LEAST_SENSE_UP = 0.5
"""Rarer meanings of a word count only with what they are or have below."""
_BY_SYNONYM = 0.9
_LEAST = 0.15
"""Weights below are left out."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name means to the embedded models.

    Attributes:
        classes: (index of an ImageNet class 0 … 999, weight in (0, 1]), the heaviest first.
        taught: (name that masks have taught, normalised, weight in (0, 1]), the heaviest first.
        how: By what it was found. "unknown" has no concepts: whatever stands out.
    """

    classes: tuple[tuple[int, float], ...]
    taught: tuple[tuple[str, float], ...]
    how: How


_UNKNOWN = Meaning((), (), "unknown")


def meaning(text: str, taught: Sequence[str]) -> Meaning:
    """What a label or a short phrase means; never fails.

    Args:
        text: The label as a person wrote it.
        taught: The names that the weights at hand have learned from masks; their order does not matter.
    """
    return _meaning(normalise(text), tuple(sorted({normalise(name) for name in taught} - {""})))


def class_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order of their indices."""
    return _table().class_names


@cache
def _table() -> NameTable:
    return NameTable()


@lru_cache(maxsize=8)
def _dictionary(taught: tuple[str, ...]) -> _Dictionary:
    return _Dictionary(_table(), _placed_classes(), taught)


@lru_cache(maxsize=4096)
def _meaning(text: str, taught: tuple[str, ...]) -> Meaning:
    return _dictionary(taught).meaning(text)


@cache
def _placed_classes() -> Placed:
    return Placed(_table(), [(index, int(node), 0) for index, node in enumerate(_table().class_nodes)])


class _Dictionary:
    """Meanings for one set of taught names, normalised."""

    def __init__(self, table: NameTable, classes: Placed, taught: Sequence[str]) -> None:
        self._table = table
        self._taught = frozenset(taught)
        self._classes = {normalise(name): i for i, name in enumerate(table.class_names)}
        nodes = {name: self._node(name) for name in taught}
        self._placed = (classes, Placed(table, ((name, *node) for name, node in nodes.items() if node)))
        self._spellings = [*taught, *self._classes, *(s for s, n in SYNONYMS.items() if n in self._taught)]

    def meaning(self, text: str) -> Meaning:
        for phrase in phrases(text):
            for form in _forms(phrase):
                if (found := self._of_word(form)) is not None:
                    return found
        for form in singulars(text):
            if (name := closest_spelling(form, self._spellings)) and (found := self._of_word(name)):
                return found
        return _UNKNOWN

    def _node(self, name: str) -> tuple[int, int] | None:
        """Where a name belongs: a node and the steps below it."""
        for phrase in phrases(name):
            for form in _forms(phrase):
                if senses := self._table.senses(form):
                    return senses[0][0], int(phrase != name)
        return None

    def _at(self, node: int) -> list[Concept]:
        return [concept for placed in self._placed for concept in placed.at.get(node, ())]

    def _below(self, node: int) -> dict[Concept, int]:
        return {concept: n for placed in self._placed for concept, n in placed.below.get(node, {}).items()}

    def _of_word(self, word: str) -> Meaning | None:
        exact: dict[Concept, float] = {word: 1.0} if word in self._taught else {}
        if word == SALIENT or (SYNONYMS.get(word) == SALIENT and word not in self._classes):
            salient = exact or ({SALIENT: 1.0} if SALIENT in self._taught else {})
            return _sorted(salient, "name") if salient else _UNKNOWN
        if weights := _merge([exact, self._of_senses(word, bool(exact))]):
            also = [] if exact else [name for name in self._synonyms(word) if name in self._taught]
            by_synonym: dict[Concept, float] = dict.fromkeys(also, _BY_SYNONYM)
            return _sorted(_merge([weights, by_synonym]), self._how(word, exact))
        for other in self._synonyms(word):
            if found := self._of_word(other):
                weights = dict[Concept, float]((*found.classes, *found.taught))
                return _sorted({concept: _BY_SYNONYM * weight for concept, weight in weights.items()}, "synonym")
        near = {c: w for c, w in self._table.nearest(word) if isinstance(c, int) or c in self._taught}
        return _sorted(near, "nearest") if near else None

    def _synonyms(self, word: str) -> list[str]:
        """Other words for it: its own, or names that were taught by one of their synonyms."""
        return [SYNONYMS[word]] if word in SYNONYMS else [n for n in sorted(self._taught) if SYNONYMS.get(n) == word]

    def _how(self, word: str, exact: Mapping[Concept, float]) -> How:
        if exact or word in self._classes:
            return "name"
        return "synonym" if any(self._at(node) for node, _ in self._table.senses(word)) else "hierarchy"

    def _of_senses(self, word: str, exact: bool) -> dict[Concept, float]:
        senses = [(weight, node, self._below(node)) for node, weight in self._table.senses(word)]
        known = any(below for *_, below in senses)
        weights: list[dict[Concept, float]] = []
        for weight, node, below in senses:
            weights.append({c: weight * _PER_STEP_DOWN ** max(0, steps - 1) for c, steps in below.items()})
            if not exact and (below if known else weight >= _LEAST_SENSE_UP):
                factor = weight * (_ABOVE_ITS_CLASS if self._at(node) else 1)
                weights.append({c: factor * up for c, up in self._above(node).items()})
        return _merge(weights)

    def _above(self, node: int) -> dict[Concept, float]:
        """The nearest concepts above a node."""
        found = [(steps, above) for above, steps in steps_up(self._table, node).items() if steps and self._at(above)]
        return {
            concept: _FIRST_STEP_UP * _PER_STEP_UP ** (steps - 1)
            for steps, above in found
            if steps == found[0][0]
            for concept in self._at(above)
        }


def _merge(parts: Iterable[Mapping[Concept, float]]) -> dict[Concept, float]:
    """The greatest weight of each concept."""
    merged: dict[Concept, float] = {}
    for part in parts:
        for concept, weight in part.items():
            merged[concept] = max(weight, merged.get(concept, 0))
    return merged


def _sorted(weights: Mapping[Concept, float], how: How) -> Meaning:
    ranked = sorted(((c, round(w, 3)) for c, w in weights.items() if w >= _LEAST), key=lambda e: (-e[1], str(e[0])))
    return Meaning(
        classes=tuple((concept, weight) for concept, weight in ranked if isinstance(concept, int)),
        taught=tuple((concept, weight) for concept, weight in ranked if isinstance(concept, str)),
        how=how,
    )


def _forms(phrase: str) -> list[str]:
    """A phrase as it may be looked up: "wine glasses", "wine glass", "wineglass"."""
    forms = singulars(phrase)
    return forms + [form.replace(" ", "") for form in forms if " " in form]
