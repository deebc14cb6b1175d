"""Real classes of transformers and peft, with tiny weights; what the model says was taught in seconds."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_mllm
import torch
from absent import error_without
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES
from transformers import AutoModelForImageTextToText

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Observation, hf_load
from label_studio_segagent.policies.hf import HfPolicy
from label_studio_segagent.policies.prompts import PRESETS

FIRST, SECOND = "Current IOU: 12\nPositive point: (310, 420)", "Current IOU: 12\nPositive point: (310, 99)"
ADAPTED = "Current IOU: 96\nFinish"


@pytest.fixture(autouse=True)
def _environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGAGENT_PRESET", "segagent")
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)


def use_hub(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))


def observations() -> list[Observation]:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    other = np.ascontiguousarray(image[:50, :150])
    return [
        Observation(image, np.zeros((120, 160), bool), "horse"),
        Observation(other, other[..., 0] > 100, "the large cat on the left", (3.0, 4.0, 50.0, 40.0)),
        Observation(image, image[..., 1] > 128, "two birds", rejected=(Click(3, 4),)),
    ]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the policy asks about `observations`."""
    folder = tiny_mllm.make_llava(tmp_path_factory.mktemp("raw"))
    model, processor = tiny_mllm.load(folder)
    policy = HfPolicy(model, processor, "", preset="segagent")
    return [policy._act_question(seen).text for seen in observations()]


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory, questions: list[str]) -> Path:
    """A checkpoint that answers FIRST, or with half the probability SECOND."""
    folder = tiny_mllm.make_llava(tmp_path_factory.mktemp("llava"))
    model, processor = tiny_mllm.load(folder)
    assert tiny_mllm.teach(model, processor, questions, [FIRST, FIRST, SECOND], steps=80) < 0.3
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, llava: Path, questions: list[str]) -> Path:
    """A LoRA adapter with which it answers ADAPTED."""
    folder = tmp_path_factory.mktemp("adapter")
    model, processor = tiny_mllm.load(llava)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=r".*language_model.*_proj|lm_head")
    model = get_peft_model(model, config)
    assert tiny_mllm.teach(model, processor, questions, [ADAPTED], steps=50) < 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def policy(llava: Path) -> HfPolicy:
    loaded = load_policy(f"hf:{llava}")
    assert isinstance(loaded, HfPolicy)
    return loaded


def test_a_checkpoint_answers(policy: HfPolicy) -> None:
    decision = policy.act(observations()[:1])[0]
    assert decision.text == FIRST, "and not a token more, though it may write on"
    assert decision.action == Click(67, 37, True) and decision.predicted_iou == 0.12
    [target] = policy.locate(observations()[0].image, "horse")
    assert target.point == (67, 37)


def test_a_batch_answers_like_each_alone(policy: HfPolicy) -> None:
    """Prompts of different lengths are padded on the left; more of them than fit at once."""
    seen = observations() * 6
    together, alone = policy.act(seen), [policy.act([one])[0] for one in observations()] * 6
    assert [d.text for d in together] == [d.text for d in alone]
    assert [d.logprob for d in together] == pytest.approx([d.logprob for d in alone], abs=1e-3)


