"""Which meaning of WordNet a label has, where the commonest meaning in texts is another or WordNet lacks the word."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SENSES"]

SENSES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    word: tuple(tuple(equal.split(" + ")) for equal in senses.split(", "))
    for word, senses in {
        "baby": "baby#1, baby#6",
        "barrel": "barrel#2, barrel#1",
        "beaver": "beaver#7, beaver#1",
        "binocular": "binoculars#1",
        "boots": "boot#1",
        "cab": "cab#3, cab#1",
        "cake": "cake#3",
        "cat": "domestic cat#1, cat#1",
        "cell phone": "cellular telephone#1",
        "chicken": "chicken#2, chicken#1",
        "cup": "cup#1, mug#4, cup#6",
        "fork": "fork#1, fork#4",
        "glass": "glass#2, glass#7, glass#1",
        "glove": "glove#2, glove#1, glove#3",
        "high heels": "shoe#1",
        "hoodie": "sweatshirt#1",
        "kite": "kite#3, kite#4",
        "light": "light#2",
        "lime": "lime#6, lime#4",
        "man": "man#1",
        "mole": "mole#6",
        "mouse": "mouse#4, mouse#1",
        "mug": "mug#4",
        "napkin": "napkin#1",
        "nautilus": "nautilus#3, nautilus#2, nautilus#1",
        "oak": "oak#2, oak#1",
        "pants": "trouser#1",
        "pepper": "pepper#4, pepper#3",
        "pipe": "pipe#2, pipe#1",
        "pirate": "pirate#2, pirate#3",
        "pitcher": "pitcher#2, pitcher#1",
        "plant": "plant#2, plant#1",
        "plate": "plate#4, plate#8",
        "potted plant": "pot plant#1",
        "pumps": "pump#3",
        "ring": "ring#8",
        "rose": "rose#1, flower#1",
        "seal": "seal#9, seal#1",
        "sign": "sign#4",
        "sports ball": "ball#1",
        "straw": "straw#4, straw#1",
        "toilet": "toilet#2, toilet#1",
        "stroller": "baby buggy#1",
        "television": "television#3 + television#2",
        "top": "top#10",
        "tulip": "tulip#1, flower#1",
        "turtle": "turtle#2",
        "tv": "tv#2 + television#2",
        "vehicle": "vehicle#1 + public transport#1",
        "water": "water#2, water#1",
        "wetsuit": "wet suit#1",
    }.items()
}
"""Word, normalised -> `lemma#number of the sense in WordNet`, the likeliest first; `+` joins what is equally likely."""
