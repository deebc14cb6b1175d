"""Does the agent find what it is asked for? By name, by example, and not where it is not; macro over labels.

python benchmarks/eyes.py --data /data --out eyes.json
python benchmarks/eyes.py --policy embedded:left-out.safetensors --unseen horse,cow,… --data /data --out unseen.json

For every image and label of the `val` sets the largest object of the label is asked for (`SegAgent.segment`). `shown`
asks for it under a word that nobody knows, with examples from `train`; `absent` asks for labels that are not there, of
which only sets that are annotated completely know any. Intervals are 95 %, from 1,000 resamples of the images.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.policies.embedded import EmbeddedPolicy
from label_studio_segagent.training.policy_data import Scene, read_scenes

NAMED = ("coco", "voc", "msrc", "caltech")
LARGE = 0.15
"""Share of its image from which a single object counts as large."""
WORD = "zorblax"
ABSENT_PER_IMAGE = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    Attributes:
        image: Where.
        label: About what.
        iou: Of the answer with the object; 0 without one.
        predicted: The agent's rating of it, or None where it found nothing.
        best: IoU of the answer with the best fitting object of the label.
    """

    image: str
    label: str
    iou: float
    predicted: float | None
    best: float


def ask(agent: SegAgent, scene: Scene, label: str, prompt: str) -> Answer:
    """Segment the largest object of `label`, called `prompt`."""
    masks = [i.mask() for i in (*scene.instances, *scene.small) if i.label == label]
    rollout = agent.segment(scene.image(), prompt)
    mask = rollout.mask
    if not mask.any():
        return Answer(scene.path.name, label, 0.0, None, 0.0)
    return Answer(
        scene.path.name, label, iou(mask, masks[0]) if masks else 0.0, rollout.predicted_iou,
        max((iou(mask, other) for other in masks), default=0.0),
    )  # fmt: skip


def questions(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, str]]:
    """Each image with each of its labels."""
    for scene in scenes:
        for label in sorted({i.label for i in scene.instances}):
            yield scene, label


def summary(answers: Sequence[Answer], seed: int = 0) -> dict[str, Any]:
    """Macro and plain means, the worst label, and intervals."""
    images = sorted({a.image for a in answers})
    by_image = defaultdict(list)
    for answer in answers:
        by_image[answer.image].append(answer)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(1000):
        chosen = [a for i in rng.integers(len(images), size=len(images)) for a in by_image[images[int(i)]]]
        draws.append(macro(chosen))
    labels = by_label(answers)
    worst = min(labels, key=lambda name: float(np.mean(labels[name])))
    return {
        "questions": len(answers), "labels": len(labels), "macro": macro(answers),
        "interval": [float(v) for v in np.quantile(draws, (0.025, 0.975))],
        "mean": float(np.mean([a.iou for a in answers])), "found": float(np.mean([a.iou > 0.5 for a in answers])),
        "answered": float(np.mean([a.predicted is not None for a in answers])),
        "worst": [worst, float(np.mean(labels[worst]))],
    }  # fmt: skip


def by_label(answers: Sequence[Answer]) -> Mapping[str, list[float]]:
    out = defaultdict(list)
    for answer in answers:
        out[answer.label].append(answer.iou)
    return out


def macro(answers: Sequence[Answer]) -> float:
    return float(np.mean([np.mean(values) for values in by_label(answers).values()]))


def measure_examples(
    agent: SegAgent, root: Path, val: Sequence[Scene], labels: Sequence[str] | None, shots: int, seed: int = 0
) -> list[Answer]:
    """The largest object under an unknown word, after so many annotated images of it."""
    rng = np.random.default_rng(seed)
    train = read_scenes([root], "train")
    answers = []
    policy = agent.policy
    assert isinstance(policy, EmbeddedPolicy)
    for label in sorted({label for _, label in questions(val) if labels is None or label in labels}):
        with_label = [s for s in train if any(i.label == label for i in s.instances)]
        if not with_label:
            continue
        chosen = [with_label[int(i)] for i in rng.permutation(len(with_label))[:shots]]
        pairs = [(s.image(), np.any([i.mask() for i in s.instances if i.label == label], 0)) for s in chosen]
        taught = SegAgent(policy.with_examples({WORD: pairs}), agent.segmenter)
        answers += [ask(taught, scene, label, WORD) for scene, name in questions(val) if name == label]
    return answers