def test_the_log_probability_is_that_of_a_plain_forward_pass(policy: HfPolicy, llava: Path) -> None:
    """Without padding, cache, sampling or our own code between model and number."""
    seen = observations()[1]
    candidates = policy.propose([seen], 8)[0]
    assert {d.text for d in candidates} >= {FIRST, SECOND}
    model, processor = tiny_mllm.load(llava)
    processor.image_processor.do_center_crop = False
    processor.image_processor.size = {"height": tiny_mllm.SIDE, "width": tiny_mllm.SIDE}
    question = policy._act_question(seen)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    for decision in candidates:
        images = [Image.fromarray(question.images[0])]
        length = processor(text=[text], images=images, return_tensors="pt")["input_ids"].shape[1]
        inputs = processor(text=[text + decision.text], images=images, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
        tokens = inputs["input_ids"][0, length:]
        assert decision.logprob == pytest.approx(scores[range(len(tokens)), tokens].sum().item(), abs=1e-3)


def test_candidates(policy: HfPolicy) -> None:
    seen = observations()
    groups = policy.propose(seen, 8)
    for group, greedy in zip(groups, policy.act(seen), strict=True):
        assert group[0].action == greedy.action and group[0].text == greedy.text
        actions = [decision.action for decision in group]
        assert len(set(actions)) == len(actions) <= 8 and None not in actions
    assert max(map(len, groups)) > 1
    torch.manual_seed(123)
    assert policy.propose(seen, 8) == groups, "the same question gets the same candidates"
    assert [len(group) for group in policy.propose(seen, 1)] == [1, 1, 1]


def test_sampling_leaves_the_random_numbers_of_others_alone(policy: HfPolicy) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    policy.propose(observations()[:1], 3)
    assert torch.equal(torch.rand(3), expected)


def test_threads_share_the_model(policy: HfPolicy) -> None:
    answers: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append([d.text for d in policy.act(observations())])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[d.text for d in policy.act(observations())]] * 4


def test_nothing_of_a_wide_image_is_cut_off(policy: HfPolicy) -> None:
    """LLaVA's own processor crops the middle square, and would never see what is at the sides."""
    wide = np.zeros((60, 240, 3), np.uint8)
    sides = wide.copy()
    sides[:, :60], sides[:, -60:] = 255, 255
    pixels = [
        policy._inputs([policy._act_question(Observation(image, np.zeros((60, 240), bool), "x"))])["pixel_values"]
        for image in (wide, sides)
    ]
    assert pixels[0].shape == (1, 3, tiny_mllm.SIDE, tiny_mllm.SIDE)
    assert (pixels[0] != pixels[1]).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_lora_adapter_changes_the_answer(llava: Path, adapter: Path, policy: HfPolicy) -> None:
    adapted = load_policy(f"hf:{llava}+{adapter}")
    assert [d.text for d in adapted.act(observations())] == [ADAPTED] * 3
    assert adapted.version != policy.version
    base = policy.act(observations()[:1])[0].text
    assert base == FIRST, "loading an adapter leaves other policies alone"


def test_an_agent_with_it(policy: HfPolicy, scene: Sample) -> None:
    agent = SegAgent(policy, load_segmenter("grabcut"), max_clicks=3)
    rollout = agent.segment(scene.image, "horse")
    assert rollout.mask.shape == scene.mask.shape
    assert rollout.trajectory.steps[0].action == Click(67, 37, True)
    assert rollout.stopped in ("repeated", "unparsable") and len(rollout.trajectory.steps) > 1


def test_an_agent_survives_a_model_that_babbles(scene: Sample, tmp_path: Path) -> None:
    babbling = load_policy(f"hf:{tiny_mllm.make_llava(tmp_path)}")
    agent = SegAgent(babbling, load_segmenter("grabcut"))
    assert agent.segment(scene.image, "horse").stopped == "unparsable"
    assert agent.segment_all(scene.image, "horse") == []
    rollout = agent.refine(scene.image, "horse", scene.mask)
    assert rollout.stopped == "unparsable" and np.array_equal(rollout.mask, scene.mask)
    assert rollout.trajectory.steps[-1].text


def test_the_version_is_an_address_of_the_content(llava: Path, tmp_path: Path, policy: HfPolicy) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    assert load_policy(f"hf:{copy}").version == policy.version
    with (copy / "chat_template.jinja").open("a") as file:
        file.write(" ")
    assert load_policy(f"hf:{copy}").version != policy.version


