"""The client against real HTTP servers that misbehave; `tests/e2e/test_serve.py` has one that behaves."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from PIL import Image

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.errors import ConfigError
from label_studio_segagent.hlmat.actions import Click
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Observation, Target
from label_studio_segagent.policies.openai import OpenAIPolicy

CHAT = "/v1/chat/completions"
CLICK = json.dumps({"current_iou": 40, "point_2d": [500, 250], "label": "negative"})
SEEN = Observation(np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160), bool), "horse")


def completion(*texts: Any, **more: Any) -> dict[str, Any]:
    choices = [{"index": i, "message": {"role": "assistant", "content": t}, **more} for i, t in enumerate(texts)]
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": choices}


def connect(web: Any, model: str = "m", **more: Any) -> OpenAIPolicy:
    return OpenAIPolicy(f"{web.url}/v1", model, **{"pause": 0.01, "timeout": 5.0, **more})


@pytest.fixture(autouse=True)
def _environment(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def pixels_of(part: dict[str, Any]) -> tuple[str, np.ndarray]:
    """Kind and pixels of an image in a request."""
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


def test_a_request_and_its_answer(web: Any) -> None:
    web.routes[CHAT] = completion(CLICK, logprobs={"content": [{"logprob": -0.5}, {"logprob": -1.25}]})
    policy = connect(web, key="sk-secret")
    decision = policy.act([SEEN])[0]
    assert decision.action == Click(80, 30, False) and decision.predicted_iou == 0.4
    assert decision.text == CLICK and decision.logprob == -1.75
    [asked] = web.asked
    assert asked.token == "Bearer sk-secret"
    body = asked.json
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_tokens"] < 100 and body["logprobs"] is True
    assert "n" not in body
    [message] = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert "horse" in message["content"][-1]["text"]


@pytest.mark.parametrize(("pixels", "kind"), [(2**20, "JPEG"), (40_000, "PNG")])
def test_images_travel_as_data_uris_within_the_limit(web: Any, pixels: int, kind: str) -> None:
    web.routes[CHAT] = completion(CLICK)
    image = np.zeros((900, 1600, 3), np.uint8)
    image[:, 800:] = (250, 120, 10)
    mask = np.zeros((900, 1600), bool)
    mask[:450] = True
    policy = connect(web, pixels=pixels, plain_image=True)
    policy.act([Observation(image, mask, "x")])
    *parts, _ = web.asked[0].json["messages"][0]["content"]
    for part, expected in zip(parts, ((125, 188, 5), (250, 120, 10)), strict=True):
        found, shown = pixels_of(part)
        assert found == f"data:image/{kind.lower()}"
        assert shown.shape[:2] == policy.resize((900, 1600)) and shown.shape[0] * shown.shape[1] <= pixels
        near = shown[10:-10, shown.shape[1] // 2 + 10 :][: shown.shape[0] // 2 - 20].astype(int)
        assert np.abs(near - expected).max() < 8


def test_boxes(web: Any) -> None:
    web.routes[CHAT] = completion('```json\n[{"bbox_2d": [100, 100, 500, 400], "label": "horse"}]\n```')
    assert connect(web).locate(SEEN.image, "horse") == [Target((16, 12, 80, 48), None, 1.0)]
    assert "logprobs" not in web.asked[0].json and web.asked[0].json["max_tokens"] > 500


def test_content_in_parts_or_missing(web: Any) -> None:
    policy = connect(web)
    web.routes[CHAT] = completion([{"type": "text", "text": CLICK[:9]}, {"type": "text", "text": CLICK[9:]}])
    assert policy.act([SEEN])[0].text == CLICK
    web.routes[CHAT] = completion(None)
    assert policy.act([SEEN])[0].action is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status: int, web: Any, web_answer: Any) -> None:
    answers = [web_answer(b"busy", status), web_answer(b"busy", status), completion(CLICK)]
    web.routes[CHAT] = lambda request: answers[len(web.asked) - 1]
    started = time.monotonic()
    assert connect(web, pause=0.1).act([SEEN])[0].text == CLICK
    assert len(web.asked) == 3 and time.monotonic() - started > 0.75 * (0.1 + 0.2)


@pytest.mark.parametrize("later", ["0.4", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_retry_after_is_honoured(later: Any, web: Any, web_answer: Any) -> None:
    answers = [web_answer(b"", 429, {"Retry-After": later if isinstance(later, str) else later()}), completion(CLICK)]
    web.routes[CHAT] = lambda request: answers[len(web.asked) - 1]
    started = time.monotonic()
    assert connect(web).act([SEEN])[0].text == CLICK
    assert time.monotonic() - started > 0.35


def test_an_endpoint_that_hangs_and_then_answers(web: Any) -> None:
    released = threading.Event()

    def answer(request: Any) -> Any:
        if len(web.asked) == 1:
            released.wait(5)
        return completion(CLICK)

    web.routes[CHAT] = answer
    assert connect(web, timeout=0.3).act([SEEN])[0].text == CLICK
    released.set()
    assert len(web.asked) == 2


def test_an_endpoint_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    policy = OpenAIPolicy(f"http://127.0.0.1:{port}/v1", "m", pause=0.001)
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}/v1 gave no answer in 4 attempts .*ConnectError"):
        policy.act([SEEN])
    with pytest.raises(ConfigError, match="gave no answer"):
        policy.locate(SEEN.image, "x")


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "SEGAGENT_OPENAI_API_KEY"), (403, "API key"), (404, "no model 'm'"), (302, "OpenAI-compatible")],
)
def test_what_the_operator_can_repair(status: int, says: str, web: Any, web_answer: Any) -> None:
    web.routes[CHAT] = web_answer(b"your key sk-secret is bad", status, {"Location": "http://127.0.0.1:1/"})
    with pytest.raises(ConfigError, match=says) as caught:
        connect(web, key="sk-secret").act([SEEN, SEEN])
    assert "sk-secret" not in str(caught.value)
    assert len(web.asked) == 2, "no second attempt, and no redirect is followed"


def test_one_failed_request_does_not_fail_the_batch(
    web: Any, web_answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Any) -> Any:
        text = request.json["messages"][0]["content"][-1]["text"]
        return (
            web_answer(b'{"point_2d": [1, 1], "label": "positive"}', 413 if "large" in text else 500)
            if ("large" in text or "broken" in text)
            else completion(CLICK)
        )

    web.routes[CHAT] = answer
    policy = connect(web)
    prompts = ["horse", "too large", "cat", "broken"]
    decisions = policy.act([Observation(SEEN.image, SEEN.mask, prompt) for prompt in prompts])
    assert [d.action is None for d in decisions] == [False, True, False, True]
    assert "HTTP 413" in decisions[1].text and "HTTP 500" in decisions[3].text
    assert "2 of 4 requests" in caplog.text
    assert [len(t) for t in policy.locate_batch([(SEEN.image, prompt) for prompt in prompts])] == [1, 0, 1, 0]
    lone = policy.act([Observation(SEEN.image, SEEN.mask, "too large")])
    assert lone[0].action is None, "this request is refused, the endpoint is well"
    with pytest.raises(ConfigError, match="HTTP 500"):
        policy.act([Observation(SEEN.image, SEEN.mask, "broken")])


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [{"message": 3}]}',
     b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"logprob": null}]}}]}', b"\xff\xfe",
     b"[" * 100_000],
)  # fmt: skip
def test_garbage(body: bytes, web: Any) -> None:
    web.routes[CHAT] = body
    decision = connect(web).act([SEEN])[0]
    assert decision.action is None and "answered" in decision.text


def refusing(
    web: Any, web_answer: Any, *fields: str, name_them: bool = True, status: int = 400
) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        body = request.json
        for field in fields:
            if field in body:
                said = f"Unsupported parameter: '{field}'" if name_them else "Bad request"
                return web_answer(json.dumps({"error": {"message": said}}).encode(), status)
        return completion(*[CLICK] * body.get("n", 1))

    return answer


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("name_them", [True, False])
def test_fields_that_are_refused_are_left_out(name_them: bool, status: int, web: Any, web_answer: Any) -> None:
    fields = ("logprobs", "chat_template_kwargs") if name_them else ("logprobs",)
    web.routes[CHAT] = refusing(web, web_answer, *fields, name_them=name_them, status=status)
    policy = connect(web)
    assert policy.act([SEEN])[0].text == CLICK
    assert len(web.asked) == 1 + (2 if name_them else 1)
    assert ("temperature" in web.asked[-1].json) == name_them, "what is not refused is kept, as far as one can tell"
    assert policy.act([SEEN])[0].text == CLICK
    assert len(web.asked) == 2 + (2 if name_them else 1), "it is remembered"


def test_the_other_name_of_max_tokens(web: Any, web_answer: Any) -> None:
    web.routes[CHAT] = refusing(web, web_answer, "max_tokens", "temperature")
    assert connect(web).act([SEEN])[0].text == CLICK
    last = web.asked[-1].json
    assert last["max_completion_tokens"] < 100 and "max_tokens" not in last and "temperature" not in last


def test_a_refusal_of_the_request_itself_costs_no_fields_later(web: Any, web_answer: Any) -> None:
    web.routes[CHAT] = web_answer(b'{"error": "the image is too large"}', 400)
    policy = connect(web)
    assert "too large" in policy.act([SEEN])[0].text
    web.routes[CHAT] = completion(CLICK)
    policy.act([SEEN])
    assert {"logprobs", "temperature", "chat_template_kwargs"} <= set(web.asked[-1].json)


def candidate(x: int) -> str:
    return json.dumps({"point_2d": [x, 500], "label": "positive"})


def test_candidates_in_one_request(web: Any) -> None:
    web.routes[CHAT] = lambda request: (
        completion(*map(candidate, (1, 2, 1, 3))) if request.json.get("n") else completion(candidate(7))
    )
    [group] = connect(web).propose([SEEN], 5)
    assert [d.text for d in group] == [candidate(x) for x in (7, 1, 2, 3)]
    assert [request.json.get("n") for request in web.asked] == [None, 4]
    assert web.asked[0].json["temperature"] == 0 and web.asked[1].json["temperature"] > 0


def test_candidates_from_servers_that_ignore_or_refuse_n(web: Any, web_answer: Any) -> None:
    web.routes[CHAT] = lambda request: completion(candidate(len(web.asked)))
    assert [d.text for d in connect(web).propose([SEEN], 4)[0]] == [candidate(x) for x in (1, 2, 3, 4)]
    web.asked.clear()
    refuse = refusing(web, web_answer, "n")
    web.routes[CHAT] = lambda request: refuse(request) if "n" in request.json else completion(candidate(len(web.asked)))
    assert len(connect(web).propose([SEEN], 4)[0]) == 4


def test_requests_run_at_once_but_not_too_many(web: Any) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def answer(request: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return completion(
            candidate(int(request.json["messages"][0]["content"][-1]["text"].split("number ")[1].split()[0]))
        )

    web.routes[CHAT] = answer
    policy = connect(web, concurrency=3)
    decisions = policy.act([Observation(SEEN.image, SEEN.mask, f"number {i}") for i in range(9)])
    assert [d.text for d in decisions] == [candidate(i) for i in range(9)], "in order"
    assert 2 <= most <= 3


def test_an_agent_with_it(web: Any, web_answer: Any, scene: Sample) -> None:
    """The endpoint fails in the middle: what there is by then is kept."""
    box = [{"bbox_2d": [290, 210, 830, 800]}]
    answers = [completion(json.dumps(box)), completion(CLICK), web_answer(b"?", 400), web_answer(b"?", 400)]
    web.routes[CHAT] = lambda request: answers[min(len(web.asked), 4) - 1]
    rollout = SegAgent(connect(web), load_segmenter("grabcut")).segment(scene.image, "ellipse")
    assert rollout.stopped == "unparsable" and rollout.predicted_iou == 0.4 and rollout.mask.any()


def test_the_key_comes_from_the_environment_and_is_not_logged(
    web: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    web.routes[CHAT] = completion(CLICK)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    load_policy(f"openai:{web.url}/v1#m").act([SEEN])
    monkeypatch.setenv("SEGAGENT_OPENAI_API_KEY", "sk-ours")
    load_policy(f"openai:{web.url}/v1/#m").act([SEEN])
    assert [request.token for request in web.asked] == ["Bearer sk-general", "Bearer sk-ours"]
    assert web.paths() == [CHAT, CHAT]
    monkeypatch.setenv("SEGAGENT_OPENAI_API_KEY", "")
    load_policy(f"openai:{web.url}/v1#m").act([SEEN])
    assert web.asked[-1].token is None
    web.routes[CHAT] = b"sk-ours"
    monkeypatch.setenv("SEGAGENT_OPENAI_API_KEY", "sk-ours")
    assert "sk-ours" not in load_policy(f"openai:{web.url}/v1#m").act([SEEN])[0].text
    assert "sk-" not in caplog.text
    monkeypatch.setenv("SEGAGENT_OPENAI_API_KEY", "sk-\u00fc\u20ac")
    with pytest.raises(ConfigError, match="SEGAGENT_OPENAI_API_KEY"):
        load_policy(f"openai:{web.url}/v1#m")


@pytest.mark.parametrize(
    "spec",
    ["openai", "openai:", "openai:http://host:8000/v1", "openai:#m", "openai:host:8000/v1#m", "openai:ftp://host/v1#m",
     "openai:http://#m", "openai:http://[::1/v1#m"],
)  # fmt: skip
def test_what_is_no_address(spec: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8000/v1|no URL"):
        load_policy(spec)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="SEGAGENT_OPENAI_API_KEY") as caught:
        load_policy("openai:http://me:swordfish@host:8000/v1#m")
    assert "swordfish" not in str(caught.value)


def test_settings_reach_the_policy(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.routes[CHAT] = completion("Current IOU: 50\nPositive point: (500, 250)")
    monkeypatch.setenv("SEGAGENT_PRESET", "segagent")
    monkeypatch.setenv("SEGAGENT_MODEL_PIXELS", "5000")
    policy = load_policy(f"openai:{web.url}/v1#Qwen/Qwen2.5-VL-7B-Instruct")
    assert policy.act([SEEN])[0].action == Click(40, 60, True)
    _, shown = pixels_of(web.asked[0].json["messages"][0]["content"][0])
    assert shown.shape[0] * shown.shape[1] <= 5000
    versions = {policy.version, OpenAIPolicy("http://a/v1", "m").version, OpenAIPolicy("http://a/v1", "o").version}
    assert len(versions) == 3
    assert OpenAIPolicy("http://b/v1", "m").version in versions, "a replica is the same model"
