"""Reads the nouns of a WordNet 3.0 database (Debian's `wordnet-base`); only `build_names` needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

__all__ = ["Synset", "WordNet"]


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning of nouns.

    Attributes:
        words: Its lemmas as WordNet writes them, blanks for underscores, the commonest first.
        category: Number of its lexicographer file (5 animals, 6 artefacts, 13 food, 18 persons …).
        above: Offsets of its hypernyms.
        instance: Whether it is one single thing ("Eiffel Tower"), not a kind of things.
    """

    words: tuple[str, ...]
    category: int
    above: tuple[str, ...]
    instance: bool


@dataclass(frozen=True, slots=True)
class WordNet:
    """The nouns of WordNet.

    Attributes:
        synsets: Offset in `data.noun` (eight digits) -> meaning.
        senses: Lemma in lower case -> offsets of its meanings, the commonest first.
        tagged: Lemma in lower case -> how many of its meanings, from the first on, occur in texts that people tagged.
    """

    synsets: dict[str, Synset] = field(default_factory=dict)
    senses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tagged: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> WordNet:
        """Read `data.noun` and `index.noun`.

        Raises:
            ConfigError: If the folder has no such files.
        """
        net = cls()
        try:
            data, index = ((folder / f"{name}.noun").read_text("ascii") for name in ("data", "index"))
        except OSError as error:
            raise ConfigError(f"No WordNet database in {folder}: {error}. Install Debian's wordnet-base.") from error
        for line in data.splitlines():
            if line.startswith("  "):  # the licence
                continue
            part = line.split(" ")
            words_end = 4 + 2 * int(part[3], 16)
            pointers = [part[i : i + 4] for i in range(words_end + 1, words_end + 1 + 4 * int(part[words_end]), 4)]
            net.synsets[part[0]] = Synset(
                tuple(word.replace("_", " ") for word in part[4:words_end:2]),
                int(part[1]),
                tuple(target for kind, target, _, _ in pointers if kind == "@"),
                any(kind == "@i" for kind, *_ in pointers),
            )
        for line in index.splitlines():
            if line.startswith("  "):
                continue
            part = line.split()
            count, tagged = (int(n) for n in part[4 + int(part[3]) : 6 + int(part[3])])
            lemma = part[0].replace("_", " ")
            net.senses[lemma], net.tagged[lemma] = tuple(part[-count:]), tagged
        return net