def test_settings_reach_the_policy(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGAGENT_PRESET", "per-mille")
    monkeypatch.setenv("SEGAGENT_MODEL_PIXELS", "5000")
    monkeypatch.setenv("SEGAGENT_PLAIN_IMAGE", "true")
    policy = load_policy(f"hf:{llava}")
    assert isinstance(policy, HfPolicy)
    question = policy._act_question(observations()[1])
    assert len(question.images) == 2 and question.images[0].shape[0] * question.images[0].shape[1] <= 5000
    assert "thousandths" in question.text
    assert policy._inputs([question])["pixel_values"].shape[0] == 2
    monkeypatch.setenv("SEGAGENT_MODEL_PIXELS", "few")
    with pytest.raises(ConfigError, match="SEGAGENT_MODEL_PIXELS is 'few'"):
        load_policy(f"hf:{llava}")


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_families(kind: str) -> None:
    """Each with its own processor: images of different shapes, two for one question, prompts of different lengths."""
    make, preset = FAMILIES[kind]
    policy = HfPolicy(*make(), "x", pixels=60_000, plain_image=True)
    assert policy.preset is PRESETS[preset]
    seen = observations()
    together, alone = policy.act(seen), [policy.act([one])[0] for one in seen]
    assert [d.text for d in together] == [d.text for d in alone]
    assert [d.logprob for d in together] == pytest.approx([d.logprob for d in alone], abs=1e-2)
    assert len({d.logprob for d in together}) == 3, "the model saw what was different"
    bos = policy.tokenizer.bos_token_id
    assert all((row == bos).sum() <= 1 for row in policy._inputs([policy._act_question(seen[0])])["input_ids"])


def test_qwens_pixels_are_those_that_it_sees() -> None:
    policy = HfPolicy(*FAMILIES["qwen2_5_vl"][0](), "x", pixels=60_000)
    questions = [
        policy._act_question(Observation(np.zeros((*size, 3), np.uint8), np.zeros(size, bool), "x"))
        for size in ((1000, 700), (90, 700), (20, 30))
    ]
    for question, (_, rows, columns) in zip(questions, policy._inputs(questions)["image_grid_thw"], strict=True):
        assert f"{columns * 14} wide and {rows * 14} high" in question.text
        assert rows * 14 * columns * 14 <= 60_000


def write_qwen(folder: Path) -> None:
    """A checkpoint as the hub has them."""
    model, processor = FAMILIES["qwen2_5_vl"][0]()
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"})
    )


def test_without_torchvision_the_error_names_the_extra(tmp_path: Path) -> None:
    write_qwen(tmp_path)
    error = error_without("torchvision", f"load_policy('hf:{tmp_path}')")
    assert re.search(r"[Tt]orchvision.*label-studio-segagent\[mllm\]", error)


@pytest.mark.parametrize("spec", ["hf", "hf:", "hf:/nowhere/at/all", "hf:no such name", "hf:nobody/no-such-model"])
def test_no_such_model(spec: str) -> None:
    with pytest.raises(ConfigError, match="needs a model|neither a folder nor a model"):
        load_policy(spec)


