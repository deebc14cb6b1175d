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

import numpy as np
import numpy.typing as npt

from .hierarchy import Concept, Placed, place_names, steps_up
from .name_table import NameTable
from .sentences import sentences
from .words import SALIENT, SYNONYMS, closest_spelling, forms, normalise, phrases, singulars

__all__ = ["Meaning", "class_names", "meaning"]

How: TypeAlias = Literal["name", "synonym", "hierarchy", "nearest", "unknown"]

_PER_STEP_DOWN = 0.97
"""A kind of a kind is a little less it: weight for each meaning between."""
_FIRST_STEP_UP, _PER_STEP_UP = 0.8, 0.95
"""A stallion is a horse, but not every horse is one: weight of a concept above for the first step, and each further."""
_ABOVE_ITS_CLASS = 0.5
"""The same for what has a class of its own: the factor of the concepts above."""
_OF_ITS_KIND = 0.6
"""A puppy may look like any breed of dog: the factor of what else lies below the concept above."""
_LEAST_SENSE_UP = 0.5
"""Rarer meanings of a word count only with what they are or have below."""
_BY_SYNONYM = 0.9
_LEAST_SIMILARITY = 0.78
"""Of two texts in the embedding; below, it is nonsense (tumour and crab)."""
_MOST_SIMILAR = 5
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
    return _Dictionary(_table(), *_placed(), taught)


@lru_cache(maxsize=4096)
def _meaning(text: str, taught: tuple[str, ...]) -> Meaning:
    return _dictionary(taught).meaning(text)


@cache
def _placed() -> tuple[Placed, Placed]:
    """The classes, and the anchors."""
    table = _table()
    classes = Placed(table, [(index, int(node), 0) for index, node in enumerate(table.class_nodes)])
    return classes, place_names(table, table.anchors)


