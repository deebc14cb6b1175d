"""Ten clicks on one image: encoding at every request, as many examples of SAM backends do, against the embedding cache.

python benchmarks/cache.py --out cache.json

SAM ViT-B in its real size with random weights (made here, no download): what is measured does not depend on them.
Three times per click: everything anew (for the first clicks only, it takes so long), ours with the cache, and the
model's prompt encoder and mask decoder alone, which nothing can undercut. The last two alternate, and the best of
several repeats counts, so that what else the machine does matters little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import SamConfig, SamModel

from label_studio_segagent import Click
from label_studio_segagent.segmenters import EmbeddingCache, Segmentation
from label_studio_segagent.segmenters.hf_sam import HfSamSegmenter

CLICKS = 10


def make_segmenter() -> HfSamSegmenter:
    torch.manual_seed(0)
    model = SamModel(SamConfig())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return HfSamSegmenter(folder)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def decoder_alone(segmenter: HfSamSegmenter, state: Any, clicks: list[Click], prior: Any) -> Callable[[], Any]:
    """The model's own decoder on prompts that are ready; its answer is brought to the CPU as ours is."""
    frame, maps = state.features.frame, state.features.maps
    points = torch.from_numpy(frame.points(clicks))[None, None].to(segmenter.device)
    labels = torch.tensor([[[int(c.positive) for c in clicks]]], device=segmenter.device)
    masks = None if prior is None else torch.from_numpy(prior)[None, None].to(segmenter.device)

    def decode() -> Any:
        with torch.inference_mode():
            out = segmenter.model(
                image_embeddings=maps[0], input_points=points, input_labels=labels, input_masks=masks,
                multimask_output=len(clicks) == 1,
            )  # fmt: skip
        return out.pred_masks.cpu()

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(960, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--anew", type=int, default=2, help="clicks for which everything is done anew, at least 2")
    parser.add_argument("--repeats", type=int, default=9, help="of every cached click, of which the best counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not 2 <= arguments.anew <= CLICKS:
        parser.error(f"--anew must be 2 to {CLICKS}: the first click does not count")
    torch.set_num_threads(arguments.threads)
    segmenter, cache = make_segmenter(), EmbeddingCache()
    height, width = arguments.size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    clicks = [
        Click(float(x), float(y), i % 3 < 2) for i, (x, y) in enumerate(rng.random((CLICKS, 2)) * (width, height))
    ]

    def anew(shown: list[Click], prior: Any) -> Segmentation:
        return segmenter.predict(segmenter.set_image(image), shown, prior=prior)

    def cached(shown: list[Click], prior: Any) -> Segmentation:
        return segmenter.predict(cache.encode(segmenter, image), shown, prior=prior)

    rows: list[dict[str, Any]] = []
    before: Segmentation | None = None
    for count in range(1, CLICKS + 1):
        shown, prior = clicks[:count], None if before is None else before.logits
        row: dict[str, Any] = {"click": count}
        if count <= arguments.anew:
            row["anew"], _ = timed(partial(anew, shown, prior))
        if count == 1:
            row["cached_first"], _ = timed(partial(cached, shown, prior))
        decode = decoder_alone(segmenter, cache.encode(segmenter, image), shown, prior)
        ours, alone = [], []
        for _ in range(arguments.repeats):
            seconds, before = timed(partial(cached, shown, prior))
            ours.append(seconds)
            alone.append(timed(decode)[0])
        row |= {"cached": min(ours), "decoder": min(alone)}
        rows.append(row)

    later = rows[1:]
    figures: dict[str, Any] = {
        "image": [height, width], "device": segmenter.device.type, "threads": arguments.threads, "clicks": rows,
        "anew_2_to_10": float(np.mean([row["anew"] for row in later if "anew" in row])),
        "cached_2_to_10": float(np.mean([row["cached"] for row in later])),
        "decoder_2_to_10": float(np.mean([row["decoder"] for row in later])),
    }  # fmt: skip
    figures["speedup"] = figures["anew_2_to_10"] / figures["cached_2_to_10"]
    figures["over_decoder"] = figures["cached_2_to_10"] / figures["decoder_2_to_10"] - 1

    table = Table(title=f"SAM ViT-B, {width}x{height}, {segmenter.device.type}: seconds a click")
    for name in ("click", "anew", "cached", "decoder alone"):
        table.add_column(name, justify="right")
    for row in rows:
        anew = f"{row['anew']:.2f}" if "anew" in row else ""
        table.add_row(str(row["click"]), anew, f"{row['cached']:.3f}", f"{row['decoder']:.3f}")
    console = Console()
    console.print(table)
    console.print(
        f"Clicks 2 to {CLICKS}: {figures['anew_2_to_10']:.2f} s anew, {figures['cached_2_to_10']:.3f} s with the cache "
        f"({figures['speedup']:.0f} times as fast), {100 * figures['over_decoder']:.1f} % over the decoder alone. "
        f"The first click, with the encoding: {rows[0]['cached_first']:.1f} s."
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
