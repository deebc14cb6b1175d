"""Everything that multimodal language models are told, and what is known about each family.

A preset is how a family is asked and how it answers. In the texts, `$prompt` is the label or referring expression and
`$coordinates` how the family writes a point. `$click`, `$finish`, `$found`, `$box` and `$clicks` are written by the
family's own grammar, so that an example is never in another convention than the answer.

Sources: SegAgent (arXiv 2503.08625) for the task; the Qwen-VL and GLM-V model cards for coordinates. Models that were
never trained to point are told the convention all the same, which is why each prompt spells it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError
from ..hlmat.actions import ActionGrammar, Frame, JsonGrammar, LineGrammar, PerMille, ResizedPixels, RowColumnPerMille
from .resizing import Resize

__all__ = ["BOX_HINT", "PLAIN_HINT", "PRESETS", "Preset", "REJECTED_HINT", "find_preset"]

LOCATE = """\
Find every instance of the following in the image: $prompt
Look at the whole image, also for small, cut off and partly hidden instances; leave out everything else.
Answer with a JSON list and no other text, the clearest instance first, with one entry for each: "bbox_2d" is the \
tight box around it, its top left and then its bottom right corner, each $coordinates. If there is none, answer [].
Example of an answer with one instance:
$found"""

ACT = """\
The green, half-transparent tint in the image is a segmentation mask that is being made click by click. In the \
end it has to cover this object, all of it and nothing else: $prompt
Compare the tint with the outline of the object. Then answer with one JSON object and no other text:
- "current_iou": how well the tint fits now, from 0 (no tint, or elsewhere) to 100 (every pixel right);
- "point_2d": where the worst mistake is, $coordinates. Aim at the middle of the wrong part, away from its edges;
- "label": "positive" if that part of the object has no tint yet, "negative" if it is tinted but not part of the object.
A further click costs next to nothing, but stopping too early leaves a bad mask. So click as long as you see a part \
that is wrong; with no tint at all, click the middle of the object. Only when nothing visible is wrong, give \
"finish": true in place of the point.

Example, a horse whose body is tinted and whose head is not; the point is on the head:
$click
Example, the tint follows the outline of the horse all around:
$finish"""

SEGAGENT_ACT = """\
Look at the image and at the description of the target. Refine the semi-transparent green mask one point at a time, so \
that it covers the target as precisely as it can. Description: <ref>$prompt</ref>"""

BOX_HINT = "There may be several such objects; the one meant is inside the box $box."
REJECTED_HINT = "These clicks were tried on this very mask and made it worse, so do not repeat them: $clicks."
PLAIN_HINT = "The last image is the same picture without the tint."


@dataclass(frozen=True)
class Preset:
    """How a model family is asked and answers.

    Attributes:
        grammar: The syntax of its answers.
        frame: Its coordinate convention, given how images are resized for it.
        coordinates: How it writes a point, in words; `$width` and `$height` are those of the image it sees.
        act: Asks for a rating and a click.
        locate: Asks for boxes; empty for families that start with a click instead (their first click is the target).
        factor: The family's processor makes sides multiples of this many pixels.
    """

    grammar: Callable[[Frame], ActionGrammar]
    frame: Callable[[Resize], Frame]
    coordinates: str
    act: str = ACT
    locate: str = LOCATE
    factor: int = 28


_THOUSANDTHS = "as [x, y] in thousandths of the image's width and height: [0, 0] is top left, [1000, 1000] bottom right"

PRESETS: dict[str, Preset] = {
    # Fine-tuned: knows its task and its format, and is asked in few words as it was in training.
    "segagent": Preset(
        LineGrammar,
        lambda resize: RowColumnPerMille(),
        "as (row, column) in thousandths of the image's height and width",
        act=SEGAGENT_ACT,
        locate="",
    ),
    # Qwen3-VL, and Qwen2-VL, GLM-V, InternVL and most others that were trained to point.
    "per-mille": Preset(JsonGrammar, lambda resize: PerMille(), _THOUSANDTHS, factor=32),
    # Qwen2.5-VL counts pixels of the image as its own processor resized it. We resize the same way first, so that the
    # processor has nothing left to do and the sizes are known, behind an endpoint too.
    "pixels": Preset(
        JsonGrammar,
        ResizedPixels,
        "as [x, y] in pixels of the image, which is $width wide and $height high: [0, 0] is top left",
    ),
    # Gemini and Gemma: vertical before horizontal.
    "row-column": Preset(
        JsonGrammar,
        lambda resize: RowColumnPerMille(),
        "as [y, x] in thousandths of the image's height and width: [0, 0] is top left, [1000, 1000] bottom right",
    ),
}

_FAMILIES = (
    ("segagent", "segagent"),
    (r"qwen25(vl|omni)", "pixels"),
    (r"gemma|gemini", "row-column"),
    ("", "per-mille"),
)
"""Where the pattern is found in a model's type or name, in lower case and without punctuation; the first one counts."""


def find_preset(model: str, name: str = "") -> str:
    """The name of the preset for a model.

    Args:
        model: A model type as in `config.json` ("qwen2_5_vl"), or a model's name ("Qwen/Qwen2.5-VL-7B-Instruct").
        name: The operator's choice, which comes first.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if name:
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r} (SEGAGENT_PRESET); known: {', '.join(PRESETS)}")
        return name
    plain = re.sub(r"[^a-z0-9]", "", model.lower())
    return next(preset for pattern, preset in _FAMILIES if re.search(pattern, plain))