class _Dictionary:
    """Meanings for one set of taught names, normalised."""

    def __init__(self, table: NameTable, classes: Placed, anchors: Placed, taught: Sequence[str]) -> None:
        self._table = table
        self._taught = frozenset(taught)
        self._class_names = {normalise(name) for name in table.class_names}
        self._placed = (classes, place_names(table, taught))
        self._named = {*classes.at, *anchors.at, *self._placed[1].at}
        self._texts = [*table.class_names, *taught]
        self._vectors: npt.NDArray[np.float32] | None = None
        self._spellings = [*taught, *sorted(self._class_names), *(s for s, n in SYNONYMS.items() if n in self._taught)]

    def meaning(self, text: str) -> Meaning:
        for phrase in phrases(text):
            for form in forms(phrase):
                if (found := self._of_word(form)) is not None:
                    return found
        if any(self._table.knows(form) for form in singulars(text)):
            return self._by_text(text)
        for form in singulars(text):
            if (name := closest_spelling(form, self._spellings)) and (found := self._of_word(name)):
                return found
        return self._by_text(text)

    def _by_text(self, text: str) -> Meaning:
        """The names nearest to a text in the embedding of the extra `names`."""
        if not text or (model := sentences()) is None:
            return _UNKNOWN
        if self._vectors is None:
            self._vectors = model.embed(self._texts)
        similar = self._vectors @ model.embed([text])[0]
        concepts: list[Concept] = [*range(len(self._table.class_names)), *self._texts[len(self._table.class_names) :]]
        best = np.argsort(-similar, kind="stable")[:_MOST_SIMILAR]
        weights = {concepts[i]: min(1.0, float(similar[i])) for i in best if similar[i] >= _LEAST_SIMILARITY}
        return _sorted(weights, "nearest") if weights else _UNKNOWN

    def _at(self, node: int) -> list[Concept]:
        return [concept for placed in self._placed for concept in placed.at.get(node, ())]

    def _below(self, node: int) -> dict[Concept, int]:
        return {concept: n for placed in self._placed for concept, n in placed.below.get(node, {}).items()}

    def _of_word(self, word: str, synonyms: bool = True) -> Meaning | None:
        exact: dict[Concept, float] = {word: 1.0} if word in self._taught else {}
        if word == SALIENT or (SYNONYMS.get(word) == SALIENT and word not in self._class_names):
            salient = exact or ({SALIENT: 1.0} if SALIENT in self._taught else {})
            return _sorted(salient, "name") if salient else _UNKNOWN
        weights = _merge([exact, self._of_senses(word, bool(exact))])
        how: How = "name" if exact or word in self._class_names else "hierarchy"
        if how != "name" and any(self._at(node) for node, _ in self._senses(word)):
            how = "synonym"
        if not exact:
            weights |= {n: max(_BY_SYNONYM, weights.get(n, 0)) for n in self._synonyms(word) if n in self._taught}
        near = self._near(word, names_too=not any(isinstance(concept, str) for concept in weights))
        weights, how = (_merge([weights, near]), how) if weights else (near, "nearest")
        if synonyms and not any(isinstance(concept, int) for concept in weights):
            by_synonym = _merge(self._of_synonym(other) for other in self._synonyms(word))
            if weights:  # a cyclist is a person, but no pedestrian
                by_synonym = {c: w * _OF_ITS_KIND for c, w in by_synonym.items() if isinstance(c, int)}
            weights, how = _merge([by_synonym, weights]), how if weights else "synonym"
        return _sorted(weights, how) if max(weights.values(), default=0) >= _LEAST else None

    def _of_synonym(self, word: str) -> dict[Concept, float]:
        found = self._of_word(word, synonyms=False)
        weights = dict[Concept, float]((*found.classes, *found.taught) if found else ())
        return {concept: weight * _BY_SYNONYM for concept, weight in weights.items()}

    def _synonyms(self, word: str) -> list[str]:
        """Other words for it: its own, or names that were taught by one of their synonyms."""
        return [SYNONYMS[word]] if word in SYNONYMS else [n for n in sorted(self._taught) if SYNONYMS.get(n) == word]

    def _senses(self, word: str) -> list[tuple[int, float]]:
        """Also of "wild cat" as "wildcat"."""
        return self._table.senses(word) or self._table.senses(word.replace(" ", ""))

    def _of_senses(self, word: str, exact: bool) -> dict[Concept, float]:
        """What a word's meanings are, have below, and lie below."""
        senses = [(weight, node, self._below(node)) for node, weight in self._senses(word)]
        known = any(below for *_, below in senses)
        parts: list[dict[Concept, float]] = []
        for weight, node, below in senses:
            # Where the very name was taught, even its own kinds are a little less it.
            parts.append({c: weight * _PER_STEP_DOWN ** max(0, steps - (not exact)) for c, steps in below.items()})
            if exact or not (below if known else weight >= _LEAST_SENSE_UP):
                continue
            factor = weight * (_ABOVE_ITS_CLASS if any(isinstance(c, int) for c in self._at(node)) else 1)
            kinds = any(isinstance(c, int) for c in below)
            parts.append({c: factor * up for c, up in self._above(node).items() if isinstance(c, str) or not kinds})
        return _merge(parts)

    def _near(self, word: str, names_too: bool) -> dict[Concept, float]:
        """What is near to a word's likeliest meaning, if it is no class and has none below; names for want of any."""
        senses = self._senses(word)[:1]
        near = [entry for node, _ in senses for entry in self._table.nearest(node)]
        return {c: w for c, w in near if isinstance(c, int) or (names_too and c in self._taught)}

    def _above(self, node: int) -> dict[Concept, float]:
        """What the nearest names above a node mean."""
        found: dict[Concept, float] = {}
        distance = 0
        for above, steps in steps_up(self._table, node).items():
            if found and steps > distance:
                break
            if steps and above in self._named:
                distance, up = steps, _FIRST_STEP_UP * _PER_STEP_UP ** (steps - 1)
                itself, kinds = self._at(above), self._below(above)
                if any(isinstance(c, str) for c in itself):  # a woman is a person, but no cyclist
                    kinds = {c: n for c, n in kinds.items() if isinstance(c, int)}
                found |= dict.fromkeys(kinds, up * _OF_ITS_KIND) | dict.fromkeys(itself, up)
        return found


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
