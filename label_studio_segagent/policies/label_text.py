"""What a label means to the embedded policy: the known name it is written like, or a synonym of."""

from __future__ import annotations

from collections.abc import Sequence

from ..embedded.words import SALIENT, SYNONYMS, closest_spelling, normalise, phrases, singulars

__all__ = ["SALIENT", "SYNONYMS", "LabelBook", "normalise"]


class LabelBook:
    """Finds the name that a text means among those that are known.

    Args:
        names: The known names, normalised; `SALIENT` is the answer to everything else.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._known = frozenset(names)

    def find(self, text: str) -> str:
        """The known name that a label or a short phrase means, or `SALIENT`."""
        for phrase in phrases(text):
            for form in singulars(phrase):
                if (name := self._exact(form)) is not None:
                    return name
        spellings = {n: n for n in self.names} | {s: n for s, n in SYNONYMS.items() if n in self._known}
        return spellings.get(closest_spelling(normalise(text), spellings) or "", SALIENT)

    def _exact(self, text: str) -> str | None:
        if text in self._known:
            return text
        name = SYNONYMS.get(text)
        if name in self._known or name == SALIENT:
            return name
        # A label may be known by one of its synonyms only.
        return next((other for other in self.names if SYNONYMS.get(other) == text), None)
