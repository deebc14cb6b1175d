"""Which concepts are at, below, and above a meaning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .name_table import NameTable
from .words import forms, phrases

__all__ = ["Concept", "Placed", "find_node", "place_names", "steps_up"]

Concept: TypeAlias = "int | str"
"""A class of ImageNet (its index) or a name that masks have taught."""


def steps_up(table: NameTable, node: int) -> dict[int, int]:
    """The node and all above it -> number of steps, the nearest first."""
    steps, level = {node: 0}, [node]
    while level:
        above = [parent for child in level for parent in table.above(child)]
        distance = steps[level[0]] + 1
        level = [parent for parent in dict.fromkeys(above) if parent not in steps]
        steps.update(dict.fromkeys(level, distance))
    return steps


def find_node(table: NameTable, name: str) -> tuple[int, int] | None:
    """The node that a normalised name means, and how many steps the name lies below it: "flat shoes" are shoes."""
    for phrase in phrases(name):
        for form in forms(phrase):
            if senses := table.senses(form):
                return senses[0][0], int(phrase != name)
    return None


class Placed:
    """Concepts in the hierarchy.

    Args:
        table: The hierarchy.
        places: (concept, its node, steps that it lies below it).

    Attributes:
        at: Node -> the concepts that are just this.
        below: Node -> concept at or below it -> number of steps.
    """

    def __init__(self, table: NameTable, places: Iterable[tuple[Concept, int, int]]) -> None:
        at: dict[int, list[Concept]] = defaultdict(list)
        below: dict[int, dict[Concept, int]] = defaultdict(dict)
        for concept, node, steps in places:
            if not steps:
                at[node].append(concept)
            for above, distance in steps_up(table, node).items():
                below[above][concept] = min(steps + distance, below[above].get(concept, steps + distance))
        self.at: Mapping[int, list[Concept]] = dict(at)
        self.below: Mapping[int, dict[Concept, int]] = dict(below)


def place_names(table: NameTable, names: Iterable[str]) -> Placed:
    """Names in the hierarchy, those it has no words for left out."""
    found = ((name, find_node(table, name)) for name in names)
    return Placed(table, [(name, *node) for name, node in found if node])
