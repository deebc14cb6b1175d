"""A small language model with eyes learns to annotate: from random weights to StaR+, on two CPU cores.

python -m benchmarks.hlmat_shapes --out runs/shapes                  # everything; an interrupted run goes on
python -m benchmarks.hlmat_shapes --out runs/shapes --checkpoint benchmarks/hlmat_shapes/weights   # measure only

Stages: the base model (from scratch: see, rate, point), supervised fine-tuning on F_sim's trajectories, StaR+ rounds,
and as a control fine-tuning on the same trajectories for as many steps as a round of StaR+ makes. Then the tables, on
scenes that no stage has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from label_studio_segagent import SegAgent, load_policy
from label_studio_segagent.hlmat.overlay import draw_clicks, overlay
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Policy
from label_studio_segagent.training.attempts import StarSettings, annotate
from label_studio_segagent.training.mllm_trainer import MllmSettings, MllmTrainer
from label_studio_segagent.training.star import image_reader, star
from label_studio_segagent.training.tuning_commands import rounds_table

from .annotator import GridAnnotator
from .base import BaseSettings, train_base
from .evaluation import CLICKS, RandomPolicy, TruePolicy, evaluate
from .model import make_processor
from .scenes import make_samples
from .wand import WandSegmenter

TRAIN, VAL, TEST = 1, 2, 3
"""Seeds of the scenes; the base model draws its own from other seeds."""


def main() -> None:
    arguments = _arguments()
    os.environ["SEGAGENT_PRESET"] = "segagent"
    torch.set_num_threads(arguments.threads)
    console, out, began = Console(width=140), arguments.out, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    samples, held_out = make_samples(arguments.scenes, TRAIN), make_samples(60, VAL)
    test, segmenter, annotator = make_samples(arguments.test, TEST), WandSegmenter(), GridAnnotator()
    report = out / "results.json"
    results: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {"agents": {}}

    def measured(name: str, policy: Policy, search: int = 0) -> None:
        if name not in results["agents"]:
            started = time.monotonic()
            results["agents"][name] = evaluate(policy, segmenter, test, search=search)
            results["agents"][name]["seconds"] = round(time.monotonic() - started, 1)
            results["test_scenes"] = len(test)
            report.write_text(json.dumps(results, indent=1))
        console.print(_agents_table(results["agents"], len(test)))

    measured("random clicks", RandomPolicy())
    measured("F_sim (knows the truth)", TruePolicy(test, annotator))
    if arguments.checkpoint:
        policy = load_policy(f"hf:{arguments.checkpoint}")
        measured(str(arguments.checkpoint), policy, search=3)
        draw(out / "rollouts.png", [policy], test[:6])
        return
    base = out / "base" / "model"
    if not base.is_dir():
        train_base(out / "base", BaseSettings(minutes=arguments.base_minutes))
    trainer = MllmTrainer(f"hf:{base}")
    fit = MllmSettings(seconds=arguments.fit_minutes * 60, epochs=arguments.epochs, rate=5e-4, full=True, at_once=16)
    settings = StarSettings(arguments.rounds, max(CLICKS), fit=fit)
    rounds = star(trainer, _load, segmenter, samples, out / "star", settings, annotator=annotator, held_out=held_out)
    console.print(rounds_table(rounds))
    results["rounds"] = json.loads((out / "star" / "star.json").read_text())
    measured("base model", _load(f"hf:{base}"))
    names = ["SFT", *(f"StaR+, round {n}" for n in range(1, len(rounds)))]
    for name, one in zip(names, rounds, strict=True):
        measured(name, _load(one.model), search=3)
    draw(out / "rollouts.png", [_load(rounds[0].model), _load(rounds[-1].model)], test[:6])
    if arguments.ship:
        ship(rounds[-1].model, arguments.ship)
    if arguments.control:
        longer = replace(fit, epochs=2 * fit.epochs)
        original = annotate(samples, segmenter, annotator, settings)
        done = trainer.fit(original, out / "longer", longer, images=image_reader(samples), resume=True)
        measured("SFT, twice as long", _load(done.model), search=3)
    report.write_text(json.dumps(results, indent=1))
    console.print(f"{(time.monotonic() - began) / 60:.0f} minutes; written to {out}")


def ship(model: str, folder: Path) -> None:
    """Write a model in half precision, small enough for the repository."""
    policy = load_policy(model)
    policy.model.half().save_pretrained(folder)  # type: ignore[attr-defined]
    make_processor().save_pretrained(folder)


def draw(path: Path, policies: list[Policy], samples: list[Sample]) -> None:
    """Pictures of rollouts: a row for each sample and policy, the mask and the next click at every step."""
    rows = []
    side, columns = 200, 8
    for sample in samples:
        for policy in policies:
            rollout = SegAgent(policy, WandSegmenter(), max(CLICKS)).segment(sample.image, sample.prompt)
            cells = []
            for step in rollout.trajectory.steps[:columns]:
                scale = side / sample.image.shape[0]
                big = cv2.resize(overlay(sample.image, step.mask), (side, side), interpolation=cv2.INTER_NEAREST)
                if step.action is not None and hasattr(step.action, "x"):
                    click = type(step.action)(step.action.x * scale, step.action.y * scale, step.action.positive)
                    big = draw_clicks(big, [click], len(cells) + 1)
                rating = "" if step.predicted_iou is None else f"IoU {step.predicted_iou:.2f}"
                cv2.putText(big, rating, (4, side - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
                cells.append(big)
            cells += [np.full((side, side, 3), 255, np.uint8)] * (columns - len(cells))
            row = np.concatenate(cells, 1)
            cv2.putText(row, sample.prompt, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
            rows.append(row)
    cv2.imwrite(str(path), np.concatenate(rows, 0)[..., ::-1])


def _load(name: str) -> Policy:
    return load_policy(name)


def _agents_table(agents: dict[str, Any], scenes: int) -> Table:
    table = Table(title=f"mIoU on {scenes} unseen scenes")
    table.add_column("policy")
    for column in [f"{n} blind" for n in CLICKS] + [f"{n} PRM" for n in CLICKS] + ["K=3", "rating error", "r"]:
        table.add_column(column, justify="right")
    for name, found in agents.items():
        cells = [found["blind"][str(n)] for n in CLICKS] + [found.get("prm", {}).get(str(n)) for n in CLICKS]
        cells += [found.get(key) for key in ("search", "rating_mae", "rating_pearson")]
        table.add_row(name, *("" if value is None else f"{value:.3f}" for value in cells))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, results.json and rollouts.png")
    parser.add_argument("--checkpoint", type=Path, help="measure this model and train nothing")
    parser.add_argument("--base-minutes", type=float, default=40.0, help="training of the base model")
    parser.add_argument("--fit-minutes", type=float, default=25.0, help="each fine-tuning, at most")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the trajectories in a fine-tuning")
    parser.add_argument("--scenes", type=int, default=1500, help="scenes to learn to annotate on")
    parser.add_argument("--test", type=int, default=150, help="unseen scenes to measure on")
    parser.add_argument("--rounds", type=int, default=2, help="of StaR+")
    parser.add_argument("--ship", type=Path, help="write the last round's model there, in half precision")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--no-control", dest="control", action="store_false", help="no longer SFT to compare with")
    return parser.parse_args()


if __name__ == "__main__":
    main()