def measure_absent(agent: SegAgent, scenes: Sequence[Scene], seed: int = 0) -> dict[str, Any]:
    """How often labels that are not there are answered."""
    rng = np.random.default_rng(seed)
    answered = []
    for scene in track(scenes, "absent"):
        there = {i.label for i in (*scene.instances, *scene.small)}
        absent = sorted(scene.known - there)
        for index in rng.permutation(len(absent))[:ABSENT_PER_IMAGE]:
            answered.append(bool(agent.policy.locate(scene.image(), absent[int(index)])))
    return {"questions": len(answered), "answered": float(np.mean(answered)) if answered else None}


def measure_ratings(answers: Sequence[Answer]) -> dict[str, float]:
    """Predicted against true IoU over all answers, those about wrong objects included."""
    pairs = np.array([(a.predicted, a.best) for a in answers if a.predicted is not None])
    return {
        "answers": len(pairs), "mae": float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()),
        "pearson": float(np.corrcoef(pairs.T)[0, 1]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--sets", default=",".join(NAMED))
    parser.add_argument("--policy", default="embedded")
    parser.add_argument("--segmenter", default="embedded")
    parser.add_argument("--unseen", default="", help="ask for these labels only, comma-separated")
    parser.add_argument("--shots", default="1,5,20", help="numbers of examples; empty for none")
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    segmenter = load_segmenter(arguments.segmenter)
    agent = SegAgent(load_policy(arguments.policy, segmenter), segmenter)
    only = [label for label in arguments.unseen.split(",") if label] or None
    results: dict[str, Any] = {}
    every: list[Answer] = []
    large: list[tuple[Answer, Answer]] = []
    for name in arguments.sets.split(","):
        root = arguments.data / name
        scenes = read_scenes([root], arguments.split)
        asked = [(s, label) for s, label in questions(scenes) if only is None or label in only]
        if not asked:
            continue
        answers = [ask(agent, scene, label, label) for scene, label in track(asked, f"{name}, by name")]
        every += answers
        for (scene, label), answer in zip(asked, answers, strict=True):
            if [i.label for i in scene.instances] == [label] and scene.instances[0].share >= LARGE:
                large.append((answer, ask(agent, scene, label, "object")))
        results[name] = {"by name": summary(answers)}
        for shots in (int(k) for k in arguments.shots.split(",") if k):
            shown = measure_examples(agent, root, scenes, only, shots)
            if shown:
                results[name][f"{shots} shown"] = summary(shown)
        if only is None and any(s.known for s in scenes):
            results[name]["absent"] = measure_absent(agent, scenes)
    results["ratings"] = measure_ratings(every)
    if large:
        named, plain = (float(np.mean([pair[i].iou for pair in large])) for i in (0, 1))
        results["one large object"] = {"images": len(large), "by name": named, "as object": plain}
    table = Table("set", "asked", "questions", "macro", "95 %", "mean", "found", "worst label")
    for name, measured in results.items():
        for how, figures in measured.items() if name in arguments.sets.split(",") else ():
            if "macro" in figures:
                low, high = figures["interval"]
                table.add_row(
                    name, how, str(figures["questions"]), f"{figures['macro']:.3f}", f"{low:.2f}-{high:.2f}",
                    f"{figures['mean']:.3f}", f"{figures['found']:.2f}", "{} {:.2f}".format(*figures["worst"]),
                )  # fmt: skip
    Console().print(table)
    Console().print({k: v for k, v in results.items() if k not in arguments.sets.split(",")})
    Console().print({k: v.get("absent") for k, v in results.items() if isinstance(v.get("absent"), dict)})
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
