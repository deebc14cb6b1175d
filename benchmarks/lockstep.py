"""Images per second, one by one against in lockstep, side by side, alternating.

python benchmarks/lockstep.py --images 32 --out results.json

Two agents: the embedded models, and the LLaVA of `hlmat_shapes` (6M parameters; its text decides where the clicks go,
if not well on photographs) with a tiny SAM of random weights.
Each once in this process, and once through a real server: one /predict request with all images as tasks, to a server
with SEGAGENT_BATCH_SIZE=1 and to one with 16.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from rich.console import Console
from rich.table import Table
from server import call, start_server
from transformers import SamConfig, SamModel

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.demo import demo_config, demo_photos
from label_studio_segagent.segmenters.cache import EmbeddingCache

LLAVA = Path(__file__).parent / "hlmat_shapes" / "weights"
PROMPT = "the red ring"


def tiny_sam(folder: Path) -> Path:
    """A SAM with random weights, small enough for its decoder to matter."""
    config = SamConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 256,
                       "output_channels": 64, "num_pos_feats": 32, "mlp_dim": 128, "global_attn_indexes": [1],
                       "window_size": 7},
        prompt_encoder_config={"hidden_size": 64, "image_size": 256, "image_embedding_size": 16},
        mask_decoder_config={"hidden_size": 64, "mlp_dim": 128, "iou_head_hidden_dim": 64},
    )  # fmt: skip
    model = SamModel(config)
    generator = torch.Generator().manual_seed(2)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)  # masks neither empty nor full
    model.save_pretrained(folder)
    return folder


def rate(run: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def alternating(modes: dict[str, Callable[[], Any]], count: int, repeats: int) -> dict[str, float]:
    """Images per second of each mode: the median of some runs, which take turns."""
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(repeats):
        for mode, run in modes.items():
            rates[mode].append(rate(run, count))
    return {mode: float(np.median(values)) for mode, values in rates.items()}


def in_process(policy: str, segmenter: str, images: Sequence[Any], repeats: int) -> dict[str, float]:
    """One by one and in lockstep, in this process."""
    agent = SegAgent(load_policy(policy), load_segmenter(segmenter), cache=EmbeddingCache(0))
    items = [(image, PROMPT) for image in images]
    agent.segment_batch(items[:2])
    modes: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [agent.segment(*item) for item in items],
        "lockstep": lambda: agent.segment_batch(items),
    }
    return alternating(modes, len(items), repeats)


@contextmanager
def serving(folder: Path, policy: str, segmenter: str, batch: int, threads: int) -> Iterator[int]:
    """The port of a server."""
    folder.mkdir()
    process, port = start_server(
        folder, SEGAGENT_POLICY=policy, SEGAGENT_SEGMENTER=segmenter, SEGAGENT_BATCH_SIZE=str(batch),
        SEGAGENT_EMBEDDING_CACHE_BYTES="0", SEGAGENT_PREDICT_SECONDS="600", SEGAGENT_WORKER="false",
        SEGAGENT_MAX_INSTANCES="1", OMP_NUM_THREADS=str(threads),
    )  # fmt: skip
    try:
        yield port
    finally:
        process.terminate()
        process.wait(60)


def served(
    folder: Path, policy: str, segmenter: str, images: Sequence[Any], repeats: int, threads: int
) -> dict[str, float]:
    """All images in one request, to a server without and to one with batches."""
    tasks = [{"id": number, "data": {"image": data_uri(image)}} for number, image in enumerate(images, 1)]
    body = json.dumps({"tasks": tasks, "label_config": demo_config([PROMPT]), "params": {"context": None}}).encode()

    def predict(port: int) -> None:
        status, answer, _ = call(port, "POST", "/predict", body)
        found = json.loads(answer)
        drawn = sum(bool(result["result"]) for result in found.get("results", []))
        if status != 200 or found["failures"] or drawn < len(tasks) / 2:
            raise SystemExit(f"/predict answered {status} with {drawn} drawings: {answer[:300]!r}")

    with (
        serving(folder / "single", policy, segmenter, 1, threads) as single,
        serving(folder / "batched", policy, segmenter, 16, threads) as batched,
    ):
        for port in (single, batched):  # what loads on the first use
            call(port, "POST", "/predict", json.dumps({**json.loads(body), "tasks": tasks[:2]}).encode())
        modes: dict[str, Callable[[], Any]] = {
            "one by one": lambda: predict(single),
            "lockstep": lambda: predict(batched),
        }
        return alternating(modes, len(tasks), repeats)


def data_uri(image: Any) -> str:
    """An image as JPEG, in the task itself."""
    file = io.BytesIO()
    PilImage.fromarray(image).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["SEGAGENT_PRESET"] = "segagent"
    rng = np.random.default_rng(0)
    photos = [photo.image for photo in demo_photos()]
    images = []
    for number in range(arguments.images):
        image = photos[number % len(photos)]
        y, x = (int(rng.integers(0, side // 4)) for side in image.shape[:2])
        images.append(np.ascontiguousarray(image[y:, x:]))
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = {
            "embedded": ("embedded", "embedded"),
            "small LLaVA + tiny SAM": (f"hf:{LLAVA}", f"hf:{tiny_sam(folder / 'sam')}"),
        }
        for number, (name, (policy, segmenter)) in enumerate(pairs.items()):
            (folder / str(number)).mkdir()
            for where, found in (
                ("one process", in_process(policy, segmenter, images, arguments.repeats)),
                ("/predict", served(folder / str(number), policy, segmenter, images, arguments.repeats,
                                    arguments.threads)),
            ):  # fmt: skip
                ratio = found["lockstep"] / found["one by one"]
                results.append({"agent": name, "where": where, **found, "ratio": ratio})
    table = Table(*results[0], title="images per second")
    for row in results:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