def test_a_name_on_the_hub(
    llava: Path, web: Any, web_answer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Downloaded once, without what is not needed; then the hub need not be there. The commit is the address."""
    commit = "c" * 40
    files = {path.name: path.read_bytes() for path in llava.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "original/model.safetensors": b"again", "run.py": b"code"}
    for name, body in files.items():
        headers = {"Content-Length": str(len(body)), "ETag": f'"{name}"', "X-Repo-Commit": commit}
        web.routes[f"/me/tiny/resolve/{commit}/{name}"] = web_answer(body, headers=headers)
    web.routes["/api/models/me/tiny/revision/main"] = {"id": "me/tiny", "sha": commit, "siblings": []}
    web.routes[f"/api/models/me/tiny/tree/{commit}"] = [
        {"type": "file", "oid": "0" * 40, "size": len(body), "path": name} for name, body in files.items()
    ]
    use_hub(web.url, tmp_path, monkeypatch)
    policy = load_policy("hf:me/tiny")
    assert policy.act(observations()[:1])[0].text == FIRST
    fetched = {path.rpartition("/")[2] for path in web.paths() if "/resolve/" in path}
    assert fetched == {path.name for path in llava.iterdir()}
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert load_policy("hf:me/tiny").version == policy.version


@pytest.mark.parametrize(
    "without", ["config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"]
)
def test_a_folder_without_something(without: str, llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / without).unlink()
    with pytest.raises(ConfigError, match=r"config.json|safetensors|cannot be loaded|instruct model"):
        load_policy(f"hf:{copy}")


def test_damaged_weights(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"model.safetensors is damaged"):
        load_policy(f"hf:{copy}")


def test_weights_of_another_model(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="weights are missing: .*layers.2"):
        load_policy(f"hf:{copy}")


def test_code_that_comes_with_a_model_is_not_run(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="SEGAGENT_TRUST_REMOTE_CODE"):
        load_policy(f"hf:{copy}")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_is_none(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no adapter_model.safetensors"):
        load_policy(f"hf:{llava}+{tmp_path}")


@pytest.mark.parametrize("kept", [0, 3])
def test_an_adapter_of_another_model(kept: int, llava: Path, adapter: Path, tmp_path: Path) -> None:
    """Its names fit this model only in part, or not at all: the rest would stay as it is, or be random."""
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    state = load_file(copy / "adapter_model.safetensors")
    names = {name: name if i < kept else name.replace("layers", "blocks") for i, name in enumerate(sorted(state))}
    save_file({names[name]: tensor for name, tensor in state.items()}, copy / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="no LoRA adapter of this model: .*missing adapter keys"):
        load_policy(f"hf:{llava}+{copy}")


def test_an_adapter_with_more_than_the_model_has(llava: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    state = load_file(copy / "adapter_model.safetensors")
    name = min(name for name in state if "layers" in name)
    save_file({**state, name.replace("layers", "blocks"): state[name].clone()}, copy / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="no LoRA adapter of this model: it has weights for .*blocks"):
        load_policy(f"hf:{llava}+{copy}")


def test_a_chat_template_that_does_not_work(llava: Path, tmp_path: Path, scene: Sample) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content | nonsense }}")
    with pytest.raises(ConfigError, match="chat template cannot be used: .*nonsense"):
        load_policy(f"hf:{copy}").locate(scene.image, "cat")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter(file: str, llava: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    (copy / file).write_text("{")
    with pytest.raises(ConfigError, match="no LoRA adapter of this model"):
        load_policy(f"hf:{llava}+{copy}")


@pytest.mark.parametrize("name", ["+", "+{}", "{}+"])
def test_half_a_name(name: str, llava: Path) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        load_policy(f"hf:{name.format(llava)}")


def test_a_config_that_is_none(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy(f"hf:{copy}")


def test_a_model_that_does_not_fit(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_load, "_free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"needs 0.0 GiB as float32, but cpu has 0.0 GiB free.*vLLM"):
        load_policy(f"hf:{llava}")
    monkeypatch.undo()
    assert 2**20 < (hf_load._free_memory("cpu") or 2**40) < 2**50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hf_load, "_GROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    limit.write_text("max\n")
    assert hf_load._free_memory("cpu") != 2**20
    limit.write_text(f"{2**20}\n")
    assert hf_load._free_memory("cpu") == 2**20, "a container's limit"
    monkeypatch.undo()

    def fail(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(ConfigError, match="does not fit into the memory of cpu: use a smaller"):
        load_policy(f"hf:{llava}")


def test_out_of_memory_while_answering_halves_the_batch(policy: HfPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = policy.model.generate

    def generate(most: int) -> Any:
        def run(**inputs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(**inputs)

        return run

    expected = [d.text for d in policy.act(observations())]
    monkeypatch.setattr(policy.model, "generate", generate(1))
    assert [d.text for d in policy.act(observations())] == expected
    assert sizes == [3, 1, 2, 1, 1]
    monkeypatch.setattr(policy.model, "generate", generate(0))
    with pytest.raises(ConfigError, match="SEGAGENT_MODEL_PIXELS"):
        policy.act(observations())
