"""The policy `openai:` against a real server: `transformers serve` with a tiny LLaVA that was taught one answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
import tiny_mllm

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Observation
from label_studio_segagent.policies.hf import HfPolicy

ANSWER = "Current IOU: 12\nPositive point: (310, 420)"
PROMPTS = ("horse", "the large cat on the left", "two birds")


def observations() -> list[Observation]:
    """Square images: the server crops others, as LLaVA's own processor does."""
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    return [Observation(image, np.zeros((112, 112), bool), prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_mllm.make_llava(tmp_path_factory.mktemp("llava"))
    model, processor = tiny_mllm.load(folder)
    policy = HfPolicy(*tiny_mllm.load(folder), "", preset="segagent")
    questions = [policy._act_question(seen).text for seen in observations()]
    assert tiny_mllm.teach(model, processor, questions, [ANSWER], steps=80) < 0.1
    model.generation_config.update(do_sample=False, temperature=1.0, top_p=1.0, repetition_penalty=1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the API."""
    for package in ("fastapi", "uvicorn", "openai"):
        if find_spec(package) is None:
            pytest.skip(f"no {package}; the extra 'dev' has it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    (folder / "cache").mkdir()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(checkpoint)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_CACHE": str(folder / "cache")},
        )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            pytest.fail(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_it_answers_like_the_model_in_this_process(
    served: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, scene: Sample
) -> None:
    monkeypatch.setenv("SEGAGENT_PRESET", "segagent")
    here, there = load_policy(f"hf:{checkpoint}"), load_policy(f"openai:{served}#{checkpoint}")
    decisions = there.act(observations())
    assert [d.action for d in decisions] == [d.action for d in here.act(observations())] == [Click(47, 35, True)] * 3
    assert [d.text for d in decisions] == [ANSWER] * 3 and decisions[0].predicted_iou == 0.12
    for candidates in there.propose(observations(), 3):  # this server ignores `n` and `logprobs`
        assert candidates[0].action == Click(47, 35, True) and len(candidates) <= 3
    assert there.locate(observations()[0].image, "horse")[0].point == (47, 35)
    rollout = SegAgent(there, load_segmenter("grabcut"), max_clicks=2).segment(scene.image[:, :120], "horse")
    assert rollout.trajectory.steps[0].action == Click(50, 37, True) and rollout.stopped
