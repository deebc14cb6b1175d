"""Images per second, one by one against in lockstep, side by side in one process, alternating.

python benchmarks/lockstep.py --images 32 --out results.json

Two agents: the embedded models, and a tiny LLaVA (random weights of the real class, taught to click) with a tiny SAM.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import SamConfig, SamModel

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.demo import demo_photos
from label_studio_segagent.policies import Observation
from label_studio_segagent.segmenters.cache import EmbeddingCache

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import tiny_mllm  # noqa: E402  (the checkpoints of the tests)


def tiny_sam(folder: Path) -> Path:
    """A SAM with random weights, small enough for its decoder to matter."""
    config = SamConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 256,
                       "output_channels": 64, "mlp_dim": 128, "global_attn_indexes": [1], "window_size": 7},
        prompt_encoder_config={"hidden_size": 64, "image_size": 256, "image_embedding_size": 16},
        mask_decoder_config={"hidden_size": 64, "mlp_dim": 128, "iou_head_hidden_dim": 64},
    )  # fmt: skip
    model = SamModel(config)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    model.save_pretrained(folder)
    return folder


def tiny_llava(folder: Path) -> Path:
    """A LLaVA that answers with clicks."""
    tiny_mllm.make_llava(folder)
    policy: Any = load_policy(f"hf:{folder}")
    image = np.zeros((60, 80, 3), np.uint8)
    seen = [Observation(image, np.zeros((60, 80), bool), "object", box) for box in (None, (8.0, 6.0, 60.0, 50.0))]
    locate = policy._locate_text(image, "object")
    acts = [policy._act_question(s).text for s in seen]
    boxes = ['[{"bbox_2d": [100, 100, 800, 900], "label": "object"}]']
    clicks = [json.dumps({"current_iou": 40, "point_2d": [p, p], "label": "positive"}) for p in (300, 500)]
    model, processor = tiny_mllm.load(folder)
    for _ in range(3):
        tiny_mllm.teach(model, processor, [locate], boxes, 40)
        tiny_mllm.teach(model, processor, acts, clicks, 40)
    model.save_pretrained(folder)
    return folder


def rate(run: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    photos = [photo.image for photo in demo_photos()]
    images = []
    for number in range(arguments.images):
        image = photos[number % len(photos)]
        y, x = (int(rng.integers(0, side // 4)) for side in image.shape[:2])
        images.append(np.ascontiguousarray(image[y:, x:]))
    items = [(image, "object") for image in images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = {
            "embedded": ("embedded", "embedded"),
            "tiny LLaVA + tiny SAM": (f"hf:{tiny_llava(folder / 'llava')}", f"hf:{tiny_sam(folder / 'sam')}"),
        }
        results = []
        for name, (policy_name, segmenter_name) in pairs.items():
            policy, segmenter = load_policy(policy_name), load_segmenter(segmenter_name)
            agent = SegAgent(policy, segmenter, cache=EmbeddingCache(0))
            agent.segment_batch(items[:2])
            modes: dict[str, Callable[[], Any]] = {
                "one by one": lambda: [agent.segment(*item) for item in items],  # noqa: B023
                "lockstep": lambda: agent.segment_batch(items),  # noqa: B023
            }
            rates: dict[str, list[float]] = {mode: [] for mode in modes}
            for _ in range(arguments.repeats):
                for mode, run in modes.items():
                    rates[mode].append(rate(run, len(items)))
            single, batched = (float(np.median(rates[mode])) for mode in modes)
            steps = [len(r.trajectory.steps) for r in agent.segment_batch(items)]
            results.append({"agent": name, "one_by_one": single, "lockstep": batched, "ratio": batched / single,
                            "answers_per_image": float(np.mean(steps))})  # fmt: skip
    table = Table(*results[0], title="images per second")
    for row in results:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
