"""English words in labels: how they are written, plurals, what a phrase is about, synonyms, and typing errors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

__all__ = ["SALIENT", "SHORTEST_MISSPELT", "SYNONYMS", "closest_spelling", "forms", "normalise", "phrases", "singulars"]

SALIENT = "object"
"""The name that stands for "whatever stands out"; labels that nobody knows mean it too."""

_GROUPS: Mapping[str, str] = {
    "object": "thing, item, foreground, salient object, main object, subject, target, anything, instance, mask",
    "person": "man, woman, boy, girl, child, kid, baby, human, people, men, women, children, player, rider, worker, "
    "guy, lady, adult, skier, surfer, skater, skateboarder, cyclist, passenger, driver, athlete, body",
    "pedestrian": "walker, passer-by, passerby",
    "bicycle": "bike, cycle, push bike, mountain bike",
    "car": "automobile, sedan, taxi, cab, suv, hatchback, coupe, auto, vehicle",
    "motorcycle": "motorbike, moped, scooter",
    "airplane": "plane, aeroplane, aircraft, jet, airliner",
    "bus": "coach, minibus, school bus, double decker",
    "train": "locomotive, tram, railway, subway train",
    "truck": "lorry, pickup, van, fire engine, trailer",
    "boat": "ship, canoe, kayak, sailboat, yacht, ferry, vessel, rowboat",
    "traffic light": "stoplight, traffic signal, signal light",
    "fire hydrant": "hydrant",
    "stop sign": "road sign, traffic sign",
    "parking meter": "meter",
    "bench": "park bench",
    "bird": "duck, goose, gull, seagull, pigeon, parrot, owl, eagle, hawk, chicken, hen, rooster, swan, sparrow, crow",
    "cat": "kitten, kitty, tomcat, feline",
    "dog": "puppy, hound, canine, terrier, retriever, poodle, bulldog",
    "horse": "pony, foal, mare, stallion",
    "sheep": "lamb, ram, ewe",
    "cow": "cattle, bull, calf, ox, buffalo",
    "elephant": "mammoth",
    "bear": "polar bear, brown bear, grizzly, panda",
    "backpack": "rucksack, knapsack, schoolbag",
    "umbrella": "parasol",
    "handbag": "purse, bag, tote, shoulder bag",
    "tie": "necktie, bow tie",
    "suitcase": "luggage, baggage, trunk",
    "frisbee": "flying disc",
    "skis": "ski",
    "snowboard": "snow board",
    "sports ball": "ball, football, soccer ball, basketball, tennis ball, baseball, volleyball",
    "baseball bat": "bat",
    "baseball glove": "mitt, glove, baseball mitt",
    "skateboard": "longboard",
    "surfboard": "surf board, paddleboard",
    "tennis racket": "racket, racquet",
    "bottle": "flask, water bottle, beer bottle, wine bottle",
    "wine glass": "goblet, glass, champagne glass",
    "cup": "mug, coffee cup, teacup, tea cup, coffee mug, beaker, tumbler",
    "bowl": "dish, basin",
    "banana": "plantain",
    "sandwich": "burger, hamburger, toast, bagel, panini",
    "orange": "tangerine, mandarin, clementine",
    "broccoli": "cauliflower",
    "hot dog": "hotdog, sausage, frankfurter",
    "donut": "doughnut",
    "cake": "cupcake, pie, tart, pastry, birthday cake",
    "chair": "armchair, stool, seat, office chair",
    "couch": "sofa, settee, loveseat",
    "potted plant": "plant, houseplant, flower pot, pot plant",
    "bed": "mattress, bunk",
    "dining table": "table, desk, coffee table, kitchen table",
    "toilet": "lavatory, wc, toilet bowl",
    "tv": "television, monitor, screen, tv set, display, computer monitor",
    "laptop": "notebook computer, macbook, computer, laptop computer",
    "mouse": "computer mouse",
    "remote": "remote control, controller",
    "keyboard": "computer keyboard",
    "cell phone": "phone, mobile, mobile phone, smartphone, cellphone, telephone, iphone",
    "microwave": "microwave oven",
    "oven": "stove, cooker, range",
    "sink": "washbasin, wash basin",
    "refrigerator": "fridge, freezer",
    "book": "notebook, novel, magazine",
    "clock": "watch, wall clock, alarm clock",
    "vase": "urn, jar",
    "scissors": "shears",
    "teddy bear": "teddy, stuffed animal, plush toy, stuffed bear, soft toy",
    "hair drier": "hair dryer, hairdryer, blow dryer",
    "toothbrush": "tooth brush",
}

SYNONYMS: Mapping[str, str] = {
    synonym.strip(): name for name, synonyms in _GROUPS.items() for synonym in synonyms.split(",")
}
"""Other words for the labels seen in training -> those labels."""

_JOINTS = frozenset(
    "of on in at with without by from near behind beside under over above below between next holding wearing riding "
    "carrying that which who".split()
)
"""Words after which a phrase only says which one is meant."""
_PORTIONS = frozenset(
    "pair piece slice bunch group set kind type sort lot number couple herd flock pack swarm crowd row stack pile heap "
    "loaf bit part photo photograph picture image view close closeup".split()
)
"""Words before "of" that do not say what it is."""
_LEAST_SIMILAR = 0.72
"""Share of common n-grams (Dice) from which two words are taken for the same."""
SHORTEST_MISSPELT = 5
"""Letters from which on a word is looked up by its spelling."""
_LONGEST_NAME = 3


def normalise(text: str) -> str:
    """Lower case, ASCII letters where possible, words separated by single blanks."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", plain))


_IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox"}


def singulars(word: str) -> list[str]:
    """The word and what it may be the plural of, likeliest first."""
    forms = [word, *(word[: -len(many)] + one for many, one in _IRREGULAR.items() if word.endswith(many))]
    if len(word) > 3 and word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if len(word) > 4 and word.endswith("ves"):
        forms += [word[:-3] + "f", word[:-3] + "fe"]
    if len(word) > 3 and word.endswith("es"):
        forms.append(word[:-2])
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms


def forms(phrase: str) -> list[str]:
    """A phrase as it may be found in a list of words: "wine glasses", "wine glass", "wineglass"."""
    single = singulars(phrase)
    return single + [form.replace(" ", "") for form in single if " " in form]


def phrases(text: str) -> Iterator[str]:
    """The parts of a label that may name what it is about, likeliest first, normalised.

    >>> list(phrases("Red cup of coffee"))[:4]
    ['red cup of coffee', 'red cup', 'cup', 'cup of coffee']
    """
    words = normalise(text).split()
    if not words:
        return
    yield " ".join(words)
    # "cup of coffee", "man on a horse": it is what comes before the preposition, unless that says nothing
    # ("pair of skis").
    cut = next((i for i, word in enumerate(words) if i and word in _JOINTS), len(words))
    heads = [words] if words[cut - 1] in _PORTIONS and words[cut : cut + 1] == ["of"] else [words[:cut], words]
    for part in heads:
        # The last words of an English noun phrase say what it is: "red sports car", "coffee cup".
        for length in range(min(_LONGEST_NAME, len(part)), 0, -1):
            yield " ".join(part[-length:])
        # "man running": what comes first. A "car door" is no car.
        for length in range(min(_LONGEST_NAME, len(part) - 1), 0, -1):
            if part[length].endswith(("ing", "ed")):
                yield " ".join(part[:length])


@cache
def _grams(text: str, size: int = 2) -> frozenset[str]:
    """The character n-grams of a text, its ends marked."""
    padded = f"^{text}$"
    return frozenset(padded[i : i + size] for i in range(max(1, len(padded) - size + 1)))


def closest_spelling(text: str, names: Iterable[str]) -> str | None:
    """The name that shares most n-grams with a misspelt text, the first of equals; None without a likely one."""
    if len(text) < SHORTEST_MISSPELT:
        return None
    grams, best, found = _grams(text), _LEAST_SIMILAR, None
    for name in names:
        other = _grams(name)
        similarity = 2 * len(grams & other) / (len(grams) + len(other))
        if similarity > best:
            best, found = similarity, name
    return found
